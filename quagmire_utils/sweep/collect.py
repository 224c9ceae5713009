"""Gathering the cells' records into the files of a results folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from quagmire_utils.core import files, provenance
from quagmire_utils.core.files import read_json, read_parquet, write_json, write_parquet
from quagmire_utils.core.records import read_table
from quagmire_utils.core.settings import CandidateSettings, FamilySettings, Profile, explicit
from quagmire_utils.sweep.cells import ship_base
from quagmire_utils.sweep.grid import Cell, cell_folder, plan, rl_runs

TABLES = ("counts", "generalization_loss", "rl_curves")
RECORDS = (*TABLES, "candidates", "cells")
TABLES_OF = {  # which tables a cell of each kind must have rows in
    "base": ("counts", "generalization_loss"),
    "sft": ("counts", "generalization_loss"),
    "rl": ("counts", "rl_curves"),
}


def finished_cells(folder: Path, cells: Sequence[Cell]) -> set[str]:
    """Ids of the cells whose records, made with the same parameters, are in `folder` (collected or not yet).

    Raises ParameterError where a file of the records is damaged or lost and the cells' own folders do not make up for
    it: hours of work must not be repeated in silence.
    """
    fresh = {c.id for c in cells if _fresh(folder, c) is not None}
    if len(fresh) == len(cells):
        return fresh
    collected = _collected(folder, fresh)
    return fresh | {c.id for c in cells if collected.get(c.id) == c.digest}


def is_collected(profile: Profile, folder: Path) -> bool:
    """Whether the records in `folder` are this profile's, complete and readable."""
    try:
        manifest = read_json(folder / "manifest.json")
        same = manifest["settings_digest"] == files.digest(explicit(profile))
    except (OSError, ValueError, KeyError):
        return False
    if not all(_read(folder / f"{name}.parquet") is not None for name in RECORDS):
        return False
    collected = _collected(folder)
    return same and all(collected.get(cell.id) == cell.digest for cell in plan(profile))


def _fresh(folder: Path, cell: Cell) -> dict[str, pd.DataFrame] | None:
    """The tables in a cell's own folder; None unless all are there, made with its present parameters, and readable."""
    place = cell_folder(folder, cell)
    try:
        if read_json(place / "cell.json")["digest"] != cell.digest:
            return None
    except (OSError, ValueError, KeyError):
        return None
    tables = {table: _read(place / f"{table}.parquet") for table in TABLES_OF[cell.kind]}
    return None if any(frame is None for frame in tables.values()) else tables


def _read(path: Path) -> pd.DataFrame | None:
    """A table, or None where it is missing or damaged."""
    try:
        return read_parquet(path)
    except (OSError, ValueError, KeyError):  # pyarrow's errors are ValueErrors and OSErrors
        return None


def _collected(folder: Path, fresh: Collection[str] = ()) -> dict[str, str]:
    """Digest by cell, of the cells with rows in every table that they belong to.

    Raises ParameterError for a damaged table, and for a lost one beside a manifest, which is written last, unless all
    its cells are `fresh`, in folders of their own.
    """
    frame = _recorded(folder, "cells")
    if frame is None or not len(frame):
        return {}
    present = {}
    for table in TABLES:
        needed = any(
            table in TABLES_OF[kind] and cell not in fresh
            for cell, kind in zip(frame["cell"], frame["kind"], strict=True)
        )
        rows = _recorded(folder, table) if needed else _read(folder / f"{table}.parquet")
        present[table] = set() if rows is None or not len(rows) else set(rows["cell"].unique())
    return {
        cell: digest
        for cell, kind, digest in zip(frame["cell"], frame["kind"], frame["digest"], strict=True)
        if all(cell in present[table] for table in TABLES_OF[kind])
    }


def _recorded(folder: Path, table: str) -> pd.DataFrame | None:
    """A table of the records; None where none was written yet, or where whoever removed it took the manifest too."""
    path = folder / f"{table}.parquet"
    return read_table(path) if path.exists() or (folder / "manifest.json").exists() else None


