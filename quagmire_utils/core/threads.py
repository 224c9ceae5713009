"""Threads of computations on a CPU. Beside other jobs, several threads are up to seven times slower than one.

Threads that wait for each other's share of a small matrix product spin, and take the cores from other processes. So
small models get one thread, and threads of larger ones sleep while they wait (`OMP_WAIT_POLICY`, which OpenMP reads
when torch is imported, so importing the package sets it).
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SMALL = 50_000_000  # parameters


def wait_asleep() -> None:
    """Have OpenMP's threads sleep while they wait, unless the user says otherwise; call before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def settle_threads(module: nn.Module) -> None:
    """Compute in one thread from now on if the model is small, else in as many as at first; OMP_NUM_THREADS wins."""
    import torch

    first = _threads_at_first()
    if "OMP_NUM_THREADS" not in os.environ:
        small = sum(weight.numel() for weight in module.parameters()) < SMALL
        torch.set_num_threads(1 if small else first)


@cache
def _threads_at_first() -> int:
    import torch

    return torch.get_num_threads()
