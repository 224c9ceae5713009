"""The paper's tables: ours, computed from the records, beside the published values. Paper: Sec. 4, App. C.

    frame = candidate_frame(load_records("results/smoke"))
    table = compute_table(frame, 1)                     # tidy numbers, one row per cell of the paper's Table 1
    show_table(table, "smoke")                          # as text, ours beside the paper's
    print(describe_table(table))                        # what our scale says about the paper's claim

`compute_table` takes any of the paper's Tables 1-10: what a table's rows are (families, fit sizes, SFT budgets) and
which predictors it has is read off the published one. Families that the paper has and we did not run say `not run`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils import paper
from quagmire_utils.config import ParameterError
from quagmire_utils.pass_at_k import benchmark_average, benchmark_pass_at_k
from quagmire_utils.prediction import MAX_SPLITS, SplitR2, bootstrap_interval, fit_predict_r2, predict, spearman
from quagmire_utils.records import CHECKPOINT, Records, select_candidates

PREDICTORS = {  # a column of the paper's tables -> the columns of the candidate frame whose predictions are averaged
    "pass1": ("pass1",),
    "gen_loss": ("gen_loss",),
    "pass64": ("pass64",),
    "avg_genloss_pass64": ("gen_loss", "pass64"),
}
NUMBERS = (
    *("value", "std", "standard_error", "n_splits", "all_value", "all_std", "all_median", "all_splits"),
    *("low", "high", "gain", "gain_low", "gain_high", "better_share"),
)
VERDICTS = ("holds", "does not hold", "undecided")
OUTCOMES = ("outcome", "outcome_last")
MIN_CANDIDATES = 4  # two to fit a line, two to take an R2 on
JACKKNIFE_SPLITS = 20_000  # up to here every split is taken when a candidate is left out

Array = NDArray[np.float64]


# --- Tables 1-10 ------------------------------------------------------------------------------------------------------


def compute_table(
    frame: pd.DataFrame,
    number: int,
    *,
    n_splits: int = 100,
    seed: int = 0,
    outcome: str = "outcome",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Numbers of one of the paper's tables, ours beside the published, one row per cell.

    frame: from `candidate_frame`. outcome: "outcome" as in the paper, or "outcome_last". Candidates lacking a predictor
    of the table are left out of all its columns, so that a row rests on the same candidates.
    Returns table, row (the paper's), column (one of paper.COLUMNS), statistic, scenario, model (the paper's), family
    (ours), k, status (measured, not run, too few candidates), n_candidates, left_out, n_fit, n_validation; then
      value, std, standard_error, n_splits     Spearman, or mean, standard deviation, standard error of R2 over splits
      all_value, all_std, all_median, all_splits   R2 over every split there is, without sampling noise; NaN where there
                                               are over a million
      low, high                                interval of a Spearman correlation (bootstrap over candidates)
      gain, gain_low, gain_high                difference to Pass@1 and its interval: paired bootstrap over candidates
                                               for Spearman, jackknife over candidates for R2
      better_share                             share of the splits in which its R2 is above that of Pass@1
      verdict                                  of "better than Pass@1": holds, does not hold, undecided
      paper, paper_plus_minus, paper_gain      as printed
    """
    if outcome not in OUTCOMES:
        raise ParameterError(f"outcome must be one of {', '.join(OUTCOMES)}, not {outcome!r}")
    parts = []
    for row, cells in paper.published(number).groupby("row", sort=False):
        first = cells.iloc[0]
        mine = frame[frame["stands_for"] == first["family"]]
        for family in mine["family"].unique().tolist() or [""]:
            chosen = select_candidates(frame, family, first["scenario"]) if family else mine
            if row not in paper.FAMILIES and pd.isna(first["n_fit"]):  # the rows are SFT budgets
                budget = chosen.get("budget", pd.Series(index=chosen.index, dtype=object))
                chosen = chosen[budget.eq(row.split()[0].lower())] if row != "Average" else chosen.iloc[:0]
            part = _row(chosen, cells, n_splits, seed, outcome, confidence)
            part.insert(4, "family", family)
            parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table.insert(6, "k", int(frame["k"].iloc[0]))
    table.insert(7, "confidence", confidence)
    return _with_averages(table)


