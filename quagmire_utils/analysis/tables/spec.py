"""What each of the paper's tables shows: tables.yaml, and the lines of a table on our candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict

from quagmire_utils.analysis.candidates import check_family, check_frame, select_candidates
from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError

FILE = Path(__file__).resolve().parents[1] / "tables.yaml"
PREDICTORS = {  # column of the paper's tables -> columns of the candidate frame whose predictions are averaged
    "pass1": ("pass1",),
    "gen_loss": ("gen_loss",),
    "pass_k": ("pass_k",),
    "avg_genloss_pass_k": ("gen_loss", "pass_k"),
}
STATISTICS = {"spearman": "Spearman rank correlation", "r2": "R²"}
BUDGETS = ("low", "medium", "high")
TOGETHER, AVERAGED = "all candidates", "mean of budgets"


class Row(BaseModel):
    """One row of a table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: str  # as printed
    model: str  # the paper's
    basis: Literal["all candidates", "low", "medium", "high", "mean of budgets"] = TOGETHER
    n_fit: int | None = None  # None: half of the candidates, rounded down
    printed: int | None = None  # the table that prints the row, if another one


class TableSpec(BaseModel):
    """One table of the paper; tables.yaml documents the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    slug: str
    title: str
    claim: str
    statistic: Literal["spearman", "r2"]
    scenario: Literal["dataset", "instance"]
    predictors: tuple[Literal["pass1", "gen_loss", "pass_k", "avg_genloss_pass_k"], ...]
    rows: tuple[Row, ...]
    supplement: tuple[Row, ...] = ()
    headline: str = ""
    notes: tuple[str, ...] = ()

    @property
    def within_budgets(self) -> bool:
        """Whether the table ranks candidates within SFT budgets."""
        return any(row.basis == AVERAGED for row in self.rows)

    @property
    def heading(self) -> str:
        """Title and claim of the table in Markdown: the first cell of its executed notebook."""
        return f"# Table {self.number}: {self.title}\n\n{self.claim}"


TABLES = {
    table["number"]: TableSpec.model_validate(table)
    for table in yaml.safe_load(FILE.read_text(encoding="utf-8"))["tables"]
}


@dataclass(frozen=True, eq=False)
class Line:
    """One row of a table for one of our families: the candidates that ours is computed from, and what is printed."""

    spec: Row
    family: str  # ours; empty if none stands for the model
    source: str  # where the paper prints the row, "Table 5, row 8:8"; empty if nowhere
    printed: pd.DataFrame  # the paper's cells by column; NaN where it prints none
    chosen: bool  # False: another family was asked for
    groups: tuple[pd.DataFrame, ...]  # the candidates; one frame per SFT budget for the mean of budgets

    @property
    def needed(self) -> list[str]:
        """Columns of the candidate frame that the line's predictors are made from."""
        return list(dict.fromkeys(name for column in self.printed.index for name in PREDICTORS[column]))

    def fit_size(self, total: int) -> int:
        """Return how many of the candidates are fitted."""
        return total // 2 if self.spec.n_fit is None else self.spec.n_fit


def table_spec(number: int | str) -> TableSpec:
    """Return the table by number or name ("5", "table05"). Raises ParameterError for an unknown one."""
    return TABLES[int(paper.published(number)["table"].iloc[0])]


def table_lines(
    frame: pd.DataFrame,
    number: int | str,
    family: str = "all",
    predictors: str | Sequence[str] = (),
    supplement: bool = False,
) -> list[Line]:
    """Return the rows of a table (or those that complete it), once for each of our families that stands for the model.

    family: "all", a model of the paper or one of our families; rows of others are left out, unless none would remain:
    then all stay, marked as not chosen. predictors: columns to compare with Pass@1; empty for those of the paper.
    """
    spec = table_spec(number)
    columns = _columns(spec, predictors)
    needed = dict.fromkeys(name for column in columns for name in PREDICTORS[column])
    check_frame(frame, ["selection", "scenario", "k", "outcome", *needed])
    if family != "all":
        check_family(frame, family)
    lines = []
    for row in spec.supplement if supplement else spec.rows:
        ours = frame.loc[frame["stands_for"] == row.model, "family"].unique()
        lines += [_line(frame, spec, row, name, family, columns) for name in (ours if len(ours) else [""])]
    chosen = [line for line in lines if line.chosen]
    return chosen if chosen or supplement else lines


def _line(frame: pd.DataFrame, spec: TableSpec, row: Row, name: str, family: str, columns: list[str]) -> Line:
    candidates = select_candidates(frame, name, spec.scenario) if name else frame.iloc[:0]
    budget = candidates.get("budget", pd.Series(index=candidates.index, dtype=object))
    budgets = {TOGETHER: [], AVERAGED: BUDGETS}.get(row.basis, [row.basis])
    groups = [candidates[budget.eq(one)] for one in budgets] or [candidates]
    cells = paper.published(row.printed or spec.number)
    cells = cells[cells["row"] == row.row].set_index("column")
    source = f"Table {row.printed or spec.number}, row {row.row}" if len(cells) else ""
    printed = cells.reindex(columns).fillna({"note": ""})
    return Line(row, name, source, printed, family in ("all", row.model, name), tuple(groups))


def _columns(spec: TableSpec, predictors: str | Sequence[str]) -> list[str]:
    """Return the baseline, then the predictors asked for, or those of the paper's table."""
    asked = predictors.split(",") if isinstance(predictors, str) else predictors
    wanted = [name.strip() for name in asked if name.strip()]
    for name in wanted:
        if name not in PREDICTORS:
            raise ParameterError("predictors", name, f"among {', '.join(PREDICTORS)}")
    wanted = wanted or spec.predictors
    return [paper.BASELINE, *(name for name in PREDICTORS if name in wanted and name != paper.BASELINE)]
