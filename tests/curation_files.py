"""Small datasets for the tests of curation, in every kind of file, and short ways to read and curate them."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from quagmire_utils.data import Dataset, find_dataset
from quagmire_utils.data.curation import Recipe, build
from quagmire_utils.data.curation.scan import read_file
from quagmire_utils.data.dataset import local_files, source_files
from quagmire_utils.data.rows import Dropped, Record


def write(path: Path, rows: list[dict], row_group_size: int = 17) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows) if "list" in path.name else "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path, row_group_size=row_group_size)
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        new = pa.ipc.new_file if "file" in path.name else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=13)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def pool_rows(n: int, seed: int = 0) -> list[dict]:
    """Make problems with one to four traces, some repeated, some spaced differently, in AceReason's columns."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        problem = rng.randrange(n // 3)
        question = f"Find the sum of {problem} and {problem + 1}."
        if rng.random() < 0.1:
            question = question.replace(" ", "  ")
        response = f"The sum is \\boxed{{{2 * problem + 1}}}" + "!" * rng.randrange(40)
        rows.append(ace(question, response))
    rows += [{**row, "output": row["output"].replace(" ", "\n")} for row in rows[: n // 20]]  # near duplicates
    return rows + rows[: n // 10]  # exact ones


def ace(question: str | None, answer: Any, **other: Any) -> dict[str, Any]:
    return {"category": "math", "source": "s", "input": question, "output": answer, **other}


def read(dataset: Dataset | str, *files: Path) -> list[Record | Dropped]:
    """Read all rows of a dataset, or of these files with the columns of a dataset of the catalogue."""
    if isinstance(dataset, str):
        dataset = find_dataset(dataset).from_files([str(path) for path in files])
    sources = source_files(dataset, local_files(dataset))
    return [record for source in sources for record in read_file(dataset, source)]


def make(folder: Path, files: Path | str, cache: Path | None = None, **asked: Any) -> dict[str, Any]:
    """Make a set of files in AceReason's columns; return its manifest."""
    recipe = Recipe(**{"source": "acereason", "files": (str(files),), "benchmarks": (), **asked})
    return build(recipe, folder, cache=cache or folder.parent / "cache", progress=False)
