"""The findings of the audit as data: what is printed, and what the printed numbers say when computed."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from quagmire_utils.analysis.paper_audit import kinds, printed, simulation
from quagmire_utils.core import published as paper

TWO_POINTS = (6, "8:2", "pass_k")  # the cell whose ± says most about the kind of R2
Row = tuple[str, str, str]  # place, printed, computed


def findings() -> pd.DataFrame:
    """Return all findings: columns kind, place, printed, computed. The simulations take a few seconds."""
    makers = {
        "Printed gains": _gains,
        "Averages": _averages,
        "Rows printed twice": _repeated,
        "What the headline numbers refer to": _headlines,
        "How many candidates a budget holds": _budgets,
        "Which kind of R²": _kinds,
        "The ± are not standard errors": _standard_errors,
        "Figure 3 and Table 5": _figure_3,
        "How much of the ± is the split": _splits,
        "What so few candidates can show": _candidates,
    }
    rows = [(kind, *row) for kind, make in makers.items() for row in make()]
    return pd.DataFrame(rows, columns=["kind", "place", "printed", "computed"])


def _gains() -> Iterator[Row]:
    table = printed.gains()
    yield "Tables 1 to 10", f"{len(table)} gains", f"{table['agrees'].sum()} equal the difference of their two cells"
    for row in table[~table["agrees"]].itertuples():
        why = "rounding could explain it" if row.rounding else "no rounding explains it"
        computed = f"{row.mean:.2f} - {row.baseline:.2f} = {row.difference:+.2f}; {why}"
        yield f"Table {row.table}, {row.row}, {row.column}", f"{row.printed:+.2f}", computed


def _averages() -> Iterator[Row]:
    table = printed.averages()
    yield "Tables 8 and 10", f"{len(table)} averages", f"{table['holds'].sum()} hold to the last digit"
    differences = table[table["what"] == "gain, differences"].set_index("table")
    for row in table[~table["holds"]].itertuples():
        true = differences.loc[row.table]
        slip = ": the slip is the printed gain, not its cells" if true["holds"] else ""
        computed = f"mean of the printed gains {row.mean:+.3f}, of the differences {true['mean']:+.3f}{slip}"
        yield f"Table {row.table}, Average", f"{row.printed:+.2f}", computed


def _repeated() -> Iterator[Row]:
    for row in printed.repeated_rows().itertuples():
        said = f"half of the candidates fitted ({row.caption_split})" if row.split else "a rank correlation"
        computed = f"the numbers of {row.elsewhere}"
        computed += f"; row {row.caption_split} there reads {row.half_split}" if not row.holds else ""
        yield f"Table {row.table}, {row.family}", said, computed


def _headlines() -> Iterator[Row]:
    for row in printed.headline_numbers().itertuples():
        computed = row.matches or "no cell of the tables it is about"
        if not row.is_extreme:
            computed += f". The {'least' if row.unit == 'value' else 'most'} is {row.extreme}"
        yield row.where, row.says, computed


def _budgets() -> Iterator[Row]:
    for number, ratios in ((8, 7), (10, 9)):
        total = simulation.total_candidates(ratios)
        table = printed.budget_sizes(number, total)
        ways = [" + ".join(map(str, way)) for way in table.attrs["partitions"]]
        rows = [(row.row.split()[0].lower(), ", ".join(map(str, row.sizes))) for row in table.itertuples()]
        sizes = "; ".join(f"{name}: {allowed or 'none'}" for name, allowed in rows)
        said = "; ".join(", ".join(f"{value:.2f}" for value in values) for values in table["printed"])
        largest = total - 2 * printed.SMALLEST
        divided = f"divided as {' or '.join(ways)}" if ways else "no division fits"
        computed = f"{total} candidates (Table {ratios}): {divided}; sizes from {printed.SMALLEST} to {largest} that "
        yield f"Table {number}", said, f"{computed}allow both numbers: {sizes}"


def _kinds() -> Iterator[Row]:
    table = kinds.feasibility()
    number, row, column = TWO_POINTS
    cell = table[(table["table"] == number) & (table["row"] == row) & (table["column"] == column)].iloc[0]
    said = f"Table {number}, {row}: {cell['mean']:.2f} ± {cell['plus_minus']:.2f} with two predicted candidates"
    two = table[table["n_validation"] == 2]
    possible = f"possible in {int(two['squared'].sum())} of the {len(two)} cells with two predicted candidates"
    yield kinds.KINDS["squared"], said, f"1 on any two points; {possible}"
    bound = kinds.largest_deviation(cell["mean"], 0.0)
    yield kinds.KINDS["clipped"], said, f"values from 0 to 1 with this mean have a ± of at most {bound:.2f}"
    n_fit, n_validation = map(int, row.split(":"))
    even = simulation.protocol(n_fit + n_validation, (n_fit,), outcomes="even").query("kind == 'r2'")
    r = float((even.groupby("correlation")["mean"].median() - cell["mean"]).abs().idxmin())
    low, middle, high = even.loc[even["correlation"] == r, "std"].quantile([0.025, 0.5, 0.975])
    computed = (
        f"possible in all {len(table)} cells, here with values below {cell['floor']:.2f}; evenly spaced outcomes with "
        f"this mean give a ± of {middle:.2f} (95 % of draws: {low:.2f} to {high:.2f}; correlation {r:g})"
    )
    yield kinds.KINDS["r2"], said, computed


def _standard_errors() -> Iterator[Row]:
    cells, (chi2, degrees, chance) = kinds.feasibility(), kinds.smoothness()
    largest, bounded = cells["plus_minus"].max(), int(cells["clipped_se"].sum())
    computed = f"a standard deviation of {largest * kinds.SPLITS**0.5:.1f} over {kinds.SPLITS} splits; values from 0 to"
    yield "The largest ±", f"{largest:.2f}", f"{computed} 1 allow it in {bounded} of {len(cells)} cells"
    said = f"χ² about the columns' means {chi2:.1f}"
    yield "The rows of a column", said, f"{degrees} degrees of freedom, probability {chance:.0e}"


def _figure_3() -> Iterator[Row]:
    r2 = float(paper.claims().set_index("name").loc["fig03_r2", "value"])
    cells = paper.published(5).query("column == @paper.BASELINE").set_index("n_fit")["mean"]
    table = simulation.fit_explains(r2, simulation.total_candidates(5), tuple(map(int, cells.index)))
    table["inside"] = table["n_fit"].map(cells).between(table["low"], table["high"])
    for kind, part in table.groupby("kind", sort=False):
        reach = f"{part['median'].min():.2f} to {part['median'].max():.2f} where the line explains {r2:.2f}"
        computed = f"{reach}; the printed mean within 95 % of draws in {part['inside'].sum()} of {len(part)} rows"
        yield kinds.KINDS[kind], f"{cells.min():.2f} to {cells.max():.2f} from Pass@1 in Table 5", computed


def _splits() -> Iterator[Row]:
    table = pd.concat([simulation.split_alone(number) for number in kinds.RATIO_TABLES], ignore_index=True)
    for kind, part in table.groupby("kind", sort=False):
        few = part[part["n_validation"] == 2]
        computed = (
            f"{100 * part['inside'].mean():.0f} % of the printed ± lie within 95 % of the simulated ones, which are "
            f"{part['ratio'].median():.2f} times as large (median); with two predicted candidates "
            f"{100 * few['inside'].mean():.0f} %, {few['ratio'].median():.1f} times"
        )
        yield kinds.KINDS[kind], f"{len(part)} ±", computed


def _candidates() -> Iterator[Row]:
    """Compare each rank correlation of Tables 1 and 3 with Pass@1's: intervals, and the gain that studies can show."""
    table = simulation.what_candidates_show()
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
