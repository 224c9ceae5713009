"""The grader `math`: the final answer is found once, undressed once, and compared by exact arithmetic and math-verify.

What the second grader's arithmetic proves (equal, or different) is the verdict. Where it proves nothing, math-verify
decides, held to three things that it leaves open: numbers are compared relative to their size, variables under roots
and logarithms are positive, and what it could not read is an ERROR, not WRONG.

`decide` runs in the caller, `judge` in a worker.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from quagmire_utils.grading.extraction import bare_gold, final_answer
from quagmire_utils.grading.parity import read_box, verify_pairs, within
from quagmire_utils.grading.second import prove
from quagmire_utils.grading.verdicts import Grade, Job, Verdict, printable

_INTEGER = re.compile(r"-?[0-9]{1,15}")
_LETTER = re.compile(r"(?:\\text(?:bf)?\{)?\(?[A-J]\)?\}?")
_LABEL = re.compile(  # (B) 12, \\textbf{(B)}\\ 12
    r"(?:\\(?:text|math)(?:bf|rm)?\{)?\s*\(?([A-J])[.):]\s*(?:\}[~\s]*|\\[ ,;]|[~\s])+(?![\s=]|\\c[au]p)"
)
_PRECISION = 1e-5  # of numbers, relative to their size
_POINTS = (0.7310585786, 1.4142135624, 2.2360679775)  # where expressions are compared


def decide(asked: Job, boxed: bool) -> Grade | Job:
    """Return the grade where it is certain at once, otherwise the job for a worker. boxed: see `final_answer`."""
    answer, gold = final_answer(asked.text, boxed), asked.gold
    if answer is None:
        return Grade(Verdict.NO_ANSWER, "")
    if asked.tolerance is None and answer.whole and _INTEGER.fullmatch(answer.text) and _INTEGER.fullmatch(gold):
        return Grade(Verdict.CORRECT if int(answer.text) == int(gold) else Verdict.WRONG, answer.text)
    return asked._replace(text=answer.text, is_answer=answer.whole)


def judge(gold: str, tolerance: float | None, text: str, whole: bool) -> Grade:
    """Return the grade of an answer, or (whole is False) of the last answer that math-verify finds in a text."""
    parsed = None
    if not whole:
        from math_verify import parse

        parsed = parse(text, parsing_timeout=None, raise_on_error=True)
        if not parsed:
            return Grade(Verdict.NO_ANSWER, "")
        text = next((part for part in parsed if isinstance(part, str)), "")
    return Grade(_compare(gold, tolerance, text, None if parsed is None else tuple(parsed)), printable(text))


@lru_cache(maxsize=16384)
def _compare(gold: str, tolerance: float | None, text: str, parsed: tuple[Any, ...] | None) -> Verdict:
    gold = _bare_gold(gold)
    label = _LABEL.match(text)
    if label:
        text = label[1] if _LETTER.fullmatch(gold) else text[label.end() :]
    equal = prove(text, gold, tolerance)
    if equal is not None:
        return Verdict.CORRECT if equal else Verdict.WRONG
    read = tuple(read_box(text)) if parsed is None else parsed
    read_gold = _read_gold(gold)
    verdict = verify_pairs(read_gold, read)
    both_read = len(read_gold) > 1 and len(read) > 1
    if both_read and verdict == Verdict.CORRECT:
        return Verdict.CORRECT if _same_size(read_gold[0], read[0]) else Verdict.WRONG
    if verdict == Verdict.CORRECT or (both_read and _equal_for_positive(read_gold[0], read[0])):
        return Verdict.CORRECT
    if both_read and tolerance is not None and within(read_gold[0], read[0], tolerance):
        return Verdict.CORRECT
    return verdict if both_read else Verdict.ERROR


_bare_gold = lru_cache(maxsize=4096)(bare_gold)
_read_gold = lru_cache(maxsize=4096)(read_box)


def _same_size(gold: Any, answer: Any) -> bool:
    """Return False for two numbers that differ relative to their size: math-verify rounds to 6 decimals."""
    from math_verify.grader import get_pct_val, unwrap_eq

    try:
        gold, answer = (get_pct_val(unwrap_eq(side), unwrap_eq(side)) for side in (gold, answer))
        if gold.free_symbols or answer.free_symbols or not (gold.is_number and answer.is_number) or gold == answer:
            return True
        return bool(abs((answer / gold).evalf() - 1) < _PRECISION)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError):
        return True


def _equal_for_positive(gold: Any, answer: Any) -> bool:
    """Return whether two expressions with roots or logarithms are equal wherever their variables are positive."""
    from sympy import Abs, Pow, log

    symbols = getattr(gold, "free_symbols", None)
    if not symbols or symbols != getattr(answer, "free_symbols", None) or gold.has(Abs) or answer.has(Abs):
        return False
    if not any(side.has(log) or any(not power.exp.is_Integer for power in side.atoms(Pow)) for side in (gold, answer)):
        return False
    ordered = sorted(symbols, key=str)
    for shift in range(len(_POINTS)):
        at = {symbol: _POINTS[(shift + i) % 3] + i // 3 for i, symbol in enumerate(ordered)}
        values = [side.subs(at).evalf() for side in (gold, answer)]
        if not all(value.is_number and value.is_finite for value in values) or abs(values[0] - values[1]) > 1e-9 * max(
            abs(values[0]), abs(values[1])
        ):
            return False
    return True
