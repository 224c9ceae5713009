"""Training of a cell by the back-end that the settings name: TRL in this process, LLaMA-Factory or verl. App. B.2."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from quagmire_utils.core.processes import end_with_parent
from quagmire_utils.core.settings import Profile, RLSettings, SFTSettings
from quagmire_utils.data import Problem, Trace
from quagmire_utils.evaluation.sampling.marking import as_asked
from quagmire_utils.grading import Grader


def train_sft(base: Path, traces: Sequence[Trace], output: Path, settings: SFTSettings, profile: Profile) -> None:
    """Fine-tune `base` on `traces` into the folder `output`, with `sft.json` beside the weights."""
    if settings.backend == "trl":
        from quagmire_utils.training import sft

        sft.train_sft(base, traces, output, settings)
    else:
        from quagmire_utils.training.backends import llamafactory

        run = output.with_name(output.name + ".run")
        llamafactory.write(base, traces, run, settings, gpus=profile.compute.gpus)
        llamafactory.train(run)
        shutil.rmtree(output, ignore_errors=True)
        (run / "model").rename(output)
        shutil.rmtree(run)
    _free_memory()


def train_rl(
    start: Path,
    problems: Sequence[Problem],
    output: Path,
    settings: RLSettings,
    profile: Profile,
    grader: Grader,
) -> None:
    """Run GRPO from `start`: `checkpoint-<step>` folders, `curve.parquet` and, last, `rl.json` under `output`."""
    if settings.backend == "verl":
        from quagmire_utils.training.backends import verl

        timeout = profile.evaluation.grading_timeout
        verl.write(start, problems, output, settings, gpus=profile.compute.gpus, grading_timeout=timeout)
        verl.train(output)
    elif profile.families[0].model is not None:
        _train_in_own_process(profile.evaluation.grading_timeout, start, problems, output, settings)
    else:
        from quagmire_utils.training import grpo

        grpo.train_rl(start, problems, output, settings, grader=as_asked(grader.grade))
    _free_memory()


def _train_in_own_process(timeout: float, *arguments: object) -> None:
    """Run TRL's GRPO in a process of its own: GPU memory that its vLLM holds is free again when the process ends."""
    import torch

    context = multiprocessing.get_context("spawn")
    log = getattr(sys.stderr, "name", "")  # the cell's
    start = {"initializer": _begin, "initargs": (os.getpid(), log, torch.get_num_threads())}
    with ProcessPoolExecutor(1, context, **start) as process:
        try:
            process.submit(_train_here, timeout, *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError("the training process was killed; is there too little memory?") from error


def _begin(parent: int, log: object, threads: int) -> None:
    end_with_parent(parent)
    import torch

    torch.set_num_threads(threads)
    if isinstance(log, str) and Path(log).is_file():
        sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115 - as long as the process lives


def _train_here(timeout: float, *arguments: object) -> None:
    from quagmire_utils.training import grpo

    with Grader(timeout=timeout, workers=1) as grader:
        grpo.train_rl(*arguments, grader=as_asked(grader.grade))


def _free_memory() -> None:
    """Release GPU memory before an engine asks for most of it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
