"""Grading: does a response end in the gold answer? One grader for benchmark scores, curation and RL rewards.

Implements the paper's grading (Sec. 4, App. B): math-verify decides, gold first. It runs in worker processes that are
killed on their time limit, so that no response, however hostile, hangs or crashes the caller; undecided is not wrong.

    from quagmire_utils.grading import Grader, grade
    grades = grade([r"so it is \\boxed{\\frac{1}{2}}", "no idea"], ["0.5", "7"])     # CORRECT, NO_ANSWER
    with Grader(workers=4, timeout=2.0) as grader:                                   # a pool of one's own
        grades = grader.grade(responses, problems)                                   # golds: strings or Problems

Speed (`python tests/speed/bench_grading.py`) comes from three steps, none of which changes a verdict; the tests hold
each against plain math-verify. Equal (gold, response) pairs are graded once. A response of which math-verify would read
the only box and nothing else (`_only_box` has the argument) is graded by the content of that box, once for all that
share it. If that content and the gold are both integers, they are compared here, without any worker.

Processes: a Grader starts one fresh Python, by a plain subprocess: nothing is forked off a caller that may hold
threads, torch or CUDA, and the caller's `__main__` is not imported. That Python imports math-verify once, forks the
workers, and forks another whenever one dies. A worker's clock is a kernel timer that it starts as it begins a response
and whose signal nothing catches: when it runs out, the kernel ends the worker, whatever it is doing. POSIX only.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, wraps
from itertools import product
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, NamedTuple

from quagmire_utils.config import ParameterError

if TYPE_CHECKING:
    from quagmire_utils.benchmarks import Problem

_MAX_EXTRACTED = 500  # characters kept of an extracted answer
_MAX_BOX = 1000  # characters within which a box is followed to its end
_MAX_WORKERS = 32  # by default
_MAX_CHUNK = 64  # responses that a worker is handed at a time
_MIN_MEMORY = 512 * 2**20
_GRACE = 30.0  # seconds beyond a time limit after which silent workers (stopped by someone, say) are given up
_STARTUP = 120.0  # seconds that the processes may take to start


class Verdict(StrEnum):
    """What came of grading one response. Only CORRECT and WRONG are decisions about its answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # math-verify finds nothing to read in the response
    TIMEOUT = "timeout"  # the response used up its time limit
    ERROR = "error"  # comparing raised, ran out of memory or crashed its worker, or the gold cannot be read


@dataclass(frozen=True)
class Grade:
    """A verdict and the answer it is about, as math-verify extracts it: at most 500 characters, valid UTF-8, no NUL.

    `extracted` is empty for NO_ANSWER, and for a TIMEOUT or ERROR whose worker died before it could tell.
    """

    verdict: Verdict
    extracted: str


class _Pair(NamedTuple):
    gold: str
    tolerance: float | None
    response: str


class _Job(NamedTuple):
    gold: str
    tolerance: float | None
    text: str
    is_box: bool  # text is the content of a response's only box, not the response
    limit: float  # seconds


# ------------------------------------------------------------------------------------- what needs no math-verify

_BRACE = re.compile(r"[{}]")
_CLOSER = re.compile(r"\$|\]|\\\)")
_PERCENT = re.compile(r"%|[Pp]ercent|[Pp]ct")
_FINAL_ANSWER = re.compile(r"final answer", re.IGNORECASE)
_IS = re.compile(r"\sis", re.IGNORECASE)
_READABLE = re.compile(r"[$\\\[\d]")
_INTEGER = re.compile(r"-?[0-9]{1,15}")
_UNSAFE = re.compile("[\x00\ud800-\udfff]")


def _only_box(text: str) -> str | None:
    """The content C of a text's only box if math-verify reads C and nothing else of the text; None if that is unsure.

    Why it is sure. math-verify tries its patterns by priority. The first two priorities hold the patterns for "final
    answer is ...", excluded here (they need `final answer` and later white space with `is`), and those for boxes. The
    latter need `\\boxed{`, which occurs once, so each match holds this box; and all of C, since no LaTeX environment
    can end within it: that takes a `$`, `]` or `\\)`. One of them, `\\boxed{.+}`, always matches. What is parsed of a
    match is the content of the boxes in it, so C, and a percent sign behind the environment, excluded here, is the one
    thing that could change its value. So all matches give the same, and unless C is not LaTeX, no lower priority is
    looked at. (If it is not, the worker says so and the whole text is graded.) All tests are linear in the text.
    """
    start = text.find("\\boxed{")
    if start < 0 or text.count("\\boxed") > 1 or "\\fbox" in text:
        return None
    start, depth, end = start + len("\\boxed{"), 1, -1
    for brace in _BRACE.finditer(text, start, start + _MAX_BOX):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            end = brace.start()
            break
    if end <= start or _CLOSER.search(text, start, end) or _PERCENT.search(text, end):
        return None
    # Lower-casing is the faster test; beyond ASCII a few more letters pass for one of these when case is ignored.
    if not text.isascii() or "final answer" in text.lower():
        final = _FINAL_ANSWER.search(text)
        if final and _IS.search(text, final.end()):
            return None
    return text[start:end]


def _decide(pair: _Pair, timeout: float) -> Grade | _Job:
    """The grade, where it is certain without math-verify; otherwise the job for a worker."""
    box = _only_box(pair.response)
    if box is None:
        if not _READABLE.search(pair.response):  # each of math-verify's patterns needs a digit, `$`, `[` or backslash
            return Grade(Verdict.NO_ANSWER, "")
        return _Job(*pair, False, timeout)
    answer = box.strip()
    if pair.tolerance is None and _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(pair.gold):
        return Grade(Verdict.CORRECT if int(answer) == int(pair.gold) else Verdict.WRONG, answer)
    return _Job(pair.gold, pair.tolerance, box, True, timeout)


