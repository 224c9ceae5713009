"""The page of the whole study, and the page of one evaluation: each is one HTML file with everything in it."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from quagmire_utils.core import published
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, write_text
from quagmire_utils.core.paths import ROOT
from quagmire_utils.report.clean import COPIES, environment, markdown, picture, plain, preformatted, render, sanitized
from quagmire_utils.report.plots.look import shrink_picture
from quagmire_utils.report.study import (
    AUDIT,
    BEYOND,
    LEDGER,
    OBJECTIONS,
    OVERVIEW,
    PLACES,
    Executed,
    Output,
    label_of,
    read_study,
)

NAME = "report.html"
EVALUATION = "evaluation.html"
MEASURED = "How it was measured"  # a heading of an evaluation's page, which unfolds
FIGURES = tuple(place for place in PLACES if place.startswith("fig"))
TABLES = tuple(place for place in PLACES if place.startswith("table"))
NAMED = (OVERVIEW, LEDGER, OBJECTIONS, AUDIT, *PLACES)  # have a place of their own on the page
ALT_LENGTH = 240  # characters; the caption below the picture has the rest
WORKFLOWS = ("run_sweep", "evaluate_model")  # they make records or evaluate one model: not on the page


def write_report(folder: str | Path, *, sources: str | Path = ROOT / "notebooks") -> Path:
    """Make results/<profile>/report.html from its executed notebooks; `sources` give the others' titles."""
    path = Path(folder) / NAME
    write_text(build(folder, sources=sources), path)
    return path


def build(folder: str | Path, *, sources: str | Path = ROOT / "notebooks") -> str:
    """Return the page as text; the same executed notebooks give the same page."""
    folder = Path(folder)
    study = read_study(folder / COPIES, Path(sources))
    try:
        manifest = read_json(folder / "manifest.json")
    except (OSError, ValueError):
        manifest = {}
    configuration = manifest.get("configuration", {})
    shown = {
        place: [_output(entry, output) for output in entry.outputs if output.content != entry.result]
        for place, entry in study.items()
        if entry.executed and place not in WORKFLOWS
    }
    origins = _origins(study)
    values = {
        "study": study,
        "shown": {place: _divide(place, outputs) for place, outputs in shown.items()},
        "others": [place for place in dict.fromkeys((*BEYOND, *shown)) if shown.get(place) and place not in NAMED],
        "executed": sum(study[place].executed for place in PLACES),
        "figures": FIGURES,
        "tables": TABLES,
        "captions": {f"fig{number:02d}": text for number, text in published.captions().items()},
        "vector": {path.stem for path in (folder / "figures").glob("*.svg")},
        "origins": origins,
        "mixed": len({_records(line) for line in origins} - {""}) > 1,
        "profile": str(configuration.get("name", folder.name)),
        "description": str(configuration.get("description", "")),
        "manifest": {"date": "", "configuration_digest": "", **manifest},
    }
    environment().filters |= {"label": label_of}
    return render("report.html.j2", **values)


def _divide(place: str, outputs: list[Markup]) -> tuple[list[Markup], list[Markup]]:
    """Return what is visible and what unfolds: of a table its first table, of other notebooks their first picture."""
    if place in (OVERVIEW, LEDGER, OBJECTIONS) or place in FIGURES:
        return outputs, []
    wanted = "<table" if place in TABLES else "<img "
    first = next((number for number, output in enumerate(outputs) if wanted in output), None)
    if first is None:
        return [], outputs
    start = max(0, first - 1) if place in TABLES else first  # with the line above a table
    return outputs[start : first + 1], [*outputs[:start], *outputs[first + 1 :]]


def _output(entry: Executed, shown: Output) -> Markup:
    if shown.kind != "picture":
        return {"markdown": markdown, "html": sanitized, "text": preformatted}[shown.kind](shown.content)
    caption = markdown(shown.caption) if shown.caption else Markup()
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    try:
        return picture(shown.content, shown.metadata.get("width"), _alt(caption.striptags() or entry.title), below)
    except ValueError:
        text = '<p class="note">A picture of {} is damaged: execute the notebook again.</p>'
        return Markup(text).format(entry.name)


