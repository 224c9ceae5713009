"""What the two workflows of Sec. 4 start from: one row per candidate, filled in by hand, from records or from samples.

    load_measurements("notebooks/candidates.csv")                       # a table that a person filled in
    load_measurements("results/mini", family="micro-llama")             # the records of a sweep
    load_measurements("mine.csv")                                       # its column `samples` names folders of answers
    load_measurements("results/evaluations")                            # a folder of such folders, without losses

The table has the columns candidate, pass1, gen_loss (nats per response token, may be missing), pass_k (Pass@large k,
whatever k is), and where they are known pass1_se, gen_loss_se, pass_k_se (standard errors) and outcome (Pass@1 after
RL, of the candidates that were put through it). Where the answers themselves are at hand, `counts` holds how many of
each problem's are correct: what noise the scores have, and what more answers would change, is computed from these.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quagmire_utils.analysis.records import candidate_frame, check_family
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.records import Records, load_records
from quagmire_utils.core.settings import SCENARIOS
from quagmire_utils.evaluation.pass_at_k import benchmark_average
from quagmire_utils.evaluation.store import SampleStore

NUMBERS = ("pass1", "pass1_se", "gen_loss", "gen_loss_se", "pass_k", "pass_k_se", "outcome")
TEXTS = ("candidate", "samples", "family", "scenario", "note")
SCORES = ("pass1", "pass1_se", "pass_k", "pass_k_se", "outcome")  # shares: may be written in per cent
SLACK = 0.02  # by which a typed Pass@1 may exceed Pass@k: they may come from other answers, and are rounded
ALIASES = {
    "name": "candidate",
    "checkpoint": "candidate",
    "loss": "gen_loss",
    "generalization_loss": "gen_loss",
    "loss_se": "gen_loss_se",
    "generalization_loss_se": "gen_loss_se",
    "after_rl": "outcome",
    "pass1_after_rl": "outcome",
    "notes": "note",
    "comment": "note",
}
MISSING = {"", "-", "–", "—", "?", "na", "n/a", "nan", "none", "null"}
MUST_AGREE = ("template", "temperature", "top_p", "max_tokens")  # for scores of two stores to compare


@dataclass(frozen=True, eq=False)
class Measurements:
    """Candidates of one family, what was measured of each before RL, and the outcomes that are known."""

    table: pd.DataFrame  # one row per candidate, see the module's docstring
    counts: pd.DataFrame | None  # candidate, benchmark, problem, n, correct of the answers before RL
    frame: pd.DataFrame  # of all families and scenarios of the source: what checks on known outcomes are made with
    k: int  # what "large k" is in pass_k
    source: str  # what it was read from, to be shown
    manifest: dict[str, Any] = field(default_factory=dict)  # of the records; empty where a person filled in the numbers


def load_measurements(
    source: str | Path | Records,
    *,
    family: str = "",
    scenario: str = "",
    k: int = 64,
    outcome: str = "outcome",
) -> Measurements:
    """Measurements from a .csv, from records (their folder, results/<profile>, or loaded ones), or from a folder of
    evaluations, each the graded answers of a candidate.

    family and scenario ("dataset" or "instance") select candidates; empty: all of a table, and those of the dataset
    level of the only family of records. Candidates of records that were measured but not put through RL are among them.
    k: the large k, for what is computed from counts. outcome: which column of the candidate frame is the outcome of
    records. Raises ParameterError for a source of no such kind, a table that cannot be read (with the line), and a
    selection without candidates.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 2:
        raise ParameterError(f"k must be a whole number of at least 2, the large k of Pass@k, not {k!r}")
    if scenario and scenario not in SCENARIOS:
        raise ParameterError(f"scenario must be one of {', '.join(SCENARIOS)}, not {scenario!r}")
    if isinstance(source, Records):
        return _from_records(source, family, scenario or "dataset", k, outcome)
    path = Path(source)
    if path.is_dir():
        stores = [folder for folder in sorted(path.iterdir()) if (folder / "store.json").is_file()]
        if stores and not (path / "manifest.json").is_file():
            return _select(_from_stores(path, stores, k), family, scenario)
        if (path / "store.json").is_file():
            raise ParameterError(f"{path} holds the answers of one candidate: name the folder above it, or a table")
        return _from_records(path, family, scenario or "dataset", k, outcome)
    if not path.is_file():
        raise ParameterError(f"there is no table {path} (nor a folder of that name)")
    return _select(read_csv(path, k), family, scenario)


