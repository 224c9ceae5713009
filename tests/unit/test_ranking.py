"""The rule and its chances: against closed forms, simulated worlds, and the shipped records."""

import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from example_candidates import five_candidates, with_errors, world
from scipy import integrate, stats

from quagmire_utils.analysis.candidates import candidate_frame
from quagmire_utils.analysis.measurements import Measurements
from quagmire_utils.analysis.noise import ScoreNoise, Shrinkage, sampling_parts
from quagmire_utils.analysis.ranking import beaten_in_both, check_ranking, rank_candidates, rank_with_noise
from quagmire_utils.evaluation.pass_at_k import benchmark_average, pass_at_k


@pytest.fixture
def records():
    return five_candidates()


def test_ranking_rules_out_what_is_worse_on_both_counts(records):
    ranked = rank_candidates(records)
    assert ranked["candidate"].tolist() == ["b", "a", "d", "e", "c"]
    assert ranked["rank"].tolist()[:4] == [1, 2, 3, 4]
    assert ranked["rank"].isna().tolist() == [False] * 4 + [True]
    assert ranked.set_index("candidate").loc["c", "ruled_out_by"] == "b"
    assert ranked["ruled_out_by"].isna().sum() == 4
    by_pass_k = ["c", "b", "a", "d", "e"]
    assert rank_candidates(records.assign(scenario="instance"))["candidate"].tolist() == by_pass_k
    assert rank_candidates(records.assign(gen_loss=np.nan))["candidate"].tolist() == by_pass_k
    tied = records.assign(gen_loss=0.5, pass_k=0.5)
    assert rank_candidates(tied)["rank"].tolist() == [1] * 5, "an equal loss rules nobody out"


def test_who_is_beaten_is_what_the_definition_says():
    """Ties in score, in loss, in both, and missing losses: against the definition, pair by pair."""
    random = np.random.default_rng(0)
    score, loss = random.integers(0, 4, (200, 7)) / 4, random.integers(0, 4, (200, 7)) / 4
    loss[random.random(loss.shape) < 0.2] = np.nan
    by_other = (score[:, None] > score[..., None]) & (loss[:, None] < loss[..., None])
    beaten = beaten_in_both(score, loss)
    np.testing.assert_array_equal(beaten, by_other.any(axis=2))
    for row in range(20):
        table = pd.DataFrame({"candidate": list("abcdefg"), "pass1": score[row], "gen_loss": loss[row], "pass_k": 1.0})
        ranked = rank_candidates(table).set_index("candidate").loc[list("abcdefg")]
        assert ranked["rank"].isna().tolist() == beaten[row].tolist()


def test_bad_tables_are_refused(records, refused):
    for parameter, change in (
        ("pass_k", lambda r: r.drop(columns="pass_k")),
        ("candidate", lambda r: pd.concat([r, r])),
        ("family", lambda r: r.assign(family=list("aabbb"))),
        ("pass1", lambda r: r.assign(pass1=np.nan)),
    ):
        with refused(parameter):
            rank_candidates(change(records))


@pytest.mark.parametrize(("n", "later", "k"), [(8, 8, 3), (6, 6, 3), (8, 11, 4), (12, 40, 5)])
def test_sampling_noise_is_unbiased_at_any_number_of_answers(n, later, k):
    """Its expectation over all counts, exactly, is the variance that Pass@k, Pass@1 have with `later` answers."""
    p = Fraction(3, 7)

    def expectation(values, size):
        weights = [math.comb(size, c) * p**c * (1 - p) ** (size - c) for c in range(size + 1)]
        return sum(float(w) * v for w, v in zip(weights, values, strict=True))

    single = [sampling_parts(np.array([n]), np.array([c]), k) for c in range(n + 1)]
    noise = [
        ScoreNoise(np.zeros((2, 1)), np.zeros(1), np.zeros(1), np.zeros((2, 2)), k, np.array([n]), part[None])
        for part in single
    ]
    estimated = [one.sampling(later)[0] for one in noise]
    counts = np.arange(later + 1)
    first, large = pass_at_k(later, counts, 1), pass_at_k(later, counts, k)
    mean = [expectation(values, later) for values in (first, large)]
    truth = {
        (0, 0): expectation(first**2, later) - mean[0] ** 2,
        (0, 1): expectation(first * large, later) - mean[0] * mean[1],
        (1, 1): expectation(large**2, later) - mean[1] ** 2,
    }
    for (i, j), value in truth.items():
        assert expectation([one[i, j] for one in estimated], n) == pytest.approx(value, rel=1e-9)
        assert noise[0].sampling(math.inf)[0, i, j] == 0


