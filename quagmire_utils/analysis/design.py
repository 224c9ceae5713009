"""Is a micro world worth measuring? Tables that say what its base can do and how its outcomes spread.

The paper asks which of many candidates ends best (Sec. 4); a grid whose candidates all end alike answers nothing.
`criteria` judges these tables; notebooks/design_microlab.ipynb shows both for the pilot on which `mini` was fixed.

    records = load_records("results/mini-pilot")
    spread_table(records)                          # outcomes between candidates against noise between RL runs

Scores and changes of scores are shares (0.05 is five points). Records may be partial: missing values are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.analysis.candidates import candidate_frame, in_scenario
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import CANDIDATE, CHECKPOINT, Records
from quagmire_utils.evaluation.pass_at_k import pass_at_k
from quagmire_utils.evaluation.pass_at_k.averages import checkpoint_scores
from quagmire_utils.training.microlab import DIGITS, MICRO_BENCHMARKS

MIN_CANDIDATES = 4  # fewer are too few for a bootstrap over candidates
N_RESAMPLES = 4000
CONFIDENCE = 0.95
BEYOND = 2.0  # standard errors that a change must exceed to count as more than noise
PROBLEM = ["benchmark", "problem"]

Array = NDArray[np.float64]


# --- the base ---------------------------------------------------------------------------------------------------------


def base_table(records: Records) -> pd.DataFrame:
    """Return what each family's base can do, and what RL straight from it adds: one row per family.

    Columns of the candidate frame (n is n_samples), and
      chance                           Pass@k of guessing, all answers equally likely
      lift, lift_last, lift_last_se    outcome and outcome_last minus pass1; lift_last is judged, as the best of many
                                       is biased upward
      k_after                          largest power of two within the answers to a problem after RL
      before_k_after, after_k_after    Pass@k_after of the base, and after RL (last checkpoint, mean over runs)
      possible, possible_share         share of problems that the base solved at least once, and of the summed Pass@1
                                       lift on them; NaN without a lift
    """
    counts, k = records.counts, profile_k(records)
    digits = int(records.manifest["configuration"].get("digits", DIGITS[0]))
    after = counts[counts["stage"] == "rl"]
    k_after = 1 << (int(after["n"].min()).bit_length() - 1) if len(after) else 1
    scores = checkpoint_scores(counts, list(dict.fromkeys([1, k_after])))
    frame = candidate_frame(records, k=k)
    frame = frame[frame["selection"] == "none"].reset_index(drop=True)
    table = frame[["family", "stands_for", "k", "pass1", "pass1_se", "pass_k", "pass_k_se", "n_runs"]].copy()
    table["n"], table["k_after"] = frame["n_samples"], k_after
    table["chance"] = -math.expm1(k * math.log1p(-(10.0**-digits)))
    table["outcome"], table["outcome_last"] = frame["outcome"], frame["outcome_last"]
    table["lift"], table["lift_last"] = frame["outcome"] - frame["pass1"], frame["outcome_last"] - frame["pass1"]
    noise = (frame["outcome_last_std"] / np.sqrt(frame["n_runs"])).where(frame["n_runs"] > 1)
    table["lift_last_se"] = np.hypot(frame["pass1_sampling_se"], noise)
    table[["before_k_after", "after_k_after", "possible", "possible_share"]] = math.nan
    for i, (family, name) in enumerate(frame[CANDIDATE].itertuples(index=False, name=None)):
        mine = scores[(scores["family"] == family) & (scores["candidate"] == name)]
        for when, rows in (("before", mine[mine["stage"] != "rl"]), ("after", _last(mine[mine["stage"] == "rl"]))):
            table.loc[i, f"{when}_k_after"] = rows[f"pass@{k_after}"].mean()
        own = counts[(counts["family"] == family) & (counts["candidate"] == name)]
        table.loc[i, "possible"], table.loc[i, "possible_share"] = _lift_on_possible(own)
    return table


def _lift_on_possible(counts: pd.DataFrame) -> tuple[float, float]:
    """Return the share of problems solved before RL, and the share of the lift (last checkpoints) on them."""
    before, last = counts[counts["stage"] != "rl"].set_index(PROBLEM), _last(counts[counts["stage"] == "rl"])
    possible = before["correct"] > 0
    if before.empty or last.empty:
        return float(possible.mean()) if len(before) else math.nan, math.nan
    after = (last["correct"] / last["n"]).groupby([last[key] for key in PROBLEM]).mean()
    lift = after.reindex(before.index) - before["correct"] / before["n"]
    lift = lift / lift.groupby(level="benchmark").transform("size")  # every benchmark weighs the same
    total = lift.sum()
    return float(possible.mean()), float(lift[possible].sum() / total) if total > 0 else math.nan


# --- spread of outcomes -----------------------------------------------------------------------------------------------


def run_outcomes(records: Records) -> pd.DataFrame:
    """Return one row per finished RL run of a candidate or the base.

    The columns of candidates.parquet, then rl_run; best, best_sampling_se: the run's best checkpoint (biased upward by
    some of the sampling error); last, last_sampling_se: its last one.
    """
    after, run = records.counts[records.counts["stage"] == "rl"], [*CANDIDATE, "rl_run"]
    names = [*records.candidates.columns, "rl_run", "best", "best_sampling_se", "last", "last_sampling_se"]
    if after.empty:
        return pd.DataFrame(columns=names)
    scores = checkpoint_scores(after, [1])
    best, last = scores.loc[scores.groupby(run, sort=False)["pass@1"].idxmax()], _last(scores)
    best = best.rename(columns={"pass@1": "best", "sampling_se": "best_sampling_se"})
    last = last.rename(columns={"pass@1": "last", "sampling_se": "last_sampling_se"})
    return records.candidates.merge(best, on=CANDIDATE).merge(last[[*run, "last", "last_sampling_se"]], on=run)[names]


def spread_table(records: Records) -> pd.DataFrame:
    """Compare the spread of outcomes between candidates with that between RL runs of one candidate.

    One row per family, scenario ("all": every candidate of a family that has several) and outcome ("best": a run's best
    checkpoint, as in the paper; or "last"). The base is not a candidate.
      planned, candidates, repeated, runs    candidates of the profile, with a run, with several; their finished runs
      mean, low_outcome, high_outcome        of the candidates' mean run outcomes
      between, within                        standard deviation of those means; between runs of one candidate, pooled
      sampling_se                            the part of `within` that more answers would remove
      ratio, ratio_low, ratio_high           between / within, with its bootstrap interval over candidates

    A resample draws candidates with all their runs. With normal outcomes and four runs the interval held the truth in
    85 % of simulations of 7 candidates, 90 % of 12 and 16. NaN where there are too few candidates or runs.
    """
    runs, rows = run_outcomes(records), []
    candidates = records.candidates[records.candidates["selection"] != "none"]
    for (family, stands_for), mine in candidates.groupby(["family", "stands_for"], sort=False):
        different = list(dict.fromkeys("+".join(mine["scenario"]).split("+")))
        for scenario in [*different, "all"] if len(different) > 1 else different:
            planned = mine if scenario == "all" else mine[in_scenario(mine["scenario"], scenario)]
            part = runs[(runs["family"] == family) & runs["candidate"].isin(planned["candidate"])]
            for outcome in ("best", "last"):
                groups = part.groupby("candidate", sort=False)[outcome]
                means, sizes = groups.mean().to_numpy(np.float64), groups.size().to_numpy(np.float64)
                deviations = (part[outcome] - groups.transform("mean")).astype(float)
                squares = (deviations**2).groupby(part["candidate"], sort=False).sum().to_numpy(np.float64)
                noise = part[f"{outcome}_sampling_se"].astype(float)
                row = {"family": family, "stands_for": stands_for, "scenario": scenario, "outcome": outcome}
                row |= {"planned": len(planned), "candidates": len(means)}
                row |= {"repeated": int((sizes > 1).sum()), "runs": len(part)}
                for name, number in (("mean", np.mean), ("low_outcome", np.min), ("high_outcome", np.max)):
                    row[name] = number(means) if len(means) else math.nan
                row |= spread(means, squares, sizes - 1)
                rows.append(row | {"sampling_se": math.sqrt((noise**2).mean()) if len(noise) else math.nan})
    return pd.DataFrame(rows)


def spread(
    means: Array, squares: Array, freedom: Array, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """Return the spread between and within candidates and their ratio with its interval.

    means: outcome of each candidate; squares: sums of squared deviations of its runs, with `freedom` degrees each.
    """
    count = len(means)
    found = dict.fromkeys(("between", "within", "ratio", "ratio_low", "ratio_high"), math.nan)
    if count < 2:
        return found | {"within": math.sqrt(squares.sum() / freedom.sum()) if freedom.sum() else math.nan}
    drawn = np.random.default_rng(seed).integers(count, size=(n_resamples, count))
    drawn = np.vstack([np.arange(count), drawn])
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may hold no candidate with two runs
        between = means[drawn].std(axis=1, ddof=1)
        within = np.sqrt(squares[drawn].sum(axis=1) / freedom[drawn].sum(axis=1))
        ratio = between / within
    found |= {"between": float(between[0]), "within": float(within[0]), "ratio": float(ratio[0])}
    replicates = ratio[1:][~np.isnan(ratio[1:])] * math.sqrt(count / (count - 1))  # theirs is too small on average
    if len(replicates) and count >= MIN_CANDIDATES and not math.isnan(ratio[0]):
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(replicates, [tail, 1 - tail], method="nearest")  # replicates may be infinite
        found |= {"ratio_low": float(low), "ratio_high": float(high)}
    return found


# --- overtraining -----------------------------------------------------------------------------------------------------


def overtraining_table(records: Records, family: str) -> pd.DataFrame:
    """Return random selections of `family`, the same examples repeated more and more: one row per measured candidate.

    Columns of the candidate frame, and
      compared_with     the same examples trained less: at this rate for the next fewer epochs, else at the next lower
                        rate for as many epochs or fewer; None for the least trained
      *_change          of pass1, pass_k and gen_loss against it
      *_change_se       standard errors: of scores paired over problems; of losses as if measured on different traces,
                        which overstates them. None covers noise between SFT runs, as there is one of each candidate.
      signature         of overtraining: Pass@1 rose while Pass@k fell and the loss rose
      beyond            which of these three changes exceed BEYOND standard errors ("" without signature)
    Examples with a single candidate are left out.
    """
    k, shared, rows = profile_k(records), ["source", "n_examples"], []
    expected = {"pass1": 1.0, "pass_k": -1.0, "gen_loss": 1.0}
    frame = candidate_frame(records, k=k)
    frame = frame[(frame["family"] == family) & (frame["selection"] == "random") & frame["pass1"].notna()]
    before = records.counts[(records.counts["family"] == family) & (records.counts["stage"] == "sft")]
    by_candidate = dict(iter(before.groupby("candidate")))
    for _, series in frame.sort_values(["learning_rate", "epochs"]).groupby(shared, sort=True):
        for row in series.to_dict("records") if len(series) > 1 else []:
            same_rate = series[(series["learning_rate"] == row["learning_rate"]) & (series["epochs"] < row["epochs"])]
            slower = series[(series["learning_rate"] < row["learning_rate"]) & (series["epochs"] <= row["epochs"])]
            less = same_rate if len(same_rate) else slower
            row["compared_with"] = None
            if len(less):
                previous = less.sort_values(["learning_rate", "epochs"]).iloc[-1]
                row["compared_with"] = previous["candidate"]
                pair = by_candidate[previous["candidate"]], by_candidate[row["candidate"]]
                for name, size in (("pass1", 1), ("pass_k", k)):
                    row[f"{name}_change"], row[f"{name}_change_se"] = paired_change(*pair, size)
                row["gen_loss_change"] = row["gen_loss"] - previous["gen_loss"]
                row["gen_loss_change_se"] = math.hypot(row["gen_loss_se"], previous["gen_loss_se"])
            rows.append(row)
    changes = [f"{name}_change{end}" for name in expected for end in ("", "_se")]
    columns = ["family", *shared, "learning_rate", "candidate", "epochs", "k", *expected, "outcome", "compared_with"]
    table = pd.DataFrame(rows, columns=[*columns, *changes]).astype(dict.fromkeys(changes, float))
    turned = pd.DataFrame({name: sign * table[f"{name}_change"] for name, sign in expected.items()})
    table["signature"] = (turned > 0).all(axis=1)
    titles = {"pass1": "Pass@1", "pass_k": f"Pass@{k}", "gen_loss": "loss"}
    clear = pd.DataFrame({title: turned[n] > BEYOND * table[f"{n}_change_se"] for n, title in titles.items()})
    table["beyond"] = [
        ", ".join(clear.columns[beyond]) if found else ""
        for found, beyond in zip(table["signature"], clear.to_numpy(bool), strict=True)
    ]
    return table


def paired_change(before: pd.DataFrame, after: pd.DataFrame, k: int) -> tuple[float, float]:
    """Return macro-averaged Pass@k of `after` minus `before` on the same problems, and its standard error.

    Both: one row per problem (benchmark, problem, n, correct). The error is that of the mean of paired differences.
    """
    pair = before.merge(after, on=PROBLEM, suffixes=("_before", "_after"), validate="one_to_one")
    scores = [pass_at_k(pair[f"n_{when}"], pair[f"correct_{when}"], k) for when in ("before", "after")]
    groups = pd.Series(scores[1] - scores[0]).groupby(pair["benchmark"])
    return float(groups.mean().mean()), float(math.sqrt((groups.var() / groups.size()).sum()) / groups.ngroups)


# --- length of examples -----------------------------------------------------------------------------------------------


def split_by_length(benchmarks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the micro benchmarks with fewer, and with more, terms than their median: (short, long)."""
    unknown = [name for name in benchmarks if name not in MICRO_BENCHMARKS]
    if unknown:
        raise ParameterError("benchmarks", unknown[0], f"among {', '.join(MICRO_BENCHMARKS)}")
    terms = pd.Series({name: MICRO_BENCHMARKS[name].terms for name in benchmarks})
    return terms.index[terms < terms.median()].tolist(), terms.index[terms > terms.median()].tolist()


