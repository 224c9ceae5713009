"""The statistics that claims are tested with, by the name that claims.yaml uses: `STATISTICS[name](evidence, ...)`.

`comparisons` has those of Figs. 1, 2, 4 and 6 to 10. Here:

1. Measurements that vary together (Figs. 3 and 5, Sec. 3.1 and 4.3): a bootstrap over candidates. On normal variables
   its 95 % intervals covered the truth in 63 % to 84 % of samples of 4 candidates, 92 % to 95 % of 6.
2. Predictors compared with Pass@1 (Tables 1 to 10). Gains in R2 are medians over splits, because the mean over splits,
   which the tables print, can depend on a single split.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from quagmire_utils.analysis.candidates import in_scenario
from quagmire_utils.analysis.claims.evidence import (
    Array,
    Estimate,
    Evidence,
    Interval,
    missing,
    percentiles,
    statistic,
    student,
)
from quagmire_utils.analysis.fits import (
    bootstrap,
    fit_predict_r2,
    jackknife_standard_error,
    rank_correlations,
    spearman,
)
from quagmire_utils.analysis.tables.compute import MIN_CANDIDATES as FEWEST
from quagmire_utils.analysis.tables.compute import MIN_RESAMPLED
from quagmire_utils.analysis.tables.show import predictor_title
from quagmire_utils.analysis.tables.spec import BUDGETS, PREDICTORS, TABLES
from quagmire_utils.core import published as paper

MIN_CANDIDATES = 6  # with fewer, a bootstrap interval over candidates is far from its nominal level
RESAMPLES = 4000
SPLITS = 500  # random splits behind a median R2
BOOTSTRAP = "choice of candidates (bootstrap)"
JACKKNIFE = "choice of candidates (jackknife)"


# --- measurements that vary together over candidates ------------------------------------------------------------------


@statistic
def explained_variance(evidence: Evidence) -> Estimate:
    """Return R2 of the line from post-SFT Pass@1 to the outcome (Fig. 3)."""
    known = evidence.candidates("dataset", ["pass1"])
    if len(known) < MIN_CANDIDATES:
        return missing("R² of the fit", len(known))
    value, replicates = bootstrap(known["pass1"], known[evidence.outcome], "r2", n_resamples=RESAMPLES)
    return Estimate(value, "R² of the fit", len(known), percentiles(replicates), BOOTSTRAP)


@statistic
def loss_rise(evidence: Evidence) -> Estimate:
    """Compare the loss at the most epochs with the lowest at fewer, of the most repeated examples; nats per token.

    There is one SFT run each, so the interval covers the standard errors of the two losses and nothing else.
    """
    text = "loss at the most epochs minus the lowest before"
    known = evidence.candidates("dataset").dropna(subset=["gen_loss", "gen_loss_se"]).sort_values("epochs")
    settings = [name for name in ("source", "selection", "learning_rate", "n_examples") if name in known.columns]
    series = [rows for _, rows in known.groupby(settings) if len(rows) > 1]
    if not series:
        return missing(text, 0, "series of epochs")
    rows = max(series, key=lambda rows: (rows["epochs"].max(), len(rows)))
    last, before = rows.iloc[-1], rows.iloc[:-1].sort_values("gen_loss").iloc[0]
    rise = float(last["gen_loss"] - before["gen_loss"])
    error = math.hypot(last["gen_loss_se"], before["gen_loss_se"])
    text += f" ({int(last['n_examples']):,} examples, {last['epochs']:g} against {before['epochs']:g} epochs)"
    return Estimate(rise, text, len(rows), student(rise, error), "choice of held-out traces")


@statistic
def loss_and_gain(evidence: Evidence) -> Estimate:
    """Return the rank correlation of the generalization loss after SFT with the gain from RL (Fig. 5)."""
    known = evidence.candidates("dataset", ["gen_loss", "pass1"])
    if len(known) < MIN_CANDIDATES:
        return missing("rank correlation", len(known))
    gained = (known[evidence.outcome] - known["pass1"]).round(12)  # equal gains of printed scores are ties
    loss, gain = _columns(known.assign(gain=gained), "gen_loss", "gain")
    rows = _resampled(len(known))
    replicates = rank_correlations(loss[rows], gain[rows])
    return Estimate(spearman(loss, gain), "rank correlation", len(known), percentiles(replicates), BOOTSTRAP)


@statistic
def loss_beyond_score(evidence: Evidence) -> Estimate:
    """Return the partial rank correlation of loss and outcome with the score after SFT held fixed.

    Where the score nearly determines both, a bootstrap is erratic. The interval is therefore Fisher's on the
    transformed scale, with Fieller's variance for ranks, 1.06 / (n - 3), and one candidate less for the score.
    """
    text = "rank correlation of loss and outcome at equal score"
    known = evidence.candidates("dataset", ["gen_loss", "pass1"])
    if len(known) < MIN_CANDIDATES:
        return missing(text, len(known))
    loss, after, score = _columns(known, "gen_loss", evidence.outcome, "pass1")
    ab, ac, bc = spearman(loss, after), spearman(loss, score), spearman(after, score)
    left = math.sqrt((1 - ac**2) * (1 - bc**2))
    if not left > 1e-9:  # also NaN: nothing varies at equal score
        return missing(f"{text}, where nothing varies", len(known))
    value = min(max((ab - ac * bc) / left, -1.0), 1.0)
    transformed = student(math.atanh(min(max(value, -0.9999), 0.9999)), math.sqrt(1.06 / (len(known) - 4)))

    def interval(confidence: float) -> tuple[float, float]:
        low, high = transformed(confidence)
        return math.tanh(low), math.tanh(high)

    return Estimate(value, text, len(known), interval, "choice of candidates (Fisher's transformation)")


@statistic
def dominated_share(evidence: Evidence) -> Estimate:
    """Return the share of dominated candidates that end lower (Sec. 3.1): lower score and higher loss than another.

    Equal outcomes count half. The bootstrap weighs a pair by how often both of its candidates are drawn.
    """
    text = "share of dominated candidates that end lower"
    known = evidence.candidates("dataset", ["gen_loss", "pass1"])
    score, loss, after = _columns(known, "pass1", "gen_loss", evidence.outcome)
    dominated = (np.less.outer(score, score) & np.greater.outer(loss, loss)).astype(float)
    if len(known) < MIN_CANDIDATES or not dominated.any():
        return missing(text, min(len(known), MIN_CANDIDATES - 1))
    lower = dominated * (np.less.outer(after, after) + 0.5 * np.equal.outer(after, after))
    times = np.array([np.bincount(rows, minlength=len(known)) for rows in _resampled(len(known))], dtype=float)
    pairs = ((times @ dominated) * times).sum(axis=1)
    pairs[pairs == 0] = np.nan
    replicates = ((times @ lower) * times).sum(axis=1) / pairs
    text += f" ({int(dominated.sum())} pairs)"
    return Estimate(float(lower.sum() / dominated.sum()), text, len(known), percentiles(replicates), BOOTSTRAP)


@statistic
def own_loss_minus_other(evidence: Evidence, other: Literal["pass_k", "gen_loss"]) -> Estimate:
    """Compare how the loss on each data set's own held-out traces ranks outcomes with how another measurement does.

    Over the candidates whose data differ (instance level and sources). The statistic is a difference of rank
    correlations with the outcome, losses with their signs turned. other: "gen_loss" is the loss on common traces.
    """
    title = {"pass_k": "Pass@large k's", "gen_loss": "that of the loss on common traces"}[other]
    text = f"rank correlation of the loss on own traces with the outcome, minus {title}"
    if evidence.own_loss is None:
        return missing(text, 0)
    trained = evidence.frame[evidence.frame["selection"] != "none"]
    differ = in_scenario(trained["scenario"], "instance") | in_scenario(trained["scenario"], "source")
    known = trained[differ].assign(own=lambda rows: rows["candidate"].map(evidence.own_loss))
    known = known.dropna(subset=["own", other, evidence.outcome])
    if len(known) < MIN_CANDIDATES:
        return missing(text, len(known))
    own, theirs, after = _columns(known, "own", other, evidence.outcome)
    own, theirs = -own, -theirs if other == "gen_loss" else theirs
    mine, baseline = spearman(own, after), spearman(theirs, after)
    rows = _resampled(len(known))
    replicates = rank_correlations(own[rows], after[rows]) - rank_correlations(theirs[rows], after[rows])
    text += f" ({mine:.2f} minus {baseline:.2f})"
    return Estimate(mine - baseline, text, len(known), percentiles(replicates), BOOTSTRAP)


def _columns(known: pd.DataFrame, *names: str) -> list[Array]:
    return [known[name].to_numpy(np.float64) for name in names]


def _resampled(n: int) -> NDArray[np.intp]:
    """Rows of a bootstrap over n candidates, (resamples, n): the same draws as `bootstrap`'s."""
    return np.random.default_rng(0).integers(n, size=(RESAMPLES, n))


