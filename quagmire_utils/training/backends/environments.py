"""Where the back-ends are installed, and the machines that they run on."""

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
    """What a run has: `devices` GPUs on each of `nodes` machines. No devices: a CPU, for trying things out."""

    nodes: int = 1
    devices: int = 8  # the paper's nodes have 8 A100

    def __post_init__(self) -> None:
        """Refuse fewer machines than one."""
        if self.nodes < 1 or self.devices < 0:
            raise ParameterError(
                f"machines must be at least one node with no or more devices, not {self.nodes} with {self.devices}"
            )
        if self.nodes > 1 and self.devices == 0:
            raise ParameterError("machines.devices is 0 (a CPU), which works on one node only")

    @property
    def processes(self) -> int:
        """Processes that train: one a GPU, or one on a CPU."""
        return self.nodes * max(1, self.devices)


def python_variable(backend: str) -> str:
    """The environment variable that names another Python for `backend`."""
    return f"QUAGMIRE_{backend.upper()}_PYTHON"


def default_python(backend: str) -> Path:
    """The Python that `./reproduce.sh setup <backend>` makes."""
    return ROOT / f".venv-{backend}" / "bin" / "python"


def environment_python(backend: str) -> Path:
    """The Python of a back-end's environment. Raises ParameterError, with the command that makes it, where it is not.

    It is the one that QUAGMIRE_LLAMAFACTORY_PYTHON or QUAGMIRE_VERL_PYTHON names, otherwise the one of this repository.
    """
    if backend not in BACKENDS:
        raise ParameterError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    named = os.environ.get(python_variable(backend))
    python = Path(named).expanduser() if named else default_python(backend)
    if os.access(python, os.X_OK) and (named or (python.parents[1] / "quagmire-setup").is_file()):
        return python
    if named:
        raise ParameterError(f"{python_variable(backend)} names {python}, which is no program")
    raise ParameterError(
        f"{BACKENDS[backend]} is not installed: run ./reproduce.sh setup {backend}, or name its Python in "
        f"{python_variable(backend)}"
    )


def backend_environment(backend: str) -> dict[str, str]:
    """The variable that tells a run's scripts their Python, once it is known to be one that can run them.

    Raises ParameterError as `environment_python` does, and where that Python does not start, or has the back-end not
    at all or in another version than the files are written for.
    """
    python, name = environment_python(backend), BACKENDS[backend]
    pinned = _pinned_version(backend)
    command = [python, "-c", f"from importlib.metadata import version; print(version({backend!r}))"]
    without = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=without)
        last = (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        asked, last = None, str(error)
    remedy = f"run ./reproduce.sh setup {backend}, or name another Python in {python_variable(backend)}"
    if asked is not None and "PackageNotFoundError" in last:
        raise ParameterError(f"{python} has no {name}: {remedy}")
    if asked is None or asked.returncode:
        raise ParameterError(f"{python} does not run ({last}): {remedy}")
    if asked.stdout.strip() != pinned:
        raise ParameterError(
            f"{python} has {name} {asked.stdout.strip()}, and runs are written for {name} {pinned}: {remedy}"
        )
    return {python_variable(backend): str(python)}


def _pinned_version(backend: str) -> str:
    """The version in the pinned list, which set-up installs."""
    lines = (Path(__file__).parent / f"{backend}.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{backend}=="))


def count_gpus() -> int:
    """GPUs of this machine, as nvidia-smi counts them."""
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
