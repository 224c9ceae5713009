"""Verdicts, and what can be decided about a response without math-verify, and provably as it would."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

_MAX_EXTRACTED = 500  # characters kept of an extracted answer
_MAX_BOX = 1000  # characters within which a box is followed to its end


class Verdict(StrEnum):
    """What came of grading one response. Only CORRECT and WRONG are decisions about its answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # the grader finds nothing to read in the response
    TIMEOUT = "timeout"  # the response used up its time limit
    ERROR = "error"  # comparing raised, ran out of memory or crashed its worker, or the gold cannot be read


UNDECIDED = (Verdict.TIMEOUT, Verdict.ERROR)


@dataclass(frozen=True)
class Grade:
    """A verdict and the answer it is about, as the grader extracts it: at most 500 characters, valid UTF-8, no NUL.

    `extracted` is empty for NO_ANSWER, and for a TIMEOUT or ERROR whose worker died before it could tell.
    """

    verdict: Verdict
    extracted: str


class _Pair(NamedTuple):
    gold: str
    tolerance: float | None
    response: str


class _Job(NamedTuple):
    gold: str
    tolerance: float | None
    text: str
    is_box: bool  # text is the content of a response's only box, not the response
    limit: float  # seconds


class _DomainJob(NamedTuple):
    """As a _Job, for another grader than math."""

    gold: str | None  # None: the answer is yet to be found in the text
    tolerance: float | None
    text: str  # the response, or its answer
    grader: str
    limit: float  # seconds

    @property
    def is_box(self) -> bool:
        """Whether the text is the answer."""
        return self.gold is not None


_BRACE = re.compile(r"[{}]")
_CLOSER = re.compile(r"\$|\]|\\\)")
_PERCENT = re.compile(r"%|[Pp]ercent|[Pp]ct")
_FINAL_ANSWER = re.compile(r"final answer", re.IGNORECASE)
_IS = re.compile(r"\sis", re.IGNORECASE)
_READABLE = re.compile(r"[$\\\[\d]")
_INTEGER = re.compile(r"-?[0-9]{1,15}")
_UNSAFE = re.compile("[\x00\ud800-\udfff]")


def _only_box(text: str) -> str | None:
    """The content C of a text's only box if math-verify reads C and nothing else of the text; None if that is unsure.

    Why it is sure. math-verify tries its patterns by priority. The first two priorities hold the patterns for "final
    answer is ...", excluded here (they need `final answer` and later white space with `is`), and those for boxes. The
    latter need `\\boxed{`, which occurs once, so each match holds this box; and all of C, since no LaTeX environment
    can end within it: that takes a `$`, `]` or `\\)`. One of them, `\\boxed{.+}`, always matches. What is parsed of a
    match is the content of the boxes in it, so C, and a percent sign behind the environment, excluded here, is the one
    thing that could change its value. So all matches give the same, and unless C is not LaTeX, no lower priority is
    looked at. (If it is not, the worker says so and the whole text is graded.) All tests are linear in the text.
    """
    start = text.find("\\boxed{")
    if start < 0 or text.count("\\boxed") > 1 or "\\fbox" in text:
        return None
    start, depth, end = start + len("\\boxed{"), 1, -1
    for brace in _BRACE.finditer(text, start, start + _MAX_BOX):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            end = brace.start()
            break
    if end <= start or _CLOSER.search(text, start, end) or _PERCENT.search(text, end):
        return None
    # Lower-casing is the faster test; beyond ASCII a few more letters pass for one of these when case is ignored.
    if not text.isascii() or "final answer" in text.lower():
        final = _FINAL_ANSWER.search(text)
        if final and _IS.search(text, final.end()):
            return None
    return text[start:end]


def _decide(pair: _Pair, timeout: float) -> Grade | _Job:
    """The grade, where it is certain without math-verify; otherwise the job for a worker."""
    box = _only_box(pair.response)
    if box is None:
        if not _READABLE.search(pair.response):  # each of math-verify's patterns needs a digit, `$`, `[` or backslash
            return Grade(Verdict.NO_ANSWER, "")
        return _Job(*pair, False, timeout)
    answer = box.strip()
    if pair.tolerance is None and _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(pair.gold):
        return Grade(Verdict.CORRECT if int(answer) == int(pair.gold) else Verdict.WRONG, answer)
    return _Job(pair.gold, pair.tolerance, box, True, timeout)


def _printable(text: str) -> str:
    return _UNSAFE.sub("\ufffd", text[:_MAX_EXTRACTED])
