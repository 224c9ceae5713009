"""Selection, splits and decontamination: against brute force, and on real problems if there is a data folder."""

import hashlib
import json
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quagmire_utils.core.settings import load_profile
from quagmire_utils.data import BENCHMARKS, Problem, Trace, load_benchmark
from quagmire_utils.data.curation import BenchmarkIndex, decontaminate, response_lengths, select
from quagmire_utils.data.curation.contamination import normalise, same_question
from quagmire_utils.data.curation.recipes import seeded_order
from quagmire_utils.data.prompts import response_ids
from quagmire_utils.sweep.datasets import OWN_FRACTION, source_traces
from quagmire_utils.sweep.grid import derive_seed
from quagmire_utils.training.microlab import build_tokenizer

TOKENIZER = build_tokenizer()


POOL = [Trace(f"t{i}", f"p{i}", f"question {i}", "x" * ((i * 37) % 101)) for i in range(400)]


def test_length_is_in_tokens_with_eos():
    # \boxed{ is one token of this tokenizer: characters would rank these two the other way round.
    traces = [Trace("a", "a", "q", "\\boxed{1}"), Trace("b", "b", "q", "12345")]
    assert response_lengths(traces, TOKENIZER) == [len(response_ids(TOKENIZER, t.response)) for t in traces] == [4, 6]
    assert [t.id for t in select(traces, "shortest", 1, tokenizer=TOKENIZER, seed=0)] == ["a"]


@pytest.mark.parametrize(("how", "reverse"), [("shortest", False), ("longest", True)])
def test_ends_are_the_true_ends(how, reverse):
    chosen = [len(t.response) for t in select(POOL, how, 50, tokenizer=TOKENIZER, seed=3)]
    assert chosen == sorted((len(t.response) for t in POOL), reverse=reverse)[:50]


def test_random_subsets_are_nested_and_follow_the_seed():
    small, large = (select(POOL, "random", n, tokenizer=None, seed=1) for n in (25, 100))
    assert large[:25] == small
    assert {t.id for t in small} != {t.id for t in select(POOL, "random", 25, tokenizer=None, seed=2)}


def test_random_is_uniform():
    # 2,000 seeds, 10 of 400: each trace is expected 50 times. Chi-square over 400 cells has mean ~399, deviation ~28.
    hits = dict.fromkeys((t.id for t in POOL), 0)
    for seed in range(2000):
        for trace in select(POOL, "random", 10, tokenizer=None, seed=seed):
            hits[trace.id] += 1
    chi_square = sum((count - 50) ** 2 / 50 for count in hits.values())
    assert 260 < chi_square < 540


def test_mixture_takes_both_ends_without_overlap_and_plus_shares_evenly():
    chosen = select(POOL, {"shortest": 21, "longest": 20}, tokenizer=TOKENIZER, seed=0)
    assert len({t.id for t in chosen}) == 41
    lengths = sorted(len(t.response) for t in POOL)
    assert sorted(len(t.response) for t in chosen) == lengths[:21] + lengths[-20:]
    assert select(POOL, "shortest+longest", 41, tokenizer=TOKENIZER, seed=0) == chosen


def test_impossible_selections_are_refused(refused):
    for pool, how, n, parameter in (
        (POOL, "random", 401, "random"),
        (POOL, {"longest": 300, "shortest": 101}, None, "shortest"),
        (POOL, "middle", 3, "selection"),
        (POOL, "random+random", 4, "selection"),
        (POOL, {"longest": 3}, 4, "n"),
        ([POOL[0], POOL[0]], "random", 1, "traces"),
    ):
        with refused(parameter):
            select(pool, how, n, tokenizer=TOKENIZER, seed=0)
        with refused("tokenizer"):
            select(POOL, "longest", 3, tokenizer=None, seed=0)


LONG = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


@pytest.mark.parametrize(
    ("question", "removed"),
    [
        ("What is $1+2$?", True),
        ("what is 1 + 2 ?", True),
        (LONG.upper() + " How many in all?", True),
        ("In short: " + " ".join(LONG.split()[:12]) + ", Bob said.", False),  # twelve words in common
        ("In short: " + " ".join(LONG.split()[:13]) + ", she said.", True),
    ],
)
def test_decontaminate_by_equality_and_by_13_words(question, removed):
    problems = [Problem("b/1", "What is $1+2$?", "3"), Problem("b/2", LONG, "72")]
    clean, gone = decontaminate([Trace("t", "t", question, "r")], problems)
    assert (len(clean), len(gone)) == ((0, 1) if removed else (1, 0))
    if gone:
        assert (gone[0][1].problem_id, gone[0][1].shared == "") == (
            ("b/1", True) if "1" in question else ("b/2", False)
        )


