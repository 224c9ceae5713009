"""Pretrained models through the sweep: profiles, what they cost, job scripts, and a stand-in that really runs."""

import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_sweep import TINY

from quagmire_utils import cli, sweep
from quagmire_utils.core import files
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import read_json, read_parquet, write_parquet
from quagmire_utils.core.settings import explicit, load_profile
from quagmire_utils.data import Trace
from quagmire_utils.sweep import cost, data
from quagmire_utils.sweep.data import boxed, without_problems
from quagmire_utils.sweep.estimate import VERL_MEMORY, estimate, gpu_memory, sft_tokens
from quagmire_utils.sweep.grid import resolved_rl
from quagmire_utils.sweep.submit import ray_command, slurm_scripts
from quagmire_utils.training.backends import verl


def main(arguments: list[str]) -> int:
    """Run `quagmire sweep`."""
    return cli.main(["sweep", *arguments])


ROOT = Path(__file__).resolve().parents[2]
MICRO = ROOT / "results" / "mini" / "bases" / "micro-llama"
MIRROR = Path(os.environ.get("QUAGMIRE_DATA_DIR") or ROOT.parent / "shared" / "data")
needs_data = pytest.mark.skipif(
    not (MIRROR / "train" / "gsm8k_train.jsonl").is_file(), reason="no mirror of the benchmarks: set QUAGMIRE_DATA_DIR"
)


def values_of(name):
    return yaml.safe_load((ROOT / "quagmire_utils" / "core" / "profiles" / f"{name}.yaml").read_text())


def written(tmp_path, values, name="mine"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**values, "name": name}, sort_keys=False))
    return path


@pytest.fixture
def offline(monkeypatch):
    """A machine without a hub, as any behind a wall is."""
    from huggingface_hub import constants

    from quagmire_utils.sweep.missing import hub_answers

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_answers.cache_clear()
    yield
    hub_answers.cache_clear()


# --- profiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mini", "mini-pilot"])
def test_records_of_the_shipped_studies_stay_valid(name):
    profile, folder = load_profile(name), ROOT / "results" / name
    cells = sweep.plan(profile)
    assert sweep.finished_cells(folder, cells) == {cell.id for cell in cells}
    assert read_json(folder / "manifest.json")["settings_digest"] == files.digest(explicit(profile))


def test_paper_profile_has_the_printed_settings():
    profile = load_profile("paper")
    printed = pd.read_csv(ROOT / "results" / "paper" / "settings.csv").set_index("name")["value"].astype(float)
    ours = {
        "sft_learning_rate": profile.sft.learning_rate,
        "sft_batch_size": profile.sft.batch_size,
        "rl_learning_rate": profile.rl.learning_rate,
        "rl_batch_size": profile.rl.prompts_per_step,
        "rl_rollouts": profile.rl.rollouts,
        "rl_temperature": profile.rl.temperature,
        "rl_kl_coefficient": profile.rl.kl_coefficient,
        "rl_entropy_coefficient": profile.rl.entropy_coefficient,
        "rl_epochs": profile.rl.epochs,
        "rl_runs_at_least": profile.rl.runs,
        "rl_checkpoints_at_least": profile.rl.checkpoints,
        "gpus_per_node": profile.compute.gpus,
        "evaluation_temperature": profile.evaluation.temperature,
        "benchmarks": len(profile.benchmarks),
        "pass1_repetitions": profile.evaluation.rl_num_samples,
        "large_k": profile.evaluation.k,
        "pass64_repetitions": profile.evaluation.num_samples,
        "budget_low_below": profile.budgets["low"] / 1e9,
        "budget_medium_up_to": profile.budgets["medium"] / 1e9,
        "budget_high_up_to": profile.budgets["high"] / 1e9,
    }
    assert {name: float(printed[name]) for name in ours} == ours
    assert profile.sft.max_length == profile.evaluation.max_model_len == 8 * 1024
    assert (profile.sft.backend, profile.rl.backend, profile.evaluation.engine) == ("llamafactory", "verl", "vllm")
    # as many candidates as the tables fit: 16 and 17 (Tables 5, 7), 10 and 12 (Tables 6, 9)
    counts = {
        (family.name, scenario): sum(scenario in c.scenario.split("+") for c in family.candidates if c.n_examples)
        for family in profile.families
        for scenario in ("dataset", "instance")
    }
    assert [counts["llama3-8b", s] for s in ("dataset", "instance")] == [16, 17]
    assert [counts["mistral-nemo-12b", s] for s in ("dataset", "instance")] == [10, 12]
    for family in profile.families:  # all budgets of Tables 8 and 10 are within 20B tokens
        assert all(sft_tokens(profile, family, c) < 20e9 for c in family.candidates if c.n_examples)


