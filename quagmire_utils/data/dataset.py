"""Datasets: each benchmark and training set is one YAML file in `catalogue/`, whatever it is used for.

Evaluation, curation, SFT and RL all look datasets up here. Adding one is adding a file with the fields of `Dataset`;
its name is the dataset's. `docs/new_benchmark.md` has an example.

    find_dataset("gsm8k_train").revision
    find_dataset("my_benchmark.yaml")         # a file of your own, outside the catalogue
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import BeforeValidator, Field, model_validator

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_folder, digest
from quagmire_utils.core.paths import ROOT
from quagmire_utils.core.tokenizer import first_line
from quagmire_utils.core.validation import Count, Flag, Integer, Settings, read_yaml
from quagmire_utils.data.prompts import INSTRUCTIONS
from quagmire_utils.data.reading import open_file

CACHE = ROOT / ".quagmire" / "datasets"  # of public files
HUB_TIMEOUT = 5.0  # seconds until an unreachable hub is reported; the hub library alone would retry for half a minute
CATALOGUE = Path(__file__).parent / "catalogue"
BENCHMARKS = ("math500", "aime", "gsm8k", "aime2025", "amc", "olympiad", "minerva")  # Sec. 4, in the paper's order
ENDINGS = (".parquet", ".arrow", ".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv")
_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # written beside the rows
_COLUMN = re.compile(r"\{([^{}\s]+)\}")


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list)]  # YAML may give one text instead of a list


class Dataset(Settings):
    """Where the rows of a benchmark or training set are, and what their columns mean.

    A field called a "column or template" names a column, or is a text in which each `{column}` is filled in. A column
    may be a field of another one: `reward_model.ground_truth`.
    """

    name: str = ""  # of the YAML file, without its ending
    folder: str = ""  # of the YAML file
    kind: Literal["benchmark", "training"] = "training"
    title: str = ""
    licence: str = ""

    # where the rows are
    hub_id: str = ""
    revision: str | None = None  # commit of the hub's repository; None: the newest, which a manifest then names
    configs: Texts = ()
    split: str = ""
    hub_files: Texts = ()  # only these files of the repository
    files: Texts = ()  # local copies, which come first: paths or globs beside the YAML file or in the data folder
    local_columns: dict[str, str] = Field(default_factory=dict)  # of a local copy: the public names of these columns
    local_rows: tuple[Integer, Integer] | None = None  # of a local copy: first row, and the one after the last
    address: str = ""  # of a public file, at a commit: where the rows of a set without a hub are
    count: Count | None = None  # problems
    hub_count: Count | None = None  # problems on the hub, if another number
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # of a local copy, see `problems.digest`

    # a question and its answer
    id: str | None = None  # column; None: the row's number
    question: Texts = Field(min_length=1)  # column (a text, or chat messages) or template; or the first column there is
    tidy: Flag = False  # no spaces before marks in the question ("3 cups ."), no two full stops
    strip: Texts = ()  # instructions around the question that are cut off: prompts get their own
    answer: Texts = ()  # column; or several, of which the first that a row has is taken
    # boxed: what is boxed at the end of a solution; gsm8k: what follows ####; list: several answers; number: the number
    # of "9 (apples)", and rows with another answer are left out; first_word: the yes of "Yes. It snows in May."
    answer_format: Literal["plain", "boxed", "gsm8k", "list", "number", "first_word"] = "plain"
    tolerance: str | None = None  # column
    grader: str = (
        "math"  # math, math_verify, choice, text, code, or module:NAME (an AnswerGrader, also beside the YAML file)
    )
    instruction: str | None = None  # text or template after the question; None: the grader's

    # multiple choice
    choices: str | tuple[str, ...] | None = None  # column (a list, or {text, label}); or a list of one column a choice
    answer_as: Literal["letter", "index", "text", "label"] = "letter"  # what the answer's column says of the right one
    shuffle: Flag = False  # the choices, by the problem's id: for hubs that put the right one first

    # programs
    tests: str | None = None  # column (a list, or the text of a script) or template of a script
    test_call: str = ""  # template of a line after a script of tests, as check({entry_point})
    setup: str = ""  # column or template
    entry_point: str | None = None  # column

    # worked solutions
    response: str | None = None  # column: a text, a list of texts (one trace each) or a chat; None: problems alone
    generator: str = ""  # the model that wrote the responses
    generator_column: str | None = None  # where each row says so itself
    generators: Texts = ()  # only traces of these models; a row may name several, separated by commas
    where: dict[str, Texts] = Field(default_factory=dict)  # column: values; only rows with one of these
    keep: Texts = ()  # columns with a list of booleans beside the list of responses: all must be true

    @model_validator(mode="after")
    def _check(self) -> Dataset:
        if not self.hub_id and not self.files and not self.address:
            raise ParameterError("hub_id", reason="give hub_id, files or address, where the rows are")
        if self.hub_id and not self.split and not self.hub_files:
            raise ParameterError("split", reason="give the split of the hub's dataset")
        if self.grader == "code" and not self.tests:
            raise ParameterError("tests", reason="give the column with the tests")
        if self.grader not in INSTRUCTIONS and not re.fullmatch(r"[\w.]+:\w+", self.grader):
            raise ParameterError("grader", self.grader, f"one of {', '.join(INSTRUCTIONS)} or module:NAME")
        if self.grader != "code" and not self.answer and not self.response:
            raise ParameterError("answer", reason="give the column with the answer")
        if (self.shuffle or self.answer_as != "letter") and not self.choices:
            raise ParameterError("choices", reason="shuffle and answer_as need the column with the choices")
        return self

    def columns_among(self, names: Sequence[str]) -> list[str]:
        """Return those of a table's columns that `rows.records` reads."""
        columns = [*self.answer, self.response, self.generator_column, *self.where, *self.keep]
        columns += [column for text in self.question for column in _COLUMN.findall(text) or [text]]
        return [name for name in names if any(f"{column}.".startswith(f"{name}.") for column in columns if column)]

    def from_files(self, files: Sequence[str]) -> Dataset:
        """Return the dataset read from these local files (paths, folders or globs) and nowhere else."""
        paths = tuple(str(Path(file).expanduser().absolute()) for file in files)
        return self.replace(files=paths, folder="", hub_id="", revision=None)


