"""What is wrong with a scenario, in the words of the YAML that its writer sees."""

import difflib
from collections.abc import Mapping, Sequence
from math import isinf
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

#: Keys and numbers from the whole request to a place in it.
Place = list[str | int]

#: So many mistakes are told at once.
MOST = 5
_INTEGER_ERRORS = ("int_type", "int_parsing", "int_from_float", "int_parsing_size")
#: What a value should have been, by the name of pydantic's error.
_KINDS = {"string_type": "text", "list_type": "a list", "dict_type": "a mapping"}
_KINDS |= dict.fromkeys(_INTEGER_ERRORS, "a whole number") | {"finite_number": "a finite number"}
_KINDS |= dict.fromkeys(("float_type", "float_parsing"), "a number")
_KINDS |= dict.fromkeys(("bool_type", "bool_parsing"), "true or false")
_LIMITS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def each(
    error: ValidationError, data: object, model: type[BaseModel]
) -> dict[str, tuple[Place, str]]:
    """The mistakes of a request: of each what is wrong, and the place and what to do next."""
    problems = [(_place(problem, data), problem) for problem in error.errors()]
    problems = [one for one in problems if not _entailed(*one, problems, model)]
    # An unknown key explains what else is missing or wrong, so it comes first.
    problems.sort(key=lambda one: one[1]["type"] not in ("extra_forbidden", "invalid_key"))
    told: dict[str, tuple[Place, str]] = {}
    for place, problem in problems:
        message, hint = _words(place, problem, model)
        # A place that may hold one of several things has an error for each.
        told.setdefault(message, (place, hint))
    return told


def tell(error: ValidationError, data: object, model: type[BaseModel]) -> tuple[str, str]:
    """All mistakes of a request, as a message and what to do next; several have a line each."""
    hints = {message: hint for message, (_, hint) in each(error, data, model).items()}
    if len(hints) == 1:
        return next(iter(hints.items()))
    lines = [f"{message}{'. ' if hint else ''}{hint}" for message, hint in hints.items()]
    more = [f"and {len(lines) - MOST} more"] if len(lines) > MOST else []
    return "\n".join([f"{len(lines)} mistakes", *lines[:MOST], *more]), ""


def _place(problem: Any, data: object) -> Place:
    """Where the mistake is in the data: pydantic's place without names of its own branches."""
    place: Place = []
    node: Any = data
    for part in problem["loc"]:
        if part in node if isinstance(node, Mapping) else _has_item(node, part):
            node = node[part]
            place.append(part)
    if problem["type"] == "missing":
        place.append(problem["loc"][-1])
    return place


def _has_item(node: Any, part: object) -> bool:
    is_list = isinstance(node, Sequence) and not isinstance(node, str)
    return is_list and isinstance(part, int) and part < len(node)


def _entailed(place: Place, problem: Any, problems: list, model: type[BaseModel]) -> bool:
    """Whether a mistake is another one seen from elsewhere.

    A key that is missing because it is misspelt; what is wrong inside a list, told once more as
    'not one word'.
    """
    if problem["type"] == "missing":
        return any(
            other["type"] == "extra_forbidden"
            and there[:-1] == place[:-1]
            and _closest(there, model) == str(place[-1])
            for there, other in problems
        )
    return any(len(there) > len(place) and there[: len(place)] == place for there, _ in problems)


