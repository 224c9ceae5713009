"""Tables: every number of all ten again by a second route, to 1e-9.

That route reads the parquet files itself and shares no code with the package: Pass@k in exact fractions, own averages,
lines by statsmodels and scipy, rank correlations by scipy, and plain loops over splits.
"""

from __future__ import annotations

import itertools
import math
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from example_records import BENCHMARKS, make_records, write_records
from scipy import stats

from quagmire_utils.analysis import claims, tables
from quagmire_utils.analysis.records import base_models, candidate_frame, select_candidates
from quagmire_utils.core import published as paper
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.records import CHECKPOINT, Records, load_records
from quagmire_utils.evaluation.measured import (
    evaluation_table,
    pass_at_k_curves,
    records_summary,
    show_evaluation,
    time_table,
)
from quagmire_utils.evaluation.pass_at_k.averages import checkpoint_scores

LLAMA, MISTRAL = paper.FAMILIES
CLOSE = {"rel": 0, "abs": 1e-9}
R2_CLOSE = {"rel": 1e-9, "abs": 1e-9}  # two candidates almost alike give an R2 of minus thousands
SHORT = 2000  # splits that a default test run loops over; the rest is slow


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Records:
    return load_records(write_records(tmp_path_factory.mktemp("records") / "example", make_records()))


@pytest.fixture(scope="module")
def frame(records) -> pd.DataFrame:
    return candidate_frame(records)


def macro_pass_at_k(counts: pd.DataFrame, k: int) -> float:
    """Eq. 1 in exact fractions, averaged over problems and then over benchmarks."""
    means = []
    for benchmark in BENCHMARKS:
        rows = counts[counts["benchmark"] == benchmark]
        values = [
            1 - Fraction(math.comb(n - c, k), math.comb(n, k)) for n, c in zip(rows["n"], rows["correct"], strict=True)
        ]
        means.append(sum(values) / len(values))
    return float(sum(means) / len(means))


def by_hand(records: Records, scenario: str = "dataset", k: int = 64) -> pd.DataFrame:
    """Predictors and outcome of each SFT candidate, by loops over the raw records."""
    rows = []
    chosen = records.candidates[
        (records.candidates["scenario"] == scenario) & (records.candidates["selection"] != "none")
    ]
    for candidate in chosen["candidate"]:
        counts = records.counts[records.counts["candidate"] == candidate]
        before, after = counts[counts["stage"] == "sft"], counts[counts["stage"] == "rl"]
        finals = [macro_pass_at_k(one, 1) for _, one in after.groupby(["rl_run", "checkpoint"])]
        lasts = [
            macro_pass_at_k(run[run["checkpoint"] == run["checkpoint"].max()], 1) for _, run in after.groupby("rl_run")
        ]
        loss = records.generalization_loss.set_index("candidate").loc[candidate, "nll"]
        row = {"candidate": candidate, "pass1": macro_pass_at_k(before, 1), "pass_k": macro_pass_at_k(before, k)}
        rows.append({**row, "gen_loss": loss, "outcome": max(finals), "outcome_last": np.mean(lasts)})
    return pd.DataFrame(rows).set_index("candidate")


def predictions(known: pd.DataFrame, column: str, fit: list[int], held: list[int], outcome: str) -> np.ndarray:
    """The paper's prediction with numpy.polyfit: one line, or the mean of two separate lines."""
    names = ["gen_loss", "pass_k"] if column == "avg_genloss_pass_k" else [column]
    lines = []
    for name in names:
        slope, intercept = np.polyfit(known[name].to_numpy()[fit], known[outcome].to_numpy()[fit], 1)
        lines.append(slope * known[name].to_numpy()[held] + intercept)
    return np.mean(lines, axis=0)


def r2_by_hand(known: pd.DataFrame, column: str, fit, outcome: str = "outcome") -> float:
    held = [i for i in range(len(known)) if i not in set(fit)]
    predicted, actual = predictions(known, column, list(fit), held, outcome), known[outcome].to_numpy()[held]
    return 1 - ((actual - predicted) ** 2).sum() / ((actual - actual.mean()) ** 2).sum()


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 64])
def test_candidate_frame_against_exact_fractions(records, k):
    ours = candidate_frame(records, k=k).set_index("candidate")
    for scenario in ("dataset", "instance"):
        expected = by_hand(records, scenario, k)
        for column in expected:
            assert ours.loc[expected.index, column].to_numpy() == pytest.approx(expected[column].to_numpy(), **CLOSE)
        gain = (expected["outcome"] - expected["pass1"]).to_numpy()
        assert ours.loc[expected.index, "gain"].to_numpy() == pytest.approx(gain, **CLOSE)


def test_standard_errors_of_checkpoint_scores(records):
    counts = records.counts[(records.counts["candidate"] == "random-250x4") & (records.counts["stage"] == "sft")]
    score = checkpoint_scores(counts, [1]).iloc[0]
    share = counts["correct"] / counts["n"]
    groups = [share[counts["benchmark"] == b] for b in BENCHMARKS]
    assert score["se@1"] == pytest.approx(math.sqrt(sum(stats.sem(g) ** 2 for g in groups)) / 3, **CLOSE)
    noise = [(g * (1 - g) / 63).sum() / len(g) ** 2 for g in groups]
    assert score["sampling_se"] == pytest.approx(math.sqrt(sum(noise)) / 3, **CLOSE)


def test_sampling_error_is_the_spread_of_repeated_measurements():
    """Drawn again and again from the same probabilities, Pass@1 spreads as sampling_se says, not as se@1 does."""
    rng = np.random.default_rng(0)
    ease = {(b, i): rng.uniform(0.05, 0.95) for b, size in BENCHMARKS.items() for i in range(size)}
    parts = []
    for repeat in range(400):
        keys = dict(zip(CHECKPOINT, ("f", "c", "rl", 0, repeat), strict=True))
        parts += [
            {**keys, "benchmark": b, "problem": i, "n": 16, "correct": rng.binomial(16, p)}
            for (b, i), p in ease.items()
        ]
    scores = checkpoint_scores(pd.DataFrame(parts), [1])
    assert scores["pass@1"].std() == pytest.approx(scores["sampling_se"].mean(), rel=0.12)
    assert scores["se@1"].mean() > 1.5 * scores["sampling_se"].mean()


