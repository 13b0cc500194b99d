"""Sums that merge against numpy over all rows at once; with Ray and without, in any order."""

import random
from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa
import pytest
import ray
from synthetic import Shape, make_run
from synthetic_dataset import make_dataset

import warehouse
from warehouse.catalog import catalog
from warehouse.cluster import aggregates
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        "local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three datasets of different sizes, each far from the others."""
    lake = Lake(tmp_path_factory.mktemp("sums") / "lab")
    runs = [make_dataset(lake, f"set{n}", rows=40 + 17 * n, seed=n) for n in range(3)]
    catalog.sync(lake)
    return warehouse.open(lake.warehouse), runs


def every(runs, site: str, layer: int, selector: str = "last") -> np.ndarray:
    return np.concatenate([run.matrix(site, layer, selector) for run in runs]).astype(np.float64)


@pytest.fixture(params=[None, "local"])
def where(request):
    if request.param:
        request.getfixturevalue("cluster")
    return {"ray": request.param}


@pytest.mark.parametrize(("site", "selector"), [("hidden_out", "last"), ("hidden_out", "mean"), ("q", "name"), ("mlp_down_in", "message_ends")])  # fmt: skip
def test_moments(made, where, site, selector, monkeypatch):
    monkeypatch.setattr(aggregates, "ROWS", 7)
    lab, runs = made
    got, x = lab.moments("set*", site, 1, selector, **where), every(runs, site, 1, selector)
    assert got.n == len(x)
    assert np.allclose(got.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    assert np.allclose(got.variance, x.var(0), rtol=1e-9, atol=1e-12)


def test_gram_of_two_layers(made, where, monkeypatch):
    monkeypatch.setattr(aggregates, "ROWS", 11)
    lab, runs = made
    got = lab.gram("*", "hidden_out", 0, beside=("mlp_down_in", 2), **where)
    x, y = every(runs, "hidden_out", 0), every(runs, "mlp_down_in", 2)
    x, y = x - x.mean(0), y - y.mean(0)
    for own, own_exactly in ((got.xx, x.T @ x), (got.xy, x.T @ y), (got.yy, y.T @ y)):
        assert np.allclose(own, own_exactly, rtol=1e-9, atol=1e-9)
    # by the kernels of the rows, another way to the same number
    k, l = x @ x.T, y @ y.T  # noqa: E741
    assert got.cka == pytest.approx(
        (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum()), rel=1e-9
    )


def test_a_ridge_regression_from_sums(made, where):
    """Of a label that is NULL in some rows: those are left out."""
    lab, runs = made
    got = lab.gram("*", "hidden_out", 1, beside=["layer", "run"], **where)
    y = np.array([[run.labels[name][p].as_py() for name in ("layer", "run")] for run in runs for p, _ in run.selectors["last"]], float)  # fmt: skip
    x, known = every(runs, "hidden_out", 1), ~np.isnan(y).any(1)
    assert got.n == known.sum() < len(x)
    ours = np.linalg.solve(got.xx + 0.5 * np.eye(got.width), got.xy)
    x, y = x[known], y[known]
    x, y = x - x.mean(0), y - y.mean(0)
    stacked = np.vstack([x, np.sqrt(0.5) * np.eye(x.shape[1])]), np.vstack([y, np.zeros((x.shape[1], 2))])  # fmt: skip
    assert np.allclose(ours, np.linalg.lstsq(*stacked, rcond=None)[0], rtol=1e-8, atol=1e-10)


def test_a_histogram(made, where):
    lab, runs = made
    edges = [-1.0, 0.0, 0.5, 2.0]
    got, x = lab.histogram("*", "q", 2, edges, **where), every(runs, "q", 2)
    expected = [
        (x < -1).sum(),
        *np.histogram(x, [-1, 0, 0.5, np.nextafter(2, 1)])[0],
        (x >= 2).sum(),
    ]
    assert got.counts.tolist() == expected


def test_any_order_and_grouping():
    """Of numbers whose mean is a million times their spread, where sums of squares lose everything."""
    rng = np.random.default_rng(0)
    x = 1e6 + rng.standard_normal((500, 4))
    for seed in range(5):
        cuts = np.sort(rng.choice(np.arange(1, 500), 9, replace=False))
        parts = np.split(x, cuts)
        random.Random(seed).shuffle(parts)
        m = reduce(add, (aggregates.Moments(*aggregates._around(p, squares=True)) for p in parts))
        g = reduce(add, (aggregates.Gram(*aggregates._around(p, squares=False), 2) for p in parts))
        assert np.allclose(m.variance, x.var(0), rtol=1e-9)
        assert np.allclose(g.products, 500 * np.cov(x.T, ddof=0), rtol=1e-7, atol=1e-6)


def test_what_cannot_be_summed(made, tmp_path):
    lab, _ = made
    for ask, said in (
        (lambda: lab.gram("*", "hidden_out", 1, beside=["weather"]), "no column 'weather'"),
        (lambda: lab.gram("*", "hidden_out", 1, beside=["mood"]), "mood has no numbers"),
        (lambda: lab.gram("*", "hidden_out", 1, beside=["f"]), "has all of f"),
        (lambda: lab.histogram("*", "q", 1, [1, 0]), "edges of a histogram rise"),
        (lambda: lab.histogram("*", "q", 1, [1]), "edges of a histogram rise"),
        (lambda: lab.moments("*", "k", 1), "there is no site 'k'"),
        (lambda: lab.moments("nothing*", "q", 1), "no run like 'nothing"),
        (lambda: lab.moments("latest", "q", 1, "head"), "no selector 'head'"),
    ):
        with pytest.raises(AlabError, match=said):
            ask()
    lake = Lake(tmp_path / "lab")
    make_run(lake, "narrow", Shape(width=8))
    make_run(lake, "wide", Shape(width=16))
    with pytest.raises(AlabError, match=r"vectors 8 and 16 wide|vectors 16 and 8 wide"):
        warehouse.open(lake.warehouse).moments("*", "hidden_out", 1)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    lake = Lake(tmp_path_factory.mktemp("talks") / "lab")
    for n in range(9):
        make_run(lake, f"talk{n}", Shape(), seed=n)
    catalog.sync(lake)
    return warehouse.open(lake.warehouse)


def test_nearest_tokens(talks, where, monkeypatch):
    monkeypatch.setattr("warehouse.cluster.queries.BLOCK", 2)
    vector = talks.vector("talk3", "hidden_out", 2)
    got = talks.nearest_tokens(vector, "hidden_out", 2, 12, **where)
    whole = talks.sql("FROM nearest_tokens($v::FLOAT[], 2, 'hidden_out', 12)", v=vector.tolist())
    assert got.to_pylist() == whole.to_arrow_table().to_pylist()
    some = talks.nearest_tokens(vector, "hidden_out", 2, 5, "talk7", "talk8", **where)
    assert {name[:5] for name in some["run_id"].to_pylist()} == {"talk7", "talk8"}


def test_map(talks, where, monkeypatch):
    monkeypatch.setattr("warehouse.cluster.queries.BLOCK", 4)
    got = talks.map("FROM intra_run_summary($run)", **where)
    rows = [row for run, in talks.sql("SELECT run_id FROM runs").fetchall() for row in talks.sql("FROM intra_run_summary($r)", r=run).to_arrow_table().to_pylist()]  # fmt: skip
    assert got.to_pylist() == rows
    counted = talks.map(
        "SELECT count(*) AS n FROM tokens WHERE run_id = $run", "talk[12]*", **where
    )
    assert counted.column_names == ["run_id", "n"]
    assert [name[:5] for name in counted["run_id"].to_pylist()] == ["talk2", "talk1"]


def test_map_where_types_differ_from_run_to_run(talks):
    sql = "SELECT CASE WHEN starts_with($run, 'talk1') THEN 1 END AS x, NULL AS y"
    assert pa.types.is_integer(talks.map(sql).schema.field("x").type)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT 1", r"does not say \$run"),
        ("SELECT x FROM intra_run($run)", r"of the run talk\d.*Binder"),
        ("CREATE TABLE x AS FROM intra_run($run)", "of the run talk"),
        ("SELECT $run, $other", "of the run talk"),
    ],
)
def test_a_query_that_cannot_be_asked(talks, where, sql, said):
    with pytest.raises(AlabError, match=said):
        talks.map(sql, **where)
