"""Testing the entries on records: all of them, those of a figure or table, and what is said about them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace

import pandas as pd

from quagmire_utils.analysis.claims.claim import CONFIDENCE, VERDICTS, Claim, Estimate, verdict
from quagmire_utils.analysis.claims.entries import ENTRIES, MODELS
from quagmire_utils.analysis.claims.evidence import Entry, Evidence, gather
from quagmire_utils.analysis.records import check_family, check_frame
from quagmire_utils.analysis.tables import count_verdicts
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import Records

OUTCOMES = ("outcome", "outcome_last")
DECIDABLE = VERDICTS[:3]


def about(
    frame: pd.DataFrame,
    place: str,
    *,
    records: Records | None = None,
    outcome: str = "outcome",
    family: str | Sequence[str] = "all",
    scenario: str = "",
) -> list[Claim]:
    """The claims that the paper makes at a place ("Fig. 4", "table05", "Abstract"), tested; [] where it makes none.

    frame: from `candidate_frame`. records: the same records, for the noise between RL runs and the losses on
    candidates' own traces; without them that noise comes from the runs' last checkpoints (`outcome_last_std`) and those
    losses are not known. outcome: "outcome" or "outcome_last". family: only claims about these, each a model of the
    paper or one of our families. scenario: only claims that go for candidates of it ("": all). A model of the paper
    that was not run has the verdict "not run"; one that several of our families stand for has a claim for each. Raises
    ParameterError for a family that neither the records nor the paper know.
    """
    check_frame(frame)
    wanted = _place(place)
    asked = [family] if isinstance(family, str) else list(family)
    for name in asked:
        if name != "all":
            check_family(frame, name)
    ours = dict(zip(frame["family"], frame["stands_for"], strict=True))
    named = set(asked) | {ours.get(name, name) for name in asked}
    chosen = [
        (entry, model)
        for entry in ENTRIES
        for places, models in entry.places.items()
        if wanted in _places(places)
        for model in MODELS
        if model in models and named & {"all", model} and scenario in ("", entry.scenario or scenario)
    ]
    tested = [claim for claim, _ in _test(frame, chosen, records, outcome)]
    return [claim for claim in tested if not claim.family or {"all", claim.model, claim.family} & set(asked)]


def ledger(frame: pd.DataFrame, records: Records | None = None, *, outcome: str = "outcome") -> pd.DataFrame:
    """Every claim of the paper for every family that it is made of, in the paper's order; the columns are `Claim`'s.

    together: the verdict if all that could be tested are to be right at once with 95 % (Bonferroni); "" where a claim
    could not be tested.
    """
    chosen = [(entry, model) for entry in ENTRIES for model in MODELS if entry.where(model)]
    tested = _test(frame, chosen, records, outcome)
    several = 1 - (1 - CONFIDENCE) / max(1, sum(claim.verdict in DECIDABLE for claim, _ in tested))
    rows = []
    for claim, estimate in tested:
        if claim.verdict in DECIDABLE:
            claim = replace(claim, together=verdict(*estimate.interval(several), claim.bound, below=claim.below))
        rows.append({**asdict(claim), "text": claim.text})
    return pd.DataFrame(rows).sort_values(
        "where", key=lambda where: where.map(_order), kind="stable", ignore_index=True
    )


def describe(claims: Sequence[Claim]) -> str:
    """The claims as a Markdown list; one sentence for each model that was not run."""
    if not claims:
        return "The paper makes no claim here about what was chosen, so none is tested."
    lines = [f"- {claim.text}" for claim in claims if claim.verdict != "not run"]
    missing = dict.fromkeys(claim.model for claim in claims if claim.verdict == "not run")
    lines += [f"- {model} was not run at this profile, so nothing is said about it." for model in missing]
    return "\n".join(lines)


def summarize(table: pd.DataFrame) -> str:
    """What a ledger says as a whole, in Markdown: how many claims hold, how sure that is, which hold and which fail."""
    tested = table[table["verdict"].isin(DECIDABLE)]
    lines = [f"**{len(table)} claims, each for one family: {count_verdicts(table['verdict'], VERDICTS)}.**"]
    if tested.empty:
        return "\n\n".join([*lines, "Nothing that was run at this profile tests a claim of the paper."])
    decided = tested[tested["verdict"] != "undecided"]
    firm = int((decided["together"] == decided["verdict"]).sum())
    lines.append(
        f"{len(tested)} intervals were drawn, each to hold the truth with {100 * CONFIDENCE:.0f} %, so about "
        f"{(1 - CONFIDENCE) * len(tested):.1f} of them may be expected not to. Widened so that all hold at once "
        f"(Bonferroni, {100 * (1 - (1 - CONFIDENCE) / len(tested)):.2f} % each), {firm} of the {len(decided)} decided "
        "verdicts stay."
    )
    holds, fails, open_ones = (table[table["verdict"] == word] for word in DECIDABLE)
    for head, part in (("Holds here:", holds), ("Does not hold here:", fails)):
        if len(part):
            lines.append(f"{head}\n\n" + "\n".join(f"- {text}" for text in part["text"]))
    if len(open_ones):
        named = (f"- {row.where}, {row.family}: {row.claim}" for row in open_ones.itertuples())
        lines.append("Undecided, as no interval lies on one side alone:\n\n" + "\n".join(named))
    return "\n\n".join(lines)


def caption(table: pd.DataFrame, profile: str) -> str:
    """What the picture of a ledger shows."""
    tested = int(table["verdict"].isin(DECIDABLE).sum())
    families = ", ".join(dict.fromkeys(family for family in table["family"] if family)) or "none"
    return (
        f"**The ledger of claims** (profile {profile}, measured; families: {families}). {tested} of {len(table)} "
        f"claims could be tested. Each line is a statistic with its {100 * CONFIDENCE:.0f} % interval, shifted by the "
        "claim's bound and turned so that the right of zero is what the paper claims; an interval across zero decides "
        "nothing. Intervals that go on beyond the axis end in an arrow."
    )


def show_ledger(table: pd.DataFrame) -> pd.DataFrame:
    """The ledger as a person reads it: text alone; what each interval holds is in the ledger's `noise`."""
    rows = []
    for row in table.itertuples():
        claim = Claim(**{name: getattr(row, name) for name in Claim.__dataclass_fields__})
        known = not math.isnan(claim.value)
        rows.append(
            {
                "where": f"{claim.where}: {claim.family or claim.model}",
                "claim": claim.claim,
                "verdict": claim.verdict,
                "statistic": claim.statistic if known else "",
                "value, 95 % interval": f"{claim.number(claim.value)} ({claim.interval or 'none'})" if known else "",
                "the claim says": f"{'below' if claim.below else 'above'} {claim.number(claim.bound)}",
                "paper": "" if math.isnan(claim.paper) else claim.number(claim.paper),
                "n": claim.size if claim.verdict != "not run" else "",
            }
        )
    return pd.DataFrame(rows)


