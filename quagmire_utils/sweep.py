"""The grid of candidates: base -> SFT -> measure -> RL -> measure, as independent, resumable cells. Paper: Sec. 4.1.

A profile expands into cells: one that makes and measures each base model, one that trains and measures each
candidate, and one for each RL run of a candidate (trained, measured at every checkpoint). A cell writes its records
in one step when it has finished, so a sweep that is killed goes on where it stopped, and `collect` gathers the
records into the files from which every table and figure is derived:

    candidates.parquet  counts.parquet  generalization_loss.parquet  rl_curves.parquet  cells.parquet  manifest.json

    python -m quagmire_utils.sweep smoke            # all cells of a profile, on `workers` processes
    python -m quagmire_utils.sweep smoke --plan     # only says what there is to do
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from quagmire_utils import store
from quagmire_utils.benchmarks import Problem, Trace
from quagmire_utils.config import CandidateSettings, FamilySettings, ParameterError, Profile, load_profile

CELL_VERSION = 1  # raise it when a change of the code changes what cells compute
TABLES = ("counts", "generalization_loss", "rl_curves")
VALIDATION = "validation"  # the held-out traces of the family's main source


@dataclass(frozen=True)
class Cell:
    """One unit of work. `needs` names the cell whose checkpoint it starts from."""

    id: str
    kind: str  # base | sft | rl
    family: str
    candidate: str
    run: int | None
    needs: str | None
    digest: str  # of every parameter that the cell depends on


def plan(profile: Profile) -> list[Cell]:
    """The cells of a profile in the order in which they are best run: each candidate's RL follows its SFT."""
    cells = []
    shared = {
        "version": CELL_VERSION,
        "seed": profile.seed,
        "benchmarks": profile.benchmarks,
        "evaluation": asdict(profile.evaluation),
    }
    for family in profile.families:
        base_id = f"{family.name}/base"
        base_digest = store.digest([shared, family.name, asdict(family.pretraining), asdict_sources(family)])
        cells.append(Cell(base_id, "base", family.name, "base", None, None, base_digest))
        names = [candidate.name for candidate in family.candidates]
        for name in names:
            if names.count(name) > 1:
                raise ParameterError(f"families.{family.name}.candidates has {name} {names.count(name)} times")
        for candidate in family.candidates:
            start, start_digest = base_id, base_digest
            if candidate.selection != "none":
                start = f"{family.name}/{candidate.name}"
                start_digest = store.digest([base_digest, asdict(candidate), asdict(profile.sft)])
                cells.append(Cell(start, "sft", family.name, candidate.name, None, base_id, start_digest))
            rl = {**asdict(profile.rl), "runs": None, "problems": family.rl_problems, "terms": family.rl_terms}
            for run in range(profile.rl.runs):
                digest = store.digest([start_digest, rl, run])
                cells.append(Cell(f"{start}/rl{run}", "rl", family.name, candidate.name, run, start, digest))
    return cells


def cost(profile: Profile, cell: Cell) -> float:
    """Roughly what a cell costs, in sampled answers; a trained example costs about four. For progress bars only."""
    family = next(family for family in profile.families if family.name == cell.family)
    problems = sum(profile.benchmarks.values())
    if cell.kind == "rl":
        rollouts = profile.rl.steps * profile.rl.prompts_per_step * profile.rl.rollouts
        return 5 * rollouts + problems * profile.evaluation.rl_num_samples * profile.rl.checkpoints
    trained = family.pretraining.examples + family.pretraining.fallible_examples
    if cell.kind == "sft":
        candidate = next(c for c in family.candidates if c.name == cell.candidate)
        trained = candidate.n_examples * candidate.epochs
    return 4 * trained + problems * profile.evaluation.num_samples


def asdict_sources(family: FamilySettings) -> dict[str, object]:
    """The family's sources as plain data."""
    return {name: asdict(source) for name, source in family.sources.items()}


# --- data of a micro family, the same in every process ---------------------------------------------------------------


