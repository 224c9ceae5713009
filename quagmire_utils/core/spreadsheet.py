"""Tables for spreadsheets and terminals, made of text that a model may have written."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write `table` as CSV in one step; a cell that a spreadsheet would run as a formula gets an apostrophe."""
    safe = table.map(lambda cell: f"'{cell}" if isinstance(cell, str) and _is_formula(cell) else cell)
    with atomic_path(path) as temporary:
        # All texts in quotes: a bare carriage return would begin a row, and its first cell.
        safe.to_csv(temporary, index=False, errors="backslashreplace", quoting=csv.QUOTE_NONNUMERIC)


def _is_formula(cell: str) -> bool:
    """Whether a spreadsheet may take a cell for a formula: it skips spaces and invisible characters."""
    seen = (c for c in unicodedata.normalize("NFKC", cell) if not c.isspace() and unicodedata.category(c)[0] != "C")
    return next(seen, " ") in "=+-@" or cell[:1] in tuple("\t\r\n")