@pytest.mark.parametrize("name", ["single_gpu", "paper"])
def test_every_number_says_where_it_comes_from(name):
    """Each line of settings carries a place in the paper or the word ours, or stands under a heading that does."""
    text = (ROOT / "quagmire_utils" / "core" / "profiles" / f"{name}.yaml").read_text()
    if name == "single_gpu":
        assert "All numbers are ours unless they name the paper" in text
        return
    for section in ("sft", "rl", "evaluation"):
        lines = re.search(rf"^{section}:\n((?:  .*\n)+)", text, re.M)[1].splitlines()
        covered = 0  # lines that a comment speaks for, beyond its own
        for line in lines:
            said = re.search(r"#.*(App\.|Sec\.|Table|Fig\.|ours|our )", line)
            covered = 4 if said and "next four" in line else covered - (not said)
            assert said or covered >= 0, line


def test_rl_epochs_become_steps():
    profile = load_profile("paper")
    llama, mistral, _ = profile.families
    assert resolved_rl(profile, llama).steps == 3 * (llama.rl_problems // 128)
    assert resolved_rl(profile, mistral).steps == 3 * (mistral.rl_problems // 128)
    assert resolved_rl(load_profile("single_gpu"), load_profile("single_gpu").families[0]).steps == 40


def test_what_is_expected_of_data_changes_no_digest(tmp_path):
    values = values_of("single_gpu")
    before = [cell.digest for cell in sweep.plan(load_profile(written(tmp_path, values)))]
    family = values["families"][0]
    family["sources"]["main"] |= {"mean_tokens": {"random": 9}, "pool": 7000}
    family["model"].pop("shape")
    values["compute"]["gpu"] = "H200"
    assert [cell.digest for cell in sweep.plan(load_profile(written(tmp_path, values)))] == before
    values["datasets"]["math_solutions"]["revision"] = "0" * 40  # but other data do: here, of one candidate
    after = {c.id: c.digest for c in sweep.plan(load_profile(written(tmp_path, values)))}
    names = [cell.id for cell in sweep.plan(load_profile("single_gpu"))]
    changed = {name for name, digest in zip(names, before, strict=True) if after[name] != digest}
    assert changed
    assert all("-math" in name for name in changed)


def change(*keys_and_value):
    *keys, value = keys_and_value

    def apply(values):
        place = values
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("apply", "named"),
    [
        (change("families", 0, "model", "revision", "main"), "revision must be a commit"),
        (change("families", 0, "model", None), "or pretraining a micro model"),
        (change("families", 0, "rl_set", None), "rl_set"),
        (change("families", 0, "rl_set", "imo"), "rl_set: imo is not one of"),
        (change("families", 0, "sources", "main", "dataset", None), r"sources\.main\.dataset"),
        (change("families", 0, "sources", "main", "dataset", "deepscaler"), "problems only"),
        (change("benchmarks", {"sums2": 3}), "benchmarks: sums2"),
        (change("sft", "backend", "magic"), r"sft\.backend"),
        (change("rl", "backend", "compact"), "compact|rollout_engine"),
        (change("rl", "rollout_engine", "server"), "rollout_engine"),
        (change("rl", "vllm_memory", 1.5), "vllm_memory"),
        (change("rl", "epochs", 0), r"rl\.epochs"),
        (change("compute", "gpus", 2), r"compute\.gpus must be 0 or 1"),
        (change("compute", "gpu", "abacus"), r"compute\.gpu"),
        (change("compute", "train_mfu", 1.5), "train_mfu"),
        (change("compute", "answer_tokens", {"dpo": 3}), "answer_tokens"),
        (change("evaluation", "max_model_len", 1024), "must leave room"),
        (change("datasets", "math_solutions", "answr", ["x"]), "answr"),
        (change("datasets", "math_solutions", "where", "x"), "math_solutions: where"),
        (change("datasets", "math_solutions", "question", 5), "question must be text"),
        (change("benchmarks", {5: 3}), r"benchmarks\.5 must be a string"),
        (change("sft", "warmup_fraction", 5), r"sft\.warmup_fraction must be at most 1"),
        (change("sft", "adam_beta2", 2), r"sft\.adam_beta2"),
        (change("sft", "max_grad_norm", -1), r"sft\.max_grad_norm"),
        (change("rl", "entropy_coefficient", float("nan")), r"rl\.entropy_coefficient must be a finite"),
        (change("rl", "warmup_steps", -1), r"rl\.warmup_steps"),
        (change("evaluation", "temperature", float("nan")), r"evaluation\.temperature"),
        (change("evaluation", "engine", "server"), "no server has the checkpoints"),
        (change("compute", "dollars_per_gpu_hour", float("inf")), "dollars_per_gpu_hour must be a finite"),
        (change("compute", "probes", {"qwen3-0.6b.smpling": 9}), r"probes\.qwen3-0\.6b\.smpling: is not one of"),
        (change("compute", "gpus", 0), "gpus must not be 0 with rl.rollout_engine vllm"),
        (change("families", 0, "candidates", []), "candidates is empty"),
        (change("families", 0, "model", "shape", "kv_heads", 5), r"shape\.kv_heads must be a divisor"),
        (change("families", 0, "model", {"hub_id": "./nowhere"}), "there is no folder ./nowhere"),
        (change("families", 0, "sources", "main", "validation", 8000), r"main\.validation must be below"),
        (change("families", 0, "sources", "main", "pool", 500), "exceeds the source's pool"),
        (change("families", 0, "sources", "main", "max_tokens", 4096), r"main\.max_tokens \(4096\) must leave room"),
        (change("families", 0, "sources", "main", "mean_tokens", {"randm": 9}), r"mean_tokens\.randm"),
    ],
)
def test_impossible_profiles_are_refused(tmp_path, apply, named):
    values = values_of("single_gpu")
    apply(values)
    with pytest.raises(ParameterError, match=named):
        sweep.dry_run(load_profile(written(tmp_path, values)), tmp_path / "results")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"compute": {"gpus": 0}}, "must not be 0 with rl.backend verl"),
        ({"compute": {"gpus": 3}}, r"sft\.batch_size \(128\) must be a multiple of .* \(3\)"),
        ({"rl": {"micro_batch_size": 512}}, r"\(2048\) must be a multiple of .* \(4096\)"),
    ],
)
def test_batches_that_do_not_divide_among_the_gpus_are_refused_before_anything_trains(tmp_path, settings, named):
    values = values_of("paper")
    for section, changed in settings.items():
        values[section] |= changed
    with pytest.raises(ParameterError, match=named):
        sweep.check(load_profile(written(tmp_path, values)), here=False)


