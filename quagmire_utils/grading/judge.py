"""The grading processes: math-verify, with a time limit that the kernel enforces and a limit of memory."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from functools import lru_cache, wraps
from itertools import product
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from quagmire_utils.grading.verdicts import Grade, Verdict, _printable

if TYPE_CHECKING:
    pass


_SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from quagmire_utils.grading.judge import _serve; _serve(json.loads(sys.argv[2]), int(sys.argv[3]))"
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