def load_datasets(own: Mapping[str, Any] | None = None, folder: str | Path = "") -> dict[str, Dataset]:
    """Return the datasets of the catalogue and those described in `own`, which replace namesakes.

    `folder`: where the files of `own` are looked for first. Raises ParameterError with the dotted name of a bad field.
    """
    placed = {
        name: {**values, "name": name, "folder": str(folder)} if isinstance(values, Mapping) else values
        for name, values in (own or {}).items()
    }
    return _catalogue() | {name: Dataset.load(values, f"datasets.{name}") for name, values in placed.items()}


def find_dataset(name: str | Path) -> Dataset:
    """Return the dataset of this name in the catalogue, or the one that a .yaml file describes."""
    if str(name) in _catalogue():
        return _catalogue()[str(name)]
    if str(name).endswith((".yaml", ".yml")):
        return _read(Path(name))
    raise ParameterError("dataset", str(name), f"one of {', '.join(_catalogue())}, or the path of a .yaml file")


def benchmark_names() -> list[str]:
    """Return the names of the paper's seven benchmarks, then those of the others in the catalogue."""
    others = [name for name, dataset in _catalogue().items() if dataset.kind == "benchmark"]
    return [*BENCHMARKS, *sorted(set(others) - set(BENCHMARKS))]


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, Dataset]:
    return {path.stem: _read(path) for path in sorted(CATALOGUE.glob("*.yaml"))}


def _read(path: Path) -> Dataset:
    values = {**read_yaml(path, str(path)), "name": path.stem, "folder": str(path.resolve().parent)}
    return Dataset.load(values, str(path) if path.parent != CATALOGUE else path.stem)


# --- local copies -----------------------------------------------------------------------------------------------------


def data_folder(data_dir: str | Path | None = None) -> Path | None:
    """Return the folder with local copies: `data_dir`, else `$QUAGMIRE_DATA_DIR`, else None. It must exist if given."""
    for name, value in (("data_dir", data_dir), ("QUAGMIRE_DATA_DIR", os.environ.get("QUAGMIRE_DATA_DIR"))):
        if value:
            folder = Path(value).expanduser()
            if not folder.is_dir():
                raise ParameterError(name, str(value), "the path of a folder")
            return folder
    return None


def local_files(dataset: Dataset, data_dir: str | Path | None = None) -> list[Path]:
    """Return the local files of a dataset, sorted; none if it has to be read from its hub or public address.

    Each pattern is looked for beside the dataset's YAML file, then in the data folder, then in the working folder.
    Raises ParameterError if there are none and the dataset names neither.
    """
    folders = [folder for folder in (dataset.folder, data_folder(data_dir), ".") if folder]
    found: set[Path] = set()
    for pattern in dataset.files:
        matches = next(filter(None, (_matches(Path(folder) / pattern) for folder in folders)), [])
        found.update(path for path in matches if has_rows(path.name))
        if not (dataset.hub_id or dataset.address) and not found.intersection(matches):
            places, endings = ", ".join(map(str, folders)), ", ".join(ENDINGS)
            reason = f"no {endings} at {pattern} in {places}; QUAGMIRE_DATA_DIR names the data folder"
            raise ParameterError(f"{dataset.name}.files", pattern, reason=reason)
    return sorted(found)


