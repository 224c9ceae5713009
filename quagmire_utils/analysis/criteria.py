"""Criteria of a micro world worth measuring, and whether the records of a profile meet them.

criteria_table(load_records("results/mini-pilot"))     # each criterion, what was measured, met or not

`analysis/criteria.yaml` lists the criteria: each asks that a column of a table lies within bounds. TABLES makes the
tables from records, one row per family (or family and scenario).
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict

from quagmire_utils.analysis import design
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


def _spread(records: Records) -> pd.DataFrame:
    table = design.spread_table(records)
    if table.empty:  # no candidates, a base alone
        return table
    table = table[(table["outcome"] == "last") & (table["scenario"] != "all")]
    enough = table["candidates"] >= design.MIN_CANDIDATES
    return table.assign(
        family=table["family"] + ", " + table["scenario"] + " level",
        ratio=table["ratio"].where(enough),
        between=table["between"].where(enough),
    )


def _overtraining(records: Records) -> pd.DataFrame:
    rows = []
    for family in records.candidates["family"].unique():
        table = design.overtraining_table(records, family)
        clear = table[table["beyond"].astype(str).str.count(",") == 2]
        found = float(len(clear)) if table["pass1_change"].notna().any() else math.nan
        rows.append({"family": family, "found": found, "names": ", ".join(clear["candidate"])})
    families = pd.DataFrame(rows)
    many = (families["found"] > 0).sum() if families["found"].notna().any() else math.nan
    names = "; ".join(f"{row.family}: {row.names}" for row in families.itertuples() if row.names)
    return pd.DataFrame([{"family": "", "found": float(many), "names": names}])


TABLES = {
    "level": design.level_table,
    "plateau": design.plateau_table,
    "spread": _spread,
    "overtraining": _overtraining,
    "heterogeneity": design.heterogeneity_table,
    "rl_set": design.rl_set_table,
}
CRITERIA = {
    one["name"]: Criterion.model_validate(one) for one in yaml.safe_load(FILE.read_text(encoding="utf-8"))["criteria"]
}
