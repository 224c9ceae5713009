"""Tables 1-10 as a person reads them."""

from __future__ import annotations

import math

import pandas as pd

from quagmire_utils.tables.published import VERDICTS


def predictor_title(column: str, k: int = 64) -> str:
    """How a predictor is called in tables; the paper's large k is 64."""
    large = "Pass@64" if k == 64 else f"Pass@{k} (paper: 64)"
    titles = {
        "pass1": "Pass@1 (baseline)",
        "gen_loss": "Generalization loss",
        "pass64": large,
        "avg_genloss_pass64": f"Mean of both: loss, {large}",
    }
    return titles[column]


def table_title(table: pd.DataFrame) -> str:
    """One line that says what the table shows."""
    first = table.iloc[0]
    what = {"spearman": "Spearman rank correlation", "r2": "R²"}[first["statistic"]]
    return f"Table {first['table']}: {what} of predicted and actual Pass@1 after RL, {first['scenario']} level"


def show_table(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """The table as text: for each row the paper's line, ours (`measured`, stamped with the profile) or `not run`.

    The gain over Pass@1 stands in brackets at the row's best predictor, as the paper prints it. R2 is followed by the
    standard deviation over splits (what the paper calls a standard error) and the standard error; a Spearman
    correlation by its 95 % interval.
    """
    lines = {}
    for (row, family), cells in table.groupby(["row", "family"], sort=False):
        first = cells.iloc[0]
        label = row if row == first["model"] else f"{first['model']}, {row}"
        titles = [predictor_title(column, int(first["k"])) for column in cells["column"]]
        best = cells["paper"].idxmax()
        printed = [
            _text(cell["paper"], cell["paper_plus_minus"], cell["paper_gain"] if place == best else math.nan)
            for place, cell in cells.iterrows()
        ]
        lines[label, "paper"] = dict(zip(titles, printed, strict=True))
        own = f"{family}: measured ({profile})" if family else "not run"
        if first["status"] != "measured":
            said = first["status"] + (f" ({first['n_candidates']})" if first["n_candidates"] else "")
            own = f"{family}: {said}" if family else said
            lines[label, own] = dict.fromkeys(titles, said)
            continue
        best = cells["value"].idxmax() if cells["value"].notna().any() else None
        lines[label, own] = dict(
            zip(titles, (_own(cell, place == best) for place, cell in cells.iterrows()), strict=True)
        )
        lines[label, own] |= {"candidates": str(first["n_candidates"])}
        if first["statistic"] == "r2":
            ratio = f"{first['n_fit']:.0f}:{first['n_validation']:.0f}"
            lines[label, own] |= {"fitted:predicted": ratio, "splits": f"{first['n_splits']:.0f} random"}
            if first["all_splits"] > 0:
                full = [
                    f"{_text(cell['all_value'], cell['all_std'])}, median {_number(cell['all_median'])}"
                    for _, cell in cells.iterrows()
                ]
                lines[label, f"{family}: measured ({profile}), every split"] = {
                    **dict(zip(titles, full, strict=True)),
                    "candidates": str(first["n_candidates"]),
                    "fitted:predicted": ratio,
                    "splits": f"all {first['all_splits']:.0f}",
                }
    shown = pd.DataFrame(list(lines.values()), index=pd.MultiIndex.from_tuples(lines, names=["model", ""]))
    return shown.fillna("")


def describe_table(table: pd.DataFrame) -> str:
    """What our scale says about the paper's claim that other predictors beat Pass@1: Markdown, every word computed."""
    name = {"spearman": "rank correlation", "r2": "R²"}[table["statistic"].iloc[0]]
    lines = []
    for (row, family), cells in table.groupby(["row", "family"], sort=False):
        first = cells.iloc[0]
        label = f"**{family or first['model']}**" + (f" (stands for {first['model']})" if family else "")
        label += "" if row == first["model"] else f", {row}"
        if first["status"] == "not run":
            line = f"- **{first['model']}**: not run, so nothing is said about it."
            lines += [] if line in lines else [line]
            continue
        if first["status"] != "measured":
            lines.append(f"- {label}: too few candidates with an outcome ({first['n_candidates']}).")
            continue
        parts = [f"{name} {_number(first['value'])} from Pass@1 (paper {first['paper']:.2f})"]
        for _, cell in cells.iloc[1:].iterrows():
            title = predictor_title(cell["column"], int(cell["k"]))
            if math.isnan(cell["gain"]):
                parts.append(f"{title}: undefined, because it ranks no candidate above another")
                continue
            low, high, share = cell["gain_low"], cell["gain_high"], cell["better_share"]
            interval = "" if math.isnan(low) else f" [{cell['confidence']:.0%}: {_bound(low)} to {_bound(high)}]"
            interval += "" if math.isnan(share) else f", better in {share:.0%} of splits"
            printed = f"{cell['paper']:.2f}, {cell['paper'] - first['paper']:+.2f}"
            verdict = f": {cell['verdict']}" if cell["verdict"] else ""
            parts.append(f"{title}: {cell['value']:.2f}, {cell['gain']:+.2f}{interval} (paper {printed}){verdict}")
        lines.append(f"- {label}, {first['n_candidates']} candidates: " + "; ".join(parts) + ".")
    tested = table[table["verdict"].isin(VERDICTS) & table["gain"].notna()]
    if tested.empty:
        return "\n".join([*lines, "", "**Too few candidates at this scale: the paper's claim is not tested here.**"])
    counted = tested["verdict"].value_counts()
    said = ", ".join(f"{counted[verdict]} {verdict}" for verdict in VERDICTS if verdict in counted)
    summary = f"**Better than Pass@1, as the paper finds? {len(tested)} comparison(s): {said}.**"
    if "undecided" in counted:
        fewest = int(tested["n_candidates"].min())
        summary += f" Undecided means that the interval holds zero; {fewest} candidates cannot tell."
    return "\n".join([*lines, "", summary])


def _own(cell: pd.Series, best: bool) -> str:
    gain = cell["gain"] if best else math.nan
    if cell["statistic"] == "r2":
        text = _text(cell["value"], cell["std"])
        text += f", SE {cell['standard_error']:.2f}" if not math.isnan(cell["value"]) else ""
    else:
        text = _text(cell["value"])
        if not math.isnan(cell["low"]):
            text += f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    return text + ("" if math.isnan(gain) else f" ({gain:+.2f})")


def _text(value: float, plus_minus: float = math.nan, gain: float = math.nan) -> str:
    text = _number(value)
    text += "" if math.isnan(plus_minus) else f" ± {plus_minus:.2f}"
    return text + ("" if math.isnan(gain) else f" ({gain:+.2f})")


def _bound(value: float) -> str:
    """An end of an interval; beyond 10 its digits say nothing about an R2 or a rank correlation."""
    return f"{value:+.2f}" if abs(value) <= 10 else "beyond " + f"{math.copysign(10, value):+.0f}"


def _number(value: float, sign: str = "") -> str:
    return "undefined" if math.isnan(value) else f"{value:{sign}.2f}"


# --- one model's evaluation, and where a sweep's time went ------------------------------------------------------------
