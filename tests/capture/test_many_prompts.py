"""Nothing that grows with prompts stays in memory, and all of them are checked before the first pass."""

import gc

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from captures import make_scenario, rows

import warehouse
from warehouse.capture import plan, states
from warehouse.capture.conversation import capture_one
from warehouse.capture.plan import RENDERINGS, make_plan
from warehouse.errors import AlabError
from warehouse.lake import metadata
from warehouse.lake.metadata import MetadataWriter
from warehouse.models.chat import Rendered


def many(count: int, last: str = "Bye"):
    said = [f"Say {n}" for n in range(count - 1)] + [last]
    prompts = [{"messages": [{"role": "user", "content": text}]} for text in said]
    return make_scenario(
        prompt=prompts, generation={"max_new_tokens": 2}, reference_states=[], capture={"layers": [0], "logits": False}
    )  # fmt: skip


def renderings() -> int:
    return sum(type(some) is Rendered for some in gc.get_objects())


def rows_in_memory() -> int:
    writers = [some for some in gc.get_objects() if type(some) is MetadataWriter]
    return max(len(rows) for writer in writers for rows in writer._rows.values())


def test_a_plan_keeps_the_renderings_of_few_prompts(llama):
    before = renderings()
    planned = make_plan(many(RENDERINGS), *llama)
    assert renderings() == before + RENDERINGS
    planned = make_plan(many(RENDERINGS + 1), *llama)
    assert renderings() == before
    assert planned.prompts[3].rendered.text.startswith("<|user|>Say 3<|end|>")
    assert planned.prompts[3] == planned.prompts[3]


def test_a_prompt_rendered_again_is_the_same(llama, lake, monkeypatch):
    """Every row and vector, whether renderings are kept, and states of a prompt have a row group of their own."""
    once = capture_one(many(9), *llama, lake)
    monkeypatch.setattr(plan, "RENDERINGS", 3)
    monkeypatch.setattr(states, "PROMPT_GROUPS", 2)
    monkeypatch.setattr(states, "GROUP_VECTORS", 30)
    again = capture_one(many(9), *llama, lake)
    for table in (
        "prompts",
        "messages",
        "tokens",
        "steps",
        "top_tokens",
        "snapshots",
        "state_tokens",
        "states",
        "activations",
    ):
        first, second = (rows(lake, f"select * exclude (run_id) from {table} where run_id = ? order by all", run)
                         for run in (once, again))  # fmt: skip
        assert first and first == second, table
    files = [
        pq.ParquetFile(lake.dataset("states", run) / "part-0.parquet") for run in (once, again)
    ]
    assert files[0].num_row_groups == 9 > files[1].num_row_groups > 2


def test_the_last_prompt_is_checked_before_the_first_pass(llama, lake):
    calls = []
    with pytest.raises(
        AlabError,
        match=r"^prompt\[69\]: \d+ tokens and 2 to generate are more than the model's context",
    ):
        capture_one(many(70, "long " * 40), *llama, lake, progress=lambda *call: calls.append(call))
    assert not calls and not lake.root.exists()


def test_a_capture_keeps_no_rows_and_no_renderings(llama, lake, monkeypatch):
    monkeypatch.setattr(metadata, "GROUP_ROWS", 8)
    monkeypatch.setattr(plan, "RENDERINGS", 3)
    before, most = renderings(), []
    capture_one(
        many(20),
        *llama,
        lake,
        progress=lambda *_: most.append((renderings() - before, rows_in_memory())),
    )
    assert len(most) > 10
    assert max(count for count, _ in most) <= 3  # the prompt's, and those of its snapshots
    assert max(count for _, count in most) < 8


def test_a_recording_keeps_no_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "GROUP_ROWS", 8)
    model, most = tiny.model_of("llama"), []
    with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path) as passes:
        for n in range(20):
            model(torch.tensor([[5, 6, 7 + n]]))
            most.append((rows_in_memory(), len(passes._tokens)))
    assert max(count for count, _ in most) < 8 and {count for _, count in most} == {3}
    assert len(warehouse.open(tmp_path).sql("FROM prompts").fetchall()) == 20


def test_the_choice_of_a_step_is_not_that_of_a_later_one(tmp_path):
    """A pass that ended in an error has no row in `steps`; what the next one reads is not the choice before it."""
    model, ids = tiny.model_of("llama"), torch.tensor([[5, 6, 7]])
    with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path) as passes:
        cache = model(ids, use_cache=True).past_key_values
        model(torch.tensor([[8]]), past_key_values=cache)
        hook = model.model.layers[2].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(torch.tensor([[9]]), past_key_values=cache)
        hook.remove()
        model(torch.tensor([[10]]), past_key_values=cache)
    lab = warehouse.open(tmp_path)
    query = "SELECT step, generated_token_id FROM steps WHERE run_id = $run ORDER BY step"
    assert lab.sql(query, run=passes.run_id).fetchall() == [(0, 8), (1, 9), (3, None)]
