"""Criteria of a micro world worth measuring, and whether the records of a profile meet them.

criteria_table(load_records("results/mini-pilot"))     # each criterion, what was measured, met or not
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from quagmire_utils.analysis.design import (
    MIN_CANDIDATES,
    base_table,
    cost_table,
    length_contrast,
    length_table,
    overtraining_table,
    spread_table,
)
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import Records

BASE_PASS1 = (0.05, 0.30)
BASE_PASS_K = 0.40
CHANCE = 0.05
LIFT = 0.10
POSSIBLE_SHARE = 0.5
SPREAD_RATIO = 3.0
CELL_SECONDS = 180.0  # CPU seconds of a candidate and an RL run of it
CRITERIA = {
    "base": "base Pass@1 between 5 % and 30 %",
    "reach": "base Pass@large k above 40 %",
    "chance": "chance Pass@large k under 5 %",
    "lift": "RL lifts the base's Pass@1 by at least 10 points",
    "sharpening": "over half of that lift is on problems that the base solved at least once, and Pass@large k moves "
    "less than Pass@1",
    "spread": "outcomes spread between candidates at least 3 times as much as between RL runs of one",
    "overtraining": "some candidate's Pass@1 still rises while Pass@large k falls and the generalization loss rises",
    "long traces teach": "after SFT on as many tokens, the longest examples solve more of the long problems",
    "long traces pay": "and still do after RL",
    "long traces cost": "and an example of them costs more tokens",
    "cost": "a candidate and an RL run of it cost under 180 CPU seconds",
}
MEASURED = {
    "base": "Pass@1 {pass1:.1%} ± {pass1_se:.1%} (standard error, n = {n:.0f})",
    "reach": "Pass@{k} {pass_k:.1%} ± {pass_k_se:.1%}",
    "chance": "Pass@{k} {chance:.2%} with all answers equally likely, {chance_informed:.2%} guessing as they occur",
    "lift": "{pass1:.1%} to {outcome_last:.1%} ± {lift_last_se:.1%} at the last checkpoint, mean of {n_runs} run(s); "
    "best checkpoint {outcome:.1%}",
    "sharpening": "{possible_share:.0%} of the lift on the {possible:.0%} of problems solved at least once in {n:.0f} "
    "answers; Pass@{k_after} {before_k_after:.1%} to {after_k_after:.1%}",
    "spread": "ratio {ratio:.1f} [{ratio_low:.1f}, {ratio_high:.1f}]: {between:.1%} between {candidates} of {planned} "
    "candidates, {within:.1%} between runs; sampling alone {sampling_se:.1%}",
    "overtraining": "{found} of {steps} steps to more epochs or a higher rate {names}",
    "long traces teach": "{mean:+.1%} ± {error:.1%} Pass@1, mean over {budgets} budget(s)",
    "long traces pay": "{mean:+.1%} ± {error:.1%} Pass@1, mean over {budgets} budget(s)",
    "long traces cost": "{ratio:.1f} times as many tokens per example",
    "cost": "{sft:.0f} s for SFT and measuring, {rl:.0f} s for an RL run",
}


def criteria_table(records: Records) -> pd.DataFrame:
    """Return every criterion for every family and scenario: criterion, family, asked, measured, verdict, clear.

    verdict: met, not met, or not measured. clear: whether the bound lies outside the 95 % interval of the measured
    value; None without an interval.
    """
    rows = []
    for base in base_table(records).to_dict("records"):
        rows += _base_rows(base)
    rows += [_spread_row(row) for row in spread_table(records).to_dict("records")]
    for family in records.candidates["family"].unique():
        rows += [_overtraining_row(records, family), *_length_rows(records, family)]
    costs = {"sft": math.nan, "rl": math.nan} | cost_table(records)["cpu"].to_dict()
    total = costs["sft"] + costs["rl"]
    return pd.DataFrame([*rows, _row("cost", "", costs, total, total < CELL_SECONDS)])


def _row(
    criterion: str, family: str, facts: Mapping[str, object], value: float, met: bool, clear: bool | None = None
) -> dict[str, object]:
    """Return a row of `criteria_table`; a value of NaN has not been measured."""
    row = {"criterion": criterion, "family": family, "asked": CRITERIA[criterion]}
    if math.isnan(value):
        return row | {"measured": "not enough records yet", "verdict": "not measured", "clear": None}
    measured = MEASURED[criterion].format(**facts).replace(" ± nan%", "").strip()
    return row | {"measured": measured, "verdict": "met" if met else "not met", "clear": clear}


def _base_rows(base: dict[str, float]) -> list[dict[str, object]]:
    def clear(value: float, error: float, *bounds: float) -> bool | None:
        return None if math.isnan(error) else min(abs(value - bound) for bound in bounds) > 1.96 * error

    family, pass1, pass_k, lift = str(base["family"]), base["pass1"], base["pass_k"], base["lift_last"]
    chance = np.nanmax([base["chance"], base["chance_informed"]])
    shift = base["after_k_after"] - base["before_k_after"]
    possible = base["possible_share"]
    sharpened = possible > POSSIBLE_SHARE and abs(shift) < lift
    low, high = BASE_PASS1
    return [
        _row("base", family, base, pass1, low <= pass1 <= high, clear(pass1, base["pass1_se"], low, high)),
        _row("reach", family, base, pass_k, pass_k > BASE_PASS_K, clear(pass_k, base["pass_k_se"], BASE_PASS_K)),
        _row("chance", family, base, base["chance"], chance < CHANCE),
        _row("lift", family, base, lift, lift >= LIFT, clear(lift, base["lift_last_se"], LIFT)),
        _row("sharpening", family, base, possible, sharpened),
    ]


def _spread_row(spread: dict[str, float]) -> dict[str, object]:
    level = "all candidates" if spread["scenario"] == "all" else f"{spread['scenario']} level"
    name = f"{spread['family']}, {level}, {spread['outcome']} checkpoint"
    ratio = spread["ratio"] if spread["candidates"] >= MIN_CANDIDATES else math.nan
    clear = spread["ratio_low"] > SPREAD_RATIO or spread["ratio_high"] < SPREAD_RATIO
    return _row("spread", name, spread, ratio, ratio >= SPREAD_RATIO, clear)


def _overtraining_row(records: Records, family: str) -> dict[str, object]:
    table = overtraining_table(records, family)
    steps, found = int(table["pass1_change"].notna().sum()), table[table["signature"]]
    names = "; ".join(f"{row.candidate} (clear: {row.beyond or 'none'})" for row in found.itertuples())
    clear = any(row.beyond.count(",") == 2 for row in found.itertuples()) if len(found) else None
    facts = {"found": len(found), "steps": steps, "names": names}
    return _row("overtraining", family, facts, float(steps) if steps else math.nan, len(found) > 0, clear)


def _length_rows(records: Records, family: str) -> list[dict[str, object]]:
    rows, contrast = [], pd.DataFrame(columns=["before", "before_se", "after", "after_se", "tokens_ratio"], dtype=float)
    with contextlib.suppress(ParameterError):  # benchmarks without lengths
        contrast = length_contrast(length_table(records, family))
    for name, column in (("long traces teach", "before"), ("long traces pay", "after")):
        known = contrast.dropna(subset=[column])
        mean, count = known[column].astype(float).mean(), len(known)
        error = math.sqrt((known[f"{column}_se"].astype(float) ** 2).sum()) / count if count else math.nan
        facts = {"mean": mean, "error": error, "budgets": count}
        rows.append(_row(name, family, facts, mean, mean > 0, abs(mean) > 1.96 * error))
    ratio = float(contrast["tokens_ratio"].astype(float).mean())
    return [*rows, _row("long traces cost", family, {"ratio": ratio}, ratio, ratio > 1)]
