"""The paper's seven benchmarks and the training sets: hub id, pinned revision, count, licence."""

from __future__ import annotations

from quagmire_utils.data.golds import _aime_gold, _answer_gold, _gsm8k_gold, _minerva_gold, _olympiad_gold
from quagmire_utils.data.problems import Benchmark

_MIT, _APACHE, _MAA = "MIT", "Apache-2.0", "problems (c) Mathematical Association of America"

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="math500",
            title="MATH-500",
            count=500,
            hub_count=500,
            hub_id="HuggingFaceH4/MATH-500",
            config=None,
            split="test",
            revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            file="benchmarks/math500.jsonl",
            id_column="unique_id",
            question_columns=("problem",),
            gold=_answer_gold,
            licence=_MIT,
            digest="8ab6ccc566c5c36a0b597a3504ed1c63245f487447f4ac479a4dd788df879d78",
        ),
        Benchmark(
            name="aime",
            title="AIME 1983-2024",
            count=933,
            hub_count=933,
            hub_id="gneubig/aime-1983-2024",  # the hub's copy of the Kaggle set that the paper cites
            config=None,
            split="train",
            revision="5d610df981dec508dd93d0a16333a029ac1739d8",
            file="benchmarks/aime_1983_2024.csv",
            id_column="ID",
            question_columns=("Question",),
            gold=_aime_gold,
            licence=_MAA,
            digest="ae4770b30554d2ca61ebae99598810eb6f811c64fadc032d4ddcf72fe8541f6b",
        ),
        Benchmark(
            name="gsm8k",
            title="GSM8K",
            count=1319,
            hub_count=1319,
            hub_id="openai/gsm8k",
            config="main",
            split="test",
            revision="740312add88f781978c0658806c59bc2815b9866",
            file="benchmarks/gsm8k.jsonl",
            id_column=None,
            question_columns=("question",),
            gold=_gsm8k_gold,
            licence=_MIT,
            digest="935f3a45547dcec03883d678aeffe273575da5d515a6a9cde212ed62d6acebe3",
        ),
        Benchmark(
            name="aime2025",
            title="AIME 2025",
            count=30,
            hub_count=30,
            hub_id="yentinglin/aime_2025",
            config=None,
            split="train",
            revision="6f71d77b0b89b9dabe07ab466c51df33f514df7f",
            file="benchmarks/aime_2025.jsonl",
            id_column="id",
            question_columns=("question", "problem"),
            gold=_answer_gold,
            licence=_MAA,
            digest="21595621ae89f43f541e10be0ee88dfc87005bdc3808a784e8cfcd15fbcc1833",
        ),
        Benchmark(
            name="amc",
            title="AMC",
            count=83,
            hub_count=83,
            hub_id="AI-MO/aimo-validation-amc",
            config=None,
            split="train",
            revision="69d78a4a2c840e82d69af6bc742bda09005f6316",
            file="benchmarks/amc.jsonl",
            id_column="id",
            question_columns=("problem",),
            gold=_answer_gold,
            licence=_MAA,
            digest="7691600884b728bb71eed9fdb883cb45b5963a136eb6a428f9283e9b12793862",
        ),
        Benchmark(
            name="olympiad",
            title="OlympiadBench",
            count=675,  # of the copy that evaluation suites pass around; the hub has one problem fewer
            hub_count=674,
            hub_id="Hothan/OlympiadBench",
            config="OE_TO_maths_en_COMP",
            split="train",
            revision="91184b52131e7fc9455fef848035173aea8cc01a",
            file="benchmarks/olympiad.jsonl",
            id_column="id",
            question_columns=("question",),
            gold=_olympiad_gold,
            licence=_APACHE,
            digest="218e0a42548947aa2081dc0f5c6793a9361685a1d3e953cf59aa5ffd6e8faa41",
        ),
        Benchmark(
            name="minerva",
            title="Minerva",
            count=272,
            hub_count=272,
            hub_id="math-ai/minervamath",
            config=None,
            split="test",
            revision="ee46ddc498933b1977577953250ca5c66be64f96",
            file="benchmarks/minerva.jsonl",
            id_column=None,  # the hub has no id column; the mirror's is the row's number
            question_columns=("problem", "question"),
            gold=_minerva_gold,
            licence=_MIT,
            digest="ec7e9393ab16ec229abe0edcf34741312fad214cf0a3550050d59cc36ce1e191",
        ),
    )
}

TRAINING_SETS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="gsm8k_train",
            title="GSM8K (train)",
            count=7473,
            hub_count=7473,
            hub_id="openai/gsm8k",
            config="main",
            split="train",
            revision="740312add88f781978c0658806c59bc2815b9866",
            file="train/gsm8k_train.jsonl",
            id_column=None,
            question_columns=("question",),
            gold=_gsm8k_gold,
            licence=_MIT,
            digest="3e748a2e9eec4f1ed333ea81af67470331f69877936541ddee177676d54f4c0e",
        ),
        Benchmark(
            name="math_train",
            title="MATH (train)",
            count=7470,  # 7,474 rows, of which four have no answer
            hub_count=0,
            hub_id="",
            config=None,
            split="train",
            revision="",
            file="train/math_train.jsonl",
            id_column=None,
            question_columns=("problem",),
            gold=_answer_gold,
            licence=_MIT,
            digest="07234fe3171fbc4ca72f1bd7b637f1b7f3179daa0496d4a2187bbc6d7fedca14",
        ),
    )
}

# -------------------------------------------------------------------------------------------------------------- loading