def test_unfinished_candidates_are_left_out_and_counted(records):
    counts = records.counts
    gone = (counts["candidate"] == "random-250x1") & (counts["stage"] == "rl")
    loss = records.generalization_loss
    partial = replace(
        records, counts=counts[~gone], generalization_loss=loss[loss["candidate"] != "random-500x2"].copy()
    )
    frame = candidate_frame(partial)
    assert math.isnan(frame.set_index("candidate").loc["random-250x1", "outcome"])
    assert len(select_candidates(frame, LLAMA)) == 7
    table = tables.compute_table(frame, 1)
    mine = table[table["family"] == "micro-llama"]
    assert set(mine["n_candidates"]) == {6}
    assert set(mine["left_out"]) == {1}  # it has an outcome but no loss


def test_base_model_takes_no_part(records, frame):
    counts = records.counts.copy()
    counts.loc[counts["candidate"] == "base", "correct"] = 0
    changed = candidate_frame(replace(records, counts=counts))
    for number in (1, 2):
        pd.testing.assert_frame_equal(tables.compute_table(frame, number), tables.compute_table(changed, number))
    assert list(base_models(frame, LLAMA)["candidate"]) == ["base"]
    assert "base" not in set(select_candidates(frame, "micro-llama")["candidate"])


def test_records_that_are_not_there(tmp_path, records):
    with pytest.raises(ParameterError, match=r"candidates.parquet is missing\); `./reproduce.sh --profile mini"):
        load_records(tmp_path / "mini")
    frames = {name: getattr(records, name) for name in ("candidates", "generalization_loss", "rl_curves", "cells")}
    empty = write_records(tmp_path / "empty", {**frames, "counts": records.counts.iloc[:0]})
    with pytest.raises(ParameterError, match="no checkpoint has been measured"):
        load_records(empty)
    (empty / "manifest.json").unlink()
    with pytest.raises(ParameterError, match=r"manifest\.json is missing"):
        load_records(empty)


def test_bad_records_are_refused(records, frame):
    with pytest.raises(ParameterError, match=r"k must be at most 64, .*not 65"):
        candidate_frame(records, k=65)
    with pytest.raises(ParameterError, match="measured on 34 of the 35 problems"):
        candidate_frame(replace(records, counts=records.counts.drop(index=100)))
    with pytest.raises(ParameterError, match="more than once"):
        candidate_frame(replace(records, counts=pd.concat([records.counts, records.counts.iloc[[3]]])))
    with pytest.raises(ParameterError, match="lacks the column"):
        candidate_frame(replace(records, counts=records.counts.drop(columns="correct")))
    with pytest.raises(ParameterError, match="outcome must be one of"):
        tables.compute_table(frame, 1, outcome="best")
    with pytest.raises(ParameterError, match="table must be one of 1-10"):
        tables.compute_table(frame, 11)
    for compute in (tables.compute_table, tables.compute_supplement, tables.compute_sensitivity):
        for wrong, said in (
            (None, "frame must be a DataFrame from candidate_frame"),
            (frame.iloc[:0], "frame: no candidate"),
            (frame.drop(columns="pass_k"), r"frame: lacks the column\(s\) pass_k"),
            (frame.drop(columns="stands_for"), r"frame: lacks the column\(s\) stands_for"),
            (pd.concat([frame, frame.iloc[[2]]]), r"frame: .* more than once \(1 row"),
        ):
            with pytest.raises(ParameterError, match=said):
                compute(wrong, 3)
        for number in (1, 2):
            for name, value in (("n_splits", 0), ("n_splits", -5), ("n_splits", True), ("seed", -1), ("seed", 2.5)):
                with pytest.raises(ParameterError, match=f"{name} must be a whole number"):
                    compute(frame, number, **{name: value})
    with pytest.raises(ParameterError, match="confidence must lie between 0 and 1"):
        tables.compute_table(frame, 2, confidence=95)
    with pytest.raises(ParameterError, match="has 0 dataset-level candidates"):
        select_candidates(frame, MISTRAL, at_least=2)


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_folder(tmp_path_factory) -> Path:
    return write_records(tmp_path_factory.mktemp("records") / "full", make_records(full=True))


@pytest.fixture(scope="module")
def full_frame(full_folder) -> pd.DataFrame:
    return candidate_frame(load_records(full_folder))


@pytest.fixture(scope="module")
def measured(full_folder) -> pd.DataFrame:
    return second_route(full_folder)


def second_route(folder: Path, k: int = 64) -> pd.DataFrame:
    """Predictors and outcomes of every SFT candidate from the parquet files, one row per candidate."""
    counts, losses = pd.read_parquet(folder / "counts.parquet"), pd.read_parquet(folder / "generalization_loss.parquet")
    by_candidate = dict(list(counts.groupby(["family", "candidate"])))
    rows = []
    for facts in pd.read_parquet(folder / "candidates.parquet").to_dict("records"):
        if facts["selection"] == "none":
            continue
        mine = by_candidate[facts["family"], facts["candidate"]]
        before, after = mine[mine["stage"] == "sft"], mine[mine["stage"] == "rl"]
        scores = {key: macro_pass_at_k(one, 1) for key, one in after.groupby(["rl_run", "checkpoint"])}
        last = after["checkpoint"].max()
        loss = losses[(losses["family"] == facts["family"]) & (losses["candidate"] == facts["candidate"])]
        row = {
            "pass1": macro_pass_at_k(before, 1),
            "pass_k": macro_pass_at_k(before, k),
            "gen_loss": loss["nll"].item(),
        }
        row["outcome"] = max(scores.values())
        row["outcome_last"] = np.mean([score for (_, step), score in scores.items() if step == last])
        rows.append({**facts, **row})
    return pd.DataFrame(rows)


