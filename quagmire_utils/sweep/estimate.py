"""What each cell of a sweep costs before it runs: GPU-hours, tokens and disk, for `sweep --dry-run`.

Work is counted from the profile (traces x epochs, steps x prompts x rollouts, problems x samples), turned into FLOPs
and decoded tokens by `cost`, and into hours by the profile's `compute`. A measured rate (`compute.probes`) replaces a
computed one, and finished cells correct the others of their kind and family.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet
from quagmire_utils.core.settings import CandidateSettings, FamilySettings, ModelSettings, ModelShape, Profile
from quagmire_utils.sweep import cost
from quagmire_utils.sweep.grid import Cell, resolved_rl, work

ANSWER_TOKENS = 0.5  # share of max_tokens, where the profile does not give the length of answers
TEXT_BYTES = 1.5  # a stored token of an answer: about 4 characters, compressed
SECONDS_PER_ANSWER = 0.0015  # of a micro model on one core, as measured in the shipped miniature study
VERL_MEMORY = 0.6  # share of a GPU that vLLM takes in verl: the default of backends.verl.write
PARTS = ["train", "sample", "score"]
KEYS = ["cell", "family", "kind", "digest"]
COLUMNS = [*KEYS, "flops", "trained_tokens", "sampled_tokens", *PARTS, "kept", "scratch", "basis"]


def estimate(profile: Profile, cells: Sequence[Cell], folder: Path | None = None) -> pd.DataFrame:
    """Return the cost of every cell: one row per cell, indexed by its id, in the order of `cells`.

    Hours are of a GPU, or of a core without GPUs; score: the generalization loss; kept and scratch: bytes at the end,
    and besides while the cell runs; basis: computed, probe or measured. With `folder`, finished cells there correct
    the rest. Raises ParameterError for a model whose sizes are unknown and cannot be read.
    """
    families = {f.name: FamilyCost(profile, f) for f in profile.families if f.model is not None}
    rows = []
    for cell in cells:
        keys = dict(zip(KEYS, (cell.id, cell.family.name, cell.kind, cell.digest), strict=True))
        if cell.family.model is None:
            hours = work(profile, cell) * SECONDS_PER_ANSWER / 3600
            rows.append({**keys, "sample": hours, "kept": 3e6, "basis": "computed"})
        else:
            rows.append({**keys, **families[cell.family.name].row(cell)})
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


def trace_tokens(profile: Profile, family: FamilySettings, candidate: CandidateSettings) -> float:
    """Return the expected response tokens of a candidate's mean trace."""
    source = family.sources[candidate.source]
    most = source.max_tokens or profile.sft.max_length
    parts = candidate.selection.split("+")
    return sum(min(most, source.mean_tokens.get(part, most / 2)) for part in parts) / len(parts)


def sft_tokens(profile: Profile, family: FamilySettings, candidate: CandidateSettings) -> float:
    """Return the tokens that a candidate is trained on, prompts and repeats included."""
    length = trace_tokens(profile, family, candidate) + profile.compute.prompt_tokens
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
        memory["rollouts"] = share * cost.gpu(profile.compute.gpu).memory + states
    return memory


def _rollout_share(profile: Profile) -> float:
    """Return the share of a GPU's memory that vLLM takes for rollouts."""
    if profile.rl.backend == "verl":
        return VERL_MEMORY
    return profile.rl.vllm_memory if profile.rl.rollout_engine == "vllm" else cost.MEMORY_SHARE


