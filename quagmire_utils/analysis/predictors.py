"""What predicts the outcome of RL, and when: measures before RL, judged by rank correlation, R2 and regret (Sec. 4).

x, y = average(measures(records, k=64)), average(outcomes(records))    # predictors, and Pass@1 by RL step
for name, chosen in candidate_sets(candidate_frame(records), y):
    draws = bootstrap_scores(x.loc[chosen], y.loc[chosen, 32])
    interval_text(draws["spearman", "pass_k"] - draws["spearman", "pass1"], sign="+")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from quagmire_utils.analysis.candidates import select_candidates
from quagmire_utils.analysis.fits import Array, rank_correlations, squared_correlation
from quagmire_utils.core.errors import ParameterError, check_whole
from quagmire_utils.core.records import CANDIDATE, Records
from quagmire_utils.evaluation.pass_at_k import pass_at_k
from quagmire_utils.evaluation.pass_at_k.averages import MACRO

FEWEST = 6  # candidates; with fewer, a bootstrap interval over candidates is far from its nominal level
RESAMPLES = 1000
ROLLOUTS = 16  # of a prompt in an RL step, where the records do not say
STATISTICS = ("spearman", "r2", "regret")
KEYS = [*CANDIDATE, "benchmark"]


@dataclass(frozen=True)
class Predictor:
    """A measure of a candidate that takes no RL run, or only the beginning of one."""

    title: str  # {k}: of Pass@k
    value: Callable[[pd.DataFrame, int], ArrayLike] | None = None  # of each row of counts; None: not from counts
    needs: str = "correct"  # column of the counts
    sign: int = 1  # 1 if the literature expects a high value to end better, else -1


PREDICTORS = {
    "pass1": Predictor("Pass@1", lambda rows, k: rows["correct"] / rows["n"]),
    "pass_k": Predictor("Pass@{k}", lambda rows, k: pass_at_k(rows["n"], rows["correct"], k)),
    "gen_loss": Predictor("generalization loss", sign=-1),
    "above_chance": Predictor("Pass@{k} above chance", lambda rows, k: _above_chance(rows, k), "chance_correct"),
    "solved": Predictor("share of problems solved at least once", lambda rows, k: rows["correct"] > 0),
    "coverage": Predictor("share of problems with p ≥ 1/{k}", lambda rows, k: k * rows["correct"] >= rows["n"]),
    "headroom": Predictor("Pass@{k} - Pass@1", lambda rows, k: pass_at_k(rows["n"], rows["correct"], [1, k]) @ [-1, 1]),
    "mean_logit": Predictor("mean logit of p", lambda rows, k: _logit(rows)),
    "variance": Predictor("mean p(1 - p)", lambda rows, k: _mixed(rows, 2) / 2),
    "active": Predictor(
        "share of RL groups with both verdicts", lambda rows, k: _mixed(rows, rows["rollouts"].iloc[0])
    ),
    "distinct": Predictor("distinct answers", lambda rows, k: rows["distinct_answers"], "distinct_answers"),
    "entropy": Predictor("entropy at RL step 1"),
    "early": Predictor("Pass@1 at the first RL checkpoint"),
}


def measures(records: Records, k: int = 64) -> pd.DataFrame:
    """Return the predictors of each candidate, a column each; the index is KEYS, MACRO being the mean over benchmarks.

    Loss and entropy are the same for all benchmarks. Values are NaN where the records lack what a predictor needs.
    """
    rollouts = records.manifest["configuration"].get("rl", {}).get("rollouts", ROLLOUTS)
    counts = records.counts[records.counts["stage"] != "rl"].assign(rollouts=rollouts)
    table = pd.DataFrame(index=pd.MultiIndex.from_frame(counts[KEYS].drop_duplicates()))
    for name, predictor in PREDICTORS.items():
        if predictor.value and predictor.needs in counts and counts[predictor.needs].notna().any():
            rows = counts.fillna({predictor.needs: 0})
            table[name] = rows.assign(value=np.asarray(predictor.value(rows, k), float)).groupby(KEYS)["value"].mean()
    table = _with_macro(table)
    after, curves, loss = outcomes(records), records.rl_curves, records.generalization_loss
    table["early"] = after[after.columns.min()].reindex(table.index) if len(after.columns) else np.nan
    single = {"gen_loss": loss[loss["validation_set"] == "validation"].groupby(CANDIDATE)["nll"].first()}
    if "entropy" in curves:
        single["entropy"] = curves[curves["step"] == curves["step"].min()].groupby(CANDIDATE)["entropy"].mean()
    for name, values in single.items():
        table[name] = values.reindex(table.index.droplevel("benchmark")).to_numpy()
    return table.reindex(columns=list(PREDICTORS))


def outcomes(records: Records) -> pd.DataFrame:
    """Return Pass@1 after RL, the mean over runs: KEYS as in `measures`, a column for each step with a checkpoint."""
    after = records.counts[records.counts["stage"] == "rl"]
    after = after.assign(score=after["correct"] / after["n"])
    return _with_macro(after.pivot_table(index=KEYS, columns="checkpoint", values="score"))


def average(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `measures` or `outcomes` that are means over benchmarks, by family and candidate."""
    return table.xs(MACRO, level="benchmark")


