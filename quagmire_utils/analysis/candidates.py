"""One row per candidate: predictors before RL, outcome after it (Sec. 4.1).

frame = candidate_frame(load_records("results/mini"), k=64)
select_candidates(frame, "Llama3-8B-Instruct", "dataset")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import CANDIDATE, TABLES, Records, check_columns, check_once, load_records
from quagmire_utils.core.settings import SCENARIOS
from quagmire_utils.evaluation.pass_at_k.averages import checkpoint_scores

Array = NDArray[np.float64]

OUTCOMES = ("outcome", "outcome_last")


def candidate_frame(records: Records, k: int = 64, correct: str = "correct") -> pd.DataFrame:
    """Return one row per candidate, the base model without SFT included (its selection is "none").

    correct: the column of counts.parquet with the right answers; correct_math are those by the grader `math`, which
    only profiles with `both_graders` count.

    The columns of candidates.parquet, then
      k, pass1, pass1_se, pass1_sampling_se, pass_k, pass_k_se    before RL; errors as in `checkpoint_scores`
      gen_loss, gen_loss_se                         nats per response token on the common traces
      outcome, outcome_sampling_se                  Pass@1 after RL: best checkpoint of all runs (Sec. 4.1)
      outcome_last, outcome_last_std                last checkpoint: mean and standard deviation over the runs
      late_gain                                     outcome_last minus the score before the last quarter of the steps
      gain, n_runs                                  outcome - pass1; RL runs used
      n_samples, rl_n_samples                       fewest answers to a problem before and after RL
      truncation_rate, no_answer_rate               shares of all answers before RL

    The best of four runs beats the best of two by noise alone. So if candidates of a family have different numbers of
    RL runs (`rl_runs`), outcomes use the first runs, as many as every candidate has. Values are NaN where a cell of the
    sweep has not finished. Raises ParameterError if k exceeds the number of answers before RL.
    """
    loss = records.generalization_loss
    check_columns(records.counts, [correct], "counts")
    counts = records.counts.assign(correct=records.counts[correct])
    check_once(records.candidates, CANDIDATE, "candidates")
    scores = checkpoint_scores(counts, list(dict.fromkeys([1, k])))
    before, after = scores[scores["stage"] != "rl"].set_index(CANDIDATE), scores[scores["stage"] == "rl"]
    if len(before) and k > before["n"].min():
        raise ParameterError("k", k, f"at most {before['n'].min()}, the answers drawn for each problem before RL")
    if "rl_runs" in records.candidates:
        common = records.candidates.groupby("family")["rl_runs"].min()
        after = after[after["rl_run"] < after["family"].map(common)]
    if len(loss):
        check_once(loss, TABLES["generalization_loss"].keys, "generalization_loss")
        loss = loss[loss["validation_set"] == "validation"].set_index(CANDIDATE)
    else:
        loss = pd.DataFrame({"nll": []}, index=pd.MultiIndex.from_arrays([[], []], names=CANDIDATE))
    early = counts[counts["stage"] != "rl"].groupby(CANDIDATE)[["n", "truncated", "no_answer"]].sum()
    best = after.loc[after.groupby(CANDIDATE)["pass@1"].idxmax()].set_index(CANDIDATE)
    last = after.loc[after.groupby([*CANDIDATE, "rl_run"])["checkpoint"].idxmax()].groupby(CANDIDATE)["pass@1"]
    curve = after.pivot_table(index=CANDIDATE, columns="checkpoint", values="pass@1")
    curve = curve.loc[:, curve.columns <= 0.75 * curve.columns.max()]
    columns = {
        "pass1": before["pass@1"],
        "pass1_se": before["se@1"],
        "pass1_sampling_se": before["sampling_se"],
        "pass_k": before[f"pass@{k}"],
        "pass_k_se": before[f"se@{k}"],
        "gen_loss": loss["nll"],
        "gen_loss_se": loss.get("standard_error", pd.Series(dtype=float)),
        "outcome": best["pass@1"],
        "outcome_sampling_se": best["sampling_se"],
        "outcome_last": last.mean(),
        "outcome_last_std": last.std(),
        "late_gain": last.mean() - curve.iloc[:, -1] if curve.size else pd.Series(dtype=float),
        "n_runs": after.groupby(CANDIDATE)["rl_run"].nunique(),
        "n_samples": before["n"],
        "rl_n_samples": after.groupby(CANDIDATE)["n"].min(),
        "truncation_rate": early["truncated"] / early["n"],
        "no_answer_rate": early["no_answer"] / early["n"],
    }
    frame = records.candidates.copy()
    index = pd.MultiIndex.from_frame(frame[CANDIDATE])
    frame["k"] = k
    for name, values in columns.items():
        frame[name] = values.reindex(index).to_numpy(np.float64)
    frame["n_runs"] = frame["n_runs"].fillna(0).astype(int)
    frame["gain"] = frame["outcome"] - frame["pass1"]
    return frame


def check_frame(frame: object, columns: Sequence[str] = ()) -> None:
    """Raise ParameterError unless `frame` has these columns and at least one candidate, each once."""
    if not isinstance(frame, pd.DataFrame) or frame.empty:
        raise ParameterError("frame", type(frame).__name__, "a DataFrame from candidate_frame, not empty")
    check_columns(frame, [*CANDIDATE, "stands_for", *columns], "frame")
    check_once(frame, CANDIDATE, "frame")


def check_outcome(outcome: str) -> None:
    """Raise ParameterError unless this column of a candidate frame is one of OUTCOMES."""
    if outcome not in OUTCOMES:
        raise ParameterError("outcome", outcome, f"one of {', '.join(OUTCOMES)}")


def measured_frame(folder: str | Path, k: int = 64) -> pd.DataFrame | None:
    """Return the candidate frame of a folder's records, with their number of answers as k if that is less.

    None if the folder holds no records yet.
    """
    if not (Path(folder) / "manifest.json").is_file():
        return None
    records = load_records(folder)
    least = records.counts.loc[records.counts["stage"] != "rl", "n"].min()
    return candidate_frame(records, k=min(k, int(least)))


def select_candidates(frame: pd.DataFrame, family: str, scenario: str = "dataset") -> pd.DataFrame:
    """Return the SFT candidates of a family and scenario that have an outcome; the base model is not one of them.

    family: its name, or the paper's model that it stands for. Several of our families may stand for one model; their
    candidates are returned together. Empty if a model of the paper was not run.
    """
    mine = of_family(frame, family)
    if scenario not in SCENARIOS:
        raise ParameterError("scenario", scenario, f"one of {', '.join(SCENARIOS)}")
    mine = mine[mine["outcome"].notna() & (mine["selection"] != "none") & in_scenario(mine["scenario"], scenario)]
    return mine.reset_index(drop=True)


def show_candidates(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers behind a figure or table, one row per candidate, rounded."""
    columns = ["family", "candidate", *(["budget"] if "budget" in frame else [])]
    columns += ["pass1", "pass_k", "gen_loss", "outcome", "outcome_last", "n_runs"]
    shown = frame[columns].rename(columns={"pass_k": f"pass{frame['k'].iloc[0]}"} if len(frame) else {})
    return shown.set_index(["family", "candidate"]).round(3)


