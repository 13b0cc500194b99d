"""The scenario: the YAML that says which conversation to run, through which model, and what to keep."""

import difflib
import json
import re
from math import inf
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from warehouse.errors import AlabError

Dtype = Literal["float16", "bfloat16", "float32"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _encodable(text: str) -> str:
    """Refuse half a surrogate pair, which YAML can spell and no tokenizer or file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} is half of a surrogate pair (\\ud800 … \\udfff), not text"
        ) from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Prompt(_Strict):
    """A conversation to run."""

    run_at_each_message: bool = Field(False, description="one run for each message prefix, instead of one run")
    messages: list[Message] = Field(min_length=1)


class Model(_Strict):
    """Which model, and how it computes."""

    id: str = Field(min_length=1, description="hub id, local directory, or package:NAME")
    dtype: Dtype = Field("float16", description="precision to compute in; on a CPU float16 is computed in float32")
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    gguf_file: str | None = Field(None, description="file to dequantise, in the model's directory")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class Generation(_Strict):
    """How the reply is generated."""

    max_new_tokens: int = Field(50, ge=1)
    do_sample: bool = False
    temperature: float = Field(1.0, ge=0, lt=inf, description="0 means greedy; else at least 1e-6")
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int = Field(42, ge=0, lt=2**63)

    @field_validator("temperature")
    @classmethod
    def _divides_logits(cls, value: float) -> float:
        if 0 < value < 1e-6:
            raise ValueError(f"{value} is too small to divide logits by; write 0 for greedy")
        return value

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return not self.do_sample or self.temperature == 0


class Capture(_Strict):
    """Which tensors are kept, and in which precision."""

    hidden_states: bool = Field(True, description="hidden_in, hidden_out, attn_out, mlp_down_out and embeddings")
    attention_weights: bool = Field(True, description="attention weights; needs the slower eager attention")
    qkv: bool = Field(True, description="query, key and value projections")
    mlp: bool = Field(True, description="mlp_gate, mlp_up and mlp_down_in")
    logits: bool = True
    top_k_probs: int = Field(20, ge=0, description="most likely tokens kept per step")
    layers: Literal["all"] | list[Annotated[int, Field(ge=0)]] = "all"
    store_dtype: Dtype = Field("float16", description="precision that values are rounded to before they are written")

    @model_validator(mode="after")
    def _some_layer(self):
        if self.layers == []:
            raise ValueError("layers is an empty list; name at least one layer, or write: all")
        return self


class Output(_Strict):
    """Where the run goes."""

    dir: str | None = Field(None, description="the warehouse's directory")
    format: Literal["parquet", "json+npz"] = "parquet"


class Reference(_Strict):
    """A short labelled conversation whose last-token state others are compared with.

    Several with the same label are its examples: others are compared with their mean.
    """

    label: Text = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


class Scenario(_Strict):
    """A whole request, every default filled in."""

    name: Name
    model: Model
    prompt: Annotated[list[Prompt], Field(min_length=1), BeforeValidator(_as_list)]
    generation: Generation = Generation()
    capture: Capture = Capture()
    output: Output = Output()
    reference_states: list[Reference] = []

    @model_validator(mode="after")
    def _examples_differ(self):
        """A label may have several examples; one that is there twice would count as two."""
        for i, reference in enumerate(self.reference_states):
            if reference in self.reference_states[:i]:
                raise ValueError(f"reference_states has the label {reference.label!r} twice with the same messages")
        return self

    def at_each_message(self) -> "list[Scenario]":
        """The scenarios to run: one for each prefix of a prompt that asks for it, else just this one."""
        plain = [p for p in self.prompt if not p.run_at_each_message]
        rest = [self.model_copy(update={"prompt": plain})] if plain else []
        return rest + [
            self.model_copy(
                update={
                    "name": f"{self.name}-{'' if len(self.prompt) == 1 else f'p{i:02d}'}m{k:02d}",
                    "prompt": [Prompt(messages=prompt.messages[: k + 1])],
                }
            )
            for i, prompt in enumerate(self.prompt)
            if prompt.run_at_each_message
            for k in range(len(prompt.messages))
        ]


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would keep the last without a word."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node


def load(path: Path | str) -> Scenario:
    """Read and check a scenario file.

    Raises:
        AlabError: with exit code 2; names the file and the key that is wrong.
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise AlabError(f"there is no scenario file {path}", "Ready-made ones: alab demo", 2) from None
    except OSError as error:
        raise AlabError(f"cannot read {path}: {error.strerror}", exit_code=2) from error
    except UnicodeDecodeError as error:
        raise AlabError(f"{path} is not UTF-8 text (byte {error.start})", exit_code=2) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise AlabError(f"{path}{where}: not valid YAML: {problem}", exit_code=2) from error
    except (ValueError, RecursionError) as error:  # such as the 40th of a month, or a thousand brackets
        problem = "nested too deeply" if isinstance(error, RecursionError) else error
        raise AlabError(f"{path}: not valid YAML: {problem}", exit_code=2) from error
    return parse(data, str(path))


def parse(data: object, source: str = "scenario") -> Scenario:
    """Check a scenario given as plain data, as `load` does; `source` names it in errors."""
    if not isinstance(data, dict):
        got = "nothing" if data is None else f"a {type(data).__name__}"
        raise AlabError(f"{source}: expected a mapping with the keys name, model and prompt, got {got}", exit_code=2)
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        # What is wrong for `layers` is told once, for a list as for 'all'; an unknown key explains a missing one.
        found = [p for p in found if not (p["type"] == "literal_error" and isinstance(p["input"], list))] or found
        found = [p for p in found if not (p["type"] == "list_type" and "layers" in p["loc"])] or found
        found.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        problems = [_explain(problem, data) for problem in found]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        message, hint = problems[0]
        raise AlabError(f"{source}: {message}{more}", hint, 2) from error


def find(paths: list[Path | str]) -> list[Path]:
    """The scenario files that arguments of `alab capture` mean: files as they are, directories with all they hold."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
            if not inside:
                raise AlabError(f"there are no scenario files (*.yaml) in {path}", exit_code=2)
            found += inside
        else:
            found.append(path)
    return found


def json_schema() -> str:
    """The scenario's JSON Schema, for editors that complete YAML."""
    return json.dumps(Scenario.model_json_schema(), indent=2)


def _explain(problem: dict, data: object) -> tuple[str, str]:
    """One pydantic error as (what is wrong where, what to do)."""
    # Pydantic inserts the name of the union's branch and our list around a single prompt: neither is in the YAML.
    place = [part for part in problem["loc"] if not re.match(r"^(literal|list|function|constrained|str)", str(part))]
    if place[:1] == ["prompt"] and isinstance(data, dict) and not isinstance(data.get("prompt"), list):
        place = [part for i, part in enumerate(place) if i != 1]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".") or "scenario"
    kind = problem["type"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(place[-1]), _keys_at(place[:-1]), n=1, cutoff=0.5)
        known = ", ".join(_keys_at(place[:-1]))
        return f"unknown key {key!r}", f"Did you mean {close[0]!r}?" if close else f"Known keys: {known}"
    if kind == "missing":
        return f"the key {key!r} is missing", ""
    if kind == "string_pattern_mismatch":
        allowed = "letters, digits and . _ - , not starting with a dot or a dash"
        return f"{key}: {problem['input']!r} is not a name", f"Allowed: {allowed}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{key}: expected a mapping, got {problem['input']!r}", f"Its keys: {', '.join(_keys_at(place))}"
    if kind == "too_short" and problem["ctx"]["field_type"] == "List":
        return f"{key} is empty; at least one is needed", ""
    if kind == "value_error":
        return f"{key}: {problem['ctx']['error']}", ""
    if key == "capture.layers":
        return f"{key}: expected 'all' or a list of layers such as [0, 5], got {problem['input']!r}", ""
    given = repr(problem["input"])
    given = given if len(given) <= 60 else given[:57] + "…"
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {given}", ""


def _keys_at(place: list) -> list[str]:
    """Names of the keys that exist at a place in the scenario."""
    model: type[BaseModel] = Scenario
    for part in place:
        if isinstance(part, str):
            model = _CHILDREN[part]
    return list(model.model_fields)


_CHILDREN: dict[str, type[BaseModel]] = {
    "model": Model,
    "prompt": Prompt,
    "messages": Message,
    "generation": Generation,
    "capture": Capture,
    "output": Output,
    "reference_states": Reference,
}
