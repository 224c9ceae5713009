"""The first reading of a source: every trace becomes a line of numbers, and its text is let go.

Sets of hundreds of thousands of traces (Fig. 7: the 500,000 shortest) are chosen from millions of long texts. What the
choice needs of a text is its length in tokens and a few hashes, some fifty bytes; so a source is read twice, once for
these and once for the texts that were chosen, and memory holds a table, never the texts.

    counting = tokenizer_json("Qwen/Qwen3-4B-Base")
    table = scan(source, units(source), index, counting, cache="scratch/curation", workers=2)
    table.tokens, table.problem, table.hit        # one entry a trace, in the order of the files

Each unit's line numbers are cached in two parquet files, hashes and lengths, as soon as it is read: a scan that was
killed goes on, another set of the same source costs seconds, and another tokenizer only the lengths.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.core import files
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_path
from quagmire_utils.data.curation.contamination import RULE, BenchmarkIndex, normalise, same_question
from quagmire_utils.data.curation.counting import TokenCounter
from quagmire_utils.data.curation.files import Unit, read_unit
from quagmire_utils.data.curation.sources import Dropped, Record, Source

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

_VERSION = 2  # of the tables: raise it when what they hold changes
_BATCH, _BATCH_CHARACTERS = 1000, 2**23  # texts that are tokenised together
_REASONS = 1000  # for which a unit's rows were left out; a filter may be on a column without repeats
_COLUMNS = {
    "position": np.int64,
    "part": np.int32,
    "id": np.uint64,
    "problem": np.uint64,
    "near": np.uint64,
    "bytes": np.int32,
    "generator": np.int32,
    "hit": np.int32,
}


@dataclass(frozen=True, order=True)
class Hit:
    """A question that meets a benchmark's: its text, the benchmark problem's id, the words shared ("" if equal)."""

    question: str
    problem_id: str
    shared: str


@dataclass(frozen=True)
class Table:
    """One entry a trace: arrays of equal length. Hashes have 64 bits: among 22 million traces, two of different text
    share one with a probability of 1 in 75,000."""

    units: list[Unit]
    unit: np.ndarray  # index into units
    position: np.ndarray  # of the row in its file or shard
    part: np.ndarray  # which of the row's responses
    id: np.ndarray  # of question, response, answer and generator, exactly as written
    problem: np.ndarray  # of the question, the same for its spellings (`same_question`)
    near: np.ndarray  # of that and the normalised response
    bytes: np.ndarray  # of question and response
    generator: np.ndarray  # index into generators
    hit: np.ndarray  # index into hits; -1: the question meets no benchmark
    tokens: np.ndarray  # of the response and its EOS (of the question, where there are no responses); -1: not counted
    generators: list[str]
    hits: list[Hit]
    dropped: Counter[str]  # rows and responses that were not taken, by reason

    def __len__(self) -> int:
        return len(self.id)


def tokenizer_json(tokenizer: str | Path | PreTrainedTokenizerBase) -> str:
    """The tokenizer as its library saves it, without truncation and padding.

    `tokenizer` is a path, a hub id or a loaded tokenizer. Raises ParameterError for one that is not there, and for one
    without a fast version.
    """
    if isinstance(tokenizer, str | Path):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            raise ParameterError(
                f"tokenizer={str(tokenizer)!r} cannot be loaded: {str(error).splitlines()[0]}"
            ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ParameterError(f"tokenizer: {type(tokenizer).__name__} has no fast version, and counting would take days")
    from tokenizers import Tokenizer

    fast = Tokenizer.from_str(backend.to_str())
    fast.no_truncation()
    fast.no_padding()
    return fast.to_str()


def scan(
    source: Source,
    pieces: Sequence[Unit],
    index: BenchmarkIndex,
    tokenizer: str | None,
    *,
    cache: str | Path,
    workers: int = 1,
    progress: bool = True,
) -> Table:
    """Read a source's `pieces` (its `units`) once and return their table; what `cache` has is not read again.

    `tokenizer` is what `tokenizer_json` gives, or None to count no tokens. With several workers (processes, one core
    each) the table is the same.
    """
    if workers < 1:
        raise ParameterError(f"workers must be at least 1, not {workers}")
    if Path(cache).exists() and not Path(cache).is_dir():
        raise ParameterError(f"cache: {cache} is no folder")
    reading = {k: v for k, v in asdict(source).items() if k not in ("title", "files", "mirror", "licence", "name")}
    jobs: list[tuple[Unit, Path, Path | None]] = []
    for unit in pieces:
        key = [_VERSION, RULE, reading, asdict(unit)]
        lengths = None
        if tokenizer is not None:
            lengths = Path(cache) / f"lengths-{files.digest([key, tokenizer])}.parquet"
        jobs.append((unit, Path(cache) / f"rows-{files.digest([key, index.digest])}.parquet", lengths))
    todo = [job for job in jobs if not job[1].is_file() or (job[2] is not None and not job[2].is_file())]
    _run(todo, source, index, tokenizer, workers, progress, sum(job[0].size for job in jobs))
    return _collect(jobs)


def _run(
    todo: list[tuple[Unit, Path, Path | None]],
    source: Source,
    index: BenchmarkIndex,
    tokenizer: str | None,
    workers: int,
    progress: bool,
    total: int,
) -> None:
    from tqdm import tqdm

    with tqdm(
        total=total,
        initial=total - sum(unit.size for unit, _, _ in todo),
        desc=f"reading {source.name}",
        unit="B",
        unit_scale=True,
        disable=not progress or not todo,
        smoothing=0.05,
    ) as bar:
        traces = 0

        def done(unit: Unit, count: int) -> None:
            nonlocal traces
            traces += count
            bar.set_postfix_str(f"{traces:,} traces", refresh=False)
            bar.update(unit.size)

        if workers == 1 or len(todo) < 2:
            _start_worker(source, index, tokenizer, parallel=True)
            for job in todo:
                done(job[0], _scan_unit(*job))
            return
        with ProcessPoolExecutor(
            min(workers, len(todo)),
            mp_context=get_context("spawn"),  # a fork would copy the parent's threads half-way
            initializer=_start_worker,
            initargs=(source, index, tokenizer, False),
        ) as pool:
            try:
                waiting: dict[Future[int], Unit] = {pool.submit(_scan_unit, *job): job[0] for job in todo}
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        done(waiting.pop(future), future.result())
            except BrokenProcessPool as error:
                raise ParameterError(
                    f"workers={workers}: a process that reads was killed, most likely for memory; start again with "
                    "fewer, what was read is kept"
                ) from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _collect(jobs: Sequence[tuple[Unit, Path, Path | None]]) -> Table:
    """One table of all units' files."""
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in (*_COLUMNS, "unit", "tokens")}
    generators: dict[str, int] = {}
    hits: list[Hit] = []
    dropped: Counter[str] = Counter()
    for number, (unit, rows_path, lengths_path) in enumerate(jobs):
        rows = _read_cached(rows_path)
        facts = json.loads(rows.schema.metadata[b"facts"])
        columns = {name: rows.column(name).to_numpy() for name in _COLUMNS}
        mapping = np.array([generators.setdefault(g, len(generators)) for g in facts["generators"]] or [0], np.int32)
        columns["generator"] = mapping[columns["generator"]]
        columns["hit"] = np.where(columns["hit"] < 0, -1, columns["hit"] + len(hits)).astype(np.int32)
        hits += [Hit(*hit) for hit in facts["hits"]]
        dropped.update(facts["dropped"])
        columns["unit"] = np.full(len(rows), number, np.int32)
        columns["tokens"] = np.full(len(rows), -1, np.int32)
        if lengths_path is not None:
            columns["tokens"] = _read_cached(lengths_path).column("tokens").to_numpy()
            if len(columns["tokens"]) != len(rows):
                raise ParameterError(f"{unit.name} changed while it was read; start again")
        for name, values in columns.items():
            arrays[name].append(values)
    empty = {name: [np.empty(0, _COLUMNS.get(name, np.int32))] for name in arrays}
    joined = {name: np.concatenate(parts or empty[name]) for name, parts in arrays.items()}
    return Table([unit for unit, _, _ in jobs], **joined, generators=list(generators), hits=hits, dropped=dropped)


