"""The caller's side of the grading processes: work is handed out, and workers that die are replaced.

The processes start by a plain subprocess: nothing is forked off a caller that may hold threads, torch or CUDA, and the
caller's `__main__` is not imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from quagmire_utils.grading.sandbox import bubblewrap
from quagmire_utils.grading.verdicts import Found, Grade, Job, Verdict, printable
from quagmire_utils.grading.worker import SERVE

_MAX_CHUNK = 64  # responses that a worker is handed at a time
_MAX_CHUNK_TEXT = 2**22  # characters of these together, beyond the first
_LANES = 3  # how many slow responses may share a worker's CPU
_MAX_MESSAGE = 2**19  # bytes of a worker's message; 500 characters of extracted answer take 6,000 at most
_GRACE = 30.0  # seconds beyond a time limit after which silent workers (stopped by someone, say) are replaced
_STARTUP = 900.0  # seconds that living processes may take to start on a busy machine

Outcome = Grade | Found | None  # None: it used up the limit of processor time
_Done = Callable[[], Any]  # called for each job that has its outcome


@dataclass
class _Chunk:
    """Jobs that a worker was handed."""

    number: int
    size: int
    jobs: deque[Job]  # those without an outcome


class GradingError(RuntimeError):
    """The grading processes did not start."""


class Pool:
    """A server process and its workers for one subject: "math", "programs" (in bubblewrap) or "other"."""

    def __init__(self, subject: str, workers: int, memory_limit: int) -> None:
        self.subject, self.workers, self.memory_limit = subject, workers, memory_limit
        self.process: subprocess.Popen[bytes] | None = None
        self._connections: list[Connection] = []
        self._owner = 0  # id of the process that started the pool
        self._ready = False
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
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [*sandbox, sys.executable, "-P", "-c", SERVE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
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
        if self.process is not None:
            self._stderr.close()
            if self._owner == os.getpid():  # a forked copy of the caller leaves them alone
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.process, self._connections, self._ready = None, [], False

    def _wait_until_ready(self) -> None:
        """Start the server unless it runs, and wait for its imports. Raises GradingError if they fail."""
        self.start()
        if self._ready:
            return
        try:
            if self._connections[0].poll(_STARTUP):
                self._connections[0].recv_bytes(_MAX_MESSAGE)
                self._ready = True
                return
            said = f"not ready after {_STARTUP / 60:g} minutes"
        except (OSError, EOFError):  # they died
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace").strip().split("\n")[-1]
            said = said or f"exit status {self.process.poll()}"  # negative: killed by that signal
        self.close()
        raise GradingError(f"the grading processes did not start ({sys.executable}): {said}")

    def settle(
        self, jobs: Collection[Job], timeout: float, processor_limit: float | None, done: _Done
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
        return {job: outcome or _killed(job, Verdict.TIMEOUT) for job, outcome in outcomes.items()}

    def _run(self, jobs: Collection[Job], processor_limit: float, lanes: int, done: _Done) -> dict[Job, Outcome]:
        """Return each job's outcome, even if workers die."""
        outcomes: dict[Job, Outcome] = {}
        queue = deque(jobs)
        patience = max((job.limit for job in queue), default=0.0) + _GRACE
        busy: dict[Connection, _Chunk] = {}
        excused: set[Connection] = set()

        def settle(chunk: _Chunk, outcome: Outcome, at: int = 0) -> None:
            outcomes[chunk.jobs[at]] = outcome
            del chunk.jobs[at]
            if outcome is not None:
                done()

        def take_back(connection: Connection) -> None:
            queue.extendleft(reversed(busy.pop(connection).jobs))

        try:
            while queue or busy:
                self._wait_until_ready()
                lost = []
                for connection in self._connections[:lanes]:
                    if queue and connection not in busy:
                        some = _next_jobs(queue, max(1, min(_MAX_CHUNK, len(queue) // (4 * lanes))))
                        self._chunks += 1
                        busy[connection] = _Chunk(self._chunks, len(some), some)
                        try:
                            while connection.poll():  # discard late answers and news of a death while idle
                                connection.recv_bytes(_MAX_MESSAGE)
                            connection.send((self._chunks, processor_limit, [tuple(job) for job in some]))
                        except (OSError, EOFError):
                            lost.append(connection)
                ready = [] if lost else wait(list(busy), patience)
                for connection in ready:
                    chunk = busy[connection]
                    try:
                        number, kind, *news = json.loads(connection.recv_bytes(_MAX_MESSAGE))
                        mine = (number, kind) == (chunk.number, "graded")
                        answers = [self._understood(answer) for answer in news[0]] if mine else []
                        exit_code, begun, finished = map(int, news) if kind == "died" else (0, 0, 0)
                        if kind not in ("graded", "died") or len(answers) > len(chunk.jobs):
                            raise ValueError("not a message of the pool")
                    except Exception:  # a closed pipe, half a message, or a forged one
                        lost.append(connection)
                        continue
                    for answer in answers:
                        settle(chunk, answer)
                    if kind == "died":  # the server forks a new worker for the next chunk
                        if begun != chunk.number and connection not in excused:
                            excused.add(connection)  # died before it took the chunk: no job is to blame, once
                        else:  # killed by a job; outcomes of jobs before that one may be unsent
                            at = finished - (chunk.size - len(chunk.jobs))
                            at = at if 0 <= at < len(chunk.jobs) else 0
                            verdict = Verdict.TIMEOUT if exit_code == -signal.SIGALRM else Verdict.ERROR
                            used_up = exit_code == -signal.SIGPROF
                            settle(chunk, None if used_up else _killed(chunk.jobs[at], verdict), at)
                        take_back(connection)
                    elif not chunk.jobs:
                        del busy[connection]
                if lost or not ready:  # the server is gone, or no worker answers: start anew without these jobs
                    for connection in lost or list(busy):
                        settle(busy[connection], Grade(Verdict.ERROR, ""))
                    for connection in list(busy):
                        take_back(connection)
                    self.close()
        except BaseException:  # answers are still on their way, and must not reach the next call
            self.close()
            raise
        return outcomes

    def _understood(self, answer: Any) -> Outcome:
        """Read an outcome that a worker sent. Raises for anything that workers of this subject never send."""
        if answer is None and self.subject == "programs":
            return None
        if len(answer) == 3:
            start, end, seconds = answer
            return Found(int(start), int(end), float(seconds))
        verdict, extracted = answer
        return Grade(Verdict(verdict), printable(extracted))


def _next_jobs(queue: deque[Job], size: int) -> deque[Job]:
    jobs = deque([queue.popleft()])
    text = len(jobs[0].text)
    while queue and len(jobs) < size and (text := text + len(queue[0].text)) <= _MAX_CHUNK_TEXT:
        jobs.append(queue.popleft())
    return jobs


def _killed(job: Job, verdict: Verdict) -> Grade:
    """Return the grade of a response that killed its worker."""
    return Grade(verdict, printable(job.text.strip()) if job.is_answer else "")
