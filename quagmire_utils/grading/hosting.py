"""The process that starts programs a model wrote, watches over them, and is none of theirs; and what runs in theirs.

See `programs`, whose worker forks it. Linux.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import sys
import threading
import time
import types
from typing import Any

from quagmire_utils.grading.program_sandbox import confine_program, stop_opening
from quagmire_utils.grading.wire import END, INPUT, OUTPUT, START, STOP, decode, encode, receive, send

MAX_OUTPUT = 2**24  # bytes that a program may say in all; the same for all, as another number would tell of the answer
_GLANCE = 0.02  # seconds between two looks at a program's processor time
_MAX_ELEMENTS = 10**6  # of an iterator that a program returns
_PIECE = 2**16
_UNCONFINED, _BROKEN, _NO_MEMORY = 97, 98, 99  # exit status: could not be confined; the program raised; memory
_SUBREAPER = 36
_COMMON = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq",
    "itertools", "math", "operator", "queue", "random", "re", "statistics", "string", "time", "typing",
)  # fmt: skip


def adopt_hosts() -> None:
    """Let this process reap the hosts of workers that died before them."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def prepare() -> None:
    """Import what programs use most, once for all of them."""
    for name in _COMMON:
        importlib.import_module(name)


def readable() -> list[str]:
    """What a program may read: Python's library, and those of the system that its modules load."""
    import sysconfig

    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    system = {"/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"}
    libraries = {os.path.join(sys.base_prefix, "lib"), os.path.join(sys.prefix, "lib")}
    return [*sorted(path for path in paths | system | libraries if path and os.path.exists(path)), "/dev/urandom"]


def host(requests: int, replies: int, memory_limit: int) -> None:
    """Run one program after the other, as `requests` ask for, until nobody can ask any more."""
    for expiry in (signal.SIGALRM, signal.SIGPROF):
        signal.setitimer(signal.ITIMER_REAL if expiry == signal.SIGALRM else signal.ITIMER_PROF, 0)
    os.closerange(3, min(requests, replies))
    os.closerange(max(requests, replies) + 1, 4096)
    for handle in range(min(requests, replies) + 1, max(requests, replies)):
        with contextlib.suppress(OSError):
            os.close(handle)
    os.environ.clear()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", HOME="/", PATH="/nowhere")
    atexit._clear()
    sys.argv = [""]
    library = readable()
    sys.path[:] = [path for path in sys.path if any(path == place or path.startswith(place + "/") for place in library)]
    while True:
        try:
            kind, payload = receive(requests)
        except EOFError:
            return
        if kind == START:  # else it was for a program that has ended
            start = json.loads(payload)
            _host_one(start, requests, replies, memory_limit, library)


def _host_one(start: dict[str, Any], requests: int, replies: int, memory_limit: int, library: list[str]) -> None:
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(requests)
            os.close(replies)
            _become(start, theirs_in, theirs_out, memory_limit, library)
        finally:
            os._exit(_BROKEN)
    os.close(theirs_in)
    os.close(theirs_out)
    os.set_blocking(ours_in, False)
    os.set_blocking(ours_out, False)
    ended = os.pidfd_open(pid)
    clock = (~pid << 3) | 2  # the kernel's name of that process's processor time
    pending = start["text"].encode("utf-8", "surrogatepass")
    sent, why, gone, seconds = 0, "", False, 0.0
    poll = select.poll()
    for handle in (requests, ended, ours_out):
        poll.register(handle, select.POLLIN)
    if pending:
        poll.register(ours_in, select.POLLOUT)
    elif not start["calls"]:
        os.close(ours_in)
        ours_in = -1
    try:
        while not gone and not why:
            for handle, _ in poll.poll(_GLANCE * 1000):
                if handle == requests:
                    try:
                        kind, payload = receive(requests)
                    except EOFError:
                        why = "abandoned"
                        break
                    if kind == STOP:
                        why = "stopped"
                    elif kind == INPUT:
                        pending += payload
                        poll.register(ours_in, select.POLLOUT)
                elif handle == ours_in:
                    try:
                        pending = pending[os.write(ours_in, pending[:_PIECE]) :]
                    except BlockingIOError:
                        continue
                    except OSError:  # it reads no more
                        pending = b""
                    if not pending:
                        poll.unregister(ours_in)
                        if not start["calls"]:
                            os.close(ours_in)
                            ours_in = -1
                elif handle == ours_out:
                    sent, over = _pass_on(ours_out, replies, sent)
                    if sent < 0:
                        poll.unregister(ours_out)
                    elif over:
                        why = "output"
                elif handle == ended:
                    gone = True
            with contextlib.suppress(OSError):
                seconds = time.clock_gettime(clock)
            if seconds > start["processor_limit"]:
                why = why or "cpu"
        while gone and not why and sent >= 0:  # what it had said last
            before = sent
            sent, over = _pass_on(ours_out, replies, sent)
            why = "output" if over else why
            if sent == before:
                break
    finally:
        if not gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        for handle in (ours_in, ours_out, ended):
            if handle >= 0:
                os.close(handle)
    if why == "abandoned":
        os._exit(0)
    code = os.waitstatus_to_exitcode(status)
    if not why or why == "stopped":
        why = {0: "exit", _UNCONFINED: "unconfined", _NO_MEMORY: "memory"}.get(code, "crash" if code < 0 else "raised")
        why = "cpu" if code == -signal.SIGXCPU else why
    send(replies, END, json.dumps([why, usage.ru_utime + usage.ru_stime]).encode())


