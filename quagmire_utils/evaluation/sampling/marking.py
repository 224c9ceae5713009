"""Verdicts for the samples of a store, part by part; needs no engine and no GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from quagmire_utils.core.files import digest, write_json
from quagmire_utils.core.locks import exclusive
from quagmire_utils.evaluation.store import GOLDS, KEYS, SampleStore, read_golds
from quagmire_utils.grading.graders import grader_version

if TYPE_CHECKING:
    from quagmire_utils.data import Problem


def grade_store(
    store: SampleStore,
    benchmarks: Mapping[str, Sequence[Problem]],
    grade: Callable[[Sequence[str], Sequence[Problem]], Sequence[Any]],
    *,
    regrade: bool = False,
    progress: bool = True,
) -> None:
    """Grade the samples that have no verdict yet (all of them with `regrade`), one part file at a time.

    `benchmarks` maps each benchmark's name to its problems; samples of other benchmarks or problems are left as they
    are. `grade(responses, problems)` returns one object each with `verdict` and `extracted`: `grading.grade`, or the
    method of a `grading.Grader`. Each part is rewritten atomically, so a run that was killed goes on where it was.
    """
    from tqdm import tqdm

    golds = {(name, problem.id): problem for name, problems in benchmarks.items() for problem in problems}
    _forget_changed_golds(store, golds)
    parts = store.parts()
    for part in tqdm(parts, desc="grading", unit="part", disable=not progress or len(parts) < 2, delay=2):
        if not regrade:
            light = store.read_part(part, [*KEYS, "verdict"])  # most parts need nothing: don't read their texts
            if light is None or not light["verdict"].isna().any():
                continue
        frame = store.read_part(part)
        if frame is None:
            continue
        keys = list(zip(frame["benchmark"], frame["problem"], strict=True))
        wanted = [
            i
            for i, (key, verdict) in enumerate(zip(keys, frame["verdict"], strict=True))
            if key in golds and (regrade or pd.isna(verdict))
        ]
        if not wanted:
            continue
        texts = frame["text"].tolist()
        grades = grade([texts[i] for i in wanted], [golds[keys[i]] for i in wanted])
        verdicts, extracted = frame["verdict"].tolist(), frame["extracted"].tolist()
        for i, result in zip(wanted, grades, strict=True):
            verdicts[i], extracted[i] = str(result.verdict), result.extracted
        graded = frame.assign(
            extracted=pd.Series(extracted, index=frame.index, dtype=object),
            verdict=pd.Series(verdicts, index=frame.index, dtype=object),
        )
        store.replace_part(part, graded)


def _noted(problem: Problem) -> list[Any]:
    """What a verdict rests on: gold, tolerance, and the grader with its version where it is not math-verify.

    The tests of a program may be long: beyond 500 characters their digest stands for them.
    """
    version = grader_version(problem.grader)
    if version is None:
        return [problem.answer, problem.tolerance]
    answer = problem.answer if len(problem.answer) <= 500 else f"sha256 {digest(problem.answer)}"
    return [answer, problem.tolerance, version]


def _forget_changed_golds(store: SampleStore, golds: Mapping[tuple[str, str], Problem]) -> None:
    """Take back the verdicts that rest on another gold or grader than now, or on who knows which; note those of now.

    The verdicts go first, so that a kill in between only makes this be done again.
    """
    path = store.path / GOLDS
    noted = read_golds(store.path)
    now = {"/".join(key): _noted(problem) for key, problem in golds.items()}
    changed = {key for key in golds if noted.get("/".join(key)) != now["/".join(key)]}
    for part in store.parts() if changed else []:
        light = store.read_part(part, [*KEYS, "verdict"])
        if light is None:
            continue
        keys = zip(light["benchmark"], light["problem"], strict=True)
        stale = light["verdict"].notna() & pd.Series([key in changed for key in keys], dtype=bool)
        if stale.any() and (frame := store.read_part(part)) is not None:
            columns = {
                name: frame[name].astype(object).where(~stale.to_numpy(), None) for name in ("extracted", "verdict")
            }
            store.replace_part(part, frame.assign(**columns))
    if noted | now != noted and store.path.is_dir():
        with store.writing(), exclusive(store.path):  # another process may be noting those of another benchmark
            noted = read_golds(store.path)
            write_json(noted | now, path)