def _row(
    chosen: pd.DataFrame, cells: pd.DataFrame, n_splits: int, seed: int, outcome: str, confidence: float
) -> pd.DataFrame:
    """One row of a table: its cells with our numbers where the candidates suffice."""
    columns = cells["column"].tolist()
    needed = list(dict.fromkeys(name for column in columns for name in PREDICTORS[column]))
    usable = chosen.dropna(subset=[*needed, outcome])
    total = len(usable)
    statistic, fit = cells["statistic"].iloc[0], cells["n_fit"].iloc[0]
    n_fit = total // 2 if pd.isna(fit) else int(fit)
    enough = total >= MIN_CANDIDATES and n_fit <= total - 2
    part = cells.rename(columns={"family": "model", "mean": "paper", "plus_minus": "paper_plus_minus"})
    part = part.rename(columns={"printed_gain": "paper_gain", "note": "paper_note"}).drop(
        columns=["n_fit", "n_validation"]
    )
    part = part.assign(
        status="measured" if enough else "too few candidates" if total else "not run",
        n_candidates=total,
        left_out=len(chosen) - total,
        n_fit=n_fit if enough and statistic == "r2" else np.nan,
        n_validation=total - n_fit if enough and statistic == "r2" else np.nan,
    )
    numbers: list[dict[str, Any]] = [{} for _ in columns]
    if enough:
        y = usable[outcome].to_numpy(np.float64)
        series = [tuple(usable[name].to_numpy(np.float64) for name in PREDICTORS[column]) for column in columns]
        if statistic == "spearman":
            numbers = _spearman_cells(series, y, seed, confidence)
        else:
            numbers = _r2_cells(series, y, n_fit, n_splits, seed, confidence)
    for name in NUMBERS:
        part[name] = [float(cell.get(name, math.nan)) for cell in numbers]
    part["verdict"] = [
        "" if column == paper.BASELINE or not enough else _verdict(cell.get("gain_low"), cell.get("gain_high"))
        for column, cell in zip(columns, numbers, strict=True)
    ]
    return part


def _spearman_cells(series: list[tuple], y: Array, seed: int, confidence: float) -> list[dict[str, Any]]:
    intervals = [bootstrap_interval(x, y, "spearman", confidence=confidence, seed=seed) for x in series]
    tail = (1 - confidence) / 2
    cells = []
    for x, interval in zip(series, intervals, strict=True):
        value = spearman(predict(x, y), y)
        cell = {"value": value, "low": interval.low, "high": interval.high}
        if x is not series[0]:  # the first column is the baseline
            differences = interval.replicates - intervals[0].replicates
            differences = differences[~np.isnan(differences)]
            cell["gain"] = value - cells[0]["value"]
            if differences.size:
                cell["gain_low"], cell["gain_high"] = np.quantile(differences, [tail, 1 - tail])
        cells.append(cell)
    return cells


def _r2_cells(
    series: list[tuple], y: Array, n_fit: int, n_splits: int, seed: int, confidence: float
) -> list[dict[str, Any]]:
    from scipy.special import stdtrit  # quantiles of Student's t

    every = math.comb(len(y), n_fit) <= MAX_SPLITS
    cells: list[dict[str, Any]] = []
    baseline = None
    means_without = [_means_without_one(x, y, n_fit, n_splits, seed) for x in series]
    for x, without in zip(series, means_without, strict=True):
        drawn = fit_predict_r2(x, y, n_fit, n_splits, seed)
        cell = {"value": drawn.mean, "std": drawn.std, "standard_error": drawn.standard_error}
        cell["n_splits"] = drawn.n_splits - drawn.n_undefined
        if every:
            full: SplitR2 = fit_predict_r2(x, y, n_fit, "all")
            cell |= {"all_value": full.mean, "all_std": full.std, "all_splits": full.n_splits - full.n_undefined}
            cell["all_median"] = np.nanmedian(full.r2) if cell["all_splits"] else math.nan
        r2 = full.r2 if every else drawn.r2  # two predictors have the same splits, so their R2 are paired
        if baseline is None:
            baseline = r2
        else:
            defined = ~np.isnan(r2) & ~np.isnan(baseline)
            cell["better_share"] = (r2 > baseline)[defined].mean() if defined.any() else math.nan
            cell["gain"] = drawn.mean - cells[0]["value"]
            gains = without - means_without[0]
            width = stdtrit(len(y) - 1, (1 + confidence) / 2) * math.sqrt((len(y) - 1) * np.var(gains))
            cell["gain_low"], cell["gain_high"] = cell["gain"] - width, cell["gain"] + width
        cells.append(cell)
    return cells


