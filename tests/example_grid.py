"""Records of a whole micro profile drawn from known probabilities, for tests of what must stand its size; no result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from quagmire_utils.core.files import write_json, write_parquet
from quagmire_utils.core.provenance import manifest
from quagmire_utils.core.settings import CandidateSettings, FamilySettings, Profile
from quagmire_utils.sweep.collect import candidate_row
from quagmire_utils.sweep.grid import rl_runs
from quagmire_utils.training.microlab import MICRO_BENCHMARKS

VERDICTS = ("wrong", "no_answer", "truncated", "timeout", "error")


def write_grid_records(
    folder: Path, profile: Profile, *, runs: int | None = None, problems: int = 6, finished: int = 10**9, seed: int = 0
) -> Path:
    """Write records as the sweep of `profile` would leave them, with few problems and two checkpoints a run.

    runs: of each candidate (None: as many as the profile plans). The first `finished` candidates of each family have
    records; the rest of the grid has not been run.
    """
    rng = np.random.default_rng(seed)
    rows, counts, losses, curves, cells = [], [], [], [], []
    for family in profile.families:
        for i, candidate in enumerate(family.candidates):
            measured = i < finished
            # prompts and traces grow with the number of terms, so the longest examples cost more
            each = {"shortest": 40.0, "longest": 150.0, "shortest+longest": 95.0}.get(candidate.selection, 80.0)
            tokens = each * candidate.n_examples * candidate.epochs if measured else np.nan
            planned = rl_runs(profile, candidate) if runs is None else runs
            rows.append(candidate_row(profile, family, candidate, tokens) | {"rl_runs": planned})
            if not measured:
                continue
            names = {"family": family.name, "candidate": candidate.name}
            skill = _skill(family, candidate)
            stage = "base" if candidate.selection == "none" else "sft"
            before = {**names, "stage": stage, "rl_run": -1, "checkpoint": 0}
            counts.append(_counts(rng, before, profile, skill, problems, profile.evaluation.num_samples))
            for which in ("validation",) if stage == "base" else ("validation", "own"):
                loss = {"nll": 1.0 - skill + 0.002 * candidate.epochs, "standard_error": 0.01, "tokens": 9000}
                losses.append({**names, "stage": stage, "validation_set": which, **loss, "traces": 100})
            start = f"{family.name}/{candidate.name}"
            cells.append(_cell(start, stage, names, None, tokens, 30.0))
            for run in range(planned):
                noise = 0.02 * rng.standard_normal()
                for step in (16, 32):
                    after = {**names, "stage": "rl", "rl_run": run, "checkpoint": step}
                    skilled = 0.25 + 0.6 * skill + 0.1 * step / 32 + noise
                    counts.append(_counts(rng, after, profile, skilled, problems, profile.evaluation.rl_num_samples))
                steps = np.arange(1, 33)
                reward = np.clip(skill + 0.3 * steps / 32 + 0.04 * rng.standard_normal(32), 0, 1)
                curve = {"step": steps, "reward": reward, "reward_std": 0.4, "entropy": 0.3, "length": 50.0}
                curves.append(pd.DataFrame({**names, "rl_run": run, **curve, "truncated": 0.0, "seconds": 1.0}))
                cells.append(_cell(f"{start}/rl{run}", "rl", names, run, None, 60.0))
    frames = {
        "candidates": pd.DataFrame(rows),
        "counts": pd.concat(counts, ignore_index=True),
        "generalization_loss": pd.DataFrame(losses),
        "rl_curves": pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
        "cells": pd.DataFrame(cells),
    }
    for name, frame in frames.items():
        write_parquet(frame, folder / f"{name}.parquet")
    whole = len(rows) == sum(cell["kind"] != "rl" for cell in cells)
    facts = {"cells": len(cells), "cells_finished": len(cells), "complete": whole, "cell_hours": 1.0}
    write_json(manifest(profile.model_dump(), seeds=[profile.seed], **facts), folder / "manifest.json")
    return folder


def _skill(family: FamilySettings, candidate: CandidateSettings) -> float:
    if candidate.selection == "none":
        return 0.15
    gain = 0.05 * np.log2(1 + candidate.n_examples * candidate.epochs**0.5 / 8)
    return min(0.9, 0.15 + gain - (0.1 if candidate.epochs > 100 else 0.0))


def _counts(
    rng: np.random.Generator, keys: dict[str, object], profile: Profile, skill: float, problems: int, n: int
) -> pd.DataFrame:
    names = np.repeat(list(profile.benchmarks), problems)
    terms = np.repeat([MICRO_BENCHMARKS[name].terms for name in profile.benchmarks], problems)
    ease = np.tile(np.random.default_rng(problems).normal(0, 1.0, problems), len(profile.benchmarks)) - 0.5 * terms
    correct = rng.binomial(n, 1 / (1 + np.exp(-(6 * (skill - 0.3) + ease))))
    frame = {**keys, "benchmark": names, "problem": [f"{name}-{i % problems}" for i, name in enumerate(names)], "n": n}
    frame |= {"correct": correct, "wrong": n - correct, **dict.fromkeys(VERDICTS[1:], 0), "mean_tokens": 40.0}
    return pd.DataFrame(frame)


def _cell(
    cell: str, kind: str, names: dict[str, str], run: int | None, tokens: float | None, seconds: float
) -> dict[str, object]:
    row = {"cell": cell, "kind": kind, **names, "run": run, "threads": 1, "cpu_seconds": seconds, "sft_tokens": tokens}
    return row | {"seconds_sampling": 8.0, "seconds_grading": 2.0, "seconds_total": seconds, "hardware": "a CPU"}
