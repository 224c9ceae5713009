"""Compare values, and sets of real numbers, for the second grader: equal (True), different (False), unclear (None)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

from quagmire_utils.grading.arithmetic import (
    BeyondError,
    Value,
    Variables,
    add,
    context_of,
    difference,
    evaluate,
    exact_root,
    is_real,
)

Structure = tuple  # (kind, ...), see `structure_of` in `second`

_MIN_DIGITS = 6  # significant digits from which a decimal fraction may be a rounded value
_DECIMAL = re.compile(r"-?\d*\.\d+")
_INFINITY = re.compile(r"([+-]?)\s*\\infty")
_CONSTANTS = {"C", "C_1", "C_2", "c_1", "c_2"}  # of integration
_SOFT = {*"ABCDFJKLNTVWcghms", "\\Omega", "\\mu", *_CONSTANTS}  # variables that may be units or constants


def same_value(answer: str, gold: str, tolerance: float | None = None) -> bool | None:
    """Return whether two formulas have the same value, wherever they have one if they have variables; None if unclear.

    A percent sign may be missing on either side. A decimal fraction of six or more significant digits may be the other
    side rounded to its places. tolerance: absolute, between numbers.
    """
    try:
        infinite = _INFINITY.fullmatch(answer), _INFINITY.fullmatch(gold)
        if any(infinite):
            if all(infinite):
                return (infinite[0][1] == "-") == (infinite[1][1] == "-")
            evaluate(answer if infinite[1] else gold)
            return False
        (answer, answer_percent), (gold, gold_percent) = _percent(answer), _percent(gold)
        same = _same(answer, gold, tolerance)
        if answer_percent != gold_percent and same is False:
            pair = (f"({answer})/100", gold) if answer_percent else (answer, f"({gold})/100")
            return _same(*pair, tolerance)
        if same is False and ("\u00b0" in answer) != ("\u00b0" in gold):  # degrees on one side, radians on the other?
            pair = (f"({answer})\\pi/180", gold) if "\u00b0" in answer else (answer, f"({gold})\\pi/180")
            return None if _same(*pair, None) else False
    except (BeyondError, ArithmeticError, ValueError, TypeError):
        return None
    return same


def _percent(text: str) -> tuple[str, bool]:
    bare = re.sub(r"\\?%$", "", text.strip()).strip()
    return bare, bare != text.strip()


def _same(answer: str, gold: str, tolerance: float | None) -> bool | None:
    mine, theirs = evaluate(answer).names, evaluate(gold).names
    same, real = _same_at(answer, gold, 0, tolerance)
    if not mine and not theirs:
        return same
    bases = [{name for name in names if name.startswith("base")} for names in (mine, theirs)]
    if bases[0] != bases[1]:
        if not all(bases):  # is 341_5 the same as 341, or as 96?
            same |= _same_at(*(re.sub(r"(?<=\d)_\{?\d+\}?", "", text) for text in (answer, gold)), 0, None)[0]
        return None if same else False
    again, also_real = _same_at(answer, gold, 1, tolerance)
    if same != again or (same and "floor" in mine | theirs):
        return None
    if not same:
        unsure = mine & theirs & _CONSTANTS - {"C"} or "/" in evaluate(answer, 1).names | evaluate(gold, 1).names
        if unsure or not (real or also_real):
            return None
        mine, theirs = mine - {"?", "floor"}, theirs - {"?", "floor"}
        one_sided = sorted(mine ^ theirs)
        if one_sided and {name.lower() for name in mine} == {name.lower() for name in theirs}:
            return None  # x and X
        if one_sided and set(one_sided) <= _SOFT:  # perhaps a unit, 5 m and 5, or a constant of integration
            values = (0, 1) if _CONSTANTS & set(one_sided) else (1,)
            without = [tuple((name, Fraction(value)) for name in one_sided) for value in values]
            return False if all(difference(answer, gold, 0, variables) for variables in without) else None
        return False
    try:
        same, real = _same_at(answer, gold, 2, tolerance)
    except BeyondError:
        return True  # there is no such point
    return True if same or not real else None  # as \\sqrt{x^2} and x: equal for positive numbers only


def _same_at(answer: str, gold: str, point: int, tolerance: float | None) -> tuple[bool, bool]:
    """Return whether two formulas are equal at a point, and whether both are real there."""
    gap = difference(answer, gold, point)
    real = evaluate(answer, point).real and evaluate(gold, point).real
    if not gap:
        return True, real
    gap = abs(gap)
    if tolerance is not None and gap <= tolerance * (1 + 1e-9):
        return True, real
    return _may_round(answer, gap) or _may_round(gold, gap), real


def _may_round(text: str, gap: Value) -> bool:
    """Return whether `text` has enough decimal digits to be a number `gap` away, rounded."""
    if not _DECIMAL.fullmatch(text.strip()):
        return False
    places = len(text.strip().partition(".")[2])
    digits = text.strip().lstrip("-").replace(".", "").lstrip("0")
    cut_off = len(digits) >= 2 * _MIN_DIGITS  # as 0.6666666666666666, rather than rounded
    return len(digits) >= _MIN_DIGITS and (1 if cut_off else 2) * 10**places * gap <= 1


def same_ratio(answer: Sequence[str], gold: Sequence[str]) -> bool | None:
    """Compare ratios, or times of the day: 14:64 may be 7:32, and 4:30 may be 16:30."""
    mine, theirs = ([Fraction(part) for part in side] for side in (answer, gold))
    if mine == theirs:
        return True
    if len(mine) != len(theirs) or abs(mine[0] - theirs[0]) == 12:
        return None
    proportional = all(mine[0] * b == a * theirs[0] for a, b in zip(mine, theirs, strict=True))
    return None if proportional and all(theirs) else False


# ------------------------------------------------------------------------------------------- sets of real numbers


def same_numbers(answer: Structure, gold: Structure) -> bool | None:
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
    if len(ends) > 32:
        raise BeyondError("a long union")
    ends.sort(key=sortable)
    between = [(low + high) / 2 for low, high in pairwise(ends)]
    points = [ends[0] - 1, *ends, *between, ends[-1] + 1] if ends else [evaluate("0").value]
    return _members(answer, name, points) == _members(gold, name, points)


def _variables(part: Structure) -> set[str]:
    if part[0] in ("union", "both", "set", "list"):
        return {name for item in part[1] for name in _variables(item)}
    sides = part[1] if part[0] == "relation" else []
    return {name for side in sides if "\\infty" not in side for name in evaluate(side or "x").names}


def _ends(part: Structure, name: str) -> list[Value]:
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


def _members(part: Structure, name: str, points: Sequence[Value]) -> list[bool]:
    """Return which points belong to a set. Relations in a list hold together, or, where they cannot, one of them."""
    if part[0] not in ("union", "both", "set", "list"):
        return [_contains(part, name, point) for point in points]
    members = list(zip(*(_members(item, name, points) for item in part[1]), strict=True))
    together = [all(row) for row in members]
    return together if part[0] == "both" and any(together) else [any(row) for row in members]


def _contains(part: Structure, name: str, point: Value) -> bool:
    if part[0] == "relation":
        pairs = zip(part[1], part[2], part[1][1:], strict=False)
        return all(_holds(left, sign, right, ((name, point),)) for left, sign, right in pairs)
    if part[0] == "value":
        return not add(point, -evaluate(part[1]).value)
    low, high = (item[1] for item in part[3])
    above, below = ("<" if bracket in "()" else "\\le" for bracket in part[1:3])
    here = (("x", point),)
    return _holds(low, above, "x", here) and _holds("x", below, high, here)


def _holds(left: str, sign: str, right: str, variables: Variables) -> bool:
    if "\\infty" in left + right:
        if left.strip("+") == "\\infty" or right == "-\\infty":
            return sign in (">", "\\ge", "\\neq")
        return sign in ("<", "\\le", "\\neq")
    gap = difference(left, right, 0, variables)
    if not is_real(gap):
        raise BeyondError("a complex number")
    return {"<": gap < 0, ">": gap > 0, "\\le": gap <= 0, "\\ge": gap >= 0, "\\neq": gap != 0}[sign]


def roots(left: str, right: str, name: str, variables: Variables = ()) -> list[Value]:
    """Return the real roots of left = right in a variable. Raises BeyondError unless it is linear or quadratic."""
    at = {x: difference(left, right, 0, (*variables, (name, Fraction(x)))) for x in (-1, 0, 1, 2, 5)}
    a = add(add(at[1], at[-1]) / 2, -at[0])
    b = add(at[1], -at[-1]) / 2
    if any(add(at[x], -(a * x * x + b * x + at[0])) for x in (2, 5)) or not (a or b):
        raise BeyondError("not linear or quadratic")
    if not a:
        return [-(at[0] if isinstance(b, Fraction) else sortable(at[0])) / b]
    discriminant = add(b * b, -4 * a * at[0])
    if not is_real(discriminant) or discriminant < 0:
        return []
    root = exact_root(discriminant, 2) if isinstance(discriminant, Fraction) else None
    root = context_of().sqrt(context_of().convert(discriminant)) if root is None else root
    exact = isinstance(a, Fraction) and isinstance(b, Fraction) and isinstance(root, Fraction)
    return [(add(-b, sign * root) if exact else sortable(add(-b, sign * root))) / (2 * a) for sign in (-1, 1)]


def sortable(value: Value) -> Any:
    """Return a real number that can be compared with others of its kind."""
    return context_of().convert(value)


def misses(answer: Structure, gold: Structure) -> bool:
    """Return whether some solution of the gold does not solve the answer."""
    mine, theirs = (evaluate(f"({side[1]})-({side[2]})").names for side in (answer, gold))
    if mine - theirs and theirs - mine:
        return mine | theirs <= {"x", "y", "z"}  # other letters may be other names of the same
    for name in sorted(mine | theirs):
        try:
            found = roots(gold[1], gold[2], name)
        except BeyondError:
            continue
        gaps = [difference(answer[1], answer[2], 0, ((name, root),)) for root in found]
        if any(gap and is_real(gap) for gap in gaps):
            return True
    return False
