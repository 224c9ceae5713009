"""A second grader, for the audit: it shares no code with math-verify and needs no sympy.

It reads the answer by itself (the last box, else what follows "answer is", "A:" or "####", else the last formula or
number) and compares in three steps: as normalised strings; by structure (lists without order, tuples, intervals, sets,
matrices, equations); and term by term as exact rational numbers, or, where roots, logarithms or variables occur, by
value at fixed points. A list is never equal to one of its members, a base never ignored, a tuple never a list.

    second_grade("1331 and 1728", "1728")     # Grade(WRONG, "1331, 1728")

It runs in the caller's process, so it is built for hostile text: nothing is evaluated but arithmetic, every number and
power is bounded, every search is linear and recursion is limited. What is beyond it is an ERROR, as is a box of more
than 1,000 characters or without an end, for which no other number is taken.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.grading.arithmetic import POINTS, BeyondError, evaluate, is_number_word, same_value
from quagmire_utils.grading.verdicts import MATH, UNDECIDED, Grade, Verdict, printable

if TYPE_CHECKING:
    import pandas as pd

    from quagmire_utils.data import Problem

_MAX_ANSWER = 1000  # characters of an answer that is looked at
_TAIL = 4000  # characters at the end of a response where an answer without a box is looked for

_BOXES = re.compile(r"\\(?:boxed|fbox)\s*\{(?!\s*\})")  # an empty one, as in a repeated prompt, does not count
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_BETWEEN_BOXES = re.compile(r"(?:[\s$,.]|and|or|\\[()\[\]]|\\text\{ ?(?:and|or) ?\})*")
_ANNOUNCED = re.compile(r"(?:answer\s*(?:is|:|=)|^\s*A:|####)[\s:*]*", re.IGNORECASE | re.MULTILINE)
_FORMULA = re.compile(
    r"\$\$?([^$]{1,300})\$\$?|\\\(((?:[^\\]|\\[^()]){1,300})\\\)|\\\[((?:[^\\]|\\[^\[\]]){1,300})\\\]"
)
_NUMBER = r"-?(?:\d[\d,]*\.?\d*|\.\d+)(?:\s*/\s*\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}(?:(?:,\s+|\s+)(?:and\s+|or\s+)?{_NUMBER})*")

_WORD = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname|mathit|rm|bf)\s*\{([^{}]*)\}(\s*\^\s*(?:\{?\d\}?))?"
)
_LETTER = re.compile(r"\\(?:text|mathrm|mathbf|mathit|mathbb|rm|bf)\s*(?=[A-Za-z0-9](?![A-Za-z]))")
_SPACING = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|textstyle|limits|quad|qquad)(?![a-zA-Z])"
)
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d])")
_PLAIN_WORDS = re.compile(r"[A-Za-z][A-Za-z\s'.-]*")
_UNIT = re.compile(
    r"(?<=\d)\s*(?:dollars|cents|percent|degrees|units|hours|minutes|seconds|days|years|miles|meters|feet|inches|cm|km|"
    r"kg|mph)\b\.?$"
)
_NAME = re.compile(r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?|\([a-z]\))?'?")
_REPLACED = (
    ("\\\\", "\\cr "), ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\cfrac", "\\frac"),
    ("\\,", " "), ("\\;", " "), ("\\:", " "), ("\\ ", " "), ("~", " "), ("{,}", ","), ("\\!", ""),
    ("\u2212", "-"), ("\u00d7", "\\times "), ("\u00b7", "\\cdot "), ("\u03c0", "\\pi "), ("\u221e", "\\infty "),
    ("\\leqslant", "\\le "), ("\\geqslant", "\\ge "), ("\\leq", "\\le "), ("\\geq", "\\ge "), ("\\ne ", "\\neq "),
    ("^{\\circ}", ""), ("^\\circ", ""), ("\\degree", ""), ("\u00b0", ""), ("\\$", ""), ("$", ""),
    ("\\lbrace", "\\{"), ("\\rbrace", "\\}"), ("\\(", ""), ("\\)", ""), ("\\[", ""), ("\\]", ""),
)  # fmt: skip


AUDIT_KINDS = ("only the first grader says correct", "only the second grader says correct", "the first is undecided")
_ENDING = 200  # characters of a response that the audit shows


def audit(responses: Sequence[str], golds: Sequence[str | Problem], grades: Sequence[Grade]) -> pd.DataFrame:
    """Grade responses a second time; return one row per response on which the two graders disagree.

    responses: n texts; golds: n answers in LaTeX, or Problems; grades: n, as `grade` returns them. Problems of other
    graders than math are left out. Columns: index (position of the response), kind (one of `AUDIT_KINDS`), gold,
    verdict, extracted, second_verdict (may be ERROR: it cannot judge), second_extracted, ending (the last 200
    characters of the response).

    `attrs` has samples (judged by the second grader), disagreements, undecided (not listed: the second grader cannot
    judge, and the first cannot either or says wrong), not_math (left out), and agreement (share of the samples that
    are not undecided; NaN without any).
    """
    import pandas as pd

    if not len(responses) == len(golds) == len(grades):
        raise ParameterError("grades", len(grades), f"as many as responses and golds ({len(responses)}, {len(golds)})")
    rows, undecided, not_math = [], 0, 0
    for index, (response, gold, first) in enumerate(zip(responses, golds, grades, strict=True)):
        if getattr(gold, "grader", MATH) != MATH:
            not_math += 1
            continue
        second = second_grade(response, gold)
        kind = _disagreement(first.verdict, second.verdict)
        if kind is None:
            undecided += second.verdict in UNDECIDED
            continue
        answer = gold if isinstance(gold, str) else gold.answer
        grades_of_both = (first.verdict.value, first.extracted, second.verdict.value, second.extracted)
        rows.append((index, kind, answer, *grades_of_both, response[-_ENDING:]))
    columns = ["index", "kind", "gold", "verdict", "extracted", "second_verdict", "second_extracted", "ending"]
    table = pd.DataFrame(rows, columns=columns).astype({"index": int})
    samples = len(responses) - not_math
    table.attrs = {
        "samples": samples,
        "disagreements": len(rows),
        "undecided": undecided,
        "not_math": not_math,
        "agreement": 1 - len(rows) / (samples - undecided) if samples > undecided else float("nan"),
    }
    return table


def _disagreement(first: Verdict, second: Verdict) -> str | None:
    """Return the kind of disagreement, or None where there is none."""
    if first == Verdict.CORRECT:
        return None if second == Verdict.CORRECT else AUDIT_KINDS[0]
    if first in UNDECIDED:
        return None if second in UNDECIDED else AUDIT_KINDS[2]
    return AUDIT_KINDS[1] if second == Verdict.CORRECT else None


def second_grade(response: str, gold: str | Problem) -> Grade:
    """Return the second grader's verdict on whether a response ends in the gold (LaTeX, or a Problem), and the answer.

    CORRECT, WRONG, NO_ANSWER (there is nothing to read) or ERROR (it cannot judge).
    """
    text, tolerance = (gold, None) if isinstance(gold, str) else (gold.answer, gold.tolerance)
    try:
        answer = _read_answer(response)
        text = _boxed(text) or text.strip()
    except BeyondError:
        return Grade(Verdict.ERROR, "")
    if not answer:
        return Grade(Verdict.NO_ANSWER, "")
    return Grade(_compare(answer, text, tolerance), printable(answer))


def _read_answer(response: str) -> str:
    """Return the final answer, "" without one. Raises BeyondError for a box that cannot be read."""
    boxed = _boxed(response)
    if boxed:
        return boxed
    tail = response[-_TAIL:]
    announced = list(_ANNOUNCED.finditer(tail))
    if announced:
        tail = tail[announced[-1].end() :]
        line = tail.strip().split("\n")[0].strip().rstrip(".* ")
        formula = _FORMULA.match(line)
        if formula and not re.match(r"\s*(?:,|and\b|or\b)", line[formula.end() :]):
            return next(filter(None, formula.groups())).strip()
        if line and len(line) <= 60 and "<<" not in line:
            return line
    formulas = [match for match in _FORMULA.finditer(tail) if not match[0].isspace()]
    numbers = list(_NUMBERS.finditer(tail))
    if formulas and (not numbers or numbers[-1].end() <= formulas[-1].end()):
        return _joined_formulas(tail, formulas).strip()
    last = numbers[-1][0] if numbers else ""
    return last if _THOUSANDS.fullmatch(last) else ", ".join(re.findall(_NUMBER, last))


def _joined_formulas(text: str, formulas: list[re.Match[str]]) -> str:
    """Return the last formula, with those before it that only a comma, "and" or "or" separates from it."""
    parts, start = [], None
    for formula in reversed(formulas):
        if start is not None and not re.fullmatch(r"\s*(?:,|,?\s*and|,?\s*or)\s*", text[formula.end() : start]):
            break
        parts.append(next(filter(None, formula.groups())))
        start = formula.start()
    return ", ".join(reversed(parts))


def _boxed(text: str) -> str:
    """Return the content of the last box, with those before it that only "and", "or" or a comma separates from it.

    Empty boxes do not count; of nested boxes the outermost does. Raises BeyondError if the last box is too long or none
    is closed: what else the text holds is not its answer.
    """
    boxes: list[tuple[int, int, int | None]] = []  # where a box, and its content, begins and ends
    for match in deque(_BOXES.finditer(text), maxlen=20):
        if not boxes or match.start() > (boxes[-1][2] or 0):
            boxes.append((*match.span(), _closing(text, match.end())))
    last = len(boxes)
    while last and boxes[last - 1][2] is None:  # cut off: the one before it may be whole
        last -= 1
        if last == 0 or len(text) - boxes[last][1] > _MAX_ANSWER:
            raise BeyondError("a box without an end in reach")
    found: list[str] = []
    edge = None
    for start, inside, end in reversed(boxes[:last]):
        if end is None or (edge and not (edge - end < 101 and _BETWEEN_BOXES.fullmatch(text, end + 1, edge))):
            break
        found.append(text[inside:end].strip())
        edge = start
    return ", ".join(dict.fromkeys(reversed(found)))


def _closing(text: str, start: int) -> int | None:
    """Return where the brace opened before `start` is closed; None if nowhere, or too far away."""
    depth = 1
    for i in range(start, min(len(text), start + _MAX_ANSWER)):
        if text[i] == "{" and text[i - 1] != "\\":
            depth += 1
        elif text[i] == "}" and text[i - 1] != "\\":
            depth -= 1
            if depth == 0:
                return i
    return None


@lru_cache(maxsize=65536)
def _compare(answer: str, gold: str, tolerance: float | None) -> Verdict:
    if len(answer) > _MAX_ANSWER or len(gold) > _MAX_ANSWER:
        return Verdict.CORRECT if answer == gold else Verdict.ERROR
    answer, gold = _normalise(answer), _normalise(gold)
    if answer == gold:
        return Verdict.CORRECT if answer else Verdict.ERROR
    try:
        return Verdict.CORRECT if _equal(_structure(answer), _structure(gold), tolerance) else Verdict.WRONG
    except (BeyondError, RecursionError, ArithmeticError, ValueError):
        return Verdict.ERROR


def _normalise(text: str) -> str:
    """Return LaTeX without spacing, styles, boxes, units and thousands separators."""
    text = _BOX_COMMAND.sub("", text).strip()
    for _ in range(10):  # groups around all of it, say of a box within the box
        if not text.startswith("{") or _closing(text, 1) != len(text) - 1:
            break
        text = text[1:-1].strip()
    for old, new in _REPLACED:
        text = text.replace(old, new)
    text = _LETTER.sub("", _SPACING.sub("", text))
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    bare = _WORD.sub("", text).strip()
    text = _WORD.sub(lambda match: _word(match, bare != ""), text)
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = text.strip().rstrip(".,;").strip()
    if _PLAIN_WORDS.fullmatch(text) and len(text) > 1:
        return " ".join(text.lower().split())
    text = _UNIT.sub("", text)
    text = re.sub(r"^(-?\d+\.?\d*)[eE]([+-]?\d{1,3})$", r"\1*10^{\2}", text)
    choice = re.fullmatch(r"\(([A-Za-z])\)", text)
    return choice[1] if choice else re.sub(r"\s*([^\sA-Za-z\\])\s*", r"\1", re.sub(r"\s+", " ", text)).strip()


def _word(match: re.Match[str], beside_math: bool) -> str:
    word = match[1].strip()
    if word in ("and", "or"):
        return ","
    if not beside_math:
        return f" {match[1]} "
    return f" {word} " if len(word) == 1 or is_number_word(word) else " "  # otherwise a unit or a remark


# ------------------------------------------------------------------------------------------------------- structures

_Structure = tuple  # (kind, ...), see `_structure`
_OPENERS, _CLOSERS = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}


def _structure(text: str) -> _Structure:
    """Return the structure of an answer: a kind and its parts.

    ("words", text), ("list", items), ("sequence", open, close, items), ("relation", text), ("equation", left, right),
    ("value", text). A list has no order: `a, b`, also `\\{a, b\\}` and a union of intervals.
    """
    if not text:
        raise BeyondError("nothing there")
    if _PLAIN_WORDS.fullmatch(text) and len(text) > 1:
        return "words", text.lower()
    text = re.sub(r"^(?:[a-zA-Z]|\([a-z](?:,[a-z])+\))\s*(?:\\in(?![a-z])|\\colon|:)", "", text).strip()
    matrix = re.fullmatch(r"\\begin\{[pbv]?(?:matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{[a-z]*\}", text, re.DOTALL)
    if matrix:
        rows = [row for row in matrix[1].split("\\cr") if row.strip()]
        cells = [("sequence", "(", ")", [_structure(cell.strip()) for cell in row.split("&")]) for row in rows]
        return "sequence", "[", "]", cells
    if "\\begin" in text:
        raise BeyondError("an environment")
    for separators in (("\\cup",), (",", ";", "&&")):
        items = _split(text, separators)
        if len(items) > 1:
            return "list", [_structure(item) for item in items if item]
    if text.startswith("\\{") and text.endswith("\\}") and len(text) > 4:
        inner = _split(text[2:-2].strip(), (",", ";"))
        return "list", [_structure(item) for item in inner if item]
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and _partner(text) == len(text) - 1:
        items = _split(text[1:-1], (",", ";"))
        if len(items) > 1:
            return "sequence", text[0], text[-1], [_structure(item) for item in items]
    if re.search(r"[<>]|\\(?:le|ge|neq|lt|gt)(?![a-z])", text):
        return "relation", re.sub(r"\s", "", text)
    sides = text.split("=")
    if len(sides) > 1 and all(side.strip() for side in sides):
        return "equation", sides[0].strip(), sides[-1].strip()
    if text.count("\\pm") == 1:
        return "list", [("value", text.replace("\\pm", sign).lstrip("+ ")) for sign in "+-"]
    return "value", text


def _split(text: str, separators: tuple[str, ...]) -> list[str]:
    """Split a text at the separators outside brackets."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if text[i] == "\\" and text[i + 1 : i + 2] in ("{", "}"):
            depth += 1 if text[i + 1] == "{" else -1
            i += 2
            continue
        if text[i] in _OPENERS:
            depth += 1
        elif text[i] in _CLOSERS:
            depth -= 1
        elif depth == 0:
            found = next((separator for separator in separators if text.startswith(separator, i)), None)
            if found:
                parts.append(text[start:i].strip())
                i += len(found)
                start = i
                continue
        i += 1
    return [*parts, text[start:].strip()]


