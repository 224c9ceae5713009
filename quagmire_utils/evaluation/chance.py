"""The chance level of a score: what the same answers score against the golds of other problems.

    chance = chance_counts(SampleStore("samples/mine"))
    evaluation_table(counts, ks=[1, 64], chance=chance)

A model that repeats numbers which are often right, or a grader that picks a number out of gibberish, scores above 0 %,
and the more so the larger k is. A score says something about the model where it is clearly above this level.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from quagmire_utils.data import Problem
from quagmire_utils.grading import Grader, Verdict
from quagmire_utils.grading.verdicts import MATH, MATH_VERIFY

if TYPE_CHECKING:
    from quagmire_utils.evaluation.store import SampleStore

GRADERS = (MATH, MATH_VERIFY, "choice", "text")  # a program answers only its own tests
_ROUNDS = 100
_LONGEST = 500  # characters of an extracted answer; a longer one was cut
_PROBLEM = ["benchmark", "problem"]


def chance_counts(
    store: SampleStore, *, grader: Grader | None = None, seed: int = 0, progress: bool = True
) -> pd.DataFrame:
    """Return how many answers to each problem equal the gold of another one: benchmark, problem, n, correct.

    The other problem is of the same benchmark and has another gold; `seed` chooses it. Golds are those of the verdicts,
    answers those that the first grader extracted, each graded once. Problems without another gold, and benchmarks of
    other graders than `GRADERS`, are left out.
    """
    golds = {}  # by problem, of what its verdicts rest on (`SampleStore.write_verdicts`)
    for key, (answer, tolerance, *more) in store.golds().items():
        graded_by = more[0].split()[0] if more else MATH_VERIFY
        if graded_by in GRADERS:
            golds[key] = Problem(key[1], "?", answer, tolerance, graded_by)
    graded = store.read([*_PROBLEM, "verdict", "extracted"]).dropna(subset=["verdict"])
    n = graded.groupby(_PROBLEM).size()
    n = n[_among(n.index, golds)]
    with nullcontext(grader) if grader is not None else Grader() as using:
        other = {}
        for benchmark in dict.fromkeys(n.index.get_level_values("benchmark")):
            mine = [golds[key] for key in n.index if key[0] == benchmark]
            pairs = zip(mine, _others([problem.answer for problem in mine], np.random.default_rng(seed)), strict=True)
            other |= {(benchmark, problem.id): mine[i] for problem, i in pairs if i is not None}
        own = [_boxed(golds[key].answer) for key in other]
        same = using.grade(own, list(other.values()), progress=False)  # 0.5 and 1/2 are one gold
        other = {key: one for (key, one), grade in zip(other.items(), same, strict=True) if grade.verdict != "correct"}
        decided = graded[graded["verdict"].isin(["correct", "wrong"]) & graded["extracted"].map(_is_whole)]
        answers = decided.groupby([*_PROBLEM, "extracted"], sort=False).size().rename("times").reset_index()
        answers = answers[_among(zip(answers["benchmark"], answers["problem"], strict=True), other)]
        golds_of_others = [other[key] for key in answers[_PROBLEM].itertuples(index=False, name=None)]
        grades = using.grade([*map(_boxed, answers["extracted"])], golds_of_others, progress=progress)
    right = answers.assign(times=answers["times"] * [grade.verdict == Verdict.CORRECT for grade in grades])
    counts = n[_among(n.index, other)].rename("n").to_frame()
    counts["correct"] = right.groupby(_PROBLEM)["times"].sum().reindex(counts.index, fill_value=0).astype("int64")
    return counts.reset_index()


def _among(keys: Iterable[tuple[str, str]], known: Mapping[tuple[str, str], Problem]) -> np.ndarray:
    return np.array([key in known for key in keys], dtype=bool)


def _others(golds: Sequence[str], rng: np.random.Generator) -> list[int | None]:
    """Return a random permutation in which each gold meets another one; None where that is impossible."""
    answers = np.array([" ".join(gold.split()) for gold in golds], dtype=object)
    order = rng.permutation(len(answers))
    for _ in range(_ROUNDS):
        alike = np.flatnonzero(answers[order] == answers)
        if not alike.size:
            break
        for i, j in zip(alike, rng.integers(len(answers), size=alike.size), strict=True):
            if answers[order[j]] != answers[i] and answers[order[i]] != answers[j]:
                order[[i, j]] = order[[j, i]]
    return [int(j) if answers[j] != answers[i] else None for i, j in enumerate(order)]


def _is_whole(extracted: str) -> bool:
    """Return whether an extracted answer can be put into a box: it was not cut, and its braces are closed."""
    return bool(extracted) and len(extracted) < _LONGEST and extracted.count("{") == extracted.count("}")


def _boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"
