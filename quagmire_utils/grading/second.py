"""A second grader that proves: it shares no code with math-verify and needs no sympy.

`prove` compares an answer with a gold in three steps: as normalised strings; by structure (lists without order, tuples,
intervals and relations as sets of numbers, matrices, equations); and term by term as exact numbers or formulas. It says
equal or different only where that follows; what notation leaves open (is `1/2x` x/2?) is undecided.

    prove("x > 2", "(2, \\infty)")            # True

It is built for hostile text: nothing is evaluated but arithmetic, every number and power is bounded, every search is
linear and recursion is limited. What is beyond it is undecided.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import repeat

from quagmire_utils.grading.arithmetic import BeyondError, add, difference, evaluate
from quagmire_utils.grading.extraction import final_answer
from quagmire_utils.grading.notation import MAX_ANSWER, PLAIN_WORDS, UNITS, depths, normalise, split
from quagmire_utils.grading.quantities import Structure, misses, same_numbers, same_ratio, same_value

_NAME = re.compile(  # AB, |AB|, \angle A, a_{10}, f(3), (x,y)
    r"(?:[A-Za-z]|\\[A-Za-z]+(?![A-Za-z])\s?|\|[A-Za-z]+\||\[[A-Z]+\]|\{[A-Za-z]+\})+(?:_\{?\w+\}?)?'*"
    r"(?:\((?:[a-z]|-?\d+|[A-Z]+)(?:,(?:[a-z]|\d+))*\))?|\([a-z](?:,[a-z])+\)"
)
_INTEGER = re.compile(r"-?[0-9]{1,15}")
_GROUP = re.compile(r"\d,\d{3}(?!\d)")
_OTHERWISE = re.compile(r"\d[eE][+-]\d|illion|hundred|thousand")  # what may be read as another number
_SCALE = re.compile(r"(?:\\text\s*\{)?\s*\b(hundred|thousand|million|billion|trillion)s?\b\s*\}?")
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_LETTERED = re.compile(r"(?<=\d)([ghms](?:/[hs](?:\^2)?)?)$")  # a unit: 5 m/s
_RELATION = re.compile(r"<|>|\\(?:le|ge|neq)(?![a-z])")


@lru_cache(maxsize=4096)
def _gold(text: str) -> str:
    """Return the answer in a gold. Raises BeyondError for one that somebody has yet to read."""
    if re.search(r"^[A-H][.)]\s+\S|^[\[{]['\"]|&\w+;", text):
        raise BeyondError("a choice, or the text of a list or a dict")
    stated = final_answer(text, boxed=True)
    return stated.text.strip() if stated and stated.whole else text.strip()


@lru_cache(maxsize=65536)
def prove(answer: str, gold: str, tolerance: float | None = None) -> bool | None:
    """Return whether an answer (LaTeX or plain) equals (True) a gold or differs (False); None where neither is certain.

    gold: may be a box or a sentence with one. tolerance: absolute, between numbers.
    """
    equal = _proved(answer, gold, tolerance)
    if not equal and _OTHERWISE.search(answer + gold):  # 2.5 million, or 3e-2 where e is Euler's number
        spaced = (re.sub(r"(?<=\d)([eE])(?=[+-]\d)", r"\1 ", text) for text in (answer, gold))
        scaled = (_SCALE.sub(lambda scale: f" \\times 10^{{{_POWERS[scale[1]]}}}", text) for text in spaced)
        equal = _proved(*scaled, tolerance) or equal
    return equal


def _proved(answer: str, gold: str, tolerance: float | None) -> bool | None:
    try:
        gold = _gold(gold)
        if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
            return True if answer == gold else None
        (mine, my_remarks), (theirs, their_remarks) = sides = normalise(answer), normalise(gold)
        if (same := _in_one_unit(*sides)) is not None:
            return same
        if not mine or (my_remarks and their_remarks and my_remarks != their_remarks):
            return None
        if theirs in (mine, mine.removesuffix("\\%"), mine[2:] if mine[1:2] == "=" else mine):
            return True
        if tolerance is None and _INTEGER.fullmatch(mine) and _INTEGER.fullmatch(theirs):  # the usual case, faster
            return int(mine) == int(theirs)
        equal = _equal(_structure(mine), _structure(theirs), tolerance)
        thousands = mine.replace(",", "") == theirs.replace(",", "") and _GROUP.search(f"{mine} {theirs}")
        return None if thousands and not equal else equal  # 81,256 and 81, 256
    except (BeyondError, RecursionError, ArithmeticError, ValueError, TypeError, LookupError):
        return None


def _in_one_unit(*answers: tuple[str, Sequence[str]]) -> bool | None:
    """Return whether one number has the same unit twice, or not: 5 km and 5 cm. None for m and minutes, cm and cm^2."""
    joined = ("~".join((text, *dict.fromkeys(remarks))) for text, remarks in answers)
    (mine, _, my_unit), (theirs, _, their_unit) = (_LETTERED.sub(r"~\1", text).partition("~") for text in joined)
    if mine != theirs or my_unit == their_unit:
        return True if mine and mine == theirs else None
    my_units, their_units = (re.findall(r"[^~/^*\d-]+", unit) for unit in (my_unit, their_unit))
    pairs = (sorted(pair, key=len) for pair in zip(my_units, their_units, strict=False))
    differ = any(short != long and not (len(long) > 2 and long.startswith(short)) for short, long in pairs)
    return False if differ and {*my_units, *their_units} <= UNITS else None


# ------------------------------------------------------------------------------------------------------- structures


@lru_cache(maxsize=16384)
def _structure(text: str) -> Structure:
    """Return the structure of an answer: a kind and its parts.

    ("words", text), ("list", items), ("set", items), ("union", items), ("sequence", open, close, items),
    ("matrix", rows), ("relation", sides, signs), ("equation", left, right, names, number of sides), ("ratio", parts),
    ("value", text). The names of an equation are those of its sides that only name something: `x = f(2) = 5`.
    """
    if not text or "\\unread" in text:
        raise BeyondError("nothing, or a remark")
    text = re.sub(r"^(?:[a-zA-Z]|\([a-z](?:,[a-z])+\))\s*(?:\\in(?![a-z])|:|=(?=\\begin|.*\\cup))", "", text).strip()
    if PLAIN_WORDS.fullmatch(text):
        return "words", text
    text = re.sub(r"^\|([^|<>]+)\|(<|\\le)(?![a-z])([^|<>]+)$", r"-(\3)\2 \1\2 \3", text)
    text = re.sub(r"^\|([^|<>]+)\|(>|\\ge)(?![a-z])([^|<>]+)$", r"\1\2 \3\\or -(\1)\2 \3", text)
    matrix = re.fullmatch(r"\\begin\{[pb]?(?:matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{[a-z]*\}", text, re.DOTALL)
    if matrix:
        rows = [row for row in matrix[1].split("\\cr") if row.strip()]
        return "matrix", [("sequence", "(", ")", [_structure(cell.strip()) for cell in row.split("&")]) for row in rows]
    if "\\begin" in text:
        raise BeyondError("an environment")
    if text in ("\\emptyset", "\\{\\}", "\\dots"):
        return ("dots",) if text == "\\dots" else ("set", [])
    if described := re.fullmatch(r"\\\{\s*([a-z])\s*(?:\\in[^:|]*)?[:|](.*)\\\}", text):
        text = described[2]
    if re.search(r"\\in(?![a-z])", text):
        raise BeyondError("a condition")
    for kind, separators in (("union", ("\\cup", "\\or")), ("list", (",", ";", "&&", "\\quad", "\\or"))):
        items = split(text, separators)
        text = items[0] if len(items) == 1 else text
        if len(items) > 1:
            parts = [_structure(item) for item in items]
            if kind == "list":  # 0, \\pm 1
                parts = [one for part in parts for one in (part[1] if part[0] == "list" else [part])]
            kinds = {part[0] for part in parts}
            if kind == "union" and "\\or" in text and not kinds <= {"relation", "sequence", "union"}:
                continue  # 3 or 4 is a list
            return ("both" if kind == "list" and kinds == {"relation"} else kind), parts
    if text.startswith("\\{") and text.endswith("\\}") and len(text) > 4:
        return "set", [_structure(item) for item in split(text[2:-2], (",", ";"))]
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and 0 not in depths(text)[1:-1]:
        items = split(text[1:-1], (",", ";"))
        if len(items) > 1 and "\\pm" not in text:
            return "sequence", text[0], text[-1], [_structure(item) for item in items]
    if (signs := _RELATION.findall(text)) and "=" not in text:
        sides = [side.strip() for side in _RELATION.split(text)]
        return "relation", tuple(sides), tuple(signs)
    sides = text.split("=")
    if len(sides) > 1 and all(side.strip() for side in sides):
        left, *middle, right = map(str.strip, sides)
        if len(sides) == 2 and _NAME.fullmatch(right) and not _NAME.fullmatch(left):
            left, right = right, left
        return "equation", left, right, tuple(side for side in (left, *middle) if _NAME.fullmatch(side)), len(sides)
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


def _equal(answer: Structure, gold: Structure, tolerance: float | None) -> _Truth:
    if answer == gold:
        return True
    kinds = answer[0], gold[0]
    if kinds == ("value", "value"):
        if len(answer[1]) == len(gold[1]) == 1 and answer[1].isalpha() and gold[1].isalpha():  # choices, or variables
            return answer[1] == gold[1] or (None if answer[1].lower() == gold[1].lower() else False)
        return same_value(answer[1], gold[1], tolerance)
    if "equation" in kinds:
        return _same_equation(answer, gold, tolerance)
    if {"relation", "union", "both"} & set(kinds):
        return same_numbers(answer, gold)
    if "words" in kinds:
        return _same_words(answer, gold)
    if answer[0] != gold[0] and "set" not in kinds and "list" not in kinds:
        return _different_kinds(answer, gold, tolerance)
    if gold[0] == "ratio":
        return same_ratio(answer[1], gold[1])
    if gold[0] in ("sequence", "matrix") and answer[0] == gold[0]:
        same_length = len(answer[-1]) == len(gold[-1])
        if not same_length or answer[1:-1] != gold[1:-1]:
            return False
        return _all(_equal(mine, theirs, tolerance) for mine, theirs in zip(answer[-1], gold[-1], strict=True))
    if {"list", "set"} >= set(kinds):
        return _same_list(answer[1], gold[1], tolerance)
    return _different_kinds(answer, gold, tolerance)


def _same_list(answer: Sequence[Structure], gold: Sequence[Structure], tolerance: float | None) -> _Truth:
    """Return whether each item of either is equal to one of the other; order and repetition do not matter."""
    if len(answer) > 64 or len(gold) > 64:
        raise BeyondError("a long list")
    if ("dots",) in (*answer, *gold):  # 1, 2, ..., n
        ended = answer[-1][0] == gold[-1][0] == "value" and ("dots",) in answer and ("dots",) in gold
        return False if ended and _equal(answer[-1], gold[-1], tolerance) is False else None
    pairs = [[_equal(mine, theirs, tolerance) for theirs in gold] for mine in answer]
    return _all([_any(row) for row in pairs] + [_any(row[i] for row in pairs) for i in range(len(gold))])


_NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMERAL = re.compile(  # words that may stand for a number, or for none
    "|".join((*_NUMERALS[:11], "none|never|undefined|impossible|infinite|infinity|empty|unbounded"))
)
_VAGUE = re.compile(rf"yes|no|true|false|reals?|{_NUMERAL.pattern}")  # words that others may say, too


def _same_words(answer: Structure, gold: Structure) -> _Truth:
    """Return whether two words are the same; single words that have nothing in common are different."""
    if answer[0] != gold[0]:
        words, other = (answer, gold) if answer[0] == "words" else (gold, answer)
        if words[1] in _NUMERALS and other[0] == "value":
            return same_value(str(_NUMERALS.index(words[1])), other[1])
        if _NUMERAL.fullmatch(words[1]):
            return True if words[1] == "none" and other == ("set", []) else None
        if len(words[1]) <= 3:
            return _equal(*(("value", part[1]) if part is words else part for part in (answer, gold)), None)
        number = other[0] == "value" and not evaluate(other[1]).names
        return False if " " not in words[1] and (number or other[0] in ("sequence", "matrix")) else None
    mine, theirs = answer[1], gold[1]
    if mine == theirs:
        return True
    if sorted(mine) == sorted(theirs):  # xy and yx
        return True if len(mine) <= 3 else None
    short, long = sorted((mine.lower(), theirs.lower()), key=len)
    if long.startswith(short[:4]) or " " in mine + theirs:
        return None
    vague = _VAGUE.fullmatch(mine) or _VAGUE.fullmatch(theirs)
    return None if vague and {mine, theirs} not in ({"yes", "no"}, {"true", "false"}) else False


def _different_kinds(answer: Structure, gold: Structure, tolerance: float | None) -> _Truth:
    """Return False if structures of different kinds differ however they are read, else None."""
    kinds = {answer[0], gold[0]}
    if kinds == {"set", "sequence"}:
        (one,) = [part[1] for part in (answer, gold) if part[0] == "set"]
        other = gold if answer[0] == "set" else answer
        return len(one) == 1 and _equal(one[0], other, tolerance)
    if "value" not in kinds:
        mine, theirs = _items(answer), _items(gold)
        if len(mine) != len(theirs):
            return False
        return None if _all(map(_equal, mine, theirs, repeat(tolerance))) is not False else False
    value, other = (answer, gold) if answer[0] == "value" else (gold, answer)
    if other[0] in ("sequence", "matrix"):
        point = re.fullmatch(r"[A-Z](\(.+,.+\))", value[1])
        if point and other[0] == "sequence":  # P(1,2)
            return _equal(_structure(point[1]), other, tolerance)
        return None if evaluate(value[1]).names & {"j", "k"} else False  # i + 2j is a vector
    items = _items(other)
    results = [_equal(item, value, tolerance) for item in items]
    if False in results or not results or not all(_equal(items[0], item, None) for item in items):
        return False  # also the empty set, and several numbers that are within the tolerance
    return None if None in results or len(results) == 1 else True


def _items(structure: Structure) -> list[Structure]:
    if structure[0] in ("list", "set", "sequence"):
        return list(structure[-1])
    if structure[0] == "matrix":
        return [cell for row in structure[1] for cell in row[-1]]
    raise BeyondError(structure[0])


def _same_equation(answer: Structure, gold: Structure, tolerance: float | None) -> _Truth:
    """Compare equations, or an equation with something else: `x = 5` and 5, `x = 5` and `2x = 10`."""
    if answer[0] != gold[0]:
        equation, other = (answer, gold) if answer[0] == "equation" else (gold, answer)
        value = _structure(equation[2])
        same = _equal(value, gold, tolerance) if equation is answer else _equal(answer, value, tolerance)
        if equation[3]:
            return same
        left = evaluate(equation[1])
        if not left.names:  # a computation, 12 + 5 = 17
            return same if same_value(equation[1], equation[2]) else None
        if same is False and len(left.names) > 1 and other[0] == "value":
            return False if same_value(equation[1], other[1]) is False else None
        return None
    if set(answer[3]) & set(gold[3]):
        return _equal(_structure(answer[2]), _structure(gold[2]), tolerance)
    if answer[3] and gold[3]:
        named = answer[3][0] + gold[3][0]
        if re.fullmatch(r"y[a-z]\(x\)|[a-z]\(x\)y", named) and _equal(
            _structure(answer[2]), _structure(gold[2]), tolerance
        ):
            return True  # y = 2x and f(x) = 2x
        renamed = "(" in named or _equal(_structure(answer[2]), _structure(gold[2]), tolerance) is not False
        if renamed and not (set(named) <= set("xyz")):
            return None  # f(x) = x^2 and f(t) = t^2
    (one, two), *others = [[difference(side[1], side[2], point) for side in (answer, gold)] for point in range(3)]
    if not one or not two:
        raise BeyondError("an identity")
    if not any(add(one * b, -two * a) for a, b in others):
        return True
    return False if answer[4] == gold[4] == 2 and misses(answer, gold) else None
