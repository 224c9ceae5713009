"""Gathering the cells' records into the files of a results folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from quagmire_utils import store
from quagmire_utils.config import CandidateSettings, FamilySettings, Profile
from quagmire_utils.sweep.grid import Cell, cell_folder, plan

TABLES = ("counts", "generalization_loss", "rl_curves")


def finished_cells(folder: Path, cells: Sequence[Cell]) -> set[str]:
    """Ids of the cells whose records, made with the same parameters, are in `folder` (collected or not yet)."""
    collected = _collected(folder)
    return {c.id for c in cells if collected.get(c.id) == c.digest or _is_fresh(folder, c)}


def _is_fresh(folder: Path, cell: Cell) -> bool:
    path = cell_folder(folder, cell) / "cell.json"
    return path.is_file() and store.read_json(path)["digest"] == cell.digest


def _collected(folder: Path) -> dict[str, str]:
    path = folder / "cells.parquet"
    if not path.is_file():
        return {}
    frame = store.read_parquet(path)
    return dict(zip(frame["cell"], frame["digest"], strict=True)) if len(frame) else {}


def collect(profile: Profile, folder: str | Path, *, wall_seconds: float | None = None) -> dict[str, pd.DataFrame]:
    """Merge the cells' records into the record files of `folder`; the manifest is written last.

    Records of cells that the profile no longer has, or that were made with other parameters, are dropped.
    """
    folder = Path(folder)
    cells = plan(profile)
    done = finished_cells(folder, cells)
    collected = _collected(folder)
    fresh = {cell.id for cell in cells if _is_fresh(folder, cell)}
    kept = {cell.id for cell in cells if collected.get(cell.id) == cell.digest} - fresh
    if set(collected) - kept:
        # first forget that the dropped cells were done: a kill below must not leave them done and without rows
        old = store.read_parquet(folder / "cells.parquet")
        store.write_parquet(old[old["cell"].isin(kept)], folder / "cells.parquet")
    records: dict[str, pd.DataFrame] = {}
    for table in TABLES:
        parts = []
        path = folder / f"{table}.parquet"
        if path.is_file() and kept:
            old = store.read_parquet(path)
            parts.append(old[old["cell"].isin(kept)])
        for cell in cells:
            source = cell_folder(folder, cell) / f"{table}.parquet"
            if cell.id in fresh and source.is_file():
                frame = store.read_parquet(source)
                frame.insert(0, "cell", cell.id)
                parts.append(frame)
        if parts:
            order = {cell.id: i for i, cell in enumerate(cells)}
            merged = pd.concat(parts, ignore_index=True)
            records[table] = merged.sort_values(
                "cell", key=lambda ids: ids.map(order), kind="stable", ignore_index=True
            )
    rows = []
    if kept:
        old = store.read_parquet(folder / "cells.parquet")
        rows.append(old[old["cell"].isin(kept)])
    rows.append(
        pd.DataFrame([_cell_row(store.read_json(cell_folder(folder, c) / "cell.json")) for c in cells if c.id in fresh])
    )
    records["cells"] = pd.concat([frame for frame in rows if len(frame)], ignore_index=True) if done else pd.DataFrame()
    records["candidates"] = _candidates(profile, records["cells"])
    for table, frame in sorted(records.items(), key=lambda item: item[0] == "cells"):  # cells last: they say "done"
        store.write_parquet(frame, folder / f"{table}.parquet")
    hours = records["cells"]["seconds_total"].sum() / 3600 if done else 0.0
    store.write_json(
        {
            **store.manifest(asdict(profile), seeds=[profile.seed], wall_seconds=wall_seconds),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "cells": len(cells),
            "cells_finished": len(done),
            "cell_hours": hours,
        },
        folder / "manifest.json",
    )
    return records


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
        | {"sft_tokens": 0.0 if candidate.selection == "none" else tokens.get((family.name, candidate.name))}
        for family in profile.families
        for candidate in family.candidates
    ]
    return pd.DataFrame(rows)


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
        "learning_rate": candidate.learning_rate or profile.sft.learning_rate,
    }
