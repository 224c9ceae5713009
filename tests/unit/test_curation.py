"""Selection, splits and decontamination: against brute force, and on real problems where a mirror is at hand."""

import hashlib
import json
import random
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import load_profile
from quagmire_utils.data import BENCHMARKS, TRAINING_SETS, Problem, Trace, load_benchmark, load_training_problems
from quagmire_utils.data.curation import decontaminate, response_lengths, select, split_by_problem
from quagmire_utils.data.curation.contamination import normalise
from quagmire_utils.data.prompts import response_ids
from quagmire_utils.sweep.cells import OWN_FRACTION
from quagmire_utils.sweep.grid import derive_seed, source_traces
from quagmire_utils.training.microlab import build_tokenizer

TOKENIZER = build_tokenizer()


def make(lengths: list[int], per_problem: int = 1) -> list[Trace]:
    return [
        Trace(f"t{i}", f"p{i // per_problem}", f"question {i // per_problem}", "x" * n) for i, n in enumerate(lengths)
    ]


POOL = make([(i * 37) % 101 for i in range(400)])


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


@pytest.mark.parametrize("how", ["random", "shortest", "shortest+longest+random"])
def test_order_of_the_pool_does_not_matter(how):
    shuffled = random.Random(0).sample(POOL, len(POOL))
    first, second = (select(pool, how, 90, tokenizer=TOKENIZER, seed=5) for pool in (POOL, shuffled))
    assert first == second


def test_random_is_uniform():
    # 2,000 seeds, 10 of 400: each trace is expected 50 times. Chi-square over 400 cells has mean ~399, deviation ~28.
    hits = dict.fromkeys((t.id for t in POOL), 0)
    for seed in range(2000):
        for trace in select(POOL, "random", 10, tokenizer=None, seed=seed):
            hits[trace.id] += 1
    chi_square = sum((count - 50) ** 2 / 50 for count in hits.values())
    assert 260 < chi_square < 540


def test_mixture_takes_both_ends_without_overlap():
    chosen = select(POOL, {"longest": 30, "shortest": 20}, tokenizer=TOKENIZER, seed=0)
    assert len({t.id for t in chosen}) == 50
    lengths = sorted(len(t.response) for t in POOL)
    assert sorted(len(t.response) for t in chosen) == lengths[:20] + lengths[-30:]


def test_plus_shares_evenly():
    chosen = select(POOL, "shortest+longest", 21, tokenizer=TOKENIZER, seed=0)
    explicit = select(POOL, {"shortest": 11, "longest": 10}, tokenizer=TOKENIZER, seed=0)
    assert chosen == explicit


def test_mixture_can_use_the_whole_pool():
    chosen = select(POOL, {"longest": 150, "random": 100, "shortest": 150}, tokenizer=TOKENIZER, seed=0)
    assert {t.id for t in chosen} == {t.id for t in POOL}


@pytest.mark.parametrize(
    ("how", "n", "message"),
    [
        ("random", 401, "n=401"),
        ({"longest": 300, "shortest": 101}, None, "n=401"),
        ("random", 0, "at least one"),
        ("shortest+longest", 1, "at least one"),
        ("random", None, "n must be given"),
        ("middle", 3, "how must be"),
        ({}, None, "how must be"),
        ("random+random", 4, "twice"),
        ({"longest": 3}, 4, "not the sum"),
    ],
)
def test_impossible_selections_are_refused(how, n, message):
    with pytest.raises(ParameterError, match=message):
        select(POOL, how, n, tokenizer=TOKENIZER, seed=0)


def test_length_needs_a_tokenizer_and_ids_must_be_unique():
    with pytest.raises(ParameterError, match="tokenizer"):
        select(POOL, "longest", 3, tokenizer=None, seed=0)
    with pytest.raises(ParameterError, match="twice"):
        select([POOL[0], POOL[0]], "random", 1, tokenizer=None, seed=0)


@settings(max_examples=50, deadline=None)
@given(problems=st.integers(2, 40), per_problem=st.integers(1, 5), seed=st.integers(0, 10**6), data=st.data())
def test_split_never_shares_a_problem(problems, per_problem, seed, data):
    n = data.draw(st.integers(1, problems - 1))
    traces = make([1] * problems * per_problem, per_problem)
    train, validation = split_by_problem(traces, n_validation=n, seed=seed)
    assert not {t.problem_id for t in train} & {t.problem_id for t in validation}
    assert len({t.problem_id for t in validation}) == n
    assert sorted(train + validation, key=lambda t: int(t.id[1:])) == traces


