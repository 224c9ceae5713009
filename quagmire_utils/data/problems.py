"""Problems and traces, and the files that hold them.

traces = load_traces("traces.jsonl")          # columns id, problem_id, question, response, answer, source
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError

Row = Mapping[str, Any]
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Problem:
    """A question and its gold answer.

    For the grader `math` the answer is bare LaTeX (several answers: comma-separated), for `choice` a letter, for `code`
    the tests as JSON, see `rows.code_gold`.
    """

    id: str
    question: str
    answer: str
    tolerance: float | None = None  # absolute, inclusive
    grader: str = "math"
    instruction: str | None = None  # after the question; None: what `prompts.INSTRUCTIONS` has for the grader


@dataclass(frozen=True)
class Trace:
    """A worked solution, for SFT or for held-out loss. `source` names the dataset or model that wrote it."""

    id: str
    problem_id: str
    question: str
    response: str
    answer: str = ""
    source: str = ""


def digest(problems: Iterable[Problem]) -> str:
    """Return the sha256 of the problems in order: ids, questions, answers, tolerances, graders, instructions."""
    sha = hashlib.sha256()
    for problem in problems:
        row = [problem.id, problem.question, problem.answer, problem.tolerance]
        if problem.grader != "math" or problem.instruction is not None:
            row += [problem.grader, problem.instruction]
        sha.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
    return sha.hexdigest()


def load_traces(path: str | Path) -> list[Trace]:
    """Load traces from a .jsonl file: `question` and `response`, and what else Trace has; other columns are ignored.

    An id may be a number; the default is the number of the line, and that of `problem_id` is the id. Raises
    ParameterError with the line of a row whose question or response is missing, blank or no text.
    """
    known = {field.name for field in fields(Trace)}
    traces = []
    for number, row in read_jsonl(path):
        missing = [name for name in ("question", "response") if row.get(name) in (None, "")]
        bad = [name for name in ("question", "response") if not isinstance(row.get(name), str) or not row[name].strip()]
        if bad:
            found = " and ".join([f"no {name!r}" for name in missing] or [f"a {bad[0]} that is blank or no text"])
            raise ParameterError(str(path), reason=f"line {number} has {found}; a trace is a question and a response")
        own = {column: str(value) for column, value in row.items() if value is not None and column in known}
        own = {"id": str(number)} | own
        traces.append(Trace(**{"problem_id": own["id"]} | own))
    check_ids(traces, str(path))
    return traces


def read_jsonl(path: str | Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row) of each line that is not blank. Raises ParameterError with the line of a bad row."""
    try:
        with Path(path).open(encoding="utf-8-sig") as file:  # with or without a byte order mark
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = parse_row(line, path, number)
                    for column, value in row.items():
                        if isinstance(value, str) and _LONE_SURROGATE.search(value):
                            half = f"half of a character (a lone surrogate) in {column!r}: no tokenizer reads it"
                            raise ParameterError(str(path), reason=f"line {number} has {half}")
                    yield number, row
    except OSError as error:
        raise ParameterError(str(path), reason=f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ParameterError(str(path), reason=f"not UTF-8 ({error})") from error


def read_csv(path: str | Path) -> Iterator[tuple[int, Row]]:
    """Yield (number of the row, row) of a CSV file in UTF-8 with a header. Raises ParameterError."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            yield from enumerate(csv_rows(file), start=1)
    except (OSError, ValueError) as error:
        raise ParameterError(str(path), reason=f"cannot be read as CSV in UTF-8 ({error})") from error


def csv_rows(lines: Iterable[str]) -> Iterator[Row]:
    """Yield the rows of CSV text with a header. Raises ValueError with a sentence."""
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole trace
    reader = csv.DictReader(lines)
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise ValueError("a column's name stands twice in the header")
    try:
        for number, row in enumerate(reader, start=1):
            if None in row:
                raise ValueError(f"row {number} has {len(row[None]) + len(names)} cells for {len(names)} columns")
            yield row
    except csv.Error as error:
        raise ValueError(str(error)) from error


def check_ids(rows: Iterable[Problem | Trace], where: str) -> None:
    """Raise ParameterError if two rows have one id."""
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise ParameterError(where, row.id, reason=f"the id {row.id!r} occurs twice")
        seen.add(row.id)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text, large whole numbers that are written as floats exact. Raises ValueError."""
    text = text if isinstance(text, str) else text.decode("utf-8-sig")
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:  # also for numbers of too many digits, and too many brackets
        raise ValueError(str(error).split(";")[0]) from error


def _number(text: str) -> int | float:
    """Return the number that a JSON text writes with a point or an exponent."""
    value = float(text)
    return int(Decimal(text)) if value.is_integer() and 2**53 <= abs(value) < 1e30 else value


_DECODER = json.JSONDecoder(parse_float=_number)


def parse_row(line: str, path: str | Path, number: int) -> Row:
    """Return the JSON object in line `number` of a file. Raises ParameterError for anything else."""
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ParameterError(str(path), reason=f"line {number} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ParameterError(str(path), reason=f"line {number} is not a JSON object")
    return row
