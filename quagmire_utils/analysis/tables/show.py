"""The tables as a person reads them."""

from __future__ import annotations

import math

import pandas as pd

from quagmire_utils.analysis.tables.compute import R2_KINDS, SPEARMAN_KINDS
from quagmire_utils.analysis.tables.spec import STATISTICS, TABLES
from quagmire_utils.core import published as paper

ROW = ["row", "model", "family"]  # a row such as Average may occur once for each model
LARGE = 1000  # a larger R2 is not shown: the predicted candidates are almost alike


def predictor_title(column: str, k: int = 64) -> str:
    """Return the name of a predictor in tables; the paper's large k is 64."""
    large = "Pass@64" if k == 64 else f"Pass@{k} (paper: 64)"
    titles = {
        "pass1": "Pass@1 (baseline)",
        "gen_loss": "Generalization loss",
        "pass_k": large,
        "avg_genloss_pass_k": f"Mean of both: loss, {large}",
    }
    return titles[column]


def number_text(value: float, sign: str = "") -> str:
    """Format a number with two digits; an R2 of minus thousands as "below -1000"."""
    if math.isnan(value):
        return "undefined"
    if abs(value) >= LARGE:
        return f"above {LARGE:{sign}}" if value > 0 else f"below -{LARGE}"
    return f"{round(value, 2) + 0.0:{sign}.2f}"  # + 0.0: no minus before a zero


