"""What each cell of a sweep costs before it runs: GPU-hours and disk, for `sweep --dry-run`.

Work is counted from the profile (traces x epochs, steps x prompts x rollouts, problems x samples), turned into FLOPs
and decoded tokens by `cost`, and into hours by the profile's `compute`. Finished cells correct the others of their kind
and family.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet
from quagmire_utils.core.settings import CandidateSettings, FamilySettings, ModelSettings, ModelShape, Profile
from quagmire_utils.sweep import cost
from quagmire_utils.sweep.grid import Cell, work
from quagmire_utils.training.backends.verl import GPU_MEMORY

ANSWER_TOKENS = 0.5  # share of max_tokens, where the profile does not give the length of answers
TEXT_BYTES = 1.5  # a stored token of an answer: about 4 characters, compressed
SECONDS_PER_ANSWER = 0.0015  # of a micro model on one core, as measured in the shipped miniature study
SECONDS_PER_CELL = 3.0  # of a micro model besides: loading, and the first step
MICRO_BYTES = 3e6  # that a cell of a micro model leaves
PARTS = ["train", "sample", "score"]
KEYS = ["cell", "family", "kind", "digest"]
COLUMNS = [*KEYS, *PARTS, "kept", "scratch", "basis"]


def estimate(profile: Profile, cells: Sequence[Cell], folder: Path | None = None) -> pd.DataFrame:
    """Return the cost of every cell: one row per cell, indexed by its id, in the order of `cells`.

    Hours are of a GPU, or of a core without GPUs; score: the generalization loss; kept and scratch: bytes at the end,
    and besides while the cell runs; basis: computed or measured. With `folder`, finished cells there correct the rest.
    Raises ParameterError for a model whose sizes are unknown and cannot be read.
    """
    families = {f.name: FamilyCost(profile, f) for f in profile.families if f.model is not None}
    rows = []
    for cell in cells:
        if cell.family.model is None:
            seconds = SECONDS_PER_CELL + work(profile, cell) * SECONDS_PER_ANSWER
            row = {"sample": seconds / 3600, "kept": MICRO_BYTES}
        else:
            row = families[cell.family.name].row(cell)
        keys = zip(KEYS, (cell.id, cell.family.name, cell.kind, cell.digest), strict=True)
        rows.append({**dict(keys), **row, "basis": "computed"})
    frame = pd.DataFrame(rows, columns=COLUMNS).set_index("cell").fillna(0.0)
    frame["hours"] = frame[PARTS].sum(axis=1)
    return frame if folder is None else _corrected(profile, frame, folder)


def _corrected(profile: Profile, costs: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Replace the hours of finished cells by the measured ones, and scale the others of their kind and family."""
    try:
        cells = read_parquet(folder / "cells.parquet").set_index("cell")
    except (OSError, ValueError, KeyError):
        return costs
    cells = cells[cells["digest"] == costs["digest"].reindex(cells.index)]
    measured = (max(1, profile.compute.gpus) * cells["seconds_total"] / 3600).reindex(costs.index)
    groups = [costs["family"], costs["kind"]]
    expected = costs["hours"].where(measured.notna()).groupby(groups).transform("sum")
    factor = (measured.groupby(groups).transform("sum") / expected).where(expected > 0)
    factor = (measured / costs["hours"]).fillna(factor)
    scaled = costs[[*PARTS, "hours"]].mul(factor.fillna(1.0), axis=0)
    return costs.assign(**scaled, basis=costs["basis"].where(factor.isna(), "measured"))


def model_shape(model: ModelSettings) -> ModelShape:
    """Return a model's sizes: the profile's, or those of its config.json."""
    if model.shape is not None:
        return model.shape
    from quagmire_utils.engines import load_config

    name = str(Path(model.hub_id).expanduser()) if model.is_folder else model.hub_id
    if model.is_folder and not Path(name).is_dir():
        raise ParameterError("model.hub_id", model.hub_id, "a folder that exists, or a hub id")
    try:
        return cost.shape_of(load_config(name, model.revision))
    except ParameterError as error:
        reason = f"{error}; write its sizes into the profile to count without a hub"
        raise ParameterError("model.shape", reason=reason) from error


def answer_tokens(profile: Profile, stage: str) -> float:
    """Return the expected tokens of an answer of a `stage`: base, sft, rl or rollout."""
    most = profile.rl.max_tokens if stage == "rollout" else profile.evaluation.max_tokens
    return min(most, profile.compute.answer_tokens.get(stage, ANSWER_TOKENS * most))


def trace_tokens(profile: Profile, family: FamilySettings, source: str, selection: str) -> float:
    """Return the expected tokens of a mean trace of a source, its prompt included."""
    settings = family.sources[source]
    most = settings.max_tokens or profile.sft.max_length
    lengths = [min(most, settings.mean_tokens.get(part, most / 2)) for part in selection.split("+")]
    return sum(lengths) / len(lengths) + profile.compute.prompt_tokens


def sft_tokens(profile: Profile, family: FamilySettings, candidate: CandidateSettings) -> float:
    """Return the tokens that a candidate is trained on, prompts and repeats included."""
    length = trace_tokens(profile, family, candidate.source, candidate.selection)
    return candidate.n_examples * candidate.epochs * length


