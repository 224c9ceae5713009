"""The grading processes: a server that imports once and forks workers, which grade under limits of the kernel."""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import select
import signal
import struct
import time
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from quagmire_utils.grading import code, mathematics, parity
from quagmire_utils.grading.registry import find_grader
from quagmire_utils.grading.sandbox import confine, limit_size
from quagmire_utils.grading.verdicts import MATH, Found, Grade, Job, Verdict, printable

SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from quagmire_utils.grading.worker import serve; serve(json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4])"
)
_TELL_EVERY = 0.05  # seconds
_COUNT = struct.Struct("=QI")  # number of the chunk that a worker is at, how many of its jobs are done


def serve(handles: list[int], memory_limit: int, subject: str) -> None:
    """Import what the subject (of `pool.SUBJECTS`) needs; fork a worker for each connection when it has work."""
    connections = {handle: Connection(handle) for handle in handles}
    finished = {handle: mmap.mmap(-1, mmap.PAGESIZE) for handle in handles}  # shared with the worker
    gc.disable()  # a quarter of the time of the imports, which allocate much and free little
    if subject == "math":
        parity.prepare()
        mathematics.judge("\\frac{x}{2}", None, "0.25 x", True)
    else:
        code.prepare()
    gc.freeze()  # what is imported stays, and the workers share its memory
    gc.enable()
    _tell(connections[handles[0]], None, "ready")
    waker, alarm = os.pipe()  # a worker's end wakes the poll below
    os.set_blocking(alarm, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    poll = select.poll()
    for handle in (*handles, waker):
        poll.register(handle, select.POLLIN)
    workers: dict[int, int] = {}

    def start(handle: int) -> None:
        poll.unregister(handle)
        pid = os.fork()
        if pid:
            workers[pid] = handle
            return
        exit_code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for other, connection in connections.items():
                if other != handle:
                    connection.close()
                    finished[other].close()
            os.close(waker)
            os.close(alarm)
            _work(connections[handle], finished[handle], memory_limit, subject)
            exit_code = 0
        finally:
            os._exit(exit_code)

    while connections:
        for handle, event in poll.poll():
            if handle == waker:
                os.read(waker, 4096)
            elif event & select.POLLHUP:  # the caller is gone
                poll.unregister(handle)
                connections.pop(handle).close()
            else:
                start(handle)
        while workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            handle, exit_code = workers.pop(pid), os.waitstatus_to_exitcode(status)
            if subject == "programs":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            if exit_code == 0:  # the worker found that the caller is gone
                connections.pop(handle).close()
                continue
            with contextlib.suppress(OSError):
                _tell(connections[handle], None, "died", exit_code, *_COUNT.unpack_from(finished[handle]))
            _COUNT.pack_into(finished[handle], 0, 0, 0)
            poll.register(handle, select.POLLIN)


def _tell(connection: Connection, chunk: int | None, kind: str, *news: Any) -> None:
    """Send news of a chunk in JSON, not pickle: the caller reads nothing but lists, texts and numbers from a worker."""
    connection.send_bytes(json.dumps([chunk, kind, *news]).encode())


def _work(connection: Connection, finished: mmap.mmap, memory_limit: int, subject: str) -> None:
    """Answer chunks of jobs until the caller is gone; die on the first that exceeds its time or memory.

    Nothing catches the signals of the timers, so the kernel ends the worker whatever it is doing. Answers are sent a
    few at a time, because sending costs more than most take to find. `finished` has the number of jobs done, so that
    the right one is blamed for a death.
    """
    for expiry in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(expiry, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {expiry})
    runner = None
    if subject == "programs":  # programs are confined, and a confined process could not start them
        finished.madvise(mmap.MADV_DONTFORK)
        os.setpgid(0, 0)  # so that the server ends the program too
        runner = code.Programs(memory_limit)
        limit_size(memory_limit)
    else:
        confine(memory_limit)
    judge = _judge_math if subject == "math" else partial(_judge_other, runner)
    while True:
        try:
            chunk, processor_limit, jobs = connection.recv()
        except EOFError:
            return
        told, outcomes = time.monotonic(), []
        for done, job in enumerate(map(Job._make, jobs)):
            _COUNT.pack_into(finished, 0, chunk, done)
            began = time.monotonic()
            if outcomes and began - told > _TELL_EVERY:
                _tell(connection, chunk, "graded", outcomes)
                told, outcomes = began, []
            signal.setitimer(signal.ITIMER_REAL, max(job.limit, 0.001))
            signal.setitimer(signal.ITIMER_PROF, processor_limit)
            if runner is not None:
                runner.processor_limit = processor_limit
            try:
                outcome = judge(job)
            except MemoryError:
                raise
            except Exception:
                outcome = Grade(Verdict.ERROR, "")
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if isinstance(outcome, Grade):
                outcomes.append([outcome.verdict.value, outcome.extracted])
            else:
                outcomes.append(outcome and Found(*outcome, time.monotonic() - began))
        if outcomes:
            _tell(connection, chunk, "graded", outcomes)


def _judge_math(job: Job) -> Grade | tuple[int, int]:
    """Return the grade; (0, 0) for a box that math-verify cannot read."""
    if job.grader == MATH:
        return mathematics.judge(job.gold, job.tolerance, job.text, job.is_answer)
    return parity.judge(job.gold, job.tolerance, job.text, job.is_answer) or (0, 0)


def _judge_other(runner: code.Programs | None, job: Job) -> Grade | tuple[int, int] | None:
    """Return where the answer is in a response, or the grade of an answer; None: its programs used up the limit."""
    grader = find_grader(job.grader)
    if not job.is_answer:
        return grader.extract(job.text) or Grade(Verdict.NO_ANSWER, "")
    try:
        grader.check(job.gold)
    except ValueError:
        return Grade(Verdict.ERROR, printable(grader.show(job.text)))
    extras = () if runner is None else (runner,)
    verdict = grader.judge(job.text, job.gold, job.tolerance, *extras)
    return None if verdict is None else Grade(Verdict(verdict), printable(grader.show(job.text)))
