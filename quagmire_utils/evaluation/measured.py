"""Tables of one model's evaluation, and of the comparison of two evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from quagmire_utils.core.records import check_columns
from quagmire_utils.evaluation.marking import CLOSE, OPEN, opened
from quagmire_utils.evaluation.pass_at_k import (
    MACRO,
    benchmark_average,
    benchmark_extrapolation,
    benchmark_pass_at_k,
    bootstrap_intervals,
    compare,
)
from quagmire_utils.evaluation.store import SampleStore

_RATES = ["truncated", "no_answer", "timeout", "error"]
_BESIDE = {  # columns of tables that stand beside the scores: heading, format, factor
    "unread": ("neither grader could read %", "{:.1f}", 100),
    "cut_thinking": ("thinking cut %", "{:.1f}", 100),
    "thinking_length": ("thinking, characters", "{:,.0f}", 1),
    "answer_length": ("answer, characters", "{:,.0f}", 1),
}


def evaluation_table(
    counts: pd.DataFrame,
    ks: Sequence[int],
    *,
    votes: pd.DataFrame | None = None,
    chance: pd.DataFrame | None = None,
    beside: Sequence[pd.DataFrame | pd.Series] = (),
) -> pd.DataFrame:
    """Return the scores of one model: one row per benchmark, then the macro average.

    counts: as `SampleStore.counts` returns them. votes: of `pass_at_k.benchmark_maj_at_k`, to include maj@k. chance: of
    `chance.chance_counts`, to include the chance level. beside: more columns, by benchmark. Columns: benchmark,
    problems, answers, n (fewest answers to a problem); for each k pass@k, se@k, low@k, high@k (`bootstrap_intervals`)
    and if_right@k, the score if all undecided answers were right (pass@k counts them as wrong); with chance for each k
    chance@k, chance_low@k, chance_high@k and lead@k, the lower end of the interval of pass@k minus chance (NaN where
    there is no chance level); for each k of votes maj@k, maj_low@k, maj_high@k; truncated, no_answer, timeout, error
    (shares of all answers) and mean_tokens; those of beside.
    """
    check_columns(counts, ["n", *_RATES, "mean_tokens"], "counts")
    scores = bootstrap_intervals(counts, ks)
    right = counts.assign(correct=counts["correct"] + counts["timeout"] + counts["error"])
    bounds = pd.concat([benchmark_pass_at_k(right, ks), benchmark_average(right, ks).assign(benchmark=MACRO)])
    bounds = bounds.set_index(["benchmark", "k"])["pass_at_k"]
    levels = None if chance is None else _chance_levels(counts, chance, ks)
    rows = []
    for benchmark, part in scores.groupby("benchmark", sort=False):
        own = counts if benchmark == MACRO else counts[counts["benchmark"] == benchmark]
        answers = int(own["n"].sum())
        row = {"benchmark": benchmark, "problems": len(own), "answers": answers, "n": int(own["n"].min())}
        for score in part.itertuples():
            k, right = score.k, bounds[benchmark, score.k]
            row |= {f"pass@{k}": score.pass_at_k, f"se@{k}": score.standard_error}
            row |= {f"low@{k}": score.low, f"high@{k}": score.high, f"if_right@{k}": right}
            if levels is not None:
                row |= {f"{name}@{k}": levels[name].get((benchmark, k), math.nan) for name in levels}
        for vote in [] if votes is None else votes[votes["benchmark"] == benchmark].itertuples():
            row |= {f"maj@{vote.k}": vote.maj_at_k, f"maj_low@{vote.k}": vote.low, f"maj_high@{vote.k}": vote.high}
        row |= {name: own[name].sum(skipna=False) / answers if answers else math.nan for name in _RATES}
        row["mean_tokens"] = (own["mean_tokens"] * own["n"]).sum(min_count=1) / answers if answers else math.nan
        rows.append(row)
    table = pd.DataFrame(rows)
    macro, rates = table["benchmark"] == MACRO, [*_RATES, "mean_tokens"]
    table.loc[macro, rates] = table.loc[~macro, rates].mean(skipna=False).to_numpy()
    for more in beside:
        more = more.to_frame() if isinstance(more, pd.Series) else more
        table = table.join(more.astype(float), on="benchmark")
        table.loc[macro, more.columns] = table.loc[~macro, more.columns].mean().to_numpy()
    return table


def _chance_levels(counts: pd.DataFrame, chance: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Return chance, chance_low, chance_high and lead by benchmark and k; the average only if no benchmark lacks it."""
    keys = ["benchmark", "problem"]
    chance = chance.merge(counts[keys])
    if chance.empty:
        return pd.DataFrame(columns=["chance", "chance_low", "chance_high", "lead"])
    levels = bootstrap_intervals(chance, ks).set_index(["benchmark", "k"])
    levels["lead"] = compare(counts.merge(chance[keys]), chance, ks).set_index(["benchmark", "k"])["low"]
    if set(counts["benchmark"]) != set(chance["benchmark"]):
        levels = levels.drop(MACRO)
    levels = levels.rename(columns={"pass_at_k": "chance", "low": "chance_low", "high": "chance_high"})
    return levels[["chance", "chance_low", "chance_high", "lead"]]


