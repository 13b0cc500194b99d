"""What a scenario chooses to keep: states without the rest, the rest without states, layers from the end."""

import json

import pytest
from captures import CHAT, rows, run

from warehouse.catalog import check
from warehouse.errors import AlabError


@pytest.mark.parametrize("flag", ["hidden_states", "attention_weights", "qkv", "mlp", "logits"])
def test_states_are_kept_whatever_else_is_not(lake, llama, flag):
    """The states of the run that keeps all, bit for bit, and none where `states` is off as well."""
    query = "select * exclude (run_id) from states_of(?) order by all"
    everything = rows(lake, query, run(lake, llama))
    assert rows(lake, query, run(lake, llama, capture={flag: False})) == everything
    assert (
        len(everything) == (2 + len(CHAT) + 1 + 2) * 3 * 4
    )  # prompts, replies, references; layers; sites
    none = run(lake, llama, capture={flag: False, "states": False}, reference_states=[])
    assert rows(lake, query, none) == rows(lake, "from snapshots where run_id = ?", none) == []
    assert rows(
        lake, "select message from warnings where run_id = ? and code = 'no_states'", none
    ) == [("capture.states is off: the run has no states",)]


def test_what_reads_activations_falls_back_on_states(lake, llama):
    """Of the first and the last pass, with and without the activations of other sites."""
    query = "select * exclude (run_id) from residual_decomposition(?) where step in (0, 3)"
    expected = rows(lake, query, run(lake, llama))
    assert len(expected) == 2 * 3
    for others in (True, False):
        lean = run(lake, llama, capture={"hidden_states": False, "qkv": others, "mlp": others})
        assert rows(lake, query, lean) == expected


def test_without_states_every_token_is_kept_all_the_same(lake, llama):
    query = "select * exclude (run_id) from activations_of(?) order by all"
    without = run(lake, llama, capture={"states": False}, reference_states=[])
    assert rows(lake, query, without) == rows(lake, query, run(lake, llama)) != []
    assert check.check(lake, deep=True) == []


def test_layers_from_the_end(lake, llama):
    run_id = run(lake, llama, capture={"layers": [-1, 0]})
    for table in ("activations_of(?)", "attention_of(?)", "states_of(?)"):
        assert rows(lake, f"select distinct layer from {table} order by 1", run_id) == [(0,), (2,)]
    for table in ("layers", "sites where site = 'q'"):
        assert rows(lake, f"select layer from {table} order by 1") == [(0,), (2,)]
    asked = rows(lake, "select scenario_json from runs")[0][0]
    assert json.loads(asked)["capture"]["layers"] == [-1, 0]


@pytest.mark.parametrize(("layers", "expected"), [
    ([3], "there is no layer 3; the model has 0 to 2, or from the end -1 to -3$"),
    ([0, -4], "there is no layer -4; the model has 0 to 2, or from the end -1 to -3$"),
    ([1, -2], "names layer 1 twice, as 1 and as -2"),
    ([2, 0, 2], "names layer 2 twice, as 2 and as 2"),
])  # fmt: skip
def test_layers_that_are_not_there_or_twice(lake, llama, layers, expected):
    with pytest.raises(AlabError, match=f"^capture.layers:? {expected}") as caught:
        run(lake, llama, capture={"layers": layers})
    assert caught.value.exit_code == 2
    assert not lake.root.exists()
