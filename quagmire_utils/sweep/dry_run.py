"""The page that `sweep --dry-run` prints: cells, hours, dollars, disk, assumptions, and what this machine lacks.

Nothing is downloaded; a hub that does not answer costs three seconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import Profile
from quagmire_utils.data.dataset import local_files
from quagmire_utils.data.pretrained import pretrained_names
from quagmire_utils.engines.checkpoints import hub_answers
from quagmire_utils.sweep.checks import check
from quagmire_utils.sweep.collect import finished_cells
from quagmire_utils.sweep.datasets import check_files, load_problems, rows_needed, training_sets
from quagmire_utils.sweep.estimate import ADAM_BYTES, BYTES, GPUS, answer_tokens, estimate, parameters
from quagmire_utils.sweep.grid import plan

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


# --- what is missing ------------------------------------------------------------------------------------------------


def missing(profile: Profile, folder: Path, costs: pd.DataFrame) -> list[str]:
    """Return one sentence for each thing that the profile needs and this machine lacks.

    costs: the estimate of the cells that are left to do.
    """
    lacking = [*missing_devices(profile), *missing_programs(profile)]
    if profile.families[0].model is not None:
        lacking += [*_models(profile, set(costs.index)), *_datasets(profile), *_benchmarks(profile)]
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    needed, free = disk_needed(profile, costs), shutil.disk_usage(place).free
    if needed > free:
        lacking.append(f"disk: {size(needed)} are needed and {size(free)} are free at {place}")
    return lacking


def missing_devices(profile: Profile) -> Iterator[str]:
    """Yield what is missing of the GPUs of the cells that run at once."""
    compute = profile.compute
    if not compute.gpus:
        return
    import torch

    needed, there = compute.gpus * profile.workers, torch.cuda.device_count()
    if there < needed:
        yield f"GPUs: {needed} x {compute.gpu} are needed (compute.gpus x workers), and {there} are here"
    for family in profile.families:
        states, memory = ADAM_BYTES * parameters(family.model) / compute.gpus, GPUS[compute.gpu].memory
        if states > memory:
            needs = f"training {family.name} needs more than {size(states)} on each GPU, which has {size(memory)}"
            yield f"GPU memory: {needs}; raise compute.gpus, or take another compute.gpu"


def missing_programs(profile: Profile) -> Iterator[str]:
    """Yield the engine and the back-ends that are not installed."""
    from quagmire_utils.training.backends import BACKENDS, environment_python

    engine = profile.evaluation.engine
    if importlib.util.find_spec(engine) is None:
        yield f"engine {engine}: it is not installed; `./reproduce.sh setup` installs it"
    for name in sorted({profile.sft.backend, profile.rl.backend} & BACKENDS.keys()):
        try:
            environment_python(name)
        except ParameterError as error:
            yield f"back-end {name}: {error.reason or error}"


def disk_needed(profile: Profile, costs: pd.DataFrame) -> float:
    """Return the bytes that stay at the end plus those that the cells in flight hold besides."""
    in_flight = profile.workers * profile.compute.nodes
    return costs["kept"].sum() + costs["scratch"].nlargest(in_flight).sum()


def _models(profile: Profile, left: set[str]) -> Iterator[str]:
    from huggingface_hub import get_token, try_to_load_from_cache

    for family in profile.families:
        model = family.model
        named = f"model {model.hub_id} ({size(BYTES * parameters(model))})"
        if f"{family.name}/base" not in left:
            continue
        if model.is_folder:
            if model.hub_id not in pretrained_names() and not Path(model.hub_id).expanduser().is_dir():
                yield f"{named}: there is no such folder"
        elif isinstance(try_to_load_from_cache(model.hub_id, "config.json", revision=model.revision), str):
            continue
        elif not hub_answers():
            yield f"{named}: it is not in the hub's cache, and the hub does not answer"
        elif model.gated and get_token() is None:
            yield f"{named}: accept its licence on its page, and log in with `hf auth login`"


def _datasets(profile: Profile) -> Iterator[str]:
    yield from check_files(profile)
    known = training_sets(profile)
    for name in sorted(rows_needed(profile)):
        with contextlib.suppress(ParameterError):  # check_files has named it
            if not local_files(known[name]) and not hub_answers():
                yield f"dataset {name}: there is no local copy, and the hub of {known[name].hub_id} does not answer"


def _benchmarks(profile: Profile) -> Iterator[str]:
    for name, count in profile.benchmarks.items():
        try:
            load_problems(name, count)
        except ParameterError as error:
            yield str(error)


def size(count: float) -> str:
    """Return bytes in words, for example 16.1 GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
