"""Tables: every number of all ten again, to 1e-9, by a second route that shares no code with the package."""

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from example_records import second_route
from scipy import stats

from quagmire_utils.analysis import tables
from quagmire_utils.analysis.candidates import candidate_frame, select_candidates
from quagmire_utils.analysis.tables import TABLES, Options, compute_sensitivity, compute_table, show_table
from quagmire_utils.analysis.tables.compute import NUMBERS
from quagmire_utils.core import published as paper

LLAMA, MISTRAL = paper.FAMILIES
CLOSE = {"rel": 0, "abs": 1e-9}
R2_CLOSE = {"rel": 1e-9, "abs": 1e-9}  # two candidates almost alike give an R2 of minus thousands
SHORT = 2000  # splits that a default test run loops over; the rest is slow


@pytest.fixture(scope="module")
def frame(records) -> pd.DataFrame:
    return candidate_frame(records)


@pytest.fixture(scope="module")
def full_frame(full_records) -> pd.DataFrame:
    return candidate_frame(full_records)


@pytest.fixture(scope="module")
def measured(full_records) -> pd.DataFrame:
    return second_route(full_records.folder)


def groups_of(measured: pd.DataFrame, number: int, row: str, model: str, scenario: str) -> list[pd.DataFrame]:
    """The candidates behind a row of the paper's table; three groups where it averages over SFT budgets."""
    chosen = measured[(measured["stands_for"] == model) & measured["scenario"].str.contains(scenario)]
    by_budget = [chosen[chosen["budget"] == budget] for budget in ("low", "medium", "high")]
    if number == 3 or row == "Average":
        return by_budget
    budget = {"Low": 0, "Medium": 1, "High": 2}.get(row.split()[0])
    return [chosen] if budget is None else [by_budget[budget]]


def columns_of(column: str) -> list[str]:
    return ["gen_loss", "pass_k"] if column == "avg_genloss_pass_k" else [column]


def rank_correlation(group: pd.DataFrame, column: str, outcome: str = "outcome") -> float:
    lines = [
        sm.OLS(group[outcome].to_numpy(), sm.add_constant(group[name].to_numpy())).fit().fittedvalues
        for name in columns_of(column)
    ]
    return stats.spearmanr(np.mean(lines, axis=0), group[outcome]).statistic


def predicted(values: dict[str, list[float]], column: str, fit: list[int], held: list[int]) -> list[float]:
    """Mean of the predictions of separate least-squares lines, in plain Python."""
    y, lines = values["outcome"], []
    mean_y = sum(y[i] for i in fit) / len(fit)
    for x in (values[name] for name in columns_of(column)):
        mean_x = sum(x[i] for i in fit) / len(fit)
        slope = 0.0
        if len({x[i] for i in fit}) > 1:  # Pass@64 of 64 answers has ties
            slope = sum((x[i] - mean_x) * (y[i] - mean_y) for i in fit) / sum((x[i] - mean_x) ** 2 for i in fit)
        lines.append([mean_y + slope * (x[i] - mean_x) for i in held])
    return [sum(each) / len(lines) for each in zip(*lines, strict=True)]


def split_r2(group: pd.DataFrame, column: str, splits) -> list[float]:
    values = group.to_dict("list")
    y, found = values["outcome"], []
    for fit in splits:
        held = [i for i in range(len(y)) if i not in fit]
        mean = sum(y[i] for i in held) / len(held)
        left = sum((y[i] - p) ** 2 for p, i in zip(predicted(values, column, fit, held), held, strict=True))
        found.append(1 - left / sum((y[i] - mean) ** 2 for i in held))
    return found


def drawn_r2(group: pd.DataFrame, column: str, n_fit: int, n_splits: int, seed: int) -> list[float]:
    """R2 over random splits: a split is the first n_fit places of a random order."""
    orders = np.random.default_rng(seed).random((n_splits, len(group))).argsort(axis=1)
    return split_r2(group, column, orders[:, :n_fit].tolist())


