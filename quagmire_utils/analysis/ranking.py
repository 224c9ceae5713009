"""Which candidate to send to RL before any RL run was made: first workflow of "How to use them in practice" (Sec. 4).

The paper's rule: a candidate that has both a lower Pass@1 and a higher generalization loss than another is ruled out;
the rest are ranked by Pass@large k.

    measured = load_measurements("results/mini", family="micro-llama")
    rank_candidates(measured.table)            # the rule, applied to the numbers as they are
    found = rank_with_noise(measured)          # the same with the noise of the numbers: how sure is the order?
    found.advice, found.table[["candidate", "rank", "chance"]]

The chance of a candidate is that the rule would choose it if its three numbers were known without error. It holds the
sampling of answers, the choice of problems and that of held-out traces. It does not hold the training of the same
candidate with another seed, the noise of RL, or whether the rule is right for this model: it is no chance of being best
after RL (`forecast_rl` gives that one, from a few RL runs).

How the noise is known. With the counts of each problem: the variance between problems of a score is already the sum of
two, that of the choice of problems and that of the sampling (resampling answers within resampled problems would count
the second one twice). The second is estimated without bias by the counts themselves: (1-p)^a by C(n-c,a)/C(n,a), and
the variance of Pass@k from any number n' of answers is a sum of these with a = k..2k over the overlaps of two sets of k
answers. The first is what remains. Candidates answer the same problems, so the choice of problems moves them together;
the covariances between candidates are taken along. Means over problems are taken as normal. Without counts the standard
errors of the table are taken, independent between candidates.

The first of many is first in part by luck. The true values are therefore drawn by `shrinkage`, which learns from all
candidates how far they differ. tests/test_practice_odd.py has the table of stated chances and how often they came true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.analysis.advice import listed, ranking_advice
from quagmire_utils.analysis.measurements import Measurements, checked_candidates, comparable_loss
from quagmire_utils.analysis.shrinkage import Shrinkage
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.evaluation.pass_at_k import pass_at_k

COLUMNS = ["candidate", "pass1", "gen_loss", "pass_k"]
MOST_SAMPLES = 1_000_000  # answers a problem: more than this is said to be no way
MOST_PROBLEMS = 1024  # times as many problems

Array = NDArray[np.float64]


def rank_candidates(records: pd.DataFrame) -> pd.DataFrame:
    """Which candidate to send to RL when no RL run has been made yet: first workflow of Sec. 4.

    A candidate that has both a lower Pass@1 and a higher generalization loss than some other is ruled out; the rest are
    ranked by Pass@large k. records: one row per candidate of one family, columns candidate, pass1, gen_loss, pass_k.
    Returns those, rank (1 = most promising, ties share the smallest, <NA> when ruled out) and ruled_out_by (of the
    candidates that beat it the one with the highest pass_k, else <NA>), best first.

    A candidate without gen_loss takes part in no comparison, nor does one whose scenario (an optional column) is
    "instance": losses of candidates trained on different data do not compare (Sec. 4.3). Raises ParameterError for a
    missing column or value, or several families.
    """
    table = checked_candidates(records, COLUMNS, may_miss=("gen_loss",))
    score, loss = table["pass1"].to_numpy(np.float64), comparable_loss(table)
    table = table[COLUMNS]
    beaten = np.less.outer(score, score) & np.greater.outer(loss, loss)  # row by column; NaN compares false
    ruled_out = beaten.any(axis=1)
    by = np.where(beaten, table["pass_k"].to_numpy(), -np.inf).argmax(axis=1)
    table["rank"] = table["pass_k"].where(~ruled_out).rank(ascending=False, method="min").astype("Int64")
    table["ruled_out_by"] = table["candidate"].iloc[by].where(ruled_out, pd.NA).to_numpy()
    return table.sort_values(["rank", "pass_k"], ascending=[True, False], ignore_index=True)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The rule's order, and how far the noise of the numbers lets one trust it."""

    table: pd.DataFrame  # of rank_candidates, with the columns of rank_with_noise
    leader: str  # of the highest chance; of rank 1 where that is as high as the draws can tell, or without errors
    chance: float  # that the rule chooses it, were all three numbers of all candidates exact; NaN without errors
    confidence: float  # wanted
    k: int
    samples: int | None  # answers a problem now, the fewest of any candidate; None without counts
    samples_needed: int | None  # answers a problem for that confidence; None where no number of them is enough
    samples_needed_here: int | None  # the same for the problems and traces at hand alone
    problems_factor: float | None  # times as many problems (of the kind, as many answers) for that confidence
    limit: str  # why samples_needed is None: problems, traces, both, ties (see rank_with_noise); otherwise empty
    settling: str  # whose chance samples_needed, limit and curve are about: who would win with less noise
    problems: int | None  # how many problems the counts are of
    losses: str  # which losses take no part in the rule, in words; "none" where none does, empty where all do
    curve: pd.DataFrame  # n (answers a problem, the last one infinite), chance, chance_here
    advice: str


