"""What the rows and columns of the paper's tables rest on: which cells were printed, and which of our candidates.

A table's rows are families (Tables 1-4), fit sizes (5, 6, 7, 9) or SFT budgets (8, 10). Three things that the captions
leave open are read off the numbers: a row that is printed again in another table, to the last digit, was computed as
that one was (`printed_again`). So Table 3 holds the means of the correlations within each SFT budget (the rows Average
of Tables 8 and 10), Table 4 rests on all candidates together (rows 8:9 of Table 7 and 6:6 of Table 9), and one row of
Table 2 was not fitted on half of the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd

from quagmire_utils.analysis.records import check_frame, select_candidates
from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError

PREDICTORS = {  # a column of the paper's tables -> the columns of the candidate frame whose predictions are averaged
    "pass1": ("pass1",),
    "gen_loss": ("gen_loss",),
    "pass_k": ("pass_k",),
    "avg_genloss_pass_k": ("gen_loss", "pass_k"),
}
BUDGETS = ("low", "medium", "high")
TOGETHER, AVERAGED = "all candidates", "mean of budgets"  # a row's basis: one of these, or a budget
NOT_PRINTED = paper.PublishedValue(math.nan, math.nan, math.nan, "")


@dataclass(frozen=True, eq=False)
class Line:
    """One row of a table for one of our families: what the paper printed, and the candidates that ours rests on."""

    row: str
    model: str  # the paper's
    family: str  # ours; empty where none stands for the model
    statistic: str  # spearman or r2
    scenario: str  # dataset or instance
    basis: str  # all candidates, low, medium, high, or mean of budgets
    n_fit: int | None  # None: half of the candidates
    source: str  # the paper's table and row, "Table 5, row 8:8"; empty where the paper prints no such row
    printed: dict[str, paper.PublishedValue]  # by column
    chosen: bool  # False: left out by the family that was asked for
    groups: tuple[pd.DataFrame, ...]  # the candidates; one frame per SFT budget for the mean of budgets


def table_lines(
    frame: pd.DataFrame, number: int | str, family: str = "all", predictors: str | Sequence[str] = ()
) -> list[Line]:
    """The rows of the paper's table, in its order, once for each of our families that stands for the row's model.

    family: "all", a model of the paper or one of our families: other rows are left out; where none would remain, all
    stay and are marked as not chosen. predictors: columns to compare with Pass@1; empty for those of the paper's table.
    """
    cells = paper.published(number)
    number = int(cells["table"].iloc[0])
    columns = _columns(cells, predictors)
    needed = dict.fromkeys(name for column in columns for name in PREDICTORS[column])
    check_frame(frame, ["selection", "scenario", "k", "outcome", *needed])
    _check_family(frame, family)
    pools = _pools(frame, cells)
    found = []
    for row, own in cells.groupby("row", sort=False):
        first = own.iloc[0]
        basis = _basis(number, row)
        n_fit = None if pd.isna(first["n_fit"]) else int(first["n_fit"])
        found += _family_lines(pools, family, first, row, basis, n_fit, _printed(own, columns), number)
    chosen = [line for line in found if line.chosen]
    return chosen or found


def supplement_lines(
    frame: pd.DataFrame, number: int | str, family: str = "all", predictors: str | Sequence[str] = ()
) -> list[Line]:
    """Rows that complete a table and that the paper has elsewhere or not at all; [] for Tables 1, 5 and 6.

    Table 2: the fit size that a printed row has in truth, where it is not half. Instance level: within each SFT budget,
    their mean, and all candidates together, as far as the table itself lacks them.
    """
    cells = paper.published(number)
    number = int(cells["table"].iloc[0])
    columns = _columns(cells, predictors)
    needed = dict.fromkeys(name for column in columns for name in PREDICTORS[column])
    check_frame(frame, ["selection", "scenario", "k", "outcome", *needed])
    _check_family(frame, family)
    pools = _pools(frame, cells)
    found = []
    for model, own in cells.groupby("family", sort=False):
        first = own.iloc[0]
        if first["scenario"] == "dataset":
            for source, row in printed_again(number, own["row"].iloc[0]):
                fit = paper.published(source).set_index("row").loc[row].iloc[0]
                if own["n_fit"].isna().all() and fit["n_fit"] != fit["n_validation"]:
                    printed = _printed(_rows(source, row), columns)
                    found += _family_lines(pools, family, first, row, TOGETHER, int(fit["n_fit"]), printed, source)
            continue
        held = {_basis(number, row) for row in own["row"]}
        for basis in [basis for basis in (*BUDGETS, AVERAGED, TOGETHER) if basis not in held]:
            source, row = _printed_at(model, first["statistic"], first["scenario"], basis)
            printed = _printed(_rows(source, row) if source else own.iloc[:0], columns)
            name = row if source else f"{basis.capitalize()} budget" if basis in BUDGETS else basis.capitalize()
            found += _family_lines(pools, family, first, name, basis, None, printed, source)
    return [line for line in found if line.chosen]


@cache
def printed_again(number: int, row: str) -> tuple[tuple[int, str], ...]:
    """(table, row) of the rows in other tables that hold the same numbers for the same family, to the last digit."""
    mine = _rows(number, row)
    again = []
    for other in range(1, 11):
        cells = paper.published(other)
        same = ["family", "statistic", "scenario"]
        cells = cells[(cells[same] == mine[same].iloc[0]).all(axis=1)]
        for name, theirs in cells.groupby("row", sort=False):
            numbers = ["column", "mean", "plus_minus"]
            equal = theirs[numbers].reset_index(drop=True).equals(mine[numbers].reset_index(drop=True))
            again += [(other, name)] if equal and other != number else []
    return tuple(again)


def _pools(frame: pd.DataFrame, cells: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """For each model of a table our families that stand for it, with their candidates; "" and none where none does."""
    scenario = cells["scenario"].iloc[0]
    pools = {}
    for model in cells["family"].unique():
        ours = frame.loc[frame["stands_for"] == model, "family"].unique()
        pools[model] = {name: select_candidates(frame, name, scenario) for name in ours} or {"": frame.iloc[:0]}
    return pools


def _family_lines(
    pools: dict[str, dict[str, pd.DataFrame]],
    family: str,
    first: pd.Series,
    row: str,
    basis: str,
    n_fit: int | None,
    printed: dict[str, paper.PublishedValue],
    source: int,
) -> list[Line]:
    """The row for each of our families that stands for its model; once without any where none does."""
    model = first["family"]
    lines = []
    for name, candidates in pools[model].items():
        budget = candidates.get("budget", pd.Series(index=candidates.index, dtype=object))
        parts = {TOGETHER: [candidates], AVERAGED: [candidates[budget.eq(one)] for one in BUDGETS]}
        line = Line(
            row=row,
            model=model,
            family=name,
            statistic=first["statistic"],
            scenario=first["scenario"],
            basis=basis,
            n_fit=n_fit,
            source=f"Table {source}, row {row}" if source else "",
            printed=printed,
            chosen=family in ("all", model, name),
            groups=tuple(parts.get(basis, [candidates[budget.eq(basis)]])),
        )
        lines.append(line)
    return lines


def _basis(number: int, row: str) -> str:
    """What the printed row rests on; where the table does not say, what the same row in another table does."""
    names = [row, *(name for _, name in printed_again(number, row))]
    if "Average" in names:
        return AVERAGED
    budget = row.split()[0].lower()
    return budget if budget in BUDGETS else TOGETHER


def _printed_at(model: str, statistic: str, scenario: str, basis: str) -> tuple[int, str]:
    """(table, row) where the paper prints the statistic on this basis, fitted on half or on nothing; (0, "") if not."""
    for number in range(1, 11):
        cells = paper.published(number)
        cells = cells[(cells["family"] == model) & (cells["scenario"] == scenario) & cells["n_fit"].isna()]
        for row in cells.loc[cells["statistic"] == statistic, "row"].unique():
            if _basis(number, row) == basis:
                return number, row
    return 0, ""


def _rows(number: int, row: str) -> pd.DataFrame:
    cells = paper.published(number)
    return cells[cells["row"] == row]


def _printed(cells: pd.DataFrame, columns: Sequence[str]) -> dict[str, paper.PublishedValue]:
    known = {
        cell.column: paper.PublishedValue(cell.mean, cell.plus_minus, cell.printed_gain, cell.note)
        for cell in cells.itertuples()
    }
    return {column: known.get(column, NOT_PRINTED) for column in columns}


def _columns(cells: pd.DataFrame, predictors: str | Sequence[str]) -> list[str]:
    """Columns of a table: the baseline, then the predictors asked for, or those of the paper's."""
    wanted = [name.strip() for name in predictors.split(",")] if isinstance(predictors, str) else list(predictors)
    wanted = [name for name in wanted if name]
    unknown = [name for name in wanted if name not in PREDICTORS]
    if unknown:
        raise ParameterError(f"predictors must be among {', '.join(PREDICTORS)}, not {unknown[0]!r}")
    wanted = wanted or cells["column"].tolist()
    return [paper.BASELINE, *(name for name in PREDICTORS if name in wanted and name != paper.BASELINE)]


def _check_family(frame: pd.DataFrame, family: str) -> None:
    known = list(dict.fromkeys([*paper.FAMILIES, *frame["stands_for"], *frame["family"]]))
    if family != "all" and family not in known:
        raise ParameterError(f"family must be all or one of {', '.join(known)}, not {family!r}")
