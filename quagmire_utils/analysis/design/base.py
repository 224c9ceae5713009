"""What a base can do before RL, by chance, and after RL straight from it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from quagmire_utils.analysis.design.shared import last_checkpoints, profile_k
from quagmire_utils.analysis.records import candidate_frame
from quagmire_utils.core.records import Records
from quagmire_utils.evaluation.pass_at_k.averages import checkpoint_scores
from quagmire_utils.training.microlab import DIGITS, MICRO_BENCHMARKS, TaskSpec


def base_table(records: Records) -> pd.DataFrame:
    """What each family's base can do, and what RL straight from it adds: one row per family.

    family, stands_for
      n, k                               answers to a problem before RL; the profile's k
      pass1, pass1_se, pass_k, pass_k_se   of the base; errors hold the choice of problems and the sampling
      chance                             Pass@k of guessing answers, all 10^digits equally likely (closed form)
      chance_informed                    the same for guesses as often 0 as products mod 10 are (`informed_chance`)
      n_runs                             RL runs from the base
      outcome, outcome_last              Pass@1 after RL: best checkpoint of all runs; last checkpoint, mean over runs
      lift, lift_last, lift_last_se      those minus pass1; the best of many is biased upward, so `lift_last` is judged
      k_after                            largest power of two within the answers to a problem after RL
      before_k_after, after_k_after      Pass@k_after of the base, and after RL (last checkpoint, mean over runs)
      possible                           share of problems that the base solved at least once in its n answers
      possible_share                     share of the summed Pass@1 lift that falls on them; NaN without a lift.
                                         A problem solved by luck alone counts as solved, so it errs to the low side.
    """
    k = profile_k(records)
    digits = _digits(records)
    after = records.counts[records.counts["stage"] == "rl"]
    k_after = _power_of_two(int(after["n"].min())) if len(after) else 1
    frame = candidate_frame(records, k=k)
    scores = checkpoint_scores(records.counts, list(dict.fromkeys([1, k_after])))
    specs = [MICRO_BENCHMARKS[name] for name in records.counts["benchmark"].unique() if name in MICRO_BENCHMARKS]
    informed = np.mean([informed_chance(spec, digits, k) for spec in specs]) if specs else math.nan
    rows = []
    for row in frame[frame["selection"] == "none"].itertuples():
        mine = scores[(scores["family"] == row.family) & (scores["candidate"] == row.candidate)]
        before, last = mine[mine["stage"] != "rl"], last_checkpoints(mine[mine["stage"] == "rl"])
        possible, share = _lift_on_possible(records.counts, row.family, row.candidate)
        noise = row.outcome_last_std / math.sqrt(row.n_runs) if row.n_runs > 1 else math.nan
        rows.append(
            {
                "family": row.family,
                "stands_for": row.stands_for,
                "n": row.n_samples,
                "k": k,
                "pass1": row.pass1,
                "pass1_se": row.pass1_se,
                "pass_k": row.pass_k,
                "pass_k_se": row.pass_k_se,
                "chance": -math.expm1(k * math.log1p(-(10.0**-digits))),
                "chance_informed": informed,
                "n_runs": row.n_runs,
                "outcome": row.outcome,
                "outcome_last": row.outcome_last,
                "lift": row.outcome - row.pass1,
                "lift_last": row.outcome_last - row.pass1,
                "lift_last_se": math.hypot(row.pass1_sampling_se, noise),
                "k_after": k_after,
                "before_k_after": before[f"pass@{k_after}"].mean(),
                "after_k_after": last[f"pass@{k_after}"].mean(),
                "possible": possible,
                "possible_share": share,
            }
        )
    return pd.DataFrame(rows)


def informed_chance(spec: TaskSpec, digits: int, k: int) -> float:
    """Pass@k of one who can't calculate but guesses answers as often as they occur, independently, for each problem.

    A digit is uniform after + or -, and after a product that ends the chain 0 more often than not: its distribution
    depends on how many multiplications come last, and the digits of an answer are independent.
    """
    uniform, products = np.full(10, 0.1), np.zeros((10, 10))
    for a in range(10):
        for b in range(10):
            products[a, a * b % 10] += 0.1
    steps, kinds = spec.terms - 1, len(spec.operators)
    multiplies = 1 / kinds if "*" in spec.operators else 0.0
    total, digit = 0.0, uniform
    for trailing in range(steps + 1):
        weight = multiplies**trailing * (1.0 if trailing == steps else 1 - multiplies)
        answers = np.ones(1)
        for _ in range(digits):
            answers = np.outer(answers, digit).ravel()
        total += weight * float(-(answers * np.expm1(k * np.log1p(-answers))).sum())
        digit = digit @ products
    return total


def _lift_on_possible(counts: pd.DataFrame, family: str, candidate: str) -> tuple[float, float]:
    """Share of problems solved at least once before RL, and the share of the lift (last checkpoints) on them."""
    keys = ["benchmark", "problem"]
    mine = counts[(counts["family"] == family) & (counts["candidate"] == candidate)]
    before = mine[mine["stage"] != "rl"].set_index(keys)
    last = last_checkpoints(mine[mine["stage"] == "rl"])
    if before.empty or last.empty:
        return (float((before["correct"] > 0).mean()) if len(before) else math.nan), math.nan
    after = (last["correct"] / last["n"]).groupby([last[key] for key in keys]).mean()
    lift = after.reindex(before.index) - before["correct"] / before["n"]
    lift = lift / lift.groupby(level="benchmark").transform("size")  # every benchmark weighs the same
    possible, total = before["correct"] > 0, lift.sum()
    return float(possible.mean()), float(lift[possible].sum() / total) if total > 0 else math.nan


def _digits(records: Records) -> int:
    return int(records.manifest["configuration"].get("digits", DIGITS[0]))


def _power_of_two(n: int) -> int:
    return 1 << (n.bit_length() - 1)
