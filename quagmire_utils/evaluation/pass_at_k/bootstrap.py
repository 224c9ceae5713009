"""95 % intervals of Pass@k from a two-level bootstrap over problems and over the answers to each of them.

    bootstrap_intervals(counts, ks=[1, 64])      # one row per benchmark and k, then the macro average

A score is uncertain because other problems of the kind could have been asked, and because other answers could have been
drawn. Each replicate redraws both: m problems with replacement, then for each of them n answers, correct with the
problem's observed share. Done naively this is wrong twice, and both are mended here:

- The spread between the observed scores of problems already holds the sampling of answers, so redrawing answers on top
  counts that share twice (at n = 4 and equally hard problems the interval covers 99 % instead of 95 %). So the
  problems' deviations from the mean are first shrunk to the spread that sampling does not explain. What sampling
  explains is known without bias while 2k <= n: with u_j = C(n-c, j) / C(n, j), the variance of a problem's Pass@k over
  repeated sampling is estimated by u_k^2 - u_2k. Beyond, the redrawn answers themselves stand in for it.
- Redrawing answers with replacement lowers Pass@k: an answer drawn twice finds nothing new (1 of 4 correct has Pass@4 =
  1, and 0.684 on the average over such redraws). So a replicate holds the deviation from its own exact expectation.

Few problems make percentile intervals too short, so the percentiles are taken further out, as Student's t asks
(Hesterberg 2015, "expanded percentile"). Scores near 0 or 1, where all problems look alike and a bootstrap has nothing
to vary, get at least Wilson's interval, for the number of independent trials that the standard error amounts to and
never more than the groups of k answers that were drawn, nor less than the problems: a mean of m shares around p varies
by p (1 - p) / m at most, whatever redrawn answers say where p rounds to 1.

A standard error that rests on a few right answers (or, near 1, on a few groups of k without any) can't tell whether the
next ones would come from other problems or all from one. So to those seen, z^2 are added that come as dependent as can
be, from problems always solved or never, as Wilson adds z^2 trials: with none seen the trials are the problems, with
hundreds next to nothing changes, and in between no interval jumps. The tests measure the coverage that results, against
populations of known mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.pass_at_k.estimator import (
    TABLE_CELLS,
    _checked_ks,
    _distinct_pairs,
    _each_benchmark,
    pass_at_k,
)

MACRO = "macro average"
LEVELS = 256  # quantiles that stand for a binomial distribution
UNDECIDED = ("timeout", "error")  # the grader could not tell; an answer that is not there is the model's own failure

Array = NDArray[np.float64]


def bootstrap_intervals(
    counts: pd.DataFrame,
    ks: Sequence[int] | None = None,
    *,
    confidence: float = 0.95,
    replicates: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Pass@k of each benchmark and their macro average, with intervals: one row per benchmark and k.

    counts: one row per problem, columns benchmark, problem, n, correct; n may differ between problems. ks: default
    every k up to the smallest n. Returns benchmark ("macro average" last, each benchmark weighing the same), k,
    pass_at_k, low, high, standard_error (other problems of the kind, other answers; never below the next),
    sampling_error (other answers to these same problems), problems, min_n. NaN where k exceeds the n of any problem;
    low, high and standard_error are NaN for a single problem, sampling_error where one answer is all a problem has.
    Equal arguments give equal results. Raises ParameterError for bad counts, a confidence outside (0, 1), fewer than
    100 replicates.
    """
    if not 0 < confidence < 1:
        raise ParameterError(f"confidence must be between 0 and 1, not {confidence}")
    if replicates < 100:
        raise ParameterError(f"replicates must be at least 100 for an interval, not {replicates}")
    benchmarks = list(_each_benchmark(counts))
    if ks is None:
        ks = range(1, min(int(samples.min()) for _, samples, _ in benchmarks) + 1)
    ks = _checked_ks(ks)
    rng = np.random.default_rng(seed)
    each = [_Replicates.draw(samples, correct, ks, replicates, rng) for _, samples, correct in benchmarks]
    parts = [(name, rows) for (name, _, _), rows in zip(benchmarks, each, strict=True)]
    return pd.concat(
        [rows.frame(name, ks, confidence) for name, rows in [*parts, (MACRO, _Replicates.average(each))]],
        ignore_index=True,
    )