def show_table(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return the table as text: for each row the paper's line, then ours, marked `measured (profile)`.

    The gain over Pass@1 stands in brackets at the row's best predictor, as the paper prints it. R2 is followed by the
    standard deviation over splits (which the paper calls a standard error) and the standard error; a rank correlation
    by its interval. A line of ours that was not measured says why.
    """
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for (row, _, family), cells in table.groupby(ROW, sort=False):
        first = cells.iloc[0]
        several = len(table["model"].unique()) > 1 and row != first["model"]
        label = f"{first['model']}, {row}" if several else row
        titles = [predictor_title(column, int(first["k"])) for column in cells["column"]]
        if cells["paper"].notna().any():
            printed = [_printed(cell) for _, cell in cells.iterrows()]
            lines[label, f"paper: {first['source']}"] = dict(zip(titles, printed, strict=True))
        name = f"{family}: " if family else ""
        if first["status"] != "measured":
            said = first["status"] + (f" ({first['n_candidates']})" if first["n_candidates"] else "")
            lines[label, name + said] = dict.fromkeys(titles, said)
            continue
        lines |= {(label, name + what): line for what, line in _own_lines(cells, titles, profile).items()}
    return _text_frame(lines or {("no such row", ""): {"": ""}})


def compare_gains(table: pd.DataFrame) -> pd.DataFrame:
    """Return our gains over Pass@1 beside the paper's as text: one line per measured row and predictor.

    `paper inside`: whether the paper's value lies in the interval of ours. `at ceiling`: candidates whose Pass@k is
    0.99 or more, too high to distinguish them.
    """
    lines = []
    for (row, _, family), cells in table[table["status"] == "measured"].groupby(ROW, sort=False):
        base = cells.loc[cells["column"] == paper.BASELINE, "paper"].iloc[0]
        for _, cell in cells[cells["column"] != paper.BASELINE].iterrows():
            known, share = not math.isnan(cell["paper"]), cell["better_share"]
            inside = "yes" if cell["low"] <= cell["paper"] <= cell["high"] else "no"
            ceiling = f"{cell['n_ceiling']} of {cell['n_candidates']}"
            line = {
                "family": family,
                "row": "" if row == cell["model"] else row,
                "predictor": predictor_title(cell["column"], int(cell["k"])),
                "candidates": str(cell["n_candidates"]),
                "gain": number_text(cell["gain"], "+") + _interval(cell["gain_low"], cell["gain_high"], "+"),
                "better in": "" if math.isnan(share) else f"{100 * share:.0f} % of splits",
                "verdict": cell["verdict"],
                "paper's gain": f"{cell['paper'] - base:+.2f}" if known else "",
                "paper inside": inside if known and not math.isnan(cell["low"]) else "",
                "at ceiling": ceiling if "pass_k" in cell["column"] else "",
            }
            lines.append(line)
    return pd.DataFrame(lines or [{"family": "not run"}]).set_index("family")


def show_sensitivity(table: pd.DataFrame) -> pd.DataFrame:
    """Return `compute_sensitivity` as text: one line per row and definition, the gain over Pass@1 in brackets."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for (row, family, kind), cells in table.groupby(["row", "family", "kind"], sort=False):
        first = cells.iloc[0]
        texts = [_text(cell["value"], cell["std"], cell["gain"]) for _, cell in cells.iterrows()]
        line = dict(zip([predictor_title(column, int(first["k"])) for column in cells["column"]], texts, strict=True))
        if first["statistic"] == "r2":
            shares = " / ".join(f"{100 * share:.0f} %" for share in cells["below_zero"])
            line |= {"splits": f"{cells['splits'].min():,}", "below zero in": shares}
        where = family if row == first["model"] else f"{family}, {row}"
        lines[where, {**R2_KINDS, **SPEARMAN_KINDS}[kind]] = line
    return _text_frame(lines or {("not run", ""): {"": ""}})


def headline(table: pd.DataFrame) -> tuple[str, str, str]:
    """Return the table in one line: the paper's numbers, ours, and the numbers of candidates.

    Of a table by budget the average row, of one by fit size the row nearest to half of the candidates. Our R2 is the
    median over every split, because a few splits into candidates almost alike can ruin the mean.
    """
    theirs = {"pass1": "Pass@1", "gen_loss": "loss", "pass_k": "Pass@64", "avg_genloss_pass_k": "both"}
    ours = theirs | {"pass_k": f"Pass@{int(table['k'].iloc[0])}"}
    printed, own, scale = {}, [], []
    chosen = TABLES[table["table"].iloc[0]].headline
    for (_, model, family), cells in table[table["row"].isin([chosen] if chosen else table["row"])].groupby(
        ROW, sort=False
    ):
        short, first = model.split("-")[0], cells.iloc[0]
        known = cells.dropna(subset="paper").set_index("column")["paper"]
        printed[short] = ", ".join(f"{theirs[column]} {value:.2f}" for column, value in known.items())
        if first["status"] != "measured":
            own.append(f"{family or short}: {first['status']}")
            continue
        middle = cells.set_index("column")["value" if cells["all_median"].isna().any() else "all_median"]
        own.append(
            f"{family}: " + ", ".join(f"{ours[column]} {number_text(value)}" for column, value in middle.items())
        )
        scale.append(f"{family} n = {first['n_candidates']}")
    name = STATISTICS[table["statistic"].iloc[0]].split()[0]
    median = "median " if table["all_median"].notna().any() else ""
    paper_says = "; ".join(f"{short}: {numbers}" for short, numbers in printed.items())
    return f"{name} {paper_says}", f"{median}{name} {'; '.join(own)}", ", ".join(scale)


def _own_lines(cells: pd.DataFrame, titles: list[str], profile: str) -> dict[str, dict[str, str]]:
    """Our line of a row; for R2 a second one over every split."""
    first = cells.iloc[0]
    notes = [first["sizes"]] if first["sizes"] else []
    notes += [f"{first['left_out']} left out"] if first["left_out"] else []
    shared = {"candidates": f"{first['n_candidates']}" + (f" ({'; '.join(notes)})" if notes else "")}
    best = cells["value"].idxmax() if cells["value"].notna().any() else None
    own = [_own(cell, place == best) for place, cell in cells.iterrows()]
    name = f"measured ({profile})"
    lines = {name: {**dict(zip(titles, own, strict=True)), **shared}}
    if first["statistic"] == "r2":
        halves = math.isnan(first["n_fit"])
        shared["fitted: predicted"] = "halves" if halves else f"{first['n_fit']:.0f}:{first['n_validation']:.0f}"
        lines[name] |= {**shared, "splits": f"{cells['n_splits'].min():.0f} random"}
        if first["all_splits"] > 0:
            texts = [_every_split(cell) for _, cell in cells.iterrows()]
            shared["splits"] = f"all {cells['all_splits'].min():.0f}"
            lines[f"{name}, every split"] = {**dict(zip(titles, texts, strict=True)), **shared}
    return lines


def _text_frame(lines: dict[tuple[str, str], dict[str, str]]) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(lines, names=["", ""])
    return pd.DataFrame(list(lines.values()), index=index).fillna("")


def _printed(cell: pd.Series) -> str:
    if math.isnan(cell["paper"]):
        return "not in the paper"
    return _text(cell["paper"], cell["paper_plus_minus"], cell["paper_gain"])


def _own(cell: pd.Series, best: bool) -> str:
    text = _text(cell["value"], cell["std"])
    if math.isnan(cell["standard_error"]):
        text += _interval(cell["low"], cell["high"])
    elif abs(cell["value"]) < LARGE:
        text += f", SE {number_text(cell['standard_error'])}"
    return text + (f" ({number_text(cell['gain'], '+')})" if best and not math.isnan(cell["gain"]) else "")


def _every_split(cell: pd.Series) -> str:
    median = "" if math.isnan(cell["all_median"]) else f", median {number_text(cell['all_median'])}"
    return _text(cell["all_value"], cell["all_std"]) + median


def _interval(low: float, high: float, sign: str = "") -> str:
    return "" if math.isnan(low) else f" [{number_text(low, sign)}, {number_text(high, sign)}]"


def _text(value: float, plus_minus: float = math.nan, gain: float = math.nan) -> str:
    text = number_text(value)
    if abs(value) >= LARGE:
        return text
    text += "" if math.isnan(plus_minus) else f" ± {number_text(plus_minus)}"
    return text + ("" if math.isnan(gain) else f" ({number_text(gain, '+')})")
