"""Measurements of candidates before RL: from a table filled in by hand, the records of a sweep, or folders of answers.

load_measurements("notebooks/candidates.csv")                       # a table that a person filled in
load_measurements("results/mini", family="micro-llama")             # the records of a sweep
load_measurements("mine.csv")                                       # its column `samples` names folders of answers
load_measurements("runs/evaluations")                               # a folder of such folders
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.analysis.candidates import candidate_frame, check_outcome, in_scenario, of_family, run_noise
from quagmire_utils.analysis.fits import check_whole
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.records import Records, check_once, load_records
from quagmire_utils.core.settings import SCENARIOS
from quagmire_utils.evaluation.generalization_loss import read_losses
from quagmire_utils.evaluation.pass_at_k import benchmark_average
from quagmire_utils.evaluation.store import SampleStore

SCORES = ("pass1", "pass1_se", "pass_k", "pass_k_se", "outcome", "outcome_se")  # shares, may be written in per cent
NUMBERS = (*SCORES, "gen_loss", "gen_loss_se")
TEXTS = ("candidate", "samples", "family", "scenario")  # and labels
SLACK = 0.02  # by which a typed Pass@1 may exceed Pass@k: they may come from other answers, and are rounded
MISSING = {"", "-", "–", "?", "na", "n/a", "nan"}
MUST_AGREE = ("template", "temperature", "top_p", "max_tokens")  # for scores of two stores to compare


@dataclass(frozen=True, eq=False)
class Measurements:
    """Candidates of one family, what was measured of each before RL, and the outcomes that are known.

    The table has the columns candidate, pass1, gen_loss (nats per response token, may be missing), pass_k and, where
    known, pass1_se, gen_loss_se, pass_k_se (standard errors), outcome (Pass@1 after RL) and outcome_se (of another RL
    run of the same candidate).
    """

    table: pd.DataFrame
    counts: pd.DataFrame | None  # candidate, benchmark, problem, n, correct before RL; None if unknown
    frame: pd.DataFrame  # of every family and scenario of the source, for checks on known outcomes
    k: int  # the k of pass_k
    source: str  # title
    manifest: dict[str, Any] = field(default_factory=dict)  # of the records, else empty


def load_measurements(
    source: str | Path | Records, *, family: str = "", scenario: str = "", k: int = 64, outcome: str = "outcome"
) -> Measurements:
    """Load measurements from a .csv, from records, or from a folder of evaluations, one candidate's answers each.

    family and scenario ("dataset" or "instance") select candidates; empty selects all of a table, and the dataset level
    of the only family of records. Candidates of records that have not gone through RL are included. k is used for what
    is computed from counts. outcome: the column of the candidate frame that is the outcome of records.
    """
    check_whole("k", k, 2)
    if scenario and scenario not in SCENARIOS:
        raise ParameterError("scenario", scenario, f"one of {', '.join(SCENARIOS)}")
    if isinstance(source, Records):
        return _from_records(source, family, scenario or "dataset", k, outcome)
    path = Path(source)
    if path.is_dir():
        stores = [folder for folder in sorted(path.iterdir()) if (folder / "store.json").is_file()]
        if stores and not (path / "manifest.json").is_file():
            return _select(_from_stores(path, stores, k), family, scenario)
        if (path / "store.json").is_file():
            reason = f"{path} holds the answers of one candidate; name the folder above it, or a table"
            raise ParameterError("measurements", path, reason=reason)
        return _from_records(load_records(path), family, scenario or "dataset", k, outcome)
    if not path.is_file():
        raise ParameterError("measurements", path, reason=f"there is no table or folder {path}")
    return _select(read_csv(path, k), family, scenario)


def checked_candidates(records: pd.DataFrame, columns: Sequence[str], may_miss: Sequence[str]) -> pd.DataFrame:
    """Return a copy of the rows after checking them.

    Raises ParameterError for a missing column, no or repeated candidates, several families, and missing values in
    columns other than `may_miss`.
    """
    for column in columns:
        if column not in records.columns:
            raise ParameterError(column, reason=f"the table lacks this column; it has {', '.join(records.columns)}")
    if records.empty:
        raise ParameterError("candidate", reason="the table holds no candidate")
    if "family" in records.columns:
        _only(records["family"], "family")
    check_once(records, ["candidate"], "candidate")
    for column in columns:
        if column not in may_miss and records[column].isna().any():
            names = records.loc[records[column].isna(), "candidate"]
            raise ParameterError(column, reason=f"missing for {', '.join(names.astype(str))}")
    return records.reset_index(drop=True)


def comparable_loss(table: pd.DataFrame) -> NDArray[np.float64]:
    """Return gen_loss, NaN at instance level, where candidates were trained on different data (Sec. 4.3)."""
    loss = table["gen_loss"].to_numpy(np.float64)
    if "scenario" in table.columns:
        loss = np.where(table["scenario"] == "instance", np.nan, loss)
    return loss


def _from_records(records: Records, family: str, scenario: str, k: int, outcome: str) -> Measurements:
    check_outcome(outcome)
    frame = candidate_frame(records, k=k)
    family = family or _only(frame["family"], "family")
    chosen = of_family(frame, family)
    chosen = chosen[(chosen["selection"] != "none") & chosen["pass1"].notna()]
    chosen = chosen[in_scenario(chosen["scenario"], scenario)]  # those without an outcome too: they may be run next
    if chosen.empty:
        raise ParameterError("family", family, reason=f"{family} has no measured candidates of the {scenario} level")
    name = _only(chosen["family"], "family")
    table = chosen[["family", "candidate", "pass1", "pass1_se", "gen_loss", "gen_loss_se", "pass_k", "pass_k_se"]]
    table = table.assign(scenario=scenario, outcome=chosen[outcome], late_gain=chosen["late_gain"])
    noise = run_noise(frame[frame["family"] == name], records, outcome)
    run = chosen[chosen[outcome].notna()]
    errors = noise.standard_errors(run["n_runs"].to_numpy(), run["outcome_sampling_se"].to_numpy(np.float64))
    table = table.assign(outcome_se=pd.Series(errors, run.index)).reset_index(drop=True)
    counts = records.counts[(records.counts["family"] == name) & (records.counts["stage"] != "rl")]
    counts = counts.loc[counts["candidate"].isin(table["candidate"]), ["candidate", *COUNTED]].reset_index(drop=True)
    title = f"{name}, {scenario} level, profile {records.profile}"
    return Measurements(table, counts, frame, k, title, records.manifest)


def _only(values: pd.Series, what: str) -> str:
    known = [str(value) for value in values.unique()]
    if len(known) != 1:
        raise ParameterError(what, allowed=f"one of {', '.join(known) or 'none'}", value="")
    return known[0]


def _select(measured: Measurements, family: str, scenario: str) -> Measurements:
    """Return the rows of one family and scenario, where the table has such a column."""
    table = measured.table
    for column, wanted in (("family", family), ("scenario", scenario)):
        if column not in table or table[column].isna().all():
            continue
        values = table[column].fillna("none")
        if wanted and wanted not in set(values):
            raise ParameterError(column, wanted, f"one of {', '.join(values.unique())}")
        table = table[values == (wanted or _only(values, column))]
    check_once(table, ["candidate"], measured.source)
    counts = measured.counts
    if counts is not None:
        counts = counts[counts["candidate"].isin(table["candidate"])].reset_index(drop=True)
    if scenario and "scenario" not in table:
        table = table.assign(scenario=scenario)
    return replace(measured, table=table.reset_index(drop=True), counts=counts)


# --- a table that a person filled in ----------------------------------------------------------------------------------


def read_csv(path: str | Path, k: int = 64) -> Measurements:
    """Read a table filled in by hand: columns candidate, pass1, gen_loss, pass_k, and the others of NUMBERS and TEXTS.

    Between cells stand commas, semicolons or tabs. Decimal commas are read (in quotes if commas separate cells), and
    shares as 0.523, as 52.3%, or as 52.3 under a heading that ends in %. Blank cells or - stand for what is not known.
    `Pass@1` and `Pass@256` are headings too (then 256 is the large k). Other columns are labels, and lines that begin
    with # are remarks. Raises ParameterError with line and column for anything else.

    `samples` names a candidate's folder of graded answers (a SampleStore as evaluate_model writes it; relative to the
    table, the working directory or the repository). Its pass1 and pass_k are then computed and may be left blank.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(path.name, reason=f"not readable as UTF-8 text ({error}); save it as CSV UTF-8") from None
    lines = _lines(path.name, text)
    if len(lines) < 2:
        raise ParameterError(path.name, reason="a line of headings and a line per candidate are needed")
    names, percent, large = _headings(path.name, lines[0][1])
    rows, seen = [], dict[tuple[str, ...], int]()
    for number, cells in lines[1:]:
        place = f"{path.name}, line {number}"
        if any(cells[len(names) :]):
            reason = f"{len(cells)} cells, and {len(names)} headings; with decimal commas use semicolons or quotes"
            raise ParameterError(place, reason=reason)
        cells = dict(zip(names, cells + [""] * len(names), strict=False))
        row = {name: _cell(place, name, cell, name in percent) for name, cell in cells.items()}
        if not row["candidate"]:
            raise ParameterError(f"{place}, column candidate", reason="a name is needed")
        _check_row(place, row, cells, percent)
        key = tuple(str(row.get(name)) for name in ("candidate", "family", "scenario"))
        if key in seen:
            raise ParameterError(place, reason=f"the candidate {row['candidate']} is in line {seen[key]} already")
        seen[key] = number
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(dict.fromkeys([*names, "pass1", "gen_loss", "pass_k"])))
    return _measured(table, path, large or k, path.name)