LINE = '{"prompt": "1+1?", "completion": "It is 2."}\n'


@pytest.mark.parametrize(
    ("entry", "content", "said"),
    [
        ({"question": "prompt", "response": "completion"}, None, "there is nothing at"),
        ({"question": "promt", "response": "completion"}, LINE, "no column 'promt'; it has completion, prompt"),
        ({"question": "prompt", "response": "completion"}, "not json\n", "is no JSON"),
        ({"question": "prompt", "response": "completion"}, "", "0 rows of .* can be used"),
        ({"question": "prompt", "response": "completion"}, 3 * LINE, r"3 rows of .* can be used, and 6,300 are asked"),
    ],
)
def test_files_that_a_later_cell_could_not_read_are_told_at_once(tmp_path, offline, entry, content, said):
    """Also by the sweep itself, before the cells that do not need them."""
    file = tmp_path / "traces.jsonl"
    if content is not None:
        file.write_text(content)
    values = values_of("single_gpu")
    values["datasets"]["mine"] = {**entry, "files": [str(tmp_path / "traces*.jsonl")]}
    values["families"][0]["sources"]["main"]["dataset"] = "mine"
    values["compute"]["gpus"], values["rl"]["rollout_engine"] = 0, "transformers"
    values["evaluation"]["engine"] = "transformers"
    profile = load_profile(written(tmp_path, values))
    missing = " ".join(sweep.dry_run(profile, tmp_path / "results").split("Missing")[1].split())
    assert re.search(f"dataset mine: .*{said}", missing)
    with pytest.raises(ParameterError, match=f"dataset mine: .*{said}"):
        sweep.run_sweep(profile, tmp_path / "results", progress=False)
    assert not (tmp_path / "results" / "scratch").exists()


