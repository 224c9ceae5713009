"""The claims of claims.yaml, tested on records: all of them (`ledger`), or those of a figure or table (`about`)."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from quagmire_utils.analysis.claims.evidence import Estimate, Evidence, gather
from quagmire_utils.analysis.claims.statistics import STATISTICS, published_gain
from quagmire_utils.analysis.records import check_family, check_frame
from quagmire_utils.analysis.tables import verdict
from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import Records

FILE = Path(__file__).resolve().parents[1] / "claims.yaml"
CONFIDENCE = 0.95
OUTCOMES = ("outcome", "outcome_last")
DECIDABLE = ("holds", "fails", "undecided")
VERDICTS = (*DECIDABLE, "too few candidates", "not run")
Model = Literal["Llama3-8B-Instruct", "Mistral-NeMo-12B-Instruct", "Qwen3-4B-base"]


class Claim(BaseModel):
    """One claim of the paper; claims.yaml documents the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    places: dict[str, tuple[Model, ...]]
    claim: str
    quote: str
    statistic: str
    arguments: dict[str, Any] = {}
    side: Literal["above", "below"]
    bound: float = 0.0
    unit: Literal[
        "points", "nats", "correlation", "share", "R²", "difference of rank correlations", "difference of R²"
    ] = "points"
    paper: str = ""
    scenario: Literal["", "dataset", "instance", "source"] = ""

    @model_validator(mode="after")
    def _check_statistic(self) -> Claim:
        if self.statistic not in STATISTICS:
            raise ValueError(f"{self.id}: statistic must be one of {', '.join(STATISTICS)}, not {self.statistic}")
        try:
            inspect.signature(STATISTICS[self.statistic]).bind(None, **self.arguments)
        except TypeError as error:
            raise ValueError(f"{self.id}: arguments of {self.statistic}: {error}") from None
        return self

    def where(self, model: str) -> str:
        """Return the places where the paper makes the claim about this model."""
        return ", ".join(place for place, models in self.places.items() if model in models)

    def published(self, model: str) -> float:
        """Return the number that the paper prints for this model; NaN if there is none."""
        if self.paper:
            return float(paper.claims().set_index("name").loc[self.paper, "value"])
        return published_gain(model=model, **self.arguments) if "table" in self.arguments else math.nan

    def test(self, evidence: Evidence) -> Estimate:
        """Compute the statistic on the candidates of one family."""
        return STATISTICS[self.statistic](evidence, **self.arguments)


@cache
def all_claims() -> tuple[Claim, ...]:
    """Read claims.yaml."""
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))["claims"]
    return tuple(Claim.model_validate(entry) for entry in entries)


@dataclass(frozen=True)
class Result:
    """A claim tested on one of our families. The fields are the columns of the ledger."""

    where: str  # in the paper
    claim: str
    statistic: str
    value: float
    low: float
    high: float
    n: int
    paper: float  # the published value; NaN if none is printed
    verdict: str  # one of VERDICTS
    name: str = ""  # the claim's id
    family: str = ""  # ours
    model: str = ""  # the paper's, which our family stands for
    quote: str = ""
    unit: str = ""
    noise: str = ""  # what the interval covers
    counted: str = "candidates"  # what n counts
    bound: float = 0.0
    below: bool = False  # the claim holds below the bound, else above
    together: str = ""  # the verdict if all claims of a ledger are to be right at once

    @property
    def text(self) -> str:
        """The result in one sentence of Markdown."""
        head = f"{self.where}, {self.family or self.model}, “{self.claim}”"
        if self.verdict == "not run":
            return f"{head}: **not run**."
        if self.verdict == "too few candidates":
            return f"{head}: **too few {self.counted}** ({self.n})."
        facts = [f"{self.statistic}: {amount(self.value, self.unit)}"]
        facts += [f"95 % interval {self.interval}"] if self.interval else []
        facts += [f"claimed {'below' if self.below else 'above'} {amount(self.bound, self.unit)}"] if self.bound else []
        facts += [f"n = {self.size}"]
        facts += [] if math.isnan(self.paper) else [f"paper {amount(self.paper, self.unit)}"]
        return f"{head}: **{self.verdict}** at this scale ({', '.join(facts)})."

    @property
    def interval(self) -> str:
        """Both ends of the 95 % interval; empty if there is none."""
        if math.isnan(self.low):
            return ""
        low = amount(self.low, self.unit).removesuffix(" points").removesuffix(" nats")
        return f"{low} to {amount(self.high, self.unit)}"

    @property
    def size(self) -> str:
        """What the claim was tested on: `4 sets of examples`."""
        first, _, rest = self.counted.partition(" ")
        return f"{self.n} {first.removesuffix('s') if self.n == 1 else first} {rest}".strip()


