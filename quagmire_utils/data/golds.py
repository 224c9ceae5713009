"""Gold answers: what a dataset says, as bare LaTeX (no `$`, no prose) that math-verify reads inside `\\boxed{...}`.

single(["5"])                                  # "5": lists are taken apart, NaN is no answer
boxed_answer("So $x = \\\\boxed{5}$.")            # 5
math_gold("080 or 081 (both were accepted)")    # ("80.5", 0.5)
"""

from __future__ import annotations

import ast
import json
import math
import re
from decimal import Decimal
from typing import Any

_LISTED = re.compile(r"""\[\s*(["']).*\1\s*\]""", re.DOTALL)  # a list of texts, as text: no answer looks like it
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_SENTENCE_END = re.compile(r"[.!?:]\s|\n")
_BETWEEN_ANSWERS = re.compile(r"[\s$,;\\]*(text\{)?\s*(or|and)?[\s$,;}\\]*")
_PROSE = re.compile(
    r"\b(is|are|was|we|the|so|thus|hence|therefore|get|has|have)\b|[a-z]{2,}(\s+[a-z]{2,}){2}", re.IGNORECASE
)


def single(answer: Any, several: bool = False) -> Any:
    """Return an answer without the lists around it; None for an empty one and for NaN.

    Raises ValueError for a list of several answers, unless they may be `several`: then they are joined by commas.
    """
    if isinstance(answer, str) and _LISTED.fullmatch(answer.strip()):
        answer = parsed(answer.strip()) or answer
    if isinstance(answer, list | tuple):
        found = [one for one in (single(one, several) for one in answer) if one is not None]
        if len(found) > 1 and not (several and all(map(is_answer, found))):
            raise ValueError("its answer must be a text or a number (several in a list need answer_format: list)")
        return ",".join(map(plain, found)) if len(found) > 1 else next(iter(found), None)
    missing = answer is None or (isinstance(answer, str) and not answer.strip()) or is_nan(answer)
    return None if missing else answer


def parsed(text: str) -> Any:
    """Return the value of a JSON or Python text; None for any other."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def is_answer(answer: object) -> bool:
    """Tell whether a value is a text or a number."""
    return isinstance(answer, str | int | float) and not isinstance(answer, bool)


def is_nan(answer: object) -> bool:
    """Tell whether an answer is a table's mark for a missing one."""
    if isinstance(answer, str):
        return answer.strip().casefold() == "nan"
    return isinstance(answer, float) and math.isnan(answer)


def plain(answer: object) -> str:
    """Return the answer as text: `142.0` as 142, and never 1e-07, which a grader reads as e - 7."""
    if isinstance(answer, float) and math.isfinite(answer):
        return str(int(answer)) if answer.is_integer() else format(Decimal(repr(answer)), "f")
    return str(answer).strip()


# --- boxes ------------------------------------------------------------------------------------------------------------


def boxed_answer(text: str) -> str | None:
    """Return what a solution boxes at its end, also as `\\fbox{5}` or `\\boxed 5`; several boxes with commas between.

    A short text without a box is an answer already. None if there is no answer: the last box is empty or cut off, one
    sentence has several boxes that are not a mere list, or a sentence has none.
    """
    boxes: list[tuple[int, int, str]] = []  # start, end, content
    for match in _BOX.finditer(text):
        if boxes and match.start() < boxes[-1][1]:
            continue  # inside the one before
        start = match.end()
        if text[start : start + 1] == "{":
            end = _closing(text, start + 1)
            content = "" if end is None else text[start + 1 : end]
            end = len(text) if end is None else end + 1
        else:
            line = text[start:].partition("\n")[0]
            content = re.match(r"[^$]*(?=\$)|\S*", line)[0]
            end = start + len(content)
        boxes.append((match.start(), end, content.strip().rstrip(".,;") if content else ""))
    if not boxes:
        return None if _PROSE.search(re.sub(r"\\text\{[^{}]*\}|\\[a-zA-Z]+|\$[^$]*\$", "; ", text)) else text
    answers = [boxes[-1][2]]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        between = text[before[1] : after[0]]
        if _SENTENCE_END.search(between):
            break
        if not _BETWEEN_ANSWERS.fullmatch(between):
            return None
        answers.insert(0, before[2])
    return ",".join(answers) if all(answers) else None


def _closing(text: str, start: int) -> int | None:
    """Return where the brace that was opened before `start` is closed; None if it is not."""
    depth = 1
    for end in range(start, len(text)):
        if text[end - 1] == "\\" and text[end] in "{}":
            continue  # an escaped brace, as in a set
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return end
    return None


# --- mathematics ------------------------------------------------------------------------------------------------------

# Golds that math-verify misreads, and the same answer as it reads it.
_READABLE = {
    "m_{\\max }=n^{2}-n-1": "n^{2}-n-1",  # not read at all
    "t(0,4]": "(0,4]",  # not read at all: t is the unknown, and the element sign was lost
    (
        "f(x)=a x+b, where b is an arbitrary integer, and a is an arbitrary positive integer with \\mho(a)=0"
    ): "f(x)=a x+b",  # read as 0
    "\\frac{1}{m} t": "\\frac{t}{m}",  # read as 1/m: the t is taken for tons
    "\\frac{1}{\\sqrt{2}}c": "\\frac{c}{\\sqrt{2}}",  # read as 1/sqrt(2): the c is taken for a unit
    "\\approx 8.24 \\text{ mph}": "8.24",
    "2007 + \\frac\\pi 2": "2007 + \\frac{\\pi}{2}",
}


def math_gold(answer: str) -> tuple[str, float | None]:
    """Return the gold and its tolerance: a problem of AIME accepts two neighbouring integers."""
    both = re.fullmatch(r"(\d+) or (\d+) \(both were accepted\)", answer)
    if both:
        low, high = int(both[1]), int(both[2])
        return str((low + high) / 2), (high - low) / 2
    # Some golds are Python rather than LaTeX: 4.5e33 would read as 4.5*e*33, "-1./3" not at all.
    answer = re.sub(r"^(-?\d+(?:\.\d*)?)e([+-]?\d+)(?![\w.])", lambda m: f"{m[1]} \\times 10^{{{int(m[2])}}}", answer)
    answer = re.sub(r"(\d)\./", r"\1/", answer).replace("np.arcsin", "\\arcsin")
    # without dollar signs, thousands separators and the full stop of its sentence
    answer = answer.replace("\\$", "").replace("$", "").strip().rstrip(".,; ")
    answer = re.sub(r"(?<=\d),\\!\s*(?=\d{3})", "", answer)
    answer = re.sub(r"(?<!\\)%", r"\\%", answer)  # a bare % starts a LaTeX comment
    return _READABLE.get(answer, answer), None
