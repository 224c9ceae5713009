"""Pass@k, G-Pass@k and pass^k beside each other, against exact fractions; the mean and the worst group."""

from fractions import Fraction
from math import ceil, comb

import numpy as np
import pandas as pd
import pytest

from quagmire_utils.evaluation.pass_at_k import g_pass_at_k, group_reliability, maj_at_k, pass_at_k, pass_hat_k


def exact(n: int, c: int, k: int, least: int) -> Fraction:
    """The chance of at least `least` right ones among k of n answers, of which c are right."""
    return Fraction(sum(comb(c, j) * comb(n - c, k - j) for j in range(least, k + 1)), comb(n, k))


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_every_measure_equals_the_exact_fraction(n):
    ks = sorted({1, min(2, n), min(10, n), n})
    correct = np.arange(n + 1)
    hat, most = pass_hat_k(n, correct, ks), {t: g_pass_at_k(n, correct, ks, t) for t in (0.5, 0.7, 1.0)}
    for column, k in enumerate(ks):
        for c in correct.tolist():
            assert hat[c, column] == pytest.approx(float(exact(n, c, k, k)), abs=1e-12)
            for threshold, values in most.items():
                least = ceil(Fraction(str(threshold)) * k)
                assert values[c, column] == pytest.approx(float(exact(n, c, k, least)), abs=1e-12)
        np.testing.assert_allclose(g_pass_at_k(n, correct, k, 1 / k), pass_at_k(n, correct, k), atol=1e-12)
    np.testing.assert_allclose(most[1.0], hat, atol=1e-12)


def test_the_mean_problem_and_the_worst_group():
    rng = np.random.default_rng(0)
    counts = pd.DataFrame({"benchmark": "b", "problem": range(90), "n": 8, "kind": np.repeat(["x", "y", "z"], 30)})
    counts["correct"] = rng.binomial(8, np.repeat([0.9, 0.5, 0.7], 30))
    table = group_reliability(counts, [1, 4], 0.75, group="kind").set_index(["group", "measure", "k"])
    for measure, scores in (("Pass@k", pass_at_k), ("pass^k", pass_hat_k)):
        each = scores(counts["n"], counts["correct"], 4)
        assert table.loc[("all problems", measure, 4), "value"] == pytest.approx(each.mean())
        worst, y = table.loc[("worst group", measure, 4)], table.loc[("y", measure, 4)]
        assert worst["value"] == y["value"] == pytest.approx(each[30:60].mean())
        assert worst["low"] < y["low"] < y["value"] < y["high"] < worst["high"]
    votes = counts.loc[counts.index.repeat(8), ["benchmark", "problem"]]
    right = np.tile(np.arange(8), 90) < counts["correct"].repeat(8)
    samples = votes.assign(verdict=np.where(right, "correct", "wrong"), extracted=np.where(right, "1", "2"))
    voted = group_reliability(counts, [4], group="kind", samples=samples).set_index(["group", "measure"])["value"]
    each = np.array([maj_at_k(c, [8 - c] if c < 8 else [], 0, 4) for c in counts["correct"]])
    assert voted["all problems", "maj@k"] == pytest.approx(each.mean())
    assert voted["worst group", "maj@k"] == voted["y", "maj@k"] == pytest.approx(each[30:60].mean())
    ordered = [table.loc[("x", measure, 4), "value"] for measure in ("pass^k", "G-Pass@k at 0.75", "Pass@k")]
    assert ordered == sorted(ordered)
    assert table.loc[("x", "pass^k", 1), "value"] == pytest.approx(table.loc[("x", "Pass@k", 1), "value"])
