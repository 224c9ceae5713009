"""The unbiased estimator of Pass@k, for every k at once.

C(n-c, k) / C(n, k) is the product of 1 - k/(n-j) over j < c. Its logarithm is summed with log1p and turned into Pass@k
with expm1, so nothing cancels near 0 or 1 and no factorial overflows. One running sum over c serves all counts of the
same n, and equal (n, c) pairs are computed once: a million problems cost no more than a few hundred.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quagmire_utils.core.errors import ParameterError

MAX_SAMPLES = 1 << 24  # far beyond any real n; keeps a wrong column from asking for gigabytes

Counts = NDArray[np.int64]


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
    """Return Pass@k of each problem (Eq. 1), for one k or several.

    num_samples and num_correct: integers, (problems,) or a scalar for all. k: an integer, or (k,) integers in any
    order. The result is (problems,) for a single k and (problems, k) for several, in [0, 1], NaN where k > n. Raise
    ParameterError for c > n, negative counts, k < 1 and anything that is not an integer.
    """
    samples, correct = checked_counts(num_samples, num_correct)
    ks = _ks(k)
    pair_samples, pair_correct, inverse, _ = distinct_pairs(samples.ravel(), correct.ravel())
    values = _table(pair_samples, pair_correct, ks.ravel())
    return values[inverse].reshape(samples.shape + np.shape(k))[()]


def mean_pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, ks: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return Pass@k averaged over the problems, (k,), for each of ks (default: every k from 1 to the smallest n).

    NaN where k exceeds the n of any problem: a mean over the other problems would be one over different problems. Raise
    ParameterError as `pass_at_k` does, and if there is no problem at all.
    """
    samples, correct = checked_counts(num_samples, num_correct)
    if not samples.size:
        raise ParameterError("num_samples", reason="it is empty, so there is no problem to average over")
    ks = np.arange(1, samples.min() + 1) if ks is None else _ks(ks)
    mean, _ = mean_and_variance(samples.ravel(), correct.ravel(), ks.ravel())
    return mean.reshape(ks.shape)[()]


def mean_and_variance(samples: Counts, correct: Counts, ks: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean over problems and the unbiased variance between problems, (k,) each."""
    pair_samples, pair_correct, _, weight = distinct_pairs(samples, correct)
    weight = weight / samples.size
    values = _table(pair_samples, pair_correct, ks)
    distance = values - values[0]  # so that equal problems have a variance of exactly zero
    first, second = weight @ distance, weight @ distance**2
    variance = np.full(ks.size, np.nan)
    if samples.size > 1:
        variance = np.maximum(second - first**2, 0.0) * samples.size / (samples.size - 1)
    return np.clip(first + values[0], 0.0, 1.0), variance


def _table(samples: Counts, correct: Counts, ks: Counts) -> NDArray[np.float64]:
    """Return Pass@k of sorted, distinct (n, c) pairs: (pairs, k)."""
    values = np.empty((len(samples), ks.size))
    edges = np.flatnonzero(np.diff(samples, prepend=-1, append=-1))
    for start, stop in itertools.pairwise(edges):
        n, counts = int(samples[start]), correct[start:stop]
        steps = np.arange(n, n - int(counts[-1]), -1.0)[:, None]  # n - j for j < c; counts are sorted
        log_fail = np.zeros((len(steps) + 1, ks.size))
        with np.errstate(divide="ignore"):  # log1p(-1) = -inf: fewer than k wrong answers, Pass@k = 1
            np.log1p(-np.minimum(ks / steps, 1.0), out=log_fail[1:])
        np.cumsum(log_fail, axis=0, out=log_fail)
        block = -np.expm1(log_fail[counts])
        block[:, ks == 1] = counts[:, None] / n if n else 0.0  # c / n to the last bit
        block[:, ks > n] = np.nan
        values[start:stop] = block + 0.0  # turns -0.0 into 0.0
    return values


def distinct_pairs(samples: Counts, correct: Counts) -> tuple[Counts, Counts, Counts, Counts]:
    """Return the sorted distinct n and c, the index of each problem's pair, and how many problems share each pair."""
    base = int(correct.max(initial=0)) + 1
    code, inverse, weight = np.unique(samples * base + correct, return_inverse=True, return_counts=True)
    return code // base, code % base, inverse, weight


def checked_ks(ks: Sequence[int]) -> Counts:
    """Return ks as an array (k,). Raise ParameterError if there is none, or one is not a positive integer."""
    k = np.atleast_1d(_ks(ks))
    if not k.size:
        raise ParameterError("ks", ks, "at least one k")
    return k


def integers(name: str, values: ArrayLike) -> Counts:
    """Return values as int64; integral floats are accepted, since a join in pandas makes floats of counts."""
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype == object and all(isinstance(value, numbers.Real) for value in array.flat):
        array = array.astype(np.float64)  # Python integers and nullable pandas columns; <NA> fails the check above
    if array.dtype.kind not in "iuf" or not np.all(np.isfinite(array) & (array == np.floor(array))):
        raise ParameterError(name, values, "integers")
    for wrong, allowed in ((array < 0, "at least 0"), (array > MAX_SAMPLES, f"at most {MAX_SAMPLES}")):
        if wrong.any():
            raise ParameterError(name, array[wrong][0].item(), allowed)
    return array.astype(np.int64)


def checked_counts(num_samples: ArrayLike, num_correct: ArrayLike) -> tuple[Counts, Counts]:
    """Return n and c as integers of one shape. Raise ParameterError for what cannot be counts."""
    samples, correct = integers("num_samples", num_samples), integers("num_correct", num_correct)
    try:
        samples, correct = np.broadcast_arrays(samples, correct)
    except ValueError:
        raise ParameterError("num_correct", correct.shape, f"of the shape {samples.shape} of num_samples") from None
    wrong = np.flatnonzero((correct > samples).ravel())
    if wrong.size:
        value, most = correct.flat[wrong[0]], samples.flat[wrong[0]]
        raise ParameterError("num_correct", int(value), f"at most num_samples ({most}, entry {wrong[0]})")
    return samples, correct


def _ks(k: ArrayLike) -> Counts:
    ks = integers("k", k)
    if ks.ndim > 1:
        raise ParameterError("k", ks.shape, "one integer or a flat list of them")
    if (ks < 1).any():
        raise ParameterError("k", int(ks.min()), "at least 1")
    return ks
