"""Sequential decisions: their errors in simulated worlds of known truth, and what they say in certain cases."""

import numpy as np
import pandas as pd
import pytest

from quagmire_utils.evaluation.pass_at_k import MACRO, compare
from quagmire_utils.evaluation.pass_at_k.sequential import Boundary, Design, looks

BENCHMARKS = np.repeat(["x", "y", "z"], 20)


def drawer(worlds, rng):
    """A `draw` of independent answers; worlds: {candidate: success rate of each problem}."""

    def draw(name, first, last):
        return rng.binomial(last - first, worlds[name]), 10 * (last - first)

    return draw


def alike(worlds, rng):
    """A `draw` in which answer i of every candidate rests on the same random number, as with equal seeds."""
    numbers, places = rng.random((len(BENCHMARKS), 512)), np.arange(512)

    def draw(name, first, last):
        asked = (places >= first[:, None]) & (places < last[:, None])
        return (asked & (numbers < worlds[name][:, None])).sum(axis=1), 10 * (last - first)

    return draw


def rates(rng, centre=-1.0):
    """Success rates of problems of very different difficulty."""
    return 1 / (1 + np.exp(-rng.normal(centre, 2, len(BENCHMARKS))))


def similar(rng, centre):
    """Two models whose rates differ on every problem, but not on average over problems of this kind."""
    common = rng.normal(centre, 2, len(BENCHMARKS))
    a, b = (1 / (1 + np.exp(-common - rng.normal(0, 1, len(BENCHMARKS)))) for _ in range(2))
    return {"a": a, "b": b}


def shuffled(rng, centre):
    """Two models with equal means on exactly these problems, though they solve different ones."""
    a = rates(rng, centre)
    own = a.reshape(3, 20)
    return {"a": a, "b": rng.permuted(own, axis=1).ravel()}


def at_the_edge(rng, centre):
    """Two models that differ on every problem by as much as is still said to be no difference."""
    low = 0.9 * rates(rng, centre)
    return {"a": low + 0.02, "b": low}


@pytest.mark.parametrize("times", [[1, 2, 4, 8, 16, 32], [4, 5, 5.5, 6, 6.2]])
def test_a_boundary_is_left_as_often_as_planned_at_every_look(times):
    rng, boundary, paths = np.random.default_rng(0), Boundary(0.01), 400_000
    at, inside = np.zeros(paths), np.ones(paths, dtype=bool)
    levels = [boundary.level(time) for time in times]
    assert levels[0] == pytest.approx(0.01)
    assert levels == sorted(levels)  # what earlier looks have spent is not spent again
    from scipy.special import ndtri

    for step, time, level in zip(np.diff(times, prepend=0), times, levels, strict=True):
        at = at + rng.normal(0, np.sqrt(step), paths)
        leaves = inside & (np.abs(at) > np.sqrt(time) * ndtri(1 - level / 2))
        assert leaves.mean() == pytest.approx(0.01, abs=0.0007)
        inside &= ~leaves


@pytest.mark.parametrize(("k", "answers"), [(1, 2), (8, 8)])
def test_a_single_look_is_the_comparison_of_today(k, answers):
    rng = np.random.default_rng(1)
    counts = {name: rng.binomial(answers, rates(rng)) for name in "ab"}
    (look,) = looks("ab", lambda name, _, last: (counts[name], last), BENCHMARKS, Design(most=answers, k=k))
    keys = {"benchmark": BENCHMARKS, "problem": np.arange(60).astype(str), "n": answers}
    table = compare(*(pd.DataFrame({**keys, "correct": counts[name]}) for name in "ab"), [k])
    row = table[table["benchmark"] == MACRO].iloc[0]
    found = look.lead("a", "b")
    assert [found.value, found.low, found.high] == pytest.approx([row["difference"], row["low"], row["high"]])
    assert look.lead("b", "a").low == -found.high


def wrong(worlds, design, number, make=drawer, centre=-1.0):
    """Shares of `number` worlds in which an interval misses the truth at any look, and whose verdict is wrong."""
    rng, missed, wrong = np.random.default_rng(2), 0, 0
    for _ in range(number):
        rates = worlds(rng, centre)
        truth = float(np.mean(rates["a"] - rates["b"])) if design.these_problems or worlds is at_the_edge else 0.0
        verdict, outside = "", False
        for look in looks("ab", make(rates, rng), BENCHMARKS, design):
            found = look.lead("a", "b")
            outside |= not found.low - 1e-9 <= truth <= found.high + 1e-9
            verdict = verdict or look.verdict("a", "b")
        missed += outside
        right = {"a": truth > 0, "b": truth < 0, "equal": abs(truth) < design.within - 1e-9, "": True}
        wrong += not right[verdict]
    return missed / number, wrong / number


