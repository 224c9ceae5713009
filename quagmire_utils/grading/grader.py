"""Grade responses against golds: `grade`, and `Grader` for callers that grade batch after batch."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError, check_whole
from quagmire_utils.core.provenance import usable_cores
from quagmire_utils.grading import mathematics, parity
from quagmire_utils.grading.pool import Pool
from quagmire_utils.grading.registry import check_grader
from quagmire_utils.grading.verdicts import MATH, MATH_VERIFY, Found, Grade, Job, Verdict

if TYPE_CHECKING:
    from tqdm import tqdm

    from quagmire_utils.data import Problem

ANSWERS = ("any", "boxed")
_MAX_WORKERS = 32  # by default
_MIN_MEMORY = 512 * 2**20


class Grader(AbstractContextManager["Grader"]):
    """Pools of grading processes, which start when a response needs one. Close it, or use it in a `with`.

    workers: processes, by default one for each CPU open to this process, at most 32. timeout: seconds for one response,
    from when a worker begins it. processor_limit: seconds of processor time for one response (default: the timeout). A
    response that reaches either is a TIMEOUT; on a busy machine a long timeout with a short processor_limit gives
    verdicts that depend less on the other load. memory_limit: bytes of address space of each worker, at least 512 MiB;
    a response that needs more is an ERROR. For `code`, the limits are those of all tests of a response.

    Slow responses do not delay the others: each is stopped after a short turn (at most a second of processor time) and
    has its full limits once the others are graded, when up to three share the CPU of each worker. Threads may share a
    Grader: their calls wait for each other, which counts towards no limit. Raises ParameterError for bad parameters.
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
            raise ParameterError("memory_limit", memory_limit, f"at least {_MIN_MEMORY} bytes (512 MiB)")
        self.memory_limit = memory_limit
        self.pools: dict[str, Pool] = {}  # by subject
        self._lock = threading.Lock()

    def __exit__(self, *_: object) -> None:
        self.close()

    def grade(
        self,
        responses: Sequence[str],
        golds: Sequence[str | Problem],
        *,
        timeout: float | None = None,
        grader: str = MATH,
        answer: str = "any",
        progress: bool = True,
    ) -> list[Grade]:
        """Grade `responses` (n texts) against `golds` (n answers in LaTeX, or Problems); return n grades, in order.

        grader: for golds that are texts; Problems name theirs. timeout: for this call, instead of the Grader's.
        answer: what counts as one for the grader `math`: `boxed`, a box or a stated final answer; `any`, also the last
        formula or number. progress: show a bar on stderr after ten seconds. A Problem's tolerance also admits a number
        that differs from the gold by no more. Raises ParameterError for bad parameters, an empty gold, and a grader
        that this machine cannot run; RuntimeError if the processes cannot be started.
        """
        timeout = self.timeout if timeout is None else _checked_seconds("timeout", timeout)
        if answer not in ANSWERS:
            raise ParameterError("answer", answer, f"one of {', '.join(ANSWERS)}")
        asked = _jobs(responses, golds, grader, timeout)
        for name in {one.grader for one in asked}:
            check_grader(name)
        state: dict[Job, Grade | Job] = {}  # by what was asked
        for one in dict.fromkeys(asked):
            if len(one.text) > self.memory_limit // 16:
                state[one] = Grade(Verdict.ERROR, "")  # no worker could hold it
            elif one.grader == MATH:
                state[one] = mathematics.decide(one, answer == "boxed")
            elif one.grader == MATH_VERIFY:
                state[one] = parity.decide(one)
            else:
                state[one] = one._replace(gold=None, tolerance=None)
            if not self.pools and isinstance(state[one], Job):  # the processes import meanwhile
                with self._lock:
                    self._pool(one.grader).start()
        jobs = {job for job in state.values() if isinstance(job, Job)}
        if jobs:
            from tqdm import tqdm

            settings = {"desc": "grading", "unit": "answer", "delay": 10, "leave": False, "disable": not progress}
            with self._lock, tqdm(total=len(jobs), **settings) as bar:
                self._settle(state, timeout, bar)
        return [state[one] for one in asked]

    def _settle(self, state: dict[Job, Grade | Job], timeout: float, bar: tqdm) -> None:
        """Replace each job by its grade. An answer that was only found needs a second job, to judge it."""
        while waiting := {asked: job for asked, job in state.items() if isinstance(job, Job)}:
            outcomes: dict[Job, Grade | Found] = {}
            by_pool: dict[Pool, dict[Job, None]] = {}
            for job in waiting.values():
                by_pool.setdefault(self._pool(job.grader), {})[job] = None
            for pool, jobs in by_pool.items():
                outcomes |= pool.settle(jobs, timeout, self.processor_limit, bar.update)
            for asked, job in waiting.items():
                outcome = outcomes[job]
                state[asked] = outcome if isinstance(outcome, Grade) else _judging(asked, job, outcome)
            bar.total += len({state[asked] for asked in waiting if isinstance(state[asked], Job)})

    def _pool(self, grader: str) -> Pool:
        subject = {MATH: "math", MATH_VERIFY: "math", "code": "programs"}.get(grader, "other")
        if subject not in self.pools:
            self.pools[subject] = Pool(subject, self.workers, self.memory_limit)
        return self.pools[subject]

    def close(self) -> None:
        """End the processes at once. A later `grade` starts new ones."""
        for pool in self.pools.values():
            pool.close()