def candidate_sets(frame: pd.DataFrame, after: pd.DataFrame) -> dict[str, pd.MultiIndex]:
    """Return the candidates of each family and scenario that have every checkpoint in `after`, where there are any.

    frame: from `candidate_frame`; after: `outcomes` averaged over benchmarks.
    """
    sets = {}
    for family in frame["family"].unique():
        for scenario in ("dataset", "instance"):
            chosen = pd.MultiIndex.from_frame(select_candidates(frame, family, scenario)[CANDIDATE])
            sets[f"{family}, {scenario} level"] = chosen[chosen.isin(after.dropna().index)]
    return {name: chosen for name, chosen in sets.items() if len(chosen)}


def bootstrap_scores(
    predictors: pd.DataFrame, outcome: ArrayLike, resamples: int = RESAMPLES, seed: int = 0, fewest: int = FEWEST
) -> pd.DataFrame:
    """Judge predictors on all candidates (row 0) and on resamples of them (the other rows).

    predictors: a row for each candidate; outcome: (candidates,). Columns of the result: (statistic, predictor).
    spearman and regret take the sign that the literature expects (PREDICTORS); r2 is that of the line through the
    candidates. Equal numbers of candidates and seeds draw equal candidates, so differences are paired. NaN for
    predictors with a missing value, and for fewer than `fewest` candidates.
    """
    check_whole("resamples", resamples, 1)
    outcome = np.asarray(outcome, np.float64)
    names = pd.MultiIndex.from_product([STATISTICS, predictors.columns], names=["statistic", "predictor"])
    if len(outcome) < fewest:
        return pd.DataFrame(np.nan, index=range(resamples + 1), columns=names)
    rows, columns = _resampled(len(outcome), resamples, seed), {}
    for name, values in _signed(predictors).items():
        if values.notna().all():
            x, y = values.to_numpy(np.float64)[rows], outcome[rows]
            judged = rank_correlations(x, y), squared_correlation(y.T, x.T), regret(x, y)
            columns |= {(statistic, name): one for statistic, one in zip(STATISTICS, judged, strict=True)}
    return pd.DataFrame(columns, index=range(resamples + 1)).reindex(columns=names)


