"""Executed notebooks as the page and the README read them: title, claim, tagged outputs, headline, provenance, time.

What a notebook shows is what the page shows. A notebook says by the tags of its cells what belongs there:

    (first cell, Markdown)   # Title, and below it the paper's claim
    report                   the outputs of this cell, and the Markdown cell directly above it
    headline                 the outputs of `display(headline(...))`: one row of the README
    provenance               one line of Markdown: where the numbers come from
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quagmire_utils.analysis.tables import TABLES
from quagmire_utils.report import clean, story

HEADLINE = "application/vnd.quagmire.headline+json"


@dataclass(frozen=True)
class Headline:
    """What a figure or table says in one value, the paper's and ours; shown in a notebook, and read by the README."""

    paper: str  # the published value, for example "R² = 0.43"
    ours: str  # ours, with its interval
    scale: str = ""  # what ours rests on: family, number of candidates

    def __post_init__(self) -> None:
        """One line each, whatever a notebook gives."""
        for name in ("paper", "ours", "scale"):
            object.__setattr__(self, name, " ".join(clean.plain(str(getattr(self, name))).split()))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        values = {"paper": self.paper, "ours": self.ours, "scale": self.scale}
        rest = f" ({self.scale})" if self.scale else ""
        text = f"Paper: {self.paper}. Here: {self.ours}{rest}."
        return {HEADLINE: values, "text/markdown": text, "text/plain": text}


@dataclass(frozen=True)
class Output:
    """One thing that a notebook shows."""

    kind: str  # picture | html | markdown | text
    content: str  # base64 of a picture (or SVG), HTML, Markdown, or text
    mime: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    caption: str = ""  # of a picture: the Markdown that follows it and begins in bold


@dataclass(frozen=True)
class Executed:
    """A notebook of the study, executed or not."""

    name: str  # fig03_sft_vs_rl
    place: str  # fig03
    title: str
    claim: str = ""  # Markdown
    executed: bool = False
    outputs: Sequence[Output] = ()
    headline: Headline | None = None
    provenance: str = ""  # Markdown
    parameters: Mapping[str, Any] = field(default_factory=dict)  # given for this run, other than the profile
    seconds: float | None = None
    end_time: str = ""

    @property
    def short_title(self) -> str:
        """The title without the label that it begins with (`Figure 3: ...`)."""
        label, colon, rest = self.title.partition(":")
        return rest.strip() if colon and label.strip() == story.label_of(self.place) else self.title


def read_study(copies: Path, sources: Path) -> dict[str, Executed]:
    """The notebooks of the study by place: executed copies from `copies`, otherwise titles from `sources`.

    Every figure and table of the paper is there even where no such notebook exists. A copy that cannot be read, for
    example one that was cut short, counts as not executed.
    """
    study = {}
    for path in sorted(sources.glob("*.ipynb")):
        study[story.place_of(path.stem)] = _read(path, executed=False)
    if study.pop("table", None):  # the source of all ten
        for spec in TABLES.values():
            place = story.place_of(spec.slug)
            title = f"Table {spec.number}: {spec.title}"
            study[place] = Executed(name=spec.slug, place=place, title=title, claim=spec.claim)
    for path in sorted(copies.glob("[!.]*.ipynb")):
        entry = _read(path, executed=True)
        if entry.executed:
            study[entry.place] = entry
    for place in (*story.PLACES, story.LEDGER, story.AUDIT):
        study.setdefault(place, Executed(name=place, place=place, title=story.label_of(place)))
    return study


def _read(path: Path, *, executed: bool) -> Executed:
    place = story.place_of(path.stem)
    entry = Executed(name=path.stem, place=place, title=story.label_of(place))
    try:
        book = json.loads(path.read_text(encoding="utf-8"))
        cells = [_cell(cell) for cell in book["cells"]]
        run = book["metadata"].get("papermill", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return entry
    title, claim = entry.title, ""
    if cells and cells[0]["type"] == "markdown":
        first, _, claim = cells[0]["source"].strip().partition("\n")
        title = clean.plain(first.lstrip("#").strip()) or title
    if not executed or run.get("exception"):
        return Executed(name=path.stem, place=place, title=title, claim=claim.strip())
    given = {name: value for name, value in (run.get("parameters") or {}).items() if name != "profile"}
    return Executed(
        name=path.stem,
        place=place,
        title=title,
        claim=claim.strip(),
        executed=True,
        outputs=_outputs(cells),
        headline=next((_headline(cell) for cell in cells if "headline" in cell["tags"]), None),
        provenance=_provenance(cells),
        parameters=given,
        seconds=run.get("duration") if isinstance(run.get("duration"), int | float) else None,
        end_time=str(run.get("end_time") or ""),
    )


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": cell["cell_type"],
        "tags": set(cell.get("metadata", {}).get("tags", [])),
        "source": _text(cell.get("source", "")),
        "outputs": cell.get("outputs", []),
    }


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _outputs(cells: Sequence[Mapping[str, Any]]) -> tuple[Output, ...]:
    """What the tagged cells show, in order; a Markdown cell directly above a tagged cell belongs to it."""
    found: list[Output] = []
    for above, cell in zip([None, *cells], cells, strict=False):
        if "report" not in cell["tags"]:
            continue
        if above and above["type"] == "markdown" and "report" not in above["tags"] and above is not cells[0]:
            found.append(Output("markdown", above["source"], "text/markdown"))
        if cell["type"] == "markdown":
            found.append(Output("markdown", cell["source"], "text/markdown"))
        found += [shown for shown in map(_output, cell["outputs"]) if shown]
    merged: list[Output] = []
    for shown in found:
        last = merged[-1] if merged else None
        captions = shown.kind == "markdown" and shown.content.lstrip().startswith("**")
        if captions and last is not None and last.kind == "picture" and not last.caption:
            merged[-1] = Output("picture", last.content, last.mime, last.metadata, caption=shown.content)
        else:
            merged.append(shown)
    return tuple(merged)


def _output(output: Mapping[str, Any]) -> Output | None:
    """The richest form of an output that the page can show."""
    if output.get("output_type") == "stream":
        shown = _text(output.get("text", "")) if output.get("name") == "stdout" else ""
        return Output("text", shown, "text/plain") if shown.strip() else None
    data = output.get("data") or {}
    for mime in ("image/png", "image/jpeg", "image/gif", "image/svg+xml"):
        if mime in data:
            metadata = (output.get("metadata") or {}).get(mime) or {}
            return Output("picture", _text(data[mime]), mime, metadata if isinstance(metadata, dict) else {})
    for mime, kind in (("text/html", "html"), ("text/markdown", "markdown"), ("text/plain", "text")):
        if mime in data and _text(data[mime]).strip():
            return Output(kind, _text(data[mime]), mime)
    return None


def _headline(cell: Mapping[str, Any]) -> Headline | None:
    for output in cell["outputs"]:
        values = (output.get("data") or {}).get(HEADLINE)
        if isinstance(values, dict) and {"paper", "ours"} <= values.keys():
            return Headline(values["paper"], values["ours"], values.get("scale", ""))
    return None


def _provenance(cells: Sequence[Mapping[str, Any]]) -> str:
    """The output of the cell tagged `provenance`; without one, the last output if it is such a line."""
    tagged = [cell for cell in cells if "provenance" in cell["tags"]]
    shown = [output for cell in tagged or cells[-1:] for output in map(_output, cell["outputs"]) if output]
    text = shown[-1].content if shown and shown[-1].kind == "markdown" else ""
    return text if tagged or text.startswith("*Provenance:*") else ""
