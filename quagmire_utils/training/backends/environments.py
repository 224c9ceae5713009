"""Find the environments that the back-ends are installed in, and the GPUs that they run on."""

from __future__ import annotations

import os
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


def check_gpus(needed: int) -> None:
    """Raise ParameterError if this machine has fewer GPUs than a run needs."""
    there = len(hardware()["gpus"])
    if there < needed:
        raise ParameterError("gpus", needed, f"at most the {there} GPUs of this machine")
