"""Split protocols and rank correlations against plain loops with numpy.polyfit, and against scipy."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from quagmire_utils.analysis.fits import (
    bootstrap,
    fit_predict_r2,
    jackknife_standard_error,
    linear_fit,
    predict,
    r2_without_each,
    spearman,
)
from quagmire_utils.core.errors import ParameterError


def candidates(total: int, noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two predictors, the second falling with the outcome as a loss does, and the outcome."""
    random = np.random.default_rng(seed)
    outcome = random.uniform(0.2, 0.6, total)
    spread = noise * outcome.std()
    return (
        outcome + spread * random.normal(size=total),
        2 - 3 * outcome + 6 * spread * random.normal(size=total),
        outcome,
    )


def loop_r2(predictors, y, fit) -> float:
    """The paper's protocol for one split, written out."""
    held = [i for i in range(len(y)) if i not in set(fit)]
    predictions = []
    for x in predictors:
        slope, intercept = np.polyfit(x[list(fit)], y[list(fit)], 1)
        predictions.append([slope * x[i] + intercept for i in held])
    prediction, actual = np.mean(predictions, axis=0), y[held]
    return 1 - sum((actual - prediction) ** 2) / sum((actual - actual.mean()) ** 2)


@pytest.mark.parametrize(("total", "n_fit"), [(4, 2), (7, 3), (8, 4), (9, 7)])
def test_all_splits_equal_a_loop_with_polyfit(total, n_fit):
    loss, score, y = candidates(total)
    for x, predictors in ((loss, [loss]), ((loss, score), [loss, score])):
        truth = [loop_r2(predictors, y, fit) for fit in itertools.combinations(range(total), n_fit)]
        result = fit_predict_r2(x, y, n_fit, n_splits="all")
        np.testing.assert_allclose(result.r2, truth, rtol=1e-9, atol=1e-9)
        assert result.n_splits == math.comb(total, n_fit)
        assert result.mean == pytest.approx(np.mean(truth), rel=1e-9)
        assert result.std == pytest.approx(np.std(truth), rel=1e-9)
        assert result.standard_error == 0


def test_random_splits_are_a_sample_of_all_splits():
    loss, score, y = candidates(9)
    every = fit_predict_r2((loss, score), y, 4, n_splits="all")
    drawn = fit_predict_r2((loss, score), y, 4, n_splits=4000, seed=1)
    nearest = np.abs(every.r2[:, None] - drawn.r2).min(axis=0)
    assert nearest.max() < 1e-12
    counts = np.bincount(np.abs(every.r2[:, None] - drawn.r2).argmin(axis=0), minlength=126)
    assert stats.chisquare(counts).pvalue > 1e-3  # every split is as likely as any other
    assert abs(drawn.mean - every.mean) < 4 * drawn.standard_error
    assert drawn.std == pytest.approx(every.std, rel=0.2)
    assert drawn.standard_error == pytest.approx(drawn.r2.std(ddof=1) / math.sqrt(4000))


def test_defaults_are_the_papers_and_the_seed_pairs_predictors():
    loss, score, y = candidates(16)
    first, second = fit_predict_r2(loss, y, 8), fit_predict_r2(loss, y, 8)
    assert first.n_splits == 100
    np.testing.assert_array_equal(first.r2, second.r2)
    assert (fit_predict_r2(loss, y, 8, seed=1).r2 != first.r2).any()
    # A predictor and a linear map of it predict the same from the same splits.
    np.testing.assert_allclose(fit_predict_r2(3 - 2 * loss, y, 8).r2, first.r2, rtol=1e-9)
    one_column_each = pd.DataFrame({"gen_loss": loss, "pass_k": score})
    np.testing.assert_array_equal(fit_predict_r2(one_column_each, y, 8).r2, fit_predict_r2([loss, score], y, 8).r2)
    np.testing.assert_array_equal(
        fit_predict_r2(one_column_each.to_numpy(), y, 8).r2, fit_predict_r2([loss, score], y, 8).r2
    )