def _lines(file: str, text: str) -> list[tuple[int, list[str]]]:
    """Return the non-empty lines with their numbers, as stripped cells, without remarks."""
    raw = ["" if line.lstrip(' "').startswith("#") else line for line in text.split("\n")]
    first = next((line for line in raw if line.strip(' ;,\t"')), "")
    reader, number, lines = csv.reader(raw, delimiter=max(";\t,", key=first.count), strict=True), 1, []
    try:
        for row in reader:
            lines.append((number, [" ".join(cell.split()) for cell in row]))
            number = reader.line_num + 1  # of the first line, where a cell holds line ends
    except csv.Error as error:
        raise ParameterError(f"{file}, line {number}", reason=f"not CSV ({error}); is a quote open?") from None
    return [(number, cells) for number, cells in lines if any(cells)]


def _headings(file: str, cells: Sequence[str]) -> tuple[list[str], set[str], int]:
    """Return column names, which of them are in per cent, and the large k (0 if none is named)."""
    names, percent, large = list[str](), set[str](), 0
    for cell in cells:
        name, marked = re.subn(r"_?[(\[]?%[)\]]?$", "", re.sub(r"\s+", "_", cell.lower()))
        if found := re.fullmatch(r"pass_?@?(\d{1,9})(_se)?", name):
            check_whole(f"{file}, column {cell}", k := int(found[1]), 1)
            name = ("pass1" if k == 1 else "pass_k") + (found[2] or "")
            large = large if k == 1 else k
        name = "gen_loss" if name in ("loss", "generalization_loss") else name
        if name and name in names:
            raise ParameterError(file, reason=f"it has the column {name} twice (the second time as {cell!r})")
        percent |= {name} if marked else set()
        names.append(name)
    while names and not names[-1]:
        names.pop()
    if not all(names) or "candidate" not in names:
        reason = f"the first line must name the columns (candidate, pass1, gen_loss, pass_k); it is {', '.join(cells)}"
        raise ParameterError(file, reason=reason[:300])
    return names, percent, large


