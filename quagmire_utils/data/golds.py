"""From what a hub publishes as the answer to the gold that a grader needs."""

from __future__ import annotations

import re
from decimal import Decimal

from quagmire_utils.data.problems import Gold, Row


def last_boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}` in a text, braces balanced; None where there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            if text[end - 1] == "\\" and text[end] in "{}":
                continue  # an escaped brace, as in a set
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start:end].strip()
    return None


def _plain_number(value: object) -> str:
    """`142.0` -> `142`; text is kept as it is."""
    if isinstance(value, float):
        # never 1e-07, which a grader reads as e - 7
        return str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")
    return str(value).strip()


# Golds that math-verify misreads, where it reads the same answer in another spelling as meant.
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


def _reduce(answer: str) -> str:
    """A published answer without dollar signs, thousands separators and the full stop of its sentence."""
    answer = answer.replace("\\$", "").replace("$", "").strip().rstrip(".,; ")
    answer = re.sub(r"(?<=\d),\\!\s*(?=\d{3})", "", answer)
    answer = re.sub(r"(?<!\\)%", r"\\%", answer)  # a bare % starts a LaTeX comment
    return _READABLE.get(answer, answer)


def _answer_gold(row: Row) -> Gold | None:
    answer = row["answer"]
    if answer is None or str(answer).strip() == "":
        return None
    return _reduce(_plain_number(answer)), None


def _aime_gold(row: Row) -> Gold:
    # One problem counts two neighbouring integers as right: "080 or 081 (both were accepted)". AIME answers are
    # integers, so their midpoint with a tolerance of a half accepts exactly these two.
    both = re.fullmatch(r"(\d+) or (\d+) \(both were accepted\)", row["Answer"].strip())
    if both:
        low, high = int(both[1]), int(both[2])
        return str((low + high) / 2), (high - low) / 2
    return row["Answer"].strip(), None


def _gsm8k_gold(row: Row) -> Gold:
    _, mark, answer = row["answer"].rpartition("####")
    if not mark:
        raise ValueError("an answer without ####")
    return answer.strip().replace(",", ""), None


def _minerva_gold(row: Row) -> Gold:
    # A mirror holds the solution with its boxed answer, the hub's own column holds the answer alone.
    text = row.get("solution") or row["answer"]
    answer = last_boxed(text) or text
    # Some golds are Python rather than LaTeX: 4.5e33 would read as 4.5*e*33, "-1./3" not at all.
    answer = re.sub(r"(?<![\w.])(\d+\.?\d*)e([+-]?\d+)", lambda m: f"{m[1]} \\times 10^{{{int(m[2])}}}", answer)
    return _reduce(re.sub(r"(\d)\./", r"\1/", answer).replace("np.arcsin", "\\arcsin")), None


def _olympiad_gold(row: Row) -> Gold:
    answers = [row["final_answer"]] if isinstance(row["final_answer"], str) else row["final_answer"]
    error = row.get("error")
    return _reduce(",".join(answers)), (float(error) if error not in (None, "") else None)