def claim_from(entry: Entry, estimate: Estimate | None, model: str, family: str = "") -> Claim:
    """The claim of an entry with our estimate for a model of the paper (None: not run)."""
    settings = {
        "where": entry.where(model),
        "claim": entry.claim,
        "paper": entry.published.get(model, math.nan),
        "name": entry.name,
        "family": family,
        "model": model,
        "quote": entry.quote,
        "unit": entry.unit,
        "bound": entry.bound,
        "below": entry.below,
    }
    if estimate is None:
        return Claim(**settings, statistic="", value=math.nan, low=math.nan, high=math.nan, n=0, verdict="not run")
    low, high = estimate.interval(CONFIDENCE)
    return Claim(
        **settings,
        statistic=estimate.statistic,
        value=estimate.value,
        low=low,
        high=high,
        n=estimate.n,
        noise=estimate.noise,
        counted=estimate.counted,
        verdict="too few candidates"
        if math.isnan(estimate.value)
        else verdict(low, high, entry.bound, below=entry.below),
    )


def _test(
    frame: pd.DataFrame, chosen: Sequence[tuple[Entry, str]], records: Records | None, outcome: str
) -> list[tuple[Claim, Estimate | None]]:
    if outcome not in OUTCOMES:
        raise ParameterError(f"outcome must be one of {', '.join(OUTCOMES)}, not {outcome!r}")
    check_frame(frame, ["selection", "scenario", "k", "pass1", "pass_k", "gen_loss", "n_runs", outcome])
    evidence: dict[str, list[Evidence]] = {}
    for model in dict.fromkeys(model for _, model in chosen):
        families = frame.loc[frame["stands_for"] == model, "family"].unique()
        found = [gather(frame, family, records, outcome) for family in families]
        evidence[model] = [one for one in found if one is not None]
    results: list[tuple[Claim, Estimate | None]] = []
    for entry, model in chosen:
        if not evidence[model]:
            results.append((claim_from(entry, None, model), None))
        for one in evidence[model]:
            estimate = entry.test(one)
            results.append((claim_from(entry, estimate, model, one.family), estimate))
    return results


def _place(text: str) -> str:
    """ "Figure 4", "fig04", "Fig. 4" -> "fig 4"; "Sec. 3.1" -> "sec 3.1"; other words in lower case."""
    match = re.fullmatch(r"(fig(?:ure)?|tab(?:le)?|sec(?:tion)?)s?\.?\s*0*([\d.]+)", text.strip().lower())
    return f"{match[1][:3]} {match[2]}" if match else text.strip().lower()


def _places(named: str) -> list[str]:
    """A place of an entry, which may name several figures ("Figs. 4, 10")."""
    kind, _, numbers = named.partition(" ")
    return [_place(f"{kind} {number.strip()}") for number in numbers.split(",")] if numbers else [_place(named)]


def _order(where: str) -> tuple[int, float]:
    """Abstract and sections first, then figures, then tables."""
    number = re.search(r"\d+(\.\d+)?", where)
    kinds = {"Abstract": 0, "Introduction": 1, "Sec.": 2, "Fig.": 3, "Figs.": 3, "Table": 4}
    return kinds[where.split()[0].rstrip(",")], float(number[0]) if number else 0.0
