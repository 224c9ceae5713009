"""The synthetic task is what it says it is: facts, traces, slips, and a tokenizer that takes any text."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quagmire_utils.core.settings import PretrainingSettings
from quagmire_utils.data.prompts import INSTRUCTION
from quagmire_utils.grading import Verdict, grade
from quagmire_utils.training import microlab
from quagmire_utils.training.microlab.tasks import TASKS

CHAIN = microlab.Expression(("374", "258", "112"), "+*")


@pytest.fixture(scope="module")
def tokenizer():
    return microlab.build_tokenizer()


def solve(question: str) -> str:
    """The answer by plain integer arithmetic on the question's text."""
    first, *rest = re.findall(r"\d{3,4}|[+*-]", question)
    lanes = [int(digit) for digit in first]
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        for i, digit in enumerate(int(d) for d in term):
            lanes[i] = {"+": lanes[i] + digit, "-": lanes[i] - digit, "*": lanes[i] * digit}[operator] % 10
    return "".join(map(str, lanes))


def look_up(question: str) -> str:
    """The answer of a chain of tables by plain text replacement, table after table."""
    steps, state = question.removesuffix("=?").split(":")
    for letter in steps[1::2]:
        state = state.translate(str.maketrans("0123456789", microlab.TABLES[letter]))
    return state


def true_labels(question: str) -> str:
    """The labels of the true statements, by plain text replacement."""
    true = ""
    for label, letters, digit in re.findall(r"([a-k])([A-Z]+)(\d)", question):
        for letter in letters:
            digit = digit.translate(str.maketrans("0123456789", microlab.TABLES[letter]))
        true += label * (int(digit) % 2)
    return true


ANSWERS = {"lanes": solve, "tables": look_up, "statements": true_labels}  # by task


def right(traces, task: str = "lanes") -> np.ndarray:
    return np.array([trace.response.endswith(f"{{{ANSWERS[task](trace.question)}}}") for trace in traces])


def test_a_worked_example_by_hand():
    assert CHAIN.question == "374a+258b*112=?"
    assert CHAIN.states == ("522", "524")
    assert CHAIN.write("stepwise") == "a3+257+524+82\nb5*152*122*24\n\\boxed{524}"
    assert CHAIN.write("restated") == "a3+257+524+82=522\nb5*152*122*24=524\n\\boxed{524}"


def test_a_chain_of_tables_by_hand():
    chain = microlab.TableChain("3742", "QA")
    first = "".join(microlab.TABLES["Q"][digit] for digit in (3, 7, 4, 2))
    second = "".join(microlab.TABLES["A"][int(digit)] for digit in first)
    assert chain.question == "aQbA:3742=?"
    assert chain.write() == f"aQ{first}bA{second}\\boxed{{{second}}}"
    assert chain.write("restated") == f"aQ={first}bA={second}\\boxed{{{second}}}"
    assert chain.write(results=["1111"]) == "aQ1111\\boxed{1111}"
    assert all(sorted(table) == sorted("0123456789") for table in microlab.TABLES.values())
    assert len(set(microlab.TABLES.values())) == len(microlab.TABLES) == 26


def test_statements_by_hand():
    table = microlab.TABLES["Q"]
    odd, even = (next(digit for digit in range(10) if int(table[digit]) % 2 == rest) for rest in (1, 0))
    statements = microlab.Statements((("Q", str(odd)), ("Q", str(even))))
    assert (statements.question, statements.answer) == (f"aQ{odd}bQ{even}=?", "a")
    assert statements.write() == f"a{odd}Q{table[odd]}yb{even}Q{table[even]}n\\boxed{{a}}"
    assert statements.write("restated") == f"a{odd}Q={table[odd]}yb{even}Q={table[even]}n\\boxed{{a}}"
    assert statements.write(results=[table[even]]) == f"a{odd}Q{table[even]}n\\boxed{{}}"


@pytest.mark.parametrize("name", microlab.MICRO_BENCHMARKS)
def test_benchmarks_have_right_answers_and_different_questions(name):
    spec = microlab.MICRO_BENCHMARKS[name]
    problems = microlab.make_problems(name, spec, 200, seed=3)
    task = next(task for task, kind in TASKS.items() if type(spec) is kind)
    assert [p.answer for p in problems] == [ANSWERS[task](p.question) for p in problems]
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == 200
    again, other = (microlab.make_problems(name, spec, 200, seed=seed) for seed in (3, 4))
    assert again == problems != other
    if task == "lanes":
        assert {len(re.findall(r"\d{3}", p.question)) for p in problems} == {spec.terms}
        assert {o for p in problems for o in re.findall(r"[+*-]", p.question)} == set(spec.operators)
    elif task == "tables":
        letters = [p.question.split(":")[0][1::2] for p in problems]
        assert {len(chain) for chain in letters} == {len(set(chain)) for chain in letters} == {spec.terms - 1}
        assert set("".join(letters)) <= set(spec.letters)
    else:
        assert {len(found) for p in problems for found in re.findall("[A-Z]+", p.question)} == {spec.terms - 1}
        assert {p.instruction for p in problems} == {INSTRUCTION}  # one token of a micro model
        answers = [f"\\boxed{{{p.answer}}}" for p in problems]
        assert {g.verdict for g in grade(answers, problems)} == {Verdict.CORRECT}
        guessed = [g.verdict for g in grade(answers[1:] + answers[:1], problems)]
        assert guessed.count(Verdict.CORRECT) <= 2


