"""Whatever came out of a notebook, as HTML that can do nothing: an allow-list of tags, links, and embedded pictures.

Records hold text that language models wrote, and notebooks show it, so nothing in an output is trusted. Markdown is
rendered with raw HTML escaped; HTML and rendered Markdown then pass one sanitizer, which keeps the tags of running text
and tables and the addresses of links to other pages. Scripts, styles, events, frames and remote pictures go.
"""

from __future__ import annotations

import base64
import binascii
import html
import posixpath
import re
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

TAGS = frozenset(
    (
        *("h1", "h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "pre", "blockquote", "details", "summary"),
        *("ol", "ul", "li", "dl", "dt", "dd"),
        *("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"),
        *("a", "abbr", "b", "code", "del", "em", "i", "ins", "kbd", "s", "samp", "small", "strong", "sub", "sup", "u"),
    )
)
ATTRIBUTES = {
    "a": ["href"],
    "abbr": ["title"],
    "ol": ["start"],
    "td": ["colspan", "rowspan"],
    "th": ["colspan", "rowspan"],
}
VERDICTS = {  # of a claim, as cells of a table show them: class of the cell
    "holds": "holds",
    "fails": "fails",
    "undecided": "open",
    "too few candidates": "open",
    "not run": "open",
}
BROAD = 1.9  # width / height of a picture with several panels side by side
DEEPEST = 200  # tags inside each other; deeper HTML is shown as text
LONGEST = 120_000  # characters of one output, which take seconds; a longer one is left to the notebook
LONG_CELL = 40  # characters from which a cell of a table is given room
TOO_LONG = '<p class="note">This output is too long for the page: see the executed notebook.</p>'
HEADING_SHIFT = 2  # `## Heading` of a notebook stands below the page's own h3
PICTURES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff", "image/gif": b"GIF8"}
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)  # also bidirectional overrides
_HIDDEN = re.compile(r"<(style|script|title|noscript|template)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)


def plain(text: str) -> str:
    """`text` without what a page can't hold: terminal colours, control characters, lone surrogates."""
    text = _CONTROL.sub("", _ANSI.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))
    return text.encode("utf-8", "backslashreplace").decode()


def preformatted(text: str) -> str:
    """Any text, shown as it is."""
    return f'<div class="scroll" tabindex="0"><pre>{html.escape(plain(text))}</pre></div>'


def markdown(text: str, folder: str = "") -> str:
    """Markdown as harmless HTML; raw HTML in it is shown as text. `folder`: what relative links start from."""
    text = plain(text)
    return TOO_LONG if len(text) > LONGEST else _harmless(_markdown()(text), text, folder)


def sanitized(text: str, folder: str = "") -> str:
    """HTML as harmless HTML: tables scroll in their own box, and cells that hold a verdict say so in their class."""
    # the sanitizer shows the content of a tag that it drops; nobody wants to read a style sheet
    text = _HIDDEN.sub("", plain(text))
    return TOO_LONG if len(text) > LONGEST else _harmless(text, text, folder)


def picture(mime: str, data: str, metadata: Mapping[str, Any], alt: str) -> str:
    """A picture inside the page. Raises ValueError for data that is not a picture of that kind."""
    if mime == "image/svg+xml":
        content = plain(data).encode()  # in <img> an SVG runs no script and loads nothing
        width = height = None
        if b"<svg" not in content:
            raise ValueError("not an SVG")
    else:
        try:
            content = base64.b64decode("".join(data.split()), validate=True)
        except binascii.Error as error:
            raise ValueError("not base64") from error
        if not content.startswith(PICTURES[mime]):
            raise ValueError(f"not a picture of type {mime}")
        width, height = struct.unpack(">II", content[16:24]) if mime == "image/png" else (None, None)
    shown = metadata.get("width")  # the size on screen may be less than that of the file, for dense screens
    size = ' class="broad"' if width and width > BROAD * height else ""
    if isinstance(shown, int) and 0 < shown < 10_000:
        size += f' width="{shown}"'
        size += f' height="{round(shown * height / width)}"' if width else ""
    elif width:
        size += f' width="{width}" height="{height}"'
    address = f"data:{mime};base64,{base64.b64encode(content).decode()}"
    return f'<img src="{address}" alt="{html.escape(plain(alt))}"{size}>'


def text_of(markup: str) -> str:
    """The words of harmless HTML, in one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def _harmless(markup: str, source: str, folder: str) -> str:
    if _depth(markup) > DEEPEST:
        return preformatted(source)
    harmless = re.sub(r"<tr>(\s*<th></th>)+\s*</tr>", "", _cleaner(folder).clean(markup))  # index names that are empty
    harmless = re.sub(f"<td>(?=[^<]{{{LONG_CELL},}}</td>)", '<td class="long">', harmless)
    return re.sub(
        "<td>(" + "|".join(VERDICTS) + ")</td>",
        lambda cell: f'<td class="{VERDICTS[cell[1]]}">{cell[1]}</td>',
        harmless,
    )


def _depth(markup: str) -> int:
    """Tags that are open at once, at most. The sanitizer's time grows with the square of it."""
    deepest = depth = 0
    for tag in re.finditer(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)", markup):
        if tag[2].lower() not in ("br", "hr", "img", "input", "col", "meta", "link"):
            depth = max(0, depth - 1) if tag[1] else depth + 1
            deepest = max(deepest, depth)
    return deepest


@lru_cache
def _markdown() -> Any:
    import mistune

    return mistune.create_markdown(escape=True, plugins=["table", "strikethrough"])


@lru_cache
def _cleaner(folder: str) -> Any:
    from bleach.html5lib_shim import Filter
    from bleach.sanitizer import Cleaner

    class Page(Filter):
        """Headings go below the page's own, tables into a box that scrolls, and relative links start from `folder`."""

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for token in super().__iter__():
                name, kind = token.get("name"), token["type"]
                if re.fullmatch("h[1-6]", name or ""):
                    token["name"] = f"h{min(6, int(name[1]) + HEADING_SHIFT)}"
                if name == "a" and kind == "StartTag":
                    token["data"] = _link(token["data"], folder)
                if name == "table" and kind == "StartTag":
                    yield _tag("StartTag", {(None, "class"): "scroll", (None, "tabindex"): "0"})
                yield token
                if name == "table" and kind == "EndTag":
                    yield _tag("EndTag", {})

    return Cleaner(tags=TAGS, attributes=ATTRIBUTES, protocols={"http", "https", "mailto"}, strip=True, filters=[Page])


def _tag(kind: str, attributes: dict[tuple[None, str], str]) -> dict[str, Any]:
    return {"type": kind, "name": "div", "namespace": "http://www.w3.org/1999/xhtml", "data": attributes}


def _link(attributes: dict[tuple[None, str], str], folder: str) -> dict[tuple[None, str], str]:
    address = attributes.get((None, "href"))
    if address is None or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|#", address):
        return attributes
    if address.startswith(("/", "\\")):  # another host, or the root of this machine
        return {}
    return {**attributes, (None, "href"): posixpath.normpath(posixpath.join(folder, address))}
