"""The first reading of a dataset: each trace becomes a line of numbers, and its text is dropped.

Sets of hundreds of thousands of traces (Fig. 7: the 500,000 shortest) are chosen from millions of long texts. A dataset
is read twice, once for each text's length and hashes and once for the chosen texts, so memory never holds the texts.

Each unit's lines are cached in two parquet files, hashes and lengths, as soon as it is read: a scan that was killed
resumes, another set of the same dataset costs seconds, and another tokenizer only the lengths.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quagmire_utils.core import files
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.curation.contamination import RULE, BenchmarkIndex, normalise, same_question
from quagmire_utils.data.curation.source_files import Unit, read_unit
from quagmire_utils.data.curation.token_counts import TokenCounter
from quagmire_utils.data.dataset import Dataset
from quagmire_utils.data.rows import Dropped, Record

if TYPE_CHECKING:
    import pyarrow as pa

_VERSION = 3  # of the tables: raise it when what they hold changes
_BATCH = 512  # texts that are tokenised together
_REASONS = 1000  # for which a unit's rows were left out; a filter may be on a column without repeats
_QUESTIONS = 50_000  # that are remembered: a problem's traces mostly stand together
_COLUMNS = {"position": np.int64, "part": np.int32} | dict.fromkeys(("id", "problem", "near"), np.uint64)
_COLUMNS |= dict.fromkeys(("bytes", "generator", "hit"), np.int32)
_Job = tuple[Unit, Path, Path | None]  # and the files of its hashes and lengths
_Counts = Iterator[tuple[Unit, int]]


@dataclass(frozen=True, order=True)
class Hit:
    """A question that matches a benchmark: its text, the benchmark problem's id, the words shared ("" if equal)."""

    question: str
    problem_id: str
    shared: str


@dataclass(frozen=True)
class Table:
    """One entry a trace: arrays of equal length.

    Hashes have 64 bits: among 22 million traces, two of different text share one with a probability of 1 in 75,000.
    """

    units: list[Unit]
    unit: np.ndarray  # index into units
    position: np.ndarray  # of the row in its file or shard
    part: np.ndarray  # which of the row's responses
    id: np.ndarray  # of question, response, answer and generator, exactly as written
    problem: np.ndarray  # of the question, the same for its spellings (`same_question`)
    near: np.ndarray  # of that and the normalised response
    bytes: np.ndarray  # of question and response
    generator: np.ndarray  # index into generators
    hit: np.ndarray  # index into hits; -1: the question matches no benchmark
    tokens: np.ndarray  # of the response and its EOS (of the question, if there are no responses); -1: not counted
    generators: list[str]
    hits: list[Hit]
    dropped: Counter[str]  # rows and responses that were left out, by reason

    def __len__(self) -> int:
        """Return the number of traces."""
        return len(self.id)


def scan(
    dataset: Dataset,
    pieces: Sequence[Unit],
    index: BenchmarkIndex,
    tokenizer: str | None,
    *,
    cache: str | Path,
    workers: int = 1,
    progress: bool = True,
) -> Table:
    """Read a dataset's `pieces` (its `units`) once and return their table; what `cache` has is not read again.

    `tokenizer` is what `tokenizer_json` gives, or None to count no tokens. With several workers (processes, one core
    each) the table is the same.
    """
    from tqdm import tqdm

    if workers < 1:
        raise ParameterError("workers", workers, "at least 1")
    if Path(cache).exists() and not Path(cache).is_dir():
        raise ParameterError("cache", str(cache), "the path of a folder")
    reading = dataset.model_dump(exclude={"name", "folder", "title", "files", "licence"})
    jobs: list[_Job] = []
    for unit in pieces:
        key = [_VERSION, RULE, reading, asdict(unit)]
        lengths = None
        if tokenizer is not None:
            lengths = Path(cache) / f"lengths-{files.digest([key, tokenizer])}.parquet"
        jobs.append((unit, Path(cache) / f"rows-{files.digest([key, index.digest])}.parquet", lengths))
    todo = [job for job in jobs if not all(path is None or path.is_file() for path in job[1:])]
    total, traces = sum(unit.size for unit in pieces), 0
    settings = {"desc": f"reading {dataset.name}", "unit": "B", "unit_scale": True, "smoothing": 0.05}
    settings |= {"initial": total - sum(unit.size for unit, _, _ in todo), "disable": not progress or not todo}
    with tqdm(total=total, **settings) as bar:
        for unit, count in _scanned(todo, (dataset, index, tokenizer), min(workers, len(todo))):
            traces += count
            bar.set_postfix_str(f"{traces:,} traces", refresh=False)
            bar.update(unit.size)
    return _collect(jobs)


