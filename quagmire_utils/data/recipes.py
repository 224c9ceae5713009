"""A benchmark as a few lines of YAML: where its rows are, which column is what, and which grader judges.

    title: ARC-Challenge                 # catalogue/arc_challenge.yaml, and so the benchmark `arc_challenge`
    hub_id: allenai/ai2_arc
    config: ARC-Challenge
    split: test
    revision: 210d026faf9955653af8916fad021475a3f00453
    count: 1172                          # checked; whoever changes the rows is found out
    licence: CC-BY-SA-4.0
    grader: choice
    id: id
    question: question
    choices: choices
    answer: answerKey
    answer_as: label

Instead of a hub, or before it is asked, `file` names a .jsonl or .csv file beside the recipe, or inside a mirror.
`question`, `tests`, `setup` and `instruction` may put columns together: a text with `{column}` in it is filled in, any
other is the name of a column (of `instruction`: the text itself). The file's name is the benchmark's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.domains import checked_choices, checked_tolerance, domain_problem, shuffled
from quagmire_utils.data.golds import _plain_number, _reduce
from quagmire_utils.data.problems import Problem, Row
from quagmire_utils.data.prompts import INSTRUCTIONS
from quagmire_utils.grading.registry import MATH, find_grader

RECIPES = Path(__file__).parent / "catalogue"
ANSWERS = ("letter", "index", "text", "label")


@dataclass(frozen=True)
class Recipe:
    """One benchmark. Of `hub_id` and `file` at least one is given."""

    name: str  # the file's, not a key
    path: Path  # of the file, not a key
    question: str  # column, or a text with {column}s
    title: str = ""
    hub_id: str = ""
    config: str | None = None
    split: str = "test"
    revision: str | None = None  # commit of the hub's repository; without one, a warning
    file: str = ""  # .jsonl or .csv, beside the recipe or in a mirror
    count: int | None = None  # of problems
    licence: str = ""
    grader: str = MATH
    instruction: str | None = None  # after the question; default: the grader's
    id: str | None = None  # column; default: the row's number
    answer: str | None = None  # column; of `choice` see answer_as
    answer_as: str = "letter"  # B; or the index from 0; or the text of the right choice; or its label in the column
    choices: str | tuple[str, ...] | None = (
        None  # a column (a list, or {text, label}), or the columns of one choice each
    )
    shuffle: bool = False  # the choices, by the problem's id: for hubs that put the right one first
    tests: str | None = None  # column: a list, or the text of one script; or a text with {column}s, which is one
    test_call: str = ""  # a line after a script of tests, as check({entry_point})
    setup: str = ""  # column, or a text with {column}s
    entry_point: str | None = None  # column
    tolerance: str | None = None  # column


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from its file. Raises ParameterError that names the file and what is wrong in it."""
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ParameterError(f"benchmark {path} cannot be read: {reason}") from error
    known = [field.name for field in fields(Recipe) if field.name not in ("name", "path")]
    if not isinstance(values, dict):
        raise ParameterError(f"benchmark {path} must hold keys and values: {', '.join(known)}")
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise ParameterError(f"benchmark {path}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
    if isinstance(values.get("choices"), list):
        values["choices"] = tuple(map(str, values["choices"]))
    kinds = {"count": int, "shuffle": bool, "choices": str | tuple}
    values = {key: value for key, value in values.items() if value is not None}  # `revision:` and no more is none
    for key, value in values.items():
        kind = kinds.get(key, str)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            hint = "; a text that looks like something else needs quotes" if kind is str else ""
            raise ParameterError(f"benchmark {path}: {key} has the wrong kind of value ({value!r}){hint}")
    recipe = Recipe(name=path.stem, path=path, **({"question": ""} | values))
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    def refuse(what: str) -> None:
        raise ParameterError(f"benchmark {recipe.path}: {what}")

    if not recipe.question:
        refuse("question must name a column")
    if not recipe.hub_id and not recipe.file:
        refuse("hub_id or file must say where its rows are")
    if recipe.grader != MATH:
        beside = str(recipe.path.resolve().parent)
        if ":" in recipe.grader and beside not in sys.path:
            sys.path.append(beside)  # a grader of one's own may lie beside the benchmark; workers get the same path
        grader = find_grader(recipe.grader)
        if not (recipe.instruction or grader.instruction or recipe.grader in INSTRUCTIONS):
            refuse(f"the grader {recipe.grader} has no instruction, so one must be given")
    if recipe.grader == "code" and not recipe.tests:
        refuse("tests must name a column, for the grader code")
    if recipe.grader != "code" and not recipe.answer:
        refuse(f"answer must name a column, for the grader {recipe.grader}")
    if recipe.count is not None and recipe.count < 1:
        refuse(f"count must be at least 1, not {recipe.count}")
    if recipe.answer_as not in ANSWERS:
        refuse(f"answer_as must be one of {', '.join(ANSWERS)}, not {recipe.answer_as!r}")
    if (recipe.shuffle or recipe.answer_as != "letter") and not recipe.choices:
        refuse("shuffle and answer_as need choices")


def recipe_problem(recipe: Recipe, index: int, row: Row) -> Problem:
    """The problem of one row. Raises ValueError, in words, for a row that has no such problem."""
    problem_id = f"{recipe.name}/{index if recipe.id is None else _held(recipe.id, row)}"
    question = _filled(recipe.question, row)
    if not question.strip():
        raise ValueError("it has no question")
    tolerance = None if recipe.tolerance is None else _held(recipe.tolerance, row)
    instruction = _fill(recipe.instruction, row) if recipe.instruction else None
    if recipe.grader == MATH:
        answer = _held(recipe.answer, row)
        if answer is None or not str(answer).strip():
            raise ValueError("it has no answer")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float) or answer != answer:
            raise ValueError(f"its answer must be a text or a number, not {str(answer)[:40]!r}")
        gold, tolerance = _reduce(_plain_number(answer)), checked_tolerance(tolerance)
        return Problem(problem_id, question.strip(), gold, tolerance, MATH, instruction)
    plain: dict[str, Any] = {"question": question, "tolerance": tolerance}
    if recipe.answer:
        plain["answer"] = _held(recipe.answer, row)
    if recipe.choices:
        plain |= _choices(recipe, problem_id, row)
    if recipe.tests:
        tests = _fill(recipe.tests, row) if "{" in recipe.tests else _held(recipe.tests, row)
        plain |= {"tests": tests, "setup": _filled(recipe.setup, row) if recipe.setup else ""}
        if recipe.entry_point:
            plain["entry_point"] = _held(recipe.entry_point, row)
        if recipe.test_call:
            plain["tests"] = [f"{plain['tests']}\n{_fill(recipe.test_call, row)}\n"]
    return domain_problem(problem_id, recipe.grader, plain, instruction)