def _means_without_one(x: tuple, y: Array, n_fit: int, n_splits: int, seed: int) -> Array:
    """Mean R2 over splits with each candidate left out in turn; NaN where that leaves too few to predict."""
    total = len(y)
    if n_fit > total - 3:
        return np.full(total, np.nan)
    splits = "all" if math.comb(total - 1, n_fit) <= JACKKNIFE_SPLITS else n_splits
    kept = [np.delete(np.arange(total), one) for one in range(total)]
    return np.array([fit_predict_r2(tuple(v[rows] for v in x), y[rows], n_fit, splits, seed).mean for rows in kept])


def _verdict(low: float | None, high: float | None) -> str:
    if low is not None and low > 0:
        return "holds"
    return "does not hold" if high is not None and high < 0 else "undecided"


def _with_averages(table: pd.DataFrame) -> pd.DataFrame:
    """Rows called Average are the means of the rows above, where all of them were measured (Tables 8 and 10)."""
    for place in table.index[table["row"] == "Average"]:
        same = ["family", "column"]
        above = table[(table[same] == table.loc[place, same]).all(axis=1) & (table["row"] != "Average")]
        statuses = set(above["status"])
        table.loc[place, "n_candidates"] = above["n_candidates"].sum()
        table.loc[place, "status"] = statuses.pop() if len(statuses) == 1 else "too few candidates"
        if table.loc[place, "status"] == "measured":
            table.loc[place, ["value", "gain"]] = above[["value", "gain"]].mean(skipna=False)
    return table


# --- showing ----------------------------------------------------------------------------------------------------------


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


def evaluation_table(counts: pd.DataFrame, ks: Sequence[int], confidence: float = 0.95) -> pd.DataFrame:
    """Scores of one model: one row per benchmark, then the macro average in which each benchmark weighs the same.

    counts: one row per problem (benchmark, problem, n, correct, wrong, no_answer, truncated, timeout, error,
    mean_tokens). Returns benchmark, problems, answers, n (fewest answers to a problem); for each k pass@k, se@k, low@k,
    high@k; truncated, no_answer, timeout, error (shares of all answers) and mean_tokens. The standard error holds the
    choice of problems and the sampling; the interval is Wilson's with the number of independent trials that this error
    amounts to, or the number of problems where it is zero or unknown, so that 0 of n does not look certain.
    """
    rates = ("truncated", "no_answer", "timeout", "error")
    missing = [name for name in ("n", *rates, "mean_tokens") if name not in counts.columns]
    if missing:
        raise ParameterError(f"counts lacks the column(s) {', '.join(missing)}")
    scores = benchmark_pass_at_k(counts, ks)
    macro = benchmark_average(counts, ks).assign(benchmark="macro average")
    rows = []
    for benchmark, part in [*scores.groupby("benchmark", sort=False), ("macro average", macro)]:
        own = counts if benchmark == "macro average" else counts[counts["benchmark"] == benchmark]
        answers = int(own["n"].sum())
        row = {"benchmark": benchmark, "problems": len(own), "answers": answers, "n": int(own["n"].min())}
        for k, value, error in zip(part["k"], part["pass_at_k"], part["standard_error"], strict=True):
            low, high = _wilson(value, error, len(own), confidence)
            row |= {f"pass@{k}": value, f"se@{k}": error, f"low@{k}": low, f"high@{k}": high}
        row |= {name: own[name].sum() / answers if answers else math.nan for name in rates}
        row["mean_tokens"] = (own["mean_tokens"] * own["n"]).sum() / answers if answers else math.nan
        rows.append(row)
    table = pd.DataFrame(rows)
    shares = table.loc[table["benchmark"] != "macro average", [*rates, "mean_tokens"]]
    table.loc[table["benchmark"] == "macro average", [*rates, "mean_tokens"]] = shares.mean(skipna=False).to_numpy()
    return table


def pass_at_k_curves(counts: pd.DataFrame) -> pd.DataFrame:
    """Pass@k for every k that all problems have answers for: benchmark, k, pass_at_k, standard_error.

    The mean of the benchmarks is the benchmark called "macro average".
    """
    ks = range(1, int(counts["n"].min()) + 1)
    macro = benchmark_average(counts, ks).assign(benchmark="macro average")
    curves = pd.concat([benchmark_pass_at_k(counts, ks), macro], ignore_index=True)
    return curves[["benchmark", "k", "pass_at_k", "standard_error"]]


