"""The ledger of claims: verdicts on worlds whose truth is known by construction, and how often intervals hold it."""

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
from example_records import Candidate, grid_of, make_records, write_records
from scipy import stats

from quagmire_utils.analysis import claims, tables
from quagmire_utils.analysis.candidates import candidate_frame, deviation_of_best, run_noise, select_candidates
from quagmire_utils.analysis.claims.evidence import STATISTICS, Estimate, Evidence, contrast, smallest_contrast
from quagmire_utils.analysis.claims.statistics import published_gain
from quagmire_utils.core import published as paper
from quagmire_utils.core.records import load_records

LLAMA, MISTRAL, QWEN = paper.MODELS
TOKENS = {"none": 0, "random": 100, "shortest": 50, "longest": 160, "shortest+longest": 12800 / 120}  # an example
GRID = grid_of(
    [  # selection, scenario, another source and learning rate, examples x epochs
        "random dataset 32x4 32x16 512x4",
        "random dataset+instance 128x1",
        "random dataset+instance+source 512x1",
        "random dataset+source 128x4 5e-4 128x4 512x1",
        "shortest instance 256x1 1024x1",
        "longest instance 80x1 320x1",
        "shortest+longest instance 120x1 480x1",
        "random source other 512x1 128x4 5e-4 512x1 128x4",
    ]
)


def world(score, outcome, model: str = MISTRAL, error: float = 0.001) -> pd.DataFrame:
    """A candidate frame over GRID: score and outcome are functions of a candidate; error is that of every number."""
    grid = [Candidate("none", 0, 1, "dataset"), *GRID]
    frame = pd.DataFrame([dataclasses.asdict(one) | {"candidate": one.name} for one in grid]).astype({"epochs": float})
    frame = frame.assign(family="micro", stands_for=model, k=64, budget="low", n_runs=4)
    frame["sft_tokens"] = frame["selection"].map(TOKENS) * frame["n_examples"] * frame["epochs"]
    frame["pass1"] = [float(score(row)) for row in frame.itertuples()]
    frame["outcome"] = frame["outcome_last"] = [float(outcome(row)) for row in frame.itertuples()]
    frame["gain"] = frame["outcome"] - frame["pass1"]
    errors = dict.fromkeys(("pass1_sampling_se", "outcome_sampling_se", "outcome_last_std"), error)
    return frame.assign(**errors, pass_k=frame["pass1"], gen_loss=1.0 - frame["pass1"], gen_loss_se=0.001)


def claim_of(name: str, frame: pd.DataFrame) -> claims.Result:
    """The claim of that name about the one family of the frame."""
    model = frame["stands_for"].iloc[0]
    (entry,) = [claim for claim in claims.all_claims() if claim.id == name]
    place = next(place for place, models in entry.places.items() if model in models)
    found = claims.about(frame, place)
    (claim,) = [result for result in found if (result.claim.id, result.model) == (name, model)]
    return claim


def flat(_) -> float:
    return 0.5


CANDIDATES = {  # whom an effect is on; a number of examples goes for itself
    "trained": lambda row: row.selection != "none",
    "shortest": lambda row: row.selection == "shortest",
    "longest": lambda row: row.selection == "longest",
    "long": lambda row: "longest" in row.selection,
    "mixture": lambda row: row.selection == "shortest+longest",
    "fast": lambda row: row.learning_rate > 2e-4,
    "16 epochs": lambda row: row.epochs == 16,
}


def effect(text: str):
    """The score or the outcome that "shortest +0.1", "512 +0.1", "epochs -0.1" or "examples +0.05" describes."""
    if not text:
        return flat
    whom, value = text.rsplit(" ", 1)
    if whom == "epochs":  # rises each time that the examples are seen four times as often
        return lambda row: 0.5 + float(value) * math.log(row.epochs, 4)
    if whom == "examples":
        return lambda row: 0.5 + float(value) * math.log2(1 + row.n_examples / 128)
    chosen = CANDIDATES.get(whom, lambda row: row.n_examples == int(whom))
    return lambda row: 0.5 + float(value) * chosen(row)