@pytest.mark.parametrize("style", microlab.STYLES)
def test_clean_traces_are_graded_correct(style):
    traces = microlab.make_traces((2, 3, 5), 50, styles=[style], source="s", seed=1)
    grades = grade([t.response for t in traces], [solve(t.question) for t in traces])
    assert {g.verdict for g in grades} == {Verdict.CORRECT}


def written(count: int, task: str = "lanes", digits: int = 3, **settings) -> list:
    """Solutions by a writer with only the given weaknesses."""
    settings = {"slip": 0.0, "direct_fraction": 0.0, "uncertain": (0, 0), "terms": (4,)} | settings
    asked = PretrainingSettings(examples=0, fallible_examples=count, **settings)
    return microlab.pretraining_corpus(asked, seed=0, digits=digits, task=task)[1]


def test_graded_knowledge_gives_each_uncertain_fact_a_chance_and_two_wrong_digits():
    seen: dict[tuple[str, str], list[str]] = {}
    for trace in written(20_000, "tables", 4, terms=(2,), uncertain=(0.5, 0.5), unknown=0.2):
        letter, state = trace.question[1], trace.question[3:7]
        for digit, result in zip(state, trace.response[2:6], strict=True):
            seen.setdefault((letter, digit), []).append(result)
    chances, sure = [], 0
    for (letter, digit), results in seen.items():
        fact = microlab.TABLES[letter][int(digit)]
        wrong = {result for result in results if result != fact}
        assert len(wrong) <= 2
        sure += not wrong
        if wrong:
            chances.append(results.count(fact) / len(results))
    assert abs(sure / len(seen) - 0.5) < 5 * (0.25 / len(seen)) ** 0.5
    # one in five never, the others log-uniform from 0.01 to 0.9: 12 % of all above 0.45
    assert 0.1 < np.mean(np.array(chances) == 0) < 0.35
    assert 0.04 < np.mean(np.array(chances) > 0.45) < 0.25


@pytest.mark.parametrize(
    ("task", "digits", "terms", "step", "complete"),
    [
        ("lanes", 3, 4, r"(?m)^[a-z]\d", 3),
        ("tables", 4, 5, "[a-d][A-Z]", 4),
        ("statements", 3, 3, r"[a-k](?:\d[A-Z])+\d[yn]", 11),
    ],
)
def test_a_writer_gives_up_and_answers_directly_as_often_as_asked(task, digits, terms, step, complete):
    traces = written(2000, task, digits, terms=(terms,), direct_fraction=0.2, gives_up={terms: 0.5})
    steps = np.array([len(re.findall(step, trace.response)) for trace in traces])
    assert abs(np.mean(steps == 0) - 0.2) < 5 * (0.16 / 2000) ** 0.5
    assert abs(np.mean((steps > 0) & (steps < complete)) - 0.4) < 5 * (0.24 / 2000) ** 0.5
    assert right(traces, task)[steps == complete].all()


def lanes_of(response: str) -> list[list[tuple[str, str, str, str]]]:
    """The (digit, operator, digit, result) lanes of each line of a stepwise solution."""
    return [re.findall(r"(\d)([+*-])(\d)(\d)", line[1:]) for line in response.split("\n")[:-1]]


def test_slips_happen_as_often_as_asked_and_are_carried_on():
    """Also where a solution ends half-way: its box holds the state that it reached."""
    digits = wrong = 0
    for trace in written(2000, slip=0.2, gives_up={4: 0.5}):
        state = trace.question[:3]
        for lanes in lanes_of(trace.response):
            assert "".join(lane[0] for lane in lanes) == state  # works on with what it wrote, right or wrong
            for a, operator, b, result in lanes:
                digits += 1
                wrong += result != solve(f"{a}00{operator}{b}00")[0]
            state = "".join(lane[3] for lane in lanes)
        assert trace.response.endswith(f"\\boxed{{{state}}}")
    # one replacement in ten happens to be the right digit; five standard errors
    assert abs(wrong / digits - 0.18) < 5 * (0.18 * 0.82 / digits) ** 0.5


def test_the_instruction_is_one_token(tokenizer):
    assert len(tokenizer(INSTRUCTION).input_ids) == 1
    assert len(tokenizer("\\boxed{524}").input_ids) == 5


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_tokenizer(text):
    tokenizer = microlab.build_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("architecture", microlab.ARCHITECTURES)
def test_models_are_ordinary_checkpoints(architecture, tokenizer, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = microlab.build_model(architecture, tokenizer, seed=5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__name__.lower().startswith(architecture)
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path)(CHAIN.question).input_ids])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, again(ids).logits)
    same, other = (microlab.build_model(architecture, tokenizer, seed=s) for s in (5, 6))
    assert torch.equal(same.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)