def test_all_noise_is_the_standard_error_over_problems():
    random = np.random.default_rng(1)
    measured = world(random.beta(0.5, 1.5, (3, 60)), n=32, k=16)
    found = rank_with_noise(measured, n_draws=100).table.set_index("candidate")
    for name, mine in measured.counts.groupby("candidate"):
        error = benchmark_average(mine, [1, 16])["standard_error"]
        # negative parts of the rest count as zero, which adds a little noise
        assert found.loc[name, ["pass1_se", "pass_k_se"]].tolist() == pytest.approx(error.tolist(), rel=0.02)
        assert found.loc[name, "pass_k_sampling_se"] < found.loc[name, "pass_k_se"]


def truly_better(z: float, less: float = 1.0) -> float:
    """Chance that the first of two, `z` errors ahead, is better (half-Cauchy prior); less: its error's share."""

    def weight(spread: float) -> float:
        total = 1 + spread**2
        return math.exp(-(z**2) / 2 / total) / math.sqrt(total) / (1 + spread**2)

    def better(spread: float) -> float:
        mean = spread**2 / (1 + spread**2) * z
        return weight(spread) * stats.norm.cdf(mean / math.sqrt(spread**2 * less**2 / (spread**2 + less**2)))

    return integrate.quad(better, 0, math.inf)[0] / integrate.quad(weight, 0, math.inf)[0]


def test_chance_of_two_is_an_integral_over_their_spread():
    found = rank_with_noise(with_errors([(0.3, 1.0, 0.62), (0.5, 1.2, 0.60)], (1e-9, 1e-9, 0.01)), n_draws=40_000)
    truth = truly_better(0.02 / (0.01 * math.sqrt(2)))
    assert 0.75 < truth < stats.norm.cdf(math.sqrt(2)) - 0.02, "less than without the shrinkage"
    assert found.table["chance"].tolist() == pytest.approx([truth, 1 - truth], abs=0.01)
    assert (found.leader, found.samples, found.samples_needed) == ("c0", None, None)


def test_chance_of_being_ruled_out_is_a_product_of_two():
    """c1 is ruled out where its score is lower and its loss higher; where it is not, it wins by Pass@k."""
    found = rank_with_noise(with_errors([(0.50, 1.00, 0.6), (0.49, 1.01, 0.9)], (0.01, 0.02, 1e-9)), n_draws=40_000)
    out = truly_better(0.01 / (0.01 * math.sqrt(2))) * truly_better(0.01 / (0.02 * math.sqrt(2)))
    table = found.table.set_index("candidate")
    assert table.loc["c1", "chance_ruled_out"] == pytest.approx(out, abs=0.01)
    assert table.loc["c1", "chance"] == pytest.approx(1 - out, abs=0.01)
    assert table.loc["c1", "ruled_out_by"] == "c0"
    assert found.leader == "c1"
    assert found.table["candidate"].iloc[0] == "c0"