def _matches(pattern: Path) -> list[Path]:
    """Return the file of this path, the files in this folder, or those that a glob matches; no hidden ones."""
    found = []
    for match in [pattern] if pattern.exists() else map(Path, glob.glob(str(pattern), recursive=True)):
        inside = (path for path in match.rglob("*") if not any(p[0] == "." for p in path.relative_to(match).parts))
        found += [path for path in (inside if match.is_dir() else [match]) if path.is_file()]
    return found


def has_rows(name: str) -> bool:
    """Tell whether a file of this name holds rows of a dataset."""
    return name.endswith(ENDINGS) and Path(name).name not in _NO_ROWS


# --- public files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceFile:
    """A file of a dataset, recognised again by its fields."""

    name: str  # the file, or its address on the hub
    size: int  # bytes
    stamp: str  # its size and time, or the hub's commit


def source_files(dataset: Dataset, files: Sequence[Path] = ()) -> list[SourceFile]:
    """Return these local files, or else those of the hub, without empty ones.

    Raises ParameterError if a file is not there, and if the hub gives no answer.
    """
    try:
        named = [(str(path), None) for path in files] or _hub_files(dataset)
        found = [file for file in (_source_file(*each) for each in named) if file.size]
    except ParameterError:
        raise
    except Exception as error:  # the hub's client raises many kinds, from three libraries
        raise _unreachable(dataset, error) from error
    if not found:
        raise ParameterError(dataset.name, reason=f"{', '.join(name for name, _ in named)} is empty")
    return found


def public_files(dataset: Dataset) -> list[str]:
    """Return the public files of a dataset: copies if a commit or an address pins them, which are made at first use.

    Raises ParameterError if they cannot be downloaded.
    """
    if not dataset.address and not dataset.revision:
        return [file.name for file in source_files(dataset)]
    place = [dataset.address, dataset.hub_id, dataset.revision, dataset.configs, dataset.split, dataset.hub_files]
    folder = CACHE / f"{dataset.name}-{digest(place)}"
    raw = dataset.address.replace("https://github.com/", "https://raw.githubusercontent.com/").replace("/blob/", "/", 1)
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            names = [raw] if raw else [file.name for file in source_files(dataset)]
            try:
                with atomic_folder(folder) as scratch:
                    for number, name in enumerate(names):
                        plain = Path(name.removesuffix(".gz")).name
                        with open_file(name) as public, (scratch / f"{number:05d}-{plain}").open("wb") as copy:
                            shutil.copyfileobj(public, copy)
            except Exception as error:  # as above
                raise _unreachable(dataset, error) from error
    return sorted(map(str, folder.iterdir()))


def _unreachable(dataset: Dataset, error: Exception) -> ParameterError:
    place, what = (dataset.hub_id, "hub") if dataset.hub_id else (dataset.address, "address")
    remedy = f"set QUAGMIRE_DATA_DIR to a folder with {dataset.files[0]}" if dataset.files else "name local files"
    reason = f"its {what} {place} gave no answer ({first_line(error)}); {remedy}, or allow access to the {what}"
    return ParameterError(dataset.name, place, reason=reason)


def _hub_files(dataset: Dataset) -> list[tuple[str, str | None]]:
    """Return (path or address, commit) of each file; the commit is None if `hub_id` is a folder on this machine."""
    import datasets
    from huggingface_hub import HfApi

    commit = None
    if not Path(dataset.hub_id).is_dir():
        commit = HfApi().dataset_info(dataset.hub_id, revision=dataset.revision, timeout=HUB_TIMEOUT).sha
    split, wanted = dataset.split or "train", list(dataset.hub_files) or None
    found = []
    for config in dataset.configs or (None,):
        builder = datasets.load_dataset_builder(dataset.hub_id, config, revision=commit, data_files=wanted)
        by_split = builder.config.data_files or {}
        named = [str(name) for name in by_split.get(split) or () if has_rows(str(name))]
        if not named:
            reason = f"{dataset.hub_id} has no {', '.join(ENDINGS)} under this split; give local files instead"
            raise ParameterError(f"{dataset.name}.split", split, f"one of {', '.join(by_split) or 'none'}: {reason}")
        found += [(name, commit) for name in named]
    return found


def _source_file(name: str, commit: str | None) -> SourceFile:
    if "://" in name:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(name)
        return SourceFile(name, system.size(path), commit or "remote")
    status = Path(name).stat()
    return SourceFile(name, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")
