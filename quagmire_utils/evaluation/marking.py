"""Grade the samples of a store, part by part; needs no engine and no GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pandas as pd

from quagmire_utils.core.files import digest
from quagmire_utils.data.prompts import instruction_of
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.evaluation.store_files import GRADED, KEYS, holds_another
from quagmire_utils.grading.grader import ANSWERS
from quagmire_utils.grading.registry import grader_version
from quagmire_utils.grading.verdicts import MATH

if TYPE_CHECKING:
    from quagmire_utils.data import Problem

OPEN, CLOSE = "<think>", "</think>"
_LONG_GOLD = 500  # characters; the digest of a longer gold (the tests of a program) is stored in its place


def grade_store(
    store: SampleStore,
    benchmarks: Mapping[str, Sequence[Problem]],
    grade: Callable[..., Sequence[Any]],
    *,
    regrade: bool = False,
    progress: bool = True,
) -> None:
    """Grade the samples that have no verdict yet (with `regrade`: all), one part at a time.

    Those whose verdict rests on another gold answer, tolerance, grader version or kind of answer are graded again.
    Samples of benchmarks or problems that are not in `benchmarks` (problems by name) are left as they are.
    `grade(responses, problems, answer=)` returns one object each with `verdict` and `extracted`: `grading.grade`, or
    the method of a `grading.Grader`. `answer` is what `answers_of` says; a response begins with the <think> that its
    prompt opened. Only files of verdicts are written, each atomically, so a killed run continues where it was.
    """
    from tqdm import tqdm

    problems = {(name, problem.id): problem for name, some in benchmarks.items() for problem in some}
    golds = {key: _gold(problem) for key, problem in problems.items()}
    math = f"math-verify {version('math-verify')}"
    thinking = opened(store)
    parts = [part for part in store.parts() if not all(holds_another(part, name) for name in benchmarks)]
    for part in tqdm(parts, desc="grading", unit="part", disable=not progress or len(parts) < 2, delay=2):
        light = store.read_part(part, [*KEYS[:2], "verdict"])  # most parts need no grading: their texts are not read
        if light is None:
            continue
        keys = list(zip(light["benchmark"], light["problem"], strict=True))
        judged, held = light["verdict"].notna() & (not regrade), store.golds(part)
        todo = [i for i, key in enumerate(keys) if key in golds and not (judged[i] and held.get(key) == golds[key])]
        frame = store.read_part(part, ["text", *GRADED]) if todo else None
        if frame is None:  # nothing to grade, or damaged meanwhile
            continue
        verdicts = {name: frame[name].tolist() for name in GRADED}
        asked = [problems[keys[i]] for i in todo]
        texts = [OPEN * (keys[i] in thinking) + frame["text"].iloc[i] for i in todo]
        for i, problem, result in zip(todo, asked, as_asked(grade)(texts, asked), strict=True):
            grader = grader_version(problem.grader) or math
            for name, value in zip(GRADED, (result.extracted, str(result.verdict), grader), strict=True):
                verdicts[name][i] = value
        frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in verdicts.items()})
        store.write_verdicts(part, frame, held | {keys[i]: golds[keys[i]] for i in todo})


def opened(store: SampleStore) -> set[tuple[str, str]]:
    """Return the (benchmark, problem) whose prompt ends with an open <think>: their answers begin with thinking."""
    prompts = store.prompts()
    ends = prompts["prompt"].str.rstrip().str.endswith(OPEN)
    return set(prompts[ends][["benchmark", "problem"]].itertuples(index=False, name=None))


def as_asked(grade: Callable[..., Sequence[Any]]) -> Callable[[Sequence[str], Sequence[Problem]], list[Any]]:
    """Return `grade(responses, problems)` that counts as answers what each problem's prompt asks for."""

    def graded(responses: Sequence[str], problems: Sequence[Problem]) -> list[Any]:
        kinds, grades = [answers_of(problem) for problem in problems], [None] * len(problems)
        for answer in ANSWERS:
            rows = [i for i, kind in enumerate(kinds) if kind == answer]
            found = grade([responses[i] for i in rows], [problems[i] for i in rows], answer=answer) if rows else []
            for i, result in zip(rows, found, strict=True):
                grades[i] = result
        return grades

    return graded


def answers_of(problem: Problem) -> str:
    """Return what counts as an answer: `boxed` if the grader is `math` and the prompt asks for a box, else `any`."""
    return "boxed" if problem.grader == MATH and "\\boxed" in instruction_of(problem) else "any"


def _gold(problem: Problem) -> list[Any]:
    """Return what a verdict rests on: gold, tolerance, grader with version (except math_verify 1), and `boxed`."""
    grader = grader_version(problem.grader)
    if grader is None:
        return [problem.answer, problem.tolerance]
    long = len(problem.answer) > _LONG_GOLD
    gold = [f"sha256 {digest(problem.answer)}" if long else problem.answer, problem.tolerance, grader]
    return [*gold, "boxed"] if answers_of(problem) == "boxed" else gold
