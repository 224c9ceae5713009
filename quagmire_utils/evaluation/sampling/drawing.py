"""Drawing samples with one engine, or with the replicas of one on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.prompts import RenderedPrompt, check_fits, render_problem, resolve_template
from quagmire_utils.engines import Completion, Engine, EngineConfig, Request, SamplingParams, load_engine
from quagmire_utils.evaluation.sampling.actors import EngineFacts, draw_on_cluster, tokenizer_and_context
from quagmire_utils.evaluation.sampling.work import Chunk, Run, Work, block_of, chunks_of
from quagmire_utils.evaluation.store import SampleStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from quagmire_utils.data import Problem

_CHUNK_SAMPLES = 4096
_CHUNK_TOKENS = 16_000_000  # what a kill can lose at most; more of it idles less, waiting for a chunk's last answers
_FLUSH_SAMPLES = 1024  # of a continuous engine: how many answers, and how many seconds, may pass between two writes
_FLUSH_SECONDS = 30.0
_OTHERS_SECONDS = 0.2  # between two looks at what other processes have drawn


@dataclass(frozen=True)
class Samples:
    """The samples of one benchmark in a store."""

    store: SampleStore
    benchmark: str

    def frame(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The samples, sorted by problem and index; `columns` as in `SampleStore.read`."""
        return self.store.read(columns, benchmark=self.benchmark)

    def counts(self) -> pd.DataFrame:
        """Verdicts per problem, see `SampleStore.counts`."""
        counts = self.store.counts()
        return counts[counts["benchmark"] == self.benchmark].reset_index(drop=True)


def sample(
    engine: Engine | EngineConfig,
    problems: Sequence[Problem],
    n: int,
    params: SamplingParams,
    store: SampleStore | str | Path,
    *,
    benchmark: str,
    template: str = "auto",
    chunk_samples: int | None = None,
    continuous: bool | None = None,
    ray: str | None = None,
    replicas: int | None = None,
    progress: bool = True,
) -> Samples:
    """Bring every problem to at least `n` samples in `store`.

    `engine` is a loaded one, or an `EngineConfig` that says how to load it. `benchmark` names the set that the
    problems' ids belong to. `chunk_samples` is how many samples are drawn between two writes, so the most that a kill
    can lose (default: 4096, fewer where max_tokens is above 3900). Several processes may fill one store; each draws
    other chunks.

    To continue a killed run bit for bit, keep n, the problems and `chunk_samples`. More samples never touch those that
    are there; a run of 64 that grows to 192, 256 or more is, bit for bit, the run of so many from the start. With other
    changes the seeds still hold, but a model's rounding depends on what is in its batch, and an answer may differ once
    in a great many tokens (in bfloat16: not so many).

    `continuous` hands an engine that can stream (a server) all that is missing at once, long answers first, instead of
    chunk by chunk: it never waits for a chunk's last answer, a kill loses only unfinished requests, and batches depend
    on what else is in flight. Default: where the engine can. Either way, an error of such an engine keeps what it
    had finished.

    `ray` ("auto", or the address of a cluster) draws on the nodes of a Ray cluster, with `replicas` copies of the
    engine (default: one per GPU; without GPUs, one per core); what they draw travels here, into `store`. A node that
    dies loses only its chunk in flight, and one that joins later takes part. No shared file system is needed.

    Raises ParameterError, before anything is drawn, for no problems, an id that occurs twice, n < 1, a prompt too
    long for the context, a cluster that does not answer, or a store whose samples were drawn with another model,
    engine, template, prompt or parameters; afterwards, for a store that has lost some of the samples meanwhile.
    OSError, in a sentence, where the disk is full.
    """
    store = store if isinstance(store, SampleStore) else SampleStore(store)
    chunk_samples = _check(problems, n, params, benchmark, chunk_samples, ray, replicas)
    with ExitStack() as stack:
        if isinstance(engine, EngineConfig) and ray is None:
            engine = stack.enter_context(closing(load_engine(engine)))
        if ray is None:
            tokenizer, context_length = engine.tokenizer, engine.context_length
        else:
            spec = engine if isinstance(engine, EngineConfig) else engine.config
            tokenizer, context_length = tokenizer_and_context(spec)
        template = resolve_template(tokenizer, template)
        prompts = _render(problems, tokenizer, template)
        check_fits(list(prompts.values()), params.max_tokens, context_length)
        chunks = list(chunks_of(prompts, n, chunk_samples))

        def open_store(facts: EngineFacts) -> Work:
            store.bind(
                {
                    "model_digest": facts.model_digest,
                    "engine": facts.name,
                    "engine_version": facts.version,
                    "dtype": facts.dtype,
                    "template": template,
                    "temperature": params.temperature,
                    "top_p": params.top_p,
                    "max_tokens": params.max_tokens,
                    "seed": params.seed,
                },
                notes={"model": Path(facts.model).name if Path(facts.model).is_dir() else facts.model},
            )
            store.add_prompts(_prompt_frame(benchmark, prompts))
            store.clear_temporaries()
            work = Work(store, benchmark, prompts, params, chunks, block_of(n, chunk_samples))
            stack.enter_context(closing(work))
            work.bar = stack.enter_context(_progress_bar(work, progress))
            return work

        if ray is not None:
            work = draw_on_cluster(spec, params, ray, replicas, open_store)
        else:
            work = open_store(EngineFacts(engine.digest, engine.name, engine.version, engine.dtype, engine.model))
            streams = engine.streams
            if continuous is None:
                continuous = streams
            elif continuous and not streams:
                raise ParameterError(f"continuous: engine {engine.name} answers whole calls, and can't stream")
            (_draw_continuously if continuous else _draw_by_chunk)(engine, work, params)
        work.check_complete()
    return Samples(store, benchmark)


