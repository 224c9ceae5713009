"""Tables for spreadsheets and terminals, made of text that a model may have written."""

from __future__ import annotations

import csv
import tempfile
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd


def check_writable(path: Path) -> None:
    """Raise ParameterError unless a file can be written at `path`."""
    if path.is_dir():
        raise ParameterError("output", path, reason=f"{path} is a folder, not a file")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ParameterError("output", path, reason=f"{path.parent} cannot be written to ({error.strerror})") from error


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write `table` as CSV in one step; a cell that a spreadsheet would run as a formula gets an apostrophe."""
    safe = table.map(lambda cell: f"'{cell}" if _is_formula(cell) else cell)
    with atomic_path(path) as temporary:
        # All texts in quotes: a bare carriage return would begin a row, and its first cell.
        safe.to_csv(temporary, index=False, errors="backslashreplace", quoting=csv.QUOTE_NONNUMERIC)


def printable(cell: object) -> object:
    """Return a cell without control characters, which could command a terminal."""
    if not isinstance(cell, str):
        return cell
    return "".join(character if character.isprintable() else "\ufffd" for character in cell)


def _is_formula(cell: object) -> bool:
    """Whether a spreadsheet may take a cell for a formula: it skips spaces and invisible characters."""
    if not isinstance(cell, str):
        return False
    seen = (c for c in unicodedata.normalize("NFKC", cell) if not c.isspace() and unicodedata.category(c)[0] != "C")
    return next(seen, " ") in "=+-@" or cell[:1] in tuple("\t\r\n")