def _from_records(source: str | Path | Records, family: str, scenario: str, k: int, outcome: str) -> Measurements:
    if outcome not in ("outcome", "outcome_last"):
        raise ParameterError(f"outcome must be outcome or outcome_last, not {outcome!r}")
    records = source if isinstance(source, Records) else load_records(source)
    fewest = int(records.counts.loc[records.counts["stage"] != "rl", "n"].min())
    if fewest < k:
        raise ParameterError(f"k ({k}) must not exceed the {fewest} answers to a problem that the records hold")
    frame = candidate_frame(records, k=k)
    family = family or _only(frame["family"], "family")
    check_family(frame, family)
    # also those without an outcome: which of them to put through RL is the question
    chosen = frame[((frame["family"] == family) | (frame["stands_for"] == family)) & (frame["selection"] != "none")]
    chosen = chosen[[scenario in names.split("+") for names in chosen["scenario"]]]
    chosen = chosen[chosen["pass1"].notna()]
    if chosen.empty:
        raise ParameterError(f"family {family!r} has no measured candidates of the {scenario} level")
    name = _only(chosen["family"], "family")
    table = chosen[["family", "candidate", "pass1", "pass1_se", "gen_loss", "gen_loss_se", "pass_k", "pass_k_se"]]
    table = table.assign(scenario=scenario, outcome=chosen[outcome])
    counts = records.counts[(records.counts["family"] == name) & (records.counts["stage"] != "rl")]
    counts = counts[counts["candidate"].isin(table["candidate"])]
    counts = counts[["candidate", "benchmark", "problem", "n", "correct"]].reset_index(drop=True)
    title = f"{name}, {scenario} level, profile {records.profile}"
    return Measurements(table.reset_index(drop=True), counts, frame, k, title, records.manifest)


def checked_candidates(records: pd.DataFrame, columns: Sequence[str], may_miss: Sequence[str]) -> pd.DataFrame:
    """A checked copy of the records: the columns are there, one row per candidate, one family, no missing predictor."""
    absent = [column for column in columns if column not in records.columns]
    if absent:
        raise ParameterError(f"records lacks the column(s) {absent}; it has {list(records.columns)}.")
    if records.empty:
        raise ParameterError("records holds no candidate.")
    if "family" in records.columns and len(records["family"].unique()) > 1:
        raise ParameterError(f"records mixes families {sorted(map(str, records['family'].unique()))}; select one.")
    if records["candidate"].duplicated().any():
        twice = records.loc[records["candidate"].duplicated(), "candidate"].iloc[0]
        raise ParameterError(f"records holds candidate {twice!r} more than once; select one scenario.")
    for column in columns:
        if column not in may_miss and records[column].isna().any():
            names = records.loc[records[column].isna(), "candidate"].tolist()
            raise ParameterError(f"records lacks {column} for the candidate(s) {names}.")
    return records.reset_index(drop=True)


def comparable_loss(table: pd.DataFrame) -> NDArray[np.float64]:
    """gen_loss; NaN where it compares with nobody's, at instance level: they were trained on different data (4.3)."""
    loss = table["gen_loss"].to_numpy(np.float64)
    if "scenario" in table.columns:
        loss = np.where(table["scenario"] == "instance", np.nan, loss)
    return loss


def _only(values: pd.Series, what: str) -> str:
    known = list(dict.fromkeys(values))
    if len(known) != 1:
        raise ParameterError(f"{what}: choose one, there are {', '.join(map(str, known)) or 'none'}")
    return str(known[0])


