"""Run programs that a model wrote, one after the other, each in a confined fork of a process that knows no answers.

`programs` has the worker's side. All of this happens within the bubblewrap sandbox of the grading workers. A program
that is called by tests reads questions, a line of JSON each, from one pipe and answers on another. Only the host tells
the worker how a program ended.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import numbers
import os
import select
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NoReturn

from quagmire_utils.grading.sandbox import confine

MAX_OUTPUT = 2**24  # bytes that a program may write; equal for all problems, or it would hint at the answer
RAISED, NO_MEMORY = 98, 99  # exit status
_MAX_ELEMENTS = 10**6  # of an iterator that a program returns
_COMMON = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq",
    "itertools", "math", "operator", "queue", "random", "re", "statistics", "string", "time", "typing",
)  # fmt: skip


def prepare() -> None:
    """Import what programs use most, once for all of them."""
    for name in _COMMON:
        importlib.import_module(name)


def host(requests: int, ends: int, questions: int, answers: int, memory_limit: int) -> None:
    """Run the program of each request, and report how it ended, until the worker has ended.

    A request is an object with the program's number, sources, standard input (null: it is called instead) and limit of
    processor time in seconds. Any other line stops the running program. The report is a list: exit status (negative:
    the signal), seconds of processor time, standard output.
    """
    for expiry in (signal.ITIMER_REAL, signal.ITIMER_PROF):
        signal.setitimer(expiry, 0)
    atexit._clear()  # so that only what a program registers runs at its end
    with open(requests, "rb") as lines, open(ends, "w") as reports:
        for line in lines:
            request = json.loads(line)
            if not isinstance(request, dict):  # a stop for a program that has just ended
                continue
            stdin, stdout = os.memfd_create("stdin"), os.memfd_create("stdout")
            with open(stdin, "wb", closefd=False) as file:
                file.write((request["stdin"] or "").encode("utf-8", "surrogatepass"))
            os.lseek(stdin, 0, os.SEEK_SET)
            pid = os.fork()
            if not pid:
                pipes = (questions, answers) if request["stdin"] is None else (stdin, stdout)
                try:
                    _run(request, memory_limit, *pipes)
                finally:
                    os._exit(RAISED)
            ended = os.pidfd_open(pid)
            poll = select.poll()
            for handle in (requests, ended):
                poll.register(handle, select.POLLIN)
            if requests in dict(poll.poll()):  # a stop, or the worker has ended
                os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            os.lseek(stdout, 0, os.SEEK_SET)
            with open(stdout, "rb") as file:
                output = file.read(MAX_OUTPUT).decode("utf-8", "replace")
            os.close(stdin)
            os.close(ended)
            json.dump([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, output], reports)
            print(file=reports, flush=True)


# ------------------------------------------------------------------------------------------------------- the program


def _run(request: dict[str, Any], memory_limit: int, reads: int, writes: int) -> NoReturn:
    """Confine this process, run the program in it and answer questions about it."""
    import resource

    called = request["stdin"] is None
    nothing = os.open(os.devnull, os.O_RDWR)
    wanted = (nothing, nothing, nothing, reads, writes) if called else (reads, writes, nothing)
    for i, handle in enumerate([os.dup2(handle, 32 + i) for i, handle in enumerate(wanted)]):
        os.dup2(handle, i)
    os.closerange(len(wanted), 4096)
    for i, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        setattr(sys, name, open(i, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115
        setattr(sys, f"__{name}__", getattr(sys, name))
    sys.argv[:] = [""]
    os.environ.clear()
    seconds = int(request["limit"]) + 2  # whole seconds, in case the program sets the timer back
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    signal.setitimer(signal.ITIMER_PROF, request["limit"])
    if "seccomp" not in confine(memory_limit, max_file=0 if called else MAX_OUTPUT, audit_hook=False):
        os._exit(RAISED)
    name = "solution" if called else "__main__"
    module = sys.modules[name] = sys.modules["__main__"] = types.ModuleType(name)
    sys.modules["random"].seed(0)
    code = 0
    try:
        for source in request["sources"]:
            exec(compile(source, "<program>", "exec"), module.__dict__)
        if called:
            _answer(module, request["number"])
    except SystemExit as error:
        code = 0 if not called and error.code in (None, 0, False) else RAISED
    except MemoryError:
        code = NO_MEMORY
    except BaseException:
        code = RAISED
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


def _answer(module: types.ModuleType, number: int) -> None:
    """Answer the worker's questions about what the program has defined, until the host ends this process."""
    objects: list[Any] = []

    def kept(value: Any) -> list[Any]:
        """Encode what is not plain data: the elements of an iterator, otherwise a reference."""
        if hasattr(type(value), "__next__"):
            items = []
            for item in value:
                items.append(encode(item, kept))
                if len(items) > _MAX_ELEMENTS:
                    raise ValueError("too many elements")
            return ["i", items]
        if isinstance(value, views):
            return ["l", [encode(item, kept) for item in value]]
        objects.append(value)
        return ["o", len(objects) - 1]

    views = (type({}.keys()), type({}.values()), type({}.items()))
    with open(3, "rb", closefd=False) as questions, open(4, "wb", closefd=False) as answers:
        answers.write(b'["ready"]\n')
        answers.flush()
        for line in questions:
            try:
                asked, *question = json.loads(line)
            except ValueError:
                continue  # empty, or the rest of a line that an earlier program had begun to read
            if asked != number:
                continue  # an earlier program did not read it
            try:
                answer = _answer_one(question, module, objects, kept)
            except MemoryError:
                raise
            except Exception as error:
                kind = next(base for base in type(error).__mro__ if base.__module__ == "builtins")
                text = error.args[0] if len(error.args) == 1 and isinstance(error.args[0], str) else str(error)
                answer = ["raised", kind.__name__, str(text)[:1000]]
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()


