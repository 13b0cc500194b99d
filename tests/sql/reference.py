"""The metrics once more, in plain numpy: what the SQL is compared with."""

import numpy as np
import pytest


def cosine(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size else None


def mae(a, b):
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def top(a, k):
    """Dimensions of the k largest absolute values; the first of equals wins."""
    return np.argsort(-np.abs(np.asarray(a, float)), kind="stable")[:k].tolist()


def jaccard(a, b, fraction=0.01):
    k = max(1, int(fraction * len(a)))
    one, two = set(top(a, k)), set(top(b, k))
    return len(one & two) / len(one | two)


def cka(x, y):
    """Linear CKA of (positions, width) arrays."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def unbiased_cka(x, y):
    """CKA by the estimator of HSIC without bias (Song et al. 2012, equation 5), as it is written there."""
    k, m, n = x @ x.T, y @ y.T, len(x)
    np.fill_diagonal(k, 0), np.fill_diagonal(m, 0)

    def hsic(k, m):
        ones = np.ones(n)
        both = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + both - 2 / (n - 2) * ones @ k @ m @ ones) / (n * (n - 3))

    return float(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


def same(found, expected):
    """A number, or a list of them, to the tolerance of float32."""
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-6, abs=1e-7))
