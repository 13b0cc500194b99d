"""What transformers says while a model is loaded or runs: kept for the run's notes, not printed."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

#: What a message is about that no run needs to tell: speed, what will be removed, and what alab
#: says better itself.
_IDLE = re.compile(
    r"deprecat|will be removed|in a future version|LOAD REPORT|state_dict report|fast(er| path)|"
    r"slow(er)?\b|Dequantizing the whole model|generation flags? (is|are) not valid|"
    r"unauthenticated|torch_dtype|gradient.?checkpointing|Found missing adapter keys",
    re.IGNORECASE,
)
_TIED = re.compile(r"specifies to tie (\S+) to (\S+), but both are present")


class _Listener(logging.Handler):
    def __init__(self, messages: list[str]):
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


@contextlib.contextmanager
def listening(*, python_warnings: bool = True) -> Iterator[list[str]]:
    """Collect what transformers warns of, instead of having it printed.

    Args:
        python_warnings: collect Python's own warnings too, by which PEFT speaks; else they go
            where they went.

    Yields:
        The messages so far, in order; after the block each once, Python's warnings last.
    """
    messages: list[str] = []
    logger = logging.getLogger("transformers")
    level, handlers, propagate = logger.level, logger.handlers[:], logger.propagate
    once = getattr(logging.Logger, "warning_once", None)
    if once is not None:  # what was said of a model before is to be said of the next one too
        once.cache_clear()
    raised: list[warnings.WarningMessage] = []
    with contextlib.ExitStack() as stack:
        if python_warnings:
            raised = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
        logger.handlers, logger.propagate = [_Listener(messages)], False
        logger.setLevel(logging.WARNING)
        try:
            yield messages
        finally:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
            messages += [str(w.message) for w in raised if issubclass(w.category, UserWarning)]
            messages[:] = dict.fromkeys(messages)


def notes(messages: list[str], when: str = "on loading") -> list[tuple[str, str]]:
    """What of the messages a run has to tell, as (code, sentence), each once.

    >>> notes(["`torch_dtype` is deprecated! Use `dtype` instead!"])
    []
    >>> notes(["Unrecognized keys in `rope`:  {'scale'}"])
    [('library', "on loading, transformers said: Unrecognized keys in `rope`: {'scale'}")]
    """
    notes = []
    for message in dict.fromkeys(messages):
        text = " ".join(message.split())
        if tied := _TIED.search(text):
            values = "and the checkpoint has other values for each: each has its own"
            notes.append(("tied_weights", f"the config ties {tied[1]} and {tied[2]}, {values}"))
        elif not _IDLE.search(text):
            notes.append(("library", f"{when}, transformers said: {text[:500]}"))
    return notes
