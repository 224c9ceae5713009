"""The records of a sweep, and from them one row per candidate: predictors before RL, outcome after. Paper: Sec. 4.1.

    records = load_records("results/smoke")
    frame = candidate_frame(records, k=64)
    select_candidates(frame, "Llama3-8B-Instruct", "dataset")      # those that tables and figures compare

A sweep leaves candidates.parquet, counts.parquet, generalization_loss.parquet, rl_curves.parquet, cells.parquet and,
last, manifest.json in results/<profile>/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.config import ParameterError
from quagmire_utils.pass_at_k import pass_at_k
from quagmire_utils.store import read_json, read_parquet

RECORDS = ("candidates", "counts", "generalization_loss", "rl_curves", "cells")
CHECKPOINT = ["family", "candidate", "stage", "rl_run", "checkpoint"]  # what tells measured checkpoints apart

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Records:
    """What a sweep measured, as `sweep.collect` writes it."""

    folder: Path
    candidates: pd.DataFrame
    counts: pd.DataFrame
    generalization_loss: pd.DataFrame
    rl_curves: pd.DataFrame
    cells: pd.DataFrame
    manifest: dict[str, Any]

    @property
    def profile(self) -> str:
        """Name of the profile that was run."""
        return str(self.manifest["configuration"]["name"])


def load_records(folder: str | Path) -> Records:
    """The records in `folder` (results/<profile>).

    Raises ParameterError, with the command that makes them, for a missing folder or file and for records without a
    single measured checkpoint.
    """
    folder = Path(folder)
    remedy = f"`./reproduce.sh --profile {folder.name} --only run_sweep` makes them"
    for file in [f"{name}.parquet" for name in RECORDS] + ["manifest.json"]:  # the manifest is written last
        if not (folder / file).is_file():
            raise ParameterError(f"there are no complete records in {folder} ({file} is missing); {remedy}")
    frames = {name: read_parquet(folder / f"{name}.parquet") for name in RECORDS}
    if frames["counts"].empty:
        raise ParameterError(f"the records in {folder} hold no measured checkpoint yet; {remedy}")
    return Records(folder=folder, **frames, manifest=read_json(folder / "manifest.json"))


# --- one row per candidate --------------------------------------------------------------------------------------------


def checkpoint_scores(counts: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Macro-averaged Pass@k of every checkpoint: one row per CHECKPOINT key, in order of appearance.

    counts: the records' counts. Returns the keys and, for each k, pass@k (mean over problems, then over benchmarks) and
    se@k (its standard error: choice of problems and sampling of answers); then sampling_se (of Pass@1, from the
    sampling alone: what counts between checkpoints measured on the same problems) and n (fewest answers to a problem).
    Raises ParameterError for missing columns, repeated problems, and checkpoints measured on different problems.
    """
    keys = ["benchmark", "problem"]
    missing = [c for c in [*CHECKPOINT, *keys, "n", "correct"] if c not in counts.columns]
    if missing:
        raise ParameterError(f"counts lacks the column(s) {', '.join(missing)}")
    if counts.duplicated(CHECKPOINT + keys).any():
        row = counts[counts.duplicated(CHECKPOINT + keys)].iloc[0]
        raise ParameterError(f"counts has problem {row['problem']!r} of {_name(row)} more than once")
    checkpoint = counts.groupby(CHECKPOINT, sort=False).ngroup().to_numpy()
    problems = len(counts[keys].drop_duplicates())
    sizes = np.bincount(checkpoint)
    if (sizes != problems).any():
        row = counts.iloc[np.flatnonzero(checkpoint == np.argmax(sizes != problems))[0]]
        raise ParameterError(
            f"counts: {_name(row)} was measured on {sizes[sizes != problems][0]} of the {problems} problems, so its "
            "scores would not compare with the others'"
        )
    group = counts.groupby([*CHECKPOINT, "benchmark"], sort=False).ngroup().to_numpy()  # one benchmark of a checkpoint
    members = np.bincount(group)
    _, first = np.unique(group, return_index=True)
    owner = checkpoint[first]
    values = pass_at_k(counts["n"], counts["correct"], ks)
    mean = _sums(values, group) / members[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        # NaN for a benchmark of one problem (no spread to see) and for a problem of one answer
        error2 = _sums((values - mean[group]) ** 2, group) / (members * (members - 1.0))[:, None]
        n, correct = counts["n"].to_numpy(np.float64), counts["correct"].to_numpy(np.float64)
        noise2 = correct / n * (1 - correct / n) / (n - 1)
    noise2 = _sums(noise2[:, None], group) / (members**2.0)[:, None]
    benchmarks = np.bincount(owner)[:, None]
    average = _sums(mean, owner) / benchmarks
    error = np.sqrt(_sums(error2, owner)) / benchmarks
    table = counts[CHECKPOINT].drop_duplicates().reset_index(drop=True)
    for i, k in enumerate(ks):
        table[f"pass@{k}"], table[f"se@{k}"] = average[:, i], error[:, i]
    table["sampling_se"] = (np.sqrt(_sums(noise2, owner)) / benchmarks)[:, 0]
    table["n"] = counts.groupby(CHECKPOINT, sort=False)["n"].min().to_numpy()
    return table


def candidate_frame(records: Records, k: int = 64, validation_set: str = "validation") -> pd.DataFrame:
    """One row per candidate of the profile (the base model without SFT too, selection "none"), predictors and outcome.

    The columns of candidates.parquet, then
      k                                        what "large k" is in pass64
      pass1, pass1_se, pass1_sampling_se       before RL; standard errors as in `checkpoint_scores`
      pass64, pass64_se                        Pass@k before RL, whatever k is (the name that `prediction` knows)
      gen_loss, gen_loss_se                    nats per response token on `validation_set`
      outcome, outcome_sampling_se             after RL: best checkpoint of all runs (Sec. 4.1)
      best_run, best_checkpoint                which run and step that was
      outcome_last, outcome_last_std           after RL: last checkpoint, mean and standard deviation over those runs
      gain                                     outcome - pass1
      n_runs, n_samples, rl_n_samples          RL runs that count; fewest answers to a problem before and after RL
      truncation_rate, no_answer_rate          shares of all answers before RL
    The best of four runs is above the best of two by their noise alone, so where the profile gives some candidates of a
    family more RL runs than others (`rl_runs`), the outcome is taken over the first runs, as many as all have; the
    further ones tell how much runs differ. NaN where a cell of the sweep has not finished. Raises ParameterError for k
    above n_samples.
    """
    keys = ["family", "candidate"]
    counts = records.counts
    scores = checkpoint_scores(counts, list(dict.fromkeys([1, k])))
    before, after = scores[scores["stage"] != "rl"], scores[scores["stage"] == "rl"]
    if "rl_runs" in records.candidates:
        common = records.candidates.groupby("family")["rl_runs"].min()
        after = after[after["rl_run"] < after["family"].map(common)]
    if len(before) and k > before["n"].min():
        raise ParameterError(
            f"k ({k}) must not exceed the {before['n'].min()} answers drawn for each problem before RL"
        )
    early = counts[counts["stage"] != "rl"].groupby(keys)[["n", "truncated", "no_answer"]].sum()
    loss = records.generalization_loss
    loss = loss[loss["validation_set"] == validation_set] if len(loss) else pd.DataFrame(columns=[*keys, "nll"])
    best = after.loc[after.groupby(keys)["pass@1"].idxmax()].set_index(keys)
    last = after.loc[after.groupby([*keys, "rl_run"])["checkpoint"].idxmax()].groupby(keys)["pass@1"]
    before = before.set_index(keys)
    columns = {
        "pass1": before["pass@1"],
        "pass1_se": before["se@1"],
        "pass1_sampling_se": before["sampling_se"],
        "pass64": before[f"pass@{k}"],
        "pass64_se": before[f"se@{k}"],
        "gen_loss": loss.set_index(keys)["nll"],
        "gen_loss_se": loss.set_index(keys).get("standard_error", pd.Series(dtype=float)),
        "outcome": best["pass@1"],
        "outcome_sampling_se": best["sampling_se"],
        "best_run": best["rl_run"],
        "best_checkpoint": best["checkpoint"],
        "outcome_last": last.mean(),
        "outcome_last_std": last.std(),
        "n_runs": after.groupby(keys)["rl_run"].nunique(),
        "n_samples": before["n"],
        "rl_n_samples": after.groupby(keys)["n"].min(),
        "truncation_rate": early["truncated"] / early["n"],
        "no_answer_rate": early["no_answer"] / early["n"],
    }
    frame = records.candidates.copy()
    index = pd.MultiIndex.from_frame(frame[keys])
    frame["k"] = k
    for name, values in columns.items():
        frame[name] = values.reindex(index).to_numpy(np.float64)
    frame["n_runs"] = frame["n_runs"].fillna(0).astype(int)
    frame["gain"] = frame["outcome"] - frame["pass1"]
    return frame


def select_candidates(
    frame: pd.DataFrame, family: str, scenario: str = "dataset", *, at_least: int = 0
) -> pd.DataFrame:
    """The SFT candidates of a family (its name, or that of the paper's model it stands for) that have an outcome.

    Several of our families may stand for one model of the paper; their candidates are returned together. The base
    model without SFT is none of them. Empty where the family was not run; ParameterError below `at_least`.
    """
    mine = (frame["family"] == family) | (frame["stands_for"] == family)
    chosen = (
        mine
        & frame["scenario"].str.split("+").map(lambda names: scenario in names).astype(bool)
        & (frame["selection"] != "none")
        & frame["outcome"].notna()
    )
    if chosen.sum() < at_least:
        known = ", ".join(f"{f} (for {m})" for f, m in frame[["family", "stands_for"]].drop_duplicates().to_numpy())
        raise ParameterError(
            f"family {family!r} has {chosen.sum()} {scenario}-level candidates with an outcome, and this needs "
            f"{at_least}; the records hold {known}"
        )
    return frame[chosen].reset_index(drop=True)


def base_models(frame: pd.DataFrame, family: str) -> pd.DataFrame:
    """The rows of the models without SFT of a family: a reference in figures, never part of a fit."""
    mine = (frame["family"] == family) | (frame["stands_for"] == family)
    return frame[mine & (frame["selection"] == "none") & frame["outcome"].notna()].reset_index(drop=True)


def _name(row: pd.Series) -> str:
    return " ".join(str(row[key]) for key in CHECKPOINT)


def _sums(values: Array, codes: NDArray[np.intp]) -> Array:
    """Sums of the rows of `values` (rows, columns) by code; NaN stays NaN."""
    return np.stack([np.bincount(codes, column) for column in values.T], axis=1)
