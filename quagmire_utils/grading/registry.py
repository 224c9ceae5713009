"""The graders by name, and the versions of their verdicts.

A benchmark names its grader (`Problem.grader`):

    math                  mathematics, the default (`mathematics`)
    math_verify           math-verify's own verdict, as the paper grades (`parity`)
    choice                one letter of several choices (`choice`)
    text                  yes or no, words in order (`text`)
    code                  a Python program against unit tests, run in a sandbox (`code`)
    package.module:NAME   an `AnswerGrader` of your own
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.grading import choice, code, text
from quagmire_utils.grading.sandbox import check_bubblewrap
from quagmire_utils.grading.verdicts import MATH, MATH_VERIFY, Verdict

if TYPE_CHECKING:
    from quagmire_utils.data import Problem

# Raise a version with every change that may change a verdict: a store then grades its answers of the older one again.
VERSIONS = {MATH: "3", MATH_VERIFY: "1", "choice": "2", "code": "4", "text": "1"}
_OWN = {"choice": choice, "text": text, "code": code}


@dataclass(frozen=True)
class AnswerGrader:
    """A grader: how an answer is found in a response, and what makes it right.

    All functions run in a worker, under its limits. Responses with equal answers to one gold are judged once per call.
    """

    version: str  # of the verdicts
    extract: Callable[[str], tuple[int, int] | None]  # response -> start and end of its answer; None: NO_ANSWER
    judge: Callable[..., Verdict | None]  # answer, gold, tolerance -> verdict (of `code`, also the worker's Programs)
    check: Callable[[str], None] = lambda gold: None  # raises ValueError for a gold that it cannot judge by
    show: Callable[[str], str] = str.strip  # the answer as it is stored, in at most 500 characters
    instruction: str = ""  # what a prompt says after the question; "": the benchmark must say it


GRADERS = {name: AnswerGrader(VERSIONS[name], m.extract, m.judge, m.check, m.show) for name, m in _OWN.items()}


@lru_cache(maxsize=64)
def find_grader(name: str) -> AnswerGrader:
    """Return the grader of that name, except those of mathematics. Raises ParameterError if there is none."""
    if name in GRADERS:
        return GRADERS[name]
    module, _, attribute = name.partition(":")
    if not re.fullmatch(r"[\w.]+", module) or not attribute.isidentifier():
        raise ParameterError(
            "grader", name, f"one of {', '.join([MATH, MATH_VERIFY, *GRADERS])} or package.module:NAME"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # importing runs the module
        reason = f"{name!r} cannot be imported: {type(error).__name__}: {error}"
        raise ParameterError("grader", name, reason=reason) from error
    if not isinstance(found, AnswerGrader):
        raise ParameterError("grader", name, f"the name of a grading.AnswerGrader ({type(found).__name__} found)")
    return found


def check_grader(name: str) -> None:
    """Raise ParameterError if there is no such grader, or this machine cannot run it."""
    if name == "code":
        check_bubblewrap()
    elif name not in (MATH, MATH_VERIFY):
        find_grader(name)


def prepare_problems(benchmarks: Mapping[str, Sequence[Problem]]) -> dict[str, list[Problem]]:
    """Return the problems with their graders' instructions where they have none. Raises ParameterError."""
    prepared: dict[str, list[Problem]] = {name: list(problems) for name, problems in benchmarks.items()}
    for name, problems in prepared.items():
        for i, problem in enumerate(problems):
            if problem.grader in (MATH, MATH_VERIFY):
                continue
            grader = find_grader(problem.grader)
            try:
                grader.check(problem.answer)
            except ValueError as error:
                raise ParameterError(name, problem.id, reason=f"problem {problem.id}: {error}") from error
            if problem.instruction is None and grader.instruction:
                problems[i] = replace(problem, instruction=grader.instruction)
    for name in {problem.grader for problems in prepared.values() for problem in problems}:
        check_grader(name)
    return prepared


def grader_version(name: str) -> str | None:
    """Return what a store notes beside verdicts, such as `choice 2`; None for math_verify 1, which it does not note."""
    version = VERSIONS[name] if name in (MATH, MATH_VERIFY) else find_grader(name).version
    return None if (name, version) == (MATH_VERIFY, "1") else f"{name} {version}"
