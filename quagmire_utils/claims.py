"""Claims of the paper, each tested on our records: a statistic, its 95 % interval, and a verdict.

    candidates = select_candidates(candidate_frame(records), "Llama3-8B-Instruct")
    for claim in (score_explains_part(candidates), repeating_raises_loss(candidates), loss_tracks_gain(candidates)):
        print(claim.text)

Verdicts are computed, never written by hand: `holds` or `does not hold` where the whole interval is on one side of the
claim's bound, `undecided` where it is not, `too few candidates` below four. Implemented: Fig. 3 (Sec. 2.1) and Fig. 5
(Sec. 3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from quagmire_utils import paper
from quagmire_utils.prediction import bootstrap_interval

MIN_CANDIDATES = 4
PARTLY = 0.8  # ours: "only partly" means that R2 is below this
CONFIDENCE = 0.95
SPREAD = 1.96  # standard errors to each side


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and what our records say about it."""

    where: str  # in the paper
    claim: str  # in our words
    statistic: str
    value: float
    low: float
    high: float
    n: int  # candidates
    paper: float  # the published value; NaN where none is printed
    verdict: str  # holds, does not hold, undecided, too few candidates

    @property
    def text(self) -> str:
        """One sentence in Markdown."""
        if self.verdict == "too few candidates":
            return f"{self.where}, “{self.claim}”: **too few candidates** ({self.n}) to say anything."
        published = "" if math.isnan(self.paper) else f"; paper {self.paper:.2f}"
        interval = "" if math.isnan(self.low) else f", 95 % interval {self.low:.2f} to {self.high:.2f}"
        return (
            f"{self.where}, “{self.claim}”: **{self.verdict}** at this scale "
            f"({self.statistic} {self.value:.2f}{interval}, n = {self.n} candidates{published})."
        )


def score_explains_part(candidates: pd.DataFrame, outcome: str = "outcome") -> Claim:
    """Fig. 3: the line from post-SFT Pass@1 to the outcome explains only part of its variance (R2 of the fit < PARTLY).

    The interval is a bootstrap over candidates.
    """
    claims = paper.claims().set_index("name")
    claim = "the score after SFT explains only part of the outcome of RL"
    known = candidates.dropna(subset=["pass1", outcome])
    value = low = high = math.nan
    if len(known) >= MIN_CANDIDATES:
        interval = bootstrap_interval(known["pass1"], known[outcome], "r2", confidence=CONFIDENCE)
        value, low, high = interval.estimate, interval.low, interval.high
    published = float(claims.loc["fig03_r2", "value"])
    verdict = _verdict(low - PARTLY, high - PARTLY, len(known), below=True)
    return Claim("Fig. 3", claim, "R² of the fit", value, low, high, len(known), published, verdict)


def repeating_raises_loss(candidates: pd.DataFrame) -> Claim:
    """Fig. 5: repeating the same examples for more epochs ends up raising the generalization loss.

    Tested on the examples that were repeated most often: loss at the most epochs minus the lowest loss with fewer, in
    nats per token, with the interval that the standard errors of both losses give.
    """
    claim = "repeating the examples for more epochs makes the generalization loss rise"
    statistic = "loss at the most epochs minus the lowest before"
    known = candidates.dropna(subset=["gen_loss", "gen_loss_se"]).sort_values("epochs")
    series = [rows for _, rows in known.groupby("n_examples") if len(rows) > 1]
    if not series:
        return Claim("Fig. 5", claim, statistic, math.nan, math.nan, math.nan, 0, math.nan, "too few candidates")
    rows = max(series, key=lambda rows: (rows["epochs"].max(), len(rows)))
    last, before = rows.iloc[-1], rows.iloc[:-1].sort_values("gen_loss").iloc[0]
    rise = float(last["gen_loss"] - before["gen_loss"])
    width = SPREAD * math.hypot(last["gen_loss_se"], before["gen_loss_se"])
    compared = f"{last['epochs']:g} against {before['epochs']:g} epochs"
    statistic += (
        f" ({int(last['n_examples']):,} examples, {compared}, one SFT run each: the interval is the loss's own)"
    )
    verdict = _verdict(rise - width, rise + width, MIN_CANDIDATES, below=False)
    return Claim("Fig. 5", claim, statistic, rise, rise - width, rise + width, len(rows), math.nan, verdict)


def loss_tracks_gain(candidates: pd.DataFrame, n_resamples: int = 4000, seed: int = 0) -> Claim:
    """Fig. 5: the higher the generalization loss after SFT, the less RL adds (Spearman correlation below zero).

    The interval is a bootstrap over candidates.
    """
    claim = "a higher generalization loss after SFT goes with a smaller gain during RL"
    known = candidates.dropna(subset=["gen_loss", "gain"])
    loss, gain = known["gen_loss"].to_numpy(np.float64), known["gain"].to_numpy(np.float64)
    value = low = high = math.nan
    if len(known) >= MIN_CANDIDATES:
        value = rank_correlation(loss, gain)
        drawn = np.random.default_rng(seed).integers(len(known), size=(n_resamples, len(known)))
        replicates = np.array([rank_correlation(loss[rows], gain[rows]) for rows in drawn])
        tail = (1 - CONFIDENCE) / 2
        low, high = np.nanquantile(replicates, [tail, 1 - tail])
    verdict = _verdict(low, high, len(known), below=True)
    return Claim("Fig. 5", claim, "rank correlation", value, float(low), float(high), len(known), math.nan, verdict)


def correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation; NaN where one side does not vary."""
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale > 0 else math.nan


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's correlation, with its sign; NaN where one side does not vary."""
    return correlation(stats.rankdata(x), stats.rankdata(y))


def _verdict(low: float, high: float, n: int, *, below: bool) -> str:
    """Of the claim that a quantity with this interval lies below zero (or above)."""
    if n < MIN_CANDIDATES:
        return "too few candidates"
    if low > 0 or high < 0:  # false for NaN
        return "holds" if (high < 0) == below else "does not hold"
    return "undecided"
