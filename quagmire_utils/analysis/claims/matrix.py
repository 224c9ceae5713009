"""The ledger as a matrix: a row per claim in the paper's order, a column per rung of evidence and family.

shown = matrix({"micro models": all_results(frame, records), "small real model": []})
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from quagmire_utils.analysis.claims.ledger import Claim, Result, all_claims, order_of_place

MOST_COLUMNS = 3  # families of a rung that have a column each; more of them share one


def matrix(rungs: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Arrange results as plain data, for the page and the notebook.

    rungs: results by name of the rung, in the order of the columns. A rung of many families has one column, whose cells
    hold several results; a rung without results has one empty column. Claims in the same words share a row if they are
    about different models. Returns columns (rung, family), and rows: claim, quote, places, unit, trivial, and cells in
    the order of the columns, each a list of results (family, verdict, value, interval, facts).
    """
    columns: list[tuple[str, list[str]]] = []
    for rung, results in rungs.items():
        families = list(dict.fromkeys(result.family or result.model for result in results))
        each = 0 < len(families) <= MOST_COLUMNS
        columns += [(rung, [family]) for family in families] if each else [(rung, families)]
    rows = []
    for claims in _rows():
        ids = {claim.id for claim in claims}
        cells = [
            [_cell(r) for r in rungs[rung] if r.claim.id in ids and (r.family or r.model) in families]
            for rung, families in columns
        ]
        first, places = claims[0], dict.fromkeys(place for claim in claims for place in claim.places)
        row = {"claim": first.claim, "quote": first.quote, "places": ", ".join(places), "unit": first.unit}
        rows.append(row | {"trivial": first.trivial, "cells": cells})
    names = [(rung, families[0] if len(families) == 1 else "") for rung, families in columns]
    return {"columns": [{"rung": rung, "family": family} for rung, family in names], "rows": rows}


def _rows() -> list[list[Claim]]:
    """Return the claims in the paper's order, those that share a row together."""
    rows: list[list[Claim]] = []
    for claim in sorted(all_claims(), key=lambda claim: min(map(order_of_place, claim.places))):
        alike = [row for row in rows if row[0].claim == claim.claim and not _models(row) & _models([claim])]
        (alike[0] if alike else rows).append(claim if alike else [claim])
    return rows


def _models(claims: Sequence[Claim]) -> set[str]:
    return {model for claim in claims for models in claim.places.values() for model in models}


def _cell(result: Result) -> dict[str, str]:
    claim, estimate = result.claim, result.estimate
    known = not math.isnan(estimate.value)
    facts = [
        estimate.statistic,
        f"claimed {claim.side} {result.amount(claim.bound)}",
        f"n = {result.size}",
        "" if math.isnan(result.paper) else f"paper {result.amount(result.paper)}",
    ]
    return {
        **{"family": result.family or result.model, "verdict": result.verdict},
        "value": result.amount(estimate.value).removesuffix(f" {claim.unit}") if known else "",
        "interval": result.interval.removesuffix(f" {claim.unit}"),
        "facts": "; ".join(filter(None, facts)) if known else "",
    }
