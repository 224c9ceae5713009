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

CHAIN = microlab.Expression(("374", "258", "112"), "+*")


@pytest.fixture(scope="module")
def tokenizer():
    return microlab.build_tokenizer()


def solve(question: str) -> str:
    """The answer by plain integer arithmetic on the question's text, sharing no code with the microlab."""
    first, *rest = re.findall(r"\d{3,4}|[+*-]", question)
    lanes = [int(digit) for digit in first]
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        for i, digit in enumerate(int(d) for d in term):
            lanes[i] = {"+": lanes[i] + digit, "-": lanes[i] - digit, "*": lanes[i] * digit}[operator] % 10
    return "".join(map(str, lanes))


def test_a_worked_example_by_hand():
    assert CHAIN.question == "374a+258b*112=?"
    assert CHAIN.states == ("522", "524")
    assert microlab.write_trace(CHAIN, "stepwise") == "a3+257+524+82\nb5*152*122*24\n\\boxed{524}"
    assert microlab.write_trace(CHAIN, "restated") == "a3+257+524+82=522\nb5*152*122*24=524\n\\boxed{524}"


LANES = [name for name, spec in microlab.MICRO_BENCHMARKS.items() if isinstance(spec, microlab.TaskSpec)]
STATEMENTS = [name for name in microlab.MICRO_BENCHMARKS if name.endswith("_true")]
CHAINS = [name for name in microlab.MICRO_BENCHMARKS if name not in {*LANES, *STATEMENTS}]


@pytest.mark.parametrize("name", LANES)
def test_benchmarks_have_right_answers_and_different_questions(name):
    spec = microlab.MICRO_BENCHMARKS[name]
    problems = microlab.make_problems(name, spec, 200, seed=3)
    assert [p.answer for p in problems] == [solve(p.question) for p in problems]
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == 200
    assert {len(re.findall(r"\d{3}", p.question)) for p in problems} == {spec.terms}
    assert {o for p in problems for o in re.findall(r"[+*-]", p.question)} == set(spec.operators)
    assert (
        microlab.make_problems(name, spec, 200, seed=3) == problems != microlab.make_problems(name, spec, 200, seed=4)
    )


def test_four_digits():
    spec = microlab.TaskSpec(3, digits=4)
    problems = microlab.make_problems("x", spec, 50, seed=0)
    assert [p.answer for p in problems] == [solve(p.question) for p in problems]
    assert {len(p.answer) for p in problems} == {4}
    assert [len(p.answer) for p in microlab.make_mixed_problems((2, 3), 3, seed=0, digits=4)] == [4, 4, 4]
    traces = microlab.make_traces((2, 3), 40, styles=["stepwise", "restated"], source="s", seed=0, digits=4)
    assert all(t.response.endswith(f"{{{solve(t.question)}}}") for t in traces)
    assert 5 < sum("=" in t.response for t in traces) < 35  # both styles


@pytest.mark.parametrize("style", microlab.STYLES)
def test_clean_traces_are_graded_correct(style):
    traces = microlab.make_traces((2, 3, 5), 50, styles=[style], source="s", seed=1)
    grades = grade([t.response for t in traces], [solve(t.question) for t in traces])
    assert {g.verdict for g in grades} == {Verdict.CORRECT}


def look_up(question: str) -> str:
    """The answer of a chain of tables by plain text replacement, table after table."""
    steps, state = question.removesuffix("=?").split(":")
    for letter in steps[1::2]:
        state = state.translate(str.maketrans("0123456789", microlab.TABLES[letter]))
    return state


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


@pytest.mark.parametrize("name", CHAINS)
def test_benchmarks_of_tables_have_right_answers(name):
    spec = microlab.MICRO_BENCHMARKS[name]
    problems = microlab.make_problems(name, spec, 200, seed=3)
    assert [p.answer for p in problems] == [look_up(p.question) for p in problems]
    assert len({p.question for p in problems}) == 200
    letters = [p.question.split(":")[0][1::2] for p in problems]
    assert {len(chain) for chain in letters} == {len(set(chain)) for chain in letters} == {spec.terms - 1}
    assert set("".join(letters)) <= set(spec.letters)


