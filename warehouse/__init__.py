"""alab: an activation warehouse.

    import warehouse

    lab = warehouse.open("lab")
    lab.sql("SELECT site, layer, cosine FROM intra_run('latest')")
    lab.tensor("latest", "hidden_out", layer=12)          # numpy, (tokens, width)
    warehouse.record(model, tokenizer, messages)    # of a model that is loaded already: a run's id
    with warehouse.recording(model, tokenizer):     # any forward passes
        model.generate(ids)

Importing this costs nothing; what a name needs is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warehouse.api import Warehouse, open
    from warehouse.capture.recording import record, recording
    from warehouse.errors import AlabError

__all__ = ["AlabError", "Warehouse", "open", "record", "recording"]

_HOMES = {"AlabError": "errors", "Warehouse": "api", "open": "api"}
_HOMES |= dict.fromkeys(("record", "recording"), "capture.recording")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'warehouse' has no attribute {name!r}")
    from importlib import import_module

    if _HOMES[name].startswith("capture."):  # before torch, which it imports
        from warehouse.capture.threads import let_threads_sleep

        let_threads_sleep()
    return getattr(import_module(f"warehouse.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
