"""The scenario: YAML that says which conversation to run through which model, and what to keep."""

import json
from math import inf
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from warehouse.errors import AlabError
from warehouse.mistakes import tell, yaml_text
from warehouse.vocabulary import SITE_NAMES, STATE_SITES, TABLE, site_of

Dtype = Literal["float16", "bfloat16", "float32"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)]


#: The keys of `capture` that keep sites.
FLAGS = frozenset(site.flag for site in TABLE)
#: Those of them that keep no site which has means.
MEANLESS = FLAGS - {site.flag for site in TABLE if site.in_states}


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


class Dataset(_Strict):
    """A table of which each row is a prompt of the run; its columns are the run's labels."""

    source: str | None = Field(
        None,
        min_length=1,
        description="vega:NAME, or a CSV, TSV, JSON, JSONL or Parquet file, or a glob",
    )
    query: str | None = Field(
        None, min_length=1, description="DuckDB SQL over the relation source; all of it by default"
    )
    id: str | None = Field(None, description="column whose values differ; else the row's number")
    text: Annotated[Text, StringConstraints(min_length=1)] | None = Field(
        None, description="Jinja template of a text that is read as it is, with the row's columns"
    )
    messages: Annotated[list[Message], Field(min_length=1)] | None = Field(
        None, description="a conversation whose contents are Jinja templates"
    )
    group: str | None = Field(None, description="column of what belongs together, whole in probes")
    on_error: Literal["stop", "skip"] = Field(
        "stop",
        description="what becomes of rows that cannot be read: skip leaves them out and says so",
    )

    @model_validator(mode="after")
    def _text_or_messages(self):
        _only_one(self, "messages", "text")
        return self


class Prompt(_Strict):
    """A conversation to run, or a text, or a dataset of them."""

    run_at_each_message: bool = Field(
        False, description="one run for each message prefix, instead of one run"
    )
    messages: Annotated[list[Message], Field(min_length=1)] | None = Field(
        None, description="the conversation, which the model's chat template renders"
    )
    text: Annotated[Text, StringConstraints(min_length=1)] | None = Field(
        None, description="a text instead of messages, read as it is, without a template"
    )
    dataset: Dataset | None = Field(None, description="a table of which each row is a prompt")
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
    def _one_kind(self):
        _only_one(self, "messages", "text", "dataset")
        alone = {"run_at_each_message": False, "template": {}, "add_generation_prompt": True}
        idle = [key for key, usual in alone.items() if getattr(self, key) != usual]
        if idle and (self.dataset or self).text is not None:
            raise ValueError(
                f"{idle[0]} is about messages; a text is read as it is, without a template"
            )
        if self.dataset is not None and self.run_at_each_message:
            raise ValueError("run_at_each_message is about one conversation, not a dataset")
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

    max_new_tokens: Whole = Field(
        50, ge=0, description="0 reads only, which is the default for a dataset"
    )
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
    sites: list[Literal[SITE_NAMES]] | None = Field(  # type: ignore[valid-type]
        None, description="the sites to keep, instead of the flags"
    )
    positions: list[str] | None = Field(
        None, description="of a dataset: last, all, message_ends, mean or a field of the template"
    )
    layers: Literal["all"] | list[Whole] = Field(
        "all", description="0-based; negative ones count from the end"
    )
    store_dtype: Dtype = Field(
        "float16", description="precision that values are rounded to before they are written"
    )

    @model_validator(mode="after")
    def _some_of_each(self):
        for key in ("layers", "sites", "positions"):
            if getattr(self, key) == []:
                raise ValueError(f"{key} is an empty list; name at least one, or leave it out")
        if self.sites is not None and (flags := FLAGS & self.model_fields_set):
            raise ValueError(
                f"sites says what is kept, and {min(flags)} too; leave out one of them"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_it_is_read(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Every field but the flags where sites are named: both are refused."""
        hidden = FLAGS if self.sites is not None else ()
        return {key: value for key, value in write(self).items() if key not in hidden}

    def keeps(self, name: str) -> bool:
        """Whether a site is kept of every position that is kept."""
        site = site_of(name)
        return site is not None and (
            getattr(self, site.flag) if self.sites is None else site in map(site_of, self.sites)
        )


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


def _as_list(value: Any) -> list:
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

    @model_validator(mode="before")
    @classmethod
    def _usual_of_a_dataset(cls, data: Any) -> Any:
        """A dataset is read only, at each prompt's last token, without attention, by default."""
        prompts = _as_list(data.get("prompt")) if isinstance(data, dict) else []
        if not any(isinstance(one, dict) and one.get("dataset") is not None for one in prompts):
            return data
        usual: dict[str, dict] = {
            "generation": {"max_new_tokens": 0},
            "capture": {"positions": ["last"]},
        }
        capture, generation = (data.get(key) or {} for key in ("capture", "generation"))
        if isinstance(capture, dict) and capture.get("sites") is None:
            reads = isinstance(generation, dict) and not generation.get("max_new_tokens")
            only_means = reads and capture.get("positions") == ["mean"]
            off = MEANLESS if only_means else {"attention_weights"}
            usual["capture"] |= dict.fromkeys(off, False)
        merged = {
            key: more | value if isinstance(value := data.get(key, {}), dict) else value
            for key, more in usual.items()
        }
        return data | merged

    @model_validator(mode="after")
    def _of_a_dataset(self):
        datasets = [prompt.dataset for prompt in self.prompt if prompt.dataset is not None]
        if datasets and len(self.prompt) > 1:
            raise ValueError(
                "a dataset is the only prompt of its scenario; write one file for each"
            )
        if self.capture.positions is not None and not datasets:
            raise ValueError("capture.positions is about a dataset; of a conversation all are kept")
        if self.is_read_only and self.capture.positions == ["mean"]:
            named = self.capture.sites
            if named is None:
                named = [flag for flag in sorted(MEANLESS) if getattr(self.capture, flag)]
            if lost := [name for name in named if name not in STATE_SITES]:
                raise ValueError(f"{lost[0]} has no mean; add a position to keep, or leave it out")
        return self

    @property
    def dataset(self) -> Dataset | None:
        """The dataset whose rows are the prompts; None where they are written out."""
        return self.prompt[0].dataset if self.prompt else None

    @property
    def is_read_only(self) -> bool:
        """Whether it is a dataset whose rows are read in batches, and not answered."""
        return self.dataset is not None and not self.generation.max_new_tokens

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


def _only_one(part: BaseModel, *keys: str) -> None:
    """Refuse a part that has none of some keys, or several."""
    there = [key for key in keys if getattr(part, key) is not None]
    if len(there) != 1:
        either = " and ".join(there[:2]) if there else " nor ".join([keys[0], keys[1]])
        raise ValueError(f"has {either if there else f'neither {either}'}; give one of them")


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


def json_schema() -> str:
    """The scenario's JSON Schema, for editors that complete YAML."""
    return json.dumps(Scenario.model_json_schema(), indent=2)
