"""Rank candidates before any RL run: the first workflow of "How to use them in practice" (Sec. 4).

The paper's rule: a candidate that another beats in both Pass@1 and generalization loss is ruled out; the rest are
ranked by Pass@k at large k.

    found = rank_with_noise(load_measurements("results/mini", family="micro-llama"))
    found.advice, found.table[["candidate", "rank", "chance"]]

The chance of a candidate is the probability that the rule would choose it if all numbers were exact. It covers the
sampling of answers and the choice of problems and of held-out traces. It does not cover another training seed, the
noise of RL, or whether the rule is right; `forecasting` estimates the chance of being best after RL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from quagmire_utils.analysis.candidates import select_candidates
from quagmire_utils.analysis.measurements import Measurements, checked_candidates, comparable_loss
from quagmire_utils.analysis.noise import Array, ScoreNoise, Shrinkage, score_noise
from quagmire_utils.analysis.predictors import regret
from quagmire_utils.core.errors import ParameterError

COLUMNS = ["candidate", "pass1", "gen_loss", "pass_k"]
MOST_SAMPLES = 1_000_000  # answers to a problem beyond which more answers are no remedy
MOST_PROBLEMS = 1024  # the same for problems, as a multiple of the present number
CEILING = 0.995  # from this Pass@k on only a few problems distinguish candidates
FEW_PROBLEMS = 20  # below it a mean over problems is far from normal
SERIOUS = 0.1  # chance from which a rival is named

SENTENCES = yaml.safe_load(Path(__file__).with_name("sentences.yaml").read_text(encoding="utf-8"))
CHOICE, DOUBT, REMEDY, NOTES = SENTENCES["ranking"].values()


def rank_candidates(records: pd.DataFrame) -> pd.DataFrame:
    """Apply the paper's rule: rule out, then rank by Pass@k (Sec. 4).

    records: one row per candidate of one family, columns candidate, pass1, gen_loss, pass_k. Returns these columns,
    rank (1 is best, ties share the smallest, <NA> if ruled out) and ruled_out_by (the candidate that beats it and has
    the highest pass_k, else <NA>), best first.

    A candidate takes no part in ruling out if it has no gen_loss or if its scenario (an optional column) is "instance":
    losses of candidates trained on different data do not compare (Sec. 4.3).
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
    """The rule's order, and how sure it is."""

    table: pd.DataFrame  # of rank_candidates, with the columns of rank_with_noise
    leader: str  # candidate of the highest chance; of rank 1 if the draws cannot tell, or without errors
    chance: float  # that the rule would choose it if all numbers were exact; NaN without errors
    confidence: float  # asked for
    k: int
    samples: int | None  # fewest answers to a problem now; None without counts
    samples_needed: int | None  # answers to a problem for that confidence; None if no number of them is enough
    samples_needed_here: int | None  # the same on exactly these problems and traces
    problems_factor: float | None  # multiple of the present problems, with as many answers each, for that confidence
    limit: str  # why samples_needed is None: problems, traces, both, ties; otherwise empty
    settling: str  # candidate that samples_needed, limit and curve are about: the winner with less noise
    problems: int | None  # problems counted; None without counts
    without_loss: tuple[str, ...]  # candidates that take no part in ruling out
    curve: pd.DataFrame  # n (answers to a problem, the last infinite), chance, chance_here

    @property
    def hopeless(self) -> bool:
        """Whether no candidate solves enough problems for RL to learn from."""
        return len(self.table) > 1 and self.table["pass_k"].max() <= 1 - CEILING

    @property
    def advice(self) -> str:
        """Name the candidate to send to RL, its chance, and what would raise that chance to `confidence`."""
        table = self.table
        first = table.loc[table["rank"] == 1, "candidate"].tolist()
        rivals = table[(table["candidate"] != self.leader) & (table["chance"] >= SERIOUS)]
        rivals = rivals.sort_values("chance", ascending=False).head(4)
        facts = {
            **vars(self),
            "whom": " or ".join([self.leader, *(name for name in first if name != self.leader)][:4]),
            "first": ", ".join(first[:4]),
            "left": int(table["rank"].notna().sum()),
            "total": len(table),
            "pass_k": 100 * table["pass_k"][table["rank"].notna()].max(),
            "chance": percent(self.chance),
            "confidence": percent(self.confidence),
            "rivals": ", ".join(f"{row.candidate} {percent(row.chance)}" for row in rivals.itertuples()) or "none",
            "needed": self.samples_needed,
            "times": f", about {float(f'{self.problems_factor:.2g}'):g} times as many" if self.problems_factor else "",
        }
        if len(table) == 1 or self.hopeless:
            return CHOICE["hopeless" if self.hopeless else "one"].format(**facts)
        doubt = "open" if self.chance < self.confidence else "unknown" if math.isnan(self.chance) else "settled"
        sentences = [CHOICE["first" if self.leader in first else "noise"], DOUBT[doubt]]
        if doubt == "open":  # without a limit, more answers are enough
            sentences.append(REMEDY["counts" if self.samples is None else self.limit or "answers"])
        return " ".join(sentences).format(**facts)

    @property
    def notes(self) -> list[str]:
        """What limits the advice, one sentence each."""
        table, keys = self.table, []
        if len(table) > 1 and self.without_loss:
            keys.append("no_losses" if len(self.without_loss) >= len(table) - 1 else "some_losses")
        exact = table["gen_loss"].notna() & table["gen_loss_se"].isna()
        if exact.any() and table["ruled_out_by"].notna().any() and not math.isnan(self.chance):
            keys.append("exact_losses")
        if self.problems is not None and self.problems < FEW_PROBLEMS:
            keys.append("few_problems")
        high = int((table["pass_k"] >= CEILING).sum())
        if high > 1 and self.chance < self.confidence:
            keys.append("ceiling")
        return [NOTES[key].format(**vars(self), high=high, names=listed(self.without_loss)) for key in keys]