def length_table(records: Records, family: str) -> pd.DataFrame:
    """Return what short and long examples teach and cost: one row per instance-level candidate, by budget.

    short_before and long_before are Pass@1 after SFT on the benchmarks with fewer, and with more, terms than the median
    (`split_by_length`); short_after and long_after the same after RL: last checkpoint, mean over runs. Standard errors
    are of sampling alone; after RL of the spread between runs, where there are several. tokens_per_example includes the
    prompt. Ordered by budget (rising), then selection, then tokens.
    """
    counts = records.counts[records.counts["family"] == family]
    sides = dict(zip(("short", "long"), split_by_length(list(records.counts["benchmark"].unique())), strict=True))
    candidates = records.candidates[records.candidates["family"] == family]
    table = candidates[in_scenario(candidates["scenario"], "instance") & (candidates["selection"] != "none")].copy()
    table["tokens_per_example"] = table["sft_tokens"].astype(float) / (table["n_examples"] * table["epochs"])
    for side, names in sides.items():
        part = counts[counts["benchmark"].isin(names)]
        none = pd.DataFrame(columns=[*CHECKPOINT, "pass@1", "sampling_se"])
        scores = checkpoint_scores(part, [1]) if len(part) else none
        before = scores[scores["stage"] == "sft"].set_index("candidate")
        last = _last(scores[scores["stage"] == "rl"]).groupby("candidate")
        runs, score, noise = last.size(), last["pass@1"], last["sampling_se"]
        values = {f"{side}_before": before["pass@1"], f"{side}_after": score.mean()}
        if side == "long":
            values["long_before_se"] = before["sampling_se"]
            values["long_after_se"] = (score.std() / np.sqrt(runs)).fillna(noise.mean())
        for name, found in values.items():
            table[name] = table["candidate"].map(found).astype(float)
        table["n_runs"] = table["candidate"].map(runs).fillna(0).astype(int)
    budgets = records.manifest["configuration"].get("budgets", {})
    table["place"] = table["budget"].map(budgets)  # most tokens
    columns = ["family", "budget", "selection", "candidate", "n_examples", "epochs", "sft_tokens", "tokens_per_example"]
    columns += ["short_before", "long_before", "long_before_se", "short_after", "long_after", "long_after_se", "n_runs"]
    return table.sort_values(["place", "selection", "sft_tokens"], kind="stable")[columns].reset_index(drop=True)


