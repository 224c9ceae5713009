"""One advice from both workflows of Sec. 4: which candidate to send to RL next. It knows which ones were run.

    advice = advise(load_measurements("notebooks/candidates.csv"))
    advice.text, advice.next_run, advice.ranking, advice.forecast

With fewer than three RL runs, or if forecasts do no better than the mean of the runs, the ranking before RL decides,
else the forecast. The naive choice, the highest Pass@1, is always named, with how it fared on the shipped world and on
published groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from quagmire_utils.analysis.forecasting import RLForecast, forecast_rl
from quagmire_utils.analysis.lines import FEWEST
from quagmire_utils.analysis.measurements import Measurements
from quagmire_utils.analysis.ranking import SENTENCES, Ranking, listed, percent, rank_with_noise

SAID, WARNINGS = SENTENCES["advice"].values()
SATURATED, NEARLY_ALL = 0.95, 0.75  # Pass@k above which, in so many candidates, it hardly ranks them
PLATEAU = 0.01  # gain in the last quarter of the RL steps


@dataclass(frozen=True, eq=False)
class Advice:
    """Which candidate to send to RL next, and what this rests on."""

    text: str  # three paragraphs: the advice, the naive choice beside it, the length of RL that it assumes
    next_run: str | None  # None if no further run is needed
    ranking: Ranking
    forecast: RLForecast | None  # None with fewer than three RL runs
    warnings: tuple[str, ...]  # Pass@k is saturated; RL stops early


def advise(
    measured: Measurements,
    runs: Sequence[str] | None = None,
    predictors: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    n_draws: int = 4000,
    seed: int = 0,
) -> Advice:
    """Return one advice from the ranking before RL and, from three RL runs on, the forecast of their outcomes.

    runs: candidates whose outcomes may be used. None: all known ones; of a finished study, where every outcome is
    known, none. predictors: as in `forecast_rl`.
    """
    table, options = measured.table, {"confidence": confidence, "n_draws": n_draws, "seed": seed}
    outcome = table.set_index("candidate").reindex(columns=["outcome"])["outcome"]
    if runs is None:
        runs = [] if outcome.notna().all() else outcome.index[outcome.notna()].tolist()
    ran = {name: f"run: {100 * outcome[name]:.1f} %" for name in runs}
    ranking = rank_with_noise(measured, **options)
    forecast = forecast_rl(table, runs, predictors, **options) if len(runs) >= FEWEST else None
    if forecast is None:
        said, next_run = _by_ranking(ranking, ran)
    elif forecast.r2 < 0 and len(ran) < len(table):
        said, next_run = _by_ranking(ranking, ran)
        said = [forecast.trust, *said, forecast.ahead]
    else:
        said, next_run = [forecast.next, forecast.ahead, forecast.trust], forecast.next_run
        if ranking.leader in ran:
            said.append(SAID["leader_run"].format(leader=ranking.leader, ran=ran[ranking.leader]))
        elif next_run is not None:
            key, chance = "agree" if ranking.leader == next_run else "differ", percent(ranking.chance)
            said.append(SAID[key].format(leader=ranking.leader, chance=chance))
        if next_run in ranking.table.loc[ranking.table["rank"].isna(), "candidate"].tolist():
            said.insert(1, SAID["ruled_out"])
    best = table.loc[table["pass1"] == table["pass1"].max(), "candidate"]
    naive = listed(f"{name} ({ran.get(name, 'not run')})" if ran else name for name in best)
    beside = [SAID["naive"].format(naive=naive), *([SAID["real"]] if forecast else [])]
    text = "\n\n".join(" ".join(part) for part in (said, beside, [SAID["length"], SAID["disagree"]]))
    return Advice(text, next_run, ranking, forecast, _warnings(table, measured.k))


def _warnings(table: pd.DataFrame, k: int) -> tuple[str, ...]:
    high, late = int((table["pass_k"] >= SATURATED).sum()), table.get("late_gain", pd.Series(dtype=float)).mean()
    keys = ["saturated"] if high >= NEARLY_ALL * len(table) > 1 else []
    keys += ["early"] if late > PLATEAU else []
    return tuple(WARNINGS[key].format(k=k, high=high, total=len(table), late=100 * late) for key in keys)


def _by_ranking(ranking: Ranking, ran: Mapping[str, str]) -> tuple[list[str], str | None]:
    """Return sentences and the next run by the ranking alone; ran: the outcome of each run, in words."""
    if ranking.leader not in ran:
        return [ranking.advice], None if ranking.hopeless else ranking.leader
    said = [SAID["leader_run"].format(leader=ranking.leader, ran=ran[ranking.leader])]
    left = ranking.table[~ranking.table["candidate"].isin(list(ran)) & ranking.table["rank"].notna()]
    if left.empty:
        return [*said, SAID["none_left"]], None
    first = left.sort_values("chance", ascending=False, kind="stable").iloc[0]
    said.append(SAID["next"].format(next_run=first["candidate"], chance=percent(first["chance"])))
    return said, str(first["candidate"])