def rank_with_noise(measured: Measurements, *, confidence: float = 0.95, n_draws: int = 4000, seed: int = 0) -> Ranking:
    """Rank by the rule, with the chance of each candidate to be its choice and how many answers would settle it.

    Columns added to `rank_candidates`: chance (all noise), chance_here (sampling alone: exactly these problems and
    traces; NaN without counts), chance_ruled_out, and the standard errors. Tied candidates share their chance.

    samples_needed is the smallest number of answers to each problem at which the chance of `settling` reaches
    `confidence` in about half of all repeats. `settling` is the leader, unless another candidate would be the choice
    if the best guesses of all numbers were the truth. If even infinitely many answers leave too much doubt it is None,
    and limit names the cause: the choice of "problems", the "traces" of the losses, "both", or "ties" on exactly these
    problems and traces.
    """
    if not 0.5 < confidence < 1:
        raise ParameterError("confidence", confidence, "between 0.5 and 1")
    if n_draws < 100:
        raise ParameterError("n_draws", n_draws, "at least 100")
    ranked = rank_candidates(measured.table)
    table = measured.table.set_index("candidate").loc[ranked["candidate"]].reset_index()
    noise = score_noise(table, measured.counts, measured.k)
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
            leader = 0  # no difference in the draws: the first by the numbers as they are
        settled = draw.chances(math.inf, 0.0, 0.0, 0.0)[0]
        settling = leader if settled[leader] == settled.max() else int(np.argmax(settled))
    if noise and noise.fewest:
        here = _Draws(noise.answers_alone(), n_draws, seed)
        ranked["chance_here"] = here.chances()[0]
        needed, needed_here = (one.samples_needed(settling, confidence) for one in (draw, here))
        amounts = np.array([*(noise.fewest * 2.0**i for i in range(8)), math.inf])
        curve = pd.DataFrame({"n": amounts})
        for name, one in (("chance", draw), ("chance_here", here)):
            curve[name] = [one.chances(n)[0][settling] for n in amounts]
        factor = draw.problems_factor(settling, confidence)
        limit = "" if needed is not None else draw.limit(settling, confidence)
    counts = measured.counts
    return Ranking(
        table=ranked,
        leader=str(ranked["candidate"].iloc[leader]),
        chance=float(ranked["chance"].iloc[leader]),
        confidence=confidence,
        k=measured.k,
        samples=noise.fewest if noise else None,
        samples_needed=needed,
        samples_needed_here=needed_here,
        problems_factor=factor,
        limit=limit,
        settling=str(ranked["candidate"].iloc[settling]),
        problems=None if counts is None else len(counts[["benchmark", "problem"]].drop_duplicates()),
        without_loss=tuple(table.loc[np.isnan(comparable_loss(table)), "candidate"]),
        curve=curve,
    )


