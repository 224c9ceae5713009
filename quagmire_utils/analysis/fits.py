"""Lines from a predictor to the outcome, and how well they foretell it. Paper: Sec. 4.1-4.3."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quagmire_utils.core.errors import ParameterError

MAX_SPLITS = 1_000_000  # for n_splits="all": C(22, 11) = 705,432 still fits, in about 400 MB
SPLITS_AT_ONCE = 1 << 12  # keeps the working arrays in the cache
MEASURES = ("r2", "squared_correlation", "clipped_r2")
CONSTANT = 1e-12  # relative spread below which values count as equal: the same counts averaged in another order

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SplitR2:
    """R2 (or another measure) on held-out candidates over many splits into fitted and predicted ones."""

    mean: float  # over the splits where R2 is defined; NaN when it is defined nowhere
    std: float  # over splits: what the paper prints after +-; divisor S - 1 for random splits, S for all of them
    standard_error: float  # of the mean, from the random choice of splits alone: std / sqrt(splits); 0 for all splits
    n_splits: int
    n_fit: int
    n_validation: int
    exhaustive: bool  # every split was taken, so mean and std carry no sampling noise
    n_undefined: int  # splits that predict candidates of one outcome only (SS_tot = 0): NaN in r2, left out of the mean
    n_constant: int  # splits where a predictor did not vary among the fitted candidates, so its line is flat
    r2: Array = field(repr=False)  # (n_splits,)


@dataclass(frozen=True)
class LinearFit:
    """A line fitted by ordinary least squares (Fig. 3)."""

    slope: float
    intercept: float
    r2: float  # on the fitted candidates; NaN when the outcome does not vary
    slope_standard_error: float  # NaN below three candidates or for a constant predictor
    n: int


@dataclass(frozen=True, eq=False)
class Interval:
    """A statistic and its percentile bootstrap interval over candidates."""

    estimate: float
    low: float
    high: float
    confidence: float
    n_resamples: int
    n_undefined: int  # resamples in which the statistic does not exist (all drawn candidates equal); left out
    replicates: Array = field(
        repr=False
    )  # (n_resamples,); the same seed draws the same candidates, so differences are paired


def fit_predict_r2(
    x: ArrayLike | Sequence[ArrayLike],
    y: ArrayLike,
    n_fit: int,
    n_splits: int | Literal["all"] = 100,
    seed: int = 0,
    measure: Literal["r2", "squared_correlation", "clipped_r2"] = "r2",
) -> SplitR2:
    """Fit a line on n_fit random candidates, predict the others, and take R2 = 1 - SS_res / SS_tot on those (Sec. 4.2).

    SS_tot is about the mean of the predicted candidates. With several predictors the prediction is the mean of their
    separate lines'. n_splits="all" takes each of the C(N, n_fit) splits once. measure: r2 is the paper's definition;
    squared_correlation (Pearson, of predicted and actual outcomes) forgives any line with the right sign or the wrong
    one, and clipped_r2 takes R2 below zero as zero; both serve to see what the definition matters. Raises
    ParameterError for fewer than two candidates on either side, missing values, or more than a million splits.
    """
    predictors, outcome = _inputs(x, y)
    total = outcome.size
    n_fit = _fit_size(n_fit, total)
    if measure not in MEASURES:
        raise ParameterError(f"measure must be one of {', '.join(MEASURES)}, not {measure!r}.")
    splits = _splits(total, n_fit, n_splits, seed)
    values, constant = np.empty(splits[0].shape[1]), 0
    for part, fit, held in _chunks(splits):
        prediction, flat = _line_predictions(predictors, outcome, fit, held)
        if measure == "squared_correlation":
            values[part] = _squared_correlation(outcome[held], prediction)
        else:
            values[part] = _r2(outcome[held], prediction)
        constant += int(flat.sum())
    if measure == "clipped_r2":
        values = np.maximum(values, 0.0)  # NaN stays NaN
    defined = values[~np.isnan(values)]
    exhaustive = isinstance(n_splits, str)
    ddof = 0 if exhaustive else 1
    std = float(defined.std(ddof=ddof)) if defined.size > ddof else math.nan
    error = 0.0 if exhaustive and defined.size else std / math.sqrt(max(defined.size, 1))
    values.setflags(write=False)
    return SplitR2(
        mean=float(defined.mean()) if defined.size else math.nan,
        std=std,
        standard_error=error,
        n_splits=values.size,
        n_fit=n_fit,
        n_validation=total - n_fit,
        exhaustive=exhaustive,
        n_undefined=values.size - defined.size,
        n_constant=constant,
        r2=values,
    )


def r2_without_each(
    x: ArrayLike | Sequence[ArrayLike], y: ArrayLike, n_fit: int, n_splits: int | Literal["all"] = "all", seed: int = 0
) -> Array:
    """Mean of `fit_predict_r2` with each candidate in turn left out: (candidates,), for a delete-one jackknife.

    n_fit stays and one fewer is predicted. A split that predicts candidate i becomes, without i, a split of the others,
    and each of theirs arises once; so one pass over the splits serves every candidate. NaN where R2 is defined in no
    split. Raises ParameterError as `fit_predict_r2` does, for one candidate fewer.
    """
    predictors, outcome = _inputs(x, y)
    total = outcome.size
    n_fit = _fit_size(n_fit, total, spare=1)
    summed, times = np.zeros(total), np.zeros(total)
    for _, fit, held in _chunks(_splits(total, n_fit, n_splits, seed)):
        prediction, _ = _line_predictions(predictors, outcome, fit, held)
        actual = outcome[held]
        for place in range(len(held)):
            kept = np.delete(np.arange(len(held)), place)
            r2 = _r2(actual[kept], prediction[kept])
            defined = ~np.isnan(r2)
            summed += np.bincount(held[place][defined], r2[defined], total)
            times += np.bincount(held[place][defined], minlength=total)
    return np.divide(summed, times, out=np.full(total, np.nan), where=times > 0)


def candidate_standard_error(
    x: ArrayLike | Sequence[ArrayLike], y: ArrayLike, n_fit: int, n_splits: int | Literal["all"] = "all", seed: int = 0
) -> float:
    """Standard error of the mean of `fit_predict_r2` from the choice of candidates: a delete-one jackknife.

    What std and standard_error over splits cannot say: how far the mean would move had other candidates been trained.
    A rough figure, since R2 has a long lower tail. Raises ParameterError as `r2_without_each` does.
    """
    return jackknife_standard_error(r2_without_each(x, y, n_fit, n_splits, seed))


def jackknife_standard_error(without: ArrayLike) -> float:
    """Standard error of a statistic from its values with each of the N candidates left out in turn, (N,)."""
    values = np.asarray(without, np.float64)
    return math.sqrt((values.size - 1) * np.var(values))


def predict(
    x: ArrayLike | Sequence[ArrayLike],
    y: ArrayLike,
    method: Literal["in_sample", "leave_one_out", "leave_half_out"] = "in_sample",
    n_splits: int | Literal["all"] = 100,
    seed: int = 0,
) -> Array:
    """Outcome predicted for each candidate, (candidates,), by the mean of the lines of the given predictors.

    The paper's Tables 1, 3, 8 and 10 rank "performance predicted from post-SFT models" without saying what the line was
    fitted on. For one predictor the ranks do not depend on it (a line is monotone; only the sign of the slope is used,
    which makes a rank correlation with a loss positive). For the averaged prediction they do, through the weights of
    the two predictors.

    - in_sample (what our tables use): fitted on all candidates;
    - leave_one_out: on all but the one that is predicted;
    - leave_half_out: on a random half (rounded down) in each of n_splits splits, averaged over the splits that held the
      candidate out.

    The last two never see the candidate's own outcome, which has a price: leaving out a high outcome lowers the rest's
    mean, so that a useless predictor gets a negative rank correlation instead of none.
    """
    predictors, outcome = _inputs(x, y)
    total = outcome.size
    everyone = np.arange(total)
    if method == "in_sample":
        return _line_predictions(predictors, outcome, everyone[:, None], everyone[:, None])[0][:, 0]
    if total < 4:
        raise ParameterError(f"method {method!r} needs at least 4 candidates, not {total}.")
    if method == "leave_one_out":
        held = everyone[None]
        return _line_predictions(predictors, outcome, _complement(held, total), held)[0][0]
    if method != "leave_half_out":
        raise ParameterError(f"method must be in_sample, leave_one_out or leave_half_out, not {method!r}.")
    summed, times = np.zeros(total), np.zeros(total)
    for _, fit, held in _chunks(_splits(total, total // 2, n_splits, seed)):
        prediction, _ = _line_predictions(predictors, outcome, fit, held)
        summed += np.bincount(held.ravel(), prediction.ravel(), total)
        times += np.bincount(held.ravel(), minlength=total)
    if (times == 0).any():
        raise ParameterError(f"n_splits={n_splits} splits never held out {(times == 0).sum()} candidate(s); take more.")
    return summed / times


def spearman(predicted: ArrayLike, actual: ArrayLike) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; NaN where one side does not vary.

    predicted, actual: (candidates,). Raises ParameterError for missing values, unequal lengths or fewer than two
    candidates.
    """
    first, second = _inputs(predicted, actual, "predicted", "actual")
    if len(first) != 1:
        raise ParameterError(f"predicted must be one series of values, not {len(first)}.")
    return float(_rank_correlation(first, second[None])[0])


