"""Run the code cells of a notebook in this process, for tests of what they compute."""

from pathlib import Path
from typing import Any

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def run_cells(name: str, **parameters: Any) -> dict[str, Any]:
    """Return the variables that the notebook's cells leave, with other values of some of its parameters."""
    scope: dict[str, Any] = {"__name__": name}
    for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source.rstrip().rstrip(";"), name, "exec"), scope)
        if "parameters" in cell.metadata.get("tags", []):
            assert parameters.keys() <= scope.keys()
            scope |= parameters
    return scope
