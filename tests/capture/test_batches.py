"""What is recorded of a batch is what a recording of each sequence alone gives, and no padding."""

import numpy as np
import pytest
import tiny
import torch

from warehouse.capture.hooks import LayerTensors, Recorder
from warehouse.capture.pieces import Piece
from warehouse.capture.rowgroups import Rows
from warehouse.capture.writer import TensorWriter
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.lake.tensors import Source
from warehouse.models import sites
from warehouse.models.batch import Batch
from warehouse.models.reader import Reader

FAMILIES = ("llama", "qwen3", "gemma2", "gpt2", "mixtral", "bloom", "mpt", "qwen3_next")
SEQUENCES = [[5, 9, 12, 7, 30, 41], [8], [22, 9, 17], [90, 91, 92, 93, 94, 95, 96, 97, 98]]
LAST = [[len(ids) - 1] for ids in SEQUENCES]


class Lab:
    """A staged run of batches, and what is in its files."""

    def __init__(self, folder, family: str):
        self.model = tiny.model_of(family)
        self.sites = sites.discover(self.model, sharing=False)
        lake = Lake(folder)
        lake.prepare()
        self._lake = lake

    def record(self, batches: list[tuple[Batch, list[int]]]):
        """Read batches, each with the prompts that its sequences are; gives the staged run."""
        staged, layers = self._lake.stage("batch"), range(len(self.sites.layers))
        widths = {n: {s: p.width for s, p in self.sites.layers[n].ports.items()} for n in layers}
        widths[None] = {"embeddings": self.sites.embedding_width, "logits": self.sites.vocabulary}
        reader, self.tensors = Reader(self.model), []
        names = set().union(*(widths[n] for n in layers))
        with (
            torch.inference_mode(),
            TensorWriter(staged, widths, "float32") as writer,
            Recorder(
                self.model, self.sites, sites=names, layers=list(layers), attention=True
            ) as recorder,
        ):
            for batch, prompts in batches:
                pieces = [Piece(prompts[i], 0, "prefill", at, n) for i, at, n in batch.spans]

                def sink(tensors: LayerTensors, pieces: list[Piece] = pieces) -> None:
                    self.tensors.append(tensors)
                    writer.put(Rows(pieces, tensors.layer, tensors.sites, tensors.attention))

                with recorder.recording(sink, batch):
                    logits = reader.read_batch(batch, all_logits=True)
                outputs = {"embeddings": recorder.embeddings, "logits": logits}
                writer.put(Rows(pieces, None, outputs))
        self.stats = recorder.note(writer.stats)
        return staged

    def close(self, staged) -> dict:
        """Every tensor of the files by (dataset, layer, column, prompt); the run is thrown away."""
        values = {}
        for dataset in ("activations", "attention", "outputs"):
            folders = {}
            for path in sorted(staged.path(dataset).rglob("*.parquet")):
                layer = path.parent.name if dataset != "outputs" else None
                folders.setdefault(layer, []).append(path)
            for layer, paths in folders.items():
                source = Source(paths)
                for column in source.columns:
                    for at in source.span:
                        values[dataset, layer, column, at[0]] = source.tensor(column, at)
        staged.discard()
        return values


def alone(lab: Lab) -> dict:
    return lab.close(lab.record([(Batch([ids]), [n]) for n, ids in enumerate(SEQUENCES)]))


