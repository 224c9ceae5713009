"""The records of a sweep, and from them one row per candidate: predictors before RL, outcome after. Paper: Sec. 4.1.

    records = load_records("results/smoke")
    frame = candidate_frame(records, k=64)
    select_candidates(frame, "Llama3-8B-Instruct", "dataset")      # those that tables and figures compare

A sweep leaves candidates.parquet, counts.parquet, generalization_loss.parquet, rl_curves.parquet, cells.parquet and,
last, manifest.json in results/<profile>/.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, read_parquet
from quagmire_utils.core.settings import SCENARIOS
from quagmire_utils.evaluation.pass_at_k import pass_at_k

RECORDS = ("candidates", "counts", "generalization_loss", "rl_curves", "cells")
CHECKPOINT = ["family", "candidate", "stage", "rl_run", "checkpoint"]  # what tells measured checkpoints apart
CANDIDATE = ["family", "candidate"]
VERDICTS = ["correct", "wrong", "no_answer", "timeout", "error"]  # of answers; they add up to n
KEYS = {  # what no two rows of a table have in common
    "candidates": CANDIDATE,
    "counts": [*CHECKPOINT, "benchmark", "problem"],
    "generalization_loss": [*CANDIDATE, "validation_set"],
    "rl_curves": [*CANDIDATE, "rl_run", "step"],
    "cells": ["cell"],
}
TEXTS = {  # columns of text, none missing
    "candidates": [*CANDIDATE, "stands_for", "scenario", "source", "selection"],
    "counts": [*CANDIDATE, "stage", "benchmark", "problem"],
    "generalization_loss": [*CANDIDATE, "validation_set"],
    "rl_curves": CANDIDATE,
    "cells": ["cell", "kind", *CANDIDATE],
}
NUMBERS = {  # columns of finite numbers, none missing
    "candidates": ["n_examples", "epochs", "learning_rate"],
    "counts": ["rl_run", "checkpoint", "n", *VERDICTS, "truncated"],
    "generalization_loss": ["nll"],
    "rl_curves": ["rl_run", "step", "reward"],
    "cells": [],
}
MAY_MISS = {  # numbers that are not always known, and never infinite
    "candidates": ["sft_tokens"],
    "counts": ["mean_tokens"],
    "generalization_loss": ["standard_error"],
    "rl_curves": [],
    "cells": [],
}
MEASURED = ["pass1", "pass_k", "gen_loss", "outcome"]  # of a candidate frame: what tables and claims rest on

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

    Raises ParameterError, with the file and what brings it back, for a missing folder or file, one that is damaged or
    holds what no sweep writes (`check_table`), measurements that a manifest calls complete and that are not there
    (`check_complete`), and records without a single measured checkpoint.
    """
    folder = Path(folder)
    for file in [f"{name}.parquet" for name in RECORDS] + ["manifest.json"]:  # the manifest is written last
        if not (folder / file).is_file():
            raise ParameterError(f"there are no complete records in {folder} ({file} is missing); {_remedy(folder)}")
    frames = {name: read_table(folder / f"{name}.parquet") for name in RECORDS}
    manifest = read_object(folder / "manifest.json")
    if not isinstance(manifest.get("configuration"), Mapping):
        raise ParameterError(f"{_shown(folder / 'manifest.json')} names no configuration; {_back(folder)}")
    if frames["counts"].empty:
        raise ParameterError(f"the records in {folder} hold no measured checkpoint yet; {_remedy(folder)}")
    for name, frame in frames.items():
        if len(frame):  # a table without rows may have no columns either
            check_table(frame, name, _shown(folder / f"{name}.parquet"))
    records = Records(folder=folder, **frames, manifest=manifest)
    if manifest.get("complete") is True:
        check_complete(records)
    return records


