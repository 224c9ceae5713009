"""Gathering the records of finished cells into the files of a results folder (see `core.records`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from quagmire_utils.core import files, provenance
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, read_parquet, write_json, write_parquet
from quagmire_utils.core.records import load_records, read_table
from quagmire_utils.core.settings import CandidateSettings, FamilySettings, Profile, explicit
from quagmire_utils.sweep.cells import ship_base
from quagmire_utils.sweep.grid import Cell, plan, rl_runs

# tables, and the kinds of cells that must have rows in each
KINDS = {"counts": ("base", "sft", "rl"), "generalization_loss": ("base", "sft"), "rl_curves": ("rl",)}
TABLES = tuple(KINDS)


def finished_cells(folder: Path, cells: Sequence[Cell]) -> set[str]:
    """Return the ids of the cells whose records, made with the same parameters, are in `folder`, collected or not.

    Raises ParameterError if a record file is damaged or lost and the cells' own folders do not replace it: hours of
    work must not be repeated unnoticed.
    """
    fresh, kept = _finished(folder, cells)
    return fresh.keys() | kept


def _finished(folder: Path, cells: Sequence[Cell]) -> tuple[dict[str, dict[str, pd.DataFrame]], set[str]]:
    """Return the tables of the cells with folders of their own, and the ids of those that are only collected."""
    read = {cell.id: _fresh(folder, cell) for cell in cells}
    fresh = {cell_id: tables for cell_id, tables in read.items() if tables is not None}
    collected = _collected(folder, fresh) if len(fresh) < len(cells) else {}
    return fresh, {cell.id for cell in cells if collected.get(cell.id) == cell.digest} - fresh.keys()


def is_collected(profile: Profile, folder: Path, cells: Sequence[Cell]) -> bool:
    """Return whether the records in `folder` are this profile's, complete and readable."""
    try:
        records = load_records(folder)
    except ParameterError:
        return False
    collected = dict(zip(records.cells["cell"], records.cells["digest"], strict=True))
    same = records.manifest.get("settings_digest") == files.digest(explicit(profile))
    return same and all(collected.get(cell.id) == cell.digest for cell in cells)


def _fresh(folder: Path, cell: Cell) -> dict[str, pd.DataFrame] | None:
    """Read a cell's own tables; None unless all are there, made with its present parameters, and readable."""
    place = cell.path(folder, "cells")
    try:
        if read_json(place / "cell.json")["digest"] != cell.digest:
            return None
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
        return None
    tables = {table: _read(place / f"{table}.parquet") for table, kinds in KINDS.items() if cell.kind in kinds}
    return None if any(frame is None for frame in tables.values()) else tables


def _read(path: Path) -> pd.DataFrame | None:
    """Read a table; None if it is missing or damaged."""
    try:
        return read_parquet(path)
    except (OSError, ValueError, KeyError):  # pyarrow's errors are ValueErrors and OSErrors
        return None


def _collected(folder: Path, fresh: Collection[str]) -> dict[str, str]:
    """Return the digest of each cell that has rows in every table that it belongs to.

    Raises ParameterError for a damaged table, and for a lost one beside a manifest, which is written last, unless all
    its cells are `fresh`, in folders of their own.
    """
    cells = _recorded(folder, "cells")
    if cells is None or cells.empty:
        return {}
    lacking: set[str] = set()
    for table, kinds in KINDS.items():
        needed = set(cells.loc[cells["kind"].isin(kinds), "cell"])
        frame = _recorded(folder, table) if needed - set(fresh) else _read(folder / f"{table}.parquet")
        lacking |= needed if frame is None or frame.empty else needed - set(frame["cell"].unique())
    kept = cells[~cells["cell"].isin(lacking)]
    return dict(zip(kept["cell"], kept["digest"], strict=True))


def _recorded(folder: Path, table: str) -> pd.DataFrame | None:
    """Read a table of the records; None if none was written yet, or the manifest was removed with it."""
    path = folder / f"{table}.parquet"
    return read_table(path) if path.exists() or (folder / "manifest.json").exists() else None


