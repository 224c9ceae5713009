"""Execute the notebooks of a profile: what `quagmire run` and `./reproduce.sh` do.

    taken = run_notebooks(Run(profile="mini", only=("fig03", "table01"), parameters={"k": "16"}))

`run_sweep` comes first: it computes the records and resumes what an earlier run left. Figures, tables, `claims`,
`paper_audit` and those of `study.BEYOND` only read, so several run at a time. Workflows such as `evaluate_model` run
one by one, if `only` names them. An executed copy replaces `results/<profile>/notebooks/<name>.ipynb` in one step,
unless it shows the same; if a notebook fails, its partial copy and log stay in `results/<profile>/logs/`. With
parameters of the user, all of this goes to `runs/<profile>` instead, so that the default results stay.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from quagmire_utils.analysis.candidates import SCENARIOS, check_family, check_outcome
from quagmire_utils.analysis.measurements import load_measurements
from quagmire_utils.analysis.tables import TABLES
from quagmire_utils.core.errors import ParameterError, check_whole
from quagmire_utils.core.files import read_parquet
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.provenance import usable_cores
from quagmire_utils.core.published import COLUMNS
from quagmire_utils.engines import EngineConfig, SamplingParams
from quagmire_utils.engines.checkpoints import check_present
from quagmire_utils.evaluation.pass_at_k import check_reach
from quagmire_utils.report import inputs
from quagmire_utils.report.execution import Job, NotebookError, execute_all
from quagmire_utils.report.notebook import repo_path, results_folder, set_aside_records
from quagmire_utils.report.page import write_report
from quagmire_utils.report.plots.look import SELECTION_STYLE
from quagmire_utils.report.plots.stages import X_LABELS
from quagmire_utils.report.study import AUDIT, BEYOND, LEDGER

SWEEP = "run_sweep"
TABLE = "table"  # the source of the ten table notebooks
REPORT = "report"  # the name of the page in `only`
# These belong to every run, and only read records; other notebooks run if `only` names them.
REGULAR = re.compile(rf"(fig|table)\d+_?|({'|'.join([LEDGER, AUDIT, *BEYOND])})$")
MOST_JOBS = 4  # notebooks at a time by default; each takes about 0.4 GiB


@dataclass(frozen=True)
class Run:
    """What to execute and where."""

    profile: str  # a name, the path of a YAML file, or a folder of records
    only: tuple[str, ...] = ()  # prefixes of notebook names, or "report"; empty: run_sweep and all that belong to a run
    parameters: Mapping[str, str] = field(default_factory=dict)  # as typed by the user
    fresh: bool = False  # set aside what the profile computed before
    jobs: int | None = None  # notebooks at a time; None: one for each core, at most MOST_JOBS
    output: Path | None = None  # executed copies, figures, page; None: folder, with own parameters runs/<profile>
    root: Path = ROOT  # working directory of the notebooks
    notebooks: Path = ROOT / "notebooks"
    results: Path = ROOT / "results"

    @property
    def records_only(self) -> bool:
        """Whether the profile is a folder of records: nothing there can be computed again."""
        return (Path(self.profile) / "manifest.json").is_file()

    @property
    def folder(self) -> Path:
        """Where the profile's records are."""
        return results_folder(self.profile, self.results)

    @property
    def place(self) -> Path:
        """Where executed notebooks, figures, logs and the page go."""
        return self.output or (self.root / "runs" / self.folder.name if self.parameters else self.folder)

    @property
    def names(self) -> tuple[str, ...]:
        """Prefixes of notebook names in `only`."""
        return tuple(name for name in self.only if name != REPORT)

    @property
    def resume_command(self) -> str:
        """The shell command that resumes this run."""
        words = ["./reproduce.sh", "--profile", self.profile]
        words += ["--only", ",".join(self.only)] if self.only else []
        words += ["--jobs", str(self.jobs)] if self.jobs is not None else []
        for name, value in self.parameters.items():
            words += ["-p", f"{name}={value}"]
        return shlex.join(words)


def default_profile(results: Path = ROOT / "results") -> str:
    """Return mini if its records are there and complete, else smoke: an unfinished sweep would run for hours."""
    manifest = results / "mini" / "manifest.json"
    return "mini" if manifest.is_file() and '"complete": true' in manifest.read_text(encoding="utf-8") else "smoke"


