"""The model hub: asked once whether it is there, so that nobody waits for it file by file."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

#: The hub's library knows one place that says whether it is used: one thread at a time changes it.
_LOCK = threading.RLock()


@contextlib.contextmanager
def reached(*names: str | None) -> Iterator[bool]:
    """Look into the hub's cache alone where the hub does not answer, for as long as this is open.

    The hub's own library asks six times for every file, which takes a minute and a half for a model
    where there is no network, whether the model is in the cache or not.

    Args:
        names: directories, or ids of the hub; where all are directories nothing is asked.

    Yields:
        Whether the hub answers; true where nothing was asked.
    """
    if all(name is None or Path(name).expanduser().is_dir() for name in names):
        yield True
        return
    from huggingface_hub import constants

    with _LOCK:
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
        try:
            yield not constants.HF_HUB_OFFLINE
        finally:
            constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    """Whether anything answers there, be it with an error."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:  # as patiently as the library waits for what it knows of a file
        get_session().head(address, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # no name, no route, no time, a proxy that refuses
        return False
    return True
