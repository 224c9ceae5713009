"""Answers to browse: HTML with some of them, for any browser, and Panel's dashboard of evaluations that are running.

Responses are hostile input, and so are questions and names from a user's .jsonl file: all of it is escaped and shown as
plain text, never as markup, mathematics or a link. The dashboard (`quagmire view`) writes nothing into the evaluations'
folders: a `Watched` sees one through links in a folder of its own, where it grades answers that have no verdict yet.
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json
from quagmire_utils.data import Problem
from quagmire_utils.evaluation.evaluate import compare_outputs
from quagmire_utils.evaluation.marking import grade_store
from quagmire_utils.evaluation.measured import describe_evaluation, evaluation_table, show_comparison, show_evaluation
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.evaluation.store_files import KEYS
from quagmire_utils.grading import Grader, Verdict, prepare_problems
from quagmire_utils.report.clean import environment, render
from quagmire_utils.report.inputs import load_benchmarks
from quagmire_utils.report.page import table_html

if TYPE_CHECKING:
    import panel

KINDS = {"right": ("correct",), "wrong": ("wrong",), "undecided or no answer": ("timeout", "error", "no_answer")}
SHOWN_ROWS = 30  # of the audit's list
PLAN = "plan.json"  # what an evaluation notes before it draws: its benchmarks, and how many answers
SECONDS = 2.0  # between two looks
MOST = 12  # answers of a model to a problem that are shown at a time
ALL, UNGRADED = "all", "not graded"


def browse_answers(store: SampleStore, problems: Mapping[str, Sequence[Problem]], each: int = 3) -> str:
    """Return HTML with up to `each` right, wrong and undecided answers from every benchmark, of different problems."""
    known = {(name, problem.id): problem for name, some in problems.items() for problem in some}
    graded = store.read([*KEYS, "verdict"])
    graded = graded[pd.MultiIndex.from_frame(graded[KEYS[:2]]).isin(list(known))]
    chosen = {kind: _spread(graded[graded["verdict"].isin(verdicts)], each) for kind, verdicts in KINDS.items()}
    texts = full_rows(store, pd.concat(chosen.values()))
    kinds = {}
    for kind, verdicts in KINDS.items():
        keys = [key for key in chosen[kind][KEYS].itertuples(index=False, name=None) if key in texts]
        rows = [(texts[key], known[key[0], key[1]]) for key in keys]
        kinds[kind] = int(graded["verdict"].isin(verdicts).sum()), rows
    return str(environment().get_template("answers.html.j2").module.browse(kinds, len(graded)))


def show_audit(disagreements: pd.DataFrame, rows: int = SHOWN_ROWS) -> str:
    """Return HTML of an `audit_store`: how often two graders disagree, and the first `rows` disagreements in full."""
    parts, shown = environment().get_template("answers.html.j2").module, disagreements.head(rows).to_dict("records")
    return str(parts.audit(disagreements.attrs, shown, len(disagreements)))


def _spread(rows: pd.DataFrame, each: int) -> pd.DataFrame:
    """Return up to `each` rows of every benchmark, of different problems, from its beginning to its end."""
    one = rows.drop_duplicates(["benchmark", "problem"])
    parts = [part for _, part in one.groupby("benchmark", sort=False)]
    return pd.concat(
        [part.iloc[np.arange(min(each, len(part))) * len(part) // min(each, len(part))] for part in parts] or [one]
    )


def full_rows(store: SampleStore, wanted: pd.DataFrame) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return the samples with the keys of `wanted`, by key, with their texts."""
    keys = set(wanted[KEYS].itertuples(index=False, name=None))
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for part in store.parts():  # texts are read only from parts that hold a wanted sample
        light = store.read_part(part, KEYS)
        if light is None or not keys.difference(found).intersection(light[KEYS].itertuples(index=False, name=None)):
            continue
        rows = store.read_part(part)
        for row in [] if rows is None else rows.to_dict("records"):
            key = tuple(row[name] for name in KEYS)
            if key in keys:
                found.setdefault(key, row)
    return found