MADE_TRUE_AND_FALSE = """
repeating_raises_score                | mistral | epochs +0.1 /               | epochs -0.1 /
repeating_stalls_outcome              | mistral | epochs +0.1 /               | / epochs +0.1
repeating_stalls_outcome              | qwen    | epochs +0.1 / epochs -0.1   | / epochs +0.1
repeating_leaves_less_to_gain         | llama   | epochs +0.1 /               | / epochs +0.1
half_twice_scores_higher              | llama   | epochs +0.1 /               | epochs -0.1 /
half_twice_ends_higher                | qwen    | / epochs +0.1               | / epochs -0.1
repeated_sft_degrades_outcome         | qwen    | / trained -0.1              | / trained +0.1
repeated_scores_higher_across_sources | llama   | epochs +0.1 /               | epochs -0.1 /
repeated_ends_lower_across_sources    | llama   | / epochs -0.1               | / epochs +0.1
larger_rate_scores_higher             | llama   | fast +0.1 /                 | fast -0.1 /
larger_rate_leaves_less_to_gain       | llama   | / fast -0.1                 | / fast +0.1
shortest_score_higher                 | mistral | shortest +0.1 /             | shortest -0.1 /
shortest_score_higher                 | llama   | shortest +0.1 /             | shortest -0.1 /
shortest_end_lower                    | llama   | / shortest -0.1             | / shortest +0.1
few_shortest_lower_score              | mistral | 256 -0.1 /                  | 256 +0.1 /
few_shortest_lower_outcome            | mistral | / 256 -0.1                  | / 256 +0.1
many_shortest_raise_outcome           | mistral | / 1024 +0.1                 | / 1024 -0.1
outcome_recovers_slower               | mistral | trained +0.2 / trained +0.1 | / trained +0.1
more_examples_raise_score             | mistral | examples +0.05 /            | examples -0.05 /
more_examples_raise_outcome           | mistral | / examples +0.05            | / examples -0.05
strong_base_scores_higher_2           | qwen    | trained +0.1 /              | trained -0.1 /
strong_base_gains_nothing_2           | qwen    | trained +0.1 /              | / trained +0.1
strong_base_gains_nothing_9           | qwen    | / trained -0.1              | / trained +0.1
long_examples_raise_outcome           | qwen    | / long +0.1                 | / long -0.1
other_sft_degrades_outcome            | qwen    | / shortest -0.1             | / shortest +0.1
every_sft_scores_higher               | qwen    | trained +0.1 /              | 80 -0.1 /
mixture_ends_best                     | qwen    | / mixture +0.1              | / longest +0.1
some_sft_ends_below_base              | llama   | trained +0.1 / 80 -0.1      | trained +0.1 / trained +0.1
best_score_is_not_best_dataset        | llama   | 16 epochs +0.1 / 512 +0.1   | 16 epochs +0.1 / 16 epochs +0.1
best_score_is_not_best_1              | mistral | 1024 +0.1 / 320 +0.1        | 1024 +0.1 / 1024 +0.1
best_score_is_not_best_7              | llama   | 1024 +0.1 / 512 +0.1        | 1024 +0.1 / 1024 +0.1
"""  # claim | model | effect on the score / on the outcome that makes it true | that makes it false
COMPARISONS = [[part.strip() for part in line.split("|")] for line in MADE_TRUE_AND_FALSE.strip().splitlines()]


@pytest.mark.parametrize(("name", "short", "true", "false"), COMPARISONS, ids=lambda text: text)
def test_a_comparison_made_true_holds_made_false_fails_and_noise_decides_nothing(name, short, true, false):
    (model,) = [model for model in paper.MODELS if model.lower().startswith(short)]
    for text, expected in ((true, "holds"), (false, "fails")):
        score, outcome = (effect(part.strip()) for part in text.split("/"))
        assert claim_of(name, world(score, outcome, model)).verdict == expected
        assert claim_of(name, world(score, outcome, model, error=3.0)).verdict == "undecided"