@needs_data
def test_local_copies_of_training_sets_are_found_where_benchmarks_are(tmp_path, monkeypatch, offline):
    monkeypatch.setenv("QUAGMIRE_DATA_DIR", str(MIRROR))
    text = sweep.dry_run(load_profile("single_gpu"), tmp_path / "results")
    assert "dataset math_solutions" in text  # the mirror has MATH's problems, not their solutions
    for name in ("dataset gsm8k_train", "dataset math_train", "benchmark"):
        assert name not in text.split("Missing")[1]


# --- the documentation's examples -------------------------------------------------------------------------------------


def example(name):
    """The YAML of one of the four examples of docs/scale.md, or of the one of the README that has them all."""
    file = "README.md" if name == "readme" else "docs/scale.md"
    section = (ROOT / file).read_text().split(f"<!-- example: {name} -->")[1]
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, re.S)[1])


def with_example(values, added):
    """The profile with the example's lines in the place of its own."""
    family, other = values["families"][0], added.pop("families", [{}])[0]
    for section, lines in added.items():
        values[section] = {**values[section], **lines} if section == "datasets" else lines
    if "model" in other:  # its sizes, as no hub tells them here
        other["model"]["shape"] = family["model"]["shape"]
    family["sources"] |= other.pop("sources", {})
    values["families"][0] = family | other
    return values


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
    (folder / "my_benchmark.jsonl").write_text('{"id": "a", "question": "What is 1+1?", "answer": "2"}\n')


@needs_data
@pytest.mark.parametrize("name", ["model", "sft", "rl", "benchmark", "readme"])
def test_examples_of_the_documentation_work(tmp_path, monkeypatch, offline, name):
    """Each, put into single_gpu, passes preflight, and what it names is read, selected from and held out."""
    monkeypatch.setenv("QUAGMIRE_DATA_DIR", str(MIRROR))
    monkeypatch.chdir(tmp_path)
    write_files_of_the_examples(tmp_path / "data")
    profile = load_profile(written(tmp_path, with_example(values_of("single_gpu"), example(name))))
    results = tmp_path / "results"
    text = sweep.dry_run(profile, results)
    assert "pass preflight" in text
    assert "my_" not in text.split("Missing")[1]  # the example's own files are there
    family = profile.families[0]
    if name in ("model", "readme"):
        assert "model Qwen/Qwen3-1.7B-Base" in text
    if name in ("benchmark", "readme"):
        problems = sweep.benchmark_problems(profile)
        assert [problem.answer for problem in problems["data/my_benchmark.jsonl"]] == ["2"]
        assert len(problems["math500"]) == 500
    if name in ("sft", "readme"):
        candidate = next(c for c in family.candidates if c.name == "random-1000x2")
        chosen = data.candidate_traces(profile, results, family, candidate, MICRO, 4)
        assert {trace.source for trace in chosen.traces} == {"my_traces"}
        assert (len(chosen.traces), len(chosen.held_out)) == (1000, 300)
        assert not {t.problem_id for t in chosen.traces} & {t.problem_id for t in chosen.held_out}
    if name in ("rl", "readme"):
        problems = data.rl_problems_of(profile, results, family)
        assert len({problem.id for problem in problems}) == 5000
        add = [list(map(int, re.findall(r"\d+", problem.question))) for problem in problems]
        assert [problem.answer for problem in problems] == [str(sum(numbers)) for numbers in add]


# --- the dry run ------------------------------------------------------------------------------------------------------