@settings(max_examples=300, deadline=None)
@given(st.text(st.one_of(st.characters(), st.sampled_from(" $\t\n\x1c\x85\u2003\u3000ABCabcﬁßİ²"))))
def test_normalise_is_what_its_fast_form_stands_for(text):
    assert normalise(text) == re.sub(r"[\s$]+", "", unicodedata.normalize("NFKC", text).casefold())


def digest_of(traces: list[Trace]) -> str:
    sha = hashlib.sha256()
    for t in traces:
        sha.update(json.dumps([t.id, t.problem_id, t.question, t.response, t.answer, t.source]).encode())
    return sha.hexdigest()


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("smoke", "02107f76f332f0e871de65693159ecf4c51bbee883f7162fdd44c70f9ac687d2"),
        pytest.param(
            *("mini-v1-pilot", "ed176b7724ee6c82d1521e09ce472620829229c91184acd33b2f1b66de000aea"),
            marks=pytest.mark.slow,
        ),
        ("mini-v1", "31a70735065497ac1a2e9e464f7a7090532656e81e2fcca41b6ad76142b318b0"),
    ],
)
def test_every_set_of_the_shipped_studies_is_the_one_they_were_measured_on(name, digest):
    # Digests of what the code made when results/mini-v1 was measured: pools, candidates' sets, held-out sets, splits.
    profile, sha = load_profile(name), hashlib.sha256()
    for family in profile.families:
        for source in family.sources:
            pool, held_out = source_traces(profile, family, source)
            sha.update((digest_of(pool) + digest_of(held_out)).encode())
            seed = derive_seed(profile.seed, family.name, source, "selection")
            for candidate in family.candidates:
                if candidate.source != source or candidate.selection == "none":
                    continue
                how, own = candidate.selection, max(2, len(held_out) // OWN_FRACTION)
                sha.update(digest_of(select(pool, how, candidate.n_examples, tokenizer=TOKENIZER, seed=seed)).encode())
                if how != "random":
                    sha.update(digest_of(select(held_out, how, own, tokenizer=TOKENIZER, seed=seed)).encode())
            for n_validation in (1, 40):
                problems = list({trace.problem_id: None for trace in pool})
                held = {problems[i] for i in seeded_order(problems, seed)[:n_validation]}
                for side in (False, True):
                    sha.update(digest_of([trace for trace in pool if (trace.problem_id in held) == side]).encode())
    assert sha.hexdigest() == digest


@pytest.fixture(scope="module")
def problems(data_dir):
    return [problem for name in BENCHMARKS for problem in load_benchmark(name, data_dir=data_dir)]


@pytest.fixture(scope="module")
def index(problems):
    return BenchmarkIndex(problems)


def test_decontamination_of_the_real_training_sets_is_what_it_was(data_dir, problems):
    training = [p for name in ("gsm8k_train", "math_train") for p in load_benchmark(name, data_dir=data_dir)]
    clean, gone = decontaminate([Trace(p.id, p.id, p.question, p.answer) for p in training], problems)
    assert digest_of(clean) == "16301cd37463e234c5791ee2463ab4e2e1d99b4db8842399f4b05f5d5bde4c5f"
    # 287 of MATH's 7,470 training problems are AIME questions (245 to the letter); more share a quarter of their words.
    assert sum(match.problem_id.startswith("aime/") and not match.shared for _, match in gone) == 287
    assert sum(trace.id.startswith("math_train/") for trace, _ in gone) == 516
    removed = {trace.id: match for trace, match in gone}
    # AIME 2003 I 12 and 2004 I 13 with other relation signs and dots, which 13 equal words do not find
    assert removed["math_train/6754"].problem_id == "aime/2003-I-12"
    assert removed["math_train/7136"].problem_id == "aime/2004-I-13"
    assert "math_train/1683" not in removed  # of its 13 shared words the last was \\left


def other_delimiters(text: str) -> str:
    text = re.sub(r"\$\$(.+?)\$\$", r"\\[\1\\]", text, flags=re.S)
    return re.sub(r"\$(.+?)\$", r"\\(\1\\)", text, flags=re.S)


SPELLINGS = {
    "delimiters": other_delimiters,
    "fractions": lambda text: text.replace("\\frac", "\\dfrac"),
    "no sizes": lambda text: re.sub(r"\\(left|right)(?![a-zA-Z])", "", text),
    "sizes": lambda text: text.replace("(", "\\left(").replace(")", "\\right)"),
    "relations": lambda text: re.sub(r"\\(le|ge|ne)(?![a-zA-Z])", r"\\\1q", text),
    "braces": lambda text: re.sub(r"\^(\d)", r"^{\1}", text),
    "fonts": lambda text: text.replace("\\text{", "\\mathrm{"),
    "spacing": lambda text: text.replace(" ", "\n ~"),
    "case": str.upper,
    "full stop": lambda text: text.removesuffix("."),
    "signs": lambda text: re.sub(r"\\le(?![a-zA-Z])", "≤", text).replace("'", "\u2019"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_benchmark_question_is_found_in_another_spelling(spelling, problems, index):
    missed = [problem.id for problem in problems if not index.meets(SPELLINGS[spelling](problem.question))]
    assert missed == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"Simplify $\dfrac12$.", r"simplify \(\frac{1}{2}\)", True),
        (r"Find $\left( x \right)$", r"Find $(x)$.", True),
        (r"Is $x \leq 1{,}000$?", r"Is $x\le 1000$?", True),
        ("Is $x ≤ 2²$?", r"Is $x \le 2^{2}$?", True),
        (r"Simplify $\frac{12}{3}$", r"Simplify $\frac{1}{23}$", False),
        ("Compute $5!$", "Compute $5$", False),
        ("Compute $-3$", "Compute $3$", False),
        (r"Compute $\sqrt{2}$", r"Compute $\sqrt[3]{2}$", False),
        (r"Is $x < 2$?", r"Is $x \le 2$?", False),
        ("?", ".", False),
    ],
)
def test_the_same_question(one, other, same):
    assert (same_question(one) == same_question(other)) == same


