"""Small records folders drawn from known probabilities, for tests of tables, plots and notebooks; never a result."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd

from quagmire_utils.core.files import write_json, write_parquet
from quagmire_utils.core.provenance import manifest

BENCHMARKS = {"easy": 12, "middle": 9, "hard": 14}
GRID = "250x1 250x4 250x16 500x2 1000x1 1000x4 2000x2 4000x1"
BUDGETS = ("low", "medium", "high")
LLAMA, MISTRAL, QWEN = "Llama3-8B-Instruct", "Mistral-NeMo-12B-Instruct", "Qwen3-4B-base"
FAMILIES = {"micro-llama": LLAMA, "micro-mistral": MISTRAL, "micro-qwen": QWEN}
LEARNING_RATE = 1e-4
TOKENS = {"none": 0, "random": 95, "shortest": 45, "longest": 137, "shortest+longest": 89}  # of an SFT example
LIMITS = {"low": 20_000, "medium": 70_000}  # SFT tokens below which a budget is low, or medium


@dataclass(frozen=True)
class Candidate:
    selection: str
    n_examples: int
    epochs: int
    scenario: str
    learning_rate: float = LEARNING_RATE
    source: str = "main"

    @property
    def name(self) -> str:
        if self.selection == "none":
            return "base"
        name = f"{self.selection}-{self.n_examples}x{self.epochs}"
        name += f"-lr{self.learning_rate:g}" if self.learning_rate != LEARNING_RATE else ""
        return name + (f"-{self.source}" if self.source != "main" else "")

    @property
    def sft_tokens(self) -> float:
        return float(TOKENS[self.selection] * self.n_examples * self.epochs)

    @property
    def budget(self) -> str | None:
        if self.selection == "none":
            return None
        return next((name for name, limit in LIMITS.items() if self.sft_tokens < limit), "high")


SMALL = [f"random dataset {GRID}", f"shortest instance {GRID}"]
FULL = {  # selection, scenario, source and learning rate (if not the usual), examples x epochs: as in the mini profile
    LLAMA: [
        "random dataset 8x4 8x16 8x64 8x256 32x4 32x16 32x64 128x16",
        "random dataset+instance 128x1",
        "random dataset+instance+source 512x1",
        "random dataset+instance 512x4",
        "random dataset 5e-4 8x64 32x16",
        "random dataset+source 128x4 5e-4 128x4 512x1",
        "shortest instance 64x4 256x1 256x4 1024x1 1024x4",
        "longest instance 20x4 80x1 80x4 320x1 320x4",
        "shortest+longest instance 120x1 480x1 480x4",
        "random instance 2048x1",
        "random source acereason 512x1 128x4 5e-4 512x1 128x4",
        "random source openr1 512x1 128x4 5e-4 512x1 128x4",
    ],
    MISTRAL: [
        "random dataset 8x16 8x128 32x4 32x16 32x64 128x4 128x16",
        "random dataset+instance 128x1 512x1 512x4",
        "shortest instance 256x1 1024x1 1024x4",
        "longest instance 80x1 320x1 320x4",
        "shortest+longest instance 120x1 480x1 480x4",
    ],
    QWEN: [
        "random dataset 32x4 128x1 128x4 512x1 512x4",
        "shortest instance 64x1 256x1 1024x1 1024x4",
        "longest instance 80x1 320x1",
        "shortest+longest instance 120x1 480x1",
    ],
}


def grid_of(lines: Sequence[str]) -> list[Candidate]:
    """Return the candidates that lines such as those of FULL describe."""
    found = []
    for line in lines:
        selection, scenario, *words = line.split()
        rate, source = LEARNING_RATE, "main"
        for word in words:
            if re.fullmatch(r"\d+x\d+", word):
                examples, epochs = map(int, word.split("x"))
                found.append(Candidate(selection, examples, epochs, scenario, rate, source))
            elif word[0].isdigit():
                rate = float(word)
            else:
                source = word
    return found


def make_records(
    families: dict[str, str] | None = None, runs: int = 2, n: int = 64, rl_n: int = 16, full: bool = False
) -> dict[str, pd.DataFrame]:
    """Record frames of the given families (name -> the paper's model): the small or the full grid, and the base."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[dict]] = {name: [] for name in ("candidates", "counts", "generalization_loss", "rl_curves")}
    cells = []
    families = families or (FAMILIES if full else {"micro-llama": FAMILIES["micro-llama"]})
    for family, stands_for in families.items():
        grid = grid_of(FULL[stands_for] if full else SMALL)
        for i, one in enumerate([Candidate("none", 0, 1, "dataset"), *grid]):
            names = {"family": family, "candidate": one.name}
            # longer examples teach more than they show before RL, shorter ones less; the small grid has none of this
            hidden = {"longest": 0.04, "shortest+longest": 0.05, "shortest": -0.04}.get(one.selection, 0.0) * full
            strength = np.log1p(one.n_examples * one.epochs**0.5) / 12 + 0.05 * rng.standard_normal()
            facts = asdict(one) | {"epochs": float(one.epochs), "stands_for": stands_for}
            facts |= {"sft_tokens": one.sft_tokens, "budget": one.budget}
            if not full:
                tokens = 50.0 * one.n_examples * one.epochs
                facts |= {"learning_rate": 5e-4, "sft_tokens": tokens, "budget": BUDGETS[i % 3]}
            rows["candidates"].append(names | facts)
            stage = "base" if one.selection == "none" else "sft"
            keys = {**names, "stage": stage, "rl_run": -1, "checkpoint": 0}
            rows["counts"] += _counts(rng, keys, strength, n)
            worn = 0.03 * one.epochs if not full else 0.05 * np.log2(one.epochs)
            loss = 1.2 - strength + worn + 0.03 * rng.standard_normal()
            row = names | {"stage": stage, "validation_set": "validation", "nll": loss}
            rows["generalization_loss"].append(row | {"standard_error": 0.01, "tokens": 9000, "traces": 300})
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
            row = keys | {"benchmark": benchmark, "problem": f"{benchmark}/{problem}", "n": n, "correct": correct}
            row |= {"wrong": n - correct - undecided, "no_answer": undecided, "truncated": undecided // 2}
            rows.append(row | {"timeout": 0, "error": 0, "mean_tokens": 40.0 + 10 * level})
    return rows


def _cell(names: dict, kind: str, run: int | None) -> dict:
    cell = "/".join(names.values()) + ("" if run is None else f"/rl{run}")
    seconds = {"seconds_sampling": 8.0, "seconds_grading": 2.0, "seconds_total": 12.0}
    return {"cell": cell, "kind": kind, **names, "run": run, **seconds}


def write_records(folder: Path, frames: dict[str, pd.DataFrame]) -> Path:
    for name, frame in frames.items():
        write_parquet(frame, folder / f"{name}.parquet")
    facts = {"cells": len(frames["cells"]), "cells_finished": len(frames["cells"]), "cell_hours": 0.1}
    write_json({**manifest({"name": "example"}), **facts}, folder / "manifest.json")
    return folder


def second_route(folder: Path, k: int = 64) -> pd.DataFrame:
    """Predictors and outcomes of every SFT candidate, by a route that shares no code with the package."""
    counts, losses = pd.read_parquet(folder / "counts.parquet"), pd.read_parquet(folder / "generalization_loss.parquet")
    by_candidate = dict(list(counts.groupby(["family", "candidate"])))
    losses = losses.set_index(["family", "candidate"])["nll"]
    rows = []
    for facts in pd.read_parquet(folder / "candidates.parquet").to_dict("records"):
        if facts["selection"] == "none":
            continue
        key = facts["family"], facts["candidate"]
        mine = by_candidate[key]
        before, after = mine[mine["stage"] == "sft"], mine[mine["stage"] == "rl"]
        scores = {place: macro_pass_at_k(one, 1) for place, one in after.groupby(["rl_run", "checkpoint"])}
        last = after["checkpoint"].max()
        row = {"pass1": macro_pass_at_k(before, 1), "pass_k": macro_pass_at_k(before, k), "gen_loss": losses[key]}
        row["outcome"] = max(scores.values())
        row["outcome_last"] = np.mean([score for (_, step), score in scores.items() if step == last])
        rows.append({**facts, **row})
    return pd.DataFrame(rows)


def macro_pass_at_k(counts: pd.DataFrame, k: int) -> float:
    """Eq. 1 in exact fractions, averaged over problems and then over benchmarks."""
    means = []
    for benchmark in BENCHMARKS:
        rows = counts[counts["benchmark"] == benchmark]
        values = [1 - Fraction(math.comb(n - c, k), math.comb(n, k)) for n, c in rows[["n", "correct"]].to_numpy()]
        means.append(sum(values) / len(values))
    return float(sum(means) / len(means))
