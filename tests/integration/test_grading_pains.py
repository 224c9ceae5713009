"""What users of other graders complain of, and the confinement of the workers.

Most tests put a stand-in for math-verify into real workers, which sleeps, spins, crashes or attacks on command."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from verdicts import CORRECT, ERROR, TIMEOUT, WRONG, gone, on_linux, verdicts, wait_until

from quagmire_utils.core.paths import ROOT
from quagmire_utils.grading import Grade, Grader
from quagmire_utils.grading.pool import Pool

STAND_IN = r"""
import ctypes, gc, os, socket, subprocess, sys, time
from multiprocessing.connection import Connection
LIBC = ctypes.CDLL(None, use_errno=True)
for name in ("socket", "open", "fork", "execv", "kill", "unlink", "rename"):
    getattr(LIBC, name)  # looked up now: later, the audit hook would refuse already that

def attempt(action):
    try:
        return str(action())
    except BaseException as error:
        return type(error).__name__

def attack(port, folder):
    path = folder + "/made"
    return " ".join([
        "python", attempt(lambda: socket.create_connection(("127.0.0.1", port), timeout=2)),
        attempt(lambda: subprocess.run(["touch", path])), attempt(lambda: os.system("touch " + path)),
        attempt(lambda: open(path, "w")), attempt(os.fork), attempt(lambda: os.kill(os.getppid(), 0)),
        "native", *(str(value) for value in (
            LIBC.socket(socket.AF_INET, socket.SOCK_STREAM, 0), LIBC.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0),
            LIBC.open(path.encode(), os.O_WRONLY | os.O_CREAT, 0o600), LIBC.fork(),
            LIBC.execv(b"/bin/true", None), LIBC.kill(os.getppid(), 0), LIBC.unlink((folder + "/kept").encode()),
            LIBC.rename((folder + "/kept").encode(), path.encode()))),
        "reads", attempt(lambda: open(folder + "/kept").read())])

def parse(text, **_):
    command, _, argument = text.removeprefix("1 ").partition(" ")
    if command == "sleep":
        time.sleep(float(argument))
    elif command == "spin":
        end = time.process_time() + float(argument)
        while time.process_time() < end:
            pass
    elif command == "raise":
        raise ZeroDivisionError(argument)
    elif command == "crash":
        ctypes.string_at(0)
    elif command == "memory":
        return [str(len(bytearray(int(argument))))]
    elif command == "attack":
        port, folder = argument.split()
        return [attack(int(port), folder)]
    elif command == "speak":
        (line,) = [item for item in gc.get_objects() if isinstance(item, Connection) and not item.closed]
        line.send_bytes(bytes.fromhex(argument))
    return [command]

def verify(gold, answer, **_):
    return True
"""
PARSER = """
latex2sympy = parse_expr = LatexExtractionConfig = lambda *_: None
def extract_latex(match, config):
    return 1, match[0]
"""
GRADER = "safe_sympy_doit = simplify = solve = None"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Make new Graders use the stand-in."""
    package = tmp_path / "library" / "math_verify"
    package.mkdir(parents=True)
    for name, code in (("__init__", STAND_IN), ("parser", PARSER), ("grader", GRADER)):
        (package / f"{name}.py").write_text(code)
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])


def graded(grader, *texts, **how):
    return grader.grade(texts, ["g"] * len(texts), grader="math_verify", **how)


def children(grader):
    parent = grader.pools["math"].process.pid
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.usefixtures("stand_in")
def test_waiting_in_the_queue_counts_towards_no_time_limit():
    with Grader(1, timeout=3) as grader:
        start, found = time.monotonic(), graded(grader, *(f"1 sleep 0.4{i}" for i in range(8)))
        assert time.monotonic() - start > 3
    assert verdicts(found) == [CORRECT] * 8


@on_linux
@pytest.mark.usefixtures("stand_in")
def test_a_hung_worker_is_killed_and_another_takes_its_place():
    with Grader(1, timeout=1) as grader:
        graded(grader, "1 fine")
        (before,) = children(grader)
        assert verdicts(graded(grader, "1 sleep 600", "1 spin 600", "1 fine")) == [TIMEOUT, TIMEOUT, CORRECT]
        assert gone(before)
        left = children(grader)
    wait_until(lambda: all(map(gone, left)), "workers outlive their Grader")


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("end", "verdict"), [("raise x", ERROR), ("crash", ERROR), ("sleep 600", TIMEOUT), ("spin 600", TIMEOUT)]
)
def test_the_end_of_a_worker_is_put_down_to_the_response_that_caused_it(end, verdict):
    # Outcomes are sent in batches: those that a dead worker had found, but not sent, are neither lost nor blamed.
    texts = [f"1 fine {i}" for i in range(40)]
    texts[9], texts[10], texts[30] = f"1 {end}", f"1 {end} ", f"1 {end}  "
    with Grader(1, timeout=0.5) as grader:
        found = graded(grader, *texts)
    assert verdicts(found) == [verdict if i in (9, 10, 30) else CORRECT for i in range(40)]


