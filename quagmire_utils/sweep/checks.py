"""What can be wrong with a profile beyond the values of its settings, found before anything is computed."""

from __future__ import annotations

from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import FamilySettings, Profile


def check(profile: Profile, *, here: bool = True) -> None:
    """Raise ParameterError for a profile that would otherwise fail minutes or hours into a sweep.

    `here`: also if this machine lacks the engine; otherwise only for what no machine could run.
    """
    from quagmire_utils.data.prompts import TEMPLATES
    from quagmire_utils.engines import ENGINES, check_engine

    evaluation = profile.evaluation
    if evaluation.engine == "server":
        raise ParameterError("evaluation.engine", "server", "an engine that loads trained checkpoints, such as vllm")
    if here or evaluation.engine not in ENGINES:
        check_engine(evaluation.engine)
    if evaluation.template not in TEMPLATES:
        raise ParameterError("evaluation.template", evaluation.template, f"one of {', '.join(TEMPLATES)}")
    _check_benchmarks(profile)
    for family in profile.families:
        profile.rl.over(family.rl_problems)
        if family.model is not None:
            _check_pretrained(profile, family, f"families.{family.name}")
    if profile.families[0].model is not None:
        _check_devices(profile)


def _check_benchmarks(profile: Profile) -> None:
    """Refuse unknown benchmarks, and more problems than one has."""
    from quagmire_utils.data import benchmark_names, find_dataset, load_benchmark
    from quagmire_utils.training.microlab import MICRO_BENCHMARKS

    micro = profile.families[0].model is None
    if any((family.model is None) != micro for family in profile.families):
        raise ParameterError("families", reason="micro and pretrained models share no benchmark; use two profiles")
    known, files = (MICRO_BENCHMARKS, "") if micro else (benchmark_names(), ", or the path of a .jsonl file")
    for name, count in profile.benchmarks.items():
        there = None
        if not micro and name.endswith(".jsonl") and Path(name).is_file():
            there = len(load_benchmark(name))
        elif name not in known:
            raise ParameterError("benchmarks", name, f"of {', '.join(known)}{files}")
        elif not micro:
            dataset = find_dataset(name)
            there = max(dataset.count or 0, dataset.hub_count or 0)
        if there and count > there:
            raise ParameterError(f"benchmarks.{name}", count, f"at most the {there:,} problems that it has")


def _check_pretrained(profile: Profile, family: FamilySettings, where: str) -> None:
    from quagmire_utils.sweep.datasets import training_sets

    known = training_sets(profile)
    asked = {f"sources.{name}.dataset": source.dataset for name, source in family.sources.items()}
    for parameter, name in {**asked, "rl_set": family.rl_set}.items():
        if name not in known:
            raise ParameterError(f"{where}.{parameter}", name, f"one of {', '.join(known)}")
        column = "answer" if parameter == "rl_set" else "response"
        if not getattr(known[name], column):
            raise ParameterError(f"{where}.{parameter}", name, f"a dataset with {column}s")
    if profile.rl.backend == "compact" and profile.compute.gpus:
        raise ParameterError("rl.backend", "compact", f"trl or verl for {where}; compact is for models on a CPU")
    for name, source in family.sources.items():
        if (source.max_tokens or 0) >= profile.sft.max_length:
            allowed = f"below sft.max_length ({profile.sft.max_length}), to leave room for the prompt"
            raise ParameterError(f"{where}.sources.{name}.max_tokens", source.max_tokens, allowed)


def _check_devices(profile: Profile) -> None:
    """Refuse back-ends that cannot work on so many GPUs, and batches that do not divide among them."""
    sft, rl, gpus = profile.sft, profile.rl, profile.compute.gpus
    if gpus > 1 and "trl" in (sft.backend, rl.backend):
        raise ParameterError("compute.gpus", gpus, "0 or 1 with backend trl, which trains on one GPU")
    if gpus == 0 and (rl.backend == "verl" or rl.rollout_engine == "vllm"):
        need = "rl.backend verl" if rl.backend == "verl" else "rl.rollout_engine vllm"
        raise ParameterError("compute.gpus", gpus, f"at least 1 with {need}")
    rollouts = rl.prompts_per_step * rl.rollouts
    for settings, name, parameter, batch in (
        (sft, "sft", "sft.batch_size", sft.batch_size),
        (rl, "rl", "rl.prompts_per_step x rl.rollouts", rollouts),
    ):
        each = (settings.micro_batch_size or 1) * max(1, gpus)
        if settings.backend in ("llamafactory", "verl") and batch % each:
            raise ParameterError(parameter, batch, f"a multiple of {name}.micro_batch_size x compute.gpus ({each})")