# --- predictors against Pass@1 ----------------------------------------------------------------------------------------


@statistic
def rank_gain(evidence: Evidence, table: int, predictor: str) -> Estimate:
    """Return the gain in rank correlation over Pass@1 of a table of rank correlations; bootstrap over candidates.

    In Table 1 over all candidates; in Tables 3, 8 and 10 within each SFT budget, averaged. Value and interval are those
    of our table.
    """
    known, title = _known(evidence, table, predictor), predictor_title(predictor, int(evidence.frame["k"].iloc[0]))
    groups, least, counted, sizes = [known], MIN_CANDIDATES, "candidates", ""
    text = f"gain in rank correlation, {title}"
    if TABLES[table].within_budgets:
        groups = [known[known["budget"] == name] for name in BUDGETS]
        least, counted = FEWEST, "candidates in the smallest budget"
        text = f"gain in rank correlation within SFT budgets, averaged, {title}"
        sizes = f" ({' + '.join(str(len(part)) for part in groups)})"
    fewest = min(map(len, groups))
    if fewest < least:
        return missing(text, fewest, counted)
    values, replicates = [], []
    for seed, part in enumerate(groups):
        (mine, drawn), (base, drawn_base) = (
            bootstrap(_columns(part, *PREDICTORS[name]), part[evidence.outcome], seed=seed)
            for name in (predictor, paper.BASELINE)
        )
        values.append(mine - base)
        replicates.append(drawn - drawn_base)
    interval = percentiles(np.mean(replicates, axis=0))
    if fewest < MIN_RESAMPLED:
        sizes, interval = f"{sizes}; too few for an interval", percentiles(np.array([]))
    return Estimate(float(np.mean(values)), text + sizes, len(known), interval, BOOTSTRAP)


