"""Lines from predictors to the outcome, and how well they predict candidates that were held out (Sec. 4.1-4.3).

    fit_predict_r2(frame["pass_k"], frame["outcome"], n_fit=8)   # R2 over 100 random splits, as in the paper
    both = (frame["gen_loss"], frame["pass_k"])                  # the mean of two separately fitted lines
    spearman(predict(both, frame["outcome"]), frame["outcome"])

A predictor x is an array (candidates,); several are a tuple or list of such arrays, or a two-dimensional array or
DataFrame with one column each. y is the outcome, (candidates,). Equal numbers of candidates, n_fit, n_splits and seed
give equal splits, so differences between predictors are paired. If x does not vary among the fitted candidates, the
line is flat. R2 can be far below zero: a line through three close candidates may miss the others by a lot.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quagmire_utils.core.errors import ParameterError, check_whole

MAX_SPLITS = 1_000_000  # for n_splits="all": C(22, 11) = 705,432 fits, in about 400 MB
SPLITS_AT_ONCE = 1 << 12  # keeps the working arrays in the cache
MEASURES = ("r2", "squared_correlation", "clipped_r2")
CONSTANT = 1e-12  # relative spread below which values count as equal: sums in another order differ by less

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
Predictors = ArrayLike | Sequence[ArrayLike]
Splits = int | Literal["all"]


@dataclass(frozen=True, eq=False)
class SplitR2:
    """R2, or another measure, on held-out candidates over many splits."""

    mean: float  # over the splits where it is defined; NaN if there are none
    std: float  # over splits, printed after +- in the paper; divisor S - 1 for random splits, S for all
    standard_error: float  # of the mean, from the random choice of splits alone; 0 for all splits
    n_splits: int
    n_undefined: int  # splits whose held-out candidates have one outcome (SS_tot = 0): NaN, left out of the mean
    r2: Array = field(repr=False)  # (n_splits,)


@dataclass(frozen=True)
class LinearFit:
    """A line fitted by ordinary least squares (Fig. 3)."""

    slope: float
    intercept: float
    r2: float  # on the fitted candidates; NaN if the outcome does not vary
    n: int


def fit_predict_r2(
    x: Predictors,
    y: ArrayLike,
    n_fit: int,
    n_splits: Splits = 100,
    seed: int = 0,
    measure: Literal["r2", "squared_correlation", "clipped_r2"] = "r2",
) -> SplitR2:
    """Fit lines to n_fit random candidates, predict the others, and compute R2 on those (Sec. 4.2).

    SS_tot is about the mean of the predicted candidates. n_splits="all" takes each of the C(N, n_fit) splits once.
    measure: r2 is the paper's; squared_correlation (Pearson, of predicted and actual outcomes) and clipped_r2 (negative
    values are zero) show how much the definition matters. Raises ParameterError for fewer than two candidates on either
    side, missing values, or more than a million splits.
    """
    predictors, outcome = _inputs(x, y)
    total = outcome.size
    check_whole("n_fit", n_fit, 2, total - 2)  # a line needs two candidates, and so does R2
    if measure not in MEASURES:
        raise ParameterError("measure", measure, f"one of {', '.join(MEASURES)}")
    splits = _splits(total, n_fit, n_splits, seed)
    score = squared_correlation if measure == "squared_correlation" else r2_score
    values = np.empty(splits[0].shape[1])
    for part, fit, held in _chunks(splits):
        values[part] = score(outcome[held], _line_predictions(predictors, outcome, fit, held))
    if measure == "clipped_r2":
        values = np.maximum(values, 0.0)  # NaN stays NaN
    defined = values[~np.isnan(values)]
    exhaustive = n_splits == "all"
    ddof = 0 if exhaustive else 1
    std = float(defined.std(ddof=ddof)) if defined.size > ddof else math.nan
    values.setflags(write=False)
    return SplitR2(
        mean=float(defined.mean()) if defined.size else math.nan,
        std=std,
        standard_error=0.0 if exhaustive and defined.size else std / math.sqrt(max(defined.size, 1)),
        n_splits=values.size,
        n_undefined=values.size - defined.size,
        r2=values,
    )


def r2_without_each(x: Predictors, y: ArrayLike, n_fit: int, n_splits: Splits = "all", seed: int = 0) -> Array:
    """Return the mean of `fit_predict_r2` with each candidate in turn left out, (candidates,), for a jackknife.

    n_fit stays, and one candidate fewer is predicted. A split that predicts candidate i becomes, without i, a split of
    the others, and each of those arises once, so one pass over the splits serves every candidate. NaN if undefined.
    """
    predictors, outcome = _inputs(x, y)
    total = outcome.size
    check_whole("n_fit", n_fit, 2, total - 3)
    summed, times = np.zeros(total), np.zeros(total)
    for _, fit, held in _chunks(_splits(total, n_fit, n_splits, seed)):
        prediction = _line_predictions(predictors, outcome, fit, held)
        actual = outcome[held]
        for place in range(len(held)):
            kept = np.delete(np.arange(len(held)), place)
            r2 = r2_score(actual[kept], prediction[kept])
            defined = ~np.isnan(r2)
            summed += np.bincount(held[place][defined], r2[defined], total)
            times += np.bincount(held[place][defined], minlength=total)
    return np.divide(summed, times, out=np.full(total, np.nan), where=times > 0)


def jackknife_standard_error(without: ArrayLike) -> float:
    """Return the standard error of a statistic from its values with each of N candidates left out, (N,)."""
    values = np.asarray(without, np.float64)
    return math.sqrt((values.size - 1) * np.var(values))


def predict(
    x: Predictors,
    y: ArrayLike,
    method: Literal["in_sample", "leave_one_out", "leave_half_out"] = "in_sample",
    n_splits: Splits = 100,
    seed: int = 0,
) -> Array:
    """Return the predicted outcome of each candidate, (candidates,): the mean of the lines of the given predictors.

    method: in_sample fits all candidates, leave_one_out all but the predicted one, leave_half_out random halves holding
    the candidate out, averaged. Tables 1, 3, 8 and 10 rank "performance predicted from post-SFT models" without saying
    what was fitted; ours use in_sample. One predictor's ranks do not depend on it; those of the averaged prediction do.
    Without the own outcome a useless predictor gets a negative rank correlation, as leaving out a high outcome lowers
    the mean of the rest.
    """
    predictors, outcome = _inputs(x, y)
    total = outcome.size
    everyone = np.arange(total)
    if method == "in_sample":
        return _line_predictions(predictors, outcome, everyone[:, None], everyone[:, None])[:, 0]
    if method not in ("leave_one_out", "leave_half_out"):
        raise ParameterError("method", method, "in_sample, leave_one_out or leave_half_out")
    if total < 4:
        raise ParameterError("method", reason=f"{method} needs at least 4 candidates, not {total}")
    if method == "leave_one_out":
        held = everyone[None]
        return _line_predictions(predictors, outcome, _complement(held, total), held)[0]
    summed, times = np.zeros(total), np.zeros(total)
    for _, fit, held in _chunks(_splits(total, total // 2, n_splits, seed)):
        prediction = _line_predictions(predictors, outcome, fit, held)
        summed += np.bincount(held.ravel(), prediction.ravel(), total)
        times += np.bincount(held.ravel(), minlength=total)
    if (times == 0).any():
        raise ParameterError("n_splits", n_splits, "larger, so that every candidate is held out")
    return summed / times


def spearman(predicted: ArrayLike, actual: ArrayLike) -> float:
    """Return Spearman's rank correlation; ties share their mean rank; NaN if one side does not vary."""
    first, second = _inputs(predicted, actual, "predicted", "actual")
    if len(first) != 1:
        raise ParameterError("predicted", reason=f"one series of values is needed, not {len(first)}")
    return float(rank_correlations(first, second[None])[0])