def rank_with_noise(measured: Measurements, *, confidence: float = 0.95, n_draws: int = 4000, seed: int = 0) -> Ranking:
    """The rule's order with the chance of each candidate to be its choice, and how many more answers would settle it.

    Columns added to `rank_candidates`: chance (all noise: answers, problems, traces), chance_here (answers alone: on
    exactly these problems and traces; NaN without counts), chance_ruled_out (that some other candidate is better in
    both score and loss); pass1_se, gen_loss_se, pass_k_se, and pass_k_sampling_se (from the sampling of answers alone).
    Tied candidates share their chance.

    samples_needed is the smallest number of answers to each problem at which the chance of `settling` reaches
    `confidence` in about half of all repeats (in the others the order takes more, or turns). That is the leader, unless
    another would be the choice were the best guesses of all numbers the truth: with less noise that one would win. It
    is None where even endless answers would leave too much doubt; limit then says what it comes from: the choice of
    "problems", the "traces" of the losses, "both", or "ties" on the very problems and traces at hand. Raises
    ParameterError for bad options, and as `rank_candidates` does.
    """
    if not 0.5 < confidence < 1:
        raise ParameterError(f"confidence must lie between 0.5 and 1, not {confidence!r}")
    if n_draws < 100:
        raise ParameterError(f"n_draws must be at least 100, not {n_draws!r}")
    ranked = rank_candidates(measured.table)
    table = measured.table.set_index("candidate").loc[ranked["candidate"]].reset_index()
    noise = _noise(table, measured)
    errors = noise.errors() if noise else np.full((3, len(table)), np.nan)
    ranked["pass1_se"], ranked["pass_k_se"], ranked["pass_k_sampling_se"] = errors
    ranked["gen_loss_se"] = table.get("gen_loss_se", np.nan)
    ranked[["chance", "chance_here", "chance_ruled_out"]] = np.nan
    curve = pd.DataFrame({"n": [], "chance": [], "chance_here": []})
    leader, settling, needed, needed_here, factor, limit = 0, 0, None, None, None, ""
    if noise:
        draw = _Draws(noise, n_draws, seed)
        ranked["chance"], ranked["chance_ruled_out"] = draw.chances()
        leader = int(np.argmax(ranked["chance"]))
        if ranked["chance"].iloc[0] > ranked["chance"].iloc[leader] - 2 / math.sqrt(n_draws):
            leader = 0  # the draws cannot tell them apart: the first by the numbers as they are
        settled = draw.chances(math.inf, 0.0, 0.0, 0.0)[0]
        settling = leader if settled[leader] == settled.max() else int(np.argmax(settled))
    if noise and noise.samples:
        here = _Draws(noise.answers_alone(), n_draws, seed)
        ranked["chance_here"] = here.chances()[0]
        needed, needed_here = (one.samples_needed(settling, confidence) for one in (draw, here))
        curve, factor = _curve(draw, here, settling), draw.problems_factor(settling, confidence)
        limit = "" if needed is not None else draw.limit(settling, confidence)
    result = Ranking(
        table=ranked,
        leader=str(ranked["candidate"].iloc[leader]),
        chance=float(ranked["chance"].iloc[leader]),
        confidence=confidence,
        k=measured.k,
        samples=noise.samples if noise else None,
        samples_needed=needed,
        samples_needed_here=needed_here,
        problems_factor=factor,
        limit=limit,
        settling=str(ranked["candidate"].iloc[settling]),
        problems=_problems(measured.counts),
        losses=_losses(table),
        curve=curve,
        advice="",
    )
    return replace(result, advice=ranking_advice(result))


