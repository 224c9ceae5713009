"""Problems and traces, and the files of one's own that hold them.

traces = load_traces("traces.jsonl")          # columns id, problem_id, question, response, answer, source
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.reading import Row, read_rows

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
    for number, row in read_rows(path):
        try:
            check_texts(row, ("question", "response"))
        except ValueError as error:
            reason = f"line {number} {error}; a trace is a question and a response"
            raise ParameterError(str(path), reason=reason) from error
        own = {column: str(value) for column, value in row.items() if value is not None and column in known}
        own = {"id": str(number)} | own
        traces.append(Trace(**{"problem_id": own["id"]} | own))
    check_ids(traces, str(path))
    return traces


def check_texts(row: Row, needed: Iterable[str] = ()) -> None:
    """Raise ValueError for a column of `needed` without text, and for half of a character in any."""
    if missing := [name for name in needed if row.get(name) in (None, "")]:
        raise ValueError(f"has no {' and no '.join(map(repr, missing))}")
    if bad := [name for name in needed if not isinstance(row[name], str) or not row[name].strip()]:
        raise ValueError(f"has a {bad[0]} that is blank or no text")
    for column, value in row.items():
        if isinstance(value, str) and _LONE_SURROGATE.search(value):
            raise ValueError(f"has half of a character (a lone surrogate) in {column!r}: no tokenizer reads it")


def check_ids(rows: Iterable[Problem | Trace], where: str) -> None:
    """Raise ParameterError if two rows have one id."""
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise ParameterError(where, row.id, reason=f"the id {row.id!r} occurs twice")
        seen.add(row.id)
