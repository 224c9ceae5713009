"""The verdicts that all graders give, and what the caller and the grading workers pass each other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

MATH = "math"  # the default grader
MATH_VERIFY = "math_verify"  # the library's own verdict, as the paper grades
_MAX_EXTRACTED = 500  # characters kept of an extracted answer
_UNSAFE = re.compile("[\x00\ud800-\udfff]")


class Verdict(StrEnum):
    """Result of grading one response. Only CORRECT and WRONG are decisions about its answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # the response has no answer that the grader can read
    TIMEOUT = "timeout"  # grading used up the response's time limit
    ERROR = "error"  # comparing raised, ran out of memory or crashed its worker, or the gold cannot be read


UNDECIDED = (Verdict.TIMEOUT, Verdict.ERROR)


@dataclass(frozen=True)
class Grade:
    """A verdict and the answer it is about, as extracted: at most 500 characters, valid UTF-8, without NUL.

    `extracted` is empty for NO_ANSWER, and for a TIMEOUT or ERROR whose worker died before it could report the answer.
    """

    verdict: Verdict
    extracted: str


class Job(NamedTuple):
    """A piece of work for a grading worker. Equal jobs of one call are done once."""

    grader: str
    gold: str | None  # None: only find the answer in the text
    tolerance: float | None
    text: str
    is_answer: bool  # the text is an answer (for math: the content of a response's only box), not a response
    limit: float  # seconds


class Found(NamedTuple):
    """Where a worker found the answer in a text; for math: the box is not LaTeX, so read the whole response."""

    start: int
    end: int
    seconds: float  # that it took


def printable(text: str) -> str:
    """Return an extracted answer in the form in which a Grade holds it."""
    return _UNSAFE.sub("\ufffd", text[:_MAX_EXTRACTED])
