"""Measures what `alab serve` reads: tiles of a long conversation, and a dataset's points.

python tests/benchmarks/bench_tiles.py [--tokens 4000] [--width 2048] [--heads 8] [--vocab 49152]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from synthetic import Shape, metadata
from synthetic_dataset import make_dataset

from warehouse.catalog import catalog
from warehouse.lake import schemas
from warehouse.lake.lake import Lake
from warehouse.lake.metadata import MetadataWriter
from warehouse.lake.pages import PageWriter
from warehouse.serve import dataset_tasks, tensor_tasks
from warehouse.serve.tasks import Desk

#: Times that each is measured; the slowest of all counts.
ROUNDS = 5
#: Values of a row group, as a capture writes them.
GROUP = 1 << 20


def groups(tokens: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last position of the row groups of a pass."""
    step = max(1, GROUP // width)
    for start in range(0, tokens, step):
        yield start, min(start + step, tokens)


def write_vectors(path: Path, dataset: str, column: str, tokens: int, width: int) -> None:
    """One column of one pass, rounded to 16 bits as captures are."""
    rng = np.random.default_rng(0)
    writer = PageWriter(path, schemas.tensor_schema(dataset, {column: width}))
    for start, stop in groups(tokens, width):
        values = rng.standard_normal((stop - start, width), "f4").astype("f2").astype("f4")
        at = np.arange(start, stop, dtype="i4")
        kind = {} if dataset == "outputs" else {"kind": ["prefill"] * len(at)}
        named = {"prompt_id": 0 * at, "step": 0 * at, "position": at} | kind
        writer.write(len(at), named | {column: values})
    writer.close()


def write_attention(path: Path, tokens: int, heads: int) -> None:
    """The weights of one pass, by position and then head."""
    rng = np.random.default_rng(0)
    writer = PageWriter(path, schemas.tensor_schema("attention", {}))
    for start, stop in groups(tokens, heads * tokens):
        position, head = (
            x.reshape(-1).astype("i4") for x in np.mgrid[start:stop, :heads].astype("i4")
        )
        lengths = position + 1
        flat = rng.random(lengths.sum(), "f4") ** 8 / np.repeat(lengths, lengths)
        columns = {"prompt_id": 0 * head, "step": 0 * head, "head": head, "position": position}
        weights = (flat.astype("f2").astype("f4"), lengths)
        writer.write(len(head), columns | {"weights": weights})
    writer.close()


def make_long(lake: Lake, tokens: int, width: int, heads: int, vocab: int) -> None:
    """A run of one layer whose prompt is long; of a fourth of its tokens there are logits."""
    shape = Shape(layers=1, width=width, heads=heads, vocab=vocab, prompt_tokens=tokens, steps=1)
    staged = lake.stage("long")
    tail = ("steps=0-0", "layer=00", "part-0.parquet")
    write_vectors(staged.path("activations", *tail), "activations", "hidden_out", tokens, width)
    write_attention(staged.path("attention", *tail), tokens, heads)
    path = staged.path("outputs", "steps=0-0", "part-0.parquet")
    write_vectors(path, "outputs", "logits", tokens // 4, vocab)
    small = np.zeros((shape.prompt_tokens, 40), "f4")
    rows = metadata("long", shape, "package:synthetic", 0, small)
    staged.publish(MetadataWriter(staged, catalog.metadata_schemas(), rows))


def slowest(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Milliseconds of the slowest round; the first, which opens the files, is not counted."""
    work()
    times = []
    for _ in range(ROUNDS):
        before()  # else the row group is there from the last round
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * max(times)


def tile_times(desk: Desk, tokens: int, width: int, vocab: int) -> Iterator[tuple[str, float]]:
    """Tiles at the beginning, the end and made smaller, and what a tensor is drawn with."""
    whole = {"down": -(-tokens // 512), "across": 1}
    cases = [
        ("hidden_out", "first tile", {}),
        ("hidden_out", "last tile", {"row": tokens - 512, "column": width - 512}),
        ("hidden_out", "whole, made smaller", whole | {"across": -(-width // 512)}),
        ("attention", "first tile", {}),
        ("attention", "last tile", {"row": tokens - 512, "column": tokens - 512}),
        ("attention", "whole, made smaller", whole | {"across": whole["down"]}),
        ("logits", "first tile", {}),
        ("logits", "whole, made smaller", {"down": 2, "across": -(-vocab // 512)}),
    ]
    plain = {"run": "latest:long", "layer": 0, "prompt": 0, "step": 0}
    size = {"head": 0, "row": 0, "column": 0, "rows": 512, "columns": 512, "down": 1, "across": 1}
    for site, name, at in cases:
        asked = plain | {"site": site} | size | at | {"statistic": "extreme", "form": "binary"}
        far = asked | {"row": tokens // 8, "rows": 1, "down": 1}
        tile = partial(tensor_tasks.tile, desk)
        yield f"{site}: {name}", slowest(partial(tile, **asked), partial(tile, **far))
    for site in ("hidden_out", "attention", "logits"):
        asked = plain | {"site": site}
        yield f"{site}: facts", slowest(partial(tensor_tasks.tensor, desk, **asked))


def plane_times(desk: Desk) -> Iterator[tuple[str, float]]:
    """The points of 3,000 rows of 576 dimensions."""
    asked = {"site": "hidden_out", "layer": 1, "selector": "last", "label": "mood"}
    work = partial(dataset_tasks.plane, desk, "latest:set", **asked, form="columns")
    yield "plane of 3,000 rows", slowest(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("tokens", 4000), ("width", 2048), ("heads", 8), ("vocab", 49152)):
        parser.add_argument(f"--{name}", type=int, default=default)
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder) / "lab")
        make_dataset(lake, shape=Shape(layers=2, width=576, mlp=20), rows=3000)
        make_long(lake, own.tokens, own.width, own.heads, own.vocab)
        catalog.sync(lake)
        with catalog.connect(lake) as db:
            desk = Desk(lake, db)
            for name, ms in [
                *tile_times(desk, own.tokens, own.width, own.vocab),
                *plane_times(desk),
            ]:
                print(f"{name:40} {ms:8.1f} ms", flush=True)


if __name__ == "__main__":
    main()
