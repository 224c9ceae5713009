"""Tables 1-10 as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import pandas as pd

from quagmire_utils.analysis.tables.layout import AVERAGED
from quagmire_utils.analysis.tables.sensitivity import R2_KINDS, SPEARMAN_KINDS
from quagmire_utils.core import published as paper

STATISTICS = {"spearman": "Spearman rank correlation", "r2": "R²"}
LARGE = 1000  # from here on an R2 is given by its size: candidates almost alike were predicted


def predictor_title(column: str, k: int = 64) -> str:
    """How a predictor is called in tables; the paper's large k is 64."""
    large = "Pass@64" if k == 64 else f"Pass@{k} (paper: 64)"
    titles = {
        "pass1": "Pass@1 (baseline)",
        "gen_loss": "Generalization loss",
        "pass_k": large,
        "avg_genloss_pass_k": f"Mean of both: loss, {large}",
    }
    return titles[column]


def table_title(table: pd.DataFrame) -> str:
    """One line that says what the table shows."""
    first = table.iloc[0]
    cells = paper.published(first["table"])
    models = cells["family"].unique()
    whose = f", {models[0]}" if len(models) == 1 else ""
    rows = ""
    if cells["n_fit"].notna().all():
        rows = ", by how many candidates are fitted and predicted"
    elif cells["row"].eq("Average").any():
        rows = ", by SFT budget"
    about = f"{STATISTICS[first['statistic']]} of predicted and actual Pass@1 after RL, {first['scenario']} level"
    return f"Table {first['table']}: {about}{whose}{rows}"


def table_caption(table: pd.DataFrame, profile: str, n_benchmarks: int) -> str:
    """The caption as Markdown: what is shown, how it was computed, and at which scale it was measured."""
    first = table.iloc[0]
    measured = table[table["status"] == "measured"]
    if first["statistic"] == "r2":
        splits = f"{measured['n_splits'].max():.0f} random splits" if len(measured) else "random splits"
        how = (
            "A line from the measurement after SFT to the outcome of RL is fitted on some candidates and predicts the "
            f"others: mean R² ± standard deviation over {splits} (the paper's ±, which it calls a standard error), "
            "then the standard error (SE); `every split` takes each possible split once, so it has no sampling noise."
        )
    else:
        how = (
            "The prediction is a line fitted on all candidates; in square brackets the "
            f"{100 * first['confidence']:.0f} % interval of a bootstrap over candidates. Each resample fits its line "
            "anew, so where a predictor is of no use the sign of its slope follows the resample: such correlations are "
            "rarely below zero and their intervals one-sided."
        )
        if (table["basis"] == AVERAGED).any():
            how += " Averages are over SFT budgets."
    return (
        f"**{table_title(table)}.** {how} In round brackets the gain over Pass@1, at the row's best predictor as the "
        f"paper prints it. Pass@1 after RL is averaged over {n_benchmarks} benchmarks. Ours: profile {profile}, "
        "measured; the paper's lines are as printed."
    )


