"""The second grader against truth, the audit of real responses, scores with their bounds, and `quagmire grade`."""

import csv
import math
from fractions import Fraction

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quagmire_utils import cli
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.spreadsheet import write_csv
from quagmire_utils.data import BENCHMARKS, Problem, load_benchmark
from quagmire_utils.evaluation.audit import audit_store, score_table
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.grading import Grade, Verdict, audit, second_grade

CORRECT, WRONG, NO_ANSWER, TIMEOUT, ERROR = Verdict


def verdict(response, gold):
    return second_grade(response, gold).verdict


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
        ("\\boxed{3}. Wait: $\\boxed{4}$", "4"),
        ("$\\boxed{3}$ and $\\boxed{4}$.", "3, 4"),
        ("\\boxed{6}, that is \\boxed{6}", "6"),
        ("\\fbox{7}", "7"),
        ("\\boxed{8} and then \\boxed{9", ""),  # the last one is cut off
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\boxed{3}, \\boxed{4}} and \\boxed{5}", "\\boxed{3}, \\boxed{4}, 5"),
        ("\\boxed{\\boxed{3} < \\boxed{4}}", "\\boxed{3} < \\boxed{4}"),
        ("\\boxed{\\frac{1}{2}}" + ", as asked in \\boxed{ }" * 30, "\\frac{1}{2}"),
        ("The answer, to be put in \\boxed{}, is 9", "9"),
        ("The answer is **12**.", "12"),
        ("13 * 2 = 26\nA: 26", "26"),
        ("so\n#### 1,234", "1,234"),
        ("Final answer: $x = 5$. I hope it is correct.", "x = 5"),
        ("It comes to $10.50", "10.50"),
        ("We get 1331 and 1728", "1331, 1728"),
        ("either $1331$ or $1728$.", "1331, 1728"),
        ("We get $3$ and then $\\frac{4}{5}$.", "\\frac{4}{5}"),
        ("We don't know.", ""),
        ("", ""),
    ],
)
def test_the_answer_is_found(response, answer):
    assert second_grade(response, "1").extracted == answer


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" + "x" * 5000 + "5}",
        "\\boxed{" + "\\frac{1}{" * 2000 + "5" + "}" * 2001,
        "\\boxed{" + "1+" * 3000 + "5}",
        "\\boxed{1+4}, or \\boxed{" + "1+" * 3000 + "5}",
        "\\boxed{5",
        "\\boxed{" * 30 + "5",
        "\\boxed{6 \\boxed{" + "1" * 2000 + "5}}",
    ],
)
def test_no_other_number_is_taken_for_a_box_that_cannot_be_read(text):
    assert second_grade(text, "5") == second_grade(f"{text} 5", "5") == Grade(ERROR, "")
    assert verdict("\\boxed{5}", text) == ERROR


def test_golds_and_answers_in_boxes_within_boxes_or_prose_are_read():
    for gold in ("\\boxed{5}", "$\\boxed{ 5 }$", "So it is \\fbox{\\boxed{5}}.", "{5}"):
        answers = ("\\boxed{5}", "A: 5", "\\boxed{\\boxed{10/2}}", "\\boxed{6}")
        assert [verdict(text, gold) for text in answers] == [CORRECT] * 3 + [WRONG]
    assert [verdict("\\boxed{1+\\boxed{5}}", gold) for gold in "56"] == [WRONG, CORRECT]
    assert verdict("$3$ and $4$", "\\boxed{3} or \\boxed{4}") == CORRECT
    assert verdict("\\boxed{evelyn}", Problem("a", "?", "\\boxed{\\text{Evelyn}}")) == CORRECT


# ----------------------------------------------------------------------------------------------------------- comparing

