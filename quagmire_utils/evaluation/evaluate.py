"""Evaluate one checkpoint: sample every problem, grade every answer, count. Paper: Sec. 4.1, App. B.3.

The sweep and the `evaluate_model` notebook both call `evaluate`, so a candidate of the study and a new model are
measured by the same code.

    problems = {name: load_benchmark(name) for name in ("math500", "gsm8k")}
    config = EngineConfig(engine="vllm", model="path/to/checkpoint")
    counts = evaluate(config, problems, 64, SamplingParams(max_tokens=2048), SampleStore("samples/mine"), k=64)
    compare_outputs("samples/mine", "samples/before", ks=[1, 64])
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Problem
from quagmire_utils.engines import Engine, EngineConfig, SamplingParams, load_engine
from quagmire_utils.evaluation.marking import grade_store
from quagmire_utils.evaluation.pass_at_k import compare
from quagmire_utils.evaluation.preflight import check, check_numbers, check_prompts
from quagmire_utils.evaluation.sampling import sample
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.grading import Grader, prepare_problems

if TYPE_CHECKING:
    import pandas as pd


def evaluate(
    engine: Engine | EngineConfig,
    benchmarks: Mapping[str, Sequence[Problem]],
    num_samples: int,
    params: SamplingParams,
    store: SampleStore,
    *,
    k: int = 1,
    grader: Grader | None = None,
    progress: bool = True,
    clock: Callable[[str], AbstractContextManager[None]] | None = None,
) -> pd.DataFrame:
    """Sample `num_samples` answers to every problem, grade them, and return the counts of the verdicts.

    `engine`: a configuration, with `ray` for the nodes of a cluster; or a loaded engine, which stays open. What `store`
    already holds is not drawn again, and may be more than `num_samples`. `clock("sampling")` and `clock("grading")` are
    entered around the two. The result is that of `SampleStore.counts`, for these problems.

    Warn of golds that the grader cannot read, and of benchmarks whose answers are all the same (also in
    `attrs["repeated"]`). Raise ParameterError, before anything is loaded, for what `preflight.check` refuses; with a
    loaded engine, before anything is sampled, for unusable numbers, problems or prompts.
    """
    check_numbers(benchmarks, num_samples, k)
    benchmarks = prepare_problems(benchmarks)
    clock = clock or (lambda _: nullcontext())
    with ExitStack() as stack:
        if grader is None:
            grader = stack.enter_context(Grader())
        if isinstance(engine, EngineConfig):
            plan = check(engine, benchmarks, num_samples, params, store.path, k=k, grader=grader)
            if plan.warning:
                warnings.warn(plan.warning, stacklevel=2)
        with clock("sampling"), ExitStack() as loaded:
            if isinstance(engine, EngineConfig) and engine.ray is None:
                engine = loaded.enter_context(closing(load_engine(engine)))
            if not isinstance(engine, EngineConfig):  # also for a server, of which `check` knows too little
                limits = (params.max_tokens, engine.context_length)
                check_prompts(benchmarks, engine.tokenizer, engine.config.template, *limits, store)
            for name, problems in benchmarks.items():
                sample(engine, problems, num_samples, params, store, benchmark=name, progress=progress)
        with clock("grading"):
            grade_store(store, benchmarks, grader.grade, progress=progress)
    asked = {(name, problem.id) for name, problems in benchmarks.items() for problem in problems}
    counts = store.counts()
    mine = [key in asked for key in zip(counts["benchmark"], counts["problem"], strict=True)]
    counts = counts[mine].reset_index(drop=True)
    if same := store.always_the_same():
        repeated = f"All answers to a problem are the same in {', '.join(same)}: the engine seems to ignore seeds."
        warnings.warn(repeated, stacklevel=2)
        counts.attrs["repeated"] = repeated
    return counts


def compare_outputs(a: str | Path, b: str | Path, ks: Sequence[int] = (1,)) -> pd.DataFrame:
    """Return Pass@k of one evaluation minus that of another, on the problems that both have graded answers to.

    a, b: the folders of two evaluations, or any stores. The result is the table of `pass_at_k.compare`. Its `attrs`
    hold `problems_a` and `problems_b` (problems of each), `answers` (fewest answers to a common problem, of a and of
    b), and `settings` (what differs between the two: {name: (a's, b's)}). Raise ParameterError for a folder without
    samples or without verdicts, for two without a common problem, and if a common problem has two gold answers.
    """
    stores = {"a": SampleStore(a), "b": SampleStore(b)}
    counts = {}
    for name, store in stores.items():
        if not store.parts():
            raise ParameterError(name, store.path, reason=f"{store.path} holds no samples; name an evaluation's folder")
        frame = store.counts()
        counts[name] = frame[frame["n"] > 0]
        if counts[name].empty:
            raise ParameterError(name, store.path, reason=f"{store.path} holds samples but no verdicts; grade it first")
    keys = counts["a"][["benchmark", "problem"]].merge(counts["b"][["benchmark", "problem"]])
    if keys.empty:
        raise ParameterError("b", b, reason=f"{a} and {b} have no problem in common")
    golds = {name: store.golds() for name, store in stores.items()}
    for key in keys.itertuples(index=False, name=None):
        first, second = (golds[name].get(key) for name in "ab")
        if first and second and first != second:
            what = f"the gold of {' '.join(key)} is {first[0]!r} in {a} and {second[0]!r} in {b}"
            if first[0] == second[0]:
                what = f"{' '.join(key)} was graded differently in {a} and {b} ({first[2:]} and {second[2:]})"
            reason = f"{what}; grade one again"
            raise ParameterError("b", b, reason=reason)
    common = [keys.merge(frame, on=["benchmark", "problem"]) for frame in counts.values()]
    table = compare(*common, ks)
    first, second = (store.origin for store in stores.values())
    table.attrs = {
        "problems_a": len(counts["a"]),
        "problems_b": len(counts["b"]),
        "answers": tuple(int(frame["n"].min()) for frame in common),
        "settings": {
            name: (first.get(name), second.get(name))
            for name in sorted({*first, *second})
            if first.get(name) != second.get(name)
        },
    }
    return table