def show_table(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """The table as text: for each row the paper's line with its source, ours (`measured`, stamped with the profile).

    The gain over Pass@1 stands in brackets at the row's best predictor, as the paper prints it. R2 is followed by the
    standard deviation over splits (what the paper calls a standard error) and the standard error; a Spearman
    correlation by its 95 % interval. Where we measured nothing the line says `not run`, `too few candidates` or
    `not chosen`.
    """
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row, family, cells in rows_of(table):
        first = cells.iloc[0]
        label = _label(table, row, first["model"])
        titles = [predictor_title(column, int(first["k"])) for column in cells["column"]]
        if cells["paper"].notna().any():
            texts = [_printed(cell) for _, cell in cells.iterrows()]
            lines[label, f"paper: {first['source']}"] = dict(zip(titles, texts, strict=True))
        name = f"{family}: " if family else ""
        if first["status"] != "measured":
            said = first["status"] + (f" ({first['n_candidates']})" if first["n_candidates"] else "")
            lines[label, name + said] = dict.fromkeys(titles, said)
            continue
        notes = [first["sizes"]] if first["sizes"] else []
        notes += [f"{first['left_out']} left out"] if first["left_out"] else []
        shared = {"candidates": f"{first['n_candidates']}" + (f" ({'; '.join(notes)})" if notes else "")}
        own = f"{name}measured ({profile})"
        best = cells["value"].idxmax() if cells["value"].notna().any() else None
        texts = [_own(cell, place == best) for place, cell in cells.iterrows()]
        lines[label, own] = {**dict(zip(titles, texts, strict=True)), **shared}
        if first["statistic"] == "spearman":
            continue
        ratio = "halves" if math.isnan(first["n_fit"]) else f"{first['n_fit']:.0f}:{first['n_validation']:.0f}"
        lines[label, own] |= {"fitted: predicted": ratio, "splits": f"{cells['n_splits'].min():.0f} random"}
        if first["all_splits"] > 0:
            texts = [_every_split(cell) for _, cell in cells.iterrows()]
            shared |= {"fitted: predicted": ratio, "splits": f"all {cells['all_splits'].min():.0f}"}
            lines[label, f"{own}, every split"] = {**dict(zip(titles, texts, strict=True)), **shared}
    return _text_frame(lines or {("no such row", ""): {"": ""}})


def show_sensitivity(table: pd.DataFrame) -> pd.DataFrame:
    """`compute_sensitivity` as text: one line per row and definition, the gain over Pass@1 in brackets."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for (row, family, kind), cells in table.groupby(["row", "family", "kind"], sort=False):
        first = cells.iloc[0]
        texts = [_text(cell["value"], cell["std"], cell["gain"]) for _, cell in cells.iterrows()]
        titles = [predictor_title(column, int(first["k"])) for column in cells["column"]]
        line = dict(zip(titles, texts, strict=True))
        if first["statistic"] == "r2":
            shares = " / ".join(f"{100 * share:.0f} %" for share in cells["below_zero"])
            line |= {"splits": f"{cells['splits'].min():,}", "below zero in": shares}
        lines[_where(row, family, first["model"]), {**R2_KINDS, **SPEARMAN_KINDS}[kind]] = line
    return _text_frame(lines or {("not run", ""): {"": ""}})


# --- in words ---------------------------------------------------------------------------------------------------------


def rows_of(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(row, family, its cells) in the table's order; a row such as Average may occur once for each model."""
    for (row, _, family), cells in table.groupby(["row", "model", "family"], sort=False):
        yield row, family, cells


def short_title(column: str, k: int = 64) -> str:
    """How a predictor is called inside a sentence."""
    return predictor_title(column, k).removesuffix(" (baseline)").replace(" (paper: 64)", "")


def names(items: Iterable[str]) -> str:
    """`a, b and c`."""
    *head, last = list(items)
    return f"{', '.join(head)} and {last}" if head else last


def between(values: pd.Series, sign: str = "") -> str:
    """Smallest to largest of some numbers."""
    low, high = number_text(values.min(), sign), number_text(values.max(), sign)
    return low if low == high else f"{low} to {high}"


def number_text(value: float, sign: str = "") -> str:
    """Two digits; the size alone of an R2 of minus thousands: -6e6."""
    if math.isnan(value):
        return "undefined"
    return f"{value:{sign}.2f}" if abs(value) < LARGE else f"{value:{sign}.0e}".replace("e+0", "e").replace("e+", "e")


def _where(row: str, family: str, model: str) -> str:
    return family if row == model else f"{family}, {row}"


def _label(table: pd.DataFrame, row: str, model: str) -> str:
    """A row's name; the model is named where the table has several."""
    several = len(table["model"].unique()) > 1
    return f"{model}, {row}" if several and row != model else row


def _text_frame(lines: dict[tuple[str, str], dict[str, str]]) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(lines, names=["", ""])
    return pd.DataFrame(list(lines.values()), index=index).fillna("")


def _printed(cell: pd.Series) -> str:
    if math.isnan(cell["paper"]):
        return "not in the paper"
    return _text(cell["paper"], cell["paper_plus_minus"], cell["paper_gain"])


def _own(cell: pd.Series, best: bool) -> str:
    text = _text(cell["value"], cell["std"])
    if not math.isnan(cell["standard_error"]):
        text += f", SE {number_text(cell['standard_error'])}"
    elif not math.isnan(cell["low"]):
        text += f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    return text + (f" ({number_text(cell['gain'], '+')})" if best and not math.isnan(cell["gain"]) else "")


def _every_split(cell: pd.Series) -> str:
    median = "" if math.isnan(cell["all_median"]) else f", median {number_text(cell['all_median'])}"
    return _text(cell["all_value"], cell["all_std"]) + median


def _text(value: float, plus_minus: float = math.nan, gain: float = math.nan) -> str:
    text = number_text(value)
    text += "" if math.isnan(plus_minus) else f" ± {number_text(plus_minus)}"
    return text + ("" if math.isnan(gain) else f" ({number_text(gain, '+')})")


def _averaged(basis: str, sizes: str) -> str:
    return f" (mean of {sizes})" if basis == AVERAGED else ""
