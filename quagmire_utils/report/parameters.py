"""Parameters of notebooks: their defaults, values as typed by a user, and what can be refused before a kernel starts.

defaults = notebook_parameters(Path("notebooks/fig03_sft_vs_rl.ipynb"))     # {"profile": "mini", "k": 64, ...}
values = defaults | {"k": parse_value("k", "16", defaults["k"])}
check_values(values, Path("results/mini"))                                  # k of at most 64 answers, a known family
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError

# whole numbers of at least 1
COUNTS = ("num_samples", "k", "forecast_k", "n_splits", "n_draws", "n_runs", "limit", "workers")
PREDICTORS = ("pass1", "gen_loss", "pass_k", "avg_genloss_pass_k")


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


def check_values(values: Mapping[str, Any], records: Path) -> None:
    """Raise ParameterError for values that a notebook would refuse, as far as no model and no kernel is needed.

    values: of all its parameters. records: the folder of the records that it reads; they may not be there yet.
    """
    for name in COUNTS:
        number = values.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ParameterError(name, number, "a whole number of at least 1")
    if not 0 < values.get("confidence", 0.5) < 1:
        raise ParameterError("confidence", values["confidence"], "between 0 and 1")
    if "engine" in values:
        _check_evaluation(values)
        return
    from quagmire_utils.analysis.candidates import SCENARIOS, check_outcome
    from quagmire_utils.analysis.measurements import load_measurements
    from quagmire_utils.report.notebook import repo_path
    from quagmire_utils.report.plots.look import SELECTION_STYLE
    from quagmire_utils.report.plots.stages import X_LABELS

    check_outcome(values.get("outcome", "outcome"))
    known = {"selections": SELECTION_STYLE, "predictors": PREDICTORS, "scenario": SCENARIOS, "x": X_LABELS}
    for name, allowed in known.items():
        for item in [chosen] if isinstance(chosen := values.get(name, ()), str) else chosen:
            if item not in allowed:
                raise ParameterError(name, item, f"one of {', '.join(allowed)}")
    if not values.get("measurements"):
        _check_choice(values, records)
    elif not (source := Path(repo_path(values["measurements"]))).exists():
        raise ParameterError("measurements", source, reason=f"there is no file or folder {source}")
    elif source.is_file():
        load_measurements(source, k=values["k"])


def _check_choice(values: Mapping[str, Any], records: Path) -> None:
    """Check what is chosen of the records, and k against their number of answers."""
    from quagmire_utils.analysis.candidates import check_family
    from quagmire_utils.core.files import read_parquet

    if not all((records / f"{name}.parquet").is_file() for name in ("candidates", "counts")):
        return
    candidates = read_parquet(records / "candidates.parquet")
    for family in {*values.get("families", ()), values.get("family", "all")} - {"all"}:
        check_family(candidates, family)
    for name in ("n_examples", "epochs"):
        if values.get(name) and values[name] not in set(candidates[name]):
            known = ", ".join(f"{value:g}" for value in sorted(candidates[name].unique()))
            raise ParameterError(name, values[name], f"one of {known}, or 0 for all")
    counts = read_parquet(records / "counts.parquet", ["stage", "benchmark", "n"])
    fewest = counts.loc[counts["stage"] != "rl", "n"].min()
    if values.get("k", 1) > fewest:
        raise ParameterError("k", values["k"], f"at most {fewest}, the answers drawn for each problem before RL")
    known = ["auto", "all", *counts["benchmark"].unique()]
    if values.get("benchmark", "all") not in known:
        raise ParameterError("benchmark", values["benchmark"], f"one of {', '.join(known)}")


def _check_evaluation(values: Mapping[str, Any]) -> None:
    """Check what `evaluate_model` is to sample, on what and how; no problem is read, no server is asked."""
    from quagmire_utils.engines import EngineConfig, SamplingParams
    from quagmire_utils.engines.checkpoints import check_present
    from quagmire_utils.evaluation.pass_at_k import check_reach
    from quagmire_utils.report import inputs
    from quagmire_utils.report.notebook import repo_path

    engine, samples = values["engine"], values["num_samples"]
    server = inputs.server_settings(engine, values["server_model"], values["server_tokenizer"])
    given = {**values, "model": repo_path(values["model"]), "server": server}
    config = EngineConfig(**{name: value for name, value in given.items() if name in EngineConfig.model_fields})
    config.check()
    SamplingParams(**{name: value for name, value in given.items() if name in SamplingParams.model_fields})
    if values["k"] > samples:
        raise ParameterError("k", values["k"], f"between 1 and num_samples ({samples})")
    if forecast_k := values.get("forecast_k"):
        check_reach(samples, forecast_k, "forecast_k")
    inputs.benchmark_sources(values["benchmarks"])
    inputs.load_validation(values["validation_traces"])
    if engine != "server":
        check_present(config.model)
