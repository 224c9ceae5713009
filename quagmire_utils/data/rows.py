"""What a row of a dataset says: a problem with the gold answer that its grader needs, or traces to train on.

Golds are what the hubs publish, reduced to bare LaTeX (no `$`, no prose), so that math-verify reads them inside
`\\boxed{...}`; outside it, `1,3,5` parses as the number 1.3.

    to_problem(dataset, index, row)    # for evaluation and RL
    records(dataset, row)              # for curation: one per response, or why there is none
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from quagmire_utils.data.dataset import Dataset
from quagmire_utils.data.problems import Problem, Row
from quagmire_utils.data.prompts import STDIN_INSTRUCTION

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class NoAnswer(ValueError):
    """A row without an answer."""


class NoColumn(ValueError):
    """A row without a column that its dataset names."""

    def __init__(self, column: str, row: Row) -> None:
        """Make a message that names the column and the row's columns."""
        self.column = column
        super().__init__(f"it has no column {column!r}, but {', '.join(map(repr, sorted(row)))}")


def to_problem(dataset: Dataset, index: int, row: Row) -> Problem:
    """Return the problem of a row. Raises ValueError with a sentence for a row that has none."""
    raw_id = str(index if dataset.id is None else _value(dataset.id, row))
    problem_id = f"{dataset.name}/{raw_id.removeprefix(f'{dataset.split}/').removesuffix('.json')}"
    fields: dict[str, Any] = {"question": _question(dataset, row)}
    fields["tolerance"] = None if dataset.tolerance is None else _value(dataset.tolerance, row)
    fields["instruction"] = _fill(dataset.instruction, row) if dataset.instruction else None
    if dataset.choices:
        fields |= _choices(dataset, problem_id, row)
    elif dataset.grader == "math":
        fields["answer"] = _math_gold(dataset, row)
        if isinstance(fields["answer"], tuple):
            fields["answer"], fields["tolerance"] = fields["answer"]
    elif dataset.answer:
        fields["answer"] = _answer(dataset, row)
    if dataset.tests:
        fields["tests"] = _column_or_template(dataset.tests, row)
        if dataset.test_call:
            fields["tests"] = [f"{fields['tests']}\n{_fill(dataset.test_call, row)}\n"]
        fields["setup"] = _column_or_template(dataset.setup, row) if dataset.setup else ""
        fields["entry_point"] = _value(dataset.entry_point, row) if dataset.entry_point else ""
    return make_problem(problem_id, dataset.grader, fields)


def make_problem(problem_id: str, grader: str, row: Row) -> Problem:
    """Return the problem of a row with the columns of a problem file. Raises ValueError with a sentence.

    The columns besides question, answer, tolerance and instruction:

        choice   choices: a list of texts, which the prompt then shows as A., B., ...; without it the question shows
                 them itself
        code     instead of an answer, tests: a list of assert statements, or of {"input": ..., "output": ...}.
                 setup: source that runs before the program (imports, helpers). entry_point: the function that the
                 tests call, if only that is the program's.
    """
    question, answer, instruction = row["question"], row.get("answer"), row.get("instruction") or None
    if not isinstance(question, str) or not question.strip():
        raise ValueError("it has no question")
    question = question.strip()
    if grader == "code":
        tests = row.get("tests")
        answer = code_gold(tests, str(row.get("setup") or ""), str(row.get("entry_point") or ""))
        if instruction is None and isinstance(tests, list) and isinstance(tests[0], dict):
            instruction = STDIN_INSTRUCTION
    elif grader == "choice" and row.get("choices"):
        choices = _texts_of(row["choices"])
        answer = str("" if answer is None else answer).strip().upper()
        if len(answer) != 1 or answer not in _LETTERS[: len(choices)]:
            raise ValueError(f"the answer {answer[:40]!r} is not the letter of one of its {len(choices)} choices")
        lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(_LETTERS, choices, strict=False)]
        question = "\n".join([question, "", *lines])
    elif answer is None or not str(answer).strip():
        raise NoAnswer("it has no answer")
    elif isinstance(answer, bool) or not isinstance(answer, str | int | float) or (grader == "math" and _odd(answer)):
        raise ValueError(f"its answer must be a text or a number, not {str(answer)[:40]!r}")
    return Problem(problem_id, question, _plain(answer), _tolerance(row.get("tolerance")), grader, instruction)


# --- golds ------------------------------------------------------------------------------------------------------------


