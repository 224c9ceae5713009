"""A second grader that proves: it shares no code with math-verify and needs no sympy.

`prove` compares an answer with a gold in three steps: as normalised strings; by structure (lists without order, tuples,
intervals and relations as sets of numbers, matrices, equations); and term by term as exact numbers or formulas. It says
equal or different only where that follows; what notation leaves open (is `1/2x` x/2?) is undecided.

    prove("x > 2", "(2, \\infty)")            # True
    second_grade("1331 and 1728", "1728")     # Grade(WRONG, "1331, 1728"), for the audit

`second_grade` also finds the answer by itself: the last box, else what follows "answer is", "A:" or "####", else the
last formula or number. It runs in the caller's process, so it is built for hostile text: nothing is evaluated but
arithmetic, every number and power is bounded, every search is linear and recursion is limited. What is beyond it is an
ERROR, as is a last box of more than 1,000 characters or without an end, for which no other number is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.grading.arithmetic import (
    BeyondError,
    Value,
    add,
    difference,
    evaluate,
    is_real,
    roots,
    same_value,
    sortable,
)
from quagmire_utils.grading.notation import (
    ANNOUNCED,
    MAX_ANSWER,
    PLAIN_WORDS,
    boxed,
    normalise,
    partner,
    read_answer,
    split,
)
from quagmire_utils.grading.verdicts import MATH, UNDECIDED, Grade, Verdict, printable

if TYPE_CHECKING:
    import pandas as pd

    from quagmire_utils.data import Problem

_NAME = re.compile(
    r"(?:[A-Za-z]+|\\[A-Za-z]+\s?|\|[A-Za-z]+\||\[[A-Z]+\]|\{[A-Za-z]+\})+(?:_\{?\w+\}?)?'*(?:\((?:[a-z]|-?\d+|[A-Z]+)(?:,(?:[a-z]|\d+))*\))?|\([a-z](?:,[a-z])+\)"
)
_RELATION = re.compile(r"<|>|\\(?:le|ge|neq)(?![a-z])")


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
        answer = read_answer(response)
    except BeyondError:
        return Grade(Verdict.ERROR, "")
    if not answer:
        return Grade(Verdict.NO_ANSWER, "")
    verdict = {True: Verdict.CORRECT, False: Verdict.WRONG, None: Verdict.ERROR}[prove(answer, text, tolerance)]
    return Grade(verdict, printable(answer))


@lru_cache(maxsize=65536)
def prove(answer: str, gold: str, tolerance: float | None = None) -> bool | None:
    """Return whether an answer is equal (True) to a gold or different (False); None where neither is certain.

    answer: as extracted from a response, LaTeX or plain. gold: LaTeX, may be a box or a sentence with one. tolerance:
    absolute, between numbers.
    """
    try:
        gold = boxed(gold) or (read_answer(gold) if ANNOUNCED.search(gold) else gold).strip()
        if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
            return True if answer == gold else None
        (mine, my_remarks), (theirs, their_remarks) = normalise(answer), normalise(gold)
        if my_remarks and their_remarks and my_remarks != their_remarks:
            return None  # 5 m and 5 cm, but also 5 m and 5 meters
        if mine == theirs:
            return True if mine else None
        if re.search(r"^[A-H][.)]\s+\S|^[\[{]['\"]|&\w+;", gold):
            return None  # a gold that somebody has yet to read
        return _equal(_structure(mine), _structure(theirs), tolerance)
    except (BeyondError, RecursionError, ArithmeticError, ValueError, TypeError, LookupError):
        return None


# ------------------------------------------------------------------------------------------------------- structures

_Structure = tuple  # (kind, ...), see `_structure`


@lru_cache(maxsize=16384)
def _structure(text: str) -> _Structure:
    """Return the structure of an answer: a kind and its parts.

    ("words", text), ("list", items), ("set", items), ("union", items), ("sequence", open, close, items),
    ("matrix", rows), ("relation", sides, signs), ("equation", left, right), ("ratio", parts), ("value", text).
    """
    if not text:
        raise BeyondError("nothing there")
    if "\\unread" in text or "\\dots" in text:
        raise BeyondError("a remark")
    if PLAIN_WORDS.fullmatch(text):
        return "words", text
    text = re.sub(r"^(?:[a-zA-Z]|\([a-z](?:,[a-z])+\))\s*(?:\\in(?![a-z])|:)", "", text).strip()
    matrix = re.fullmatch(r"\\begin\{[pb]?(?:matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{[a-z]*\}", text, re.DOTALL)
    if matrix:
        rows = [row for row in matrix[1].split("\\cr") if row.strip()]
        return "matrix", [("sequence", "(", ")", [_structure(cell.strip()) for cell in row.split("&")]) for row in rows]
    if "\\begin" in text:
        raise BeyondError("an environment")
    if text in ("\\emptyset", "\\{\\}"):
        return "set", []
    described = re.fullmatch(r"\\\{([a-z])(?:\\in[^:|]*)?[:|](.*)\\\}", text)
    if described:
        text = described[2]
    for kind, separators in (("union", ("\\cup", "\\or")), ("list", (",", ";", "&&", "\\quad", "\\or"))):
        items = [item for item in split(text, separators) if item]
        text = items[0] if len(items) == 1 else text
        if len(items) > 1:
            parts = [_structure(item) for item in items]
            if (
                kind == "union"
                and "\\or" in text
                and not all(part[0] in ("relation", "sequence", "union") for part in parts)
            ):
                continue
            if kind == "list" and all(part[0] == "relation" for part in parts):
                return "both", parts
            return kind, parts
    if text.startswith("\\{") and text.endswith("\\}") and len(text) > 4:
        inner = split(text[2:-2].strip(), (",", ";"))
        return "set", [_structure(item) for item in inner if item]
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and partner(text) == len(text) - 1:
        items = split(text[1:-1], (",", ";"))
        if len(items) > 1:
            return "sequence", text[0], text[-1], [_structure(item) for item in items]
    signs = _RELATION.findall(text)
    if signs and "=" not in text:
        sides = [side.strip() for side in _RELATION.split(text)]
        return "relation", tuple(sides), tuple(signs)
    sides = text.split("=")
    if len(sides) > 1 and all(side.strip() for side in sides):
        return "equation", sides[0].strip(), sides[-1].strip()
    if text.count("\\pm") == 1:
        return "list", [("value", text.replace("\\pm", sign).lstrip("+ ")) for sign in "+-"]
    if re.fullmatch(r"[\d.]+(?::[\d.]+)+", text):
        return "ratio", text.split(":")
    return "value", text


_Truth = bool | None  # None: undecided


def _all(results: Iterable[_Truth]) -> _Truth:
    """Return False if any is False, otherwise None if any is None, otherwise True."""
    found = set(results)
    return False if False in found else None if None in found else True


def _any(results: Iterable[_Truth]) -> _Truth:
    opposite = _all(None if result is None else not result for result in results)
    return None if opposite is None else not opposite


def _equal(answer: _Structure, gold: _Structure, tolerance: float | None) -> _Truth:
    kinds = answer[0], gold[0]
    if kinds == ("value", "value"):
        if len(answer[1]) == len(gold[1]) == 1 and answer[1].isalpha() and gold[1].isalpha():  # choices, or variables
            return answer[1] == gold[1] or (None if answer[1].lower() == gold[1].lower() else False)
        return same_value(answer[1], gold[1], tolerance)
    if "equation" in kinds:
        return _same_equation(answer, gold, tolerance)
    if {"relation", "union", "both"} & set(kinds):
        return _same_numbers(answer, gold)
    if "words" in kinds:
        return _same_words(answer, gold)
    if answer[0] != gold[0] and "set" not in kinds and "list" not in kinds:
        return _different_kinds(answer, gold, tolerance)
    if gold[0] == "ratio":
        return _same_ratio(answer[1], gold[1])
    if gold[0] in ("sequence", "matrix") and answer[0] == gold[0]:
        same_length = len(answer[-1]) == len(gold[-1])
        if not same_length or answer[1:-1] != gold[1:-1]:
            return False
        return _all(_equal(mine, theirs, tolerance) for mine, theirs in zip(answer[-1], gold[-1], strict=True))
    if {"list", "set"} >= set(kinds):
        return _same_list(answer[1], gold[1], tolerance)
    return _different_kinds(answer, gold, tolerance)


def _same_ratio(answer: Sequence[str], gold: Sequence[str]) -> _Truth:
    """Compare ratios, or times of the day: 14:64 may be 7:32, and 4:30 may be 16:30."""
    mine, theirs = ([Fraction(part) for part in side] for side in (answer, gold))
    if mine == theirs:
        return True
    if len(mine) != len(theirs) or abs(mine[0] - theirs[0]) == 12:
        return None
    return (
        None
        if all(theirs[1:]) and all(mine[0] * b == a * theirs[0] for a, b in zip(mine, theirs, strict=True))
        else False
    )


def _same_list(answer: Sequence[_Structure], gold: Sequence[_Structure], tolerance: float | None) -> _Truth:
    """Return whether each item of either is equal to one of the other; order and repetition do not matter."""
    if len(answer) > 64 or len(gold) > 64:
        raise BeyondError("a long list")
    pairs = [[_equal(mine, theirs, tolerance) for theirs in gold] for mine in answer]
    return _all([_any(row) for row in pairs] + [_any(row[i] for row in pairs) for i in range(len(gold))])


_SYNONYMS = frozenset(
    [
        "yes",
        "no",
        "true",
        "false",
        "none",
        "never",
        "undefined",
        "impossible",
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "infinite",
        "infinity",
        "real",
        "reals",
        "empty",
        "unbounded",
        "nan",
        "even",
        "odd",
    ]
)


def _same_words(answer: _Structure, gold: _Structure) -> _Truth:
    """Return whether two words are the same; single words that have nothing in common are different."""
    if answer[0] != gold[0]:
        words, other = (answer, gold) if answer[0] == "words" else (gold, answer)
        if len(words[1]) <= 3:
            return _equal(*(("value", part[1]) if part is words else part for part in (answer, gold)), None)
        if other[0] != "value" or " " in words[1] or words[1] in _SYNONYMS:
            return None
        return None if evaluate(other[1]).names else False
    mine, theirs = answer[1], gold[1]
    if mine == theirs:
        return True
    if len(mine) <= 3 and len(theirs) <= 3 and sorted(mine) == sorted(theirs):
        return True  # xy and yx
    if mine.lower() == theirs.lower() or " " in mine or " " in theirs or mine[:4] == theirs[:4]:
        return None
    opposites = ({"yes", "no"}, {"true", "false"}, {"even", "odd"})
    return False if {mine, theirs} in opposites or not {mine, theirs} & _SYNONYMS else None


def _different_kinds(answer: _Structure, gold: _Structure, tolerance: float | None) -> _Truth:
    """Return False if structures of different kinds differ however they are read, else None."""
    if {answer[0], gold[0]} == {"set", "sequence"}:
        return False
    items = [[part] if part[0] == "value" else _items(part) for part in (answer, gold)]
    if not all(items):
        return False  # the empty set and a number
    if len(items[0]) != len(items[1]) and "value" not in (answer[0], gold[0]):
        return False
    if "value" in (answer[0], gold[0]):
        alone, others = sorted(items, key=len)[0][0], sorted(items, key=len)[1]
        if evaluate(alone[1]).names:
            return None
        results = [_equal(item, alone, tolerance) for item in others]
        return (
            False if False in results or not results else (True if None not in results and len(results) > 1 else None)
        )
    same = _all(_equal(mine, theirs, tolerance) for mine, theirs in zip(*items, strict=True))
    return False if same is False else None


def _items(structure: _Structure) -> list[_Structure]:
    if structure[0] in ("list", "set", "sequence"):
        return list(structure[-1])
    if structure[0] == "matrix":
        return [cell for row in structure[1] for cell in row[-1]]
    raise BeyondError(structure[0])


def _same_equation(answer: _Structure, gold: _Structure, tolerance: float | None) -> _Truth:
    """Compare equations, or an equation with something else: `x = 5` and 5, `x = 5` and `2x = 10`."""
    if answer[0] != gold[0]:
        equation, other = (answer, gold) if answer[0] == "equation" else (gold, answer)
        value = _structure(equation[2])
        same = _equal(value, gold, tolerance) if equation is answer else _equal(answer, value, tolerance)
        if _NAME.fullmatch(equation[1]):
            return same
        left = evaluate(equation[1])
        if not left.names:  # a computation, 12 + 5 = 17
            return same if same_value(equation[1], equation[2]) else None
        return (
            False
            if same is False
            and len(left.names) > 1
            and other[0] == "value"
            and same_value(equation[1], other[1]) is False
            else None
        )
    if answer[1] == gold[1] and _NAME.fullmatch(gold[1]):
        return _equal(_structure(answer[2]), _structure(gold[2]), tolerance)
    (one, two), *others = [[difference(side[1], side[2], point) for side in (answer, gold)] for point in range(3)]
    if not one or not two:
        raise BeyondError("an identity")
    if not any(add(one * b, -two * a) for a, b in others):
        return True
    return False if _misses(answer, gold) else None


def _misses(answer: _Structure, gold: _Structure) -> bool:
    """Return whether some solution of the gold does not solve the answer."""
    names = sorted(evaluate(f"({gold[1]})-({gold[2]})").names | evaluate(f"({answer[1]})-({answer[2]})").names)
    for name in names:
        try:
            found = roots(gold[1], gold[2], name)
        except BeyondError:
            continue
        if any(
            is_real(difference(answer[1], answer[2], 0, ((name, root),)))
            and difference(answer[1], answer[2], 0, ((name, root),))
            for root in found
        ):
            return True
    return False


# ------------------------------------------------------------------------------------------- sets of real numbers


def _same_numbers(answer: _Structure, gold: _Structure) -> _Truth:
    """Compare relations, intervals and unions as sets of real numbers: at, between and beyond all of their ends."""
    names = {name for part in (answer, gold) for name in _variables(part)}
    if answer == gold:
        return True
    if len(names) > 1:
        raise BeyondError("several variables")
    name = names.pop() if names else "x"
    ends: list[Value] = []
    for end in (*_ends(answer, name), *_ends(gold, name)):
        if not is_real(end):
            raise BeyondError("a complex end")
        if all(add(end, -other) for other in ends):
            ends.append(end)
    ends.sort(key=sortable)
    between = [(low + high) / 2 for low, high in pairwise(ends)]
    points = [ends[0] - 1, *ends, *between, ends[-1] + 1] if ends else [evaluate("0").value]
    return all(_contains(answer, name, point) == _contains(gold, name, point) for point in points)


def _variables(part: _Structure) -> set[str]:
    if part[0] in ("union", "both", "set", "list"):
        return {name for item in part[1] for name in _variables(item)}
    sides = part[1] if part[0] == "relation" else []
    return {name for side in sides if "\\infty" not in side for name in evaluate(side or "x").names}


def _ends(part: _Structure, name: str) -> list[Value]:
    """Return the numbers where a set may begin or end."""
    if part[0] in ("union", "both", "set", "list"):
        return [end for item in part[1] for end in _ends(item, name)]
    if part[0] == "relation":
        pairs = [pair for pair in zip(part[1], part[1][1:], strict=False) if "\\infty" not in "".join(pair)]
        return [root for pair in pairs for root in roots(*pair, name)]
    items = part[3] if part[0] == "sequence" else [part]
    if (part[0] == "sequence" and len(items) != 2) or any(item[0] != "value" for item in items):
        raise BeyondError("not an interval")
    readings = [evaluate(item[1]) for item in items if "\\infty" not in item[1]]
    if any(reading.names for reading in readings):
        raise BeyondError("an end with a variable")
    return [reading.value for reading in readings]


def _contains(part: _Structure, name: str, point: Value) -> bool:
    """Return whether a number belongs to a set."""
    if part[0] in ("union", "set", "list"):
        return any(_contains(item, name, point) for item in part[1])
    if part[0] == "both":
        return all(_contains(item, name, point) for item in part[1])
    if part[0] == "relation":
        pairs = zip(part[1], part[2], part[1][1:], strict=False)
        return all(_holds(left, sign, right, ((name, point),)) for left, sign, right in pairs)
    if part[0] == "value":
        return not add(point, -evaluate(part[1]).value)
    low, high = (item[1] for item in part[3])
    here = (("x", point),)
    return _holds(low, "<" if part[1] == "(" else "\\le", "x", here) and _holds(
        "x", "<" if part[2] == ")" else "\\le", high, here
    )


def _holds(left: str, sign: str, right: str, variables: tuple[tuple[str, Value], ...]) -> bool:
    if "\\infty" in left + right:
        if left.strip("+") == "\\infty" or right == "-\\infty":
            return sign in (">", "\\ge", "\\neq")
        return sign in ("<", "\\le", "\\neq")
    gap = difference(left, right, 0, variables)
    if not is_real(gap):
        raise BeyondError("a complex number")
    return {"<": gap < 0, ">": gap > 0, "\\le": gap <= 0, "\\ge": gap >= 0, "\\neq": gap != 0}[sign]
