"""The caller's side of the grading processes: work is handed out, and workers that die are replaced."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from quagmire_utils.grading.sandbox import bubblewrap
from quagmire_utils.grading.verdicts import Found, Grade, Job, Verdict, printable
from quagmire_utils.grading.worker import SERVE

SUBJECTS = ("math", "programs", "other")  # each has processes of its own; "programs" in a sandbox
_MAX_CHUNK = 64  # responses that a worker is handed at a time
_MAX_CHUNK_TEXT = 2**22  # characters of these together, beyond the first
_LANES = 3  # how many slow responses may share a worker's CPU
_MAX_MESSAGE = 2**19  # bytes of a worker's message; 500 characters of extracted answer take 6,000 at most
_GRACE = 30.0  # seconds beyond a time limit after which silent workers (stopped by someone, say) are replaced
_STARTUP = 120.0  # seconds that the processes may take to start

Outcome = Grade | Found | None  # None: it used up the limit of processor time


class Pool:
    """A server process and its workers, for one subject (of `SUBJECTS`)."""

    def __init__(self, subject: str, workers: int, memory_limit: int) -> None:
        self.subject, self.workers, self.memory_limit = subject, workers, memory_limit
        self.process: subprocess.Popen[bytes] | None = None
        self._connections: list[Connection] = []
        self._owner = 0  # id of the process that started the pool
        self._proven = False  # the pool has answered
        self._chunks = 0  # handed out so far

    def start(self) -> None:
        """Start the server unless it runs; it forks each worker when there is work for one."""
        if self.process is not None and self._owner == os.getpid() and self.process.poll() is None:
            return
        self.close()
        pipes = [Pipe() for _ in range(self.workers * _LANES)]
        theirs = [there.fileno() for _, there in pipes]
        # The caller's path goes along: a notebook may have found this package or math-verify only by editing its own.
        path = [str(Path(__file__).resolve().parents[2]), *(entry for entry in sys.path if entry)]
        arguments = [json.dumps(path), json.dumps(theirs), str(self.memory_limit), self.subject]
        sandbox = bubblewrap() if self.subject == "programs" else []
        self.process = subprocess.Popen(
            [*sandbox, sys.executable, "-P", "-c", SERVE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=theirs,
            start_new_session=True,  # so that Ctrl-C reaches the caller alone, and close() the whole group
            env=os.environ | {"PYTHONHASHSEED": "0"},  # sympy's choices can follow the order of its sets
        )
        for _, there in pipes:
            there.close()
        self._connections, self._owner = [here for here, _ in pipes], os.getpid()

    def close(self) -> None:
        """End the processes at once. The next use starts new ones."""
        for connection in self._connections:
            connection.close()
        if self.process is not None and self._owner == os.getpid():  # a forked copy of the caller leaves them alone
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process, self._connections, self._proven = None, [], False

    def confinement(self) -> tuple[str, ...]:
        """Return the barriers around each worker (see `sandbox`)."""
        self.start()
        connection = self._connections[0]
        try:
            self._send(connection, 0.0, [])
            if not connection.poll(_STARTUP):
                raise EOFError
            _, kind, news = json.loads(connection.recv_bytes(_MAX_MESSAGE))
        except (OSError, EOFError) as error:
            self.close()
            raise RuntimeError(f"the grading processes ended before they answered: {sys.executable}") from error
        if kind != "confined":
            self.close()
            raise RuntimeError(f"the grading processes could not start: {news}")
        self._proven = True
        return tuple(news)

    def settle(
        self, jobs: Collection[Job], timeout: float, processor_limit: float | None, done: Callable[[], Any]
    ) -> dict[Job, Grade | Found]:
        """Return each job's outcome. A slow job is stopped after a short turn, and runs again after the others."""
        limit = min(timeout, processor_limit or timeout)
        turn = min(max(limit / 10, 0.25), 1.0)
        if turn >= limit / 2:
            turn = limit
        outcomes = self._run(jobs, turn, self.workers, done)
        if turn < limit:
            slow = [job for job, outcome in outcomes.items() if outcome is None]
            outcomes |= self._run(slow, limit, self.workers * _LANES, done)
        return {job: _killed(job, Verdict.TIMEOUT) if outcome is None else outcome for job, outcome in outcomes.items()}

    def _run(
        self, jobs: Collection[Job], processor_limit: float, lanes: int, done: Callable[[], Any]
    ) -> dict[Job, Outcome]:
        """Return each job's outcome, whatever becomes of workers."""
        outcomes: dict[Job, Outcome] = {}
        queue = deque(jobs)
        patience = max((job.limit for job in queue), default=0.0) + _GRACE
        busy: dict[Connection, deque[Job]] = {}  # what each worker has yet to answer
        chunks: dict[Connection, tuple[int, int]] = {}  # number and size of the chunk that it is at
        excused: set[Connection] = set()

        def settle(connection: Connection, outcome: Outcome, at: int = 0) -> None:
            job = busy[connection][at]
            del busy[connection][at]
            outcomes[job] = outcome
            if outcome is not None:
                done()

        try:
            while queue or busy:
                self.start()
                lost = []
                for connection in self._connections[:lanes]:
                    if queue and connection not in busy:
                        busy[connection] = _next_chunk(queue, max(1, min(_MAX_CHUNK, len(queue) // (4 * lanes))))
                        try:
                            number = self._send(connection, processor_limit, busy[connection])
                            chunks[connection] = number, len(busy[connection])
                        except (OSError, EOFError):
                            lost.append(connection)
                ready = [] if lost else wait(list(busy), patience if self._proven else _STARTUP)
                for connection in ready:
                    number, size = chunks[connection]
                    try:
                        of, kind, *news = json.loads(connection.recv_bytes(_MAX_MESSAGE))
                        answers = (
                            [self._understood(answer) for answer in news[0]] if (of, kind) == (number, "graded") else []
                        )
                        exit_code, begun, finished = map(int, news) if kind == "died" else (0, 0, 0)
                        known = kind in ("graded", "died") or (kind == "failed" and not self._proven)
                        if not known or len(answers) > len(busy[connection]):
                            raise ValueError("not a message of the pool")
                    except Exception as error:  # the end of the pipe, half a message, or not one of ours
                        self._proven |= not isinstance(error, EOFError | ConnectionError)
                        lost.append(connection)
                        continue
                    if kind == "failed":
                        raise RuntimeError(f"the grading processes could not start: {news}")
                    self._proven = True
                    for answer in answers:
                        settle(connection, answer)
                    if kind == "died":  # what is sent next finds a successor
                        if begun != number and connection not in excused:
                            excused.add(connection)  # before it took the chunk, so of none of its jobs; but once only
                        else:  # of a job, after some whose outcome it had not sent
                            at = finished - (size - len(busy[connection]))
                            at = at if 0 <= at < len(busy[connection]) else 0
                            verdict = Verdict.TIMEOUT if exit_code == -signal.SIGALRM else Verdict.ERROR
                            used_up = exit_code == -signal.SIGPROF
                            settle(connection, None if used_up else _killed(busy[connection][at], verdict), at)
                        queue.extendleft(reversed(busy[connection]))
                        busy[connection].clear()
                    if not busy[connection]:
                        del busy[connection]
                if lost or not ready:  # the pool is gone, or all are silent: a new one continues without the culprits
                    if not self._proven:
                        raise RuntimeError(f"the grading processes ended before they answered: {sys.executable}")
                    for connection in lost or list(busy):
                        settle(connection, Grade(Verdict.ERROR, ""))
                    for unanswered in busy.values():
                        queue.extendleft(reversed(unanswered))
                    busy.clear()
                    self.close()
        except BaseException:  # answers are still on their way, and must not reach the next call
            self.close()
            raise
        return outcomes

    def _send(self, connection: Connection, processor_limit: float, jobs: Collection[Job]) -> int:
        """Hand jobs to an idle worker; return the number that its answers to them bear."""
        while connection.poll():  # its death while idle (someone killed it), or answers that came too late
            news = connection.recv_bytes(_MAX_MESSAGE)
            if not self._proven:
                raise RuntimeError(f"the grading processes could not start: {json.loads(news)[2]}")
        self._chunks += 1
        connection.send((self._chunks, processor_limit, [tuple(job) for job in jobs]))
        return self._chunks

    def _understood(self, answer: Any) -> Outcome:
        """Return an outcome as a worker sends it. Raises for anything that workers of this subject never send."""
        if answer is None and self.subject == "programs":
            return None
        if len(answer) == 3:
            start, end, seconds = answer
            if (type(start), type(end), type(seconds)) != (int, int, float):
                raise TypeError("not where an answer is")
            return Found(start, end, seconds)
        verdict, extracted = answer
        return Grade(Verdict(verdict), printable(extracted))


def _next_chunk(queue: deque[Job], size: int) -> deque[Job]:
    chunk = deque([queue.popleft()])
    text = len(chunk[0].text)
    while queue and len(chunk) < size and (text := text + len(queue[0].text)) <= _MAX_CHUNK_TEXT:
        chunk.append(queue.popleft())
    return chunk


def _killed(job: Job, verdict: Verdict) -> Grade:
    """Return the grade of a response whose worker died of it."""
    return Grade(verdict, printable(job.text.strip()) if job.is_answer else "")
