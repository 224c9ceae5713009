"""What the notebook `evaluate_model` reads: benchmarks, held-out traces, and the answers that belong to them.

problems = load_benchmarks("gsm8k, my/own.jsonl", limit=100)
folder = evaluation_folder(config, params)             # runs/evaluations/<model>-<digest of the settings>
"""

from __future__ import annotations

import glob
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import digest, read_json, write_json
from quagmire_utils.core.paths import ROOT
from quagmire_utils.data import BENCHMARKS, Problem, Trace, benchmark_names, find_dataset, load_benchmark, load_traces
from quagmire_utils.engines import EngineConfig, SamplingParams, ServerSettings, model_digest
from quagmire_utils.evaluation.deciding import Run
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.report.notebook import repo_path


def load_benchmarks(benchmarks: str | Sequence[str], limit: int | None = None) -> dict[str, list[Problem]]:
    """Return problems by benchmark, the first `limit` of each; benchmarks: as in `benchmark_sources`."""
    return {name: load_benchmark(source, limit=limit) for name, source in benchmark_sources(benchmarks).items()}


def benchmark_sources(benchmarks: str | Sequence[str]) -> dict[str, str]:
    """Return what `load_benchmark` reads, by benchmark, from a list or from text with commas.

    An item is a name, `all` for the paper's seven, the path of a .jsonl or .yaml file, or a pattern of such paths (in
    the working directory or the repo). Raises ParameterError for an item that names nothing or one named twice.
    """
    sources: list[str] = []
    for item in _items(benchmarks):
        if item == "all":
            sources += BENCHMARKS
        elif not glob.has_magic(item):
            sources.append(item if item in BENCHMARKS else repo_path(item))
        else:
            found = sorted(glob.glob(item)) or sorted(glob.glob(str(ROOT / item)))
            if not found:
                reason = f"no file fits {item}; `./reproduce.sh --profile smoke` makes the micro benchmarks"
                raise ParameterError("benchmarks", item, reason=reason)
            sources += found
    names = [Path(source).stem for source in sources]
    _check_names("benchmarks", names)
    wrong = [source for source in sources if source not in benchmark_names() and not Path(source).is_file()]
    if wrong or not names:
        known = f"some of {', '.join(benchmark_names())}, or the path of a .jsonl or .yaml file"
        raise ParameterError("benchmarks", wrong[0] if wrong else benchmarks, known)
    return dict(zip(names, sources, strict=True))


def licences(names: Iterable[str]) -> list[str]:
    """Return a sentence with the licences of those benchmarks that are in the catalogue; none if none is."""
    stated = [f"{name}: {find_dataset(name).licence}" for name in names if name in benchmark_names()]
    return [f"Licences of the problems: {'; '.join(stated)}."] if stated else []


def load_validation(validation_traces: str | Sequence[str] | None) -> dict[str, list[Trace]]:
    """Return held-out traces by file name, from .jsonl files in a list or in text with commas; {} for None."""
    paths = [Path(repo_path(item)) for item in _items(validation_traces or [])]
    _check_names("validation_traces", [path.stem for path in paths])
    for path in paths:
        if not path.is_file():
            raise ParameterError("validation_traces", path, reason=f"there is no file {path}")
    return {path.stem: load_traces(path) for path in paths}


def server_settings(engine: str, model: str | None, tokenizer: str | None) -> ServerSettings | None:
    """Return what `load_engine` needs to know of a server, None for the other engines."""
    if engine == "server":
        return ServerSettings(model=model, tokenizer=None if tokenizer is None else repo_path(tokenizer))
    for name, value in (("server_model", model), ("server_tokenizer", tokenizer)):
        if value is not None:
            raise ParameterError(name, value, reason=f"it is for engine server, not {engine}")
    return None


def evaluation_folder(config: EngineConfig, params: SamplingParams, output: str | None = None) -> Path:
    """Return the folder of an evaluation's samples: `output`, or one in runs/evaluations named after its settings.

    The number of samples and the benchmarks are not part of the name: a later run with more of either adds to it.
    """
    if output:
        path = Path(output).expanduser()
        return path if path.is_absolute() else ROOT / path
    # a folder counts by its content: a checkpoint that was trained again is another model in the same place
    identity = model_digest(config.model) if Path(config.model).is_dir() else config.model
    settings = [identity, config.revision, config.engine, config.template]
    settings += [params.temperature, params.top_p, params.max_tokens, params.seed]
    name = "server" if config.engine == "server" else Path(config.model).name
    return ROOT / "runs" / "evaluations" / f"{name}-{digest(settings)[:8]}"


@contextmanager
def stopwatch(folder: Path) -> Iterator[list[float]]:
    """Keep the seconds that a block takes, even if interrupted, in `folder`; yield those of all runs."""
    file = folder / "seconds.json"
    taken, started = read_json(file) if file.is_file() else [], time.monotonic()
    try:
        yield taken
    finally:
        taken.append(round(time.monotonic() - started, 1))
        write_json(taken, file)


def recorded_run(folder: Path, models: Path | None = None) -> Run:
    """Return what drew the answers in an evaluation's folder, by its manifest; raise ParameterError without one.

    models: folder in which to look for the model first, by its name: a manifest holds no paths outside of the repo.
    """
    try:
        manifest = read_json(folder / "manifest.json")
        facts = manifest["configuration"]
        params = SamplingParams(**{name: facts[name] for name in SamplingParams.model_fields if name in facts})
        model, problems = str(facts["model"]), load_benchmarks(facts["benchmarks"], facts["limit"])
        settings = {name: facts[name] for name in ("engine", "template")} | manifest.get("engine", {})
    except ParameterError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{folder} has no manifest of an evaluation ({error}); `quagmire evaluate` writes it"
        raise ParameterError("folder", folder, reason=reason) from None
    if models is not None and (models / Path(model).name).is_dir():
        model = str((models / Path(model).name).resolve())
    if settings["engine"] != "server":
        settings["dtype"] = facts["dtype"]
    config = EngineConfig(model=repo_path(model), **settings)
    if "/" not in config.model and not Path(config.model).is_dir():
        raise ParameterError("--models", reason=f"{folder} does not say where its model {model} lies; name that folder")
    return Run(config, params, problems, SampleStore(folder))


def selected(store: SampleStore, problems: Mapping[str, Sequence[Problem]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the counts and the graded samples of `problems`, in their order; the store may hold more."""
    keys = [(name, problem.id) for name, some in problems.items() for problem in some]
    chosen = pd.DataFrame(keys, columns=["benchmark", "problem"])
    samples = store.read([*chosen, "tokens", "verdict", "extracted"]).dropna(subset=["verdict"])
    return chosen.merge(store.counts(), on=list(chosen)), chosen.merge(samples, on=list(chosen))


def _items(values: str | Sequence[str]) -> list[str]:
    items = values if isinstance(values, list | tuple) else str(values).split(",")
    return [str(item).strip() for item in items if str(item).strip()]


def _check_names(parameter: str, names: Sequence[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ParameterError(parameter, twice[0], reason=f"{twice[0]} is named twice")
