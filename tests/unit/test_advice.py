"""One advice from the ranking and the forecast: it names no candidate that was run, and the naive choice beside it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quagmire_utils.analysis import predictors, public_evidence
from quagmire_utils.analysis.advice import SAID, advise
from quagmire_utils.analysis.candidates import candidate_frame
from quagmire_utils.analysis.forecasting import compare_predictors
from quagmire_utils.analysis.measurements import load_measurements
from quagmire_utils.analysis.ranking import check_ranking
from quagmire_utils.core.records import load_records

TABLE = Path(__file__).resolve().parents[2] / "notebooks" / "candidates.csv"
RANKED, NAIVE = "random-512x4", "random-512x1-lr0.0005"  # all others are ruled out


@pytest.mark.parametrize(
    ("runs", "next_run", "said"),
    [
        ([], RANKED, f"Send {RANKED} to RL"),
        ([NAIVE], RANKED, f"Send {RANKED} to RL"),
        ([RANKED], NAIVE, f"names {RANKED} (run: 70.4 %). Send {NAIVE} to RL next"),
        ([RANKED, NAIVE], None, "no further run is needed"),
        (["random-8x4", "random-32x64", RANKED], NAIVE, f"Run {NAIVE} next"),
        (["random-8x4", "random-32x64", NAIVE], RANKED, "The ranking before RL names it too"),
    ],
)
def test_the_advice_knows_what_was_run(runs, next_run, said):
    measured = load_measurements(TABLE)
    table = measured.table.assign(outcome=measured.table["outcome"].where(measured.table["candidate"].isin(runs)))
    advice = advise(replace(measured, table=table), n_draws=1000)
    assert advice.next_run == next_run
    assert said in advice.text
    assert len(re.findall(r"Send \S+ to RL|Run \S+ next", advice.text)) == (next_run is not None)
    assert (advice.forecast is None) == (len(runs) < 3)
    state = {True: " (run: 70.8 %)", False: " (not run)"}[NAIVE in runs] if runs else ""
    assert f"the highest Pass@1, is {NAIVE}{state}." in advice.text


def test_forecasts_that_are_worthless_give_way_to_the_ranking(first_world):
    measured = load_measurements(first_world, family="micro-mistral", scenario="instance")
    advice = advise(measured, ["shortest-256x1", "longest-80x1", "random-512x1", "random-128x1"], n_draws=500)
    assert advice.forecast.r2 < 0
    assert advice.next_run == advice.ranking.leader
    assert advice.text.startswith("Leave-one-out check")


def test_saturated_scores_and_short_runs_are_warned_of(first_world):
    """In micro-mistral nearly all candidates have a Pass@64 above 95 %, in micro-llama few; RL of both still rises."""
    table = candidate_frame(first_world).query("selection != 'none'")
    for family, warned in (("micro-mistral", True), ("micro-llama", False)):
        measured = load_measurements(first_world, family=family, scenario="instance")
        part = table[(table["family"] == family) & table["scenario"].str.contains("instance")]
        warnings = advise(measured, n_draws=500).warnings
        assert any(f"for {(part['pass_k'] >= 0.95).sum()} of {len(part)}" in text for text in warnings) == warned
        assert f"still gained {100 * part['late_gain'].mean():.1f} points" in warnings[-1]
        mean = first_world.counts.query(
            "stage == 'rl' and family == @family and rl_run < 2"
        )  # two runs of every candidate
        mean = mean[mean["candidate"].isin(part["candidate"])].assign(score=lambda t: t["correct"] / t["n"])
        mean = mean.pivot_table(index="candidate", columns="checkpoint", values="score").mean()
        assert part["late_gain"].mean() == pytest.approx(mean[32] - mean[24])
    assert advise(load_measurements(TABLE), n_draws=500).warnings == ()


def test_how_pass_at_k_ranked_by_the_length_of_rl_is_computed_from_the_shipped_worlds(mini, first_world):
    for records, words in (
        (mini, "{first:+.2f} after {early} RL steps and {last:+.2f} after {late} on results/mini"),
        (first_world, "{first:+.2f} after {early} and {last:+.2f} after {late} on results/mini-v1"),
        (load_records(mini.folder.with_name("mini-choice")), "{first:+.2f} after {early} and {last:+.2f} after {late}"),
    ):
        before = predictors.average(predictors.measures(records))
        after = predictors.average(predictors.outcomes(records))
        gaps, apart = {step: [] for step in after.columns[[0, -1]]}, 0
        for chosen in predictors.candidate_sets(candidate_frame(records), after).values():
            for step, found in gaps.items():
                rho = predictors.bootstrap_scores(before.loc[chosen], after.loc[chosen, step], 1)["spearman"].iloc[0]
                found.append(rho["pass_k"] - rho["pass1"])
            both = before.loc[chosen, ["pass_k", "gen_loss"]]
            apart += predictors.disagreements(both, after.loc[chosen, after.columns[-1]], 1).iloc[0]
        (first, early), (last, late) = ((np.nanmean(found), step) for step, found in gaps.items())
        assert words.format(first=first, early=early, last=last, late=late) in SAID["length"]
        share = f"for {100 * apart['gen_loss'] / apart['pairs']:.0f} % of {apart['pairs']:.0f}"
        assert f"{share} {'pairs ' * (records is mini)}on results/{records.folder.name}" in SAID["disagree"]


def test_how_the_naive_choice_fared_is_computed_from_the_shipped_worlds(mini, first_world):
    for records, words in (
        (
            mini,
            "On {sets} sets of micro models (results/mini) it ended {naive:.1f} points below the best on average, the "
            "ranking's choice {rank:.1f} and a random one {random:.1f}",
        ),
        (first_world, "(results/mini-v1), {naive:.1f}, {rank:.1f} and {random:.1f}"),
    ):
        regret = 100 * check_ranking(candidate_frame(records)).filter(like="regret")
        naive, rank, random = regret.mean()[["regret_pass1", "regret", "regret_random"]]
        assert words.format(sets=len(regret), naive=naive, rank=rank, random=random) in SAID["naive"]


def test_how_both_fared_on_published_groups_is_computed_from_them():
    frame = public_evidence.comparable(public_evidence.load_rows())
    frame = frame[frame["kind"] == "SFT checkpoints"]
    regret = 100 * check_ranking(ranked := frame.dropna(subset=["pass_k"])).filter(like="regret")
    assert f"{len(ranked)} SFT checkpoints, {len(regret)} groups" in SAID["naive"]
    assert regret[["regret", "regret_pass1"]].abs().max().max() < 0.05
    assert f"a random one {regret['regret_random'].mean():.1f} points below" in SAID["naive"]
    large, loss = [], []
    for column, found in (("pass_k", large), ("gen_loss", loss)):
        for _, part in frame.dropna(subset=[column]).groupby("family", sort=False):
            if len(part) > 5:
                found.append(compare_predictors(part).dropna(subset=["r2"])["r2"].map("{:.2f}".format).tolist())
    (one, other), (small,) = large, loss
    assert f"{one[1]} and {other[1]} from Pass@32, {one[0]} and {other[0]} from Pass@1 (2 groups)" in SAID["real"]
    assert f"{small[1]} from the loss and {small[0]} from Pass@1 (1 group, 33 checkpoints)" in SAID["real"]
