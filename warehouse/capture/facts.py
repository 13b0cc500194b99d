"""Rows about a run as a whole: what was asked, where tensors were taken, what to know of them."""

import json
import math
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from warehouse.capture.plan import Plan
from warehouse.capture.rounding import Stats
from warehouse.capture.withhold import withhold
from warehouse.lake.staging import StagedRun
from warehouse.models.chat import Chat
from warehouse.models.ports import ModelSites
from warehouse.vocabulary import CONTRIBUTIONS, SITES, TABLE


def conclude(staged: StagedRun, plan: Plan, stats: Stats, began: datetime) -> dict[str, list[dict]]:
    """Take back what the passes have shown to be wrong, and describe the run.

    Args:
        staged: the run; its files are finished and not published yet.
        plan: what was recorded.
        stats: what was seen while it was recorded and written.
        began: when the capture began, UTC.

    Returns:
        Rows of the tables `runs`, `layers`, `sites` and `warnings`, without the run's id.
    """
    rounding = 8 * torch.finfo(getattr(torch, plan.loaded.dtype)).eps
    unsound = {
        layer: "hidden_in and the contributions do not add up to what the block gave: off by "
        f"{error:.1e} of a token's largest value"
        for layer, error in stats.residual.items()
        if error > rounding
    }
    withhold(staged, unsound, CONTRIBUTIONS)
    layers = [_layer_row(n, plan.sites, stats) for n in plan.layers]
    rows = _site_rows(plan, stats, unsound)
    warnings = _number_warnings(rows, layers, stats, plan.scenario.capture.store_dtype)
    return {"runs": [_run_row(plan, began)], "layers": layers, "sites": rows, "warnings": warnings}


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
        "argmax_token_id": ids[0],
        "argmax_logprob": values[0],
        "top1_prob": math.exp(values[0]),
        "entropy": float(torch.special.entr(logprobs.exp()).sum()),
    }
    return row, [
        {"rank": rank, "token_id": token_id, "token": chat.token_text(token_id), "logprob": logprob}
        for rank, (token_id, logprob) in enumerate(zip(ids[:top_k], values[:top_k], strict=True))
    ]


def environment() -> dict[str, str]:
    """Versions that a run depends on; torch itself knows its build, its package not always."""
    packages = ("alab", "torch", "transformers", "pyarrow", "duckdb")
    return (
        {"python": platform.python_version(), "platform": platform.platform()}
        | {name: version(name) for name in packages}
        | {"torch": str(torch.__version__)}
    )


def _run_row(plan: Plan, began: datetime) -> dict[str, Any]:
    scenario, loaded, sites = plan.scenario, plan.loaded, plan.sites
    config = loaded.model.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or sites.hidden_size // heads
    keys = next((layer.ports["k"].width for layer in sites.layers if "k" in layer.ports), 0)
    kv_heads = (
        keys // head_dim or getattr(config, "num_key_value_heads", None) or heads
    )  # not all configs say it
    return {
        "scenario": scenario.name,
        "model_id": loaded.model_id,
        "revision": loaded.revision,
        "adapter": loaded.adapter,
        "weights_hash": loaded.weights_hash,
        "dataset_hash": plan.prompts.dataset_hash,
        "arch": type(loaded.model).__name__,
        "num_layers": len(sites.layers),
        "hidden_size": sites.hidden_size,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": sites.vocabulary,
        "dtype": loaded.dtype,
        "device": loaded.device,
        "store_dtype": scenario.capture.store_dtype,
        "seed": scenario.generation.seed,
        "created_at": began,
        "finished_at": datetime.now(UTC).replace(tzinfo=None),
        "scenario_json": scenario.model_dump_json(),
        "env_json": json.dumps(environment()),
        "tokenizer_json": Chat(loaded.tokenizer).summary(),
        "bytes": 0,
    }


def _layer_row(layer: int, sites: ModelSites, stats: Stats) -> dict[str, Any]:
    return {
        "layer": layer,
        "module": sites.layers[layer].module,
        "residual_error": stats.residual.get(layer),
        "continuity_error": stats.continuity.get(layer),
        "changed": stats.changed.get(layer),
        "batch_error": stats.batch.get(layer),
    }


def _site_rows(plan: Plan, stats: Stats, unsound: dict[int, str]) -> list[dict]:
    options, sites = plan.scenario.capture, plan.sites
    flags = {site.name: site.flag for site in TABLE}
    unnamed = "capture.sites is off for it: it is not named there"
    rows: list[dict] = []

    def add(
        layer: int | None,
        site: str,
        module: str | None,
        width: int | None,
        reason: str | None = None,
    ) -> None:
        counts = stats.site(layer, site)
        row = {"layer": layer, "site": site, "module": module, "width": width, "reason": reason}
        row |= {"n_out_of_range": counts.out_of_range, "n_nonfinite": counts.nonfinite}
        rows.append(row)

    for n in plan.layers:
        layer = sites.layers[n]
        for site in SITES:
            port = layer.ports.get(site) if site in plan.stored else None
            reason = None if port else layer.reasons.get(site)
            if site not in plan.stored:
                reason = f"capture.{flags[site]} is off" if options.sites is None else unnamed
            elif port and site in CONTRIBUTIONS and n in unsound:
                port, reason = None, unsound[n]
            add(n, site, str(port) if port else None, port.width if port else None, reason)
        if options.keeps("attention"):
            add(n, "attention", layer.attention, None, layer.reasons.get("attention"))
    if options.keeps("embeddings"):
        only_means = plan.scenario.is_read_only and options.positions == ["mean"]
        none = "capture.positions is off for it: it names means, and this has none"
        reason = none if only_means else None
        add(None, "embeddings", sites.embedding, sites.embedding_width, reason)
    if options.keeps("logits"):
        add(None, "logits", "the model's output", sites.vocabulary)
    return rows


def _number_warnings(rows: list[dict], layers: list[dict], stats: Stats, store: str) -> list[dict]:
    """Warnings about values: out of range, not finite, not there, changed from layer to layer."""
    outside = sum(row["n_out_of_range"] for row in rows)
    nonfinite = sum(row["n_nonfinite"] for row in rows)
    broken = [row["layer"] for row in layers if (row["continuity_error"] or 0) > 0]
    changed = [row["layer"] for row in layers if (row["changed"] or 0) > 0]
    reasons = {(row["site"], row["reason"]) for row in rows if row["reason"]}
    absent = sorted((site, reason) for site, reason in reasons if "is off" not in reason)
    warnings = [("missing_site", f"{site} was not captured: {reason}") for site, reason in absent]
    for (layer, site), count in sorted(stats.absent.items()):
        message = f"{site} of layer {layer} was not computed in {count} passes; it is NULL there"
        warnings.append(("missing_rows", message))
    if outside:
        message = f"{outside} values are outside the range of {store}; they are kept unrounded"
        warnings.append(("out_of_range", message))
    if nonfinite:
        message = f"the model produced {nonfinite} values that are NaN or infinite"
        warnings.append(("nonfinite", message))
    if broken:
        message = f"what the layers {broken} gave is not what was read next: see layers"
        warnings.append(("continuity", message))
    if changed:
        message = f"hooks changed what the blocks {changed} gave; hidden_out is after them"
        warnings.append(("changed", message))
    return [{"code": code, "message": message} for code, message in warnings]
