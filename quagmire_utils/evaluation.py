"""One checkpoint, measured: sample every problem, grade every answer, count. Paper: Sec. 4.1, App. B.3.

The sweep and the `evaluate_model` notebook both call `evaluate`, so a candidate of the study and a new model are
measured by the same code.

    problems = {name: load_benchmark(name) for name in ("math500", "gsm8k")}
    counts = evaluate("path/to/checkpoint", problems, 64, SamplingParams(max_tokens=2048), SampleStore("samples/mine"))
    benchmark_average(counts, ks=[1, 64])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.benchmarks import Problem
from quagmire_utils.config import ParameterError
from quagmire_utils.engines import Engine, SamplingParams, load_engine
from quagmire_utils.grading import Grader
from quagmire_utils.prompts import check_fits, render
from quagmire_utils.sampling import grade_store, sample

if TYPE_CHECKING:
    import pandas as pd

    from quagmire_utils.store import SampleStore


def evaluate(
    model: str | Path | Engine,
    benchmarks: Mapping[str, Sequence[Problem]],
    num_samples: int,
    params: SamplingParams,
    store: SampleStore,
    *,
    k: int = 1,
    engine: str = "vllm",
    max_model_len: int | None = None,
    template: str = "auto",
    grader: Grader | None = None,
    progress: bool = True,
    clock: Callable[[str], AbstractContextManager[None]] | None = None,
) -> pd.DataFrame:
    """Sample `num_samples` answers to every problem, grade them, and count the verdicts.

    `model` is a path, a hub id, or an engine that is already loaded (and stays open). Whatever `store` already
    holds is not drawn again, and may be more than `num_samples`. `clock("sampling")` and `clock("grading")` are
    entered around the two halves, for callers that keep time. Returns one row per benchmark and problem: benchmark,
    problem, n, correct, wrong, no_answer, truncated, timeout, error, mean_tokens. Raises ParameterError for no
    benchmarks or k > num_samples before anything is loaded, and for prompts that do not fit the context before
    anything is sampled.
    """
    if not benchmarks or not all(benchmarks.values()):
        raise ParameterError("benchmarks is empty: name at least one benchmark with at least one problem")
    if isinstance(num_samples, bool) or not isinstance(num_samples, int):
        raise ParameterError(f"num_samples must be a whole number, not {num_samples!r}")
    if not 1 <= k <= num_samples:
        raise ParameterError(
            f"k ({k}) must be between 1 and num_samples ({num_samples}): Pass@k is undefined for k above the samples"
        )
    clock = clock or (lambda _: nullcontext())
    with ExitStack() as stack:
        if grader is None:
            grader = stack.enter_context(Grader())
        with clock("sampling"):
            loaded = model
            if isinstance(model, (str, Path)):
                loaded = stack.enter_context(closing(load_engine(engine, model, max_model_len=max_model_len)))
            for problems in benchmarks.values():  # all of them, before the first is sampled
                prompts = [render(problem.question, loaded.tokenizer, template) for problem in problems]
                check_fits(prompts, params.max_tokens, loaded.context_length)
            for name, problems in benchmarks.items():
                sample(
                    loaded, problems, num_samples, params, store, benchmark=name, template=template, progress=progress
                )
        with clock("grading"):
            grade_store(store, benchmarks, grader.grade, progress=progress)
    asked = {(name, problem.id) for name, problems in benchmarks.items() for problem in problems}
    counts = store.counts()
    return counts[[key in asked for key in zip(counts["benchmark"], counts["problem"], strict=True)]].reset_index(
        drop=True
    )
