"""The smallest sweep that takes every step, and records of its cells whose numbers are drawn instead of measured."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from quagmire_utils.core.files import read_parquet, write_json, write_parquet
from quagmire_utils.core.provenance import hardware, package_versions
from quagmire_utils.core.settings import Profile
from quagmire_utils.sweep import TABLES
from quagmire_utils.sweep.grid import Cell

TINY = """
name: tiny
description: the smallest sweep that goes through every step
benchmarks: {sums2: 2, lanes3: 2}
families:
  - name: a
    stands_for: Llama3-8B-Instruct
    pretraining: {hidden_size: 32, layers: 1, terms: [2, 3], examples: 64, fallible_examples: 32}
    sources: {main: {terms: [2, 3], pool: 40, validation: 6}}
    rl_terms: [2]
    rl_problems: 8
    candidates:
      - {selection: none}
      - {selection: random, n_examples: 16, epochs: 2}
      - {selection: shortest, n_examples: 16, scenario: instance}
sft: {learning_rate: 0.001, batch_size: 8, max_length: 256}
rl: {steps: 2, learning_rate: 0.001, prompts_per_step: 2, rollouts: 4, max_tokens: 12, runs: 1, checkpoints: 2}
evaluation: {engine: transformers, num_samples: 4, rl_num_samples: 2, k: 4, max_tokens: 16, both_graders: true}
"""
FAMILY = yaml.safe_load(TINY)["families"][0]


def tiny_profile(**changes: object) -> Profile:
    values = yaml.safe_load(TINY)
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(values.get(name), dict) else value
    return Profile.load(values)


def in_family(name: str, value: object) -> dict[str, object]:
    return {"families": [FAMILY | {name: value}]}


def command(profile: Path, folder: Path, *options: object) -> list[str]:
    return [sys.executable, "-m", "quagmire_utils", "sweep", str(profile), "--results", str(folder), *map(str, options)]


def run_sweep(profile: Path, folder: Path, *options: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(profile, folder, *options), capture_output=True, text=True, check=False)


def assert_same_records(folder: Path, other: Path) -> None:
    """Compare all numbers of two sweeps, bit by bit, but the seconds that RL steps took."""
    for table in (*TABLES, "candidates"):
        left, right = (read_parquet(place / f"{table}.parquet") for place in (folder, other))
        drop = ["seconds"] if table == "rl_curves" else []
        pd.testing.assert_frame_equal(left.drop(columns=drop), right.drop(columns=drop), obj=table)


def write_cell(profile: Profile, folder: Path, cell: Cell, rng: np.random.Generator) -> None:
    """Write the records of a finished cell: of 64 answers to each problem, about 26 right."""
    place = cell.path(folder, "cells")
    problems = [(name, f"{name}-{i}") for name, count in profile.benchmarks.items() for i in range(count)]
    checkpoints = profile.rl.checkpoint_steps if cell.kind == "rl" else (0,)
    keys = [(*problem, checkpoint) for checkpoint in checkpoints for problem in problems]
    counts = pd.DataFrame(keys, columns=["benchmark", "problem", "checkpoint"])
    counts = counts.assign(**cell.names, stage=cell.kind, n=64)
    counts["rl_run"] = -1 if cell.run is None else cell.run
    counts["correct"] = rng.binomial(64, 0.4, len(counts))
    counts["wrong"] = 64 - counts["correct"]
    counts[["no_answer", "truncated", "timeout", "error"]] = 0
    counts["mean_tokens"] = rng.uniform(5, 16, len(counts))
    write_parquet(counts, place / "counts.parquet")
    if cell.kind == "rl":
        steps = np.arange(1, profile.rl.steps + 1)
        curve = pd.DataFrame({**cell.names, "rl_run": cell.run, "step": steps, "seconds": 1.0})
        curve["reward"], curve["entropy"] = rng.uniform(0, 1, len(steps)), rng.uniform(0, 2, len(steps))
        write_parquet(curve, place / "rl_curves.parquet")
    else:
        sets = ["validation"] if cell.kind == "base" else ["validation", "own"]
        loss = pd.DataFrame({**cell.names, "stage": cell.kind, "validation_set": sets})
        loss["nll"] = rng.uniform(0.5, 1, len(sets))
        write_parquet(loss.assign(standard_error=0.01, tokens=90), place / "generalization_loss.parquet")
    facts = {"seconds": {"total": 1.0}, "hardware": hardware(), "packages": package_versions()}
    write_json({**cell.row(), **facts}, place / "cell.json")
