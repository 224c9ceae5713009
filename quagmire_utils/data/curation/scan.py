"""The first reading of a dataset: each trace becomes a row of numbers, and its text is dropped.

Sets of hundreds of thousands of traces (Fig. 7: the 500,000 shortest) are chosen from millions of long texts. A dataset
is read twice, once for each text's length and hashes and once for the chosen texts, so memory never holds the texts.

Each unit's rows are cached in a parquet file as soon as it is read: a scan that was killed resumes, and another set of
the same dataset costs seconds.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core import files
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.curation.contamination import RULE, BenchmarkIndex, normalise, same_question
from quagmire_utils.data.curation.source_files import Unit, read_unit
from quagmire_utils.data.curation.token_counts import TokenCounter
from quagmire_utils.data.dataset import Dataset
from quagmire_utils.data.rows import Record

if TYPE_CHECKING:
    import pandas as pd

_VERSION = 4  # of the cached tables: raise it when what they hold changes
_BATCH = 512  # traces that are counted together
_REASONS = 1000  # for which a unit's rows were left out; a filter may be on a column without repeats
_QUESTIONS = 50_000  # that are remembered: a problem's traces mostly stand together
_COLUMNS = {  # hashes have 64 bits: of 22 million texts, two share one with a probability of 1 in 75,000
    "position": "int64",  # of the row in its unit
    "part": "int32",  # which of the row's responses
    "id": "uint64",  # hash of question, response, answer and generator, exactly as written
    "problem": "uint64",  # hash of the question, the same for its spellings (`same_question`)
    "near": "uint64",  # hash of that and the normalised response
    "bytes": "int32",  # of question and response
    "tokens": "int32",  # of the response and its EOS (of the question, if there are no responses); -1: not counted
    "generator": "string",
    "hit": "string",  # JSON of the question and its `Match`; null: it matches no benchmark
}
_Job = tuple[Unit, Path]  # and the file of its rows


def scan(
    dataset: Dataset,
    pieces: Sequence[Unit],
    index: BenchmarkIndex,
    tokenizer: str | None,
    *,
    cache: str | Path,
    workers: int = 1,
    progress: bool = True,
) -> tuple[pd.DataFrame, Counter[str]]:
    """Read a dataset's `pieces` (its `units`) once, but for those in `cache`.

    Return a row of `_COLUMNS` for each trace, with the number of its unit, and how many responses were left out, by
    reason. `tokenizer` is what `tokenizer_json` gives, or None to count no tokens. With several workers (processes, one
    core each) the result is the same.
    """
    from tqdm import tqdm

    if workers < 1:
        raise ParameterError("workers", workers, "at least 1")
    if Path(cache).exists() and not Path(cache).is_dir():
        raise ParameterError("cache", str(cache), "the path of a folder")
    reading = dataset.model_dump(exclude={"name", "folder", "title", "files", "licence"})
    key = [_VERSION, RULE, reading, index.digest, tokenizer]
    jobs = [(unit, Path(cache) / f"rows-{files.digest([*key, asdict(unit)])}.parquet") for unit in pieces]
    todo = [job for job in jobs if not job[1].is_file()]
    total, traces = sum(unit.size for unit, _ in todo), 0
    with tqdm(total=total, desc=f"reading {dataset.name}", unit="B", unit_scale=True, disable=not progress) as bar:
        for unit, count in _scanned(todo, (dataset, index, tokenizer), min(workers, len(todo))):
            traces += count
            bar.set_postfix_str(f"{traces:,} traces", refresh=False)
            bar.update(unit.size)
    return _collect(jobs)


def _scanned(
    todo: list[_Job], common: tuple[Dataset, BenchmarkIndex, str | None], workers: int
) -> Iterator[tuple[Unit, int]]:
    """Scan the units of `todo`, in this process or in several; yield each with its number of traces."""
    if workers <= 1:
        _start_worker(*common)
        yield from ((job[0], _scan_unit(*job)) for job in todo)
        return
    spawn = get_context("spawn")  # a fork would copy the parent's threads in an undefined state
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_alone, initargs=common) as pool:
        try:
            started = {pool.submit(_scan_unit, *job): job[0] for job in todo}
            yield from ((started[future], future.result()) for future in as_completed(started))
        except BrokenProcessPool as error:
            reason = "a process that reads was killed, most likely for memory; start again with fewer, it resumes"
            raise ParameterError("workers", workers, reason=reason) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _collect(jobs: Sequence[_Job]) -> tuple[pd.DataFrame, Counter[str]]:
    """Return one table of all units' files, and the counts of what was left out."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, dropped = [], Counter()
    for number, (_, path) in enumerate(jobs):
        table = pq.read_table(path, read_dictionary=["generator", "hit"])
        dropped.update(json.loads(table.schema.metadata[b"dropped"]))
        units = pa.array(np.full(len(table), number, np.int32))
        tables.append(table.append_column("unit", units).replace_schema_metadata(None))
    return pa.concat_tables(tables).unify_dictionaries().to_pandas(), dropped