def regret(table: pd.DataFrame, chosen: list[str]) -> float:
    """How much lower than the best known outcome the mean outcome of `chosen` is. Both from `table`'s outcome."""
    outcome = table.set_index("candidate")["outcome"]
    return float(outcome.max() - outcome.loc[chosen].mean())


def check_ranking(frame: pd.DataFrame, at_least: int = 4) -> pd.DataFrame:
    """What the rule's choice lost against the best, on records whose outcomes are known.

    frame: from `records.candidate_frame`, or a table of measurements with outcomes. One row per family and scenario of
    at least `at_least` candidates: candidates, chosen (by the rule), regret (outcome of the best minus that of the
    choice), and the regret of choosing by the highest pass1, the lowest gen_loss, the highest pass_k, and of a choice
    at random (the mean over all). Ties count with their mean.
    """
    rows = []
    frame = frame.assign(**{name: "" for name in ("family", "selection") if name not in frame})
    frame = frame.assign(**{name: "dataset" for name in ("scenario",) if name not in frame})
    if "outcome" not in frame:
        return pd.DataFrame()
    for family, mine in frame[frame["outcome"].notna() & (frame["selection"] != "none")].groupby("family", sort=False):
        for scenario in ("dataset", "instance"):
            part = mine[[scenario in names.split("+") for names in mine["scenario"]]].assign(scenario=scenario)
            if len(part) < at_least:
                continue
            ranked = rank_candidates(part)
            chosen = ranked.loc[ranked["rank"] == 1, "candidate"].tolist()
            picks = {
                "pass1": part.loc[part["pass1"] == part["pass1"].max(), "candidate"].tolist(),
                "gen_loss": part.loc[part["gen_loss"] == part["gen_loss"].min(), "candidate"].tolist(),
                "pass_k": part.loc[part["pass_k"] == part["pass_k"].max(), "candidate"].tolist(),
            }
            rows.append(
                {
                    "family": family,
                    "scenario": scenario,
                    "candidates": len(part),
                    "chosen": ", ".join(chosen),
                    "regret": regret(part, chosen),
                    **{f"regret_{name}": regret(part, some) if some else math.nan for name, some in picks.items()},
                    "regret_random": regret(part, part["candidate"].tolist()),
                }
            )
    return pd.DataFrame(rows)


