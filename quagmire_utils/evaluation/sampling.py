"""Sampling: n answers to every problem, written to a store as they come (paper Sec. 4.1 and App. B.3).

    config = EngineConfig(engine="vllm", model="path/to/checkpoint")     # ray="auto": on the nodes of a Ray cluster
    store = sample(config, problems, 64, SamplingParams(max_tokens=2048), "samples/checkpoint", benchmark="math500")
    grade_store(store, {"math500": problems}, grade)                    # of `marking`
    store.counts()

The work is cut into chunks, each a fixed set of problems and sample indices, and each chunk is one file of the store. A
killed run that is started again draws what is missing and ends with the records of an unbroken run; a run with more
samples adds to what is there. Sample i of a problem has its own seed, derived from the run's seed, the benchmark, the
problem's id and i, so it does not depend on what else is drawn, when, in which order, or where.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from quagmire_utils.core.errors import ParameterError, check_whole
from quagmire_utils.data.pretrained import model_origin
from quagmire_utils.data.problems import check_ids
from quagmire_utils.data.prompts import RenderedPrompt, check_fits, render_problem, resolve_template, writes_date
from quagmire_utils.engines import (
    Completion,
    Engine,
    EngineConfig,
    Request,
    SamplingParams,
    load_config,
    load_engine,
    load_tokenizer,
    resolve_context_length,
)
from quagmire_utils.engines.cluster import ReplicaPool
from quagmire_utils.evaluation.store import SampleStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from quagmire_utils.data import Problem

_CHUNK_LEAST, _CHUNK_SAMPLES = 32, 4096  # fewer at once waste a processor
_FLUSH_SAMPLES = 1024  # of a streaming engine: answers, and seconds, between two writes
_FLUSH_SECONDS = 30.0
_BLOCK = 64  # in a run of many samples, a chunk's sample indices begin and end at multiples of this
_WHOLE = 128  # up to so many, a problem's samples stay together; the shipped records were drawn this way


def sample(
    engine: Engine | EngineConfig,
    problems: Sequence[Problem],
    num_samples: int,
    params: SamplingParams,
    store: SampleStore | str | Path,
    *,
    benchmark: str,
    chunk_samples: int | None = None,
    progress: bool = True,
) -> SampleStore:
    """Bring every problem to at least `num_samples` samples in `store`, and return the store.

    `engine`: a loaded one, or the configuration to load it by. With `ray`, copies of the engine on the nodes of a Ray
    cluster (default: one per GPU; without GPUs, one per core) draw the samples, and this process writes them. A node
    that dies loses only its chunk in flight, and one that joins later takes part. `chunk_samples`: samples between two
    writes, so the most that a kill can lose (default: 4096, down to 32 if more could exceed the engine's
    `chunk_tokens`). A streaming engine (vllm, a server) gets all missing samples at once, and loses only unfinished
    requests.

    A resumed run gives the same bits if num_samples, problems and `chunk_samples` are the same; a run of 64 that grows
    to 192, 256 or more equals the run of that size. With other changes the seeds still hold, but a few answers may
    differ, because rounding depends on the other prompts in a batch.

    Raise ParameterError, before anything is drawn, for unusable problems, a prompt too long for the context, a cluster
    that does not answer, a store of samples drawn otherwise, or one that another process draws into. Raise OSError if
    the disk is full.
    """
    check_whole("num_samples", num_samples, 1)
    if chunk_samples is not None:
        check_whole("chunk_samples", chunk_samples, 1)
    if not problems:
        raise ParameterError("problems", reason=f"{benchmark} has none")
    check_ids(problems, "problems")
    store = store if isinstance(store, SampleStore) else SampleStore(store)
    config = engine if isinstance(engine, EngineConfig) else engine.config
    on_cluster = isinstance(engine, EngineConfig) and config.ray is not None
    with ExitStack() as stack:
        if isinstance(engine, EngineConfig) and not on_cluster:
            engine = stack.enter_context(closing(load_engine(config)))
        if on_cluster:
            tokenizer, context_length = tokenizer_and_context(config)
        else:
            tokenizer, context_length = engine.tokenizer, engine.context_length
        template = resolve_template(tokenizer, config.template)
        day = store.day
        prompts = {problem.id: render_problem(problem, tokenizer, template, day=day) for problem in problems}
        check_fits(list(prompts.values()), params.max_tokens, context_length)
        if on_cluster:
            pool = stack.enter_context(ReplicaPool(config))
            model, facts, tokens = config.model, pool.facts(), Engine.chunk_tokens
        else:
            model, facts, tokens = engine.model, engine.facts, engine.chunk_tokens
        notes = {"model": Path(model).name if Path(model).is_dir() else model}
        notes |= {"model_origin": found} if (found := model_origin(model)) else {}
        notes |= {"day": day.isoformat()} if writes_date(tokenizer) else {}
        stack.enter_context(store.drawing())
        store.bind({**facts, "template": template, **params.model_dump()}, notes=notes)
        frame = pd.DataFrame({"benchmark": benchmark, "problem": list(prompts)})
        frame["prompt"] = pd.Series([prompt.text for prompt in prompts.values()], dtype=object)
        store.add_prompts(frame.assign(prompt_tokens=[len(prompt.token_ids) for prompt in prompts.values()]))
        chunk = chunk_samples or max(_CHUNK_LEAST, min(_CHUNK_SAMPLES, tokens // params.max_tokens))
        work = stack.enter_context(closing(Work(store, benchmark, prompts, params, num_samples, chunk, progress)))
        if on_cluster:
            for runs, answers in pool.draw(work.todo, work.requests, params):
                work.keep(zip(runs, answers, strict=True))
        elif engine.streams:
            _draw_at_once(engine, work, params)
        else:
            for runs in work.todo:
                work.keep(zip(runs, engine.generate(work.requests(runs), params), strict=True))
    return store


def _draw_at_once(engine: Engine, work: Work, params: SamplingParams) -> None:
    """Draw all chunks at once; the engine schedules its requests."""
    runs, most = [run for runs in work.todo for run in runs], engine.samples_per_call
    if most is not None and params.temperature > 0:  # requests of one call each, so that an error loses few answers
        starts = [(run, i) for run in runs for i in range(0, run.count, most)]
        runs = [Run(run.problem, run.first + i, min(most, run.count - i)) for run, i in starts]
    finished: list[tuple[Run, list[Completion]]] = []
    written = time.monotonic()
    if not runs:
        return
    try:
        # closed also after an error here, so that the engine cancels its open requests
        with closing(engine.stream(work.requests(runs), params)) as answers:
            for i, completions in answers:
                finished.append((runs[i], completions))
                full = sum(run.count for run, _ in finished) >= _FLUSH_SAMPLES
                if full or time.monotonic() - written > _FLUSH_SECONDS:
                    kept, finished = finished, []
                    work.keep(kept)
                    written = time.monotonic()
    finally:
        work.keep(finished)  # also what was finished before an error


# --- the chunks of a run, and what the store lacks of them ------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Consecutive samples of one problem: a request to the engine."""

    problem: str
    first: int
    count: int


