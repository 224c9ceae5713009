"""Problems of other domains than mathematics: how a row becomes a question, and a gold that its grader judges by.

Columns of a .jsonl file besides id, question and `grader` (recipes map a hub's columns to the same):

    choice   answer: a letter. choices: a list of texts, which the prompt then shows as A., B., ...; without it the
             question shows them itself.
    code     tests: a list of assert statements, or of {"input": ..., "output": ...}. setup: source that runs before
             the program (imports, helpers). entry_point: the function that the tests call, if only that is the
             program's. tolerance: by how much printed numbers may differ.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from quagmire_utils.data.problems import Problem
from quagmire_utils.data.prompts import STDIN_INSTRUCTION
from quagmire_utils.grading.registry import find_grader

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def domain_problem(problem_id: str, grader: str, row: Mapping[str, Any], instruction: str | None = None) -> Problem:
    """The problem of a row with the columns above. Raises ValueError, in words, for a row that has no such problem."""
    question, answer, tolerance = (
        str(row["question"]).strip(),
        row.get("answer"),
        checked_tolerance(row.get("tolerance")),
    )
    if grader == "code":
        tests = row.get("tests")
        answer = code_gold(tests, str(row.get("setup") or ""), str(row.get("entry_point") or ""))
        if instruction is None and isinstance(tests, list) and isinstance(tests[0], dict):
            instruction = STDIN_INSTRUCTION
    elif grader == "choice" and row.get("choices"):
        choices = checked_choices(row["choices"])
        answer = str("" if answer is None else answer).strip().upper()
        if answer not in _LETTERS[: len(choices)] or len(answer) != 1:
            raise ValueError(f"the answer {answer[:40]!r} is not the letter of one of its {len(choices)} choices")
        question = show_choices(question, choices)
    if answer is None or not str(answer).strip():
        raise ValueError("it has no answer")
    instruction = instruction or row.get("instruction") or find_grader(grader).instruction or None
    find_grader(grader).check(str(answer))
    return Problem(problem_id, question, str(answer).strip(), tolerance, grader, instruction)


def checked_choices(held: Any) -> list[str]:
    """The choices of a row as texts. Raises ValueError for what is no list of texts or numbers."""
    if not isinstance(held, list | tuple):
        raise ValueError(f"its choices must be a list, not {str(held)[:40]!r}")
    if not all(isinstance(choice, str | int | float) for choice in held):
        raise ValueError("each of its choices must be a text or a number")
    return [str(choice) for choice in held]


def show_choices(question: str, choices: Sequence[str]) -> str:
    """The question with its choices below, lettered. Raises ValueError for fewer than two, or more than letters."""
    if not 2 <= len(choices) <= len(_LETTERS):
        raise ValueError(f"a multiple choice needs 2 to {len(_LETTERS)} choices, not {len(choices)}")
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(_LETTERS, choices, strict=False)]
    return "\n".join([question, "", *lines])


def shuffled(problem_id: str, count: int) -> list[int]:
    """An order of so many choices that depends on the problem's id alone: the same on every machine, for ever."""
    return sorted(range(count), key=lambda i: hashlib.sha256(f"{problem_id}\x1f{i}".encode()).digest())


def code_gold(tests: Any, setup: str = "", entry_point: str = "") -> str:
    """What the grader `code` judges by, see there. `tests` may be the text of one script. Raises ValueError."""
    tests = [tests] if isinstance(tests, str) else tests
    if not isinstance(tests, list) or not tests:
        raise ValueError("it has no tests: a list of asserts, or of pairs of input and output")
    gold = json.dumps({"tests": tests, "setup": setup, "entry_point": entry_point}, sort_keys=True)
    find_grader("code").check(gold)
    return gold


def checked_tolerance(value: Any) -> float | None:
    """The tolerance of a row, also one from CSV. Raises ValueError for what is no number of at least 0."""
    if value is None or value == "":
        return None
    try:
        tolerance = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        tolerance = math.nan
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"it has the tolerance {value!r}, not a number >= 0")
    return tolerance
