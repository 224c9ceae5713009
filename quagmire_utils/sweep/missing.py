"""What a sweep needs that this machine lacks: GPUs, engines, back-ends, models, datasets, disk. `sweep --dry-run`.

Each entry says what is missing and what to do about it. Nothing is downloaded; a hub that does not answer costs three
seconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import FamilySettings, ModelSettings, Profile
from quagmire_utils.data import load_benchmark
from quagmire_utils.data.dataset import local_files
from quagmire_utils.grading import prepare_problems
from quagmire_utils.sweep import cost
from quagmire_utils.sweep.estimate import CellCost, gpu_memory, model_shape
from quagmire_utils.sweep.grid import plan

HUB_TIMEOUT = 3.0  # seconds
BACKENDS = ("llamafactory", "verl")


def missing(profile: Profile, folder: Path, costs: Sequence[CellCost]) -> list[str]:
    """One sentence for each thing that the profile needs and this machine lacks."""
    from tqdm import tqdm

    checks = [partial(missing_devices, profile), partial(missing_programs, profile)]
    if profile.compute.gpus:  # here there may be larger ones, or none
        checks.append(partial(too_large, profile, cost.gpu(profile.compute.gpu).memory))
    if profile.families[0].model is not None:
        checks += [partial(_models, profile.families, folder, profile), partial(_datasets, profile)]
        checks.append(partial(_benchmarks, profile))
    found: list[str] = []
    for check in tqdm(checks, desc="looking at this machine", unit="check", delay=3, leave=False):
        found += [lack for lack in check() if lack not in found]
    needed, free = disk_needed(profile, costs), shutil.disk_usage(_existing(folder)).free
    if needed > free:
        found.append(
            f"disk: {size_in_words(needed)} are needed and {size_in_words(free)} are free at {_existing(folder)}"
        )
    return found


def missing_devices(profile: Profile) -> list[str]:
    """What is missing of the GPUs of a cell."""
    if not profile.compute.gpus:
        return []
    import torch

    asked = profile.compute.gpus * profile.workers
    there = torch.cuda.device_count()
    if there < asked:
        return [f"GPUs: {asked} x {profile.compute.gpu} are needed (compute.gpus x workers), and {there} are here"]
    return too_large(profile, min(torch.cuda.get_device_properties(i).total_memory for i in range(there)))


def too_large(profile: Profile, memory: float) -> list[str]:
    """The stages that do not fit GPUs of so many bytes."""
    remedy = {"SFT": "sft.micro_batch_size", "RL": "rl.micro_batch_size", "rollouts": "rl.vllm_memory"}
    return [
        f"GPU memory: {stage} of {family.name} needs about {size_in_words(need)} of a GPU, and it has "
        f"{size_in_words(memory)}; lower {remedy[stage]}"
        for family in profile.families
        if family.model is not None
        for stage, need in gpu_memory(profile, family).items()
        if need > memory
    ]


def disk_needed(profile: Profile, costs: Sequence[CellCost]) -> float:
    """Bytes that stay at the end, and what the cells in flight hold beside them."""
    in_flight = profile.workers * profile.compute.nodes
    kept = sum(item.kept for item in costs)
    return kept + sum(sorted((item.scratch for item in costs), reverse=True)[:in_flight])


def missing_programs(profile: Profile) -> list[str]:
    """The engine and the back-ends that are not installed."""
    found = []
    if importlib.util.find_spec(profile.evaluation.engine) is None:
        found.append(f"engine {profile.evaluation.engine}: it is not installed; `./reproduce.sh setup` installs it")
    for name in {profile.sft.backend, profile.rl.backend} & set(BACKENDS):
        from quagmire_utils.training.backends import environment_python

        try:
            environment_python(name)
        except ParameterError as error:
            found.append(f"back-end {name}: {error}")
    return sorted(found)


def _models(families: Sequence[FamilySettings], folder: Path, profile: Profile) -> list[str]:
    from quagmire_utils.sweep.cells import has_checkpoint

    found = []
    bases = {cell.family: cell for cell in plan(profile) if cell.kind == "base"}
    for family in families:
        model = family.model
        if model is None or has_checkpoint(folder, bases[family.name]):
            continue
        reason = _model_reason(model)
        if reason:
            size = size_in_words(cost.weight_bytes(model_shape(model)))
            found.append(f"model {model.hub_id} ({size}): {reason}")
    return found


def _model_reason(model: ModelSettings) -> str:
    if model.is_folder:
        return "" if Path(model.hub_id).expanduser().is_dir() else "there is no such folder"
    from huggingface_hub import get_token, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model.hub_id, "config.json", revision=model.revision), str):
        return ""
    if not hub_answers():
        return "it is not in the hub's cache, and the hub does not answer"
    if model.gated and get_token() is None:
        return "its hub asks for its licence to be accepted on its page, and for `hf auth login`"
    return ""


def _datasets(profile: Profile) -> list[str]:
    from quagmire_utils.sweep.data import rows_asked, training_sets, unusable_files

    found = unusable_files(profile)
    for name in rows_asked(profile):
        with contextlib.suppress(ParameterError):  # told above
            dataset = training_sets(profile)[name]
            if not local_files(dataset) and not hub_answers():
                found.append(f"dataset {name}: there is no local copy, and the hub of {dataset.hub_id} does not answer")
    return sorted(found)


def _benchmarks(profile: Profile) -> list[str]:
    found = []
    for name, count in profile.benchmarks.items():
        try:
            problems = prepare_problems({name: load_benchmark(name, limit=count)})[name]
        except ParameterError as error:
            found.append(str(error))
        else:
            if not problems:
                found.append(f"benchmark {name}: it has no problems")
    return found


@lru_cache(maxsize=1)
def hub_answers() -> bool:
    """Whether the hub of models and datasets can be reached from here."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    import httpx

    try:
        httpx.head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except httpx.HTTPError:
        return False
    return True


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder


def size_in_words(count: float) -> str:
    """Bytes, for example 16.1 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