def every_r2(group: pd.DataFrame, column: str, n_fit: int) -> list[float]:
    return split_r2(group, column, itertools.combinations(range(len(group)), n_fit))


def cells_with_groups(table: pd.DataFrame, measured: pd.DataFrame, number: int):
    for (row, model), cells in table.groupby(["row", "model"], sort=False):
        cells = cells.set_index("column")
        yield row, model, cells, groups_of(measured, number, row, model, cells["scenario"].iloc[0])


@pytest.mark.parametrize("number", [1, 3, 8, 10])
@pytest.mark.parametrize("outcome", ["outcome", "outcome_last"])
def test_tables_of_rank_correlations_by_a_second_route(full_frame, measured, number, outcome):
    table = compute_table(full_frame, number, Options(outcome=outcome))
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


@pytest.mark.parametrize("most", [SHORT, pytest.param(math.inf, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [2, 4, 5, 6, 7, 9])
def test_tables_of_r2_by_a_second_route(full_frame, measured, number, most):
    table = compute_table(full_frame, number, Options(n_splits=40, seed=5))
    assert (table["status"] == "measured").all()
    assert len(table) == len(paper.published(number))
    for row, _, cells, (group,) in cells_with_groups(table, measured, number):
        n_fit = int(row.split(":")[0]) if ":" in row else len(group) // 2
        assert (cells[["n_candidates", "n_fit", "n_validation"]] == [len(group), n_fit, len(group) - n_fit]).all(
            axis=None
        )
        short = math.comb(len(group), n_fit) <= most
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
                r2 = np.array(every_r2(group, column, n_fit))
                truth = (r2.mean(), r2.std(), np.median(r2))
                assert tuple(cell[["all_value", "all_std", "all_median"]]) == pytest.approx(truth, **R2_CLOSE)
                if column != "pass1":
                    assert cell["better_share"] == pytest.approx((r2 > np.array(baseline)).mean(), **CLOSE)


@pytest.mark.parametrize("number", [3, 4, 7, 8, 9, 10])
def test_within_each_budget_by_a_second_route(full_frame, measured, number):
    table = compute_table(full_frame, number, Options(n_splits=30, seed=2), supplement=True)
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
                value = np.mean([drawn_r2(group, cell["column"], len(group) // 2, 30, 2) for group in groups])
            assert cell["value"] == pytest.approx(value, **R2_CLOSE)


def test_sensitivity_by_a_second_route(full_frame, measured):
    table = compute_sensitivity(full_frame, 6).set_index(["row", "column", "kind"])
    group = groups_of(measured, 6, "3:7", MISTRAL, "dataset")[0]
    values = group.to_dict("list")
    for column in paper.COLUMNS:
        r2, correlations = np.array(every_r2(group, column, 3)), []
        for fit in itertools.combinations(range(10), 3):
            held = [i for i in range(10) if i not in fit]
            actual = [values["outcome"][i] for i in held]
            correlations.append(stats.pearsonr(predicted(values, column, fit, held), actual).statistic ** 2)
        for kind, truth in (("r2", r2), ("squared_correlation", np.array(correlations)), ("clipped_r2", r2.clip(0))):
            cell = table.loc["3:7", column, kind]
            assert cell["value"] == pytest.approx(truth.mean(), **R2_CLOSE)
            assert cell["std"] == pytest.approx(truth.std(), **R2_CLOSE)
            assert cell["splits"] == 120
        assert table.loc[("3:7", column, "r2"), "below_zero"] == pytest.approx((r2 < 0).mean(), **CLOSE)

    table = compute_sensitivity(full_frame, 1).set_index(["model", "column", "kind"])
    for model in (LLAMA, MISTRAL):
        group = groups_of(measured, 1, model, model, "dataset")[0]
        everyone, values = list(range(len(group))), group.to_dict("list")
        for column in paper.COLUMNS:
            alone = [predicted(values, column, [j for j in everyone if j != i], [i])[0] for i in everyone]
            truth = {"in_sample": rank_correlation(group, column)}
            truth["leave_one_out"] = stats.spearmanr(alone, group["outcome"]).statistic
            for kind, value in truth.items():
                assert table.loc[(model, column, kind), "value"] == pytest.approx(value, **CLOSE)
            gain = table.loc[(model, column, "leave_one_out"), "gain"]
            base = table.loc[(model, "pass1", "leave_one_out"), "value"]
            if column != "pass1":
                assert gain == pytest.approx(truth["leave_one_out"] - base, **CLOSE)


def test_interval_of_a_gain_in_r2_is_the_jackknife(records, frame):
    known = second_route(records.folder).query("scenario == 'dataset'").set_index("candidate")
    mine = compute_table(frame, 2).set_index(["family", "column"]).loc["micro-llama"]
    gains = []
    for left_out in known.index:
        rest = known.drop(index=left_out)
        gains.append(np.mean(every_r2(rest, "gen_loss", 4)) - np.mean(every_r2(rest, "pass1", 4)))
    width = stats.t.ppf(0.975, 7) * math.sqrt(7 / 8 * ((gains - np.mean(gains)) ** 2).sum())
    cell = mine.loc["gen_loss"]
    assert cell["gain_high"] - cell["gain"] == pytest.approx(width, rel=1e-9)
    assert cell["gain"] - cell["gain_low"] == pytest.approx(width, rel=1e-9)


def test_table_2_also_at_the_printed_fit_size(full_frame):
    extra, sizes = compute_table(full_frame, 2, supplement=True), compute_table(full_frame, 5)
    same = sizes[sizes["row"] == "5:11"]
    columns = [*NUMBERS, "row", "source", "paper", "paper_plus_minus", "n_fit"]
    pd.testing.assert_frame_equal(extra[columns].reset_index(drop=True), same[columns].reset_index(drop=True))


def test_an_average_needs_every_budget(full_frame):
    rows = ["Low (<2B tokens)", "Medium (2-5B tokens)", "High (5-20B tokens)"]
    whole = compute_table(full_frame, 8).set_index(["row", "column"])
    lost = compute_table(full_frame[full_frame["budget"] != "high"], 8).set_index(["row", "column"])
    assert lost.loc[(rows[0], "pass1"), "value"] == whole.loc[(rows[0], "pass1"), "value"]
    assert lost.loc[(rows[2], "pass1"), "status"] == "not run"
    assert lost.loc[("Average", "pass1"), "status"] == "too few candidates"
    assert math.isnan(lost.loc[("Average", "pass1"), "value"])


def ideal_frame(outcome: np.ndarray, **predictors: np.ndarray) -> pd.DataFrame:
    names = {"family": "f", "stands_for": LLAMA, "scenario": "dataset", "selection": "random", "k": 64}
    frame = pd.DataFrame({**predictors, "outcome": outcome, "outcome_last": outcome}).assign(**names)
    return frame.assign(candidate=[f"c{i}" for i in range(len(frame))])


def test_too_few_for_an_interval():
    """Four candidates in the same order are no certainty, and a perfect order has no spread to resample."""
    ranks = np.arange(4.0)
    few = compute_table(ideal_frame(ranks, pass1=ranks, gen_loss=-ranks, pass_k=ranks), 1)
    assert few.loc[few["model"] == LLAMA, "value"].tolist() == pytest.approx([1] * 4)
    assert few[["low", "high", "gain_low", "gain_high"]].isna().all(axis=None)
    assert set(few.loc[few["gain"].notna(), "verdict"]) == {"undecided"}
    ranks = np.arange(9.0)
    perfect = compute_table(ideal_frame(ranks, pass1=ranks, gen_loss=-ranks, pass_k=ranks), 1)
    assert perfect["low"].isna().all()


def test_verdicts_follow_the_numbers():
    rng = np.random.default_rng(1)
    outcome, noise = rng.uniform(size=40), rng.uniform(size=40)
    good = ideal_frame(outcome, pass1=noise, gen_loss=-outcome, pass_k=outcome + 0.01 * noise)
    bad = ideal_frame(outcome, pass1=outcome, gen_loss=noise, pass_k=noise)
    for number in (1, 2):
        better = compute_table(good, number)
        assert set(better.loc[better["gain"].notna(), "verdict"]) == {"holds"}
        worse = compute_table(bad, number).set_index("column")
        assert set(worse.loc[["gen_loss", "pass_k"], "verdict"]) - {"", "undecided"} == {"fails"}
    few = compute_table(good.iloc[:3], 1)
    assert set(few.loc[few["model"] == LLAMA, "status"]) == {"too few candidates"}
    flat = compute_table(ideal_frame(outcome, pass1=noise, gen_loss=outcome * 0 + 1, pass_k=outcome), 1)
    assert "undefined" in tables.compare_gains(flat)["gain"].tolist()


@pytest.mark.parametrize(
    ("low", "high", "bound", "below", "expected"),
    [
        (0.1, 0.2, 0.0, False, "holds"),
        (0.1, 0.2, 0.3, True, "holds"),
        (-0.2, -0.1, 0.0, False, "fails"),
        (-0.1, 0.1, 0.0, True, "undecided"),
        (math.nan, math.nan, 0.0, True, "undecided"),
    ],
)
def test_a_verdict_follows_from_where_the_interval_lies(low, high, bound, below, expected):
    assert tables.verdict(low, high, bound, below=below) == expected


def test_tables_yaml_has_the_rows_and_columns_that_the_paper_prints():
    for number, spec in TABLES.items():
        cells = paper.published(number)
        assert [row.row for row in spec.rows] == list(dict.fromkeys(cells["row"]))
        assert spec.predictors == tuple(dict.fromkeys(cells["column"]))
        assert (spec.statistic, spec.scenario) == tuple(cells[["statistic", "scenario"]].iloc[0])
        assert spec.slug.startswith(f"table{number:02d}_")
        for row in spec.rows:
            own = cells[cells["row"] == row.row].iloc[0]
            assert row.model == own["family"]
            assert row.n_fit == (None if pd.isna(own["n_fit"]) else own["n_fit"])
            assert row.basis == {"Low": "low", "Medium": "medium", "High": "high", "Average": "mean of budgets"}.get(
                row.row.split()[0], "mean of budgets" if number == 3 else "all candidates"
            )
        for row in spec.supplement:
            assert row.printed is None or row.row in set(paper.published(row.printed)["row"])


@pytest.mark.parametrize("number", TABLES)
def test_numbers_in_the_words_about_a_table_are_the_papers(number):
    cells = paper.published(number)
    numbers = [*cells["mean"], *cells["plus_minus"].dropna(), *cells["printed_gain"].dropna()]
    assert set(re.findall(r"\d\.\d\d", TABLES[number].claim)) <= {f"{value:.2f}" for value in numbers}
    assert TABLES[number].heading.startswith(f"# Table {number}: ")


def test_unfinished_candidates_are_left_out_and_counted(records):
    counts, loss = records.counts, records.generalization_loss
    gone = (counts["candidate"] == "random-250x1") & (counts["stage"] == "rl")
    loss = loss[loss["candidate"] != "random-500x2"].copy()
    frame = candidate_frame(replace(records, counts=counts[~gone], generalization_loss=loss))
    assert math.isnan(frame.set_index("candidate").loc["random-250x1", "outcome"])
    assert len(select_candidates(frame, LLAMA)) == 7
    table = compute_table(frame, 1)
    mine = table[table["family"] == "micro-llama"]
    assert set(mine["n_candidates"]) == {6}
    assert set(mine["left_out"]) == {1}  # it has an outcome but no loss


@pytest.mark.parametrize("compute", [compute_table, compute_sensitivity])
def test_bad_frames_and_choices_are_refused(frame, compute, refused):
    twice = pd.concat([frame, frame.iloc[[2]]])
    for wrong in (None, frame.iloc[:0], frame.drop(columns="pass_k"), frame.drop(columns="stands_for"), twice):
        with refused("frame"):
            compute(wrong, 3)
    with refused("table"):
        compute(frame, 11)
    for name, value in {"family": "Llama", "predictors": "pass8", "n_splits": 0, "seed": 2.5}.items():
        with refused(name):
            compute(frame, 1, Options(**{name: value}))


def test_choosing_a_family_and_predictors(full_frame):
    table = compute_table(full_frame, 1, Options(family="micro-mistral", predictors="pass_k"))
    assert table[["model", "column"]].to_numpy().tolist() == [[MISTRAL, "pass1"], [MISTRAL, "pass_k"]]
    assert compute_table(full_frame, 1, Options(family=MISTRAL, predictors=["pass_k"])).equals(table)
    whole = compute_table(full_frame, 1).set_index(["model", "column"])
    assert table.set_index("column").loc["pass_k", "value"] == whole.loc[(MISTRAL, "pass_k"), "value"]
    # a table of another model stays as the paper printed it, and says so
    other = compute_table(full_frame, 5, Options(family="micro-mistral"))
    assert set(other["status"]) == {"not chosen"}
    assert other[list(NUMBERS)].isna().all(axis=None)
    assert compute_sensitivity(full_frame, 5, Options(family="micro-mistral")).empty
    # a predictor that the paper leaves out of a table is measured, with nothing beside it
    loss = compute_table(full_frame, 3, Options(predictors=["gen_loss"])).set_index(["model", "column"])
    assert loss.loc[(LLAMA, "gen_loss"), "status"] == "measured"
    assert math.isnan(loss.loc[(LLAMA, "gen_loss"), "paper"])


@pytest.mark.parametrize("number", TABLES)
def test_families_that_were_not_run_are_never_filled_in(frame, number):
    table = compute_table(frame, number)
    absent = table[table["model"] == MISTRAL]
    assert (absent["status"] == "not run").all()
    assert absent[list(NUMBERS)].isna().all(axis=None)
    assert len(table) == len(paper.published(number))
    shown = show_table(table, "example")
    own = shown[shown.index.get_level_values(1) == "not run"]
    titles = [tables.predictor_title(column) for column in table["column"].unique()]
    assert len(own) == absent["row"].nunique()
    assert own[titles].eq("not run").all(axis=None)


def test_paper_cells_are_shown_as_printed(frame):
    table = compute_table(frame, 2)
    shown = show_table(table, "example")
    line = shown.loc[(LLAMA, f"paper: Table 2, row {LLAMA}")]
    assert line["Pass@1 (baseline)"] == "0.57 ± 0.29"
    assert line["Mean of both: loss, Pass@64"] == "0.94 ± 0.04 (+0.37)"
    own = shown.loc[(LLAMA, "micro-llama: measured (example)")]
    assert (own["splits"], own["fitted: predicted"]) == ("100 random", "4:4")
    assert sum("(+" in text for text in own) <= 1  # a gain at the best predictor only
    assert tables.headline(table)[0].startswith("R² Llama3: Pass@1 0.57, loss 0.88, Pass@64 0.87, both 0.94; Mistral: ")


def test_gains_are_compared_with_the_papers(full_frame):
    table = compute_table(full_frame, 1)
    shown = tables.compare_gains(table)
    gains = table[table["gain"].notna()].reset_index(drop=True)
    assert shown.index.tolist() == gains["family"].tolist()
    assert shown["verdict"].tolist() == gains["verdict"].tolist()
    inside = (gains["low"] <= gains["paper"]) & (gains["paper"] <= gains["high"])
    assert (shown["paper inside"] == "yes").tolist() == inside.tolist()
    assert shown["paper's gain"].iloc[-1] == "+0.12"  # Mistral: 0.90 from both, 0.78 from Pass@1
    assert tables.compare_gains(table.assign(status="not run")).index.tolist() == ["not run"]