def _cell(place: str, column: str, cell: str, in_percent: bool) -> Any:
    """Return a cell's text or number; None or NaN if it is blank."""
    place, blank = f"{place}, column {column}", cell.lower() in MISSING
    if column not in NUMBERS:
        return None if blank else cell
    if blank:
        return math.nan
    text = "".join(cell.split())
    percent = text.endswith("%")
    text = text.removesuffix("%")
    try:
        value = float(text if "." in text else text.replace(",", "."))
    except ValueError:
        raise ParameterError(place, cell, "a number") from None
    if percent and column not in SCORES:
        raise ParameterError(place, cell, "in nats per token, without a per cent sign")
    value /= 100 if percent or in_percent else 1
    if column in SCORES and value > 1:
        raise ParameterError(place, cell, "at most 100 %" if percent or in_percent else "a share as 0.523 or 52.3%")
    if not math.isfinite(value) or value < 0:
        raise ParameterError(place, cell, "finite and not negative")
    return value


def _check_row(place: str, row: dict[str, Any], cells: dict[str, str], percent: set[str]) -> None:
    """Raise ParameterError for values that do not fit each other: mistaken units, swapped columns."""
    if row.get("scenario") not in (None, *SCENARIOS):
        raise ParameterError(f"{place}, column scenario", row["scenario"], f"one of {', '.join(SCENARIOS)}")
    for name in ("pass1", "pass_k", "outcome"):
        error = row.get(f"{name}_se", math.nan)
        units = [column in percent or "%" in cells.get(column, "") for column in (name, f"{name}_se")]
        if error > 0.5 or (error > 0 and row.get(name, 0) > 0 and units == [True, False]):
            allowed = f"at most 0.5, and in per cent if {name} is"
            raise ParameterError(f"{place}, column {name}_se", cells[f"{name}_se"], allowed)
    if row.get("pass1", 0) > row.get("pass_k", 1) + SLACK:
        scores = f"Pass@1 ({row['pass1']:g}) is above Pass@k ({row['pass_k']:g})"
        raise ParameterError(place, reason=f"{scores}: mistaken units, or swapped columns?")


