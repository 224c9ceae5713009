"""The page that `sweep --dry-run` prints: cells, hours, dollars, disk, assumptions, and what is missing here."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd

from quagmire_utils.core.settings import Profile
from quagmire_utils.sweep import cost
from quagmire_utils.sweep.checks import check
from quagmire_utils.sweep.collect import finished_cells
from quagmire_utils.sweep.estimate import PARTS, FamilyCost, answer_tokens, estimate, gpu_memory
from quagmire_utils.sweep.grid import Cell, plan
from quagmire_utils.sweep.missing import disk_needed, missing, size

STAGES = {"base": "base", "sft": "SFT", "rl": "RL"}
WIDTH = 100  # columns


def dry_run(profile: Profile, folder: Path, *, cells: bool = False) -> str:
    """Check a profile and return a page on what running it takes. Computes and downloads nothing.

    `cells`: also one line for each cell. Raises ParameterError for what no machine could run.
    """
    check(profile, here=False)
    grid = plan(profile)
    done = finished_cells(folder, grid)
    costs = estimate(profile, grid, folder)
    left = costs[~costs.index.isin(done)]
    candidates = sum(len(family.candidates) for family in profile.families)
    head = [
        f"{profile.name}: {profile.description}",
        f"{_count(len(grid), 'cell')} ({len(done)} done): {_count(len(profile.families), 'base model')}, "
        f"{_count(candidates, 'candidate')}, {_count((costs['kind'] == 'rl').sum(), 'RL run')}",
        f"{sum(profile.benchmarks.values()):,} problems of {_count(len(profile.benchmarks), 'benchmark')}. "
        "The parameters pass preflight.",
    ]
    sections = ["\n".join(head), _table(profile, costs), _totals(profile, costs, left)]
    if cells:
        sections.append(_cells(profile, costs, done))
    if profile.families[0].model is not None:
        sections.append(_assumptions(profile))
    if profile.compute.published_gpu_hours and profile.compute.published_run_hours:
        sections.append(_published(profile, grid, costs))
    how = {"subsequent_indent": "    ", "break_on_hyphens": False, "break_long_words": False}
    lacking = [textwrap.fill(f"  - {line}", WIDTH, **how) for line in missing(profile, folder, left)]
    sections.append("\n".join(["Missing on this machine:" if lacking else "Nothing is missing here.", *lacking]))
    return "\n\n".join(sections)


def _table(profile: Profile, costs: pd.DataFrame) -> str:
    """Return hours by family and stage; the longest cell in hours of its node."""
    titled = {
        f"{family.name} {title}": costs[(costs["family"] == family.name) & (costs["kind"] == kind)]
        for family in profile.families
        for kind, title in STAGES.items()
    }
    if len(profile.families) > 1:
        titled |= {f"all {title}": costs[costs["kind"] == kind] for kind, title in STAGES.items()}
    rows = []
    for title, mine in {**titled, "all": costs}.items():
        if len(mine):
            longest, basis = mine["hours"].max() / max(1, profile.compute.gpus), ", ".join(sorted(set(mine["basis"])))
            hours = mine[[*PARTS, "hours"]].sum()
            rows.append({"": title, "cells": len(mine), **hours, "longest": longest, "basis": basis})
    unit = f"{profile.compute.gpu} hours" if profile.compute.gpus else "core hours"
    return f"In {unit}; the longest cell in hours of its node:\n{_text(pd.DataFrame(rows))}"


def _text(frame: pd.DataFrame) -> str:
    frame.iloc[:, 0] = frame.iloc[:, 0].str.ljust(frame.iloc[:, 0].str.len().max())
    return frame.to_string(index=False, float_format=_number)


def _totals(profile: Profile, costs: pd.DataFrame, left: pd.DataFrame) -> str:
    compute, rest = profile.compute, left["hours"].sum()
    at_once = profile.workers * compute.nodes
    days = rest / max(1, compute.gpus) / at_once / 24
    lines = [f"In all {_number(costs['hours'].sum())} hours, of which {_number(rest)} are left to do."]
    if compute.gpus:
        lines.append(f"Price: ${_number(rest * compute.dollars_per_gpu_hour)} at ${compute.dollars_per_gpu_hour:g}.")
    lines.append(f"Time: {_number(days * 24)} hours ({_number(days)} days) with {_count(at_once, 'cell')} at a time.")
    lines.append(f"Disk: {size(left['kept'].sum())} stay, {size(disk_needed(profile, left))} at most while it runs.")
    return "\n".join(lines)


def _cells(profile: Profile, costs: pd.DataFrame, done: set[str]) -> str:
    price = profile.compute.dollars_per_gpu_hour * bool(profile.compute.gpus)
    shown = costs[["digest", "hours"]].assign(dollars=costs["hours"] * price, kept=costs["kept"].map(size))
    shown["flops"] = costs["flops"].map("{:.2g}".format)
    shown[""] = ["done" if cell in done else "" for cell in costs.index]
    return _text(shown.reset_index())


def _assumptions(profile: Profile) -> str:
    names = ("train_mfu", "bandwidth_share", "step_seconds", "rollout_efficiency", "overhead", "prompt_tokens")
    assumed = ", ".join(f"{name} {getattr(profile.compute, name):g}" for name in names)
    answers = ", ".join(f"{stage} {answer_tokens(profile, stage):g}" for stage in ("base", "sft", "rl", "rollout"))
    lines = ["Assumptions (compute in the profile):", *textwrap.wrap(f"{assumed}, answers of {answers} tokens", WIDTH)]
    for family in profile.families:
        memory = ", ".join(f"{stage} {need / 1e9:.1f}" for stage, need in gpu_memory(profile, family).items())
        costs = FamilyCost(profile, family)
        parameters, rate = cost.parameters(costs.shape) / 1e9, costs.rate("sampling", answer_tokens(profile, "sft"))
        lines.append(f"  {family.name}: {parameters:.2f}B parameters, sampling at {rate:,.0f} tokens/s a GPU;")
        lines.append(f"    memory of a GPU at most, in GB: {memory}")
    return "\n".join(lines)


def _published(profile: Profile, grid: list[Cell], costs: pd.DataFrame) -> str:
    """Return our hours beside those that the paper reports, under other readings of what it leaves open."""
    compute, published, total = profile.compute, profile.compute.published_gpu_hours, costs["hours"].sum()
    longest = dict.fromkeys(("base", "sft", "rl", "rollout"), float(profile.evaluation.max_tokens))
    upper = estimate(profile.replace(compute=compute.replace(answer_tokens=longest)), grid)["hours"].sum()
    most = compute.published_run_hours * compute.gpus
    capped = costs["train"].clip(upper=most).sum() + costs[["sample", "score"]].sum().sum()
    days = f"{compute.published_run_hours / 24:g} days of a node ({_number(most)} GPU hours, App. B)"
    lines = [
        f"The paper reports more than {_number(published)} GPU hours (Abstract, Sec. 4.1, App. B):",
        f"  this grid as computed: {_number(total)}, {total / published:.2f} of it",
        f"  with answers of {profile.evaluation.max_tokens:,} tokens each: {_number(upper)}, {upper / published:.2f}",
        f"  with RL runs of at most {days}: {_number(capped)}, {capped / published:.2f}",
        f"  {_number(published)} GPU hours are {_number(published / most)} RL runs of that length",
    ]
    return "\n".join(lines)


def _count(value: int, what: str) -> str:
    return f"{value:,} {what}{'' if value == 1 else 's'}"


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