def _pass_on(ours_out: int, replies: int, sent: int) -> tuple[int, bool]:
    """Bytes passed on so far (-1: that was all), and whether they exceed the limit."""
    try:
        piece = os.read(ours_out, _PIECE)
    except BlockingIOError:
        return sent, False
    if not piece:
        return -1, False
    if sent + len(piece) > MAX_OUTPUT:
        return sent, True
    send(replies, OUTPUT, piece)
    return sent + len(piece), False


# ------------------------------------------------------------------------------------------------------- the program


def _become(start: dict[str, Any], stdin: int, stdout: int, memory_limit: int, library: list[str]) -> None:
    """In the forked process: shut it in, run the program, answer calls; never returns."""
    nothing = os.open(os.devnull, os.O_RDWR)
    if start["calls"]:
        handles = (nothing, nothing, nothing, stdin, stdout)
    else:
        handles = (stdin, stdout, nothing)
    high = [os.dup2(handle, 32 + i) for i, handle in enumerate(handles)]
    for i, handle in enumerate(high):
        os.dup2(handle, i)
    os.closerange(len(handles), 4096)
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    barriers = confine_program(memory_limit, start["processor_limit"], library)
    sources, calls = start["sources"], start["calls"]
    if "landlock" not in barriers:
        _import_what_is_named(sources)
    if "seccomp" not in barriers or not ("landlock" in barriers or stop_opening()):
        os._exit(_UNCONFINED)
    start.clear()
    name = "solution" if calls else "__main__"
    module = types.ModuleType(name)
    sys.modules[name] = module
    sys.modules["__main__"] = module
    with contextlib.suppress(ImportError):
        import random

        random.seed(0)
    code = 0
    try:
        for source in sources:
            exec(compile(source, "<program>", "exec"), module.__dict__)
        if calls:
            _answer(module)
    except SystemExit as exit_:
        code = _BROKEN if calls else _exit_code(exit_)
    except MemoryError:
        code = _NO_MEMORY
    except BaseException:
        code = _BROKEN
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


def _import_what_is_named(sources: list[str]) -> None:
    """Import the modules that a program will import, while they can still be opened."""
    for source in sources:
        with contextlib.suppress(SyntaxError, ValueError, RecursionError):
            for node in ast.walk(ast.parse(source)):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
                for name in names:
                    with contextlib.suppress(BaseException):  # the program then meets the error itself
                        importlib.import_module(name)


def _exit_code(exit_: SystemExit) -> int:
    return 0 if exit_.code in (None, 0, False) else _BROKEN


def _answer(module: types.ModuleType) -> None:
    """Answer the worker's questions about what the program has defined, until it stops this process."""
    objects: list[Any] = []

    def kept(value: Any) -> list[Any]:
        if hasattr(type(value), "__next__"):
            items = []
            for item in value:
                items.append(encode(item, kept))
                if len(items) > _MAX_ELEMENTS:
                    raise ValueError("too many elements")
            return ["i", items]
        if isinstance(value, dict_views):
            return ["l", [encode(item, kept) for item in value]]
        objects.append(value)
        return ["o", len(objects) - 1]

    dict_views = (type({}.keys()), type({}.values()), type({}.items()))
    with open(3, "rb", closefd=False) as questions, open(4, "wb", closefd=False) as answers:
        answers.write(b'["ready"]\n')
        answers.flush()
        for line in questions:
            try:
                answer = _answer_one(json.loads(line), module, objects, kept)
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
        if what not in module.__dict__:
            return ["absent"]
        value = module.__dict__[what]
        if isinstance(value, types.ModuleType):
            return ["module"] if value.__name__ == what else ["absent"]
        return ["value", encode(value, kept), []]
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