def select_notebooks(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """Return the notebooks to execute: run_sweep, figures, tables, the rest. ParameterError for a wrong prefix."""
    everything = sorted(
        _named(folder), key=lambda path: (path.stem != SWEEP, REGULAR.match(path.stem) is None, path.stem)
    )
    if not only:
        regular = [path for path in everything if path.stem == SWEEP or REGULAR.match(path.stem)]
        if not regular:
            raise ParameterError("notebooks", folder, reason=f"{folder} has no {SWEEP} and no figure or table")
        return regular
    for prefix in only:
        if not prefix or not any(path.stem.startswith(prefix) for path in everything):
            names = ", ".join(path.stem for path in everything)
            raise ParameterError("only", prefix, f"the beginning of a notebook's name ({names})")
    return [path for path in everything if path.stem.startswith(tuple(only))]


def _named(folder: Path) -> set[Path]:
    """Return paths by the names of the executed copies: table.ipynb counts as the ten notebooks made from it."""
    found = set(folder.glob("*.ipynb"))
    if (tables := folder / f"{TABLE}.ipynb") in found:
        found |= {folder / f"{spec.slug}.ipynb" for spec in TABLES.values()}
    return found - {tables}


def _source(path: Path) -> tuple[Path, int | None]:
    """Return the notebook that is executed under a name, and the number of its table if it is table.ipynb."""
    number = re.match(r"table(\d+)_", path.stem)
    if path.exists() or not number:
        return path, None
    return path.with_name(f"{TABLE}.ipynb"), int(number[1])


def assign_parameters(run: Run, paths: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Return the parameters of each notebook: `profile` and those of the user. ParameterError for wrong ones."""
    if "profile" in run.parameters:
        raise ParameterError("profile", reason="--profile chooses it, not -p")
    if TABLE in run.parameters:
        raise ParameterError(TABLE, reason="--only table03 chooses the table, not -p")
    sources = {path: _source(path) for path in paths}
    read = {source: notebook_parameters(source) for source in {source for source, _ in sources.values()}}
    defaults = {path: read[source] for path, (source, _) in sources.items()}
    for name in run.parameters:
        if not any(name in known for known in defaults.values()):
            known = sorted(set().union(*defaults.values()) - {"profile"})
            notebooks = ", ".join(path.stem for path in paths)
            reason = f"{notebooks} has no such parameter; known: {', '.join(known) or 'none'}"
            raise ParameterError(name, run.parameters[name], reason=reason)
    given = {**run.parameters, "profile": run.profile}
    assigned = {}
    for path, known in defaults.items():
        values = {name: parse_value(name, given[name], default) for name, default in known.items() if name in given}
        if run.parameters:
            check_values(known | values, run.folder)
        assigned[path] = values | ({TABLE: sources[path][1]} if sources[path][1] else {})
    return assigned


def run_notebooks(run: Run, terminal: TextIO | None = None) -> dict[str, float]:
    """Execute the notebooks of `run`; return seconds by notebook.

    Raises ParameterError before anything runs or from a notebook, NotebookError if a notebook fails, OSError if the
    disk is full, and KeyboardInterrupt with the names of the interrupted notebooks.
    """
    terminal = terminal or sys.stderr
    selected = _plan(run, terminal)
    parameters = assign_parameters(run, selected)
    if run.fresh and (kept := set_aside_records(run.folder, run.root)):
        print(f"Set aside the records of {run.folder.name}: {os.path.relpath(kept, run.root)}", file=terminal)
    logs = run.place / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    jobs = []
    for path in selected:
        source, number = _source(path)
        heading = TABLES[number].heading if number else ""
        jobs.append(Job(source, run.place / "notebooks" / path.name, logs, run.root, parameters[path], heading))
    at_once = min(MOST_JOBS, usable_cores()) if run.jobs is None else run.jobs
    # those that only read run side by side, the others one by one
    groups = itertools.groupby(jobs, key=lambda job: job.name if REGULAR.match(job.name) is None else "")
    try:
        return execute_all([list(group) for _, group in groups], at_once, terminal)
    except NotebookError as error:
        raise NotebookError(f"{error}\n  resume with:  {run.resume_command}") from None


def _plan(run: Run, terminal: TextIO) -> list[Path]:
    """Return the notebooks to execute. Raises ParameterError for options that do not go together."""
    if run.jobs is not None and run.jobs < 1:
        raise ParameterError("jobs", run.jobs, "at least 1")
    if run.fresh and (run.records_only or run.only == (REPORT,)):
        raise ParameterError("fresh", reason="it computes the records of a profile again, so it needs a profile")
    if run.only and not run.names:
        return []
    selected = select_notebooks(run.notebooks, run.names)
    sweep = run.notebooks / f"{SWEEP}.ipynb"
    if run.records_only:
        if run.names and sweep in selected:
            raise ParameterError("profile", run.profile, f"a profile for {SWEEP}, which cannot run on records")
        return [path for path in selected if path != sweep]
    no_records = run.fresh or not (run.folder / "manifest.json").exists()
    if no_records and sweep not in selected and sweep.exists() and any(REGULAR.match(path.stem) for path in selected):
        print(f"{run.folder.name} has no records yet: {SWEEP} comes first", file=terminal, flush=True)
        selected.insert(0, sweep)
    return selected


def make_report(run: Run, taken: Collection[str]) -> Path | None:
    """Make the page if a notebook that it shows was executed, or if --only names it; return its path."""
    if REPORT not in run.only and not any(REGULAR.match(name) for name in taken):
        return None
    return write_report(run.place, sources=run.notebooks)


# --- parameters: their defaults, as typed by a user, and what can be refused before a kernel starts ------------------

# whole numbers of at least 1
COUNTS = ("num_samples", "k", "forecast_k", "n_splits", "n_draws", "n_runs", "limit", "workers")


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
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that it raises for some text
        value = {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)
    if default is None:
        return value
    if isinstance(default, (list, tuple)):
        if isinstance(value, str) and value is text:
            value = [parse_value(name, item.strip()) for item in text.split(",") if item.strip()]
        value = type(default)(value if isinstance(value, (list, tuple)) else [value])
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    items = value if isinstance(value, (list, tuple)) else []
    if type(value) is not type(default) or not all(isinstance(item, (str, int, float)) for item in items):
        raise ParameterError(name, text, f"{type(default).__name__} like {default!r}")
    return value


def check_values(values: Mapping[str, Any], records: Path) -> None:
    """Raise ParameterError for parameters that a notebook on these records would refuse, without model and kernel."""
    for name in COUNTS:
        if values.get(name) is not None:
            check_whole(name, values[name], 1)
    if not 0 < values.get("confidence", 0.5) < 1:
        raise ParameterError("confidence", values["confidence"], "between 0 and 1")
    if "engine" in values:
        _check_evaluation(values)
        return
    check_outcome(values.get("outcome", "outcome"))
    known = {"selections": SELECTION_STYLE, "predictors": COLUMNS, "scenario": SCENARIOS, "x": X_LABELS}
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
