"""What the tests of grading share."""

import platform
import sys
import time
from pathlib import Path

import pytest

from quagmire_utils.grading import Verdict

CORRECT, WRONG, NO_ANSWER, TIMEOUT, ERROR = Verdict
TOWER = "\\boxed{9^{9^{9^9}}}"  # math-verify would compute it until it is killed

on_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="needs Linux's seccomp and /proc"
)


def verdicts(grades):
    return [grade.verdict for grade in grades]


def gone(pid):
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition, what="waited in vain", seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