def collect(
    profile: Profile, folder: str | Path, cells: Sequence[Cell] | None = None, *, wall_seconds: float | None = None
) -> dict[str, pd.DataFrame]:
    """Merge the cells' records into the record files of `folder`; the manifest is written last.

    cells: the profile's plan, if it is known already. Records of cells that the profile no longer has, or that were
    made with other parameters, are dropped.
    """
    folder, cells = Path(folder), plan(profile) if cells is None else cells
    fresh, kept = _finished(folder, cells)
    done = kept | fresh.keys()
    new = {table: [] for table in TABLES} | {"cells": []}
    for cell_id, tables in fresh.items():
        for table, frame in tables.items():
            frame.insert(0, "cell", cell_id)
            new[table].append(frame)
    rows = [_cell_row(read_json(cell.path(folder, "cells") / "cell.json")) for cell in cells if cell.id in fresh]
    new["cells"].append(pd.DataFrame(rows))
    records: dict[str, pd.DataFrame] = {}
    order = {cell.id: i for i, cell in enumerate(cells)}
    for table, frames in new.items():
        if kept and (folder / f"{table}.parquet").is_file():
            old = read_parquet(folder / f"{table}.parquet")
            frames.insert(0, old[old["cell"].isin(kept)])
        if frames := [frame for frame in frames if len(frame)]:
            merged = pd.concat(frames).sort_values("cell", key=lambda ids: ids.map(order), kind="stable")
            records[table] = merged.reset_index(drop=True)
    finished = records.pop("cells", pd.DataFrame())
    tokens = finished[finished["kind"] == "sft"].set_index("cell")["sft_tokens"].to_dict() if done else {}
    rows = [
        candidate_row(profile, family, candidate, tokens.get(f"{family.name}/{candidate.name}"))
        for family in profile.families
        for candidate in family.candidates
    ]
    records |= {"candidates": pd.DataFrame(rows), "cells": finished}
    for table, frame in records.items():  # cells last: they say what is done
        write_parquet(frame, folder / f"{table}.parquet")
    for cell in cells:
        if cell.kind == "base" and cell.family.model is None and cell.id in done:  # pretrained models have a hub
            ship_base(folder, cell)
    write_json(
        {
            **provenance.manifest(profile.model_dump(), seeds=[profile.seed], wall_seconds=wall_seconds),
            "settings_digest": files.digest(explicit(profile)),
            "cells": len(cells),
            "cells_finished": len(done),
            "complete": len(done) == len(cells),
            "cell_hours": finished["seconds_total"].sum() / 3600 if done else 0.0,
            "seconds_by_part": seconds_by_part(finished),
        },
        folder / "manifest.json",
    )
    return records


def seconds_by_part(cells: pd.DataFrame) -> dict[str, dict[str, object]]:
    """Return where the time of a mean cell of each kind goes: CPU seconds of its process, wall seconds by part."""
    summary = {}
    for kind, mine in cells.groupby("kind", sort=False) if len(cells) else []:
        seconds = mine.filter(regex="^seconds_").rename(columns=lambda name: name.removeprefix("seconds_"))
        cpu = round(float(mine["cpu_seconds"].mean()), 2)
        parts = seconds.mean().dropna().round(2).to_dict()
        summary[kind] = {"cells": len(mine), "cpu_seconds": cpu, "seconds": parts}
    return summary


def _cell_row(cell: dict) -> dict[str, object]:
    names = ("kind", "family", "candidate", "run", "digest", "seed", "threads", "cpu_seconds", "sft_tokens", "sft_loss")
    seconds = {f"seconds_{name}": value for name, value in cell["seconds"].items()}
    shown = {name: cell.get(name) for name in names}
    return {"cell": cell["id"], **shown, **seconds, "hardware": str(cell["hardware"].get("cpu"))}


def candidate_row(
    profile: Profile, family: FamilySettings, candidate: CandidateSettings, tokens: float | None
) -> dict[str, object]:
    """Return a row of the table `candidates`; `tokens` of SFT: None if it is not trained yet.

    The budget is the first one that the tokens fit; None without SFT, before it, or above all budgets.
    """
    if candidate.selection == "none":
        tokens = 0.0
    names = ("scenario", "source", "selection", "n_examples", "epochs")
    return {
        "family": family.name,
        "stands_for": family.stands_for,
        "candidate": candidate.name,
        **{name: getattr(candidate, name) for name in names},
        "learning_rate": profile.sft.learning_rate if candidate.learning_rate is None else candidate.learning_rate,
        "rl_runs": rl_runs(profile, candidate),
        "sft_tokens": tokens,
        "budget": next((name for name, most in profile.budgets.items() if tokens and tokens <= most), None),
    }
