"""The printed tables compared with each other: gains, averages, repeated rows, and what the headline numbers are."""

from __future__ import annotations

import itertools
import math

import pandas as pd

from quagmire_utils.core import published as paper

TABLES = range(1, 11)
HALF_UNIT = 0.005  # of the last printed digit
BUDGETS = ("Low", "Medium", "High")
SMALLEST = 3  # candidates in a budget; two have a rank correlation of 1 or -1 alone
HEADLINES = {  # name in results/paper/claims.csv -> the tables it is about, their statistic, and how it is computed
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
    """Return every printed cell, with the Pass@1 cell of its row as `baseline`."""
    cells = pd.concat([paper.published(number) for number in TABLES], ignore_index=True)
    keys = ["table", "row"]
    baseline = cells[cells["column"] == paper.BASELINE].set_index(keys)["mean"]
    return cells.assign(baseline=baseline.reindex(pd.MultiIndex.from_frame(cells[keys])).to_numpy())


def gains() -> pd.DataFrame:
    """Compare the printed gains with the differences of the printed cells.

    Columns table, row, column, mean, baseline, printed, difference; agrees: equal to the last digit; rounding: possible
    with unrounded numbers (each cell and the gain may be half a unit off).
    """
    cells = all_cells().dropna(subset=["printed_gain"])
    table = cells[["table", "row", "column", "mean", "baseline"]].assign(printed=cells["printed_gain"])
    table["difference"] = (table["mean"] - table["baseline"]).round(2)
    off = (table["printed"] - table["difference"]).abs()
    return table.assign(agrees=off < HALF_UNIT, rounding=off < 3 * HALF_UNIT).reset_index(drop=True)


def averages() -> pd.DataFrame:
    """Compare the rows called Average with the means of the rows above.

    Columns table, what (a column, "gain as printed" or "gain, differences"), printed, mean, holds.
    """
    rows = []
    for number, cells in all_cells().groupby("table"):
        above, average = cells[cells["row"] != "Average"], cells[cells["row"] == "Average"]
        for column, cell in average.set_index("column").iterrows():
            rows.append((number, column, cell["mean"], above.loc[above["column"] == column, "mean"].mean()))
        if len(average):
            printed = average["printed_gain"].dropna().item()
            with_gain = above.dropna(subset=["printed_gain"])
            rows.append((number, "gain as printed", printed, with_gain["printed_gain"].mean()))
            rows.append((number, "gain, differences", printed, (with_gain["mean"] - with_gain["baseline"]).mean()))
    table = pd.DataFrame(rows, columns=["table", "what", "printed", "mean"])
    return table.assign(holds=(table["printed"] - table["mean"]).abs() < HALF_UNIT + 1e-9)


def repeated_rows() -> pd.DataFrame:
    """Find the rows of Tables 2, 3 and 4 that the appendix prints again, to the last digit.

    split is fitted:predicted there ("" for rank correlations), caption_split the 50 % that the caption names, and
    half_split what that one gives.
    """
    rows = []
    for number, family in itertools.product((2, 3, 4), paper.FAMILIES):
        mine = paper.published(number)
        mine = mine[mine["family"] == family]
        for other in range(5, 11):
            cells = paper.published(other)
            for name, part in cells[cells["family"] == family].groupby("row", sort=False):
                if not _same_numbers(mine, part):
                    continue
                split = name if ":" in name else ""
                total = int((part["n_fit"] + part["n_validation"]).iloc[0]) if split else 0
                half = f"{total // 2}:{total - total // 2}" if split else ""
                there = cells.loc[cells["row"] == half, ["mean", "plus_minus"]].to_numpy()
                row = {"table": number, "family": family, "elsewhere": f"Table {other}, {name}"}
                row |= {"caption_split": half, "split": split}
                row["holds"] = split in (half, ":".join(half.split(":")[::-1]))  # an odd half is rounded either way
                rows.append(row | {"half_split": ", ".join(f"{m:.2f} ± {p:.2f}" for m, p in there)})
    return pd.DataFrame(rows)


def _same_numbers(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    numbers = ["statistic", "column", "mean", "plus_minus"]
    return first[numbers].reset_index(drop=True).equals(second[numbers].reset_index(drop=True))


def headline_numbers() -> pd.DataFrame:
    """Find what the numbers of the abstract and the takeaways refer to among the printed cells that they are about.

    unit: how the number is computed; matches: the cells that round to it; extreme: the largest cell, for "at least" the
    smallest; is_extreme: whether the number is that cell's.
    """
    cells = all_cells()
    cells = cells[cells["column"] != paper.BASELINE]
    claimed = paper.claims().set_index("name")
    rows = []
    for name, (numbers, statistics, unit) in HEADLINES.items():
        some = cells[cells["table"].isin(numbers) & cells["statistic"].isin(statistics)]
        ratio = some["mean"] / some["baseline"]
        values = {
            "difference": some["mean"] - some["baseline"],
            "factor": ratio,
            "value": some["mean"],
            "per cent": 100 * (ratio - 1),
        }[unit]
        says = float(claimed.loc[name, "value"])
        extreme = values.idxmin() if unit == "value" else values.idxmax()
        same = (values - says).abs() <= SAME[unit] + 1e-9
        row = {"name": name, "unit": unit, "where": claimed.loc[name, "where"], "says": _number(says, unit)}
        row["matches"] = "; ".join(_cell(cells.loc[i], values[i], unit) for i in values.index[same])
        row["extreme"] = _cell(cells.loc[extreme], values[extreme], unit)
        rows.append(row | {"is_extreme": bool(same[extreme])})
    return pd.DataFrame(rows)


def _cell(cell: pd.Series, value: float, unit: str) -> str:
    place = f"Table {cell['table']}, {cell['row'].split(' (')[0]}, {cell['column']}"
    return f"{place}: {cell['baseline']:.2f} to {cell['mean']:.2f}, {_number(value, unit)}"


def _number(value: float, unit: str) -> str:
    return {"per cent": f"{value:.0f} %", "factor": f"{value:.2f}x"}.get(unit, f"{value:.2f}")


def attainable(value: float, n: int) -> bool:
    """Return whether Spearman's correlation of n candidates without ties can be printed as `value` (two digits).

    It is 1 - 6 D / (n^3 - n). D, the sum of squared differences of ranks, takes every even value up to its largest,
    except 4 among three candidates.
    """
    cube = n**3 - n
    near, reach = round((1 - value) * cube / 6), math.ceil(cube * HALF_UNIT / 6) + 2
    return any(
        d % 2 == 0 and (n, d) != (3, 4) and d <= cube // 3 and abs(round(1 - 6 * d / cube, 2) - value) < 1e-9
        for d in range(max(0, near - reach), near + reach + 1)
    )


def budget_sizes(number: int, total: int) -> pd.DataFrame:
    """Find the numbers of candidates in the SFT budgets of Table 8 or 10 that allow its rank correlations without ties.

    One row per budget: row, printed (its correlations), sizes (from SMALLEST up, leaving as many to each of the other
    two). The frame's attrs["partitions"] are the triples of such sizes that add up to `total`.
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
