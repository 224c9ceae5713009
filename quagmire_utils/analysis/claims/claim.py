"""What a claim is, how an interval becomes a verdict, and the correlations that claims are tested with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

MIN_CANDIDATES = 6  # for a claim over candidates; with fewer, a 95 % bootstrap interval is far from what it says
CONFIDENCE = 0.95
RESAMPLES = 4000
VERDICTS = ("holds", "does not hold", "undecided", "too few candidates", "not run")

Array = NDArray[np.float64]
Interval = Callable[[float], tuple[float, float]]  # confidence -> (low, high)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A statistic on our records, and how sure it is."""

    value: float
    statistic: str  # what was computed, and of what
    n: int
    interval: Interval
    noise: str = ""  # what the interval holds
    counted: str = "candidates"  # what n counts


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and what our records say about it: one row of the ledger."""

    where: str  # in the paper
    claim: str  # in our words
    statistic: str
    value: float
    low: float
    high: float
    n: int
    paper: float  # the published value; NaN where none is printed
    verdict: str  # one of VERDICTS
    name: str = ""
    family: str = ""  # ours
    model: str = ""  # the paper's, which our family stands for
    quote: str = ""  # the paper's words
    unit: str = ""  # "points": 0.01 of Pass@1
    noise: str = ""  # what the interval holds
    counted: str = "candidates"  # what n counts
    bound: float = 0.0  # the claim says that the statistic lies on one side of this
    below: bool = False  # which side
    together: str = ""  # the verdict when all claims of a ledger are to be right at once

    @property
    def text(self) -> str:
        """One sentence in Markdown."""
        whose = f", {self.family or self.model}" if self.family or self.model else ""
        head = f"{self.where}{whose}, “{self.claim}”"
        if self.verdict == "not run":
            return f"{head}: **not run**."
        if self.verdict == "too few candidates":
            return f"{head}: **too few {self.counted}** ({self.n}) to say anything."
        published = "" if math.isnan(self.paper) else f"; paper {self.number(self.paper)}"
        interval = f", 95 % interval {self.interval}" if self.interval else ""
        side = "below" if self.below else "above"
        bound = f", claimed to lie {side} {self.number(self.bound)}" if self.bound else ""
        return (
            f"{head}: **{self.verdict}** at this scale "
            f"({self.statistic}: {self.number(self.value)}{interval}{bound}, n = {self.size}{published})."
        )

    @property
    def interval(self) -> str:
        """Both ends of the 95 % interval as text; empty where there is none."""
        if math.isnan(self.low):
            return ""
        low = self.number(self.low).removesuffix(" points").removesuffix(" nats")
        return f"{low} to {self.number(self.high)}"

    @property
    def size(self) -> str:
        """How many of what the claim was tested on."""
        first, _, rest = self.counted.partition(" ")
        return f"{self.n} {first.removesuffix('s') if self.n == 1 else first} {rest}".strip()

    def number(self, value: float) -> str:
        """`value` as it is printed in this claim's unit."""
        if math.isnan(value):
            return "undefined"
        if self.unit == "points":
            return f"{100 * value:+.1f} points"
        if self.unit == "nats":
            return f"{value:+.3f} nats"
        signed = "+" if self.unit.startswith("difference") else ""
        return f"{value:{signed}.2f}"


def verdict(low: float, high: float, bound: float = 0.0, *, below: bool) -> str:
    """Of the claim that a quantity with this interval lies below `bound` (or above).

    `holds` where the whole interval does, `does not hold` where none of it does, else (NaN too) `undecided`.
    """
    if low > bound or high < bound:
        return "holds" if (high < bound) == below else "does not hold"
    return "undecided"


def student(value: float, standard_error: float, degrees: float = math.inf) -> Interval:
    """Interval from a standard error with so many degrees of freedom (infinite: the normal distribution's)."""

    def interval(confidence: float) -> tuple[float, float]:
        half = float(stats.t.ppf((1 + confidence) / 2, degrees)) * standard_error
        return value - half, value + half

    return interval


def percentiles(replicates: Array) -> Interval:
    """Percentile interval of bootstrap replicates; undefined ones are left out."""
    defined = replicates[~np.isnan(replicates)]

    def interval(confidence: float) -> tuple[float, float]:
        if not defined.size:
            return math.nan, math.nan
        tail = (1 - confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        return float(low), float(high)

    return interval


def unknown(_: float) -> tuple[float, float]:
    """The interval of what was not computed."""
    return math.nan, math.nan


def too_few(statistic: str, n: int, counted: str = "candidates") -> Estimate:
    """An estimate that could not be made."""
    return Estimate(math.nan, statistic, n, unknown, "", counted)


def resampled(n: int, seed: int = 0, resamples: int = RESAMPLES) -> NDArray[np.intp]:
    """Rows of a bootstrap over n candidates, (resamples, n): the same draws as `fits.bootstrap_interval`'s."""
    return np.random.default_rng(seed).integers(n, size=(resamples, n))


def correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation; NaN where one side does not vary."""
    return float(row_correlation(np.atleast_2d(np.asarray(x, np.float64)), np.atleast_2d(np.asarray(y, np.float64)))[0])


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's correlation, with its sign; NaN where one side does not vary."""
    return correlation(stats.rankdata(x), stats.rankdata(y))


def row_correlation(x: Array, y: Array, *, ranked: bool = False) -> Array:
    """Pearson's (ranked: Spearman's) correlation of each pair of rows, (rows, n) each; NaN where one does not vary."""
    if ranked:
        x, y = stats.rankdata(x, axis=1), stats.rankdata(y, axis=1)
    x = x - x.mean(axis=1, keepdims=True)
    y = y - y.mean(axis=1, keepdims=True)
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    scale[scale == 0] = np.nan
    return np.clip((x * y).sum(axis=1) / scale, -1.0, 1.0)