def amount(value: float, unit: str) -> str:
    """Format a value in the unit of a claim."""
    if math.isnan(value):
        return "undefined"
    if unit == "points":
        return f"{100 * value:+.1f} points"
    if unit == "nats":
        return f"{value:+.3f} nats"
    return f"{value:{'+' if unit.startswith('difference') else ''}.2f}"


# --- testing ----------------------------------------------------------------------------------------------------------


def about(
    frame: pd.DataFrame,
    place: str,
    *,
    records: Records | None = None,
    outcome: str = "outcome",
    family: str | Sequence[str] = "all",
    scenario: str = "",
) -> list[Result]:
    """Test the claims that the paper makes at a place ("Fig. 4", "table05", "Abstract"); [] if it makes none there.

    frame: from `candidate_frame`. records: the same records, for the noise between RL runs and the losses on the
    candidates' own traces. outcome: "outcome" or "outcome_last". family: only these, each a model of the paper or one
    of our families. scenario: leave out claims that are about another one. A model that was not run has the verdict
    "not run"; if several families stand for a model, each is tested. Raises ParameterError for an unknown family.
    """
    check_frame(frame)
    asked = [family] if isinstance(family, str) else list(family)
    for name in asked:
        if name != "all":
            check_family(frame, name)
    ours = dict(zip(frame["family"], frame["stands_for"], strict=True))
    models = {ours.get(name, name) for name in asked}
    wanted = _place(place)
    chosen = [
        (claim, model)
        for claim in all_claims()
        for places, mentioned in claim.places.items()
        if wanted in _places(places) and scenario in ("", claim.scenario or scenario)
        for model in paper.MODELS
        if model in mentioned and models & {"all", model}
    ]
    tested = [result for result, _ in _test(frame, chosen, records, outcome)]
    return [result for result in tested if not result.family or {"all", result.model, result.family} & set(asked)]


def ledger(frame: pd.DataFrame, records: Records | None = None, *, outcome: str = "outcome") -> pd.DataFrame:
    """Test every claim for every family that it is about, in the paper's order; the columns are `Result`'s and text.

    together: the verdict if all tested claims are to be right at once with 95 % (Bonferroni); "" if not tested.
    """
    chosen = [(claim, model) for claim in all_claims() for model in paper.MODELS if claim.where(model)]
    tested = _test(frame, chosen, records, outcome)
    several = 1 - (1 - CONFIDENCE) / max(1, sum(result.verdict in DECIDABLE for result, _ in tested))
    rows = []
    for result, estimate in tested:
        if result.verdict in DECIDABLE:
            result = replace(result, together=verdict(*estimate.interval(several), result.bound, below=result.below))
        rows.append({**asdict(result), "text": result.text})
    return pd.DataFrame(rows).sort_values(
        "where", key=lambda where: where.map(_order), kind="stable", ignore_index=True
    )


def _test(
    frame: pd.DataFrame, chosen: Sequence[tuple[Claim, str]], records: Records | None, outcome: str
) -> list[tuple[Result, Estimate | None]]:
    if outcome not in OUTCOMES:
        raise ParameterError("outcome", outcome, f"one of {', '.join(OUTCOMES)}")
    check_frame(frame, ["selection", "scenario", "k", "pass1", "pass_k", "gen_loss", "n_runs", outcome])
    evidence: dict[str, list[Evidence]] = {}
    for model in dict.fromkeys(model for _, model in chosen):
        families = frame.loc[frame["stands_for"] == model, "family"].unique()
        found = [gather(frame, family, records, outcome) for family in families]
        evidence[model] = [one for one in found if one is not None]
    results: list[tuple[Result, Estimate | None]] = []
    for claim, model in chosen:
        if not evidence[model]:
            results.append((_result(claim, None, model), None))
        for one in evidence[model]:
            estimate = claim.test(one)
            results.append((_result(claim, estimate, model, one.family), estimate))
    return results


def _result(claim: Claim, estimate: Estimate | None, model: str, family: str = "") -> Result:
    said, below = "not run", claim.side == "below"
    estimate = estimate or Estimate(math.nan, "", 0)
    low, high = estimate.interval(CONFIDENCE)
    if family:
        undefined = math.isnan(estimate.value)
        said = "too few candidates" if undefined else verdict(low, high, claim.bound, below=below)
    return Result(
        where=claim.where(model),
        claim=claim.claim,
        statistic=estimate.statistic,
        value=estimate.value,
        low=low,
        high=high,
        n=estimate.n,
        paper=claim.published(model),
        verdict=said,
        name=claim.id,
        family=family,
        model=model,
        quote=claim.quote,
        unit=claim.unit,
        noise=estimate.noise,
        counted=estimate.counted,
        bound=claim.bound,
        below=below,
    )