def groups_of(measured: pd.DataFrame, number: int, row: str, model: str, scenario: str) -> list[pd.DataFrame]:
    """The candidates behind a row of the paper's table; three groups where it averages over SFT budgets."""
    mine = [
        model == facts["stands_for"] and scenario in facts["scenario"].split("+")
        for facts in measured.to_dict("records")
    ]
    chosen = measured[mine]
    by_budget = [chosen[chosen["budget"] == budget] for budget in ("low", "medium", "high")]
    if number == 3 or row == "Average":
        return by_budget
    budget = {"Low": 0, "Medium": 1, "High": 2}.get(row.split()[0])
    return [chosen] if budget is None else [by_budget[budget]]


def columns_of(column: str) -> list[str]:
    return ["gen_loss", "pass_k"] if column == "avg_genloss_pass_k" else [column]


def fitted(group: pd.DataFrame, column: str, fit: list[int], at: list[int], outcome: str = "outcome") -> np.ndarray:
    """Mean of the predictions of separate least-squares lines."""
    y = group[outcome].to_numpy()
    lines = []
    for name in columns_of(column):
        x = group[name].to_numpy()
        flat = len(set(x[fit])) == 1  # Pass@64 of 64 answers has ties
        if flat:
            lines.append(np.full(len(at), y[fit].mean()))
            continue
        line = stats.linregress(x[fit], y[fit])
        lines.append(line.intercept + line.slope * x[at])
    return np.mean(lines, axis=0)


def rank_correlation(group: pd.DataFrame, column: str, outcome: str = "outcome") -> float:
    lines = [
        sm.OLS(group[outcome].to_numpy(), sm.add_constant(group[name].to_numpy())).fit().fittedvalues
        for name in columns_of(column)
    ]
    return stats.spearmanr(np.mean(lines, axis=0), group[outcome]).statistic


def drawn_r2(group: pd.DataFrame, column: str, n_fit: int, n_splits: int, seed: int) -> list[float]:
    """R2 over random splits, one after the other; a split is the first n_fit places of a random order."""
    values = []
    for keys in np.random.default_rng(seed).random((n_splits, len(group))):
        order = np.argsort(keys)
        fit, held = order[:n_fit].tolist(), sorted(order[n_fit:].tolist())
        actual = group["outcome"].to_numpy()[held]
        left = actual - fitted(group, column, fit, held)
        values.append(1 - (left**2).sum() / ((actual - actual.mean()) ** 2).sum())
    return values


def every_r2(group: pd.DataFrame, column: str, n_fit: int) -> list[float]:
    """R2 over all splits in plain Python."""
    y = group["outcome"].tolist()
    series = [group[name].tolist() for name in columns_of(column)]
    values = []
    for fit in itertools.combinations(range(len(y)), n_fit):
        held = [i for i in range(len(y)) if i not in fit]
        mean_y = sum(y[i] for i in fit) / n_fit
        predicted = [0.0] * len(held)
        for x in series:
            mean_x = sum(x[i] for i in fit) / n_fit
            spread = sum((x[i] - mean_x) ** 2 for i in fit)
            slope = 0.0
            if len({x[i] for i in fit}) > 1:  # Pass@64 of 64 answers has ties
                slope = sum((x[i] - mean_x) * (y[i] - mean_y) for i in fit) / spread
            predicted = [
                p + (mean_y + slope * (x[i] - mean_x)) / len(series) for p, i in zip(predicted, held, strict=True)
            ]
        mean = sum(y[i] for i in held) / len(held)
        left = sum((y[i] - p) ** 2 for p, i in zip(predicted, held, strict=True))
        values.append(1 - left / sum((y[i] - mean) ** 2 for i in held))
    return values


def cells_with_groups(table: pd.DataFrame, measured: pd.DataFrame, number: int):
    for (row, model), cells in table.groupby(["row", "model"], sort=False):
        cells = cells.set_index("column")
        yield row, model, cells, groups_of(measured, number, row, model, cells["scenario"].iloc[0])


def test_second_route_gives_the_candidate_frame(full_frame, measured):
    ours = full_frame.set_index(["family", "candidate"]).loc[
        pd.MultiIndex.from_frame(measured[["family", "candidate"]])
    ]
    assert len(ours) == len(full_frame) - 3  # the base models
    for column in ("pass1", "pass_k", "gen_loss", "outcome", "outcome_last"):
        assert ours[column].to_numpy() == pytest.approx(measured[column].to_numpy(), **CLOSE)


@pytest.mark.parametrize("number", [1, 3, 8, 10])
@pytest.mark.parametrize("outcome", ["outcome", "outcome_last"])
def test_tables_of_rank_correlations_by_a_second_route(full_frame, measured, number, outcome):
    table = tables.compute_table(full_frame, number, outcome=outcome)
    assert (table["status"] == "measured").all()
    assert len(table) == len(paper.published(number))
    for _, _, cells, groups in cells_with_groups(table, measured, number):
        assert cells["n_candidates"].iloc[0] == sum(map(len, groups))
        expected = {
            column: np.mean([rank_correlation(group, column, outcome) for group in groups]) for column in cells.index
        }
        for column, value in expected.items():
            cell = cells.loc[column]
            assert cell["value"] == pytest.approx(value, **CLOSE)
            assert not cell["low"] > cell["high"]
            if column != "pass1":
                assert cell["gain"] == pytest.approx(value - expected["pass1"], **CLOSE)


