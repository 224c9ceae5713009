"""The page of one evaluation: what the notebook shows, without its code, as one HTML file to send to a colleague.

    page = Page("micro-llama")
    page.show("Scores", Markdown("..."), table, HTML(...), Image(...))      # displays them, and keeps them
    page.write("results/evaluations/mine/evaluation.html")

The file needs nothing beside it: pictures are inside, nothing is loaded and nothing runs, whatever a model wrote.
"""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quagmire_utils.core.files import write_text
from quagmire_utils.report import clean
from quagmire_utils.report.page import POLICY
from quagmire_utils.report.style import STYLE

if TYPE_CHECKING:
    import pandas as pd

NAME = "evaluation.html"
_STYLE = """
p, ul, ol { max-width: 60rem; }
main > section > h2 { margin-top: 1.8rem; }
table { font-size: .82rem; }
td, th { min-width: 0; padding: .35rem .5rem; }
summary { cursor: pointer; }
details > details { overflow-wrap: anywhere; }
"""


class Page:
    """What an evaluation has shown so far, by heading."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._sections: dict[str, list[str]] = {}

    def show(self, heading: str, *items: Any) -> None:
        """Display `items` here and now, and keep them for the page; see `keep`."""
        from IPython.display import display

        self.keep(heading, *items)
        for item in items:
            display(item)

    def keep(self, heading: str, *items: Any) -> None:
        """Keep `items` for the page, below `heading`.

        An item is Markdown, HTML or a PNG Image of `IPython.display`, or a DataFrame. HTML is taken as it is: whoever
        made it has escaped what is in it (`browse`); text in Markdown and tables is escaped here.
        """
        kept = self._sections.setdefault(heading, [])
        kept += [_markup(item, f"{heading}: {self.title}") for item in items]

    def text(self) -> str:
        """The page as HTML."""
        sections = "\n".join(
            f"<section><h2>{html.escape(heading)}</h2>\n" + "\n".join(parts) + "</section>"
            for heading, parts in self._sections.items()
        )
        title = html.escape(clean.plain(self.title))
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>Evaluation of {title}</title>
<link rel="icon" href="data:,">
<style>{STYLE}{_STYLE}</style>
</head>
<body>
<div class="wide">
<header><p class="eyebrow">Evaluation · measured</p><h1>{title}</h1></header>
<main>
{sections}
</main>
</div>
</body>
</html>
"""

    def write(self, path: str | Path) -> Path:
        """Write the page to `path`, atomically; returns it."""
        write_text(self.text(), path)
        return Path(path)


def _markup(item: Any, alt: str) -> str:
    from IPython.display import HTML, Image, Markdown

    if isinstance(item, Markdown):
        return clean.markdown(item.data)
    if isinstance(item, HTML):
        return item.data
    if isinstance(item, Image):
        width = {} if item.width is None else {"width": item.width}
        picture = clean.picture("image/png", base64.b64encode(item.data).decode(), width, alt)
        return f'<figure><div class="card">{picture}</div></figure>'
    return f'<div class="scroll" tabindex="0">{_table(item)}</div>'


def _table(frame: pd.DataFrame) -> str:
    """The frame with its index as first column, escaped."""
    named = frame.reset_index() if frame.index.name else frame
    return named.to_html(index=frame.index.name is None, border=0, escape=True, justify="left")
