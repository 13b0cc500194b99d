"""Rows about a run as a whole: what was asked, where each tensor was taken, and what its reader should know."""

import json
import math
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from warehouse.chat import Chat
from warehouse.lake import SITES
from warehouse.models import Loaded
from warehouse.plan import Plan
from warehouse.recorder import FLAGS
from warehouse.rounding import Stats
from warehouse.scenario import Scenario
from warehouse.sites import ModelSites


def describe(
    scenario: Scenario, loaded: Loaded, found: ModelSites, plan: Plan, stats: Stats, created: datetime
) -> dict[str, list[dict]]:
    """Rows of the tables `runs`, `layers`, `sites` and `warnings`, without the run's id.

    Args:
        scenario: the request.
        loaded: the model that ran.
        found: where its sites are.
        plan: which of them were wanted.
        stats: what was seen while they were written.
        created: when the capture began, UTC.
    """
    layers = [_layer_row(n, found, stats) for n in plan.layers]
    rows = _site_rows(scenario, found, plan, stats, loaded.model.config.get_text_config().vocab_size)
    return {
        "runs": [_run_row(scenario, loaded, found, created)],
        "layers": layers,
        "sites": rows,
        "warnings": plan.warnings + _number_warnings(rows, layers, scenario.capture.store_dtype, loaded.dtype),
    }


def step_rows(chat: Chat, logits: Tensor, top_k: int) -> tuple[dict, list[dict]]:
    """What a pass's last distribution says, for the tables `steps` and `top_tokens`.

    Args:
        chat: spells the tokens.
        logits: (vocabulary,) of the last token.
        top_k: most likely tokens to list.
    """
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(max(1, top_k))
    ids, values = best.indices.tolist(), best.values.tolist()
    row = {
        "argmax_token_id": ids[0], "argmax_logprob": values[0], "top1_prob": math.exp(values[0]),
        "entropy": float(torch.special.entr(logprobs.exp()).sum()),
    }  # fmt: skip
    return row, [
        {"rank": rank, "token_id": token_id, "token": chat.token_text(token_id), "logprob": logprob}
        for rank, (token_id, logprob) in enumerate(zip(ids[:top_k], values[:top_k], strict=True))
    ]


def environment() -> dict[str, str]:
    """Versions that a run depends on."""
    packages = ("alab", "torch", "transformers", "pyarrow", "duckdb")
    return {"python": platform.python_version(), "platform": platform.platform()} | {
        name: version(name) for name in packages
    }


def _run_row(scenario: Scenario, loaded: Loaded, found: ModelSites, created: datetime) -> dict[str, Any]:
    config = loaded.model.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or found.hidden_size // heads
    keys = next((layer.ports["k"].width for layer in found.layers if "k" in layer.ports), 0)
    kv_heads = keys // head_dim or getattr(config, "num_key_value_heads", None) or heads  # not all configs say it
    return {
        "scenario": scenario.name, "model_id": loaded.model_id, "revision": loaded.revision,
        "adapter": loaded.adapter, "weights_hash": loaded.weights_hash, "arch": type(loaded.model).__name__,
        "num_layers": len(found.layers), "hidden_size": found.hidden_size, "num_heads": heads,
        "num_kv_heads": kv_heads, "head_dim": head_dim,
        "vocab_size": config.vocab_size, "dtype": loaded.dtype, "device": loaded.device,
        "store_dtype": scenario.capture.store_dtype, "seed": scenario.generation.seed, "created_at": created,
        "finished_at": datetime.now(UTC).replace(tzinfo=None), "scenario_json": scenario.model_dump_json(),
        "env_json": json.dumps(environment()), "tokenizer_json": Chat(loaded.tokenizer).describe(), "bytes": 0,
    }  # fmt: skip


def _layer_row(layer: int, found: ModelSites, stats: Stats) -> dict[str, Any]:
    error, largest = stats.residual.get(layer, (None, None))
    relative = None if error is None else error / largest if largest else 0.0
    return {"layer": layer, "module": found.layers[layer].module, "residual_error": relative}


def _site_rows(scenario: Scenario, found: ModelSites, plan: Plan, stats: Stats, vocabulary: int) -> list[dict]:
    rows: list[dict] = []

    def add(layer: int | None, site: str, module: str | None, width: int | None, reason: str | None = None) -> None:
        seen = stats.site(layer, site)
        rows.append({
            "layer": layer, "site": site, "module": module, "width": width, "reason": reason,
            "n_out_of_range": seen.out_of_range, "n_nonfinite": seen.nonfinite,
        })  # fmt: skip

    flags = {site: flag for flag, names in FLAGS.items() for site in names}
    for n in plan.layers:
        layer = found.layers[n]
        for site in SITES:
            port = layer.ports.get(site) if site in plan.sites else None
            off = None if site in plan.sites else f"capture.{flags[site]} is off"
            add(n, site, port and str(port), port and port.width, None if port else off or layer.reasons[site])
        if scenario.capture.attention_weights:
            add(n, "attention", layer.attention, None, layer.reasons.get("attention"))
    if scenario.capture.hidden_states:
        add(None, "embeddings", found.embedding, found.hidden_size)
    if scenario.capture.logits:
        add(None, "logits", "the model's output", vocabulary)
    return rows


def _number_warnings(rows: list[dict], layers: list[dict], store: str, dtype: str) -> list[dict]:
    """Warnings about values: out of range, not finite, or a residual that does not add up."""
    outside = sum(row["n_out_of_range"] for row in rows)
    nonfinite = sum(row["n_nonfinite"] for row in rows)
    rounding = 8 * torch.finfo(getattr(torch, dtype)).eps
    unsound = [row["layer"] for row in layers if (row["residual_error"] or 0) > rounding]
    absent = sorted({(row["site"], row["reason"]) for row in rows if row["reason"] and "is off" not in row["reason"]})
    found = [("missing_site", f"{site} was not captured: {reason}") for site, reason in absent]
    if outside:
        found.append(("out_of_range", f"{outside} values are outside the range of {store}; they are kept unrounded"))
    if nonfinite:
        found.append(("nonfinite", f"the model produced {nonfinite} values that are NaN or infinite"))
    if unsound:
        found.append(("residual", f"the residual identity does not hold to rounding in the layers {unsound}"))
    return [{"code": code, "message": message} for code, message in found]