def test_common_tables_are_drawn_more_often_for_rl_and_sft():
    drawn = microlab.make_mixed_problems((4,), 4000, seed=0, digits=4, task="tables")
    letters = "".join(p.question.split(":")[0][1::2] for p in drawn)
    assert 2 * letters.count("Z") < letters.count("A") < 5 * letters.count("Z")
    traces = microlab.make_traces((2, 5), 50, styles=["stepwise"], source="s", seed=1, digits=4, task="tables")
    grades = grade([t.response for t in traces], [look_up(t.question) for t in traces])
    assert {g.verdict for g in grades} == {Verdict.CORRECT}


def test_graded_knowledge_gives_each_uncertain_fact_a_chance_and_two_wrong_digits():
    settings = PretrainingSettings(
        examples=0,
        fallible_examples=20_000,
        terms=(2,),
        slip=0.0,
        direct_fraction=0.0,
        uncertain=(0.5, 0.5),
        unknown=0.2,
    )
    clean, graded = microlab.pretraining_corpus(settings, seed=0, digits=4, task="tables")
    seen: dict[tuple[str, str], list[str]] = {}
    for trace in graded:
        letter, state = trace.question[1], trace.question[3:7]
        for digit, result in zip(state, trace.response[2:6], strict=True):
            seen.setdefault((letter, digit), []).append(result)
    chances, sure = [], 0
    for (letter, digit), results in seen.items():
        right = microlab.TABLES[letter][int(digit)]
        wrong = {result for result in results if result != right}
        assert len(wrong) <= 2
        sure += not wrong
        if wrong:
            chances.append(results.count(right) / len(results))
    assert clean == []
    assert abs(sure / len(seen) - 0.5) < 5 * (0.25 / len(seen)) ** 0.5
    # one in five never, the others log-uniform from 0.01 to 0.9: 12 % of all above 0.45
    assert 0.1 < np.mean(np.array(chances) == 0) < 0.35
    assert 0.04 < np.mean(np.array(chances) > 0.45) < 0.25


def test_a_graded_writer_gives_up_and_answers_directly():
    settings = PretrainingSettings(
        examples=0,
        fallible_examples=4000,
        terms=(5,),
        slip=0.0,
        direct_fraction=0.2,
        gives_up={5: 0.5},
        uncertain=(0, 0),
    )
    traces = microlab.pretraining_corpus(settings, seed=0, digits=4, task="tables")[1]
    steps = np.array([len(re.findall("[a-d][A-Z]", t.response.split("\\")[0])) for t in traces])
    assert abs(np.mean(steps == 0) - 0.2) < 5 * (0.16 / 4000) ** 0.5
    assert abs(np.mean((steps > 0) & (steps < 4)) - 0.4) < 5 * (0.24 / 4000) ** 0.5
    complete = [t for t, n in zip(traces, steps, strict=True) if n == 4]
    assert all(t.response.endswith(f"{{{look_up(t.question)}}}") for t in complete)


def true_labels(question: str) -> str:
    """The labels of the true statements, by plain text replacement."""
    true = ""
    for label, letters, digit, claimed in re.findall(r"([a-k])([A-Z]+)(\d)(\d)", question):
        for letter in letters:
            digit = digit.translate(str.maketrans("0123456789", microlab.TABLES[letter]))
        true += label * (digit == claimed)
    return true


def test_statements_by_hand():
    first = microlab.TABLES["Q"][3]
    second = microlab.TABLES["A"][int(first)]
    wrong = str((int(second) + 1) % 10)
    statements = microlab.Statements((("QA", "3", second), ("QA", "3", wrong)))
    assert (statements.question, statements.answer) == (f"aQA3{second}bQA3{wrong}=?", "a")
    assert statements.write() == f"a3Q{first}A{second}{second}yb3Q{first}A{second}{wrong}n\\boxed{{a}}"
    assert statements.write("restated") == f"a3Q={first}A={second}{second}yb3Q={first}A={second}{wrong}n\\boxed{{a}}"
    assert statements.write(results=[first + wrong]) == f"a3Q{first}A{wrong}{second}n\\boxed{{}}"