def _printable(text: str) -> str:
    return _UNSAFE.sub("\ufffd", text[:_MAX_EXTRACTED])


# ------------------------------------------------------------------------------------------------------ the caller


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
        path = [os.path.dirname(os.path.dirname(os.path.abspath(__file__))), *(entry for entry in sys.path if entry)]
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

_SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from quagmire_utils.grading import _serve; _serve(json.loads(sys.argv[2]), int(sys.argv[3]))"
)
_BOX = re.compile(r"(?P<first_latexBoxed>\\boxed{.+})", re.DOTALL)  # the group's name tells math-verify what it is


class _OutOfMemoryError(BaseException):
    """Not an Exception: math-verify and sympy pass over those in silence."""


def _serve(handles: list[int], memory_limit: int) -> None:
    """Import math-verify, fork a worker for each connection, and another for each worker that dies."""
    connections = [Connection(handle) for handle in handles]
    try:
        _prepare()
    except Exception as error:
        connections[0].send(("failed", f"{type(error).__name__}: {error}"))
        return
    workers: dict[int, Connection] = {}

    def start(connection: Connection) -> None:
        pid = os.fork()
        if pid:
            workers[pid] = connection
            return
        exit_code = 1
        try:
            for other in connections:
                if other is not connection:
                    other.close()
            _work(connection, memory_limit)
            exit_code = 0
        finally:
            os._exit(exit_code)

    for connection in connections:
        start(connection)
    while workers:
        pid, status = os.wait()
        connection, exit_code = workers.pop(pid), os.waitstatus_to_exitcode(status)
        if exit_code != 0:
            with contextlib.suppress(OSError):  # otherwise the caller is gone
                connection.send(("died", exit_code))
                start(connection)


def _prepare() -> None:
    """Import, let memory errors through, and pay here for what math-verify does once."""
    import math_verify.grader
    import math_verify.parser

    def letting_through(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except MemoryError as error:
                raise _OutOfMemoryError from error

        return wrapped

    for module, names in (
        (math_verify.parser, ("latex2sympy", "parse_expr")),
        (math_verify.grader, ("safe_sympy_doit", "simplify", "solve")),
    ):
        for name in names:
            setattr(module, name, letting_through(getattr(module, name)))
    _judge("\\frac{x}{2}", None, "0.25 x", True)
    _judge("2", None, "so it is $1 + 1$", False)


def _work(connection: Connection, memory_limit: int) -> None:
    """Answer chunks of jobs until the caller is gone; die on the first that exceeds its time or memory."""
    import resource

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    for limit, value in ((resource.RLIMIT_AS, memory_limit), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit on the address space
            resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    while True:
        try:
            jobs = connection.recv()
        except EOFError:
            return
        for *job, limit in jobs:
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(limit, 0.001))
            try:
                outcome = _judge(*job)
            except MemoryError:
                raise
            except Exception:
                outcome = Grade(Verdict.ERROR, "")
            signal.setitimer(signal.ITIMER_REAL, 0)
            if outcome is None:
                connection.send(("not LaTeX", time.monotonic() - began))
            else:
                connection.send(("graded", outcome.verdict.value, outcome.extracted))


def _judge(gold_text: str, tolerance: float | None, text: str, is_box: bool) -> Grade | None:
    """math-verify's grade for one response, or None for a box that is not LaTeX (see _Job)."""
    from math_verify import parse

    answer = _read_box(text) if is_box else parse(text, parsing_timeout=None, raise_on_error=True)
    if is_box and len(answer) == 1:
        return None
    if not answer:
        return Grade(Verdict.NO_ANSWER, "")
    gold = _read_gold(gold_text)
    verdict = _compare(gold, answer)
    if verdict != Verdict.CORRECT and tolerance is not None and _within(gold[0], answer[0], tolerance):
        verdict = Verdict.CORRECT
    if verdict == Verdict.WRONG and len(gold) == 1:
        verdict = Verdict.ERROR
    return Grade(verdict, _printable(next((part for part in answer if isinstance(part, str)), "")))


def _read_box(content: str) -> list[Any]:
    """What math-verify's pattern for boxes makes of `\\boxed{content}`: [expression, text], or [text] if not LaTeX."""
    from math_verify.parser import LatexExtractionConfig, extract_latex

    expression, text = extract_latex(_BOX.fullmatch(f"\\boxed{{{content}}}"), LatexExtractionConfig())
    return [text] if expression is None else [expression, text]


_read_gold = lru_cache(maxsize=4096)(_read_box)


def _compare(gold: list[Any], answer: list[Any]) -> Verdict:
    """As `verify(gold, answer)`, true if any pair is equal; but a pair that raises is an error, not a difference."""
    from math_verify import verify

    verdict = Verdict.WRONG
    for pair in product(gold, answer):
        try:
            if verify(*pair, timeout_seconds=None, raise_on_error=True):
                return Verdict.CORRECT
        except MemoryError:
            raise
        except Exception:
            verdict = Verdict.ERROR
    return verdict


def _within(gold: Any, answer: Any, tolerance: float) -> bool:
    """Whether two numbers (also `x = 4.2`, also `4.2 %` beside `4.2`) differ by at most `tolerance`."""
    from math_verify.grader import get_pct_val, unwrap_eq

    try:
        gold, answer = (float(get_pct_val(unwrap_eq(side), unwrap_eq(side))) for side in (gold, answer))
    except (TypeError, ValueError, AttributeError, OverflowError):
        return False  # not both are numbers
    return abs(gold - answer) <= tolerance * (1 + 1e-9)  # 4.1 is within 0.1 of 4.2, also in binary