def test_an_exact_line_is_predicted_exactly_and_noise_is_not():
    x = np.linspace(0.1, 0.7, 12)
    assert fit_predict_r2(x, 0.2 + 0.5 * x, 6, n_splits="all").r2 == pytest.approx(1)
    random = np.random.default_rng(0)
    assert fit_predict_r2(random.normal(size=12), random.normal(size=12), 6, n_splits="all").mean < 0


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=4, max_size=7),
    st.floats(-100, 100),
    st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_ties_and_offsets_agree_with_exact_arithmetic(points, offset, scale):
    """Small whole numbers, so that R2 is a fraction; scaling and shifting both axes changes nothing."""
    x, y = (np.array(axis, dtype=float) for axis in zip(*points, strict=True))
    total, n_fit = len(x), 2
    result = fit_predict_r2(scale * (x + offset), scale * (y - offset), n_fit, n_splits="all")
    undefined = 0
    for split, fit in enumerate(itertools.combinations(range(total), n_fit)):
        held = [i for i in range(total) if i not in fit]
        i, j = fit
        slope = 0 if x[i] == x[j] else (y[i] - y[j]) / (x[i] - x[j])
        prediction = (y[i] + y[j]) / 2 + slope * (x[held] - (x[i] + x[j]) / 2)
        spread = ((y[held] - y[held].mean()) ** 2).sum()
        if spread == 0:
            undefined += 1
            assert np.isnan(result.r2[split])
        else:
            assert result.r2[split] == pytest.approx(
                1 - ((y[held] - prediction) ** 2).sum() / spread, rel=1e-6, abs=1e-6
            )
    assert result.n_undefined == undefined


def test_degenerate_splits_are_counted_and_left_out_of_the_mean():
    x = np.array([1.0, 1.0, 1.0, 2.0, 3.0])
    y = np.array([5.0, 1.0, 2.0, 2.0, 2.0])
    result = fit_predict_r2(x, y, 2, n_splits="all")
    assert result.n_splits == 10
    assert result.n_undefined == 1  # 01 leaves 2, 2, 2
    assert result.mean == pytest.approx(np.nanmean(result.r2))
    assert np.isnan(result.r2).sum() == 1
    hopeless = fit_predict_r2(x, np.ones(5), 2)
    assert hopeless.n_undefined == 100
    assert math.isnan(hopeless.mean)
    assert math.isnan(hopeless.std)
    # the same mean in another order of summation is still the same value
    rounding = np.array([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2, 0.3, 0.3])
    flat = fit_predict_r2(rounding, np.arange(6.0), 3, n_splits="all")
    assert flat.r2.min() > -20
    assert math.isnan(spearman(predict(rounding, np.arange(6.0)), np.arange(6.0)))


def test_other_measures_take_the_same_splits():
    loss, score, y = candidates(8)
    r2 = fit_predict_r2((loss, score), y, 5, n_splits="all")
    squared = fit_predict_r2((loss, score), y, 5, n_splits="all", measure="squared_correlation")
    truth = []
    for fit in itertools.combinations(range(8), 5):
        held, fit = [i for i in range(8) if i not in fit], list(fit)
        lines = [np.polyval(np.polyfit(x[fit], y[fit], 1), x[held]) for x in (loss, score)]
        truth.append(stats.pearsonr(np.mean(lines, axis=0), y[held]).statistic ** 2)
    np.testing.assert_allclose(squared.r2, truth, rtol=1e-9, atol=1e-9)
    assert (squared.r2 >= r2.r2).all(), "no line explains more than the best one"
    clipped = fit_predict_r2((loss, score), y, 5, n_splits="all", measure="clipped_r2")
    np.testing.assert_array_equal(clipped.r2, np.where(r2.r2 < 0, 0, r2.r2))
    assert (r2.r2 < 0).any()
    assert clipped.mean == pytest.approx(np.clip(r2.r2, 0, None).mean())
    # two candidates always lie on a line; a flat line says nothing about them
    assert fit_predict_r2(loss, y, 6, n_splits="all", measure="squared_correlation").r2 == pytest.approx(1)
    flat = fit_predict_r2([1, 1, 1, 1, 2.0], [1, 2, 3, 4, 5.0], 3, n_splits="all", measure="squared_correlation")
    assert flat.n_undefined == 10  # either the line is flat, or the predicted candidates have one x
    assert np.isnan(fit_predict_r2([1, 2, 3, 4.0], [1, 1, 2, 2.0], 2, "all", measure="clipped_r2").r2).sum() == 2


