"""What a sweep needs that this machine lacks: GPUs, engines, back-ends, models, datasets, disk, for `--dry-run`.

Each entry says what is missing and what to do about it. Nothing is downloaded; a hub that does not answer costs three
seconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import Profile
from quagmire_utils.data.dataset import local_files
from quagmire_utils.data.pretrained import pretrained_names
from quagmire_utils.sweep.datasets import check_files, load_problems, rows_needed, training_sets
from quagmire_utils.sweep.estimate import ADAM_BYTES, BYTES, GPUS, parameters

HUB_TIMEOUT = 3.0  # seconds


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


@lru_cache(maxsize=1)
def hub_answers() -> bool:
    """Return whether the hub of models and datasets can be reached from here."""
    import httpx
    from huggingface_hub import constants

    try:
        return not constants.HF_HUB_OFFLINE and bool(httpx.head(constants.ENDPOINT, timeout=HUB_TIMEOUT))
    except httpx.HTTPError:
        return False


def size(count: float) -> str:
    """Return bytes in words, for example 16.1 GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