def last_boxed(text: str) -> str | None:
    """Return the content of the last complete `\\boxed{...}` in a text, braces balanced; None if there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            if text[end - 1] == "\\" and text[end] in "{}":
                continue  # an escaped brace, as in a set
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start:end].strip()
    return None


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


def _math_gold(dataset: Dataset, row: Row) -> Any:
    """Return the gold, or (gold, tolerance) if a problem of AIME accepts two neighbouring integers."""
    answer = _answer(dataset, row)
    if not isinstance(answer, str | int | float) or isinstance(answer, bool) or _odd(answer):
        return answer  # refused by make_problem
    answer = _plain(answer)
    both = re.fullmatch(r"(\d+) or (\d+) \(both were accepted\)", answer)
    if both:
        low, high = int(both[1]), int(both[2])
        return str((low + high) / 2), (high - low) / 2
    # Some golds are Python rather than LaTeX: 4.5e33 would read as 4.5*e*33, "-1./3" not at all.
    answer = re.sub(r"(?<![\w.])(\d+\.?\d*)e([+-]?\d+)", lambda m: f"{m[1]} \\times 10^{{{int(m[2])}}}", answer)
    answer = re.sub(r"(\d)\./", r"\1/", answer).replace("np.arcsin", "\\arcsin")
    # without dollar signs, thousands separators and the full stop of its sentence
    answer = answer.replace("\\$", "").replace("$", "").strip().rstrip(".,; ")
    answer = re.sub(r"(?<=\d),\\!\s*(?=\d{3})", "", answer)
    answer = re.sub(r"(?<!\\)%", r"\\%", answer)  # a bare % starts a LaTeX comment
    return _READABLE.get(answer, answer)


def _answer(dataset: Dataset, row: Row) -> Any:
    """Return the answer in the first of its columns that is not empty, taken out of its text."""
    there = [column for column in dataset.answer if column in row]
    if dataset.answer and not there:
        raise NoColumn(dataset.answer[0], row)
    answer = next((row[column] for column in there if row[column] not in (None, "")), None)
    if dataset.answer_format == "list" and isinstance(answer, list):
        return ",".join(answer)
    if not isinstance(answer, str):
        return answer
    if dataset.answer_format == "boxed":
        return last_boxed(answer) or answer
    if dataset.answer_format == "gsm8k":
        _, mark, number = answer.rpartition("####")
        if not mark:
            raise ValueError("its answer has no ####")
        return number.strip().replace(",", "")
    return answer


def _plain(answer: object) -> str:
    """Return the answer as text: `142.0` as 142, and never 1e-07, which a grader reads as e - 7."""
    if isinstance(answer, float):
        return str(int(answer)) if answer.is_integer() else format(Decimal(repr(answer)), "f")
    return str(answer).strip()


def _odd(answer: object) -> bool:
    return isinstance(answer, float) and not math.isfinite(answer)


def _tolerance(value: Any) -> float | None:
    """Return the tolerance in a row, also in one of a CSV file."""
    if value is None or value == "":
        return None
    try:
        tolerance = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        tolerance = math.nan
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"it has the tolerance {value!r}, not a number of at least 0")
    return tolerance


def code_gold(tests: Any, setup: str = "", entry_point: str = "") -> str:
    """Return what the grader `code` judges by, as JSON. `tests` may be the text of one script. Raises ValueError."""
    tests = [tests] if isinstance(tests, str) else tests
    if not isinstance(tests, list) or not tests:
        raise ValueError("it has no tests: a list of asserts, or of pairs of input and output")
    return json.dumps({"tests": tests, "setup": setup, "entry_point": entry_point}, sort_keys=True)


# --- multiple choice --------------------------------------------------------------------------------------------------


def _choices(dataset: Dataset, problem_id: str, row: Row) -> dict[str, Any]:
    """Return the choices in the order in which they are shown, and the letter of the right one."""
    named, column = dataset.choices, dataset.answer[0]
    choices = [_value(name, row) for name in named] if isinstance(named, tuple) else _value(named, row)
    labels = list(_LETTERS)
    if isinstance(choices, Mapping):
        choices, labels = _value("text", choices), [str(label) for label in _value("label", choices)]
    choices, answer = _texts_of(choices), _value(column, row)
    if dataset.answer_as == "index":
        right = int(str(answer)) if str(answer).strip().isdecimal() else -1
    elif dataset.answer_as == "text" and isinstance(named, tuple) and column in named:
        right = named.index(column)  # also if another column has the same text
    elif dataset.answer_as == "text":
        right = choices.index(str(answer)) if choices.count(str(answer)) == 1 else -1
    else:
        label = str(answer).strip() if dataset.answer_as == "label" else str(answer).strip().upper()
        right = labels.index(label) if label in labels else -1
    if not 0 <= right < len(choices):
        raise ValueError(f"its answer {answer!r} is not exactly one of its {len(choices)} choices")
    order = shuffled(problem_id, len(choices)) if dataset.shuffle else list(range(len(choices)))
    return {"choices": [choices[i] for i in order], "answer": _LETTERS[order.index(right)]}


def shuffled(problem_id: str, count: int) -> list[int]:
    """Return an order of so many choices that depends on the problem's id alone."""
    return sorted(range(count), key=lambda i: hashlib.sha256(f"{problem_id}\x1f{i}".encode()).digest())