# --- folders of answers -----------------------------------------------------------------------------------------------

COUNTED = ["benchmark", "problem", "n", "correct"]


def _from_stores(path: Path, folders: Sequence[Path], k: int) -> Measurements:
    """Return a folder of evaluations as a table: a candidate per folder, named after it.

    Those with fewer than k answers to a problem are left out, unless all are; the title names them.
    """
    stores = {folder.name: SampleStore(folder) for folder in folders}
    fewest = {name: store.counts()["n"].min() if store.parts() else 0 for name, store in stores.items()}
    small = [name for name in stores if fewest[name] < k <= max(fewest.values())]
    names = [name for name in stores if name not in small]
    table = pd.DataFrame({"candidate": names, "samples": names})
    table[["pass1", "gen_loss", "pass_k"]] = math.nan
    left = f" (left out, with fewer than {k} answers to a problem: {', '.join(small)})" if small else ""
    return _measured(table, path / "evaluations", k, path.name + left)


def _measured(table: pd.DataFrame, path: Path, k: int, title: str) -> Measurements:
    """Fill in scores from the stores that the table names; the counts are known if every candidate has a store."""
    table, parts, stores = table.copy(), {}, {}
    for row in table.dropna(subset=["samples"]).itertuples() if "samples" in table else ():
        name, place = row.candidate, f"{path.name}, candidate {row.candidate}"
        if name in stores:
            raise ParameterError(place, reason="it is there twice; select one family and scenario")
        found = [one for one in (path.parent / row.samples, Path(row.samples), ROOT / row.samples) if one.is_dir()]
        if not found:
            raise ParameterError(place, reason=f"there is no folder of samples {row.samples}")
        store = SampleStore(found[0])
        same = [other for other, held in stores.items() if held.path.resolve() == store.path.resolve()]
        if same:
            raise ParameterError(place, reason=f"its samples {row.samples} are those of {same[0]}")
        counts = store.counts() if store.parts() else pd.DataFrame({"n": []})
        fewest = 0 if counts.empty else counts["n"].min()
        if counts.empty or counts["n"].max() == 0:
            raise ParameterError(place, reason=f"{row.samples} holds no graded answers of an evaluation")
        if fewest < k:
            raise ParameterError("k", k, f"at most {fewest}, the graded answers to a problem in {row.samples}")
        parts[name], stores[name] = counts[COUNTED], store
        for column, line in zip(("pass1", "pass_k"), benchmark_average(counts, [1, k]).itertuples(), strict=True):
            table.loc[row.Index, column] = line.pass_at_k
            table.loc[row.Index, f"{column}_se"] = line.standard_error
    _check_alike(path.name, parts, stores)
    counts = None
    title += fill_losses(table, {name: read_losses(store.path) for name, store in stores.items()})
    if len(parts) == len(table):
        counts = pd.concat(parts, names=["candidate"]).reset_index("candidate").reset_index(drop=True)
    table = table.drop(columns="samples", errors="ignore")
    frame = table.assign(stands_for="", selection="")  # the columns of a candidate frame, for checks on known outcomes
    for name, usual in (("family", ""), ("scenario", "dataset"), ("outcome", math.nan)):
        frame[name] = table[name].fillna(usual) if name in table else usual
    return Measurements(table, counts, frame, k, title)