def _check(
    problems: Sequence[Problem],
    n: int,
    params: SamplingParams,
    benchmark: str,
    chunk_samples: int | None,
    ray: str | None,
    replicas: int | None,
) -> int:
    """Raise ParameterError for what can be seen without an engine; the size of a chunk."""
    whole = {"n": n, "chunk_samples": chunk_samples, "replicas": replicas}
    for name, value in whole.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise ParameterError(f"{name} must be a whole number, not {value!r}")
    if n < 1:
        raise ParameterError(f"n must be at least 1 sample per problem, not {n}")
    if not problems:
        raise ParameterError(f"problems: {benchmark} has none")
    ids = [problem.id for problem in problems]
    if len(set(ids)) < len(ids):
        raise ParameterError(
            f"problems: an id occurs twice in {benchmark} ({next(i for i in ids if ids.count(i) > 1)})"
        )
    if chunk_samples is None:
        chunk_samples = max(1, min(_CHUNK_SAMPLES, _CHUNK_TOKENS // params.max_tokens))
    if chunk_samples < 1:
        raise ParameterError(f"chunk_samples must be at least 1, not {chunk_samples}")
    if replicas is not None and (ray is None or replicas < 1):
        raise ParameterError(f"replicas must be at least 1, and needs ray, not {replicas} with ray={ray}")
    return chunk_samples


def _render(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, template: str
) -> dict[str, RenderedPrompt]:
    return {problem.id: render_problem(problem, tokenizer, template) for problem in problems}


def _draw_by_chunk(engine: Engine, work: Work, params: SamplingParams) -> None:
    while (chunk := _next(work)) is not None:
        runs = _cut(work.missing(chunk), engine, params)
        finished: list[tuple[Run, list[Completion]]] = []
        try:
            for i, completions in _answers(engine, [work.request(run) for run in runs], params):
                finished.append((runs[i], completions))
        finally:
            work.keep(finished)  # all of them, or what an engine that streams had finished before it failed
            work.finish(chunk)


def _draw_continuously(engine: Engine, work: Work, params: SamplingParams) -> None:
    """All chunks at once: first everybody's first samples, then, by their lengths, the rest."""
    while (chunk := _next(work)) is not None:
        chunks = [chunk]
        while (another := work.take()) is not None:
            chunks.append(another)
        waves = [[c for c in chunks if (c.indices.start > 0) == later] for later in (False, True)]
        try:
            for wave in waves:
                _draw_wave(engine, work, params, wave)
        finally:
            for one in chunks:
                work.finish(one)


def _draw_wave(engine: Engine, work: Work, params: SamplingParams, chunks: Sequence[Chunk]) -> None:
    expected = work.expected_lengths()
    runs = [run for chunk in chunks for run in work.missing(chunk)]
    runs = _cut(sorted(runs, key=lambda run: -expected[run.problem]), engine, params)
    finished: list[tuple[Run, list[Completion]]] = []
    written = time.monotonic()
    if not runs:
        return
    try:
        # closed also after an error here, so that the engine stops what it still has in work
        with closing(_answers(engine, [work.request(run) for run in runs], params)) as answers:
            for i, completions in answers:
                finished.append((runs[i], completions))
                full = sum(run.count for run, _ in finished) >= _FLUSH_SAMPLES
                if full or time.monotonic() - written > _FLUSH_SECONDS:
                    kept, finished = finished, []
                    work.keep(kept)
                    written = time.monotonic()
    finally:
        work.keep(finished)


def _cut(runs: Sequence[Run], engine: Engine, params: SamplingParams) -> list[Run]:
    """Runs of what the engine draws together, where it says so: an error then loses nothing that was answered."""
    size = engine.samples_per_call
    if size is None or params.temperature == 0:  # greedy samples are one, drawn once
        return list(runs)
    return [
        Run(run.problem, run.first + i, min(size, run.count - i)) for run in runs for i in range(0, run.count, size)
    ]


def _next(work: Work) -> Chunk | None:
    """The next chunk; waits while all that is left is being drawn by others, who may die."""
    while (chunk := work.take()) is None and work.todo:
        time.sleep(_OTHERS_SECONDS)
    return chunk


def _answers(
    engine: Engine, requests: Sequence[Request], params: SamplingParams
) -> Generator[tuple[int, list[Completion]], None, None]:
    """(index of a request, its completions), as they come where the engine can stream."""
    yield from engine.stream(requests, params)


def _prompt_frame(benchmark: str, prompts: dict[str, RenderedPrompt]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "benchmark": benchmark,
            "problem": list(prompts),
            "prompt": pd.Series([prompt.text for prompt in prompts.values()], dtype=object),
            "prompt_tokens": [len(prompt.token_ids) for prompt in prompts.values()],
        }
    )


def _progress_bar(work: Work, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=work.wanted,
        initial=work.wanted - work.left,
        desc=f"sampling {work.benchmark}",
        unit="sample",
        disable=not shown,
        delay=2,
    )