# --- what a worker does -----------------------------------------------------------------------------------------------

_common: tuple[Dataset, Callable[[str], tuple[bytes, str | None]], TokenCounter | None] | None = None  # of this process


def _start_alone(dataset: Dataset, index: BenchmarkIndex, tokenizer: str | None) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    _start_worker(dataset, index, tokenizer)


def _start_worker(dataset: Dataset, index: BenchmarkIndex, tokenizer: str | None) -> None:
    global _common

    @lru_cache(_QUESTIONS)
    def facts(question: str) -> tuple[bytes, str | None]:
        met = index.meets(question)
        return problem_digest(question), json.dumps((question, *met)) if met else None

    _common = dataset, facts, None if tokenizer is None else TokenCounter(tokenizer)


def _scan_unit(unit: Unit, path: Path) -> int:
    """Read one unit, write the file of its rows, return its number of traces."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dropped: Counter[str] = Counter()

    def kept() -> Iterator[tuple[int, int, Record]]:
        for position, part, record in read_unit(_common[0], unit):
            if isinstance(record, Record):
                yield position, part, record
            else:
                known = record.reason in dropped or len(dropped) < _REASONS
                dropped[record.reason if known else "other"] += 1

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _COLUMNS.items()])
    traces = kept()
    groups = iter(lambda: list(islice(traces, _BATCH)), [])
    batches = [pa.record_batch(_columns(group), schema) for group in groups]
    table = pa.Table.from_batches(batches, schema.with_metadata({b"dropped": json.dumps(dropped).encode()}))
    with files.atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return len(table)


def _columns(batch: Sequence[tuple[int, int, Record]]) -> list[Sequence[int | str | None]]:
    """Return the columns of some traces."""
    _, facts, counter = _common
    tokens = [-1] * len(batch)
    if counter is not None:
        tokens = [n + 1 for n in counter([record.response or record.question for *_, record in batch])]
    rows = []
    for (position, part, record), length in zip(batch, tokens, strict=True):
        problem, hit = facts(record.question)
        near = blake2b(problem + normalise(record.response).encode(), digest_size=8).digest()
        size = len(record.question.encode()) + len(record.response.encode())
        hashes = trace_id(record), int.from_bytes(problem), int.from_bytes(near)
        rows.append((position, part, *hashes, size, length, record.generator, hit))
    return list(zip(*rows, strict=True))


def trace_id(record: Record) -> int:
    """Return 64 bits that stand for a trace's texts, whatever file they came from."""
    fields = "\0".join((record.question, record.answer, record.generator, record.response))
    return int.from_bytes(blake2b(fields.encode(), digest_size=8).digest())


def problem_digest(question: str) -> bytes:
    """Return eight bytes that stand for a question, however its LaTeX is set."""
    return blake2b(same_question(question).encode(), digest_size=8).digest()
