"""Parameters of notebooks: their defaults, and values as typed by a user.

defaults = notebook_parameters(Path("notebooks/fig03_sft_vs_rl.ipynb"))     # {"profile": "mini", "k": 64, ...}
values = defaults | {"k": parse_value("k", "16", defaults["k"])}
"""

from __future__ import annotations

import ast
import contextlib
import json
from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Return the names and defaults of the notebook's parameters cell (None if a default is not a literal)."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = ("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    defaults: dict[str, Any] = {}
    for statement in ast.parse(next(tagged, "")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            defaults[statement.targets[0].id] = None
            with contextlib.suppress(ValueError):
                defaults[statement.targets[0].id] = ast.literal_eval(statement.value)
    return defaults


def parse_value(name: str, text: str, default: Any = None) -> Any:
    """Return the value of `-p name=text`, of the type that the notebook's default has.

    A list or tuple may be written without brackets (a,b); a default of None takes any literal, and plain text as text.
    Raises ParameterError if the value is of another type.
    """
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)
    if value is None or default is None:
        return value
    if isinstance(default, (list, tuple)):
        if isinstance(value, str) and value is text:
            value = [parse_value(name, item.strip()) for item in text.split(",") if item.strip()]
        return type(default)(value) if isinstance(value, (list, tuple)) else type(default)([value])
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ParameterError(name, text, f"{type(default).__name__} like {default!r}")
    return value