@statistic
def r2_gain(evidence: Evidence, table: int, predictor: str) -> Estimate:
    """Return the gain in median R2 over Pass@1, the smallest over a table's fit sizes; jackknife over candidates.

    Tables 2 and 4 fit half of the candidates. For several sizes the lower end is the lowest of the single lower ends,
    and the upper end allows for their number (Bonferroni), so that the claim fails only where one gain is below zero
    when all are looked at together.
    """
    known = _known(evidence, table, predictor)
    text = f"gain in median R² over splits, {predictor_title(predictor, int(evidence.frame['k'].iloc[0]))}"
    sizes = dict.fromkeys(row.n_fit or len(known) // 2 for row in TABLES[table].rows)
    sizes = [size for size in sizes if size <= len(known) - 3]
    if len(known) < MIN_CANDIDATES or not sizes:
        return missing(text, len(known))
    gains, errors = np.array([_median_gain(known, predictor, evidence.outcome, size) for size in sizes]).T
    if len(sizes) > 1:
        least = sizes[int(gains.argmin())]
        text = f"smallest {text} ({least}:{len(known) - least} of {len(sizes)} ratios)"
    interval = _smallest_of(gains, errors, len(known) - 1)
    return Estimate(float(gains.min()), text, len(known), interval, JACKKNIFE)


def published_gain(table: int, model: str, predictor: str) -> float:
    """Return the gain over Pass@1 that the paper prints: of one row, of the average row, or the smallest of all."""
    cells = paper.published(table)
    wide = cells[cells["family"] == model].pivot_table(index="row", columns="column", values="mean")
    gains = wide[predictor] - wide[paper.BASELINE]
    return float(gains["Average"] if "Average" in gains else gains.min())


def _known(evidence: Evidence, table: int, predictor: str) -> pd.DataFrame:
    """Candidates of a table's scenario that have all its predictors; others than `predictor` only if any has them."""
    spec, asked = TABLES[table], {*PREDICTORS[predictor], paper.BASELINE}
    needed = {name for column in spec.predictors for name in PREDICTORS[column]}
    measured = {name for name in needed if evidence.frame[name].notna().any()}
    return evidence.candidates(spec.scenario, sorted(measured | asked))


def _median_gain(known: pd.DataFrame, column: str, outcome: str, n_fit: int) -> tuple[float, float]:
    """Gain in median R2 and its jackknife error; both predictors on the same splits."""
    after = known[outcome].to_numpy(np.float64)
    series = [np.array(_columns(known, *PREDICTORS[one])).T for one in (column, paper.BASELINE)]
    everyone = np.arange(len(known))
    gains = []
    for kept in (everyone, *(np.delete(everyone, one) for one in everyone)):
        medians = [np.nanmedian(fit_predict_r2(x[kept], after[kept], n_fit, SPLITS).r2) for x in series]
        gains.append(medians[0] - medians[1])
    return float(gains[0]), jackknife_standard_error(gains[1:])


def _smallest_of(gains: Array, errors: Array, degrees: int) -> Interval:
    def interval(confidence: float) -> tuple[float, float]:
        tail = (1 - confidence) / 2
        single, several = (float(stats.t.ppf(1 - tail / share, degrees)) for share in (1, len(gains)))
        low, high = (gains - single * errors).min(), (gains + several * errors).min()
        return (math.nan, math.nan) if math.isnan(low) else (float(low), float(high))

    return interval
