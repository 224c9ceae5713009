"""What a row of a dataset says: a problem with the gold answer that its grader needs, or traces to train on.

    to_problem(dataset, index, row)    # for evaluation and RL
    records(dataset, row)              # for curation: one per response, or why there is none

A column may be a field of another one: `reward_model.ground_truth`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from quagmire_utils.data.dataset import Dataset
from quagmire_utils.data.golds import boxed_answer, is_answer, is_nan, math_gold, parsed, plain, single
from quagmire_utils.data.problems import Problem, check_texts
from quagmire_utils.data.prompts import STDIN_INSTRUCTION
from quagmire_utils.data.reading import Row

_ANSWERS = {
    "number": re.compile(r"\s*(-?[\d.,]+?)(?:\.0)?\s*(?:\([^()]*\))?\s*$"),
    "first_word": re.compile(r"\s*(\w+)"),
}
_UNTIDY = re.compile(r" +(?=[.,?!;:])|\.(?=\.)| +(?= )")
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
    if any(str(_value(column, row)) not in allowed for column, allowed in dataset.where.items()):
        raise NoAnswer("it is not among those that `where` asks for")
    raw_id = str(index if dataset.id is None else _value(dataset.id, row)).removeprefix(f"{dataset.name}-")
    problem_id = f"{dataset.name}/{raw_id.removeprefix(f'{dataset.split}/').removesuffix('.json')}"
    fields: dict[str, Any] = {
        "question": _question(dataset, row),
        "tolerance": dataset.tolerance and _value(dataset.tolerance, row),
        "instruction": dataset.instruction and _fill(dataset.instruction, row),
    }
    if dataset.choices:
        fields |= _choices(dataset, problem_id, row)
    elif dataset.answer:
        fields["answer"] = _answer(dataset, row)
        if dataset.grader == "choice":
            fields["answer"] = str(fields["answer"]).strip("() ")  # (B)
        if dataset.grader in ("math", "math_verify") and is_answer(fields["answer"]):
            fields["answer"], tolerance = math_gold(plain(fields["answer"]))
            fields["tolerance"] = fields["tolerance"] if tolerance is None else tolerance
    if dataset.tests:
        fields["tests"] = _column_or_template(dataset.tests, row)
        if dataset.test_call:
            fields["tests"] = [f"{fields['tests']}\n{_fill(dataset.test_call, row)}\n"]
        fields["setup"] = dataset.setup and _column_or_template(dataset.setup, row)
        fields["entry_point"] = dataset.entry_point and _value(dataset.entry_point, row)
    check_texts(fields)
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
    elif not is_answer(answer) or (
        grader in ("math", "math_verify") and (is_nan(answer) or answer in (math.inf, -math.inf))
    ):
        raise ValueError(f"its answer must be a text or a number, not {str(answer)[:40]!r}")
    return Problem(problem_id, question, plain(answer), _tolerance(row.get("tolerance")), grader, instruction)


def _answer(dataset: Dataset, row: Row) -> Any:
    """Return the answer in the first of its columns that has one, taken out of its text; None if none has."""
    there = [value for value in (_find(column, row) for column in dataset.answer) if value is not _MISSING]
    if dataset.answer and not there:
        raise NoColumn(dataset.answer[0], row)
    several = dataset.answer_format == "list"
    answer = next((found for found in (single(value, several) for value in there) if found is not None), None)
    if not isinstance(answer, str) or dataset.answer_format in ("plain", "list"):
        return answer
    if (pattern := _ANSWERS.get(dataset.answer_format)) is not None:
        found = pattern.match(answer)
        return None if found is None else found[1].lower()
    if dataset.answer_format == "boxed":
        return boxed_answer(answer)
    _, mark, number = answer.rpartition("####")
    if not mark:
        raise ValueError("its answer has no ####")
    return number.strip().replace(",", "")


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

_MISSING = object()


def _question(dataset: Dataset, row: Row) -> str:
    """Return the question's text, without the instructions that the dataset puts around it."""
    filled = (name for name in dataset.question if "{" in name or _find(name, row) not in (_MISSING, None, ""))
    question = _said(_column_or_template(next(filled, dataset.question[0]), row), _USER).strip()
    for instruction in dataset.strip:
        question = question.removeprefix(instruction).removesuffix(instruction).strip()
    return _UNTIDY.sub("", question) if dataset.tidy else question


def _column_or_template(what: str, row: Row) -> Any:
    return _fill(what, row) if "{" in what else _value(what, row)


def _value(column: str, row: Row) -> Any:
    value = _find(column, row)
    if value is _MISSING:
        raise NoColumn(column, row)
    return value