def test_every_comparison_of_the_ledger_is_tested_above():
    over = {claim.id for claim in claims.all_claims() if claim.unit == "points"}
    assert over - {"strong_base_scores_higher_9"} == {name for name, *_ in COMPARISONS}


@pytest.mark.parametrize(
    ("name", "model", "size", "absent"),
    [
        ("best_score_is_not_best_1", MISTRAL, "6 candidates", "shortest+longest-"),
        ("best_score_is_not_best_7", LLAMA, "4 candidates", "longest-"),
        ("mixture_ends_best", QWEN, "4 selections", "x4"),
    ],
)
def test_a_claim_about_the_best_compares_what_its_figure_shows(name, model, size, absent):
    """Examples of one epoch and the figure's selections, all of them counted, even if others do best."""

    def best(row) -> float:
        return 0.8 if row.selection == "shortest+longest" or row.epochs > 1 else 0.5

    claim = claim_of(name, world(best, best, model))
    assert claim.size == size
    assert absent not in claim.estimate.statistic


def test_the_value_is_the_mean_difference_of_pairs_at_equal_tokens():
    frame = world(lambda r: r.n_examples / 10_000 * r.epochs**0.5, flat)
    claim = claim_of("half_twice_scores_higher", frame)
    pass1 = frame.set_index("candidate")["pass1"]
    pairs = [("random-32x4", "random-128x1"), ("random-128x4", "random-512x1")]
    expected = np.mean([pass1[a] - pass1[b] for a, b in pairs])
    assert claim.estimate.value == pytest.approx(expected, abs=1e-12)
    assert claim.estimate.n == 2
    # with a half of them twice in the grid, that one is taken
    half = frame[frame["candidate"] == "random-128x1"].assign(candidate="half", n_examples=64, epochs=2.0, pass1=0.9)
    claim = claim_of("half_twice_scores_higher", pd.concat([frame, half], ignore_index=True))
    assert "half minus random-128x1" in claim.estimate.statistic
    assert "random-32x4" not in claim.estimate.statistic


def sample(seed: int, n: int = 60, **weights: float) -> pd.DataFrame:
    """n candidates: each named column is its weight times the outcome's spread plus independent noise."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(n)
    columns = {name: w * z + math.sqrt(1 - w * w) * rng.standard_normal(n) for name, w in weights.items()}
    return pd.DataFrame({"outcome": z, **columns})


def evidence(frame: pd.DataFrame, own: pd.Series | None = None, outcome: str = "outcome") -> Evidence:
    """What `gather` makes of a family, without the time of asking which rows it has."""
    return Evidence("micro", LLAMA, outcome, frame, frame, run_noise(frame, None, outcome), own)


def decided(estimate, below: bool = False, bound: float = 0.0) -> str:
    return tables.verdict(*estimate.interval(0.95), bound, below=below)


def statistic(name: str, frame: pd.DataFrame, own: pd.Series | None = None, **arguments: object) -> Estimate:
    """A statistic on the frame's candidates, with what it lacks."""
    fixed = {"family": "micro", "stands_for": LLAMA, "scenario": "dataset+instance", "selection": "random", "k": 64}
    fixed |= {"candidate": [f"c{i}" for i in range(len(frame))], "outcome_last_std": np.nan, "n_runs": 1}
    fixed |= {"budget": np.resize(["low", "medium", "high"], len(frame)), "gen_loss": 0.0}
    complete = frame.assign(**{key: value for key, value in fixed.items() if key not in frame})
    return STATISTICS[name](evidence(complete, own), **arguments)


