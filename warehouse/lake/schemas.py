"""Arrow schemas of the lake's datasets."""

from collections.abc import Mapping

import pyarrow as pa

from warehouse.vocabulary import BULK, TABLE, column_of

#: What says which token, and which head, a row of a dataset is about.
_PLACES = {
    "activations": ("prompt_id", "step", "kind", "position"),
    "attention": ("prompt_id", "step", "head", "position"),
    "outputs": ("prompt_id", "step", "position"),
}


def vector(width: int | None) -> pa.DataType:
    """Type of a vector column: a fixed-size list of float32, a plain list where all are NULL."""
    element = pa.field("element", pa.float32(), nullable=False)
    return pa.list_(element, width) if width else pa.list_(element)


def _scalars(*names: str) -> list[pa.Field]:
    types = dict.fromkeys(("kind", "state", "label", "site", "token"), pa.string())
    types |= dict.fromkeys(("logprob", "kl", "next_logprob"), pa.float32())
    optional = {"prompt_id", "label", "token", "kl", "next_token_id", "next_rank", "next_logprob"}
    return [pa.field(name, types.get(name, pa.int32()), name in optional) for name in names]


def tensor_schema(dataset: str, widths: Mapping[str, int]) -> pa.Schema:
    """Schema of a dataset that holds every token of every pass.

    Args:
        dataset: `activations`, `attention`, whose weights cover the key positions 0 … position, or
            `outputs`.
        widths: width of each site; those that are absent are NULL columns.
    """
    sites = [
        pa.field(column_of(site), vector(widths.get(site.name)), site.name != "attention")
        for site in TABLE
        if site.dataset == dataset
    ]
    return pa.schema([*_scalars(*_PLACES[dataset]), *sites])


def state_schema(width: int | None) -> pa.Schema:
    """Schema of `states`: one vector per state, layer and site."""
    places = _scalars("prompt_id", "state", "state_index", "label", "layer", "site")
    return pa.schema([*places, pa.field("vector", vector(width), False)])


def lens_schema() -> pa.Schema:
    """Schema of `logit_lens`: one row per token, layer and rank."""
    columns = "prompt_id step position layer rank token_id token logprob kl site"
    return pa.schema(_scalars(*columns.split(), "next_token_id", "next_rank", "next_logprob"))


def label_schema(columns: pa.Schema | None = None) -> pa.Schema:
    """Schema of `labels`: the rows of a dataset, whose own columns keep their types."""
    own = [pa.field("run_id", pa.string(), False), pa.field("prompt_id", pa.int32(), False)]
    return pa.schema([*own, *(columns or ())])


def norm_schema(width: int | None) -> pa.Schema:
    """Schema of a model's `norm.parquet`."""
    numbers = dict.fromkeys(("eps", "scale", "softcap", "error"), pa.float64())
    vectors = dict.fromkeys(("weight", "shift"), vector(width))
    return pa.schema({"model": pa.string(), "centred": pa.bool_()} | numbers | vectors)


def unembedding_schema(width: int | None) -> pa.Schema:
    """Schema of a model's `unembedding.parquet`: one row per token of the vocabulary."""
    scalars = {"token_id": pa.int32(), "token": pa.string(), "bias": pa.float32()}
    return pa.schema(scalars | {"vector": vector(width)})


def empty_schema(dataset: str) -> pa.Schema:
    """Schema of a dataset in a lake without runs."""
    if dataset in BULK:
        return tensor_schema(dataset, {})
    if dataset in ("logit_lens", "labels"):
        return lens_schema() if dataset == "logit_lens" else label_schema()
    schemas = {"states": state_schema, "norm": norm_schema, "unembedding": unembedding_schema}
    return schemas[dataset](None)
