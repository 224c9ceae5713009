"""Intervals, majority votes and comparisons: against populations of known truth, exact enumeration, plain formulas."""

import itertools
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from quagmire_utils.evaluation.measured import evaluation_table
from quagmire_utils.evaluation.pass_at_k import (
    MACRO,
    benchmark_average,
    benchmark_maj_at_k,
    benchmark_pass_at_k,
    bootstrap_intervals,
    compare,
    maj_at_k,
    pass_at_k,
)


def frame(correct, n, benchmark="b"):
    return pd.DataFrame({"benchmark": benchmark, "problem": np.arange(len(correct)), "n": n, "correct": correct})


POPULATIONS = {  # chance of a right answer, by problem; n, problems, ks
    "spread": (lambda rng, m: rng.beta(0.3, 0.6, m), 16, 30, [1, 4, 16]),
    "hard, few problems": (lambda rng, m: rng.beta(0.1, 2, m), 64, 30, [8, 64]),
    "hard": (lambda rng, m: rng.beta(0.1, 2, m), 64, 200, [1, 8, 64]),
    "alike, so that all is sampling noise": (lambda rng, m: rng.beta(20, 20, m), 4, 60, [1, 2]),
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_an_interval_of_95_per_cent_covers_the_truth_as_often_as_it_says(name):
    """New problems and new answers each time; the truth is the population's. 200 runs know a coverage to 1.5 points."""
    draw, n, m, ks = POPULATIONS[name]
    rng = np.random.default_rng(7)
    truth = (1 - (1 - draw(rng, 400_000)[:, None]) ** np.asarray(ks)).mean(axis=0)
    truth = np.tile(truth, 3)  # of two benchmarks and their macro average
    covered = np.zeros(len(truth))
    for run in range(200):
        counts = pd.concat([frame(rng.binomial(n, draw(rng, m)), n, benchmark) for benchmark in "bc"])
        table = bootstrap_intervals(counts, ks, replicates=400, seed=run)
        covered += (table["low"].to_numpy() <= truth) & (truth <= table["high"].to_numpy())
    assert (covered / 200 >= 0.91).all(), covered / 200
    assert (covered / 200 <= 0.995).all(), "needlessly wide"


def test_redrawing_answers_on_top_of_problems_is_not_counted_twice():
    """Equally hard problems: all spread is sampling, and the naive two-level bootstrap is sqrt(2) too wide."""
    rng = np.random.default_rng(1)
    widths, errors = [], []
    for run in range(60):
        correct = rng.binomial(8, 0.5, 200)
        row = bootstrap_intervals(frame(correct, 8), [1], replicates=500, seed=run).iloc[0]
        widths.append(row["high"] - row["low"])
        errors.append(row["sampling_error"])
    truth = np.sqrt(0.25 / 8 / 200)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * truth, rel=0.1)  # twice counted: 41 % wider
    assert np.mean(errors) == pytest.approx(truth, rel=0.05)


def test_the_interval_lies_around_the_unbiased_score_at_the_largest_k():
    """Redrawing with replacement sees 1 of 4 correct as Pass@4 = 0.684; the interval must not slide down with it."""
    correct = np.repeat([0, 1], [150, 150])
    row = bootstrap_intervals(frame(correct, 4), [4]).iloc[0]
    assert row["pass_at_k"] == 0.5
    assert (row["low"] + row["high"]) / 2 == pytest.approx(0.5, abs=0.01)


def test_scores_and_errors_are_those_of_the_plain_formulas():
    rng = np.random.default_rng(3)
    n = rng.integers(8, 65, 90)
    counts = frame(rng.binomial(n, rng.uniform(0.05, 0.95, 90)), n)
    counts["benchmark"] = np.repeat(["a", "b", "c"], [50, 30, 10])
    ks = [1, 3, 8]
    table = bootstrap_intervals(counts, ks)
    assert table["benchmark"].unique().tolist() == ["a", "b", "c", MACRO]
    own, average = table[table["benchmark"] != MACRO], table[table["benchmark"] == MACRO]
    for mine, plain in ((own, benchmark_pass_at_k(counts, ks)), (average, benchmark_average(counts, ks))):
        np.testing.assert_allclose(mine["pass_at_k"], plain["pass_at_k"], rtol=1e-12)
        np.testing.assert_allclose(mine["standard_error"], plain["standard_error"], rtol=1e-9)
    assert average["problems"].tolist() == [90] * 3
    assert (table["low"] < table["pass_at_k"]).all()
    assert (table["pass_at_k"] < table["high"]).all()