def test_the_variance_that_the_score_explains():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=60)
    line = pd.DataFrame({"pass1": x, "outcome": 0.3 + 0.5 * x + 0.01 * rng.standard_normal(60)})
    found = statistic("explained_variance", line)
    assert found.value == pytest.approx(stats.linregress(line["pass1"], line["outcome"]).rvalue ** 2, abs=1e-9)
    assert decided(found, below=True, bound=0.8) == "fails"
    chance = line.assign(outcome=rng.uniform(size=60))
    assert decided(statistic("explained_variance", chance), below=True, bound=0.8) == "holds"
    assert math.isnan(statistic("explained_variance", line.iloc[:3]).value)


def test_the_rise_of_the_loss(records):
    frame = candidate_frame(records).query("family == 'micro-llama'").assign(family="micro")
    series = select_candidates(frame, "micro").query("n_examples == 250").set_index("epochs")["gen_loss"]
    found = statistic("loss_rise", frame)
    assert found.value == pytest.approx(series[16] - min(series[1], series[4]), abs=1e-9)
    assert decided(found) == "holds"
    assert decided(statistic("loss_rise", frame.assign(gen_loss=2 - frame["epochs"] / 16))) == "fails"
    assert decided(statistic("loss_rise", frame.assign(gen_loss_se=10.0))) == "undecided"
    assert math.isnan(statistic("loss_rise", frame[frame["n_examples"] == 4000]).value)


def test_the_loss_and_the_gain():
    frame = sample(6, pass1=0.5, gen_loss=-0.9)
    gain = frame["outcome"] - frame["pass1"]
    found = statistic("loss_and_gain", frame)
    assert found.value == pytest.approx(stats.spearmanr(frame["gen_loss"], gain).statistic, abs=1e-9)
    for loss, expected in ((-gain, "holds"), (gain, "fails")):
        assert decided(statistic("loss_and_gain", frame.assign(gen_loss=loss)), below=True) == expected
    assert math.isnan(statistic("loss_and_gain", frame.assign(gen_loss=1.0)).value)


def test_the_loss_says_more_than_the_score_or_does_not():
    rng = np.random.default_rng(1)
    score, extra = rng.standard_normal((2, 60))
    noise = 0.3 * rng.standard_normal(60)
    frame = pd.DataFrame({"pass1": score, "outcome": score + extra})
    for loss, expected in ((-score - extra + noise, "holds"), (-score + extra + noise, "fails"), (noise, "undecided")):
        found = statistic("loss_beyond_score", frame.assign(gen_loss=loss))
        assert decided(found, below=True) == expected
        x, *others = (stats.rankdata(values) for values in (score, loss, frame["outcome"]))
        left = [ranks - np.polyval(np.polyfit(x, ranks, 1), x) for ranks in others]
        assert found.value == pytest.approx(stats.pearsonr(*left).statistic, abs=1e-12)
    assert math.isnan(statistic("loss_beyond_score", frame.assign(gen_loss=-score)).value)  # nothing varies


def test_dominated_candidates():
    frame = sample(2, pass1=0.9).assign(gen_loss=lambda f: -f["outcome"])
    score, loss, after = (frame[name].to_numpy()[:, None] for name in ("pass1", "gen_loss", "outcome"))
    dominated = (score < score.T) & (loss > loss.T)
    found = statistic("dominated_share", frame)
    assert found.value == pytest.approx((after < after.T)[dominated].mean())
    assert decided(found, bound=0.5) == "holds"
    noise = np.random.default_rng(0).standard_normal(60)
    for outcome, expected in ((-frame["outcome"], "fails"), (noise, "undecided")):
        assert decided(statistic("dominated_share", frame.assign(outcome=outcome)), bound=0.5) == expected


