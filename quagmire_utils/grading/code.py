"""The grader of programs: the last Python block of a response runs against unit tests, confined to its own process.

A gold is JSON: `{"tests": [...], "setup": "", "entry_point": ""}`. Tests are of one kind:

- Pairs `{"input": ..., "output": ...}`. The program runs anew for each, as `__main__`, and must end by itself with exit
  status 0 and the expected standard output. White space at ends of lines and blank lines at the end do not count; with
  a tolerance, numbers may differ by that.
- Python source with `assert`s, which runs after the program, in its process, with the builtins as they were before.
  With `entry_point`, tests see the setup and of the program that name alone.

No output, no early end and no swallowed exception counts as success: the program's process reports a random number
after the last test. But tests believe what the program's objects say of themselves, and a program that searches its
process for the tests may find them: do not train against this.

WRONG: a test failed, or the program raised, ended early, is not Python, or tried something that is refused. ERROR: the
memory did not suffice, or the program crashed the interpreter.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import importlib
import json
import os
import re
import signal
import sys
import textwrap
import threading
import types
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, BinaryIO, NamedTuple, NoReturn

from quagmire_utils.grading.sandbox import confine
from quagmire_utils.grading.verdicts import Verdict

_FENCE = re.compile(r"(?:^[ \t]*(~{3,}|`{3,})|(?<!`)(`{3,}))[ \t]*([^\n`]*)$", re.MULTILINE)  # the second within a line
_PYTHON = {"python", "py", "python3", "py3"}
MAX_OUTPUT = 2**24  # bytes that a program may write; equal for all problems, or it would hint at the answer
_RAISED, _NO_MEMORY = 98, 99  # exit status
_COMMON = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq",
    "itertools", "math", "operator", "queue", "random", "re", "statistics", "string", "time", "typing",
)  # fmt: skip
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


# --- running them: Linux, within bubblewrap; a grading worker forks a process for each --------------------------------


class Tests(NamedTuple):
    """Python source that calls what a program defines."""

    setup: str
    sources: tuple[str, ...]
    entry_point: str  # the one name that is the program's; "": all that it defines


def prepare() -> None:
    """Import what programs use most, once for all of them."""
    for name in _COMMON:
        importlib.import_module(name)


class Programs:
    """Runs the programs of a grading worker."""

    def __init__(self, memory_limit: int) -> None:
        self.memory_limit = memory_limit  # bytes
        self.processor_limit = 0.0  # seconds left to the programs of the job at hand

    def run(self, sources: Sequence[str], given: str | Tests) -> tuple[Verdict | None, str]:
        """Run a program on an input or with tests; return the verdict on its end (None: out of time) and its output."""
        token = os.urandom(16)
        with _memory_file() as stdin, _memory_file() as stdout, _memory_file() as report:
            if isinstance(given, str):
                stdin.write(given.encode("utf-8", "surrogatepass"))
                stdin.seek(0)
            pid = os.fork()
            if not pid:
                try:
                    handles = [file.fileno() for file in (stdin, stdout, report)]
                    self._enter_sandbox(handles)
                    _run(sources, given if isinstance(given, Tests) else None, token)
                finally:
                    os._exit(_RAISED)
            _, status, usage = os.wait4(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            self.processor_limit = max(self.processor_limit - usage.ru_utime - usage.ru_stime, 0.01)
            if code in (-signal.SIGPROF, -signal.SIGXCPU):
                return None, ""
            if code < 0 or code == _NO_MEMORY:
                return Verdict.ERROR, ""
            for file in (stdout, report):
                file.seek(0)
            passed = code == 0 and (isinstance(given, str) or report.read(100) == token)
            output = stdout.read(MAX_OUTPUT).decode("utf-8", "replace")
            return Verdict.CORRECT if passed else Verdict.WRONG, output

    def _enter_sandbox(self, handles: Sequence[int]) -> None:
        """Leave this process its three files and its limits, and nothing of the worker's."""
        import resource

        stdin, stdout, report = handles
        wanted = (stdin, stdout, os.open(os.devnull, os.O_RDWR), report)
        for i, handle in enumerate([os.dup2(handle, 32 + i) for i, handle in enumerate(wanted)]):
            os.dup2(handle, i)
        os.closerange(len(wanted), 4096)
        for i, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
            setattr(sys, name, open(i, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115
            setattr(sys, f"__{name}__", getattr(sys, name))
        sys.argv[:] = [""]
        os.environ.clear()
        atexit._clear()  # so that only what the program registers runs at its end
        seconds = int(self.processor_limit) + 2  # whole seconds, in case the program sets the timer back
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        signal.setitimer(signal.ITIMER_PROF, self.processor_limit)
        if "seccomp" not in confine(self.memory_limit, max_file=MAX_OUTPUT, audit_hook=False):
            os._exit(_RAISED)
        sys.modules["random"].seed(0)


def _memory_file() -> BinaryIO:
    return open(os.memfd_create("program"), "w+b", buffering=0)


def _run(sources: Sequence[str], tests: Tests | None, token: bytes) -> NoReturn:
    """Run the program, then its tests, and end this process."""
    name = "__main__" if tests is None else "solution"
    module = sys.modules[name] = sys.modules["__main__"] = types.ModuleType(name)
    execute, own_builtins = exec, dict(vars(builtins))  # a program may replace them
    code = 0
    try:
        steps = [compile(source, "<tests>", "exec") for source in (tests.setup, *tests.sources)] if tests else []
        for source in sources:
            execute(compile(source, "<program>", "exec"), module.__dict__)
        if tests is not None:
            found = {name: value for name, value in vars(module).items() if name not in own_builtins}
            scope = {"__name__": "tests", "__builtins__": own_builtins}
            if tests.entry_point:
                execute(steps[0], scope)
                found = {tests.entry_point: found[tests.entry_point]}
            scope |= found
            for step in steps[1:]:
                execute(step, scope)
            os.write(3, token)
            os._exit(0)
    except SystemExit as error:
        code = 0 if error.code in (None, 0, False) else _RAISED
    except MemoryError:
        code = _NO_MEMORY
    except BaseException:
        code = _RAISED
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)