def linear_fit(x: ArrayLike, y: ArrayLike) -> LinearFit:
    """Fit the line of Fig. 3 to all candidates."""
    predictors, outcome = _inputs(x, y)
    if len(predictors) != 1:
        raise ParameterError("x", reason=f"one predictor is needed, not {len(predictors)}")
    predictor, everyone = predictors[0], np.arange(outcome.size)[:, None]
    slope, mean_x, mean_y = (float(values[0]) for values in _lines(predictor, outcome, everyone))
    intercept = mean_y - slope * mean_x
    return LinearFit(slope, intercept, float(r2_score(outcome, mean_y + slope * (predictor - mean_x))), outcome.size)


def bootstrap(
    x: Predictors,
    y: ArrayLike,
    statistic: Literal["spearman", "r2"] = "spearman",
    n_resamples: int = 4000,
    seed: int = 0,
) -> tuple[float, Array]:
    """Bootstrap the Spearman correlation or R2 between in-sample prediction and outcome over candidates.

    Each resample draws N candidates with replacement and fits its own lines. R2 is that of the fit (Fig. 3), as a
    resample would put copies of one candidate on both sides of a split. Returns the estimate and its replicates,
    (n_resamples,): NaN where all drawn candidates are equal. Equal seeds draw equal candidates.
    """
    if statistic not in ("spearman", "r2"):
        raise ParameterError("statistic", statistic, "spearman or r2")
    check_whole("n_resamples", n_resamples, 1)
    check_whole("seed", seed, 0)
    predictors, outcome = _inputs(x, y)
    drawn = np.random.default_rng(seed).integers(outcome.size, size=(n_resamples, outcome.size))
    rows = np.vstack([np.arange(outcome.size), drawn]).T
    prediction, actual = _line_predictions(predictors, outcome, rows, rows), outcome[rows]
    values = r2_score(actual, prediction) if statistic == "r2" else rank_correlations(prediction.T, actual.T)
    return float(values[0]), values[1:]