@needs_data
def test_dry_run_of_the_paper_passes_and_says_what_is_missing(tmp_path, monkeypatch, offline, capsys):
    monkeypatch.setenv("QUAGMIRE_DATA_DIR", str(MIRROR))
    for backend in ("LLAMAFACTORY", "VERL"):
        monkeypatch.setenv(f"QUAGMIRE_{backend}_PYTHON", str(tmp_path / "nothing"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["paper", "--dry-run", "--cells", "--results", str(tmp_path / "results")]) == 0
    text = capsys.readouterr().out
    assert "335 cells (0 done): 3 base models, 67 candidates, 268 RL runs\n3,812 problems of 7 benchmarks" in text
    assert max(map(len, text.splitlines())) <= 100
    for cell in sweep.plan(load_profile("paper")):
        assert cell.id in text
        assert cell.digest in text
    import torch

    missing = text.split("Missing on this machine:")[1]
    if torch.cuda.device_count() < 8:
        assert "GPUs: 8 x A100-80GB" in missing
    for lack in ("back-end llamafactory", "back-end verl", "Meta-Llama-3-8B-Instruct (16.1 GB)", "dataset acereason"):
        assert lack in missing
    assert "benchmark" not in missing  # the mirror has them
    assert not (tmp_path / "results").exists()  # nothing was written


def test_the_papers_million_hours_lie_between_the_readings_of_what_it_leaves_open(tmp_path, offline):
    profile = load_profile("paper")
    total = sum(item.hours for item in estimate(profile))
    text = sweep.dry_run(profile, tmp_path)
    shares = [float(x) for x in re.findall(r", (\d\.\d\d)(?: of it)?$", text, re.M)]
    assert len(shares) == 3
    computed, longest, capped = shares
    assert computed == pytest.approx(total / 1e6, abs=0.006)
    assert capped < computed < 1 < longest
    # 1,000,000 hours / (5 days x 24 hours x 8 GPUs), Sec. 4.1 and App. B
    assert "1,042 RL runs" in text


def test_single_gpu_takes_a_day():
    assert 10 < sum(item.hours for item in estimate(load_profile("single_gpu"))) < 25


def test_hours_add_up_and_follow_their_parameters():
    profile = load_profile("single_gpu")
    base = {item.cell.id: item for item in estimate(profile)}
    for overrides, expected in (
        ({"compute.overhead": 2 * profile.compute.overhead}, {"train": 2, "sample": 2, "score": 2}),
        ({"evaluation.num_samples": 128, "evaluation.rl_num_samples": 32}, {"train": 1, "sample": 2, "score": 1}),
    ):
        for item in estimate(load_profile("single_gpu", overrides)):
            for part, factor in expected.items():
                assert getattr(item, part) == pytest.approx(factor * getattr(base[item.cell.id], part))
    one = base["qwen3-0.6b/random-1000x2"]
    assert one.trained_tokens == 1000 * 2 * (130 + 150)
    assert one.sampled_tokens == 693 * 64 * 300


def test_rollouts_have_the_memory_that_the_profile_leaves_them():
    """Half the cache, half the sequences, about half the speed; and TRL's updates compute on padding."""
    key = "qwen3-0.6b/base/rl0"
    train = {
        share: next(
            item.train
            for item in estimate(load_profile("single_gpu", {"rl.vllm_memory": share}))
            if item.cell.id == key
        )
        for share in (0.1, 0.2, 0.4)
    }
    assert train[0.1] > 1.5 * train[0.2] > 1.5 * train[0.4]
    flops = {
        most: next(i.flops for i in estimate(load_profile("single_gpu", {"rl.max_tokens": most})) if i.cell.id == key)
        for most in (512, 1024)
    }
    assert flops[1024] / flops[512] == pytest.approx((150 + 1024) / (150 + 512), rel=0.05)
    assert inspect.signature(verl.write).parameters["gpu_memory"].default == VERL_MEMORY


def test_what_does_not_fit_its_gpu_is_told(tmp_path, offline):
    """Also on a machine without one. The shipped profiles fit theirs."""
    for name in ("single_gpu", "paper"):
        profile = load_profile(name)
        memory = cost.gpu(profile.compute.gpu).memory
        assert all(need < 0.8 * memory for family in profile.families for need in gpu_memory(profile, family).values())
        assert "GPU memory" not in sweep.dry_run(profile, tmp_path)
    # 16 bytes a parameter, and the float32 logits of 16 traces of 1,174 tokens, twice
    large = load_profile("single_gpu", {"sft.micro_batch_size": 16})
    assert gpu_memory(large, large.families[0])["SFT"] == pytest.approx(9.6e9 + 16 * 1174 * 151936 * 8, rel=0.15)
    text = " ".join(sweep.dry_run(large, tmp_path).split())
    assert re.search(r"GPU memory: SFT of qwen3-0\.6b needs about 3\d\.\d GB .* lower sft\.micro_batch_size", text)


def test_probes_replace_what_is_computed():
    probed = load_profile("single_gpu", {"compute.probes": {"qwen3-0.6b.sampling": 1000.0}})
    item = next(item for item in estimate(probed) if item.cell.kind == "base")
    assert (item.basis, item.sample) == ("probe", pytest.approx(693 * 64 * 700 / 1000 / 3600))


def test_finished_cells_correct_the_rest(tmp_path):
    profile = load_profile("mini")
    records = read_parquet(ROOT / "results" / "mini" / "cells.parquet")
    hours = records.set_index("cell")["seconds_total"] / 3600
    known = estimate(profile, ROOT / "results" / "mini")
    assert sum(item.hours for item in known) == pytest.approx(hours.sum())
    assert {item.basis for item in known} == {"measured"}
    # of one half of the RL runs, the other half
    runs = records[(records["kind"] == "rl") & (records["family"] == "micro-llama")]["cell"].tolist()
    write_parquet(records[~records["cell"].isin(runs[::2])].reset_index(drop=True), tmp_path / "cells.parquet")
    guessed = sum(item.hours for item in estimate(profile, tmp_path) if item.cell.id in runs[::2])
    assert guessed == pytest.approx(hours[runs[::2]].sum(), rel=0.2)


# --- submitting -------------------------------------------------------------------------------------------------------


def test_slurm_scripts_cover_every_cell_once(tmp_path):
    profile = load_profile("paper")
    scripts = slurm_scripts(profile, "paper", tmp_path, set())
    listed = [
        tuple(line.split("=", 1)[1].strip("'").split())
        for text in scripts.values()
        for line in re.findall(r"^    \[\d+\]=.*$", text, re.M)
    ]
    assert sorted(listed) == sorted((cell.id, cell.digest) for cell in sweep.plan(profile))
    for name, text in scripts.items():
        checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, (name, checked.stderr)
    assert "#SBATCH --gpus-per-node=8" in scripts["sft.sbatch"]
    after = r"rl0=\$\(sbatch --parsable --array=[\d,]+ --dependency=\"aftercorr:\$sft\" --kill-on-invalid-dep=yes"
    assert re.search(after, scripts["submit.sh"])
    assert f"#SBATCH --chdir={Path.cwd()}" in scripts["sft.sbatch"]
    spaced = slurm_scripts(profile, "paper", tmp_path / "my results", set())["sft.sbatch"]
    assert f'#SBATCH --output="{tmp_path}/my results/scratch/slurm/sft-%a.log"' in spaced
    assert "--nice=100" in next(line for line in scripts["submit.sh"].splitlines() if line.startswith("rl2="))
    done = {cell.id for cell in sweep.plan(profile) if cell.kind != "rl"}
    assert set(slurm_scripts(profile, "paper", tmp_path, done)) == {f"rl{i}.sbatch" for i in range(4)} | {"submit.sh"}
    with pytest.raises(ParameterError, match="nothing to submit"):
        slurm_scripts(profile, "paper", tmp_path, {cell.id for cell in sweep.plan(profile)})


SBATCH = r"""#!/usr/bin/env bash
# A Slurm of one machine: runs what it is given at once, element by element, and writes down what it was asked.
set -euo pipefail
echo "$*" >>"$SBATCH_LOG"
array=""; script=""
for argument in "$@"; do
    case "$argument" in
        --array=*) array=${argument#--array=} ;;
        --wrap=*) bash -c "${argument#--wrap=}" >&2; echo 99; exit ;;
        --*) ;;
        *) script=$argument ;;
    esac
done
[ -n "$array" ] || array=$(sed -n 's/^#SBATCH --array=//p' "$script")
script=$(realpath "$script")
cd "$(sed -n 's/^#SBATCH --chdir="\?\([^"]*\)"\?$/\1/p' "$script")"
for index in ${array//,/ }; do SLURM_ARRAY_TASK_ID=$index bash "$script" >&2; done
wc -l <"$SBATCH_LOG"
"""


@pytest.mark.slow
def test_slurm_scripts_compute_the_sweep(tmp_path):
    """Executed in the order in which Slurm may start them, they leave the records of a sweep on one machine."""
    path = tmp_path / "my tiny.yaml"
    path.write_text(TINY)
    folder, jobs, bin_folder = tmp_path / "my results", tmp_path / "my jobs", tmp_path / "bin"
    assert main([str(path), "--submit", "slurm", "--results", str(folder), "--output", str(jobs)]) == 0
    bin_folder.mkdir()
    (bin_folder / "sbatch").write_text(SBATCH)
    (bin_folder / "sbatch").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "SBATCH_LOG": str(tmp_path / "log"),
    }
    subprocess.run(["bash", str(jobs / "submit.sh")], env=environment, cwd="/", check=True)
    sweep.run_sweep(load_profile(path), tmp_path / "own", progress=False)
    for table in sweep.TABLES:
        ours, theirs = (read_parquet(place / f"{table}.parquet") for place in (tmp_path / "own", folder))
        drop = ["seconds"] if table == "rl_curves" else []
        pd.testing.assert_frame_equal(ours.drop(columns=drop), theirs.drop(columns=drop))
    assert read_json(folder / "manifest.json")["complete"]
    # a finished cell ends at once; one of other parameters refuses
    cell = sweep.plan(load_profile(path))[-1]
    sweep.run_one(load_profile(path), folder, cell.id, cell.digest)
    with pytest.raises(ParameterError, match="have changed since"):
        sweep.run_one(load_profile(path), folder, cell.id, "0" * 16)