# gold: (answers that are right, answers that are wrong, answers of which it cannot tell)
CASES = {
    "1728": (["1,728", "1728.0", "1728\\text{ cm}^2", "x = 1728", "12^3", "1728\\%"], ["1331, 1728", "1727.99"], []),
    "\\frac{1}{2}": (["0.5", "\\dfrac12", "1/2", "50\\%", "\\frac{2}{4}", "2^{-1}"], ["0.51", "2", "-\\frac12"], []),
    "\\frac{1}{3}": (["0.333333", "\\tfrac13"], ["0.333", "0.333334"], []),
    "0": (["0.0", "\\sin(\\pi)", "1-1"], ["0.0000004", "10^{-9}"], []),
    "1+1/\\mathrm e": (["1+\\frac{1}{e}", "\\frac{e+1}{e}"], ["1-1/\\mathrm e", "1"], []),
    "\\frac{\\sqrt{3}}{2}": (
        ["\\sqrt3/2", "\\frac{3}{2\\sqrt3}", "0.8660254", "\\cos\\frac{\\pi}{6}"], ["0.866", "\\frac32"], [],
    ),
    "(x+1)^2": (["x^2+2x+1", "(1+x)(x+1)"], ["x^2+1", "(y+1)^2"], []),
    "(2,3)": (["(2, 3.0)", "\\left(2,\\frac{6}{2}\\right)"], ["(3,2)", "[2,3]", "(2,3,4)"], ["2,3"]),
    "1,-2": (["-2, 1", "\\{1,-2\\}", "-2 \\text{ and } 1", "x=1, x=-2"], ["1", "1,2"], ["(1,-2)"]),
    "[0,1)": (["[0, 1.0)", "x \\in [0,1)"], ["(0,1)", "[0,1]"], []),
    "(-\\infty,2)\\cup(3,\\infty)": (["(3,+\\infty) \\cup (-\\infty,2)"], ["(-\\infty,2)\\cup[3,\\infty)"], []),
    "1\\pm\\sqrt{19}": (["1+\\sqrt{19}, 1-\\sqrt{19}"], ["1+\\sqrt{19}"], []),
    "y=2x+3": (["2x-y+3=0", "2x+3", "y = 3 + 2x"], ["y=2x-3", "z=2x+3"], []),
    "x=5": (["5", "x = 10/2"], ["y=5", "6"], []),
    "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}": (
        ["\\begin{pmatrix} 1 & 2 \\\\ 3 & 4.0 \\end{pmatrix}"],
        ["\\begin{pmatrix} 1 & 3 \\\\ 2 & 4 \\end{pmatrix}"],
        ["\\begin{cases}1\\end{cases}"],
    ),
    "\\text{Evelyn}": (["Evelyn", "\\textbf{evelyn}"], ["\\text{Bob}", "5"], []),
    "\\text{(C)}": (["C", "(C)", "\\mathrm{C}"], ["B"], []),
    "4.4 \\times 10^{7}": (["44000000", "4.4e7", "4.4\\cdot10^7"], ["4.5e7"], []),
    "\\log_2 3": (["\\frac{\\ln 3}{\\ln 2}"], ["\\log_3 2"], []),
    "1\\frac{1}{2}": (["\\frac{3}{2}"], ["\\frac{11}{2}"], []),
    "30^\\circ": (["30", "30^{\\circ}"], ["31"], ["\\frac{\\pi}{6}"]),
    "120_5": (["120_{5}"], [], ["120", "35"]),  # a base is not dropped
    "x \\ge 3": (["x\\geq 3", "[3,\\infty)"], ["x > 3"], []),
    "2^{1009}": (["2 \\cdot 2^{1008}"], ["2^{1010}"], ["9^{9^{9^9}}"]),
}  # fmt: skip


@pytest.mark.parametrize("gold", CASES)
def test_answers_are_compared_by_value_and_structure(gold):
    for expected, answers in zip((CORRECT, WRONG, ERROR), CASES[gold], strict=True):
        found = {answer: verdict(f"\\boxed{{{answer}}}", gold) for answer in answers}
        assert found == dict.fromkeys(answers, expected)
    assert verdict("I do not know.", gold) == NO_ANSWER


def written(number):
    """Return some ways to write a fraction."""
    n, d = number.numerator, number.denominator
    sign = "-" if n < 0 else ""
    ways = [f"{n}/{d}", f"{sign}\\frac{{{abs(n)}}}{{{d}}}", f"{sign}\\dfrac{{{3 * abs(n)}}}{{{3 * d}}}"]
    ways.append(f"{n}\\cdot {d}^{{-1}}")
    if d == 1:
        ways += [f"{n}", f"{n}.0", f"{n:,}", f"{n}\\text{{ apples}}"]
    if 10**6 % d == 0:
        ways.append(f"{sign}{math.floor(abs(number))}.{abs(number) % 1 * 10**6 // 1:06}")
    return ways


fractions = st.builds(Fraction, st.integers(-3000, 3000), st.sampled_from([1, 1, 2, 3, 4, 7, 8, 10, 25, 64]))


@settings(max_examples=300, deadline=None)
@given(fractions, fractions, st.data())
def test_rational_numbers_are_compared_exactly_however_they_are_written(one, other, data):
    answer, gold = data.draw(st.sampled_from(written(one))), data.draw(st.sampled_from(written(other)))
    assert verdict(f"\\boxed{{{answer}}}", gold) == (CORRECT if one == other else WRONG)
    assert verdict(f"\\boxed{{{data.draw(st.sampled_from(written(one)))}}}", written(one)[0]) == CORRECT