def linear_fit(x: ArrayLike, y: ArrayLike) -> LinearFit:
    """The line of Fig. 3 through all candidates, and the part of the outcome's variance that it explains."""
    predictors, outcome = _inputs(x, y)
    if len(predictors) != 1:
        raise ParameterError(f"linear_fit takes one predictor, not {len(predictors)}.")
    predictor = predictors[0]
    everyone = np.arange(outcome.size)[:, None]
    slope, mean_x, mean_y, flat = (values[0] for values in _lines(predictor, outcome, everyone))
    fitted = mean_y + slope * (predictor - mean_x)
    free, spread = outcome.size - 2, ((predictor - mean_x) ** 2).sum()
    error = math.nan if free < 1 or flat else math.sqrt(((outcome - fitted) ** 2).sum() / free / spread)
    r2 = float(_r2(outcome[:, None], fitted[:, None])[0])
    return LinearFit(float(slope), float(mean_y - slope * mean_x), r2, error, outcome.size)


def bootstrap_interval(
    x: ArrayLike | Sequence[ArrayLike],
    y: ArrayLike,
    statistic: Literal["spearman", "r2"] = "spearman",
    n_resamples: int = 4000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over candidates of the Spearman correlation or R2 between in-sample prediction and outcome.

    Each resample draws N candidates with replacement and fits its own lines. It answers "what if other candidates of
    the like had been trained?"; the noise of each measurement is in the spread between candidates already. R2 here is
    that of the fit (Fig. 3), not of held-out candidates: a resample would put copies of one candidate on both sides of
    a split.
    """
    if statistic not in ("spearman", "r2"):
        raise ParameterError(f"statistic must be spearman or r2, not {statistic!r}.")
    if not 0 < confidence < 1:
        raise ParameterError(f"confidence must lie between 0 and 1, not {confidence!r}.")
    check_whole("n_resamples", n_resamples, 1)
    check_whole("seed", seed, 0)
    predictors, outcome = _inputs(x, y)
    everyone = np.arange(outcome.size)
    drawn = np.random.default_rng(seed).integers(outcome.size, size=(n_resamples, outcome.size))
    values = []
    for rows in (everyone[:, None], drawn.T):
        prediction, _ = _line_predictions(predictors, outcome, rows, rows)
        actual = outcome[rows]
        values.append(_r2(actual, prediction) if statistic == "r2" else _rank_correlation(prediction.T, actual.T))
    (estimate,), replicates = values
    defined = replicates[~np.isnan(replicates)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail]) if defined.size else (math.nan, math.nan)
    return Interval(
        float(estimate), float(low), float(high), confidence, n_resamples, n_resamples - defined.size, replicates
    )


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raises ParameterError unless `value` is a whole number in this range; True and 2.0 are none."""
    if not _is_whole(value) or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ParameterError(f"{name} must be a whole number {limit}, not {value!r}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))


# Splits are columns in what follows, so that sums over the few candidates of a split run along whole rows: 3x faster.


def _lines(x: Array, y: Array, fit: NDArray[np.intp]) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """Least-squares lines on the candidates fit (m, S): slope, mean x, mean y and whether x is constant, (S,) each."""
    part_x, part_y = x[fit], y[fit]
    mean_x, mean_y = part_x.mean(axis=0), part_y.mean(axis=0)
    flat = _constant(part_x)
    part_x -= mean_x
    part_y -= mean_y
    spread = np.einsum("ms,ms->s", part_x, part_x)
    spread[flat] = 1.0
    slope = np.einsum("ms,ms->s", part_x, part_y) / spread
    slope[flat] = 0.0
    return slope, mean_x, mean_y, flat


def _line_predictions(
    predictors: Array, y: Array, fit: NDArray[np.intp], held: NDArray[np.intp]
) -> tuple[Array, NDArray[np.bool_]]:
    """Mean over predictors of the predictions for held (v, S) from lines on fit (m, S); where a predictor is flat."""
    prediction, any_flat = np.zeros(held.shape), np.zeros(fit.shape[1], dtype=bool)
    for x in predictors:
        slope, mean_x, mean_y, flat = _lines(x, y, fit)
        prediction += mean_y + slope * (x[held] - mean_x)
        any_flat |= flat
    return prediction / len(predictors), any_flat


def _r2(actual: Array, predicted: Array) -> Array:
    """1 - SS_res / SS_tot of each column, NaN where the actual values are constant."""
    centred = actual - actual.mean(axis=0)
    total = np.einsum("vs,vs->s", centred, centred)
    left = actual - predicted
    total[_constant(actual)] = np.nan
    return 1 - np.einsum("vs,vs->s", left, left) / total


def _squared_correlation(actual: Array, predicted: Array) -> Array:
    """Pearson's correlation of each pair of columns, squared; NaN where one of them is constant."""
    first, second = actual - actual.mean(axis=0), predicted - predicted.mean(axis=0)
    scale = np.einsum("vs,vs->s", first, first) * np.einsum("vs,vs->s", second, second)
    scale[_constant(actual) | _constant(predicted)] = np.nan
    return np.einsum("vs,vs->s", first, second) ** 2 / scale


def _rank_correlation(first: Array, second: Array) -> Array:
    """Spearman's correlation of each row, NaN where a row is constant."""
    from scipy.stats import rankdata  # takes longer to import than all else here

    first, second = rankdata(first, axis=1), rankdata(second, axis=1)
    first = first - first.mean(axis=1, keepdims=True)
    second = second - second.mean(axis=1, keepdims=True)
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    scale[scale == 0] = np.nan
    return np.clip((first * second).sum(axis=1) / scale, -1.0, 1.0)


def _constant(values: Array) -> NDArray[np.bool_]:
    """Columns whose values are equal up to rounding."""
    low, high = values.min(axis=0), values.max(axis=0)
    return high - low <= CONSTANT * np.maximum(np.abs(low), np.abs(high))


def _fit_size(n_fit: int, total: int, spare: int = 0) -> int:
    """n_fit, checked: a line needs two candidates, and so does R2, when `spare` more are left out."""
    largest = total - 2 - spare
    if not isinstance(n_fit, numbers.Integral) or not 2 <= n_fit <= largest:
        raise ParameterError(
            f"n_fit must be a whole number from 2 to {largest} of the {total} candidates (a line needs two, and R2 "
            f"too), not {n_fit!r}."
        )
    return int(n_fit)


def _splits(total: int, n_fit: int, n_splits: int | str, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Fitted (n_fit, S) and predicted (total - n_fit, S) candidates of each split, the latter in ascending order."""
    if n_splits == "all":
        return _all_splits(total, n_fit)
    if not _is_whole(n_splits) or not 1 <= n_splits <= MAX_SPLITS:
        raise ParameterError(f'n_splits must be "all" or a whole number from 1 to {MAX_SPLITS}, not {n_splits!r}.')
    check_whole("seed", seed, 0)
    order = np.random.default_rng(seed).random((int(n_splits), total)).argsort(axis=1)
    fit = np.ascontiguousarray(order[:, :n_fit].T)
    return fit, _complement(fit, total)


@lru_cache(maxsize=4)  # the predictors of one row of a table have the same splits
def _all_splits(total: int, n_fit: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    count = math.comb(total, n_fit)
    if count > MAX_SPLITS:
        raise ParameterError(
            f'n_splits="all" would take {count:,} splits of {total} candidates; the limit is {MAX_SPLITS:,}.'
        )
    chosen = itertools.chain.from_iterable(itertools.combinations(range(total), n_fit))
    fit = np.ascontiguousarray(np.fromiter(chosen, np.intp, count * n_fit).reshape(count, n_fit).T)
    held = _complement(fit, total)
    fit.setflags(write=False)
    held.setflags(write=False)
    return fit, held


def _chunks(
    splits: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> Iterator[tuple[slice, NDArray[np.intp], NDArray[np.intp]]]:
    """Splits a few thousand at a time: which ones, their fitted and their predicted candidates."""
    fit, held = splits
    for start in range(0, fit.shape[1], SPLITS_AT_ONCE):
        part = slice(start, start + SPLITS_AT_ONCE)
        yield part, fit[:, part], held[:, part]


def _complement(rows: NDArray[np.intp], total: int) -> NDArray[np.intp]:
    """For each column of indices below total (no repeats), the others in ascending order."""
    others = np.ones((rows.shape[1], total), dtype=bool)
    np.put_along_axis(others, rows.T, False, axis=1)
    return np.ascontiguousarray(np.nonzero(others)[1].reshape(rows.shape[1], -1).T)


def _inputs(
    x: ArrayLike | Sequence[ArrayLike], y: ArrayLike, x_name: str = "x", y_name: str = "y"
) -> tuple[Array, Array]:
    """Predictors as (predictors, candidates) and the outcome as (candidates,), complete and finite."""
    several = isinstance(x, (tuple, list)) and len(x) > 0 and np.ndim(x[0]) > 0
    try:
        outcome = np.asarray(y, dtype=np.float64)
        if several:
            predictors = np.stack([np.asarray(one, dtype=np.float64) for one in x])
        else:
            predictors = np.asarray(x, dtype=np.float64).T  # a table has one column per predictor
    except (TypeError, ValueError):
        raise ParameterError(f"{x_name} and {y_name} must hold numbers, one per candidate, none missing.") from None
    predictors = np.atleast_2d(predictors)
    if outcome.ndim != 1 or predictors.ndim != 2 or not len(predictors) or predictors.shape[1] != outcome.size:
        raise ParameterError(
            f"{x_name} must hold one value per candidate and predictor and {y_name} one per candidate; "
            f"the shapes are {np.shape(x)} and {np.shape(y)}."
        )
    if outcome.size < 2:
        raise ParameterError(f"{y_name} must hold at least two candidates, not {outcome.size}.")
    for name, values in ((x_name, predictors), (y_name, outcome)):
        if not np.isfinite(values).all():
            raise ParameterError(f"{name} must be finite for every candidate; leave out those without a value.")
    return predictors, outcome
