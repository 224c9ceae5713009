"""`quagmire view` in a headless Chromium: a hostile model, a run that is going on, two runs side by side."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from browsing import PAYLOADS
from conftest import CHROMIUM

from quagmire_utils.core.files import write_json
from quagmire_utils.data import Problem
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.grading import Grader

pytest.importorskip("panel", reason="the viewer needs panel")

from quagmire_utils.report.answers import ALL, PLAN, Watched

PROBLEMS = [Problem(f"p{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(4)]


def draw(folder: Path, index: int, answer, benchmark: str = "sums", problems=PROBLEMS, **columns) -> None:
    """Store the answer `index` to every problem, as a run that goes on does: without verdicts, unless columns have."""
    rows = [
        {"benchmark": benchmark, "problem": one.id, "index": index, "text": answer(one), "tokens": 5}
        | {"finish_reason": "stop", "extracted": None, "verdict": None, **columns}
        for one in problems
    ]
    SampleStore(folder).append(pd.DataFrame(rows, dtype=object))


def begin(folder: Path, num_samples: int) -> Path:
    """Leave what `quagmire evaluate` leaves before it draws."""
    folder.mkdir()
    file = folder.parent / "sums.jsonl"
    file.write_text("".join(json.dumps(vars(one) | {"source": ""}) + "\n" for one in PROBLEMS))
    write_json({"configuration": {"benchmarks": str(file), "limit": None, "num_samples": num_samples}}, folder / PLAN)
    return folder


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def right(one: Problem) -> str:
    return f"it is \\boxed{{{one.answer}}}"


def half_right(one: Problem) -> str:
    return right(one) if one.id in ("p0", "p1") else "\\boxed{1}"


def test_what_a_run_has_not_graded_yet_is_graded_elsewhere_and_its_folder_stays_as_it_is(tmp_path):
    folder = begin(tmp_path / "run", 3)
    draw(folder, 0, half_right)
    before = contents(folder)
    run = Watched(folder, "run")
    with Grader(1) as grader:
        run.look(grader)
        assert (run.drawn, run.graded, run.wanted, run.complaint) == (4, 4, 12, "")
        assert "Pass@1 50.0 %" in run.said
        assert list(run.choose("sums", "correct")) == [("sums", "p0"), ("sums", "p1")]
        assert run.problem("sums", "p1") == ("What is 1 + 1?", "2")
        assert contents(folder) == before
        looks = run.looks
        run.look(grader)
        assert run.looks == looks  # nothing is new
        (part,) = SampleStore(folder).parts()
        wrong = SampleStore(folder).read_part(part).assign(extracted="9", verdict="wrong", grader="mine")
        SampleStore(folder).write_verdicts(part, wrong, {("sums", one.id): [one.answer, None] for one in PROBLEMS})
        run.look(grader)
        assert "Pass@1 0.0 %" in run.said  # the run's own verdicts count as soon as they are there
        draw(folder, 1, right)
        run.look(grader)
        assert (run.drawn, run.graded) == (8, 8)
        assert len(run.choose(ALL, "correct")) == 4
        (tmp_path / "sums.jsonl").unlink()
        again = Watched(folder, "without the problems, stored verdicts count")
        again.look(grader)
        assert (again.drawn, again.graded) == (8, 4)
        assert "sums.jsonl" in again.complaint
        assert again.problem("sums", "p1") == ("", "2")
        assert list(folder.glob("verdicts-*")) == [part.with_name(part.name.replace("part", "verdicts"))]


@contextmanager
def served(*folders: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "quagmire_utils", "view", *map(str, folders), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().split()[0]
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0


@pytest.fixture(scope="module")
def chrome():
    api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


def opened(chrome, address: str, **window):
    """Return the page of the dashboard and, in lists that grow, its requests and the errors that it reports."""
    page, requests, errors = chrome.new_page(**window), [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    for _ in range(60):
        try:
            page.goto(address)
            break
        except Exception:  # it does not listen yet
            time.sleep(0.5)
    return page, requests, errors


@pytest.mark.slow
@pytest.mark.requires_chromium
def test_a_hostile_model_stays_text_and_nothing_leaves_the_machine(tmp_path, chrome):
    evil = [text.encode("utf-8", "replace").decode() for text in PAYLOADS]
    problems = [Problem(name, name, "1") for name in evil]
    for index, verdict in enumerate(("correct", "wrong")):
        verdicts = {"verdict": verdict, "extracted": evil[1]}
        draw(tmp_path / "run", index, lambda one: f"answer {one.id}", evil[0], problems, **verdicts)
    with served(tmp_path / "run") as address:
        assert address.startswith("http://127.0.0.1:")
        page, requests, errors = opened(chrome, address)
        for place, payload in enumerate(sorted(evil), 1):
            page.get_by_label("problem", exact=True).fill(str(place))
            page.keyboard.press("Enter")
            page.get_by_text(f"Problem {place} of {len(evil)}").wait_for()
            if payload.isprintable():
                assert page.locator("pre", has_text=f"answer {payload}").count() == 2
        assert page.title() == "quagmire view"
        for tag in ("script", "img", "svg", "iframe", "a[href^=javascript]", "[onload]", "[onerror]", "[ontoggle]"):
            assert page.locator(f".bk-panel-models-markup-HTML {tag}").count() == 0
        assert page.locator(".bk-panel-models-markup-HTML pre").count() == 3  # so the loop looks in the right place
        assert {name.split("/")[2] for name in requests if name.startswith("http")} == {address.split("/")[2]}
        assert errors == []
