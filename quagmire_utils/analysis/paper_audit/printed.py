"""The printed tables against each other: gains, averages, rows that stand twice, and what the headline numbers are."""

from __future__ import annotations

import itertools
import math

import pandas as pd

from quagmire_utils.core import published as paper

TABLES = range(1, 11)
HALF_UNIT = 0.005  # of the last printed digit
BUDGETS = ("Low", "Medium", "High")
SMALLEST = 3  # candidates in a budget; two have a rank correlation of 1 or -1 alone
HEADLINES = {  # name in results/paper/claims.csv -> the tables it speaks of, their statistic, and how it is reckoned
    "gain_up_to": (tuple(TABLES), ("spearman", "r2"), "difference"),
    "gain_factor_up_to": (tuple(TABLES), ("spearman", "r2"), "factor"),
    "dataset_spearman_at_least": ((1,), ("spearman",), "value"),
    "dataset_spearman_gain": ((1,), ("spearman",), "per cent"),
    "dataset_r2_factor_up_to": ((2, 5, 6), ("r2",), "factor"),
    "instance_spearman_gain_up_to": ((3, 8, 10), ("spearman",), "per cent"),
    "instance_r2_gain_up_to": ((4, 7, 9), ("r2",), "per cent"),
}
SAME = {"difference": 0.005, "factor": 0.05, "value": 0.005, "per cent": 0.5}  # rounds to the printed number


def all_cells() -> pd.DataFrame:
    """Every printed cell, with its table's Pass@1 cell of the same row as `baseline`."""
    cells = pd.concat([paper.published(number) for number in TABLES], ignore_index=True)
    keys = ["table", "row"]
    baseline = cells[cells["column"] == paper.BASELINE].set_index(keys)["mean"]
    return cells.assign(baseline=baseline.reindex(pd.MultiIndex.from_frame(cells[keys])).to_numpy())


def gains() -> pd.DataFrame:
    """Printed gains beside the differences of the printed cells.

    Columns table, row, column, mean, baseline, printed, difference; agrees: equal to the last digit; rounding: they
    might still come from unrounded numbers (each cell and the gain may be half a unit off).
    """
    cells = all_cells().dropna(subset=["printed_gain"])
    table = cells[["table", "row", "column", "mean", "baseline"]].assign(printed=cells["printed_gain"])
    table["difference"] = (table["mean"] - table["baseline"]).round(2)
    off = (table["printed"] - table["difference"]).abs()
    table["agrees"] = off < HALF_UNIT
    table["rounding"] = off < 3 * HALF_UNIT
    return table.reset_index(drop=True)


def averages() -> pd.DataFrame:
    """Rows called Average beside the means of the rows above: of cells, of gains as printed, and of differences.

    Columns table, what (a column, "gain as printed" or "gain, differences"), printed, mean, holds.
    """
    rows = []
    for number in TABLES:
        cells = all_cells()[lambda c, n=number: c["table"] == n]
        if "Average" not in set(cells["row"]):
            continue
        above, average = cells[cells["row"] != "Average"], cells[cells["row"] == "Average"]
        for column in cells["column"].unique():
            printed = average.loc[average["column"] == column, "mean"].item()
            rows.append((number, column, printed, above.loc[above["column"] == column, "mean"].mean()))
        printed = average["printed_gain"].dropna().item()
        with_gain = above.dropna(subset=["printed_gain"])
        rows.append((number, "gain as printed", printed, with_gain["printed_gain"].mean()))
        rows.append((number, "gain, differences", printed, (with_gain["mean"] - with_gain["baseline"]).mean()))
    table = pd.DataFrame(rows, columns=["table", "what", "printed", "mean"])
    table["holds"] = (table["printed"] - table["mean"]).abs() < HALF_UNIT + 1e-9
    return table


def rows_that_stand_twice() -> pd.DataFrame:
    """The rows of the main text's Tables 2, 3 and 4, and where the appendix prints the same numbers.

    Columns table, family, elsewhere (table and row), caption_split and split (fitted:predicted that the caption's 50 %
    means, and that of the row found; "" for rank correlations), holds, and half_split: what the caption's split gives.
    """
    rows = []
    for number in (2, 3, 4):
        for family, cells in paper.published(number).groupby("family", sort=False):
            found = [(other, row) for other in range(5, 11) for row in _rows_equal_to(cells, other, family)]
            for other, row in found:
                split = row if ":" in row else ""
                rows.append({"table": number, "family": family, "elsewhere": f"Table {other}, {row}", "split": split})
                rows[-1]["caption_split"] = _half_split(other, family) if split else ""
                half = paper.published(other)
                half = half[half["row"] == rows[-1]["caption_split"]]
                rows[-1]["half_split"] = ", ".join(
                    f"{m:.2f} ± {p:.2f}" for m, p in half[["mean", "plus_minus"]].to_numpy()
                )
    table = pd.DataFrame(rows)
    # of an odd number of candidates the half may be rounded either way
    table["holds"] = [
        a == b or a == ":".join(b.split(":")[::-1]) for a, b in table[["split", "caption_split"]].to_numpy()
    ]
    return table[["table", "family", "elsewhere", "caption_split", "split", "holds", "half_split"]]