@pytest.mark.parametrize("n_splits", ["all", 300])
def test_r2_without_each_candidate_is_r2_of_the_others(n_splits):
    loss, score, y = candidates(8)
    y[3] = y[5] = y[6]  # without a fourth, some splits predict one outcome only
    without = r2_without_each((loss, score), y, 5, n_splits, seed=3)
    for left_out in range(8):
        rest = np.arange(8) != left_out
        truth = fit_predict_r2((loss[rest], score[rest]), y[rest], 5, "all")
        assert truth.n_undefined > 0 or left_out in (3, 5, 6)
        tolerance = 1e-9 if n_splits == "all" else 5 * truth.std / math.sqrt(300 * 3 / 8)
        assert without[left_out] == pytest.approx(truth.mean, abs=tolerance)
    assert jackknife_standard_error(without) == pytest.approx(math.sqrt(7) * np.std(without))


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_equals_scipy(ties):
    random = np.random.default_rng(5)
    for _ in range(50):
        first, second = random.normal(size=(2, 12))
        if ties:
            first, second = first.round(0), (second + first).round(0)
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    assert spearman([1, 2, 3], [10, 20, 30]) == 1
    assert spearman([1, 2, 3], [30, 20, 10]) == -1
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=16))
def test_one_predictor_ranks_by_the_sign_of_its_slope(points):
    x, y = (np.array(axis, dtype=float) for axis in zip(*points, strict=True))
    covariance = ((x - x.mean()) * (y - y.mean())).sum()
    assume(abs(covariance) > 1e-9)
    expected = math.copysign(1, covariance) * stats.spearmanr(x, y).statistic
    assert spearman(predict(x, y), y) == pytest.approx(expected, abs=1e-12)


def test_predictions_equal_loops():
    loss, score, y = candidates(9)
    lines = [np.polyfit(x, y, 1) for x in (loss, score)]
    together = np.mean([np.polyval(line, x) for line, x in zip(lines, (loss, score), strict=True)], axis=0)
    np.testing.assert_allclose(predict((loss, score), y), together, rtol=1e-10)
    left_out = []
    for i in range(9):
        rest = np.arange(9) != i
        left_out.append(np.mean([np.polyval(np.polyfit(x[rest], y[rest], 1), x[i]) for x in (loss, score)]))
    np.testing.assert_allclose(predict((loss, score), y, "leave_one_out"), left_out, rtol=1e-10)
    sums, times = np.zeros(9), np.zeros(9)
    for fit in itertools.combinations(range(9), 4):
        held = np.setdiff1d(np.arange(9), fit)
        chosen = list(fit)
        sums[held] += np.mean([np.polyval(np.polyfit(x[chosen], y[chosen], 1), x[held]) for x in (loss, score)], axis=0)
        times[held] += 1
    np.testing.assert_allclose(predict((loss, score), y, "leave_half_out", n_splits="all"), sums / times, rtol=1e-9)


def test_linear_fit_equals_scipy():
    x, _, y = candidates(11)
    fit, truth = linear_fit(x, y), stats.linregress(x, y)
    assert (fit.slope, fit.intercept) == pytest.approx((truth.slope, truth.intercept))
    assert fit.r2 == pytest.approx(truth.rvalue**2)
    assert fit.n == 11
    flat = linear_fit(np.ones(4), [1, 2, 3, 6])
    assert (flat.slope, flat.intercept, flat.r2) == (0, 3, 0)
    assert math.isnan(linear_fit([1, 2, 3], [1, 1, 1]).r2)


