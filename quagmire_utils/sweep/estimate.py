"""What a sweep will cost before it runs: FLOPs, GPU-hours, dollars and disk of every cell. `sweep --dry-run`.

Each cell's work is counted from the profile (traces x epochs, steps x prompts x rollouts, problems x samples), turned
into FLOPs and decoded tokens by `cost`, and into hours by the profile's `compute`. Where a probe was measured
(`compute.probes`), or cells of the same kind and family have finished, their time replaces the computed one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet
from quagmire_utils.core.settings import (
    CandidateSettings,
    ComputeSettings,
    FamilySettings,
    ModelSettings,
    ModelShape,
    Profile,
    RLSettings,
)
from quagmire_utils.sweep import cost
from quagmire_utils.sweep.grid import Cell, plan, resolved_rl, rl_runs
from quagmire_utils.sweep.grid import cost as answers_of

ANSWER_TOKENS = 0.5  # of max_tokens, where the profile does not say how long answers are
TEXT_BYTES = 1.5  # a stored token of an answer: about 4 characters, compressed
SECONDS_PER_ANSWER = 0.0015  # of a micro model on one core: what the shipped miniature study took
VERL_MEMORY = 0.6  # the share of a GPU that vLLM takes in verl: the default of backends.verl.write
STAGES = {"base": "base", "sft": "SFT", "rl": "RL"}


@dataclass(frozen=True)
class CellCost:
    """What one cell takes. `train`, `sample`, `score` are GPU-hours (CPU-hours of a profile without GPUs)."""

    cell: Cell
    flops: float  # of training and scoring; decoding is counted in tokens
    trained_tokens: float
    sampled_tokens: float
    train: float
    sample: float
    score: float  # generalization loss
    kept: float  # bytes that stay: the checkpoint if it is kept, and the graded answers
    scratch: float  # bytes more while it runs
    basis: str  # computed | probe | measured

    @property
    def hours(self) -> float:
        """All of it."""
        return self.train + self.sample + self.score


def estimate(profile: Profile, folder: Path | None = None) -> list[CellCost]:
    """The cost of every cell of a profile, in the plan's order; with `folder`, finished cells there correct the rest.

    Raises ParameterError for a model whose sizes are not known and cannot be read.
    """
    families = {family.name: family for family in profile.families}
    computed = [_cell_cost(profile, families[cell.family], cell) for cell in plan(profile)]
    return computed if folder is None else _corrected(profile, computed, folder)


def run_candidates(profile: Profile) -> tuple[int, int]:
    """(candidates, RL runs) of a profile."""
    candidates = [candidate for family in profile.families for candidate in family.candidates]
    return len(candidates), sum(rl_runs(profile, candidate) for candidate in candidates)


@lru_cache(maxsize=64)
def model_shape(model: ModelSettings) -> ModelShape:
    """A model's sizes: the profile's, or those of its config.json."""
    if model.shape is not None:
        return model.shape
    from quagmire_utils.engines import load_config

    path = str(Path(model.hub_id).expanduser()) if model.is_folder else model.hub_id
    if model.is_folder and not Path(path).is_dir():
        raise ParameterError(f"model.hub_id: there is no folder {model.hub_id}")
    try:
        return cost.shape_of(load_config(path, model.revision))
    except ParameterError as error:
        raise ParameterError(f"{error}; model.shape in the profile says its sizes without a hub") from error


def answer_tokens(profile: Profile, stage: str) -> float:
    """Expected tokens of an answer of a `stage`: base, sft, rl or rollout."""
    most = profile.rl.max_tokens if stage == "rollout" else profile.evaluation.max_tokens
    return min(most, profile.compute.answer_tokens.get(stage, ANSWER_TOKENS * most))


def trace_tokens(profile: Profile, family: FamilySettings, candidate: CandidateSettings) -> float:
    """Expected response tokens of a candidate's mean trace."""
    source = family.sources[candidate.source]
    most = source.max_tokens or profile.sft.max_length
    parts = candidate.selection.split("+")
    return sum(min(most, source.mean_tokens.get(part, most / 2)) for part in parts) / len(parts)


def sft_tokens(profile: Profile, family: FamilySettings, candidate: CandidateSettings) -> float:
    """Tokens that a candidate is trained on, prompts and repeats included."""
    length = trace_tokens(profile, family, candidate) + profile.compute.prompt_tokens
    return candidate.n_examples * candidate.epochs * length


