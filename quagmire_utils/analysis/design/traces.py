"""What repeating examples, and longer ones, do to a candidate: overtraining, length, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from quagmire_utils.analysis.design.shared import last_checkpoints, profile_k
from quagmire_utils.analysis.records import candidate_frame
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import CHECKPOINT, Records
from quagmire_utils.evaluation.pass_at_k import pass_at_k
from quagmire_utils.evaluation.pass_at_k.averages import checkpoint_scores
from quagmire_utils.training.microlab import MICRO_BENCHMARKS

BEYOND = 2.0  # standard errors that a change must exceed to count as more than noise


def overtraining_table(records: Records, family: str) -> pd.DataFrame:
    """Random selections of `family`, the same examples repeated more and more: one row per candidate measured.

    family, source, n_examples, learning_rate     what a series shares; examples with a single candidate are left out
      candidate, epochs, k, pass1, pass_k, gen_loss, outcome
      compared_with      the same examples trained less: at this rate for the next fewer epochs, or, where there is no
                         such candidate, at the next lower rate for as many epochs or fewer; None for the least trained
      pass1_change, pass_k_change, gen_loss_change     against it; NaN without it
      *_change_se        standard errors: of scores, paired over problems (their choice and the sampling), of losses as
                         if the two had been measured on different traces, which overstates it. There is one SFT run of
                         each candidate: noise between SFT runs is in none of them.
      signature          of overtraining: Pass@1 rose while Pass@k fell and the loss rose
      beyond             which of these three changes exceed `BEYOND` standard errors ("" where signature is False)
    """
    k = profile_k(records)
    keys = ["source", "n_examples"]
    changes = ("pass1", "pass_k", "gen_loss")
    frame = candidate_frame(records, k=k)
    frame = frame[(frame["family"] == family) & (frame["selection"] == "random") & frame["pass1"].notna()]
    before = records.counts[(records.counts["family"] == family) & (records.counts["stage"] == "sft")]
    by_candidate = dict(iter(before.groupby("candidate")))
    rows = []
    for _, series in frame.sort_values(["learning_rate", "epochs"]).groupby(keys, sort=True):
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
    names = [f"{name}_change{end}" for name in changes for end in ("", "_se")]
    columns = [
        "family",
        *keys,
        "learning_rate",
        "candidate",
        "epochs",
        "k",
        *changes,
        "outcome",
        "compared_with",
        *names,
    ]
    table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(names, float))
    expected = {"pass1": 1.0, "pass_k": -1.0, "gen_loss": 1.0}
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
    """Macro-averaged Pass@k of `after` minus that of `before` on the same problems, and its standard error.

    Both: one row per problem (benchmark, problem, n, correct). The error is that of the mean of paired differences.
    """
    keys = ["benchmark", "problem"]
    columns = [*keys, "n", "correct"]
    pair = before[columns].merge(after[columns], on=keys, suffixes=("_before", "_after"), validate="one_to_one")
    change = pass_at_k(pair["n_after"], pair["correct_after"], k) - pass_at_k(
        pair["n_before"], pair["correct_before"], k
    )
    groups = pd.Series(change).groupby(pair["benchmark"])
    return float(groups.mean().mean()), float(math.sqrt((groups.var() / groups.size()).sum()) / groups.ngroups)


def split_by_length(benchmarks: Sequence[str]) -> tuple[list[str], list[str]]:
    """(short, long): those of the micro benchmarks with fewer, and with more, terms than their median.

    Raises ParameterError for a benchmark that is no micro benchmark.
    """
    unknown = [name for name in benchmarks if name not in MICRO_BENCHMARKS]
    if unknown:
        raise ParameterError(f"benchmarks: {unknown[0]} has no number of terms; known: {', '.join(MICRO_BENCHMARKS)}")
    terms = {name: MICRO_BENCHMARKS[name].terms for name in benchmarks}
    middle = float(np.median(list(terms.values())))
    by_length = sorted(terms, key=lambda name: terms[name])
    return [n for n in by_length if terms[n] < middle], [n for n in by_length if terms[n] > middle]


def length_table(records: Records, family: str) -> pd.DataFrame:
    """What short and long examples teach, and cost: one row per instance-level candidate of `family`, by budget.

    family, budget, selection, candidate, n_examples, epochs, sft_tokens (prompts and repeats counted)
      tokens_per_example        tokens of one SFT example, its prompt counted
      short_before, long_before, long_before_se    Pass@1 after SFT on the benchmarks with fewer, and with more, terms
                                than the median (`split_by_length`)
      short_after, long_after, long_after_se    the same after RL: last checkpoint, mean over runs
      n_runs
    Standard errors are of the sampling alone; after RL they hold the spread between runs instead, where there are
    several. Ordered by budget (rising), then selection, then tokens.
    """
    counts = records.counts[records.counts["family"] == family]
    short, long = split_by_length(list(records.counts["benchmark"].unique()))
    candidates = records.candidates[(records.candidates["family"] == family)]
    chosen = candidates["scenario"].str.split("+").map(lambda names: "instance" in names).astype(bool)
    table = candidates[chosen & (candidates["selection"] != "none")].copy()
    if "budget" not in table:  # records from before budgets
        table["budget"] = None
    table["tokens_per_example"] = table["sft_tokens"].astype(float) / (table["n_examples"] * table["epochs"])
    columns = ["family", "budget", "selection", "candidate", "n_examples", "epochs", "sft_tokens", "tokens_per_example"]
    for side, names in (("short", short), ("long", long)):
        part = counts[counts["benchmark"].isin(names)]
        scores = checkpoint_scores(part, [1]) if len(part) else pd.DataFrame(columns=[*CHECKPOINT, "pass@1"])
        before = scores[scores["stage"] == "sft"].set_index("candidate")
        last = last_checkpoints(scores[scores["stage"] == "rl"]).groupby("candidate")
        runs = last.size()
        values = {"before": before["pass@1"], "after": last["pass@1"].mean()}
        if side == "long" and len(part):
            values["before_se"] = before["sampling_se"]
            values["after_se"] = (last["pass@1"].std() / np.sqrt(runs)).fillna(last["sampling_se"].mean())
        for name in ("before", "after", "before_se", "after_se") if side == "long" else ("before", "after"):
            found = values.get(name, pd.Series(dtype=float))
            table[f"{side}_{name}"] = table["candidate"].map(found).astype(float)
        table["n_runs"] = table["candidate"].map(runs).fillna(0).astype(int)
    columns += ["short_before", "long_before", "long_before_se", "short_after", "long_after", "long_after_se", "n_runs"]
    budgets = records.manifest["configuration"].get("budgets", {})
    order = [*sorted(budgets, key=budgets.get), *table["budget"].dropna().unique()]
    table["place"] = table["budget"].map({name: i for i, name in reversed(list(enumerate(order)))})
    table = table.sort_values(["place", "selection", "sft_tokens"], kind="stable")
    return table[columns].reset_index(drop=True)


def length_contrast(table: pd.DataFrame) -> pd.DataFrame:
    """Longest minus shortest examples within each budget of a `length_table`: one row per budget that has both.

    family, budget, shortest, longest (how many of each are measured); before, before_se, after, after_se: difference of
    their mean Pass@1 on the long benchmarks after SFT and after RL, with its standard error; tokens_ratio: tokens of an
    example of the longest over one of the shortest.
    """
    rows = []
    measured = table[table["long_before"].notna()]
    for (family, budget), part in measured.groupby(["family", "budget"], sort=False):
        sides = {name: part[part["selection"] == name] for name in ("shortest", "longest")}
        if any(side.empty for side in sides.values()):
            continue
        row = {"family": family, "budget": budget, **{name: len(side) for name, side in sides.items()}}
        for when in ("before", "after"):
            means, errors = [], []
            for side in sides.values():
                known = side.dropna(subset=[f"long_{when}"])
                means.append(known[f"long_{when}"].mean())
                error = known[f"long_{when}_se"].to_numpy(np.float64)
                errors.append(math.sqrt((error**2).sum()) / len(known) if len(known) else math.nan)
            row |= {when: means[1] - means[0], f"{when}_se": math.hypot(*errors)}
        row["tokens_ratio"] = (
            sides["longest"]["tokens_per_example"].mean() / sides["shortest"]["tokens_per_example"].mean()
        )
        rows.append(row)
    return pd.DataFrame(
        rows,
        columns=["family", "budget", "shortest", "longest", "before", "before_se", "after", "after_se", "tokens_ratio"],
    )
