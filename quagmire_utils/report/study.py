"""The study as executed notebooks: the order of the paper, and title, claim, outputs, headline and origin of each.

A notebook shows by the tags of its cells what belongs on the page:

    (first cell, Markdown)   # Title, and below it the paper's claim
    report                   the outputs of this cell, and the Markdown cell directly above it
    provenance               one line of Markdown: where the numbers come from
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quagmire_utils.analysis.tables import TABLES
from quagmire_utils.report.clean import plain

KINDS = {"image/png": "picture", "text/html": "html", "text/markdown": "markdown", "text/plain": "text"}  # best first
HEADLINE = "application/vnd.quagmire.headline+json"
MATRIX = "application/vnd.quagmire.ledger+json"
SHORT = {"holds": "H", "fails": "F", "undecided": "U"}  # verdicts in a notebook's matrix

PLACES = (  # in the paper's order: the beginnings of the names of their notebooks
    *("fig01", "fig02", "fig03", "fig04", "fig05", "table01", "table02", "table03", "table04"),
    *("fig06", "fig07", "fig08", "fig09", "fig10"),
    *("table05", "table06", "table07", "table08", "table09", "table10"),
)
OVERVIEW = "overview"  # the first screen: the question, a picture, three findings
LEDGER = "claims"
OBJECTIONS = "objections"
AUDIT = "paper_audit"
BEYOND = (  # the first screen and the objections; what predicts, when; published numbers of real models
    *(OVERVIEW, OBJECTIONS, "when_pass_k_takes_over", "which_k", "predictors", "validation_sets"),
    *("real_models", "rl_is_worth_k_tries", "pass_at_k_from_few_samples"),
)


def place_of(notebook: str) -> str:
    """Return fig03 for fig03_sft_vs_rl; the name itself for a notebook that is no figure or table."""
    found = re.match(r"((?:fig|table)\d+)(?:_|$)", notebook)
    return found[1] if found else notebook


def label_of(place: str) -> str:
    """Return the paper's name for a place (Figure 3, Table 10), or the name of another notebook."""
    found = re.fullmatch(r"(fig|table)(\d+)", place)
    if not found:
        return place.replace("_", " ")
    return f"{'Figure' if found[1] == 'fig' else 'Table'} {int(found[2])}"


@dataclass(frozen=True)
class Headline:
    """The result of a figure or table in one value, the paper's and ours; shown in a notebook and in the docs."""

    paper: str  # the published value, for example "R² = 0.43"
    ours: str  # ours, with its interval
    scale: str = ""  # what ours rests on: family, number of candidates

    def __post_init__(self) -> None:
        """Make each value one line."""
        for name in ("paper", "ours", "scale"):
            object.__setattr__(self, name, " ".join(plain(getattr(self, name)).split()))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        rest = f" ({self.scale})" if self.scale else ""
        text = f"Paper: {self.paper}. Here: {self.ours}{rest}."
        return {HEADLINE: dict(vars(self)), "text/markdown": text, "text/plain": text}


@dataclass(frozen=True)
class Ledger:
    """The claims of the paper as a matrix (`claims.matrix`): a table in a notebook; on the page, with filters."""

    found: Mapping[str, Any]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        import pandas as pd

        names = [column["family"] or column["rung"] for column in self.found["columns"]]
        rows = []
        for row in self.found["rows"]:
            cells = [" ".join(f"{SHORT.get(r['verdict'], '–')} {r['value']}" for r in cell) for cell in row["cells"]]
            rows.append([row["places"], row["claim"] + " (trivial)" * bool(row["trivial"]), *cells])
        table = pd.DataFrame(rows, columns=["where", "claim", *names])
        return {MATRIX: dict(self.found), "text/html": table.to_html(index=False, border=0), "text/plain": str(table)}


@dataclass(frozen=True)
class Output:
    """One thing that a notebook shows."""

    kind: str  # picture | html | markdown | text
    content: str  # base64 of a PNG, HTML, Markdown, or text
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
    result: str = ""  # Markdown: the result in a sentence or two
    matrix: Mapping[str, Any] | None = None  # of the ledger
    provenance: str = ""  # Markdown
    parameters: Mapping[str, Any] = field(default_factory=dict)  # given for this run, without the profile
    seconds: float | None = None
    end_time: str = ""

    @property
    def short_title(self) -> str:
        """The title without the label that it begins with (`Figure 3: ...`)."""
        label, colon, rest = self.title.partition(":")
        return rest.strip() if colon and label.strip() == label_of(self.place) else self.title


