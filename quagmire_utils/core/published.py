"""What the paper published: Tables 1 to 10, the settings it states and the numbers it claims.

    from quagmire_utils.core import published as paper
    paper.published(5)                            # a DataFrame, one row per cell

The numbers are data, described in results/paper/README.md. plus_minus is what the paper prints after ±. Its captions
call it a standard error of 100 random splits; its size shows that it is the standard deviation over splits.
"""

from __future__ import annotations

import re
from functools import cache

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT

FOLDER = ROOT / "results" / "paper"
COLUMNS = ("pass1", "gen_loss", "pass_k", "avg_genloss_pass_k")
FAMILIES = ("Llama3-8B-Instruct", "Mistral-NeMo-12B-Instruct")  # of the tables
MODELS = (*FAMILIES, "Qwen3-4B-base")  # of the figures too (Sec. 4.1)
BASELINE = "pass1"


def published(table: int | str) -> pd.DataFrame:
    """Return the cells of a table (5, "5", "table5" or "table05"), in the paper's order of rows and columns.

    The columns are table, row, column (one of COLUMNS), statistic (spearman or r2), scenario (dataset or instance),
    family, n_fit, n_validation (<NA> unless the row names them), mean, plus_minus, printed_gain, note. Raises
    ParameterError for an unknown table.
    """
    cells = _read("tables")
    name = re.sub(r"^(table)?\s*0*", "", str(table).strip().lower())
    numbers = cells["table"].unique().tolist()
    if name not in map(str, numbers):
        raise ParameterError("table", table, f"one of {numbers[0]} to {numbers[-1]}")
    return cells[cells["table"] == int(name)].reset_index(drop=True)


def settings() -> pd.DataFrame:
    """Return the settings that the paper states: columns name, value, unit, where, quote (the paper's words)."""
    return _read("settings").copy()


def claims() -> pd.DataFrame:
    """Return the numbers that the paper's text and captions claim: columns name, value, unit, where, quote."""
    return _read("claims").copy()


def captions() -> dict[int, str]:
    """Return the caption of each figure, with its mathematics as plain text."""
    frame = _read("captions").set_index("figure")["caption"]
    return frame.str.replace(r"\$R\^2=([\d.]+)\$", r"R² = \1", regex=True).str.replace("*", "").to_dict()


@cache
def _read(name: str) -> pd.DataFrame:
    path = FOLDER / f"{name}.csv"
    if not path.is_file():
        raise ParameterError("published numbers", path, reason=f"{path} is missing; it comes with the repository")
    if name != "tables":
        return pd.read_csv(path, keep_default_na=False)
    return pd.read_csv(path, dtype={"n_fit": "Int64", "n_validation": "Int64"}).fillna({"note": ""})