def _select(measured: Measurements, family: str, scenario: str) -> Measurements:
    """The rows of one family and scenario; a name that a table doesn't have is an error where it has the column."""
    table = measured.table
    for column, wanted in (("family", family), ("scenario", scenario)):
        if column not in table or table[column].isna().all():
            continue
        if table[column].isna().any():
            lacking = table.loc[table[column].isna(), "candidate"].iloc[0]
            raise ParameterError(f"{measured.source}: {lacking!r} has no {column}, and others have")
        known = list(dict.fromkeys(table[column]))
        if wanted and wanted not in known:
            raise ParameterError(f"{column}: {measured.source} has no {wanted!r}; it has {', '.join(known)}")
        table = table[table[column] == (wanted or _only(table[column], column))]
    twice = table.loc[table["candidate"].duplicated(), "candidate"]
    if len(twice):
        raise ParameterError(f"{measured.source} has the candidate {twice.iloc[0]!r} more than once")
    counts = measured.counts
    if counts is not None:
        counts = counts[counts["candidate"].isin(table["candidate"])].reset_index(drop=True)
    if scenario and "scenario" not in table:
        table = table.assign(scenario=scenario)
    return replace(measured, table=table.reset_index(drop=True), counts=counts)


# --- a table that a person filled in ----------------------------------------------------------------------------------


def read_csv(path: str | Path, k: int = 64) -> Measurements:
    """A table filled in by hand: columns candidate, pass1, gen_loss, pass_k [, their _se, outcome, samples, ...].

    Read as people and spreadsheets write it: separated by commas, semicolons or tabs, decimal commas (between commas
    in quotes), `52.3%`, or 52.3 under a heading that ends in %, or 0.523; blank cells or - for what is not known;
    `Pass@1`, `pass64` or `pass_at_256` (then that is the large k) or `generalization loss` as headings; lines and
    headings that begin with # as remarks. `samples` names a candidate's folder of graded answers (a SampleStore, as
    evaluate_model leaves it; relative to the table, the working directory or the repo); its pass1 and pass_k are then
    computed and may be left blank. Raises ParameterError, with line and column, for anything else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path.name} cannot be read as UTF-8 text ({error}); save it as CSV UTF-8") from None
    lines = _lines(path.name, text)
    if len(lines) < 2:
        raise ParameterError(f"{path.name} needs a line of headings and a line per candidate; it has {len(lines)}")
    headings, percent, large = _headings(path.name, lines[0][1])
    rows, seen = [], dict[tuple[str, ...], int]()
    for number, cells in lines[1:]:
        place = f"{path.name}, line {number}"
        if len(cells) > len(lines[0][1]) or any(cells[len(headings) :]):
            raise ParameterError(
                f"{place}: {len(cells)} cells where the headings have {len(headings)}; decimal commas need semicolons "
                "or tabs between the columns, or quotes"
            )
        cells += [""] * (len(headings) - len(cells))
        row = {name: _cell(place, name, cell, name in percent) for name, cell in zip(headings, cells, strict=False)}
        row.pop("", None)
        if not row["candidate"]:
            raise ParameterError(f"{place}: the candidate has no name")
        _check_row(place, row, dict(zip(headings, cells, strict=False)), percent)
        key = tuple(str(row.get(name)) for name in ("candidate", "family", "scenario"))
        if key in seen:
            raise ParameterError(f"{place}: the candidate {row['candidate']!r} is in line {seen[key]} already")
        seen[key] = number
        rows.append(row)
    table = pd.DataFrame(rows)
    for name in ("pass1", "gen_loss", "pass_k"):
        if name not in table:
            table[name] = math.nan
    large = large or k
    counts = None
    if "samples" in table and table["samples"].notna().any():
        table, counts = _with_counts(table, path, large)
    table = table.drop(columns=["samples", "note"], errors="ignore")
    return Measurements(table, counts, table, large, path.name)


def _lines(file: str, text: str) -> list[tuple[int, list[str]]]:
    """The lines that say something, with their numbers, as stripped cells; not remarks nor a spreadsheet's `sep=;`."""
    raw = ["" if line.lstrip(' "').startswith(("#", "sep=")) else line for line in text.split("\n")]
    first = next((line for line in raw if line.strip(' ;,\t"')), "")
    reader = csv.reader((line + "\n" for line in raw), delimiter=max(";\t,", key=first.count), strict=True)
    lines: list[tuple[int, list[str]]] = []
    while True:
        number = reader.line_num + 1  # of the first line, where a cell holds line ends
        try:
            cells = [" ".join(cell.split()) for cell in next(reader)]
        except StopIteration:
            return lines
        except csv.Error as error:
            raise ParameterError(f"{file}, line {number}: no CSV from here on ({error}); is a quote open?") from None
        if any(cells):
            lines.append((number, cells))


