"""Running programs that a model wrote, and talking to them, without believing them. Linux; used by `code`.

Three processes. The worker holds the tests and the expected values, and judges. Before it is confined it forks a host
that never sees those: the host starts each program in a fork of itself, passes bytes on between program and worker,
and stops the program when its processor time or output is used up, or when the worker is gone (which is how the limit
of wall time ends it). The program's process is shut in by `program_sandbox` before it runs: no network, no
other process, no file but Python's library, nothing written, limits of memory and processor time.

Worker and host exchange frames, so that what a program says is always known to be the program's. Within them,
worker and program exchange lines of JSON, one question and one answer at a time.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quagmire_utils.grading.hosting import host
from quagmire_utils.grading.verdicts import Verdict
from quagmire_utils.grading.wire import END, INPUT, START, STOP, decode, encode, receive, send


class CannotCrossError(Exception):
    """A test hands the program something that is no plain data."""


class _EndedError(Exception):
    """The program is gone, or talks nonsense."""


@dataclass(frozen=True)
class End:
    """How a program ended, as the verdict that this alone would give; None: its processor time was used up."""

    verdict: Verdict | None


_KINDS = {
    "cpu": None,
    "output": Verdict.WRONG,
    "raised": Verdict.WRONG,
    "memory": Verdict.ERROR,
    "crash": Verdict.ERROR,
    "exit": Verdict.CORRECT,
}


class Programs:
    """The worker's end of a host of programs. To be made before the worker is confined.

    `shared`: memory that the worker shares with others, which host and programs let go of.
    """

    def __init__(self, memory_limit: int, shared: mmap.mmap) -> None:
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        self.processor_limit = 0.0  # seconds left to the programs of the job at hand
        if os.fork():
            os.close(requests)
            os.close(replies)
            return
        try:
            os.close(self._requests)
            os.close(self._replies)
            shared.close()
            host(requests, replies, memory_limit)
        finally:
            os._exit(0)

    def run(self, sources: Sequence[str], text: str) -> tuple[End, str]:
        """Run a program on its standard input; how it ended, and its standard output."""
        self._begin(sources, calls=False, text=text)
        output = []
        while True:
            kind, payload = receive(self._replies)
            if kind == END:
                return self._ended(payload), b"".join(output).decode("utf-8", "replace")
            output.append(payload)

    @contextlib.contextmanager
    def start(self, sources: Sequence[str]) -> Iterator[Running]:
        """Run a program, and keep it for calls of what it defines."""
        self._begin(sources, calls=True)
        running = Running(self)
        try:
            running._expect("ready")
            yield running
        finally:
            if running.ended is None:
                send(self._requests, STOP, b"")
                while receive(self._replies)[0] != END:
                    pass

    def _begin(self, sources: Sequence[str], *, calls: bool, text: str = "") -> None:
        start = {
            "sources": list(sources),
            "calls": calls,
            "text": text,
            "processor_limit": self.processor_limit,
        }
        send(self._requests, START, json.dumps(start).encode())

    def _ended(self, payload: bytes) -> End:
        kind, seconds = json.loads(payload)
        self.processor_limit = max(self.processor_limit - seconds, 0.01)
        if kind == "unconfined":
            raise RuntimeError("this system cannot confine a program, so none is run")
        return End(_KINDS[kind])


class Running:
    """A program that has run and waits for calls. `ended`: how, once it is gone; nothing can be asked of it then."""

    def __init__(self, programs: Programs) -> None:
        self.ended: End | None = None
        self._programs = programs
        self._pending = b""

    def find(self, name: str) -> tuple[Any] | None:
        """What the program calls `name`, in a tuple of one; None if nothing."""
        return None if self.ended is not None else self._ask(["find", name], ())

    def _object(self, handle: int) -> Remote:
        return Remote(self, int(handle))

    def _ask(self, question: list[Any], arguments: Sequence[Any]) -> Any:
        if self.ended is not None:
            raise _EndedError
        send(self._programs._requests, INPUT, json.dumps(question).encode() + b"\n")
        answer = self._expect("absent", "module", "value", "raised")
        if answer is None:
            raise _EndedError
        try:
            if answer[0] == "absent":
                return None
            if answer[0] == "module":  # one of Python's own, imported here: the program's copy may be tampered with
                name = question[1]
                return (importlib.import_module(name),) if name in sys.stdlib_module_names else None
            if answer[0] == "raised":
                error = _exception(answer[1], str(answer[2]))
            else:
                for ours, theirs in zip(arguments, answer[2], strict=True):
                    _change(ours, decode(theirs, self._object))
                return (decode(answer[1], self._object),)
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError, ArithmeticError):
            self._stop(Verdict.WRONG)  # not the language of programs: one that forges its answers
            raise _EndedError from None
        if isinstance(error, MemoryError):
            self._stop(Verdict.ERROR)
            raise _EndedError
        raise error

    def _expect(self, *kinds: str) -> list[Any] | None:
        while b"\n" not in self._pending:
            kind, payload = receive(self._programs._replies)
            if kind == END:
                end = self._programs._ended(payload)  # also one that ends well has left the call unanswered
                self.ended = End(Verdict.WRONG) if end.verdict == Verdict.CORRECT else end
                return None
            self._pending += payload
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, list) or not answer or answer[0] not in kinds:
            self._stop(Verdict.WRONG)
            return None
        return answer

    def _stop(self, verdict: Verdict) -> None:
        send(self._programs._requests, STOP, b"")
        while True:
            kind, payload = receive(self._programs._replies)
            if kind == END:
                self._programs._ended(payload)
                self.ended = End(verdict)
                return


class Remote:
    """Something in the program's process that is no plain data, seen from a test. Equal to itself alone."""

    def __init__(self, running: Running, handle: int) -> None:
        self.__dict__["_remote"] = running, handle

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        running, handle = self.__dict__["_remote"]
        sent = [encode(argument, _refuse_object) for argument in args]
        named = {name: encode(argument, _refuse_object) for name, argument in kwargs.items()}
        return running._ask(["call", handle, sent, named], args)[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        running, handle = self.__dict__["_remote"]
        found = running._ask(["attribute", handle, name], ())
        if found is None:
            raise AttributeError(name)
        return found[0]

    def __setattr__(self, name: str, value: Any) -> None:
        running, handle = self.__dict__["_remote"]
        running._ask(["set", handle, name, encode(value, _refuse_object)], ())


def _exception(name: str, text: str) -> Exception:
    """Python's exception of that name, or the nearest that is made of a text alone; what is none is an Exception."""
    kind = getattr(builtins, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        kind = Exception
    if issubclass(kind, StopIteration | StopAsyncIteration):  # would end a loop of the test, and with it the test
        return RuntimeError(f"{name}: {text}")
    for base in kind.__mro__:
        with contextlib.suppress(TypeError):
            return base(text)
    return Exception(text)


def _refuse_object(value: Any) -> Any:
    if isinstance(value, Remote):
        return ["o", value.__dict__["_remote"][1]]
    raise CannotCrossError(type(value).__name__)


def _change(ours: Any, theirs: Any) -> None:
    """Do to a test's argument what the program did to its copy."""
    if type(ours) is list and type(theirs) is list:
        ours[:] = theirs
    elif type(ours) in (dict, set) and type(ours) is type(theirs):
        ours.clear()
        ours.update(theirs)
