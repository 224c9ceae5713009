"""A small records folder drawn from known probabilities, for tests of tables, plots and notebooks; never a result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from quagmire_utils import store

BENCHMARKS = {"easy": 12, "middle": 9, "hard": 14}
GRID = [(250, 1), (250, 4), (250, 16), (500, 2), (1000, 1), (1000, 4), (2000, 2), (4000, 1)]
BUDGETS = ("low", "medium", "high")


def make_records(
    families: dict[str, str] | None = None, runs: int = 2, n: int = 64, rl_n: int = 16, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Record frames of the given families (name -> the paper's model): 8 candidates a scenario, and the base model."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[dict]] = {name: [] for name in ("candidates", "counts", "generalization_loss", "rl_curves")}
    cells = []
    for family, stands_for in (families or {"micro-llama": "Llama3-8B-Instruct"}).items():
        grid = [("base", "none", 0, 1.0, "dataset")]
        grid += [(f"random-{m}x{e}", "random", m, float(e), "dataset") for m, e in GRID]
        grid += [(f"shortest-{m}x{e}", "shortest", m, float(e), "instance") for m, e in GRID]
        for i, (candidate, selection, examples, epochs, scenario) in enumerate(grid):
            names = {"family": family, "candidate": candidate}
            strength = np.log1p(examples * epochs**0.5) / 12 + 0.05 * rng.standard_normal()
            rows["candidates"].append(
                {
                    **names,
                    "stands_for": stands_for,
                    "scenario": scenario,
                    "source": "main",
                    "selection": selection,
                    "n_examples": examples,
                    "epochs": epochs,
                    "learning_rate": 5e-4,
                    "sft_tokens": 50.0 * examples * epochs,
                    "budget": BUDGETS[i % 3],
                }
            )
            stage = "base" if selection == "none" else "sft"
            rows["counts"] += _counts(rng, {**names, "stage": stage, "rl_run": -1, "checkpoint": 0}, strength, n)
            loss = 1.2 - strength + 0.03 * epochs + 0.03 * rng.standard_normal()
            rows["generalization_loss"].append(
                {
                    **names,
                    "stage": stage,
                    "validation_set": "validation",
                    "nll": loss,
                    "standard_error": 0.01,
                    "tokens": 9000,
                    "traces": 300,
                }
            )
            cells.append(_cell(names, stage, None))
            for run in range(runs):
                for step in (12, 24):
                    after = strength + 0.1 + 0.1 * step / 24 - 0.004 * epochs + 0.02 * rng.standard_normal()
                    keys = {**names, "stage": "rl", "rl_run": run, "checkpoint": step}
                    rows["counts"] += _counts(rng, keys, after, rl_n)
                for step in range(1, 25):
                    reward = float(np.clip(strength / 2 + 0.008 * step + 0.03 * rng.standard_normal(), 0, 1))
                    curve = {"step": step, "reward": reward, "reward_std": 0.4, "entropy": 1 / step}
                    curve |= {"length": 60.0, "truncated": 0.02, "seconds": 1.5}
                    rows["rl_curves"].append({**names, "rl_run": run, **curve})
                cells.append(_cell(names, "rl", run))
    return {**{name: pd.DataFrame(lines) for name, lines in rows.items()}, "cells": pd.DataFrame(cells)}


def _counts(rng: np.random.Generator, keys: dict, strength: float, n: int) -> list[dict]:
    rows = []
    for benchmark, (level, problems) in zip(BENCHMARKS, enumerate(BENCHMARKS.values()), strict=True):
        for problem in range(problems):
            ease = np.random.default_rng([level, problem]).normal(-1.5 - 2 * level, 2.0)
            correct = int(rng.binomial(n, 1 / (1 + np.exp(-(5 * (strength - 0.5) + ease)))))
            undecided = (n - correct) // 4
            rows.append(
                {
                    **keys,
                    "benchmark": benchmark,
                    "problem": f"{benchmark}/{problem}",
                    "n": n,
                    "correct": correct,
                    "wrong": n - correct - undecided,
                    "no_answer": undecided,
                    "truncated": undecided // 2,
                    "timeout": 0,
                    "error": 0,
                    "mean_tokens": 40.0 + 10 * level,
                }
            )
    return rows


def _cell(names: dict, kind: str, run: int | None) -> dict:
    place = "base" if names["candidate"] == "base" else names["candidate"]
    suffix = "" if run is None else f"/rl{run}"
    seconds = {"seconds_sampling": 8.0, "seconds_grading": 2.0, "seconds_total": 12.0}
    return {"cell": f"{names['family']}/{place}{suffix}", "kind": kind, **names, "run": run, **seconds}


def write_records(folder: Path, frames: dict[str, pd.DataFrame]) -> Path:
    """Write the frames and a manifest as a sweep does."""
    for name, frame in frames.items():
        store.write_parquet(frame, folder / f"{name}.parquet")
    facts = {"cells": len(frames["cells"]), "cells_finished": len(frames["cells"]), "cell_hours": 0.1}
    store.write_json({**store.manifest({"name": "example"}), **facts}, folder / "manifest.json")
    return folder
