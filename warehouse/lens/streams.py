"""Reads residual streams of a run from the lake."""

import duckdb
import numpy as np
import torch
from torch import Tensor

from warehouse.assets import query
from warehouse.errors import AlabError

#: Where one token stands: (prompt_id, step, position).
Place = tuple[int, int, int]


def residual_streams(
    db: duckdb.DuckDBPyConnection,
    run_id: str,
    site: str,
    layers: list[int],
    places: list[Place],
    width: int,
) -> Tensor:
    """The residual stream after each layer, (tokens, layers, width), float32.

    The site is hidden_out, or contributions for hidden_in of layer 0 with the contributions added
    layer by layer; the layers are all that were captured.

    Raises:
        AlabError: what is needed was not captured.
    """
    prompts, steps, positions = map(list, zip(*places, strict=True))
    tokens = {"run": run_id, "prompts": prompts, "steps": steps, "positions": positions}

    def read(column: str) -> Tensor | None:
        relation = db.sql(query("lens_vectors"), params=tokens | {"site": column})
        rows = relation.to_arrow_table()
        if not rows.num_rows:
            return None
        streams = np.zeros((len(places), len(layers), width), np.float32)
        index = rows["i"].to_numpy(), np.searchsorted(layers, rows["layer"].to_numpy())
        streams[index] = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, width)
        return torch.from_numpy(streams)

    if site == "hidden_out":
        streams = read(site)
    elif layers != list(range(len(layers))):
        raise AlabError(
            "the running sum of contributions needs every layer from 0 on", "Use --site hidden_out."
        )
    else:
        streams = _running_sum(read("hidden_in"), [read("attn_out"), read("mlp_down_out")])
    if streams is None:
        raise AlabError(f"{site} was not captured in this run", f"See: alab inspect {run_id}")
    return streams


def _running_sum(entry: Tensor | None, contributions: list[Tensor | None]) -> Tensor | None:
    """What enters layer 0 with what the layers add up to each; None where either is absent."""
    parts = [part for part in contributions if part is not None]
    if entry is None or not parts:
        return None
    streams = sum(parts[1:], start=parts[0])
    streams[:, 0] += entry[:, 0]
    return streams.cumsum(1)
