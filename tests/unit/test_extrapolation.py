"""Extrapolated Pass@k against exact fractions, and the coverage of its intervals on populations of known chances."""

from fractions import Fraction
from math import comb, prod

import numpy as np
import pandas as pd
import pytest

from quagmire_utils.evaluation.pass_at_k import MACRO, benchmark_extrapolation, extrapolate, mean_pass_at_k
from quagmire_utils.evaluation.pass_at_k.extrapolation import _edges, _Pairs, _power_law, rehearse


@pytest.mark.parametrize(
    ("n", "c", "k"), [(1, 0, 1), (8, 0, 128), (8, 3, 64), (32, 32, 512), (1000, 1, 3), (64, 60, 0)]
)
def test_binned_likelihoods_sum_to_the_exact_integral_over_p(n, c, k):
    binned = _Pairs(np.array([n]), np.array([c]), np.array([max(k, 1)])).fail[k][0]
    wrong = n - c + k  # integral of C(n, c) p^c (1-p)^wrong
    exact = Fraction(comb(n, c), (c + wrong + 1) * comb(c + wrong, c))
    assert binned @ np.diff(_edges()) == pytest.approx(float(exact), rel=1e-9)


def test_a_uniform_prior_for_each_problem_has_a_closed_form():
    n, counts, k = 8, [0, 1, 5, 8], 100
    failures = [Fraction(prod(range(n - c + 1, n - c + 1 + k)), prod(range(n + 2, n + 2 + k))) for c in counts]
    found = _Pairs(np.full(4, n), np.array(counts), np.array([k])).mean(np.diff(_edges()), np.array([k]))
    assert found == pytest.approx(float(1 - sum(failures) / len(counts)), rel=1e-9)


def test_the_power_law_goes_through_both_points_of_two_answers():
    first, second = mean_pass_at_k(2, [0, 0, 1, 2], [1, 2])
    slope = np.log(np.log(second) / np.log(first)) / np.log(2)
    expected = np.exp(np.log(first) * np.array([3, 32]) ** slope)
    found = _power_law(np.full(4, 2), np.array([0, 0, 1, 2]), np.array([3, 32]))
    assert found == pytest.approx(expected, rel=1e-12)


def test_up_to_n_the_value_is_the_unbiased_estimate():
    n, c = [8, 12, 9, 8], [0, 3, 9, 1]
    found = extrapolate(n, c, [1, 4, 8, 9, 128])
    np.testing.assert_array_equal(found.value[:3], mean_pass_at_k(n, c, [1, 4, 8]))
    assert (np.diff(found.value) >= 0).all()
    assert ((found.low >= 0) & (found.low <= found.value) & (found.value <= found.high) & (found.high <= 1)).all()
    narrow, turned = extrapolate(n, c, 128, confidence=0.5), extrapolate(n[::-1], c[::-1], 128)
    assert narrow.low > found.low[-1]
    assert narrow.high < found.high[-1]
    assert np.ndim(turned.value) == 0
    assert turned == pytest.approx([each[-1] for each in found])


def test_nothing_seen_and_everything_seen():
    nothing, everything = extrapolate(8, [0] * 30, 128), extrapolate(8, [8] * 30, 128)
    assert nothing.low == 0
    assert nothing.value < 0.1 < nothing.high < 0.6
    assert everything.low > 0.99
    assert everything.value == everything.high == 1


POPULATIONS = {
    "beta": lambda rng, m: rng.beta(0.3, 8, m),
    "easy and hard": lambda rng, m: np.where(rng.random(m) < 0.5, rng.beta(4, 1, m), rng.beta(0.5, 30, m)),
    "never solved": lambda rng, m: rng.beta(1, 4, m) * (rng.random(m) < 0.6),
    "normal log-odds": lambda rng, m: 1 / (1 + np.exp(rng.normal(5, 2, m))),
    "power law": lambda rng, m: rng.random(m) ** 4 * 0.3,
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_cover_known_chances(name):
    rng, ratios = np.random.default_rng(0), np.array([1, 2, 4, 8, 16])
    held = []
    for n in (8, 32):
        for _ in range(12):
            p = POPULATIONS[name](rng, 60)
            _, low, high = extrapolate(n, rng.binomial(n, p), n * ratios)
            truth = 1 - ((1 - p) ** (n * ratios)[:, None]).mean(axis=1)
            held.append((low <= truth) & (truth <= high))
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize("n", [8, 16])
def test_intervals_and_values_hold_on_the_records_of_mini(n, first_world):
    records = first_world.counts.query("stage == 'sft'")
    rng = np.random.default_rng(n)
    cells = [rows for _, rows in records.groupby(["family", "candidate"])][::10]
    found = pd.concat([rehearse(rows, n, [64, 128], 1, rng) for rows in cells])
    held = (found["low"] <= found["truth"]) & (found["truth"] <= found["high"])
    assert held.groupby(found["benchmark"] == MACRO).mean().min() >= 0.9
    errors = found[["combined", "hold"]].sub(found["truth"], axis=0).abs().mean()
    assert errors["combined"] < errors["hold"] / 2


def test_the_macro_average_averages_values_and_ends():
    counts = pd.DataFrame({"benchmark": list("aab"), "problem": list("xyz"), "n": [8, 9, 10], "correct": [0, 3, 1]})
    table = benchmark_extrapolation(counts, [64])
    each = table[table["benchmark"] != MACRO][["value", "low", "high"]]
    np.testing.assert_allclose(table.iloc[-1][["value", "low", "high"]].astype(float), each.mean(), rtol=1e-12)
    assert table["min_n"].tolist() == [8, 10, 8]
    assert table["problems"].tolist() == [2, 1, 3]
    assert each.iloc[1].tolist() == pytest.approx(extrapolate([10], [1], 64))


def test_what_is_refused(refused):
    for arguments, parameter, needed in (
        (([32, 64], [1, 2], 1000), "k", "63 answers"),
        (([32, 64], [1, 2], [1, 513]), "k", "33 answers"),
        (([1, 1], [1, 0], 2), "k", "2 answers"),
        (([8], [1], 16, 1.0), "confidence", ""),
    ):
        with refused(parameter) as error:
            extrapolate(*arguments)
        assert needed in error.value.allowed
