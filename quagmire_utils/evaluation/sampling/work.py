"""The work of a sampling run: its chunks, which samples are missing, and which chunk comes next."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import digest
from quagmire_utils.core.locks import Claims
from quagmire_utils.engines import Completion, Request, SamplingParams
from quagmire_utils.evaluation.store import KEYS, SampleStore

if TYPE_CHECKING:
    from quagmire_utils.data.prompts import RenderedPrompt

_BLOCK = 64  # in a run of many samples, a chunk's sample indices begin and end at multiples of this
_WHOLE = 128  # up to so many, a problem's samples stay together; the shipped records were drawn this way


@dataclass(frozen=True)
class Chunk:
    """Samples drawn in one call and stored as one file: some problems, the same indices of each."""

    problems: tuple[str, ...]
    indices: range

    @property
    def name(self) -> str:
        """Name of the chunk; the same for every number of samples that cuts the work in the same way."""
        return digest([self.problems, self.indices.start])


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


class Work:
    """The chunks of a run that are not yet in a store; other processes may be drawing some of them."""

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
        from tqdm import tqdm

        self.store, self.benchmark, self.prompts, self.params = store, benchmark, prompts, params
        self.todo = list(chunks_of(prompts, num_samples, chunk_samples))
        self.tokens = 0  # generated for this process
        self._indices = range(num_samples)
        self.wanted = self.left = len(prompts) * num_samples
        self._held: dict[str, set[int]] = {problem: set() for problem in prompts}
        self._lengths: dict[str, tuple[int, int]] = {}  # known answers, and their tokens, by problem
        self._seen: set[str] = set()  # names of parts that were read
        self._claims = Claims(store.path)
        self._bar: Any = None
        self._refresh()
        how = {"desc": f"sampling {benchmark}", "unit": "sample", "disable": not progress, "delay": 2}
        self._bar = tqdm(total=self.wanted, initial=self.wanted - self.left, **how)

    def close(self) -> None:
        """Leave what is not drawn to other processes."""
        self._claims.close()
        self._bar.close()

    def take(self) -> Chunk | None:
        """Claim and return the next chunk: the one with the longest expected answers, so that no machine ends alone.

        The first samples of every problem come first, because they tell how long the others will be. None if nothing is
        left, or other processes have claimed the rest (then `todo` is not empty; ask again later).
        """
        self._refresh()
        expected = self.expected_lengths()
        costs = {chunk: self._cost(chunk, expected) for chunk in self.todo}
        self.todo = [chunk for chunk in self.todo if costs[chunk]]
        for chunk in sorted(self.todo, key=lambda chunk: (chunk.indices.start > 0, -costs[chunk])):
            if not self._claims.take(self._claim(chunk)):
                continue
            self._refresh()  # its last owner may have finished it just now
            self.todo.remove(chunk)
            if self._cost(chunk, expected):
                return chunk
            self._claims.release(self._claim(chunk))
        return None

    def missing(self, chunk: Chunk) -> list[Run]:
        """Return the samples of a chunk that the store lacks; consecutive ones are one run."""
        runs: list[Run] = []
        for problem in chunk.problems:
            held = self._held[problem]
            for index in chunk.indices:
                if index in held:
                    continue
                last = runs[-1] if runs else None
                if last is not None and last.problem == problem and last.first + last.count == index:
                    runs[-1] = Run(problem, last.first, last.count + 1)
                else:
                    runs.append(Run(problem, index, 1))
        return runs

    def request(self, run: Run) -> Request:
        """Return the request of a run."""
        seed = problem_seed(self.params.seed, self.benchmark, run.problem)
        return Request(self.prompts[run.problem].token_ids, run.count, seed + run.first)

    def keep(self, answers: Iterable[tuple[Run, Sequence[Completion]]]) -> None:
        """Store answers as one file, without those that another process has stored meanwhile."""
        rows = [(run.problem, run.first + j, each) for run, some in answers for j, each in enumerate(some)]
        self.tokens += sum(completion.tokens for _, _, completion in rows)
        self._refresh()
        rows = [row for row in rows if row[1] not in self._held[row[0]]]
        if not rows:
            return
        problems, indices, completions = zip(*rows, strict=True)
        tokens = [completion.tokens for completion in completions]
        frame = pd.DataFrame({"benchmark": self.benchmark, "problem": problems, "index": indices, "tokens": tokens})
        frame["text"] = pd.Series([completion.text for completion in completions], dtype=object)
        frame["finish_reason"] = [completion.finish_reason for completion in completions]
        part = self.store.append(frame)
        self._seen.add(part.name)
        self._add(problems, indices, tokens)
        if seconds := self._bar.format_dict["elapsed"]:
            self._bar.set_postfix_str(f"{self.tokens / seconds:,.0f} tokens/s", refresh=False)

    def check_complete(self) -> None:
        """Raise ParameterError if the store, read once more, lacks any of the chunks' samples."""
        held = self.store.read(KEYS, benchmark=self.benchmark)
        there = held.groupby("problem")["index"].agg(set).to_dict()
        lacking = [(p, i) for p in self.prompts for i in self._indices if i not in there.get(p, ())]
        if lacking:
            reason = f"{self.store.path} has lost {len(lacking)} samples of {self.benchmark} (such as index "
            reason += f"{lacking[0][1]} of problem {lacking[0][0]}), because its files were changed; sample again"
            raise ParameterError("store", self.store.path, reason=reason)

    def finish(self, chunk: Chunk) -> None:
        """Release a chunk that is stored."""
        self._claims.release(self._claim(chunk))

    def give_back(self, chunk: Chunk) -> None:
        """Put back a chunk that was not drawn completely."""
        self._claims.release(self._claim(chunk))
        self.todo.append(chunk)

    def expected_lengths(self) -> dict[str, float]:
        """Return the mean tokens of the known answers to each problem; without any, those of its prompt."""
        prompts = {problem: float(len(prompt.token_ids)) for problem, prompt in self.prompts.items()}
        return prompts | {problem: tokens / count for problem, (count, tokens) in self._lengths.items()}

    def _claim(self, chunk: Chunk) -> str:
        return f"{self.benchmark} {chunk.name}"

    def _cost(self, chunk: Chunk, expected: Mapping[str, float]) -> float:
        """Return the tokens that the chunk's missing samples are expected to have."""
        wanted = set(chunk.indices)
        return sum(len(wanted - self._held[problem]) * expected[problem] for problem in chunk.problems)

    def _refresh(self) -> None:
        """Read the parts that are new in the store, from an earlier run or another process."""
        there = {part.name for part in self.store.parts()}
        for part, table in self.store.verified(self.benchmark, without=self._seen):
            self._seen.add(part.name)
            self._add(*(table.column(name).to_pylist() for name in ("problem", "index", "tokens")))
        self._seen |= there

    def _add(self, problems: Sequence[str], indices: Sequence[int], tokens: Sequence[int]) -> None:
        for problem, index, length in zip(problems, indices, tokens, strict=True):
            held = self._held.get(problem)
            if held is None or index in held:
                continue
            held.add(index)
            count, total = self._lengths.get(problem, (0, 0))
            self._lengths[problem] = (count + 1, total + length)
            self.left -= index in self._indices
        if self._bar is not None:
            self._bar.update(self.wanted - self.left - self._bar.n)
