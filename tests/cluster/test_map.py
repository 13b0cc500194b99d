"""`alab map`: a query for each of many runs, with the values and the errors of `alab sql`."""

import json

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from warehouse.cli.commands import main

TYPED = """
    SELECT run_id, count(*) AS n, sum(n_rows) AS huge, sum(n_rows) / 3 AS part, max(n_rows) IS NULL AS unknown,
        INTERVAL 3 DAYS AS apart, map {'a': 1} AS named, [1.5, NULL] AS list, {'x': 2} AS struct, 1.25::DECIMAL(5, 2) AS dec,
        9007199254740993 AS wide, TIMESTAMP '2026-01-02 03:04:05' AS at, NULL AS nothing, 'ü"' AS text, 'nan'::FLOAT AS nan
    FROM files
    WHERE run_id = $run
    GROUP BY run_id
"""


def alab(lake, *arguments: str):
    done = CliRunner().invoke(main, ["-w", str(lake.warehouse), *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def of_each(runs: tuple[str, ...]) -> str:
    """The same, of one query over all of them."""
    return TYPED.replace("= $run", f"IN {runs}") + " ORDER BY run_id DESC"


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "md", "table"])
def test_values_are_those_of_sql(two_runs, form):
    lake, *runs = two_runs
    mapped = alab(lake, "map", TYPED, "--format", form)
    asked = alab(lake, "sql", of_each(tuple(runs)), "--format", form)
    assert asked.exit_code == mapped.exit_code == 0, asked.output
    assert sorted(mapped.stdout) == sorted(asked.stdout) and len(asked.stdout) > 200
    if form == "json":
        by_run = lambda out: sorted(json.loads(out), key=lambda row: row["run_id"])  # noqa: E731
        assert by_run(mapped.stdout) == by_run(asked.stdout)


def test_rows_get_their_run(two_runs, tmp_path):
    lake, *runs = two_runs
    path = tmp_path / "rows.parquet"
    done = alab(lake, "map", "SELECT 1 AS a WHERE $run LIKE 'alpha%'", "-o", str(path))
    assert done.exit_code == 0 and pq.read_table(path).to_pylist() == [{"run_id": runs[0], "a": 1}]
    done = alab(lake, "map", "SELECT $run AS RUN_ID", "--runs", "beta*", "--format", "jsonl")
    assert json.loads(done.stdout) == {"RUN_ID": runs[1]}
    assert alab(lake, "map", "SELECT 1").exit_code == 2


def test_columns_of_runs_may_differ(two_runs):
    lake, *runs = two_runs
    sql = "SELECT * FROM (SELECT CASE WHEN $run LIKE 'alpha%' THEN 7 END AS a)"
    rows = json.loads(alab(lake, "map", sql, "--format", "json").stdout)
    assert {row["run_id"]: row["a"] for row in rows} == {runs[0]: 7, runs[1]: None}


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("select $run as", "syntax error"),
        ("from intra_runs($run)", "Did you mean intra_run"),
        ("select no_such_column from steps where run_id = $run", "no_such_column"),
        ("select error('boom' || $run)", "boom"),
        ("select cosine([1.0], [1.0, 2.0]), $run", "alab sql --describe"),
    ],
)
def test_what_is_wrong_with_a_query_is_told_as_of_sql(two_runs, sql, said):
    lake, *runs = two_runs
    done = alab(lake, "map", sql)
    assert done.exit_code == 1 and said in done.stderr and "alab check" not in done.stderr
    assert any(f"of the run {run}: " in done.stderr for run in runs)