def read_study(copies: Path, sources: Path) -> dict[str, Executed]:
    """Return the notebooks by place: executed copies from `copies`, else titles from `sources`, or the label.

    A copy that cannot be read, for example one that was cut short, counts as not executed.
    """
    places = (*PLACES, LEDGER, AUDIT, *BEYOND)
    study = {place: Executed(name=place, place=place, title=label_of(place)) for place in places}
    for path in sorted(sources.glob("*.ipynb")):
        study[place_of(path.stem)] = _read(path, executed=False)
    if study.pop("table", None):  # the source of all ten tables
        for spec in TABLES.values():
            place, title = place_of(spec.slug), f"Table {spec.number}: {spec.title}"
            study[place] = Executed(name=spec.slug, place=place, title=title, claim=spec.claim)
    for path in sorted(copies.glob("[!.]*.ipynb")):
        entry = _read(path, executed=True)
        if entry.executed:
            study[entry.place] = entry
    return study


def _read(path: Path, *, executed: bool) -> Executed:
    import nbformat

    known: dict[str, Any] = {"name": path.stem, "place": place_of(path.stem), "title": label_of(place_of(path.stem))}
    try:
        book = nbformat.read(path, as_version=4)
        cells, run = book.cells, book.metadata.get("papermill", {})
    except Exception:  # a torn file can raise anything
        return Executed(**known)
    if cells and cells[0].cell_type == "markdown":
        first, _, claim = cells[0].source.strip().partition("\n")
        known |= {"title": plain(first.lstrip("#").strip()) or known["title"], "claim": claim.strip()}
    if not executed or run.get("exception"):
        return Executed(**known)
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    headline, matrix = (_bundle(outputs, mime) for mime in (HEADLINE, MATRIX))
    shown = ((output.get("data") or {}, output.get("metadata") or {}) for output in outputs)
    said = (data for data, metadata in shown if HEADLINE in data or "quagmire" in metadata)
    duration = run.get("duration")
    return Executed(
        **known,
        executed=True,
        outputs=_outputs(cells),
        headline=Headline(**headline) if headline else None,
        result=str(next(said, {}).get("text/markdown", "")),
        matrix=matrix,
        provenance=_provenance(cells),
        parameters={name: value for name, value in (run.get("parameters") or {}).items() if name != "profile"},
        seconds=duration if isinstance(duration, int | float) else None,
        end_time=str(run.get("end_time") or ""),
    )


def _bundle(outputs: Sequence[Mapping[str, Any]], mime: str) -> dict[str, Any] | None:
    """Return what is first shown under a type of ours."""
    found = (output["data"][mime] for output in outputs if mime in (output.get("data") or {}))
    return next((value for value in found if isinstance(value, dict)), None)


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return cell.metadata.get("tags", [])


def _outputs(cells: Sequence[Mapping[str, Any]]) -> tuple[Output, ...]:
    """Return what the tagged cells show, in order, with the Markdown cell directly above each."""
    found: list[Output] = []
    for i, cell in enumerate(cells):
        if "report" not in _tags(cell):
            continue
        with_above = i > 1 and "report" not in _tags(cells[i - 1])
        text = [one for one in cells[i - with_above : i + 1] if one.cell_type == "markdown"]
        for shown in [*(Output("markdown", one.source) for one in text), *_shown(cell)]:
            captions = shown.kind == "markdown" and shown.content.lstrip().startswith("**")
            if captions and found and found[-1].kind == "picture" and not found[-1].caption:
                found[-1] = dataclasses.replace(found[-1], caption=shown.content)
            else:
                found.append(shown)
    return tuple(found)


def _shown(cell: Mapping[str, Any]) -> list[Output]:
    """Return the outputs of a cell, each in the richest form that the page can show."""
    found: list[Output] = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            found += [Output("text", output.text)] if output.name == "stdout" and output.text.strip() else []
            continue
        data, metadata = output.get("data") or {}, output.get("metadata") or {}
        mime = next((mime for mime in KINDS if str(data.get(mime, "")).strip()), None)
        if mime is not None:
            own = metadata.get(mime)
            found.append(Output(KINDS[mime], str(data[mime]), own if isinstance(own, dict) else {}))
    return found


def _provenance(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the output of the cell tagged `provenance`; without one, the last output if it is such a line."""
    tagged = [cell for cell in cells if "provenance" in _tags(cell)]
    shown = [output for cell in tagged or cells[-1:] for output in _shown(cell)]
    text = shown[-1].content if shown and shown[-1].kind == "markdown" else ""
    return text if tagged or text.startswith("*Provenance:*") else ""
