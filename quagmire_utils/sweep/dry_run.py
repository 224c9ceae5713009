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
from quagmire_utils.sweep.grid import plan
from quagmire_utils.sweep.missing import disk_needed, missing, size

STAGES = {"base": "base", "sft": "SFT", "rl": "RL"}
UNITS = {"hours": 1.0, "minutes": 60.0, "seconds": 3600.0}  # in an hour
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
    kinds = {"base": "base model", "sft": "SFT candidate", "rl": "RL run"}
    counted = ", ".join(_count((costs["kind"] == kind).sum(), title) for kind, title in kinds.items())
    head = [
        f"{profile.name}: {profile.description}",
        f"{_count(len(grid), 'cell')} ({len(done)} done): {counted}",
        f"{sum(profile.benchmarks.values()):,} problems of {_count(len(profile.benchmarks), 'benchmark')}. "
        "The parameters pass preflight.",
    ]
    sections = ["\n".join(head), _table(profile, costs), _totals(profile, costs, left)]
    if profile.families[0].model is not None:
        sections.append(_assumptions(profile))
    how = {"subsequent_indent": "    ", "break_on_hyphens": False, "break_long_words": False}
    lacking = [textwrap.fill(f"  - {line}", WIDTH, **how) for line in missing(profile, folder, left)]
    sections.append("\n".join(["Missing on this machine:" if lacking else "Nothing is missing here.", *lacking]))
    return "\n\n".join(sections)


def _table(profile: Profile, costs: pd.DataFrame) -> str:
    """Return times by family and stage; the longest cell in the time of its node."""
    several = len(profile.families) > 1
    by_family = costs.assign(part=costs["family"] + " " + costs["kind"].map(STAGES))
    by_stage = costs.assign(part="all " + costs["kind"].map(STAGES))
    rows = pd.concat([by_family, *([by_stage] if several else []), costs.assign(part="all")])
    groups = rows.groupby("part", sort=False)
    parts = [*(PARTS if profile.families[0].model is not None else []), "hours"]
    table = pd.concat([groups.size().rename("cells"), groups[parts].sum()], axis=1)
    table["longest"] = groups["hours"].max() / max(1, profile.compute.gpus)
    names = [*(family.name for family in profile.families), "all"]
    order = [f"{name} {stage}" for name in names for stage in STAGES.values()]
    table = table.loc[[part for part in [*order, "all"] if part in table.index]]
    unit = _unit(table["hours"]["all"])
    table[[*parts, "longest"]] *= UNITS[unit]
    table["basis"] = groups["basis"].agg(lambda basis: ", ".join(sorted(set(basis))))
    title = f"In {profile.compute.gpu if profile.compute.gpus else 'core'} {unit}"
    table = table.rename(columns={"hours": unit}).rename_axis("").reset_index()
    table[""] = table[""].str.ljust(table[""].str.len().max())
    text = table.to_string(index=False, float_format=_number)
    return f"{title}; the longest cell in {unit} of its node:\n{text}"


def _totals(profile: Profile, costs: pd.DataFrame, left: pd.DataFrame) -> str:
    total = f"In all {_time(costs['hours'].sum())}"
    if left.empty:
        return f"{total}; nothing is left to do."
    compute, rest = profile.compute, left["hours"].sum()
    at_once = profile.workers * compute.nodes
    wall = rest / max(1, compute.gpus) / at_once
    days = f" ({_number(wall / 24)} days)" if wall >= 24 else ""
    lines = [f"{total}, of which {_time(rest)} are left to do."]
    if compute.gpus:
        lines.append(f"Price: ${_number(rest * compute.dollars_per_gpu_hour)} at ${compute.dollars_per_gpu_hour:g}.")
    lines.append(f"Time: {_time(wall)}{days} with {_count(at_once, 'cell')} at a time.")
    lines.append(f"Disk: {size(left['kept'].sum())} stay, {size(disk_needed(profile, left))} at most while it runs.")
    return "\n".join(lines)


def _assumptions(profile: Profile) -> str:
    names = ("train_mfu", "bandwidth_share", "step_seconds", "rollout_efficiency", "overhead", "prompt_tokens")
    assumed = ", ".join(f"{name} {getattr(profile.compute, name):g}" for name in names)
    answers = ", ".join(f"{stage} {answer_tokens(profile, stage):g}" for stage in ("base", "sft", "rl", "rollout"))
    lines = ["Assumptions (compute in the profile):", *textwrap.wrap(f"{assumed}, answers of {answers} tokens", WIDTH)]
    for family in profile.families:
        memory = ", ".join(f"{stage} {need / 1e9:.1f}" for stage, need in gpu_memory(profile, family).items())
        costs = FamilyCost(profile, family)
        parameters, rate = cost.parameters(costs.shape) / 1e9, costs.rate(answer_tokens(profile, "sft"))
        lines.append(f"  {family.name}: {parameters:.2f}B parameters, sampling at {rate:,.0f} tokens/s a GPU;")
        lines.append(f"    memory of a GPU at most, in GB: {memory}")
    return "\n".join(lines)


def _count(value: int, what: str) -> str:
    return f"{value:,} {what}{'' if value == 1 else 's'}"


def _unit(hours: float) -> str:
    """Return the largest unit of which there is at least one."""
    return next((unit for unit, share in UNITS.items() if hours * share >= 1), "seconds")


def _time(hours: float) -> str:
    unit = _unit(hours)
    return f"{_number(hours * UNITS[unit])} {unit}"


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    if 0 < value < 0.005:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2f}"