def _headings(file: str, cells: Sequence[str]) -> tuple[list[str], set[str], int]:
    """Names of columns as the workflows know them (empty: skipped), which of them are in per cent, and the large k
    where a heading names one (else 0)."""
    names, percent, unknown, large = list[str](), set[str](), list[str](), 0
    for cell in cells:
        name = re.sub(r"[\s\-]+", "_", cell.lower()).replace("@", "")
        name, marked = re.subn(r"_?[(\[]?(%|percent|per_cent)[)\]]?$", "", name)
        name = re.sub(r"_?[(\[]nats.*[)\]]$", "", name)
        name = re.sub(r"_?(standard_error|std_?err(or)?|[(\[]se[)\]])$", "_se", name)
        found = re.fullmatch(r"pass_?(?:at_?)?(\d+|k)(_se)?", name)
        if found and found[1] not in ("1", "k"):
            if large and int(found[1]) != large:
                raise ParameterError(f"{file} has Pass@{large} and Pass@{found[1]}: give one large k")
            large = int(found[1])
        if found:
            name = ("pass1" if found[1] == "1" else "pass_k") + (found[2] or "")
        name = "" if name.startswith("#") else ALIASES.get(name, name)
        if name and name in names:
            raise ParameterError(f"{file} has the column {name} twice (the second time as {cell!r})")
        if name and name not in (*NUMBERS, *TEXTS):
            unknown.append(cell)
        if marked and name in SCORES:
            percent.add(name)
        names.append(name)
    if unknown:
        some = ", ".join(repr(name[:40]) for name in unknown[:5])
        some += f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        what = f"column {some} is" if len(unknown) == 1 else f"columns {some} are"
        raise ParameterError(
            f"{file}: the {what} not known; known are {', '.join((*TEXTS, *NUMBERS))}; put a # before other headings"
        )
    while names and not cells[len(names) - 1]:
        names.pop()
    if not all(cells[: len(names)]) or "candidate" not in names:
        raise ParameterError(
            f"{file}: the first line must name the columns, at least candidate, pass1, gen_loss, pass_k; it is "
            f"{', '.join(cells)[:200]}"
        )
    return names, percent, large


def _cell(place: str, column: str, cell: str, in_percent: bool) -> Any:
    """A cell's text or number; None or NaN where it is blank."""
    blank = cell.lower() in MISSING
    if not column or column in TEXTS:
        return None if blank else cell
    if blank:
        return math.nan
    text = "".join(cell.split())
    percent = text.endswith("%")
    text = text.removesuffix("%")
    if "." not in text:
        text = text.replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        raise ParameterError(f"{place}, column {column}: {cell!r} is no number") from None
    if percent and column not in SCORES:
        raise ParameterError(f"{place}, column {column}: {cell!r} is in per cent, and losses are in nats per token")
    value /= 100 if percent or in_percent else 1
    if column in SCORES and value > 1:
        raise ParameterError(
            f"{place}, column {column}: {cell!r} is above {'100 %' if percent or in_percent else '1'}; write 52.3% or "
            "a share such as 0.523"
        )
    if not math.isfinite(value) or value < 0:
        raise ParameterError(f"{place}, column {column}: {cell!r} must not be negative or infinite")
    return value


def _check_row(place: str, row: dict[str, Any], cells: dict[str, str], percent: set[str]) -> None:
    """Raise ParameterError for numbers that cannot go together: mistaken units, and columns that were swapped."""
    if row.get("scenario") not in (None, *SCENARIOS):
        raise ParameterError(f"{place}: scenario must be one of {', '.join(SCENARIOS)}, not {row['scenario']!r}")
    for name in ("pass1", "pass_k"):
        error = row.get(f"{name}_se", math.nan)
        units = [column in percent or "%" in cells.get(column, "") for column in (name, f"{name}_se")]
        if error > 0 and not math.isnan(row.get(name, math.nan)) and units[0] and not units[1]:
            raise ParameterError(
                f"{place}: {name} is in per cent and {name}_se is not; write {cells[f'{name}_se']}% if it is meant so"
            )
        if error > 0.5:  # the standard deviation of a single answer to a single problem at most
            raise ParameterError(
                f"{place}, column {name}_se: {cells[f'{name}_se']!r} is above 0.5, too much for a share"
            )
    if row.get("pass1", 0) > row.get("pass_k", 1) + SLACK:
        raise ParameterError(
            f"{place}: Pass@1 ({row['pass1']:g}) is above Pass@k ({row['pass_k']:g}), which cannot be: "
            "mistaken units, or swapped columns?"
        )


