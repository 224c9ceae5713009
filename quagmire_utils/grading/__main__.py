"""Grades of a store that is already there, from the shell; needs neither the model nor a GPU.

    python -m quagmire_utils.grading score samples/mine                          # the score with its bounds
    python -m quagmire_utils.grading regrade samples/mine --timeout 10           # every verdict anew
    python -m quagmire_utils.grading audit samples/mine --output disagreements.csv

The benchmarks are those that the store holds, by name; a set of one's own is given as `--benchmark path.jsonl` and is
called by its file name, as when it was sampled.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core.errors import ParameterError

if TYPE_CHECKING:
    import pandas as pd

    from quagmire_utils.data import Problem
    from quagmire_utils.evaluation.store import SampleStore


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and do what it says; a bad parameter is one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m quagmire_utils.grading", description="Grades of a store of samples: no model, no GPU."
    )
    parser.add_argument("command", choices=["score", "regrade", "audit"])
    parser.add_argument("store", type=Path, help="folder of the samples")
    parser.add_argument(
        "--benchmark", action="append", default=[], help="a .jsonl or .yaml file or a name; default: the store's"
    )
    parser.add_argument("--data-dir", help="local mirror of the benchmarks")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds per response (regrade)")
    parser.add_argument("--workers", type=int, help="grading processes (regrade); default: one per CPU")
    parser.add_argument("--output", type=Path, help="where audit writes its list as .csv; default: the terminal")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except ParameterError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _run(options: argparse.Namespace) -> None:
    from quagmire_utils.evaluation.audit import audit_store, score_table
    from quagmire_utils.evaluation.sampling import grade_store
    from quagmire_utils.evaluation.store import SampleStore
    from quagmire_utils.grading import Grader

    if not options.store.is_dir():
        raise ParameterError(f"store: there is no folder {options.store}")
    store = SampleStore(options.store)
    if not store.parts() and not (store.path / "store.json").is_file():
        raise ParameterError(f"store: {options.store} is no store of samples")
    if options.command == "audit" and options.output:
        _check_output(options.output)
    if options.command == "regrade":
        with Grader(options.workers, timeout=options.timeout) as grader:
            grade_store(store, _problems(store, options.benchmark, options.data_dir), grader.grade, regrade=True)
    if options.command == "audit":
        table = audit_store(store, _problems(store, options.benchmark, options.data_dir))
        undecided = table.attrs["undecided"]
        compared = table.attrs["samples"] - undecided
        differing = table.attrs["disagreements"]
        print(f"{differing} of {compared} graded samples are judged otherwise by the second grader")
        if undecided:
            print(f"about {undecided} more it cannot tell")
        if table.attrs["not_math"]:
            print(f"{table.attrs['not_math']} of other domains were not audited: the second grader is for mathematics")
        if options.output:
            _write(table, options.output)
        elif len(table):
            shown = table.drop(columns=["index", "ending"]).map(_harmless)
            print(shown.to_string(index=False, max_colwidth=40))
    else:
        print(score_table(store.counts()).to_string(index=False, float_format="{:.4f}".format))


def _problems(store: SampleStore, named: Sequence[str], data_dir: str | None) -> dict[str, list[Problem]]:
    from quagmire_utils.data import benchmark_names, load_benchmark

    known = benchmark_names()
    held = list(dict.fromkeys(store.counts()["benchmark"]))
    sources = {source if source in known else Path(source).stem: source for source in named}
    sources = sources or {name: name for name in held if name in known}
    missing = [name for name in held if name not in sources]
    if not sources:
        raise ParameterError(f"the store holds {', '.join(held) or 'nothing'}: give --benchmark path.jsonl for it")
    if missing:
        print(f"left as they are, for want of their golds: {', '.join(missing)}", file=sys.stderr)
    return {name: load_benchmark(source, data_dir=data_dir) for name, source in sources.items()}


def _harmless(cell: object) -> object:
    """A cell without what would command a terminal."""
    if not isinstance(cell, str):
        return cell
    return "".join(character if character.isprintable() else "\ufffd" for character in cell)


def _check_output(path: Path) -> None:
    """ParameterError unless a file can be written there."""
    if path.is_dir():
        raise ParameterError(f"output: {path} is a folder, not a file")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ParameterError(f"output: {path.parent} is no folder to write to ({error.strerror})") from error


def _is_formula(cell: object) -> bool:
    """Whether a spreadsheet may take a cell for a formula: spaces and what is invisible count for nothing there."""
    if not isinstance(cell, str):
        return False
    seen = (c for c in unicodedata.normalize("NFKC", cell) if not c.isspace() and unicodedata.category(c)[0] != "C")
    return next(seen, " ") in "=+-@" or cell[:1] in tuple("\t\r\n")


def _write(table: pd.DataFrame, path: Path) -> None:
    """As CSV, in one step. A cell that a spreadsheet would take for a formula gets an apostrophe in front."""
    from quagmire_utils.core.files import atomic_path

    safe = table.map(lambda cell: f"'{cell}" if _is_formula(cell) else cell)
    with atomic_path(path) as temporary:
        # All texts in quotes: a bare carriage return would begin a row, and its first cell.
        safe.to_csv(temporary, index=False, errors="backslashreplace", quoting=csv.QUOTE_NONNUMERIC)


if __name__ == "__main__":
    main()