def test_answers_needed_are_those_of_the_closed_form():
    """Two candidates with the same chance p or q on every problem: only answers matter, and their noise is known."""
    p, q, n, k, problems = 0.10, 0.104, 64, 8, 400
    rng = np.random.default_rng(3)
    measured = world(np.array([[p] * problems, [q] * problems]), n, k, seed=6)
    found = rank_with_noise(measured, confidence=0.95, n_draws=40_000)
    table = found.table.set_index("candidate")
    gap = table["pass_k"].iloc[0] - table["pass_k"].iloc[1]

    def error(samples: int) -> float:
        draws = [pass_at_k(samples, rng.binomial(samples, r, 200_000), k) for r in (p, q)]
        return math.sqrt(sum(one.var() for one in draws) / problems)

    def chance(samples: int) -> float:
        return truly_better(gap / error(n), error(samples) / error(n))

    assert found.chance == table["chance"].iloc[0] > 0.5
    assert table["chance_here"].iloc[0] == pytest.approx(chance(n), abs=0.02)
    assert found.samples_needed_here > n, "otherwise this tests nothing"
    assert chance(found.samples_needed_here) == pytest.approx(0.95, abs=0.01)
    ends = found.curve.set_index("n")["chance_here"]
    assert ends.loc[math.inf] == 1
    assert ends.loc[128.0] == pytest.approx(chance(128), abs=0.02)


def test_chances_of_a_million_draws_of_the_model():
    """No formula of ours: truths drawn from the prior, estimates from them, and what is kept is near the estimates."""
    random = np.random.default_rng(0)
    errors, estimates = np.array([0.5, 1.0, 2.0]), np.array([0.9, 1.2, 0.0])
    typical = math.sqrt(np.trace(np.diag(errors**2) @ (np.eye(3) - 1 / 3)) / 2)
    spread = typical * np.abs(random.standard_cauchy((2_000_000, 1)))
    truth = spread * random.normal(size=(2_000_000, 3))
    seen = truth + errors * random.normal(size=(2_000_000, 3))
    off = (seen - seen.mean(axis=1, keepdims=True)) - (estimates - estimates.mean())
    near = truth[(np.abs(off) < 0.15).all(axis=1)]
    chance = np.bincount(near.argmax(axis=1), minlength=3) / len(near)
    standard, uniform = random.normal(size=(40_000, 3)), random.uniform(size=40_000)
    covariance = np.diag(errors**2)
    model = Shrinkage(estimates, covariance, standard, uniform)
    drawn = model.draws(covariance, errors * random.normal(size=(40_000, 3)))
    assert len(near) > 3000
    assert np.bincount(drawn.argmax(axis=1), minlength=3) / 40_000 == pytest.approx(chance, abs=0.03)
    assert drawn.mean(axis=0) == pytest.approx(estimates.mean() + near.mean(axis=0) - near.mean(), abs=0.06)


def test_a_settled_choice_and_one_without_noise(refused):
    sure = rank_with_noise(world(np.array([[0.05] * 80, [0.6] * 80]), 32, 8))
    assert (sure.leader, sure.samples_needed, sure.limit) == ("c1", 32, "")
    assert "settled" in sure.advice
    table = with_errors([(0.3, 1.0, 0.62), (0.5, 1.2, 0.60)], (0.01, 0.01, 0.01)).table.drop(columns=["pass_k_se"])
    bare = rank_with_noise(Measurements(table, None, table, 64, "mine.csv"))
    assert math.isnan(bare.chance)
    assert "cannot be computed" in bare.advice
    pd.testing.assert_frame_equal(bare.table[rank_candidates(table).columns], rank_candidates(table))
    for name, value in {"confidence": 95, "n_draws": 3}.items():
        with refused(name):
            rank_with_noise(with_errors([(0, 0, 0)], (1, 1, 1)), **{name: value})


def test_advice_on_the_shipped_records(first_world):
    """The regret of the advice, computed again by hand from the frame."""
    frame = candidate_frame(first_world)
    check = check_ranking(frame)
    assert len(check) == 6
    for row in check.itertuples():
        part = frame[(frame["family"] == row.family) & (frame["selection"] != "none")]
        part = part[part["scenario"].str.contains(row.scenario)].set_index("candidate")
        assert row.candidates == len(part)
        assert row.regret == pytest.approx(part["outcome"].max() - part.loc[row.chosen.split(", "), "outcome"].mean())
        assert row.regret_pass1 == pytest.approx(part["outcome"].max() - part.loc[part["pass1"].idxmax(), "outcome"])
        assert row.regret_random == pytest.approx((part["outcome"].max() - part["outcome"]).mean())
    assert check["regret"].mean() < 0.2 * check["regret_random"].mean()