# --- the noise of the numbers -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Noise:
    """Estimates of the candidates and what they are uncertain by; pass1 first, then pass_k, (2C,) and (2C, 2C)."""

    scores: Array  # (2, C)
    loss: Array  # (C,), NaN where it does not count
    loss_error: Array  # (C,)
    problems: Array  # covariance from the choice of problems (all errors, where only those are known)
    k: int
    samples: int | None  # fewest answers to a problem
    per_sample: Array | None  # (C, k + 3): what `sampling` needs, see _sampling_parts
    own: Array | None  # (C,) answers a problem now

    def sampling(self, samples: float | None) -> Array:
        """Covariance of (pass1, pass_k) from the sampling of `samples` answers a problem (None: now): (C, 2, 2)."""
        size = self.scores.shape[1]
        if self.per_sample is None or samples == math.inf:
            return np.zeros((size, 2, 2))
        counts = self.own if samples is None else np.maximum(self.own, samples)
        covariance = np.empty((size, 2, 2))
        for n in np.unique(counts):
            mine = counts == n
            simple, mixed, tails = self.per_sample[mine, 0], self.per_sample[mine, 1], self.per_sample[mine, 2:]
            covariance[mine, 0, 0] = simple / n
            covariance[mine, 0, 1] = covariance[mine, 1, 0] = mixed * self.k / n
            covariance[mine, 1, 1] = np.maximum(tails @ _overlaps(n, self.k), 0.0)
        return covariance

    def answers_alone(self) -> _Noise:
        """The noise of the scores on exactly these problems, the losses as they are."""
        return replace(self, problems=np.zeros_like(self.problems), loss_error=np.zeros_like(self.loss_error))

    def errors(self) -> tuple[Array, Array, Array]:
        """Standard errors now, (C,) each: of pass1, of pass_k, and of pass_k from the sampling of answers alone."""
        size = self.scores.shape[1]
        diagonal, sampling = np.diag(self.problems), self.sampling(None)
        own = np.sqrt(sampling[:, 1, 1]) if self.samples else np.full(size, np.nan)
        return np.sqrt(diagonal[:size] + sampling[:, 0, 0]), np.sqrt(diagonal[size:] + sampling[:, 1, 1]), own


def _losses(table: pd.DataFrame) -> str:
    missing = table.loc[np.isnan(comparable_loss(table)), "candidate"]
    if len(missing) >= len(table) - 1:  # one loss alone compares with nobody's
        return "none"
    return f"{listed(missing)} could not be, without a loss" if len(missing) else ""


def _problems(counts: pd.DataFrame | None) -> int | None:
    return None if counts is None else len(counts[["benchmark", "problem"]].drop_duplicates())


def _noise(table: pd.DataFrame, measured: Measurements) -> _Noise | None:
    """Noise from counts, otherwise from the table's standard errors; None where some candidate has neither."""
    names, size = table["candidate"].tolist(), len(table)
    scores, loss = table[["pass1", "pass_k"]].to_numpy(np.float64).T, comparable_loss(table)
    errors = table.reindex(columns=["pass1_se", "pass_k_se", "gen_loss_se"]).to_numpy(np.float64).T
    traces = np.where(np.isnan(loss), 0.0, errors[2])
    if measured.counts is None:
        if np.isnan(errors[:2]).any() or np.isnan(traces).any():
            return None
        return _Noise(scores, loss, traces, np.diag(errors[:2].ravel() ** 2), measured.k, None, None, None)
    total, parts, own = _counted(measured.counts, names, measured.k)
    # a loss without standard error is taken as exact: counts are what most of the noise is in
    noise = _Noise(scores, loss, np.nan_to_num(traces), total, measured.k, int(own.min()), parts, own)
    for one, now in enumerate(noise.sampling(None)):  # what remains is due to the choice of problems
        total[np.ix_([one, size + one], [one, size + one])] -= now
    return replace(noise, problems=_nonnegative(total))


def _counted(counts: pd.DataFrame, names: list[str], k: int) -> tuple[Array, Array, Array]:
    """From counts: covariance of all scores (2C, 2C), the parts of the sampling noise (C, k + 3), answers now (C,)."""
    size, benchmarks = len(names), counts["benchmark"].unique()
    total, parts = np.zeros((2 * size, 2 * size)), np.zeros((size, k + 3))
    own = counts.groupby("candidate")["n"].min().loc[names].to_numpy(np.float64)
    for benchmark in benchmarks:
        rows = counts[counts["benchmark"] == benchmark].sort_values(["problem", "candidate"])
        table = rows.pivot_table(index="problem", columns="candidate", values=["n", "correct"], aggfunc="sum")
        n, correct = table["n"][names], table["correct"][names]
        if n.isna().any(axis=None):
            lacking = n.columns[n.isna().any()][0]
            raise ParameterError(f"counts: {lacking!r} lacks problems of {benchmark} that others answered")
        n, correct = n.to_numpy(np.int64), correct.to_numpy(np.int64)
        values = pass_at_k(n.ravel(), correct.ravel(), [1, k]).reshape(len(n), size, 2)
        values = np.concatenate([values[..., 0], values[..., 1]], axis=1)
        if len(n) < 2:
            raise ParameterError(f"counts: {benchmark} has one problem, which says nothing of the choice of problems")
        weight = 1 / (len(benchmarks) * len(n))
        total += np.cov(values.T, ddof=1) * len(n) * weight**2
        for one in range(size):
            parts[one] += weight**2 * _sampling_parts(n[:, one], correct[:, one], k)
    return total, parts, own


