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
from collections.abc import Callable, Collection, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.grading.arguments import _checked_pairs, _checked_seconds, _count_workers
from quagmire_utils.grading.graders import MATH, find_grader
from quagmire_utils.grading.judge import _SERVE
from quagmire_utils.grading.verdicts import Grade, Verdict, _decide, _DomainJob, _Job, _Pair, _printable

if TYPE_CHECKING:
    from quagmire_utils.data import Problem


_MAX_CHUNK = 64  # responses that a worker is handed at a time
_MAX_CHUNK_TEXT = 2**22  # characters of these together, beyond the first
_LANES = 3  # how many slow responses may share a worker's CPU
_MIN_MEMORY = 512 * 2**20
_MAX_MESSAGE = 2**19  # bytes of what a worker says; 500 characters of extracted answer take 6,000 at most
_GRACE = 30.0  # seconds beyond a time limit after which silent workers (stopped by someone, say) are given up
_STARTUP = 120.0  # seconds that the processes may take to start
_PASSED = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "LC_", "TZ", "TMPDIR")  # environment of other subjects

_AnyJob = _Job | _DomainJob
_Outcome = Grade | float | tuple[int, int] | None  # tuple: where the answer stands in a response; the others: `_run`


class Grader:
    """A pool of grading processes, for callers that grade batch after batch. Close it, or use it in a `with`.

    `workers`: processes, by default one for each CPU open to this process, at most 32; they start with the first
    response that needs one. `timeout`: seconds for one response, from when a worker begins with it. `processor_limit`:
    seconds of processor time for one response (default: as many as `timeout`); on a crowded machine a long timeout and
    a short processor_limit give verdicts that depend less on the crowd. A response that reaches either is a TIMEOUT.
    `memory_limit`: bytes of address space of each worker; a response that needs more is an ERROR.

    Slow responses don't hold up the others: each is stopped after a short turn (at most a second of processor time)
    and has its full limits once the others are graded, when up to three of them share the CPU of each worker.
    Threads may share a Grader: their calls wait for each other, and waiting counts towards no limit.

    Problems of other domains name their grader (`grading.graders`). Theirs are processes of their own, as many, with
    the same limits, that start with the first such problem; the time and memory limits of `code` are also those of the
    program, all of a response's tests together.

    Raises ParameterError for fewer workers than 1, a limit of time that is not positive, or a memory_limit under 512
    MiB, which math-verify alone may need.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        timeout: float = 5.0,
        processor_limit: float | None = None,
        memory_limit: int = 2**30,
    ) -> None:
        self.workers = _count_workers(workers)
        self.timeout = _checked_seconds("timeout", timeout)
        self.processor_limit = None if processor_limit is None else _checked_seconds("processor_limit", processor_limit)
        if memory_limit < _MIN_MEMORY:
            raise ParameterError(f"memory_limit must be at least {_MIN_MEMORY} bytes (512 MiB), not {memory_limit}")
        self.memory_limit = memory_limit
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connections: list[Connection] = []
        self._owner = 0  # id of the process that started the pool
        self._proven = False  # the pool has answered
        self._chunks = 0  # handed out so far
        self._subject = MATH
        self._others: Grader | None = None  # for all other graders
        self._can_confine: bool | None = None  # programs, which is tried once

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
        grader: str = MATH,
        progress: bool = True,
    ) -> list[Grade]:
        """Grade `responses` (n texts) against `golds` (n answers in LaTeX, or Problems); n grades, in order.

        `grader`: for golds that are texts; Problems bring theirs. `timeout`: for this call, instead of the Grader's.
        `progress`: a bar on stderr once the call has lasted ten seconds. A Problem's `tolerance` also admits a number
        that differs from the gold by no more.

        A gold is read as `\\boxed{gold}`, whole. An empty one is a ParameterError. One that math-verify cannot read
        comes to light only in a worker, where one bad row must not cost a run its other thousands: an answer spelt the
        same is CORRECT, any other is an ERROR, as nothing compared them. (Plain math-verify would settle for some
        number within that gold, and so accept 2 for `\\hbar\\omega(v+1 / 2)-...`.) A gold that another grader cannot
        judge by is an ERROR for every response that has an answer.

        Raises ParameterError for bad parameters, and for programs where the system cannot confine them; RuntimeError if
        the processes cannot be started.
        """
        timeout = self.timeout if timeout is None else _checked_seconds("timeout", timeout)
        pairs = _checked_pairs(responses, golds)
        graders = [getattr(gold, "grader", grader) for gold in golds]
        if graders.count(MATH) < len(graders):
            return self._grade_domains(pairs, graders, timeout, progress)
        decided: dict[_Pair, Grade | _Job] = {}
        starting = False
        for pair in dict.fromkeys(pairs):
            too_long = len(pair.response) > self.memory_limit // 16  # math-verify could not hold it
            decided[pair] = Grade(Verdict.ERROR, "") if too_long else _decide(pair, timeout)
            if not starting and isinstance(decided[pair], _Job):  # the processes import while this goes on
                with self._lock:
                    self._start()
                starting = True
        jobs = {job for job in decided.values() if isinstance(job, _Job)}
        if not jobs:
            return [decided[pair] for pair in pairs]
        from tqdm import tqdm

        with (
            self._lock,
            tqdm(total=len(jobs), desc="grading", unit="answer", delay=10, leave=False, disable=not progress) as bar,
        ):
            outcomes = self._settle(jobs, timeout, bar.update)
            for pair, job in decided.items():  # a box that is not LaTeX: the whole text, in what is left of its limit
                if isinstance(job, _Job) and isinstance(outcomes[job], float):
                    decided[pair] = _Job(*pair, False, timeout - outcomes[job])
            rest = {job for job in decided.values() if isinstance(job, _Job)} - jobs
            bar.total += len(rest)
            outcomes |= self._settle(rest, timeout, bar.update)
        return [outcomes[what] if isinstance(what := decided[pair], _Job) else what for pair in pairs]

    def _grade_domains(
        self, pairs: Sequence[_Pair], graders: Sequence[str], timeout: float, progress: bool
    ) -> list[Grade]:
        """As `grade`, where not all is mathematics: answers are found, then equal ones to a gold are judged once."""
        from tqdm import tqdm

        grades: list[Grade | None] = [None] * len(pairs)
        for name in dict.fromkeys(graders):
            if name != MATH and find_grader(name).runs_programs:
                self._check_programs()
        maths = [i for i, name in enumerate(graders) if name == MATH]
        if maths:
            golds = [_Gold(pairs[i].gold, pairs[i].tolerance) for i in maths]
            found = self.grade([pairs[i].response for i in maths], golds, timeout=timeout, progress=progress)
            for i, grade_ in zip(maths, found, strict=True):
                grades[i] = grade_
        pool = self._pool_of_others()
        finding: dict[int, _DomainJob] = {}
        for i, (pair, name) in enumerate(zip(pairs, graders, strict=True)):
            if name != MATH and len(pair.response) > self.memory_limit // 16:
                grades[i] = Grade(Verdict.ERROR, "")
            elif name != MATH:
                finding[i] = _DomainJob(None, None, pair.response, name, timeout)
        with (
            pool._lock,
            tqdm(total=len(finding), desc="grading", unit="answer", delay=10, leave=False, disable=not progress) as bar,
        ):
            spans = pool._settle(dict.fromkeys(finding.values()), timeout, lambda: None)
            judging: dict[int, _DomainJob] = {}
            for i, job in finding.items():
                span = spans[job]
                if isinstance(span, Grade):
                    grades[i] = span
                elif isinstance(span, tuple) and 0 <= span[0] < span[1] <= len(job.text):
                    answer = job.text[slice(*span)]
                    judging[i] = _DomainJob(pairs[i].gold, pairs[i].tolerance, answer, job.grader, timeout)
                else:
                    grades[i] = Grade(Verdict.ERROR, "")
            jobs = dict.fromkeys(judging.values())
            bar.total = len(jobs)
            outcomes = pool._settle(jobs, timeout, bar.update)
        for i, job in judging.items():
            outcome = outcomes[job]
            grades[i] = outcome if isinstance(outcome, Grade) else Grade(Verdict.ERROR, "")
        return grades

    def _pool_of_others(self) -> Grader:
        with self._lock:
            if self._others is None:
                self._others = Grader(
                    self.workers,
                    timeout=self.timeout,
                    processor_limit=self.processor_limit,
                    memory_limit=self.memory_limit,
                )
                self._others._subject = "other"
            return self._others

    def _check_programs(self) -> None:
        """Raise ParameterError where a program that a model wrote could not be shut in."""
        if self._can_confine is None:
            self._can_confine = "seccomp" in self._pool_of_others().confinement()
        if not self._can_confine:
            raise ParameterError(
                "grader: code runs programs that a model wrote, and this system has no filter of system calls to "
                "confine them with (seccomp: Linux on x86-64 or aarch64); grade this benchmark there"
            )

    def confinement(self) -> tuple[str, ...]:
        """The barriers around each worker, of `namespace`, `seccomp` and `audit hook` (see `grading.sandbox`)."""
        with self._lock:
            self._start()
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

    def close(self) -> None:
        """End the processes at once. A later `grade` starts new ones."""
        if self._others is not None:
            self._others.close()
        for connection in self._connections:
            connection.close()
        if self._process is not None and self._owner == os.getpid():  # a forked copy of the caller leaves them alone
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process, self._connections, self._proven = None, [], False

    def _start(self) -> None:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return
        self.close()
        pipes = [Pipe() for _ in range(self.workers * _LANES)]  # a process is forked for each that is used
        theirs = [there.fileno() for _, there in pipes]
        # The caller's path goes along: a notebook may have found this package or math-verify only by editing its own.
        path = [str(Path(__file__).resolve().parents[2]), *(entry for entry in sys.path if entry)]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                _SERVE,
                json.dumps(path),
                json.dumps(theirs),
                str(self.memory_limit),
                self._subject,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=theirs,
            start_new_session=True,  # so that Ctrl-C reaches the caller alone, and close() the whole group
            env=_environment(self._subject),
        )
        for _, there in pipes:
            there.close()
        self._connections, self._owner = [here for here, _ in pipes], os.getpid()

    def _send(self, connection: Connection, processor_limit: float, jobs: Collection[_AnyJob]) -> int:
        """Hand jobs to an idle worker; the number that its answers to them bear."""
        while connection.poll():  # its death while idle (someone killed it), or answers that nobody waits for any more
            news = connection.recv_bytes(_MAX_MESSAGE)
            if not self._proven:
                raise RuntimeError(f"the grading processes could not start: {json.loads(news)[2]}")
        self._chunks += 1
        connection.send((self._chunks, processor_limit, [tuple(job) for job in jobs]))
        return self._chunks

    def _settle(self, jobs: Collection[_AnyJob], timeout: float, done: Callable[[], Any]) -> dict[_AnyJob, _Outcome]:
        """Each job's grade, or the seconds it took to see that its box is not LaTeX: a short turn, then the rest."""
        limit = min(timeout, self.processor_limit or timeout)
        turn = min(max(limit / 10, 0.25), 1.0)
        if turn >= limit / 2:
            turn = limit
        outcomes = self._run(jobs, turn, self.workers, done)
        if turn < limit:
            slow = [job for job, outcome in outcomes.items() if outcome is None]
            outcomes |= self._run(slow, limit, self.workers * _LANES, done)
        return {job: _killed(job, Verdict.TIMEOUT) if outcome is None else outcome for job, outcome in outcomes.items()}

    def _run(
        self, jobs: Collection[_AnyJob], processor_limit: float, lanes: int, done: Callable[[], Any]
    ) -> dict[_AnyJob, _Outcome]:
        """Each job's grade, the seconds it took to see that a box is not LaTeX, or None: it used `processor_limit` up.

        Of a job to find an answer: where it stands.

        Killed workers are made up for.
        """
        outcomes: dict[_AnyJob, _Outcome] = {}
        queue = deque(jobs)
        patience = max((job.limit for job in queue), default=0.0) + _GRACE
        busy: dict[Connection, deque[_AnyJob]] = {}  # what each worker has yet to answer
        chunks: dict[Connection, tuple[int, int]] = {}  # number and size of the chunk it is at
        excused: set[Connection] = set()

        def settle(connection: Connection, outcome: _Outcome, at: int = 0) -> None:
            job = busy[connection][at]
            del busy[connection][at]
            outcomes[job] = outcome
            if outcome is not None:
                done()

        try:
            while queue or busy:
                self._start()
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
                    try:
                        number, kind, *news = json.loads(connection.recv_bytes(_MAX_MESSAGE))
                        mine = number == chunks[connection][0]
                        answers = [self._understood(answer) for answer in news[0]] if kind == "graded" and mine else []
                        exit_code, begun, finished = map(int, news) if kind == "died" else (0, 0, 0)
                        known = kind in ("graded", "died") or (kind == "failed" and not self._proven)
                        if not known or len(answers) > len(busy[connection]):
                            raise ValueError("none of the pool's messages")
                    except Exception as error:  # the end of the pipe, half a message, or none of ours
                        self._proven |= not isinstance(error, EOFError | ConnectionError)
                        lost.append(connection)
                        continue
                    if kind == "failed":
                        raise RuntimeError(f"the grading processes could not start: {news}")
                    self._proven = True
                    for answer in answers:
                        settle(connection, answer)
                    if kind == "died" and begun != chunks[connection][0] and connection not in excused:
                        excused.add(connection)  # before it took the chunk, so of none of its jobs; but once only
                        queue.extendleft(reversed(busy.pop(connection)))
                    elif (
                        kind == "died"
                    ):  # of a job, after some that it had not told; what is sent next finds a successor
                        verdict = Verdict.TIMEOUT if exit_code == -signal.SIGALRM else Verdict.ERROR
                        at = finished - (chunks[connection][1] - len(busy[connection]))
                        at = at if 0 <= at < len(busy[connection]) else 0
                        used_up = exit_code == -signal.SIGPROF
                        settle(connection, None if used_up else _killed(busy[connection][at], verdict), at)
                        queue.extendleft(reversed(busy.pop(connection)))
                    if connection in busy and not busy[connection]:
                        del busy[connection]
                if lost or not ready:  # the pool is gone, or all silent: a new one goes on without the culprits
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

    def _understood(self, answer: Any) -> _Outcome:
        """What a worker says, see `_run`. Anything that those of this subject never say raises."""
        if isinstance(answer, float) if self._subject == MATH else answer is None:
            return answer
        verdict, extracted = answer
        if self._subject != MATH and type(verdict) is int and type(extracted) is int:
            return verdict, extracted
        return Grade(Verdict(verdict), _printable(extracted))


