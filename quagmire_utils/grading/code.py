"""The grader of programs: the last Python block of a response runs against unit tests in a sandbox (`programs`).

A gold is JSON: `{"tests": [...], "setup": "", "entry_point": ""}`. Tests are of one kind:

- Pairs `{"input": ..., "output": ...}`. The program runs anew for each, as `__main__`, and must end by itself with exit
  status 0 and the expected standard output. White space at ends of lines and blank lines at the end do not count; with
  a tolerance, numbers may differ by that.
- Python source with `assert`s, which runs after the program, in its process, with the builtins as they were before.
  With `entry_point`, tests see the setup and of the program that name alone.

No output, no early end and no swallowed exception counts as success. But the tests believe what the program's objects
say of themselves, and a program that searches its process for the tests may find them: do not train against this.

WRONG: a test failed, or the program raised, ended early, is not Python, or tried something that is refused. ERROR: the
memory did not suffice, or the program crashed the interpreter.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from functools import lru_cache
from itertools import chain
from typing import Any

from quagmire_utils.grading.programs import MAX_OUTPUT, Programs, Tests
from quagmire_utils.grading.verdicts import Verdict

_FENCE = re.compile(r"(?:^[ \t]*(~{3,}|`{3,})|(?<!`)(`{3,}))[ \t]*([^\n`]*)$", re.MULTILINE)  # the second within a line
_PYTHON = {"python", "py", "python3", "py3"}
_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def extract(response: str) -> tuple[int, int] | None:
    """Return start and end of the last program in a block fenced as Python; without one, in one of no language.

    Not a program is what follows one: its output, imports alone, an example that calls what only an earlier block
    defines, functions of other names. Only what follows a closing `</think>` counts.
    """
    found: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    fence, tagged, start = "", False, 0
    for line in _FENCE.finditer(response, response.rfind("</think>") + 1):
        mark, words = line[1] or line[2], line[3].partition("<")[0].split()
        if not fence:
            language = words[0].strip("{}.").lower() if words else ""
            if not line[1] and language not in _PYTHON:
                continue  # a mark within a line of text
            fence, tagged, start = mark, language in _PYTHON, min(line.end() + 1, len(response))
            if language and not tagged:
                start = -1
        elif mark[0] == fence[0] and len(mark) >= len(fence) and not words:
            if start >= 0 and response[start : line.start()].strip():
                found[tagged].append((start, line.start()))
            fence = ""
    if fence and start >= 0 and response[start:].strip():
        found[tagged].append((start, len(response)))  # no closing fence: cut off, or stopped at the fence
    blocks = found[True] or found[False]
    return blocks[_last_program([response[slice(*block)] for block in blocks])] if blocks else None


def _last_program(blocks: list[str]) -> int:
    """Return the index of the last block that is a program by itself, or of the last one if none is."""
    if len(blocks) == 1:
        return 0
    defined: set[str] = set()  # by the blocks before
    program = -1
    for i, block in enumerate(blocks):
        try:
            tree = ast.parse(show(block))
        except (SyntaxError, ValueError, RecursionError):
            continue
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        here = {node.name for node in ast.walk(tree) if isinstance(node, _DEFINITION)}
        bound = here | {node.id for node in names if not isinstance(node.ctx, ast.Load)}
        borrows = bool(({node.id for node in names} - bound) & defined)
        does = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom) and not _is_value(node)]
        others = defined and here.isdisjoint(defined) and all(isinstance(node, _DEFINITION) for node in does)
        if does and (program < 0 or not (borrows or others)):
            program = i
        defined |= here
    return program if program >= 0 else len(blocks) - 1


def _is_value(node: ast.stmt) -> bool:
    """Return whether a statement does nothing: a number, a text, or a list of them, as in a program's output."""
    if isinstance(node, ast.AnnAssign):
        return node.value is None  # Time: O(n)
    if not isinstance(node, ast.Expr):
        return False
    return not any(isinstance(part, ast.Call | ast.Name | ast.Await) for part in ast.walk(node))


def show(answer: str) -> str:
    """Return the program as it is run."""
    return textwrap.dedent(answer).strip("\n")


def check(gold: str) -> None:
    """Raise ValueError for a gold that is not of the form above, or whose tests are not Python."""
    try:
        _read_gold(gold)
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"a test or the setup of a program is not Python: {error}") from error


def judge(answer: str, gold: str, tolerance: float | None, programs: Programs) -> Verdict | None:
    """Return the verdict on a program; None where it used up the limit of processor time."""
    tests, setup, entry_point = _read_gold(gold)
    sources = [source for source in (setup, show(answer)) if source]
    if isinstance(tests[0], str):
        return programs.run(sources, Tests(setup, tuple(tests), entry_point))[0]
    for test in tests:
        verdict, output = programs.run(sources, test["input"])
        if verdict != Verdict.CORRECT:
            return verdict
        if not _same_output(output, test["output"], tolerance):
            return Verdict.WRONG
    return Verdict.CORRECT


def _same_output(output: str, expected: str, tolerance: float | None) -> bool:
    ours, theirs = (
        [line.rstrip() for line in text.replace("\r\n", "\n").rstrip().split("\n")] for text in (output, expected)
    )
    if ours == theirs or tolerance is None:
        return ours == theirs

    def near(word: str, wanted: str) -> bool:
        try:
            return word == wanted or abs(float(word) - float(wanted)) <= tolerance * (1 + 1e-9)
        except ValueError:
            return False

    words, wanted = ([line.split() for line in lines] for lines in (ours, theirs))
    return list(map(len, words)) == list(map(len, wanted)) and all(map(near, chain(*words), chain(*wanted)))


@lru_cache(maxsize=512)
def _read_gold(gold: str) -> tuple[list[Any], str, str]:
    """Return tests, setup and entry point. Raises ValueError."""
    read = json.loads(gold)
    if not isinstance(read, dict) or not isinstance(read.get("tests"), list) or not read["tests"]:
        raise ValueError("the tests of a program must be a list of asserts, or of pairs of input and output")
    tests, setup, entry_point = read["tests"], read.get("setup", ""), read.get("entry_point", "")
    if not isinstance(setup, str) or not isinstance(entry_point, str):
        raise ValueError("setup and entry_point of a program must be texts")
    if all(isinstance(test, str) for test in tests):
        for test in tests:
            ast.parse(test)
        if entry_point and not entry_point.isidentifier():
            raise ValueError(f"entry_point must be a name, not {entry_point[:40]!r}")
    elif not all(
        isinstance(test, dict) and all(isinstance(test.get(key), str) for key in ("input", "output")) for test in tests
    ):
        raise ValueError("the tests of a program must all be asserts, or all have the texts input and output")
    elif any(len(test["output"]) > MAX_OUTPUT // 4 for test in tests):  # characters are of up to four bytes
        raise ValueError(f"an expected output must have at most {MAX_OUTPUT // 4} characters")
    if setup:
        ast.parse(setup)
    return tests, setup, entry_point
