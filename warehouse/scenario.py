"""The scenario: YAML that says which conversation to run through which model, and what to keep."""

import json
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from warehouse.errors import AlabError
from warehouse.mistakes import tell, yaml_text

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


def _no_truth(value: object) -> object:
    """Refuse true and false, which Python takes for 1 and 0 (and YAML reads `yes` and `on` as)."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "not a number")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth)]
Real = Annotated[float, BeforeValidator(_no_truth)]


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: Text


#: Options of `apply_chat_template` that are alab's own business.
_OURS = frozenset(
    "conversation messages add_generation_prompt continue_final_message tokenize padding truncation"  # noqa: SIM905  as a list it takes thirteen lines
    " max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs"
    " sanitize_control_tokens".split()
)


class Prompt(_Strict):
    """A conversation to run, or a text."""

    run_at_each_message: bool = Field(
        False, description="one run for each message prefix, instead of one run"
    )
    messages: Annotated[list[Message], Field(min_length=1)] | None = Field(
        None, description="the conversation, which the model's chat template renders"
    )
    text: Annotated[Text, StringConstraints(min_length=1)] | None = Field(
        None, description="a text instead of messages, read as it is, without a template"
    )
    template: dict[str, Any] = Field(
        {}, description="options for the chat template, such as enable_thinking: false"
    )
    add_generation_prompt: bool = Field(
        True, description="whether the header of the next reply is written"
    )

    @field_validator("template")
    @classmethod
    def _options_of_the_template(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = sorted(_OURS & set(value))
        if ours == ["add_generation_prompt"]:
            raise ValueError(
                "add_generation_prompt is a key of prompt itself; write it beside template"
            )
        if ours:
            raise ValueError(f"{ours[0]} is no option of the chat template, and alab sets it")
        return value

    @model_validator(mode="after")
    def _messages_or_text(self):
        if (self.messages is None) == (self.text is None):
            both = "has messages and text" if self.messages else "has neither messages nor text"
            raise ValueError(f"{both}; give one of them")
        alone = {"run_at_each_message": False, "template": {}, "add_generation_prompt": True}
        idle = [key for key, usual in alone.items() if getattr(self, key) != usual]
        if self.text is not None and idle:
            raise ValueError(
                f"{idle[0]} is about messages; a text is read as it is, without a template"
            )
        return self

    @property
    def turns(self) -> list[dict]:
        """The messages as plain data; a text is one, of no speaker's role but `text`."""
        if self.messages is None:
            return [{"role": "text", "content": self.text}]
        return [message.model_dump() for message in self.messages]