def _choices(recipe: Recipe, problem_id: str, row: Row) -> dict[str, Any]:
    """The choices in the order in which they are shown, and the letter of the right one."""
    held = [_held(name, row) for name in _tuple(recipe.choices)]
    held = held if isinstance(recipe.choices, tuple) else held[0]
    labels = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    if isinstance(held, Mapping):
        held, labels = _held("text", held), [str(label) for label in _held("label", held)]
    choices, answer = checked_choices(held), _held(recipe.answer, row)
    if recipe.answer_as == "index":
        right = int(str(answer)) if str(answer).strip().isdecimal() else -1
    elif recipe.answer_as == "text" and recipe.answer in _tuple(recipe.choices):
        right = _tuple(recipe.choices).index(recipe.answer)  # also where another column has the same text
    elif recipe.answer_as == "text":
        if choices.count(str(answer)) != 1:
            raise ValueError("its answer is not exactly one of its choices")
        right = choices.index(str(answer))
    else:
        label = str(answer).strip() if recipe.answer_as == "label" else str(answer).strip().upper()
        right = labels.index(label) if label in labels else -1
    if not 0 <= right < len(choices):
        raise ValueError(f"its answer {answer!r} is none of its {len(choices)} choices")
    order = shuffled(problem_id, len(choices)) if recipe.shuffle else list(range(len(choices)))
    return {"choices": [choices[i] for i in order], "answer": "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[order.index(right)]}


def _filled(what: str, row: Row) -> str:
    """The column of that name, or the text with its columns filled in."""
    if "{" in what:
        return _fill(what, row)
    held = _held(what, row)
    return "" if held is None else str(held)


def _held(column: str, row: Row) -> Any:
    if column not in row:
        raise ValueError(f"it has no column {column!r}, but {', '.join(map(repr, row))}")
    return row[column]


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return names if isinstance(names, tuple) else (names,)


def _fill(text: str, row: Row) -> str:
    """Replace each {column}; lists are written line by line."""

    def value(match: re.Match[str]) -> str:
        held = _held(match[1], row)
        held = held if isinstance(held, list | tuple) else [held]
        return "\n".join(str(part) for part in held if part is not None)

    return re.sub(r"\{([^{}\s]+)\}", value, text)