def r2_score(actual: ArrayLike, predicted: ArrayLike) -> Array:
    """Return 1 - SS_res / SS_tot of each column, NaN where the actual values are constant."""
    actual, predicted = np.asarray(actual), np.asarray(predicted)
    centred = actual - actual.mean(axis=0)
    total = np.where(is_constant(actual), np.nan, np.einsum("v...,v...->...", centred, centred))
    left = actual - predicted
    return 1 - np.einsum("v...,v...->...", left, left) / total


def is_constant(values: Array) -> NDArray[np.bool_]:
    """Return whether the values of each column are equal up to rounding."""
    low, high = values.min(axis=0), values.max(axis=0)
    return high - low <= CONSTANT * np.maximum(np.abs(low), np.abs(high))


# Splits are columns in what follows, so that sums over the few candidates of a split run along whole rows: 3x faster.


def _lines(x: Array, y: Array, fit: Rows) -> tuple[Array, Array, Array]:
    """Fit lines to the candidates fit (m, S); return slope, mean x and mean y, (S,) each."""
    part_x, part_y = x[fit], y[fit]
    mean_x, mean_y = part_x.mean(axis=0), part_y.mean(axis=0)
    flat = is_constant(part_x)
    part_x -= mean_x
    part_y -= mean_y
    spread = np.einsum("ms,ms->s", part_x, part_x)
    spread[flat] = 1.0
    slope = np.einsum("ms,ms->s", part_x, part_y) / spread
    slope[flat] = 0.0
    return slope, mean_x, mean_y


def _line_predictions(predictors: Array, y: Array, fit: Rows, held: Rows) -> Array:
    """Return the mean prediction for held (v, S) from lines on fit (m, S)."""
    prediction = np.zeros(held.shape)
    for x in predictors:
        slope, mean_x, mean_y = _lines(x, y, fit)
        prediction += mean_y + slope * (x[held] - mean_x)
    return prediction / len(predictors)


def squared_correlation(actual: Array, predicted: Array) -> Array:
    """Return the squared Pearson correlation of each pair of columns; NaN where one of them is constant."""
    first, second = actual - actual.mean(axis=0), predicted - predicted.mean(axis=0)
    scale = np.einsum("vs,vs->s", first, first) * np.einsum("vs,vs->s", second, second)
    scale[is_constant(actual) | is_constant(predicted)] = np.nan
    return np.einsum("vs,vs->s", first, second) ** 2 / scale


