"""Gathering the records of finished cells into the files of a results folder (see `core.records`)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from quagmire_utils.core import files, provenance
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, write_json, write_parquet
from quagmire_utils.core.records import load_records, read_table
from quagmire_utils.core.settings import CandidateSettings, FamilySettings, Profile, explicit
from quagmire_utils.sweep.cells import ship_base
from quagmire_utils.sweep.grid import Cell, plan, rl_runs

# tables, and the kinds of cells that have rows in each
KINDS = {"counts": ("base", "sft", "rl"), "generalization_loss": ("base", "sft"), "rl_curves": ("rl",)}
TABLES = tuple(KINDS)


def finished_cells(folder: Path, cells: Sequence[Cell]) -> set[str]:
    """Return the ids of the cells whose records, made with the same parameters, are in `folder`, collected or not.

    Raises ParameterError if cells.parquet is damaged or lost: hours of work must not be repeated unnoticed.
    """
    return set().union(*_finished(folder, cells))


def _finished(folder: Path, cells: Sequence[Cell]) -> tuple[set[str], set[str]]:
    """Return the ids of the cells with folders of their own, and of those that are only collected."""
    fresh = {cell.id for cell in cells if _own_digest(folder, cell) == cell.digest}
    path, collected = folder / "cells.parquet", {}
    if len(fresh) < len(cells) and (path.exists() or (folder / "manifest.json").exists()):
        frame = read_table(path)
        collected = dict(zip(frame["cell"], frame["digest"], strict=True)) if len(frame) else {}
    return fresh, {cell.id for cell in cells if collected.get(cell.id) == cell.digest} - fresh


def _own_digest(folder: Path, cell: Cell) -> str | None:
    """Return the digest that a cell's own folder, which appears when it is complete, was made with."""
    try:
        return read_json(cell.path(folder, "cells") / "cell.json")["digest"]
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
        return None


def is_collected(profile: Profile, folder: Path, cells: Sequence[Cell]) -> bool:
    """Return whether the records in `folder` are this profile's, complete and readable."""
    try:
        records = load_records(folder)
    except ParameterError:
        return False
    collected = dict(zip(records.cells["cell"], records.cells["digest"], strict=True))
    same = records.manifest.get("settings_digest") == files.digest(explicit(profile))
    return same and all(collected.get(cell.id) == cell.digest for cell in cells)


def check_folder(profile: Profile, folder: Path) -> None:
    """Raise ParameterError if `folder` holds the records of another profile, which `collect` would drop."""
    name = profile.name
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # a damaged manifest is written anew
        name = read_json(folder / "manifest.json")["configuration"]["name"]
    if name != profile.name:
        reason = f"{folder} holds the records of profile {name}, not {profile.name}; name another folder"
        raise ParameterError("results", str(folder), reason=reason)


def collect(
    profile: Profile, folder: str | Path, cells: Sequence[Cell] | None = None, *, wall_seconds: float | None = None
) -> dict[str, pd.DataFrame]:
    """Merge the records of the plan's cells, and of no others, into the files of `folder`, the manifest last."""
    folder, cells = Path(folder), plan(profile) if cells is None else cells
    check_folder(profile, folder)
    fresh, kept = _finished(folder, cells)
    done = kept | fresh
    kinds = {cell.kind for cell in cells if cell.id in kept}
    new: dict[str, list[pd.DataFrame]] = {"cells": []} | {table: [] for table in TABLES}
    for table in new:
        if kinds.intersection(KINDS.get(table, kinds)):
            old = read_table(folder / f"{table}.parquet")
            new[table].append(old[old["cell"].isin(kept)])
    rows = []
    for cell in (cell for cell in cells if cell.id in fresh):
        place = cell.path(folder, "cells")
        rows.append(_cell_row(read_json(place / "cell.json")))
        for table in (table for table in TABLES if cell.kind in KINDS[table]):
            frame = read_table(place / f"{table}.parquet")
            frame.insert(0, "cell", cell.id)
            new[table].append(frame)
    new["cells"].append(pd.DataFrame(rows))
    records: dict[str, pd.DataFrame] = {}
    order = {cell.id: i for i, cell in enumerate(cells)}
    for table, frames in new.items():
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
        },
        folder / "manifest.json",
    )
    return records


def _cell_row(cell: dict) -> dict[str, object]:
    names = ("kind", "family", "candidate", "run", "digest", "seed", "threads", "cpu_seconds", "sft_tokens", "sft_loss")
    seconds = {f"seconds_{name}": value for name, value in cell["seconds"].items()}
    shown = {name: cell.get(name) for name in names}
    return {"cell": cell["id"], **shown, **seconds, "hardware": str(cell["hardware"].get("cpu"))}


def candidate_row(
    profile: Profile, family: FamilySettings, candidate: CandidateSettings, tokens: float | None
) -> dict[str, object]:
    """Return a row of the table `candidates`; `tokens`: of SFT, None before it. Its budget is the first they fit."""
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
