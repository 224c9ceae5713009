"""`evaluate` end to end: real benchmark problems through a real engine; two evaluations compared or refused."""

import pandas as pd
import pytest
from crash_worker import save_model

from quagmire_utils import cli
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import BENCHMARKS, load_benchmark
from quagmire_utils.engines import EngineConfig, SamplingParams
from quagmire_utils.evaluation.evaluate import compare_outputs, evaluate
from quagmire_utils.evaluation.pass_at_k import benchmark_average
from quagmire_utils.evaluation.store import SampleStore

PARAMS = SamplingParams(max_tokens=16, seed=1)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return EngineConfig(engine="transformers", model=save_model(tmp_path_factory.mktemp("model")))


@pytest.mark.requires_data
def test_real_problems_go_the_whole_way(config, tmp_path):
    """Near-zero scores are right for random weights; every answer must have come through with a verdict."""
    benchmarks = {name: load_benchmark(name, limit=4) for name in BENCHMARKS}
    samples = SampleStore(tmp_path / "samples")
    counts = evaluate(config, benchmarks, 2, PARAMS, samples, k=2, progress=False)
    assert counts["n"].tolist() == [2] * 4 * 7
    assert (counts[["correct", "wrong", "no_answer", "timeout", "error"]].sum(axis=1) == 2).all()
    assert (counts["truncated"] <= 2).all()
    assert benchmark_average(counts, [1])["pass_at_k"].item() < 0.2
    assert samples.prompts()["prompt"].str.contains("Let's think step by step", regex=False).all()


def graded(folder, correct, n=8, golds=None, temperature=1.0, benchmark="sums", verdicts=True):
    """A store in which `correct[i]` of n answers to problem i are right."""
    samples = SampleStore(folder)
    samples.bind({"model_digest": folder.name, "temperature": temperature})
    rows = [
        {"benchmark": benchmark, "problem": f"p{i}", "index": j, "text": "x", "tokens": 1, "finish_reason": "stop"}
        | {"extracted": "1", "verdict": "correct" if j < right else "wrong"}
        for i, right in enumerate(correct)
        for j in range(n)
    ]
    frame = pd.DataFrame(rows)
    held = {(benchmark, f"p{i}"): [gold, None] for i, gold in enumerate(golds or ["1"] * len(correct))}
    samples.append(frame if verdicts else frame.drop(columns=["extracted", "verdict"]), golds=held)
    return folder


def test_two_outputs_are_compared_on_the_problems_of_both(tmp_path, capsys):
    before = graded(tmp_path / "before", [0, 1, 2, 3, 4, 5], temperature=0.7)
    after = graded(tmp_path / "after", [1, 3, 3, 4, 4], n=16)
    table = compare_outputs(after, before, ks=[1, 8])
    own = table[table["benchmark"] == "sums"].set_index("k")
    assert own.loc[1, "difference"] == pytest.approx(15 / 80 - 10 / 40)
    assert own.loc[1, "problems"] == 5
    assert (table.attrs["problems_a"], table.attrs["problems_b"]) == (5, 6)
    assert table.attrs["settings"] == {"model_digest": ("after", "before"), "temperature": (1.0, 0.7)}
    assert cli.main(["compare", str(after), str(before), "-k", "1,8"]) == 0
    printed = capsys.readouterr().out
    assert "on the 5 problems that both answered" in printed
    assert "1 problems only in b are left out" in printed
    assert "They differ in temperature: 1.0 and 0.7." in printed
    assert "-6.2 [" in printed
    assert "macro" not in printed  # of one benchmark, it is that benchmark


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"correct": [1, 2], "golds": ["1", "2"]}, "the gold of sums p1 is '1' in .* and '2' in"),
        ({"correct": [1, 2], "benchmark": "products"}, "no problem in common"),
        (None, "holds no samples"),
        ({"correct": [1, 2], "verdicts": False}, "no verdicts"),
    ],
)
def test_outputs_that_cannot_be_compared_are_one_sentence(tmp_path, capsys, other, sentence):
    first, second = graded(tmp_path / "first", [1, 2]), tmp_path / "second"
    if other is not None:
        graded(second, **other)
    with pytest.raises(ParameterError, match=sentence):
        compare_outputs(first, second)
    assert cli.main(["compare", str(first), str(second)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
