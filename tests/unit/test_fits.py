"""Split protocols and rank correlations against plain loops with numpy.polyfit, and against scipy."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
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


def loop_predictions(predictors, y, fit, held) -> np.ndarray:
    return np.mean([np.polyval(np.polyfit(x[fit], y[fit], 1), x[held]) for x in predictors], axis=0)


def loop_r2(predictors, y, fit) -> float:
    """The paper's protocol for one split, written out."""
    held = np.setdiff1d(np.arange(len(y)), fit)
    prediction, actual = loop_predictions(predictors, y, list(fit), held), y[held]
    return 1 - sum((actual - prediction) ** 2) / sum((actual - actual.mean()) ** 2)


@pytest.mark.parametrize(("total", "n_fit"), [(4, 2), (7, 3), (8, 4), (9, 7)])
def test_all_splits_equal_a_loop_with_polyfit(total, n_fit):
    loss, score, y = candidates(total)
    for x, predictors in ((loss, [loss]), ((loss, score), [loss, score])):
        truth = [loop_r2(predictors, y, fit) for fit in itertools.combinations(range(total), n_fit)]
        result = fit_predict_r2(x, y, n_fit, n_splits="all")
        np.testing.assert_allclose(result.r2, truth, rtol=1e-9, atol=1e-9)
        assert (result.n_splits, result.standard_error) == (math.comb(total, n_fit), 0)
        assert (result.mean, result.std) == pytest.approx((np.mean(truth), np.std(truth)), rel=1e-9)


def test_defaults_are_the_papers_and_the_seed_pairs_predictors():
    loss, score, y = candidates(16)
    first = fit_predict_r2(loss, y, 8)
    assert first.n_splits == 100
    assert (fit_predict_r2(loss, y, 8, seed=1).r2 != first.r2).any()
    # A predictor and a linear map of it predict the same from the same splits.
    np.testing.assert_allclose(fit_predict_r2(3 - 2 * loss, y, 8).r2, first.r2, rtol=1e-9)
    columns = pd.DataFrame({"gen_loss": loss, "pass_k": score})
    for same in (columns, columns.to_numpy()):
        np.testing.assert_array_equal(fit_predict_r2(same, y, 8).r2, fit_predict_r2([loss, score], y, 8).r2)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=4, max_size=7),
    st.floats(-100, 100),
    st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_ties_and_offsets_agree_with_exact_arithmetic(points, offset, scale):
    """Small whole numbers, so that R2 is a fraction; scaling and shifting both axes changes nothing."""
    x, y = (np.array(axis, dtype=float) for axis in zip(*points, strict=True))
    result = fit_predict_r2(scale * (x + offset), scale * (y - offset), 2, n_splits="all")
    truth = []
    for i, j in itertools.combinations(range(len(x)), 2):
        held = [k for k in range(len(x)) if k not in (i, j)]
        slope = 0 if x[i] == x[j] else (y[i] - y[j]) / (x[i] - x[j])
        prediction = (y[i] + y[j]) / 2 + slope * (x[held] - (x[i] + x[j]) / 2)
        spread = ((y[held] - y[held].mean()) ** 2).sum()
        truth.append(1 - ((y[held] - prediction) ** 2).sum() / spread if spread else math.nan)
    np.testing.assert_allclose(result.r2, truth, rtol=1e-6, atol=1e-6)
    assert result.n_undefined == np.isnan(truth).sum()


def test_degenerate_splits_are_counted_and_left_out_of_the_mean():
    x = np.array([1.0, 1.0, 1.0, 2.0, 3.0])
    y = np.array([5.0, 1.0, 2.0, 2.0, 2.0])
    result = fit_predict_r2(x, y, 2, n_splits="all")
    assert (result.n_splits, result.n_undefined) == (10, 1)  # 01 leaves 2, 2, 2
    assert result.mean == pytest.approx(np.nanmean(result.r2))
    hopeless = fit_predict_r2(x, np.ones(5), 2)
    assert hopeless.n_undefined == 100
    assert np.isnan([hopeless.mean, hopeless.std]).all()
    # the same mean in another order of summation is still the same value
    rounding = np.array([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2, 0.3, 0.3])
    assert fit_predict_r2(rounding, np.arange(6.0), 3, n_splits="all").r2.min() > -20
    assert math.isnan(spearman(predict(rounding, np.arange(6.0)), np.arange(6.0)))