@pytest.mark.parametrize("other", ["pass_k", "gen_loss"])
def test_the_loss_across_data_sets(other):
    frame = sample(3, own=-0.05, gen_loss=-0.97, pass_k=0.97)
    own = frame["own"].set_axis([f"c{i}" for i in range(60)])
    test = partial(statistic, "own_loss_minus_other", other=other)
    found = test(frame, own)
    expected = stats.spearmanr(-frame["own"], frame["outcome"]).statistic
    expected -= abs(stats.spearmanr(frame[other], frame["outcome"]).statistic)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert decided(found, below=True) == "holds"
    good = (-frame["outcome"]).set_axis(own.index)
    turned = frame.assign(gen_loss=frame["own"], pass_k=-frame["own"])
    assert decided(test(turned, good), below=True) == "fails"
    assert test(frame).n == 0
    assert test(frame.assign(scenario="dataset"), own).n == 0  # the same data for all: not what the claim is about


@pytest.mark.parametrize(("name", "number"), [("rank_gain", 1), ("rank_gain", 8), ("r2_gain", 4), ("r2_gain", 7)])
def test_a_better_predictor_holds_a_worse_one_fails(name, number):
    test = partial(statistic, name, table=number, predictor="pass_k")
    better = sample(4, 28, pass1=0.3, pass_k=0.98)
    assert decided(test(better)) == "holds"
    assert decided(test(sample(4, 28, pass1=0.98, pass_k=0.3))) == "fails"
    assert decided(test(sample(4, 16, pass1=0.8, pass_k=0.8))) == "undecided"
    assert math.isnan(test(better.iloc[:3]).value)


def test_a_rank_claim_is_the_table_that_it_is_about(full_records):
    """Value, interval and verdict: the claim may not pool what the table averages."""
    frame = candidate_frame(full_records, k=16)
    intervals = 0
    for number in (1, 3, 8, 10):
        table = tables.compute_table(frame, number)
        rows = table[table["row"].eq("Average") if number > 3 else table["status"].eq("measured")]
        cells = rows.set_index(["family", "column"])
        found = [claim for claim in claims.about(frame, f"Table {number}") if claim.family]
        assert len(found) == (rows["column"] != "pass1").sum() > 0
        for claim in found:
            cell = cells.loc[claim.family, claim.claim.arguments["predictor"]]
            estimate, (low, high) = claim.estimate, claim.estimate.interval(0.95)
            mine, theirs = (estimate.value, low, high), (cell["gain"], cell["gain_low"], cell["gain_high"])
            assert mine == pytest.approx(theirs, abs=1e-12, nan_ok=True)
            assert (claim.verdict, estimate.n) == (cell["verdict"], cell["n_candidates"])
            intervals += not math.isnan(low)
    assert intervals > 3  # of budgets of four candidates there is none


def noisy_family(rng: np.random.Generator, best_of: bool, runs: int = 3, n: int = 6) -> tuple[pd.DataFrame, np.ndarray]:
    """n candidates with known expected outcomes, each measured by `runs` RL runs of equal noise."""
    truth = np.linspace(0.3, 0.6, n)
    drawn = truth[:, None] + 0.05 * rng.standard_normal((n, runs))
    measured = {
        "outcome": drawn.max(1) if best_of else drawn.mean(1),
        "outcome_last": drawn.mean(1),
        "outcome_last_std": drawn.std(1, ddof=1),
        "pass1": truth + 0.02 * rng.standard_normal(n),
    }
    names = {"family": "micro", "stands_for": LLAMA, "selection": "random", "scenario": "dataset", "source": "main"}
    frame = pd.DataFrame({"candidate": [f"c{i}" for i in range(n)], **measured}).assign(**names, learning_rate=1e-4)
    return frame.assign(n_runs=runs, pass1_sampling_se=0.02, outcome_sampling_se=0.01), truth


