"""The work of a sampling run: its chunks, which samples are missing, and which chunk comes next."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from quagmire_utils.engines import Completion, Request, SamplingParams
from quagmire_utils.evaluation.store import SampleStore

if TYPE_CHECKING:
    from quagmire_utils.data.prompts import RenderedPrompt

_BLOCK = 64  # in a run of many samples, a chunk's sample indices begin and end at multiples of this
_WHOLE = 128  # up to so many, a problem's samples stay together; the shipped records were drawn this way


@dataclass(frozen=True)
class Chunk:
    """Samples drawn in one call and stored as one file: some problems, the same indices of each."""

    problems: tuple[str, ...]
    indices: range


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


def chunks_of(prompts: Mapping[str, RenderedPrompt], n: int, chunk_samples: int) -> Iterator[Chunk]:
    """Yield all chunks of a run, of at most `chunk_samples` samples each, whatever the store holds.

    Equal chunks are equal batches with equal rounding, so a resumed run cuts the work as before. Long prompts come
    first: a lack of memory shows at once, and prompts of equal length share a batch.
    """
    longest_first = sorted(prompts, key=lambda problem: (-len(prompts[problem].token_ids), problem))
    block = block_of(n, chunk_samples)
    together = max(1, chunk_samples // min(n, block))
    for start in range(0, n, block):
        for first in range(0, len(longest_first), together):
            yield Chunk(tuple(longest_first[first : first + together]), range(start, min(n, start + block)))


def missing(chunk: Chunk, held: set[tuple[str, int]]) -> Iterator[Run]:
    """Yield the samples of a chunk that are not in `held` (problem, index); consecutive ones are one run."""
    for problem in chunk.problems:
        lacking = [index for index in chunk.indices if (problem, index) not in held]
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
        held: set[tuple[str, int]] = set()
        for _, table in store.verified(benchmark):
            held.update(zip(*(table.column(name).to_pylist() for name in ("problem", "index")), strict=True))
        chunks = chunks_of(prompts, num_samples, chunk_samples)
        self.todo = deque(runs for chunk in chunks if (runs := tuple(missing(chunk, held))))
        total, left = len(prompts) * num_samples, sum(run.count for runs in self.todo for run in runs)
        how = {"desc": f"sampling {benchmark}", "unit": "sample", "disable": not progress, "delay": 2}
        self._bar = tqdm(total=total, initial=total - left, **how)

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()

    def request(self, run: Run) -> Request:
        """Return the request of a run."""
        seed = problem_seed(self.params.seed, self.benchmark, run.problem)
        return Request(self.prompts[run.problem].token_ids, run.count, seed + run.first)

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
