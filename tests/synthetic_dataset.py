"""Makes dataset runs without a model: prompts in shuffled order over several files, labels of every awkward kind."""

import json
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property

import numpy as np
import pyarrow as pa
from synthetic import Shape, vectors, write

from warehouse import vocabulary
from warehouse.catalog import catalog
from warehouse.lake import lake as lakes
from warehouse.lake import schemas
from warehouse.lake.metadata import MetadataWriter
from warehouse.lake.pages import PageWriter

#: The order in which files hold prompts has nothing to do with their numbers; rows of a group, and of a file.
GROUP, PART = 16, 40
MOODS = ("joy", "fear", None, "calm", "joy", "joy")
SMALL = Shape(layers=3, width=12, mlp=20)


@dataclass
class Made:
    """A dataset run as numpy has it.

    Attributes:
        labels: the dataset's rows, skipped ones too.
        places: (prompt, position) of each row of `values`, sorted.
        selectors: per selector the (prompt, position) that it keeps, sorted.
        values: per site and layer, the vector of each place.
        means: per site and layer, the mean over the tokens of each of `prompts`.
    """

    run_id: str
    labels: pa.Table
    lengths: dict[int, int]
    skipped: list[int]
    places: list[tuple[int, int]] = field(default_factory=list)
    selectors: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    values: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    means: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    @cached_property
    def prompts(self) -> list[int]:
        """The prompts that were read."""
        return sorted(self.lengths)

    @cached_property
    def row(self) -> dict[tuple[int, int], int]:
        """Which row of `values` a place is."""
        return {place: row for row, place in enumerate(self.places)}

    def matrix(self, site: str, layer: int, selector: str = "last") -> np.ndarray:
        """What `lab.matrix` is to give."""
        if selector == "mean":
            return self.means[site, layer]
        return self.values[site, layer][[self.row[place] for place in self.selectors[selector]]]

    def label(self, column: str, selector: str = "last") -> list:
        """A label of each row of `matrix`."""
        values = self.labels[column].to_pylist()
        keys = self.prompts if selector == "mean" else [p for p, _ in self.selectors[selector]]
        return [values[prompt] for prompt in keys]


def make_dataset(
    lake: lakes.Lake,
    name: str = "set",
    shape: Shape = SMALL,
    *,
    rows: int = 60,
    sites: tuple[str, ...] = ("hidden_out", "q", "mlp_down_in"),
    seed: int = 0,
    skipped: tuple[int, ...] = (3,),
) -> Made:
    """Publish one dataset run of random numbers; the catalog is left to `catalog.sync`."""
    rng = np.random.default_rng(seed)
    staged = lake.stage(name)
    lengths = {n: int(rng.integers(3, 14)) for n in range(rows) if n not in skipped}
    made = Made(staged.run_id, label_table(rows), lengths, list(skipped))
    made.selectors = selections(made.lengths)
    made.places = sorted({place for kept in made.selectors.values() for place in kept})
    write_activations(staged, made, shape, sites, rng)
    write_means(staged, made, shape, rng)
    columns = {"run_id": [staged.run_id] * rows, "prompt_id": range(rows)}
    write(
        staged.path("labels", "part-0.parquet"),
        schemas.label_schema(made.labels.schema),
        columns | {name: made.labels[name].combine_chunks() for name in made.labels.column_names},
        rows,
    )
    tables = metadata(made, name, shape, sites, rng)
    staged.publish(MetadataWriter(staged, catalog.metadata_schemas(), tables))
    return made


def label_table(rows: int) -> pa.Table:
    """Labels of every type that a column may have, under names that are awkward in SQL and in paths."""
    at = range(rows)
    return pa.table(
        {
            "id": [f"row {n}" for n in at],
            "mood": [MOODS[n % len(MOODS)] for n in at],
            "run": pa.array([n % 4 for n in at], pa.int32()),
            "layer": pa.array([None if n % 9 == 4 else float(n % 3) for n in at], pa.float64()),
            "filename": [f"{n % 5}.txt" for n in at],
            "order": [None if n % 7 == 2 else n % 2 == 0 for n in at],
            'a "quoted" name': [date(2026, 1, 1 + n % 2) for n in at],
            "with space/slash~tilde": [0.1 * n for n in at],
            "position": pa.array([1000 + n for n in at], pa.int64()),
            "f": [None] * rows,
        }
    )


