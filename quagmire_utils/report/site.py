"""The README and docs/ as a site: the hooks of mkdocs.yml, which let every link lead where it leads in the repository.

quagmire docs                        # serve it
quagmire docs --build runs/site      # write it; a link that leads nowhere is an error
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"""(?<=\]\()(?!\w+:|\#)([^)\s\#]+)|(?<=href=")(?!\w+:|\#)([^"\#]+)""")  # of Markdown and of HTML


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the README as first page, and what is linked: text as pages, anything else as copies."""
    from mkdocs.structure.files import File

    waiting = [ROOT / "README.md", *(Path(file.abs_src_path) for file in files.documentation_pages())]
    for source in waiting:
        address = _address(source)
        if address not in files.src_uris:
            files.append(File.generated(config, address, abs_src_path=str(source)))
        if source.suffix in (".md", ".html"):
            found = [(source.parent / (a or b)).resolve() for a, b in LINK.findall(source.read_text("utf-8"))]
            waiting += [path for path in dict.fromkeys(found) if path.is_file() and path not in waiting]
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between files of the site."""
    source, start = Path(page.file.abs_src_path), os.path.dirname(page.file.src_uri)
    return LINK.sub(lambda link: os.path.relpath(_address((source.parent / link[0]).resolve()), start or "."), markdown)


def _address(source: Path) -> str:
    """Return where the site holds a file of the repository."""
    if source == ROOT / "README.md":
        return "index.md"
    return source.relative_to(ROOT / "docs" if (ROOT / "docs") in source.parents else ROOT).as_posix()
