"""What transformers says while a model is loaded or runs: heard, not printed, and told by the run."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

#: What a message is about that no run needs to tell: speed, what will be removed, and what alab
#: says better itself.
_IDLE = re.compile(
    r"deprecat|will be removed|in a future version|LOAD REPORT|state_dict report|fast(er| path)|slow(er)?\b|"
    r"Dequantizing the whole model|generation flags? (is|are) not valid|unauthenticated|torch_dtype|"
    r"gradient.?checkpointing|Found missing adapter keys",
    re.IGNORECASE,
)
_TIED = re.compile(r"specifies to tie (\S+) to (\S+), but both are present")


class _Ear(logging.Handler):
    def __init__(self, heard: list[str]):
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(record.getMessage())


@contextlib.contextmanager
def listening(*, python_warnings: bool = True) -> Iterator[list[str]]:
    """Hear what transformers warns of, instead of having it printed.

    Args:
        python_warnings: hear Python's own warnings too, by which PEFT speaks; else they go where
            they went.

    Yields:
        The messages so far, in order; after the block each once, Python's warnings last.
    """
    heard: list[str] = []
    logger = logging.getLogger("transformers")
    level, handlers, propagate = logger.level, logger.handlers[:], logger.propagate
    once = getattr(logging.Logger, "warning_once", None)
    if once is not None:  # what was said of a model before is to be said of the next one too
        once.cache_clear()
    with (
        warnings.catch_warnings(record=True)
        if python_warnings
        else contextlib.nullcontext([]) as raised
    ):
        if python_warnings:
            warnings.simplefilter("always")
        logger.handlers, logger.propagate = [_Ear(heard)], False
        logger.setLevel(logging.WARNING)
        try:
            yield heard
        finally:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
            heard += [
                str(warning.message)
                for warning in raised
                if issubclass(warning.category, UserWarning)
            ]
            heard[:] = dict.fromkeys(heard)


def notes(heard: list[str], when: str = "on loading") -> list[tuple[str, str]]:
    """What of the messages a run has to tell, as (code, sentence), each once.

    >>> notes(["`torch_dtype` is deprecated! Use `dtype` instead!"])
    []
    >>> notes(["Unrecognized keys in `rope`:  {'scale'}"])
    [('library', "on loading, transformers said: Unrecognized keys in `rope`: {'scale'}")]
    """
    found = []
    for message in dict.fromkeys(heard):
        text = " ".join(message.split())
        if tied := _TIED.search(text):
            names = f"{tied[1]} and {tied[2]}"
            found.append(
                (
                    "tied_weights",
                    f"the config ties {names}, and the checkpoint has other values for each: "
                    "each has its own",
                )
            )
        elif not _IDLE.search(text):
            found.append(("library", f"{when}, transformers said: {text[:500]}"))
    return found