def _partner(text: str) -> int:
    """Return the index of the bracket that closes the first one; the kinds may differ, as in `[0,1)`."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return i
    return -1


def _equal(answer: _Structure, gold: _Structure, tolerance: float | None) -> bool:
    if gold[0] != "equation" and answer[0] == "equation" and _NAME.fullmatch(answer[1]):
        return _equal(_structure(answer[2]), gold, tolerance)  # `x = 5` for `5`
    if gold[0] == "equation" and answer[0] != "equation" and _NAME.fullmatch(gold[1]):
        return _equal(answer, _structure(gold[2]), tolerance)
    if answer[0] != gold[0]:
        return _equal_kinds(answer, gold, tolerance)
    if gold[0] == "equation":
        if _NAME.fullmatch(gold[1]) and _NAME.fullmatch(answer[1]):
            return answer[1] == gold[1] and _equal(_structure(answer[2]), _structure(gold[2]), tolerance)
        return _same_equation(answer, gold)
    if gold[0] == "value":
        return same_value(answer[1], gold[1], tolerance)
    if gold[0] == "words":
        return answer[1] == gold[1]
    if gold[0] == "relation":
        if answer[1] == gold[1]:
            return True
        raise BeyondError("relations are compared as strings only")
    if gold[0] == "sequence":
        return (
            answer[1:3] == gold[1:3]
            and len(answer[3]) == len(gold[3])
            and all(_equal(mine, theirs, tolerance) for mine, theirs in zip(answer[3], gold[3], strict=True))
        )
    return _same_list(answer[1], gold[1], tolerance)


def _same_list(answer: list[_Structure], gold: list[_Structure], tolerance: float | None) -> bool:
    """Return whether each item of either is equal to one of the other; order and repetition do not matter."""
    if len(answer) > 64 or len(gold) > 64:
        raise BeyondError("a long list")
    pairs = [[_equal(mine, theirs, tolerance) for theirs in gold] for mine in answer]
    return all(map(any, pairs)) and all(map(any, zip(*pairs, strict=True)))


def _equal_kinds(answer: _Structure, gold: _Structure, tolerance: float | None) -> bool:
    """Return False: structures of different kinds differ. Raises BeyondError if one of them could not be read."""
    for kind, *rest in (answer, gold):
        if kind == "list" and len(rest[0]) == 1:  # `\\{5\\}` is not 5, but a union of one interval is it
            continue
        if kind == "relation":
            raise BeyondError("relations are compared with relations only")
        if kind == "value":
            evaluate(rest[0], 0)
    return False


def _same_equation(answer: _Structure, gold: _Structure) -> bool:
    """Return whether left - right of the two are proportional to each other at the points."""
    mine, theirs = ([evaluate(f"({side[1]})-({side[2]})", i) for i in range(POINTS)] for side in (answer, gold))
    (first, second), *others = zip(mine, theirs, strict=True)
    if not complex(first) or not complex(second):
        raise BeyondError("an identity")
    return all(abs(complex(first * b - second * a)) <= 1e-9 * abs(complex(first * b)) for a, b in others)