class _Gold(NamedTuple):
    answer: str
    tolerance: float | None


def _environment(subject: str) -> dict[str, str]:
    """Programs that a model wrote run beneath processes of other subjects than math: no keys and tokens for these."""
    kept = {name: value for name, value in os.environ.items() if subject == MATH or name.startswith(_PASSED)}
    return kept | {"PYTHONHASHSEED": "0"}  # sympy's choices can follow the order of its sets, and so can programs'


def grade(
    responses: Sequence[str],
    golds: Sequence[str | Problem],
    *,
    timeout: float = 5.0,
    workers: int | None = None,
    grader: str = MATH,
) -> list[Grade]:
    """Grade `responses` (n texts) against `golds` (n answers in LaTeX, or Problems); see `Grader.grade`.

    The pool is kept for later calls with as many workers and ends with this process.
    """
    workers = _count_workers(workers)
    with _shared_lock:
        pool = _shared.setdefault(workers, Grader(workers))
    return pool.grade(responses, golds, timeout=timeout, grader=grader)


_shared: dict[int, Grader] = {}
_shared_lock = threading.Lock()
os.register_at_fork(after_in_child=_shared.clear)  # a forked copy of the caller makes pools of its own


@atexit.register
def _close_shared() -> None:
    for grader in _shared.values():
        grader.close()


def _next_chunk(queue: deque[_AnyJob], size: int) -> deque[_AnyJob]:
    chunk = deque([queue.popleft()])
    text = len(chunk[0].text)
    while queue and len(chunk) < size and (text := text + len(queue[0].text)) <= _MAX_CHUNK_TEXT:
        chunk.append(queue.popleft())
    return chunk


def _killed(job: _AnyJob, verdict: Verdict) -> Grade:
    """The grade of a response whose worker died of it."""
    return Grade(verdict, _printable(job.text.strip()) if job.is_box else "")
