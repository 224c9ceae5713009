"""`compare --until-decided` and `rank --until-settled` with real micro models: verdicts, resumption, refusals."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quagmire_utils import cli
from quagmire_utils.core.files import read_json, write_json
from quagmire_utils.core.provenance import manifest
from quagmire_utils.engines import EngineConfig, SamplingParams
from quagmire_utils.evaluation.deciding import UNEQUAL
from quagmire_utils.evaluation.evaluate import evaluate
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.report.inputs import load_benchmarks

MINI = Path(__file__).resolve().parents[2] / "results" / "mini-v1"
SUMS = str(MINI / "benchmarks" / "sums2.jsonl")
MODELS = ("micro-llama", "micro-qwen")  # 53 % and 47 % of these problems
PARAMS = SamplingParams(max_tokens=40, seed=3)


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """A folder with small evaluations of two shipped models, as `quagmire evaluate` leaves them."""
    folder = tmp_path_factory.mktemp("evaluations")
    for name in MODELS:
        if not (MINI / "bases" / name).is_dir():
            pytest.skip("no shipped models")
        config = EngineConfig(engine="transformers", model=MINI / "bases" / name)
        store = SampleStore(folder / name)
        evaluate(config, load_benchmarks(SUMS, 12), 2, PARAMS, store, progress=False)
        facts = {"model": f"results/mini-v1/bases/{name}", "benchmarks": SUMS, "limit": 12, **store.origin}
        write_json(manifest(facts), store.path / "manifest.json")
    return folder


@pytest.fixture
def folder(evaluations, tmp_path):
    return shutil.copytree(evaluations, tmp_path / "evaluations")


def compare(folder, *options):
    return ["compare", *(str(folder / name) for name in MODELS), "--until-decided", *options]


def counts(folder, name, *place):
    return SampleStore(folder.joinpath(name, *place)).counts().set_index("problem")["n"]


def test_both_models_get_equally_many_answers_and_stored_ones_are_used(folder, capsys):
    options = ["--num-samples", "8", "--within", "0.5"]
    assert cli.main(compare(folder, *options)) == 0
    printed = capsys.readouterr().out
    assert "Pass@1 on problems of this kind, from 12 problems." in printed
    assert re.search(r"look 1 of 3, 2 answers a problem: a - b [+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]", printed)
    answers = counts(folder, "micro-llama")
    assert answers.nunique() == 1
    assert counts(folder, MODELS[1]).equals(answers)
    assert cli.main(compare(folder, *options)) == 0
    again = capsys.readouterr().out
    assert "of them drawn now: 0." in again
    assert again.splitlines()[:-1] == printed.splitlines()[:-1]


@pytest.mark.slow
def test_a_killed_decision_is_finished_as_an_unbroken_one(folder, tmp_path, capsys):
    """Answers to different problems differ in number here, and that rests on the answers before."""
    unbroken = shutil.copytree(folder, tmp_path / "unbroken")
    options = ["--num-samples", "64", "--within", "0.1", "--these-problems"]
    assert cli.main(compare(unbroken, *options)) == 0
    wanted, parts = capsys.readouterr().out.splitlines()[2:], folder / MODELS[1] / UNEQUAL
    process = subprocess.Popen([sys.executable, "-m", "quagmire_utils", *compare(folder, *options)])
    while len(list(parts.glob("part-*.parquet"))) < 3 and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    held = {part.name for part in parts.glob("part-*.parquet")}
    assert cli.main(compare(folder, *options)) == 0
    found = capsys.readouterr().out.splitlines()[2:]
    assert found[:-1] == wanted[:-1]
    assert held < {part.name for part in parts.glob("part-*.parquet")}
    for name in MODELS:
        assert counts(folder, name, UNEQUAL).equals(counts(unbroken, name, UNEQUAL))
        assert counts(folder, name, UNEQUAL).nunique() > 1
        assert set(counts(folder, name)) == {2}  # whose scores stay unbiased


def test_the_best_of_a_folder_is_settled(folder, capsys):
    shutil.rmtree(folder / "micro-qwen")  # which has another template
    shutil.copytree(folder / "micro-llama", folder / "micro-copy")
    assert cli.main(["rank", str(folder), "--until-settled", "--within", "90"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"micro-\w+ is best or less than 90 points below the best\. Such a verdict", printed)
    assert "of them drawn now: 0." in printed
    assert re.search(r"9\d % saved", printed)


def test_a_model_outside_of_the_repository_is_found_by_its_name(folder, tmp_path, capsys):
    store = folder / "micro-llama"
    facts = {"model": "mine", "benchmarks": SUMS, "limit": 12, **SampleStore(store).origin}
    write_json(manifest(facts), store / "manifest.json")
    assert cli.main(compare(folder, "--within", "90")) == 2
    assert "does not say where its model mine lies" in capsys.readouterr().err
    shutil.copytree(MINI / "bases" / "micro-llama", tmp_path / "models" / "mine")
    assert cli.main(compare(folder, "--within", "90", "--models", str(tmp_path / "models"))) == 0
    generation = tmp_path / "models" / "mine" / "generation_config.json"
    write_json({**read_json(generation), "eos_token_id": 0}, generation)
    assert cli.main(compare(folder, "--within", "90", "--models", str(tmp_path / "models"))) == 2
    assert "model_digest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["-k", "1,2"], "one k, for a decision"),
        (["-k", "2", "--these-problems"], "only Pass@1 has a guarantee"),
        (["--num-samples", "-3"], "num_samples must be at least 2"),
        (None, "has no manifest of an evaluation"),
        ("{", "has no manifest of an evaluation"),
    ],
)
def test_what_has_no_guarantee_or_manifest_is_one_sentence(folder, capsys, options, sentence):
    if not isinstance(options, list):
        file, text, options = folder / "micro-llama" / "manifest.json", options, []
        file.write_text(text) if text else file.unlink()
    assert cli.main(compare(folder, *options)) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert "\n" not in error
