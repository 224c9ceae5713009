"""Criteria of a micro world worth measuring, and whether the records of a profile meet them.

criteria_table(load_records("results/mini-pilot"))     # each criterion, what was measured, met or not

`analysis/criteria.yaml` lists the criteria: each asks that a column of a table lies within bounds. TABLES makes the
tables from records, one row per family (or family and scenario).
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict

from quagmire_utils.analysis import design
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import Records

FILE = Path(__file__).with_name("criteria.yaml")
Z = 1.96  # standard errors on either side of a 95 % interval


class Criterion(BaseModel):
    """What is asked of every row of a table; criteria.yaml documents the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    asked: str
    table: str
    value: str
    measured: str
    low: float = -math.inf
    high: float = math.inf
    error: str = ""
    interval: tuple[str, str] = ("", "")

    def judge(self, row: dict[str, float]) -> dict[str, object]:
        """Return what was measured, whether it is met, and whether the 95 % interval leaves no doubt about that."""
        value = row[self.value]
        if math.isnan(value):
            return {"measured": "not enough records yet", "verdict": "not measured", "clear": None}
        low, high = (row.get(name, math.nan) for name in self.interval)
        if self.error:
            low, high = value - Z * row[self.error], value + Z * row[self.error]
        clear = None if math.isnan(low) else not any(low <= bound <= high for bound in (self.low, self.high))
        measured = self.measured.format(**row).replace(" ± nan%", "").strip()
        return {"measured": measured, "verdict": "met" if self.low <= value <= self.high else "not met", "clear": clear}


def criteria_table(records: Records) -> pd.DataFrame:
    """Return every criterion for every family and scenario: criterion, family, asked, measured, verdict, clear.

    verdict: met, not met, or not measured. clear: whether the bounds lie outside the 95 % interval of the measured
    value; None without an interval.
    """
    tables = {name: make(records).to_dict("records") for name, make in TABLES.items()}
    return pd.DataFrame(
        {"criterion": one.name, "family": row["family"], "asked": one.asked, **one.judge(row)}
        for one in CRITERIA.values()
        for row in tables[one.table]
    )


def _base(records: Records) -> pd.DataFrame:
    table = design.base_table(records)
    shift = (table["after_k_after"] - table["before_k_after"]).abs()
    return table.assign(sharpened=table["possible_share"].mask(shift >= table["lift_last"], 0.0))


def _spread(records: Records) -> pd.DataFrame:
    table = design.spread_table(records)
    if table.empty:  # no candidates, a base alone
        return table
    level = table["scenario"].map({"all": "all candidates"}).fillna(table["scenario"] + " level")
    table["family"] += ", " + level + ", " + table["outcome"] + " checkpoint"
    return table.assign(ratio=table["ratio"].where(table["candidates"] >= design.MIN_CANDIDATES))


def _overtraining(records: Records) -> pd.DataFrame:
    rows = []
    for family in records.candidates["family"].unique():
        table = design.overtraining_table(records, family)
        steps, found = int(table["pass1_change"].notna().sum()), table[table["signature"]]
        row = {"family": family, "steps": steps, "found": float(len(found)) if steps else math.nan}
        row["beyond_noise"] = float((found["beyond"].str.count(",") == 2).sum()) if len(found) else math.nan
        row["names"] = "; ".join(f"{one.candidate} (clear: {one.beyond or 'none'})" for one in found.itertuples())
        rows.append(row)
    return pd.DataFrame(rows)


def _length(records: Records) -> pd.DataFrame:
    """Return longest minus shortest examples, mean over budgets; NaN for benchmarks without lengths."""
    rows = []
    for family in records.candidates["family"].unique():
        contrast = pd.DataFrame(columns=["before", "before_se", "after", "after_se", "tokens_ratio"], dtype=float)
        with contextlib.suppress(ParameterError):
            contrast = design.length_contrast(design.length_table(records, family)).set_index("budget")
        row = {"family": family, "tokens_ratio": contrast["tokens_ratio"].mean()}
        for when in ("before", "after"):
            known = contrast.dropna(subset=[when])
            error = math.sqrt((known[f"{when}_se"] ** 2).sum()) / len(known) if len(known) else math.nan
            row |= {when: known[when].mean(), f"{when}_se": error, f"{when}_n": len(known)}
        rows.append(row)
    return pd.DataFrame(rows)


def _cost(records: Records) -> pd.DataFrame:
    seconds = design.cost_table(records)["cpu"].reindex(["sft", "rl"])
    return pd.DataFrame([{"family": "", **seconds, "both": seconds.sum(skipna=False)}])


TABLES = {"base": _base, "spread": _spread, "overtraining": _overtraining, "length": _length, "cost": _cost}
CRITERIA = {
    one["name"]: Criterion.model_validate(one) for one in yaml.safe_load(FILE.read_text(encoding="utf-8"))["criteria"]
}
