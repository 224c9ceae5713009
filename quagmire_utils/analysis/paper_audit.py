"""The published tables checked against themselves: what is printed, and what the printed numbers say. Tables 1-10.

    paper_audit.findings()               # a DataFrame: kind, place, printed, computed

Every finding is arithmetic on the printed numbers; no records of this project are read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from quagmire_utils.core import published as paper

TABLES = range(1, 11)
RATIO_TABLES = (5, 6, 7, 9)  # those that vary how many candidates are fitted
HALF_UNIT = 0.005  # of the last printed digit
SPLITS = 100  # of the paper
BUDGETS = ("Low", "Medium", "High")
SMALLEST = 3  # candidates in a budget; two have a rank correlation of 1 or -1 alone
SHOWN = (0.025, 0.975)
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
Row = tuple[str, str, str]  # place, printed, computed


def findings() -> pd.DataFrame:
    """Return all findings: columns kind, place, printed, computed."""
    makers = {
        "Printed gains": _gains,
        "Averages": _averages,
        "Rows printed twice": _repeated,
        "What the headline numbers refer to": _headlines,
        "How many candidates a budget holds": _budgets,
        "Which kind of R²": _kinds,
        "The ± are not standard errors": _standard_errors,
        "Figure 3 and Table 5": _figure_3,
        "What so few candidates can show": _candidates,
    }
    rows = [(kind, *row) for kind, make in makers.items() for row in make()]
    return pd.DataFrame(rows, columns=["kind", "place", "printed", "computed"])


# --- cells against each other -----------------------------------------------------------------------------------------


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
    rows, numbers = [], ["statistic", "column", "mean", "plus_minus"]
    for number, family in itertools.product((2, 3, 4), paper.FAMILIES):
        mine = paper.published(number).query("family == @family")[numbers].reset_index(drop=True)
        for other in range(5, 11):
            cells = paper.published(other)
            for name, part in cells[cells["family"] == family].groupby("row", sort=False):
                if not mine.equals(part[numbers].reset_index(drop=True)):
                    continue
                split = name if ":" in name else ""
                total = total_candidates(other) if split else 0
                half = f"{total // 2}:{total - total // 2}" if split else ""
                there = cells.loc[cells["row"] == half, ["mean", "plus_minus"]].to_numpy()
                row = {"table": number, "family": family, "elsewhere": f"Table {other}, {name}"}
                row |= {"caption_split": half, "split": split}
                row["holds"] = split in (half, ":".join(half.split(":")[::-1]))  # an odd half is rounded either way
                rows.append(row | {"half_split": ", ".join(f"{m:.2f} ± {p:.2f}" for m, p in there)})
    return pd.DataFrame(rows)


def headline_numbers() -> pd.DataFrame:
    """Find what the numbers of the abstract and the takeaways refer to among the printed cells that they are about.

    unit: how the number is computed; matches: the cells that round to it; extreme: the largest cell, for "at least" the
    smallest; is_extreme: whether the number is that cell's.
    """
    cells = all_cells()
    cells = cells[cells["column"] != paper.BASELINE]
    claimed, rows = paper.claims().set_index("name"), []
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


def _gains() -> Iterator[Row]:
    table = gains()
    yield "Tables 1 to 10", f"{len(table)} gains", f"{table['agrees'].sum()} equal the difference of their two cells"
    for row in table[~table["agrees"]].itertuples():
        why = "rounding could explain it" if row.rounding else "no rounding explains it"
        computed = f"{row.mean:.2f} - {row.baseline:.2f} = {row.difference:+.2f}; {why}"
        yield f"Table {row.table}, {row.row}, {row.column}", f"{row.printed:+.2f}", computed


def _averages() -> Iterator[Row]:
    table = averages()
    yield "Tables 8 and 10", f"{len(table)} averages", f"{table['holds'].sum()} hold to the last digit"
    differences = table[table["what"] == "gain, differences"].set_index("table")
    for row in table[~table["holds"]].itertuples():
        true = differences.loc[row.table]
        slip = ": the slip is the printed gain, not its cells" if true["holds"] else ""
        computed = f"mean of the printed gains {row.mean:+.3f}, of the differences {true['mean']:+.3f}{slip}"
        yield f"Table {row.table}, Average", f"{row.printed:+.2f}", computed


def _repeated() -> Iterator[Row]:
    for row in repeated_rows().itertuples():
        said = f"half of the candidates fitted ({row.caption_split})" if row.split else "a rank correlation"
        computed = f"the numbers of {row.elsewhere}"
        computed += f"; row {row.caption_split} there reads {row.half_split}" if not row.holds else ""
        yield f"Table {row.table}, {row.family}", said, computed


def _headlines() -> Iterator[Row]:
    for row in headline_numbers().itertuples():
        computed = row.matches or "no cell of the tables it is about"
        if not row.is_extreme:
            computed += f". The {'least' if row.unit == 'value' else 'most'} is {row.extreme}"
        yield row.where, row.says, computed


# --- how many candidates ----------------------------------------------------------------------------------------------


def total_candidates(number: int) -> int:
    """Return how many candidates a table of fit sizes has."""
    first = paper.published(number).iloc[0]
    return int(first["n_fit"] + first["n_validation"])


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


def _budgets() -> Iterator[Row]:
    for number, ratios in ((8, 7), (10, 9)):
        total = total_candidates(ratios)
        table = budget_sizes(number, total)
        ways = [" + ".join(map(str, way)) for way in table.attrs["partitions"]]
        rows = [(row.row.split()[0].lower(), ", ".join(map(str, row.sizes))) for row in table.itertuples()]
        sizes = "; ".join(f"{name}: {allowed or 'none'}" for name, allowed in rows)
        said = "; ".join(", ".join(f"{value:.2f}" for value in values) for values in table["printed"])
        largest = total - 2 * SMALLEST
        divided = f"divided as {' or '.join(ways)}" if ways else "no division fits"
        computed = f"{total} candidates (Table {ratios}): {divided}; sizes from {SMALLEST} to {largest} that "
        yield f"Table {number}", said, f"{computed}allow both numbers: {sizes}"


# --- what R2 and ± can be ---------------------------------------------------------------------------------------------


def feasibility() -> pd.DataFrame:
    """Check which kinds of R2 allow each printed R2 with its ± over 100 splits: one row per cell of Tables 5-7 and 9.

    Columns table, row, column, n_validation, mean, plus_minus; largest: ± that values from 0 to 1 with this mean can
    have (Bhatia and Davis); clipped, squared: whether R2 clipped at zero, or a squared correlation, is possible if the
    ± is a standard deviation over splits; clipped_se: if it is a standard error of their mean; floor: the highest lower
    limit of the values that leaves the ± possible. Printed numbers may be half a unit of the last digit off.
    """
    columns = ["table", "row", "column", "n_validation", "mean", "plus_minus"]
    cells = pd.concat([paper.published(number) for number in RATIO_TABLES], ignore_index=True)[columns]
    near = np.linspace(-HALF_UNIT, HALF_UNIT, 101)
    means = np.minimum(cells["mean"].to_numpy()[:, None] + near, 1 - 1e-6)
    least = cells["plus_minus"].to_numpy() - HALF_UNIT
    cells["largest"] = np.sqrt(np.maximum(means * (1 - means), 0.0) * SPLITS / (SPLITS - 1)).max(axis=1)
    cells["clipped"], cells["clipped_se"] = (cells["largest"] >= least * scale for scale in (1, math.sqrt(SPLITS)))
    cells["squared"] = cells["clipped"] & (cells["n_validation"] > 2)  # of two points it is 1 for any prediction
    cells["floor"] = (means - (least**2 * (SPLITS - 1) / SPLITS)[:, None] / (1 - means)).max(axis=1)
    return cells.astype({"n_validation": int})


def _kinds() -> Iterator[Row]:
    table = feasibility()
    cell = table.query("table == 6 and row == '8:2' and column == 'pass_k'").iloc[0]  # its ± says most
    said = f"Table 6, 8:2: {cell['mean']:.2f} ± {cell['plus_minus']:.2f} with two predicted candidates"
    two = table[table["n_validation"] == 2]
    possible = f"possible in {two['squared'].sum()} of the {len(two)} cells with two predicted candidates"
    yield "squared Pearson correlation", said, f"1 on any two points; {possible}"
    yield "R² clipped at 0", said, f"values from 0 to 1 with this mean have a ± of at most {cell['largest']:.2f}"
    yield "1 - SS_res / SS_tot", said, f"possible in all {len(table)} cells, here with values below {cell['floor']:.2f}"


def _standard_errors() -> Iterator[Row]:
    cells = feasibility()
    largest, bounded = cells["plus_minus"].max(), int(cells["clipped_se"].sum())
    computed = f"a standard deviation of {largest * SPLITS**0.5:.1f} over {SPLITS} splits; values from 0 to"
    yield "The largest ±", f"{largest:.2f}", f"{computed} 1 allow it in {bounded} of {len(cells)} cells"


def _figure_3() -> Iterator[Row]:
    r2 = float(paper.claims().set_index("name").loc["fig03_r2", "value"])
    cells = paper.published(5).query("column == @paper.BASELINE")["mean"]
    said = f"{cells.min():.2f} to {cells.max():.2f} from Pass@1 in Table 5, on candidates that were not fitted"
    above = f"larger in {(cells > r2).sum()} of {len(cells)} rows, where R² is expected to be smaller"
    yield "R² of the line of Figure 3", said, f"{r2:.2f} on the candidates that it was fitted to: {above}"


# --- what so few candidates can show ----------------------------------------------------------------------------------


def rank_interval(value: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a rank correlation of n candidates (Fisher; Bonett and Wright's variance, 2000)."""
    half = stats.norm.ppf(SHOWN[1]) * math.sqrt((1 + value**2 / 2) / (n - 3))
    return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)