def gpu_memory(profile: Profile, family: FamilySettings) -> dict[str, float]:
    """Bytes on a GPU by stage: SFT and RL while they train (vLLM asleep), rollouts beside the states of training.

    A forward pass is counted as long as it can be. Both back-ends compute the loss of RL without logits.
    """
    shape, gpus = model_shape(family.model), max(1, profile.compute.gpus)
    prompt, sft, rl = profile.compute.prompt_tokens, profile.sft, profile.rl
    longest = max(source.max_tokens or sft.max_length for source in family.sources.values())
    one = {"trl": sft.batch_size, "llamafactory": 1}  # of one forward pass where the profile does not say
    trained = (sft.micro_batch_size or one[sft.backend]) * min(sft.max_length, longest + prompt)
    updated = (rl.micro_batch_size or (2 if rl.backend == "verl" else rl.prompts_per_step * rl.rollouts)) * (
        prompt + rl.max_tokens
    )
    memory = {
        "SFT": cost.training_bytes(shape, trained, gpus=gpus, recompute=sft.gradient_checkpointing),
        "RL": cost.training_bytes(shape, updated, gpus=gpus, logits=False, recompute=rl.gradient_checkpointing),
    }
    if profile.compute.gpus and (share := _rollout_share(rl)) < cost.MEMORY_SHARE:
        asleep = (cost.ADAM_BYTES - 4) * cost.parameters(shape) / gpus if rl.backend == "trl" else 0.0  # no gradients
        memory["rollouts"] = share * cost.gpu(profile.compute.gpu).memory + asleep
    return memory


def _rollout_share(settings: RLSettings) -> float:
    """The share of a GPU's memory that vLLM takes for rollouts."""
    if settings.backend == "verl":
        return VERL_MEMORY
    return settings.vllm_memory if settings.rollout_engine == "vllm" else cost.MEMORY_SHARE


def _cell_cost(profile: Profile, family: FamilySettings, cell: Cell) -> CellCost:
    if family.model is None:
        hours = answers_of(profile, cell) * SECONDS_PER_ANSWER / 3600
        return CellCost(cell, 0.0, 0.0, 0.0, hours, 0.0, 0.0, 3e6, 0.0, "computed")
    candidate = next(c for c in family.candidates if c.name == cell.candidate) if cell.kind != "base" else None
    problems = sum(profile.benchmarks.values())
    if cell.kind == "rl":
        return _rl_cost(profile, family, cell, problems)
    compute, shape, on = profile.compute, model_shape(family.model), cost.gpu(profile.compute.gpu)
    flops = tokens = 0.0
    scratch = 0.0
    if candidate is not None:
        tokens = sft_tokens(profile, family, candidate)
        length = trace_tokens(profile, family, candidate) + compute.prompt_tokens
        flops = cost.training_flops(shape, tokens, length, recompute=profile.sft.gradient_checkpointing)
        scratch = cost.RESUME_BYTES * cost.parameters(shape) if profile.sft.backend != "trl" else 0.0
    basis, train = _training_hours(compute, family, "sft", flops, tokens, on)
    sampled, sampling_basis, sample = _sampling(profile, family, cell.kind, problems * profile.evaluation.num_samples)
    main = next(iter(family.sources.values()))
    length = main.mean_tokens.get("random", profile.sft.max_length / 2) + compute.prompt_tokens
    scored = main.validation * (1 if candidate is None else 2) * cost.sequence_flops(shape, length)
    return CellCost(
        cell,
        flops + scored,
        tokens,
        sampled,
        train,
        sample,
        compute.overhead * scored / (on.flops * compute.train_mfu) / 3600,
        cost.weight_bytes(shape) + TEXT_BYTES * sampled,
        scratch,
        "probe" if "probe" in (basis, sampling_basis) else "computed",
    )