def _words(place: Place, problem: Any, model: type[BaseModel]) -> tuple[str, str]:
    """One mistake as (what is wrong where, what to do)."""
    key, kind, given = name(place) or "the scenario", problem["type"], problem["input"]
    if kind in ("extra_forbidden", "invalid_key", "missing"):
        return _words_of_key(place, problem, model)
    if kind == "string_pattern_mismatch":
        hint = "Allowed: letters, digits and . _ - , not starting with a dot or a dash"
        return f"{key}: {given!r} is not a name", hint
    if kind in ("model_type", "model_attributes_type"):
        keys = f"Its keys: {_known(place, model)}"
        return f"{key}: expected a mapping, got {yaml_text(given)}", keys
    if kind in ("too_short", "string_too_short"):
        return f"{key} is empty" + ("; at least one is needed" if kind == "too_short" else ""), ""
    if kind == "string_too_long":
        most = problem["ctx"]["max_length"]
        return f"{key}: expected at most {most} characters, got {len(given)}", ""
    if kind == "value_error":
        return f"{key}: {problem['ctx']['error']}", ""
    if key == "capture.layers":
        expected = "'all' or a list of layers such as [0, 5]"
        return f"{key}: expected {expected}, got {yaml_text(given)}", ""
    is_scalar = given is not None and not isinstance(given, Mapping | list)
    hint = "Put it in quotes." if kind == "string_type" and is_scalar else ""
    return f"{key}: expected {_expected(place, problem, model)}, got {yaml_text(given)}", hint


def _words_of_key(place: Place, problem: Any, model: type[BaseModel]) -> tuple[str, str]:
    """The same for a key that is unknown, no text, or missing."""
    if problem["type"] == "missing":
        return f"the key {name(place)!r} is missing", ""
    known = f"Known keys: {_known(place[:-1], model)}"
    if problem["type"] == "invalid_key":
        where, given = name(place[:-1]) or "the scenario", yaml_text(problem["input"])
        return f"{where} has a key that is not text: {given}", known
    close = _closest(place, model)
    return f"unknown key {name(place)!r}", f"Did you mean {close!r}?" if close else known


def _expected(place: Place, problem: Any, model: type[BaseModel]) -> str:
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
        word = f"of {word}" if word.startswith("at") else word
        return f"{_number(place, model)} {word} {context[argument]:g}"
    return _KINDS.get(kind, f"something else ({problem['msg']})")


def _number(place: Place, model: type[BaseModel]) -> str:
    """What kind of number belongs at a place."""
    keys: Place = [part for part in place if isinstance(part, str)]
    owner = _model_at(keys[:-1], model)
    field = owner.model_fields.get(str(keys[-1])) if owner else None
    return "a number" if field and _speaks_of(field.annotation, float) else "a whole number"


def _speaks_of(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_speaks_of(part, kind) for part in get_args(annotation))


def name(place: Sequence[str | int]) -> str:
    """A place as one writes it.

    >>> name(["prompt", 1, "messages", 0, "role"])
    'prompt[1].messages[0].role'
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).lstrip(".")


def yaml_text(value: object) -> str:
    """A value as YAML writes it, at most 60 characters long.

    >>> yaml_text(True), yaml_text(None), yaml_text("a"), yaml_text([1, {"b": 2.5}])
    ('true', 'nothing', "'a'", '[1, {b: 2.5}]')
    """
    if value is None:
        return "nothing"
    style: dict[str, Any] = {"default_flow_style": True, "width": 1000, "allow_unicode": True}
    try:
        text = repr(value)
        if not isinstance(value, str):
            text = yaml.safe_dump(value, sort_keys=False, **style)
    except yaml.YAMLError:  # from Python, where a value may be anything
        pass
    text = " ".join(text.removesuffix("\n").removesuffix("\n...").split("\n"))
    return text if len(text) <= 60 else text[:59] + "…"


def _closest(place: Place, model: type[BaseModel]) -> str | None:
    """The known key that an unknown one looks like."""
    keys = _keys(_model_at(place[:-1], model))
    return next(iter(difflib.get_close_matches(str(place[-1]), keys, n=1, cutoff=0.5)), None)


def _known(place: Place, model: type[BaseModel]) -> str:
    return ", ".join(_keys(_model_at(place, model)))


def _keys(model: type[BaseModel] | None) -> list[str]:
    return list(model.model_fields) if model else []


def _model_at(place: Place, model: type[BaseModel] | None) -> type[BaseModel] | None:
    """What a place in the request is checked against; None where it has no keys of its own."""
    for part in place:
        if model and isinstance(part, str):
            field = model.model_fields.get(part)
            model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation such as `list[Prompt]` or `Prompt | None` speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
