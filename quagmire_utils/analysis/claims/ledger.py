"""The claims of claims.yaml, tested on records: all of them (`ledger`), or those of a figure or table (`about`)."""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from quagmire_utils.analysis import public_evidence
from quagmire_utils.analysis.candidates import RunNoise, check_family, check_frame, check_outcome
from quagmire_utils.analysis.claims import comparisons  # noqa: F401 - registers its statistics
from quagmire_utils.analysis.claims.evidence import STATISTICS, Estimate, Evidence, gather
from quagmire_utils.analysis.claims.statistics import published_gain
from quagmire_utils.analysis.tables import verdict
from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import Records

FILE = Path(__file__).resolve().parents[1] / "claims.yaml"
CONFIDENCE = 0.95
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
    public: bool = False
    trivial: str = ""

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
        if model not in paper.MODELS:
            return math.nan
        if self.paper:
            return float(paper.claims().set_index("name").loc[self.paper, "value"])
        return published_gain(model=model, **self.arguments) if "table" in self.arguments else math.nan

    def test(self, evidence: Evidence) -> Estimate:
        """Compute the statistic on the candidates of one family."""
        return STATISTICS[self.statistic](evidence, **self.arguments)


NOTHING = Estimate(math.nan, "", 0)


@cache
def all_claims() -> tuple[Claim, ...]:
    """Read claims.yaml."""
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))["claims"]
    return tuple(Claim.model_validate(entry) for entry in entries)


@dataclass(frozen=True)
class Result:
    """A claim tested on one of our families, or not tested because none stands for the paper's model."""

    claim: Claim
    model: str  # the paper's
    family: str = ""  # ours; empty: not run
    estimate: Estimate = NOTHING

    @cached_property
    def ends(self) -> tuple[float, float]:
        """Both ends of the 95 % interval; NaN if there is none."""
        return self.estimate.interval(CONFIDENCE)

    @cached_property
    def paper(self) -> float:
        """The published value; NaN if none is printed."""
        return self.claim.published(self.model)

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        return self.verdict_from(self.ends)

    def verdict_from(self, ends: tuple[float, float]) -> str:
        """Return the verdict that another interval gives."""
        if not self.family:
            return "not run"
        if math.isnan(self.estimate.value):
            return "too few candidates"
        return verdict(*ends, self.claim.bound, below=self.claim.side == "below")

    @property
    def interval(self) -> str:
        """The 95 % interval as text; empty if there is none."""
        low, high = self.ends
        return "" if math.isnan(low) else f"{self.amount(low).split()[0]} to {self.amount(high)}"

    @property
    def size(self) -> str:
        """What the claim was tested on: `4 sets of examples`."""
        first, _, rest = self.estimate.counted.partition(" ")
        n = self.estimate.n
        return f"{n} {first.removesuffix('s') if n == 1 else first} {rest}".strip()

    def amount(self, value: float) -> str:
        """Format a value in the unit of the claim."""
        unit = self.claim.unit
        if math.isnan(value):
            return "undefined"
        if unit == "points":
            return f"{round(100 * value, 1) + 0.0:+.1f} points"  # + 0.0: no minus before a zero
        if unit == "nats":
            return f"{round(value, 3) + 0.0:+.3f} nats"
        return f"{round(value, 2) + 0.0:{'+' if unit.startswith('difference') else ''}.2f}"

    def row(self) -> dict[str, Any]:
        """Return the result as a row of the ledger."""
        claim, estimate, (low, high) = self.claim, self.estimate, self.ends
        return {
            **{"name": claim.id, "where": claim.where(self.model), "model": self.model, "family": self.family},
            **{"claim": claim.claim, "quote": claim.quote, "verdict": self.verdict, "statistic": estimate.statistic},
            **{"value": estimate.value, "low": low, "high": high, "paper": self.paper},
            **{"unit": claim.unit, "bound": claim.bound, "below": claim.side == "below", "n": estimate.n},
            **{"counted": estimate.counted, "noise": estimate.noise},
        }


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
    """Test the claims that the paper makes at a place ("Fig. 4", "Table 5", "Abstract"); [] if it makes none there.

    frame: from `candidate_frame`. records: the same records, for the noise between RL runs and the losses on the
    candidates' own traces. family: only these, each a model of the paper or one of our families. scenario: leave out
    claims that are about another one. If several families stand for a model, each is tested.
    """
    check_frame(frame)
    asked = {family} if isinstance(family, str) else set(family)
    for name in asked - {"all"}:
        check_family(frame, name)
    ours = dict(zip(frame["family"], frame["stands_for"], strict=True))
    models = {ours.get(name, name) for name in asked}
    chosen = [
        (claim, model)
        for claim in all_claims()
        for model in paper.MODELS
        if model in claim.places.get(place, ())
        and models & {"all", model}
        and scenario in ("", claim.scenario or scenario)
    ]
    tested = _test(frame, chosen, records, outcome)
    return [result for result in tested if not result.family or {"all", result.model, result.family} & asked]


def all_results(frame: pd.DataFrame, records: Records | None = None, *, outcome: str = "outcome") -> list[Result]:
    """Test every claim for every family that it is about, in the paper's order."""
    chosen = [(claim, model) for claim in all_claims() for model in paper.MODELS if claim.where(model)]
    results = _test(frame, chosen, records, outcome)
    return sorted(results, key=lambda result: order_of_place(result.claim.where(result.model)))


