"""The analyses that a report opens with, against numpy and against each other."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from report_pages import edit, multiply
from synthetic import Shape, make_run

from warehouse.catalog import catalog

SHAPE = Shape(
    layers=4,
    messages=4,
    labels=("joy", "fear", "calm", "hate"),
    activations=False,
    attention=False,
    outputs=False,
)


@pytest.fixture
def run(lake):
    return lake, make_run(lake, shape=SHAPE)


def ask(lake, query, *values):
    with catalog.connect(lake) as db:
        return db.execute(query, list(values)).fetchall()


def states(lake, site="hidden_out") -> dict[tuple, np.ndarray]:
    """By state, state_index and label: the vectors of all layers, float64."""
    found = {}
    for state, index, prompt, _, vector in ask(
        lake,
        "SELECT state, state_index, prompt_id, layer, vector FROM states WHERE site = ? ORDER BY layer",
        site,
    ):
        found.setdefault((state, index, prompt), []).append(np.array(vector, "f8"))
    return {key: np.stack(vectors) for key, vectors in found.items()}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_turns_are_consecutive_snapshots(run):
    lake, _ = run
    vectors = states(lake)
    rows = ask(
        lake,
        "SELECT message_index, layer, cosine, mae FROM turn_shift('latest') WHERE site = 'hidden_out'",
    )
    assert len(rows) == 4 * 4  # message 0 has nothing before it
    for index, layer, cosine, mae in rows:
        before, after = (vectors["snapshot", i, 0][layer] for i in (index - 1, index))
        assert cosine == pytest.approx(cosines(before, after), abs=1e-6)
        assert mae == pytest.approx(np.abs(before - after).mean(), rel=1e-5)
    reply = ask(
        lake,
        "SELECT layer, cosine FROM reply_shift('latest') WHERE site = 'hidden_out' ORDER BY layer",
    )
    assert reply == [(layer, cosine) for index, layer, cosine, _ in rows if index == 4]
    (cosine, least, before, usual), *_ = ask(
        lake,
        "SELECT cosine, least, before, cosine_before FROM reply_summary('latest') WHERE site = 'hidden_out'",
    )
    assert cosine == pytest.approx(np.mean([value for _, value in reply]))
    assert least == min(value for _, value in reply)
    assert before == 3
    assert usual == pytest.approx(np.mean([value for index, _, value, _ in rows if index < 4]))


def test_all_comparisons_of_snapshots_at_once_are_those_one_by_one(run):
    lake, _ = run
    query = "SELECT a.id IS NOT NULL, a.state, a.state_index, b.state, b.state_index, a.site, a.layer, cosine, mae, jaccard"
    both = ask(lake, f"{query} FROM _compare_states('latest', 'snapshot') ORDER BY ALL")
    single = ask(
        lake,
        f"{query} FROM (FROM _compare_states('latest', 'reference') UNION ALL FROM _compare_states('latest', 'turns'))"
        " ORDER BY ALL",
    )
    assert both == single


def test_leaning_by_layer_is_that_of_the_shift(run):
    lake, _ = run
    vectors = states(lake)
    labels = SHAPE.labels
    table = np.array([
        [cosines(vectors["snapshot", m, 0], vectors["reference", i, None]) for i in range(4)] for m in range(5)
    ])  # fmt: skip
    beyond = table - table.mean(0)  # messages, labels, layers
    mean = beyond.mean(-1)
    rows = ask(
        lake,
        "SELECT message_index, label, shift, second, margin, layers_led, layers, states FROM leaning_layers('latest')",
    )
    assert len(rows) == 5
    for index, label, shift, second, margin, led, layers, count in rows:
        order = np.argsort(-mean[index])
        assert [label, second] == [labels[order[0]], labels[order[1]]]
        assert margin == pytest.approx(mean[index][order[0]] - mean[index][order[1]], abs=1e-6)
        assert shift == pytest.approx(mean[index][order[0]] - mean[index].mean(), abs=1e-6)
        assert (led, layers, count) == ((beyond[index].argmax(0) == order[0]).sum(), 4, 5)
    query = "SELECT message_index, label, shift FROM reference_shift('latest') WHERE site = 'hidden_out'"
    known = {(index, label): shift for index, label, shift in ask(lake, query)}
    assert all(shift == pytest.approx(known[index, label]) for index, label, shift, *_ in rows)


def test_one_reference_or_one_state_leans_nowhere(lake):
    make_run(lake, "single", Shape(labels=("joy",)))
    assert ask(lake, "FROM leaning_layers('latest')") == []
    assert (
        ask(lake, "FROM leaning_layers('latest', over := 'conversations')") == []
    )  # one conversation


def test_conversations_are_weighed_against_each_other(lake):
    run_id = make_run(lake, shape=SHAPE)
    multiply(lake, run_id, 6)
    rows = ask(lake, "SELECT prompt_id, label, shift FROM conversation_shift('latest')")
    table = {(prompt, label): shift for prompt, label, shift in rows}
    vectors = states(lake)
    raw = np.array([
        [cosines(vectors["snapshot", 3, p], vectors["reference", i, None]).mean() for i in range(4)] for p in range(6)
    ])  # fmt: skip
    wanted = raw - raw.mean(0) - raw.mean(1, keepdims=True) + raw.mean()
    for p in range(6):
        for i, label in enumerate(SHAPE.labels):
            assert table[p, label] == pytest.approx(wanted[p, i], abs=1e-6)
    for prompt, label, shift, states_ in ask(
        lake,
        "SELECT prompt_id, label, shift, states FROM leaning_layers('latest', over := 'conversations')",
    ):
        assert label == SHAPE.labels[wanted[prompt].argmax()]
        assert shift == pytest.approx(wanted[prompt].max(), abs=1e-6)
        assert states_ == 6


def test_separating_layers_reach_half_of_the_peak(run):
    lake, _ = run
    known = ask(
        lake,
        "SELECT layer, distance FROM reference_separation('latest') WHERE site = 'hidden_out' ORDER BY layer",
    )
    distances = [distance for _, distance in known]
    (labels, at, peak, first, last, least, layers), *_ = ask(
        lake,
        "SELECT labels, peak_layer, peak, first_layer, last_layer, least, layers FROM separating_layers('latest')"
        " WHERE site = 'hidden_out'",
    )
    assert (labels, layers) == (4, 4)
    assert peak == pytest.approx(max(distances), abs=1e-6)
    assert distances[at] == pytest.approx(peak, abs=1e-6)
    assert least == pytest.approx(min(distances), abs=1e-6)
    assert first <= at <= last
    assert all(distances[layer] >= peak / 2 - 1e-9 for layer in range(first, last + 1))
    assert first == 0 or distances[first - 1] < peak / 2
    assert last == 3 or distances[last + 1] < peak / 2


def empty(lake, run_id, table):
    path = lake.dataset("metadata", run_id) / f"{table}.parquet"
    pq.write_table(pq.read_table(path, partitioning=None).slice(0, 0), path)
    edit(lake, run_id, table)


def test_runs_that_do_not_say_where_states_sit_are_read_from_their_tokens(lake):
    older, newer = make_run(lake, "older", SHAPE), make_run(lake, "newer", SHAPE)
    empty(lake, older, "state_tokens")
    query = (
        "SELECT state, state_index, n_tokens, position, token, kind FROM state_tokens_of(?)"
        " WHERE state IN ('initial', 'final') ORDER BY state"
    )
    known, found = ask(lake, query, newer), ask(lake, query, older)
    assert [row[:5] for row in found] == [row[:5] for row in known]
    assert found[0][-1] == "generated"
    snapshots = ask(
        lake, "SELECT token, kind, position FROM state_tokens_of(?) WHERE state = 'snapshot'", older
    )
    assert len(snapshots) == 5
    assert all(
        token is None and kind is None and position is not None
        for token, kind, position in snapshots
    )
    assert ("unknown_token", 5, 5) in ask(lake, "SELECT code, count, total FROM caveats(?)", older)


def test_caveats_say_what_is_missing(lake):
    make_run(lake, "bare", Shape(labels=()))
    codes = dict(ask(lake, "SELECT code, count FROM caveats('latest')"))
    assert codes["no_references"] == 0
    assert codes["cut"] == codes["token_kind"] == codes["one_conversation"] == 1
    assert "one_example" not in codes
    run_id = make_run(lake, "whole", SHAPE)
    edit(lake, run_id, "prompts", stop_reason=["eos"])
    multiply(lake, run_id, 3)
    codes = {
        code: (count, total)
        for code, count, total in ask(lake, "SELECT code, count, total FROM caveats(?)", run_id)
    }
    assert codes["one_example"] == (4, 4)
    assert codes["token_kind"] == (3, 3)
    assert not {"cut", "one_conversation", "no_references"} & set(codes)


def test_variants_name_who_has_them_and_who_has_none(lake):
    one = make_run(lake, "one", Shape(messages=3))
    two = make_run(lake, "two", Shape(messages=2))
    edit(lake, two, "messages", content=["message 0", "message 1!", "reply"])
    rows = ask(
        lake,
        "SELECT message_index, content, run_ids, wordings, missing FROM message_variants(?)",
        [one, two],
    )
    by_text = {
        content: (index, run_ids, wordings, missing)
        for index, content, run_ids, wordings, missing in rows
    }
    assert by_text["message 0"] == (0, [one, two], 1, 0)
    assert by_text["message 1"] == (1, [one], 2, 0)
    assert by_text["reply of one"] == (3, [one], 1, 1)


def test_only_settings_that_differ_are_listed(lake):
    one, two = make_run(lake, "one", seed=1), make_run(lake, "two", seed=2)
    assert ask(lake, "SELECT setting, run_id, value FROM run_settings(?)", [one, two]) == [
        ("seed", one, "1"), ("seed", two, "2"),
    ]  # fmt: skip
    assert ask(lake, "FROM run_settings(?)", [one]) == []


def test_messages_of_two_runs_stand_against_each_other(lake):
    one, two = make_run(lake, "one", SHAPE, seed=1), make_run(lake, "two", SHAPE, seed=2)
    rows = ask(
        lake,
        "SELECT message_index, layer, cosine FROM inter_run_messages(?) WHERE site = 'attn_out'",
        [one, two],
    )
    assert len(rows) == 5 * 4
    known = ask(
        lake,
        "SELECT index_a, layer, cosine FROM compare_states(?, 'snapshot', ?, 'snapshot') WHERE site = 'attn_out'",
        one,
        two,
    )
    known = {(index, layer): cosine for index, layer, cosine in known}
    assert all(
        cosine == pytest.approx(known[index, layer], abs=1e-6) for index, layer, cosine in rows
    )