def _sampling_parts(n: NDArray[np.int64], correct: NDArray[np.int64], k: int) -> Array:
    """Sums over problems of what the sampling noise consists of, p the chance of a correct answer: p(1-p), p(1-p)^k,
    and (1-p)^a for a = k..2k (k + 3 numbers).

    Unbiased where a problem has 2k answers; with fewer, c/n stands for p, which makes the noise somewhat small.
    """
    sizes = np.arange(k, 2 * k + 1)
    if n.min() >= 2 * k:
        fail = 1 - pass_at_k(n, correct, sizes)
        simple = correct * (n - correct) / (n * (n - 1.0))
        mixed = fail[:, 0] - fail[:, 1]
    else:
        p = correct / n
        fail = (1 - p)[:, None] ** sizes
        simple, mixed = p * (1 - p), p * fail[:, 0]
    return np.concatenate([[np.sum(simple), np.sum(mixed)], fail.sum(axis=0)])


def _overlaps(n: float, k: int) -> Array:
    """Weights of (1-p)^a, a = k..2k, in the variance of Pass@k from n answers: the chances that two sets of k of n
    answers have 2k - a in common, minus one for a = 2k."""
    from scipy.stats import hypergeom

    common = hypergeom.pmf(np.arange(k, -1, -1), int(n), k, k)  # a = k: all of them
    common[-1] -= 1.0
    return common


