"""The claims of one place in a line: for the README's table of reproduction."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quagmire_utils.analysis.claims.claim import Claim
from quagmire_utils.analysis.claims.entries import ENTRIES
from quagmire_utils.core.errors import ParameterError

DECIDED = ("holds", "does not hold", "undecided")


def headline(claims: Sequence[Claim], name: str = "") -> tuple[str, str, str]:
    """What the paper claims at a place, what our records say of it, and on what that rests: three lines of plain text.

    Of the claims only that called `name` is told, for each family that it is made of ("", or where the claims leave it
    out: the first one); the others stand in the place's notebook. Raises ParameterError where no claim is called so.
    """
    if name and name not in {entry.name for entry in ENTRIES}:
        raise ParameterError(f"name must be one of {', '.join(dict.fromkeys(c.name for c in claims))}, not {name!r}")
    if not claims:
        return "-", "-", ""
    told = [claim for claim in claims if claim.name == name]
    told = told or [claim for claim in claims if claim.name == claims[0].name]
    first = told[0]
    paper = first.claim + ("" if math.isnan(first.paper) else f" ({first.number(first.paper)})")
    ours, scale = [], []
    for claim in told:
        whose = claim.family or claim.model
        if claim.verdict not in DECIDED:
            ours.append(f"{whose}: {claim.verdict}")
            continue
        interval = f" [{claim.interval}]" if claim.interval else ""
        bound = f", bound {claim.number(claim.bound)}" if claim.bound else ""
        ours.append(f"{claim.verdict}: {claim.number(claim.value)}{interval}{bound}")
        scale.append(f"{whose}, n = {claim.size}")
    return paper, "; ".join(ours), "; ".join(scale)