def _place(text: str) -> str:
    """ "Figure 4", "fig04", "Fig. 4" -> "fig 4"; "Sec. 3.1" -> "sec 3.1"; other words in lower case."""
    match = re.fullmatch(r"(fig(?:ure)?|tab(?:le)?|sec(?:tion)?)s?\.?\s*0*([\d.]+)", text.strip().lower())
    return f"{match[1][:3]} {match[2]}" if match else text.strip().lower()


def _places(named: str) -> list[str]:
    """The single places of "Figs. 4, 10"."""
    kind, _, numbers = named.partition(" ")
    return [_place(f"{kind} {number.strip()}") for number in numbers.split(",")] if numbers else [_place(named)]


def _order(where: str) -> tuple[int, float]:
    """Abstract and sections first, then figures, then tables."""
    number = re.search(r"\d+(\.\d+)?", where)
    kinds = {"Abstract": 0, "Introduction": 1, "Sec.": 2, "Fig.": 3, "Figs.": 3, "Table": 4}
    return kinds[where.split()[0].rstrip(",")], float(number[0]) if number else 0.0


# --- showing ----------------------------------------------------------------------------------------------------------


def describe(results: Sequence[Result]) -> str:
    """Return the results as a Markdown list."""
    if not results:
        return "The paper makes no claim here about what was chosen."
    return "\n".join(f"- {result.text}" for result in results)


def headline(results: Sequence[Result], name: str = "") -> tuple[str, str, str]:
    """Return a place in one line: the paper's claim, our verdicts with their intervals, and the numbers of candidates.

    name: the claim to show; the first one if empty or not among the results. Raises ParameterError for a name that no
    claim has.
    """
    if name and name not in {claim.id for claim in all_claims()}:
        raise ParameterError("name", name, f"one of {', '.join(dict.fromkeys(result.name for result in results))}")
    if not results:
        return "-", "-", ""
    shown = [result for result in results if result.name == name]
    shown = shown or [result for result in results if result.name == results[0].name]
    first = shown[0]
    published = first.claim + ("" if math.isnan(first.paper) else f" ({amount(first.paper, first.unit)})")
    ours, scale = [], []
    for result in shown:
        if result.verdict not in DECIDABLE:
            ours.append(f"{result.family or result.model}: {result.verdict}")
            continue
        interval = f" [{result.interval}]" if result.interval else ""
        bound = f", bound {amount(result.bound, result.unit)}" if result.bound else ""
        ours.append(f"{result.verdict}: {amount(result.value, result.unit)}{interval}{bound}")
        scale.append(f"{result.family}, n = {result.size}")
    return published, "; ".join(ours), "; ".join(scale)


def summarize(table: pd.DataFrame) -> str:
    """Count the verdicts of a ledger, alone and with all intervals widened to be right at once: Markdown."""
    counts = table["verdict"].value_counts().reindex(VERDICTS).dropna().astype(int)
    said = ", ".join(f"{count} {word}" for word, count in counts.items())
    lines = [f"**{len(table)} claims, each for one family: {said}.**"]
    decided = table[table["verdict"].isin(["holds", "fails"])]
    if tested := int(table["verdict"].isin(DECIDABLE).sum()):
        firm = int((decided["together"] == decided["verdict"]).sum())
        lines.append(
            f"Of {tested} intervals of 95 %, about {(1 - CONFIDENCE) * tested:.1f} are expected to miss the truth. "
            f"With all of them widened to hold at once (Bonferroni), {firm} of {len(decided)} decided verdicts remain."
        )
    return "\n\n".join(lines)


def show_ledger(table: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger as text, one row per claim and family."""
    fields = Result.__dataclass_fields__
    rows = []
    for row in table.to_dict("records"):
        result = Result(**{name: row[name] for name in fields})
        value = f"{amount(result.value, result.unit)} ({result.interval or 'none'})"
        rows.append(
            {
                "where": f"{result.where}: {result.family or result.model}",
                "claim": result.claim,
                "verdict": result.verdict,
                "statistic": "" if math.isnan(result.value) else result.statistic,
                "value, 95 % interval": "" if math.isnan(result.value) else value,
                "the claim says": f"{'below' if result.below else 'above'} {amount(result.bound, result.unit)}",
                "paper": "" if math.isnan(result.paper) else amount(result.paper, result.unit),
                "n": "" if result.verdict == "not run" else result.size,
            }
        )
    return pd.DataFrame(rows)
