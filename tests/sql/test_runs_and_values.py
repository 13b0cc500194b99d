"""Analyses of several runs at once, and of values that are no numbers."""

import numpy as np
import pytest
from reference import jaccard, same, top

from warehouse.catalog import catalog


@pytest.mark.parametrize("call", [
    "intra_run($x)", "intra_run_summary($x)", "snapshot_reference($x)", "snapshot_cosine($x, centered := true)",
    "role_average($x)", "reference_summary($x)", "discriminative_layers($x)", "damping($x)", "memory_fade($x)",
    "reference_shift($x)", "residual_decomposition($x)", "cross_layer_cosine($x, 0, 'hidden_in')",
    "neuron_trajectory($x, 0, 'mlp_act', 0)", "attention_entropy($x)", "token_similarity($x, 0, 'hidden_in', 0)",
    "direction($x, 'joy', 'fear')", "token_projection($x, 'joy', 'fear', 0, 'hidden_in')", "convergence($x)",
    "effective_depth($x)", "states_of($x)", "snapshots_of($x)", "run_warnings($x)",
])  # fmt: skip
def test_a_list_of_runs_gives_the_rows_of_each(lab, call):
    """Runs that differ in everything: with and without activations, of other widths, one that does not exist."""
    names = ("$one", "$bare", "$shallow", "$no_sites")
    each = [row for name in names for row in lab.rows(f"FROM {call.replace('$x', name)}")]
    several = lab.rows("FROM " + call.replace("$x", f"[{', '.join(names)}, 'no such run', $one]"))
    assert lab.rows("FROM " + call.replace("$x", "[]")) == []
    assert len(each) > 0
    for one, other in zip(sorted(each, key=identity), sorted(several, key=identity), strict=True):
        assert identity(one) == identity(other)
        for name in one:
            same(other[name], one[name]) if isinstance(one[name], float | list) else None


def identity(row: dict) -> list:
    """What a row is about: everything that was not computed."""
    return [str(value) for value in row.values() if not isinstance(value, float | list)]


@pytest.mark.parametrize("broken", [np.nan, np.inf, 3e38])
def test_values_that_are_no_numbers_stay_where_they_are(two_runs, broken):
    """One dimension of one vector: it is among the largest, and no other vector's scores change."""
    lake, alpha, _ = two_runs
    with catalog.connect(lake) as db:
        before = db.execute("FROM intra_run(?)", [alpha]).fetchall()
        db.execute(
            """
            CREATE TEMP TABLE broken AS
            SELECT * REPLACE (CASE WHEN state = 'final' AND site = 'hidden_in' AND layer = 1
                                   THEN vector[1:2] || [$x::FLOAT] || vector[4:] ELSE vector END AS vector)
            FROM states_of($run)
            """,
            {"run": alpha, "x": broken},
        )
        db.execute("CREATE TEMP MACRO states_of(run_id) AS TABLE FROM broken")
        after = db.execute("FROM intra_run(?)", [alpha]).fetchall()
        where = "site = 'hidden_in' AND layer = 1 AND state IN ('initial', 'final') ORDER BY state"
        vectors = db.execute(f"SELECT vector FROM broken WHERE {where}").fetchall()
        final, initial = (np.nan_to_num(row[0], nan=3.4e38, posinf=3.4e38) for row in vectors)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert [row[2:4] for row in changed] == [("hidden_in", 1)]
    assert top(final, 1) == [2]
    same(changed[0][6], jaccard(final, initial))
    assert np.isfinite(changed[0][5]) == np.isfinite(broken)


@pytest.mark.parametrize("view", ["activations", "attention", "outputs", "states", "logit_lens"])
def test_a_macro_may_have_parameters_named_as_columns(lab, view):
    """DuckDB 2.0.1 looks for an outer macro's parameters in the views it reads: their columns name their table."""
    # quoted, since DuckDB 1.4 and 1.5 take `position` for a word of their own
    names = [f'"{row["column_name"]}"' for row in lab.rows(f"DESCRIBE {view}")]
    lab.db.execute(
        f"CREATE TEMP MACRO mine_{view}({', '.join(names)}) AS TABLE SELECT count(*) AS n FROM {view} AS x"
    )
    arguments = ", ".join("NULL" for _ in names)
    assert lab.rows(f"FROM mine_{view}({arguments})") == lab.rows(
        f"SELECT count(*) AS n FROM {view}"
    )
