"""Run programs that a model wrote, and call what they define, without trusting them. Linux, within bubblewrap.

The worker holds the tests and the expected values, and judges. Before it is confined it forks a host (`program_host`)
that never sees those and forks a process for each program. Only arguments and results cross, as plain data.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import mmap
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from quagmire_utils.grading.program_host import MAX_OUTPUT, NO_MEMORY, decode, encode, host
from quagmire_utils.grading.verdicts import Verdict


class CannotCrossError(Exception):
    """A test hands the program something that is not plain data."""


class HostLostError(BaseException):
    """The host has ended, so its worker must end. Not an Exception, because tests may catch those."""


class _EndedError(Exception):
    """The program has ended, or does not answer as it should."""


class Programs:
    """The worker's end of a host of programs. Make it before the worker is confined.

    shared: memory that the worker shares with its server, which host and programs must not have.
    """

    def __init__(self, memory_limit: int, shared: mmap.mmap) -> None:
        (requests, ours_out), (ours_in, ends) = os.pipe(), os.pipe()
        (questions, self._questions), (self._answers, answers) = os.pipe(), os.pipe()
        theirs = requests, ends, questions, answers
        if not os.fork():
            try:
                shared.close()
                for handle in set(range(3, 4096)) - set(theirs):
                    with contextlib.suppress(OSError):
                        os.close(handle)
                host(*theirs, memory_limit)
            finally:
                os._exit(0)
        for handle in theirs:
            os.close(handle)
        for handle in (self._questions, self._answers):
            os.set_blocking(handle, False)
        self._requests, self._ends = open(ours_out, "w"), open(ours_in)  # noqa: SIM115
        self._number = 0
        self.processor_limit = 0.0  # seconds left to the programs of the job at hand

    def run(self, sources: Sequence[str], stdin: str) -> tuple[Verdict | None, str]:
        """Run a program on its standard input; return the verdict on its end (see `_end`) and its standard output."""
        self._begin(sources, stdin)
        return self._end()

    @contextlib.contextmanager
    def start(self, sources: Sequence[str]) -> Iterator[Running]:
        """Run a program, and keep it for calls of what it defines."""
        self._begin(sources, None)
        running = Running(self)
        try:
            running._receive("ready")
            yield running
        finally:
            running._stop(Verdict.WRONG)

    def _begin(self, sources: Sequence[str], stdin: str | None) -> None:
        self._number += 1
        with contextlib.suppress(BlockingIOError):
            while os.read(self._answers, 2**16):  # what an earlier program wrote last
                pass
        self._send({"number": self._number, "sources": sources, "stdin": stdin, "limit": self.processor_limit})

    def _send(self, message: Any) -> None:
        try:
            print(json.dumps(message), file=self._requests, flush=True)
        except BrokenPipeError as error:
            raise HostLostError from error

    def _end(self) -> tuple[Verdict | None, str]:
        """Wait for the program's end; return its verdict (None: it used up the processor time) and standard output."""
        line = self._ends.readline()
        if not line:
            raise HostLostError
        code, seconds, output = json.loads(line)
        self.processor_limit = max(self.processor_limit - seconds, 0.01)
        if code in (-signal.SIGPROF, -signal.SIGXCPU):
            return None, output
        if code == 0:
            return Verdict.CORRECT, output
        return Verdict.ERROR if code < 0 or code == NO_MEMORY else Verdict.WRONG, output