def test_split_by_fraction():
    train, validation = split_by_problem(make([1] * 100, 2), validation_fraction=0.1, seed=0)
    assert (len(train), len(validation)) == (90, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"n_validation": 1, "validation_fraction": 0.5}, "exactly one"),
        ({"validation_fraction": 1.0}, "between 0 and 1"),
        ({"n_validation": 0}, "n_validation=0"),
        ({"n_validation": 3}, "n_validation=3"),
    ],
)
def test_impossible_splits_are_refused(arguments, message):
    with pytest.raises(ParameterError, match=message):
        split_by_problem(make([1, 1, 1]), seed=0, **arguments)


LONG = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


@pytest.mark.parametrize(
    ("question", "removed"),
    [
        ("What is $1+2$?", True),
        ("what is 1 + 2 ?", True),
        ("What is $1*2$?", False),  # the same words but another problem
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
        assert (gone[0].problem_id, gone[0].shared == "") == (("b/1", True) if "1" in question else ("b/2", False))


def test_decontaminate_finds_every_benchmark_question_among_real_training_problems():
    try:
        benchmark, training = load_benchmark("gsm8k"), load_training_problems("gsm8k_train")
    except ParameterError as error:
        pytest.skip(str(error))
    planted = [Trace(p.id, p.id, f"  {p.question} ", "r") for p in benchmark[:100]]
    traces = planted + [Trace(p.id, p.id, p.question, "r") for p in training]
    clean, gone = decontaminate(traces, benchmark)
    assert [r.problem_id for r in gone[:100]] == [t.id for t in planted]
    # GSM8K's train and test questions share a few story templates; nearly all of train is kept.
    assert 0.98 * len(training) < len(clean) <= len(training)


@settings(max_examples=300, deadline=None)
@given(st.text(st.one_of(st.characters(), st.sampled_from(" $\t\n\x1c\x85\u2003\u3000ABCabcﬁßİ²"))))
def test_normalise_is_what_its_fast_form_stands_for(text):
    assert normalise(text) == re.sub(r"[\s$]+", "", unicodedata.normalize("NFKC", text).casefold())


# --- what was measured must stay what it was ----------------------------------------------------------------------


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
            *("mini-pilot", "ed176b7724ee6c82d1521e09ce472620829229c91184acd33b2f1b66de000aea"), marks=pytest.mark.slow
        ),
        ("mini", "31a70735065497ac1a2e9e464f7a7090532656e81e2fcca41b6ad76142b318b0"),
    ],
)
def test_every_set_of_the_shipped_studies_is_the_one_they_were_measured_on(name, digest):
    # Digests of what the code made when results/mini was measured: pools, candidates' sets, held-out sets, splits.
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
                sets = [select(pool, how, candidate.n_examples, tokenizer=TOKENIZER, seed=seed)]
                if how != "random":
                    sets.append(select(held_out, how, own, tokenizer=TOKENIZER, seed=seed))
                for traces in sets:
                    sha.update(digest_of(traces).encode())
            for n_validation in (1, 40):
                for side in split_by_problem(pool, n_validation=n_validation, seed=seed):
                    sha.update(digest_of(side).encode())
    assert sha.hexdigest() == digest


def test_decontamination_of_the_real_training_sets_is_what_it_was():
    try:
        problems = [problem for name in BENCHMARKS for problem in load_benchmark(name)]
        training = [p for name in TRAINING_SETS for p in load_training_problems(name)]
    except ParameterError as error:
        pytest.skip(str(error))
    clean, gone = decontaminate([Trace(p.id, p.id, p.question, p.answer) for p in training], problems)
    assert digest_of(clean) == "8de83884430572c2c1afb54c1b8bd7e81a601fef51eef47953e84a23aba6e40f"
    # 259 of MATH's 7,470 training problems are AIME questions (245 to the letter); more share 13 words with one.
    assert sum(r.problem_id.startswith("aime/") and not r.shared for r in gone) == 259
    assert sum(r.trace.id.startswith("math_train/") for r in gone) == 573
    removed = {r.trace.id: r for r in gone}
    # AIME 2003 I 12 and 2004 I 13 with other relation signs and dots, which 13 equal words do not find
    assert removed["math_train/6754"].problem_id == "aime/2003-I-12"
    assert removed["math_train/7136"].problem_id == "aime/2004-I-13"
    assert "math_train/1683" not in removed  # of its 13 shared words the last was \\left
