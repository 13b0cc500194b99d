"""Makes a lake of many runs without a model: states and metadata in full size, activations for some.

    python tests/benchmarks/synthetic_lake.py DIRECTORY --runs 1000

Vectors share a common part per site and layer, as last-token states do, so that the largest dimensions overlap.
Of the bulk only the first `distinct` runs are computed; the others link to their files, which costs a reader the
same and the disk nothing.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from synthetic import Shape, metadata, vectors, write

from warehouse import vocabulary
from warehouse.catalog import catalog
from warehouse.lake import lake
from warehouse.lake import schemas as parquet
from warehouse.lake.metadata import MetadataWriter

FULL = Shape(
    layers=36, width=2048, heads=16, mlp=8192, messages=8, prompt_tokens=64, steps=16,
    attention=False, outputs=False, sites=vocabulary.STATE_SITES,
)  # fmt: skip


def common(shape: Shape) -> np.ndarray:
    """What all states share: (layers, sites, width), a few dimensions of it large."""
    rng = np.random.default_rng(0)
    size = (shape.layers, len(vocabulary.STATE_SITES), shape.width)
    return (rng.standard_normal(size, "f4") * np.exp(1.2 * rng.standard_normal(size, "f4"))).astype(
        "f4"
    )


def write_states(path: Path, shape: Shape, base: np.ndarray, seed: int, only_ends: bool) -> None:
    """The states of one run, one row group per state."""
    states = [(0, "initial", 0, None), (0, "final", shape.steps - 1, None)]
    if not only_ends:
        states += [(0, "snapshot", k, None) for k in range(shape.messages + 1)]
        states += [(None, "reference", i, label) for i, label in enumerate(shape.labels)]
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((len(states), *base.shape), "f4")
    values = (base + 0.7 * noise).astype("f2").astype("f4").reshape(-1, shape.width)
    per = shape.layers * len(vocabulary.STATE_SITES)
    columns = {name: np.repeat([s[i] for s in states], per).tolist()
               for i, name in enumerate(("prompt_id", "state", "state_index", "label"))}  # fmt: skip
    columns["layer"] = np.tile(
        np.repeat(np.arange(shape.layers), len(vocabulary.STATE_SITES)), len(states)
    )
    columns["site"] = list(vocabulary.STATE_SITES) * (shape.layers * len(states))
    write(path, parquet.state_schema(shape.width), columns | {"vector": vectors(values)}, per)


def write_activations(staged: lake.StagedRun, shape: Shape, seed: int) -> None:
    """The activations of the four state sites of one run, one file per layer."""
    rng = np.random.default_rng(seed)
    sequence = shape.prompt_tokens + shape.steps - 1
    step = np.r_[np.zeros(shape.prompt_tokens, "i4"), np.arange(1, shape.steps)]
    columns = {"prompt_id": [0] * sequence, "step": step, "kind": ["prefill" if s == 0 else "decode" for s in step],
               "position": np.arange(sequence)}  # fmt: skip
    widths = dict.fromkeys(vocabulary.STATE_SITES, shape.width)
    for layer in range(shape.layers):
        tensors = {s: vectors(rng.standard_normal((sequence, shape.width), "f4").astype("f2").astype("f4"))
                   for s in vocabulary.STATE_SITES}  # fmt: skip
        path = staged.path(
            "activations", f"steps=0-{shape.steps - 1}", f"layer={layer:02d}", "part-0.parquet"
        )
        write(path, parquet.tensor_schema("activations", widths), columns | tensors, 8)


def make_lake(
    folder: Path,
    runs: int,
    shape: Shape = FULL,
    distinct: int = 10,
    with_activations: int = 0,
    only_ends: bool = False,
) -> lake.Lake:
    """Make `runs` runs in the warehouse `folder`, the first `with_activations` of them with activations."""
    target, base = lake.Lake(folder), common(shape)
    first: list[lake.StagedRun] = []
    rows: dict[str, list[dict]] = {}
    for number in range(runs):
        staged = target.stage(f"bench{number:05d}")
        states = staged.path("states", "part-0.parquet")
        if number < distinct:
            write_states(states, shape, base, number + 1, only_ends)
            first.append(staged)
        else:
            states.parent.mkdir(parents=True)
            states.hardlink_to(published(target, first[number % distinct], states))
        if number < with_activations:
            if number == 0:
                write_activations(staged, shape, seed=number)
            else:
                for path in sorted(
                    target.dataset("activations", first[0].run_id).rglob("*.parquet")
                ):
                    copy = staged.path("activations", *path.relative_to(path.parents[2]).parts)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.hardlink_to(path)
        logits = np.zeros((shape.prompt_tokens + shape.steps - 1, shape.vocab), "f4")
        rows = rows or metadata("bench", shape, "package:synthetic", number, logits)
        staged.publish(MetadataWriter(staged, catalog.metadata_schemas(), rows))
    return target


def published(target: lake.Lake, staged: lake.StagedRun, path: Path) -> Path:
    return target.dataset("states", staged.run_id) / path.name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--runs", type=int, default=1000)
    arguments = parser.parse_args()
    made = make_lake(arguments.directory, arguments.runs, with_activations=20)
    sys.stdout.write(f"{len(made.run_ids())} runs in {made.warehouse}\n")
