"""The plan of a sweep: cells depend on exactly what they should, impossible profiles are refused, records are kept."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from example_cells import FAMILY, in_family, tiny_profile, write_cell

from quagmire_utils import sweep
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.settings import PROFILES, Profile, load_profile
from quagmire_utils.data import Trace
from quagmire_utils.sweep import runner
from quagmire_utils.sweep.datasets import boxed, without_problems
from quagmire_utils.sweep.pools import CellLostError
from quagmire_utils.sweep.runner import slurm_script


def test_the_plan_names_every_cell_after_what_it_needs():
    cells = sweep.plan(tiny_profile())
    starts = ["a/base", "a/random-16x2", "a/shortest-16x1"]
    assert [cell.id for cell in cells] == [name for start in starts for name in (start, f"{start}/rl0")]
    for i, cell in enumerate(cells):
        assert cell.needs is None or cell.needs in cells[:i]
        assert cell.id.startswith("/".join(cell.names.values()))


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"seed": 1}, {"base", "sft", "rl"}),
        ({"evaluation": {"num_samples": 8}}, {"base", "sft", "rl"}),
        ({"evaluation": {"rl_num_samples": 3}}, {"rl"}),
        ({"sft": {"learning_rate": 0.002}}, {"sft", "rl of sft"}),
        ({"rl": {"steps": 4}}, {"rl"}),
        ({"rl": {"runs": 2}}, set()),  # a further run leaves the first ones as they are
        ({"budgets": {"low": 100.0}}, set()),
        ({"rl": {"backend": "compact"}}, {"rl"}),
        (in_family("sources", {"other": {"terms": [3]}, **FAMILY["sources"]}), {"base", "sft", "rl"}),
        # a source that no candidate uses, and the comparisons that a candidate serves, change nothing
        (in_family("sources", {**FAMILY["sources"], "other": {}}), set()),
        (in_family("candidates", [*FAMILY["candidates"][:2], FAMILY["candidates"][2] | {"scenario": "source"}]), set()),
        (in_family("candidates", [*FAMILY["candidates"][:2], FAMILY["candidates"][2] | {"rl_runs": 3}]), set()),
    ],
)
def test_a_changed_parameter_redoes_what_depends_on_it(change, kinds):
    after = {cell.id: cell for cell in sweep.plan(tiny_profile(**change))}
    for cell in sweep.plan(tiny_profile()):
        kind = "rl of sft" if cell.kind == "rl" and cell.needs.kind == "sft" and "rl" not in kinds else cell.kind
        assert (after[cell.id].digest != cell.digest) == (kind in kinds), cell.id
    assert ("a/shortest-16x1/rl2" in after) == ("rl_runs" in str(change))


def test_training_and_measuring_problems_are_apart(tmp_path):
    profile = tiny_profile(benchmarks={"sums2": 60, "lanes2": 60, "lanes3": 60})
    family = profile.families[0].replace(rl_problems=300)
    measured = {p.question for problems in sweep.benchmark_problems(profile).values() for p in problems}
    pool, validation = ({t.question for t in part} for part in sweep.source_traces(profile, family, "main"))
    learned = {p.question for p in sweep.rl_problems(profile, family, tmp_path)}
    assert [len(group) for group in (measured, learned, pool, validation)] == [180, 300, 40, 6]
    assert not measured & (learned | pool | validation)
    assert not pool & validation
    # nor is a problem that is validated on trained on from another source
    one, same, other = (Trace(x, x, q, "r") for x, q in (("a", "What is $2+3$?"), ("b", "What is 2+3?"), ("c", "3+3?")))
    assert without_problems([same, other], [one]) == [other]


def test_solutions_get_the_ending_that_the_prompt_asks_for():
    trace = Trace("a", "a", "2+3?", "It is 2+3=<<2+3=5>>5.\n#### 5", "5")
    assert boxed(trace).response == "It is 2+3=5.\nThe answer is $\\boxed{5}$."
    assert boxed(boxed(trace)) == boxed(trace)


def test_what_is_expected_of_data_changes_no_digest():
    values = yaml.safe_load((PROFILES / "single_gpu.yaml").read_text())
    before = {cell.id: cell.digest for cell in sweep.plan(Profile.load(values))}
    family = values["families"][0]
    family["sources"]["main"] |= {"mean_tokens": {"random": 9}, "pool": 7000}
    family["model"].pop("parameters")
    values["compute"]["gpu"] = "H200"
    assert {cell.id: cell.digest for cell in sweep.plan(Profile.load(values))} == before
    values["datasets"]["math_solutions"]["revision"] = "0" * 40  # other data change it: here, of one candidate
    after = {cell.id: cell.digest for cell in sweep.plan(Profile.load(values))}
    changed = [name for name in before if after[name] != before[name]]
    assert changed
    assert all("-math" in name for name in changed)


def test_impossible_micro_profiles_are_refused(tmp_path):
    for change, parameter in (
        ({"benchmarks": {"imo": 3}}, "benchmarks"),
        ({"rl": {"prompts_per_step": 9}}, "rl.prompts_per_step"),
    ):
        with pytest.raises(ParameterError, match=re.escape(parameter)):
            sweep.run_sweep(tiny_profile(**change), tmp_path / "x")
        assert not (tmp_path / "x").exists()


FAMILY_OF = ("families", 0)
MAIN = (*FAMILY_OF, "sources", "main")


def test_impossible_profiles_of_pretrained_models_are_refused(tmp_path):
    for profile, change, parameter in (
        ("single_gpu", (*FAMILY_OF, "rl_set", "imo"), "families.qwen3-0.6b.rl_set"),
        ("single_gpu", (*MAIN, "dataset", "deepscaler"), "families.qwen3-0.6b.sources.main.dataset"),
        ("single_gpu", (*MAIN, "pool", 500), "families.qwen3-0.6b.candidates.random-1000x2.n_examples"),
        ("single_gpu", (*FAMILY_OF, "model", {"hub_id": "./nowhere"}), "model.hub_id"),
        ("single_gpu", ("benchmarks", "math500", 501), "benchmarks.math500"),
        ("single_gpu", ("compute", "gpus", 0), "compute.gpus"),
        ("single_gpu", ("evaluation", "max_model_len", 1024), "evaluation.max_tokens"),
        ("paper", ("compute", "gpus", 3), "sft.batch_size"),
        ("paper", ("rl", "micro_batch_size", 512), "rl.prompts_per_step x rl.rollouts"),
    ):
        values = place = yaml.safe_load((PROFILES / f"{profile}.yaml").read_text())
        *keys, last, value = change
        for key in keys:
            place = place[key]
        place[last] = value
        with pytest.raises(ParameterError, match=re.escape(parameter)):
            sweep.dry_run(Profile.load(values), tmp_path / "results")


def test_a_cell_needs_its_starting_point(tmp_path, refused):
    profile = tiny_profile()
    for cell in ("a/random-16x2", "a/x"):
        with refused("cell"):
            sweep.run_one(profile, tmp_path, cell)
    with refused("workers"):
        sweep.run_sweep(profile, tmp_path, workers=0)


def test_a_sweep_does_not_begin_without_its_gpus(tmp_path):
    import torch

    gpus = torch.cuda.device_count() + 1
    profile = load_profile("paper", {"compute.gpus": gpus, "evaluation.engine": "transformers"})
    for begin in (sweep.run_sweep, lambda p, folder: sweep.run_one(p, folder, "qwen3-4b/base")):
        with pytest.raises(ParameterError, match=f"GPUs: {gpus} x A100-80GB are needed"):
            begin(profile, tmp_path / "results")
    assert not (tmp_path / "results").exists()


class InstantPool:
    """A pool of one worker whose cells are finished when they are waited for."""

    def __init__(self, profile, folder):
        self.profile, self.folder, self.failures = profile, folder, {}
        self.running, self.started = [], []
        self.rng = np.random.default_rng(0)

    def has_room(self):
        return not self.running

    def submit(self, cell):
        self.running.append(cell)
        self.started.append(cell.id)

    def wait(self, seconds):
        (cell,) = self.running
        self.running.clear()
        if cell.id not in self.failures:
            write_cell(self.profile, self.folder, cell, self.rng)
        return [(cell, self.failures.get(cell.id))]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def profile():
    return tiny_profile(rl={"runs": 4})


@pytest.fixture
def pool(profile, tmp_path, monkeypatch):
    pool = InstantPool(profile, tmp_path / "results")
    monkeypatch.setattr(runner, "_open_pool", lambda *_: pool)
    return pool


def test_every_candidate_has_two_rl_runs_before_any_has_three(profile, pool):
    sweep.run_sweep(profile, pool.folder)
    names = ["a/base", "a/random-16x2", "a/shortest-16x1"]
    first = [[name, f"{name}/rl0", f"{name}/rl1"] for name in names]
    later = [[f"{name}/rl2", f"{name}/rl3"] for name in names]
    assert pool.started == [cell for group in (*first, *later) for cell in group]


def test_a_stopped_sweep_resumes_from_its_records(profile, pool):
    pool.failures["a/random-16x2/rl3"] = RuntimeError("no memory")
    with pytest.raises(sweep.SweepError, match=r"cell a/random-16x2/rl3 failed: no memory\. Log: .* resumes"):
        sweep.run_sweep(profile, pool.folder)
    before = len(pool.started)
    pool.failures = {"a/base": CellLostError("the process of cell a/base died")}
    with pytest.raises(sweep.SweepError, match=r"^the process of cell a/base died\. Log:"):
        sweep.run_sweep(profile, pool.folder)
    pool.failures.clear()
    sweep.run_sweep(profile, pool.folder)
    again = pool.started[before + 1 :]
    assert again[:3] == ["a/base", "a/random-16x2", "a/shortest-16x1"]  # this pool leaves no checkpoints
    assert again[3:] == ["a/random-16x2/rl3", "a/shortest-16x1/rl2", "a/shortest-16x1/rl3"]


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_a_damaged_record_does_not_start_the_grid_again(profile, pool, damage):
    sweep.run_sweep(profile, pool.folder)
    (pool.folder / "scratch").rename(pool.folder / "elsewhere")  # as in a fresh clone
    done = len(pool.started)
    for table in ("counts", "cells", "generalization_loss"):
        path = pool.folder / f"{table}.parquet"
        kept = path.read_bytes()
        path.write_bytes(kept[:-20])
        if damage == "gone":
            path.unlink()
        with pytest.raises(ParameterError, match="git checkout") as raised:
            sweep.run_sweep(profile, pool.folder)
        assert raised.value.parameter.endswith(f"{table}.parquet")
        path.write_bytes(kept)
    sweep.run_sweep(profile, pool.folder)
    assert len(pool.started) == done


def test_a_slurm_script_covers_every_cell_once(tmp_path):
    profile = load_profile("paper", {"compute.slurm": {"partition": "gpu"}})
    cells = sweep.plan(profile)
    script = slurm_script(profile, "paper", tmp_path / "my results", set())
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    listed = re.findall(r'^    "(\S+)"$', script, re.M)
    assert sorted(listed) == sorted(cell.id for cell in cells)
    stages = re.findall(r'--array=(\d+)-(\d+) --time=\d-\d\d:00:00 "\$\{after\[@\]\}"', script)
    assert stages == [("0", "2"), ("3", "66"), ("67", "334")]
    further = [name.endswith(("rl2", "rl3")) for name in listed[67:]]
    assert further == sorted(further)  # after the first two runs of all candidates
    assert "#SBATCH --gpus-per-node=8\n#SBATCH --exclusive\n#SBATCH --partition=gpu\n" in script
    assert f'#SBATCH --chdir="{Path.cwd()}"' in script
    assert "--array=0-267 " in slurm_script(profile, "paper", tmp_path, {c.id for c in cells if c.kind != "rl"})
    with pytest.raises(ParameterError):
        slurm_script(profile, "paper", tmp_path, {cell.id for cell in cells})
