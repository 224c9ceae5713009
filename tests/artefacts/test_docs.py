"""The README and the docs: every link leads to a file of the repository, and every command is one that there is."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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


def commands() -> list[str]:
    """The lines of bash blocks that call quagmire."""
    blocks = re.findall(r"```bash\n(.*?)```", "\n".join(page.read_text("utf-8") for page in PAGES), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return sorted({line.partition(" #")[0].strip() for line in lines if line.startswith("quagmire ")})


def test_every_command_and_option_of_the_pages_exists():
    assert len(commands()) > 10
    helps: dict[tuple[str, ...], str] = {}
    for line in commands():
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
