"""The page: one HTML file with everything in it, from the executed notebooks of a profile."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from quagmire_utils.core.files import read_json, write_text
from quagmire_utils.core.paths import ROOT
from quagmire_utils.report import clean, story
from quagmire_utils.report.executed import Executed, Output, read_study
from quagmire_utils.report.style import STYLE

NAME = "report.html"
LARGEST = 10_000_000  # bytes of the page; above it the largest outputs are left to their notebooks
COPIES = "notebooks"  # folder of the executed notebooks, beside the page
FIGURES = "figures"  # where notebooks save what they draw
PAPER = "https://arxiv.org/abs/2510.01624"
ALT_LENGTH = 240  # characters; the caption below the picture has the rest
# Nothing is loaded and nothing runs, whatever the page holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
WORKFLOWS = ("run_sweep", "evaluate_model")  # they make records or evaluate one model: linked, no part of the story


def write_report(folder: str | Path, *, sources: str | Path | None = None) -> Path:
    """Make `folder`/report.html from the executed notebooks in `folder`/notebooks, atomically; returns its path.

    folder: results/<profile>. sources: the notebooks' folder, which gives the titles of those that were not executed.
    """
    path = Path(folder) / NAME
    write_text(build(folder, sources=sources), path)
    return path


def build(folder: str | Path, *, sources: str | Path | None = None) -> str:
    """The page as text; the same executed notebooks give the same page."""
    folder = Path(folder)
    study = read_study(folder / COPIES, ROOT / "notebooks" if sources is None else Path(sources))
    try:
        manifest = read_json(folder / "manifest.json")
    except (OSError, ValueError):
        manifest = {}
    profile = str(manifest.get("configuration", {}).get("name", folder.name))
    rendered = {
        place: [_output(entry, shown) for shown in entry.outputs]
        for place, entry in study.items()
        if entry.executed and place not in WORKFLOWS
    }
    vector = {path.stem for path in (folder / FIGURES).glob("*.svg")}
    fixed = len(_page(study, profile, manifest, {place: [] for place in rendered}, vector).encode())
    _leave_out(rendered, LARGEST - fixed)
    return _page(study, profile, manifest, rendered, vector)


def _leave_out(rendered: Mapping[str, list[str]], limit: int) -> None:
    """Replace the largest outputs by a sentence, in place, until all fit into `limit` bytes."""
    sizes = {(place, i): len(text.encode()) for place, texts in rendered.items() for i, text in enumerate(texts)}
    note = '<p class="note">Left out to keep this page small: see the executed notebook.</p>'
    for (place, i), size in sorted(sizes.items(), key=lambda item: -item[1]):
        if sum(sizes.values()) <= limit:
            return
        rendered[place][i] = note
        sizes[place, i] = min(size, len(note))


def _page(
    study: Mapping[str, Executed],
    profile: str,
    manifest: Mapping[str, Any],
    rendered: Mapping[str, list[str]],
    vector: Collection[str],
) -> str:
    def article(place: str) -> str:
        return _article(study[place], profile, rendered.get(place, []), study[place].name in vector)

    others = [
        place for place in rendered if place not in (*story.PLACES, story.LEDGER, story.AUDIT) and rendered[place]
    ]
    parts = [_section("ledger", "The ledger of claims", [article(story.LEDGER)])]
    for number, section in enumerate(story.STORY):
        parts.append(_section(f"section-{number}", section.title, [article(place) for place in section.notebooks]))
    parts.append(_section("audit", "What the paper’s own numbers say", [article(story.AUDIT)]))
    if others:
        parts.append(_section("beyond", "Beyond the paper", [article(place) for place in others]))
    parts.append(_section("provenance", "Provenance", [_provenance(study, manifest)]))
    title = f"Quagmires in SFT-RL post-training, reproduced: profile {profile}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#ledger">Skip to the ledger of claims</a>
<div class="wide">
{_header(study, profile, manifest)}
<div class="columns">
{_contents(study, others)}
<main>
{"".join(parts)}
</main>
</div>
<footer><p>Made by <code>./reproduce.sh --profile {html.escape(profile)} --only report</code> from the executed
notebooks beside it; nothing on this page was written by hand after they ran.</p></footer>
</div>
</body>
</html>
"""