def rank_gain_range(baseline: float, better: float, n: int, draws: int = 4000) -> tuple[float, float, float]:
    """Return the gain in rank correlation that n candidates show: (low, high, share of draws without a gain).

    baseline, better: true rank correlations of two predictors with the outcome. All variables are normal, and the two
    predictors are independent given the outcome (a correlation would narrow the range).
    """
    rng = np.random.default_rng(0)
    outcome = rng.standard_normal((draws, n))
    ranks = stats.rankdata(outcome, axis=1) - (n + 1) / 2
    found = []
    for rho in (baseline, better):
        r = 2 * math.sin(math.pi * rho / 6)  # Pearson's correlation of normal variables
        x = r * outcome + math.sqrt(1 - r**2) * rng.standard_normal((draws, n))
        x = stats.rankdata(x, axis=1) - (n + 1) / 2
        found.append((x * ranks).sum(axis=1) / (ranks**2).sum(axis=1))
    gain = found[1] - found[0]
    low, high = np.quantile(gain, SHOWN)
    return float(low), float(high), float((gain <= 1e-12).mean())


def what_candidates_show() -> pd.DataFrame:
    """Return the rank correlations of Tables 1 and 3 with the interval that their number of candidates allows.

    n: candidates of the family's table of fit sizes; gain: printed, over Pass@1; gain_low, gain_high, no_gain: the
    result of `rank_gain_range` if that is the true gain.
    """
    totals = {}
    for number in RATIO_TABLES:
        totals[tuple(paper.published(number)[["scenario", "family"]].iloc[0])] = total_candidates(number)
    rows = []
    for cell in all_cells().query("table in (1, 3)").itertuples():
        n = totals[cell.scenario, cell.family]
        row = {"table": cell.table, "family": cell.family, "column": cell.column, "n": n, "value": cell.mean}
        row["low"], row["high"] = rank_interval(cell.mean, n)
        if cell.column != paper.BASELINE:
            row["gain"] = cell.mean - cell.baseline
            row["gain_low"], row["gain_high"], row["no_gain"] = rank_gain_range(cell.baseline, cell.mean, n)
        rows.append(row)
    return pd.DataFrame(rows)


def _candidates() -> Iterator[Row]:
    """Compare each rank correlation of Tables 1 and 3 with Pass@1's: intervals, and the gain that studies can show."""
    table = what_candidates_show()
    base = table[table["column"] == paper.BASELINE].set_index(["table", "family"])
    for row in table[table["column"] != paper.BASELINE].itertuples():
        one = base.loc[(row.table, row.family)]
        intervals = f"[{row.low:.2f}, {row.high:.2f}] and [{one['low']:.2f}, {one['high']:.2f}]"
        overlap = "overlap" if row.low <= one["high"] else "do not overlap"
        shown = f"studies of this size show {row.gain_low:+.2f} to {row.gain_high:+.2f}, and"
        shown += f" {100 * row.no_gain:.0f} % of them no gain"
        computed = f"{intervals} {overlap}; if the true gain is {row.gain:+.2f}, {shown}"
        place = f"Table {row.table}, {row.family}, {row.n} candidates, {row.column}"
        yield place, f"{row.value:.2f}, Pass@1 {one['value']:.2f}", computed
