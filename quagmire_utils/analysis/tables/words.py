"""What Tables 1-10 say at our scale, in sentences whose every word is computed from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from quagmire_utils.analysis.tables.layout import printed_again
from quagmire_utils.analysis.tables.published import CEILING, VERDICTS
from quagmire_utils.analysis.tables.sensitivity import R2_KINDS, SPEARMAN_KINDS
from quagmire_utils.analysis.tables.show import (
    STATISTICS,
    _averaged,
    _where,
    between,
    names,
    number_text,
    predictor_title,
    short_title,
)
from quagmire_utils.core import published as paper

DETAILED = 4  # rows of a family up to which each is described by itself
ROUNDING = 1e-9  # gains below this are none


def describe_table(table: pd.DataFrame) -> str:
    """What our scale says about the paper's claim that other predictors beat Pass@1: Markdown.

    One line per row (or per predictor, where a family has many rows), what differs from the paper, and the count of
    verdicts.
    """
    lines: list[str] = []
    for (model, family), cells in table.groupby(["model", "family"], sort=False):
        lines += _family_lines(model, family, cells)
    tested = table[table["verdict"].isin(VERDICTS) & table["gain"].notna()]
    if tested.empty:
        return "\n".join([*lines, "", "**Nothing could be measured: the paper's claim is not tested here.**"])
    lines += _ceilings(table)
    other = differences(table)
    if other:
        lines += ["", "Other than in the paper:", "", *(f"- {sentence}" for sentence in other)]
    else:
        lines += ["", "The best predictor is the paper's, and no interval excludes a number of the paper."]
    said = count_verdicts(tested["verdict"])
    summary = f"**Better than Pass@1, as the paper finds? {len(tested)} comparison(s): {said}.**"
    if "undecided" in set(tested["verdict"]):
        unsure = tested.loc[tested["verdict"] == "undecided", "n_candidates"]
        count = f"{unsure.min()}" if unsure.min() == unsure.max() else f"{unsure.min()} to {unsure.max()}"
        summary += f" Undecided: the interval holds zero, or {count} candidates are too few for one."
    return "\n".join([*lines, "", summary])


def count_verdicts(verdicts: pd.Series, order: Sequence[str] = VERDICTS) -> str:
    """`1 holds, 2 do not hold, 3 undecided`: how often each verdict occurs, in this order."""
    several = {"holds": "hold", "does not hold": "do not hold"}
    counted = verdicts.value_counts()
    return ", ".join(
        f"{counted[verdict]} {verdict if counted[verdict] == 1 else several.get(verdict, verdict)}"
        for verdict in order
        if verdict in counted
    )


def _ceilings(table: pd.DataFrame) -> list[str]:
    """Families whose Pass@large k is nearly 1 for half of the candidates or more."""
    measured = table[(table["status"] == "measured") & table["column"].isin(["pass_k", "avg_genloss_pass_k"])]
    lines = []
    for family, cells in measured.groupby("family", sort=False):
        most = cells.loc[cells["n_candidates"].idxmax()]
        if 2 * most["n_ceiling"] >= most["n_candidates"]:
            title = short_title("pass_k", int(most["k"]))
            count = f"{most['n_ceiling']} of {most['n_candidates']} candidates"
            lines.append(
                f"- **{family}**: {title} is {CEILING} or more for {count}; so near its ceiling it hardly tells them "
                "apart, and a line through it is steep."
            )
    return lines


def differences(table: pd.DataFrame) -> list[str]:
    """Sentences on what our numbers say other than the paper's: sign of a gain, size, order; [] where nothing."""
    sentences = []
    for family, cells in table[table["status"] == "measured"].groupby("family", sort=False):
        k = int(cells["k"].iloc[0])
        base = cells[cells["column"] == paper.BASELINE].set_index("row")["paper"]
        for column, mine in cells.groupby("column", sort=False):
            title = short_title(column, k)
            published = mine["paper"] - base.reindex(mine["row"]).to_numpy()
            worse = mine[(mine["gain"] < -ROUNDING) & (published > 0)]
            if len(worse):
                sure = (worse["verdict"] == "does not hold").sum()
                certainty = f"the interval excludes zero in {sure} of {len(worse)}" if sure else "undecided"
                sentences.append(
                    f"**{family}**: {title} predicts worse than Pass@1{_in_rows(worse, mine)}, by "
                    f"{between(-worse['gain'])} ({certainty}); in the paper it is better by "
                    f"{between(published[worse.index])}."
                )
            outside = mine[(mine["paper"] < mine["low"]) | (mine["paper"] > mine["high"])]
            if len(outside):
                sentences.append(
                    f"**{family}**: the {STATISTICS[mine['statistic'].iloc[0]]} from {title}{_in_rows(outside, mine)} "
                    f"is {between(outside['value'])}; the paper's {between(outside['paper'])} lies outside of our "
                    f"{100 * outside['confidence'].iloc[0]:.0f} % interval."
                )
        best, theirs = _best(cells, "value"), _best(cells, "paper")
        changed = [row for row in best if best[row] and theirs[row] and not best[row] & theirs[row]]
        if changed:
            ours = names(sorted({short_title(column, k) for row in changed for column in best[row]}))
            other = names(sorted({short_title(column, k) for row in changed for column in theirs[row]}))
            place = "" if len(best) == 1 else f" in {len(changed)} of {len(best)} rows"
            sentences.append(f"**{family}**: the best predictor is {ours}{place}; in the paper, {other}.")
    return sentences


