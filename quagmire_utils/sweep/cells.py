"""Computing one cell: train or load its checkpoint, measure it, and write its records in one step."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, read_parquet, write_json, write_parquet, write_text
from quagmire_utils.core.provenance import hardware, package_versions
from quagmire_utils.core.records import read_object
from quagmire_utils.core.settings import Profile
from quagmire_utils.evaluation import store
from quagmire_utils.sweep import data, training
from quagmire_utils.sweep.grid import (
    Cell,
    benchmark_problems,
    cell_folder,
    derive_seed,
    digest_path,
    model_folder,
    progress_path,
    resolved_rl,
    samples_folder,
    shipped_folder,
)

VALIDATION = "validation"  # the held-out traces of the family's main source
OWN = "own"  # held-out traces chosen as the candidate's own were: of its source, by its selection
OWN_FRACTION = 4  # a selection keeps one of so many held-out traces
SHIPPED = "base.json"  # in a shipped base model: which cell trained it, and the sums of its files


class _Stopwatch:
    """Where a cell's time goes, in seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def cell_threads(profile: Profile, cell: Cell) -> int:
    """Threads that a cell computes with.

    A function of the profile, whatever else runs: sums in another order would make another base, and so other
    candidates. A single family's cells all wait for its base, which therefore gets both cores of a small machine;
    bases of several families run side by side.
    """
    if profile.families[0].model is not None:  # on a GPU, or with all that the worker may have
        return max(1, len(os.sched_getaffinity(0)) // profile.workers)
    return 2 if cell.kind == "base" and len(profile.families) == 1 else 1


def _clear_stale(folder: Path, cell: Cell) -> None:
    """Remove what this cell left in `folder` when it had other parameters; what it left with these ones is resumed."""
    note = digest_path(folder, cell)
    if not note.is_file() or note.read_text() != cell.digest:
        note.unlink(missing_ok=True)
        for stale in (model_folder(folder, cell.id), samples_folder(folder, cell), cell_folder(folder, cell)):
            if stale.exists():
                shutil.rmtree(stale)  # what cannot be removed must not pass for new
        write_text(cell.digest, note)


def has_checkpoint(folder: Path, cell: Cell) -> bool:
    """Whether the checkpoint that a cell trains is there, made with its present parameters."""
    note = digest_path(folder, cell)
    return note.is_file() and note.read_text() == cell.digest and _is_complete(model_folder(folder, cell.id))


def ship_base(folder: Path, cell: Cell) -> None:
    """Copy the base model that `cell` trained to where the records are, unless it is there already."""
    shipped = shipped_folder(folder, cell)
    if not has_checkpoint(folder, cell) or _shipped_digest(shipped) == cell.digest:
        return
    scratch = shipped.with_name(shipped.name + ".writing")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(model_folder(folder, cell.id), scratch)
    write_json({"digest": cell.digest, "files": _sums(scratch)}, scratch / SHIPPED)
    shutil.rmtree(shipped, ignore_errors=True)
    scratch.rename(shipped)


def restore_base(folder: Path, cell: Cell, records: Path | None = None) -> bool:
    """Put the base model that is kept beside the `records` (None: in `folder`) where `cell` would have trained it.

    False, and nothing done, where there is none, it was trained with other parameters, or its files were changed.
    """
    shipped = shipped_folder(folder if records is None else records, cell)
    if cell.kind != "base" or _shipped_digest(shipped) != cell.digest:
        return False
    target = model_folder(folder, cell.id)
    scratch = target.with_name(target.name + ".writing")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(shipped, scratch, ignore=shutil.ignore_patterns(SHIPPED))
    if _sums(scratch) != read_object(shipped / SHIPPED).get("files"):
        shutil.rmtree(scratch)
        return False
    _clear_stale(folder, cell)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    return True


def _shipped_digest(shipped: Path) -> str | None:
    """Which cell trained the shipped model; None where there is none. Raises ParameterError for a damaged note."""
    note = shipped / SHIPPED
    return read_object(note).get("digest") if note.exists() else None


def _sums(model: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(model.iterdir())
        if path.name != SHIPPED
    }


def _is_complete(model: Path) -> bool:
    """Whether a checkpoint is there and whole; one that is not is made again."""
    from quagmire_utils.engines import check_model

    if not model.is_dir():
        return False
    try:
        check_model(model)
    except ParameterError:
        return False
    return True


class _Progress:
    """Notes in a file how far a cell's training is, at most once a second."""

    def __init__(self, folder: Path, cell: Cell) -> None:
        self.path = progress_path(folder, cell)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.noted = 0.0

    def __call__(self, fraction: float) -> None:
        if time.monotonic() - self.noted >= 1:
            self.noted = time.monotonic()
            self.path.write_text(f"{fraction:.4f}")


def run_cell(profile: Profile, folder: Path, cell: Cell) -> None:
    """Compute one cell (its starting checkpoint must be there) and write its records.

    While it trains, `scratch/progress/<cell>` holds the fraction done, for the bar of the process that waits.
    """
    import torch

    from quagmire_utils.grading import Grader

    threads = cell_threads(profile, cell)
    torch.set_num_threads(threads)
    _clear_stale(folder, cell)
    clock = _Stopwatch()
    family = next(family for family in profile.families if family.name == cell.family)
    started, started_cpu = time.perf_counter(), time.process_time()
    with Grader(timeout=profile.evaluation.grading_timeout, workers=1) as grader:
        run = {"base": _run_base, "sft": _run_sft, "rl": _run_rl}[cell.kind]
        facts, records = run(profile, family, folder, cell, clock, grader)
    total = time.perf_counter() - started
    target = cell_folder(folder, cell)
    scratch = target.with_name(target.name + ".writing")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for name, frame in records.items():
        write_parquet(frame, scratch / f"{name}.parquet")
    write_json(
        {
            **asdict(cell),
            **facts,
            "seconds": {**clock.seconds, "total": total},
            "cpu_seconds": time.process_time() - started_cpu,  # of this process, the grader's not counted
            "threads": threads,
            "hardware": hardware(),
            "packages": package_versions(),
            "seed": derive_seed(profile.seed, cell.id),
        },
        scratch / "cell.json",
    )
    if target.exists():
        shutil.rmtree(target)
    scratch.rename(target)
    if cell.kind == "rl" and not profile.keep_rl_models:
        shutil.rmtree(model_folder(folder, cell.id), ignore_errors=True)


def _run_base(profile, family, folder, cell, clock, grader):
    from quagmire_utils.training import microlab

    model = model_folder(folder, cell.id)
    if family.model is not None and not _is_complete(model):
        with clock("download"):
            data.fetch_model(family.model, model)
    elif not _is_complete(model):
        with clock("pretraining"):
            microlab.pretrain(
                family.pretraining,
                model,
                seed=derive_seed(profile.seed, cell.id, *([draw] if (draw := family.pretraining.seed) else [])),
                digits=profile.digits,
                on_progress=_Progress(folder, cell),
            )
    if family.model is None:
        for name, problems in benchmark_problems(profile).items():
            microlab.write_problems(problems, folder / "scratch" / "benchmarks" / f"{name}.jsonl")
    keys = {"family": cell.family, "candidate": cell.candidate, "stage": "base", "rl_run": -1, "checkpoint": 0}
    with clock("curation"):
        common = data.validation_traces(profile, folder, family, model)
    return {}, {
        "counts": _measure(profile, folder, cell, model, keys, profile.evaluation.num_samples, clock, grader),
        "generalization_loss": _losses(profile, model, keys, {VALIDATION: common}, clock),
    }


def _run_sft(profile, family, folder, cell, clock, grader):
    candidate = next(c for c in family.candidates if c.name == cell.candidate)
    base, model = model_folder(folder, cell.needs), model_folder(folder, cell.id)
    with clock("curation"):
        chosen = data.candidate_traces(profile, folder, family, candidate, base, OWN_FRACTION)
    if not _is_complete(model):
        with clock("sft"):
            settings = profile.sft.replace(
                epochs=candidate.epochs,
                learning_rate=profile.sft.learning_rate if candidate.learning_rate is None else candidate.learning_rate,
                seed=derive_seed(profile.seed, cell.id),
            )
            training.train_sft(base, chosen.traces, model, settings, profile, _Progress(folder, cell))
    trained = read_json(model / "sft.json")
    keys = {"family": cell.family, "candidate": cell.candidate, "stage": "sft", "rl_run": -1, "checkpoint": 0}
    facts = {"sft_tokens": trained["tokens"], "sft_loss": trained["final_loss"]}
    common = data.validation_traces(profile, folder, family, base)
    return facts, {
        "counts": _measure(profile, folder, cell, model, keys, profile.evaluation.num_samples, clock, grader),
        "generalization_loss": _losses(profile, model, keys, {VALIDATION: common, OWN: chosen.held_out}, clock),
    }


def _run_rl(profile, family, folder, cell, clock, grader):
    start, output = model_folder(folder, cell.needs), model_folder(folder, cell.id)
    settings = resolved_rl(profile, family).replace(seed=derive_seed(profile.seed, cell.id))
    if (output / "rl.json").is_file() and not all(
        _is_complete(output / f"checkpoint-{step}") for step in training.kept_steps(settings)
    ):
        shutil.rmtree(output)
    if not (output / "rl.json").is_file():
        with clock("rl"):
            problems = data.rl_problems_of(profile, folder, family)
            training.train_rl(start, problems, output, settings, profile, grader, _Progress(folder, cell))
    keys = {"family": cell.family, "candidate": cell.candidate, "stage": "rl", "rl_run": cell.run}
    counts = [
        _measure(
            profile,
            folder,
            cell,
            output / f"checkpoint-{step}",
            {**keys, "checkpoint": step},
            profile.evaluation.rl_num_samples,
            clock,
            grader,
        )
        for step in training.kept_steps(settings)
    ]
    curve = read_parquet(output / "curve.parquet")
    names = {"family": cell.family, "candidate": cell.candidate, "rl_run": cell.run}
    for position, (name, value) in enumerate(names.items()):
        curve.insert(position, name, value)
    return {}, {"counts": pd.concat(counts, ignore_index=True), "rl_curves": curve}


def _measure(profile, folder, cell, model, keys, n, clock, grader) -> pd.DataFrame:
    """Sample, grade and count one checkpoint on all benchmarks."""
    from quagmire_utils.engines import EngineConfig, SamplingParams
    from quagmire_utils.evaluation.evaluate import evaluate

    samples = store.SampleStore(samples_folder(folder, cell) / str(keys["checkpoint"]))
    params = SamplingParams(
        temperature=profile.evaluation.temperature,
        max_tokens=profile.evaluation.max_tokens,
        seed=derive_seed(profile.seed, *keys.values()),
    )
    config = EngineConfig(
        engine=profile.evaluation.engine,
        model=model,
        max_model_len=profile.evaluation.max_model_len,
        template=profile.evaluation.template,
        data_parallel_size=max(1, profile.compute.gpus) if profile.evaluation.engine == "vllm" else 1,
    )
    problems = benchmark_problems(profile)
    counts = evaluate(config, problems, n, params, samples, grader=grader, progress=False, clock=clock)
    for position, (name, value) in enumerate(keys.items()):
        counts.insert(position, name, value)
    return counts


def _losses(profile, model, keys, validation_sets, clock) -> pd.DataFrame:
    """The generalization loss of one checkpoint on each of the named sets of held-out traces."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quagmire_utils.evaluation.generalization_loss import generalization_loss

    rows = []
    with clock("generalization_loss"):
        module, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        if profile.compute.gpus:
            module.to("cuda")
        for name, traces in validation_sets.items():
            loss = generalization_loss(module, tokenizer, traces, template=profile.evaluation.template, progress=False)
            rows.append(
                {
                    "family": keys["family"],
                    "candidate": keys["candidate"],
                    "stage": keys["stage"],
                    "validation_set": name,
                    "nll": loss.nll,
                    "standard_error": loss.standard_error,
                    "tokens": loss.tokens,
                    "traces": len(traces),
                }
            )
    return pd.DataFrame(rows)