def length_contrast(table: pd.DataFrame) -> pd.DataFrame:
    """Compare longest with shortest examples within each budget of a `length_table`: one row per budget with both.

    shortest, longest: candidates measured; before, after: longest minus shortest in mean Pass@1 on the long benchmarks
    after SFT and after RL; tokens_ratio: tokens of an example, longest over shortest.
    """
    rows, columns = [], ["family", "budget", "shortest", "longest", "before", "before_se", "after", "after_se"]
    measured = table[table["long_before"].notna()]
    for (family, budget), part in measured.groupby(["family", "budget"], sort=False):
        sides = [part[part["selection"] == name] for name in ("shortest", "longest")]
        if any(side.empty for side in sides):
            continue
        row = {"family": family, "budget": budget, "shortest": len(sides[0]), "longest": len(sides[1])}
        for when in ("before", "after"):
            known = [side.dropna(subset=[f"long_{when}"]) for side in sides]
            means = [side[f"long_{when}"].mean() for side in known]
            errors = [np.sqrt((s[f"long_{when}_se"] ** 2).sum()) / len(s) if len(s) else math.nan for s in known]
            row |= {when: means[1] - means[0], f"{when}_se": math.hypot(*errors)}
        tokens = [side["tokens_per_example"].mean() for side in sides]
        rows.append(row | {"tokens_ratio": tokens[1] / tokens[0]})
    return pd.DataFrame(rows, columns=[*columns, "tokens_ratio"])