def selections(lengths: dict[int, int]) -> dict[str, list[tuple[int, int]]]:
    """Places that selectors keep; the field `name` is empty in every fifth prompt."""
    return {
        "last": [(n, length - 1) for n, length in sorted(lengths.items())],
        "name": [(n, 1 + n % (length - 1)) for n, length in sorted(lengths.items()) if n % 5],
        "message_ends": [
            (n, p) for n, length in sorted(lengths.items()) for p in sorted({0, length // 2})
        ],
    }


def write_activations(
    staged: lakes.StagedRun,
    made: Made,
    shape: Shape,
    sites: tuple[str, ...],
    rng: np.random.Generator,
) -> None:
    """The kept positions of every layer: the farther up, the more a prompt's mood shows, beside a common part."""
    order = rng.permutation(len(made.places))
    moods = made.labels["mood"].to_pylist()
    along = {mood: rng.standard_normal(64) for mood in dict.fromkeys(MOODS)}
    for layer in range(shape.layers):
        for site in sites:
            width = shape.site_width(site)
            pull = np.stack([np.resize(along[moods[prompt]], width) for prompt, _ in made.places])
            noise = rng.standard_normal((len(made.places), width))
            made.values[site, layer] = (2 + noise + 0.5 * layer * pull).astype("f4")
        for part, start in enumerate(range(0, len(order), PART)):
            folder = staged.path("activations", "steps=0-0", f"layer={layer:02d}")
            folder.mkdir(parents=True, exist_ok=True)
            widths = {site: shape.site_width(site) for site in sites}
            writer = PageWriter(
                folder / f"part-{part}.parquet", schemas.tensor_schema("activations", widths)
            )
            for first in range(start, min(start + PART, len(order)), GROUP):
                rows = order[first : min(first + GROUP, start + PART)]
                prompts, positions = np.array(made.places, "i4")[rows].T
                columns = {site: made.values[site, layer][rows] for site in sites}
                writer.write(
                    len(rows),
                    {
                        "prompt_id": prompts, "step": np.zeros(len(rows), "i4"),
                        "kind": ["prefill"] * len(rows), "position": positions, **columns,
                    },
                )  # fmt: skip
            writer.close()


def write_means(
    staged: lakes.StagedRun, made: Made, shape: Shape, rng: np.random.Generator
) -> None:
    """State `mean` of hidden_out, and of what enters layer 0; a row group for each layer and site."""
    kinds = [("hidden_in", 0), *(("hidden_out", layer) for layer in range(shape.layers))]
    order = rng.permutation(len(made.prompts))
    rows = {key: [] for key in ("prompt_id", "state", "state_index", "layer", "site")}
    stack = []
    for site, layer in kinds:
        mean = rng.standard_normal((len(made.prompts), shape.width)).astype("f4")
        made.means[site, layer] = mean
        stack.append(mean[order])
        for at in order:
            for key, value in zip(rows, (made.prompts[at], "mean", 0, layer, site), strict=True):
                rows[key].append(value)
    write(
        staged.path("states", "part-0.parquet"),
        schemas.state_schema(shape.width),
        rows | {"vector": vectors(np.concatenate(stack))},
        len(order),
    )


def metadata(
    made: Made, name: str, shape: Shape, sites: tuple[str, ...], rng: np.random.Generator
) -> dict[str, list[dict]]:
    """Rows of the metadata tables, without the run's id."""
    now = datetime.now(UTC).replace(tzinfo=None)
    request = {"source": "some.csv", "id": "id", "group": "filename", "text": "{{ name }}"}
    one = [{"prompt_id": n} for n in made.prompts]
    return {
        "runs": [{
            "scenario": name, "model_id": "package:synthetic", "arch": "SyntheticForCausalLM", "num_layers": shape.layers,
            "hidden_size": shape.width, "num_heads": shape.heads, "num_kv_heads": shape.heads,
            "head_dim": shape.width // shape.heads, "vocab_size": shape.vocab, "dtype": "float32", "device": "cpu",
            "store_dtype": "float32", "seed": 0, "created_at": now, "finished_at": now + timedelta(seconds=1),
            "scenario_json": json.dumps({"name": name, "prompt": [{"dataset": request}]}),
            "env_json": "{}", "tokenizer_json": "{}", "bytes": 0,
        }],
        "prompts": [row | {
            "n_prompt_tokens": length, "n_generated": 0, "prompt_text": f"prompt {n}", "row_id": f"row {n}",
        } for row, (n, length) in zip(one, sorted(made.lengths.items()), strict=True)],
        "tokens": [row | {
            "step": 0, "position": p, "token_id": p % shape.vocab, "token": f"t{p}", "is_template": False,
            "is_generated": False,
        } for row in one for p in range(made.lengths[row["prompt_id"]])],
        "steps": [row | {
            "step": 0, "kind": "prefill", "seq_len": made.lengths[row["prompt_id"]], "argmax_token_id": 1,
            "argmax_logprob": -1.0, "entropy": 2.0, "top1_prob": 0.3,
        } for row in one],
        "positions": [
            {"prompt_id": prompt, "selector": selector, "position": position}
            for selector, kept in made.selectors.items() for prompt, position in kept
        ],
        "batches": [row | {
            "shard": row["prompt_id"] // 32, "batch": row["prompt_id"] // 8 % 4, "padded": 13,
            "way": "alone" if row["prompt_id"] % 20 == 0 else "batch",
        } for row in one],
        "layers": [{"layer": n, "module": f"layers.{n}", "batch_error": 1e-7 * (1 + n % 2)}
                   for n in range(shape.layers)],
        "sites": [{
            "layer": n, "site": site, "module": f"layers.{n}.{site}" if site in sites else None,
            "width": shape.site_width(site) if site in sites else None,
            "reason": None if site in sites else "capture.sites leaves it out", "n_out_of_range": 0, "n_nonfinite": 0,
        } for n in range(shape.layers) for site in vocabulary.SITES],
        "warnings": [{"prompt_id": n, "code": "skipped", "message": f"row {n} is too long"} for n in made.skipped],
    }  # fmt: skip