def gpu_memory(profile: Profile, family: FamilySettings) -> dict[str, float]:
    """Return the bytes on a GPU by stage: SFT and RL while they train (vLLM asleep), and rollouts beside RL's states.

    A forward pass is counted as long as it can be. Both back-ends compute the loss of RL without logits.
    """
    shape, gpus = model_shape(family.model), max(1, profile.compute.gpus)
    prompt, sft, rl = profile.compute.prompt_tokens, profile.sft, profile.rl
    longest = max(source.max_tokens or sft.max_length for source in family.sources.values())
    # of one forward pass; by default all of a step with TRL, one trace with LLaMA-Factory, two rollouts with verl
    traces = sft.micro_batch_size or (sft.batch_size if sft.backend == "trl" else 1)
    rollouts = rl.micro_batch_size or (2 if rl.backend == "verl" else rl.prompts_per_step * rl.rollouts)
    trained, updated = traces * min(sft.max_length, longest + prompt), rollouts * (prompt + rl.max_tokens)
    memory = {
        "SFT": cost.training_bytes(shape, trained, gpus=gpus, recompute=sft.gradient_checkpointing),
        "RL": cost.training_bytes(shape, updated, gpus=gpus, logits=False, recompute=rl.gradient_checkpointing),
    }
    if profile.compute.gpus and (share := _rollout_share(profile)) < cost.MEMORY_SHARE:
        states = (cost.ADAM_BYTES - 4) * cost.parameters(shape) / gpus if rl.backend == "trl" else 0.0  # no gradients
        memory["rollouts"] = share * cost.GPUS[profile.compute.gpu].memory + states
    return memory


def _rollout_share(profile: Profile) -> float:
    """Return the share of a GPU's memory that vLLM takes for rollouts."""
    if profile.rl.backend == "verl":
        return GPU_MEMORY
    return profile.rl.vllm_memory if profile.rl.rollout_engine == "vllm" else cost.MEMORY_SHARE


class FamilyCost:
    """Costs of the cells of one pretrained model."""

    def __init__(self, profile: Profile, family: FamilySettings) -> None:
        self.profile, self.family = profile, family
        self.shape, self.gpu = model_shape(family.model), cost.GPUS[profile.compute.gpu]

    def row(self, cell: Cell) -> dict[str, float]:
        """Return the cost of a cell by column of `estimate`."""
        profile, shape, sft = self.profile, self.shape, self.profile.sft
        if cell.kind == "rl":
            return self._rl()
        flops = scratch = 0.0
        if cell.kind == "sft":
            tokens = sft_tokens(profile, self.family, cell.candidate)
            length = trace_tokens(profile, self.family, cell.candidate.source, cell.candidate.selection)
            flops = cost.training_flops(shape, tokens, length, recompute=sft.gradient_checkpointing)
            scratch = cost.RESUME_BYTES * cost.parameters(shape) if sft.backend != "trl" else 0.0
        main, source = next(iter(self.family.sources.items()))
        validated = source.validation * (1 if cell.kind == "base" else 2)
        scored = validated * cost.sequence_flops(shape, trace_tokens(profile, self.family, main, "random"))
        sampled, sample = self._sampling(cell.kind, profile.evaluation.num_samples)
        return {
            "train": self._training(flops),
            "sample": sample,
            "score": self._training(scored),
            "kept": cost.weight_bytes(shape) + TEXT_BYTES * sampled,
            "scratch": scratch,
        }

    def _rl(self) -> dict[str, float]:
        profile, shape = self.profile, self.shape
        settings = profile.rl.over(self.family.rl_problems)
        rollouts = settings.steps * settings.prompts_per_step * settings.rollouts
        answer = answer_tokens(profile, "rollout")
        # TRL pads all answers of a step to the longest, and one of hundreds is as long as allowed
        length = profile.compute.prompt_tokens + (settings.max_tokens if settings.backend == "trl" else answer)
        recompute = settings.gradient_checkpointing
        flops = cost.training_flops(shape, rollouts * length, length, recompute=recompute)
        if settings.backend == "verl":  # computes log-probabilities once more, under the policy that drew the answers
            flops += rollouts * cost.sequence_flops(shape, length)
        rate = profile.compute.rollout_efficiency * self.rate(answer, _rollout_share(profile))
        sampled, sample = self._sampling("rl", profile.evaluation.rl_num_samples * settings.checkpoints)
        weights = settings.checkpoints * cost.weight_bytes(shape)
        return {
            "train": self._training(flops) + profile.compute.overhead * rollouts * answer / rate / 3600,
            "sample": sample,
            "kept": (weights if profile.keep_rl_models else 0.0) + TEXT_BYTES * sampled,
            "scratch": weights + settings.checkpoints * cost.RESUME_BYTES * cost.parameters(shape),
        }

    def _training(self, flops: float) -> float:
        """Return the hours of computing so many FLOPs."""
        compute = self.profile.compute
        return compute.overhead * flops / (self.gpu.flops * compute.train_mfu) / 3600

    def _sampling(self, stage: str, samples: float) -> tuple[float, float]:
        """Return (tokens, hours) of so many answers to each problem."""
        answer = answer_tokens(self.profile, stage)
        tokens = sum(self.profile.benchmarks.values()) * samples * answer
        return tokens, self.profile.compute.overhead * tokens / self.rate(answer) / 3600

    def rate(self, answer: float, memory_share: float = cost.MEMORY_SHARE) -> float:
        """Return the tokens/s that a GPU decodes in answers of this length."""
        compute = self.profile.compute
        speed = {"bandwidth_share": compute.bandwidth_share, "step_seconds": compute.step_seconds}
        lengths = {"prompt": compute.prompt_tokens, "answer": answer}
        return cost.decode_rate(self.shape, self.gpu, **lengths, **speed, memory_share=memory_share)