def problem_seed(seed: int, benchmark: str, problem_id: str) -> int:
    """Return the seed of a problem's sample 0 (sample i has this plus i): 48 bits, the same on every machine."""
    name = f"{seed}\x1f{benchmark}\x1f{problem_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(name).digest()[:6], "big")


def block_of(n: int, chunk_samples: int) -> int:
    """Return the multiple of a sample index at which the chunks of a run begin.

    Up to 128 samples of a problem stay together. Of more, 64 do, so that a run of 64 that grows to 256 consists of the
    chunks of a run of 256; if a chunk has no room for 64, the largest power of two that fits.
    """
    if n <= min(_WHOLE, chunk_samples):
        return n
    return min(_BLOCK, 1 << chunk_samples.bit_length() - 1)


def chunks_of(
    prompts: Mapping[str, RenderedPrompt], n: int, chunk_samples: int
) -> Iterator[tuple[tuple[str, ...], range]]:
    """Yield the problems and sample indices of each chunk of a run, `chunk_samples` at most, whatever the store holds.

    Equal chunks are equal batches with equal rounding, so a resumed run cuts the work as before. Long prompts come
    first: a lack of memory shows at once, and prompts of equal length share a batch.
    """
    longest_first = sorted(prompts, key=lambda problem: (-len(prompts[problem].token_ids), problem))
    block = block_of(n, chunk_samples)
    together = max(1, chunk_samples // min(n, block))
    for start in range(0, n, block):
        for first in range(0, len(longest_first), together):
            yield tuple(longest_first[first : first + together]), range(start, min(n, start + block))


def missing(problems: Iterable[str], indices: range, held: set[tuple[str, int]]) -> Iterator[Run]:
    """Yield the samples of a chunk that are not in `held` (problem, index); consecutive ones are one run."""
    for problem in problems:
        lacking = [index for index in indices if (problem, index) not in held]
        for _, group in itertools.groupby(enumerate(lacking), key=lambda pair: pair[1] - pair[0]):
            run = [index for _, index in group]
            yield Run(problem, run[0], len(run))


class Work:
    """What a run has to draw: `todo` holds, chunk by chunk, the runs that the store lacks."""

    def __init__(
        self,
        store: SampleStore,
        benchmark: str,
        prompts: Mapping[str, RenderedPrompt],
        params: SamplingParams,
        num_samples: int,
        chunk_samples: int,
        progress: bool = False,
    ) -> None:
        """Read what the store holds."""
        from tqdm import tqdm

        self.store, self.benchmark, self.prompts, self.params = store, benchmark, prompts, params
        self.tokens = 0  # generated for this process
        held = set(store.existing(benchmark)[["problem", "index"]].itertuples(index=False, name=None))
        chunks = chunks_of(prompts, num_samples, chunk_samples)
        self.todo = deque(runs for chunk in chunks if (runs := tuple(missing(*chunk, held))))
        total, left = len(prompts) * num_samples, sum(run.count for runs in self.todo for run in runs)
        how = {"desc": f"sampling {benchmark}", "unit": "sample", "disable": not progress, "delay": 2}
        self._bar = tqdm(total=total, initial=total - left, **how)

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()

    def requests(self, runs: Sequence[Run]) -> list[Request]:
        """Return the request of each run."""
        requests = []
        for run in runs:
            seed = problem_seed(self.params.seed, self.benchmark, run.problem) + run.first
            requests.append(Request(self.prompts[run.problem].token_ids, run.count, seed))
        return requests

    def keep(self, answers: Iterable[tuple[Run, Sequence[Completion]]]) -> None:
        """Store answers as one file."""
        rows = [(run.problem, run.first + j, each) for run, some in answers for j, each in enumerate(some)]
        if not rows:
            return
        problems, indices, completions = zip(*rows, strict=True)
        tokens = [completion.tokens for completion in completions]
        frame = pd.DataFrame({"benchmark": self.benchmark, "problem": problems, "index": indices, "tokens": tokens})
        frame["text"] = pd.Series([completion.text for completion in completions], dtype=object)
        frame["finish_reason"] = [completion.finish_reason for completion in completions]
        self.store.append(frame)
        self.tokens += sum(tokens)
        self._bar.update(len(rows))
        if seconds := self._bar.format_dict["elapsed"]:
            self._bar.set_postfix_str(f"{self.tokens / seconds:,.0f} tokens/s", refresh=False)


def tokenizer_and_context(config: EngineConfig) -> tuple[PreTrainedTokenizerBase, int]:
    """Return tokenizer and context length, without loading any weight."""
    config.check()
    how = (config.model, config.revision, config.trust_remote_code)
    context_length = resolve_context_length(load_config(*how), config.max_model_len)
    return load_tokenizer(*how), context_length
