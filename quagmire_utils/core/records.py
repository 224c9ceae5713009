"""The record files of a sweep: their columns, reading them, and checking that they are whole.

A sweep writes a file for each of TABLES and, last, manifest.json into results/<profile>/. Everything that is shown is
computed from them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, read_parquet
from quagmire_utils.core.settings import SCENARIOS

CANDIDATE = ["family", "candidate"]  # identifies a candidate
CHECKPOINT = [*CANDIDATE, "stage", "rl_run", "checkpoint"]  # identifies a measured checkpoint
VERDICTS = ["correct", "wrong", "no_answer", "timeout", "error"]  # of answers; they add up to n


class Table(NamedTuple):
    """Columns of one record file. Further columns are allowed."""

    keys: Sequence[str]  # no two rows share them
    texts: Sequence[str]  # never missing
    numbers: Sequence[str] = ()  # finite, never missing
    optional_numbers: Sequence[str] = ()  # finite or missing


TABLES = {
    "candidates": Table(
        keys=CANDIDATE,
        texts=[*CANDIDATE, "stands_for", "scenario", "source", "selection"],
        numbers=["n_examples", "epochs", "learning_rate"],
        optional_numbers=["sft_tokens"],
    ),
    "counts": Table(
        keys=[*CHECKPOINT, "benchmark", "problem"],
        texts=[*CANDIDATE, "stage", "benchmark", "problem"],
        numbers=["rl_run", "checkpoint", "n", *VERDICTS, "truncated"],
        optional_numbers=["mean_tokens"],
    ),
    "generalization_loss": Table(
        keys=[*CANDIDATE, "validation_set"],
        texts=[*CANDIDATE, "validation_set"],
        numbers=["nll"],
        optional_numbers=["standard_error"],
    ),
    "rl_curves": Table(keys=[*CANDIDATE, "rl_run", "step"], texts=CANDIDATE, numbers=["rl_run", "step", "reward"]),
    "cells": Table(keys=["cell"], texts=["cell", "kind", *CANDIDATE]),
}
RECORDS = tuple(TABLES)


@dataclass(frozen=True, eq=False)
class Records:
    """The record files of one profile, read by `load_records`."""

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
    """Read and check the records in `folder` (results/<profile>).

    Raises ParameterError, naming the file and the command that restores it, for a missing or damaged file, a table that
    no sweep writes, and records without any measured checkpoint.
    """
    folder = Path(folder)
    rerun = f"`./reproduce.sh --profile {folder.name} --only run_sweep` makes them"
    for file in [*(f"{name}.parquet" for name in RECORDS), "manifest.json"]:
        if not (folder / file).is_file():
            raise ParameterError(_shown(folder), reason=f"no complete records here ({file} is missing); {rerun}")
    frames = {name: read_table(folder / f"{name}.parquet") for name in RECORDS}
    manifest = read_object(folder / "manifest.json")
    if not isinstance(manifest.get("configuration"), Mapping):
        raise _damaged(folder / "manifest.json", "no configuration in it")
    if frames["counts"].empty:
        raise ParameterError(_shown(folder), reason=f"no checkpoint has been measured yet; {rerun}")
    for name, frame in frames.items():
        if len(frame):  # a table without rows may have no columns either
            check_table(frame, name, _shown(folder / f"{name}.parquet"))
    return Records(folder=folder, **frames, manifest=manifest)


def read_table(path: Path) -> pd.DataFrame:
    """Read one parquet file of the records. Raises ParameterError where it is missing or damaged."""
    try:
        return read_parquet(path)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise _damaged(path, f"missing or damaged ({' '.join(str(error).split())[:120]})") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of the records. Raises ParameterError for anything else."""
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, f"missing or damaged ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(path, "not a JSON object")
    return value


def check_table(frame: pd.DataFrame, name: str, where: str = "") -> None:
    """Check one table of RECORDS; `where` names it in errors.

    Raises ParameterError for missing columns, text in place of numbers, missing or infinite values, repeated rows, an
    unknown scenario, and verdicts that do not add up to the number of answers.
    """
    where, table = where or name, TABLES[name]
    check_columns(frame, [*table.keys, *table.texts, *table.numbers, *table.optional_numbers], where)
    for column in [*table.texts, *table.numbers]:
        if frame[column].isna().any():
            raise ParameterError(where, reason=f"column {column} has no value in {frame[column].isna().sum()} row(s)")
    for column in [*table.numbers, *table.optional_numbers]:
        if not pd.api.types.is_numeric_dtype(frame[column]) and frame[column].notna().any():
            raise ParameterError(where, reason=f"column {column} holds {frame[column].dtype}, not numbers")
        infinite = np.isinf(frame[column].astype(float))
        if infinite.any():
            raise ParameterError(where, reason=f"column {column} is infinite in {infinite.sum()} row(s)")
    check_once(frame, table.keys, where)
    for text in frame["scenario"] if name == "candidates" else ():
        if not set(text.split("+")) <= set(SCENARIOS):
            reason = f"column scenario has {text!r}; known are {', '.join(SCENARIOS)}"
            raise ParameterError(where, text, reason=reason)
    if name == "counts":
        wrong = (frame[VERDICTS].sum(axis=1) != frame["n"]) | (frame[["n", *VERDICTS]] < 0).any(axis=1)
        for row in frame[wrong].to_dict("records"):
            place = " ".join(str(row[key]) for key in table.keys)
            given = f"{sum(row[verdict] for verdict in VERDICTS):g} of {row['n']:g} answers"
            raise ParameterError(where, reason=f"{place} has verdicts for {given} ({wrong.sum()} such row(s))")


def check_columns(frame: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    """Raise ParameterError if the frame lacks a column."""
    missing = [column for column in dict.fromkeys(columns) if column not in frame.columns]
    if missing:
        raise ParameterError(where, reason=f"lacks the column(s) {', '.join(missing)}")


def check_once(frame: pd.DataFrame, keys: Sequence[str], where: str) -> None:
    """Raise ParameterError if two rows share the same keys: they would count twice."""
    repeated = frame.duplicated(list(keys))
    if repeated.any():
        row = frame[repeated].iloc[0]
        place = " ".join(str(row[key]) for key in keys)
        raise ParameterError(where, reason=f"{place} occurs more than once ({repeated.sum()} row(s) too many)")


def _damaged(path: Path, what: str) -> ParameterError:
    """Build the error for a bad file, with the commands that restore it."""
    restore = f"`git checkout {_shown(path.parent)}` restores a committed file; --fresh computes the profile again"
    return ParameterError(_shown(path), reason=f"{what}; {restore}")


def _shown(path: Path) -> str:
    """Return the path relative to the working directory where it lies below it."""
    inside = os.path.relpath(path)
    return str(path) if inside.startswith("..") else inside
