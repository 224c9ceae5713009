"""One checkpoint, measured: sample every problem, grade every answer, count. Paper: Sec. 4.1, App. B.3.

The sweep and the `evaluate_model` notebook both call `evaluate`, so a candidate of the study and a new model are
measured by the same code.

    problems = {name: load_benchmark(name) for name in ("math500", "gsm8k")}
    counts = evaluate("path/to/checkpoint", problems, 64, SamplingParams(max_tokens=2048), SampleStore("samples/mine"))
    bootstrap_intervals(counts, ks=[1, 64])
    compare_outputs("samples/mine", "samples/before", ks=[1, 64])     # or, in a shell:

    quagmire compare samples/mine samples/before -k 1,64

Grading goes on behind the sampling: while the engine draws the answers to one benchmark, the grader's processes judge
those to the one before, so that a GPU never waits for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Problem
from quagmire_utils.engines import Engine, EngineConfig, SamplingParams, load_engine
from quagmire_utils.evaluation.pass_at_k import compare
from quagmire_utils.evaluation.preflight import check, check_numbers, check_prompts
from quagmire_utils.evaluation.sampling import grade_store, sample, tokenizer_and_context
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.grading import Grader, prepare_problems

if TYPE_CHECKING:
    import pandas as pd

    from quagmire_utils.engines import ServerSettings


def evaluate(
    model: str | Path | Engine | EngineConfig,
    benchmarks: Mapping[str, Sequence[Problem]],
    num_samples: int,
    params: SamplingParams,
    store: SampleStore,
    *,
    k: int = 1,
    engine: str = "vllm",
    max_model_len: int | None = None,
    template: str = "auto",
    data_parallel_size: int = 1,
    ray: str | None = None,
    grader: Grader | None = None,
    progress: bool = True,
    clock: Callable[[str], AbstractContextManager[None]] | None = None,
) -> pd.DataFrame:
    """Sample `num_samples` answers to every problem, grade them, and count the verdicts.

    `model` is a path, a hub id, or an engine that is already loaded (and stays open); with `ray`, the address of a
    cluster, also an `EngineConfig`. `data_parallel_size` copies of a named model share the work. Whatever `store`
    already holds is not drawn again, and may be more than `num_samples`. `clock("sampling")` and `clock("grading")` are
    entered around the sampling and around what is left to grade after it, for callers that keep time. Returns one row
    per benchmark and problem: benchmark, problem, n,
    correct, wrong, no_answer, truncated, timeout, error, mean_tokens. Warns, in a sentence, of golds that the grader
    can't read (where `model` is named) and of identical answers beyond chance; the latter is also in
    `attrs["repeated"]`. Raises ParameterError for no benchmarks, problems without a gold or of one id, k > num_samples
    and, where `model` is a path or a hub id, for everything else that `preflight.check` refuses before anything is
    loaded; for prompts that do not fit the context, or are others than the store's, before anything is sampled.
    """
    check_numbers(benchmarks, num_samples, k, max_model_len)
    benchmarks = prepare_problems(benchmarks)
    clock = clock or (lambda _: nullcontext())
    with ExitStack() as stack:
        named = isinstance(model, (str, Path))
        if grader is None:
            grader = stack.enter_context(Grader())
        if named:
            options = {"max_model_len": max_model_len, "data_parallel_size": data_parallel_size, "ray": ray}
            how = {"engine": engine, "template": template, "k": k, "grader": grader}
            plan = check(model, benchmarks, num_samples, params, store.path, **how, **options)
            if plan.warning:
                warnings.warn(plan.warning, stacklevel=2)
        behind = ThreadPoolExecutor(1, "grading")
        stack.callback(behind.shutdown, cancel_futures=True)
        # The grader's processes take a second to start; the model takes longer to load.
        grading = [behind.submit(grader.grade, [r"\boxed{\frac{1}{2}}"], ["0.5"], progress=False)]
        with clock("sampling"):
            if named:
                model = stack.enter_context(opened(model, engine, **options))
            if isinstance(model, EngineConfig):
                tokenizer, context_length = tokenizer_and_context(model)
            else:
                tokenizer, context_length = model.tokenizer, model.context_length
            check_prompts(benchmarks, tokenizer, template, params.max_tokens, context_length, store)
            how = {"template": template, "ray": ray, "progress": progress}
            for name, problems in benchmarks.items():
                sample(model, problems, num_samples, params, store, benchmark=name, **how)
                grading.append(behind.submit(grade_store, store, {name: problems}, grader.grade, progress=False))
                _raise_early(grading)
        with clock("grading"):
            for done in tqdm(grading, desc="grading", unit="benchmark", disable=not progress, delay=2):
                done.result()
    asked = {(name, problem.id) for name, problems in benchmarks.items() for problem in problems}
    counts = store.counts()
    mine = [key in asked for key in zip(counts["benchmark"], counts["problem"], strict=True)]
    counts = counts[mine].reset_index(drop=True)
    if repeated := repeated_answers(store):
        warnings.warn(repeated, stacklevel=2)
        counts.attrs["repeated"] = repeated
    return counts


def repeated_answers(store: SampleStore) -> str:
    """A sentence on identical answers to a problem beyond chance, which independent seeds do not give; or nothing."""
    found = store.duplicates()
    if found.empty:
        return ""
    pairs = ", ".join(
        f"{pairs:,} pairs in {name}"
        for name, pairs in found.groupby("benchmark", sort=False)["identical"].sum().items()
    )
    return (
        f"Identical answers to a problem occur far more often than by chance ({pairs}): the engine may ignore seeds, "
        "or seeds were used twice, so they are fewer independent answers than they seem, and Pass@k above k = 1 is "
        "too low."
    )


@contextmanager
def opened(
    model: str | Path,
    engine: str = "vllm",
    *,
    revision: str | None = None,
    max_model_len: int | None = None,
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
    trust_remote_code: bool = False,
    server: ServerSettings | None = None,
    ray: str | None = None,
) -> Iterator[Engine | EngineConfig]:
    """A loaded engine, closed in the end; with `ray` what a cluster's nodes load theirs from.

    The parameters are those of `EngineConfig`; with `ray`, data_parallel_size is left to the cluster.
    """
    config = EngineConfig(
        engine=engine,
        model=model,
        revision=revision,
        max_model_len=max_model_len,
        tensor_parallel_size=tensor_parallel_size,
        data_parallel_size=1 if ray is not None else data_parallel_size,
        trust_remote_code=trust_remote_code,
        server=server,
        ray=ray,
    )
    if ray is not None:
        yield config
        return
    loaded = load_engine(config)
    with closing(loaded):
        yield loaded


def _raise_early(grading: Sequence[Future[Any]]) -> None:
    """Raise what grading has met so far, rather than after hours of further sampling."""
    for done in grading:
        if done.done():
            done.result()


def compare_outputs(a: str | Path, b: str | Path, ks: Sequence[int] = (1,)) -> pd.DataFrame:
    """Pass@k of one evaluation minus that of another, on the problems that both have graded answers to.

    a, b: the folders of two evaluations (`output` of the notebook, or any store). Returns the table of
    `pass_at_k.compare`; its `attrs` hold `problems_a` and `problems_b`, how many each has, `answers`, the fewest to a
    common problem of a and of b, and `settings`, what the two were drawn with otherwise: {name: (a's, b's)}. Raises
    ParameterError for a folder without samples or without verdicts, for two without a common problem, and for problems
    of one name whose golds differ.
    """
    stores = [SampleStore(folder) for folder in (a, b)]
    counts = []
    for held in stores:
        if not held.parts():
            raise ParameterError(f"{held.path} holds no samples: name the output folders of two evaluations")
        frame = held.counts()
        counts.append(frame[frame["n"] > 0])
        if counts[-1].empty:
            raise ParameterError(f"{held.path} holds samples but no verdicts: its evaluation has not been graded yet")
    keys = counts[0][["benchmark", "problem"]].merge(counts[1][["benchmark", "problem"]])
    if keys.empty:
        raise ParameterError(f"{a} and {b} have no problem in common, so there is nothing to compare")
    _check_golds(stores, keys)
    common = [keys.merge(frame, on=["benchmark", "problem"]) for frame in counts]
    table = compare(*common, ks)
    origins = [held.origin for held in stores]
    settings = {
        name: (origins[0].get(name), origins[1].get(name))
        for name in sorted({*origins[0], *origins[1]})
        if origins[0].get(name) != origins[1].get(name)
    }
    answers = tuple(int(frame["n"].min()) for frame in common)
    table.attrs = {"problems_a": len(counts[0]), "problems_b": len(counts[1]), "answers": answers, "settings": settings}
    return table


def _check_golds(stores: Sequence[SampleStore], keys: pd.DataFrame) -> None:
    """Raise ParameterError where a common problem was graded against two different answers."""
    first, second = (held.golds() for held in stores)
    for key in keys.itertuples(index=False, name=None):
        if key in first and key in second and first[key] != second[key]:
            raise ParameterError(
                f"problem {key[1]!r} of {key[0]!r} has the gold {first[key][0]!r} in one evaluation and "
                f"{second[key][0]!r} in the other, so the two did not solve the same; evaluate one of them again"
            )