def test_every_k_and_nothing_beyond_the_smallest_n():
    counts = frame([1, 2, 3], [4, 6, 9])
    table = bootstrap_intervals(counts)
    assert table.loc[table["benchmark"] == "b", "k"].tolist() == [1, 2, 3, 4]
    beyond = bootstrap_intervals(counts, [4, 5]).iloc[1]
    assert beyond[["pass_at_k", "low", "high", "standard_error", "sampling_error"]].isna().all()
    one = bootstrap_intervals(frame([2], [4]), [1, 4]).iloc[:2]
    assert one["pass_at_k"].tolist() == [0.5, 1.0]
    assert one[["low", "high", "standard_error"]].isna().all(axis=None)
    once = bootstrap_intervals(frame([0, 1, 1, 0], 1), [1])  # one answer says nothing of other answers
    assert once["sampling_error"].isna().all()
    assert (once["standard_error"] > 0).all()


def test_an_interval_does_not_open_where_all_problems_are_as_good_as_solved():
    """Pass@k rounds to 1, redrawn answers do not: the interval must not follow a variance that no share near 1 has."""
    correct = np.random.default_rng(0).integers(10, 60, 40)
    rows = bootstrap_intervals(frame(correct, 64)).iloc[:64]
    certain = stats.t.ppf(0.975, 39) ** 2
    solved = rows[rows["pass_at_k"] > 0.9999]
    assert len(solved) > 20
    assert (solved["low"] >= 39 / (39 + certain) - 0.005).all()
    two = pd.concat([frame(correct, 64), frame(correct[:20], 64, "c")])
    macro = bootstrap_intervals(two, [46]).iloc[-1]
    assert macro["low"] > 0.9


@pytest.mark.parametrize(
    ("mean", "alike", "n", "m", "k"),
    [(0.01, 0.4, 64, 40, 1), (0.99, 0.4, 64, 40, 2), (0.04, 0.8, 64, 20, 1), (0.003, 0.1, 64, 40, 1)],
)
def test_where_a_few_answers_of_thousands_tell_the_truth_is_covered_too(mean, alike, n, m, k):
    """Most problems never solved (or always), the mean hangs on few; alike: correlation of answers to one problem."""
    rng = np.random.default_rng(11)
    a, b = mean * (1 / alike - 1), (1 - mean) * (1 / alike - 1)
    truth = 1 - np.exp(special.betaln(a, b + k) - special.betaln(a, b))
    held = []
    for run in range(150):
        counts = frame(rng.binomial(n, rng.beta(a, b, m)), n)
        row = bootstrap_intervals(counts, [k], replicates=200, seed=run).iloc[0]
        held.append(row["low"] <= truth <= row["high"])
    assert np.mean(held) >= 0.93  # 0.74 to 0.82, where a variance of a few answers was used as it was


@pytest.mark.parametrize("share", [0, 1])
def test_none_or_all_of_n_does_not_look_certain(share):
    row = bootstrap_intervals(frame(np.full(30, share * 4), 4), [1]).iloc[0]
    t2 = stats.t.ppf(0.975, 29) ** 2
    far = row["high"] if share == 0 else 1 - row["low"]
    assert far == pytest.approx(t2 / (30 + t2), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=20), st.integers(0, 3))
def test_intervals_hold_the_score_whatever_the_counts(cases, seed):
    counts = frame([min(c, n) for n, c in cases], [n for n, _ in cases])
    table = bootstrap_intervals(counts, replicates=100, seed=seed)
    assert table.equals(bootstrap_intervals(counts, replicates=100, seed=seed))
    known = table.dropna(subset=["low", "high", "standard_error"])
    assert len(known) == (0 if len(cases) == 1 else len(table))
    assert ((known["low"] >= 0) & (known["low"] <= known["pass_at_k"] + 1e-12)).all()
    assert ((known["pass_at_k"] <= known["high"] + 1e-12) & (known["high"] <= 1)).all()
    drawn = known[known["sampling_error"].notna()]  # it is unknown where a problem has one answer
    assert (drawn["sampling_error"] <= drawn["standard_error"] + 1e-12).all()


