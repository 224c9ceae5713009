"""Programs against unit tests: the last Python block of a response, run confined (`programs`), never believed.

A gold is JSON, as `benchmarks` makes it: `{"tests": [...], "setup": "", "entry_point": ""}`. Tests are of one kind:

- pairs `{"input": ..., "output": ...}`: the program is run anew for each, as `__main__`, and must end by itself, with
  exit status 0 and the expected standard output (white space at ends of lines, and blank lines at the end, aside; with
  a tolerance, numbers may differ by that).
- Python source with `assert`s. The tests run in the worker, the program in its own process, and the names that the
  tests use and neither they nor the setup define (only `entry_point`, where that is given) stand for the program's;
  Python's modules are Python's own, also where a test leaves their import to the program. A call sends arguments across
  as plain data, and its result comes back as plain data: numbers, text, bytes, None, lists, tuples, dicts, sets; of an
  iterator its elements; of anything else a reference, whose attributes can be read, set and called. What was changed in
  place in an argument is changed in the test's too. A StopIteration, which would end a test's loop and so the test,
  arrives as a RuntimeError.

So nothing that a program prints, leaves in memory, returns or does to Python's own functions counts as success: the
expected values are not in its process, an object that is equal to everything does not cross, and a program that ends
early leaves calls unanswered. What the program's own objects say of themselves is believed, as only they know.

CORRECT: all tests passed. WRONG: one did not, or the program raised, ended early, is no Python, or was refused what it
tried. TIMEOUT: the tests together took longer than the limit. ERROR: the memory did not suffice, the program crashed
the interpreter, or the tests need what cannot cross (a function as an argument).
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import re
import sys
import textwrap
from functools import lru_cache
from typing import Any

from quagmire_utils.grading.hosting import MAX_OUTPUT
from quagmire_utils.grading.programs import CannotCrossError, Programs, Running
from quagmire_utils.grading.verdicts import Verdict

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\n`]*)$", re.MULTILINE)
_PYTHON = {"python", "py", "python3", "py3"}
_BUILTINS = frozenset(dir(builtins))
_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def extract(response: str) -> tuple[int, int] | None:
    """Start and end of the last block that is fenced as Python; if none is, of the last one that names no language.

    Blocks that could not run by themselves are passed over where an earlier one can: what a program printed, and the
    example of its use, which calls what only an earlier block defines. Only what follows a closing `</think>` counts.
    """
    found: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    fence, tagged, start = "", False, 0
    for line in _FENCE.finditer(response, response.rfind("</think>") + 1):
        words = line[2].split()
        if not fence:
            language = words[0].strip("{}.").lower() if words else ""
            fence, tagged, start = line[1], language in _PYTHON, min(line.end() + 1, len(response))
            if language and not tagged:
                start = -1
        elif line[1][0] == fence[0] and len(line[1]) >= len(fence) and not words:
            if start >= 0 and response[start : line.start()].strip():
                found[tagged].append((start, line.start()))
            fence = ""
    if fence and start >= 0 and response[start:].strip():
        found[tagged].append((start, len(response)))  # cut off before its end, or the fence was what stopped the model
    blocks = found[True] or found[False]
    return blocks[_last_complete([response[slice(*block)] for block in blocks])] if blocks else None


def _last_complete(blocks: list[str]) -> int:
    """Which of the blocks is the last that needs no other; the last of all, if each does."""
    if len(blocks) == 1:
        return 0
    defined: list[set[str]] = []  # what each block defines, and what all before it do
    complete = -1
    for i, block in enumerate(blocks):
        try:
            nodes = list(ast.walk(ast.parse(show(block))))
        except (SyntaxError, ValueError, RecursionError):
            defined.append(set())
            continue
        names = [node for node in nodes if isinstance(node, ast.Name)]
        here = {node.name for node in nodes if isinstance(node, _DEFINITION)}
        bound = here | {node.id for node in names if not isinstance(node.ctx, ast.Load)}
        if not ({node.id for node in names} - bound) & set().union(*defined):
            complete = i
        defined.append(here)
    return complete if complete >= 0 else len(blocks) - 1


def show(answer: str) -> str:
    """The program as it is run."""
    return textwrap.dedent(answer).strip("\n")


def check(gold: str) -> None:
    """Raise ValueError for a gold that is not of the form above, or whose tests are not Python."""
    try:
        _read_gold(gold)
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"a test or the setup of a program is not Python: {error}") from error


def judge(answer: str, gold: str, tolerance: float | None, programs: Programs) -> Verdict | None:
    """The verdict on a program; None where it used the limit of processor time up."""
    tests, setup, entry_point = _read_gold(gold)
    sources = [source for source in (setup, show(answer)) if source]
    if isinstance(tests[0], dict):
        return _judge_outputs(sources, tests, tolerance, programs)
    with programs.start(sources) as running:
        return _judge_calls(running, tests, setup, entry_point)


def _judge_outputs(
    sources: list[str], tests: list[dict[str, str]], tolerance: float | None, programs: Programs
) -> Verdict | None:
    for test in tests:
        expected = test["output"]
        end, output = programs.run(sources, test["input"])
        if end.verdict != Verdict.CORRECT:
            return end.verdict
        if not _same_output(output, expected, tolerance):
            return Verdict.WRONG
    return Verdict.CORRECT


def _same_output(output: str, expected: str, tolerance: float | None) -> bool:
    ours, theirs = (
        [line.rstrip() for line in text.replace("\r\n", "\n").rstrip().split("\n")] for text in (output, expected)
    )
    if ours == theirs or tolerance is None or len(ours) != len(theirs):
        return ours == theirs
    for line, other in zip(ours, theirs, strict=True):
        words, others = line.split(), other.split()
        if len(words) != len(others):
            return False
        for word, wanted in zip(words, others, strict=True):
            try:
                near = abs(float(word) - float(wanted)) <= tolerance * (1 + 1e-9)
            except ValueError:
                near = False
            if word != wanted and not near:
                return False
    return True


def _judge_calls(running: Running, tests: list[str], setup: str, entry_point: str) -> Verdict | None:
    names: dict[str, Any] = {"__name__": "tests"}
    try:
        if running.ended is None:  # what is run here is the benchmark's, not the model's; confined all the same
            exec(_compiled(setup), names)
            for name in [entry_point] if entry_point else _names(tuple(tests)):
                found = running.find(name) if name == entry_point or name not in names else None
                if found is not None:
                    names[name] = _own_module(name, tuple(tests)) or found[0]
            for test in tests:
                exec(_compiled(test), names)
    except MemoryError:
        raise
    except CannotCrossError:
        return Verdict.ERROR if running.ended is None else running.ended.verdict
    except BaseException:  # also SystemExit: the tests did not come to their end
        return Verdict.WRONG if running.ended is None else running.ended.verdict
    # Tests that swallow exceptions also swallow the end of the program.
    return Verdict.CORRECT if running.ended is None else running.ended.verdict


@lru_cache(maxsize=512)
def _names(tests: tuple[str, ...]) -> tuple[str, ...]:
    """What the tests use, except for Python's own: a program's `sorted` or `abs` is not what a test means by it."""
    used = [node.id for test in tests for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)]
    return tuple(name for name in dict.fromkeys(used) if name not in _BUILTINS)


def _defined(sources: list[str]) -> set[str]:
    """The names of functions, classes, arguments and imports of some sources."""
    defined = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, _DEFINITION):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
    return defined


@lru_cache(maxsize=512)
def _own_module(name: str, tests: tuple[str, ...]) -> Any:
    """Python's module of that name, where the tests mean it: a program's `math` may find everything close."""
    if name not in sys.stdlib_module_names:
        return None
    nodes = [node for test in tests for node in ast.walk(ast.parse(test))]
    parts = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    attributes = [part.attr for part in parts if part.value.id == name]
    if len(attributes) < sum(isinstance(node, ast.Name) and node.id == name for node in nodes):
        return None
    module = importlib.import_module(name)
    return module if all(hasattr(module, attribute) for attribute in attributes) else None


@lru_cache(maxsize=4096)
def _compiled(test: str) -> Any:
    return compile(test, "<tests>", "exec")


@lru_cache(maxsize=512)
def _read_gold(gold: str) -> tuple[list[Any], str, str]:
    """Tests, setup and entry point. Raises ValueError."""
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
    if isinstance(tests[0], str) and not entry_point and not set(_names(tuple(tests))) - _defined([*tests, setup]):
        raise ValueError("its tests call nothing that a program would define; is it in the setup, without entry_point?")
    return tests, setup, entry_point
