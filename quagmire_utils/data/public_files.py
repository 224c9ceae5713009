"""Rows of a public file that is no dataset of a hub: downloaded once, at the commit that its address names.

public_rows(find_dataset("svamp"))        # from https://github.com/arkilpatel/SVAMP/blob/<commit>/SVAMP.json
"""

from __future__ import annotations

import urllib.request
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.core.files import atomic_path, digest
from quagmire_utils.core.paths import ROOT
from quagmire_utils.data.dataset import Dataset
from quagmire_utils.data.problems import Row, parse_json

CACHE = ROOT / ".quagmire" / "datasets"
_TIMEOUT = 20.0  # seconds without an answer


def public_rows(dataset: Dataset) -> list[Row]:
    """Return the rows of the file at a dataset's address. Raises ParameterError if it cannot be downloaded or read."""
    address = dataset.address
    kept = CACHE / f"{dataset.name}-{digest(address)[:8]}{Path(urlsplit(address).path).suffix}"
    try:
        if not kept.is_file():
            raw = address.replace("https://github.com/", "https://raw.githubusercontent.com/").replace("/blob/", "/", 1)
            with urllib.request.urlopen(raw, timeout=_TIMEOUT) as answer, atomic_path(kept) as scratch:
                scratch.write_bytes(answer.read())
        return _rows(kept)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        local = f"; set QUAGMIRE_DATA_DIR to a folder with {dataset.files[0]}" if dataset.files else ""
        reason = f"no rows from {address} ({error}){local}"
        raise ParameterError(dataset.name, address, reason=reason) from error


def _rows(path: Path) -> list[Row]:
    """Return the rows of a JSON list (bare, or as "examples"), of JSON lines, or of the problems of ASDiv's XML."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".xml":
        problems = ElementTree.fromstring(text).iter("Problem")
        return [{**problem.attrib, **{part.tag: part.text or "" for part in problem}} for problem in problems]
    if path.suffix == ".jsonl" or text.count("\n{") > 1:
        return [parse_json(line) for line in text.splitlines() if line.strip()]
    found = parse_json(text)
    return found["examples"] if isinstance(found, dict) else found