def collect(profile: Profile, folder: str | Path, *, wall_seconds: float | None = None) -> dict[str, pd.DataFrame]:
    """Merge the cells' records into the record files of `folder`; the manifest is written last.

    Records of cells that the profile no longer has, or that were made with other parameters, are dropped.
    """
    folder = Path(folder)
    cells = plan(profile)
    read = {cell.id: _fresh(folder, cell) for cell in cells}
    fresh = {cell_id: tables for cell_id, tables in read.items() if tables is not None}
    collected = _collected(folder, fresh) if len(fresh) < len(cells) else {}
    kept = {cell.id for cell in cells if collected.get(cell.id) == cell.digest and cell.id not in fresh}
    done = kept | fresh.keys()
    records: dict[str, pd.DataFrame] = {}
    for table in TABLES:
        parts = []
        path = folder / f"{table}.parquet"
        if path.is_file() and kept:
            old = read_parquet(path)
            parts.append(old[old["cell"].isin(kept)])
        for cell_id, tables in fresh.items():
            if table in tables:
                tables[table].insert(0, "cell", cell_id)
                parts.append(tables[table])
        if parts:
            order = {cell.id: i for i, cell in enumerate(cells)}
            merged = pd.concat(parts, ignore_index=True)
            records[table] = merged.sort_values(
                "cell", key=lambda ids: ids.map(order), kind="stable", ignore_index=True
            )
    rows = []
    if kept:
        old = read_parquet(folder / "cells.parquet")
        rows.append(old[old["cell"].isin(kept)])
    rows.append(
        pd.DataFrame([_cell_row(read_json(cell_folder(folder, c) / "cell.json")) for c in cells if c.id in fresh])
    )
    records["cells"] = pd.concat([frame for frame in rows if len(frame)], ignore_index=True) if done else pd.DataFrame()
    records["candidates"] = _candidates(profile, records["cells"])
    for table, frame in sorted(records.items(), key=lambda item: item[0] == "cells"):  # cells last: they say "done"
        write_parquet(frame, folder / f"{table}.parquet")
    micro = {family.name for family in profile.families if family.model is None}
    for cell in cells:
        if cell.kind == "base" and cell.family in micro and cell.id in done:  # others have a hub
            ship_base(folder, cell)
    hours = records["cells"]["seconds_total"].sum() / 3600 if done else 0.0
    write_json(
        {
            **provenance.manifest(profile.model_dump(), seeds=[profile.seed], wall_seconds=wall_seconds),
            "settings_digest": files.digest(explicit(profile)),
            "cells": len(cells),
            "cells_finished": len(done),
            "complete": len(done) == len(cells),
            "cell_hours": hours,
            "seconds_by_part": _seconds_by_part(records["cells"]),
        },
        folder / "manifest.json",
    )
    return records


def _seconds_by_part(cells: pd.DataFrame) -> dict[str, dict[str, object]]:
    """Where the time of a mean cell of each kind goes: CPU seconds of its process, wall seconds by part and in all."""
    summary = {}
    for kind, mine in cells.groupby("kind", sort=False) if len(cells) else []:
        seconds = mine[[name for name in mine if name.startswith("seconds_")]].mean().dropna().round(2)
        summary[kind] = {
            "cells": len(mine),
            "cpu_seconds": round(float(mine["cpu_seconds"].mean()), 2),
            "seconds": {name.removeprefix("seconds_"): float(value) for name, value in seconds.items()},
        }
    return summary


def _cell_row(cell: dict) -> dict[str, object]:
    seconds = {f"seconds_{name}": value for name, value in cell["seconds"].items()}
    names = ("kind", "family", "candidate", "run", "digest", "seed", "threads", "cpu_seconds", "sft_tokens", "sft_loss")
    hardware = cell["hardware"]
    return {"cell": cell["id"], **{n: cell.get(n) for n in names}, **seconds, "hardware": str(hardware.get("cpu"))}


def _candidates(profile: Profile, cells: pd.DataFrame) -> pd.DataFrame:
    tokens = {}
    if len(cells):
        trained = cells[cells["kind"] == "sft"]
        tokens = {
            (f, c): t for f, c, t in zip(trained["family"], trained["candidate"], trained["sft_tokens"], strict=True)
        }
    rows = [
        _candidate_row(profile, family, candidate)
        | _budget(profile, candidate, tokens.get((family.name, candidate.name)))
        for family in profile.families
        for candidate in family.candidates
    ]
    return pd.DataFrame(rows)


def _budget(profile: Profile, candidate: CandidateSettings, tokens: float | None) -> dict[str, object]:
    """The SFT tokens of a candidate, and the first budget that they fit (None: not trained yet, or over all)."""
    if candidate.selection == "none":
        return {"sft_tokens": 0.0, "budget": None}
    if tokens is None:
        return {"sft_tokens": None, "budget": None}
    budget = next((name for name, most in profile.budgets.items() if tokens <= most), None)
    return {"sft_tokens": tokens, "budget": budget}


def _candidate_row(profile: Profile, family: FamilySettings, candidate: CandidateSettings) -> dict[str, object]:
    return {
        "family": family.name,
        "stands_for": family.stands_for,
        "candidate": candidate.name,
        "scenario": candidate.scenario,
        "source": candidate.source,
        "selection": candidate.selection,
        "n_examples": candidate.n_examples,
        "epochs": candidate.epochs,
        "learning_rate": profile.sft.learning_rate if candidate.learning_rate is None else candidate.learning_rate,
        "rl_runs": rl_runs(profile, candidate),
    }
