"""95 % intervals of Pass@k by a two-level bootstrap over problems and answers, and of the difference of two models.

    bootstrap_intervals(counts, ks=[1, 64])      # one row per benchmark and k, then the macro average

A score is uncertain because other problems could have been asked and other answers drawn. Each replicate redraws both:
m problems with replacement, then n answers to each, correct with the problem's observed share. The plain version of
this has two faults, corrected as follows:

- The spread between the observed scores of problems already contains the sampling of answers. So that redrawing them
  does not count it twice, deviations from the mean are first shrunk to the spread that sampling does not explain.
  While 2k <= n, the explained part has an unbiased estimate: with u_j = C(n-c, j) / C(n, j), the variance of a
  problem's Pass@k over repeated sampling is u_k^2 - u_2k. For larger k the redrawn answers themselves give it.
- Redrawing answers with replacement lowers Pass@k, because a repeated answer finds nothing new (1 of 4 correct has
  Pass@4 = 1, but 0.684 on average over such redraws). Therefore a replicate holds the deviation from its own exact
  expectation.

Percentile intervals are too short for few problems, so the percentiles are moved outwards as Student's t requires
(Hesterberg 2015, "expanded percentile"). Near 0 or 1, where all problems look alike and a bootstrap has nothing to
vary, the interval is at least Wilson's. Its number of trials is the one that gives the standard error, at most the
number of groups of k answers, at least the number of problems (a mean of m shares around p varies by p (1 - p) / m at
most).

With few correct answers it is unknown whether further ones would come from different problems or from one. So z^2 are
added to those seen, as Wilson adds z^2 trials; for them, all answers to a problem count as one trial. With none seen,
each problem is one trial; with hundreds almost nothing changes. The tests measure the coverage of the intervals on
populations of known mean.

    compare(counts_after, counts_before, ks=[1, 64])      # two models on the same problems

Both models answered the same problems, so the difference on each problem is what counts. Its spread is much smaller
than that of either score; overlapping intervals of the two scores decide nothing. Interval and p-value are those of the
paired t-test over problems: do the models differ on problems of this kind? The sampling of answers is included, because
it adds to the spread of the differences. In the macro average each benchmark weighs the same, with Satterthwaite's
degrees of freedom. The 95 % interval excludes 0 exactly where p < 0.05, with one exception: if the difference is the
same on all problems (20 of 20 against 0 of 20), a t-test has no spread, and the p-value is that of the sign test. The
tests measure the size and the power of the test by simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.pass_at_k.averages import MACRO, each_benchmark
from quagmire_utils.evaluation.pass_at_k.estimator import Counts, checked_ks, distinct_pairs, pass_at_k

UPPER = 0.975  # the quantile at the upper end of a 95 % interval
LEVELS = 256  # quantiles that represent a binomial distribution

ROUNDING = 1e-12  # Pass@k is exact to about 1e-15
Array = NDArray[np.float64]


def bootstrap_intervals(
    counts: pd.DataFrame, ks: Sequence[int] | None = None, *, replicates: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Return Pass@k of each benchmark and their macro average, with intervals: one row per benchmark and k.

    counts: one row per problem, columns benchmark, problem, n, correct; n may differ between problems. ks: default
    every k up to the smallest n. Columns of the result: benchmark (the macro average last), k, pass_at_k, low, high,
    standard_error (over problems and answers; at least sampling_error), sampling_error (over answers to the same
    problems), problems, min_n. NaN where k exceeds the n of any problem; low, high and standard_error are NaN for
    a single problem, sampling_error if a problem has one answer. Equal counts give equal results, in whatever order.
    Raise ParameterError for bad counts and fewer than 100 replicates.
    """
    if replicates < 100:
        raise ParameterError("replicates", replicates, "at least 100")
    benchmarks = list(each_benchmark(counts))
    if ks is None:
        ks = range(1, min(int(samples.min()) for _, samples, _ in benchmarks) + 1)
    ks = checked_ks(ks)
    each = [
        _Replicates.draw(samples, correct, ks, replicates, np.random.default_rng([seed, crc32(str(name).encode())]))
        for name, samples, correct in benchmarks
    ]
    names = [*(name for name, _, _ in benchmarks), MACRO]
    rows = [*each, _Replicates.average(each)]
    return pd.concat([part.frame(name, ks) for name, part in zip(names, rows, strict=True)], ignore_index=True)


