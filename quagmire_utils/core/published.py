"""What the paper published: Tables 1-10, the settings it states and the numbers it claims, to print beside ours.

The numbers are data, not code: results/paper/tables.csv (one row per printed cell), settings.csv and claims.csv,
described in results/paper/README.md. tables.csv is written from a transcription of the tables (JSON) by

    python -m quagmire_utils.core.published published_tables.json

and read through

    from quagmire_utils import paper
    paper.published(5)                            # a DataFrame, one row per cell
    paper.value(5, "8:8", "pass_k")               # PublishedValue(mean=0.88, plus_minus=0.08, ...)
    paper.settings(), paper.claims()

plus_minus is what stands after the +- in the paper. The captions call it a standard error of 100 random splits; its
size says that it is the standard deviation over splits, which is `SplitR2.std` in `prediction`.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT

FOLDER = ROOT / "results" / "paper"
COLUMNS = ("pass1", "gen_loss", "pass_k", "avg_genloss_pass_k")
FAMILIES = ("Llama3-8B-Instruct", "Mistral-NeMo-12B-Instruct")  # of the tables
MODELS = (*FAMILIES, "Qwen3-4B-base")  # of the figures too (Sec. 4.1)
BASELINE = "pass1"


@dataclass(frozen=True)
class PublishedValue:
    """One cell of a table of the paper."""

    mean: float
    plus_minus: float  # as printed after +-; NaN in the tables of rank correlations
    printed_gain: float  # over the Pass@1 baseline, as printed in brackets; NaN where none is
    note: str  # what is odd about the cell, else empty


def published(table: int | str) -> pd.DataFrame:
    """Cells of a table (5, "5", "table5" or "table05"), in the paper's order of rows and columns.

    Returns columns table, row, column (one of COLUMNS), statistic (spearman or r2), scenario (dataset or instance),
    family, n_fit, n_validation (<NA> unless the row names them), mean, plus_minus, printed_gain, note. Raises
    ParameterError for an unknown table.
    """
    cells = _read("tables")
    name = re.sub(r"^(table)?\s*0*", "", str(table).strip().lower())
    numbers = cells["table"].unique().tolist()
    if name not in map(str, numbers):
        raise ParameterError(f"table must be one of {numbers[0]}-{numbers[-1]}, not {table!r}.")
    return cells[cells["table"] == int(name)].reset_index(drop=True)


def value(table: int | str, row: str, column: str) -> PublishedValue:
    """One cell. row: as printed, e.g. "Llama3-8B-Instruct", "8:8", "Average"; column: one of COLUMNS.

    Raises ParameterError for a table, row or column that the paper does not have, naming those that it has.
    """
    cells = published(table)
    for name, wanted in (("row", row), ("column", column)):
        known = cells[name].unique().tolist()
        if wanted not in known:
            raise ParameterError(f"{name} {wanted!r} is not in the paper's table {table}: {', '.join(known)}.")
    cell = cells[(cells["row"] == row) & (cells["column"] == column)].iloc[0]
    return PublishedValue(float(cell["mean"]), float(cell["plus_minus"]), float(cell["printed_gain"]), cell["note"])


def settings() -> pd.DataFrame:
    """Settings that the paper states: columns name, value, unit, where, quote (the paper's words)."""
    return _read("settings").copy()


def claims() -> pd.DataFrame:
    """Numbers that the paper's text and captions claim: columns name, value, unit, where, quote."""
    return _read("claims").copy()


def transcribe(source: Path, target: Path = FOLDER / "tables.csv") -> pd.DataFrame:
    """Write tables.csv from the JSON transcription {"table1": {title, columns, rows, printed_gain, note}, ...}.

    Returns the cells. A gain printed for a row without naming its column belongs to the best column, where the paper
    prints it. A gain that is not the difference of its two cells, to half a unit of the last digit, gets a note.
    """
    tables = json.loads(source.read_text(encoding="utf-8"))
    parts = [_cells(int(key.removeprefix("table")), table) for key, table in tables.items()]
    cells = pd.concat(parts, ignore_index=True)
    temporary = target.with_suffix(".tmp")
    cells.to_csv(temporary, index=False, lineterminator="\n")
    os.replace(temporary, target)
    return cells


def _cells(number: int, table: dict) -> pd.DataFrame:
    title, columns = table["title"], table["columns"]
    cells = []
    for row, values in table["rows"].items():
        pairs = [value if isinstance(value, list) else [value, math.nan] for value in values]
        means = dict(zip(columns, (mean for mean, _ in pairs), strict=True))
        gain = table["printed_gain"][row]
        best, gain = gain if isinstance(gain, list) else (max(means, key=means.get), gain)
        split = re.fullmatch(r"(\d+):(\d+)", row)
        for column, (mean, plus_minus) in zip(columns, pairs, strict=True):
            printed = gain if column == best else math.nan
            difference = mean - means[BASELINE]
            odd = column == best and abs(printed - difference) > 0.005
            # A table's own note is about the one cell that it names by row and column.
            family = next(family for family in FAMILIES if family in f"{title} {row}")
            about = table.get("note", "")
            noted = about.startswith(f"the {family.split('-')[0]} {column} cell")
            cell = {
                "table": number,
                "row": row,
                "column": column,
                "statistic": "spearman" if title.startswith("Spearman") else "r2",
                "scenario": "dataset" if "dataset level" in title else "instance",
                "family": family,
                "n_fit": int(split[1]) if split else pd.NA,
                "n_validation": int(split[2]) if split else pd.NA,
                "mean": mean,
                "plus_minus": plus_minus,
                "printed_gain": printed,
                "note": f"the difference is {difference:+.2f}" if odd else about if noted else "",
            }
            cells.append(cell)
    return pd.DataFrame(cells)


@cache
def _read(name: str) -> pd.DataFrame:
    path = FOLDER / f"{name}.csv"
    if not path.is_file():
        raise ParameterError(f"The published numbers are missing: {path} is not there; they come with the repository.")
    frame = pd.read_csv(path, keep_default_na=name == "tables")
    if name == "tables":
        frame = frame.astype({"n_fit": "Int64", "n_validation": "Int64"})
        frame["note"] = frame["note"].fillna("")
    return frame
