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
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.validation import Count, Flag, Integer, Settings, read_yaml
from quagmire_utils.data.prompts import INSTRUCTIONS

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

    def columns_among(self, names: Sequence[str]) -> list[str] | None:
        """Return those of a table's columns that `rows.records` reads; None if one that it needs may be missing."""
        asked = [column for text in self.question for column in _COLUMN.findall(text) or [text]]
        needed = [[column] for column in asked] if len(self.question) == 1 else [asked]
        needed += [[column] for column in (self.response, self.generator_column, *self.where, *self.keep) if column]
        used = []
        for columns in [*needed, *filter(None, [self.answer])]:  # of each group at least one
            there = [name for name in names if any(f"{column}.".startswith(f"{name}.") for column in columns)]
            if not there:
                return None
            used += there
        return list(dict.fromkeys(used))

    def from_files(self, files: Sequence[str]) -> Dataset:
        """Return the dataset read from these local files (paths, folders or globs) and nowhere else."""
        paths = tuple(str(Path(file).expanduser().absolute()) for file in files)
        return self.replace(files=paths, folder="", hub_id="", revision=None)


def load_datasets(own: Mapping[str, Any] | None = None, folder: str | Path = "") -> dict[str, Dataset]:
    """Return the datasets of the catalogue and those described in `own`, which replace namesakes.

    `folder`: where the files of `own` are looked for first. Raises ParameterError with the dotted name of a bad field.
    """
    made = {}
    for name, values in (own or {}).items():
        if isinstance(values, Mapping):
            values = {**values, "name": name, "folder": str(folder)}
        made[name] = Dataset.load(values, f"datasets.{name}")
    return {**_catalogue(), **made}


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