def show_evaluation(table: pd.DataFrame) -> pd.DataFrame:
    """Return `evaluation_table` as text, in per cent: score ± standard error [interval], and the rates.

    The macro average of a single benchmark is left out.
    """
    table = table if len(table) > 2 else table[table["benchmark"] != MACRO]
    table = table.set_index(table["benchmark"].rename(None))
    shown = table[["problems", "n"]].rename(columns={"n": "answers a problem"})
    for k in _ks(table, "pass@"):
        cells = table[[f"pass@{k}", f"se@{k}", f"low@{k}", f"high@{k}"]].to_numpy() * 100
        shown[f"Pass@{k} %"] = [
            f"NaN (fewer than {k} answers)" if math.isnan(v) else f"{v:.1f} ± {e:.1f} {_interval(a, b)}"
            for v, e, a, b in cells
        ]
        right = 100 * table[f"if_right@{k}"]
        if (right > cells[:, 0] + 1e-9).any():  # equal sums may differ in the last bit
            shown[f"Pass@{k} if undecided were right %"] = right.map("{:.1f}".format)
        if f"chance@{k}" in table:
            levels = table[[f"chance@{k}", f"chance_low@{k}", f"chance_high@{k}"]].to_numpy() * 100
            cells = ["none" if math.isnan(v) else f"{v:.1f} {_interval(a, b)}" for v, a, b in levels]
            shown[f"Pass@{k} by chance %"] = cells
    for k in _ks(table, "maj@"):
        cells = table[[f"maj@{k}", f"maj_low@{k}", f"maj_high@{k}"]].to_numpy() * 100
        shown[f"maj@{k} %"] = [f"{v:.1f} {_interval(a, b)}" for v, a, b in cells]
    for name in _RATES:
        shown[f"{name.replace('_', ' ')} %"] = (100 * table[name]).map("{:.1f}".format).replace("nan", "unknown")
    shown["tokens"] = table["mean_tokens"].map("{:.0f}".format).replace("nan", "unknown")
    for name, (heading, form, factor) in _BESIDE.items():
        if name in table and table[name].notna().any():
            shown[heading] = (factor * table[name]).map(form.format).replace("nan", "none")
    return shown


def describe_evaluation(table: pd.DataFrame) -> str:
    """Return the scores of the macro average (or of the one benchmark) in sentences.

    Also the share of cut answers, and which scores are not clearly above chance.
    """
    row = table.iloc[-1]
    what = table["benchmark"].iloc[0] if len(table) == 2 else f"Macro average of {len(table) - 1} benchmarks"
    scores = [
        f"{shown}@{k} {100 * row[f'{name}@{k}']:.1f} % {_interval(100 * row[f'{low}@{k}'], 100 * row[f'{high}@{k}'])}"
        for shown, name, low, high in (("Pass", "pass", "low", "high"), ("maj", "maj", "maj_low", "maj_high"))
        for k in _ks(table, f"{name}@")
    ]
    text = f"{what}: {', '.join(scores)}, from {row['answers']:,} answers to {row['problems']:,} problems."
    undecided = row["timeout"] + row["error"]
    shares = [(row["truncated"], "reached the token limit"), (row["no_answer"], "hold no answer")]
    mind = [f"{100 * share:.1f} % {words}" for share, words in shares if share >= 0.0005]
    if undecided:
        mind.append(f"{f'{100 * undecided:.1f}' if undecided >= 0.0005 else 'less than 0.1'} % could not be judged")
    if mind:
        text += f" Of the answers, {' and '.join(mind)}."
    return " ".join(filter(None, [text, describe_chance(table)]))


def describe_chance(table: pd.DataFrame) -> str:
    """Return in sentences which scores of `evaluation_table` are not clearly above chance; empty if all are."""
    ks = _ks(table, "chance@")
    each = table[table["benchmark"] != MACRO]
    near = [
        f"Pass@{k} of {row['benchmark']} ({100 * row[f'pass@{k}']:.1f} %, chance {100 * row[f'chance@{k}']:.1f} %)"
        for k in ks
        for _, row in each[each[f"lead@{k}"] <= 0].iterrows()
    ]
    rule = "the 95 % interval of the difference reaches 0"
    lines = [f"Not clearly above chance ({rule}): {', '.join(near)}."] if near else []
    without = each.loc[each[f"chance@{min(ks)}"].isna(), "benchmark"].tolist() if ks else []
    if without:
        lines.append(f"No chance level for {', '.join(without)}: its answers meet the gold of no other problem.")
    return " ".join(lines)