def _header(study: Mapping[str, Executed], profile: str, manifest: Mapping[str, Any]) -> str:
    shown = sum(study[place].executed for place in story.PLACES)
    facts = [f"{shown} of {len(story.PLACES)} figures and tables"]
    if "cells" in manifest:
        facts.append(f"{manifest['cells_finished']} of {manifest['cells']} cells of the study measured")
    facts += [f"records of {manifest['date']}"] if manifest.get("date") else []
    description = str(manifest.get("configuration", {}).get("description", ""))
    scale = f" ({html.escape(description)})" if description else ""
    return f"""<header>
<p class="eyebrow">Profile {html.escape(profile)} · measured</p>
<h1>Quagmires in SFT-RL post-training, reproduced</h1>
<p>Which SFT checkpoint should go into RL? <a href="{PAPER}">Kang et al. (2025)</a> show that a high score after SFT can
mislead, and that generalization loss and Pass@k at large k foretell the outcome of RL better. Here is every figure and
table of the paper in the paper’s order, computed again from our own runs, with the published values beside ours.</p>
<p class="note">What is called measured comes from profile {html.escape(profile)}{scale}, not from the paper’s models:
it stands beside the paper’s numbers and cannot replace them. What was not run is shown as not run.</p>
<p class="facts">{"".join(f"<span>{html.escape(fact)}</span>" for fact in facts)}</p>
</header>"""


def _contents(study: Mapping[str, Executed], others: Sequence[str]) -> str:
    def links(places: Sequence[str]) -> str:
        chips = [
            f'<a href="#{html.escape(place)}"{"" if study[place].executed else " class=absent"}>'
            f"{html.escape(story.label_of(place))}</a>"
            for place in places
        ]
        return f'<div class="places">{"".join(chips)}</div>'

    items = ['<a href="#ledger">The ledger of claims</a>']
    items += [
        f'<a href="#section-{number}">{html.escape(section.title)}</a>{links(section.notebooks)}'
        for number, section in enumerate(story.STORY)
    ]
    items.append('<a href="#audit">What the paper’s own numbers say</a>')
    items += [f'<a href="#beyond">Beyond the paper</a>{links(others)}'] if others else []
    items.append('<a href="#provenance">Provenance</a>')
    lines = "\n".join(f"<li>{item}</li>" for item in items)
    return f'<nav aria-label="Contents"><h2>Contents</h2>\n<ol>\n{lines}\n</ol></nav>'


def _section(name: str, title: str, articles: Sequence[str]) -> str:
    return f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n{"".join(articles)}</section>\n'


def _article(entry: Executed, profile: str, outputs: Sequence[str], has_vector: bool) -> str:
    claim = clean.markdown(entry.claim, COPIES) if entry.claim else ""
    label = "What is checked" if entry.place in (story.LEDGER, story.AUDIT) else "The paper’s claim"
    if entry.place not in (*story.PLACES, story.LEDGER, story.AUDIT):
        label = "What this is"
    title = entry.title
    if entry.place.startswith("fig"):  # a figure's title says what the paper found, and ours may not
        title = f"{story.label_of(entry.place)}. The paper: {entry.short_title}"
    parts = [f'<article id="{html.escape(entry.place)}">', f"<h3>{html.escape(title)}</h3>"]
    parts += [f'<div class="claim"><p class="eyebrow">{label}</p>{claim}</div>'] if claim else []
    if not entry.executed:
        command = f"./reproduce.sh --profile {profile} --only {entry.place}"
        parts.append(
            f"<p><strong>not run</strong> at profile {html.escape(profile)}: <code>{html.escape(command)}</code></p>"
        )
        return "\n".join([*parts, "</article>\n"])
    facts = [f'<a href="{COPIES}/{quote(entry.name)}.ipynb">Executed notebook: {html.escape(entry.name)}</a>']
    facts += [f'<a href="{FIGURES}/{quote(entry.name)}.svg">Figure as SVG</a>'] if has_vector else []
    facts += [f"<span>{duration(entry.seconds)}</span>"] if entry.seconds is not None else []
    facts += [
        f"<span>with {html.escape(clean.plain(f'{name} = {value!r}'))}</span>"
        for name, value in entry.parameters.items()
    ]
    parts += [*outputs, f'<p class="facts">{"".join(facts)}</p>']
    return "\n".join([*parts, "</article>\n"])