CASES = [
    (similar, {}, drawer, -1.0),
    (similar, {"k": 8}, drawer, -4.0),
    (at_the_edge, {}, drawer, -1.0),
    (shuffled, {"these_problems": True}, drawer, -1.0),
    (similar, {"these_problems": True}, alike, -1.0),
    (at_the_edge, {"these_problems": True}, drawer, -3.0),
]


@pytest.mark.parametrize(
    ("worlds", "changes", "make", "centre", "number"),
    [
        (similar, {"most": 16}, drawer, -1.0, 100),
        *(pytest.param(*case, 2000, marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_errors_in_simulated_worlds(worlds, changes, make, centre, number):
    """Five per cent at all looks together, whatever stops the run, to 2.5 standard errors."""
    missed, verdicts = wrong(worlds, Design(**changes), number, make, centre)
    assert missed < 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / number)
    assert verdicts <= missed


def test_the_luck_of_first_answers_does_not_bias_what_follows():
    """Problems get more answers the more theirs vary; the plain mean over answers is then too low."""
    rng, truth, scores, plain = np.random.default_rng(3), np.full(60, 0.05), [], []
    for _ in range(200):
        right, answers = dict.fromkeys("ab", 0), dict.fromkeys("ab", 0)

        def draw(name, first, last, right=right, answers=answers):
            correct = rng.binomial(last - first, truth)
            right[name], answers[name] = right[name] + correct, answers[name] + last - first
            return correct, last - first

        for look in looks("ab", draw, BENCHMARKS, Design(these_problems=True, most=32, within=0.001)):
            if look.answers == 16:
                break
        scores += look.scores.values()
        plain += [np.mean(right[name] / answers[name]) for name in "ab"]
    error = np.std(scores) / np.sqrt(len(scores))
    assert np.mean(scores) == pytest.approx(0.05, abs=4 * error)
    assert np.mean(plain) < 0.05 - 4 * error


def test_verdicts_of_certain_cases():
    rng = np.random.default_rng(5)
    ones, zeros = np.ones(60), np.zeros(60)
    for these in (False, True):
        design = Design(these_problems=these)
        look = next(looks("ab", drawer({"a": zeros, "b": ones}, rng), BENCHMARKS, design))
        assert (look.verdict("a", "b"), look.left, look.answers) == ("b", ["b"], 2)
        found = [one.verdict("a", "b") for one in looks("ab", drawer({"a": ones, "b": ones}, rng), BENCHMARKS, design)]
        # problems of this kind: 60 alike do not exclude that others differ; these: enough answers do
        assert (found[0], found[-1]) == ("", "equal" if these else "")


def test_the_best_of_ten_is_settled_and_the_worst_cost_little():
    rng = np.random.default_rng(7)
    worlds = {f"m{i}": np.full(60, 0.3 + 0.05 * i) for i in range(10)}
    for look in looks(list(worlds), drawer(worlds, rng), BENCHMARKS, Design(within=0.01)):
        if look.settled:
            break
    assert look.left[0] == "m9"
    assert look.drawn["m0"] < look.drawn["m9"] / 3
    assert set(look.scores) >= set(look.left)


@pytest.mark.slow
def test_the_best_is_dropped_or_missed_in_five_per_cent_at_most():
    rng, lost = np.random.default_rng(8), 0
    for _ in range(500):
        worlds = {f"m{i}": np.clip(rates(rng) + 0.02 * i, 0, 1) for i in range(4)}
        truth = {name: one.mean() for name, one in worlds.items()}
        design = Design(these_problems=True, most=32, within=0.02)
        for look in looks(list(worlds), drawer(worlds, rng), BENCHMARKS, design):
            if look.settled:
                break
        lost += look.settled and truth[look.left[0]] < max(truth.values()) - design.within
    assert lost / 500 <= 0.05


def test_designs_double_and_what_has_no_guarantee_is_refused(refused):
    assert Design().sizes == [2, 2, 4, 8, 16, 32]
    assert Design(most=48).sizes == [2, 2, 4, 8, 16, 16]
    assert Design(most=64, k=24).sizes == [24, 24, 16]
    for changes, parameter in (
        ({"k": 2, "these_problems": True}, "k"),
        ({"most": 1}, "num_samples"),
        ({"k": 8, "most": 4}, "num_samples"),
    ):
        with refused(parameter):
            Design(**changes)
    worlds = {"a": np.array([0.5]), "b": np.array([0.5])}
    for names, benchmarks, parameter in (("ab", ["x"], "benchmarks"), ("a", ["x"], "candidates")):
        with refused(parameter):
            next(looks(names, drawer(worlds, np.random.default_rng(0)), benchmarks, Design()))