def ledger(results: Sequence[Result]) -> pd.DataFrame:
    """Return results as a table of numbers, one row per claim and family.

    together: the verdict if all tested claims are to be right at once with 95 % (Bonferroni).
    """
    several = 1 - (1 - CONFIDENCE) / max(1, sum(result.verdict in DECIDABLE for result in results))
    return pd.DataFrame(
        {**result.row(), "together": result.verdict_from(result.estimate.interval(several))} for result in results
    )


def _test(
    frame: pd.DataFrame, chosen: Sequence[tuple[Claim, str]], records: Records | None, outcome: str
) -> list[Result]:
    check_outcome(outcome)
    check_frame(frame, ["selection", "scenario", "k", "pass1", "pass_k", "gen_loss", "n_runs", outcome])
    evidence: dict[str, list[Evidence]] = {}
    for model in dict.fromkeys(model for _, model in chosen):
        families = frame.loc[frame["stands_for"] == model, "family"].unique()
        found = [gather(frame, family, records, outcome) for family in families]
        evidence[model] = [one for one in found if one is not None]
    results = []
    for claim, model in chosen:
        tested = [Result(claim, model, one.family, claim.test(one)) for one in evidence[model]]
        results += tested or [Result(claim, model)]
    return results


# --- the same claims on published numbers -----------------------------------------------------------------------------


@cache
def published_results() -> dict[str, tuple[Result, ...]]:
    """Test the claims marked `public` on each group of published SFT checkpoints that has the measurements, by claim.

    The statistics are those of our own records. Groups of all grades of trust are tested.
    """
    rows = public_evidence.comparable(public_evidence.load_rows())
    groups = [
        Evidence(str(name), group["stands_for"].iloc[0], "outcome", group, group, RunNoise(math.nan, 0, False))
        for name, group in rows[rows["kind"] == public_evidence.KINDS[0]].groupby("family", sort=False)
    ]
    found = {}
    for claim in all_claims():
        tested = [Result(claim, one.model, one.family, claim.test(one)) for one in groups if claim.public]
        found[claim.id] = tuple(result for result in tested if result.estimate.n)
    return found


def order_of_place(where: str) -> tuple[int, float]:
    """Return a key that sorts by the paper's order: abstract and sections, then figures, then tables."""
    number = re.search(r"\d+(\.\d+)?", where)
    kinds = {"Abstract": 0, "Introduction": 1, "Sec.": 2, "Fig.": 3, "Table": 4}
    return kinds[where.split()[0].rstrip(",")], float(number[0]) if number else 0.0


# --- showing ----------------------------------------------------------------------------------------------------------


def headline(results: Sequence[Result], name: str = "") -> tuple[str, str, str]:
    """Return a place in one line: the paper's claim, our verdicts with their intervals, and the numbers of candidates.

    name: the claim to show; the first one if empty or not among the results.
    """
    if name and name not in {claim.id for claim in all_claims()}:
        known = dict.fromkeys(result.claim.id for result in results)
        raise ParameterError("name", name, f"one of {', '.join(known)}")
    if not results:
        return "-", "-", ""
    shown = [result for result in results if result.claim.id == name]
    shown = shown or [result for result in results if result.claim.id == results[0].claim.id]
    first, ours, scale = shown[0], [], []
    claimed = first.claim.claim + ("" if math.isnan(first.paper) else f" ({first.amount(first.paper)})")
    for result in shown:
        if result.verdict not in DECIDABLE:
            ours.append(f"{result.family or result.model}: {result.verdict}")
            continue
        interval = f" [{result.interval}]" if result.interval else ""
        bound = f", bound {result.amount(result.claim.bound)}" if result.claim.bound else ""
        ours.append(f"{result.verdict}: {result.amount(result.estimate.value)}{interval}{bound}")
        scale.append(f"{result.family}, n = {result.size}")
    if len(results) > len(shown):  # one claim that holds must not stand for others that do not
        counts = Counter(result.verdict for result in results)
        told = ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
        ours.append(f"of {len(results)} tests here: {told}")
    return claimed, "; ".join(ours), "; ".join(scale)


def message(results: Sequence[Result], name: str = "", width: int = 90) -> str:
    """Return the title of a figure: the paper's claim and our verdict on it, in lines of at most `width` characters.

    results, name: as in `headline`.
    """
    claimed, ours, _ = headline(results, name)
    ours = ours.partition("; of ")[0]
    return "\n".join([*textwrap.wrap(f"The paper: {claimed}", width), *textwrap.wrap(f"Here: {ours}", width)])


def show_ledger(results: Sequence[Result]) -> pd.DataFrame:
    """Return results as a table of text, one row per claim and family."""
    columns = ["claim", "family", "verdict", "value, 95 % interval", "the claim says", "paper", "n"]
    rows = []
    for result in results:
        claim, value = result.claim, result.estimate.value
        found = "" if math.isnan(value) else f"{result.amount(value)} ({result.interval or 'none'})"
        printed = "" if math.isnan(result.paper) else result.amount(result.paper)
        bound = result.amount(claim.bound) if claim.bound else "0"
        row = [claim.claim + " (trivial)" * bool(claim.trivial), result.family or result.model, result.verdict, found]
        rows.append([*row, f"{claim.side} {bound}", printed, result.size if result.family else ""])
    return pd.DataFrame(rows, columns=columns)
