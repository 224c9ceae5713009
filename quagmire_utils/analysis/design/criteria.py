"""Each criterion of a world worth measuring, for the records of a profile: what was measured, met or not; the cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from quagmire_utils.analysis.design.base import base_table
from quagmire_utils.analysis.design.spread import MIN_CANDIDATES, spread_table
from quagmire_utils.analysis.design.traces import BEYOND, length_contrast, length_table, overtraining_table
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import Records

BASE_PASS1 = (0.05, 0.30)
BASE_PASS_K = 0.40
CHANCE = 0.05
LIFT = 0.10
POSSIBLE_SHARE = 0.5  # "mostly"
SPREAD_RATIO = 3.0
CELL_SECONDS = 180.0  # target, CPU seconds per candidate and RL run
PER_CENT = {  # columns that `show` turns into per cent
    *("pass1", "pass_k", "outcome", "outcome_last", "chance", "chance_informed", "lift", "lift_last"),
    *("before_k_after", "after_k_after", "possible", "possible_share"),
    *("mean", "low_outcome", "high_outcome", "between", "within", "sampling"),
    *("short_before", "long_before", "short_after", "long_after", "before", "after"),
}
CRITERIA = {
    "base": f"base Pass@1 between {100 * BASE_PASS1[0]:.0f} % and {100 * BASE_PASS1[1]:.0f} %",
    "reach": f"base Pass@large k above {100 * BASE_PASS_K:.0f} %",
    "chance": f"chance Pass@large k under {100 * CHANCE:.0f} %",
    "lift": f"RL lifts the base's Pass@1 by at least {100 * LIFT:.0f} points",
    "sharpening": "that lift is mostly making likely what was possible: over half of it on problems that the base "
    "solved at least once, and Pass@large k moves less than Pass@1",
    "spread": f"outcomes spread between candidates at least {SPREAD_RATIO:g} times as much as between RL runs of one",
    "overtraining": "some candidate's Pass@1 still rises while Pass@large k falls and the generalization loss rises",
    "long traces teach": "after SFT on as many tokens, the longest examples solve more of the long problems",
    "long traces pay": "and still do after RL",
    "long traces cost": "and an example of them costs more tokens",
    "cost": f"a candidate and an RL run of it cost under {CELL_SECONDS:.0f} CPU-seconds",
}


def cost_table(records: Records) -> pd.DataFrame:
    """Mean seconds of one cell of each kind (base, sft, rl) and what they went into; indexed by kind.

    cells (finished ones); one column per part (pretraining, curation, sft, rl, sampling, grading, generalization_loss,
    rest), in wall seconds on one core; wall; cpu: CPU seconds of the cell's process plus the wall seconds in which its
    grading process worked for it, so at least what both used. NaN where a record lacks it.
    """
    cells = records.cells
    parts = [name for name in cells if name.startswith("seconds_") and name != "seconds_total"]
    table = cells.groupby("kind", sort=False)[[*parts, "seconds_total"]].mean()
    table.insert(0, "cells", cells.groupby("kind", sort=False).size())
    filled = table[parts].fillna(0.0)
    table["rest"] = table["seconds_total"] - filled.sum(axis=1)
    own = cells["cpu_seconds"].groupby(cells["kind"]).mean() if "cpu_seconds" in cells else math.nan
    table["cpu"] = own + filled.get("seconds_grading", 0.0)
    table = table.rename(columns=lambda name: name.removeprefix("seconds_")).rename(columns={"total": "wall"})
    return table[[name for name in table if name not in ("wall", "cpu")] + ["wall", "cpu"]]


def criteria_table(records: Records) -> pd.DataFrame:
    """Every criterion for every family (and scenario): criterion, family, asked, measured, verdict, clear.

    verdict: met, not met, or not measured. clear: whether the criterion's bound lies outside the 95 % interval of what
    was measured (None where there is no interval, or nothing measured).
    """
    rows = [*_base_criteria(records), *_spread_criteria(records)]
    for family in records.candidates["family"].unique():
        rows += _overtraining_criterion(records, family)
        rows += _length_criteria(records, family)
    costs = cost_table(records)["cpu"]
    total = costs.get("sft", math.nan) + costs.get("rl", math.nan)
    text = f"{costs.get('sft', math.nan):.0f} s for SFT and measuring + {costs.get('rl', math.nan):.0f} s for an RL run"
    rows.append(_row("cost", "", text, total, total < CELL_SECONDS))
    return pd.DataFrame(rows)


def describe(criteria: pd.DataFrame, names: Sequence[str] = ()) -> str:
    """Markdown bullets of a `criteria_table`: those named, or all. The words are computed from the records."""
    lines = []
    for name, rows in criteria[criteria["criterion"].isin(list(names) or list(CRITERIA))].groupby(
        "criterion", sort=False
    ):
        lines.append(f"- *{CRITERIA[name]}*")
        for row in rows.itertuples():
            sure = {True: "", False: ", but the bound lies within its 95 % interval", None: ""}[row.clear]
            lines.append(f"  - {row.family or 'all families'}: {row.measured}: **{row.verdict}**{sure}")
    return "\n".join(lines)


def _row(
    criterion: str, family: str, text: str, value: float, met: bool, clear: bool | None = None
) -> dict[str, object]:
    measured = not math.isnan(value)
    verdict = ("met" if met else "not met") if measured else "not measured"
    return {
        "criterion": criterion,
        "family": family,
        "asked": CRITERIA[criterion],
        "measured": text if measured else "not enough records yet",
        "verdict": verdict,
        "clear": clear if measured else None,
    }


def _base_criteria(records: Records) -> list[dict[str, object]]:
    rows = []
    for b in base_table(records).itertuples():
        low, high = BASE_PASS1
        width, width_k = 1.96 * b.pass1_se, 1.96 * b.pass_k_se
        text = f"Pass@1 {100 * b.pass1:.1f} % ± {100 * b.pass1_se:.1f} % (standard error, n = {b.n:.0f})"
        clear = min(abs(b.pass1 - low), abs(b.pass1 - high)) > width
        rows.append(_row("base", b.family, text, b.pass1, low <= b.pass1 <= high, clear))
        text = f"Pass@{b.k} {100 * b.pass_k:.1f} % ± {100 * b.pass_k_se:.1f} %"
        rows.append(
            _row("reach", b.family, text, b.pass_k, b.pass_k > BASE_PASS_K, abs(b.pass_k - BASE_PASS_K) > width_k)
        )
        worst = np.nanmax([b.chance, b.chance_informed])
        text = (
            f"Pass@{b.k} {100 * b.chance:.2f} % with all answers equally likely, {100 * b.chance_informed:.2f} % "
            "guessing as they occur"
        )
        rows.append(_row("chance", b.family, text, b.chance, worst < CHANCE))
        error = "" if math.isnan(b.lift_last_se) else f" ± {100 * b.lift_last_se:.1f}"
        text = (
            f"{100 * b.pass1:.1f} % -> {100 * b.outcome_last:.1f} % at the last checkpoint, mean of {b.n_runs} run(s) "
            f"({100 * b.lift_last:+.1f}{error} points); best checkpoint of all {100 * b.outcome:.1f} %"
        )
        clear = None if math.isnan(b.lift_last_se) else abs(b.lift_last - LIFT) > 1.96 * b.lift_last_se
        rows.append(_row("lift", b.family, text, b.lift_last, b.lift_last >= LIFT, clear))
        shift = b.after_k_after - b.before_k_after
        text = (
            f"{100 * b.possible_share:.0f} % of the lift on the {100 * b.possible:.0f} % of problems solved at least "
            f"once in {b.n:.0f} answers; Pass@{b.k_after} {100 * b.before_k_after:.1f} % -> "
            f"{100 * b.after_k_after:.1f} %"
        )
        mostly = b.possible_share > POSSIBLE_SHARE and abs(shift) < b.lift_last
        rows.append(_row("sharpening", b.family, text, b.possible_share, mostly))
    return rows


def _spread_criteria(records: Records) -> list[dict[str, object]]:
    rows = []
    for s in spread_table(records).itertuples():
        enough = s.candidates >= MIN_CANDIDATES
        text = (
            f"ratio {s.ratio:.1f} [{s.ratio_low:.1f}, {s.ratio_high:.1f}] ({100 * s.between:.1f} points between "
            f"{s.candidates} of {s.planned} candidates, {100 * s.within:.1f} between runs; sampling alone would give "
            f"{100 * s.sampling_se:.1f})"
        )
        clear = s.ratio_low > SPREAD_RATIO or s.ratio_high < SPREAD_RATIO
        row = _row("spread", s.family, text, s.ratio if enough else math.nan, s.ratio >= SPREAD_RATIO, clear)
        if not enough:
            row["measured"] = f"{s.candidates} of {s.planned} candidates have an outcome, {MIN_CANDIDATES} are needed"
        level = "all candidates" if s.scenario == "all" else f"{s.scenario} level"
        rows.append({**row, "family": f"{s.family}, {level}, {s.outcome} checkpoint"})
    return rows


def _overtraining_criterion(records: Records, family: str) -> list[dict[str, object]]:
    table = overtraining_table(records, family)
    steps = int(table["pass1_change"].notna().sum())
    found = table[table["signature"]]
    certain = any(row.beyond.count(",") == 2 for row in found.itertuples())
    names = "; ".join(
        f"{r.candidate} (beyond {BEYOND:g} standard errors: {r.beyond or 'none'})" for r in found.itertuples()
    )
    text = f"{len(found)} of {steps} steps to more epochs or a higher rate" + (f": {names}" if names else "")
    measured = float(steps) if steps else math.nan
    return [_row("overtraining", family, text, measured, len(found) > 0, certain if len(found) else None)]


def _length_criteria(records: Records, family: str) -> list[dict[str, object]]:
    try:
        contrast = length_contrast(length_table(records, family))
    except ParameterError:  # benchmarks without lengths
        contrast = length_contrast(pd.DataFrame(columns=["long_before", "family", "budget"]))
    rows = []
    for name, column in (("long traces teach", "before"), ("long traces pay", "after")):
        known = contrast.dropna(subset=[column])
        mean = known[column].mean() if len(known) else math.nan
        error = math.sqrt((known[f"{column}_se"] ** 2).sum()) / len(known) if len(known) else math.nan
        text = f"{100 * mean:+.1f} ± {100 * error:.1f} points of Pass@1, mean over budgets ("
        text += ", ".join(f"{r['budget']} {100 * r[column]:+.1f}" for _, r in known.iterrows()) + ")"
        rows.append(_row(name, family, text, mean, mean > 0, abs(mean) > 1.96 * error))
    ratio = contrast["tokens_ratio"].mean() if len(contrast) else math.nan
    rows.append(_row("long traces cost", family, f"{ratio:.1f} times as many tokens an example", ratio, ratio > 1))
    return rows


def show(table: pd.DataFrame, index: Sequence[str] = ("family",)) -> pd.DataFrame:
    """A table of this room to be read: scores in per cent, other numbers short, `index` as the rows' names."""
    shown = {}
    for name in table:
        column = table[name]
        score = name in PER_CENT or name.removesuffix("_se").removesuffix("_change") in PER_CENT
        if score and pd.api.types.is_numeric_dtype(column):
            shown[f"{name} %"] = (100 * column.astype(float)).round(2 if "chance" in name else 1)
        elif pd.api.types.is_float_dtype(column):
            shown[name] = [f"{value:.4g}" for value in column]
        else:
            shown[name] = column
    return pd.DataFrame(shown, index=table.index).set_index([name for name in index if name in table])
