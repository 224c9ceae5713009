"""Computing one cell: train or load its checkpoint, measure it, and write its records in one step. Paper: Sec. 4.1."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_folder, read_json, read_parquet, write_json, write_parquet, write_text
from quagmire_utils.core.processes import end_with_parent
from quagmire_utils.core.provenance import hardware, package_versions, usable_cores
from quagmire_utils.core.records import read_object
from quagmire_utils.core.settings import Profile, RLSettings, SFTSettings
from quagmire_utils.data import Problem, Trace
from quagmire_utils.data.pretrained import model_origin
from quagmire_utils.engines import EngineConfig, SamplingParams, check_model
from quagmire_utils.evaluation.chance import chance_counts
from quagmire_utils.evaluation.evaluate import evaluate
from quagmire_utils.evaluation.generalization_loss import generalization_loss
from quagmire_utils.evaluation.marking import as_asked, grade_store
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.grading import Grader
from quagmire_utils.grading.verdicts import MATH
from quagmire_utils.sweep import datasets
from quagmire_utils.sweep.grid import Cell, derive_seed
from quagmire_utils.training import grpo, microlab, sft
from quagmire_utils.training.backends import llamafactory, verl

SHIPPED = "base.json"  # in a shipped base model: the cell that trained it, and the checksums of its files
PROBLEM = ["benchmark", "problem"]
Results = tuple[dict[str, object], dict[str, pd.DataFrame]]  # further facts of a cell, and its tables


def run_cell(profile: Profile, folder: Path, cell: Cell) -> None:
    """Compute one cell (its starting checkpoint must be there) and write its records."""
    import torch

    threads = cell_threads(profile, cell)
    torch.set_num_threads(threads)
    _clear_stale(folder, cell)
    started, started_cpu = time.perf_counter(), time.process_time()
    with Grader(timeout=profile.evaluation.grading_timeout, workers=1) as grader:
        run = _Run(profile, folder, cell, grader)
        facts, records = getattr(run, cell.kind)()
    row = {
        **cell.row(),
        **facts,
        "seconds": {**run.seconds, "total": time.perf_counter() - started},
        "cpu_seconds": time.process_time() - started_cpu,  # of this process, without the grader's
        "threads": threads,
        "hardware": hardware(),
        "packages": package_versions(),
        "seed": derive_seed(profile.seed, cell.id),
    }
    with atomic_folder(cell.path(folder, "cells")) as scratch:
        for name, frame in records.items():
            write_parquet(frame, scratch / f"{name}.parquet")
        write_json(row, scratch / "cell.json")
    if cell.kind == "rl" and not profile.keep_rl_models:
        shutil.rmtree(cell.path(folder, "models"), ignore_errors=True)


def cell_threads(profile: Profile, cell: Cell) -> int:
    """Return the threads that a cell computes with.

    It depends on the profile, not on the load, as sums in another order would make another base model. The cells of a
    single family all wait for its base, which therefore gets both cores of a small machine.
    """
    if profile.families[0].model is not None:  # on a GPU, or with all cores that the worker may use
        return max(1, usable_cores() // profile.workers)
    return 2 if cell.kind == "base" and len(profile.families) == 1 else 1


class _Run:
    """One cell while it is computed; `base`, `sft` and `rl` return its facts and its tables."""

    def __init__(self, profile: Profile, folder: Path, cell: Cell, grader: Grader) -> None:
        self.profile, self.folder, self.cell, self.grader = profile, folder, cell, grader
        self.model = cell.path(folder, "models")
        self.seed = derive_seed(profile.seed, cell.id)
        self.benchmarks = datasets.benchmark_problems(profile)
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def base(self) -> Results:
        profile, family = self.profile, self.cell.family
        if _is_complete(self.model):
            pass
        elif family.model is not None:
            with self.clock("download"):
                datasets.fetch_model(family.model, self.model)
        else:
            draw = [family.pretraining.seed] if family.pretraining.seed else []
            seed = derive_seed(profile.seed, self.cell.id, *draw)
            with self.clock("pretraining"):
                microlab.pretrain(family.pretraining, self.model, seed=seed, digits=profile.digits, task=profile.task)
        origin = model_origin(str(self.model))  # of a model of the package registry
        return {name: origin[name] for name in ("origin", "licence") if name in origin}, self.tables(self.model)

    def tables(self, base: Path, **own: Sequence[Trace]) -> dict[str, pd.DataFrame]:
        """Measure a model before RL: on the benchmarks, and on held-out traces of the family's sources.

        own: held-out traces of the candidate's source, selected as its training traces were.
        """
        family = self.cell.family
        with self.clock("curation"):
            held_out = {
                name: datasets.validation_traces(self.profile, self.folder, family, base, source)
                for name, source in {"validation": None, **{name: name for name in family.validation_sources}}.items()
            }
        return {
            "counts": self.measure(self.model, 0, self.profile.evaluation.num_samples),
            "generalization_loss": self.losses({**held_out, **own}),
        }

    def sft(self) -> Results:
        profile, family, candidate = self.profile, self.cell.family, self.cell.candidate
        base = self.cell.needs.path(self.folder, "models")
        with self.clock("curation"):
            traces, own = datasets.candidate_traces(profile, self.folder, family, candidate, base)
        if not _is_complete(self.model):
            rate = profile.sft.learning_rate if candidate.learning_rate is None else candidate.learning_rate
            settings = profile.sft.replace(epochs=candidate.epochs, learning_rate=rate, seed=self.seed)
            with self.clock("sft"):
                train_sft(base, traces, self.model, settings, profile)
        trained = read_json(self.model / "sft.json")
        return {"sft_tokens": trained["tokens"], "sft_loss": trained["final_loss"]}, self.tables(base, own=own)

    def rl(self) -> Results:
        profile, family, cell = self.profile, self.cell.family, self.cell
        settings = profile.rl.over(family.rl_problems).replace(seed=self.seed)
        checkpoints = {step: self.model / f"checkpoint-{step}" for step in settings.checkpoint_steps}
        if (self.model / "rl.json").is_file() and not all(map(_is_complete, checkpoints.values())):
            shutil.rmtree(self.model)
        if not (self.model / "rl.json").is_file():
            start = cell.needs.path(self.folder, "models")
            with self.clock("rl"):
                problems = datasets.rl_problems(profile, family, self.folder)
                train_rl(start, problems, self.model, settings, profile, self.grader)
        n = profile.evaluation.rl_num_samples
        counts = [self.measure(path, step, n) for step, path in checkpoints.items()]
        curve = read_parquet(self.model / "curve.parquet")
        curve = _with_keys({**cell.names, "rl_run": cell.run}, curve)
        return {}, {"counts": pd.concat(counts, ignore_index=True), "rl_curves": curve}

    def measure(self, model: Path, checkpoint: int, n: int) -> pd.DataFrame:
        """Sample, grade and count one checkpoint on all benchmarks."""
        cell, settings = self.cell, self.profile.evaluation
        keys = {**cell.names, "stage": cell.kind, "rl_run": -1 if cell.run is None else cell.run}
        keys["checkpoint"] = checkpoint
        seed = derive_seed(self.profile.seed, *keys.values())
        config = EngineConfig(
            engine=settings.engine,
            model=model,
            max_model_len=settings.max_model_len,
            template=settings.template,
            data_parallel_size=max(1, self.profile.compute.gpus) if settings.engine == "vllm" else 1,
        )
        params = SamplingParams(temperature=settings.temperature, max_tokens=settings.max_tokens, seed=seed)
        samples = SampleStore(cell.path(self.folder, "samples") / str(checkpoint))
        how = {"grader": self.grader, "progress": False, "clock": self.clock}
        counts = evaluate(config, self.benchmarks, n, params, samples, **how)
        with self.clock("chance"):
            counts = counts.merge(answer_counts(samples, self.grader), on=PROBLEM, how="left")
        if settings.both_graders:
            with self.clock("grading"):
                problems = datasets.benchmark_problems(self.profile, MATH)
                grade_store(samples, problems, self.grader.grade, progress=False)
            by_math = samples.counts().set_index(PROBLEM)["correct"]
            counts = counts.join(by_math.rename("correct_math"), on=PROBLEM)
        return _with_keys(keys, counts)

    def losses(self, validation_sets: Mapping[str, Sequence[Trace]]) -> pd.DataFrame:
        """Compute the generalization loss of the cell's model on each validation set, and of each of its traces."""
        rows, config = [], EngineConfig(model=self.model, template=self.profile.evaluation.template)
        with self.clock("generalization_loss"):
            for name, traces in validation_sets.items():
                loss = generalization_loss(config, traces, progress=False)
                of_traces = (loss.per_trace[column].tolist() for column in ("nll", "tokens"))
                rows.append((name, loss.nll, loss.standard_error, loss.tokens, len(traces), *of_traces))
        columns = ["validation_set", "nll", "standard_error", "tokens", "traces", "trace_nll", "trace_tokens"]
        return _with_keys({**self.cell.names, "stage": self.cell.kind}, pd.DataFrame(rows, columns=columns))