@pytest.mark.parametrize("outcome", ["outcome", "outcome_last"])
def test_intervals_of_comparisons_hold_the_truth_as_often_as_they_say(outcome):
    rng = np.random.default_rng(0)
    held = {"outcome": [], "gain": [], "pass1": []}
    pairs = [(0, 3), (1, 4), (2, 3)]  # two share a candidate
    for _ in range(250):
        frame, truth = noisy_family(rng, best_of=outcome == "outcome")
        found = evidence(frame, outcome=outcome)
        expected = np.mean([truth[a] - truth[b] for a, b in pairs])
        for what, wanted in (("outcome", expected), ("pass1", expected), ("gain", 0.0)):
            low, high = contrast(found, pairs, what).interval(0.95)
            held[what].append(low <= wanted <= high)
    spread = math.sqrt(0.95 * 0.05 / 250)
    assert {what: np.mean(each) for what, each in held.items()} == pytest.approx(
        dict.fromkeys(held, 0.95), abs=4 * spread
    )


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_the_interval_of_a_smallest_difference_holds_it_at_least_as_often_as_it_says(spread):
    rng = np.random.default_rng(1)
    held = []
    for _ in range(120):
        frame, truth = noisy_family(rng, best_of=False)
        nearer = 0.45 + spread * (truth - 0.45)  # all nearly equal is the hard case
        frame["outcome_last"] += nearer - truth
        found = evidence(frame, outcome="outcome_last")
        estimate = smallest_contrast(found, [[(0, other)] for other in range(1, 6)], "outcome", "first minus best", 6)
        low, high = estimate.interval(0.95)
        held.append(low <= (nearer[0] - nearer[1:]).min() <= high)
    assert np.mean(held) >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / len(held))


def test_the_deviation_of_a_best():
    assert deviation_of_best(2) == pytest.approx(math.sqrt(1 - 1 / math.pi))
    drawn = np.random.default_rng(0).standard_normal((200_000, 4)).max(axis=1)
    assert deviation_of_best(4) == pytest.approx(drawn.std(), rel=0.01)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    families = {"micro-llama": LLAMA, "micro-mistral": MISTRAL}
    return load_records(write_records(tmp_path_factory.mktemp("claims") / "example", make_records(families)))


@pytest.fixture(scope="module")
def results(records):
    return claims.all_results(candidate_frame(records), records)


def test_the_noise_between_runs_comes_from_the_counts(records):
    frame = candidate_frame(records)
    counts = records.counts[(records.counts["family"] == "micro-llama") & (records.counts["stage"] == "rl")]
    rate = counts.assign(rate=counts["correct"] / counts["n"])
    keys = ["candidate", "rl_run", "checkpoint"]
    macro = rate.groupby([*keys, "benchmark"])["rate"].mean().groupby(keys).mean()
    best = macro.groupby(["candidate", "rl_run"]).max().to_frame().pivot_table(index="candidate", columns="rl_run")
    noise = run_noise(frame[frame["family"] == "micro-llama"], records, "outcome")
    assert noise.degrees == best.shape[0] * (best.shape[1] - 1)
    assert noise.deviation == pytest.approx(math.sqrt(best.var(axis=1, ddof=1).mean()))
    errors = noise.standard_errors(np.array([1, 4]), np.array([0.1, 0.1]))
    assert errors == pytest.approx([noise.deviation, noise.deviation * deviation_of_best(4)])


def test_a_family_without_a_second_run_takes_the_noise_of_the_others(mini):
    """Else its intervals would hold the sampling of answers alone, and decide what another run would turn."""
    frame, counts = candidate_frame(mini), mini.counts[mini.counts["stage"] == "rl"]
    once = dataclasses.replace(
        mini, counts=mini.counts[(mini.counts["family"] != "micro-qwen") | (mini.counts["rl_run"] < 1)]
    )
    noise = run_noise(frame[frame["family"] == "micro-qwen"], once, "outcome_last")
    last = counts[(counts["checkpoint"] == counts["checkpoint"].max()) & (counts["family"] != "micro-qwen")]
    runs = last.assign(rate=last["correct"] / last["n"]).groupby(["family", "candidate", "rl_run"])["rate"].mean()
    within = runs - runs.groupby(["family", "candidate"]).transform("mean")
    degrees = len(runs) - len(runs.groupby(["family", "candidate"]))
    assert (noise.others, noise.degrees) == (True, degrees)
    assert noise.deviation == pytest.approx(math.sqrt((within**2).sum() / degrees))
    assert not run_noise(frame[frame["family"] == "micro-llama"], once, "outcome_last").others