@pytest.mark.parametrize("number", [2, 4, 5, 6, 7, 9])
def test_tables_of_r2_by_a_second_route(full_frame, measured, number):
    table = tables.compute_table(full_frame, number, n_splits=40, seed=5)
    assert (table["status"] == "measured").all()
    assert len(table) == len(paper.published(number))
    for row, _, cells, (group,) in cells_with_groups(table, measured, number):
        n_fit = int(row.split(":")[0]) if ":" in row else len(group) // 2
        assert (cells[["n_candidates", "n_fit", "n_validation"]] == [len(group), n_fit, len(group) - n_fit]).all(
            axis=None
        )
        short = math.comb(len(group), n_fit) <= SHORT
        baseline = every_r2(group, "pass1", n_fit) if short else []
        for column, cell in cells.iterrows():
            sample = np.array(drawn_r2(group, column, n_fit, 40, 5))
            assert cell["value"] == pytest.approx(sample.mean(), **R2_CLOSE)
            assert cell["std"] == pytest.approx(sample.std(ddof=1), **R2_CLOSE)
            assert cell["standard_error"] == pytest.approx(sample.std(ddof=1) / math.sqrt(40), **R2_CLOSE)
            assert cell["n_splits"] == 40
            assert cell["all_splits"] == math.comb(len(group), n_fit)
            if column != "pass1":
                assert cell["gain"] == pytest.approx(cell["value"] - cells.loc["pass1", "value"], **R2_CLOSE)
            if short:
                check_every_split(cell, np.array(every_r2(group, column, n_fit)), np.array(baseline))


def check_every_split(cell: pd.Series, r2: np.ndarray, baseline: np.ndarray) -> None:
    assert cell["all_value"] == pytest.approx(r2.mean(), **R2_CLOSE)
    assert cell["all_std"] == pytest.approx(r2.std(), **R2_CLOSE)
    assert cell["all_median"] == pytest.approx(np.median(r2), **R2_CLOSE)
    if cell.name != "pass1":
        assert cell["better_share"] == pytest.approx((r2 > baseline).mean(), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4, 5, 6, 7, 9])
def test_every_split_by_a_second_route(full_frame, measured, number):
    table = tables.compute_table(full_frame, number, n_splits=10)
    for row, _, cells, (group,) in cells_with_groups(table, measured, number):
        n_fit = int(row.split(":")[0]) if ":" in row else len(group) // 2
        baseline = np.array(every_r2(group, "pass1", n_fit))
        for column, cell in cells.iterrows():
            check_every_split(cell, np.array(every_r2(group, column, n_fit)), baseline)