def show_candidates(frame: pd.DataFrame) -> pd.DataFrame:
    """The numbers behind a figure or table, one row per candidate, rounded to be read."""
    columns = ["family", "candidate", "pass1", "pass64", "gen_loss", "outcome", "outcome_last", "gain"]
    columns += ["n_runs", "n_samples", "rl_n_samples", "truncation_rate", "no_answer_rate"]
    shown = frame[columns].rename(columns={"pass64": f"pass{frame['k'].iloc[0]}"} if len(frame) else {})
    return shown.set_index(["family", "candidate"]).round(3)


def _wilson(share: float, error: float, problems: int, confidence: float) -> tuple[float, float]:
    from scipy.special import ndtri

    if math.isnan(share):
        return math.nan, math.nan
    spread = share * (1 - share)
    trials = spread / error**2 if error > 0 and spread > 0 else float(problems)
    z2 = ndtri((1 + confidence) / 2) ** 2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    width = math.sqrt(z2 * (spread / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return max(0.0, middle - width), min(1.0, middle + width)


def show_evaluation(table: pd.DataFrame, profile: str = "") -> pd.DataFrame:
    """`evaluation_table` as text, in per cent: score ± standard error [interval], and the rates."""
    shown = pd.DataFrame(index=pd.Index(table["benchmark"], name=profile or None))
    for name in ("problems", "n"):
        shown[name if name == "problems" else "answers a problem"] = table[name].to_numpy()
    for k in [int(name.removeprefix("pass@")) for name in table if name.startswith("pass@")]:
        cells = table[[f"pass@{k}", f"se@{k}", f"low@{k}", f"high@{k}"]].to_numpy() * 100
        shown[f"Pass@{k} %"] = [
            f"NaN (fewer than {k} answers)" if math.isnan(v) else f"{v:.1f} ± {e:.1f} [{a:.1f}, {b:.1f}]"
            for v, e, a, b in cells
        ]
    for name in ("truncated", "no_answer", "timeout", "error"):
        shown[f"{name.replace('_', ' ')} %"] = [f"{100 * share:.1f}" for share in table[name]]
    shown["tokens"] = [f"{tokens:.0f}" for tokens in table["mean_tokens"]]
    return shown


def records_summary(records: Records) -> pd.DataFrame:
    """One row per family: candidates, checkpoints measured, answers graded, and the shares of undecided ones."""
    rows = []
    for family, counts in records.counts.groupby("family", sort=False):
        candidates = records.candidates[records.candidates["family"] == family]
        stages = counts.groupby(CHECKPOINT, sort=False).size().reset_index()
        answers = int(counts["n"].sum())
        row = {
            "family": family,
            "stands for": candidates["stands_for"].iloc[0],
            "SFT candidates": int((candidates["selection"] != "none").sum()),
            "measured before RL": int((stages["stage"] != "rl").sum()),
            "RL runs": len(stages.loc[stages["stage"] == "rl", ["candidate", "rl_run"]].drop_duplicates()),
            "checkpoints": len(stages),
            "benchmarks": counts["benchmark"].nunique(),
            "answers graded": answers,
        }
        row |= {f"{name} %": round(100 * counts[name].sum() / answers, 2) for name in ("no_answer", "truncated")}
        row["timeout or error %"] = round(100 * (counts["timeout"].sum() + counts["error"].sum()) / answers, 3)
        rows.append(row)
    return pd.DataFrame(rows).set_index("family")


def time_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Minutes of a sweep by kind of cell and what they went into; wall time of the cells, which run side by side."""
    columns = [name for name in cells if name.startswith("seconds_") and name != "seconds_total"]
    spent = cells.groupby("kind", sort=False)[[*columns, "seconds_total"]].sum()
    spent["seconds_rest"] = spent["seconds_total"] - spent[columns].sum(axis=1)
    minutes = (spent / 60).rename(columns=lambda name: name.removeprefix("seconds_").replace("_", " "))
    minutes.insert(0, "cells", cells.groupby("kind", sort=False).size())
    minutes.loc["total"] = minutes.sum()
    minutes["cells"] = minutes["cells"].astype(int)
    return minutes[[c for c in minutes if c not in ("rest", "total")] + ["rest", "total"]].round(2)