def test_tolerance_is_that_of_the_problem():
    problem = Problem("a", "?", "4.2", 0.1)
    answers = ["4.2", "4.1", "4.3", "4.31", "x"]
    assert [verdict(f"\\boxed{{{answer}}}", problem) for answer in answers] == [CORRECT] * 3 + [WRONG] * 2


PIECES = [
    "\\boxed{", "}", "{", "(", ")", "[", "]", "|", ",", ";", "=", "<", "\\frac", "\\sqrt", "^", "_", "!", "\\pm", "9",
    "12", "x", "e", "\\pi", "\\sin", "\\log", "\\infty", "\\cup", "\\text{ and }", "\\begin{pmatrix}", "&", "\\\\",
    "$", "%", " ", "\\{", "\\}", "answer is ", "A: ", "#### ", "\n", "-", "+", "/", "\\cdot", "0", ".",
    "\\", "\u0663", "\ud800", "\x00",
]  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from(list(CASES)))
def test_every_text_gets_a_verdict(pieces, gold):
    text = "".join(pieces)
    assert verdict(text, gold) in Verdict
    assert verdict(f"\\boxed{{{text}}}", gold) in Verdict
    assert verdict("\\boxed{5}", text or "0") in Verdict


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^9}}", "10^{10^{10}}", "100000000!", "2^{20000}^{20000}", "((((" * 200,
        "(" * 300 + "5" + ")" * 300,
        "\\sqrt{" * 100 + "5" + "}" * 100, "{" * 900, "5" * 900 + "!", "1" * 5000, "1/0", "\\frac{1}{0}", "0^{-1}",
        "\\log 0",
        "\\binom{1000000}{500000}", "\\tan\\frac{\\pi}{0}", "1e999", "\\exp{1000}", "(" + "1," * 400 + "1)",
        "\\sqrt[0]{5}",
        "2^{0.5^{-9999}}", "+-" * 300 + "5", "\\begin{pmatrix}" * 50, "__import__('os').system('true')",
    ],
)  # fmt: skip
def test_hostile_answers_are_neither_evaluated_nor_accepted(text):
    for response in (f"\\boxed{{{text}}}", f"the answer is {text}", text * 300):
        assert verdict(response, "7") in (WRONG, ERROR, NO_ANSWER)


@pytest.mark.requires_data
@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_it_reads_the_golds_of_the_benchmarks(name, data_dir):
    unreadable = 0
    for problem in load_benchmark(name, data_dir=data_dir):
        assert verdict(f"Hence \\boxed{{{problem.answer}}}.", problem) == CORRECT
        other = verdict("\\boxed{-987654321}", problem)
        assert other in (WRONG, ERROR)
        unreadable += other == ERROR
    assert unreadable <= {"math500": 7, "olympiad": 10, "minerva": 10}.get(name, 0)  # other bases, floors, factorials


# --------------------------------------------------------------------------------------------------------------- audit


@pytest.mark.parametrize(("name", "samples"), [("math_cot", 400), ("gsm8k_gpt3", 1600)])
def test_both_graders_meet_the_labels_of_real_responses(grader, labelled, name, samples):
    responses, golds, labels = labelled(name)
    grades = grader.grade(responses, golds, timeout=60)
    second = [verdict(response, gold) for response, gold in zip(responses, golds, strict=True)]
    assert len(labels) == samples
    assert [grade.verdict == CORRECT for grade in grades] == labels
    assert [found == CORRECT for found in second] == labels
    # Neither can judge math_cot's gold `4:30p..`, which is corrupt; nor the second grader an endless decimal fraction.
    undecided = [gold for gold, found in zip(golds, second, strict=True) if found == ERROR]
    assert undecided == (["4:30p.."] * 8 if name == "math_cot" else ["8"])
    listed = audit(responses, golds, grades)
    assert listed.attrs == {
        "samples": samples, "disagreements": 0, "undecided": len(undecided), "not_math": 0, "agreement": 1.0,
    }  # fmt: skip
    assert listed.empty


SPOILT = {  # how a right response is spoilt so that its last words are no longer the gold: (gold, response) -> response
    "a second answer": lambda gold, text: f"{gold}1 and {gold}",
    "a range": lambda gold, text: f"\\boxed{{{gold}}} and \\boxed{{{gold}1}}",
    "minus": lambda gold, text: f"\\boxed{{-{gold}}}",
    "words": lambda gold, text: "\\boxed{\\text{none of these}}",
    "base": lambda gold, text: f"\\boxed{{{gold}_7}}",
}


def test_the_audit_finds_what_math_verify_accepts_of_spoilt_answers(grader):
    golds = ["2", "5", "9", "12", "31", "420", "1728"]
    samples = [(how, gold, spoil(gold, "")) for how, spoil in SPOILT.items() for gold in golds]
    responses, golds = [text for *_, text in samples], [gold for _, gold, _ in samples]
    grades = grader.grade(responses, golds, timeout=60)
    accepted = [i for i, grade in enumerate(grades) if grade.verdict == CORRECT]
    assert {samples[i][0] for i in accepted} >= {"a second answer", "base"}
    listed = audit(responses, golds, grades)
    assert set(listed["kind"]) == {"only the first grader says correct"}
    assert listed["index"].tolist() == accepted


def test_the_audit_of_a_store_groups_and_sorts(tmp_path):
    problems = {"b": [Problem("p", "?", "5"), Problem("q", "?", "7")]}
    rows = [
        ("b", "p", 0, "A: 5", "timeout", ""),
        ("b", "p", 1, "A: 6", "error", ""),
        ("b", "p", 2, "x" * 900 + "\nA: 5", "wrong", "4"),
        ("b", "p", 3, "\\boxed{6}", "correct", "5"),
        ("b", "q", 0, "\\boxed{8}", "correct", "7"),
        ("b", "q", 1, "so \\boxed{8}", "correct", "7"),
        ("b", "q", 2, "\\boxed{7}", "correct", "7"),
        ("b", "q", 3, "\\boxed{8}", "no_answer", ""),
        ("b", "q", 4, "\\boxed{8}", None, None),  # not graded yet
        ("b", "r", 0, "\\boxed{8}", "correct", "7"),  # no such problem
    ]
    names = ["benchmark", "problem", "index", "text", "verdict", "extracted"]
    frame = pd.DataFrame(rows, columns=names).assign(tokens=1, finish_reason="stop")
    store = SampleStore(tmp_path / "store")
    empty = audit_store(store, problems)
    for part in (frame[:5], frame[5:]):
        store.append(part)
    table = audit_store(store, problems)
    assert table.drop(columns=["benchmark", "ending"]).to_numpy().tolist() == [
        ["only the first grader says correct", "q", 0, 2, "7", "correct", "7", "wrong", "8"],
        ["only the first grader says correct", "p", 3, 1, "5", "correct", "5", "wrong", "6"],
        ["only the second grader says correct", "p", 2, 1, "5", "wrong", "4", "correct", "5"],
        ["the first is undecided", "p", 0, 1, "5", "timeout", "", "correct", "5"],
        ["the first is undecided", "p", 1, 1, "5", "error", "", "wrong", "6"],
    ]
    assert table["ending"].str.len().max() == 200
    assert table.attrs == {"samples": 8, "disagreements": 6, "undecided": 0, "not_math": 0, "agreement": 0.25}
    assert list(empty.columns) == list(table.columns)
    assert math.isnan(empty.attrs["agreement"])


def test_what_the_second_grader_cannot_judge_is_no_agreement():
    text = "\\boxed{\\begin{cases}1\\end{cases}}"
    first = [Grade(verdict, "") for verdict in (ERROR, TIMEOUT, WRONG)]
    table = audit([text] * 3, ["5"] * 3, first)
    assert table.empty
    assert math.isnan(table.attrs.pop("agreement"))
    assert table.attrs == {"samples": 3, "disagreements": 0, "undecided": 3, "not_math": 0}
    table = audit([text] * 4 + ["A: 6"], ["5"] * 5, [*first, Grade(CORRECT, "5"), Grade(WRONG, "6")])
    assert table.attrs == {"samples": 5, "disagreements": 1, "undecided": 3, "not_math": 0, "agreement": 0.5}
    with pytest.raises(ParameterError, match="grades"):
        audit([text], ["5"], [])


# --------------------------------------------------------------------------------------------------- scores, the shell


def test_the_bounds_of_counts_average_over_problems_and_then_over_benchmarks():
    names = ["benchmark", "problem", "n", "correct", "wrong", "no_answer", "timeout", "error"]
    rows = [
        ("a", "1", 4, 2, 1, 0, 1, 0),
        ("a", "2", 2, 0, 2, 0, 0, 0),
        ("a", "3", 0, 0, 0, 0, 0, 0),
        ("b", "1", 10, 5, 0, 0, 0, 5),
    ]
    counts = pd.DataFrame(rows, columns=names)
    assert score_table(counts).to_dict("list") == {
        "benchmark": ["a", "b", "macro average"],
        "problems": [2, 1, 3],
        "samples": [6, 10, 16],
        "low": [0.25, 0.5, 0.375],
        "high": [0.375, 1.0, 0.6875],
        "undecided": [1 / 6, 0.5, pytest.approx(1 / 3)],
    }
    for bad in (counts.drop(columns="timeout"), counts[2:3]):
        with pytest.raises(ParameterError, match="counts"):
            score_table(bad)


@pytest.fixture
def mine(tmp_path):
    """A store whose verdicts are all wrong, and the benchmark it was sampled from."""
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "p", "question": "?", "answer": "5"}\n{"id": "q", "question": "?", "answer": "1728"}\n')
    store = SampleStore(tmp_path / "samples")
    store.bind({"model_digest": "none"})
    texts = ["\\boxed{5}", "\\boxed{10/2}", "\\boxed{6}", "1331 and 1728", "\\boxed{1728}", "none"]
    rows = {"benchmark": "mine", "problem": ["p"] * 3 + ["q"] * 3, "index": [0, 1, 2] * 2, "text": texts, "tokens": 9}
    store.append(pd.DataFrame({**rows, "finish_reason": "stop", "verdict": "error", "extracted": ""}))
    return store, path


def test_a_store_is_regraded_and_audited_from_the_shell(mine, capsys):
    store, path = mine
    golds = ["--benchmark", str(path)]
    assert cli.main(["grade", "score", str(store.path)]) == 0
    assert capsys.readouterr().out.split("\n")[1].split() == ["mine", "2", "6", "0.0000", "1.0000", "1.0000"]
    assert cli.main(["grade", "regrade", str(store.path), *golds, "--workers", "1", "--timeout", "60"]) == 0
    graded = store.read(["verdict"])["verdict"].tolist()
    assert graded == ["correct", "correct", "wrong", "correct", "correct", "no_answer"]
    assert capsys.readouterr().out.split("\n")[1].split() == ["mine", "2", "6", "0.6667", "0.6667", "0.0000"]
    output = path.with_name("audit.csv")
    assert cli.main(["grade", "audit", str(store.path), *golds, "--output", str(output)]) == 0
    assert "1 of 6" in capsys.readouterr().out
    listed = pd.read_csv(output)
    assert listed[["gold", "extracted", "second_extracted"]].to_numpy().tolist() == [[1728, 1728, "1331, 1728"]]


def test_the_shell_refuses_in_a_sentence(mine, tmp_path, capsys):
    store, path = mine
    other = tmp_path / "other"
    other.mkdir()
    golds = ["--benchmark", str(path)]
    for arguments, said in (
        (["audit", str(store.path)], "--benchmark"),
        (["score", str(tmp_path / "no")], "no folder"),
        (["audit", str(store.path), *golds, "--output", str(path / "x.csv")], "cannot be written to"),
        (["audit", str(store.path), *golds, "--output", str(other)], "not a file"),
        (["regrade", str(other), *golds], "no stored answers"),
        (["audit", str(other), *golds], "no stored answers"),
        (["score", str(other)], "no stored answers"),
    ):
        assert cli.main(["grade", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert list(other.iterdir()) == []


FORMULAS = [
    "=1", "+1", "-1", "@A1", "\n=1", " =1", "\u3000\xa0 +1", "\uff1d1", "\xa0\uff20A1", "\ufeff\u200b=1", "\t1", "\r1",
    "\r=1",
]  # fmt: skip


def test_no_cell_is_a_formula_to_a_spreadsheet(tmp_path):
    write_csv(pd.DataFrame({"cell": [*FORMULAS, "1", "x = 1", "", None, 3]}), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        cells = [row[0] for row in csv.reader(file)]
    assert cells == ["cell", *(f"'{cell}" for cell in FORMULAS), "1", "x = 1", "", "", "3"]
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]


def test_what_a_model_wrote_commands_neither_a_spreadsheet_nor_a_terminal(mine, capsys):
    store, path = mine
    sample = {"benchmark": "mine", "problem": "p", "text": "\\boxed{=1+1}", "tokens": 9, "finish_reason": "stop"}
    for index, extracted in enumerate(("=cmd|'/c calc'!A0", "\x1b]0;title\x07"), start=7):
        store.append(pd.DataFrame({**sample, "index": [index], "verdict": "correct", "extracted": extracted}))
    arguments = ["grade", "audit", str(store.path), "--benchmark", str(path)]
    cli.main(arguments)
    assert "\x1b" not in capsys.readouterr().out
    output = path.with_name("audit.csv")
    cli.main([*arguments, "--output", str(output)])
    assert "'=cmd" in output.read_text()
    assert not pd.read_csv(output).map(lambda cell: str(cell).startswith("=")).any(axis=None)