def _texts_of(choices: Any) -> list[str]:
    if not isinstance(choices, list | tuple):
        raise ValueError(f"its choices must be a list, not {str(choices)[:40]!r}")
    if not all(isinstance(choice, str | int | float) for choice in choices):
        raise ValueError("each of its choices must be a text or a number")
    if not 2 <= len(choices) <= len(_LETTERS):
        raise ValueError(f"a multiple choice needs 2 to {len(_LETTERS)} choices, not {len(choices)}")
    return [str(choice) for choice in choices]


# --- columns ----------------------------------------------------------------------------------------------------------


def _question(dataset: Dataset, row: Row) -> str:
    """Return the question's text, without the instructions that the dataset puts around it."""
    named = next((name for name in dataset.question if "{" in name or row.get(name)), dataset.question[0])
    question = _said(_column_or_template(named, row), _USER).strip()
    for instruction in dataset.strip:
        question = question.removeprefix(instruction).removesuffix(instruction).strip()
    return question


def _column_or_template(what: str, row: Row) -> Any:
    return _fill(what, row) if "{" in what else _value(what, row)


def _value(column: str, row: Row) -> Any:
    if column not in row:
        raise NoColumn(column, row)
    return row[column]


def _fill(template: str, row: Row) -> str:
    """Return the text with each {column} filled in; lists are written line by line."""

    def text(match: re.Match[str]) -> str:
        value = _value(match[1], row)
        parts = value if isinstance(value, list | tuple) else [value]
        return "\n".join(str(part) for part in parts if part is not None)

    return re.sub(r"\{([^{}\s]+)\}", text, template)


# --- traces -----------------------------------------------------------------------------------------------------------

_USER, _MODEL = ("user", "human"), ("assistant", "gpt")


class Record(NamedTuple):
    """One trace (or, without a response, one problem) as read."""

    question: str
    response: str
    answer: str
    generator: str


class Dropped(NamedTuple):
    """Why a row, or one of its responses, is left out."""

    reason: str


def records(dataset: Dataset, row: Row) -> list[Record | Dropped]:
    """Return the traces of a row (without a response column: its problem), or why they are left out.

    Raises NoColumn if the row lacks a column.
    """
    for column, allowed in dataset.where.items():
        if str(_value(column, row)) not in allowed:
            return [Dropped(f"{column} is {row[column]}")]
    generator = dataset.generator
    if dataset.generator_column:
        generator = str(row.get(dataset.generator_column) or "")
    if dataset.generators and not made_by(generator, dataset.generators):
        return [Dropped(f"generator is {generator or 'not named'}")]
    question = _question(dataset, row)
    try:
        answer = str(_answer(dataset, row) or "").strip()
    except NoColumn:  # traces need none
        answer = ""
    except ValueError as error:
        return [Dropped(str(error))]
    if not question or (dataset.response is None and not answer):
        return [Dropped("empty")]
    if dataset.response is None:
        return [_checked(Record(question, "", answer, generator))]
    responses = _value(dataset.response, row)
    if not isinstance(responses, list):
        responses = [responses]
    elif responses and isinstance(responses[0], dict):  # a chat
        if sum(_speaker(turn) in _MODEL for turn in responses) > 1:
            return [Dropped("a chat of several answers")]
        responses = [_said(responses, _MODEL)]
    kept: list[Record | Dropped] = []
    for i, response in enumerate(responses):
        if not all(_flag(_value(column, row), i) for column in dataset.keep):
            kept.append(Dropped(f"not {' and '.join(dataset.keep)}"))
        elif not isinstance(response, str) or not response.strip():
            kept.append(Dropped("empty"))
        else:
            kept.append(_checked(Record(question, response, answer, generator)))
    return kept


def made_by(generator: str, wanted: Sequence[str]) -> bool:
    """Tell whether one of the models that `generator` names (comma-separated) is one of `wanted`.

    Names are compared by letters and digits, and the wanted one may lack a prefix: `QwQ-32B` is `Qwen/QwQ-32B`, but
    `DeepSeek-R1` is not `DeepSeek-R1-Distill-Qwen-7B`.
    """
    names = [_letters(name) for name in generator.split(",")]
    return any(name.endswith(_letters(want)) for name in names for want in wanted if name and want)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _checked(record: Record) -> Record | Dropped:
    try:
        for text in record:
            text.encode()
    except UnicodeEncodeError:
        return Dropped("not Unicode text")  # a lone surrogate, which no tokenizer takes
    return record


def _flag(flags: Any, i: int) -> bool:
    """Tell whether response `i` carries the flag, the row's or its own in a list; in a shorter list it does not."""
    return flags is True or (isinstance(flags, list) and i < len(flags) and flags[i] is True)


def _said(value: Any, speakers: Collection[str]) -> str:
    """Return a text, or what these speakers say in a chat: turns of role and content, or of from and value."""
    if isinstance(value, list):
        turns = [turn.get("content", turn.get("value")) for turn in value if _speaker(turn) in speakers]
        value = "\n\n".join(turn for turn in turns if isinstance(turn, str))
    return value if isinstance(value, str) else ""


def _speaker(turn: Any) -> Any:
    return turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