# --- the dashboard ----------------------------------------------------------------------------------------------------


class Watched:
    """What an evaluation's folder holds now, in the attributes that the template shows."""

    def __init__(self, folder: Path, name: str, benchmarks: str = "") -> None:
        if not folder.is_dir():
            raise ParameterError("folder", folder, reason=f"there is no folder {folder}")
        self.folder, self.name, self._benchmarks = folder, name, benchmarks
        self._links = tempfile.TemporaryDirectory(prefix="quagmire-view-")
        self._seen: dict[str, int] = {}  # files and when they changed
        self._problems: dict[str, Any] = {}
        self.store = SampleStore(self._links.name)
        self.light = pd.DataFrame(columns=[*KEYS, "verdict"])  # the samples without their texts
        self.looks = self.drawn = self.graded = self.wanted = 0
        self.said = self.complaint = self.changed = self.scores = ""

    def look(self, grader: Grader) -> None:
        """Read what is new, and grade what has no verdict."""
        try:
            files = [*self.folder.glob("*.parquet"), *(self.folder / name for name in ("store.json", PLAN))]
            times = {file.name: file.stat().st_mtime_ns for file in files if file.exists()}
            if not times or times == self._seen:
                return
            for name in [name for name in times if times[name] != self._seen.get(name)]:
                link = Path(self._links.name, name)
                link.unlink(missing_ok=True)  # perhaps a file of verdicts that was written here
                link.symlink_to((self.folder / name).resolve())
            self._seen, self.complaint = times, ""
            self.changed = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(max(times.values()) / 1e9))
            self.store = SampleStore(self._links.name)
            self._read(grader)
        except Exception as error:  # the next look may succeed; until then the page says why this one did not
            self.complaint = f"{type(error).__name__}: {error}"
        self.looks += 1

    def _read(self, grader: Grader) -> None:
        facts: dict[str, Any] = {}
        for name in ("manifest.json", PLAN):
            with suppress(OSError, ValueError, KeyError):
                facts = read_json(self.folder / name)["configuration"]
        named = self._benchmarks or facts.get("benchmarks")
        if named and not self._problems:
            try:
                self._problems = prepare_problems(load_benchmarks(named, facts.get("limit")))
            except (ParameterError, OSError) as error:  # verdicts that are stored can be shown all the same
                self.complaint = f"Its problems cannot be read: {error}"
        self.light = self.store.read([*KEYS, "verdict"])
        if self._problems and self.light["verdict"].isna().any():
            grade_store(self.store, self._problems, grader.grade, progress=False)
            self.light = self.store.read([*KEYS, "verdict"])
        self.drawn, self.graded = len(self.light), int(self.light["verdict"].notna().sum())
        wanted = facts.get("num_samples", 0) * sum(map(len, self._problems.values()))
        self.wanted = wanted if wanted >= self.drawn else 0  # others may have drawn more
        counts = self.store.counts()
        counts = counts[counts["n"] > 0]
        if len(counts):
            table = evaluation_table(counts, sorted({1, min(facts.get("k", 1), int(counts["n"].min()))}))
            shown = show_evaluation(table)
            self.said = describe_evaluation(table)
            self.scores = Markup(table_html(shown[[*shown.columns[2:], *shown.columns[:2]]]))  # Pass@k first

    def choose(self, benchmark: str, verdict: str) -> dict[tuple[str, str], pd.DataFrame]:
        """Return the samples of a benchmark with a verdict, without their texts, by problem."""
        rows = self.light if benchmark == ALL else self.light[self.light["benchmark"] == benchmark]
        rows = rows if verdict == ALL else rows[rows["verdict"].fillna(UNGRADED) == verdict]
        return dict(list(rows.groupby(KEYS[:2], sort=False)))

    def problem(self, benchmark: str, problem: str) -> tuple[str, str]:
        """Return the question, or the prompt if only that is known, and the gold answer."""
        for one in self._problems.get(benchmark, ()):
            if one.id == problem:
                return one.question, one.answer
        prompts = self.store.prompts().set_index(KEYS[:2])["prompt"]
        return prompts.get((benchmark, problem), ""), self.store.golds().get((benchmark, problem), [""])[0]


