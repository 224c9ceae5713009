"""The layers of the package, its size, and what importing it costs."""

import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from quagmire_utils.core.paths import ROOT

PACKAGE = ROOT / "quagmire_utils"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "__main__")
HEAVY = {"torch", "transformers", "vllm", "trl", "ray", "math_verify", "datasets"}


def test_a_layer_imports_only_from_those_below_it():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_two_modules_share_a_name():
    names = Counter(path.stem for path in MODULES if path.stem != "__init__")
    assert not {name: count for name, count in names.items() if count > 1}


def test_the_package_and_its_tests_stay_small():
    """A ratchet: lower these numbers whenever lines go; the goal is 22,000 and 17,000."""
    assert sum(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")) <= 24_741
    assert sum(len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")) <= 16_976
    assert len((ROOT / "reproduce.sh").read_text().splitlines()) <= 120


def test_every_folder_of_modules_is_packaged_and_so_are_its_files():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert found == set(listed["packages"])
    (patterns,) = listed["package-data"].values()
    carried = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert all(any(PACKAGE.glob(pattern)) for pattern in patterns)
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert (
        files - {path for path in files if path.suffix == ".py" and (path.parent / "__init__.py").exists()} == carried
    )


def test_importing_the_package_is_cheap():
    measure = "import time; t = time.perf_counter(); import quagmire_utils; print(time.perf_counter() - t)"
    assert min(float(subprocess.check_output([sys.executable, "-c", measure], cwd=ROOT)) for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    ("layer", "also"), [("", set()), ("analysis", {"matplotlib"}), ("evaluation.pass_at_k", {"matplotlib"})]
)
def test_no_module_imports_a_heavy_library_at_its_top(layer: str, also: set[str]):
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    names = [name for name in names if name.startswith(f"quagmire_utils.{layer}")]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    found = set(sys.argv[1].split(',')) & set(sys.modules)\n"
        "    assert not found, f'{name} imports {found}'\n"
    )
    command = [sys.executable, "-c", code, ",".join(HEAVY | also), *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
