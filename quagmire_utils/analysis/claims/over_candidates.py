"""Claims about how measurements of candidates go together: Figs. 3 and 5, Sec. 3.1 and 4.3. Bootstrap over candidates.

The bootstrap draws whole candidates, so it answers "what if other candidates of the like had been trained?". Percentile
intervals of so few are not exact. On normal variables those of 95 % held the true value in 63 % (R2) to 84 % (rank
correlation) of samples of 4 candidates, 92 % to 95 % of 6, 91 % to 98 % of 10 to 16; MIN_CANDIDATES is 6 for that.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from quagmire_utils.analysis.claims.claim import (
    MIN_CANDIDATES,
    RESAMPLES,
    Estimate,
    percentiles,
    rank_correlation,
    resampled,
    row_correlation,
    student,
    too_few,
)
from quagmire_utils.analysis.claims.evidence import Evidence
from quagmire_utils.analysis.fits import bootstrap_interval

BOOTSTRAP = "choice of candidates (bootstrap)"


def fitted_r2(candidates: pd.DataFrame, outcome: str = "outcome") -> Estimate:
    """R2 of the line from post-SFT Pass@1 to the outcome: the share of its variance that the score explains."""
    known = candidates.dropna(subset=["pass1", outcome])
    if len(known) < MIN_CANDIDATES:
        return too_few("R² of the fit", len(known))
    found = bootstrap_interval(known["pass1"], known[outcome], "r2", n_resamples=RESAMPLES)
    return Estimate(found.estimate, "R² of the fit", len(known), percentiles(found.replicates), BOOTSTRAP)


def loss_rise(candidates: pd.DataFrame) -> Estimate:
    """Loss at the most epochs minus the lowest with fewer, of the examples that were repeated most often; nats/token.

    One SFT run each, so the interval holds the losses' own standard errors and nothing else.
    """
    statistic = "loss at the most epochs minus the lowest before"
    known = candidates.dropna(subset=["gen_loss", "gen_loss_se"]).sort_values("epochs")
    settings = [name for name in ("source", "selection", "learning_rate", "n_examples") if name in known.columns]
    series = [rows for _, rows in known.groupby(settings) if len(rows) > 1]
    if not series:
        return too_few(statistic, 0, "series of epochs")
    rows = max(series, key=lambda rows: (rows["epochs"].max(), len(rows)))
    last, before = rows.iloc[-1], rows.iloc[:-1].sort_values("gen_loss").iloc[0]
    rise = float(last["gen_loss"] - before["gen_loss"])
    error = math.hypot(last["gen_loss_se"], before["gen_loss_se"])
    statistic += (
        f" ({int(last['n_examples']):,} examples, {last['epochs']:g} against {before['epochs']:g} epochs, one SFT run "
        "each: the interval is the loss's own)"
    )
    return Estimate(rise, statistic, len(rows), student(rise, error), "choice of held-out traces")


def loss_and_gain(candidates: pd.DataFrame, seed: int = 0) -> Estimate:
    """Rank correlation of the generalization loss after SFT with what RL adds."""
    known = candidates.dropna(subset=["gen_loss", "gain"])
    return _rank_correlation(known, "gen_loss", "gain", "rank correlation", seed)


def loss_beyond_score(candidates: pd.DataFrame, outcome: str = "outcome") -> Estimate:
    """Partial rank correlation of loss and outcome, the score after SFT held fixed: what the loss says beyond it.

    Where the score nearly fixes both, hardly anything varies at equal score and a bootstrap of it is erratic, so the
    interval is Fisher's on the transformed scale with Fieller's variance for ranks, 1.06 / (n - 3), less one for the
    score.
    """
    statistic = "rank correlation of loss and outcome at equal score"
    known = candidates.dropna(subset=["gen_loss", "pass1", outcome])
    if len(known) < MIN_CANDIDATES:
        return too_few(statistic, len(known))
    loss, after, score = (known[name].to_numpy(np.float64) for name in ("gen_loss", outcome, "pass1"))
    ab, ac, bc = (rank_correlation(*pair) for pair in ((loss, after), (loss, score), (after, score)))
    left = math.sqrt((1 - ac**2) * (1 - bc**2))
    if not left > 1e-9:  # NaN too: nothing varies at equal score
        return too_few(f"{statistic}, where nothing varies", len(known))
    value = min(max((ab - ac * bc) / left, -1.0), 1.0)
    transformed = student(math.atanh(min(max(value, -0.9999), 0.9999)), math.sqrt(1.06 / (len(known) - 4)))

    def interval(confidence: float) -> tuple[float, float]:
        low, high = transformed(confidence)
        return math.tanh(low), math.tanh(high)

    return Estimate(value, statistic, len(known), interval, "choice of candidates (Fisher's transformation)")


def dominated_share(candidates: pd.DataFrame, outcome: str = "outcome", seed: int = 0) -> Estimate:
    """Of the pairs in which one candidate has the lower score and the higher loss: how often it ends lower (Sec. 3.1).

    Equal outcomes count half. The bootstrap weighs a pair by how often both of its candidates are drawn.
    """
    statistic = "share of dominated candidates that end lower"
    known = candidates.dropna(subset=["gen_loss", "pass1", outcome])
    score, loss, after = (known[name].to_numpy(np.float64) for name in ("pass1", "gen_loss", outcome))
    dominated = (np.less.outer(score, score) & np.greater.outer(loss, loss)).astype(float)
    if len(known) < MIN_CANDIDATES or not dominated.any():
        return too_few(statistic, min(len(known), MIN_CANDIDATES - 1))
    lower = dominated * (np.less.outer(after, after) + 0.5 * np.equal.outer(after, after))
    drawn = resampled(len(known), seed)
    times = np.array([np.bincount(rows, minlength=len(known)) for rows in drawn], dtype=float)
    pairs = ((times @ dominated) * times).sum(axis=1)
    pairs[pairs == 0] = np.nan
    replicates = ((times @ lower) * times).sum(axis=1) / pairs
    statistic += f" ({int(dominated.sum())} pairs)"
    return Estimate(float(lower.sum() / dominated.sum()), statistic, len(known), percentiles(replicates), BOOTSTRAP)


def loss_across_data(evidence: Evidence, against: str, seed: int = 0) -> Estimate:
    """How well the loss on each data set's own held-out traces ranks outcomes, minus how well another measurement does.

    Over the candidates whose data differ (instance level and sources). Rank correlations with the outcome, a loss with
    its sign turned; against: "pass_k", or "gen_loss" (the same traces for everybody).
    """
    other = {"pass_k": "Pass@large k's", "gen_loss": "that of the loss on common traces"}[against]
    statistic = f"rank correlation of the loss on own traces with the outcome, minus {other}"
    if evidence.own_loss is None:
        return too_few(statistic, 0)
    trained = evidence.frame[evidence.frame["selection"] != "none"]
    different = trained["scenario"].str.split("+").map(lambda names: bool({"instance", "source"} & set(names)))
    known = trained[different.astype(bool)].assign(own=lambda rows: rows["candidate"].map(evidence.own_loss))
    known = known.dropna(subset=["own", against, evidence.outcome])
    if len(known) < MIN_CANDIDATES:
        return too_few(statistic, len(known))
    sign = -1.0 if against == "gen_loss" else 1.0
    own, other_values = -known["own"].to_numpy(np.float64), sign * known[against].to_numpy(np.float64)
    after = known[evidence.outcome].to_numpy(np.float64)
    value = rank_correlation(own, after) - rank_correlation(other_values, after)
    drawn = resampled(len(known), seed)
    replicates = row_correlation(own[drawn], after[drawn], ranked=True)
    replicates = replicates - row_correlation(other_values[drawn], after[drawn], ranked=True)
    statistic += f" ({rank_correlation(own, after):.2f} minus {rank_correlation(other_values, after):.2f})"
    return Estimate(value, statistic, len(known), percentiles(replicates), BOOTSTRAP)


def _rank_correlation(known: pd.DataFrame, first: str, second: str, statistic: str, seed: int) -> Estimate:
    if len(known) < MIN_CANDIDATES:
        return too_few(statistic, len(known))
    x, y = known[first].to_numpy(np.float64), known[second].to_numpy(np.float64)
    drawn = resampled(len(known), seed)
    replicates = row_correlation(x[drawn], y[drawn], ranked=True)
    return Estimate(rank_correlation(x, y), statistic, len(known), percentiles(replicates), BOOTSTRAP)