def benchmark_problems(profile: Profile) -> dict[str, list[Problem]]:
    """The profile's micro benchmarks."""
    from quagmire_utils import microlab

    unknown = sorted(set(profile.benchmarks) - set(microlab.MICRO_BENCHMARKS))
    if unknown:
        raise ParameterError(f"benchmarks: {unknown[0]} is not one of {', '.join(microlab.MICRO_BENCHMARKS)}")
    return {
        name: microlab.make_problems(name, microlab.MICRO_BENCHMARKS[name], count, profile.seed)
        for name, count in profile.benchmarks.items()
    }


def source_traces(profile: Profile, family: FamilySettings, source: str) -> tuple[list[Trace], list[Trace]]:
    """A source's (pool, validation) traces, on different problems, none of them a benchmark's."""
    from quagmire_utils import curation, microlab

    settings = family.sources[source]
    traces = microlab.make_traces(
        settings.terms,
        settings.pool + settings.validation + sum(profile.benchmarks.values()),
        style=settings.style,
        source=source,
        seed=_seed(profile.seed, family.name, source),
    )
    problems = [problem for group in benchmark_problems(profile).values() for problem in group]
    clean, _ = curation.decontaminate(traces, problems)
    return clean[settings.validation : settings.validation + settings.pool], clean[: settings.validation]


def rl_problems(profile: Profile, family: FamilySettings) -> list[Problem]:
    """The problems that RL learns from, none of them a benchmark's."""
    from quagmire_utils import microlab

    taken = {problem.question for group in benchmark_problems(profile).values() for problem in group}
    drawn = microlab.make_mixed_problems(
        family.rl_terms, family.rl_problems + len(taken), _seed(profile.seed, family.name, "rl")
    )
    return [problem for problem in drawn if problem.question not in taken][: family.rl_problems]


def _seed(*parts: object) -> int:
    return int(store.digest(list(parts))[:8], 16) & 0x7FFFFFFF


# --- one cell ---------------------------------------------------------------------------------------------------------


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


class _Progress:
    """Notes in a file how far a cell's training is, at most once a second."""

    def __init__(self, folder: Path, cell: Cell) -> None:
        self.path = _progress_path(folder, cell)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.noted = 0.0

    def __call__(self, fraction: float) -> None:
        if time.monotonic() - self.noted >= 1:
            self.noted = time.monotonic()
            self.path.write_text(f"{fraction:.4f}")


def run_cell(profile: Profile, folder: Path, cell: Cell, threads: int = 1) -> None:
    """Compute one cell (its starting checkpoint must be there) and write its records.

    While it trains, `work/progress/<cell>` holds the fraction done, for the bar of the process that waits.
    """
    import torch

    from quagmire_utils.grading import Grader

    torch.set_num_threads(threads)
    clock = _Stopwatch()
    family = next(family for family in profile.families if family.name == cell.family)
    started = time.perf_counter()
    with Grader(timeout=profile.evaluation.grading_timeout, workers=1) as grader:
        run = {"base": _run_base, "sft": _run_sft, "rl": _run_rl}[cell.kind]
        facts, records = run(profile, family, folder, cell, clock, grader)
    total = time.perf_counter() - started
    target = _cell_folder(folder, cell)
    scratch = target.with_name(target.name + ".writing")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for name, frame in records.items():
        store.write_parquet(frame, scratch / f"{name}.parquet")
    store.write_json(
        {
            **asdict(cell),
            **facts,
            "seconds": {**clock.seconds, "total": total},
            "cpu_seconds": time.process_time(),
            "threads": threads,
            "hardware": store.hardware(),
            "packages": store.package_versions(),
            "seed": _seed(profile.seed, cell.id),
        },
        scratch / "cell.json",
    )
    if target.exists():
        shutil.rmtree(target)
    scratch.rename(target)


def _run_base(profile, family, folder, cell, clock, grader):
    from quagmire_utils import microlab

    model = _model_folder(folder, cell.id)
    if not model.is_dir():
        with clock("pretraining"):
            microlab.pretrain(
                family.pretraining,
                model,
                seed=_seed(profile.seed, cell.id),
                on_progress=_Progress(folder, cell),
            )
    for name, problems in benchmark_problems(profile).items():
        microlab.write_problems(problems, folder / "work" / "benchmarks" / f"{name}.jsonl")
    keys = {"family": cell.family, "candidate": cell.candidate, "stage": "base", "rl_run": -1, "checkpoint": 0}
    return {}, {
        "counts": _measure(profile, folder, model, keys, profile.evaluation.num_samples, clock, grader),
        "generalization_loss": _loss(profile, family, model, keys, clock),
    }