def _rl_cost(profile: Profile, family: FamilySettings, cell: Cell, problems: int) -> CellCost:
    compute, shape, on = profile.compute, model_shape(family.model), cost.gpu(profile.compute.gpu)
    settings = resolved_rl(profile, family)
    rollouts = settings.steps * settings.prompts_per_step * settings.rollouts
    answer = answer_tokens(profile, "rollout")
    flops = cost.rl_training_flops(
        shape,
        rollouts,
        compute.prompt_tokens,
        # TRL pads all answers of a step to the longest, and one of hundreds is as long as allowed
        settings.max_tokens if settings.backend == "trl" else answer,
        recompute=settings.gradient_checkpointing,
        old_pass=settings.backend == "verl",
    )
    tokens = rollouts * answer
    basis, train = _training_hours(compute, family, "rl", flops, tokens, on)
    rate, rollout_basis = _rate(compute, family, "rollout", shape, on, answer, _rollout_share(settings))
    train += compute.overhead * tokens / rate / 3600
    samples = problems * profile.evaluation.rl_num_samples * settings.checkpoints
    sampled, sampling_basis, sample = _sampling(profile, family, "rl", samples)
    weights = settings.checkpoints * cost.weight_bytes(shape)
    return CellCost(
        cell,
        flops,
        tokens,
        sampled,
        train,
        sample,
        0.0,
        (weights if profile.keep_rl_models else 0.0) + TEXT_BYTES * sampled,
        weights + settings.checkpoints * cost.RESUME_BYTES * cost.parameters(shape),
        "probe" if "probe" in (basis, rollout_basis, sampling_basis) else "computed",
    )


def _training_hours(
    compute: ComputeSettings, family: FamilySettings, kind: str, flops: float, tokens: float, on: cost.Gpu
) -> tuple[str, float]:
    probe = compute.probes.get(f"{family.name}.{kind}")
    if probe is not None and tokens:
        return "probe", tokens / probe / 3600
    return "computed", compute.overhead * flops / (on.flops * compute.train_mfu) / 3600


def _sampling(profile: Profile, family: FamilySettings, stage: str, samples: float) -> tuple[float, str, float]:
    """(tokens, basis, hours) of so many answers."""
    compute = profile.compute
    answer = answer_tokens(profile, stage)
    rate, basis = _rate(compute, family, "sampling", model_shape(family.model), cost.gpu(compute.gpu), answer)
    overhead = 1.0 if basis == "probe" else compute.overhead
    return samples * answer, basis, overhead * samples * answer / rate / 3600


def _rate(
    compute: ComputeSettings,
    family: FamilySettings,
    kind: str,
    shape: ModelShape,
    on: cost.Gpu,
    answer: float,
    memory_share: float = cost.MEMORY_SHARE,
) -> tuple[float, str]:
    """(tokens/s of a GPU, basis)."""
    probe = compute.probes.get(f"{family.name}.{kind}")
    if probe is not None:
        return probe, "probe"
    rate = cost.decode_rate(
        shape,
        on,
        prompt=compute.prompt_tokens,
        answer=answer,
        bandwidth_share=compute.bandwidth_share,
        step_seconds=compute.step_seconds,
        memory_share=memory_share,
    )
    return rate * (compute.rollout_efficiency if kind == "rollout" else 1.0), "computed"


def _corrected(profile: Profile, computed: Sequence[CellCost], folder: Path) -> list[CellCost]:
    """The costs with finished cells' own hours, and the others of their kind and family scaled as these came out."""
    measured = _measured_hours(profile, folder, {item.cell.id: item.cell.digest for item in computed})
    result = []
    for item in computed:
        alike = [
            other
            for other in computed
            if (other.cell.kind, other.cell.family) == (item.cell.kind, item.cell.family) and other.cell.id in measured
        ]
        expected = sum(other.hours for other in alike)
        if not expected:
            result.append(item)
            continue
        factor = sum(measured[other.cell.id] for other in alike) / expected
        if item.cell.id in measured:
            factor = measured[item.cell.id] / item.hours
        scaled = {name: getattr(item, name) * factor for name in ("train", "sample", "score")}
        result.append(replace(item, **scaled, basis="measured"))
    return result


def _measured_hours(profile: Profile, folder: Path, digests: Mapping[str, str]) -> dict[str, float]:
    """GPU-hours (CPU-hours where there are no GPUs) of the finished cells of a results folder."""
    try:
        cells: pd.DataFrame = read_parquet(folder / "cells.parquet")
    except (OSError, ValueError, KeyError):
        return {}
    devices = max(1, profile.compute.gpus)
    return {
        cell: devices * seconds / 3600
        for cell, digest, seconds in zip(cells["cell"], cells["digest"], cells["seconds_total"], strict=True)
        if digests.get(cell) == digest
    }
