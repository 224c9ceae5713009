"""The files that a store of samples is made of: their columns, what their metadata says, what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    import pyarrow as pa

KEYS = ["benchmark", "problem", "index"]
COLUMNS = [*KEYS, "text", "tokens", "finish_reason", "extracted", "verdict"]
PROMPTS = b"quagmire_utils.data.prompts"  # in a part's metadata: {benchmark: {problem: digest of its prompt}}


def _prompts_of(table: pa.Table) -> dict[tuple[str, str], str]:
    """(benchmark, problem) -> digest of its prompt, as a part says; empty for parts of earlier versions."""
    said = json.loads((table.schema.metadata or {}).get(PROMPTS, b"{}"))
    return {(benchmark, problem): mark for benchmark, marks in said.items() for problem, mark in marks.items()}


def _of(table: pa.Table, benchmark: str | None) -> pa.Table:
    """The rows of a benchmark."""
    import pyarrow.compute as pc

    return table if benchmark is None else table.filter(pc.equal(table["benchmark"], benchmark))


def _keys(frame: pd.DataFrame) -> list[tuple[str, str, int]]:
    return sorted(frame[KEYS].itertuples(index=False, name=None))


def _is_of_another(part: Path, benchmark: str) -> bool:
    """Whether a part's statistics say that it holds nothing of a benchmark; False where they don't say."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        facts = pq.read_metadata(part)
        column = facts.schema.names.index("benchmark")
        ranges = [facts.row_group(i).column(column).statistics for i in range(facts.num_row_groups)]
        return all(r is not None and r.has_min_max and not r.min <= benchmark <= r.max for r in ranges)
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return False  # who reads it will say what is wrong


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of a part, in their types; texts stay as they are because a lone surrogate fits no string type."""
    columns = {}
    for name in COLUMNS:
        values = (
            frame[name] if name in frame.columns else pd.Series([None] * len(frame), index=frame.index, dtype=object)
        )
        if name in ("index", "tokens"):
            columns[name] = values.astype("int64")
        elif name in ("text", "extracted"):
            columns[name] = values.astype(object).where(values.notna(), None)
        else:
            columns[name] = values.astype("str")
    return pd.DataFrame(columns)