def close(value: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    apart = np.linalg.norm(value - expected, axis=-1)
    return value.shape == expected.shape and bool(
        (apart <= tolerance * np.linalg.norm(expected, axis=-1)).all()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_each_sequence_alone(tmp_path, family):
    lab = Lab(tmp_path, family)
    expected = alone(lab)
    values = lab.close(lab.record([(Batch(SEQUENCES), [3, 1, 0, 2])]))
    assert len(values) == len(expected)
    # A recurrent layer sums over the width of the pass: more rounding.
    tolerance = 5e-5 if family == "qwen3_next" else 1e-5
    for (*where, prompt), value in values.items():
        assert close(value, expected[*where, [3, 1, 0, 2].index(prompt)], tolerance), (
            where,
            prompt,
        )
    tokens = sum(map(len, SEQUENCES))
    assert {len(rows) for layer in lab.tensors for rows in layer.sites.values()} == {tokens}
    assert {len(lab.sites.layers) - 1, 0} <= lab.stats.continuity.keys()
    assert max(lab.stats.continuity.values()) == 0.0
    assert max(lab.stats.residual.values()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_selection_is_those_rows_of_the_whole(tmp_path, family):
    lab = Lab(tmp_path, family)
    whole = lab.close(lab.record([(Batch(SEQUENCES), [0, 1, 2, 3])]))
    values = lab.close(lab.record([(Batch(SEQUENCES, LAST), [0, 1, 2, 3])]))
    assert values.keys() == whole.keys()
    for key, value in values.items():
        tolerance = 1e-6 if key[2] == "logits" else 0.0  # of other rows, in another order
        np.testing.assert_allclose(value, whole[key][:, -1:], rtol=tolerance, atol=tolerance)
    rows = [rows for layer in lab.tensors for rows in layer.sites.values()]
    assert {len(row) for row in rows} == {len(SEQUENCES)}
    # No views of the whole pass; q, k and v may be of one fused row.
    assert max(row.untyped_storage().nbytes() / row.nbytes for row in rows) <= 3


def test_places_with_gaps_and_prompts_without_any(tmp_path):
    lab = Lab(tmp_path, "llama")
    whole = lab.close(lab.record([(Batch(SEQUENCES), [0, 1, 2, 3])]))
    batch = Batch(SEQUENCES, [[0, 2, 3], [], [1], [0, 8]])
    assert batch.spans == [(0, 0, 1), (0, 2, 2), (2, 1, 1), (3, 0, 1), (3, 8, 1)]
    staged = lab.record([(batch, [0, 1, 2, 3])])
    (path,) = staged.path("activations").rglob("layer=01/*.parquet")
    table = Source([path]).open[0].read()
    assert table["prompt_id"].to_pylist() == [0, 0, 0, 2, 3, 3]
    assert table["position"].to_pylist() == [0, 2, 3, 1, 0, 8]
    stored = np.array(table["attn_out"].to_pylist(), np.float32)
    for row, (prompt, position) in enumerate([(0, 0), (0, 2), (0, 3), (2, 1), (3, 0), (3, 8)]):
        expected = whole["activations", "layer=01", "attn_out", prompt][0, position]
        np.testing.assert_array_equal(stored[row], expected)
    (path,) = staged.path("attention").rglob("layer=01/*.parquet")
    table = Source([path]).open[0].read()
    for name, head, position, weights in zip(
        *(table[c].to_pylist() for c in ("prompt_id", "head", "position", "weights")), strict=True
    ):
        expected = whole["attention", "layer=01", "weights", name][head, position]
        np.testing.assert_array_equal(weights, expected[: position + 1])
    staged.discard()


def test_many_batches_of_last_tokens_fill_row_groups(tmp_path):
    lab = Lab(tmp_path, "llama")
    batches = [
        (Batch(SEQUENCES, LAST), [4 * n, 4 * n + 1, 4 * n + 2, 4 * n + 3]) for n in range(50)
    ]
    staged = lab.record(batches)
    for dataset in ("activations", "attention"):
        (path,) = staged.path(dataset).rglob("layer=02/*.parquet")
        file = Source([path]).open[0]
        assert file.num_row_groups == (2 if dataset == "activations" else 1)
        heads = 4 if dataset == "attention" else 1
        assert file.read(["prompt_id"])["prompt_id"].to_pylist() == [
            prompt for prompt in range(200) for _ in range(heads)
        ]
    staged.discard()


@pytest.mark.parametrize("where", ["token", "padding"])
def test_a_gap_between_layers_is_measured_over_tokens_alone(tmp_path, where):
    lab = Lab(tmp_path, "llama")
    place = (1, 0) if where == "token" else (1, 5)

    def change(module, args, kwargs):
        first = (args[0] if args else kwargs["hidden_states"]).clone()
        first[place] = torch.nan if where == "padding" else first[place] + 1.0
        return ((first, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": first})

    handle = lab.model.model.layers[1].register_forward_pre_hook(change, with_kwargs=True)
    try:
        lab.record([(Batch(SEQUENCES, LAST), [0, 1, 2, 3])]).discard()
    finally:
        handle.remove()
    assert (lab.stats.continuity[0] > 0) == (where == "token")


def test_a_pass_that_is_not_the_batch_is_refused(tmp_path):
    lab = Lab(tmp_path, "llama")
    with (
        Recorder(lab.model, lab.sites, sites={"hidden_out"}, layers=[0, 1, 2]) as recorder,
        recorder.recording(print, Batch(SEQUENCES)),
        pytest.raises(AlabError, match="does not read the batch"),
    ):
        lab.model(torch.tensor([[5, 6]]))
