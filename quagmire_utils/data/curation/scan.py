"""The first reading of a dataset: each trace becomes a row of numbers, which choosing needs, and its texts.

Sets of hundreds of thousands of traces (Fig. 7: the 500,000 shortest) are chosen from millions of long texts, so the
texts stay on disk: the rows of each file are kept, compressed, in a parquet file as soon as the file is read. A scan
that was killed resumes with the next file, and another set of the same dataset costs seconds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core import files
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.curation.contamination import RULE, BenchmarkIndex, normalise, same_question
from quagmire_utils.data.curation.recipes import count_tokens
from quagmire_utils.data.dataset import Dataset, SourceFile
from quagmire_utils.data.reading import read_rows
from quagmire_utils.data.rows import Dropped, NoColumn, Record, records

if TYPE_CHECKING:
    import pandas as pd
    from tokenizers import Tokenizer
    from tqdm import tqdm

_VERSION = 5  # of the cached tables: raise it when what they hold changes
_BATCH = 512  # traces that are counted together
_REASONS = 1000  # for which a file's rows were left out; a filter may be on a column without repeats
_QUESTIONS = 50_000  # that are remembered: a problem's traces mostly stand together
_COLUMNS = {  # hashes have 64 bits: of 22 million texts, two share one with a probability of 1 in 75,000
    "id": "uint64",  # hash of question, response, answer and generator, exactly as written
    "problem": "uint64",  # hash of the question, the same for its spellings (`same_question`)
    "near": "uint64",  # hash of that and the normalised response
    "bytes": "int32",  # of question and response
    "tokens": "int32",  # of the response and its EOS (of the question, if there are no responses); -1: not counted
    "generator": "string",
    "hit": "string",  # JSON of the question and its `Match`; null: it matches no benchmark
}
_TEXTS = ("question", "response", "answer")


def scan(
    dataset: Dataset,
    sources: Sequence[SourceFile],
    index: BenchmarkIndex,
    tokenizer: Tokenizer | None,
    *,
    cache: str | Path,
    progress: bool = True,
) -> tuple[pd.DataFrame, Counter[str], list[Path]]:
    """Read the files of a dataset once, but for those in `cache`.

    Return a row of `_COLUMNS` for each trace, with the number of its file and its own in there; how many responses were
    left out, by reason; and for each file the parquet file with these columns and `_TEXTS`. `tokenizer`: None to count
    no tokens.
    """
    from tqdm import tqdm

    if Path(cache).exists() and not Path(cache).is_dir():
        raise ParameterError("cache", str(cache), "the path of a folder")
    reading = dataset.model_dump(exclude={"name", "folder", "title", "files", "licence"})
    key = [_VERSION, RULE, reading, index.digest, tokenizer and tokenizer.to_str()]
    paths = [Path(cache) / f"rows-{files.digest([*key, asdict(source)])}.parquet" for source in sources]
    with tqdm(desc=f"reading {dataset.name}", unit="trace", unit_scale=True, disable=not progress, delay=3) as bar:
        for source, path in zip(sources, paths, strict=True):
            if not path.is_file():
                _scan_file(dataset, source, index, tokenizer, path, bar)
    return *_collect(paths), paths


def _collect(paths: Sequence[Path]) -> tuple[pd.DataFrame, Counter[str]]:
    """Return one table of all files, without the texts, and the counts of what was left out."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, dropped = [], Counter()
    for number, path in enumerate(paths):
        table = pq.read_table(path, columns=list(_COLUMNS), read_dictionary=["generator", "hit"])
        dropped.update(json.loads(pq.read_metadata(path).metadata[b"dropped"]))
        places = {"file": np.full(len(table), number, np.int32), "row": np.arange(len(table))}
        for name, values in places.items():
            table = table.append_column(name, pa.array(values))
        tables.append(table.replace_schema_metadata(None))
    return pa.concat_tables(tables).unify_dictionaries().to_pandas(), dropped


def _scan_file(
    dataset: Dataset, source: SourceFile, index: BenchmarkIndex, tokenizer: Tokenizer | None, path: Path, bar: tqdm
) -> None:
    """Read one file and write the file of its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dropped: Counter[str] = Counter()

    @lru_cache(_QUESTIONS)
    def facts(question: str) -> tuple[bytes, str | None]:
        met = index.meets(question)
        return problem_digest(question), json.dumps((question, *met)) if met else None

    def kept() -> Iterator[Record]:
        for record in read_file(dataset, source):
            if isinstance(record, Record):
                yield record
            else:
                known = record.reason in dropped or len(dropped) < _REASONS
                dropped[record.reason if known else "other"] += 1

    kinds = _COLUMNS | dict.fromkeys(_TEXTS, "large_string")
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in kinds.items()])
    with files.atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        traces = kept()
        for batch in iter(lambda: list(islice(traces, _BATCH)), []):
            tokens = [-1] * len(batch)
            if tokenizer is not None:
                tokens = [n + 1 for n in count_tokens(tokenizer, [one.response or one.question for one in batch])]
            rows = [_row(record, length, *facts(record.question)) for record, length in zip(batch, tokens, strict=True)]
            writer.write_batch(pa.record_batch(list(zip(*rows, strict=True)), schema))
            bar.update(len(batch))
        writer.add_key_value_metadata({"dropped": json.dumps(dropped)})


def _row(record: Record, tokens: int, problem: bytes, hit: str | None) -> tuple[int | str | None, ...]:
    near = blake2b(problem + normalise(record.response).encode(), digest_size=8).digest()
    size = len(record.question.encode()) + len(record.response.encode())
    hashes = trace_id(record), int.from_bytes(problem), int.from_bytes(near)
    return (*hashes, size, tokens, record.generator, hit, record.question, record.response, record.answer)


def trace_id(record: Record) -> int:
    """Return 64 bits that stand for a trace's texts, whatever file they came from."""
    fields = "\0".join((record.question, record.answer, record.generator, record.response))
    return int.from_bytes(blake2b(fields.encode(), digest_size=8).digest())


def problem_digest(question: str) -> bytes:
    """Return eight bytes that stand for a question, however its LaTeX is set."""
    return blake2b(same_question(question).encode(), digest_size=8).digest()


def read_file(dataset: Dataset, file: SourceFile) -> Iterator[Record | Dropped]:
    """Yield the records of each row in order, or why there are none.

    Raises ParameterError if the first row lacks a column, with those that there are, and if a file is cut off or
    damaged.
    """
    for place, (_, row) in enumerate(read_rows(file.name, dataset.columns_among)):
        try:
            yield from records(dataset, row)
        except NoColumn as error:
            if not place:
                raise ParameterError(dataset.name, error.column, reason=f"{file.name}: {error}") from error
            yield Dropped(f"no {error.column}")
