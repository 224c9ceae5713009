"""Threads and child processes of computations."""

from __future__ import annotations

import os
import threading
import time
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SMALL = 50_000_000  # parameters


def end_with_parent(parent: int) -> None:
    """End this process when the process `parent` ends: a resumed run must not meet it at the same files."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def settle_threads(module: nn.Module) -> None:
    """Compute in one thread from now on if the model is small, else in as many as at first; OMP_NUM_THREADS wins.

    Threads that wait for each other's share of a small matrix product spin, and take the cores from other processes:
    beside other jobs, several threads are up to seven times slower than one.
    """
    import torch

    first = _threads_at_first()
    if "OMP_NUM_THREADS" not in os.environ:
        small = sum(weight.numel() for weight in module.parameters()) < SMALL
        torch.set_num_threads(1 if small else first)


@cache
def _threads_at_first() -> int:
    import torch

    return torch.get_num_threads()
