"""What a sweep takes before it runs: the page of `sweep --dry-run` with hours, dollars, disk, and what is missing here.

A model of N parameters costs a token 2 N FLOPs to read or to sample, 6 N to train on, and 8 N with gradient
checkpointing. Hours are the FLOPs over the share of the GPU's peak that the profile's `compute` assumes. Finished cells
correct the others of their kind and family. Nothing is downloaded; a hub that does not answer costs three seconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import read_table
from quagmire_utils.core.settings import FamilySettings, ModelSettings, Profile
from quagmire_utils.data.dataset import local_files
from quagmire_utils.data.pretrained import pretrained_names
from quagmire_utils.engines import load_config
from quagmire_utils.engines.checkpoints import hub_answers
from quagmire_utils.sweep.collect import finished_cells
from quagmire_utils.sweep.datasets import check_files, load_problems, model_folder, rows_needed
from quagmire_utils.sweep.grid import Cell, check, plan, training_sets, work
from quagmire_utils.training.backends.runs import BACKENDS, environment_python

PAGE = Path(__file__).with_name("dry_run.jinja")
WIDTH = 100  # columns of the page
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
    if not (folder / "cells.parquet").is_file():
        return costs
    cells = read_table(folder / "cells.parquet").set_index("cell")
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

    name = str(model_folder(model)) if model.is_folder else model.hub_id
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


def dry_run(profile: Profile, folder: Path) -> str:
    """Check a profile; return a page on what running it takes. Raises ParameterError for what no machine could run."""
    import jinja2

    check(profile, here=False)
    cells = plan(profile)
    costs, done = estimate(profile, cells, folder), finished_cells(folder, cells)
    left = costs[~costs.index.isin(done)]
    what = {"cells": ("hours", "size"), **{name: (name, "sum") for name in ("train", "sample", "hours")}}
    what["basis"] = ("basis", lambda values: ", ".join(sorted(set(values))))
    parts = costs.groupby(["family", "kind"], sort=False).agg(**what)
    table = pd.concat([parts, costs.groupby(lambda _: ("all", "")).agg(**what)])
    table.index = [f"{family} {kind}".strip() for family, kind in table.index]
    compute, hours, at_once = profile.compute, left["hours"].sum(), profile.workers * profile.compute.nodes
    stages = ("base", "sft", "rl", "rollout") if profile.families[0].model is not None else ()
    wrap = textwrap.TextWrapper(WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False)
    wrap.break_on_hyphens = False
    page = jinja2.Template(PAGE.read_text(), trim_blocks=True).render(
        profile=profile,
        compute=compute,
        cells=len(cells),
        done=len(done),
        kinds=costs["kind"].value_counts().reindex(["base", "sft", "rl"], fill_value=0).tolist(),
        table=table.to_string(float_format=_number),
        left=len(left),
        hours=hours,
        at_once=at_once,
        wall=hours / max(1, compute.gpus) / at_once,
        stays=left["kept"].sum(),
        most=disk_needed(profile, left),
        answers={stage: answer_tokens(profile, stage) for stage in stages},
        lacking=[wrap.fill(line) for line in missing(profile, folder, left)],
        number=_number,
        size=size,
    )
    return page.strip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2f}"


# --- what is missing ------------------------------------------------------------------------------------------------


def missing(profile: Profile, folder: Path, costs: pd.DataFrame) -> Iterator[str]:
    """Yield one sentence for each thing that this machine lacks for the cells left to do; `costs`: theirs."""
    yield from missing_here(profile)
    if profile.families[0].model is not None:
        yield from _missing_data(profile, set(costs.index))
    place = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
    needed, free = disk_needed(profile, costs), shutil.disk_usage(place).free
    if needed > free:
        yield f"disk: {size(needed)} are needed and {size(free)} are free at {place}"


def missing_here(profile: Profile) -> Iterator[str]:
    """Yield what this machine lacks of GPUs for the cells that run at once, of the engine and of the back-ends."""
    compute, engine = profile.compute, profile.evaluation.engine
    if compute.gpus:
        import torch

        needed, there = compute.gpus * profile.workers, torch.cuda.device_count()
        if there < needed:
            yield f"GPUs: {needed} x {compute.gpu} are needed (compute.gpus x workers), and {there} are here"
        for family in profile.families:
            states, memory = ADAM_BYTES * parameters(family.model) / compute.gpus, GPUS[compute.gpu].memory
            if states > memory:
                needs = f"training {family.name} needs more than {size(states)} on each GPU, which has {size(memory)}"
                yield f"GPU memory: {needs}; raise compute.gpus, or take another compute.gpu"
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


def _missing_data(profile: Profile, left: set[str]) -> Iterator[str]:
    """Yield the models, datasets and benchmarks that are not here; `left`: ids of the cells left to do."""
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
    yield from check_files(profile)
    known = training_sets(profile)
    for name in sorted(rows_needed(profile)):
        with contextlib.suppress(ParameterError):  # check_files has named it
            if not local_files(known[name]) and not hub_answers():
                yield f"dataset {name}: there is no local copy, and the hub of {known[name].hub_id} does not answer"
    for name, count in profile.benchmarks.items():
        try:
            load_problems(name, count)
        except ParameterError as error:
            yield str(error)


def size(count: float) -> str:
    """Return bytes in words, for example 16.1 GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
