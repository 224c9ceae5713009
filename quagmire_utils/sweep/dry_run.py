"""The page that `sweep --dry-run` prints: cells, hours, dollars, disk, the assumptions, and what is missing here."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from quagmire_utils.core.settings import FamilySettings, Profile
from quagmire_utils.sweep import cost
from quagmire_utils.sweep.collect import finished_cells
from quagmire_utils.sweep.estimate import (
    STAGES,
    CellCost,
    answer_tokens,
    estimate,
    gpu_memory,
    model_shape,
    run_candidates,
)
from quagmire_utils.sweep.grid import check, plan
from quagmire_utils.sweep.missing import disk_needed, missing, size_in_words

PARTS = ("train", "sample", "score")
WIDTH = 100  # columns


def dry_run(profile: Profile, folder: Path, *, cells: bool = False) -> str:
    """Check a profile and say what running it takes. Computes and downloads nothing.

    `cells`: also one line for each cell. Raises ParameterError for what no machine could run.
    """
    check(profile, here=False)
    costs = estimate(profile, folder)
    done = finished_cells(folder, plan(profile))
    left = [item for item in costs if item.cell.id not in done]
    sections = [_head(profile, costs, done), _table(profile, costs), _totals(profile, costs, left)]
    if cells:
        sections.append(_cells(profile, costs, done))
    if profile.families[0].model is not None:
        sections.append(_assumptions(profile))
    if profile.compute.published_gpu_hours:
        sections.append(_published(profile, costs))
    lacking = missing(profile, folder, left)
    if lacking:
        sections.append("\n".join(["Missing on this machine:", *map(_item, lacking)]))
    else:
        sections.append("Nothing is missing on this machine.")
    return "\n\n".join(sections)


def _item(line: str) -> str:
    return textwrap.fill(f"  - {line}", WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def hours_unit(profile: Profile) -> str:
    """What the hours of a profile are of."""
    return f"{profile.compute.gpu} hours" if profile.compute.gpus else "core hours"


def _head(profile: Profile, costs: Sequence[CellCost], done: set[str]) -> str:
    candidates, runs = run_candidates(profile)
    return (
        f"{profile.name}: {profile.description}\n"
        f"{len(costs)} cells ({len(done)} done): {_count(len(profile.families), 'base model')}, "
        f"{_count(candidates, 'candidate')}, {_count(runs, 'RL run')}\n"
        f"{sum(profile.benchmarks.values()):,} problems of {_count(len(profile.benchmarks), 'benchmark')}. "
        "The parameters pass preflight."
    )


def _table(profile: Profile, costs: Sequence[CellCost]) -> str:
    """Hours by family and stage."""
    header = f"{'':22}{'cells':>7}{'train':>11}{'sample':>11}{'score':>9}{'hours':>11}{'longest':>10}  basis"
    lines = [f"In {hours_unit(profile)}; the longest cell in hours on its own:", header]
    for family in profile.families:
        for stage, title in STAGES.items():
            mine = [item for item in costs if item.cell.family == family.name and item.cell.kind == stage]
            if mine:
                lines.append(_row(f"{family.name} {title}", mine, profile))
    for stage, title in STAGES.items():
        mine = [item for item in costs if item.cell.kind == stage]
        if mine and len(profile.families) > 1:
            lines.append(_row(f"all {title}", mine, profile))
    return "\n".join([*lines, _row("all", costs, profile)])


def _row(title: str, items: Sequence[CellCost], profile: Profile) -> str:
    parts = [sum(getattr(item, part) for item in items) for part in PARTS]
    longest = max(item.hours for item in items) / max(1, profile.compute.gpus)
    widths = (11, 11, 9)
    numbers = "".join(f"{_number(value):>{width}}" for value, width in zip(parts, widths, strict=True))
    basis = ", ".join(sorted({item.basis for item in items}))
    return f"{title:22}{len(items):>7}{numbers}{_number(sum(parts)):>11}{_number(longest):>10}  {basis}"


def _totals(profile: Profile, costs: Sequence[CellCost], left: Sequence[CellCost]) -> str:
    compute = profile.compute
    hours, rest = sum(item.hours for item in costs), sum(item.hours for item in left)
    at_once = profile.workers * compute.nodes
    days = rest / max(1, compute.gpus) / at_once / 24
    kept, needed = sum(item.kept for item in left), disk_needed(profile, left)
    lines = [f"In all {_number(hours)} {hours_unit(profile)}, of which {_number(rest)} are left to do."]
    if compute.gpus:
        lines.append(f"Price: ${_number(rest * compute.dollars_per_gpu_hour)} at ${compute.dollars_per_gpu_hour:g}.")
    lines.append(f"Time: {_number(days * 24)} hours ({_number(days)} days) with {_count(at_once, 'cell')} at a time.")
    lines.append(f"Disk: {size_in_words(kept)} stay, {size_in_words(needed)} at most while it runs.")
    return "\n".join(lines)


def _cells(profile: Profile, costs: Sequence[CellCost], done: set[str]) -> str:
    lines = [f"{'cell':44}{'digest':16}{'FLOPs':>9}{'hours':>9}{'dollars':>9}{'kept':>9}"]
    for item in costs:
        dollars = item.hours * profile.compute.dollars_per_gpu_hour * bool(profile.compute.gpus)
        lines.append(
            f"{item.cell.id:44}{item.cell.digest:16}{item.flops:>9.2g}{_number(item.hours):>9}{_number(dollars):>9}"
            f"{size_in_words(item.kept):>9}{' done' if item.cell.id in done else ''}"
        )
    return "\n".join(lines)


def _assumptions(profile: Profile) -> str:
    compute = profile.compute
    answers = ", ".join(f"{stage} {answer_tokens(profile, stage):g}" for stage in ("base", "sft", "rl", "rollout"))
    lines = [
        "Assumptions (compute in the profile):",
        f"  training at {compute.train_mfu:.0%} of the peak; decoding at {compute.bandwidth_share:.0%} of the memory "
        f"bandwidth and {compute.step_seconds * 1000:g} ms a step;",
        f"  {compute.rollout_efficiency:.0%} of that in RL; {compute.overhead - 1:.0%} on top of all",
        f"  mean tokens of an answer: {answers}; of a prompt: {compute.prompt_tokens}",
    ]
    for family in profile.families:
        shape = model_shape(family.model)
        rate = cost.decode_rate(
            shape,
            cost.gpu(compute.gpu),
            prompt=compute.prompt_tokens,
            answer=answer_tokens(profile, "sft"),
            bandwidth_share=compute.bandwidth_share,
            step_seconds=compute.step_seconds,
        )
        probe = compute.probes.get(f"{family.name}.sampling")
        known = f"{rate:,.0f} tokens/s a GPU" if probe is None else f"{probe:,.0f} tokens/s a GPU (probe; {rate:,.0f})"
        memory = ", ".join(f"{stage} {need / 1e9:.1f}" for stage, need in gpu_memory(profile, family).items())
        lines.append(f"  {family.name}: {cost.parameters(shape) / 1e9:.2f}B parameters, sampling at {known};")
        lines.append(f"    memory of a GPU at most, in GB: {memory}")
    return "\n".join(lines)


def _published(profile: Profile, costs: Sequence[CellCost]) -> str:
    """Ours beside what the paper says it spent, and what would have to hold for the two to meet."""
    compute = profile.compute
    published, total = compute.published_gpu_hours, sum(item.hours for item in costs)
    context = profile.evaluation.max_tokens
    full = compute.replace(answer_tokens=dict.fromkeys(("base", "sft", "rl", "rollout"), float(context)))
    upper = sum(item.hours for item in estimate(profile.replace(compute=full)))
    lines = [
        f"Beside the paper's more than {_number(published)} GPU hours (Abstract, Sec. 4.1, App. B):",
        f"  this grid as computed: {_number(total)}, {total / published:.2f} of it",
        f"  if every answer were as long as allowed ({context:,} tokens): {_number(upper)}, {upper / published:.2f}",
    ]
    if compute.published_run_hours:
        most = compute.published_run_hours * compute.gpus
        capped = sum(min(item.train, most) + item.sample + item.score for item in costs)
        lines += [
            f"  if no RL run takes more than {compute.published_run_hours / 24:g} days of a node ({_number(most)} "
            f"GPU hours, App. B): {_number(capped)}, {capped / published:.2f}",
            f"  more than {_number(published)} GPU hours are {_number(published / most)} RL runs of that length, "
            f"{_number(published / most / profile.rl.runs)} candidates of {profile.rl.runs};",
            "  the paper speaks of hundreds of models, and its tables fit 55 (Tables 5, 6, 7, 9)",
        ]
        for family in profile.families:
            lines.append(f"  {family.name}: {_run_length(profile, family, costs, most)}")
    return "\n".join(lines)


def _run_length(profile: Profile, family: FamilySettings, costs: Sequence[CellCost], most: float) -> str:
    run = next(item for item in costs if item.cell.family == family.name and item.cell.kind == "rl")
    days = run.train / max(1, profile.compute.gpus) / 24
    text = f"an RL run takes {days:.1f} days of a node with rollouts of {answer_tokens(profile, 'rollout'):,.0f} tokens"
    if run.train <= most:
        return text
    limit = most / profile.compute.gpus / 24
    return f"{text};\n    it fits {limit:g} days with {_fitting(profile, run, most):,.0f} or fewer"


def _fitting(profile: Profile, run: CellCost, most: float) -> float:
    """The mean rollout length at which this RL run takes `most` GPU hours, by bisection."""
    low, high = 1.0, answer_tokens(profile, "rollout")
    for _ in range(30):
        middle = (low + high) / 2
        tokens = {**profile.compute.answer_tokens, "rollout": middle}
        other = profile.replace(compute=profile.compute.replace(answer_tokens=tokens))
        train = next(item for item in estimate(other) if item.cell.id == run.cell.id).train
        low, high = (middle, high) if train < most else (low, middle)
    return low


def _count(value: int, what: str) -> str:
    return f"{value:,} {what}{'' if value == 1 else 's'}"


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
