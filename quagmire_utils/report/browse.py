"""Answers to leaf through: HTML with a few right, wrong and undecided ones, for any browser and without a kernel.

    browse_answers(store, problems, each=3)          # details/summary, one answer a fold
    show_audit(audit_store(store, problems))             # what two graders disagree on, as a table

Responses are hostile input, and so are questions and names from somebody's .jsonl file: all of it is escaped and shown
as plain text, never as markup, mathematics or a link. There is no script and no style sheet in what is returned.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from quagmire_utils.evaluation.store import KEYS

if TYPE_CHECKING:
    from quagmire_utils.data import Problem
    from quagmire_utils.evaluation.store import SampleStore

KINDS = {"right": ("correct",), "wrong": ("wrong",), "undecided or silent": ("timeout", "error", "no_answer")}
SHOWN_CHARACTERS = 8000  # of a long answer: its beginning and its end
SHOWN_EXTRACTED = 80
SHOWN_ENDING = 200  # of an answer in the audit's list
SHOWN_ROWS = 30  # of the audit's list
_PLAIN = "tex2jax_ignore mathjax_ignore"  # the classes that keep MathJax out
_PRE = "white-space:pre-wrap;overflow-wrap:anywhere;margin:0.3em 0;padding:0.5em;background:#f6f6f6;color:#222;"
_PRE += "max-height:22em;overflow:auto"
_NAME = "margin:0.4em 0 0;font-size:0.8em;opacity:0.75"
_FOLD = "margin:0.25em 0 0.25em 1.2em"
_CELL = "text-align:left;vertical-align:top;padding:0.2em 0.8em 0.2em 0;max-width:24em"
_AUDIT = ("disagreement", "answer", "gold", "first grader", "second grader", "how the answer ends")


def plain(text: object, most: int = SHOWN_CHARACTERS) -> str:
    """Any text as HTML that shows it and does nothing: escaped, `most` characters and a note of what is left out.

    Control characters, characters that reverse the reading direction and lone surrogates are shown by their codes.
    """
    text = "" if text is None or text is pd.NA or text != text else str(text)
    if len(text) > most:
        half = most // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half:,} characters ...]\n{text[-half:]}"
    text = text.encode("utf-8", "backslashreplace").decode()
    shown = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
    return html.escape(shown, quote=True)


def browse_answers(store: SampleStore, problems: Mapping[str, Sequence[Problem]], each: int = 3) -> str:
    """HTML with up to `each` answers of each kind from every benchmark, of different problems spread over it.

    Kinds: right; wrong; undecided (timeout, error) or silent (no answer). The texts are read one part of the store at a
    time, and only of parts that hold a chosen answer.
    """
    known = {(name, problem.id): problem for name, some in problems.items() for problem in some}
    graded = store.read([*KEYS, "verdict"])
    mine = [key in known for key in zip(graded["benchmark"], graded["problem"], strict=True)]
    graded = graded[pd.Series(mine, index=graded.index, dtype=bool)]
    chosen = {kind: _spread(graded[graded["verdict"].isin(verdicts)], each) for kind, verdicts in KINDS.items()}
    texts = _texts(store, pd.concat(chosen.values()))
    sections = []
    for kind, verdicts in KINDS.items():
        count = int(graded["verdict"].isin(verdicts).sum())
        folds = [
            _fold(row, known[row.benchmark, row.problem])
            for key in chosen[kind][KEYS].itertuples(index=False, name=None)
            if (row := texts.get(key)) is not None
        ]
        head = f"<b>{kind}</b>: {count:,} of {len(graded):,} answers" + (f", {len(folds)} shown" if folds else "")
        folds[:1] = [fold.replace("<details", "<details open", 1) for fold in folds[:1]]  # to see what there is
        opened = " open" if folds else ""
        sections.append(f"<details{opened}><summary>{head}</summary>\n" + "\n".join(folds) + "\n</details>")
    return "\n".join(sections)


def show_audit(disagreements: pd.DataFrame, rows: int = SHOWN_ROWS) -> str:
    """Return HTML that shows how often the two graders disagree, and the first `rows` disagreements in full."""
    judged, differing = (disagreements.attrs.get(name) for name in ("samples", "disagreements"))
    if judged is None:
        head = f"{len(disagreements):,} disagreements."
    else:
        undecided = disagreements.attrs.get("undecided", 0)
        compared = judged - undecided
        agreement = f" ({100 * (compared - differing) / compared:.2f} % agree)" if compared else ""
        head = f"A second, independent grader judges {differing:,} of {compared:,} answers otherwise{agreement}."
        if undecided:
            head += f" About {undecided:,} more it cannot tell."
    not_math = disagreements.attrs.get("not_math")
    if not_math:
        head += f" {not_math:,} of other domains were not put before it: it reads mathematics alone."
    if disagreements.empty:
        return f"<p>{head}</p>"
    shown = disagreements.head(rows)
    if len(shown) < len(disagreements):
        head += f" The first {len(shown)} of {len(disagreements):,} distinct cases:"
    names = "".join(f"<th style='{_CELL}'>{name}</th>" for name in _AUDIT)
    lines = "\n".join(_audit_row(row) for row in shown.to_dict("records"))
    return f"<p>{head}</p>\n<div style='overflow-x:auto'><table><tr>{names}</tr>\n{lines}\n</table></div>"


def _audit_row(row: dict[str, object]) -> str:
    """A row of what `evaluation.audit.audit_store` returns, in the columns `_AUDIT`."""
    times = row.get("samples", 1)
    cells = [
        plain(row.get("kind", "")) + (f"<br>{plain(times)} answers alike" if times != 1 else ""),
        f"{_code(row.get('benchmark'))}<br>{_code(row.get('problem'))} #{plain(row.get('index', ''))}",
        _code(row.get("gold")),
        f"{plain(row.get('verdict', '')).replace('_', ' ')}<br>{_code(row.get('extracted'))}",
        f"{plain(row.get('second_verdict', '')).replace('_', ' ')}<br>{_code(row.get('second_extracted'))}",
        _code(row.get("ending"), SHOWN_ENDING),
    ]
    return "<tr>" + "".join(f"<td style='{_CELL}'>{cell}</td>" for cell in cells) + "</tr>"


def _spread(rows: pd.DataFrame, each: int) -> pd.DataFrame:
    """Up to `each` rows of every benchmark, of different problems, from its beginning to its end."""
    one = rows.drop_duplicates(["benchmark", "problem"])
    parts = []
    for _, part in one.groupby("benchmark", sort=False):
        count = min(each, len(part))
        parts.append(part.iloc[[i * len(part) // count for i in range(count)]])
    return pd.concat(parts) if parts else one


def _texts(store: SampleStore, wanted: pd.DataFrame) -> dict[tuple[str, str, int], object]:
    """The wanted samples by key, with their texts."""
    keys = set(wanted[KEYS].itertuples(index=False, name=None))
    found: dict[tuple[str, str, int], object] = {}
    for part in store.parts():
        if len(found) == len(keys):
            break
        light = store.read_part(part, KEYS)
        if light is None or not keys.intersection(light[KEYS].itertuples(index=False, name=None)):
            continue
        rows = store.read_part(part)
        for row in [] if rows is None else rows.itertuples(index=False):
            if (row.benchmark, row.problem, row.index) in keys:
                found.setdefault((row.benchmark, row.problem, row.index), row)
    return found


def _fold(row: object, problem: Problem) -> str:
    """One answer behind its summary."""
    cut = ", cut off at the token limit" if row.finish_reason == "length" else ""
    facts = f"{row.verdict.replace('_', ' ')}, {row.tokens:,} tokens{cut}"
    answers = f"extracted {_code(row.extracted)}, gold {_code(problem.answer)}"
    name = f"{_code(row.benchmark)} {_code(row.problem)} #{int(row.index)}"
    return (
        f"<details style='{_FOLD}'><summary>{name}: {facts}; {answers}</summary>\n"
        f"{_block(problem.question, 'question')}\n{_block(row.text, 'answer')}\n</details>"
    )


def _code(text: object, most: int = SHOWN_EXTRACTED) -> str:
    shown = plain(text, most)
    return f"<code class='{_PLAIN}' style='overflow-wrap:anywhere'>{shown}</code>" if shown else "nothing"


def _block(text: object, name: str) -> str:
    return f"<p style='{_NAME}'>{name}</p><pre class='{_PLAIN}' style='{_PRE}'>{plain(text)}</pre>"