@pytest.mark.parametrize("statistic", ["spearman", "r2"])
def test_bootstrap_equals_a_loop_over_the_same_draws(statistic):
    loss, score, y = candidates(10)
    estimate, replicates = bootstrap((loss, score), y, statistic, n_resamples=200, seed=7)
    draws = np.random.default_rng(7).integers(10, size=(200, 10))
    values = []
    for rows in draws:
        prediction = np.mean([np.polyval(np.polyfit(x[rows], y[rows], 1), x[rows]) for x in (loss, score)], axis=0)
        left, spread = ((y[rows] - prediction) ** 2).sum(), ((y[rows] - y[rows].mean()) ** 2).sum()
        ranks = stats.spearmanr(prediction.round(12), y[rows]).statistic
        values.append(ranks if statistic == "spearman" else 1 - left / spread)
    np.testing.assert_allclose(replicates, values, rtol=1e-8)
    whole = predict((loss, score), y)
    expected = (
        spearman(whole, y) if statistic == "spearman" else 1 - ((y - whole) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    )
    assert estimate == pytest.approx(expected)


def test_bootstrap_values_that_cannot_be_computed_are_nan():
    _, replicates = bootstrap([1, 2, 3], [1, 2, 4], n_resamples=2000)
    assert np.isnan(replicates).sum() == pytest.approx(2000 * 3 / 27, abs=60)  # the same candidate three times
    estimate, replicates = bootstrap([1, 1, 1], [1, 2, 4], n_resamples=10)
    assert np.isnan([estimate, *replicates]).all()


def test_the_jackknife_standard_error_has_the_right_size():
    x, _, y = candidates(8)
    means = []
    for i in range(8):
        rest = np.arange(8) != i
        means.append(np.mean([loop_r2([x[rest]], y[rest], fit) for fit in itertools.combinations(range(7), 4)]))
    truth = math.sqrt(7 / 8 * sum((np.array(means) - np.mean(means)) ** 2))
    assert jackknife_standard_error(r2_without_each(x, y, 4)) == pytest.approx(truth, rel=1e-8)
    experiments = [candidates(12, noise=0.4, seed=seed)[::2] for seed in range(60)]
    spread = np.std([fit_predict_r2(x, y, 6, "all").mean for x, y in experiments])
    typical = np.mean([jackknife_standard_error(r2_without_each(x, y, 6)) for x, y in experiments])
    assert 0.5 < typical / spread < 2


@pytest.mark.parametrize(
    ("parameter", "call"),
    [
        *(("n_fit", lambda x, y, n=n: fit_predict_r2(x, y, n)) for n in (1, 5, 2.5)),
        ("n_fit", lambda x, y: r2_without_each(x, y, 4)),
        *(("n_splits", lambda x, y, n=n: fit_predict_r2(x, y, 3, n)) for n in (0, "every", -5, True, 2.0)),
        ("n_splits", lambda x, y: fit_predict_r2(np.arange(40), np.arange(40), 20, "all")),
        ("n_splits", lambda x, y: predict(x, y, "leave_half_out", n_splits=1)),
        *(("seed", lambda x, y, seed=seed: fit_predict_r2(x, y, 3, seed=seed)) for seed in (-1, 2.5)),
        ("seed", lambda x, y: bootstrap(x, y, seed=-1)),
        *(("n_resamples", lambda x, y, n=n: bootstrap(x, y, n_resamples=n)) for n in (0, 1.5)),
        ("measure", lambda x, y: fit_predict_r2(x, y, 3, measure="adjusted")),
        ("x", lambda x, y: fit_predict_r2(x, y[:5], 3)),
        ("x", lambda x, y: fit_predict_r2((x, x[:3]), y, 3)),
        ("x", lambda x, y: fit_predict_r2(np.append(x[:5], np.nan), y, 3)),
        ("y", lambda x, y: fit_predict_r2(x, np.append(y[:5], np.inf), 3)),
        ("x", lambda x, y: fit_predict_r2(list("abcdef"), y, 3)),
        ("x", lambda x, y: linear_fit((x, x), y)),
        ("actual", lambda x, y: spearman([1.0], [1.0])),
        ("predicted", lambda x, y: spearman(x, y[1:])),
        ("predicted", lambda x, y: spearman([x, y], y)),
        ("method", lambda x, y: predict(x, y, "half")),
        ("statistic", lambda x, y: bootstrap(x, y, "kendall")),
    ],
)
def test_bad_input_is_refused(parameter, call):
    x, _, y = candidates(6)
    with pytest.raises(ParameterError) as caught:
        call(x, y)
    assert caught.value.parameter == parameter