def test_a_ledger_has_every_claim_for_every_family(results):
    table = claims.ledger(results)
    assert len(table) == sum(len({m for ms in claim.places.values() for m in ms}) for claim in claims.all_claims())
    assert set(table.loc[table["model"] == QWEN, "verdict"]) == {"not run"}
    assert set(table["verdict"]) <= set(claims.VERDICTS)
    done = table[table["verdict"].isin(claims.VERDICTS[:3])]
    assert len(done) > 15
    assert (done["low"] <= done["high"]).all()
    computed = [tables.verdict(row.low, row.high, row.bound, below=row.below) for row in done.itertuples()]
    assert done["verdict"].tolist() == computed
    together = done[done["together"] != "undecided"]  # what holds with all others at once holds alone
    assert (together["together"] == together["verdict"]).all()
    shown = claims.show_ledger(results)
    assert len(shown) == len(table)
    assert "nan" not in shown.to_string().lower()
    nothing = claims.ledger(claims.all_results(world(flat, flat, "some other model")))
    assert set(nothing["verdict"]) == {"not run"}


def test_the_claims_of_a_place(records, refused):
    frame = candidate_frame(records)
    (claim,) = claims.about(frame, "Fig. 3", records=records)
    assert (claim.claim.id, claim.claim.published(claim.model)) == ("score_explains_part", 0.43)
    assert claims.about(frame, "Fig. 99") == []
    assert {claim.model for claim in claims.about(frame, "Fig. 4")} == {MISTRAL, QWEN}
    for number in range(1, 11):
        assert claims.about(frame, f"Fig. {number}", records=records)
        assert claims.about(frame, f"Table {number}", records=records)
    with refused("outcome"):
        claims.about(frame, "Fig. 3", outcome="reward")
    with refused("family"):
        claims.about(frame, "Fig. 3", family="Llama")
    for wrong in (frame.drop(columns="stands_for"), frame.iloc[:0], pd.concat([frame, frame.iloc[[1]]]), None):
        with refused("frame"):
            claims.all_results(wrong)


def test_the_matrix_holds_every_result_once_in_the_papers_order(results):
    several = [dataclasses.replace(result, family=f"group {i}") for i in range(4) for result in results]
    found = claims.matrix({"micro models": results, "small real model": [], "published": several})
    assert json.loads(json.dumps(found)) == found
    verdicts = {}
    for result in results:
        verdicts.setdefault(result.family or result.model, []).append(result.verdict)
    assert [column["family"] for column in found["columns"]] == [*verdicts, "", ""]
    rows = found["rows"]
    for place, expected in enumerate(verdicts.values()):
        cells = [row["cells"][place] for row in rows]
        assert max(map(len, cells)) == 1
        assert sorted(cell["verdict"] for one in cells for cell in one) == sorted(expected)
    assert not any(row["cells"][-2] for row in rows)
    assert sum(len(row["cells"][-1]) for row in rows) == len(several)
    assert rows[0]["places"].startswith("Abstract")
    assert rows[-1]["places"] == "Table 8, Table 10"
    assert {row["claim"] for row in rows if row["trivial"]} == {c.claim for c in claims.all_claims() if c.trivial}


def test_the_quotes_are_the_papers_words_and_the_gains_its_numbers(paper_file):
    text = paper_file("paper.txt").read_text(encoding="utf-8")
    for claim in claims.all_claims():
        assert claim.quote in text, claim.id
    names = [claim.id for claim in claims.all_claims()]
    assert len(set(names)) == len(names)
    assert published_gain(1, LLAMA, "avg_genloss_pass_k") == pytest.approx(0.22)
    assert published_gain(10, MISTRAL, "pass_k") == pytest.approx(0.28)
    assert published_gain(6, MISTRAL, "pass_k") == pytest.approx(0.47 - 0.31)  # the smallest of all
