"""Graders of other domains than mathematics: how an answer is found in a response, and what makes it right.

A benchmark names its grader (`Problem.grader`); `math`, the paper's, is the default and lives in `judge`. The others
are two functions each, which run in the same killable, confined workers and give the same verdicts:

    choice   one letter of several choices (`choice`)
    code     a Python program against unit tests, run in a process of its own (`code`, `programs`)
    package.module:NAME   an `AnswerGrader` of one's own, named in a benchmark's YAML file

`extract` finds where the answer stands, and `judge` compares it with the gold. Of a call's responses, those with equal
answers to one gold are judged once; answers are never compared across golds. `version` is written beside the verdicts
of a store: raise it with every change that may change one, and `grade_store` grades anew what an older one had judged.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.grading import choice, code
from quagmire_utils.grading.verdicts import Verdict

MATH = "math"


@dataclass(frozen=True)
class AnswerGrader:
    """What the verdict on a response is made of. All functions are called in a worker, under its limits."""

    version: str  # of the verdicts: another one, and a store's are taken back
    extract: Callable[[str], tuple[int, int] | None]  # response -> start and end of its answer; None: NO_ANSWER
    judge: Callable[..., Verdict | None]  # answer, gold, tolerance (, programs) -> verdict; None: limit used up
    check: Callable[[str], None] = lambda gold: None  # raises ValueError for a gold that it could not judge by
    show: Callable[[str], str] = str.strip  # the answer as it is stored, in at most 500 characters
    runs_programs: bool = False  # `judge` is also given a `programs.Programs`
    instruction: str = ""  # what a prompt says after the question; "": the benchmark must say it


GRADERS: dict[str, AnswerGrader] = {
    "choice": AnswerGrader("2", choice.extract, choice.judge, choice.check, choice.show),
    "code": AnswerGrader("2", code.extract, code.judge, code.check, code.show, runs_programs=True),
}


@lru_cache(maxsize=64)
def find_grader(name: str) -> AnswerGrader:
    """The grader of that name. Raises ParameterError where there is none; `math` is none of these."""
    if name in GRADERS:
        return GRADERS[name]
    module, _, attribute = name.partition(":")
    if not re.fullmatch(r"[\w.]+", module) or not attribute.isidentifier():
        known = ", ".join([MATH, *GRADERS])
        raise ParameterError(f"grader must be one of {known} or package.module:NAME, not {name!r}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # importing runs the module
        raise ParameterError(f"grader {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, AnswerGrader):
        raise ParameterError(f"grader {name!r} must be a grading.AnswerGrader, not {type(found).__name__}")
    return found


def grader_version(name: str) -> str | None:
    """What a store notes beside verdicts: `choice 1`. None for math, whose stores carry no such note."""
    return None if name == MATH else f"{name} {find_grader(name).version}"