def _run_sft(profile, family, folder, cell, clock, grader):
    from transformers import AutoTokenizer

    from quagmire_utils import curation, sft

    candidate = next(c for c in family.candidates if c.name == cell.candidate)
    base, model = _model_folder(folder, cell.needs), _model_folder(folder, cell.id)
    with clock("curation"):
        pool, _ = source_traces(profile, family, candidate.source)
        traces = curation.select(
            pool,
            candidate.selection,
            candidate.n_examples,
            tokenizer=AutoTokenizer.from_pretrained(base),
            seed=_seed(profile.seed, family.name, candidate.source, "selection"),
        )
    if not model.is_dir():
        with clock("sft"):
            settings = dataclasses.replace(
                profile.sft,
                epochs=candidate.epochs,
                learning_rate=candidate.learning_rate or profile.sft.learning_rate,
                seed=_seed(profile.seed, cell.id),
            )
            sft.train_sft(base, traces, model, settings, progress=False, on_progress=_Progress(folder, cell))
    trained = store.read_json(model / "sft.json")
    keys = {"family": cell.family, "candidate": cell.candidate, "stage": "sft", "rl_run": -1, "checkpoint": 0}
    facts = {"sft_tokens": trained["tokens"], "sft_loss": trained["final_loss"]}
    return facts, {
        "counts": _measure(profile, folder, model, keys, profile.evaluation.num_samples, clock, grader),
        "generalization_loss": _loss(profile, family, model, keys, clock),
    }


def _run_rl(profile, family, folder, cell, clock, grader):
    from quagmire_utils import rl

    start, output = _model_folder(folder, cell.needs), _model_folder(folder, cell.id)
    settings = dataclasses.replace(profile.rl, seed=_seed(profile.seed, cell.id))
    if not (output / "rl.json").is_file():
        with clock("rl"):
            rl.train_rl(
                start,
                rl_problems(profile, family),
                output,
                settings,
                grader=grader.grade,
                progress=False,
                on_progress=_Progress(folder, cell),
            )
    keys = {"family": cell.family, "candidate": cell.candidate, "stage": "rl", "rl_run": cell.run}
    counts = [
        _measure(
            profile,
            folder,
            output / f"checkpoint-{step}",
            {**keys, "checkpoint": step},
            profile.evaluation.rl_num_samples,
            clock,
            grader,
        )
        for step in settings.checkpoint_steps
    ]
    curve = store.read_parquet(output / "curve.parquet")
    names = {"family": cell.family, "candidate": cell.candidate, "rl_run": cell.run}
    for position, (name, value) in enumerate(names.items()):
        curve.insert(position, name, value)
    if not profile.keep_rl_models:
        for step in settings.checkpoint_steps:
            shutil.rmtree(output / f"checkpoint-{step}", ignore_errors=True)
        shutil.rmtree(output, ignore_errors=True)
    return {}, {"counts": pd.concat(counts, ignore_index=True), "rl_curves": curve}


def _measure(profile, folder, model, keys, n, clock, grader) -> pd.DataFrame:
    """Sample, grade and count one checkpoint on all benchmarks."""
    from quagmire_utils.engines import SamplingParams
    from quagmire_utils.evaluation import evaluate

    place = "-".join(str(keys[name]) for name in ("stage", "rl_run", "checkpoint"))
    samples = store.SampleStore(folder / "work" / "samples" / keys["family"] / keys["candidate"] / place)
    params = SamplingParams(
        temperature=profile.evaluation.temperature,
        max_tokens=profile.evaluation.max_tokens,
        seed=_seed(profile.seed, *keys.values()),
    )
    counts = evaluate(
        model,
        benchmark_problems(profile),
        n,
        params,
        samples,
        engine=profile.evaluation.engine,
        template=profile.evaluation.template,
        grader=grader,
        progress=False,
        clock=clock,
    )
    for position, (name, value) in enumerate(keys.items()):
        counts.insert(position, name, value)
    return counts


