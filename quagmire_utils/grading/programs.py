"""Run programs that a model wrote, each in a confined process of its own. Linux, within bubblewrap.

A grading worker forks the process and collects what it leaves. Tests run in it after the program. They have passed if
it reports a random number, which it does after the last one: no output and no way to end early counts as success.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import importlib
import os
import signal
import sys
import threading
import types
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple, NoReturn

from quagmire_utils.grading.sandbox import confine
from quagmire_utils.grading.verdicts import Verdict

MAX_OUTPUT = 2**24  # bytes that a program may write; equal for all problems, or it would hint at the answer
_RAISED, _NO_MEMORY = 98, 99  # exit status
_COMMON = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq",
    "itertools", "math", "operator", "queue", "random", "re", "statistics", "string", "time", "typing",
)  # fmt: skip


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
        """Run a program on a standard input or with tests; return the verdict on its end, and its standard output.

        CORRECT: it ended by itself with status 0, or passed all tests. None: it used up the processor time.
        """
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