def test_a_short_question_inside_another_is_found_from_eight_words_on():
    problems = [
        Problem("b/1", "What is the greatest common factor of $32$ and $48$?", "16"),  # ten words
        Problem("b/2", r"Evaluate $\log_2 8 + 1$.", "4"),
    ]
    questions = {
        "Problem 7. What is the greatest common factor of 32 and 48? Answer in a box.": True,
        "What is the greatest common factor of 32 and 84?": False,
        r"Warm-up: evaluate $\log_2 8 + 1$.": False,  # five words are in too many questions
        r"Evaluate $\log_2 8 - 1$.": False,
    }
    clean, _ = decontaminate([Trace(q, q, q, "r") for q in questions], problems)
    assert [trace.id for trace in clean] == [q for q, met in questions.items() if not met]


OWN = [  # problems of no benchmark that end as many of AIME's do
    "A fair die is rolled four times. The probability that the sum is a multiple of three can be expressed as "
    "$\\frac{m}{n}$, where $m$ and $n$ are relatively prime positive integers. Find $m+n$.",
    "Five kittens sit in a row. The probability that no two black ones are neighbours is $m/n$, where $m$ and $n$ are "
    "relatively prime positive integers. Find $m+n$.",
    "A kite has sides 5, 5, 12 and 12. Its longer diagonal can be written in the form $a\\sqrt{b}$, where $a$ and $b$ "
    "are positive integers and $b$ is not divisible by the square of any prime. Find $a+b$.",
    "Let $N$ be the number of ways to paint 30 posts. Find the remainder when $N$ is divided by $1000$.",
]


def test_a_benchmarks_usual_words_forbid_nothing(problems, index):
    assert [index.meets(question) for question in OWN] == [None] * len(OWN)
    copied = next(problem for problem in problems if problem.id == "aime/2001-II-6")
    match = index.meets("Read with care. " + copied.question.replace("$", ""))
    assert (match.problem_id, match.question) == (copied.id, copied.question)


def test_a_quarter_of_the_words_must_be_shared():
    tail = "how many marbles are there in all of the red boxes in the cellar now"  # 15 words
    problems = [Problem("b/1", f"Ann has two boxes, and {tail}?", "3")]
    for words, met in ((45, True), (46, False)):
        question, other = (" ".join(f"{x}{i}" for i in range(words)) + " " + tail for x in "wx")
        assert BenchmarkIndex(problems).meets(question)  # most of the problem
        assert bool(BenchmarkIndex([Problem("b/1", other, "3")]).meets(question)) is met
    twice = [*problems, Problem("b/2", f"Quite another story of nine long words indeed, {tail} and why do they?", "4")]
    assert BenchmarkIndex(twice).meets(f"My own story: {tail}?") is None  # several problems end so