def _output(entry: Executed, shown: Output) -> str:
    if shown.kind == "markdown":
        return clean.markdown(shown.content, COPIES)
    if shown.kind == "html":
        return clean.sanitized(shown.content, COPIES)
    if shown.kind == "text":
        return clean.preformatted(shown.content)
    caption = clean.markdown(shown.caption, COPIES) if shown.caption else ""
    try:
        image = clean.picture(shown.mime, shown.content, shown.metadata, _alt(clean.text_of(caption) or entry.title))
    except ValueError:
        return f'<p class="note">A picture of {html.escape(entry.name)} is damaged: execute the notebook again.</p>'
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><div class="card">{image}</div>{below}</figure>'


def _alt(caption: str) -> str:
    """The beginning of a caption, whole sentences if possible."""
    if len(caption) <= ALT_LENGTH:
        return caption
    cut = caption[:ALT_LENGTH]
    end = max(cut.rfind(mark) for mark in (". ", "; ", ": "))
    return cut[: end + 1] if end > ALT_LENGTH // 3 else cut[: cut.rfind(" ")] + " …"


def _provenance(study: Mapping[str, Executed], manifest: Mapping[str, Any]) -> str:
    """Each line of provenance once, with the notebooks that it belongs to, and what each notebook took."""
    lines: dict[str, list[Executed]] = {}
    for place in (story.LEDGER, *story.PLACES, story.AUDIT, *sorted(study)):
        entry = study[place]
        if entry.executed and entry.provenance and not any(entry in known for known in lines.values()):
            lines.setdefault(entry.provenance, []).append(entry)
    parts = ['<article id="origin">', "<h3>Where the numbers come from</h3>"]
    for line, entries in lines.items():
        names = ", ".join(story.label_of(entry.place) for entry in entries)
        parts += [clean.markdown(line, COPIES), f'<p class="note">{html.escape(names)}</p>']
    if not lines:
        parts.append('<p class="note">No executed notebook yet.</p>')
    if len({_records(line) for line in lines} - {""}) > 1:
        parts.append(
            "<p><strong>These notebooks were executed on different records</strong>, so their numbers need not fit.</p>"
        )
    rows = [
        f'<tr><td><a href="{COPIES}/{quote(entry.name)}.ipynb">{html.escape(entry.name)}</a></td>'
        f"<td>{html.escape(entry.end_time[:16].replace('T', ' '))}</td><td>{duration(entry.seconds)}</td></tr>"
        for entry in sorted(study.values(), key=lambda entry: entry.name)
        if entry.executed
    ]
    if rows:
        parts += [
            '<div class="scroll" tabindex="0"><table><thead><tr><th>notebook</th><th>executed (UTC)</th>',
            f"<th>took</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>",
        ]
    settings = manifest.get("configuration_digest")
    parts += [f'<p class="note">Configuration <code>{html.escape(str(settings))}</code></p>'] if settings else []
    return "\n".join([*parts, "</article>\n"])


def _records(line: str) -> str:
    """What notebooks on the same records have in common: commit, date, amount of work; empty where none were read."""
    found = re.findall(r"commit \w+|\d{4}-\d\d-\d\d|\d+ of \d+ cells", line)
    return " ".join(found) if " cells" in line else ""


def duration(seconds: float | None) -> str:
    """A run time as a person reads it: 5 s, 9 min."""
    if seconds is None:
        return ""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:.0f} min"
