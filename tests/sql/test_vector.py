"""The scalar macros against numpy, identities that must hold for any vector, and bad input."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import cosine, jaccard, mae, top

from warehouse.catalog import catalog

FLOATS = st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
VECTORS = st.lists(FLOATS, min_size=1, max_size=24)
PAIRS = st.integers(1, 24).flatmap(
    lambda n: st.tuples(*[st.lists(FLOATS, min_size=n, max_size=n)] * 2)
)
quick = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def one(two_runs):
    """A function that gives the value of one SQL expression over bound vectors.

    They are bound as texts, since duckdb 1.2 and 1.3 for Python bind NULL for the NaN of a list.
    """
    with catalog.connect(two_runs[0]) as db:
        yield lambda sql, *values: db.execute(f"SELECT {sql}", [*map(str, values)]).fetchone()[0]


A = "?::FLOAT[]"


@pytest.mark.parametrize("width", [1, 7, 100, 576])
def test_metrics_agree_with_numpy(one, width):
    rng = np.random.default_rng(width)
    for scale in (1e-3, 1, 1e4):
        a, b = (rng.standard_normal((2, width)) * scale).astype("f4").tolist()
        assert one(f"cosine({A}, {A})", a, b) == pytest.approx(cosine(a, b), abs=1e-12)
        assert one(f"mae({A}, {A})", a, b) == pytest.approx(mae(a, b), rel=1e-12)
        assert one(f"euclidean({A}, {A})", a, b) == pytest.approx(math.dist(a, b), rel=1e-12)
        assert one(f"dot({A}, {A})", a, b) == pytest.approx(np.dot(a, b), rel=1e-9, abs=1e-12)
        assert one(f"norm({A})", a) == pytest.approx(np.linalg.norm(a), rel=1e-12)
        assert one(f"project({A}, {A})", a, b) == pytest.approx(
            np.dot(a, b) / np.linalg.norm(b), rel=1e-9, abs=1e-12
        )
        assert one(f"unit({A})", a) == pytest.approx((np.array(a) / np.linalg.norm(a)).tolist())
        assert one(f"vector_add({A}, {A})", a, b) == pytest.approx(np.add(a, b).tolist())
        assert one(f"vector_subtract({A}, {A})", a, b) == pytest.approx(np.subtract(a, b).tolist())
        assert one(f"vector_scale({A}, 2.5)", a) == pytest.approx((np.array(a) * 2.5).tolist())
        for fraction in (0.01, 0.1, 0.5):
            found = one(f"top_jaccard({A}, {A}, fraction := {fraction})", a, b)
            assert found == pytest.approx(jaccard(a, b, fraction))


def test_centered_cosine_agrees_with_numpy(one):
    a, b, mean = np.random.default_rng(0).standard_normal((3, 50)).astype("f4")
    found = one(f"centered_cosine({A}, {A}, {A})", a.tolist(), b.tolist(), mean.tolist())
    assert found == pytest.approx(cosine(a.astype(float) - mean, b.astype(float) - mean), abs=1e-12)


def test_mean_over_rows(two_runs):
    with catalog.connect(two_runs[0]) as db:
        rows = db.execute(
            "SELECT site, layer, vector_mean(vector), list(vector) FROM states GROUP BY ALL"
        ).fetchall()
    assert rows
    for _, _, mean, vectors in rows:
        assert mean == pytest.approx(np.mean(vectors, axis=0).tolist())


def test_top_dims_breaks_ties_by_the_first_dimension(one):
    rounded = (np.random.default_rng(1).standard_normal(400) * 3).round(0).astype("f4")
    assert one(f"top_dims({A}, 100)", rounded.tolist()) == top(rounded, 100)
    assert one(f"top_dims({A}, 3)", [0.0] * 9) == [0, 1, 2]
    assert one(f"top_dims({A}, 9)", [1.0, -2.0]) == [1, 0]


@quick
@given(PAIRS)
def test_symmetry(one, pair):
    for macro in ("cosine", "mae", "euclidean", "top_jaccard", "dot"):
        assert one(f"{macro}({A}, {A})", *pair) == one(f"{macro}({A}, {A})", *pair[::-1])


@quick
@given(VECTORS, st.floats(0.01, 100))
def test_a_vector_and_a_multiple_of_it(one, a, factor):
    expected = pytest.approx(1) if any(a) else None
    assert one(f"cosine({A}, vector_scale({A}, ?::DOUBLE))", a, a, factor) == expected
    assert one(f"cosine({A}, vector_scale({A}, ?::DOUBLE))", a, a, -factor) == (
        pytest.approx(-1) if any(a) else None
    )
    assert one(f"top_jaccard({A}, {A})", a, a) == 1
    assert one(f"mae({A}, {A})", a, a) == 0
    assert one(f"norm(vector_scale({A}, ?::DOUBLE))", a, factor) == pytest.approx(
        factor * np.linalg.norm(a)
    )


@quick
@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_dimensions_does_not_matter(one, pair, random):
    order = list(range(len(pair[0])))
    random.shuffle(order)
    moved = [[vector[i] for i in order] for vector in pair]
    for macro in ("cosine", "mae", "euclidean"):
        expected = one(f"{macro}({A}, {A})", *pair)
        assert one(f"{macro}({A}, {A})", *moved) == (
            expected and pytest.approx(expected, rel=1e-9, abs=1e-9)
        )
    if all(
        len({abs(x) for x in vector}) == len(vector) for vector in pair
    ):  # a tie is broken by the order
        assert one(f"top_jaccard({A}, {A}, fraction := 0.3)", *moved) == jaccard(*pair, 0.3)


@quick
@given(PAIRS)
def test_bounds(one, pair):
    value = one(f"cosine({A}, {A})", *pair)
    assert value is None or -1 <= value <= 1
    assert 0 <= one(f"top_jaccard({A}, {A}, fraction := 0.2)", *pair) <= 1
    assert one(f"mae({A}, {A})", *pair) >= 0


@pytest.mark.parametrize("macro", [
    "dot", "cosine", "mae", "euclidean", "top_jaccard", "vector_add", "vector_subtract", "project",
])  # fmt: skip
def test_bad_input(one, macro):
    with pytest.raises(Exception, match="different width: 3 and 2 dimensions"):
        one(f"{macro}({A}, {A})", [1, 2, 3], [1, 2])
    assert one(f"{macro}(NULL, {A})", [1, 2]) is None
    assert one(f"{macro}({A}, NULL)", [1, 2]) is None


@pytest.mark.parametrize("sql", ["norm(NULL)", "unit(NULL)", "unit([0, 0])", "vector_scale(NULL, 2)",
                                 "vector_scale([1], NULL)", "top_dims(NULL, 3)", "cosine([0, 0], [1, 2])",
                                 "project([1, 2], [0, 0])", "centered_cosine([1, 2], [3, 4], NULL)",
                                 "centered_cosine([1, 2], [3, 5], [1, 2])"])  # fmt: skip
def test_no_value(one, sql):
    assert one(sql) is None


def test_nan_stays_visible(one):
    assert math.isnan(one(f"cosine({A}, {A})", [float("nan"), 1.0], [1.0, 1.0]))
    assert math.isnan(one(f"mae({A}, {A})", [float("nan"), 1.0], [1.0, 1.0]))


def test_the_largest_dimensions_of_odd_vectors(one):
    """Zeros, infinities and NaN tie among themselves, and each tie goes to the first dimension."""
    nan, inf, largest = float("nan"), float("inf"), 3.4028234663852886e38
    for a, first in ([[0, 0, 0, 1], {3, 0}], [[0, 0, 0, 0], {0, 1}], [[1, inf, 2, nan], {1, 3}],
                     [[nan, -inf, nan, inf], {0, 1}], [[1e38, -largest, 1e-45, largest], {1, 3}],
                     [[1e-45, 0, -1e-45, 1e-45], {0, 2}]):  # fmt: skip
        assert set(one(f"top_dims({A}, 2)", a)) == first
        b = [1.0 if dim in first else 0.0 for dim in range(4)]
        assert one(f"top_jaccard({A}, {A}, fraction := 0.5)", a, b) == 1
        assert one(f"top_jaccard({A}, {A}, fraction := 0.5)", a, [1 - x for x in b]) == 0


def test_arguments_may_be_called_like_the_macros_own_names(two_runs):
    with catalog.connect(two_runs[0]) as db:
        sql = "SELECT vector_subtract(y, x), unit(x), top_dims(dim, 1) FROM (SELECT [3, 4] x, [5, 5] y, [1, 9] dim)"
        assert db.execute(sql).fetchone() == ([2, 1], [0.6, 0.8], [1])