def _find(column: str, row: Row) -> Any:
    """Return what a row has in a column, or in the field of one (`a.b`); _MISSING if it has none."""
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        value = parsed(value) if isinstance(value, str) else value
        if not isinstance(value, Mapping) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _fill(template: str, row: Row) -> str:
    """Return the text with each {column} filled in; lists are written line by line."""

    def text(match: re.Match[str]) -> str:
        value = _value(match[1], row)
        parts = value if isinstance(value, list | tuple) else [value]
        return "\n".join(str(part) for part in parts if part is not None)

    return re.sub(r"\{([^{}\s]+)\}", text, template)


# --- traces -----------------------------------------------------------------------------------------------------------

_USER, _MODEL = ("user", "human"), ("assistant", "gpt", "model")
_CHAT_TEXT = re.compile(r"""\s*\[?\s*\{\s*["'](role|from|content|value)["']\s*:""")  # a chat, as JSON or Python text
_REASONING = ("reasoning_content", "reasoning", "thinking")  # fields of a turn that hold what was thought before it


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
            return [Dropped(f"{column} is {_value(column, row)}")]
    generator = dataset.generator
    if dataset.generator_column:
        named = _find(dataset.generator_column, row)
        generator = "" if named in (_MISSING, None) else str(named)
    if dataset.generators and not made_by(generator, dataset.generators):
        return [Dropped(f"generator is {generator or 'not named'}")]
    try:
        return _records(dataset, row, generator)
    except NoColumn:
        raise
    except ValueError as error:
        return [Dropped(str(error))]


def _records(dataset: Dataset, row: Row, generator: str) -> list[Record | Dropped]:
    question = _question(dataset, row)
    try:
        answer = _answer(dataset, row)
    except NoColumn:
        if dataset.response is None:
            raise
        answer = None  # traces need none
    if answer is not None and (not is_answer(answer) or answer in (math.inf, -math.inf)):
        raise ValueError("its answer must be a text or a number")
    answer = "" if answer is None else plain(answer)
    if not question or (dataset.response is None and not answer):
        return [Dropped("empty")]
    if dataset.response is None:
        return [_checked(Record(question, "", answer, generator))]
    responses = _value(dataset.response, row)
    if not isinstance(responses, list) or _turns(responses):
        responses = [responses]
    kept: list[Record | Dropped] = []
    for i, response in enumerate(responses):
        said = _said(response, _MODEL)
        if not all(_flag(_value(column, row), i) for column in dataset.keep):
            kept.append(Dropped(f"not {' and '.join(dataset.keep)}"))
        elif sum(_speaker(turn) in _MODEL for turn in _turns(response)) > 1:
            kept.append(Dropped("a chat of several answers"))
        elif not said.strip():
            kept.append(Dropped("empty"))
        else:
            kept.append(_checked(Record(question, said, answer, generator)))
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
    if isinstance(flags, list):
        flags = flags[i] if i < len(flags) else None
    return flags is not None and str(flags).casefold() in ("true", "1", "1.0")


# --- chats ------------------------------------------------------------------------------------------------------------


def _said(value: Any, speakers: Collection[str]) -> str:
    """Return a text, or what these speakers say in a chat: turns of role and content, or of from and value."""
    turns = [_text(turn) for turn in _turns(value) if _speaker(turn) in speakers]
    if turns:
        return "\n\n".join(turn for turn in turns if turn)
    return value if isinstance(value, str) and not _turns(value) else ""


def _turns(value: Any) -> list[Any]:
    """Return the turns of a chat, also of one stored as text; [] for anything else. Raises ValueError if it is torn."""
    if isinstance(value, str) and _CHAT_TEXT.match(value):
        value = parsed(value)
        if value is None:
            raise ValueError("a chat that cannot be read")
    turns = [value] if isinstance(value, Mapping) else value
    return turns if isinstance(turns, list) and any(_speaker(turn) for turn in turns) else []


def _text(turn: Mapping[str, Any]) -> str:
    """Return what a turn says, its reasoning first, in <think> tags. Raises ValueError for pictures and the like."""
    content = turn.get("content", turn.get("value"))
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if len(parts) > 1 and not all(isinstance(text, str) for text in texts):
        raise ValueError("a chat with more than text")
    said = "".join(text for text in texts if isinstance(text, str))
    thought = next((turn[name] for name in _REASONING if isinstance(turn.get(name), str) and turn[name].strip()), "")
    return f"<think>\n{thought.strip()}\n</think>\n\n{said}" if thought and "<think>" not in said else said


def _speaker(turn: Any) -> Any:
    return turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