# --- cost and what the tables share -----------------------------------------------------------------------------------


def cost_table(records: Records) -> pd.DataFrame:
    """Return the mean seconds of one cell of each kind (base, sft, rl) by what they were spent on; indexed by kind.

    cells (finished ones); one column per part (sft, rl, sampling, grading, ..., rest), in wall seconds on one core;
    wall; cpu: CPU seconds of the cell's process plus the wall seconds of its grading process, so at least what both
    used. NaN where a record lacks it.
    """
    cells = records.cells
    parts = [name for name in cells if name.startswith("seconds_") and name != "seconds_total"]
    groups = cells.groupby("kind", sort=False)
    table = groups[[*parts, "seconds_total"]].mean()
    table.insert(0, "cells", groups.size())
    filled = table[parts].fillna(0.0)
    table["rest"] = table["seconds_total"] - filled.sum(axis=1)
    table["wall"] = table.pop("seconds_total")
    own = groups["cpu_seconds"].mean() if "cpu_seconds" in cells else math.nan
    table["cpu"] = own + filled.get("seconds_grading", 0.0)
    return table.rename(columns=lambda name: name.removeprefix("seconds_"))


def profile_k(records: Records) -> int:
    """Return the profile's k (64 if it names none), or the most that the answers before RL allow."""
    before = records.counts.loc[records.counts["stage"] != "rl", "n"]
    k = int(records.manifest["configuration"].get("evaluation", {}).get("k", 64))
    return min(k, int(before.min())) if len(before) else k


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last checkpoint of each RL run."""
    return rows[rows["checkpoint"] == rows.groupby([*CANDIDATE, "rl_run"])["checkpoint"].transform("max")]