def _answer_one(question: list[Any], module: types.ModuleType, objects: list[Any], kept: Any) -> list[Any]:
    kind, what, *rest = question
    if kind == "find":
        value = module.__dict__.get(what, objects)
        if isinstance(value, types.ModuleType):
            return ["module"] if value.__name__ == what else ["absent"]
        return ["absent"] if value is objects else ["value", encode(value, kept), []]
    if kind == "attribute":
        if not hasattr(objects[what], rest[0]):
            return ["absent"]
        return ["value", encode(getattr(objects[what], rest[0]), kept), []]
    if kind == "set":
        setattr(objects[what], rest[0], decode(rest[1], objects.__getitem__))
        return ["value", None, []]
    arguments = [decode(argument, objects.__getitem__) for argument in rest[0]]
    named = {name: decode(argument, objects.__getitem__) for name, argument in rest[1].items()}
    result = objects[what](*arguments, **named)
    changed = [encode(a, kept) if type(a) in (list, dict, set) else None for a in arguments]
    return ["value", encode(result, kept), changed]


# ------------------------------------------------------------------------------------------------- plain data as JSON

_SEQUENCES = {"l": list, "t": tuple, "s": set, "f": frozenset, "q": deque}
_TEXTS: dict[str, Callable[[str], Any]] = {
    "n": lambda digits: int(digits, 16), "c": complex, "b": bytes.fromhex, "ba": bytearray.fromhex, "fr": Fraction,
}  # fmt: skip


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """Return a value as JSON; `other(value)` encodes what is not plain data. A subclass goes as its base class."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(int.__index__(value)) >= 2**63:
        return ["n", hex(value)]
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind.__add__(value, kind())
    if isinstance(value, complex):
        return ["c", complex.__repr__(value)]
    if isinstance(value, bytes | bytearray):
        return ["b" if isinstance(value, bytes) else "ba", bytes(value).hex()]
    if isinstance(value, Mapping):
        return ["d", [[encode(key, other), encode(item, other)] for key, item in value.items()]]
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return [name, [encode(item, other) for item in kind.__iter__(value)]]
    if isinstance(value, range):
        return ["r", [value.start, value.stop, value.step]]
    if isinstance(value, numbers.Integral):  # such as numpy's
        return encode(int(value), other)
    if isinstance(value, numbers.Rational):
        return ["fr", f"{value.numerator}/{value.denominator}"]
    if isinstance(value, numbers.Real):
        return float(value)
    if type(value).__name__ in ("bool", "bool_") and type(value).__module__ == "numpy":
        return bool(value)
    return other(value)


def decode(data: Any, referenced: Callable[[int], Any]) -> Any:
    """Return what `encode` encoded, with `referenced(handle)` for a reference. Raises for anything else."""
    if data is None or isinstance(data, bool | int | float | str):
        return data
    kind, content = data
    if kind == "o":
        return referenced(content)
    if kind == "r":
        return range(*content)
    if kind == "d":
        return {decode(key, referenced): decode(item, referenced) for key, item in content}
    if kind in _TEXTS:
        return _TEXTS[kind](content)
    items = [decode(item, referenced) for item in content]
    return iter(items) if kind == "i" else _SEQUENCES[kind](items)