def answer_counts(samples: SampleStore, grader: Grader) -> pd.DataFrame:
    """Return for each problem distinct_answers, and chance_correct: those right for another (NaN without one)."""
    answers = samples.read([*PROBLEM, "verdict", "extracted"])
    given = answers["extracted"].where(answers["verdict"].isin(["correct", "wrong"]))
    distinct = given.groupby([answers[key] for key in PROBLEM]).nunique().rename("distinct_answers")
    chance = chance_counts(samples, grader=grader, progress=False).set_index(PROBLEM)["correct"]
    return pd.concat([distinct, chance.rename("chance_correct")], axis=1).reset_index()


def _with_keys(keys: Mapping[str, object], frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with constant columns before its own."""
    return frame.assign(**keys)[[*keys, *frame.columns]]


# --- training by the back-end that the settings name; App. B.2 --------------------------------------------------------


def train_sft(base: Path, traces: Sequence[Trace], output: Path, settings: SFTSettings, profile: Profile) -> None:
    """Fine-tune `base` on `traces` into the folder `output`, with `sft.json` beside the weights."""
    if settings.backend == "trl":
        sft.train_sft(base, traces, output, settings)
    else:
        run = output.with_name(output.name + ".run")
        llamafactory.write(base, traces, run, settings, gpus=profile.compute.gpus)
        llamafactory.train(run)
        shutil.rmtree(output, ignore_errors=True)
        (run / "model").rename(output)
        shutil.rmtree(run)
    _free_memory()


def train_rl(
    start: Path, problems: Sequence[Problem], output: Path, settings: RLSettings, profile: Profile, grader: Grader
) -> None:
    """Run GRPO from `start`: `checkpoint-<step>` folders, `curve.parquet` and, last, `rl.json` under `output`."""
    if settings.backend == "verl":
        timeout = profile.evaluation.grading_timeout
        verl.write(start, problems, output, settings, gpus=profile.compute.gpus, grading_timeout=timeout)
        verl.train(output)
    elif profile.families[0].model is not None:
        _train_in_own_process(profile.evaluation.grading_timeout, start, problems, output, settings)
    else:
        grpo.train_rl(start, problems, output, settings, grader=as_asked(grader.grade))
    _free_memory()


def _train_in_own_process(*arguments: object) -> None:
    """Run TRL's GRPO in a process of its own: GPU memory that its vLLM holds is free again when the process ends."""
    import torch

    log = getattr(sys.stderr, "name", "")  # the cell's
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            process.submit(_train_here, os.getpid(), log, torch.get_num_threads(), *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError("the training process was killed; is there too little memory?") from error


def _train_here(parent: int, log: object, threads: int, timeout: float, *arguments: object) -> None:
    end_with_parent(parent)
    import torch

    torch.set_num_threads(threads)
    if isinstance(log, str) and Path(log).is_file():
        sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115 - as long as the process lives
    with Grader(timeout=timeout, workers=1) as grader:
        grpo.train_rl(*arguments, grader=as_asked(grader.grade))


def _free_memory() -> None:
    """Release GPU memory before an engine asks for most of it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- checkpoints on disk ----------------------------------------------------------------------------------------------


def _clear_stale(folder: Path, cell: Cell) -> None:
    """Remove what this cell left in `folder` when it had other parameters; with the same ones it is resumed."""
    note = cell.path(folder, "digests")
    if not note.is_file() or note.read_text() != cell.digest:
        note.unlink(missing_ok=True)
        for what in ("models", "samples", "cells"):
            if (stale := cell.path(folder, what)).exists():
                shutil.rmtree(stale)  # raises if it cannot be removed, as it must not pass for new
        write_text(cell.digest, note)


def _is_complete(model: Path) -> bool:
    """Return whether a checkpoint is there and whole."""
    with contextlib.suppress(ParameterError):
        if model.is_dir():
            check_model(model)
            return True
    return False


def has_checkpoint(folder: Path, cell: Cell) -> bool:
    """Return whether the checkpoint that a cell trains is there, made with its present parameters."""
    note = cell.path(folder, "digests")
    return note.is_file() and note.read_text() == cell.digest and _is_complete(cell.path(folder, "models"))


def ship_base(folder: Path, cell: Cell) -> None:
    """Copy the base model that `cell` trained to `bases/` beside the records, unless it is there already."""
    shipped = folder / "bases" / cell.family.name
    if not has_checkpoint(folder, cell) or _shipped_note(shipped).get("digest") == cell.digest:
        return
    with atomic_folder(shipped) as scratch:
        shutil.copytree(cell.path(folder, "models"), scratch, dirs_exist_ok=True)
        write_json({"digest": cell.digest, "files": _checksums(scratch)}, scratch / SHIPPED)


def can_start(folder: Path, cell: Cell) -> bool:
    """Return whether the checkpoint that a cell trains is there, or a shipped one could be put there."""
    return has_checkpoint(folder, cell) or restore_base(folder, cell, folder)


def restore_base(folder: Path, cell: Cell, records: Path) -> bool:
    """Put the base model kept beside the `records` where `cell` would train it, if it is there and unchanged."""
    shipped = records / "bases" / cell.family.name
    note = _shipped_note(shipped)
    if cell.kind != "base" or note.get("digest") != cell.digest or _checksums(shipped) != note.get("files"):
        return False
    _clear_stale(folder, cell)
    with atomic_folder(cell.path(folder, "models")) as scratch:
        shutil.copytree(shipped, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SHIPPED))
    return True


def _shipped_note(shipped: Path) -> dict[str, object]:
    """Read the note of a shipped model; empty if there is none. Raises ParameterError for a damaged one."""
    return read_object(shipped / SHIPPED) if (shipped / SHIPPED).exists() else {}


def _checksums(model: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint."""
    files = [path for path in sorted(model.iterdir()) if path.name != SHIPPED]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