def base_models(frame: pd.DataFrame, family: str) -> pd.DataFrame:
    """Return the models without SFT of a family that have an outcome: a reference in figures, never part of a fit."""
    mine = of_family(frame, family)
    return mine[(mine["selection"] == "none") & mine["outcome"].notna()].reset_index(drop=True)


def of_family(frame: pd.DataFrame, family: str) -> pd.DataFrame:
    """Return the rows of a family, or of those that stand for this model of the paper."""
    check_family(frame, family)
    return frame[(frame["family"] == family) | (frame["stands_for"] == family)]


def check_family(frame: pd.DataFrame, family: str) -> None:
    """Raise ParameterError for a family that neither the records nor the paper have."""
    known = dict.fromkeys([*frame["family"], *frame["stands_for"], *paper.MODELS])
    if family not in known:
        raise ParameterError("family", family, f"one of {', '.join(known)}")


def in_scenario(scenarios: pd.Series, scenario: str) -> pd.Series:
    """Return which of these cells ("dataset+instance") name the scenario, as booleans."""
    return scenarios.str.split("+").map(lambda names: scenario in names).astype(bool)


# --- noise between RL runs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunNoise:
    """Standard deviation between RL runs of one candidate, pooled over its family."""

    deviation: float  # of one run's outcome; NaN if no candidate has two runs
    degrees: int  # of freedom
    best_of: bool  # the outcome is the best of the runs, else their mean
    others: bool = False  # no candidate of the family has two runs, so those of the other families tell

    def standard_errors(self, n_runs: Array, sampling: Array) -> Array:
        """Return standard errors of outcomes from so many runs; those of the sampled answers if no noise is known."""
        if not self.degrees:
            return sampling
        shrink = [deviation_of_best(int(n)) if self.best_of else 1 / math.sqrt(n) for n in n_runs]
        return self.deviation * np.array(shrink)

    @property
    def text(self) -> str:
        """What an interval with this noise covers."""
        if not self.degrees:
            return "sampling of answers alone (one RL run each, so the noise between runs is unknown)"
        points = f"standard deviation {100 * self.deviation:.1f} points, {self.degrees} degrees of freedom"
        points += ", measured on other families" * self.others
        return f"sampling of answers and noise between RL runs ({points})"


def run_noise(frame: pd.DataFrame, records: Records | None, outcome: str) -> RunNoise:
    """Pool the noise between RL runs over the candidates of a family; over all families if none of it has two runs."""
    best_of, others = outcome != "outcome_last", False
    if records is None:
        variance, degrees = frame["outcome_last_std"] ** 2, (frame["n_runs"] - 1).clip(lower=0)
    else:
        counts = records.counts[records.counts["stage"] == "rl"]
        if counts.empty:
            return RunNoise(math.nan, 0, best_of)
        scores = checkpoint_scores(counts, [1]).sort_values("checkpoint")
        runs = scores.groupby(["family", "candidate", "rl_run"])["pass@1"].agg("max" if best_of else "last")
        grouped = runs.groupby(["family", "candidate"])
        variance, degrees = grouped.var(), grouped.size() - 1
        own = degrees.index.get_level_values("family") == frame["family"].iloc[0]
        others = not degrees[own].any()
        if not others:
            variance, degrees = variance[own], degrees[own]
    known = variance.notna() & (degrees > 0)
    total = int(degrees[known].sum())
    deviation = math.sqrt((variance * degrees)[known].sum() / total) if total else math.nan
    return RunNoise(deviation, total, best_of, others)


@cache
def deviation_of_best(n: int) -> float:
    """Return the standard deviation of the largest of n independent standard normal values."""

    from scipy import integrate, stats  # slow to import

    def moment(power: int) -> float:
        return integrate.quad(lambda x: x**power * n * stats.norm.pdf(x) * stats.norm.cdf(x) ** (n - 1), -12, 12)[0]

    return math.sqrt(moment(2) - moment(1) ** 2)
