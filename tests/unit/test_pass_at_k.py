"""Pass@k against exact fractions, enumeration and the standard errors of plain loops."""

import math
from fractions import Fraction
from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quagmire_utils.evaluation.pass_at_k import benchmark_average, benchmark_pass_at_k, mean_pass_at_k, pass_at_k


def exact(n: int, c: int, k: int) -> Fraction:
    return 1 - Fraction(comb(n - c, k), comb(n, k))


@st.composite
def counts(draw, largest: int = 1024):
    n = draw(st.integers(1, largest))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 255, 256, 1000, 1024])
def test_every_count_equals_the_exact_fraction(n):
    spread = np.linspace(1, n, 13).astype(int).tolist()
    ks = sorted({1, min(2, n), min(3, n), max(1, n - 1), n, *spread})
    values = pass_at_k(n, np.arange(n + 1), ks)
    for column, k in enumerate(ks):
        every = comb(n, k)
        for c in range(n + 1):
            truth = Fraction(every - comb(n - c, k), every)
            difference = abs(Fraction(float(values[c, column])) - truth)
            assert difference <= Fraction(1, 10**12) * truth, (n, c, k)  # relative, so tight near 0 as well


@settings(deadline=None)  # a busy machine is no error
@given(counts())
def test_properties_of_one_problem(case):
    n, c, _ = case
    values = pass_at_k(n, c, np.arange(1, n + 1))
    assert values[0] == c / n
    assert ((values >= 0) & (values <= 1)).all()
    assert (np.diff(values) >= 0).all()
    assert (values[max(n - c, 0) :] == 1).all()  # fewer than k wrong answers: k > n - c
    assert (values == 0).all() == (c == 0)


@settings(deadline=None)
@given(st.lists(counts(60), min_size=1, max_size=30), st.lists(st.integers(1, 70), min_size=1, max_size=6))
def test_ragged_counts_in_any_order(cases, ks):
    n, c = [case[0] for case in cases], [case[1] for case in cases]
    values = pass_at_k(n, c, ks)
    truth = [[float(exact(*case[:2], k)) if k <= case[0] else math.nan for k in ks] for case in cases]
    np.testing.assert_allclose(values, truth, rtol=1e-12)
    # NaN where any n < k, like numpy's mean
    np.testing.assert_allclose(mean_pass_at_k(n, c, ks), values.mean(axis=0), rtol=1e-13, atol=1e-15)


def test_shapes_follow_the_arguments():
    assert pass_at_k([4, 4, 4], [0, 2, 4], 2) == pytest.approx([0, 5 / 6, 1])
    assert pass_at_k([4, 4, 4], [0, 2, 4], [2]).shape == (3, 1)
    assert pass_at_k(4, [0, 2, 4], [1, 2]).shape == (3, 2)
    assert np.ndim(pass_at_k(4, 2, 2)) == np.ndim(mean_pass_at_k([4, 6], [1, 3], 2)) == 0
    assert pass_at_k([], [], [1, 2]).shape == (0, 2)
    assert np.isnan(pass_at_k([0], [0], 1)).all()
    assert mean_pass_at_k([4, 6], [1, 3]).shape == (4,)
    assert mean_pass_at_k([2, 2], [1, 1], [2, 1, 2]) == pytest.approx([1, 0.5, 1])
    # whole floats, nullable and small integers are counts
    np.testing.assert_array_equal(pass_at_k(pd.Series([4, 4], dtype="Int64"), pd.Series([1.0, 2.0]), 1), [0.25, 0.5])
    np.testing.assert_array_equal(pass_at_k(np.array([4], np.uint8), np.array([3], np.uint8), 1), [0.75])


def test_bad_counts_are_refused(refused):
    for arguments, parameter, allowed in (
        (([2], [3], 1), "num_correct", "at most num_samples"),
        (([-1], [-1], 1), "num_samples", "at least 0"),
        (([2], [-1], 1), "num_correct", "at least 0"),
        (([2], [0.5], 1), "num_correct", "integers"),
        (([np.nan], [0], 1), "num_samples", "integers"),
        ((pd.Series([2, None], dtype="Int64"), [0, 0], 1), "num_samples", "integers"),
        (([2], [1], 0), "k", "at least 1"),
        (([2], [1], 1.5), "k", "integers"),
        (([2, 2, 2], [1, 1], 1), "num_correct", "of the shape"),
        (([10**12], [1], 1), "num_samples", "at most 16777216"),
    ):
        for function in (pass_at_k, mean_pass_at_k):
            with refused(parameter) as error:
                function(*arguments)
            assert error.value.allowed.startswith(allowed)
        with refused("num_samples"):
            mean_pass_at_k([], [])


@pytest.fixture
def frame():
    random = np.random.default_rng(3)
    sizes = {"easy": 40, "hard": 7, "tiny": 3}
    rows = [
        {"benchmark": name, "problem": f"{name}/{index}", "n": n, "correct": random.integers(0, n + 1)}
        for name, size in sizes.items()
        for index, n in enumerate(random.integers(8, 65, size))
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_benchmark_average_weighs_benchmarks_alike(frame):
    ks = [1, 4, 8]
    average = benchmark_average(frame, ks).set_index("k")
    assert average.columns.tolist() == ["pass_at_k", "standard_error", "benchmarks", "problems"]
    for k in ks:
        values = [
            [float(exact(row.n, row.correct, k)) for row in rows.itertuples()] for _, rows in frame.groupby("benchmark")
        ]
        means, errors = [np.mean(v) for v in values], [np.std(v, ddof=1) / np.sqrt(len(v)) for v in values]
        assert average.loc[k, "pass_at_k"] == pytest.approx(np.mean(means), rel=1e-12)
        assert average.loc[k, "standard_error"] == pytest.approx(np.sqrt(np.sum(np.square(errors))) / 3, rel=1e-10)
        assert average.loc[k, ["benchmarks", "problems"]].tolist() == [3, 50]
    each = benchmark_pass_at_k(frame, ks)
    assert each.groupby("k")["pass_at_k"].mean().tolist() == pytest.approx(average["pass_at_k"].tolist())
    assert each.drop_duplicates("benchmark")["problems"].sum() == 50


def test_what_cannot_be_known_is_nan(frame):
    assert benchmark_average(frame, [64])[["pass_at_k", "standard_error"]].isna().all(axis=None)
    one = pd.DataFrame({"benchmark": ["a"], "problem": [0], "n": [4], "correct": [1]})
    assert benchmark_average(one, [1])["pass_at_k"].tolist() == [0.25]
    assert np.isnan(benchmark_average(one, [1])["standard_error"]).all()
    size = np.arange(1, 48)
    tenths = pd.DataFrame({"benchmark": "a", "problem": size, "n": size * 10, "correct": size * 9})
    assert benchmark_average(tenths, [1])["standard_error"].tolist() == [0], "not the square root of a rounding error"


def test_bad_frames_are_refused(frame, refused):
    for change, ks, parameter in (
        (lambda frame: frame.drop(columns="n"), [1], "counts"),
        (lambda frame: pd.concat([frame, frame.head(1)]), [1], "counts"),
        (lambda frame: frame.head(0), [1], "counts"),
        (lambda frame: frame, [], "ks"),
    ):
        with refused(parameter):
            benchmark_average(change(frame), ks)