@pytest.mark.parametrize("ending", [0, 3])
def test_a_job_at_its_time_limit_queues_again_and_ends_as_its_cell_does(tmp_path, ending):
    script = slurm_scripts(load_profile("paper"), "paper", tmp_path, set())["base.sbatch"]
    (tmp_path / "python").write_text(
        f"#!/usr/bin/env bash\necho $* >started\nuntil [ -e go ]; do sleep 0.1; done\nexit {ending}\n"
    )
    (tmp_path / "scontrol").write_text("#!/usr/bin/env bash\necho $* >asked\n")
    for name in ("python", "scontrol"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job").write_text(script.replace(sys.executable, str(tmp_path / "python")))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    job = subprocess.Popen(["bash", "job"], cwd=tmp_path, env=environment)
    for file, then in (("started", lambda: job.send_signal(signal.SIGUSR1)), ("asked", (tmp_path / "go").touch)):
        deadline = time.monotonic() + 60
        while not (tmp_path / file).is_file():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        then()
    assert job.wait(timeout=60) == ending
    assert "--cell llama3-8b/base --digest" in (tmp_path / "started").read_text()
    assert (tmp_path / "asked").read_text() == "requeue 7_0\n"


def test_a_sweep_does_not_begin_without_its_gpus(tmp_path):
    import torch

    gpus = torch.cuda.device_count() + 1
    profile = load_profile("paper", {"compute.gpus": gpus, "evaluation.engine": "transformers"})
    for begin in (sweep.run_sweep, lambda p, folder: sweep.run_one(p, folder, "qwen3-4b/base")):
        with pytest.raises(ParameterError, match=f"GPUs: {gpus} x A100-80GB are needed"):
            begin(profile, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_cell_needs_its_starting_point(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    profile = load_profile(path)
    with pytest.raises(ParameterError, match="starts from a/base"):
        sweep.run_one(profile, tmp_path / "results", "a/random-16x2")
    with pytest.raises(ParameterError, match="is not one of tiny"):
        sweep.run_one(profile, tmp_path / "results", "a/other")


def test_ray_jobs_run_the_sweep(tmp_path):
    command = ray_command("paper", tmp_path, "http://head:8265")
    job = command[command.index("--") + 1 :]
    assert job[:2] == ["env", f"--chdir={Path.cwd()}"]
    assert job[2:] == shlex.split(f"{sys.executable} -m quagmire_utils sweep paper --results {tmp_path} --ray auto")
    assert shlex.join(command[1:7]) == "-m ray.scripts.scripts job submit --address http://head:8265"
    with pytest.raises(ParameterError, match="dashboard"):
        ray_command("paper", tmp_path, "auto")


def test_a_dashboard_that_is_not_there_is_one_sentence(tmp_path, capsys):
    pytest.importorskip("ray")
    assert main(["paper", "--submit", "ray", "--ray", "http://127.0.0.1:9", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert re.match(r"quagmire: ray: (no dashboard answers at http://127|it cannot submit jobs; `pip install)", said)
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--plan", "--collect"], "it does not go with --collect"),
        (["--submit", "slurm", "--cell", "x"], "it does not go with --cell"),
        (["--cells"], "--cells: use it with --dry-run"),
        (["--digest", "x"], "--digest: use it with --cell"),
        (["--output", "x"], "--output: use it with --submit"),
    ],
)
def test_no_option_is_left_out_in_silence(capsys, options, said):
    assert main(["paper", *options]) == 2
    assert said in capsys.readouterr().err


# --- a stand-in of single_gpu, really run -----------------------------------------------------------------------------


def test_solutions_get_the_ending_that_the_prompt_asks_for():
    trace = Trace("a", "a", "2+3?", "It is 2+3=<<2+3=5>>5.\n#### 5", "5")
    assert boxed(trace).response == "It is 2+3=5.\nThe answer is $\\boxed{5}$."
    assert boxed(boxed(trace)) == boxed(trace)


def test_what_is_validated_on_is_not_trained_on_from_another_source():
    one, same, other = (Trace(x, x, q, "r") for x, q in (("a", "What is $2+3$?"), ("b", "What is 2+3?"), ("c", "3+3?")))
    assert without_problems([same, other], [one]) == [other]


@needs_data
@pytest.mark.slow
def test_stand_in_of_single_gpu_runs_end_to_end(tmp_path):
    """The shipped YAML with a micro model in place of Qwen's, and few problems: SFT and GRPO by TRL, measured."""
    values = values_of("single_gpu")
    family = values["families"][0]
    family["model"] = {"hub_id": str(MICRO)}
    family["rl_problems"] = 8
    family["sources"] = {"main": {**family["sources"]["main"], "validation": 4}}
    family["candidates"] = [
        {"selection": "none"},
        {"selection": "random", "n_examples": 8, "scenario": "dataset"},
        {"selection": "shortest", "n_examples": 8, "scenario": "instance"},
    ]
    values["datasets"] = {}
    values["benchmarks"] = {"gsm8k": 2, "amc": 1}
    values["sft"] |= {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3}
    values["rl"] |= {"rollout_engine": "transformers", "steps": 2, "prompts_per_step": 2, "rollouts": 4}
    values["rl"] |= {"max_tokens": 12, "runs": 1, "micro_batch_size": 4}
    values["evaluation"] |= {"engine": "transformers", "num_samples": 4, "rl_num_samples": 2, "k": 4, "max_tokens": 16}
    values["compute"] = {"gpus": 0}
    path, folder = written(tmp_path, values, "stand-in"), tmp_path / "results"
    command = [sys.executable, "-m", "quagmire_utils", "sweep", str(path), "--results", str(folder)]
    subprocess.run(command, env={**os.environ, "QUAGMIRE_DATA_DIR": str(MIRROR)}, check=True)

    counts = read_parquet(folder / "counts.parquet")
    assert set(counts["stage"]) == {"base", "sft", "rl"}
    assert counts.groupby("cell").size().to_dict() == {
        cell.id: 6 if cell.kind == "rl" else 3 for cell in sweep.plan(load_profile(path))
    }
    losses = read_parquet(folder / "generalization_loss.parquet").set_index(["cell", "validation_set"])["nll"]
    base = losses["qwen3-0.6b/base", "validation"]
    assert all(losses[f"qwen3-0.6b/{name}", "validation"] < base for name in ("random-8x1", "shortest-8x1"))
    assert read_parquet(folder / "rl_curves.parquet").groupby("cell").size().tolist() == [2, 2, 2]
    manifests = [read_json(file) for file in (folder / "scratch" / "data").glob("*/manifest.json")]
    removed = {m["configuration"]["recipe"]["source"]: m["counts"]["met a benchmark"] for m in manifests}
    assert removed == {"gsm8k_train": 4, "math_train": 573}
    assert not (folder / "bases").exists()  # a pretrained model has a hub; it is not copied to the records
    text = sweep.dry_run(load_profile(path), folder)
    assert "6 cells (6 done)" in text
    assert "measured" in text