def headline(table: pd.DataFrame) -> tuple[str, str, str]:
    """The table in one line: the paper's numbers, ours, and what ours rest on.

    Of a table by budget it is the average, of one by fit size the row that fits nearest to half of the candidates. Of
    R2 ours is the median over every split, because a few splits into candidates almost alike can ruin the mean.
    """
    theirs = {"pass1": "Pass@1", "gen_loss": "loss", "pass_k": "Pass@64", "avg_genloss_pass_k": "both"}
    ours = theirs | {"pass_k": f"Pass@{int(table['k'].iloc[0])}"}
    printed, own, scale = [], [], []
    for model, cells in table.groupby("model", sort=False):
        row = _headline_row(cells)
        short = model.split("-")[0]
        for place, (family, mine) in enumerate(cells[cells["row"] == row].groupby("family", sort=False)):
            titles = [ours[column] for column in mine["column"]]
            if place == 0:
                known = [pair for pair in zip(mine["column"], mine["paper"], strict=True) if not math.isnan(pair[1])]
                printed.append(f"{short}: " + ", ".join(f"{theirs[column]} {value:.2f}" for column, value in known))
            first = mine.iloc[0]
            if first["status"] != "measured":
                own.append(f"{family or short}: {first['status']}")
                continue
            middle = mine["value"] if mine["all_median"].isna().any() else mine["all_median"]
            values = [f"{title} {number_text(value)}" for title, value in zip(titles, middle, strict=True)]
            own.append(f"{family}: {', '.join(values)}")
            scale.append(f"{family} n = {first['n_candidates']}")
    name = STATISTICS[table["statistic"].iloc[0]].split()[0]
    medians = "median " if table["all_median"].notna().any() else ""
    return f"{name} {'; '.join(printed)}", f"{medians}{name} {'; '.join(own)}", ", ".join(scale)


def _headline_row(cells: pd.DataFrame) -> str:
    rows = cells["row"].unique().tolist()
    if "Average" in rows or len(rows) == 1:
        return rows[-1]
    return min(rows, key=lambda row: abs(int(row.split(":")[0]) - int(row.split(":")[1])))


def describe_printed(number: int | str) -> str:
    """What the published rows rest on, read off the numbers themselves: Markdown; empty where there is nothing."""
    cells = paper.published(number)
    number = int(cells["table"].iloc[0])
    sentences = []
    for row, own in cells.groupby("row", sort=False):
        for source, same in printed_again(number, row):
            theirs = paper.published(source)
            first = theirs[theirs["row"] == same].iloc[0]
            said = f"The paper's row {row} holds the same numbers as row {same} of Table {source}"
            if own["n_fit"].isna().all() and not pd.isna(first["n_fit"]):
                total = first["n_fit"] + first["n_validation"]
                half = total // 2 == first["n_fit"]
                said += f": fitted on {first['n_fit']} of {total} candidates"
                said += ", the half that the caption names" if half else ", not on the half that the caption names"
            elif same == "Average":
                said += ": the mean of the rank correlations within each SFT budget. Ours is computed likewise"
            sentences.append(f"{said}.")
        for cell in own[own["note"] != ""].itertuples():
            printed = f", printed is {cell.printed_gain:+.2f}" if cell.note.startswith("the difference") else ""
            sentences.append(f"The paper's row {row}, {short_title(cell.column)}: {cell.note}{printed}.")
    return "\n".join(f"- {sentence}" for sentence in sentences)


def describe_sensitivity(table: pd.DataFrame) -> str:
    """Whether the definition decides which predictor is better: Markdown."""
    gains = table[table["gain"].notna()]
    if gains.empty:
        return "Nothing was measured, so there are no definitions to compare."
    titles = {**R2_KINDS, **SPEARMAN_KINDS}
    compared = gains.groupby(["family", "row", "column"], sort=False)
    changing = [cells for _, cells in compared if cells["gain"].min() < -ROUNDING and cells["gain"].max() > ROUNDING]
    count = f"{len(changing)} of {compared.ngroups} comparison(s) with Pass@1"
    lines = [f"The definition changes which one is better in {count}{':' if changing else '.'}", ""]
    for cells in changing:
        first = cells.iloc[0]
        where, title = _where(first["row"], first["family"], first["model"]), short_title(first["column"], first["k"])
        texts = ", ".join(f"{number_text(cell.gain, '+')} ({titles[cell.kind]})" for cell in cells.itertuples())
        lines.append(f"- **{where}**: {title} {texts}")
    return "\n".join(lines).rstrip()


