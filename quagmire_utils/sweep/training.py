"""Who takes a cell's training steps: TRL in this process, or a back-end in its own environment. Paper: App. B.2."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from quagmire_utils.core.settings import Profile, RLSettings, SFTSettings
from quagmire_utils.data import Problem, Trace
from quagmire_utils.grading import Grader

if TYPE_CHECKING:
    from quagmire_utils.training.backends import Machines

_PR_SET_PDEATHSIG = 1


def train_sft(
    base: Path,
    traces: Sequence[Trace],
    output: Path,
    settings: SFTSettings,
    profile: Profile,
    on_progress: Callable[[float], None],
) -> None:
    """Fine-tune `base` on `traces` into the folder `output`, with `sft.json` beside the weights."""
    if settings.backend == "trl":
        from quagmire_utils.training import sft

        sft.train_sft(base, traces, output, settings, progress=False, on_progress=on_progress)
    else:
        from quagmire_utils.training.backends import llamafactory

        run = output.with_name(output.name + ".run")
        llamafactory.write(base, traces, run, settings, machines=_machines(profile), progress=False)
        llamafactory.train(run, progress=False, on_progress=on_progress)
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
    on_progress: Callable[[float], None],
) -> None:
    """Run GRPO from `start`: `checkpoint-<step>` folders, `curve.parquet` and, last, `rl.json` under `output`."""
    if settings.backend == "verl":
        from quagmire_utils.training.backends import verl

        timeout = profile.evaluation.grading_timeout
        verl.write(start, problems, output, settings, machines=_machines(profile), grading_timeout=timeout)
        verl.train(output, progress=False, on_progress=on_progress)
    elif profile.families[0].model is not None:
        _train_in_own_process(start, problems, output, settings, profile, on_progress)
    else:
        from quagmire_utils.training import grpo as rl

        rl.train_rl(start, problems, output, settings, grader=grader.grade, progress=False, on_progress=on_progress)
    _free_memory()


def kept_steps(settings: RLSettings) -> tuple[int, ...]:
    """The steps whose checkpoints a run keeps."""
    if settings.backend == "verl":
        from quagmire_utils.training.backends import verl

        return verl.kept_steps(settings)
    return settings.checkpoint_steps


def _machines(profile: Profile) -> Machines:
    from quagmire_utils.training.backends import Machines

    return Machines(nodes=1, devices=profile.compute.gpus)  # App. B: each experiment on a node of its own


def _train_in_own_process(
    start: Path,
    problems: Sequence[Problem],
    output: Path,
    settings: RLSettings,
    profile: Profile,
    on_progress: Callable[[float], None],
) -> None:
    """TRL's GRPO in a process that ends with it: all of a GPU that its vLLM held is free for the measurement's."""
    import torch

    name = getattr(sys.stderr, "name", None)
    log = name if isinstance(name, str) and Path(name).is_file() else None  # a cell's; None: a terminal, say
    known = os.getpid(), log, torch.get_num_threads()
    arguments = start, problems, output, settings, profile.evaluation.grading_timeout, on_progress
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        task = process.submit(_train_here, known, *arguments)
        try:
            task.result()
        except BrokenProcessPool as error:
            raise RuntimeError("the process that trains was killed: is there too little memory?") from error


def _train_here(
    known: tuple[int, str | None, int],
    start: Path,
    problems: Sequence[Problem],
    output: Path,
    settings: RLSettings,
    timeout: float,
    on_progress: Callable[[float], None],
) -> None:
    """In the new process. known: the cell's process id, its log, its threads."""
    import torch

    from quagmire_utils.training import grpo as rl

    parent, log, threads = known
    if sys.platform == "linux":  # whoever kills the cell kills this too: the run that goes on finds its folder quiet
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
    with contextlib.ExitStack() as stack:
        if log is not None:
            file = stack.enter_context(open(log, "a", buffering=1))
            stack.enter_context(contextlib.redirect_stdout(file))
            stack.enter_context(contextlib.redirect_stderr(file))
        torch.set_num_threads(threads)
        grader = stack.enter_context(Grader(timeout=timeout, workers=1))
        rl.train_rl(start, problems, output, settings, grader=grader.grade, progress=False, on_progress=on_progress)


def _free_memory() -> None:
    """Give the GPU's memory back before an engine asks for most of it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
