"""What can be wrong with a profile beyond its types and ranges, found before anything is computed."""

from __future__ import annotations

import re
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import SELECTIONS, FamilySettings, Profile
from quagmire_utils.sweep.grid import resolved_rl


def check(profile: Profile, *, here: bool = True) -> None:
    """Raise ParameterError for a profile that would otherwise fail minutes or hours into a sweep.

    `here`: also if this machine lacks the engine; otherwise only for what no machine could run.
    """
    from quagmire_utils.data.prompts import TEMPLATES
    from quagmire_utils.engines import ENGINES, check_engine
    from quagmire_utils.training import microlab

    evaluation = profile.evaluation
    if evaluation.engine == "server":
        raise ParameterError("evaluation.engine", "server", "an engine that loads trained checkpoints, such as vllm")
    if here or evaluation.engine not in ENGINES:
        check_engine(evaluation.engine)
    if evaluation.template not in TEMPLATES:
        raise ParameterError("evaluation.template", evaluation.template, f"one of {', '.join(TEMPLATES)}")
    if profile.digits not in microlab.DIGITS:
        raise ParameterError("digits", profile.digits, f"one of {', '.join(map(str, microlab.DIGITS))}")
    _check_benchmarks(profile)
    for name in (profile.name.replace("_", "-"), *(family.name for family in profile.families)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name):  # names of folders, in which __ replaces /
            raise ParameterError("name", name, "of letters, digits, dots and hyphens")
    for family in profile.families:
        where = f"families.{family.name}"
        if family.pretraining is not None:
            microlab.check_pretraining(family.pretraining, where)
            microlab.check_terms(family.rl_terms, f"{where}.rl_terms")
            for name, source in family.sources.items():
                microlab.check_terms(source.terms, f"{where}.sources.{name}.terms")
                microlab.check_styles(source.styles, f"{where}.sources.{name}.styles")
        else:
            _check_pretrained(profile, family, where)
        if profile.rl.prompts_per_step > family.rl_problems:
            allowed = f"at least rl.prompts_per_step ({profile.rl.prompts_per_step})"
            raise ParameterError(f"{where}.rl_problems", family.rl_problems, allowed)
        _check_candidates(family, where)
    if any(family.model is not None for family in profile.families):
        _check_devices(profile)


def _check_benchmarks(profile: Profile) -> None:
    from quagmire_utils.data import BENCHMARKS
    from quagmire_utils.training.microlab import MICRO_BENCHMARKS

    micro = profile.families[0].model is None
    if any((family.model is None) != micro for family in profile.families):
        raise ParameterError("families", reason="micro and pretrained models share no benchmark; use two profiles")
    known, files = (MICRO_BENCHMARKS, "") if micro else (BENCHMARKS, ", or the path of a .jsonl file")
    for name in profile.benchmarks:
        if name not in known and (micro or not (name.endswith(".jsonl") and Path(name).is_file())):
            raise ParameterError("benchmarks", name, f"of {', '.join(known)}{files}")


def _check_candidates(family: FamilySettings, where: str) -> None:
    for candidate in family.candidates:
        if candidate.selection == "none":
            continue
        named, selection, n = f"{where}.candidates.{candidate.name}", candidate.selection, candidate.n_examples
        if not set(selection.split("+")) <= set(SELECTIONS):
            raise ParameterError(f"{named}.selection", selection, f"none, or of {', '.join(SELECTIONS)} joined by +")
        if candidate.source not in family.sources:
            raise ParameterError(f"{named}.source", candidate.source, f"one of {', '.join(family.sources)}")
        if n > (pool := family.sources[candidate.source].pool):
            raise ParameterError(f"{named}.n_examples", n, f"at most the pool of its source ({pool})")


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
    rl, evaluation = profile.rl, profile.evaluation
    if rl.checkpoints > (steps := resolved_rl(profile, family).steps):
        raise ParameterError("rl.checkpoints", rl.checkpoints, f"at most the {steps} steps of a run")
    if rl.backend == "compact":
        raise ParameterError("rl.backend", "compact", f"trl or verl for {where}; compact is for micro models")
    for name, source in family.sources.items():
        if (source.max_tokens or 0) >= profile.sft.max_length:
            allowed = f"below sft.max_length ({profile.sft.max_length}), to leave room for the prompt"
            raise ParameterError(f"{where}.sources.{name}.max_tokens", source.max_tokens, allowed)
    if evaluation.max_model_len is not None and evaluation.max_tokens >= evaluation.max_model_len:
        allowed = f"below evaluation.max_model_len ({evaluation.max_model_len}), to leave room for the prompt"
        raise ParameterError("evaluation.max_tokens", evaluation.max_tokens, allowed)


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