def read_table(path: Path) -> pd.DataFrame:
    """A table of the records. Raises ParameterError, with what brings it back, where it is damaged."""
    try:
        return read_parquet(path)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        said = " ".join(str(error).split())[:120]
        raise ParameterError(f"{_shown(path)} is missing or damaged ({said}); {_back(path.parent)}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the records. Raises ParameterError, with what brings it back, for anything else."""
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise ParameterError(f"{_shown(path)} is missing or damaged ({error}); {_back(path.parent)}") from error
    if not isinstance(value, dict):
        raise ParameterError(f"{_shown(path)} holds no JSON object; {_back(path.parent)}")
    return value


def check_table(frame: pd.DataFrame, name: str, where: str = "") -> None:
    """Whether one of RECORDS is what a sweep writes; `where` is what messages call it.

    Raises ParameterError for missing columns, text in place of numbers, missing or infinite values, rows that occur
    twice, an unknown scenario, and verdicts that do not add up to the number of answers.
    """
    where = where or name
    columns = dict.fromkeys([*KEYS[name], *TEXTS[name], *NUMBERS[name], *MAY_MISS[name]])
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ParameterError(f"{where} lacks the column(s) {', '.join(missing)}")
    for column in TEXTS[name]:
        if frame[column].isna().any():
            raise ParameterError(f"{where}: column {column} has {frame[column].isna().sum()} row(s) without a value")
    for column in [*NUMBERS[name], *MAY_MISS[name]]:
        values = frame[column].to_numpy()
        with_gaps = column in MAY_MISS[name]
        if values.dtype == object and with_gaps:
            values = np.array([np.nan if value is None else value for value in values])
        if values.dtype.kind not in "iuf":
            raise ParameterError(f"{where}: column {column} must hold numbers, not {frame[column].dtype}")
        wrong = np.isinf(values) if with_gaps else ~np.isfinite(values)
        if wrong.any():
            raise ParameterError(f"{where}: column {column} has {values[wrong][0]} in {wrong.sum()} row(s)")
    check_once(frame, KEYS[name], where)
    if name == "candidates":
        for text in frame["scenario"]:
            if not set(text.split("+")) <= set(SCENARIOS):
                raise ParameterError(f"{where}: column scenario has {text!r}, which is not of {', '.join(SCENARIOS)}")
    if name == "counts":
        wrong = (frame[VERDICTS].sum(axis=1) != frame["n"]) | (frame[["n", *VERDICTS]] < 0).any(axis=1)
        if wrong.any():
            row = frame[wrong].iloc[0]
            raise ParameterError(
                f"{where}: the verdicts on problem {row['problem']} of {_name(row)} add up to "
                f"{row[VERDICTS].sum():g} and not to its {row['n']:g} answers ({wrong.sum()} such row(s))"
            )


def check_once(frame: pd.DataFrame, keys: Sequence[str], where: str) -> None:
    """Raises ParameterError where two rows have the same keys: each of them would count twice."""
    twice = frame.duplicated(list(keys))
    if twice.any():
        row = frame[twice].iloc[0]
        said = " ".join(str(row[key]) for key in keys)
        raise ParameterError(f"{where} has {said} more than once ({twice.sum()} row(s) too many)")


def check_complete(records: Records) -> None:
    """Whether everything is there that complete records hold.

    Raises ParameterError, naming the candidate, where one lacks its measurement before RL, its generalization loss, an
    RL run or one of its checkpoints, or where there are fewer cells or other candidates than the manifest speaks of.
    """
    candidates, counts, loss = records.candidates, records.counts, records.generalization_loss
    folder, cells = records.folder, records.manifest.get("cells")
    end = f"though the manifest says that the records are complete; {_back(folder)}"
    if cells is not None and len(records.cells) != cells:
        raise ParameterError(f"{_shown(folder / 'cells.parquet')} has {len(records.cells)} of {cells} cells, {end}")
    checkpoints = counts[CHECKPOINT].drop_duplicates()
    known = pd.MultiIndex.from_frame(candidates[CANDIDATE])
    strange = checkpoints[~pd.MultiIndex.from_frame(checkpoints[CANDIDATE]).isin(known)]
    if len(strange):
        family, name = strange[CANDIDATE].iloc[0]
        raise ParameterError(f"{_shown(folder / 'candidates.parquet')} lacks {family}/{name}, {end}")
    before = set(map(tuple, checkpoints.loc[checkpoints["stage"] != "rl", CANDIDATE].to_numpy()))
    losses = set(map(tuple, loss[CANDIDATE].to_numpy())) if len(loss) else set()
    after = checkpoints[checkpoints["stage"] == "rl"].groupby([*CANDIDATE, "rl_run"])["checkpoint"].agg(frozenset)
    most = max(map(len, after), default=0)
    runs = after.groupby(CANDIDATE).size()
    expected = candidates["rl_runs"] if "rl_runs" in candidates else pd.Series(1, index=candidates.index)
    for key, wanted in zip(map(tuple, candidates[CANDIDATE].to_numpy()), expected, strict=True):
        name, there = "/".join(key), int(runs.get(key, 0))
        lacking = ""
        if key not in before:
            lacking = f"counts.parquet has no measurement of {name} before RL"
        elif key not in losses:
            lacking = f"generalization_loss.parquet has no loss of {name}"
        elif there < wanted:
            lacking = f"counts.parquet has {there} of the {wanted} RL runs of {name}"
        elif any(len(steps) < most for steps in after[key]):
            lacking = f"counts.parquet lacks checkpoints of an RL run of {name}"
        if lacking:
            raise ParameterError(f"{_shown(folder)}: {lacking}, {end}")


def check_frame(frame: object, columns: Sequence[str] = (), where: str = "frame") -> None:
    """Whether a candidate frame is one: what is computed from it would otherwise fail later, or count rows twice.

    Raises ParameterError for anything but a DataFrame of at least one candidate, missing columns, and a candidate that
    occurs twice.
    """
    if not isinstance(frame, pd.DataFrame):
        raise ParameterError(f"{where} must be a DataFrame from candidate_frame, not {type(frame).__name__}")
    missing = [name for name in [*CANDIDATE, "stands_for", *columns] if name not in frame.columns]
    if missing:
        raise ParameterError(f"{where} lacks the column(s) {', '.join(missing)}; candidate_frame makes them")
    if frame.empty:
        raise ParameterError(f"{where} holds no candidate")
    check_once(frame, CANDIDATE, where)


def _remedy(folder: Path) -> str:
    return f"`./reproduce.sh --profile {folder.name} --only run_sweep` makes them"


def _back(folder: Path) -> str:
    """What brings a damaged file of the records back."""
    shown = _shown(folder)
    return f"`git checkout {shown}` brings it back where it is committed, and --fresh computes the profile again"


def _shown(path: Path) -> str:
    """A path as seen from the working directory, where it lies below it."""
    inside = os.path.relpath(path)
    return str(path) if inside.startswith("..") else inside


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
    check_once(counts, CHECKPOINT + keys, "counts")
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
      k                                        what "large k" is in pass_k
      pass1, pass1_se, pass1_sampling_se       before RL; standard errors as in `checkpoint_scores`
      pass_k, pass_k_se                        Pass@k before RL, whatever k is (the name that `prediction` knows)
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
    keys = CANDIDATE
    counts = records.counts
    check_once(records.candidates, keys, "candidates")
    if len(records.generalization_loss):
        check_once(records.generalization_loss, KEYS["generalization_loss"], "generalization_loss")
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
        "pass_k": before[f"pass@{k}"],
        "pass_k_se": before[f"se@{k}"],
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
    model without SFT is none of them. Empty where a model of the paper was not run. Raises ParameterError for a family
    that neither the records nor the paper know, an unknown scenario, and fewer candidates than `at_least`.
    """
    check_family(frame, family)
    if scenario not in SCENARIOS:
        raise ParameterError(f"scenario must be one of {', '.join(SCENARIOS)}, not {scenario!r}")
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


def check_family(frame: pd.DataFrame, family: str) -> None:
    """Raises ParameterError for a family that neither the records nor the paper know."""
    known = dict.fromkeys([*frame["family"], *frame["stands_for"], *paper.MODELS])
    if family not in known:
        raise ParameterError(f"family {family!r} is not known; the records and the paper have {', '.join(known)}")


def base_models(frame: pd.DataFrame, family: str) -> pd.DataFrame:
    """The rows of the models without SFT of a family: a reference in figures, never part of a fit."""
    mine = (frame["family"] == family) | (frame["stands_for"] == family)
    return frame[mine & (frame["selection"] == "none") & frame["outcome"].notna()].reset_index(drop=True)


def _name(row: pd.Series) -> str:
    return " ".join(str(row[key]) for key in CHECKPOINT)


def _sums(values: Array, codes: NDArray[np.intp]) -> Array:
    """Sums of the rows of `values` (rows, columns) by code; NaN stays NaN."""
    return np.stack([np.bincount(codes, column) for column in values.T], axis=1)
