"""What all tests share: markers that skip with a reason, the benchmarks' folder, interrupts."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from example_cells import TINY, run_sweep
from example_records import make_records, write_records

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.records import load_records
from quagmire_utils.core.settings import load_profile
from quagmire_utils.grading import Grader

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def data_folder() -> Path | None:
    folder = Path(os.environ.get("QUAGMIRE_DATA_DIR") or "/nowhere")
    return folder if (folder / "benchmarks").is_dir() else None


def _has_gpu() -> bool:
    return (
        shutil.which("nvidia-smi") is not None
        and b"GPU" in subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).stdout
    )


def _has_bubblewrap() -> bool:
    """Whether bubblewrap is installed and may make a namespace here."""
    if shutil.which("bwrap") is None:
        return False
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


REQUIREMENTS = {
    "requires_gpu": (_has_gpu, "needs a CUDA GPU"),
    "requires_vllm": (lambda: importlib.util.find_spec("vllm") is not None, "needs vLLM: ./reproduce.sh setup"),
    "requires_ray": (lambda: importlib.util.find_spec("ray") is not None, "needs Ray: ./reproduce.sh setup"),
    "requires_chromium": (lambda: any(map(shutil.which, CHROMIUM)), "needs Chromium"),
    "requires_bubblewrap": (_has_bubblewrap, "needs bubblewrap (bwrap) and user namespaces"),
    "requires_data": (lambda: data_folder() is not None, "needs QUAGMIRE_DATA_DIR, a folder with the benchmarks"),
}


@cache
def _holds(requirement: str) -> bool:
    return REQUIREMENTS[requirement][0]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; take interrupts, which a shell's background ignores and so would all that tests start."""
    for name, (_, reason) in REQUIREMENTS.items():
        config.addinivalue_line("markers", f"{name}: {reason}")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose requirement is missing, with the reason."""
    for name, (_, reason) in REQUIREMENTS.items():
        if item.get_closest_marker(name) and not _holds(name):
            pytest.skip(reason)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = data_folder()
    if folder is None:
        pytest.skip(REQUIREMENTS["requires_data"][1])
    return folder


@pytest.fixture(scope="session")
def mini() -> Any:
    return load_records(ROOT / "results" / "mini")


@pytest.fixture(scope="session")
def first_world() -> Any:
    """Return the records of the first micro world, whose RL takes all candidates to one ceiling."""
    return load_records(ROOT / "results" / "mini-v1")


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return made-up records of one family, with eight candidates in each of two scenarios."""
    return load_records(write_records(tmp_path_factory.mktemp("small") / "example", make_records()))


@pytest.fixture(scope="session")
def full_records(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return made-up records of three families with the grid of the mini profile."""
    return load_records(write_records(tmp_path_factory.mktemp("full") / "example", make_records(full=True)))


@pytest.fixture(scope="session")
def paper_file() -> Callable[[str], Path]:
    """Return a file of the paper's folder, which lies beside the data; the test skips without it."""

    def find(name: str) -> Path:
        folder = data_folder()
        if folder is None or not (folder.parent / "paper" / name).is_file():
            pytest.skip(f"needs the paper's {name} beside QUAGMIRE_DATA_DIR")
        return folder.parent / "paper" / name

    return find


@pytest.fixture(scope="session")
def labelled(data_dir: Path) -> Callable[[str], tuple[list[str], list[str], list[bool]]]:
    """Return a function that reads real labelled responses: texts, golds, labels."""

    def read(name: str) -> tuple[list[str], list[str], list[bool]]:
        rows = [json.loads(line) for line in (data_dir / "responses" / f"{name}.jsonl").open(encoding="utf-8")]
        golds = [row["gold"] for row in rows for _ in row["responses"]]
        labels = [label for row in rows for label in row["correct"]]
        return [text for row in rows for text in row["responses"]], golds, labels

    return read


@pytest.fixture(scope="session")
def grader() -> Iterator[Any]:
    with Grader(2) as grader:
        yield grader


@contextmanager
def _refused(parameter: str) -> Iterator[pytest.ExceptionInfo[ParameterError]]:
    with pytest.raises(ParameterError) as caught:
        yield caught
    assert caught.value.parameter == parameter
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="session")
def refused() -> Callable[[str], AbstractContextManager[pytest.ExceptionInfo[ParameterError]]]:
    """Return a context that expects a ParameterError about the parameter of this name, in one line."""
    return _refused


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the YAML file of the smallest profile that takes every step."""
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def unbroken(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a sweep of `tiny` that ran through; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("unbroken")
    run_sweep(tiny, folder).check_returncode()
    return folder


@pytest.fixture(scope="session")
def profile():
    return load_profile("mini")
