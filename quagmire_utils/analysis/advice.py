"""What the two workflows of Sec. 4 say in plain words: whom to send to RL, how sure that is, what to measure next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quagmire_utils.analysis.forecasting import RLForecast
    from quagmire_utils.analysis.ranking import Ranking

CEILING = 0.995  # Pass@k from here on tells candidates apart by a few problems only
FEW_PROBLEMS = 20  # below it, a mean over problems is far from normal, and its error hardly known
FEW_CHECKS = 5  # leave-one-out checks below it say little
SERIOUS = 0.1  # chance from which on another candidate is named
ENOUGH_R2 = 0.5  # of leave-one-out: below it the forecasts are called weak

MEANING_OF_CHANCE = (
    "*Chance: that the rule would choose this candidate if the numbers of all of them were known without error. It "
    "holds the noise of the numbers (sampled answers, choice of problems and of held-out traces) and the luck of being "
    "first of many: how far candidates truly differ is learned from all of them. Where they do not differ at all it is "
    "still too high, simulated 66 % for one of two, 23 % for one of ten. It does not hold "
    "another seed of the same training, the noise of RL, or whether the rule is right for this model: it is no chance "
    "of ending best after RL.*"
)
MEANING_OF_FORECAST = (
    "*Forecast: a line through the candidates that were put through RL, for each predictor, and the mean of these "
    "lines. Interval and chances (to end best) hold the scatter about the lines and the uncertainty of the lines. They "
    "hold no bend of the true relation, and none is visible outside the range of the RL runs. Outcomes count as "
    "exact.*"
)


def percent(share: float) -> str:
    """A chance: 83 %, and near the ends no more than the draws can tell: > 99 %, < 1 %."""
    if math.isnan(share):
        return "unknown"
    if share >= 0.995:
        return "> 99 %"
    return "< 1 %" if share < 0.005 else f"{100 * share:.0f} %"


def listed(names: Sequence[str], most: int = 4) -> str:
    """`a, b and c`; of many the first few and how many more."""
    names = [str(name) for name in names]
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


# --- ranking ----------------------------------------------------------------------------------------------------------


def ranking_advice(found: Ranking) -> str:
    """Whom to send to RL, how sure the rule is of it, and what would settle the order."""
    sentences = [_choice(found)]
    if len(found.table) == 1:
        return sentences[0]
    if found.table["pass_k"].max() <= 1 - CEILING:
        return (
            f"Nothing can be said: no candidate solves more than {100 * (1 - CEILING):.2g} % of the problems in "
            f"{found.k} answers. RL would have hardly a correct answer to learn from; measure easier problems."
        )
    if math.isnan(found.chance):
        sentences.append(
            "How sure this is cannot be said: the table has no standard errors for some candidate, and no answers "
            "to count. (For a share p over m problems, the square root of p(1-p)/m is a cautious standard error.)"
        )
        return " ".join(sentences)
    sentences.append(_doubt(found))
    if found.chance < found.confidence:
        sentences.append(_remedy(found))
    if found.problems is not None and found.problems < FEW_PROBLEMS:
        sentences.append(f"With {found.problems} problems, chances are a rough guide at best.")
    high = int((found.table["pass_k"] >= CEILING).sum())
    if high > 1 and found.chance < found.confidence:
        sentences.append(
            f"Pass@{found.k} is at {100 * CEILING:g} % or more for {high} candidates, where it can hardly tell them "
            "apart; harder problems would."
        )
    losses = found.table["gen_loss"].notna() & found.table["gen_loss_se"].isna()
    if losses.any() and found.table["ruled_out_by"].notna().any():
        sentences.append("Losses without a standard error count as exact: chances are too high where they decide.")
    return " ".join(sentences)


def _choice(found: Ranking) -> str:
    table = found.table
    out, first = table["rank"].isna(), table[table["rank"] == 1]
    tied = [name for name in first["candidate"] if name != found.leader]
    mine = table.set_index("candidate").loc[found.leader]
    if len(table) == 1:
        return f"{found.leader} is the only candidate: there is nothing to choose."
    rule = f"{out.sum()} of {len(table)} candidates {'is' if out.sum() == 1 else 'are'} ruled out by another's higher "
    rule += "score and lower loss"
    if not out.any():
        rule = f"no candidate of {len(table)} is ruled out by both score and loss"
    if found.losses == "none":
        rule = f"no candidate of {len(table)} can be ruled out, as losses are missing or do not compare"
    elif found.losses:
        rule += f" ({found.losses})"
    if found.leader not in set(first["candidate"]):
        return (
            f"Send {found.leader} to RL first: by the numbers as they are {listed(first['candidate'])} would rank "
            f"first ({rule}), but with their noise {found.leader} is chosen more often."
        )
    best = f"{found.leader} has the highest Pass@{found.k} "
    best += f"{'of the others ' if out.any() else ''}({100 * mine['pass_k']:.1f} %)"
    if len(table) - out.sum() == 1:
        best = f"only {found.leader} is left (Pass@{found.k} {100 * mine['pass_k']:.1f} %)"
    elif tied:
        best = f"{listed([found.leader, *tied])} share the highest Pass@{found.k} ({100 * mine['pass_k']:.1f} %)"
    whom = " or ".join([found.leader, *tied[:3]])
    return f"Send {whom} to RL first: {rule}, and {best}."


def _doubt(found: Ranking) -> str:
    others = found.table[found.table["candidate"] != found.leader].sort_values("chance", ascending=False)
    rivals = others[others["chance"] >= SERIOUS]
    said = f"The chance that exact numbers would make the same choice is {percent(found.chance)}"
    if found.chance >= found.confidence:
        return f"{said}: the choice is settled."
    if rivals.empty:
        said += f", and no other candidate reaches {percent(SERIOUS)}."
    else:
        named = listed([f"{row.candidate} {percent(row.chance)}" for row in rivals.itertuples()], 3)
        said += f" (next: {named}); with RL runs to spare, run these too."
    return said


def _remedy(found: Ranking) -> str:
    goal, whose = percent(found.confidence), "the" if found.settling == found.leader else f"{found.settling}'s"
    if found.samples is None:
        return "How many more answers would settle it cannot be told from standard errors; it takes the counts."
    if found.samples_needed is not None:
        return (
            f"About {found.samples_needed:,} answers to each problem instead of {found.samples:,} would bring {whose} "
            f"chance to {goal}, if the present estimates are right."
        )
    said = (
        f"More answers alone do not settle it ({percent(float(found.curve['chance'].iloc[-1]))} "
        f"{'' if found.settling == found.leader else f'for {found.settling} '}with endlessly many): "
    )
    if found.limit == "ties":
        return said + "even on exactly these problems and traces the candidates cannot be told apart."
    said += {
        "problems": "the choice of problems leaves too much open",
        "traces": "the losses differ by less than their standard errors (candidates scored on the same traces may be "
        "closer than taken here), and more held-out traces would help",
        "both": "neither the problems nor the held-out traces are enough",
    }[found.limit]
    if found.problems_factor is not None:
        said += f"; about {found.problems_factor:.2g} times as many problems of this kind would do for {goal}"
    if found.samples_needed_here is None or found.samples_needed_here <= found.samples:
        return said + "."
    return said + f". On exactly these problems and traces {found.samples_needed_here:,} answers each would do."


def show_ranking(found: Ranking) -> pd.DataFrame:
    """The ranking as text: numbers with their standard errors (in per cent; nats), and the chances."""
    table, shown = found.table, {}
    shown["rank"] = ["-" if pd.isna(rank) else f"{rank}" for rank in table["rank"]]
    for name, title, unit in (
        ("pass1", "Pass@1 %", 100),
        ("gen_loss", "loss", 1),
        ("pass_k", f"Pass@{found.k} %", 100),
    ):
        digits = 1 if unit == 100 else 4
        shown[title] = [
            "" if math.isnan(value) else f"{unit * value:.{digits}f}" + _plus_minus(unit * error, digits)
            for value, error in zip(table[name].astype(float), table[f"{name}_se"].astype(float), strict=True)
        ]
    shown["ruled out by"] = table["ruled_out_by"].fillna("").to_numpy()
    if not math.isnan(found.chance):
        shown["chance"] = [percent(value) for value in table["chance"]]
        if found.samples is not None:
            shown["chance, these problems"] = [percent(value) for value in table["chance_here"]]
        shown["chance of being ruled out"] = [percent(value) for value in table["chance_ruled_out"]]
    return pd.DataFrame(shown, index=pd.Index(table["candidate"], name="candidate"))


def _plus_minus(error: float, digits: int) -> str:
    return "" if math.isnan(error) else f" ± {error:.{digits}f}"


def show_check(table: pd.DataFrame, k: int) -> pd.DataFrame:
    """`check_ranking` as text: what each choice lost, in points of Pass@1 after RL."""
    if table.empty:
        return pd.DataFrame({"": ["too few outcomes are known"]})
    titles = {
        "regret": "the rule's choice",
        "regret_pass1": "highest Pass@1",
        "regret_gen_loss": "lowest loss",
        "regret_pass_k": f"highest Pass@{k}",
        "regret_random": "at random",
    }
    shown = table.set_index(["family", "scenario"])[["candidates", "chosen", *titles]].rename(columns=titles)
    for title in titles.values():
        shown[title] = ["" if math.isnan(value) else f"{100 * value:.1f}" for value in shown[title]]
    return shown


def describe_check(table: pd.DataFrame) -> str:
    """`check_ranking` in a sentence."""
    if table.empty:
        return "Too few outcomes are known to check the advice."
    said = (
        f"Over {len(table)} sets of candidates whose outcomes are known, the rule's choice ended "
        f"{100 * table['regret'].mean():.1f} points below the best on average (at most "
        f"{100 * table['regret'].max():.1f}); the highest Pass@1 {100 * table['regret_pass1'].mean():.1f}, a choice at "
        f"random {100 * table['regret_random'].mean():.1f}."
    )
    return said.replace("Over 1 sets", "In one set")


# --- forecasts --------------------------------------------------------------------------------------------------------


def forecast_advice(found: RLForecast) -> str:
    """Which candidate to run next, which the forecasts favour, and how far to trust them; that first if not at all."""
    table = found.table
    runs, rest = table[table["calibrated"]], table[~table["calibrated"]]
    best = runs.loc[runs["outcome"].idxmax()]
    said = f"Best run so far: {best['candidate']} at {100 * best['outcome']:.1f} %"
    trust = _trust(found, len(runs))
    if found.warnings:
        trust += f" Mind the warning{'' if len(found.warnings) == 1 else 's'} below."
    if rest.empty:
        return f"{said}; every candidate was run. {trust}"
    if found.next_run is None:
        todo = "No other candidate can be expected to end best: no further run is needed to choose."
    else:
        gain = percent(table.set_index("candidate").loc[found.next_run, "gain"])
        todo = f"Run {found.next_run} next: that takes away {gain} of what is uncertain about who may still end best."
    if found.r2 < 0:
        return f"{trust} {_instead(found, todo)} {said}."
    top = rest.iloc[0]
    beyond = ", extrapolated" if top["extrapolated"] else ""
    said += (
        f" (chance to stay the best {percent(best['chance_best'])}); highest forecast: {top['candidate']} with "
        f"{_within(top)} %{beyond} (chance to end best {percent(top['chance_best'])})."
    )
    return f"{todo} {said} {trust}"


def _instead(found: RLForecast, todo: str) -> str:
    """What to do where forecasts are worse than the mean of the runs; todo: what they say themselves."""
    if found.better is None:
        return f"No other predictor does better than that mean in this check. {todo}"
    names = " and ".join({"pass1": "Pass@1", "gen_loss": "loss"}.get(one, "Pass@k") for one in found.better.predictors)
    said = f"{names} did best in the same check (R² {found.better.r2:.2f}; the best of several looks better than it is)"
    what = f"run {found.advised_run} next" if found.advised_run else "no further run is needed to choose"
    return f"{said}: forecast with predictors={','.join(found.better.predictors)} instead, by which {what}."


def forecast_warnings(
    result: pd.DataFrame, fitted: NDArray[np.float64], outcome: NDArray[np.float64], predictors: Sequence[str]
) -> list[str]:
    """What to mind; result: `RLForecast.table`; fitted, outcome: of the RL runs, (predictors, n) and (n,)."""
    said = []
    rest = result[~result["calibrated"]]
    beyond = rest[rest["extrapolated"]]
    if len(beyond):
        which = "; ".join(f"{row.candidate} ({row.outside})" for row in beyond.head(4).itertuples())
        which += f"; and {len(beyond) - 4} more" if len(beyond) > 4 else ""
        lie = "lies" if len(beyond) == 1 else "lie"
        said.append(
            f"Extrapolation: {len(beyond)} of {len(rest)} forecasts {lie} outside the range of the RL runs, where a "
            f"bend of the relation would not be seen and the interval does not protect: {which}."
        )
        top = rest.loc[rest["predicted"].idxmax()]
        said[-1] += f" {top['candidate']}, the highest forecast, is among them." if top["extrapolated"] else ""
    for name, values in zip(predictors, fitted, strict=True):
        slope = float((values - values.mean()) @ outcome)
        if slope * (-1 if name == "gen_loss" else 1) < 0:
            direction = (
                "higher loss went with a better outcome"
                if name == "gen_loss"
                else f"higher {name} went with a worse outcome"
            )
            said.append(f"Among the RL runs a {direction}, against the paper's finding: chance, or another world.")
    impossible = result[(result["predicted"] > 1) | (result["predicted"] < 0)]
    if len(impossible):
        said.append(
            f"Beyond 0 or 100 %: the forecast of {', '.join(impossible['candidate'])}; a line knows no ceiling."
        )
    if len(outcome) < 5:
        said.append(
            f"{len(outcome)} RL runs leave hardly any spare information about the scatter: intervals are wide, and "
            + ("there is no leave-one-out check." if len(outcome) == 3 else "the check is of little weight.")
        )
    return said


def _trust(found: RLForecast, runs: int) -> str:
    if not len(found.check) or math.isnan(found.r2):
        return f"Forecast from {runs} RL runs, which cannot be checked against each other."
    covered = int(found.check["covered"].sum())
    verdict = "the forecasts tell candidates apart"
    if found.r2 < 0:
        verdict = "no better than the mean of the runs: do not choose by these forecasts"
    elif len(found.check) < FEW_CHECKS:
        verdict = "too few for this to say much"
    elif found.r2 < ENOUGH_R2:
        verdict = "weak: let the intervals decide, not the order"
    ranks = "" if math.isnan(found.rank_correlation) else f"rank correlation {found.rank_correlation:.2f}, "
    return (
        f"Each of {len(found.check)} runs forecast from the others: R² {found.r2:.2f}, {ranks}{covered} outcomes "
        f"inside their intervals; {verdict}."
    )


def show_forecast(found: RLForecast) -> pd.DataFrame:
    """The forecast as text, in per cent: what was run with its outcome, the others with their intervals."""
    table = found.table
    shown = {
        "after RL %": ["" if math.isnan(value) else f"{100 * value:.1f}" for value in table["outcome"]],
        f"forecast % [{found.confidence:.0%}]": [
            f"{100 * row['predicted']:.1f}" if row["calibrated"] else _within(row) for _, row in table.iterrows()
        ],
        "chance to end best": [percent(value) for value in table["chance_best"]],
        "a run takes away": ["" if math.isnan(value) else percent(value) for value in table["gain"]],
        "extrapolates": [
            text if not ran else "" for text, ran in zip(table["outside"], table["calibrated"], strict=True)
        ],
    }
    return pd.DataFrame(shown, index=pd.Index(table["candidate"], name="candidate"))


def _within(row: pd.Series) -> str:
    """A forecast with its interval, in per cent; a line goes on beyond 0 and 100 %, an outcome does not."""
    low, middle, high = (100 * min(max(row[name], 0.0), 1.0) for name in ("low", "predicted", "high"))
    return f"{middle:.1f} [{low:.1f} to {high:.1f}]"


def show_predictors(table: pd.DataFrame) -> pd.DataFrame:
    """`compare_predictors` as text."""
    return pd.DataFrame(
        {
            "RL runs": table["runs"].to_numpy(),
            "R², leave one out": [_number(value) for value in table["r2"]],
            "rank correlation": [_number(value) for value in table["rank_correlation"]],
            "typical miss, points": ["" if math.isnan(value) else f"{100 * value:.1f}" for value in table["rmse"]],
            "inside the interval": ["" if math.isnan(value) else f"{100 * value:.0f} %" for value in table["coverage"]],
        },
        index=pd.Index(table["predictors"], name="predictors"),
    )


def show_forecast_check(table: pd.DataFrame) -> pd.DataFrame:
    """`check_forecasts` as text, in points of Pass@1 after RL."""
    if table.empty:
        return pd.DataFrame({"": ["too few outcomes are known"]})
    shown = table.set_index(["family", "scenario", "predictors"])[["candidates", "runs"]]
    titles = {"rmse": "typical miss", "spread": "missed by their mean", "regret": "regret of the choice"}
    for name, title in titles.items():
        shown[title] = ["not possible" if math.isnan(value) else f"{100 * value:.1f}" for value in table[name]]
    shown["inside the interval"] = ["" if math.isnan(value) else f"{100 * value:.0f} %" for value in table["coverage"]]
    return shown


def describe_forecast_check(table: pd.DataFrame) -> str:
    """`check_forecasts` in a sentence."""
    made = table.dropna(subset=["rmse"]) if len(table) else table
    if not len(made):
        return "Too few outcomes are known to check forecasts against withheld ones."
    better = int((made["rmse"] < made["spread"]).sum())
    return (
        f"Of {len(made)} forecasts from {made['runs'].iloc[0]} RL runs, {better} missed the withheld outcomes by less "
        f"than these outcomes' own mean would have. {100 * made['coverage'].mean():.0f} % of outcomes lay inside their "
        f"intervals. The candidate chosen in the end lacked {100 * made['regret'].mean():.1f} points to the best on "
        f"average (at most {100 * made['regret'].max():.1f})."
    )


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"