def disagreements(
    predictors: pd.DataFrame, outcome: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Count the pairs of candidates that gen_loss and pass_k order differently, and how many each predictor gets right.

    Arguments, and the candidates of each row of the result, as in `bootstrap_scores`. Columns: pairs, and one for each
    predictor. Ties count half; a pair counts as often as both of its candidates were drawn. All zero for fewer than
    FEWEST candidates.
    """
    actual, size = np.asarray(outcome, np.float64), len(predictors)
    signed = {name: values.to_numpy() for name, values in _signed(predictors).items()}
    order = {name: np.sign(np.subtract.outer(x, x)) for name, x in signed.items()}
    apart = (order["gen_loss"] * order["pass_k"] < 0) & (size >= FEWEST)
    right = {name: apart * (1 + one * np.sign(np.subtract.outer(actual, actual))) / 2 for name, one in order.items()}
    times = np.array([np.bincount(rows, minlength=size) for rows in _resampled(size, resamples, seed)], float)
    counted = {name: ((times @ pairs) * times).sum(axis=1) / 2 for name, pairs in {"pairs": apart, **right}.items()}
    return pd.DataFrame(counted)


def over_sets(draws: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of draws over their first column level, the sets of candidates that have a value."""
    return draws.T.groupby(level=list(range(1, draws.columns.nlevels)), sort=False).mean().T


def intervals(draws: pd.DataFrame) -> pd.DataFrame:
    """Return value, low and high of each column of draws: row 0, and the 95 % of the other rows in the middle."""
    ends = draws.iloc[1:].quantile([0.025, 0.975])
    return pd.DataFrame({"value": draws.iloc[0], "low": ends.iloc[0], "high": ends.iloc[1]})


def interval_text(draws: pd.Series, digits: int = 2, sign: str = "") -> str:
    """Return draws of one number as text: `0.23 [0.05 to 0.41]`; "not measured" without a value."""
    value, low, high = intervals(draws.to_frame()).iloc[0].round(digits) + 0.0  # no minus before a zero
    style = f"{sign}.{digits}f"
    return "not measured" if np.isnan(value) else f"{value:{style}} [{low:{style}} to {high:{style}}]"


def regret(predicted: ArrayLike, outcome: ArrayLike) -> Array:
    """Return how much of the outcome is lost by choosing the candidate that the predictor ranks first.

    predicted, outcome: (..., candidates), higher is better. The result, (...), is the best outcome minus that of the
    choice, in the unit of the outcome. Candidates that share the first rank count with their mean, so a constant
    predictor has the regret of a random choice; the outcome itself has none. Raises ParameterError for missing values.
    """
    predicted, outcome = np.broadcast_arrays(np.asarray(predicted, np.float64), np.asarray(outcome, np.float64))
    for name, values in (("predicted", predicted), ("outcome", outcome)):
        if not values.size or np.isnan(values).any():
            raise ParameterError(name, reason="every candidate needs a value; leave out candidates without one")
    first = predicted == predicted.max(axis=-1, keepdims=True)
    return np.maximum(outcome.max(axis=-1) - outcome.mean(axis=-1, where=first), 0.0)  # rounding aside


def _resampled(size: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Return all candidates once, then candidates drawn with replacement: (resamples + 1, size)."""
    drawn = np.random.default_rng(seed).integers(size, size=(resamples, size))
    return np.vstack([np.arange(size), drawn])


def _signed(predictors: pd.DataFrame) -> pd.DataFrame:
    """Return predictors of which a high value is expected to end better."""
    return predictors * [PREDICTORS[name].sign if name in PREDICTORS else 1 for name in predictors]


def _with_macro(table: pd.DataFrame) -> pd.DataFrame:
    """Add the mean over benchmarks of each candidate, NaN where one is missing."""
    mean = table.groupby(CANDIDATE).mean()
    mean.index = pd.MultiIndex.from_tuples([(*key, MACRO) for key in mean.index], names=KEYS)
    return pd.concat([table, mean])


def _above_chance(rows: pd.DataFrame, k: int) -> Array:
    """Return Pass@k minus Pass@k of the same answers against the gold of another problem."""
    return pass_at_k(rows["n"], rows["correct"], k) - pass_at_k(rows["n"], rows["chance_correct"], k)


def _logit(rows: pd.DataFrame) -> pd.Series:
    """Return log(p / (1 - p)) with half a right and half a wrong answer added, so that it is finite."""
    return np.log((rows["correct"] + 0.5) / (rows["n"] - rows["correct"] + 0.5))


def _mixed(rows: pd.DataFrame, size: int) -> Array:
    """Return the chance that `size` answers hold a right and a wrong one."""
    wrong = rows["n"] - rows["correct"]
    return pass_at_k(rows["n"], rows["correct"], size) + pass_at_k(rows["n"], wrong, size) - 1
