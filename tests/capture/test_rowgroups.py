"""Row groups hold every row once and in order, however passes come, and tensors that arrive late."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.capture import rowgroups as gather
from warehouse.capture.pieces import Piece
from warehouse.capture.rowgroups import AttentionGroup, Gather, Rows
from warehouse.capture.writer import TensorWriter, leave_a_core
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake

WIDTHS = {0: {"q": 3, "v": 2}, None: {"logits": 5}}
HEADS = 2


def passes(counts: list[int], layer: int | None) -> list[Rows]:
    """Passes over so many tokens each, with numbers that tell the rows apart."""
    made, position = [], 0
    for step, count in enumerate(counts):
        sites = {site: torch.rand(count, width) for site, width in WIDTHS[layer].items()}
        weights = torch.rand(HEADS, count, position + count) if layer is not None else None
        piece = Piece(0, step, "decode" if step else "prefill", position, count)
        made.append(Rows([piece], layer, sites, weights))
        position += count
    return made


@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(1, 300), min_size=1, max_size=5), tail=st.integers(0, 150))
def test_every_row_comes_out_once_and_in_order(counts, tail):
    given_rows = passes(counts + [1] * tail, 0)
    taking = Gather(WIDTHS, "float32")
    groups = [group for rows in given_rows for group in taking.take(rows)] + list(taking.rest())
    vectors = [group for group in groups if not isinstance(group, AttentionGroup)]
    for site in WIDTHS[0]:
        whole = torch.cat([rows.sites[site] for rows in given_rows])
        assert torch.equal(torch.cat([group.sites[site] for group in vectors]), whole)
    pieces = [piece for group in vectors for piece in group.pieces]
    assert [p.position + i for p in pieces for i in range(p.count)] == list(
        range(sum(counts) + tail)
    )
    assert all(sum(p.count for p in group.pieces) <= gather.GROUP_ROWS for group in vectors)
    assert all(sum(p.count for p in group.pieces) == gather.GROUP_ROWS for group in vectors[:-1])


@settings(deadline=None, max_examples=40)
@given(first=st.integers(1, 900), tail=st.integers(0, 200))
def test_attention_comes_out_as_its_causal_half(first, tail):
    given_rows = passes([first] + [1] * tail, 0)
    taking = Gather(WIDTHS, "float32")
    groups = [group for rows in given_rows for group in taking.take(rows)] + list(taking.rest())
    position = 0
    for group in (group for group in groups if isinstance(group, AttentionGroup)):
        assert group.pieces[0].position == position
        start = values = 0
        for piece in group.pieces:
            rows = given_rows[piece.step]
            for i in range(piece.count):
                keys = piece.position + i + 1
                found = (
                    group.weights[:, i, :keys]
                    if group.weights.ndim == 3
                    else group.weights[start:][: 2 * keys]
                )
                expected = rows.attention[:, keys - 1 - rows.pieces[0].position, :keys]
                assert torch.equal(found.reshape(-1), expected.reshape(-1))
                start += HEADS * keys
                values += HEADS * keys
            position += piece.count
        assert values <= gather.ATTENTION_VALUES or sum(p.count for p in group.pieces) == 1
    assert position == first + tail


def test_rows_and_widths_are_compared_with_what_is_declared():
    (rows,) = passes([3], 0)
    rows.sites["v"] = torch.rand(3, 4)
    with pytest.raises(
        AlabError, match=r"v of layer 0 is shaped \(3, 4\); the probe pass had vectors of 2"
    ):
        list(Gather(WIDTHS, "float32").take(rows))
    (rows,) = passes([3], 0)
    rows.sites["v"] = rows.sites["v"][:2]
    with pytest.raises(AlabError, match="different numbers of tokens"):
        list(Gather(WIDTHS, "float32").take(rows))
    (rows,) = passes([3], 0)
    rows.attention = torch.rand(
        HEADS, 3, 5
    )  # as with two virtual tokens before those that were given
    with pytest.raises(AlabError, match="5 keys for a sequence of 3 tokens"):
        list(Gather(WIDTHS, "float32").take(rows))


def test_a_row_group_has_the_same_sites_in_all_its_rows():
    taking, rows = Gather(WIDTHS, "float32"), passes([3, 4], 0)
    rows[1].sites.pop("v")
    rows[0].attention = rows[1].attention = None
    groups = [group for one in rows for group in taking.take(one)] + list(taking.rest())
    assert [set(group.sites) for group in groups] == [{"q", "v"}, {"q"}]


def test_row_groups_are_rounded(monkeypatch):
    monkeypatch.setattr(gather, "GROUP_ROWS", 16)
    taking, rows = Gather(WIDTHS, "float16"), passes([40, 1, 1], 0)
    rows[0].sites["v"][39, 1] = 1e6  # in the rows that wait for the decode steps
    groups = [group for one in rows for group in taking.take(one)] + list(taking.rest())
    vectors = [group for group in groups if not isinstance(group, AttentionGroup)]
    for site in WIDTHS[0]:
        whole = torch.cat([one.sites[site] for one in rows])
        found = torch.cat([group.sites[site].float() for group in vectors])
        assert torch.equal(found, torch.where(whole > 65504, whole, whole.half().float()))
    assert [group.sites["v"].dtype for group in vectors] == [
        torch.float16,
        torch.float16,
        torch.float32,
    ]
    assert taking.stats.site(0, "v").out_of_range == 1  # counted once
    weights = [group.weights.dtype for group in groups if isinstance(group, AttentionGroup)]
    assert set(weights) == {torch.float16}


def test_sites_go_by_name_in_whatever_order_they_come():
    taking, rows = Gather(WIDTHS, "float32"), passes([1, 1], 0)
    rows[1].sites = dict(reversed(rows[1].sites.items()))
    groups = [group for one in rows for group in taking.take(one)] + list(taking.rest())
    (vectors,) = (group for group in groups if not isinstance(group, AttentionGroup))
    for site in WIDTHS[0]:
        assert torch.equal(vectors.sites[site], torch.cat([one.sites[site] for one in rows]))


def test_a_large_prefill_is_rounded_in_slices(monkeypatch):
    monkeypatch.setattr(gather, "SLICE_VALUES", 3 * gather.GROUP_ROWS)
    (rows,) = passes([5 * gather.GROUP_ROWS], 0)
    rows.attention, rows.sites["q"][0, 0] = None, 1e6
    groups = list(Gather(WIDTHS, "float16").take(rows))
    assert [group.sites["q"].dtype for group in groups] == [torch.float32] + 4 * [torch.float16]
    assert torch.equal(
        groups[3].sites["q"], rows.sites["q"][3 * gather.GROUP_ROWS :][: gather.GROUP_ROWS].half()
    )


def test_a_thread_that_cannot_start_its_work_is_an_error(tmp_path, monkeypatch):
    def fail() -> None:
        raise MemoryError

    lake = Lake(tmp_path / "lab")
    lake.prepare()
    monkeypatch.setattr("warehouse.capture.writer.give_way", fail)
    with pytest.raises(MemoryError), TensorWriter(lake.stage("none"), WIDTHS, "float16") as writer:
        writer.put(passes([3], 0)[0])


class LateEvent:
    """An event of a device that is reached only when somebody waits for it."""

    def __init__(self, rows: Rows):
        self._tensor, self._real = rows.sites["logits"], rows.sites["logits"].clone()
        self._tensor.zero_()
        self.reached = False

    def query(self) -> bool:
        return self.reached

    def synchronize(self) -> None:
        self.reached = True
        self._tensor.copy_(self._real)


def test_tensors_that_are_still_on_their_way_are_written_when_they_are_there(tmp_path):
    lake = Lake(tmp_path / "lab")
    lake.prepare()
    staged = lake.stage("late")
    made = passes([4, 1, 1], None)
    expected = torch.cat([rows.sites["logits"].clone() for rows in made])
    with TensorWriter(staged, WIDTHS, "float32") as writer:
        for rows in made:
            rows.ready = LateEvent(rows)
            writer.put(rows)
        assert not made[0].ready.reached  # nothing waited for the device
    (path,) = staged.path("outputs").rglob("*.parquet")
    table = pq.read_table(path, partitioning=None)
    assert table["position"].to_pylist() == list(range(6))
    assert torch.equal(torch.tensor(table["logits"].to_pylist()), expected)
    staged.discard()


def test_threads_are_as_they_were():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), leave_a_core():
        assert torch.get_num_threads() == max(1, before - 1)
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_writing_leaves_the_caller_its_threads_and_priority(tmp_path):
    lake = Lake(tmp_path / "lab")
    lake.prepare()
    staged = lake.stage("threads")

    def now() -> tuple[int, ...]:
        with ThreadPoolExecutor(1) as pool:
            return (
                torch.get_num_threads(),
                pool.submit(torch.get_num_threads).result(),
                os.getpriority(0, 0),
            )

    before = now()
    with TensorWriter(staged, WIDTHS, "float16") as writer:
        if sys.platform == "linux" and before[2] < 19:  # nothing gives way more than that
            threads = [t.native_id for t in threading.enumerate() if t.name == "alab-writer"]
            while before[2] in {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}:
                time.sleep(0.001)  # until they have begun
        for rows in passes([300, 1], 0):
            writer.put(rows)
    assert now() == before
    staged.discard()
