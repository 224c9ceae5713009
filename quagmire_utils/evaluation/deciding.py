"""Draw the answers that `sequential.looks` asks for: stored ones first, then with the model that drew those.

    runs = {"a": Run(config, params, problems, SampleStore("runs/a")), "b": ...}
    with Grader() as grader:
        answers = Answers(runs, design, grader)
        for look in looks(list(runs), answers, answers.benchmarks, design):
            ...

The looks depend on the stored answers and on nothing else, so a killed decision that is started again repeats them and
draws what is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_folder
from quagmire_utils.engines import EngineConfig, SamplingParams, load_engine
from quagmire_utils.evaluation.evaluate import evaluate
from quagmire_utils.evaluation.preflight import check
from quagmire_utils.evaluation.store import SampleStore

if TYPE_CHECKING:
    from quagmire_utils.data import Problem
    from quagmire_utils.evaluation.pass_at_k.estimator import Counts
    from quagmire_utils.evaluation.pass_at_k.sequential import Design
    from quagmire_utils.grading import Grader

UNEQUAL = "unequal"  # folder in a store, for answers whose number depends on the answers before


@dataclass(frozen=True)
class Run:
    """A finished evaluation, and what it takes to draw more of its answers."""

    config: EngineConfig
    params: SamplingParams
    problems: Mapping[str, Sequence[Problem]]
    store: SampleStore


class Answers:
    """The answers of several runs to the problems that they have in common; call it as the `draw` of `looks`.

    With `design.these_problems`, problems get different numbers of answers. The scores of such a store would be biased,
    so the answers go to a copy of it, `unequal` in its folder. Raise ParameterError if the runs have no problem in
    common or different ones of the same name, and for what `preflight.check` refuses.
    """

    def __init__(
        self, runs: Mapping[str, Run], design: Design, grader: Grader | None = None, *, progress: bool = True
    ) -> None:
        self._grader, self._progress = grader, progress
        known = [{(name, one.id): one for name, some in run.problems.items() for one in some} for run in runs.values()]
        self._problems = {key: one for key, one in known[0].items() if all(key in other for other in known[1:])}
        if not self._problems:
            raise ParameterError("runs", list(runs), reason="they have no problem in common")
        for name, problems in zip(runs, known, strict=True):
            if changed := [key for key, problem in self._problems.items() if problems[key] != problem]:
                reason = f"{' '.join(changed[0])} is another problem in {name} than in {next(iter(runs))}"
                raise ParameterError("runs", name, reason=reason)
        self._keys = pd.MultiIndex.from_tuples(self._problems)
        self.benchmarks = [benchmark for benchmark, _ in self._problems]
        for run in runs.values():
            everything = self._select(range(len(self._keys)))
            check(run.config, everything, design.most, run.params, run.store.path, k=design.k, grader=grader)
        self._runs = {
            name: replace(run, store=_copy(run.store)) if design.these_problems else run for name, run in runs.items()
        }
        self.drawn = 0  # tokens that were not stored before

    def __call__(self, name: str, first: Counts, last: Counts) -> tuple[Counts, Counts]:
        """Return how many of the answers first .. last - 1 to each problem are correct, and their tokens."""
        run = self._runs[name]
        place, stored = self._stored(run)
        lacking = np.bincount(place[stored["index"] < last[place]], minlength=len(last)) < last
        if lacking.any():
            before = stored["tokens"].sum()
            self._top_up(run, np.where(lacking, last, 0))
            place, stored = self._stored(run)
            self.drawn += int(stored["tokens"].sum() - before)
        asked = ((stored["index"] >= first[place]) & (stored["index"] < last[place])).to_numpy()
        place, stored = place[asked], stored[asked]
        right = np.bincount(place[stored["verdict"] == "correct"], minlength=len(last))
        return right, np.bincount(place, stored["tokens"], len(last)).astype(np.int64)

    def _stored(self, run: Run) -> tuple[Counts, pd.DataFrame]:
        """Return the graded answers to the common problems, and the number of the problem of each."""
        frame = run.store.read(["benchmark", "problem", "index", "tokens", "verdict"]).dropna(subset=["verdict"])
        place = self._keys.get_indexer(pd.MultiIndex.from_frame(frame[["benchmark", "problem"]]))
        return place[place >= 0], frame[place >= 0]

    def _top_up(self, run: Run, wanted: Counts) -> None:
        """Bring every problem to `wanted` answers."""
        with nullcontext(run.config) if run.config.ray else closing(load_engine(run.config)) as engine:
            for number in np.unique(wanted[wanted > 0]):
                some = self._select(np.flatnonzero(wanted == number))
                how = {"grader": self._grader, "progress": self._progress}
                evaluate(engine, some, int(number), run.params, run.store, **how)

    def _select(self, places: Sequence[int]) -> dict[str, list[Problem]]:
        chosen: dict[str, list[Problem]] = {}
        for benchmark, name in self._keys[list(places)]:
            chosen.setdefault(benchmark, []).append(self._problems[benchmark, name])
        return chosen


def _copy(store: SampleStore) -> SampleStore:
    """Return the copy of a store that takes unequal numbers of answers; make it if there is none."""
    folder = store.path / UNEQUAL
    if not folder.exists():
        with atomic_folder(folder) as scratch:
            for file in (store.path / "store.json", *store.path.glob("*.parquet")):
                shutil.copy2(file, scratch)
    return SampleStore(folder)