class FamilyCost:
    """Costs of the cells of one pretrained model."""

    def __init__(self, profile: Profile, family: FamilySettings) -> None:
        self.profile, self.family, self.compute = profile, family, profile.compute
        self.shape, self.gpu = model_shape(family.model), cost.gpu(profile.compute.gpu)

    def probe(self, kind: str) -> float | None:
        """Return the measured tokens/s of a GPU, if the profile has them."""
        return self.compute.probes.get(f"{self.family.name}.{kind}")

    def row(self, cell: Cell) -> dict[str, float | str]:
        """Return the cost of a cell by column of `estimate`."""
        row = self._rl() if cell.kind == "rl" else self._before_rl(cell)
        kinds = {"base": ["sampling"], "sft": ["sft", "sampling"], "rl": ["rl", "rollout", "sampling"]}[cell.kind]
        return {**row, "basis": "probe" if any(map(self.probe, kinds)) else "computed"}

    def _before_rl(self, cell: Cell) -> dict[str, float | str]:
        profile, shape = self.profile, self.shape
        flops = tokens = scratch = 0.0
        if cell.kind == "sft":
            tokens = sft_tokens(profile, self.family, cell.candidate)
            length = trace_tokens(profile, self.family, cell.candidate) + self.compute.prompt_tokens
            flops = cost.training_flops(shape, tokens, length, recompute=profile.sft.gradient_checkpointing)
            scratch = cost.RESUME_BYTES * cost.parameters(shape) if profile.sft.backend != "trl" else 0.0
        sampled, sample = self.sampling(cell.kind, profile.evaluation.num_samples)
        main = next(iter(self.family.sources.values()))
        length = main.mean_tokens.get("random", profile.sft.max_length / 2) + self.compute.prompt_tokens
        scored = main.validation * (1 if cell.kind == "base" else 2) * cost.sequence_flops(shape, length)
        return {
            "flops": flops + scored,
            "trained_tokens": tokens,
            "sampled_tokens": sampled,
            "train": self.training("sft", flops, tokens),
            "sample": sample,
            "score": self.training("score", scored, 0.0),
            "kept": cost.weight_bytes(shape) + TEXT_BYTES * sampled,
            "scratch": scratch,
        }

    def _rl(self) -> dict[str, float | str]:
        profile, shape, prompt = self.profile, self.shape, self.compute.prompt_tokens
        settings = resolved_rl(profile, self.family)
        rollouts = settings.steps * settings.prompts_per_step * settings.rollouts
        answer = answer_tokens(profile, "rollout")
        # TRL pads all answers of a step to the longest, and one of hundreds is as long as allowed
        trained = settings.max_tokens if settings.backend == "trl" else answer
        how = {"recompute": settings.gradient_checkpointing, "old_pass": settings.backend == "verl"}
        flops = cost.rl_training_flops(shape, rollouts, prompt, trained, **how)
        tokens = rollouts * answer
        rate = self.rate("rollout", answer, _rollout_share(profile))
        sampled, sample = self.sampling("rl", profile.evaluation.rl_num_samples * settings.checkpoints)
        weights = settings.checkpoints * cost.weight_bytes(shape)
        return {
            "flops": flops,
            "trained_tokens": tokens,
            "sampled_tokens": sampled,
            "train": self.training("rl", flops, tokens) + self.compute.overhead * tokens / rate / 3600,
            "sample": sample,
            "kept": (weights if profile.keep_rl_models else 0.0) + TEXT_BYTES * sampled,
            "scratch": weights + settings.checkpoints * cost.RESUME_BYTES * cost.parameters(shape),
        }

    def training(self, kind: str, flops: float, tokens: float) -> float:
        """Return the hours of computing so many FLOPs, or of training on `tokens` at the probe's rate."""
        probe = self.probe(kind)
        if probe is not None and tokens:
            return tokens / probe / 3600
        return self.compute.overhead * flops / (self.gpu.flops * self.compute.train_mfu) / 3600

    def sampling(self, stage: str, samples: float) -> tuple[float, float]:
        """Return (tokens, hours) of so many answers to each problem."""
        answer = answer_tokens(self.profile, stage)
        tokens = sum(self.profile.benchmarks.values()) * samples * answer
        overhead = self.compute.overhead if self.probe("sampling") is None else 1.0
        return tokens, overhead * tokens / self.rate("sampling", answer) / 3600

    def rate(self, kind: str, answer: float, memory_share: float = cost.MEMORY_SHARE) -> float:
        """Return the tokens/s that a GPU decodes."""
        if (probe := self.probe(kind)) is not None:
            return probe
        compute = self.compute
        speed = {"bandwidth_share": compute.bandwidth_share, "step_seconds": compute.step_seconds}
        lengths = {"prompt": compute.prompt_tokens, "answer": answer}
        rate = cost.decode_rate(self.shape, self.gpu, **lengths, **speed, memory_share=memory_share)
        return rate * (self.compute.rollout_efficiency if kind == "rollout" else 1.0)