def dashboard(runs: Sequence[Watched]) -> panel.Column:
    """Return the dashboard for one browser tab. Another thread keeps `runs`, one or two, up to date."""
    import panel as pn

    parts: Any = environment().get_template("viewer.html.j2").module
    style = render("viewer.css")
    state, page = (pn.pane.HTML("", stylesheets=[style], sizing_mode="stretch_width") for _ in range(2))
    benchmark = pn.widgets.Select(name="benchmark", options=[ALL], width=200)
    options = [ALL, *map(str, Verdict), UNGRADED]
    labels = ["verdict"] if len(runs) == 1 else ["verdict of a", "verdict of b"]
    verdicts = [pn.widgets.Select(name=label, options=options, width=130) for label in labels]
    number = pn.widgets.IntInput(name="problem", value=1, start=1, width=100)
    looks: list[int] = []

    def leaf(*_: Any) -> None:
        chosen = [run.choose(benchmark.value, verdict.value) for run, verdict in zip(runs, verdicts, strict=True)]
        keys = [key for key in chosen[0] if all(key in one for one in chosen)]
        place = min(number.value or 1, max(1, len(keys)))
        number.param.update(end=max(1, len(keys)), value=place)
        if not keys:
            page.object = str(parts.leaf(0, 0))
            return
        key = keys[place - 1]
        columns = []
        for run, one in zip(runs, chosen, strict=True):
            found = full_rows(run.store, one[key][:MOST])
            columns.append((run, [found[sample] for sample in sorted(found)], len(one[key]) - MOST))
        # as text: Panel would escape Markup twice
        page.object = str(parts.leaf(place, len(keys), key, *runs[0].problem(*key), columns))

    def refresh() -> None:
        if looks == [run.looks for run in runs]:
            return
        looks[:] = [run.looks for run in runs]
        compared = ""
        with suppress(ParameterError, ValueError):  # they have no problem in common yet
            if len(runs) == 2:
                fewest = min(int(run.light.groupby(KEYS[:2]).size().min()) for run in runs if len(run.light))
                paths = [run.store.path for run in runs]
                compared = Markup(table_html(show_comparison(compare_outputs(*paths, sorted({1, fewest})))))
        state.object = str(parts.state(runs, compared))
        benchmark.options = [ALL, *sorted({name for run in runs for name in run.light["benchmark"]})]
        leaf()

    for widget in (benchmark, *verdicts, number):
        widget.param.watch(leaf, "value")
    refresh()
    pn.state.add_periodic_callback(refresh, period=round(1000 * SECONDS))
    return pn.Column(state, pn.FlexBox(benchmark, *verdicts, number), page, sizing_mode="stretch_width")


def view(folders: Sequence[Path], benchmarks: str = "", *, port: int = 0, show: bool = True) -> None:
    """Serve the dashboard of one or two evaluations on 127.0.0.1, until it is interrupted; port 0: a free one."""
    try:
        import panel as pn
    except ImportError:
        reason = "it needs panel: pip install -c constraints.txt -e '.[notebooks]'"
        raise ParameterError("view", reason=reason) from None
    names = [str(folder) for folder in folders] if len(folders) == 1 else [f"a: {folders[0]}", f"b: {folders[1]}"]
    runs = [Watched(folder, name, benchmarks) for folder, name in zip(folders, names, strict=True)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))
        port = free.getsockname()[1]
    stopped = threading.Event()

    def follow() -> None:
        with Grader() as grader:
            while not stopped.is_set():
                for run in runs:
                    run.look(grader)
                stopped.wait(SECONDS)

    follower = threading.Thread(target=follow)
    follower.start()
    print(f"http://127.0.0.1:{port} shows {' and '.join(run.name for run in runs)}; Ctrl-C ends it", flush=True)
    try:
        own = [f"127.0.0.1:{port}"]
        pn.serve(lambda: dashboard(runs), port, "127.0.0.1", own, show=show, title="quagmire view")
    finally:
        stopped.set()
        follower.join()
