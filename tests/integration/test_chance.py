"""The chance level: guesses are at it, right answers above; exact counts and the sentence that warns."""

import numpy as np
import pandas as pd
import pytest

from quagmire_utils.data import Problem
from quagmire_utils.evaluation.chance import chance_counts
from quagmire_utils.evaluation.marking import grade_store
from quagmire_utils.evaluation.measured import describe_evaluation, evaluation_table, show_evaluation, thinking_table
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.grading import Grader
from quagmire_utils.sweep.cells import answer_counts


@pytest.fixture(scope="module")
def grader():
    with Grader(1, timeout=60) as using:
        yield using


def _stored(folder, answers, golds, using, **problem):
    store = SampleStore(folder)
    problems = [Problem(f"p{i}", "?", gold, **problem) for i, gold in enumerate(golds)]
    rows = [(f"p{i}", j, text) for i, texts in enumerate(answers) for j, text in enumerate(texts)]
    frame = pd.DataFrame(rows, columns=["problem", "index", "text"])
    store.append(frame.assign(benchmark="b", tokens=1, finish_reason="stop"))
    grade_store(store, {"b": problems}, using.grade, progress=False)
    return store


def _table(store, grader, ks):
    return evaluation_table(store.counts(), ks, chance=chance_counts(store, grader=grader))


def test_a_model_that_always_says_the_same_letter_is_at_chance(grader, tmp_path):
    golds = list("ABCD") * 10
    store = _stored(tmp_path, [["\\boxed{A}"] * 4] * 40, golds, grader, grader="choice")
    table = _table(store, grader, [1, 4]).iloc[0]
    assert table[["pass@1", "pass@4", "chance@1", "chance@4"]].tolist() == [0.25] * 4  # 10 of 40 golds are A
    assert "reaches 0): Pass@1 of b (25.0 %, chance 25.0 %), Pass@4 of b" in describe_evaluation(
        _table(store, grader, [1, 4])
    )


def test_guesses_among_common_numbers_and_right_answers_are_told_apart(grader, tmp_path):
    rng = np.random.default_rng(0)
    golds = [str(number) for number in rng.integers(0, 20, 60)]
    guesses = [[f"\\boxed{{{number}}}" for number in rng.integers(0, 20, 16)] for _ in golds]
    right = [[f"\\boxed{{{gold}}}" if i % 3 else "\\boxed{77}" for i in range(16)] for gold in golds]
    guessed = _stored(tmp_path / "guessed", guesses, golds, grader)
    text = describe_evaluation(_table(guessed, grader, [1, 16]))
    assert "reaches 0): Pass@1 of b" in text
    assert "Pass@16 of b" in text
    other = _table(_stored(tmp_path / "right", right, golds, grader), grader, [1, 16])
    assert other["chance@16"].tolist() == [0, 0]
    assert "chance" not in describe_evaluation(other)
    assert show_evaluation(other)["Pass@1 by chance %"].iloc[0].startswith("0.0 [")


def test_one_gold_spelt_twice_is_no_other_gold_and_programs_have_no_chance(grader, tmp_path):
    store = _stored(tmp_path / "one", [["\\boxed{0.5}"]] * 2, ["0.5", "\\frac{1}{2}"], grader)
    assert chance_counts(store, grader=grader).empty
    assert "No chance level for b" in describe_evaluation(_table(store, grader, [1]))


def test_counts_of_a_sweep_hold_distinct_answers_and_those_right_by_chance(grader, tmp_path):
    answers = [["\\boxed{2}", "\\boxed{2}", "\\boxed{1}", "none"], ["\\boxed{1}"] * 3 + ["\\boxed{3}"], ["none"] * 4]
    store = _stored(tmp_path, answers, ["1", "2", "1"], grader)
    counts = answer_counts(store, grader).set_index("problem")
    assert counts["distinct_answers"].tolist() == [2, 2, 0]
    # p1 meets a gold of 1; of p0 and p2, one meets its gold of 2, the other none
    assert counts.loc["p1", "chance_correct"] == 3
    assert sorted(counts["chance_correct"].drop("p1").fillna(-1)) in ([-1, 0], [-1, 2])


def test_thinking_that_the_prompt_opened_is_no_answer_until_it_ends(tmp_path, grader):
    store = SampleStore(tmp_path)
    store.add_prompts(pd.DataFrame({"benchmark": "b", "problem": ["p"], "prompt": "q<think>\n", "prompt_tokens": 1}))
    texts = ["perhaps \\boxed{5}", "perhaps \\boxed{6}</think>\\boxed{5}", "\\boxed{5}</think>"]
    frame = pd.DataFrame({"benchmark": "b", "problem": "p", "index": range(3), "text": texts})
    store.append(frame.assign(tokens=1, finish_reason="stop"))
    grade_store(store, {"b": [Problem("p", "?", "5")]}, grader.grade, progress=False)
    assert store.read(["index", "verdict"])["verdict"].tolist() == ["no_answer", "correct", "no_answer"]


def test_thinking_that_was_cut_and_its_length(tmp_path):
    store = SampleStore(tmp_path)
    prompts = pd.DataFrame({"benchmark": ["r", "o"], "problem": "p", "prompt": ["q", "q<think>\n"], "prompt_tokens": 1})
    store.add_prompts(prompts)
    texts = ["<think>abcd</think>xy", "<think>abcdef", "no thought", "ab</think>xyz"]
    frame = pd.DataFrame({"benchmark": ["r", "r", "r", "o"], "problem": "p", "index": [0, 1, 2, 0], "text": texts})
    store.append(frame.assign(tokens=1, finish_reason="stop"))
    table = thinking_table(store)
    assert table.loc["r"].tolist() == [0.5, 5, 1]
    assert table.loc["o"].tolist() == [0, 2, 3]
    shown = show_evaluation(evaluation_table(store.counts().assign(n=1, mean_tokens=1.0), [1], beside=[table]))
    assert shown["thinking cut %"].tolist() == ["0.0", "50.0", "25.0"]
