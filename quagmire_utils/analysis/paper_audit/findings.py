"""What the audit finds, in words: each sentence is put together from numbers that are computed here."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from quagmire_utils.analysis.paper_audit import kinds, printed, simulation
from quagmire_utils.core import published as paper
from quagmire_utils.core.provenance import git_state

TWO_POINTS = (6, "8:2", "pass_k")  # the cell whose +- says most about the kind of R2
LLAMA, MISTRAL = paper.FAMILIES


@dataclass(frozen=True, eq=False)
class Finding:
    """One thing that the printed numbers say about themselves."""

    title: str
    text: str  # Markdown
    table: pd.DataFrame = field(repr=False)  # the numbers behind it


def findings() -> list[Finding]:
    """All findings, in the order of the audit; the simulations behind the last ones take a few seconds."""
    return [
        gains_finding(),
        averages_finding(),
        rows_finding(),
        headlines_finding(),
        budgets_finding(),
        kind_finding(),
        standard_error_finding(),
        figure_3_finding(),
        split_finding(),
        candidates_finding(),
    ]


def provenance() -> str:
    """Where the findings come from, in one line of Markdown."""
    state = git_state()
    commit = f"commit {state['commit'][:8]}" if state.get("commit") else "no commit"
    changed = " with uncommitted changes" if state.get("commit") and state.get("dirty") else ""
    return (
        f"*Provenance:* computed from the paper's printed numbers (results/paper), no records read · {commit}{changed}"
    )


def gains_finding() -> Finding:
    """Which printed gains are not the differences of their cells."""
    table = printed.gains()
    odd = table[~table["agrees"]]
    said = [
        f"Table {row.table}, {row.row}: {row.mean:.2f} - {row.baseline:.2f} is {row.difference:+.2f} and is printed as "
        f"{row.printed:+.2f}" + (" (rounding could explain it)" if row.rounding else ", which no rounding explains")
        for row in odd.itertuples()
    ]
    text = (
        f"{table['agrees'].sum()} of {len(table)} printed gains equal the difference of their two cells. "
        + ". ".join(said)
    )
    return Finding("Printed gains against differences", text + ("." if said else ""), odd.reset_index(drop=True))


def averages_finding() -> Finding:
    """Which averages hold, and on which side of an odd gain the slip is."""
    table = printed.averages()
    fails = table[~table["holds"]]
    text = f"{table['holds'].sum()} of {len(table)} averages hold to the last digit."
    for row in fails.itertuples():
        true = table[(table["table"] == row.table) & (table["what"] == "gain, differences")].iloc[0]
        text += (
            f" The average gain of Table {row.table}, {row.printed:+.2f}, is not the mean of the gains as they are "
            f"printed ({row.mean:+.3f}), but " + ("is" if true["holds"] else "is not") + f" that of the differences "
            f"({true['mean']:+.3f}): the printed gain is the slip, not its cells."
        )
    return Finding("Averages", text, table)


def rows_finding() -> Finding:
    """Where the main text's rows come from, against what their captions say."""
    table = printed.rows_that_stand_twice()
    parts = []
    for row in table.itertuples():
        line = f"Table {row.table}, {row.family}, is {row.elsewhere}"
        if row.split and not row.holds:
            line += (
                f", where {row.split.replace(':', ' candidates are fitted and ')} predicted; the half split that its "
                f"caption names, {row.caption_split}, reads {row.half_split}"
            )
        elif row.split:
            line += ", the half split that its caption names"
        parts.append(f"- {line}.")
    return Finding("Rows that stand twice", "\n".join(parts), table)


def headlines_finding() -> Finding:
    """What 2x, 36 %, 59 % and the like refer to, and whether "up to" is the most there is."""
    table = printed.headlines()
    parts = []
    for row in table.itertuples():
        matches = row.matches or "no cell of the tables it speaks of"
        line = f"- {row.where}, “{row.says}”: {matches}."
        if not row.is_extreme:
            line += f" The {'least' if row.unit == 'value' else 'most'} there is: {row.extreme}."
        parts.append(line)
    return Finding("What the headline numbers refer to", "\n".join(parts), table)


