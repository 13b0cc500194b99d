"""The values of an address: one name means one thing on every page, and has one type."""

from typing import Any

from starlette.datastructures import QueryParams

from warehouse.errors import AlabError

#: Values that are whole numbers; all others are text.
WHOLE = frozenset(
    {
        "prompt",
        "prompt_a",
        "prompt_b",
        "step",
        "step_a",
        "step_b",
        "layer",
        "layer_a",
        "layer_b",
        "head",
        "position",
        "position_a",
        "position_b",
        "message",
        "neuron",
        "k",
        "row",
        "size",
        "limit",
        "offset",
        "first",
        "last",
        "column",
        "rows",
        "columns",
        "down",
        "across",
        "queries",
    }
)
#: Values that may stand several times.
SEVERAL = frozenset({"runs", "refs", "sites", "layers", "heads", "labels", "prompts"})
#: Those of them that are whole numbers.
_WHOLES = frozenset({"layers", "heads", "prompts"})
#: What an address need not say.
DEFAULTS: dict[str, Any] = {"prompt": 0, "step": 0}


def values_of(query: QueryParams) -> dict[str, Any]:
    """The values that an address says, in their types, beside those that it need not say.

    >>> values_of(QueryParams("run=latest&layer=3&runs=a&runs=b"))
    {'prompt': 0, 'step': 0, 'run': 'latest', 'layer': 3, 'runs': ['a', 'b']}

    Raises:
        AlabError: one is not of its type; with exit code 2.
    """
    values = dict(DEFAULTS)
    for name, text in query.multi_items():
        one = _whole(name, text) if name in WHOLE or name in _WHOLES else text
        if name in SEVERAL:
            values.setdefault(name, []).append(one)
        else:
            values[name] = one
    return values


def _whole(name: str, text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 16):
        raise AlabError(f"{name} is a whole number, not {text[:40]!r}", "", 2)
    return int(text)