def thinking_table(store: SampleStore) -> pd.DataFrame:
    """Return benchmark (index), cut_thinking, thinking_length and answer_length, over the answers with thinking.

    An answer has thinking if it holds <think> or </think>, or if its prompt ends with an open <think>. It is cut if
    </think> is missing (share of these answers). Lengths are mean characters, before and after </think>. The store is
    read one part at a time. Empty if no answer has thinking.
    """
    thinking, rows = opened(store), []
    for part in store.parts():
        frame = store.read_part(part, ["benchmark", "problem", "text"])
        for benchmark, problem, text in () if frame is None else frame.itertuples(index=False, name=None):
            if OPEN in text or CLOSE in text or (benchmark, problem) in thinking:
                thought, closed, answer = text.rpartition(CLOSE) if CLOSE in text else (text, "", "")
                rows.append((benchmark, not closed, len(thought.replace(OPEN, "", 1).strip()), len(answer.strip())))
    columns = ["benchmark", "cut_thinking", "thinking_length", "answer_length"]
    return pd.DataFrame(rows, columns=columns).groupby("benchmark").mean()


def forecast_table(counts: pd.DataFrame, k: int) -> pd.DataFrame:
    """Return `benchmark_extrapolation` from the number of answers, by powers of two, up to k."""
    fewest = int(counts["n"].min())
    return benchmark_extrapolation(
        counts, sorted({fewest, k, *(2**i for i in range(fewest.bit_length(), k.bit_length()))})
    )


def show_forecast(table: pd.DataFrame) -> pd.DataFrame:
    """Return the last k of `forecast_table` as text, in per cent, marked as a forecast."""
    table = table[
        (table["k"] == table["k"].max()) & ((table["benchmark"] != MACRO) | (table["benchmark"].nunique() > 2))
    ]
    cells = [f"about {v:.1f} {_interval(a, b)}" for v, a, b in 100 * table[["value", "low", "high"]].to_numpy()]
    heading = f"Pass@{table['k'].iloc[0]} %, forecast"
    return pd.DataFrame({"from answers a problem": table["min_n"], heading: cells}).set_index(
        table["benchmark"].rename(None)
    )


def describe_forecast(table: pd.DataFrame) -> str:
    """Return in sentences the forecast of the macro average, or of the one benchmark."""
    row = table.iloc[-1]
    value = f"{100 * row['value']:.1f} % {_interval(100 * row['low'], 100 * row['high'])}"
    return (
        f"Forecast, not measured: Pass@{row['k']} of these problems about {value}, from {row['min_n']} answers each. "
        f"Rank models by the measured Pass@{row['min_n']}; a forecast adds assumptions."
    )


def show_comparison(table: pd.DataFrame) -> pd.DataFrame:
    """Return `pass_at_k.compare` as text: scores in per cent, their difference in points with its interval, and p."""
    if table["benchmark"].nunique() == 2:  # the macro average of one benchmark is that benchmark
        table = table[table["benchmark"] != MACRO]
    shown = table[["benchmark", "k", "problems"]].copy()
    for name in ("a", "b"):
        shown[f"{name} %"] = (100 * table[name]).map("{:.1f}".format).replace("nan", "NaN")
    points = (100 * table[["difference", "low", "high"]]).round(1) + 0.0  # no minus before a zero
    shown["a - b, points"] = [
        "NaN" if math.isnan(d) else f"{d:+.1f}" + ("" if math.isnan(low) else f" {_interval(low, high, '+')}")
        for d, low, high in points.itertuples(index=False, name=None)
    ]
    shown["p"] = ["NaN" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" for p in table["p_value"]]
    shown["a ahead"], shown["b ahead"] = table["better"], table["worse"]
    return shown.set_index("benchmark")


def describe_comparison(table: pd.DataFrame, a: str, b: str) -> str:
    """Return in sentences what `evaluate.compare_outputs` compared."""
    macro = table[table["benchmark"] == MACRO]
    common = int(macro["problems"].iloc[0])
    lines = [f"a: {a}", f"b: {b}", f"Pass@k of a minus that of b on the {common:,} problems that both answered."]
    alone = [(name, table.attrs[f"problems_{name}"] - common) for name in ("a", "b")]
    lines += [f"{count:,} problems only in {name} are left out." for name, count in alone if count]
    fewest, settings = min(table.attrs["answers"]), table.attrs["settings"]
    for k in macro.loc[macro["difference"].isna(), "k"]:
        needed = f"it needs {k} graded answers to every problem of both, and some have only {fewest}"
        lines.append(f"Pass@{k} is NaN: {needed}.")
    lines += [f"They differ in {name}: {first} and {second}." for name, (first, second) in settings.items()]
    if not settings:
        lines.append("Both were drawn from the same model with the same settings and seed: their answers are the same.")
    return "\n".join(lines)


def _ks(table: pd.DataFrame, prefix: str) -> list[int]:
    return [int(name.removeprefix(prefix)) for name in table if name.startswith(prefix)]


def _interval(low: float, high: float, sign: str = "") -> str:
    return f"[{low:{sign}.1f},\N{NO-BREAK SPACE}{high:{sign}.1f}]"