def budgets_finding() -> Finding:
    """Whether the rank correlations within SFT budgets can be those of untied candidates."""
    parts, tables = [], []
    for number, ratios in ((8, 7), (10, 9)):
        cells = paper.published(ratios).iloc[0]
        total = int(cells["n_fit"] + cells["n_validation"])
        table = printed.budget_sizes(number, total)
        ways = table.attrs["partitions"]
        sizes = "; ".join(
            f"{row.row.split()[0].lower()}: {', '.join(map(str, row.sizes)) or 'none'}" for row in table.itertuples()
        )
        said = f"as {' or '.join('+'.join(map(str, way)) for way in ways)}" if ways else "in no way"
        parts.append(
            f"Table {number}: {total} candidates (of Table {ratios}) can be divided among the three budgets {said} "
            f"so that every printed rank correlation is one that so many untied candidates can have (sizes that allow "
            f"both of a budget's, from {printed.SMALLEST} to {total - 2 * printed.SMALLEST}, which leaves "
            f"{printed.SMALLEST} to each of the others: {sizes})."
        )
        tables.append(table.assign(table=number, total=total))
    text = (
        " ".join(parts)
        + " Where there is no way, outcomes or scores tie, budgets overlap, or the candidates are others."
    )
    return Finding("How many candidates a budget holds", text, pd.concat(tables, ignore_index=True))


def kind_finding() -> Finding:
    """What kind of R2 can have the printed mean and +- on two predicted candidates."""
    table = kinds.feasibility()
    number, row, column = TWO_POINTS
    cell = table[(table["table"] == number) & (table["row"] == row) & (table["column"] == column)].iloc[0]
    bound = kinds.largest_deviation(cell["mean"], 0.0)
    two = table[table["n_validation"] == 2]
    possible = [kinds.KINDS[kind] for kind in kinds.KINDS if table[kind].all()]
    n_fit, n_validation = map(int, row.split(":"))
    total = n_fit + n_validation
    even = simulation.protocol(total, (n_fit,), outcomes="even")
    even = even[even["kind"] == "r2"]
    off = (even.groupby("correlation")["mean"].median() - cell["mean"]).abs()
    r = float(off.idxmin())
    near = even[even["correlation"] == r]
    text = (
        f"Table {number}, {row}, prints {cell['mean']:.2f} ± {cell['plus_minus']:.2f} over {kinds.SPLITS} splits with "
        f"two predicted candidates. A squared Pearson correlation of two points is always 1, so it can print "
        f"{int(two['squared'].sum())} of the {len(two)} cells with two predicted candidates. Values between 0 and 1 "
        f"with this mean cannot have a standard deviation above {bound:.2f}, so R² clipped at 0 is "
        f"{'possible' if cell['clipped'] else 'out too'}: some values lie below {cell['floor']:.2f}. Over all "
        f"{len(table)} cells what remains possible is: {'; '.join(possible)}."
    )
    low, middle, high = (float(near["std"].quantile(share)) for share in (0.025, 0.5, 0.975))
    text += (
        f" Where the outcomes of {total} candidates are evenly spaced, so that no two are close, the mean "
        f"nearest to it comes with a ± of {middle:.2f} (95 % of draws: {low:.2f} to {high:.2f}; correlation {r:g})."
    )
    if cell["plus_minus"] < low:
        text += (
            " So possible is not likely: a lower limit somewhere below 0, or splits left out, would explain the cell "
            "better."
        )
    return Finding("Which kind of R²", text, table)


def standard_error_finding() -> Finding:
    """Whether a +- can be the standard error that the captions call it."""
    table = kinds.smoothness()
    cells = kinds.feasibility()
    largest = cells.loc[cells["plus_minus"].idxmax()]
    whole = table.iloc[-1]
    bounded = int(cells["clipped_se"].sum())
    text = (
        f"If the ± were standard errors, as the captions say, the largest, {largest['plus_minus']:.2f}, would mean a "
        f"standard deviation of {largest['plus_minus'] * kinds.SPLITS**0.5:.1f} over {kinds.SPLITS} splits; values "
        f"between 0 and 1 allow such a reading in {bounded} of {len(cells)} cells. And the means of a column's rows "
        f"would scatter by about that much: their χ² about the columns' means is {whole['chi2']:.1f} with "
        f"{whole['degrees']} degrees of freedom, and as small a one has probability {whole['p']:.0e} if each row draws "
        "its own splits. They are standard deviations."
        if whole["p"] < 0.001
        else f"The rows scatter as standard errors would have it (χ² {whole['chi2']:.1f}, {whole['degrees']} degrees)."
    )
    return Finding("The ± are no standard errors", text, table)


