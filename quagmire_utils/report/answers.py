"""Answers to browse: HTML with a few right, wrong and undecided ones, for any browser and without a kernel.

    browse_answers(store, problems, each=3)          # details/summary, one answer each
    show_audit(audit_store(store, problems))         # what two graders disagree on, as a table

Responses are hostile input, and so are questions and names from a user's .jsonl file: all of it is escaped and shown as
plain text, never as markup, mathematics or a link.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from quagmire_utils.data import Problem
from quagmire_utils.evaluation.store import KEYS, SampleStore
from quagmire_utils.report.clean import environment

KINDS = {"right": ("correct",), "wrong": ("wrong",), "undecided or no answer": ("timeout", "error", "no_answer")}
SHOWN_ROWS = 30  # of the audit's list


def browse_answers(store: SampleStore, problems: Mapping[str, Sequence[Problem]], each: int = 3) -> str:
    """Return HTML with up to `each` answers of each kind from every benchmark, of different problems spread over it.

    Kinds: right; wrong; undecided (timeout, error) or no answer.
    """
    known = {(name, problem.id): problem for name, some in problems.items() for problem in some}
    graded = store.read([*KEYS, "verdict"])
    graded = graded[pd.MultiIndex.from_frame(graded[KEYS[:2]]).isin(list(known))]
    chosen = {kind: _spread(graded[graded["verdict"].isin(verdicts)], each) for kind, verdicts in KINDS.items()}
    texts = full_rows(store, pd.concat(chosen.values()))
    kinds = {}
    for kind, verdicts in KINDS.items():
        keys = [key for key in chosen[kind][KEYS].itertuples(index=False, name=None) if key in texts]
        rows = [(texts[key], known[key[0], key[1]]) for key in keys]
        kinds[kind] = int(graded["verdict"].isin(verdicts).sum()), rows
    return str(environment().get_template("answers.html.j2").module.browse(kinds, len(graded)))


def show_audit(disagreements: pd.DataFrame, rows: int = SHOWN_ROWS) -> str:
    """Return HTML that shows how often the two graders disagree, and the first `rows` disagreements in full.

    disagreements: of `audit_store`.
    """
    parts, shown = environment().get_template("answers.html.j2").module, disagreements.head(rows).to_dict("records")
    return str(parts.audit(disagreements.attrs, shown, len(disagreements)))


def _spread(rows: pd.DataFrame, each: int) -> pd.DataFrame:
    """Return up to `each` rows of every benchmark, of different problems, from its beginning to its end."""
    one = rows.drop_duplicates(["benchmark", "problem"])
    parts = [part for _, part in one.groupby("benchmark", sort=False)]
    return pd.concat(
        [part.iloc[np.arange(min(each, len(part))) * len(part) // min(each, len(part))] for part in parts] or [one]
    )


def full_rows(store: SampleStore, wanted: pd.DataFrame) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return the samples with the keys of `wanted`, by key, with their texts."""
    keys = set(wanted[KEYS].itertuples(index=False, name=None))
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for part in store.parts():  # texts are read only from parts that hold a wanted sample
        light = store.read_part(part, KEYS)
        if light is None or not keys.difference(found).intersection(light[KEYS].itertuples(index=False, name=None)):
            continue
        rows = store.read_part(part)
        for row in [] if rows is None else rows.to_dict("records"):
            key = tuple(row[name] for name in KEYS)
            if key in keys:
                found.setdefault(key, row)
    return found
