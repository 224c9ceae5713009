r"""The grader of short texts: yes or no, True or False, words in order.

The answer is the last box, else the last stated one ("The answer is no.", "Answer: barn damp delmarva"), after the
thinking. Case, quotes, LaTeX's dressing and the marks between words do not count; the words and their order do. Where
the gold is yes, no, true or false, a sentence may say it (`\boxed{No, it is tails up}`), but not both, nor "not".
"""

from __future__ import annotations

import re
import unicodedata

from quagmire_utils.grading.extraction import STATED, after_thinking, closing
from quagmire_utils.grading.verdicts import Verdict

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n|$")
_DRESSING = re.compile(r"\\(?:text|math)(?:bf|it|rm|tt)?\b|\\(?=\W)|[{}()\[\]<>$*`\"'“”‘’]")
_BETWEEN = re.compile(r"[\s,;]+")
_DECISIONS = {"yes", "no", "true", "false", "not"}


def extract(response: str) -> tuple[int, int] | None:
    """Return start and end of the answer; None where a response boxes and states none, or its last box is cut off."""
    text = after_thinking(response)
    if text is None:
        return None
    before = len(response) - len(text)
    found = [*_BOX.finditer(text)]
    if found:
        start, end = found[-1].end(), closing(text, found[-1].end())
    elif found := [*STATED.finditer(text)]:
        start = found[-1].end()
        end = _SENTENCE_END.search(text, start).start()
    else:
        return None
    return (before + start, before + end) if end is not None and words(text[start:end]) else None


def words(text: str) -> list[str]:
    """Return the words of an answer in lower case, without what dresses them."""
    bare = _DRESSING.sub("", unicodedata.normalize("NFKC", text)).casefold()
    return [word for part in _BETWEEN.split(bare) if (word := part.strip(".:!?"))]


def judge(answer: str, gold: str, tolerance: float | None) -> Verdict:
    """Return CORRECT if the answer has the gold's words in its order, or decides as the gold does, else WRONG."""
    said, asked = words(answer), words(gold)
    decided = len(asked) == 1 and _DECISIONS.intersection(asked) and _DECISIONS.intersection(said) == set(asked)
    return Verdict.CORRECT if decided or said == asked else Verdict.WRONG


def check(gold: str) -> None:
    """Raise ValueError for a gold without a word."""
    if not words(gold):
        raise ValueError(f"the answer {gold[:40]!r} has no words")


def show(answer: str) -> str:
    """Return the words of an answer, with spaces between."""
    return " ".join(words(answer))