def _read_cached(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except pa.ArrowException as error:
        raise ParameterError(f"cache: {path} is damaged; remove it, and its unit is read again") from error


# --- what a worker does -----------------------------------------------------------------------------------------------


@dataclass
class _Worker:
    source: Source
    index: BenchmarkIndex
    count: TokenCounter | None


_worker: _Worker | None = None


def _start_worker(source: Source, index: BenchmarkIndex, tokenizer: str | None, parallel: bool) -> None:
    global _worker
    if not parallel:  # one process a core already
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = _Worker(source, index, None if tokenizer is None else TokenCounter(tokenizer))


def _scan_unit(unit: Unit, rows_path: Path, lengths_path: Path | None) -> int:
    """Read one unit, write its files, return its number of traces."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    reader = _Reader(_worker, want_rows=not rows_path.is_file(), want_lengths=lengths_path is not None)
    if lengths_path is not None and lengths_path.is_file():
        reader.want_lengths = False
    for position, part, record in read_unit(_worker.source, unit):
        reader.add(position, part, record)
    reader.flush()
    if reader.want_rows:
        arrays = {
            name: pa.array(np.array(values, dtype=_COLUMNS[name]))
            for name, values in zip(_COLUMNS, reader.columns, strict=True)
        }
        facts = {"generators": list(reader.generators), "hits": reader.hits, "dropped": reader.dropped}
        table = pa.table(arrays).replace_schema_metadata({b"facts": json.dumps(facts).encode()})
        with atomic_path(rows_path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    if reader.want_lengths:
        with atomic_path(lengths_path) as temporary:
            tokens = pa.array(np.array(reader.tokens, dtype=np.int32))
            pq.write_table(pa.table({"tokens": tokens}), temporary, compression="zstd")
    return reader.count


class _Reader:
    """Turns records into lines of numbers."""

    def __init__(self, worker: _Worker, want_rows: bool, want_lengths: bool) -> None:
        self.worker, self.want_rows, self.want_lengths = worker, want_rows, want_lengths
        # eight bytes a number, not forty: a unit may be a file of millions of rows
        self.columns = tuple(array(np.dtype(kind).char) for kind in _COLUMNS.values())
        self.tokens = array("i")
        self.generators: dict[str, int] = {}
        self.hits: list[tuple[str, str, str]] = []
        self.dropped: Counter[str] = Counter()
        self.count = 0
        self._texts: list[str] = []
        self._characters = 0
        self._questions: dict[str, tuple[int, bytes, int]] = {}  # a problem's traces mostly stand together

    def add(self, position: int, part: int, record: Record | Dropped) -> None:
        if isinstance(record, Dropped):
            reason = record.reason
            if reason == "generator":
                reason = f"generator is {record.generator or 'not named'}"
            if reason not in self.dropped and len(self.dropped) >= _REASONS:
                reason = "other"
            self.dropped[reason] += 1
            return
        self.count += 1
        if self.want_lengths:
            self._texts.append(record.response or record.question)
            self._characters += len(self._texts[-1])
            if len(self._texts) == _BATCH or self._characters > _BATCH_CHARACTERS:
                self.flush()
        if not self.want_rows:
            return
        known = self._questions.get(record.question)
        if known is None:
            if len(self._questions) >= 50_000:
                self._questions.clear()
            known = self._questions[record.question] = self._look_up(record.question)
        problem, seed, hit = known
        near = blake2b(seed, digest_size=8)
        near.update(normalise(record.response).encode())
        question, response = record.question.encode(), record.response.encode()
        size = len(question) + len(response)
        generator = self.generators.setdefault(record.generator, len(self.generators))
        line = (position, part, trace_id(record), problem, int.from_bytes(near.digest()), size, generator, hit)
        for column, value in zip(self.columns, line, strict=True):
            column.append(value)

    def flush(self) -> None:
        if self._texts:
            self.tokens.extend(count + 1 for count in self.worker.count(self._texts))
            self._texts, self._characters = [], 0

    def _look_up(self, question: str) -> tuple[int, bytes, int]:
        met = self.worker.index.meets(question)
        hit = -1
        if met:
            hit = len(self.hits)
            self.hits.append((question, *met))
        digest = problem_digest(question)
        return int.from_bytes(digest), digest, hit


def trace_id(record: Record) -> int:
    """64 bits that stand for a trace's texts, whatever file they came from."""
    fields = "\0".join((record.question, record.answer, record.generator, record.response))
    return int.from_bytes(blake2b(fields.encode(), digest_size=8).digest())


def problem_digest(question: str) -> bytes:
    """Eight bytes that stand for a question, however its LaTeX is set."""
    return blake2b(same_question(question).encode(), digest_size=8).digest()