def figure_3_finding() -> Finding:
    """Whether Fig. 3's line and Table 5's predictions can be about the same candidates."""
    r2 = float(paper.claims().set_index("name").loc["fig03_r2", "value"])
    cells = paper.published(5)
    cells = cells[cells["column"] == paper.BASELINE].set_index("n_fit")
    total = int(cells.index[0] + cells["n_validation"].iloc[0])
    table = simulation.fit_explains(r2, total, tuple(map(int, cells.index)))
    table["printed"] = cells["mean"].reindex(table["n_fit"]).to_numpy()
    table["inside"] = table["printed"].between(table["low"], table["high"])
    parts = []
    for kind, part in table.groupby("kind", sort=False):
        parts.append(
            f"- {kinds.KINDS[kind]}: {part['median'].min():.2f} to {part['median'].max():.2f}, the printed mean within "
            f"reach in {part['inside'].sum()} of {len(part)} rows"
        )
    text = (
        f"Fig. 3's line explains R² = {r2:.2f} of the outcomes of the model that Table 5 is about, and there the same "
        f"predictor reaches {cells['mean'].min():.2f} to {cells['mean'].max():.2f} on candidates it was not fitted to. "
        f"For {total} candidates with that R² the protocol gives\n\n"
        + ".\n".join(parts)
        + ".\n\n"
        + (
            "So Fig. 3 and Table 5 cannot rest on the same candidates and the same measure."
            if not table.groupby("kind")["inside"].all().any()
            else "So they may rest on the same candidates."
        )
    )
    return Finding("Fig. 3 against Table 5", text, table)


def split_finding() -> Finding:
    """How much of a +- the random split alone explains, for each kind of R2."""
    table = pd.concat([simulation.split_alone(number).assign(table=number) for number in kinds.RATIO_TABLES])
    table = table.reset_index(drop=True)
    parts = []
    for kind, part in table.groupby("kind", sort=False):
        few = part[part["n_validation"] == 2]
        parts.append(
            f"- {kinds.KINDS[kind]}: {100 * part['inside'].mean():.0f} % of the printed ± are within the range of the "
            f"simulated ones, which are {part['ratio'].median():.2f} times as large (median). With two predicted "
            f"candidates: {100 * few['inside'].mean():.0f} %, {few['ratio'].median():.1f} times"
        )
    text = (
        "The protocol, run on simulated candidates, as many as the paper's and with the correlation that makes a "
        "column's means come out as printed: what ± does the random split alone give?\n\n" + ".\n".join(parts) + "."
    )
    return Finding("How much of the ± is the split", text, table)


def candidates_finding() -> Finding:
    """What rank correlations of as many candidates as the paper's can show."""
    table = simulation.what_candidates_show()
    parts = []
    for row in table.itertuples():
        if row.column == paper.BASELINE:
            base = row
            continue
        overlap = "overlaps" if row.low <= base.high else "lies above"
        parts.append(
            f"- Table {row.table}, {row.family}, {row.n} candidates, {row.column}: {row.value:.2f} [{row.low:.2f}, "
            f"{row.high:.2f}] {overlap} Pass@1's {base.value:.2f} [{base.low:.2f}, {base.high:.2f}]; a true gain of "
            f"{row.gain:+.2f} would show as anything from {row.gain_low:+.2f} to {row.gain_high:+.2f}, and as none in "
            f"{100 * row.no_gain:.0f} % of such studies"
        )
    numbers = sorted(table["n"].unique())
    text = (
        f"95 % intervals of the printed rank correlations for {', '.join(map(str, numbers[:-1]))} or {numbers[-1]} "
        "candidates:\n\n" + ".\n".join(parts) + "."
    )
    return Finding("What so few candidates can show", text, table)