def test_bad_parameters_are_refused(refused):
    for parameter, call in (
        ("k", lambda: bootstrap_intervals(frame([1, 2], 4), [0])),
        ("replicates", lambda: bootstrap_intervals(frame([1, 2], 4), replicates=10)),
        ("counts", lambda: evaluation_table(frame([1], 2), [1])),
        ("num_correct, wrong and abstained", lambda: maj_at_k(1, [-1], 0, 1)),
        ("samples", lambda: benchmark_maj_at_k(pd.DataFrame({"benchmark": "b", "problem": [1]}), [1])),
        ("counts_b", lambda: compare(frame([1, 2], 4), frame([1], 4))),
        ("counts_b", lambda: compare(frame([1], 4), frame([1], 4, "other"))),
    ):
        with refused(parameter):
            call()


def vote(correct, wrong, abstained, k):
    answers = ["right"] * correct + [i for i, times in enumerate(wrong) for _ in range(times)] + [None] * abstained
    total, draws = Fraction(0), 0
    for draw in itertools.combinations(answers, k):
        draws += 1
        votes = {answer: draw.count(answer) for answer in draw if answer is not None}
        first = [answer for answer, count in votes.items() if count == max(votes.values())]
        total += Fraction("right" in first, max(len(first), 1))
    return float(total / draws)


@pytest.mark.parametrize(
    ("correct", "wrong", "abstained"),
    [(3, [2, 2, 1], 2), (1, [1] * 6, 0), (4, [3, 3], 1), (0, [2], 2), (2, [], 3), (2, [5, 1], 2), (3, [3] * 3, 0)],
)
def test_the_majority_of_every_draw(correct, wrong, abstained):
    n = correct + sum(wrong) + abstained
    values = maj_at_k(correct, wrong, abstained, np.arange(1, n + 1))
    assert values == pytest.approx([vote(correct, wrong, abstained, k) for k in range(1, n + 1)], abs=1e-12)
    assert np.isnan(maj_at_k(correct, wrong, abstained, n + 1))