def test_other_measures_take_the_same_splits():
    loss, score, y = candidates(8)
    r2 = fit_predict_r2((loss, score), y, 5, n_splits="all")
    squared = fit_predict_r2((loss, score), y, 5, n_splits="all", measure="squared_correlation")
    truth = []
    for fit in itertools.combinations(range(8), 5):
        held = np.setdiff1d(np.arange(8), fit)
        truth.append(stats.pearsonr(loop_predictions((loss, score), y, list(fit), held), y[held]).statistic ** 2)
    np.testing.assert_allclose(squared.r2, truth, rtol=1e-9, atol=1e-9)
    clipped = fit_predict_r2((loss, score), y, 5, n_splits="all", measure="clipped_r2")
    np.testing.assert_array_equal(clipped.r2, np.where(r2.r2 < 0, 0, r2.r2))
    assert (r2.r2 < 0).any()
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
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_predictions_equal_loops():
    loss, score, y = candidates(9)
    everyone, together = np.arange(9), (loss, score)
    np.testing.assert_allclose(predict(together, y), loop_predictions(together, y, everyone, everyone), rtol=1e-10)
    left_out = [loop_predictions(together, y, np.delete(everyone, i), [i])[0] for i in range(9)]
    np.testing.assert_allclose(predict(together, y, "leave_one_out"), left_out, rtol=1e-10)
    sums, times = np.zeros(9), np.zeros(9)
    for fit in itertools.combinations(range(9), 4):
        held = np.setdiff1d(everyone, fit)
        sums[held] += loop_predictions(together, y, list(fit), held)
        times[held] += 1
    np.testing.assert_allclose(predict(together, y, "leave_half_out", n_splits="all"), sums / times, rtol=1e-9)


def test_linear_fit_equals_scipy():
    x, _, y = candidates(11)
    fit, truth = linear_fit(x, y), stats.linregress(x, y)
    assert (fit.slope, fit.intercept, fit.r2) == pytest.approx((truth.slope, truth.intercept, truth.rvalue**2))
    assert fit.n == 11
    flat = linear_fit(np.ones(4), [1, 2, 3, 6])
    assert (flat.slope, flat.intercept, flat.r2) == (0, 3, 0)
    assert math.isnan(linear_fit([1, 2, 3], [1, 1, 1]).r2)


@pytest.mark.parametrize("statistic", ["spearman", "r2"])
def test_bootstrap_equals_a_loop_over_the_same_draws(statistic):
    loss, score, y = candidates(10)
    estimate, replicates = bootstrap((loss, score), y, statistic, n_resamples=200, seed=7)
    values = []
    for rows in (np.arange(10), *np.random.default_rng(7).integers(10, size=(200, 10))):
        prediction = loop_predictions((loss, score), y, rows, rows)
        left, spread = ((y[rows] - prediction) ** 2).sum(), ((y[rows] - y[rows].mean()) ** 2).sum()
        ranks = stats.spearmanr(prediction.round(12), y[rows]).statistic
        values.append(ranks if statistic == "spearman" else 1 - left / spread)
    np.testing.assert_allclose([estimate, *replicates], values, rtol=1e-8)


def test_bootstrap_values_that_cannot_be_computed_are_nan():
    _, replicates = bootstrap([1, 2, 3], [1, 2, 4], n_resamples=2000)
    assert np.isnan(replicates).sum() == pytest.approx(2000 * 3 / 27, abs=60)  # the same candidate three times
    estimate, replicates = bootstrap([1, 1, 1], [1, 2, 4], n_resamples=10)
    assert np.isnan([estimate, *replicates]).all()


def test_the_jackknife_standard_error_has_the_right_size():
    experiments = [candidates(12, noise=0.4, seed=seed)[::2] for seed in range(60)]
    spread = np.std([fit_predict_r2(x, y, 6, "all").mean for x, y in experiments])
    typical = np.mean([jackknife_standard_error(r2_without_each(x, y, 6)) for x, y in experiments])
    assert 0.5 < typical / spread < 2


def test_bad_input_is_refused(refused):
    for parameter, call in (
        *(("n_fit", lambda x, y, n=n: fit_predict_r2(x, y, n)) for n in (1, 5)),
        ("n_fit", lambda x, y: r2_without_each(x, y, 4)),
        *(("n_splits", lambda x, y, n=n: fit_predict_r2(x, y, 3, n)) for n in (0, "every", 2.0)),
        ("n_splits", lambda x, y: fit_predict_r2(np.arange(40), np.arange(40), 20, "all")),
        *(("seed", lambda x, y, seed=seed: fit_predict_r2(x, y, 3, seed=seed)) for seed in (-1, 2.5)),
        ("measure", lambda x, y: fit_predict_r2(x, y, 3, measure="adjusted")),
        ("x", lambda x, y: fit_predict_r2(x, y[:5], 3)),
        ("x", lambda x, y: fit_predict_r2(np.append(x[:5], np.nan), y, 3)),
        ("y", lambda x, y: fit_predict_r2(x, np.append(y[:5], np.inf), 3)),
        ("actual", lambda x, y: spearman([1.0], [1.0])),
        ("predicted", lambda x, y: spearman(x, y[1:])),
    ):
        x, _, y = candidates(6)
        with refused(parameter):
            call(x, y)