def _scanned(todo: list[_Job], common: tuple[Dataset, BenchmarkIndex, str | None], workers: int) -> _Counts:
    """Scan the units of `todo`, in this process or in several; yield each with its number of traces."""
    if workers <= 1:
        _start_worker(*common, alone=True)
        yield from ((job[0], _scan_unit(*job)) for job in todo)
        return
    spawn = get_context("spawn")  # a fork would copy the parent's threads in an undefined state
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=common) as pool:
        try:
            started: dict[Future[int], Unit] = {pool.submit(_scan_unit, *job): job[0] for job in todo}
            yield from ((started[future], future.result()) for future in as_completed(started))
        except BrokenProcessPool as error:
            reason = "a process that reads was killed, most likely for memory; start again with fewer, it resumes"
            raise ParameterError("workers", workers, reason=reason) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _collect(jobs: Sequence[_Job]) -> Table:
    """Return one table of all units' files."""
    import pyarrow as pa

    tables, dropped = [], Counter()
    for number, (unit, rows_path, lengths_path) in enumerate(jobs):
        rows = _read_cached(rows_path)
        dropped.update(json.loads(rows.schema.metadata[b"dropped"]))
        tokens = pa.array(np.full(len(rows), -1, np.int32))
        if lengths_path is not None:
            tokens = _read_cached(lengths_path).column("tokens")
            if len(tokens) != len(rows):
                raise changed(unit.name)
        units = pa.array(np.full(len(rows), number, np.int32))
        tables.append(rows.append_column("tokens", tokens).append_column("unit", units).replace_schema_metadata(None))
    joined = pa.concat_tables(tables).unify_dictionaries()
    columns = {name: joined.column(name) for name in joined.column_names}
    generators, hits = (columns.pop(name).combine_chunks() for name in ("generator", "hit"))
    return Table(
        [unit for unit, _, _ in jobs],
        **{name: column.to_numpy() for name, column in columns.items()},
        generator=generators.indices.to_numpy(),
        hit=hits.indices.fill_null(-1).to_numpy(),
        generators=generators.dictionary.to_pylist(),
        hits=[Hit(*json.loads(hit)) for hit in hits.dictionary.to_pylist()],
        dropped=dropped,
    )


def _read_cached(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except pa.ArrowException as error:
        raise ParameterError("cache", str(path), reason=f"{path} is damaged; remove it and start again") from error


def changed(name: str) -> ParameterError:
    """Build the error for a file that changed between the two readings."""
    return ParameterError("files", name, reason=f"{name} changed while it was read; start again")


# --- what a worker does -----------------------------------------------------------------------------------------------

_common: tuple[Dataset, BenchmarkIndex, TokenCounter | None] | None = None  # of this process


def _start_worker(dataset: Dataset, index: BenchmarkIndex, tokenizer: str | None, alone: bool = False) -> None:
    global _common
    if not alone:  # one process a core already
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _common = dataset, index, None if tokenizer is None else TokenCounter(tokenizer)


def _scan_unit(unit: Unit, rows_path: Path, lengths_path: Path | None) -> int:
    """Read one unit, write its files, return its number of traces."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dataset, index, counter = _common
    want_rows, want_lengths = not rows_path.is_file(), lengths_path is not None and not lengths_path.is_file()
    lines, count, texts, dropped = _Lines(index), 0, [], Counter()
    tokens = array("i")
    for position, part, record in read_unit(dataset, unit):
        if isinstance(record, Dropped):
            known = record.reason in dropped or len(dropped) < _REASONS
            dropped[record.reason if known else "other"] += 1
            continue
        count += 1
        if want_rows:
            lines.add(position, part, record)
        if want_lengths:
            texts.append(record.response or record.question)
            if len(texts) == _BATCH:
                tokens.extend(n + 1 for n in counter(texts))
                texts.clear()
    made = {}
    if want_rows:
        made[rows_path] = lines.table().replace_schema_metadata({b"dropped": json.dumps(dropped).encode()})
    if want_lengths:
        tokens.extend(n + 1 for n in counter(texts))
        made[lengths_path] = pa.table({"tokens": np.array(tokens, dtype=np.int32)})
    for path, table in made.items():
        with files.atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    return count


class _Lines:
    """The lines of numbers of a unit's traces."""

    def __init__(self, index: BenchmarkIndex) -> None:
        self.index = index
        # eight bytes a number, not forty: a unit may be a file of millions of rows
        self.columns = {name: array(np.dtype(kind).char) for name, kind in _COLUMNS.items()}
        self.generators: dict[str, int] = {}
        self.hits: list[str] = []
        self.questions: dict[str, tuple[bytes, int]] = {}  # digest and hit

    def add(self, position: int, part: int, record: Record) -> None:
        """Add one trace."""
        if record.question not in self.questions:
            if len(self.questions) >= _QUESTIONS:
                self.questions.clear()
            met = self.index.meets(record.question)
            if met:
                self.hits.append(json.dumps((record.question, *met)))
            self.questions[record.question] = problem_digest(record.question), len(self.hits) - 1 if met else -1
        problem, hit = self.questions[record.question]
        near = blake2b(problem, digest_size=8)
        near.update(normalise(record.response).encode())
        size = len(record.question.encode()) + len(record.response.encode())
        generator = self.generators.setdefault(record.generator, len(self.generators))
        hashes = trace_id(record), int.from_bytes(problem), int.from_bytes(near.digest())
        line = position, part, *hashes, size, generator, hit
        for column, value in zip(self.columns.values(), line, strict=True):
            column.append(value)

    def table(self) -> pa.Table:
        """Return the lines; generators and hits as texts."""
        import pyarrow as pa

        arrays = {name: np.array(values, dtype=_COLUMNS[name]) for name, values in self.columns.items()}
        for name, known in (("generator", self.generators), ("hit", self.hits)):
            codes = pa.array(arrays[name], mask=arrays[name] < 0)
            arrays[name] = pa.DictionaryArray.from_arrays(codes, pa.array(known, pa.string()))
        return pa.table(arrays)


def trace_id(record: Record) -> int:
    """Return 64 bits that stand for a trace's texts, whatever file they came from."""
    fields = "\0".join((record.question, record.answer, record.generator, record.response))
    return int.from_bytes(blake2b(fields.encode(), digest_size=8).digest())


def problem_digest(question: str) -> bytes:
    """Return eight bytes that stand for a question, however its LaTeX is set."""
    return blake2b(same_question(question).encode(), digest_size=8).digest()
