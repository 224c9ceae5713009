"""Pretrained models through the sweep: the documentation's examples, the dry run, and a stand-in that really runs."""

import json
import os
import re
import subprocess

import pytest
import yaml
from example_cells import command

from quagmire_utils import sweep
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, read_parquet
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.settings import PROFILES, Profile, load_profile
from quagmire_utils.sweep import datasets
from quagmire_utils.sweep.estimate import estimate, hub_answers

MICRO = ROOT / "results" / "mini-v1" / "bases" / "micro-llama"


def values_of(name):
    return yaml.safe_load((PROFILES / f"{name}.yaml").read_text())


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """A machine without a hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    hub_answers.cache_clear()
    yield
    hub_answers.cache_clear()


def example(name):
    """The YAML of one of the examples of docs/scale.md; `readme` has them all."""
    section = (ROOT / "docs" / "scale.md").read_text().split(f"<!-- example: {name} -->")[1]
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, re.S)[1])


def test_the_single_examples_make_the_whole_one():
    merged = {"families": [{}]}
    for name in ("model", "sft", "rl", "benchmark"):
        added = example(name)
        merged["families"][0] |= added.pop("families", [{}])[0]
        for section, lines in added.items():
            merged[section] = merged.get(section, {}) | lines
    assert merged == example("readme")


def write_files_of_the_examples(folder):
    folder.mkdir()
    rows = [
        {
            "prompt": f"Ann has {i} pears and Bob {i % 97}. How many have they?",
            "completion": f"They have \\boxed{{{i + i % 97}}}.",
            "problem": f"Add {i} to {i % 89}.",
            "solution": f"It is \\boxed{{{i + i % 89}}}.",
        }
        for i in range(6600)
    ]
    for file in ("my_traces", "my_problems"):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.dumps({"id": f"b{i}", "question": f"What is 1+{i}?", "answer": str(1 + i)}) for i in range(200)]
    (folder / "my_benchmark.jsonl").write_text("\n".join(lines))


@pytest.mark.requires_data
def test_the_example_of_the_documentation_works(tmp_path, monkeypatch):
    """Put into single_gpu, it passes preflight, and what it names is read, selected from and held out."""
    monkeypatch.chdir(tmp_path)
    write_files_of_the_examples(tmp_path / "data")
    values, added = values_of("single_gpu") | {"name": "mine"}, example("readme")
    family, (other,) = values["families"][0], added["families"]
    other["model"]["parameters"] = family["model"]["parameters"]  # as no hub tells it here
    other["sources"] = family["sources"] | other["sources"]
    added |= {"families": [family | other], "datasets": values["datasets"] | added["datasets"]}
    profile = Profile.load(values | added)
    results, family = tmp_path / "results", profile.families[0]
    text = sweep.dry_run(profile, results)
    assert "pass preflight" in text
    assert "my_" not in text.split("Missing")[1]  # the example's own files are there
    assert "model Qwen/Qwen3-1.7B-Base" in text
    problems = sweep.benchmark_problems(profile)
    assert [problem.answer for problem in problems["data/my_benchmark.jsonl"]] == [str(1 + i) for i in range(200)]
    assert len(problems["math500"]) == 500
    candidate = next(c for c in family.candidates if c.name == "random-1000x2")
    traces, held_out = datasets.candidate_traces(profile, results, family, candidate, MICRO)
    assert {trace.source for trace in traces} == {"my_traces"}
    assert (len(traces), len(held_out)) == (1000, 300)
    assert not {t.problem_id for t in traces} & {t.problem_id for t in held_out}
    problems = sweep.rl_problems(profile, family, results)
    assert len({problem.id for problem in problems}) == 5000
    add = [list(map(int, re.findall(r"\d+", problem.question))) for problem in problems]
    assert [problem.answer for problem in problems] == [str(sum(numbers)) for numbers in add]


def test_a_dry_run_of_the_paper_lists_its_cells_and_what_is_missing(tmp_path, monkeypatch):
    for backend in ("LLAMAFACTORY", "VERL"):
        monkeypatch.setenv(f"QUAGMIRE_{backend}_PYTHON", str(tmp_path / "nothing"))
    profile = load_profile("paper", {"compute.gpus": 256})
    text = sweep.dry_run(load_profile("paper"), tmp_path / "results")
    assert "335 cells (0 done): 3 base models, 64 SFT candidates, 268 RL runs\n3,812 problems of 7 benchmarks" in text
    assert all(len(line) <= 100 or len(line.split()) == 1 for line in text.splitlines())  # an address is one word
    missing = sweep.dry_run(profile.replace(sft=profile.sft.replace(batch_size=256)), tmp_path).split("Missing")[1]
    for lack in ("GPUs: 256 x A100-80GB", "back-end llamafactory", "back-end verl", "8B-Instruct (16.1 GB)"):
        assert lack in missing
    assert "dataset acereason" in missing
    assert not (tmp_path / "results").exists()  # nothing was written


def test_the_papers_million_gpu_hours_lie_between_the_readings_of_what_it_leaves_open():
    """As docs/scale.md says: no RL run over the printed five days, our lengths, every answer as long as allowed."""
    longest = dict.fromkeys(("base", "sft", "rl", "rollout"), 6144)
    profile = load_profile("paper")
    ours, most = (
        estimate(p, sweep.plan(p)) for p in (profile, load_profile("paper", {"compute.answer_tokens": longest}))
    )
    capped = ours["train"].clip(upper=5 * 24 * 8).sum() + ours["sample"].sum()
    millions = [hours / 1e6 for hours in (capped, ours["hours"].sum(), most["hours"].sum())]
    assert millions == pytest.approx([0.36, 0.50, 1.00], abs=0.005)


def test_a_model_that_does_not_fit_its_gpu_is_named(tmp_path):
    text = " ".join(sweep.dry_run(load_profile("paper", {"compute.gpus": 1}), tmp_path).split())
    assert "training llama3-8b needs more than 128.5 GB on each GPU, which has 80.0 GB; raise compute.gpus" in text
    assert "GPU memory" not in sweep.dry_run(load_profile("paper"), tmp_path)


LINE = '{"prompt": "1+1?", "completion": "It is 2."}\n'


@pytest.mark.parametrize(
    ("entry", "content", "said"),
    [
        ({"question": "prompt", "response": "completion"}, None, r"no .*traces\*\.jsonl"),
        ({"question": "prompt", "response": "completion"}, "", "is empty"),
        ({"question": "prompt", "response": "completion"}, 3 * LINE, r"3 rows of .* can be used, 6,300 are needed"),
    ],
)
def test_files_that_a_later_cell_could_not_read_are_refused_at_once(tmp_path, entry, content, said):
    """Also by the sweep itself, before the cells that do not need them."""
    if content is not None:
        (tmp_path / "traces.jsonl").write_text(content)
    values = values_of("single_gpu") | {"name": "mine"}
    values["datasets"]["mine"] = {**entry, "files": [str(tmp_path / "traces*.jsonl")]}
    values["families"][0]["sources"]["main"]["dataset"] = "mine"
    values["compute"]["gpus"], values["rl"]["rollout_engine"] = 0, "transformers"
    values["evaluation"]["engine"] = "transformers"
    profile = Profile.load(values)
    missing = " ".join(sweep.dry_run(profile, tmp_path / "results").split("Missing")[1].split())
    assert re.search(f"dataset mine: .*{said}", missing)
    with pytest.raises(ParameterError, match=f"dataset mine: .*{said}") as raised:
        sweep.run_sweep(profile, tmp_path / "results")
    assert raised.value.parameter == "datasets"
    assert not (tmp_path / "results" / "scratch").exists()


@pytest.mark.requires_data
def test_local_mirrors_of_training_sets_are_used(tmp_path):
    missing = sweep.dry_run(load_profile("single_gpu"), tmp_path / "results").split("Missing")[1]
    assert "dataset math_solutions" in missing  # the mirror has MATH's problems, not their solutions
    for name in ("dataset gsm8k_train", "dataset math_train", "benchmark"):
        assert name not in missing


@pytest.mark.requires_data
@pytest.mark.slow
def test_stand_in_of_single_gpu_runs_end_to_end(tmp_path):
    """The shipped YAML with a micro model in place of Qwen's, and few problems: SFT and GRPO by TRL, measured."""
    values = values_of("single_gpu") | {"name": "stand-in", "datasets": {}, "benchmarks": {"gsm8k": 2, "amc": 1}}
    family = values["families"][0]
    family |= {"model": {"hub_id": str(MICRO)}, "rl_problems": 8}
    family["sources"] = {"main": {**family["sources"]["main"], "validation": 4}}
    family["candidates"] = [{"selection": "none"}, {"selection": "shortest", "n_examples": 8, "scenario": "instance"}]
    values["sft"] |= {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3}
    values["rl"] |= {"rollout_engine": "transformers", "steps": 2, "prompts_per_step": 2, "rollouts": 4}
    values["rl"] |= {"max_tokens": 12, "runs": 1, "micro_batch_size": 4}
    values["evaluation"] |= {"engine": "transformers", "num_samples": 4, "rl_num_samples": 2, "k": 4, "max_tokens": 16}
    values["compute"] = {"gpus": 0}
    path, folder = tmp_path / "stand-in.yaml", tmp_path / "results"
    path.write_text(yaml.safe_dump({**values, "families": [family]}, sort_keys=False))
    subprocess.run(command(path, folder), env=os.environ, check=True)

    counts = read_parquet(folder / "counts.parquet")
    cells = sweep.plan(load_profile(path))
    assert counts.groupby("cell").size().to_dict() == {cell.id: 6 if cell.kind == "rl" else 3 for cell in cells}
    losses = read_parquet(folder / "generalization_loss.parquet").set_index(["cell", "validation_set"])["nll"]
    assert losses["qwen3-0.6b/shortest-8x1", "validation"] < losses["qwen3-0.6b/base", "validation"]
    assert read_parquet(folder / "rl_curves.parquet").groupby("cell").size().tolist() == [2, 2]
    manifests = [read_json(file) for file in (folder / "scratch" / "data").glob("*/manifest.json")]
    removed = {m["configuration"]["recipe"]["source"]: m["counts"]["met a benchmark"] for m in manifests}
    assert removed == {"gsm8k_train": 4, "math_train": 516}
    assert not (folder / "bases").exists()  # a pretrained model has a hub; it is not copied to the records
    text = sweep.dry_run(load_profile(path), folder)
    assert "4 cells (4 done)" in text
    assert "measured" in text