def rank_correlations(first: Array, second: Array) -> Array:
    """Return Spearman's correlation of each row, NaN where a row is constant."""
    from scipy.stats import rankdata  # slow to import

    first, second = rankdata(first, axis=1), rankdata(second, axis=1)
    first = first - first.mean(axis=1, keepdims=True)
    second = second - second.mean(axis=1, keepdims=True)
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    scale[scale == 0] = np.nan
    return np.clip((first * second).sum(axis=1) / scale, -1.0, 1.0)


def _splits(total: int, n_fit: int, n_splits: Splits, seed: int) -> tuple[Rows, Rows]:
    """Return fitted (n_fit, S) and predicted (total - n_fit, S) candidates of each split, the latter ascending."""
    if n_splits == "all":
        return _all_splits(total, n_fit)
    check_whole("n_splits", n_splits, 1, MAX_SPLITS)
    check_whole("seed", seed, 0)
    order = np.random.default_rng(seed).random((int(n_splits), total)).argsort(axis=1)
    fit = np.ascontiguousarray(order[:, :n_fit].T)
    return fit, _complement(fit, total)


@lru_cache(maxsize=4)  # the predictors of one row of a table have the same splits
def _all_splits(total: int, n_fit: int) -> tuple[Rows, Rows]:
    count = math.comb(total, n_fit)
    if count > MAX_SPLITS:
        raise ParameterError("n_splits", "all", reason=f'"all" means {count:,} splits; the limit is {MAX_SPLITS:,}')
    chosen = itertools.chain.from_iterable(itertools.combinations(range(total), n_fit))
    fit = np.ascontiguousarray(np.fromiter(chosen, np.intp, count * n_fit).reshape(count, n_fit).T)
    held = _complement(fit, total)
    fit.setflags(write=False)
    held.setflags(write=False)
    return fit, held


def _chunks(splits: tuple[Rows, Rows]) -> Iterator[tuple[slice, Rows, Rows]]:
    """Yield a few thousand splits at a time: which ones, their fitted and their predicted candidates."""
    for start in range(0, splits[0].shape[1], SPLITS_AT_ONCE):
        part = slice(start, start + SPLITS_AT_ONCE)
        yield part, splits[0][:, part], splits[1][:, part]


def _complement(rows: Rows, total: int) -> Rows:
    """Return for each column of indices below total (no repeats) the others in ascending order."""
    others = np.ones((rows.shape[1], total), dtype=bool)
    np.put_along_axis(others, rows.T, False, axis=1)
    return np.ascontiguousarray(np.nonzero(others)[1].reshape(rows.shape[1], -1).T)


def _inputs(x: Predictors, y: ArrayLike, x_name: str = "x", y_name: str = "y") -> tuple[Array, Array]:
    """Return predictors (predictors, candidates) and outcome (candidates,), complete and finite."""
    several = isinstance(x, (tuple, list)) and len(x) > 0 and np.ndim(x[0]) > 0
    try:
        outcome = np.asarray(y, dtype=np.float64)
        # a table has one column per predictor
        predictors = np.stack([np.asarray(one, np.float64) for one in x]) if several else np.asarray(x, np.float64).T
    except (TypeError, ValueError):
        raise ParameterError(x_name, reason=f"{x_name} and {y_name} need one number per candidate") from None
    predictors = np.atleast_2d(predictors)
    if outcome.ndim != 1 or predictors.ndim != 2 or not len(predictors) or predictors.shape[1] != outcome.size:
        shapes = f"{x_name} has shape {np.shape(x)} and {y_name} {np.shape(y)}"
        raise ParameterError(x_name, reason=f"one value per candidate and predictor is needed; {shapes}")
    if outcome.size < 2:
        raise ParameterError(y_name, reason=f"at least two candidates are needed, not {outcome.size}")
    for name, values in ((x_name, predictors), (y_name, outcome)):
        if not np.isfinite(values).all():
            raise ParameterError(name, reason="values must be finite; leave out candidates without one")
    return predictors, outcome