def _loss(profile, family, model, keys, clock) -> pd.DataFrame:
    """The generalization loss of one checkpoint on the main source's held-out traces."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quagmire_utils.generalization_loss import generalization_loss

    with clock("generalization_loss"):
        _, validation = source_traces(profile, family, next(iter(family.sources)))
        loss = generalization_loss(
            AutoModelForCausalLM.from_pretrained(model),
            AutoTokenizer.from_pretrained(model),
            validation,
            template=profile.evaluation.template,
            progress=False,
        )
    row = {
        "family": keys["family"],
        "candidate": keys["candidate"],
        "stage": keys["stage"],
        "validation_set": VALIDATION,
        "nll": loss.nll,
        "standard_error": loss.standard_error,
        "tokens": loss.tokens,
        "traces": len(validation),
    }
    return pd.DataFrame([row])


# --- running and collecting -------------------------------------------------------------------------------------------


def run_sweep(profile: Profile, folder: str | Path, *, workers: int | None = None, progress: bool = True) -> Path:
    """Run every cell of `profile` that `folder` does not hold yet, then `collect`. Returns the folder.

    A cell that fails stops the sweep after the cells in flight; the error names the cell, its log and how to go on.
    """
    folder = Path(folder)
    cells = plan(profile)
    benchmark_problems(profile)  # refuses unknown benchmarks before anything is trained
    workers = workers or profile.workers
    if workers < 1:
        raise ParameterError(f"workers must be at least 1, not {workers}")
    with _only_sweep(folder):
        done = finished_cells(folder, cells)
        todo = [cell for cell in cells if cell.id not in done]
        started = time.time()
        with _SweepBar(profile, folder, cells, done, shown=progress) as bar:
            if todo:
                _run_cells(profile, folder, todo, workers, bar)
        collect(profile, folder, wall_seconds=time.time() - started)
    return folder


class _SweepBar:
    """A bar over the cost of all cells: it moves, and knows an ETA, while the first long cell is still running."""

    def __init__(self, profile: Profile, folder: Path, cells: Sequence[Cell], done: set[str], *, shown: bool) -> None:
        from tqdm import tqdm

        self.profile, self.folder = profile, folder
        self.finished, self.cells = len(done), len(cells)
        self.paid = sum(cost(profile, cell) for cell in cells if cell.id in done)
        self.bar = tqdm(
            total=sum(cost(profile, cell) for cell in cells),
            initial=self.paid,
            desc=f"sweep {profile.name}",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left{postfix}",
            disable=not shown,
        )

    def __enter__(self) -> _SweepBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def more(self, cell: Cell) -> None:
        """A cell whose records exist must be computed again."""
        self.cells += 1
        self.bar.total += cost(self.profile, cell)

    def finish(self, cell: Cell) -> None:
        """A cell is done."""
        self.finished += 1
        self.paid += cost(self.profile, cell)
        _progress_path(self.folder, cell).unlink(missing_ok=True)

    def show(self, running: Sequence[Cell]) -> None:
        """Redraw, with what the running cells have done so far."""
        partly = 0.0
        for cell in running:
            with contextlib.suppress(OSError, ValueError):
                partly += float(_progress_path(self.folder, cell).read_text()) * cost(self.profile, cell)
        self.bar.n = min(self.paid + partly, self.bar.total)
        names = ", ".join(cell.id for cell in running)
        self.bar.set_postfix_str(f"{self.finished} of {self.cells} cells" + (f", now {names}" if names else ""))


@contextlib.contextmanager
def _only_sweep(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; the system frees it however this process ends."""
    import fcntl

    path = folder / "work" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ParameterError(f"results: another sweep is running in {folder}; wait for it or stop it") from error
        yield