def _nonnegative(covariance: Array) -> Array:
    """The covariance without directions of negative variance, which only noise puts there."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T


def _beaten(score: Array, loss: Array) -> NDArray[np.bool_]:
    """Whether another of the row has a higher score and a lower loss, (draws, C) each; NaN takes part in nothing."""
    rival = np.where(np.isnan(loss), math.inf, loss)
    order = np.lexsort((-rival, -score), axis=1)  # of equal scores the higher loss first: it beats none of them
    rival = np.take_along_axis(rival, order, axis=1)
    lowest = np.minimum.accumulate(rival, axis=1)  # of those with a score as high or higher, itself included
    beaten = np.empty(score.shape, dtype=bool)
    np.put_along_axis(beaten, order, lowest < rival, axis=1)
    return beaten & ~np.isnan(loss)


class _Draws:
    """True values that the estimates are compatible with, and what the rule makes of them; the same random numbers
    for every amount of noise, so that chances change smoothly with it."""

    def __init__(self, noise: _Noise, n_draws: int, seed: int) -> None:
        self.noise = noise
        size, random = noise.scores.shape[1], np.random.default_rng(seed)
        standard = random.standard_normal((n_draws, 8, size))
        values, vectors = np.linalg.eigh(noise.problems)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        shared = np.concatenate([standard[:, 0], standard[:, 1]], axis=1) @ root.T
        self.shared = shared.reshape(n_draws, 2, size)
        self.own, self.traces = standard[:, 2:4], standard[:, 4] * noise.loss_error
        self.models = [
            Shrinkage(estimates, covariance, standard[:, 5 + one], (random.permutation(n_draws) + 0.5) / n_draws)
            for one, (estimates, (covariance, _)) in enumerate(
                zip((*noise.scores, noise.loss), self._errors(noise.sampling(None)), strict=True)
            )
        ]

    def _errors(self, sampling: Array, problems: float = 1.0, traces: float = 1.0) -> list[tuple[Array, Array]]:
        """Of pass1, pass_k and loss: covariance of the noise between candidates (C, C) and draws of it (draws, C)."""
        size = len(sampling)
        first = np.sqrt(sampling[:, 0, 0])
        slope = np.divide(sampling[:, 0, 1], first, out=np.zeros_like(first), where=first > 0)
        rest = np.sqrt(np.maximum(sampling[:, 1, 1] - slope**2, 0.0))
        own = first * self.own[:, 0], slope * self.own[:, 0] + rest * self.own[:, 1]
        blocks = (self.noise.problems[:size, :size], self.noise.problems[size:, size:])
        found = [
            (problems**2 * blocks[one] + np.diag(sampling[:, one, one]), problems * self.shared[:, one] + own[one])
            for one in (0, 1)
        ]
        return [*found, (np.diag((traces * self.noise.loss_error) ** 2), traces * self.traces)]

    def chances(
        self, samples: float | None = None, problems: float = 1.0, traces: float = 1.0, answers: float = 1.0
    ) -> tuple[Array, Array]:
        """Chance to be chosen and to be ruled out, (C,) each; the last three scale the parts of the noise."""
        errors = self._errors(self.noise.sampling(samples) * answers**2, problems, traces)
        pass1, large, loss = (model.draws(*mine) for model, mine in zip(self.models, errors, strict=True))
        ruled_out = _beaten(pass1, loss)
        left = np.where(ruled_out, -np.inf, large)
        best = left == left.max(axis=1, keepdims=True)
        return (best / best.sum(axis=1, keepdims=True)).mean(axis=0), ruled_out.mean(axis=0)

    def samples_needed(self, candidate: int, confidence: float) -> int | None:
        """Smallest number of answers a problem with that chance of the candidate; the present one where it has it."""

        def enough(samples: float | None) -> bool:
            return bool(self.chances(samples)[0][candidate] >= confidence)

        low = int(self.noise.samples)
        if enough(None):
            return low
        if not enough(math.inf):
            return None
        high = 2 * low
        while not enough(high):
            low, high = high, 2 * high
            if high > MOST_SAMPLES:
                return None
        while high - low > max(1, low // 100):  # to a hundredth
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def limit(self, candidate: int, confidence: float) -> str:
        """What keeps the chance below `confidence` with endlessly many answers: problems, traces, both or ties."""

        def enough(problems: float, traces: float) -> bool:
            return bool(self.chances(math.inf, problems, traces)[0][candidate] >= confidence)

        if not enough(0.0, 0.0):
            return "ties"
        if enough(0.0, 1.0) == enough(1.0, 0.0):
            return "both"
        return "problems" if enough(0.0, 1.0) else "traces"

    def problems_factor(self, candidate: int, confidence: float) -> float | None:
        """How many times as many problems, with as many answers each, give that chance; None beyond MOST_PROBLEMS."""

        def enough(factor: float) -> bool:
            share = 1 / math.sqrt(factor)
            return bool(self.chances(None, share, 1.0, share)[0][candidate] >= confidence)

        low, high = 1.0, 1.0
        while not enough(high):
            low, high = high, 2 * high
            if high > MOST_PROBLEMS:
                return None
        while high > 1.02 * low:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high


def _curve(draw: _Draws, here: _Draws, candidate: int) -> pd.DataFrame:
    """The candidate's chances with more answers a problem, doubling from now on; the last line: endlessly many."""
    amounts = np.array([*(draw.noise.samples * 2.0**i for i in range(8)), math.inf])
    found = [[one.chances(n)[0][candidate] for n in amounts] for one in (draw, here)]
    return pd.DataFrame({"n": amounts, "chance": found[0], "chance_here": found[1]})