def _alt(caption: str) -> str:
    """Return the beginning of a caption, whole sentences if possible."""
    if len(caption) <= ALT_LENGTH:
        return caption
    cut = caption[:ALT_LENGTH]
    end = max(cut.rfind(mark) for mark in (". ", "; ", ": "))
    return cut[: end + 1] if end > ALT_LENGTH // 3 else cut[: cut.rfind(" ")] + " …"


def _origins(study: Mapping[str, Executed]) -> dict[str, list[Executed]]:
    """Return each line of provenance with the notebooks that show it."""
    lines: dict[str, list[Executed]] = {}
    for place in dict.fromkeys((*NAMED, *sorted(study))):
        if study[place].executed and study[place].provenance:
            lines.setdefault(study[place].provenance, []).append(study[place])
    return lines


def _records(line: str) -> str:
    """Return the commit, date and amount of work of a line of provenance; "" if no records were read."""
    found = re.findall(r"commit \w+|\d{4}-\d\d-\d\d|\d+ of \d+ cells", line)
    return " ".join(found) if " cells" in line else ""


def duration(seconds: float | None) -> str:
    """Return a run time as a person reads it: 5 s, 9 min."""
    if seconds is None:
        return ""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class EvaluationPage:
    """The page of one evaluation: what `evaluate_model` has shown so far, by heading, to send to a colleague."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._sections: dict[str, list[Markup]] = {}

    def show(self, heading: str, *items: Any) -> None:
        """Display `items` now, and keep them for the page; see `keep`."""
        from IPython.display import display

        self.keep(heading, *items)
        for item in items:
            display(item)

    def keep(self, heading: str, *items: Any) -> None:
        """Keep Markdown, HTML (escaped by its author), a PNG Image or a DataFrame for the page."""
        kept = self._sections.setdefault(heading, [])
        kept += [_kept(item, f"{heading}: {self.title}") for item in items]

    def write(self, folder: str | Path) -> Path:
        """Write `folder`/evaluation.html, atomically; return its path."""
        path = Path(folder) / EVALUATION
        values = {"title": plain(self.title), "sections": self._sections, "folded": MEASURED}
        write_text(render("evaluation.html.j2", **values), path)
        return path


def _kept(item: Any, alt: str) -> Markup:
    from IPython.display import HTML, Image, Markdown

    if isinstance(item, Markdown):
        return markdown(item.data)
    if isinstance(item, HTML):
        return Markup(item.data)
    if isinstance(item, Image):
        return picture(base64.b64encode(item.data).decode(), item.width, alt)
    return sanitized(table_html(item))


def table_html(frame: pd.DataFrame) -> str:
    """Return the frame as HTML, escaped, with its index as first column if that has a name."""
    named = frame.reset_index() if frame.index.name else frame
    return named.to_html(index=frame.index.name is None, border=0, escape=True, justify="left")


# --- pictures of a page, for the README and for tests ----------------------------------------------------------------

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
WINDOW = (1280, 1500)  # of the README's picture
PATIENCE = 240  # seconds; a loaded two-core machine takes many


def chromium(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a headless Chromium; return its output. Raises ParameterError where there is none."""
    program = next((path for path in map(shutil.which, (*CHROMIUMS, MAC)) if path), None)
    if program is None:
        raise ParameterError("chromium", reason=f"this needs a Chromium or Chrome on the PATH ({', '.join(CHROMIUMS)})")
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    fixed += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--mute-audio"]
    with tempfile.TemporaryDirectory(prefix="quagmire-chromium-", ignore_cleanup_errors=True) as profile:
        command = [program, *fixed, f"--user-data-dir={profile}", *options, page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} failed: {' '.join(done.stderr.strip().splitlines()[-3:])}")
    return done


def take_screenshot(page: Path, target: Path) -> Path:
    """Write a PNG of the page at desktop width with a palette of 256 colours, a third of the size; return its path."""
    light = "--blink-settings=preferredColorScheme=1"
    chromium(page, f"--window-size={WINDOW[0]},{WINDOW[1]}", light, f"--screenshot={target.resolve()}")
    shrink_picture(target)
    return target