def _rows_equal_to(cells: pd.DataFrame, number: int, family: str) -> list[str]:
    other = paper.published(number)
    other = other[(other["family"] == family) & (other["statistic"] == cells["statistic"].iloc[0])]
    wanted = cells.set_index("column")[["mean", "plus_minus"]].fillna(-1)
    same = []
    for row, part in other.groupby("row", sort=False):
        mine = part.set_index("column")[["mean", "plus_minus"]].fillna(-1)
        if mine.index.tolist() == wanted.index.tolist() and (mine == wanted).all(axis=None):
            same.append(row)
    return same


def _half_split(number: int, family: str) -> str:
    cells = paper.published(number)
    total = int((cells["n_fit"] + cells["n_validation"])[cells["family"] == family].iloc[0])
    return f"{total // 2}:{total - total // 2}"


def headlines() -> pd.DataFrame:
    """What the numbers of the abstract and the takeaways refer to, among the printed cells they speak of.

    Columns name, unit (how it is reckoned), where, says, matches (the cells that round to it), extreme (the cell with
    the most of it, for "at least" the least), is_extreme: whether that is what is said.
    """
    cells = all_cells()
    cells = cells[cells["column"] != paper.BASELINE]
    rows = []
    for claim in paper.claims().itertuples():
        if claim.name not in HEADLINES:
            continue
        numbers, statistics, unit = HEADLINES[claim.name]
        some = cells[cells["table"].isin(numbers) & cells["statistic"].isin(statistics)]
        ratio = some["mean"] / some["baseline"]
        values = {
            "difference": some["mean"] - some["baseline"],
            "factor": ratio,
            "value": some["mean"],
            "per cent": 100 * (ratio - 1),
        }[unit]
        says = float(claim.value)
        extreme = values.idxmin() if unit == "value" else values.idxmax()
        same = values[(values - says).abs() <= SAME[unit] + 1e-9]
        rows.append(
            {
                "name": claim.name,
                "unit": unit,
                "where": claim.where,
                "says": _number(says, unit),
                "matches": "; ".join(_cell(cells.loc[i], values[i], unit) for i in same.index),
                "extreme": _cell(cells.loc[extreme], values[extreme], unit),
                "is_extreme": abs(values[extreme] - says) <= SAME[unit] + 1e-9,
            }
        )
    return pd.DataFrame(rows)


def _cell(cell: pd.Series, value: float, unit: str) -> str:
    row = cell["row"].split(" (")[0]
    return f"Table {cell['table']}, {row}, {cell['column']}: {cell['baseline']:.2f} to {cell['mean']:.2f}, " + _number(
        value, unit
    )


def _number(value: float, unit: str) -> str:
    return {"per cent": f"{value:.0f} %", "factor": f"{value:.2f}x"}.get(unit, f"{value:.2f}")


# --- rank correlations that so many candidates can have ---------------------------------------------------------------


def attainable(value: float, n: int) -> bool:
    """Whether Spearman's correlation of n candidates without ties can be printed as `value` (two digits).

    It is 1 - 6 D / (n^3 - n), and D, the sum of squared differences of ranks, takes every even value that there is room
    for, but for 4 among three candidates.
    """
    cube = n**3 - n
    near = round((1 - value) * cube / 6)
    return any(
        d % 2 == 0 and (n, d) != (3, 4) and 0 <= d <= cube // 3 and abs(round(1 - 6 * d / cube, 2) - value) < 1e-9
        for d in range(max(0, near - math.ceil(cube * HALF_UNIT / 6) - 2), near + math.ceil(cube * HALF_UNIT / 6) + 3)
    )


def budget_sizes(number: int, total: int) -> pd.DataFrame:
    """Which numbers of candidates in the three SFT budgets of Table 8 or 10 allow its rank correlations without ties.

    One row per budget: row, printed (its correlations), sizes (from SMALLEST up, leaving as many to each of the two
    others, that allow all of them). The frame's attrs["partitions"] are the triples of such sizes that add up to
    `total`.
    """
    cells = paper.published(number)
    rows = []
    for budget in BUDGETS:
        part = cells[cells["row"].str.startswith(budget)]
        values = part["mean"].tolist()
        sizes = [n for n in range(SMALLEST, total - 2 * SMALLEST + 1) if all(attainable(value, n) for value in values)]
        rows.append({"row": part["row"].iloc[0], "printed": values, "sizes": sizes})
    table = pd.DataFrame(rows)
    table.attrs["partitions"] = [sizes for sizes in itertools.product(*table["sizes"]) if sum(sizes) == total]
    return table
