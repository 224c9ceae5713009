"""Find the environments that the back-ends are installed in, and the GPUs that they run on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.provenance import hardware

BACKENDS = {"llamafactory": "LLaMA-Factory", "verl": "verl"}


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


def check_gpus(needed: int) -> None:
    """Raise ParameterError if this machine has fewer GPUs than a run needs."""
    there = len(hardware()["gpus"])
    if there < needed:
        raise ParameterError("gpus", needed, f"at most the {there} GPUs of this machine")
