"""The unbiased estimator, for every k at once, and its averages over problems and benchmarks.

C(n-c, k) / C(n, k) is the product of 1 - k/(n-j) over j < c. Its logarithm is summed with log1p and turned into Pass@k
with expm1, so that nothing cancels near 0 or near 1, and no factorial overflows. One running sum over c serves all
counts of the same n, and equal (n, c) pairs are computed once: a million problems cost no more than a few hundred.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from quagmire_utils.core.errors import ParameterError

COUNT_COLUMNS = ("benchmark", "problem", "n", "correct")
TABLE_CELLS = 1 << 20  # cells of the (correct count, k) table held at a time: 8 MB
MAX_SAMPLES = 1 << 24  # far beyond any real n; keeps a wrong column from asking for gigabytes


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
    """Pass@k of each problem (Eq. 1), for one k or several.

    num_samples and num_correct: integers, (problems,) or a scalar that holds for all. k: an integer, or (k,) integers
    in any order. Returns (problems,) for a single k and (problems, k) for several, in [0, 1], NaN where k > n. Raises
    ParameterError for c > n, negative counts, k < 1 and anything that is not a whole number.
    """
    samples, correct = _counts(num_samples, num_correct)
    ks = _ks(k)
    pair_samples, pair_correct, inverse, _ = _distinct_pairs(samples.ravel(), correct.ravel())
    values = np.empty((len(pair_samples), ks.size))
    for rows, columns, block in _blocks(pair_samples, pair_correct, ks):
        values[rows, columns] = block
    return values[inverse].reshape(samples.shape + np.shape(k))[()]


def mean_pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, ks: ArrayLike | None = None) -> NDArray[np.float64]:
    """Pass@k averaged over the problems, (k,), for each of ks (default: every k from 1 to the smallest n).

    A k that exceeds the n of any problem gives NaN: an average over the remaining problems would be one over other,
    differently hard problems. Raises ParameterError as `pass_at_k` does, and when there is no problem at all.
    """
    samples, correct = _counts(num_samples, num_correct)
    if not samples.size:
        raise ParameterError("num_samples is empty, so there is no problem to average over.")
    ks = np.arange(1, samples.min() + 1) if ks is None else _ks(ks)
    mean, _ = _mean_and_variance(samples.ravel(), correct.ravel(), ks.ravel())
    return mean.reshape(ks.shape)[()]


def benchmark_pass_at_k(counts: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Mean Pass@k of each benchmark: one row per benchmark (in order of appearance) and k.

    counts: one row per problem, columns benchmark, problem, n (responses), correct. Returns columns benchmark, k,
    pass_at_k, standard_error (of the mean over problems; it holds both the choice of problems and the sampling of
    responses; NaN for a single problem), problems, min_n (fewest responses to a problem). Raises ParameterError for a
    missing column, a repeated problem, bad counts.
    """
    k = _checked_ks(ks)
    parts = []
    for benchmark, samples, correct in _each_benchmark(counts):
        mean, variance = _mean_and_variance(samples, correct, k)
        part = {
            "benchmark": benchmark,
            "k": k,
            "pass_at_k": mean,
            "standard_error": np.sqrt(variance / len(samples)),
            "problems": len(samples),
            "min_n": int(samples.min()),
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def benchmark_average(counts: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Macro average of Pass@k over benchmarks, each weighing the same whatever its size (Sec. 4.1): one row per k.

    counts: as in `benchmark_pass_at_k`. Returns columns k, pass_at_k, standard_error, benchmarks, problems. The
    standard error is that of the mean of independent benchmarks whose problems are a sample of the like: sqrt(sum of
    squares) / benchmarks. NaN where any benchmark has a problem with fewer than k responses.
    """
    each = benchmark_pass_at_k(counts, ks)
    shape = (-1, np.size(ks))  # benchmark x k, as benchmark_pass_at_k lays them out; a repeated k stays repeated
    mean = each["pass_at_k"].to_numpy().reshape(shape)
    error = each["standard_error"].to_numpy().reshape(shape)
    average = {
        "k": each["k"].to_numpy().reshape(shape)[0],
        "pass_at_k": mean.mean(axis=0),
        "standard_error": np.sqrt((error**2).sum(axis=0)) / len(mean),
        "benchmarks": len(mean),
        "problems": len(counts),
    }
    return pd.DataFrame(average)


def _checked_ks(ks: Sequence[int]) -> NDArray[np.int64]:
    """ks as an array (k,), at least one."""
    k = np.atleast_1d(_ks(ks))
    if not k.size:
        raise ParameterError("ks is empty; name at least one k.")
    return k


def _each_benchmark(counts: pd.DataFrame) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
    """(benchmark, n, correct) of each benchmark, in order of appearance; ParameterError for frames of another kind."""
    missing = [column for column in COUNT_COLUMNS if column not in counts.columns]
    if missing:
        raise ParameterError(
            f"counts lacks the column(s) {', '.join(missing)}; it has {', '.join(map(str, counts.columns))}."
        )
    if counts.empty:
        raise ParameterError("counts has no rows, so there is nothing to average.")
    if counts[["benchmark", "problem"]].isna().any(axis=None):
        raise ParameterError("counts has rows without a benchmark or without a problem.")
    repeated = counts.duplicated(["benchmark", "problem"])
    if repeated.any():
        row = counts[repeated].iloc[0]
        raise ParameterError(
            f"counts has problem {row['problem']!r} of benchmark {row['benchmark']!r} more than once; "
            "select one candidate, stage, run and checkpoint, or sum the counts of its samples."
        )
    for benchmark, rows in counts.groupby("benchmark", sort=False, observed=True):
        yield benchmark, *_counts(rows["n"], rows["correct"])


def _mean_and_variance(
    samples: NDArray[np.int64], correct: NDArray[np.int64], ks: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over problems and unbiased variance between problems, (k,) each."""
    mean, variance = np.full((2, ks.size), np.nan)
    possible = np.flatnonzero(ks <= samples.min())
    pair_samples, pair_correct, _, weight = _distinct_pairs(samples, correct)
    weight = weight / samples.size
    # Sums are taken of the distances from the first pair's values: equal problems then have a variance of exactly zero.
    shift, first, second = np.zeros((3, possible.size))
    for rows, columns, block in _blocks(pair_samples, pair_correct, ks[possible]):
        if rows.start == 0:
            shift[columns] = block[0]
        distance = block - shift[columns]
        first[columns] += weight[rows] @ distance
        second[columns] += weight[rows] @ distance**2
    mean[possible] = np.clip(first + shift, 0.0, 1.0)
    if samples.size > 1:
        variance[possible] = np.maximum(second - first**2, 0.0) * samples.size / (samples.size - 1)
    return mean, variance


def _blocks(
    samples: NDArray[np.int64], correct: NDArray[np.int64], ks: NDArray[np.int64]
) -> Iterator[tuple[slice, slice, NDArray[np.float64]]]:
    """Pass@k of sorted, distinct (n, c) pairs as (rows, columns of k, values), one n and a bounded number of k each."""
    edges = np.flatnonzero(np.diff(samples, prepend=-1, append=-1))
    for start, stop in itertools.pairwise(edges):
        n, counts = int(samples[start]), correct[start:stop]
        steps = np.arange(n, n - int(counts[-1]), -1.0)[:, None]  # n - j for j < c; counts are sorted
        width = max(1, TABLE_CELLS // (len(steps) + 1))
        for left in range(0, ks.size, width):
            k = ks.ravel()[left : left + width]
            log_fail = np.zeros((len(steps) + 1, k.size))
            with np.errstate(divide="ignore"):  # log1p(-1) = -inf: fewer than k wrong answers, Pass@k = 1
                np.log1p(-np.minimum(k / steps, 1.0), out=log_fail[1:])
            np.cumsum(log_fail, axis=0, out=log_fail)
            values = -np.expm1(log_fail[counts])
            values[:, k == 1] = counts[:, None] / n if n else 0.0  # c / n to the last bit
            values[:, k > n] = np.nan
            yield slice(start, stop), slice(left, left + k.size), values + 0.0  # + 0.0 turns -0.0 into 0.0


def _distinct_pairs(
    samples: NDArray[np.int64], correct: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sorted distinct (n, c), the index of each problem's pair, and how many problems share each pair."""
    base = int(correct.max(initial=0)) + 1
    code, inverse, weight = np.unique(samples * base + correct, return_inverse=True, return_counts=True)
    return code // base, code % base, inverse, weight


def _counts(num_samples: ArrayLike, num_correct: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    samples, correct = _integers("num_samples", num_samples), _integers("num_correct", num_correct)
    try:
        samples, correct = np.broadcast_arrays(samples, correct)
    except ValueError:
        raise ParameterError(
            f"num_samples and num_correct must have one shape, not {samples.shape} and {correct.shape}."
        ) from None
    for name, values in (("num_samples", samples), ("num_correct", correct)):
        if (values < 0).any():
            raise ParameterError(f"{name} must not be negative, but holds {values.min()}.")
    if (correct > samples).any():
        worst = np.argmax((correct > samples).ravel())
        raise ParameterError(
            f"num_correct exceeds num_samples: entry {worst} has {correct.flat[worst]} of {samples.flat[worst]}."
        )
    return samples, correct


def _ks(k: ArrayLike) -> NDArray[np.int64]:
    ks = _integers("k", k)
    if ks.ndim > 1:
        raise ParameterError(f"k must be one integer or a flat list of them, not an array of shape {ks.shape}.")
    if (ks < 1).any():
        raise ParameterError(f"k must be at least 1, but holds {ks.min()}.")
    return ks


def _integers(name: str, values: ArrayLike) -> NDArray[np.int64]:
    """Whole numbers as int64; floats are taken when they are whole (a join in pandas makes floats of counts)."""
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype == object and all(isinstance(value, numbers.Real) for value in array.flat):
        array = array.astype(np.float64)  # Python integers and nullable pandas columns; <NA> fails the check above
    if array.dtype.kind not in "iuf" or not np.all(np.isfinite(array) & (array == np.floor(array))):
        raise ParameterError(f"{name} must hold integers only.")
    if (array > MAX_SAMPLES).any():
        raise ParameterError(f"{name} must not exceed {MAX_SAMPLES}, but holds {array.max()}.")
    return array.astype(np.int64)
