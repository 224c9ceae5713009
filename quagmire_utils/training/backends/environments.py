"""Find the environments that the back-ends are installed in, and describe the machines they run on."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT

BACKENDS = {"llamafactory": "LLaMA-Factory", "verl": "verl"}


@dataclass(frozen=True)
class Machines:
    """What a run has: `devices` GPUs on each of `nodes` machines. No devices: a CPU, to try things out."""

    nodes: int = 1
    devices: int = 8  # the paper's nodes have 8 A100

    def __post_init__(self) -> None:
        """Raise ParameterError for fewer machines than one."""
        if self.nodes < 1:
            raise ParameterError("machines.nodes", self.nodes, "at least 1")
        if self.devices < 0 or (self.nodes > 1 and self.devices == 0):
            raise ParameterError("machines.devices", self.devices, "at least 1, or 0 (a CPU) on one node")

    @property
    def processes(self) -> int:
        """Processes that train: one per GPU, or one on a CPU."""
        return self.nodes * max(1, self.devices)


def python_variable(backend: str) -> str:
    """Return the environment variable that names another Python for `backend`."""
    return f"QUAGMIRE_{backend.upper()}_PYTHON"


def default_python(backend: str) -> Path:
    """Return the Python that `./reproduce.sh setup <backend>` installs."""
    return ROOT / f".venv-{backend}" / "bin" / "python"


def environment_python(backend: str) -> Path:
    """Return the Python of a back-end's environment.

    It is the one that QUAGMIRE_LLAMAFACTORY_PYTHON or QUAGMIRE_VERL_PYTHON names, else the one of this repository.
    Raises ParameterError, with the command that installs it, if there is none.
    """
    if backend not in BACKENDS:
        raise ParameterError("backend", backend, f"one of {', '.join(BACKENDS)}")
    variable = python_variable(backend)
    named = os.environ.get(variable)
    python = Path(named).expanduser() if named else default_python(backend)
    if os.access(python, os.X_OK) and (named or (python.parents[1] / "quagmire-setup").is_file()):
        return python
    if named:
        raise ParameterError(variable, named, "the path of a Python")
    remedy = f"run ./reproduce.sh setup {backend}, or name its Python in {variable}"
    raise ParameterError("backend", backend, reason=f"{BACKENDS[backend]} is not installed: {remedy}")


def backend_environment(backend: str) -> dict[str, str]:
    """Return the variable that tells a run's scripts their Python, after checking that it can run them.

    Raises ParameterError as `environment_python` does, and if that Python does not start or has not the pinned version
    of the back-end.
    """
    python, variable = environment_python(backend), python_variable(backend)
    lines = (Path(__file__).parent / f"{backend}.txt").read_text(encoding="utf-8").splitlines()
    pinned = next(line.partition("==")[2] for line in lines if line.startswith(f"{backend}=="))
    command = [python, "-c", f"from importlib.metadata import version; print(version({backend!r}))"]
    without = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=without)
        found = asked.stdout.strip() or (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        found = str(error)
    if found != pinned:
        reason = f"{python} must have {BACKENDS[backend]} {pinned}, but says {found!r}"
        raise ParameterError(variable, str(python), reason=f"{reason}: run ./reproduce.sh setup {backend}")
    return {variable: str(python)}


def count_gpus() -> int:
    """Return the number of GPUs of this machine, as nvidia-smi counts them."""
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
