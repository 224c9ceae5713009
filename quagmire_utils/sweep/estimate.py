"""What each cell of a sweep costs before it runs: hours and disk, for `sweep --dry-run`.

A model of N parameters costs a token 2 N FLOPs to read or to sample, 6 N to train on, and 8 N with gradient
checkpointing. Hours are the FLOPs over the share of the GPU's peak that the profile's `compute` assumes. Finished cells
correct the others of their kind and family.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_parquet
from quagmire_utils.core.settings import FamilySettings, ModelSettings, Profile
from quagmire_utils.data.pretrained import locate
from quagmire_utils.sweep.grid import Cell, work

ANSWER_TOKENS = 0.5  # share of max_tokens, where the profile does not give the length of answers
BYTES = 2  # of a parameter of a checkpoint, in bf16
ADAM_BYTES = 16  # of a trained parameter: float32 weight, gradient and two moments
RESUME_BYTES = 12  # of it in a checkpoint to resume from: no gradient
TEXT_BYTES = 1.5  # of a stored token of an answer: about 4 characters, compressed
SECONDS_PER_TOKEN = 1.2e-5  # of max_tokens of an answer of a micro model on one core, as measured for `mini`
SECONDS_PER_CELL = 3.0  # of a micro model besides: loading, and the first step
MICRO_BYTES = 3e6  # that a cell of a micro model leaves


class Gpu(NamedTuple):
    """Numbers of a GPU's data sheet."""

    flops: float  # dense bf16 FLOPs a second
    memory: float  # bytes


GPUS = {  # those of ComputeSettings.gpu
    "A100-80GB": Gpu(312e12, 80e9),
    "A100-40GB": Gpu(312e12, 40e9),
    "H100-80GB": Gpu(989e12, 80e9),
    "H200": Gpu(989e12, 141e9),
    "L40S": Gpu(362e12, 48e9),
    "A10G": Gpu(125e12, 24e9),
    "L4": Gpu(121e12, 24e9),
    "RTX4090": Gpu(165e12, 24e9),
    "CPU core": Gpu(1e11, 8e9),  # float32 with AVX2: 3 GHz x 2 units x 8 numbers x 2
}


def estimate(profile: Profile, cells: Sequence[Cell], folder: Path | None = None) -> pd.DataFrame:
    """Return the cost of every cell: one row per cell, indexed by its id, in the order of `cells`.

    train, sample and hours (their sum) are of a GPU, or of a core without GPUs. kept and scratch: bytes at the end, and
    besides while the cell runs. basis: computed or measured. With `folder`, finished cells there correct the rest.
    Raises ParameterError for a model whose parameters are unknown and cannot be counted.
    """
    counts = {family.name: parameters(family.model) for family in profile.families if family.model is not None}
    rows = []
    for cell in cells:
        if cell.family.model is None:
            answer = profile.evaluation.max_tokens * SECONDS_PER_TOKEN
            hours = (SECONDS_PER_CELL + work(profile, cell) * answer) / 3600
            row = {"train": 0.0, "sample": hours, "kept": MICRO_BYTES, "scratch": 0.0}
        else:
            row = _cost(profile, cell, counts[cell.family.name])
        rows.append({"cell": cell.id, "family": cell.family.name, "kind": cell.kind, "digest": cell.digest, **row})
    costs = pd.DataFrame(rows).set_index("cell").assign(basis="computed")
    costs["hours"] = costs["train"] + costs["sample"]
    return costs if folder is None else _corrected(profile, costs, folder)


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
    factor = (measured / costs["hours"]).fillna(measured.groupby(groups).transform("sum") / expected)
    scaled = costs[["train", "sample", "hours"]].mul(factor.fillna(1.0), axis=0)
    return costs.assign(**scaled, basis=costs["basis"].where(factor.isna(), "measured"))


def parameters(model: ModelSettings) -> int:
    """Return how many parameters a model has: the profile's number, or that of the model its config.json describes."""
    if model.parameters is not None:
        return model.parameters
    import torch
    from transformers import AutoModelForCausalLM

    from quagmire_utils.engines import load_config

    name = str(Path(locate(model.hub_id)).expanduser()) if model.is_folder else model.hub_id
    if model.is_folder and not Path(name).is_dir():
        raise ParameterError("model.hub_id", model.hub_id, "a folder that exists, or a hub id")
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(load_config(name, model.revision)).num_parameters()
    except ValueError as error:
        reason = f"{error}; write the number into the profile to count without a hub"
        raise ParameterError("model.parameters", reason=reason) from error


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


def _cost(profile: Profile, cell: Cell, parameters: int) -> dict[str, float]:
    """Return the cost of a pretrained model's cell, by column of `estimate`."""
    compute, candidate = profile.compute, cell.candidate
    weights, resume = BYTES * parameters, RESUME_BYTES * parameters
    settings, samples, trained, rollouts = profile.sft, profile.evaluation.num_samples, 0.0, 0.0
    kept, scratch = weights, 0.0
    if cell.kind == "sft":
        length = trace_tokens(profile, cell.family, candidate.source, candidate.selection)
        trained = candidate.n_examples * candidate.epochs * length
        scratch = resume if settings.backend != "trl" else 0.0
    elif cell.kind == "rl":
        settings = profile.rl.over(cell.family.rl_problems)
        answers = settings.steps * settings.prompts_per_step * settings.rollouts
        rollouts = answers * answer_tokens(profile, "rollout")
        trained = rollouts + answers * compute.prompt_tokens
        samples = settings.checkpoints * profile.evaluation.rl_num_samples
        kept = settings.checkpoints * weights if profile.keep_rl_models else 0.0
        scratch = settings.checkpoints * (weights + resume)
    measured = sum(profile.benchmarks.values()) * samples * answer_tokens(profile, cell.kind)
    flops = compute.overhead * parameters / (3600 * GPUS[compute.gpu].flops)  # hours for one FLOP a parameter
    training = (8 if settings.gradient_checkpointing else 6) * trained / compute.train_mfu
    return {
        "train": flops * (training + 2 * rollouts / compute.sample_mfu),
        "sample": flops * 2 * measured / compute.sample_mfu,
        "kept": kept + TEXT_BYTES * measured,
        "scratch": scratch,
    }
