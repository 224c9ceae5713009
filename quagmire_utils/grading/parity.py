r"""The grader `math_verify`: math-verify's own verdict, gold first, as the paper grades (Sec. 4, App. B).

`decide` runs in the caller and settles what is certain without math-verify. `judge` runs in a worker. Neither changes a
verdict of math-verify, except that a gold is read as a whole, as `\boxed{gold}`: where math-verify cannot read it, an
answer spelt the same is CORRECT and any other an ERROR. (Plain math-verify would settle for some number in that gold.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from itertools import product
from typing import Any

from quagmire_utils.grading.verdicts import Grade, Job, Verdict, printable

_MAX_BOX = 1000  # characters within which the end of a box is looked for

_BRACE = re.compile(r"[{}]")
_CLOSER = re.compile(r"\$|\]|\\\)")
_PERCENT = re.compile(r"%|[Pp]ercent|[Pp]ct")
_FINAL_ANSWER = re.compile(r"final answer", re.IGNORECASE)
_IS = re.compile(r"\sis", re.IGNORECASE)
_READABLE = re.compile(r"[$\\\[\d]")
_INTEGER = re.compile(r"-?[0-9]{1,15}")
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(\.[0-9]{1,12})?")
_BOX = re.compile(r"(?P<first_latexBoxed>\\boxed{.+})", re.DOTALL)  # math-verify goes by the name of the group


class OutOfMemoryError(BaseException):
    """A MemoryError within math-verify. Not an Exception, because math-verify and sympy ignore those."""


def decide(asked: Job) -> Grade | Job:
    """Return the grade where it is certain without math-verify, otherwise the job for a worker."""
    box, gold = only_box(asked.text), asked.gold
    if box is None:  # each of math-verify's patterns needs a digit, `$`, `[` or backslash
        return asked if _READABLE.search(asked.text) else Grade(Verdict.NO_ANSWER, "")
    answer = box.strip()
    if asked.tolerance is None and _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return Grade(Verdict.CORRECT if int(answer) == int(gold) else Verdict.WRONG, answer)
    return asked._replace(text=box, is_answer=True)


def only_box(text: str) -> str | None:
    """Return the content of a text's only box if math-verify reads that and nothing else, None if that is not certain.

    math-verify tries its patterns by priority, first "final answer is ...", excluded here, then boxes. Each match of
    these holds the one box whole: a LaTeX environment ends at a `$`, `]` or `\\)`, excluded here. Only a percent sign
    behind it, also excluded, could change its value. If the content is not LaTeX, the worker grades the whole text.
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
    # Lower-casing is the faster test; beyond ASCII a few more letters match one of these when case is ignored.
    if not text.isascii() or "final answer" in text.lower():
        final = _FINAL_ANSWER.search(text)
        if final and _IS.search(text, final.end()):
            return None
    return text[start:end]


def prepare() -> None:
    """Import math-verify, let its memory errors through, and do once what it does on its first calls."""
    import math_verify.grader
    import math_verify.parser

    def reporting(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except MemoryError as error:
                raise OutOfMemoryError from error

        return wrapped

    parser, grader = ("latex2sympy", "parse_expr"), ("safe_sympy_doit", "simplify", "solve")
    for module, names in ((math_verify.parser, parser), (math_verify.grader, grader)):
        for name in names:
            setattr(module, name, reporting(getattr(module, name)))
    math_verify.parser.Number = read_number
    judge("\\frac{x}{2}", None, "0.25 x", True)
    judge("2", None, "so it is $1 + 1$", False)


@lru_cache(maxsize=4096)
def read_number(text: str) -> Any:
    """Return `sympy.Number(text)`, which runs sympy's whole parser: two thirds of the time of a plain response."""
    from sympy import Float, Integer, Number

    plain = _PLAIN_NUMBER.fullmatch(text)
    if plain is None:
        return Number(text)
    return Float(text) if plain[1] else Integer(int(text))


def judge(gold: str, tolerance: float | None, text: str, is_box: bool) -> Grade | None:
    """Return math-verify's grade for a response or the content of its only box; None for a box that is not LaTeX."""
    from math_verify import parse

    answer = read_box(text) if is_box else parse(text, parsing_timeout=None, raise_on_error=True)
    if is_box and len(answer) == 1:
        return None
    if not answer:
        return Grade(Verdict.NO_ANSWER, "")
    extracted = printable(next((part for part in answer if isinstance(part, str)), ""))
    if getattr(answer[0], "is_Rational", False):  # cached: equal ones of these are the same
        return Grade(_compare_number(gold, tolerance, tuple(answer)), extracted)
    return Grade(_compare(gold, tolerance, answer), extracted)


def read_box(content: str) -> list[Any]:
    """Return what math-verify reads of `\\boxed{content}`: [expression, text], or [text] if it is not LaTeX."""
    from math_verify.parser import LatexExtractionConfig, extract_latex

    expression, text = extract_latex(_BOX.fullmatch(f"\\boxed{{{content}}}"), LatexExtractionConfig())
    return [text] if expression is None else [expression, text]


_read_gold = lru_cache(maxsize=4096)(read_box)


def _compare(gold: str, tolerance: float | None, answer: Sequence[Any]) -> Verdict:
    """Return the verdict on a parsed answer; ERROR rather than WRONG where something could not be compared."""
    parsed = _read_gold(gold)
    verdict = verify_pairs(parsed, answer)
    if verdict != Verdict.CORRECT and tolerance is not None and within(parsed[0], answer[0], tolerance):
        return Verdict.CORRECT
    return Verdict.ERROR if verdict == Verdict.WRONG and len(parsed) == 1 else verdict


_compare_number = lru_cache(maxsize=16384)(_compare)


def verify_pairs(gold: Sequence[Any], answer: Sequence[Any]) -> Verdict:
    """Compare as `math_verify.verify(gold, answer)`: CORRECT if any pair is equal. A pair that raises is an ERROR."""
    from math_verify import verify

    verdict = Verdict.WRONG
    for pair in product(gold, answer):
        try:
            if verify(*pair, timeout_seconds=None, raise_on_error=True):
                return Verdict.CORRECT
        except MemoryError:
            raise
        except Exception:
            verdict = Verdict.ERROR
    return verdict


def within(gold: Any, answer: Any, tolerance: float) -> bool:
    """Return whether two numbers (also `x = 4.2`, also `4.2 %` and `4.2`) differ by at most `tolerance`."""
    from math_verify.grader import get_pct_val, unwrap_eq

    try:
        gold, answer = (float(get_pct_val(unwrap_eq(side), unwrap_eq(side))) for side in (gold, answer))
    except (TypeError, ValueError, AttributeError, OverflowError):
        return False  # one of them is not a number
    return abs(gold - answer) <= tolerance * (1 + 1e-9)  # 4.1 is within 0.1 of 4.2, also in binary
