"""What is wrong with a scenario, in the words of the YAML that its writer sees."""

import difflib
from collections.abc import Mapping, Sequence
from math import isinf
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

#: So many mistakes are told at once.
SHOWN = 5
#: What a value should have been, by the name of pydantic's error.
_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_LIMITS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def tell(error: ValidationError, data: object, model: type[BaseModel]) -> tuple[str, str]:
    """All mistakes of a request, as a message and what to do next: one in a line of each, several in a line each.

    Args:
        error: what pydantic found.
        data: the request as plain data.
        model: what it was checked against.
    """
    found = [(_place(problem, data), problem) for problem in error.errors()]
    found = [
        (place, problem) for place, problem in found if not _entailed(place, problem, found, model)
    ]
    # An unknown key explains what else is missing or wrong, so it is told first.
    found.sort(key=lambda one: one[1]["type"] not in ("extra_forbidden", "invalid_key"))
    told: dict[str, str] = {}  # a place that may hold one of several things has an error for each
    for place, problem in found:
        message, hint = _explain(place, problem, model)
        told.setdefault(message, hint)
    if len(told) == 1:
        return next(iter(told.items()))
    lines = [f"{message}{'. ' if hint else ''}{hint}" for message, hint in told.items()]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"{len(lines)} mistakes", *lines[:SHOWN], *more]), ""


def _place(problem: Any, data: object) -> list[str | int]:
    """Where the mistake is in the data: pydantic's place without the names of its own branches and lists."""
    place: list[str | int] = []
    node = data
    for part in problem["loc"]:
        inside = part in node if isinstance(node, Mapping) else _has_item(node, part)
        if inside:
            node = node[part]
            place.append(part)
    if problem["type"] == "missing":
        place.append(problem["loc"][-1])
    return place


def _has_item(node: object, part: object) -> bool:
    return (
        isinstance(node, Sequence)
        and not isinstance(node, str)
        and isinstance(part, int)
        and part < len(node)
    )


def _entailed(place: list, problem: Any, found: list, model: type[BaseModel]) -> bool:
    """Whether a mistake is another one seen from elsewhere.

    A key that is missing because it is misspelt; what is wrong inside a list, told once more as
    'not one word'.
    """
    if problem["type"] == "missing":
        return any(
            other["type"] == "extra_forbidden"
            and there[:-1] == place[:-1]
            and _closest(there, model) == str(place[-1])
            for there, other in found
        )
    return any(len(there) > len(place) and there[: len(place)] == place for there, _ in found)


def _explain(place: list[str | int], problem: Any, model: type[BaseModel]) -> tuple[str, str]:
    """One mistake as (what is wrong where, what to do)."""
    key = name(place) or "the scenario"
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        close = _closest(place, model)
        return (
            f"unknown key {key!r}",
            f"Did you mean {close!r}?" if close else f"Known keys: {_known(place[:-1], model)}",
        )
    if kind == "invalid_key":
        inside = place[:-1]
        message = f"{name(inside) or 'the scenario'} has a key that is not text: {shown(given)}"
        return message, f"Known keys: {_known(inside, model)}"
    if kind == "missing":
        return f"the key {key!r} is missing", ""
    if kind == "string_pattern_mismatch":
        return (
            f"{key}: {given!r} is not a name",
            "Allowed: letters, digits and . _ - , not starting with a dot or a dash",
        )
    if kind in ("model_type", "model_attributes_type"):
        return f"{key}: expected a mapping, got {shown(given)}", f"Its keys: {_known(place, model)}"
    if kind in ("too_short", "string_too_short"):
        return f"{key} is empty" + ("; at least one is needed" if kind == "too_short" else ""), ""
    if kind == "string_too_long":
        return (
            f"{key}: expected at most {problem['ctx']['max_length']} characters, got {len(given)}",
            "",
        )
    if kind == "value_error":
        return f"{key}: {problem['ctx']['error']}", ""
    if key == "capture.layers":
        return f"{key}: expected 'all' or a list of layers such as [0, 5], got {shown(given)}", ""
    hint = "Put it in quotes." if kind == "string_type" and _is_scalar(given) else ""
    return f"{key}: expected {_expected(place, problem, model)}, got {shown(given)}", hint


def _expected(place: list[str | int], problem: Any, model: type[BaseModel]) -> str:
    """What a value should have been, such as "a whole number of at least 1"."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return f"one of {context['expected'].replace(chr(39), '').replace(' or ', ', ')}"
    if kind == "number_type":
        return _number(place, model)
    if kind in _LIMITS:
        argument, word = _LIMITS[kind]
        if isinf(context[argument]):
            return "a finite number"
        return f"{_number(place, model)} {'of ' if word.startswith('at') else ''}{word} {context[argument]:g}"
    return _KINDS.get(kind, f"something else ({problem['msg']})")


def _number(place: list[str | int], model: type[BaseModel]) -> str:
    """What kind of number belongs at a place."""
    keys = [part for part in place if isinstance(part, str)]
    owner = _model_at(keys[:-1], model)
    field = owner.model_fields.get(keys[-1]) if owner else None
    return "a number" if field and _speaks_of(field.annotation, float) else "a whole number"


def _speaks_of(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_speaks_of(part, kind) for part in get_args(annotation))


def name(place: Sequence[str | int]) -> str:
    """A place as one writes it.

    >>> name(["prompt", 1, "messages", 0, "role"])
    'prompt[1].messages[0].role'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(
        "."
    )


def shown(value: object) -> str:
    """A value as YAML writes it, at most 60 characters long.

    >>> shown(True), shown(None), shown("a"), shown([1, {"b": 2.5}])
    ('true', 'nothing', "'a'", '[1, {b: 2.5}]')
    """
    if value is None:
        return "nothing"
    try:
        text = (
            repr(value)
            if isinstance(value, str)
            else yaml.safe_dump(
                value, default_flow_style=True, width=1000, allow_unicode=True, sort_keys=False
            )
            .removesuffix("\n")
            .removesuffix("\n...")
        )
    except yaml.YAMLError:  # from Python, where a value may be anything
        text = repr(value)
    text = " ".join(text.split("\n"))
    return text if len(text) <= 60 else text[:59] + "…"


def _is_scalar(value: object) -> bool:
    return value is not None and not isinstance(value, Mapping | list)


def _closest(place: list[str | int], model: type[BaseModel]) -> str | None:
    """The known key that an unknown one looks like."""
    keys = _keys(_model_at(place[:-1], model))
    return next(iter(difflib.get_close_matches(str(place[-1]), keys, n=1, cutoff=0.5)), None)


def _known(place: list[str | int], model: type[BaseModel]) -> str:
    return ", ".join(_keys(_model_at(place, model)))


def _keys(model: type[BaseModel] | None) -> list[str]:
    return list(model.model_fields) if model else []


def _model_at(place: list[str | int], model: type[BaseModel] | None) -> type[BaseModel] | None:
    """What a place in the request is checked against; None where that is no mapping with keys of its own."""
    for part in place:
        if model and isinstance(part, str):
            field = model.model_fields.get(part)
            model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation such as `list[Prompt]` or `Prompt | None` speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
