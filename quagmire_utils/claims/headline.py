"""The claims of one place in a line: for the README's table of reproduction."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quagmire_utils.claims.claim import Claim

DECIDED = ("holds", "does not hold", "undecided")


def headline(claims: Sequence[Claim]) -> tuple[str, str, str]:
    """What the paper claims at a place, what our records say of it, and on what that rests: three lines of plain text.

    Only the place's first claim (for each family that it is made of) is told; the others stand in its notebook.
    """
    if not claims:
        return "-", "-", ""
    first = claims[0]
    told = [claim for claim in claims if claim.name == first.name and claim.claim == first.claim]
    paper = first.claim + ("" if math.isnan(first.paper) else f" ({first.number(first.paper)})")
    ours, scale = [], []
    for claim in told:
        whose = claim.family or claim.model
        if claim.verdict not in DECIDED:
            ours.append(f"{whose}: {claim.verdict}")
            continue
        interval = f" [{claim.interval}]" if claim.interval else ""
        ours.append(f"{claim.verdict}: {claim.number(claim.value)}{interval}")
        scale.append(f"{whose}, n = {claim.size}")
    return paper, "; ".join(ours), "; ".join(scale)