def score_bounds(counts: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Pass@k with every undecided answer taken as wrong and as right: benchmark, k, as_wrong, as_right.

    Undecided is what the grader could not decide: timeout and error. A response without an answer is wrong in both.
    counts: as in `bootstrap_intervals`, and timeout and error. The last rows are the macro average.
    """
    missing = [name for name in UNDECIDED if name not in counts.columns]
    if missing:
        raise ParameterError(f"counts lacks the column(s) {', '.join(missing)}")
    k = _checked_ks(ks)
    right = counts.assign(correct=counts["correct"] + counts[list(UNDECIDED)].sum(axis=1))
    wrong, right = (
        [pass_at_k(n, c, k).mean(axis=0) for _, n, c in _each_benchmark(frame)] for frame in (counts, right)
    )
    names = [*counts["benchmark"].unique(), MACRO]
    values = {"as_wrong": [*wrong, np.mean(wrong, axis=0)], "as_right": [*right, np.mean(right, axis=0)]}
    return pd.DataFrame(
        {
            "benchmark": np.repeat(np.array(names, dtype=object), k.size),
            "k": np.tile(k, len(names)),
            **{name: np.concatenate(rows) for name, rows in values.items()},
        }
    )


@dataclass(frozen=True)
class _Replicates:
    """A mean score, (k,), and what redrawing gives around it."""

    mean: Array
    deviations: Array  # (replicates, k), NaN where k > n
    variance: Array  # of the mean, unbiased
    sampling_variance: Array
    freedom: Array  # degrees of it
    trials: Array  # groups of k answers
    least: float  # trials that a mean of so many problems is worth at least
    seen: Array  # groups of k answers that came out the rarer way
    clusters: float  # problems, as a benchmark alone would need them for this variance of the mean
    problems: int
    min_n: int

    @classmethod
    def draw(
        cls,
        samples: NDArray[np.int64],
        correct: NDArray[np.int64],
        ks: NDArray[np.int64],
        replicates: int,
        rng: np.random.Generator,
    ) -> _Replicates:
        """The two-level bootstrap of one benchmark."""
        m, size = samples.size, ks.size
        pair_n, pair_c, pair_of, weight = _distinct_pairs(samples, correct)
        weight = weight / m
        # A redrawn problem has one of sum(n + 1) possible (n, c): its row in a table of their scores. Which one: a
        # quantile of the binomial distribution, picked at random.
        sizes = np.unique(samples)
        first_row = np.concatenate([[0], np.cumsum(sizes + 1)])
        redraws = first_row[np.searchsorted(sizes, pair_n)][:, None] + _binomial_quantiles(pair_n, pair_c)
        chance = _tally(redraws, int(first_row[-1])) / LEVELS
        picks = rng.integers(m * LEVELS, size=(replicates, m))
        pairs = pair_of[picks // LEVELS]
        pairs_drawn = _tally(pairs, len(pair_n))
        rows_drawn = _tally(redraws[pairs, picks % LEVELS], int(first_row[-1]))

        mean, variance, sampling, seen = np.full((4, size), np.nan)
        deviations = np.full((replicates, size), np.nan)
        possible = np.flatnonzero(ks <= samples.min())
        width = max(1, TABLE_CELLS // int(first_row[-1]))
        for left in range(0, possible.size, width):
            columns = possible[left : left + width]
            k = ks[columns]
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
            deviations[:, columns] = (pairs_drawn @ between + rows_drawn @ (table * scale)) / m
            mean[columns] = np.clip(middle, 0, 1)
            variance[columns], sampling[columns] = np.maximum(total, within) / m, within / m
            groups = m * weight * pair_n
            seen[columns] = np.minimum(groups @ scores, groups @ (1 - scores)) / k
        if m == 1:  # nothing tells how other problems would do
            variance[:], deviations[:] = np.nan, np.nan
        if samples.min() == 1:  # nothing tells how other answers would do
            sampling[:] = np.nan
        freedom = np.full(size, max(m - 1.0, 1.0))
        trials = samples.sum() / ks
        least, fewest = max(m - 1, 1), int(samples.min())
        return cls(mean, deviations, variance, sampling, freedom, trials, least, seen, m, m, fewest)

    @classmethod
    def average(cls, each: Sequence[_Replicates]) -> _Replicates:
        """The mean of benchmarks whose problems are drawn independently."""
        count = len(each)
        variances = np.array([part.variance for part in each]) / count**2
        variance = variances.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):  # Satterthwaite's; all variances may be 0
            freedom = variance**2 / (variances**2 / np.array([part.freedom for part in each])).sum(axis=0)
        least = np.sum([part.freedom for part in each], axis=0)
        return cls(
            np.mean([part.mean for part in each], axis=0),
            np.mean([part.deviations for part in each], axis=0),
            variance,
            np.sum([part.sampling_variance for part in each], axis=0) / count**2,
            np.where(variance > 0, freedom, least),
            count**2 / np.sum([1 / part.trials for part in each], axis=0),
            count**2 / sum(1 / part.least for part in each),
            np.sum([part.seen for part in each], axis=0),
            count**2 / sum(1 / part.clusters for part in each),
            sum(part.problems for part in each),
            min(part.min_n for part in each),
        )

    def frame(self, name: str, ks: NDArray[np.int64], confidence: float) -> pd.DataFrame:
        """The rows of `bootstrap_intervals`."""
        from scipy.special import ndtr, ndtri, stdtrit

        t = stdtrit(self.freedom, (1 + confidence) / 2)
        tail = ndtr(-t)
        unseen = ndtri((1 + confidence) / 2) ** 2
        range_ = {"least": self.least, "most": self.trials, "doubt": unseen / (unseen + self.seen)}
        low, high = wilson(self.mean, self.variance, self.clusters, t, **range_)
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
    """Wilson's interval for a mean score with a given variance of the mean; all arrays (k,), z in standard errors.

    The number of trials is the one that would give this variance, between `least` and `most`; where the variance is
    zero, as many trials as problems, so that 0 of n does not look certain. doubt: how much of the variance is taken
    from such trials all the same, 0 to 1.
    """
    spread = share * (1 - share)
    with np.errstate(invalid="ignore", divide="ignore"):
        trials = np.where((variance > 0) & (spread > 0), spread / variance, float(problems))
        trials = 1 / ((1 - doubt) / np.clip(trials, least, most) + doubt / problems)
        z2 = np.square(z)
        middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
        width = np.sqrt(z2 * (spread / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return np.clip(middle - width, 0, 1), np.clip(middle + width, 0, 1)


def _binomial_quantiles(n: NDArray[np.int64], c: NDArray[np.int64]) -> NDArray[np.int64]:
    """Equally likely numbers of correct answers among n that are each correct with chance c / n: (pairs, LEVELS)."""
    from scipy.stats import binom

    levels = (np.arange(LEVELS) + 0.5) / LEVELS
    open_ = (c > 0) & (c < n)  # the others have but one value
    quantiles = np.tile(c[:, None], (1, LEVELS))
    quantiles[open_] = binom.ppf(levels, n[open_, None], (c[open_] / n[open_])[:, None])
    return quantiles


def _tally(columns: NDArray[np.int64], width: int) -> Any:
    """How often each column number occurs in each row: a (rows, width) matrix, sparse where that is mostly zeros."""
    from scipy.sparse import csr_array

    rows, entries = columns.shape
    if width <= 2 * entries:
        flat = (np.arange(rows) * width)[:, None] + columns
        return np.bincount(flat.ravel(), minlength=rows * width).reshape(rows, width).astype(np.float64)
    start = np.arange(0, columns.size + 1, entries)
    return csr_array((np.ones(columns.size), columns.ravel(), start), shape=(rows, width))


def _sampling_variance(
    pair_n: NDArray[np.int64], pair_c: NDArray[np.int64], ks: NDArray[np.int64], weight: Array
) -> Array:
    """Variance of Pass@k over repeated sampling, mean over problems, (k,): unbiased where 2k <= n, useless beyond."""
    miss, miss_twice = 1 - pass_at_k(pair_n, pair_c, ks), 1 - pass_at_k(pair_n, pair_c, 2 * ks)
    return np.maximum(weight @ (miss**2 - np.nan_to_num(miss_twice)), 0.0)


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