def _run_cells(profile: Profile, folder: Path, todo: list[Cell], workers: int, bar: _SweepBar) -> None:
    import multiprocessing

    by_id = {cell.id: cell for cell in plan(profile)}
    # a cell needs a checkpoint on disk: one that was measured long ago, on another machine, is trained again first
    waiting = list(todo)
    for cell in todo:
        parent = by_id.get(cell.needs or "")
        while parent is not None and parent not in waiting and not _model_folder(folder, parent.id).is_dir():
            waiting.append(parent)
            bar.more(parent)
            parent = by_id.get(parent.needs or "")
    order = {cell_id: i for i, cell_id in enumerate(by_id)}
    waiting.sort(key=lambda cell: order[cell.id])
    running: dict[Future, Cell] = {}
    unfinished = {cell.id for cell in waiting}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        try:
            while waiting or running:
                ready = [cell for cell in waiting if cell.needs not in unfinished]
                for cell in ready[: workers - len(running)]:
                    waiting.remove(cell)
                    # alone, a cell may as well use every core
                    threads = workers if len(ready) == 1 and not running and cell.kind == "base" else 1
                    running[pool.submit(_logged_cell, profile, folder, cell, threads)] = cell
                bar.show(list(running.values()))
                finished, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)  # the clock on the bar goes on
                for future in finished:
                    cell = running.pop(future)
                    _raise_for(future, cell, folder, profile)
                    unfinished.discard(cell.id)
                    bar.finish(cell)
            bar.show([])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()
            raise


def _raise_for(future: Future, cell: Cell, folder: Path, profile: Profile) -> None:
    error = future.exception()
    if error is None:
        return
    cause = "its process died (out of memory?)" if isinstance(error, BrokenProcessPool) else str(error)
    raise RuntimeError(
        f"cell {cell.id} failed: {cause}. Its log is {_log_path(folder, cell)}; "
        f"`./reproduce.sh --profile {profile.name}` goes on where this run stopped."
    ) from error