def check_ranking(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare the rule's choice with the best candidate where outcomes are known.

    frame: from `candidate_frame`, or `Measurements.frame`. One row per family and scenario of at least four
    candidates with an outcome: the regret of the rule's choice, and of choosing the highest pass1, the lowest gen_loss,
    the highest pass_k, and at random. Ties count with their mean; NaN if a candidate lacks the value.
    """
    rows = []
    for family in frame["family"].unique():
        for scenario in ("dataset", "instance"):
            part = select_candidates(frame, family, scenario).assign(scenario=scenario)
            if len(part) < 4:
                continue
            ranked = rank_candidates(part)
            chosen = ranked.loc[ranked["rank"] == 1, "candidate"].tolist()
            row = {"family": family, "scenario": scenario, "candidates": len(part), "chosen": ", ".join(chosen)}
            ways = {"": part["candidate"].isin(chosen), "_pass1": part["pass1"], "_gen_loss": -part["gen_loss"]}
            ways |= {"_pass_k": part["pass_k"], "_random": part["outcome"] * 0}
            lost = {f"regret{way}": regret(x, part["outcome"]) for way, x in ways.items() if x.notna().all()}
            rows.append(row | lost)
    return pd.DataFrame(rows)


def percent(share: float) -> str:
    """Return a chance as text; near 0 and 1 no more precisely than the draws allow."""
    if math.isnan(share):
        return "unknown"
    return "> 99 %" if share >= CEILING else "< 1 %" if share < 1 - CEILING else f"{100 * share:.0f} %"


def listed(names: Iterable[str], most: int = 4) -> str:
    """Return the first few names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class _Draws:
    """True values that agree with the estimates, and the rule's choice for them.

    The same random numbers serve every amount of noise, so chances change smoothly with it.
    """

    def __init__(self, noise: ScoreNoise, n_draws: int, seed: int) -> None:
        self.noise = noise
        size, random = noise.scores.shape[1], np.random.default_rng(seed)
        standard = random.standard_normal((n_draws, 8, size))
        values, vectors = np.linalg.eigh(noise.problems)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        shared = np.concatenate([standard[:, 0], standard[:, 1]], axis=1) @ root.T
        self.shared = shared.reshape(n_draws, 2, size)
        self.own, self.traces = standard[:, 2:4], standard[:, 4] * noise.loss_error
        measures = zip((*noise.scores, noise.loss), self._errors(noise.sampling()), strict=True)
        self.models = [
            Shrinkage(estimates, covariance, standard[:, 5 + one], (random.permutation(n_draws) + 0.5) / n_draws)
            for one, (estimates, (covariance, _)) in enumerate(measures)
        ]

    def _errors(self, sampling: Array, problems: float = 1.0, traces: float = 1.0) -> list[tuple[Array, Array]]:
        """Return for pass1, pass_k and loss the covariance of the noise, (C, C), and draws of it, (draws, C)."""
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
        """Return the chance to be chosen and to be ruled out, (C,) each; the last three scale parts of the noise."""
        errors = self._errors(self.noise.sampling(samples) * answers**2, problems, traces)
        pass1, large, loss = (model.draws(*mine) for model, mine in zip(self.models, errors, strict=True))
        ruled_out = beaten_in_both(pass1, loss)
        left = np.where(ruled_out, -np.inf, large)
        best = left == left.max(axis=1, keepdims=True)
        return (best / best.sum(axis=1, keepdims=True)).mean(axis=0), ruled_out.mean(axis=0)

    def _reaches(self, candidate: int, confidence: float) -> Callable[..., bool]:
        return lambda *noise: bool(self.chances(*noise)[0][candidate] >= confidence)

    def samples_needed(self, candidate: int, confidence: float) -> int | None:
        """Return the smallest number of answers to a problem with this chance, to about 1 %; None if there is none."""
        enough, low = self._reaches(candidate, confidence), int(self.noise.fewest)
        if enough(None):
            return low
        if not enough(math.inf):
            return None
        high = 2 * low
        while not enough(high):
            low, high = high, 2 * high
            if high > MOST_SAMPLES:
                return None
        while high - low > max(1, low // 100):
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def limit(self, candidate: int, confidence: float) -> str:
        """Return what keeps the chance below `confidence` with infinitely many answers."""
        enough = self._reaches(candidate, confidence)
        if not enough(math.inf, 0.0, 0.0):
            return "ties"
        exact_problems, exact_traces = enough(math.inf, 0.0, 1.0), enough(math.inf, 1.0, 0.0)
        if exact_problems == exact_traces:
            return "both"
        return "problems" if exact_problems else "traces"

    def problems_factor(self, candidate: int, confidence: float) -> float | None:
        """Return how many times as many problems give this chance, to about 2 %; None beyond MOST_PROBLEMS."""
        reaches = self._reaches(candidate, confidence)

        def enough(factor: float) -> bool:
            share = 1 / math.sqrt(factor)
            return reaches(None, share, 1.0, share)

        low, high = 1.0, 1.0
        while not enough(high):
            low, high = high, 2 * high
            if high > MOST_PROBLEMS:
                return None
        while high > 1.02 * low:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high


def beaten_in_both(score: Array, loss: Array) -> np.ndarray:
    """Return whether another of the row has a higher score and a lower loss, (draws, C); NaN takes no part."""
    rival = np.where(np.isnan(loss), math.inf, loss)
    order = np.lexsort((-rival, -score), axis=1)  # of equal scores the higher loss first: it beats none of them
    rival = np.take_along_axis(rival, order, axis=1)
    lowest = np.minimum.accumulate(rival, axis=1)  # among those with a score as high or higher, itself included
    beaten = np.empty(score.shape, dtype=bool)
    np.put_along_axis(beaten, order, lowest < rival, axis=1)
    return beaten & ~np.isnan(loss)
