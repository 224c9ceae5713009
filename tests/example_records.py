"""Small records folders drawn from known probabilities, for tests of tables, plots and notebooks; never a result.

make_records() gives 8 candidates a scenario. make_records(full=True) gives three families with the paper's grid, as the
mini profile has it: 16 and 10 candidates at dataset level, 17 and 12 at instance level (shortest, longest, both,
random; 4 to 7 of them in each SFT budget), learning rates, sources, and candidates that belong to several scenarios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from quagmire_utils.core.files import write_json, write_parquet
from quagmire_utils.core.provenance import manifest

BENCHMARKS = {"easy": 12, "middle": 9, "hard": 14}
GRID = [(250, 1), (250, 4), (250, 16), (500, 2), (1000, 1), (1000, 4), (2000, 2), (4000, 1)]
BUDGETS = ("low", "medium", "high")
FAMILIES = {
    "micro-llama": "Llama3-8B-Instruct",
    "micro-mistral": "Mistral-NeMo-12B-Instruct",
    "micro-qwen": "Qwen3-4B-base",
}
LEARNING_RATE = 1e-4
TOKENS = {"none": 0, "random": 95, "shortest": 45, "longest": 137, "shortest+longest": 89}  # of an SFT example
LIMITS = {"low": 20_000, "medium": 70_000}  # SFT tokens below which a budget is low, or medium


@dataclass(frozen=True)
class Candidate:
    """A row of the grid."""

    selection: str
    n_examples: int
    epochs: int
    scenario: str
    learning_rate: float = LEARNING_RATE
    source: str = "main"

    @property
    def name(self) -> str:
        """As the sweep calls it."""
        if self.selection == "none":
            return "base"
        name = f"{self.selection}-{self.n_examples}x{self.epochs}"
        name += f"-lr{self.learning_rate:g}" if self.learning_rate != LEARNING_RATE else ""
        return name + (f"-{self.source}" if self.source != "main" else "")

    @property
    def sft_tokens(self) -> float:
        """Response tokens seen during SFT."""
        return float(TOKENS[self.selection] * self.n_examples * self.epochs)

    @property
    def budget(self) -> str | None:
        """By SFT tokens."""
        if self.selection == "none":
            return None
        return next((name for name, limit in LIMITS.items() if self.sft_tokens < limit), "high")


def small_grid() -> list[Candidate]:
    """8 candidates at dataset level, 8 at instance level."""
    grid = [Candidate("random", m, e, "dataset") for m, e in GRID]
    return grid + [Candidate("shortest", m, e, "instance") for m, e in GRID]


def full_grid(model: str) -> list[Candidate]:
    """The grid of the paper's model, as in the mini profile."""
    both = [Candidate("random", m, e, "dataset+instance") for m, e in ((128, 1), (512, 1), (512, 4))]
    if model == FAMILIES["micro-qwen"]:
        grid = [Candidate("random", m, e, "dataset") for m, e in ((32, 4), (128, 1), (128, 4), (512, 1), (512, 4))]
        grid += _mixtures("shortest", ((64, 1), (256, 1), (1024, 1), (1024, 4)))
        return grid + _mixtures("longest", ((80, 1), (320, 1))) + _mixtures("shortest+longest", ((120, 1), (480, 1)))
    if model == FAMILIES["micro-mistral"]:
        pairs = ((8, 16), (8, 128), (32, 4), (32, 16), (32, 64), (128, 4), (128, 16))
        grid = [Candidate("random", m, e, "dataset") for m, e in pairs] + both
        grid += _mixtures("shortest", ((256, 1), (1024, 1), (1024, 4))) + _mixtures(
            "longest", ((80, 1), (320, 1), (320, 4))
        )
        return grid + _mixtures("shortest+longest", ((120, 1), (480, 1), (480, 4)))
    pairs = ((8, 4), (8, 16), (8, 64), (8, 256), (32, 4), (32, 16), (32, 64), (128, 16))
    grid = [Candidate("random", m, e, "dataset") for m, e in pairs]
    grid += [both[0], Candidate("random", 512, 1, "dataset+instance+source"), both[2]]
    grid += [Candidate("random", m, e, "dataset", 5e-4) for m, e in ((8, 64), (32, 16))]
    grid += [Candidate("random", 128, 4, "dataset+source")]
    grid += [Candidate("random", m, e, "dataset+source", 5e-4) for m, e in ((128, 4), (512, 1))]
    grid += _mixtures("shortest", ((64, 4), (256, 1), (256, 4), (1024, 1), (1024, 4)))
    grid += _mixtures("longest", ((20, 4), (80, 1), (80, 4), (320, 1), (320, 4)))
    grid += _mixtures("shortest+longest", ((120, 1), (480, 1), (480, 4)))
    grid += [Candidate("random", 2048, 1, "instance")]
    for source in ("acereason", "openr1"):
        for rate in (LEARNING_RATE, 5e-4):
            grid += [Candidate("random", m, e, "source", rate, source) for m, e in ((512, 1), (128, 4))]
    return grid


