"""Makes runs without a model: random vectors in the lake's own layout, through the lake's own writer."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from warehouse import vocabulary
from warehouse.catalog import catalog
from warehouse.lake import lake
from warehouse.lake import schemas as parquet
from warehouse.lake.metadata import MetadataWriter
from warehouse.lake.parquet import open_parquet

ROLES = ("system", "user", "assistant")
LABELS = ("joy", "fear", "calm")


@dataclass
class Shape:
    """Size of a synthetic run; the defaults suit tests, not benchmarks."""

    layers: int = 3
    width: int = 16
    heads: int = 2
    mlp: int = 24
    vocab: int = 40
    messages: int = 5
    labels: tuple[str, ...] = LABELS
    examples: tuple[int, ...] = (1,)  # of the labels in turn
    prompt_tokens: int = 12
    steps: int = 4
    activations: bool = True
    attention: bool = True
    outputs: bool = True
    lens: bool = False
    sites: tuple[str, ...] = vocabulary.SITES

    def count(self, label: int) -> int:
        """Examples of a label, by its place."""
        return self.examples[label % len(self.examples)]

    def site_width(self, site: str) -> int:
        return self.mlp if site in ("mlp_gate", "mlp_up", "mlp_down_in") else self.width


def vectors(array: np.ndarray) -> pa.Array:
    """A (rows, width) float array as an Arrow column of the lake."""
    flat = pa.array(np.ascontiguousarray(array, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=parquet.vector(array.shape[1]))


def write(path, schema: pa.Schema, columns: dict, group: int = 64) -> None:
    n = len(next(iter(columns.values())))
    arrays = [
        columns[f.name] if isinstance(columns.get(f.name), pa.Array)
        else pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type)
        for f in schema
    ]  # fmt: skip
    with open_parquet(path, schema) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=group)


def make_run(
    target: lake.Lake,
    name: str = "synthetic",
    shape: Shape | None = None,
    seed: int = 0,
    model_id: str = "package:synthetic",
) -> str:
    """Publish one run of random numbers and return its id; the catalog is left to `catalog.sync`."""
    shape = shape or Shape()
    rng = np.random.default_rng(seed)
    staged = target.stage(name)
    run_id = staged.run_id
    sequence = shape.prompt_tokens + shape.steps - 1
    # One row per token; the residual identity holds, as it does for a real model.
    per_layer, hidden = [], rng.standard_normal((sequence, shape.width)).astype("f4")
    for _ in range(shape.layers):
        row = {
            s: rng.standard_normal((sequence, shape.site_width(s))).astype("f4")
            for s in vocabulary.SITES
        }
        row["hidden_in"] = hidden
        row["hidden_out"] = hidden = hidden + row["attn_out"] + row["mlp_down_out"]
        per_layer.append(row)
    step = np.r_[np.zeros(shape.prompt_tokens, "i4"), np.arange(1, shape.steps)]
    kind = ["prefill" if s == 0 else "decode" for s in step]
    position = np.arange(sequence)
    if shape.activations:
        widths = {site: shape.site_width(site) for site in shape.sites}
        for layer, row in enumerate(per_layer):
            path = staged.path(
                "activations", f"steps=0-{shape.steps - 1}", f"layer={layer:02d}", "part-0.parquet"
            )
            columns = {
                "prompt_id": [0] * sequence,
                "step": step,
                "kind": kind,
                "position": position,
            }
            write(
                path,
                parquet.tensor_schema("activations", widths),
                columns | {s: vectors(row[s]) for s in shape.sites},
                8,
            )
    if shape.attention:
        for layer in range(shape.layers):
            rows = [
                (0, int(step[p]), h, p, rng.dirichlet(np.ones(p + 1)).astype("f4"))
                for h in range(shape.heads)
                for p in range(sequence)
            ]
            rows.sort(key=lambda row: row[1:4])  # pass by pass, as a capture writes them
            columns = dict(
                zip(
                    ("prompt_id", "step", "head", "position", "weights"),
                    zip(*rows, strict=True),
                    strict=True,
                )
            )
            path = staged.path(
                "attention", f"steps=0-{shape.steps - 1}", f"layer={layer:02d}", "part-0.parquet"
            )
            write(path, parquet.tensor_schema("attention", {}), columns)
    logits = rng.standard_normal((sequence, shape.vocab)).astype("f4") * 2
    if shape.outputs:
        columns = {
            "prompt_id": [0] * sequence, "step": step, "position": position,
            "embeddings": vectors(per_layer[0]["hidden_in"]), "logits": vectors(logits),
        }  # fmt: skip
        path = staged.path("outputs", f"steps=0-{shape.steps - 1}", "part-0.parquet")
        write(
            path,
            parquet.tensor_schema("outputs", {"embeddings": shape.width, "logits": shape.vocab}),
            columns,
        )
    write_states(staged, shape, rng, per_layer)
    if shape.lens:
        write_lens(staged, shape, rng)
    rows = metadata(name, shape, model_id, seed, logits)
    staged.publish(MetadataWriter(staged, catalog.metadata_schemas(), rows))
    return run_id


def write_states(
    staged: lake.StagedRun, shape: Shape, rng: np.random.Generator, per_layer: list
) -> None:
    """Initial, final, one snapshot per message and the reply, and the references."""
    states = [(0, "initial", 0, None), (0, "final", shape.steps - 1, None)]
    states += [(0, "snapshot", k, None) for k in range(shape.messages + 1)]
    states += [(None, "reference", i, label) for i, label in enumerate(shape.labels)]
    sites = [site for site in vocabulary.STATE_SITES if site in shape.sites]
    size, width = shape.layers * len(sites), shape.width
    stacks, place = {}, 0
    for state in states:
        _, kind, index, _ = state
        if kind in ("initial", "final"):
            at = shape.prompt_tokens - 1 if kind == "initial" else -1
            stacks[state] = np.stack(
                [per_layer[n][site][at] for n in range(shape.layers) for site in sites]
            )
        else:
            stacks[state] = rng.standard_normal((size, width)) + 1.0
        if kind == "reference":
            if (
                n := shape.count(index)
            ) > 1:  # around the label's own vector, so that examples of a label are alike
                some = stacks[state] + 0.5 * rng.standard_normal((n, size, width))
                stacks |= {
                    (None, "example", place + k, state[3]): one for k, one in enumerate(some)
                }
                stacks[state] = some.mean(0)
            place += n
    rows = {name: [] for name in ("prompt_id", "state", "state_index", "label", "layer", "site")}
    for state in stacks:
        for layer in range(shape.layers):
            for site in sites:
                for key, value in zip(rows, (*state, layer, site), strict=True):
                    rows[key].append(value)
    stack = np.concatenate(list(stacks.values()))
    write(
        staged.path("states", "part-0.parquet"), parquet.state_schema(shape.width),
        rows | {"vector": vectors(stack)}, max(64, shape.layers * len(sites)),
    )  # fmt: skip


def write_lens(staged: lake.StagedRun, shape: Shape, rng: np.random.Generator) -> None:
    """Three tokens for each layer at the last position of each step."""
    places = [(s, n, r) for s in range(shape.steps) for n in range(shape.layers) for r in range(3)]
    step, layer, rank = np.array(places, "i4").T
    ids = rng.integers(0, shape.vocab, len(places))
    write(staged.path("logit_lens", "hidden_out.parquet"), parquet.lens_schema(), {
        "prompt_id": 0 * step, "step": step, "position": step + shape.prompt_tokens - 1, "layer": layer, "rank": rank,
        "token_id": ids, "token": [f"t{i}" for i in ids], "logprob": -1.0 - rank, "kl": 0.5 * (shape.layers - 1 - layer),
        "site": ["hidden_out"] * len(places), "next_token_id": step, "next_rank": layer, "next_logprob": -2.0 - layer,
    })  # fmt: skip


def metadata(
    name: str, shape: Shape, model_id: str, seed: int, logits: np.ndarray
) -> dict[str, list[dict]]:
    """Rows of every metadata table."""
    now = datetime.now(UTC).replace(tzinfo=None)
    roles = [ROLES[0] if k == 0 else ROLES[1 + (k + 1) % 2] for k in range(shape.messages)]
    one = {"prompt_id": 0}
    per = max(1, (shape.prompt_tokens - 1) // shape.messages)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    last = logprobs[shape.prompt_tokens - 1 :]
    order = np.argsort(-last, axis=1)
    n_prompt, sequence = shape.prompt_tokens, shape.prompt_tokens + shape.steps
    return {
        "runs": [{
            "scenario": name, "model_id": model_id, "arch": "SyntheticForCausalLM", "num_layers": shape.layers,
            "hidden_size": shape.width, "num_heads": shape.heads, "num_kv_heads": shape.heads,
            "head_dim": shape.width // shape.heads, "vocab_size": shape.vocab, "dtype": "float32", "device": "cpu",
            "store_dtype": "float32", "seed": seed, "created_at": now, "finished_at": now + timedelta(seconds=1),
            "scenario_json": json.dumps({"name": name}), "env_json": "{}", "tokenizer_json": "{}", "bytes": 0,
        }],
        "prompts": [one | {
            "n_prompt_tokens": n_prompt, "n_generated": shape.steps, "stop_reason": "length",
            "prompt_text": f"prompt of {name}", "generated_text": f"reply of {name}",
        }],
        "messages": [one | {
            "message_index": k, "role": role, "content": f"message {k}", "is_generated": False,
            "first_position": k * per, "last_position": k * per + per - 1,
        } for k, role in enumerate(roles)] + [one | {
            "message_index": shape.messages, "role": "assistant", "content": f"reply of {name}", "is_generated": True,
            "first_position": n_prompt, "last_position": sequence - 1,
        }],
        "steps": [one | {
            "step": s, "kind": "prefill" if s == 0 else "decode", "seq_len": n_prompt + s,
            "generated_token_id": int(order[s, 0]), "generated_token": f"t{order[s, 0]}",
            "argmax_token_id": int(order[s, 0]), "argmax_logprob": float(last[s].max()),
            "entropy": float(-(np.exp(last[s]) * last[s]).sum()), "top1_prob": float(np.exp(last[s].max())),
        } for s in range(shape.steps)],
        "tokens": [one | {
            "step": 0 if p < n_prompt else p - n_prompt + 1 if p < sequence - 1 else None, "position": p,
            "token_id": p % shape.vocab, "token": f"t{p % shape.vocab}", "is_template": False,
            "message_index": min(p // per, shape.messages), "is_generated": p >= n_prompt,
            "role": "assistant" if p >= n_prompt else roles[min(p // per, shape.messages - 1)],
        } for p in range(sequence)],
        "top_tokens": [one | {
            "step": s, "rank": r, "token_id": int(order[s, r]), "token": f"t{order[s, r]}",
            "logprob": float(last[s, order[s, r]]),
        } for s in range(shape.steps) for r in range(5)],
        "reference_states": [{
            "label": label, "ref_index": i, "n_tokens": 5 * shape.count(i), "n": shape.count(i),
            "messages": json.dumps([{"role": "user", "content": label}]),
        } for i, label in enumerate(shape.labels)],
        "snapshots": [one | {
            "message_index": k, "role": "assistant" if k == shape.messages else roles[k], "preview": f"message {k}",
            "n_tokens": (k + 1) * per, "is_generated": k == shape.messages,
        } for k in range(shape.messages + 1)],
        "state_tokens": [row | {
            "n_tokens": n, "position": n - 1, "token_id": (n - 1) % shape.vocab, "token": f"t{(n - 1) % shape.vocab}",
            "role": "assistant", "is_template": row["state"] != "final", "is_generated": row["state"] == "final",
        } for row, n in [
            (one | {"state": "initial", "state_index": 0}, n_prompt),
            (one | {"state": "final", "state_index": shape.steps - 1}, sequence - 1),
            *((one | {"state": "snapshot", "state_index": k}, (k + 1) * per) for k in range(shape.messages + 1)),
            *(({"state": "reference", "state_index": i, "label": label}, 5)
              for i, label in enumerate(shape.labels)),
        ]],
        "layers": [{"layer": n, "module": f"layers.{n}", "residual_error": 0.0, "continuity_error": 0.0, "changed": 0.0}
                   for n in range(shape.layers)],
        "sites": [{
            "layer": n, "site": site, "module": f"layers.{n}.{site}" if site in shape.sites else None,
            "width": shape.site_width(site) if site in shape.sites else None,
            "reason": None if site in shape.sites else "capture flag is off", "n_out_of_range": 0, "n_nonfinite": 0,
        } for n in range(shape.layers) for site in vocabulary.SITES],
        "warnings": [], "files": [], "positions": [], "batches": [],
    }  # fmt: skip