@pytest.mark.parametrize("number", [3, 4, 7, 8, 9, 10])
def test_within_each_budget_by_a_second_route(full_frame, measured, number):
    table = tables.compute_supplement(full_frame, number, n_splits=30, seed=2)
    shown = {3: ["low", "medium", "high", "all candidates"], 8: ["all candidates"], 10: ["all candidates"]}
    expected_bases = shown.get(number, ["low", "medium", "high", "mean of budgets"])
    models = {3: 2, 4: 2}.get(number, 1)
    assert table.drop_duplicates(["model", "row"])["basis"].tolist() == expected_bases * models
    for (model, basis), cells in table.groupby(["model", "basis"], sort=False):
        row = "Average" if basis == "mean of budgets" else basis.capitalize()
        groups = groups_of(measured, 8, row, model, "instance")
        for _, cell in cells.iterrows():
            if cell["statistic"] == "spearman":
                value = rank_correlation(groups[0], cell["column"])
            else:
                means = [np.mean(drawn_r2(group, cell["column"], len(group) // 2, 30, 2)) for group in groups]
                value = np.mean(means)
            assert cell["value"] == pytest.approx(value, **R2_CLOSE)


def test_sensitivity_by_a_second_route(full_frame, measured):
    table = tables.compute_sensitivity(full_frame, 6).set_index(["row", "column", "kind"])
    group = groups_of(measured, 6, "3:7", MISTRAL, "dataset")[0]
    y = group["outcome"].to_numpy()
    for column in paper.COLUMNS:
        r2, correlations = np.array(every_r2(group, column, 3)), []
        for fit in itertools.combinations(range(10), 3):
            held = [i for i in range(10) if i not in fit]
            correlations.append(stats.pearsonr(fitted(group, column, list(fit), held), y[held]).statistic ** 2)
        for kind, values in (("r2", r2), ("squared_correlation", np.array(correlations)), ("clipped_r2", r2.clip(0))):
            cell = table.loc["3:7", column, kind]
            assert cell["value"] == pytest.approx(values.mean(), **R2_CLOSE)
            assert cell["std"] == pytest.approx(values.std(), **R2_CLOSE)
            assert cell["splits"] == 120
        assert table.loc[("3:7", column, "r2"), "below_zero"] == pytest.approx((r2 < 0).mean(), **CLOSE)

    table = tables.compute_sensitivity(full_frame, 1).set_index(["model", "column", "kind"])
    for model in (LLAMA, MISTRAL):
        group = groups_of(measured, 1, model, model, "dataset")[0]
        everyone = list(range(len(group)))
        for column in paper.COLUMNS:
            alone = [fitted(group, column, [j for j in everyone if j != i], [i])[0] for i in everyone]
            truth = {"in_sample": rank_correlation(group, column)}
            truth["leave_one_out"] = stats.spearmanr(alone, group["outcome"]).statistic
            for kind, value in truth.items():
                assert table.loc[(model, column, kind), "value"] == pytest.approx(value, **CLOSE)
            gain = table.loc[(model, column, "leave_one_out"), "gain"]
            base = table.loc[(model, "pass1", "leave_one_out"), "value"]
            if column != "pass1":
                assert gain == pytest.approx(truth["leave_one_out"] - base, **CLOSE)


def test_sensitivity_in_words(full_frame):
    table = tables.compute_sensitivity(full_frame, 9)
    two = table[(table["row"] == "10:2") & (table["kind"] == "squared_correlation")]
    assert two["value"].to_numpy() == pytest.approx(1)  # any two candidates lie on a line
    compared = table[table["column"] == "pass_k"]
    changing = [
        cells for _, cells in compared.groupby("row") if cells["gain"].min() < -1e-9 and cells["gain"].max() > 1e-9
    ]
    text = tables.describe_sensitivity(table)
    assert f"in {len(changing)} of 7 comparison(s)" in text
    assert text.count("\n- ") == len(changing)
    shown = tables.show_sensitivity(table)
    assert len(shown) == 3 * 7
    nothing = tables.compute_sensitivity(full_frame, 9, family="micro-llama")
    assert nothing.empty
    assert "no definitions to compare" in tables.describe_sensitivity(nothing)
    assert tables.show_sensitivity(nothing).index[0][0] == "not run"


def test_rows_printed_twice_are_found():
    """Table 2's Llama row is not the half split, and Table 3 is the average of Tables 8 and 10."""
    assert tables.printed_again(2, LLAMA) == ((5, "5:11"),)
    assert tables.printed_again(2, MISTRAL) == ((6, "5:5"),)
    assert tables.printed_again(3, LLAMA) == ((8, "Average"),)
    assert tables.printed_again(3, MISTRAL) == ((10, "Average"),)
    assert tables.printed_again(4, LLAMA) == ((7, "8:9"),)
    assert tables.printed_again(4, MISTRAL) == ((9, "6:6"),)
    assert tables.printed_again(5, "8:8") == ()
    assert "5 of 16 candidates, not on the half that the caption names" in tables.describe_printed(2)
    assert "5 of 10 candidates, the half" in tables.describe_printed(2)
    assert "the difference is +0.15, printed is +0.25" in tables.describe_printed(10)


def test_table_2_also_at_the_printed_fit_size(full_frame):
    extra, sizes = tables.compute_supplement(full_frame, 2), tables.compute_table(full_frame, 5)
    same = sizes[sizes["row"] == "5:11"]
    columns = [*tables.NUMBERS, "row", "source", "paper", "paper_plus_minus", "n_fit"]
    pd.testing.assert_frame_equal(extra[columns].reset_index(drop=True), same[columns].reset_index(drop=True))


def test_choosing_a_family_and_predictors(full_frame):
    table = tables.compute_table(full_frame, 1, family="micro-mistral", predictors="pass_k")
    assert table["model"].tolist() == [MISTRAL, MISTRAL]
    assert table["column"].tolist() == ["pass1", "pass_k"]
    assert tables.compute_table(full_frame, 1, family=MISTRAL, predictors=["pass_k"]).equals(table)
    whole = tables.compute_table(full_frame, 1).set_index(["model", "column"])
    assert table.set_index("column").loc["pass_k", "value"] == whole.loc[(MISTRAL, "pass_k"), "value"]
    # a table of another model stays as the paper printed it, and says so
    other = tables.compute_table(full_frame, 5, family="micro-mistral")
    assert set(other["status"]) == {"not chosen"}
    assert other[list(tables.NUMBERS)].isna().all(axis=None)
    assert "not chosen" in tables.describe_table(other)
    assert len(tables.show_table(other, "full")) == 16
    # a predictor that the paper leaves out of a table is measured, with nothing beside it
    loss = tables.compute_table(full_frame, 3, predictors=["gen_loss"]).set_index(["model", "column"])
    assert loss.loc[(LLAMA, "gen_loss"), "status"] == "measured"
    assert math.isnan(loss.loc[(LLAMA, "gen_loss"), "paper"])
    shown = tables.show_table(loss.reset_index(), "full")
    assert shown.loc[(LLAMA, f"paper: Table 3, row {LLAMA}"), "Generalization loss"] == "not in the paper"
    assert "(not in the paper)" in tables.describe_table(loss.reset_index())
    for bad, message in (
        ({"family": "Llama"}, "family must be all or one of"),
        ({"predictors": "pass8"}, "not 'pass8'"),
    ):
        with pytest.raises(ParameterError, match=message):
            tables.compute_table(full_frame, 1, **bad)


def test_what_differs_from_the_paper_is_said():
    rng = np.random.default_rng(1)
    outcome, noise = rng.uniform(size=40), rng.uniform(size=40)
    worse = ideal_frame(outcome, pass1=outcome, gen_loss=noise, pass_k=noise)
    said = tables.describe_table(tables.compute_table(worse, 1))
    assert "Other than in the paper" in said
    assert "Generalization loss predicts worse than Pass@1" in said
    assert "the best predictor is Pass@1; in the paper, Mean of both" in said
    assert "lies outside of our 95 % interval" in said
    ranks = np.arange(12.0)
    swapped = ranks[[1, 0, 2, 3, 5, 4, 6, 7, 8, 10, 9, 11]]
    like = ideal_frame(ranks, pass1=ranks[[3, 1, 4, 0, 6, 2, 9, 5, 7, 11, 8, 10]], gen_loss=-swapped, pass_k=swapped)
    table = tables.compute_table(like, 1)
    table.loc[table["column"] == "avg_genloss_pass_k", "value"] = 0.98
    assert "no interval excludes a number of the paper" in tables.describe_table(table)


def test_a_saturated_pass_at_k_is_said():
    """Where most candidates solve everything within k answers, Pass@k cannot rank them, and the text says so."""
    outcome = np.linspace(0.2, 0.8, 10)
    full = np.array([0.9, 0.95, 0.98, *[0.995] * 3, *[1.0] * 4])
    table = tables.compute_table(ideal_frame(outcome, pass1=outcome, gen_loss=-outcome, pass_k=full), 1)
    assert set(table.loc[table["model"] == LLAMA, "n_ceiling"]) == {7}
    assert "Pass@64 is 0.99 or more for 7 of 10 candidates" in tables.describe_table(table)
    apart = tables.compute_table(ideal_frame(outcome, pass1=outcome, gen_loss=-outcome, pass_k=outcome), 1)
    assert "ceiling" not in tables.describe_table(apart)


def test_headline():
    rng = np.random.default_rng(3)
    outcome, noise = rng.uniform(size=12), rng.uniform(size=12)
    frame = ideal_frame(outcome, pass1=noise, gen_loss=-outcome, pass_k=outcome)
    printed, ours, scale = tables.headline(tables.compute_table(frame, 6))
    assert (printed, ours, scale) == (
        "R² Mistral: Pass@1 0.29, loss 0.79, Pass@64 0.57, both 0.72",
        "R² Mistral: not run",
        "",
    )
    table = tables.compute_table(frame, 2)
    printed, ours, scale = tables.headline(table)
    assert printed.startswith("R² Llama3: Pass@1 0.57, loss 0.88, Pass@64 0.87, both 0.94; Mistral: ")
    median = table.set_index(["model", "column"]).loc[(LLAMA, "pass1"), "all_median"]
    assert ours.startswith(f"median R² f: Pass@1 {median:.2f}, loss 1.00, Pass@64 1.00, both 1.00; Mistral: not run")
    assert scale == "f n = 12"
    assert tables.headline(tables.compute_table(frame, 8))[0] == "Spearman Llama3: Pass@1 0.69, Pass@64 0.94"


def test_numbers_of_any_size_are_readable():
    text = tables.show.number_text
    assert [text(v) for v in (0.123, -12.3, -999.994, -6.1e6, -2e11, math.nan)] == [
        *("0.12", "-12.30", "-999.99", "-6e6", "-2e11", "undefined")
    ]
    assert text(1234.0, "+") == "+1e3"


def test_a_useless_predictor_has_a_one_sided_interval_and_the_caption_says_why():
    rng = np.random.default_rng(3)
    outcome, noise = rng.uniform(size=40), rng.uniform(size=40)
    table = tables.compute_table(ideal_frame(outcome, pass1=noise, gen_loss=noise, pass_k=noise), 1)
    low, high = table.loc[table["column"] == "pass1", ["low", "high"]].iloc[0]
    assert -0.05 < low < 0.05 < high
    assert "the sign of its slope follows the resample" in tables.table_caption(table, "example", 7)
    fitted = tables.compute_table(ideal_frame(outcome, pass1=noise, gen_loss=noise, pass_k=noise), 2)
    assert "sign of its slope" not in tables.table_caption(fitted, "example", 7)


def test_too_few_for_an_interval():
    """Four candidates in the same order are no certainty, and a perfect order has no spread to resample."""
    ranks = np.arange(4.0)
    few = tables.compute_table(ideal_frame(ranks, pass1=ranks, gen_loss=-ranks, pass_k=ranks), 1)
    assert few.loc[few["model"] == LLAMA, "value"].tolist() == pytest.approx([1] * 4)
    assert few[["low", "high", "gain_low", "gain_high"]].isna().all(axis=None)
    assert set(few.loc[few["gain"].notna(), "verdict"]) == {"undecided"}
    ranks = np.arange(9.0)
    perfect = tables.compute_table(ideal_frame(ranks, pass1=ranks, gen_loss=-ranks, pass_k=ranks), 1)
    assert perfect["low"].isna().all()


def test_interval_of_a_gain_in_r2_is_the_jackknife(records, frame):
    known = by_hand(records)
    mine = tables.compute_table(frame, 2).set_index(["family", "column"]).loc["micro-llama"]
    gains = []
    for left_out in known.index:
        rest = known.drop(index=left_out)
        fits = list(itertools.combinations(range(7), 4))
        gains.append(np.mean([r2_by_hand(rest, "gen_loss", f) - r2_by_hand(rest, "pass1", f) for f in fits]))
    width = stats.t.ppf(0.975, 7) * math.sqrt(7 / 8 * ((gains - np.mean(gains)) ** 2).sum())
    cell = mine.loc["gen_loss"]
    assert cell["gain_high"] - cell["gain"] == pytest.approx(width, rel=1e-9)
    assert cell["gain"] - cell["gain_low"] == pytest.approx(width, rel=1e-9)


def test_fit_sizes_are_the_same_table_with_other_rows(frame):
    halves = tables.compute_table(frame, 2)
    sizes = tables.compute_table(frame, 5)
    half = sizes[sizes["row"] == "4:12"].set_index("column")
    same = halves[halves["family"] == "micro-llama"].set_index("column")
    numbers = list(tables.NUMBERS)
    pd.testing.assert_frame_equal(half[numbers], same[numbers])
    assert set(sizes.loc[sizes["row"] == "7:9", "status"]) == {"too few candidates"}  # one would be left to predict


def test_an_average_needs_every_budget(full_frame):
    rows = ["Low (<2B tokens)", "Medium (2-5B tokens)", "High (5-20B tokens)"]
    whole = tables.compute_table(full_frame, 8).set_index(["row", "column"])
    mean = np.mean([whole.loc[(row, "pass1"), "value"] for row in rows])
    assert whole.loc[("Average", "pass1"), "value"] == pytest.approx(mean, **CLOSE)
    lost = tables.compute_table(full_frame[full_frame["budget"] != "high"], 8).set_index(["row", "column"])
    assert lost.loc[(rows[0], "pass1"), "value"] == whole.loc[(rows[0], "pass1"), "value"]
    assert lost.loc[(rows[2], "pass1"), "status"] == "not run"
    assert lost.loc[("Average", "pass1"), "status"] == "too few candidates"
    assert math.isnan(lost.loc[("Average", "pass1"), "value"])


@pytest.mark.parametrize("number", range(1, 11))
def test_families_that_were_not_run_are_never_filled_in(frame, number):
    table = tables.compute_table(frame, number)
    absent = table[table["model"] == MISTRAL]
    assert (absent["status"] == "not run").all()
    assert absent[list(tables.NUMBERS)].isna().all(axis=None)
    assert len(table) == len(paper.published(number))
    shown = tables.show_table(table, "example")
    own = shown[shown.index.get_level_values(1) == "not run"]
    titles = [tables.predictor_title(column) for column in table["column"].unique()]
    assert len(own) == absent["row"].nunique()
    assert own[titles].eq("not run").all(axis=None)
    text = tables.describe_table(table)
    if len(absent):
        assert text.count(f"**{MISTRAL}**: not run") == 1


def test_several_families(tmp_path):
    families = {"one": LLAMA, "two": LLAMA, "three": MISTRAL, "four": "Qwen3-4B-base"}
    records = load_records(write_records(tmp_path / "wide", make_records(families, runs=1, n=8, rl_n=4)))
    table = tables.compute_table(candidate_frame(records, k=8), 1)
    assert table.groupby("model")["family"].unique().map(list).to_dict() == {LLAMA: ["one", "two"], MISTRAL: ["three"]}
    assert (table["status"] == "measured").all()
    shown = tables.show_table(table, "wide")
    assert "Pass@8 (paper: 64)" in shown.columns
    assert len(shown) == 5  # two paper rows and three measured


def test_paper_cells_are_shown_as_printed(frame):
    shown = tables.show_table(tables.compute_table(frame, 2), "example")
    line = shown.loc[(LLAMA, f"paper: Table 2, row {LLAMA}")]
    assert line["Pass@1 (baseline)"] == "0.57 ± 0.29"
    assert line["Mean of both: loss, Pass@64"] == "0.94 ± 0.04 (+0.37)"
    own = shown.loc[(LLAMA, "micro-llama: measured (example)")]
    assert own["splits"] == "100 random"
    assert own["fitted: predicted"] == "4:4"
    assert sum("(+" in text for text in own) <= 1  # a gain at the best predictor only


@pytest.mark.parametrize("number", range(1, 11))
def test_changing_a_record_on_disk_moves_the_table(full_folder, full_frame, tmp_path, number):
    """One RL checkpoint of one candidate per family is another one; in R2 tables a single problem's count is enough."""
    counts = pd.read_parquet(full_folder / "counts.parquet")
    best = full_frame[full_frame["candidate"] == "random-512x4"]  # at dataset and at instance level
    changed = shutil.copytree(full_folder, tmp_path / "changed")
    spearman = number in (1, 3, 8, 10)
    for row in best.itertuples():
        place = (counts["family"] == row.family) & (counts["candidate"] == row.candidate) & (counts["stage"] == "rl")
        if not spearman:
            place &= (counts["rl_run"] == row.best_run) & (counts["checkpoint"] == row.best_checkpoint)
        places = counts.index[place & (counts["correct"] > 0)]
        turned = counts.loc[places, "correct"] if spearman else 1
        counts.loc[places if spearman else places[:1], "correct"] -= turned
        counts.loc[places if spearman else places[:1], "wrong"] += turned
    counts.to_parquet(changed / "counts.parquet")
    before, after = (
        tables.compute_table(full_frame, number),
        tables.compute_table(candidate_frame(load_records(changed)), number),
    )
    moved = (before["value"] != after["value"]).groupby([before["row"], before["model"]]).any()
    touched = [
        name for name in moved.index if name[0].split()[0] not in ("Low", "Medium")
    ]  # the candidate's budget is high
    assert moved[touched].all()
    assert not tables.show_table(before, "full").equals(tables.show_table(after, "full"))
    untouched = [name for name in moved.index if name not in touched]
    assert not moved[untouched].any()


def ideal_frame(outcome: np.ndarray, **predictors: np.ndarray) -> pd.DataFrame:
    names = {"family": "f", "stands_for": LLAMA, "scenario": "dataset", "selection": "random", "k": 64}
    frame = pd.DataFrame({**predictors, "outcome": outcome, "outcome_last": outcome}).assign(**names)
    return frame.assign(candidate=[f"c{i}" for i in range(len(frame))])


def test_verdicts_follow_the_numbers():
    rng = np.random.default_rng(1)
    outcome, noise = rng.uniform(size=40), rng.uniform(size=40)
    good = ideal_frame(outcome, pass1=noise, gen_loss=-outcome, pass_k=outcome + 0.01 * noise)
    bad = ideal_frame(outcome, pass1=outcome, gen_loss=noise, pass_k=noise)
    for number in (1, 2):
        better = tables.compute_table(good, number)
        assert set(better.loc[better["gain"].notna(), "verdict"]) == {"holds"}
        assert "3 comparison(s): 3 hold." in tables.describe_table(better)
        worse = tables.compute_table(bad, number).set_index("column")
        assert set(worse.loc[["gen_loss", "pass_k"], "verdict"]) - {"", "undecided"} == {"does not hold"}
    few = tables.compute_table(good.iloc[:3], 1)
    assert set(few.loc[few["model"] == LLAMA, "status"]) == {"too few candidates"}
    assert "not tested here" in tables.describe_table(few)
    flat = tables.compute_table(ideal_frame(outcome, pass1=noise, gen_loss=outcome * 0 + 1, pass_k=outcome), 1)
    assert "Generalization loss: undefined" in tables.describe_table(flat)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_table(records):
    counts = records.counts[records.counts["stage"] == "base"].drop(columns=CHECKPOINT)
    table = evaluation_table(counts, [1, 16]).set_index("benchmark")
    assert list(table.index) == [*BENCHMARKS, "macro average"]
    assert table.loc["macro average", "pass@16"] == pytest.approx(macro_pass_at_k(counts, 16), **CLOSE)
    easy = counts[counts["benchmark"] == "easy"]
    assert table.loc["easy", "truncated"] == pytest.approx(easy["truncated"].sum() / easy["n"].sum(), **CLOSE)
    macro = table.loc[list(BENCHMARKS), "no_answer"].mean()
    assert table.loc["macro average", "no_answer"] == pytest.approx(macro, **CLOSE)
    assert (table["low@1"] <= table["pass@1"]).all()
    assert (table["high@1"] >= table["pass@1"]).all()
    assert table.loc["easy", "answers"] == 12 * 64
    text = show_evaluation(table.reset_index(), "model")
    assert text.loc["easy", "Pass@1 %"].startswith(f"{100 * table.loc['easy', 'pass@1']:.1f} ± ")


def test_zero_of_n_does_not_look_certain():
    """Wilson's interval for 0 of m problems is 0 to t^2 / (m + t^2); elsewhere it is the least that is claimed."""
    columns = {"n": 4, "correct": 0, "wrong": 4, "no_answer": 0, "truncated": 0, "timeout": 0, "error": 0}
    counts = pd.DataFrame({"benchmark": "b", "problem": range(30), **columns, "mean_tokens": 5.0})
    table = evaluation_table(counts, [1])
    t2 = stats.t.ppf(0.975, 29) ** 2
    assert table["low@1"].iloc[0] == 0
    assert table["high@1"].iloc[0] == pytest.approx(t2 / (30 + t2), **CLOSE)
    share = np.repeat([0, 4], [21, 9])  # problems are wholly right or wholly wrong: m - 1 independent trials
    table = evaluation_table(counts.assign(correct=share, wrong=4 - share), [1])
    exact = stats.binomtest(9, 30).proportion_ci(0.95, method="wilson")
    assert exact.low - 0.05 < table["low@1"].iloc[0] < exact.low + 0.001
    assert exact.high - 0.001 < table["high@1"].iloc[0] < exact.high + 0.05


def test_undecided_answers_bound_the_score_and_votes_stand_beside_it():
    columns = {"n": 4, "wrong": 1, "no_answer": 0, "truncated": 2, "error": 0, "mean_tokens": 5.0}
    counts = pd.DataFrame(
        {"benchmark": "b", "problem": range(20), **columns, "correct": [2, 3] * 10, "timeout": [1, 0] * 10}
    )
    votes = pd.DataFrame({"benchmark": ["b", "macro average"], "k": 4, "maj_at_k": 0.75, "low": 0.6, "high": 0.9})
    table = evaluation_table(counts, [1, 4], votes=votes)
    assert table["pass@1"].tolist() == pytest.approx([50 / 80] * 2)
    assert table["if_right@1"].tolist() == pytest.approx([60 / 80] * 2)
    assert table["if_right@4"].tolist() == [1, 1]
    shown = show_evaluation(table)
    assert list(shown.index) == ["b"]  # of one benchmark, the macro average is that benchmark
    assert shown.loc["b", "Pass@1 if undecided were right %"] == "75.0"
    assert "Pass@4 if undecided were right %" not in shown  # it is 100 either way
    assert shown.loc["b", "maj@4 %"].startswith("75.0 [60.0,")
    assert shown.loc["b", "truncated %"] == "50.0"
    assert shown.loc["b", "timeout %"] == "12.5"


def test_curves_have_every_k(records):
    counts = records.counts[records.counts["stage"] == "base"].drop(columns=CHECKPOINT)
    curves = pass_at_k_curves(counts)
    assert len(curves) == 64 * 4
    macro = curves[curves["benchmark"] == "macro average"].set_index("k")["pass_at_k"]
    assert macro[13] == pytest.approx(macro_pass_at_k(counts, 13), **CLOSE)
    assert (macro.diff().dropna() >= 0).all()


def test_time_and_summary(records):
    spent = time_table(records.cells)
    assert spent.loc["total", "cells"] == len(records.cells)
    assert spent.loc["total", "total"] == pytest.approx(records.cells["seconds_total"].sum() / 60, abs=0.01)
    assert spent.loc["rl", "rest"] == pytest.approx(2 * (spent.loc["rl", "cells"]) / 60, abs=0.01)
    summary = records_summary(records).loc["micro-llama"]
    assert summary["SFT candidates"] == 16
    assert summary["RL runs"] == 17 * 2
    assert summary["checkpoints"] == 17 * 5
    assert summary["answers graded"] == records.counts["n"].sum()


# --- claims -----------------------------------------------------------------------------------------------------------


def test_claim_of_fig_3(frame):
    candidates = select_candidates(frame, LLAMA)
    claim = claims.score_explains_part(candidates)
    expected = stats.linregress(candidates["pass1"], candidates["outcome"]).rvalue ** 2
    assert claim.value == pytest.approx(expected, **CLOSE)
    assert claim.paper == 0.43
    assert claims.score_explains_part(candidates.iloc[:3]).verdict == "too few candidates"
    rng = np.random.default_rng(0)
    x = rng.uniform(size=60)
    line = pd.DataFrame({"pass1": x, "outcome": 0.3 + 0.5 * x + 0.01 * rng.standard_normal(60)})
    assert claims.score_explains_part(line).verdict == "does not hold"
    assert claims.score_explains_part(line.assign(outcome=rng.uniform(size=60))).verdict == "holds"


def test_claims_of_fig_5(frame):
    candidates = select_candidates(frame, LLAMA)
    rise = claims.repeating_raises_loss(candidates)  # 250 examples, 16 epochs
    series = candidates[candidates["n_examples"] == 250].set_index("epochs")["gen_loss"]
    assert rise.value == pytest.approx(series[16] - min(series[1], series[4]), **CLOSE)
    assert rise.verdict == "holds"
    fallen = candidates.assign(gen_loss=2 - candidates["epochs"] / 16)
    assert claims.repeating_raises_loss(fallen).verdict == "does not hold"
    unsure = candidates.assign(gen_loss_se=10.0)
    assert claims.repeating_raises_loss(unsure).verdict == "undecided"
    assert claims.repeating_raises_loss(candidates[candidates["n_examples"] == 4000]).verdict == "too few candidates"

    track = claims.loss_tracks_gain(candidates)
    expected = stats.spearmanr(candidates["gen_loss"], candidates["gain"]).statistic
    assert track.value == pytest.approx(expected, **CLOSE)
    assert claims.loss_tracks_gain(candidates.assign(gain=-candidates["gen_loss"])).verdict == "holds"
    assert claims.loss_tracks_gain(candidates.assign(gain=candidates["gen_loss"])).verdict == "does not hold"
    assert f"n = {len(candidates)} candidates" in track.text
    assert claims.correlation([1, 1, 1], [1, 2, 3]) != claims.correlation([1, 1, 1], [1, 2, 3])  # NaN