@pytest.mark.parametrize("name", STATEMENTS)
def test_benchmarks_of_statements_have_right_answers_that_guesses_miss(name):
    spec = microlab.MICRO_BENCHMARKS[name]
    problems = microlab.make_problems(name, spec, 200, seed=3)
    assert [p.answer for p in problems] == [true_labels(p.question) for p in problems]
    assert {len(found) for p in problems for found in re.findall("[A-Z]+", p.question)} == {spec.terms - 1}
    assert {p.instruction for p in problems} == {INSTRUCTION}  # one token of a micro model
    answers = [f"\\boxed{{{p.answer}}}" for p in problems]
    assert {g.verdict for g in grade(answers, problems)} == {Verdict.CORRECT}
    guessed = [g.verdict for g in grade(answers[1:] + answers[:1], problems)]
    assert guessed.count(Verdict.CORRECT) <= 2


def test_a_base_of_statements_looks_up_what_it_knows():
    settings = PretrainingSettings(
        examples=0,
        fallible_examples=300,
        terms=(2, 3),
        slip=0.0,
        direct_fraction=0.2,
        gives_up={3: 0.5},
        uncertain=(0, 0),
    )
    written = microlab.pretraining_corpus(settings, seed=0, task="statements")[1]
    checked = np.array([len(re.findall(r"[a-k](?:\d[A-Z])+\d\d[yn]", trace.response)) for trace in written])
    right = np.array([trace.response.endswith(f"{{{true_labels(trace.question)}}}") for trace in written])
    assert right[checked == 11].all()
    assert abs(np.mean(checked == 0) - 0.2) < 5 * (0.16 / 300) ** 0.5
    assert abs(np.mean((checked > 0) & (checked < 11)) - 0.2) < 5 * (0.16 / 300) ** 0.5


def lanes_of(response: str) -> list[list[tuple[str, str, str, str]]]:
    """The (digit, operator, digit, result) lanes of each line of a stepwise solution."""
    return [re.findall(r"(\d)([+*-])(\d)(\d)", line[1:]) for line in response.split("\n")[:-1]]


def fallible(count: int = 1500, **settings) -> list:
    """Solutions by a writer with only the given weaknesses, four terms and three digits each."""
    settings = {"slip": 0.0, "direct_fraction": 0.0, "terms": (4,)} | settings
    return microlab.pretraining_corpus(PretrainingSettings(examples=1, fallible_examples=count, **settings), seed=0)[1]


def test_slips_happen_as_often_as_asked_and_are_carried_on():
    digits = wrong = 0
    for trace in fallible(slip=0.2):
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


def test_misconceptions_are_always_the_same_wrong_digit():
    seen: dict[tuple[str, str, str], list[str]] = {}
    for trace in fallible(misconceptions={"*": (0.4, 0.8), "-": (1.0, 1.0)}):
        for lanes in lanes_of(trace.response):
            for a, operator, b, result in lanes:
                seen.setdefault((a, operator, b), []).append(result)
    rates = []
    for (a, operator, b), results in seen.items():
        right = solve(f"{a}00{operator}{b}00")[0]
        wrong = [result for result in results if result != right]
        assert len(set(wrong)) <= 1
        if operator == "+":
            assert not wrong
        elif operator == "-":
            assert len(wrong) == len(results)
        else:
            rates.append(len(wrong) / len(results))
    assert len(rates) == 100
    assert abs(np.mean(rates) - 0.6) < 0.05
    assert np.std(rates) > 0.1  # facts differ in how well they are known


def test_giving_up_shortens_the_solution_and_boxes_the_state_reached():
    traces = fallible(gives_up={4: 0.7, 3: 1.0})
    short = 0
    for trace in traces:
        lanes = lanes_of(trace.response)
        short += len(lanes) < 3
        reached = "".join(lane[3] for lane in lanes[-1])
        assert trace.response.endswith(f"\\boxed{{{reached}}}")
    assert abs(short / len(traces) - 0.7) < 5 * (0.21 / len(traces)) ** 0.5


def test_pretraining_has_a_correct_and_a_fallible_phase():
    settings = PretrainingSettings(examples=300, fallible_examples=300, slip=0.5, direct_fraction=0.3)
    clean, careless = microlab.pretraining_corpus(settings, seed=0)

    def right(traces):
        return np.mean([t.response.endswith(f"{{{solve(t.question)}}}") for t in traces])

    assert len(clean) == len(careless) == 300
    assert right(clean) == 1
    assert right(careless) < 0.2
    direct = np.mean(["\n" not in t.response for t in careless])
    assert abs(direct - 0.3) < 5 * (0.21 / 300) ** 0.5


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