def _start_worker(parent: int) -> None:
    """Set up a worker process; it dies with its parent, or a restarted sweep would meet it at the same cell."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def _logged_cell(profile: Profile, folder: Path, cell: Cell, threads: int) -> None:
    """Run a cell with everything it prints in its own log."""
    path = _log_path(folder, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {cell.id}")
        try:
            run_cell(profile, folder, cell, threads)
        except BaseException:
            traceback.print_exc()
            raise


def _cell_folder(folder: Path, cell: Cell) -> Path:
    return folder / "work" / "cells" / cell.id.replace("/", "__")


def _model_folder(folder: Path, cell_id: str) -> Path:
    return folder / "work" / "models" / cell_id.replace("/", "__")


def _progress_path(folder: Path, cell: Cell) -> Path:
    return folder / "work" / "progress" / cell.id.replace("/", "__")


def _log_path(folder: Path, cell: Cell) -> Path:
    return folder / "work" / "logs" / f"{cell.id.replace('/', '__')}.log"


def finished_cells(folder: Path, cells: Sequence[Cell]) -> set[str]:
    """Ids of the cells whose records, made with the same parameters, are in `folder` (collected or not yet)."""
    digests = _collected(folder)
    for cell in cells:
        path = _cell_folder(folder, cell) / "cell.json"
        if path.is_file():
            digests[cell.id] = store.read_json(path)["digest"]
    return {cell.id for cell in cells if digests.get(cell.id) == cell.digest}


def _collected(folder: Path) -> dict[str, str]:
    path = folder / "cells.parquet"
    if not path.is_file():
        return {}
    frame = store.read_parquet(path)
    return dict(zip(frame["cell"], frame["digest"], strict=True))


def collect(profile: Profile, folder: str | Path, *, wall_seconds: float | None = None) -> dict[str, pd.DataFrame]:
    """Merge the cells' records into the record files of `folder`; the manifest is written last.

    Records of cells that the profile no longer has, or that were made with other parameters, are dropped.
    """
    folder = Path(folder)
    cells = plan(profile)
    done = finished_cells(folder, cells)
    collected = _collected(folder)
    fresh = {c.id for c in cells if (_cell_folder(folder, c) / "cell.json").is_file()} & done
    kept = {c.id for c in cells if c.id in done and collected.get(c.id) == c.digest} - fresh
    records: dict[str, pd.DataFrame] = {}
    for table in TABLES:
        parts = []
        path = folder / f"{table}.parquet"
        if path.is_file() and kept:
            old = store.read_parquet(path)
            parts.append(old[old["cell"].isin(kept)])
        for cell in cells:
            source = _cell_folder(folder, cell) / f"{table}.parquet"
            if cell.id in fresh and source.is_file():
                frame = store.read_parquet(source)
                frame.insert(0, "cell", cell.id)
                parts.append(frame)
        if parts:
            order = {cell.id: i for i, cell in enumerate(cells)}
            merged = pd.concat(parts, ignore_index=True)
            records[table] = merged.sort_values(
                "cell", key=lambda ids: ids.map(order), kind="stable", ignore_index=True
            )
    rows = []
    if kept:
        old = store.read_parquet(folder / "cells.parquet")
        rows.append(old[old["cell"].isin(kept)])
    rows.append(
        pd.DataFrame(
            [_cell_row(store.read_json(_cell_folder(folder, c) / "cell.json")) for c in cells if c.id in fresh]
        )
    )
    records["cells"] = pd.concat([frame for frame in rows if len(frame)], ignore_index=True) if done else pd.DataFrame()
    records["candidates"] = _candidates(profile, records["cells"])
    for table, frame in records.items():
        store.write_parquet(frame, folder / f"{table}.parquet")
    hours = records["cells"]["seconds_total"].sum() / 3600 if done else 0.0
    store.write_json(
        {
            **store.manifest(asdict(profile)),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "cells": len(cells),
            "cells_finished": len(done),
            "cell_hours": hours,
            "wall_seconds_of_last_run": wall_seconds,
        },
        folder / "manifest.json",
    )
    return records


def _cell_row(cell: dict) -> dict[str, object]:
    seconds = {f"seconds_{name}": value for name, value in cell["seconds"].items()}
    names = ("kind", "family", "candidate", "run", "digest", "seed", "threads", "cpu_seconds", "sft_tokens", "sft_loss")
    hardware = cell["hardware"]
    return {"cell": cell["id"], **{n: cell.get(n) for n in names}, **seconds, "hardware": str(hardware.get("cpu"))}


def _candidates(profile: Profile, cells: pd.DataFrame) -> pd.DataFrame:
    tokens = {}
    if len(cells):
        trained = cells[cells["kind"] == "sft"]
        tokens = {
            (f, c): t for f, c, t in zip(trained["family"], trained["candidate"], trained["sft_tokens"], strict=True)
        }
    rows = [
        _candidate_row(profile, family, candidate)
        | {"sft_tokens": 0.0 if candidate.selection == "none" else tokens.get((family.name, candidate.name))}
        for family in profile.families
        for candidate in family.candidates
    ]
    return pd.DataFrame(rows)


def _candidate_row(profile: Profile, family: FamilySettings, candidate: CandidateSettings) -> dict[str, object]:
    return {
        "family": family.name,
        "stands_for": family.stands_for,
        "candidate": candidate.name,
        "scenario": candidate.scenario,
        "source": candidate.source,
        "selection": candidate.selection,
        "n_examples": candidate.n_examples,
        "epochs": candidate.epochs,
        "learning_rate": candidate.learning_rate or profile.sft.learning_rate,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: run or show the plan of a profile's sweep."""
    parser = argparse.ArgumentParser(prog="python -m quagmire_utils.sweep", description=__doc__.split("\n\n")[0])
    parser.add_argument("profile", help="smoke, mini, single_gpu, paper, or the path of a YAML file")
    parser.add_argument("--results", type=Path, help="where records go (default: results/<profile>)")
    parser.add_argument("--workers", type=int, help="processes, one core each (default: the profile's)")
    parser.add_argument("--plan", action="store_true", help="only list the cells and which of them are done")
    options = parser.parse_args(arguments)
    try:
        profile = load_profile(options.profile)
        folder = options.results or Path("results") / profile.name
        if options.plan:
            cells = plan(profile)
            done = finished_cells(folder, cells)
            for cell in cells:
                print("done" if cell.id in done else "to do", cell.id)
            return 0
        run_sweep(profile, folder, workers=options.workers)
    except ParameterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