def fill_losses(table: pd.DataFrame, kept: Mapping[str, dict[str, dict[str, Any]]]) -> str:
    """Fill in losses from the first validation set that all candidates of a family measured; say which, or why not.

    kept: `read_losses` by candidate. A family of which any row has a loss is left as it is.
    """
    said = []
    for _, part in table.groupby(table["family"].fillna("") if "family" in table else [""] * len(table)):
        held = [list(kept.get(name, {}).items()) for name in part["candidate"]]
        if part["gen_loss"].notna().any() or not any(held):
            continue
        for first, loss in held[0]:
            found = [next((one for _, one in own if one["traces"] == loss["traces"]), None) for own in held]
            if all(found):
                table.loc[part.index, "gen_loss"] = [one["nll"] for one in found]
                table.loc[part.index, "gen_loss_se"] = [one["standard_error"] for one in found]
                said.append(f", loss on {first}")
                break
        else:
            without = [name for name, own in zip(part["candidate"], held, strict=True) if not own]
            why = f"{', '.join(without)} {'have' if len(without) > 1 else 'has'} none" if without else "of other traces"
            said.append(f", losses not used: {why}")
    return "".join(dict.fromkeys(said))


def _check_alike(file: str, parts: dict[str, pd.DataFrame], stores: dict[str, SampleStore]) -> None:
    """Raise ParameterError unless problems, golds and sampling are the same, as scores do not compare otherwise."""
    for name in list(parts)[1:]:
        first = next(iter(parts))
        one, other = (set(zip(parts[n]["benchmark"], parts[n]["problem"], strict=True)) for n in (first, name))
        golds, others = (stores[n].golds() for n in (first, name))
        reasons = [f"{name} and {first} answered different problems ({len(other)} and {len(one)})"] * (one != other)
        for key in golds.keys() & others.keys():
            if golds[key] != others[key]:
                answers = f"{others[key][0]!r} for {name} and {golds[key][0]!r} for {first}"
                reasons.append(f"the gold of {'/'.join(key)} is {answers}")
        for entry in MUST_AGREE:
            mine, its = (stores[n].origin.get(entry) for n in (first, name))
            if mine != its and "unknown" not in (mine, its):  # imported answers
                reasons.append(f"{name} was sampled with {entry} {its!r}, {first} with {mine!r}")
        if reasons:
            raise ParameterError(file, reason=f"{reasons[0]}, so their scores do not compare")
