"""The caller's side of grading: a pool of killable processes, and the work that is handed to it."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quagmire_utils.config import ParameterError
from quagmire_utils.grading.judge import _SERVE
from quagmire_utils.grading.verdicts import Grade, Verdict, _decide, _Job, _Pair, _printable

if TYPE_CHECKING:
    from quagmire_utils.benchmarks import Problem


_MAX_WORKERS = 32  # by default
_MAX_CHUNK = 64  # responses that a worker is handed at a time
_MIN_MEMORY = 512 * 2**20
_GRACE = 30.0  # seconds beyond a time limit after which silent workers (stopped by someone, say) are given up
_STARTUP = 120.0  # seconds that the processes may take to start


class Grader:
    """A pool of grading processes, for callers that grade batch after batch. Close it, or use it in a `with`.

    `workers`: processes, by default one for each CPU open to this process, at most 32; they start with the first
    response that needs one. `timeout`: seconds for one response, from when a worker begins with it. `memory_limit`:
    bytes of address space of each worker; a response that needs more is an ERROR. Threads may share a Grader: their
    calls wait for each other, and waiting counts towards no time limit.

    Raises ParameterError for fewer workers than 1, a timeout that is not positive, or a memory_limit under 512 MiB,
    which math-verify alone may need.
    """

    def __init__(self, workers: int | None = None, *, timeout: float = 5.0, memory_limit: int = 2 * 2**30) -> None:
        self.workers = _count_workers(workers)
        self.timeout = _checked_timeout(timeout)
        if memory_limit < _MIN_MEMORY:
            raise ParameterError(f"memory_limit must be at least {_MIN_MEMORY} bytes (512 MiB), not {memory_limit}")
        self.memory_limit = memory_limit
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connections: list[Connection] = []
        self._owner = 0  # id of the process that started the pool
        self._proven = False  # the pool has answered

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def grade(
        self,
        responses: Sequence[str],
        golds: Sequence[str | Problem],
        *,
        timeout: float | None = None,
        progress: bool = True,
    ) -> list[Grade]:
        """Grade `responses` (n texts) against `golds` (n answers in LaTeX, or Problems); n grades, in order.

        `timeout`: for this call, instead of the Grader's. `progress`: a bar on stderr once the call has lasted ten
        seconds. A Problem's `tolerance` also admits a number that differs from the gold by no more.

        A gold is read as `\\boxed{gold}`, whole. An empty one is a ParameterError. One that math-verify cannot read
        comes to light only in a worker, where one bad row must not cost a run its other thousands: an answer spelt the
        same is CORRECT, any other is an ERROR, as nothing compared them. (Plain math-verify would settle for some
        number within that gold, and so accept 2 for `\\hbar\\omega(v+1 / 2)-...`.)

        Raises ParameterError for bad parameters, RuntimeError if the processes cannot be started.
        """
        timeout = self.timeout if timeout is None else _checked_timeout(timeout)
        pairs = _checked_pairs(responses, golds)
        decided = {pair: _decide(pair, timeout) for pair in dict.fromkeys(pairs)}
        jobs = {job for job in decided.values() if isinstance(job, _Job)}
        if not jobs:
            return [decided[pair] for pair in pairs]
        from tqdm import tqdm

        with (
            self._lock,
            tqdm(total=len(jobs), desc="grading", unit="answer", delay=10, leave=False, disable=not progress) as bar,
        ):
            outcomes = self._run(jobs, bar.update)
            for pair, job in decided.items():  # a box that is not LaTeX: the whole text, in what is left of its limit
                if isinstance(job, _Job) and isinstance(outcomes[job], float):
                    decided[pair] = _Job(*pair, False, timeout - outcomes[job])
            rest = {job for job in decided.values() if isinstance(job, _Job)} - jobs
            bar.total += len(rest)
            outcomes |= self._run(rest, bar.update)
        return [outcomes[what] if isinstance(what := decided[pair], _Job) else what for pair in pairs]

    def close(self) -> None:
        """End the processes at once. A later `grade` starts new ones."""
        for connection in self._connections:
            connection.close()
        if self._process is not None and self._owner == os.getpid():  # a forked copy of the caller leaves them alone
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process, self._connections, self._proven = None, [], False

    def _start(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            return
        self.close()
        pipes = [Pipe() for _ in range(self.workers)]
        theirs = [there.fileno() for _, there in pipes]
        # The caller's path goes along: a notebook may have found this package or math-verify only by editing its own.
        path = [str(Path(__file__).resolve().parents[2]), *(entry for entry in sys.path if entry)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, json.dumps(path), json.dumps(theirs), str(self.memory_limit)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=theirs,
            start_new_session=True,  # so that Ctrl-C reaches the caller alone, and close() the whole group
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy's choices can follow the order of its sets
        )
        for _, there in pipes:
            there.close()
        self._connections, self._owner = [here for here, _ in pipes], os.getpid()

    def _run(self, jobs: Iterable[_Job], done: Callable[[], Any]) -> dict[_Job, Grade | float]:
        """Each job's grade, or the seconds it took to see that its box is not LaTeX. Killed workers are made up for."""
        outcomes: dict[_Job, Grade | float] = {}
        queue = deque(jobs)
        patience = max((job.limit for job in queue), default=0.0) + _GRACE
        busy: dict[Connection, deque[_Job]] = {}  # what each worker has yet to answer; it is at the leftmost

        def settle(connection: Connection, outcome: Grade | float) -> None:
            outcomes[busy[connection].popleft()] = outcome
            done()

        try:
            while queue or busy:
                self._start()
                lost = []
                for connection in self._connections:
                    if queue and connection not in busy:
                        size = max(1, min(_MAX_CHUNK, len(queue) // (4 * self.workers)))
                        busy[connection] = deque(queue.popleft() for _ in range(size))
                        try:
                            connection.send([tuple(job) for job in busy[connection]])
                        except OSError:
                            lost.append(connection)
                ready = [] if lost else wait(list(busy), patience if self._proven else _STARTUP)
                for connection in ready:
                    try:
                        kind, *news = connection.recv()
                    except Exception:  # the end of the pipe, or half a message
                        lost.append(connection)
                        continue
                    if kind == "failed":
                        raise RuntimeError(f"the grading processes could not start: {news[0]}")
                    self._proven = True
                    if kind == "graded":
                        settle(connection, Grade(Verdict(news[0]), news[1]))
                    elif kind == "not LaTeX":
                        settle(connection, news[0])
                    else:  # the worker died, of the job it was at; its successor is listening
                        job = busy[connection][0]
                        verdict = Verdict.TIMEOUT if news[0] == -signal.SIGALRM else Verdict.ERROR
                        settle(connection, Grade(verdict, _printable(job.text.strip()) if job.is_box else ""))
                        queue.extendleft(reversed(busy.pop(connection)))
                    if connection in busy and not busy[connection]:
                        del busy[connection]
                if (
                    lost or not ready
                ):  # the pool is gone, or all of it is silent: a new one goes on without the culprits
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


def grade(
    responses: Sequence[str], golds: Sequence[str | Problem], *, timeout: float = 5.0, workers: int | None = None
) -> list[Grade]:
    """Grade `responses` (n texts) against `golds` (n answers in LaTeX, or Problems); see `Grader.grade`.

    The pool is kept for later calls with as many workers and ends with this process.
    """
    workers = _count_workers(workers)
    with _shared_lock:
        grader = _shared.setdefault(workers, Grader(workers))
    return grader.grade(responses, golds, timeout=timeout)


_shared: dict[int, Grader] = {}
_shared_lock = threading.Lock()
os.register_at_fork(after_in_child=_shared.clear)  # a forked copy of the caller makes pools of its own


@atexit.register
def _close_shared() -> None:
    for grader in _shared.values():
        grader.close()


def _count_workers(workers: int | None) -> int:
    if workers is None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cpus, _MAX_WORKERS)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ParameterError(f"workers must be a whole number of at least 1, or None, not {workers!r}")
    return workers


def _checked_timeout(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 86400:
        raise ParameterError(f"timeout must be a positive number of seconds, at most a day, not {timeout!r}")
    return float(timeout)


def _checked_pairs(responses: Iterable[str], golds: Iterable[str | Problem]) -> list[_Pair]:
    if isinstance(responses, str) or isinstance(golds, str):
        raise ParameterError("responses and golds must be two sequences of texts, not one text")
    responses, golds = list(responses), list(golds)
    if len(responses) != len(golds):
        raise ParameterError(f"responses and golds must be equally many, not {len(responses)} and {len(golds)}")
    pairs = []
    for i, (response, gold) in enumerate(zip(responses, golds, strict=True)):
        answer = gold if isinstance(gold, str) else getattr(gold, "answer", None)
        if not isinstance(response, str):
            raise ParameterError(f"responses[{i}] must be a text, not {type(response).__name__}")
        if not isinstance(answer, str) or not answer.strip():
            raise ParameterError(f"golds[{i}] has no answer ({answer!r}), so no response could be equal to it")
        pairs.append(_Pair(answer.strip(), getattr(gold, "tolerance", None), response))
    return pairs


# ------------------------------------------------------------------------------------------ the grading processes