def grade(
    responses: Sequence[str],
    golds: Sequence[str | Problem],
    *,
    timeout: float = 5.0,
    workers: int | None = None,
    grader: str = MATH,
    answer: str = "any",
) -> list[Grade]:
    """Grade `responses` (n texts) against `golds` (n answers in LaTeX, or Problems); see `Grader.grade`.

    The processes are kept for later calls with as many workers, and end with this process.
    """
    shared = _shared(_count_workers(workers))
    return shared.grade(responses, golds, timeout=timeout, grader=grader, answer=answer)


@cache
def _shared(workers: int) -> Grader:
    made = Grader(workers)
    atexit.register(made.close)
    return made


os.register_at_fork(after_in_child=_shared.cache_clear)  # a forked copy of the caller makes its own


def _judging(asked: Job, job: Job, found: Found) -> Grade | Job:
    """Return the job that judges what was found; for math-verify: that reads the whole response in the time left."""
    if job.grader == MATH_VERIFY:
        return asked._replace(limit=asked.limit - found.seconds)
    if not 0 <= found.start < found.end <= len(job.text):
        return Grade(Verdict.ERROR, "")
    return asked._replace(text=job.text[found.start : found.end], is_answer=True)


def _count_workers(workers: int | None) -> int:
    if workers is None:
        return min(usable_cores(), _MAX_WORKERS)
    check_whole("workers", workers, 1)
    return workers


def _checked_seconds(name: str, seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 86400:
        raise ParameterError(name, seconds, "a positive number of seconds, at most a day")
    return float(seconds)


def _jobs(responses: Iterable[str], golds: Iterable[str | Problem], grader: str, limit: float) -> list[Job]:
    """Return what is asked: a job for each response as a whole. Raises ParameterError."""
    for name, texts in (("responses", responses), ("golds", golds)):
        if isinstance(texts, str):
            raise ParameterError(name, texts[:40], "a sequence of texts")
    responses, golds = list(responses), list(golds)
    if len(responses) != len(golds):
        raise ParameterError("golds", len(golds), f"as many as the responses ({len(responses)})")
    jobs = []
    for i, (response, gold) in enumerate(zip(responses, golds, strict=True)):
        text = gold if isinstance(gold, str) else getattr(gold, "answer", None)
        if not isinstance(response, str):
            raise ParameterError(f"responses[{i}]", response, "a text")
        if not isinstance(text, str) or not text.strip():
            raise ParameterError(f"golds[{i}]", text, "a text or a Problem with an answer")
        tolerance = getattr(gold, "tolerance", None)
        jobs.append(Job(getattr(gold, "grader", grader), text.strip(), tolerance, response, False, limit))
    return jobs