def _mixtures(selection: str, pairs: Sequence[tuple[int, int]]) -> list[Candidate]:
    return [Candidate(selection, m, e, "instance") for m, e in pairs]


def make_records(
    families: dict[str, str] | None = None,
    runs: int = 2,
    n: int = 64,
    rl_n: int = 16,
    seed: int = 0,
    full: bool = False,
) -> dict[str, pd.DataFrame]:
    """Record frames of the given families (name -> the paper's model): the small or the full grid, and the base."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[dict]] = {name: [] for name in ("candidates", "counts", "generalization_loss", "rl_curves")}
    cells = []
    families = families or (FAMILIES if full else {"micro-llama": FAMILIES["micro-llama"]})
    for family, stands_for in families.items():
        grid = full_grid(stands_for) if full else small_grid()
        for i, one in enumerate([Candidate("none", 0, 1, "dataset"), *grid]):
            names = {"family": family, "candidate": one.name}
            # longer examples teach more than they show before RL, shorter ones less; the small grid has none of this
            hidden = {"longest": 0.04, "shortest+longest": 0.05, "shortest": -0.04}.get(one.selection, 0.0) * full
            strength = np.log1p(one.n_examples * one.epochs**0.5) / 12 + 0.05 * rng.standard_normal()
            rows["candidates"].append(
                {
                    **names,
                    "stands_for": stands_for,
                    "scenario": one.scenario,
                    "source": one.source,
                    "selection": one.selection,
                    "n_examples": one.n_examples,
                    "epochs": float(one.epochs),
                    "learning_rate": one.learning_rate if full else 5e-4,
                    "sft_tokens": one.sft_tokens if full else 50.0 * one.n_examples * one.epochs,
                    "budget": one.budget if full else BUDGETS[i % 3],
                }
            )
            stage = "base" if one.selection == "none" else "sft"
            keys = {**names, "stage": stage, "rl_run": -1, "checkpoint": 0}
            rows["counts"] += _counts(rng, keys, strength, n)
            worn = 0.03 * one.epochs if not full else 0.05 * np.log2(one.epochs)
            loss = 1.2 - strength + worn + 0.03 * rng.standard_normal()
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
                    cost = 0.004 * one.epochs if not full else 0.02 * np.log2(one.epochs)
                    after = strength + hidden + 0.1 + 0.1 * step / 24 - cost + 0.02 * rng.standard_normal()
                    keys = {**names, "stage": "rl", "rl_run": run, "checkpoint": step}
                    rows["counts"] += _counts(rng, keys, after, rl_n)
                for step in range(1, 25):
                    reward = float(np.clip(strength / 2 + 0.008 * step + 0.03 * rng.standard_normal(), 0, 1))
                    curve = {"step": step, "reward": reward, "reward_std": 0.4, "entropy": 1 / step}
                    curve |= {"length": 60.0, "truncated": 0.02, "seconds": 1.5}
                    rows["rl_curves"].append({**names, "rl_run": run, **curve})
                cells.append(_cell(names, "rl", run))
    return {**{name: pd.DataFrame(lines) for name, lines in rows.items()}, "cells": pd.DataFrame(cells)}


EASE = {
    (level, problem): np.random.default_rng([level, problem]).normal(-1.5 - 2 * level, 2.0)
    for level, problems in enumerate(BENCHMARKS.values())
    for problem in range(problems)
}


def _counts(rng: np.random.Generator, keys: dict, strength: float, n: int) -> list[dict]:
    rows = []
    for benchmark, (level, problems) in zip(BENCHMARKS, enumerate(BENCHMARKS.values()), strict=True):
        for problem in range(problems):
            correct = int(rng.binomial(n, 1 / (1 + np.exp(-(5 * (strength - 0.5) + EASE[level, problem])))))
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
        write_parquet(frame, folder / f"{name}.parquet")
    facts = {"cells": len(frames["cells"]), "cells_finished": len(frames["cells"]), "cell_hours": 0.1}
    write_json({**manifest({"name": "example"}), **facts}, folder / "manifest.json")
    return folder
