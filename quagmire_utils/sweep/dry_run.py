"""The page that `sweep --dry-run` prints: cells, hours, dollars, disk, assumptions, and what is missing here."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd

from quagmire_utils.core.settings import Profile
from quagmire_utils.sweep.checks import check
from quagmire_utils.sweep.collect import finished_cells
from quagmire_utils.sweep.estimate import answer_tokens, estimate
from quagmire_utils.sweep.grid import plan
from quagmire_utils.sweep.missing import disk_needed, missing, size

WIDTH = 100  # columns


def dry_run(profile: Profile, folder: Path) -> str:
    """Check a profile and return a page on what running it takes. Computes and downloads nothing.

    Raises ParameterError for what no machine could run.
    """
    check(profile, here=False)
    grid = plan(profile)
    done = finished_cells(folder, grid)
    costs = estimate(profile, grid, folder)
    left = costs[~costs.index.isin(done)]
    kinds = costs["kind"].value_counts().reindex(["base", "sft", "rl"], fill_value=0)
    head = [
        f"{profile.name}: {profile.description}",
        "{} cells ({} done): {} base models, {} SFT candidates, {} RL runs".format(len(grid), len(done), *kinds),
        f"{sum(profile.benchmarks.values()):,} problems of {len(profile.benchmarks)} benchmarks. "
        "The parameters pass preflight.",
    ]
    lacking = [
        textwrap.fill(f"  - {line}", WIDTH, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
        for line in missing(profile, folder, left)
    ]
    absent = ["Missing on this machine:" if lacking else "Nothing is missing here.", *lacking]
    return "\n\n".join("\n".join(lines) for lines in (head, _table(profile, costs), _totals(profile, left), absent))


def _table(profile: Profile, costs: pd.DataFrame) -> list[str]:
    """Return hours by family and stage, and in all."""
    what = {"cells": ("hours", "size"), **{name: (name, "sum") for name in ("train", "sample", "hours")}}
    what |= {"longest": ("hours", "max"), "basis": ("basis", lambda values: ", ".join(sorted(set(values))))}
    parts = costs.groupby(["family", "kind"], sort=False).agg(**what)
    table = pd.concat([parts, costs.groupby(lambda _: ("all", "")).agg(**what)])
    table["longest"] /= max(1, profile.compute.gpus)
    table.index = [f"{family} {kind}".strip() for family, kind in table.index]
    unit = profile.compute.gpu if profile.compute.gpus else "a core"
    return [f"Hours on {unit}; the longest cell in hours of its node:", table.to_string(float_format=_number)]


def _totals(profile: Profile, left: pd.DataFrame) -> list[str]:
    """Return what the cells that are left to do cost, and what that assumes."""
    if left.empty:
        return ["Nothing is left to do."]
    compute, hours = profile.compute, left["hours"].sum()
    at_once = profile.workers * compute.nodes
    wall = hours / max(1, compute.gpus) / at_once
    time = f"{_number(wall)} hours ({_number(wall / 24)} days) with {at_once} at a time"
    lines = [f"Left to do: {len(left)} cells, {_number(hours)} hours, in {time}."]
    if compute.gpus:
        price = compute.dollars_per_gpu_hour
        lines.append(f"Price: ${_number(hours * price)} at ${price:g}.")
    lines.append(f"Disk: {size(left['kept'].sum())} stay, {size(disk_needed(profile, left))} at most while it runs.")
    if profile.families[0].model is not None:
        names = ("train_mfu", "sample_mfu", "overhead", "prompt_tokens")
        assumed = ", ".join(f"{name} {getattr(compute, name):g}" for name in names)
        answers = ", ".join(f"{stage} {answer_tokens(profile, stage):g}" for stage in ("base", "sft", "rl", "rollout"))
        lines.append(f"Assumed (compute in the profile): {assumed},\nanswers of {answers} tokens")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2f}"