def test_equal_answers_are_graded_once_and_never_across_golds(monkeypatch, grader):
    sent, run = [], Pool._run
    monkeypatch.setattr(Pool, "_run", lambda self, jobs, *rest: (sent.extend(jobs), run(self, jobs, *rest))[1])
    texts = [f"Attempt {i}: it is \\boxed{{x + {i % 2 + 2}}}." for i in range(64)]
    found = grader.grade(texts * 2, ["2+x"] * 64 + ["3+x"] * 64)
    assert verdicts(found) == [CORRECT, WRONG] * 32 + [WRONG, CORRECT] * 32
    assert sorted((job.gold, job.text) for job in sent) == [(g, t) for g in ("2+x", "3+x") for t in ("x + 2", "x + 3")]


@pytest.mark.usefixtures("stand_in")
def test_a_limit_of_processor_time_spares_those_who_wait():
    with Grader(1, timeout=300, processor_limit=0.5) as grader:
        start = time.monotonic()
        assert verdicts(graded(grader, "1 sleep 1", "1 spin 9999")) == [CORRECT, TIMEOUT]
        assert time.monotonic() - start < 200


@on_linux
@pytest.mark.usefixtures("stand_in")
def test_memory_is_limited():
    with Grader(1, memory_limit=600 * 2**20) as grader:
        found = graded(grader, "1 memory 1000", f"1 memory {2**30}", "1 fine", timeout=60)
    assert found == [Grade(CORRECT, "1000"), Grade(ERROR, ""), Grade(CORRECT, "fine")]


@on_linux
@pytest.mark.usefixtures("stand_in")
def test_a_worker_killed_while_idle_costs_nothing():
    with Grader(1) as grader:
        graded(grader, "1 fine")
        (pid,) = children(grader)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: gone(pid), "the worker lives")
        assert graded(grader, "1 one", "1 two") == [Grade(CORRECT, "one"), Grade(CORRECT, "two")]
        os.killpg(grader.pools["math"].process.pid, signal.SIGKILL)
        grader.pools["math"].process.wait()
        assert verdicts(graded(grader, "1 three")) == [CORRECT]


@on_linux
@pytest.mark.usefixtures("stand_in")
def test_a_worker_has_no_network_starts_nothing_and_writes_nothing(tmp_path):
    (tmp_path / "kept").write_text("as-it-was")
    with socket.create_server(("127.0.0.1", 0)) as server, Grader(1, timeout=60) as grader:
        (found,) = graded(grader, f"1 attack {server.getsockname()[1]} {tmp_path}")
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
        assert grader.pools["math"].process.poll() is None
    refused = ["PermissionError"] * 6
    assert found.extracted.split() == ["python", *refused, "native", *["-1"] * 8, "reads", "as-it-was"]
    assert not (tmp_path / "made").exists()
    assert (tmp_path / "kept").read_text() == "as-it-was"


CONFINED = """
import os, socket
from quagmire_utils.grading import sandbox
sandbox._filter_calls = lambda: False
print(sandbox.confine(2**31))
for action in (lambda: socket.socket(), lambda: os.system("true"), lambda: open("made", "w"), lambda: os.fork()):
    try:
        print(action())
    except PermissionError as error:
        print("refused:", error)
print(len(open(os.__file__).read()) > 0)
"""


def test_where_the_kernel_helps_with_nothing_python_code_is_still_refused(tmp_path):
    how = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", CONFINED], **how)
    first, *refused, last = done.stdout.splitlines()
    assert first == "['audit hook']", done.stderr
    assert [line.split(":")[0] for line in refused] == ["refused"] * 4
    assert last == "True"
    assert not list(tmp_path.iterdir())


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.usefixtures("stand_in")
def test_what_a_worker_says_is_never_unpickled_or_trusted(tmp_path):
    marker = tmp_path / "ran"
    payloads = [
        pickle.dumps(_Touch(marker)),
        b'[1, "graded", [["superb", ""]]]',
        b'[1, "graded", [["correct", "5"], ["correct", "6"]]]',
        b'[1, "graded", 0]',
        b'[null, "died", "x", []]',
        b"{",
        b"[" * 10_000,
    ]
    with Grader(1, timeout=60) as grader:
        for payload in payloads:
            assert verdicts(graded(grader, f"1 speak {payload.hex()}")) == [ERROR], payload
            assert verdicts(graded(grader, "1 fine")) == [CORRECT]
    assert not marker.exists()