class Running:
    """A program that has run and waits for calls.

    ended: it answers no more calls. verdict: the one that its end gives (None: it used up the processor time).
    """

    def __init__(self, programs: Programs) -> None:
        self.ended = False
        self.verdict: Verdict | None = None
        self._programs = programs
        self._pending = bytearray()
        self._received = 0

    def find(self, name: str) -> tuple[Any] | None:
        """Return what the program calls `name`, in a tuple of one; None if nothing, or if it has ended."""
        return None if self.ended else self._ask(["find", name])

    def _object(self, handle: int) -> Remote:
        return Remote(self, int(handle))

    def _ask(self, question: list[Any], arguments: Sequence[Any] = ()) -> tuple[Any] | None:
        if self.ended:
            raise _EndedError
        programs = self._programs
        # It begins a line of its own: an earlier program may have left half a question in the pipe.
        data = memoryview(b"\n" + json.dumps([programs._number, *question]).encode() + b"\n")
        while data and not self.ended:
            if programs._questions in self._wait(programs._questions, select.POLLOUT):
                data = data[os.write(programs._questions, data) :]
            else:
                self._finish()
        answer = self._receive("absent", "module", "value", "raised")
        if answer is None:
            raise _EndedError
        try:
            if answer[0] == "absent":
                return None
            if answer[0] == "module":  # one of Python's own, imported here: the program's copy may be tampered with
                name = question[1]
                return (importlib.import_module(name),) if name in sys.stdlib_module_names else None
            if answer[0] == "value":
                for ours, theirs in zip(arguments, answer[2], strict=True):
                    _change(ours, decode(theirs, self._object))
                return (decode(answer[1], self._object),)
            error = _exception(answer[1], str(answer[2]))
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError, ArithmeticError):
            self._stop(Verdict.WRONG)  # the program forges its answers
            raise _EndedError from None
        if isinstance(error, MemoryError):
            self._stop(Verdict.ERROR)
            raise _EndedError
        raise error

    def _receive(self, *kinds: str) -> list[Any] | None:
        """Return the program's next answer, None once it has ended."""
        answers = self._programs._answers
        while b"\n" not in self._pending and not self.ended:
            if answers not in self._wait(answers, select.POLLIN):
                self._finish()
                break
            piece = os.read(answers, 2**16)
            self._pending += piece
            self._received += len(piece)
            if not piece or self._received > MAX_OUTPUT:
                self._stop(Verdict.WRONG)
        if self.ended:
            return None
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
        """End the program if it has not ended, with that verdict."""
        if not self.ended:
            self._programs._send("stop")
            self._programs._end()
            self.ended, self.verdict = True, verdict

    def _finish(self) -> None:
        """Note the end of a program that left a question unanswered, however well it ended."""
        verdict, _ = self._programs._end()
        self.ended, self.verdict = True, Verdict.WRONG if verdict == Verdict.CORRECT else verdict

    def _wait(self, handle: int, event: int) -> dict[int, int]:
        """Wait until a pipe is ready or the program has ended; return the events by handle."""
        poll = select.poll()
        poll.register(handle, event)
        poll.register(self._programs._ends.fileno(), select.POLLIN)
        return dict(poll.poll())


class Remote:
    """Something in the program's process that is not plain data, as a test sees it. Equal to itself alone."""

    def __init__(self, running: Running, handle: int) -> None:
        self.__dict__["_remote"] = running, handle

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in the program's process."""
        running, handle = self.__dict__["_remote"]
        named = {name: encode(argument, _reference) for name, argument in kwargs.items()}
        return running._ask(["call", handle, [encode(argument, _reference) for argument in args], named], args)[0]

    def __getattr__(self, name: str) -> Any:
        running, handle = self.__dict__["_remote"]
        found = None if name.startswith("__") else running._ask(["attribute", handle, name])
        if found is None:
            raise AttributeError(name)
        return found[0]

    def __setattr__(self, name: str, value: Any) -> None:
        running, handle = self.__dict__["_remote"]
        running._ask(["set", handle, name, encode(value, _reference)])


def _reference(value: Any) -> Any:
    if isinstance(value, Remote):
        return ["o", value.__dict__["_remote"][1]]
    raise CannotCrossError(type(value).__name__)


def _exception(name: str, text: str) -> Exception:
    """Return Python's exception of that name, or the closest that can be built from one string, else an Exception."""
    kind = getattr(builtins, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        kind = Exception
    if issubclass(kind, StopIteration | StopAsyncIteration):  # would end a loop of the test, and with it the test
        return RuntimeError(f"{name}: {text}")
    for base in kind.__mro__:
        with contextlib.suppress(TypeError):
            return base(text)
    return Exception(text)


def _change(ours: Any, theirs: Any) -> None:
    """Do to a test's argument what the program did to its copy."""
    if type(ours) is list and type(theirs) is list:
        ours[:] = theirs
    elif type(ours) in (dict, set) and type(ours) is type(theirs):
        ours.clear()
        ours.update(theirs)