class Model(_Strict):
    """Which model, and how it computes."""

    id: str = Field(min_length=1, description="hub id, local directory, or package:NAME")
    dtype: Dtype = Field(
        "float16", description="precision to compute in; on a CPU float16 is computed in float32"
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    gguf_file: str | None = Field(None, description="file to dequantise, in the model's directory")
    revision: str | None = Field(
        None, min_length=1, description="branch, tag or commit of a hub id"
    )
    adapter: str | None = Field(
        None, min_length=1, description="PEFT adapter to put on: directory or hub id"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class Generation(_Strict):
    """How the reply is generated."""

    max_new_tokens: Whole = Field(50, ge=1)
    do_sample: bool = False
    temperature: Real = Field(1.0, ge=0, lt=inf, description="0 means greedy; else at least 1e-6")
    top_k: Whole | None = Field(None, ge=1)
    top_p: Real | None = Field(None, gt=0, le=1)
    seed: Whole = Field(42, ge=0, lt=2**63)

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

    hidden_states: bool = Field(
        True, description="hidden_in, hidden_out, attn_out, mlp_down_out and embeddings"
    )
    states: bool = Field(
        True, description="last-token states, which comparisons read, also without hidden_states"
    )
    attention_weights: bool = Field(
        True, description="attention weights; needs the slower eager attention"
    )
    qkv: bool = Field(True, description="query, key and value projections")
    mlp: bool = Field(True, description="mlp_gate, mlp_up and mlp_down_in")
    logits: bool = True
    top_k_probs: Whole = Field(20, ge=0, description="most likely tokens kept per step")
    layers: Literal["all"] | list[Whole] = Field(
        "all", description="0-based; negative ones count from the end"
    )
    store_dtype: Dtype = Field(
        "float16", description="precision that values are rounded to before they are written"
    )

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

    @field_validator("reference_states")
    @classmethod
    def _states_to_compare(cls, value: list, info: ValidationInfo) -> list:
        capture = info.data.get("capture")
        if value and capture and not capture.states:
            raise ValueError(
                "a reference is a state, and capture.states is false; leave out one of the two keys"
            )
        return value

    @model_validator(mode="after")
    def _examples_differ(self):
        """A label may have several examples; one that is there twice would count as two."""
        for i, reference in enumerate(self.reference_states):
            if reference in self.reference_states[:i]:
                raise ValueError(
                    f"reference_states has the label {reference.label!r} twice "
                    "with the same messages"
                )
        return self

    def at_each_message(self) -> "list[Scenario]":
        """The scenarios to run: one for each prefix of a prompt that asks for it, else this one."""
        plain = [prompt for prompt in self.prompt if not prompt.run_at_each_message]
        rest = [self.model_copy(update={"prompt": plain})] if plain else []
        return rest + [
            self._prefix(i, k)
            for i, prompt in enumerate(self.prompt)
            if prompt.run_at_each_message
            for k in range(len(prompt.messages or []))
        ]

    def _prefix(self, i: int, k: int) -> "Scenario":
        """The scenario of one prompt, up to message k and named after it."""
        prompt = self.prompt[i]
        messages = (prompt.messages or [])[: k + 1]
        short = prompt.model_copy(update={"messages": messages, "run_at_each_message": False})
        name = f"{self.name}-{'' if len(self.prompt) == 1 else f'p{i:02d}'}m{k:02d}"
        return self.model_copy(update={"name": name, "prompt": [short]})


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would keep the last without a word."""

    # The stubs say that an anchor is a dict; it is the name after `&`.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in keys:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.add((key.tag, key.value))
        return node


def read_file(path: Path | str) -> Scenario:
    """Read and check a scenario file.

    Raises:
        AlabError: with exit code 2; names the file and the key that is wrong.
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        what, hint = f"there is no scenario file {path}", "Ready-made ones: alab demo"
        raise AlabError(what, hint, 2) from None
    except OSError as error:
        raise AlabError(f"cannot read {path}: {error.strerror}", exit_code=2) from error
    except UnicodeDecodeError as error:
        raise AlabError(f"{path} is not UTF-8 text (byte {error.start})", exit_code=2) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise AlabError(f"{path}{where}: not valid YAML: {problem}", exit_code=2) from error
    except RecursionError as error:  # a thousand brackets
        raise AlabError(f"{path}: not valid YAML: nested too deeply", exit_code=2) from error
    except ValueError as error:  # such as the 40th of a month
        raise AlabError(f"{path}: not valid YAML: {error}", exit_code=2) from error
    return parse(data, str(path))


def parse(data: object, source: str = "scenario") -> Scenario:
    """Check a scenario given as plain data; `source` names it in errors.

    Raises:
        AlabError: with exit code 2; names every key that is wrong.
    """
    if not isinstance(data, dict):
        got = "a list" if isinstance(data, list) else yaml_text(data)
        what = f"{source}: expected a mapping with the keys name, model and prompt, got {got}"
        raise AlabError(what, exit_code=2)
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        message, hint = tell(error, data, Scenario)
        raise AlabError(f"{source}: {message}", hint, 2) from error


def files_of(paths: Iterable[Path | str]) -> list[Path]:
    """The scenario files that arguments mean: files as they are, directories with all they hold."""
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
        elif inside := sorted([*path.glob("*.yaml"), *path.glob("*.yml")]):
            files += inside
        else:
            raise AlabError(f"there are no scenario files (*.yaml) in {path}", exit_code=2)
    return files


def json_schema() -> str:
    """The scenario's JSON Schema, for editors that complete YAML."""
    return json.dumps(Scenario.model_json_schema(), indent=2)