def mean_of_independent(variances: Array, freedoms: Array) -> tuple[Array, Array]:
    """Return variance and degrees of freedom (Satterthwaite) of a mean of benchmarks; arguments (benchmarks, k).

    `variances` are those of the benchmarks' means. The degrees of freedom are NaN where all variances are 0.
    """
    parts = variances / len(variances) ** 2
    variance = parts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return variance, variance**2 / (parts**2 / freedoms).sum(axis=0)


@dataclass(frozen=True)
class _Replicates:
    """A mean score, (k,), and the result of redrawing problems and answers."""

    mean: Array
    deviations: Array  # (replicates, k), NaN where k > n
    variance: Array  # of the mean, unbiased
    sampling_variance: Array
    freedom: Array  # degrees of freedom of the variance
    trials: Array  # groups of k answers
    least: float  # smallest number of trials for so many problems
    seen: Array  # groups of k answers with the rarer outcome
    clusters: float  # problems; of an average, those that one benchmark would need for this variance
    problems: int
    min_n: int

    @classmethod
    def draw(
        cls, samples: Counts, correct: Counts, ks: Counts, replicates: int, rng: np.random.Generator
    ) -> _Replicates:
        """Run the two-level bootstrap of one benchmark."""
        m, size = samples.size, ks.size
        pair_n, pair_c, pair_of, weight = distinct_pairs(samples, correct)
        weight = weight / m
        # a redrawn problem has one of sum(n + 1) possible (n, c), a row in a table of their scores; its c is a random
        # quantile of the binomial distribution
        sizes = np.unique(samples)
        first_row = np.concatenate([[0], np.cumsum(sizes + 1)])
        redraws = first_row[np.searchsorted(sizes, pair_n)][:, None] + _binomial_quantiles(pair_n, pair_c)
        chance = _tally(redraws, int(first_row[-1])) / LEVELS
        picks = rng.integers(m * LEVELS, size=(replicates, m))
        pairs = np.sort(pair_of)[picks // LEVELS]  # so that the order of the problems changes nothing
        pairs_drawn = _tally(pairs, len(pair_n))
        rows_drawn = _tally(redraws[pairs, picks % LEVELS], int(first_row[-1]))

        mean, variance, sampling, seen = np.full((4, size), np.nan)
        deviations = np.full((replicates, size), np.nan)
        possible = ks <= samples.min()
        k = ks[possible]
        scores = pass_at_k(pair_n, pair_c, k)
        table = np.concatenate([pass_at_k(n, np.arange(n + 1), k) for n in sizes])
        expected = chance @ table
        spread = np.maximum(chance @ table**2 - expected**2, 0.0)  # over redraws
        middle = weight @ scores
        total = weight @ (scores - middle) ** 2 * m / max(m - 1, 1)
        within = np.where(2 * k <= samples.min(), _sampling_variance(pair_n, pair_c, k, weight), weight @ spread)
        shrink = np.sqrt(np.maximum(0.0, 1 - _ratio(within, total)))
        scale = np.sqrt(_ratio(within, weight @ spread))
        between = (scores - middle) * shrink * np.sqrt(m / max(m - 1, 1)) - expected * scale
        deviations[:, possible] = (pairs_drawn @ between + rows_drawn @ (table * scale)) / m
        mean[possible] = np.clip(middle, 0, 1)
        variance[possible], sampling[possible] = np.maximum(total, within) / m, within / m
        groups = m * weight * pair_n
        seen[possible] = np.minimum(groups @ scores, groups @ (1 - scores)) / k
        if m == 1:  # no information on other problems
            variance[:], deviations[:] = np.nan, np.nan
        if samples.min() == 1:  # no information on other answers
            sampling[:] = np.nan
        freedom = np.full(size, max(m - 1.0, 1.0))
        trials = samples.sum() / ks
        least, fewest = max(m - 1, 1), int(samples.min())
        return cls(mean, deviations, variance, sampling, freedom, trials, least, seen, m, m, fewest)

    @classmethod
    def average(cls, each: Sequence[_Replicates]) -> _Replicates:
        """Return the mean of benchmarks whose problems are drawn independently."""
        count = len(each)
        freedoms = np.array([part.freedom for part in each])
        variance, freedom = mean_of_independent(np.array([part.variance for part in each]), freedoms)
        return cls(
            np.mean([part.mean for part in each], axis=0),
            np.mean([part.deviations for part in each], axis=0),
            variance,
            np.sum([part.sampling_variance for part in each], axis=0) / count**2,
            np.where(variance > 0, freedom, freedoms.sum(axis=0)),
            count**2 / np.sum([1 / part.trials for part in each], axis=0),
            count**2 / sum(1 / part.least for part in each),
            np.sum([part.seen for part in each], axis=0),
            count**2 / sum(1 / part.clusters for part in each),
            sum(part.problems for part in each),
            min(part.min_n for part in each),
        )

    def frame(self, name: str, ks: Counts) -> pd.DataFrame:
        """Return the rows of `bootstrap_intervals`: Wilson's interval, widened to the bootstrap's quantiles."""
        from scipy.special import ndtr, ndtri, stdtrit

        t = stdtrit(self.freedom, UPPER)
        tail = ndtr(-t)
        z2 = ndtri(UPPER) ** 2
        doubt = z2 / (z2 + self.seen)  # large if few groups have the rarer outcome
        low, high = wilson(self.mean, self.variance, self.clusters, t, least=self.least, most=self.trials, doubt=doubt)
        known = np.isfinite(self.variance) & np.isfinite(self.mean)
        for column in np.flatnonzero(known):
            ends = np.quantile(self.deviations[:, column], [tail[column], 1 - tail[column]]) + self.mean[column]
            low[column], high[column] = min(low[column], ends[0]), max(high[column], ends[1])
        return pd.DataFrame(
            {
                "benchmark": name,
                "k": ks,
                "pass_at_k": self.mean,
                "low": np.where(known, np.clip(low, 0, 1), np.nan),
                "high": np.where(known, np.clip(high, 0, 1), np.nan),
                "standard_error": np.sqrt(self.variance),
                "sampling_error": np.sqrt(self.sampling_variance),
                "problems": self.problems,
                "min_n": self.min_n,
            }
        )


def wilson(
    share: Array,
    variance: Array,
    problems: float,
    z: Array | float,
    *,
    least: float = 1.0,
    most: Array | float = np.inf,
    doubt: Array | float = 0.0,
) -> tuple[Array, Array]:
    """Return Wilson's interval for a mean score with a given variance; all arrays (k,), z in standard errors.

    The number of trials is the one that gives this variance, between `least` and `most`. If the variance is zero, each
    problem counts as one trial, so that 0 of n does not look certain. doubt: share of the variance, 0 to 1, that is
    always computed with one trial per problem.
    """
    spread = share * (1 - share)
    with np.errstate(invalid="ignore", divide="ignore"):
        trials = np.where((variance > 0) & (spread > 0), spread / variance, float(problems))
        trials = 1 / ((1 - doubt) / np.clip(trials, least, most) + doubt / problems)
        z2 = np.square(z)
        middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
        width = np.sqrt(z2 * (spread / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return np.clip(middle - width, 0, 1), np.clip(middle + width, 0, 1)


def wilson_rows(
    parts: Sequence[tuple[object, Array, Array, int]], ks: Counts, key: str = "benchmark", upper: float = UPPER
) -> pd.DataFrame:
    """Return Wilson's intervals over problems, one row per part and k, of (name, mean, its variance, problems).

    Columns: `key` (the name), k, value, low, high, standard_error, problems. The errors are NaN for a single problem.
    """
    from scipy.special import stdtrit

    frames = []
    for name, mean, variance, count in parts:
        low, high = wilson(mean, variance, count, stdtrit(max(count - 1, 1), upper), most=count)
        columns = {key: name, "k": ks, "value": mean}
        columns |= {end: np.where(np.isnan(variance), np.nan, value) for end, value in (("low", low), ("high", high))}
        frames.append(pd.DataFrame({**columns, "standard_error": np.sqrt(variance), "problems": count}))
    return pd.concat(frames, ignore_index=True)


def mean_and_error(scores: Array) -> tuple[Array, Array, int]:
    """Return the mean of scores (problems, k), the variance of that mean (NaN for one problem), and the problems."""
    count = len(scores)
    variance = scores.var(axis=0, ddof=1) / count if count > 1 else np.full(scores.shape[1], np.nan)
    return scores.mean(axis=0), variance, count


def _binomial_quantiles(n: Counts, c: Counts) -> Counts:
    """Return equally likely numbers of correct answers among n, each correct with chance c / n: (pairs, LEVELS)."""
    from scipy.stats import binom

    levels = (np.arange(LEVELS) + 0.5) / LEVELS
    open_ = (c > 0) & (c < n)  # the others have one value
    quantiles = np.tile(c[:, None], (1, LEVELS))
    quantiles[open_] = binom.ppf(levels, n[open_, None], (c[open_] / n[open_])[:, None])
    return quantiles


def _tally(columns: Counts, width: int) -> Any:
    """Count each column number in each row: a (rows, width) matrix, sparse if most of it is zero."""
    from scipy.sparse import csr_array

    rows, entries = columns.shape
    if width <= 2 * entries:
        flat = (np.arange(rows) * width)[:, None] + columns
        return np.bincount(flat.ravel(), minlength=rows * width).reshape(rows, width).astype(np.float64)
    start = np.arange(0, columns.size + 1, entries)
    return csr_array((np.ones(columns.size), columns.ravel(), start), shape=(rows, width))


def _sampling_variance(pair_n: Counts, pair_c: Counts, ks: Counts, weight: Array) -> Array:
    """Return the variance of Pass@k over repeated sampling, mean over problems, (k,): unbiased for 2k <= n only."""
    miss, miss_twice = 1 - pass_at_k(pair_n, pair_c, ks), 1 - pass_at_k(pair_n, pair_c, 2 * ks)
    return np.maximum(weight @ (miss**2 - np.nan_to_num(miss_twice)), 0.0)


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


# --- two models on the same problems ----------------------------------------------------------------------------------


def compare(counts_a: pd.DataFrame, counts_b: pd.DataFrame, ks: Sequence[int] = (1,)) -> pd.DataFrame:
    """Return Pass@k of a minus that of b: one row per benchmark and k, then the macro average.

    counts_a, counts_b: as in `bootstrap_intervals`, of the same problems; their n may differ. Columns: benchmark, k, a,
    b, difference, low, high, p_value, standard_error, better, worse (problems on which a is ahead or behind), problems.
    NaN where k exceeds the n of any problem of either, and for the errors of a single problem. If the difference is the
    same on all problems (mostly 0), p_value is that of the sign test (1 for a difference of 0; NaN in a macro average
    of benchmarks that differ by constants of both signs), and half the interval
    is z^2 / (problems + z^2), the share of problems that may differ without having been seen. Raise ParameterError for
    bad counts, and if the two hold different problems.
    """
    from scipy.special import ndtri, stdtr, stdtrit

    k = checked_ks(ks)
    for counts in (counts_a, counts_b):
        list(each_benchmark(counts))  # checks it
    keys, columns = ["benchmark", "problem"], ["benchmark", "problem", "n", "correct"]
    both = counts_a[columns].merge(counts_b[columns], on=keys, how="outer", suffixes=("_a", "_b"), indicator=True)
    alone = both[both["_merge"] != "both"]
    if len(alone):
        example = " ".join(map(str, alone.iloc[0][keys]))
        reason = f"it must hold the problems of counts_a; {len(alone)} are in only one of them (such as {example})"
        raise ParameterError("counts_b", reason=reason)
    seen = ndtri(UPPER) ** 2
    names = counts_a["benchmark"].unique().tolist()
    each = [_difference(both[both["benchmark"] == name], k, seen) for name in names]
    frames = []
    alone = [(name, one, [one]) for name, one in zip(names, each, strict=True)]
    for name, part, parts in [*alone, (MACRO, _mean(each), each)]:
        difference, error = part["a"] - part["b"], np.sqrt(part["variance"])
        tested = ~(error <= ROUNDING)  # no spread to test if all differences are equal
        with np.errstate(invalid="ignore", divide="ignore"):
            half = np.where(tested, stdtrit(part["freedom"], UPPER) * error, part["unseen"])
            p_value = 2 * stdtr(part["freedom"], -np.abs(difference / error))
        for column in np.flatnonzero(~tested):
            p_value[column] = _sign_test([(one["a"][column] - one["b"][column], one["problems"]) for one in parts])
        low, high = np.clip(difference - half, -1, 1), np.clip(difference + half, -1, 1)
        columns = {"benchmark": name, "k": k, "a": part["a"], "b": part["b"], "difference": difference}
        columns |= {"low": low, "high": high, "p_value": p_value, "standard_error": error}
        frames.append(pd.DataFrame(columns | {one: part[one] for one in ("better", "worse", "problems")}))
    return pd.concat(frames, ignore_index=True)


def _difference(rows: pd.DataFrame, ks: Counts, seen: float) -> dict[str, Any]:
    """Return two models' scores on one benchmark, and variance, degrees of freedom, ... of their difference: (k,)."""
    a, b = (pass_at_k(rows[f"n_{model}"], rows[f"correct_{model}"], ks) for model in "ab")
    d, m = a - b, len(rows)
    return {
        "a": a.mean(axis=0),
        "b": b.mean(axis=0),
        "variance": d.var(axis=0, ddof=1) / m if m > 1 else np.full(ks.size, np.nan),
        "freedom": np.full(ks.size, max(m - 1.0, 1.0)),
        "unseen": np.full(ks.size, seen / (m + seen)),  # half the interval where nothing differs
        "better": (d > ROUNDING).sum(axis=0),
        "worse": (d < -ROUNDING).sum(axis=0),
        "problems": m,
    }


def _mean(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the macro average of several benchmarks' `_difference`."""
    part = {name: np.array([one[name] for one in each]) for name in each[0]}
    mean = {name: part[name].mean(axis=0) for name in ("a", "b")}
    mean["variance"], mean["freedom"] = mean_of_independent(part["variance"], part["freedom"])
    mean["unseen"] = np.sqrt((part["unseen"] ** 2).sum(axis=0)) / len(each)
    return mean | {name: part[name].sum(axis=0) for name in ("better", "worse", "problems")}


def _sign_test(benchmarks: Sequence[tuple[float, int]]) -> float:
    """Return the two-sided p-value of a mean of benchmarks, each given as (difference on every problem, problems)."""
    differing = [(difference > 0, problems) for difference, problems in benchmarks if abs(difference) > ROUNDING]
    if len({sign for sign, _ in differing}) > 1:
        return np.nan
    return min(1.0, 2.0 ** (1 - sum(problems for _, problems in differing)))