def _family_lines(model: str, family: str, cells: pd.DataFrame) -> list[str]:
    label = f"**{family or model}**" + (f" (stands for {model})" if family else "")
    statuses = cells.groupby("row", sort=False)["status"].first()
    if set(statuses) <= {"not run", "not chosen"}:
        return [f"- {label}: {names(dict.fromkeys(statuses))}, so nothing is said about it."]
    measured = cells[cells["status"] == "measured"]
    if (statuses == "measured").sum() > DETAILED:
        lines = _summarised(label, measured)
    else:
        rows = measured.groupby("row", sort=False)
        lines = [_detailed(label + ("" if row == model else f", {row}"), own) for row, own in rows]
    for status in ("too few candidates", "not run"):
        rows = cells[cells["status"] == status].drop_duplicates("row")
        counts = [
            f"{row['n_candidates']}" if row["row"] == model else f"{row['row']} ({row['n_candidates']})"
            for _, row in rows.iterrows()
        ]
        lines += [f"- {label}: {status}: {', '.join(counts)}."] if counts else []
    return lines


def _detailed(label: str, cells: pd.DataFrame) -> str:
    """All numbers of one row."""
    first = cells.iloc[0]
    parts = [f"{STATISTICS[first['statistic']]} {number_text(first['value'])} from Pass@1{_paper(first['paper'])}"]
    for _, cell in cells.iloc[1:].iterrows():
        title = short_title(cell["column"], int(cell["k"]))
        if math.isnan(cell["gain"]):
            parts.append(f"{title}: undefined, because it ranks no candidate above another")
            continue
        low, high, share = cell["gain_low"], cell["gain_high"], cell["better_share"]
        interval = "" if math.isnan(low) else f" [{100 * cell['confidence']:.0f} %: {_bound(low)} to {_bound(high)}]"
        interval += "" if math.isnan(share) else f", better in {100 * share:.0f} % of splits"
        printed = _paper(cell["paper"], cell["paper"] - first["paper"])
        numbers = f"{number_text(cell['value'])}, {number_text(cell['gain'], '+')}"
        parts.append(f"{title}: {numbers}{interval}{printed}: {cell['verdict']}")
    averaged = _averaged(first["basis"], first["sizes"])
    return f"- {label}, {first['n_candidates']} candidates{averaged}: " + "; ".join(parts) + "."


def _summarised(label: str, cells: pd.DataFrame) -> list[str]:
    """The rows of a family together, one line per predictor."""
    base = cells[cells["column"] == paper.BASELINE].set_index("row")
    name, count = STATISTICS[cells["statistic"].iloc[0]], cells["n_candidates"].max()
    first = f"{name} from Pass@1 {between(base['value'])} (paper {between(base['paper'])})"
    lines = [f"- {label}, {count} candidates: {first}."]
    for column, mine in cells[cells["column"] != paper.BASELINE].groupby("column", sort=False):
        gains = mine["gain"].dropna()
        published = (mine.set_index("row")["paper"] - base["paper"]).dropna()
        said = count_verdicts(mine["verdict"])
        by = f", by {between(gains, '+')}" if len(gains) else ""
        beside = "not in the paper"
        if len(published):
            beside = f"paper: {(published > 0).sum()} of {len(published)}, by {between(published, '+')}"
        title = predictor_title(column, int(mine["k"].iloc[0]))
        better = f"better than Pass@1 in {(gains > 0).sum()} of {len(mine)} rows{by}"
        lines.append(f"- {label}, {title}: {better} ({beside}): {said}.")
    return lines


def _best(cells: pd.DataFrame, name: str) -> dict[str, set[str]]:
    """Columns with the highest value in each row, ties together."""
    found = {}
    for row, mine in cells.groupby("row", sort=False):
        values = mine.set_index("column")[name].dropna()
        found[row] = set(values.index[values == values.max()])
    return found


def _in_rows(some: pd.DataFrame, every: pd.DataFrame) -> str:
    if len(every) == 1:
        return ""
    return f" in all {len(every)} rows" if len(some) == len(every) else f" in {names(some['row'])}"


def _paper(value: float, gain: float = math.nan) -> str:
    if math.isnan(value):
        return " (not in the paper)"
    return f" (paper {value:.2f}" + ("" if math.isnan(gain) else f", {gain:+.2f}") + ")"


def _bound(value: float) -> str:
    """An end of an interval; beyond 10 its digits say nothing about an R2 or a rank correlation."""
    return f"{value:+.2f}" if abs(value) <= 10 else "beyond " + f"{math.copysign(10, value):+.0f}"
