"""Is a micro world worth measuring? Tables that say where its scores lie and how its outcomes spread.

The paper asks which of many candidates ends best (Sec. 4); a grid whose candidates all end alike answers nothing.
`criteria` judges these tables; notebooks/design_microlab.ipynb shows both for the pilot on which `mini` was fixed.

    records = load_records("results/mini-pilot")
    spread_table(records)                          # outcomes between candidates against noise between RL runs

Scores and changes of scores are shares (0.05 is five points). Records may be partial: missing values are NaN.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.analysis.candidates import candidate_frame, in_scenario
from quagmire_utils.core.records import CANDIDATE, Records
from quagmire_utils.evaluation.pass_at_k import pass_at_k
from quagmire_utils.evaluation.pass_at_k.averages import checkpoint_scores
from quagmire_utils.training.microlab import MICRO_BENCHMARKS

MIN_CANDIDATES = 4  # fewer are too few for a bootstrap over candidates
N_RESAMPLES = 4000
CONFIDENCE = 0.95
CEILING, FLOOR, SATURATED = 0.90, 0.05, 0.95  # of scores; see criteria.yaml
BEYOND = 2.0  # standard errors that a change must exceed to count as more than noise
PROBLEM = ["benchmark", "problem"]

Array = NDArray[np.float64]


# --- outcomes and predictors: where they lie --------------------------------------------------------------------------


def level_table(records: Records) -> pd.DataFrame:
    """Return where the scores of each family's candidates lie: one row per family; the base is not a candidate.

    candidates, mean               with an RL run; their mean outcome (last checkpoint, mean over runs)
    ceiling, ceiling_benchmark     largest share of them that ends above CEILING on one benchmark, and which
    floor, floor_benchmark         the same for ending within FLOOR of what guessing earns there
    k, measured                    of Pass@k before RL, and the candidates that have it
    saturated, highest, sd         share of them with Pass@k of SATURATED or more; the highest; standard deviation
    guessed, guessed_benchmark     Pass@k of answers against other problems' golds, mean over candidates, on the
                                   benchmark where it is highest; NaN where chance was not counted
    """
    k, counts = profile_k(records), records.counts
    sft = records.candidates.loc[records.candidates["selection"] != "none", CANDIDATE]
    counts = counts.merge(sft, on=CANDIDATE)
    chance = counts["chance_correct"] if "chance_correct" in counts else pd.Series(math.nan, counts.index)
    counts = counts.assign(chance=chance, chance_share=chance / counts["n"], share=counts["correct"] / counts["n"])
    frame = candidate_frame(records, k=k)
    frame, rows = frame[frame["selection"] != "none"], []
    for family, mine in frame.groupby("family", sort=False):
        own = counts[counts["family"] == family]
        ends = _last(own[own["stage"] == "rl"])
        by_benchmark = ends.groupby(["benchmark", "candidate"])[["share", "chance_share"]].mean()
        at = {"ceiling": by_benchmark["share"] > CEILING}
        at["floor"] = by_benchmark["share"] < by_benchmark["chance_share"].fillna(0) + FLOOR
        before = own[(own["stage"] == "sft") & own["chance"].notna()]
        guessed = pd.Series(pass_at_k(before["n"], before["chance"], k), before.index)
        shares = {name: there.groupby(level="benchmark").mean() for name, there in at.items()}
        shares["guessed"] = guessed.groupby([before["candidate"], before["benchmark"]]).mean().groupby(level=1).mean()
        row = {"family": family, "candidates": by_benchmark.index.get_level_values(1).nunique(), "k": k}
        for name, share in shares.items():
            worst = share.idxmax() if share.notna().any() else ""
            row |= {name: share.max() if worst else math.nan, f"{name}_benchmark": worst}
        large = mine["pass_k"].dropna()
        row |= {"mean": mine["outcome_last"].mean(), "measured": len(large), "sd": large.std()}
        row |= {"saturated": (large >= SATURATED).mean() if len(large) else math.nan, "highest": large.max()}
        rows.append(row)
    return pd.DataFrame(rows)


def plateau_table(records: Records) -> pd.DataFrame:
    """Return what the end of RL adds: one row per family, over all RL runs, those of the base included.

    runs, checkpoints, start, end    runs; checkpoints of a run; `end`: its last step; `start`: the last checkpoint
                                     before its last quarter
    added, added_se                  Pass@1 at `end` minus Pass@1 at `start`, mean over runs, and its standard error
    """
    after, rows = records.counts[records.counts["stage"] == "rl"], []
    scores = checkpoint_scores(after, [1]) if len(after) else after
    for family in records.candidates["family"].unique():
        mine = scores[scores["family"] == family]
        steps = sorted(mine["checkpoint"].unique())
        early = [step for step in steps if step <= 0.75 * steps[-1]]
        row = {
            "family": family,
            "checkpoints": len(steps) or math.nan,
            "runs": 0,
            "added": math.nan,
            "added_se": math.nan,
        }
        if early:
            wide = mine.pivot_table("pass@1", ["candidate", "rl_run"], "checkpoint")
            added = (wide[steps[-1]] - wide[early[-1]]).dropna()
            row |= {"runs": len(added), "start": early[-1], "end": steps[-1]}
            row |= {"added": added.mean(), "added_se": added.sem()}
        rows.append(row)
    return pd.DataFrame(rows)


def heterogeneity_table(records: Records) -> pd.DataFrame:
    """Return how much the problems of a benchmark differ before RL: one row per family, medians over its measurements.

    measurements    a model on a benchmark, where Pass@1 lies between 2 % and 98 %
    correlation     intraclass correlation of two answers to one problem: the variance of success rates between
                    problems, without the part that sampling adds, over that of one answer. 0 if all problems are
                    equally hard, 1 if each is always or never solved
    unsolved        share of problems without any right answer
    """
    before, rows = records.counts[records.counts["stage"] != "rl"], []
    for (family, _, _), part in before.groupby(["family", "candidate", "benchmark"], sort=False):
        share, n = part["correct"] / part["n"], part["n"]
        mean = share.mean()
        between = share.var() - (share * (1 - share) / (n - 1)).mean()
        if 0.02 < mean < 0.98 and len(part) > 1:
            rows.append((family, between / (mean * (1 - mean)), (part["correct"] == 0).mean()))
    table = pd.DataFrame(rows, columns=["family", "correlation", "unsolved"]).groupby("family")
    medians = table.median().assign(measurements=table.size())
    return medians.reindex(records.candidates["family"].unique()).rename_axis("family").reset_index()


def rl_set_table(records: Records) -> pd.DataFrame:
    """Return the share of the benchmarks whose number of terms the family's RL set has, and those it lacks."""
    rows = []
    for family in records.manifest["configuration"].get("families", []):
        terms = {name: MICRO_BENCHMARKS[name].terms for name in records.counts["benchmark"].unique()}
        lacks = [name for name, count in terms.items() if count not in family["rl_terms"]]
        rows.append({"family": family["name"], "covered": 1 - len(lacks) / len(terms), "lacks": ", ".join(lacks)})
    return pd.DataFrame(rows)


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