# --- folders of answers -----------------------------------------------------------------------------------------------


def _from_stores(path: Path, folders: Sequence[Path], k: int) -> Measurements:
    """A folder of evaluations: each folder in it is a candidate, its name that of the folder; losses are not known."""
    table = pd.DataFrame({"candidate": [folder.name for folder in folders], "samples": [f.name for f in folders]})
    table[["pass1", "gen_loss", "pass_k"]] = math.nan
    table, counts = _with_counts(table, path / "evaluations", k)
    table = table.drop(columns="samples")
    return Measurements(table, counts, table, k, path.name)


def _with_counts(table: pd.DataFrame, path: Path, k: int) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The table with pass1 and pass_k from the stores it names; counts where every candidate has a store."""
    table, parts, stores = table.copy(), {}, {}
    for row, (name, folder) in enumerate(zip(table["candidate"], table["samples"], strict=True)):
        if pd.isna(folder):
            continue
        place = f"{path.name}, candidate {name!r}"
        places = [place for place in (path.parent / folder, Path(folder), ROOT / folder) if place.is_dir()]
        if not places:
            raise ParameterError(f"{place}: there is no folder of samples {folder}")
        if name in stores:
            raise ParameterError(f"{place} is there twice; select one family and scenario")
        store = SampleStore(places[0])
        same = [other for other, held in stores.items() if held.path.resolve() == store.path.resolve()]
        if same:
            raise ParameterError(f"{place}: its samples {folder} are those of {same[0]!r}")
        counts = store.counts() if store.parts() else pd.DataFrame({"n": []})
        if counts.empty:
            raise ParameterError(f"{place}: {folder} holds no answers; name the output folder of an evaluation")
        if counts["n"].max() == 0:
            raise ParameterError(f"{place}: {folder} holds no graded answers")
        if counts["n"].min() < k:
            raise ParameterError(
                f"k ({k}) must not exceed the {counts['n'].min()} graded answers to a problem that {folder} holds"
            )
        parts[name], stores[name] = counts[["benchmark", "problem", "n", "correct"]], store
        scores = benchmark_average(counts, [1, k])
        for column, line in zip(("pass1", "pass_k"), scores.itertuples(), strict=True):
            table.loc[row, column] = line.pass_at_k
            table.loc[row, f"{column}_se"] = line.standard_error
    _check_alike(path.name, parts, stores)
    if len(parts) < len(table):
        return table, None
    return table, pd.concat(parts, names=["candidate"]).reset_index("candidate").reset_index(drop=True)


def _check_alike(file: str, parts: dict[str, pd.DataFrame], stores: dict[str, SampleStore]) -> None:
    """Scores compare where problems, golds and sampling are the same; otherwise a sentence says what differs."""
    first = next(iter(parts))
    origins = {name: store.origin for name, store in stores.items()}
    golds = {name: store.golds() for name, store in stores.items()}
    asked = set(zip(parts[first]["benchmark"], parts[first]["problem"], strict=True))
    for name, counts in parts.items():
        others = set(zip(counts["benchmark"], counts["problem"], strict=True))
        if others != asked:
            raise ParameterError(
                f"{file}: {name!r} and {first!r} answered different problems ({len(others)} and {len(asked)}), so "
                "their scores do not compare"
            )
        for key in golds[name].keys() & golds[first].keys():
            if golds[name][key] != golds[first][key]:
                raise ParameterError(
                    f"{file}: the gold of {'/'.join(key)} is {golds[name][key][0]!r} for {name!r} and "
                    f"{golds[first][key][0]!r} for {first!r}, so they did not solve the same"
                )
        for entry in MUST_AGREE:
            mine, its = origins[name].get(entry), origins[first].get(entry)
            if mine != its:
                raise ParameterError(
                    f"{file}: the samples of {name!r} were drawn with {entry} {mine!r}, those of {first!r} with {its!r}"
                )