def test_a_majority_of_more_than_a_thousand_answers_is_exact():
    """One rival: the votes for the right answer are hypergeometric, and a tie counts one half."""
    for correct, wrong, k in ((600, 424, 64), (600, 424, 63), (1500, 1548, 999), (20_000, 19_000, 2)):
        votes = stats.hypergeom(correct + wrong, correct, k)
        tie = 0 if k % 2 else votes.pmf(k // 2) / 2
        assert maj_at_k(correct, [wrong], 0, k) == pytest.approx(votes.sf(k // 2) + tie, abs=1e-12)
    assert maj_at_k(600, [1] * 424, 0, [64, 1024, 1025]) == pytest.approx([1, 1, np.nan], abs=1e-12, nan_ok=True)


def test_votes_are_read_from_verdicts_and_extracted_answers():
    rows = [
        ("p", "correct", "1/2"), ("p", "correct", "0.5"), ("p", "wrong", "3"), ("p", "wrong", " 3 "),
        ("p", "timeout", "x^x"), ("p", "timeout", ""), ("p", "no_answer", ""),
        ("q", "wrong", "1"), ("q", "wrong", "2"), ("q", "correct", "4"), ("q", "error", None), ("q", None, None),
    ]  # fmt: skip
    samples = pd.DataFrame(rows, columns=["problem", "verdict", "extracted"]).assign(benchmark="b")
    table = benchmark_maj_at_k(samples, [1, 4, 5])
    own = table[table["benchmark"] == "b"].set_index("k")
    for k in (1, 4):
        expected = [vote(2, [2, 1], 2, k), vote(1, [1, 1], 1, k)]
        assert own.loc[k, "maj_at_k"] == pytest.approx(np.mean(expected), abs=1e-12)
        assert own.loc[k, "standard_error"] == pytest.approx(np.std(expected, ddof=1) / 2**0.5, abs=1e-12)
        assert own.loc[k, "low"] <= own.loc[k, "maj_at_k"] <= own.loc[k, "high"]
    assert np.isnan(own.loc[5, "maj_at_k"])  # q has four graded answers
    assert table[table["benchmark"] == MACRO]["maj_at_k"].tolist()[:2] == own["maj_at_k"].tolist()[:2]


def two_models(rng, m, n, shift):
    """Counts of two models whose chances differ from problem to problem, by `shift` on the average."""
    ease = rng.normal(-0.5, 1.5, m)
    chances = [stats.norm.cdf(ease + rng.normal(0, 0.4, m) + move) for move in (shift, 0)]
    return [frame(rng.binomial(n, p), n) for p in chances]


def test_interval_and_p_value_are_those_of_the_paired_t_test_and_agree():
    rng = np.random.default_rng(7)
    for _ in range(30):
        a, b = two_models(rng, 25, 8, 0.2)
        row = compare(a, b.sample(frac=1, random_state=1), [4]).iloc[0]
        d = pass_at_k(a["n"], a["correct"], 4), pass_at_k(b["n"], b["correct"], 4)
        test = stats.ttest_rel(*d)
        assert row["p_value"] == pytest.approx(test.pvalue, rel=1e-9)
        assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval()), rel=1e-9)
        assert (row["p_value"] < 0.05) == (row["low"] > 0 or row["high"] < 0)
        assert row["better"] == (d[0] > d[1]).sum()
        assert row["worse"] == (d[0] < d[1]).sum()


def test_the_macro_average_is_welchs_test_of_the_benchmarks_and_swapping_turns_the_sign():
    rng = np.random.default_rng(8)
    pairs = {name: two_models(rng, m, 8, 0.3) for name, m in (("x", 60), ("y", 20))}
    a, b = (pd.concat([pair[i].assign(benchmark=name) for name, pair in pairs.items()]) for i in (0, 1))
    table = compare(a, b, [1, 4])
    assert table["benchmark"].unique().tolist() == ["x", "y", MACRO]
    for row in table[table["benchmark"] == MACRO].itertuples():
        x, y = (np.subtract(*(pass_at_k(one["n"], one["correct"], row.k) for one in pair)) for pair in pairs.values())
        test = stats.ttest_ind(x, -y, equal_var=False)  # of the sum of two independent means
        low, high = np.array(test.confidence_interval()) / 2
        assert row.difference == pytest.approx((x.mean() + y.mean()) / 2)
        assert (row.low, row.high, row.p_value) == pytest.approx((low, high, test.pvalue))
        assert row.problems == 80
    back = compare(b, a, [1, 4])
    np.testing.assert_allclose(back["difference"], -table["difference"])
    np.testing.assert_allclose(back["p_value"], table["p_value"])
    np.testing.assert_allclose(back["low"], -table["high"])


def test_no_difference_anywhere_is_no_certainty():
    same = frame([0] * 30, 8)
    row = compare(same, same, [1]).iloc[0]
    assert row["p_value"] == 1
    z2 = stats.norm.ppf(0.975) ** 2
    assert (row["low"], row["high"]) == pytest.approx((-z2 / (30 + z2), z2 / (30 + z2)))
    shifted = compare(frame([4] * 30, 8), same, [1]).iloc[0]
    assert shifted["difference"] == 0.5
    assert shifted["p_value"] == pytest.approx(2.0 ** (1 - shifted["problems"]))  # only all signs flipped come so far
    assert shifted["low"] > 0
    one = compare(frame([1], 2), frame([0], 2), [1, 3]).iloc[:2]
    assert one["difference"].iloc[0] == 0.5
    assert one["p_value"].isna().all()
    assert one.iloc[1][["difference", "low", "high"]].isna().all()


def test_without_a_spread_the_test_is_that_of_the_signs():
    """20 of 20 against 0 of 20 is no tie; constants of both signs leave a macro average undecided."""
    right, wrong = (frame([c] * 20, 1, "a") for c in (1, 0))
    assert compare(right, wrong, [1])["p_value"].tolist() == pytest.approx([2**-19] * 2)
    first, second = ([a, b.assign(benchmark="b")] for a, b in ((right, wrong), (wrong, right)))
    assert np.isnan(compare(pd.concat(first), pd.concat(second), [1])["p_value"].iloc[-1])
