"""Turn what a notebook shows into HTML that can do nothing: an allow-list of tags, links, and embedded pictures.

    markdown("**Fig. 3:** R² = 0.43")          # raw HTML in Markdown is escaped
    sanitized(frame.to_html())                 # bleach keeps the tags of text and tables, and links to other pages
    render("report.html.j2", study=study)      # templates escape every value that is not the result of these functions

Records hold text that language models wrote, and notebooks show it, so no output is trusted.
"""

from __future__ import annotations

import base64
import posixpath
import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from jinja2 import Environment

TAGS = {
    *("h1", "h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "pre", "blockquote", "details", "summary"),
    *("ol", "ul", "li", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"),
    *("a", "abbr", "b", "code", "del", "em", "i", "ins", "kbd", "s", "samp", "small", "strong", "sub", "sup", "u"),
}
SPANS = ["colspan", "rowspan"]
ATTRIBUTES = {"a": ["href"], "abbr": ["title"], "ol": ["start"], "td": SPANS, "th": SPANS}
VERDICTS = {"holds": "holds", "fails": "fails"}  # of a claim -> class of its cell
VERDICTS |= dict.fromkeys(("undecided", "too few candidates", "not run"), "open")
BROAD = 3.0  # width / height of a picture that takes the whole width of the page
LONG_CELL = 40  # characters from which a cell of a table is given more width
HEADING_SHIFT = 2  # `## Heading` of a notebook comes below the page's own h3
COPIES = "notebooks"  # folder of the executed notebooks, beside the page: relative links start there
SHIPPED = "../results/"
PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins
SHOWN_CHARACTERS = 8000  # of a long answer: its beginning and its end
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# also characters that reverse the reading direction
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_HIDDEN = re.compile(r"<(style|script|title|noscript|template)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)


def plain(text: object) -> str:
    """Return `text` without terminal colours, control characters and lone surrogates."""
    text = _CONTROL.sub("", _ANSI.sub("", str(text).replace("\r\n", "\n").replace("\r", "\n")))
    return text.encode("utf-8", "backslashreplace").decode()


def visible(text: object, most: int = SHOWN_CHARACTERS) -> str:
    """Return at most `most` characters of `text` and a note of what is left out; "" for a missing value.

    Control characters, characters that reverse the reading direction and lone surrogates become their codes.
    """
    missing = text is None or type(text).__name__ == "NAType" or (isinstance(text, float) and text != text)
    text = "" if missing else str(text)
    if len(text) > most:
        half = most // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half:,} characters ...]\n{text[-half:]}"
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def preformatted(text: str) -> Markup:
    """Return a box that shows any text as it is."""
    return Markup('<div class="scroll" tabindex="0"><pre>{}</pre></div>').format(plain(text))


def markdown(text: str) -> Markup:
    """Return Markdown as harmless HTML; raw HTML in it is shown as text."""
    import mistune

    return _harmless(mistune.create_markdown(escape=True, plugins=["table", "strikethrough"])(plain(text)))


def sanitized(text: str) -> Markup:
    """Return HTML as harmless HTML: tables scroll in their own box, and cells that hold a verdict get its class."""
    return _harmless(_HIDDEN.sub("", plain(text)))  # the sanitizer would show the content of a dropped tag


def picture(data: str, shown_width: object, alt: str, below: Markup | str = "") -> Markup:
    """Return a PNG, given in base64, with its caption below, `shown_width` wide. Raises ValueError for no PNG."""
    content = base64.b64decode("".join(data.split()), validate=True)  # raises a ValueError
    if not content.startswith(PNG) or len(content) < 24:
        raise ValueError("not a PNG")
    width, height = struct.unpack(">II", content[16:24])
    wide = width > BROAD * height
    if isinstance(shown_width, int) and 0 < shown_width < 10_000 and width:
        width, height = shown_width, round(shown_width * height / width)
    image = Markup(
        '<figure><label class="card"><input type="checkbox" aria-label="enlarge the picture">'
        '<img src="data:image/png;base64,{}" alt="{}"{} width="{}" height="{}"></label>{}</figure>'
    )
    broad = Markup(' class="broad"') if wide else ""
    return image.format(base64.b64encode(content).decode(), plain(alt), broad, width, height, below)


def render(template: str, **values: object) -> str:
    """Return a template of this folder filled with values, which are escaped unless they are `Markup`."""
    return environment().get_template(template).render(**values)


@lru_cache
def environment() -> Environment:
    """Return the templates of the report, with the functions of this module as filters."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("quagmire_utils.report"),
        autoescape=lambda name: name is None or ".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {"plain": plain, "visible": visible, "markdown": markdown}
    return made


def _harmless(markup: str) -> Markup:
    harmless = re.sub(r"<tr>(\s*<th></th>)+\s*</tr>", "", _cleaner().clean(markup))  # index names that are empty
    harmless = re.sub(f"<td>(?=[^<]{{{LONG_CELL},}}</td>)", '<td class="long">', harmless)
    names = "|".join(VERDICTS)
    harmless = re.sub(f"<td>({names})</td>", lambda cell: f'<td class="{VERDICTS[cell[1]]}">{cell[1]}</td>', harmless)
    return Markup(re.sub("<table>.*?</table>", _labelled, harmless, flags=re.DOTALL))


def _labelled(table: re.Match[str]) -> str:
    """Return a table whose cells know their column, so that small screens can stack them; one with spans as it is."""
    head, end, body = table[0].partition("</thead>")
    if not end or "colspan" in table[0]:
        return table[0]
    named = re.findall("<th[^>]*>(.*?)</th>", head.partition("</tr>")[0], re.DOTALL)
    names = [str(escape(Markup(name).striptags())) for name in named]

    def label(row: re.Match[str]) -> str:
        first, *cells = row[0].split("<td")
        labels = [""] * len(cells) + names
        pairs = zip(labels[-len(cells) :], cells, strict=False)
        return first + "".join(f'<td data-column="{name}"{cell}' for name, cell in pairs)

    return (
        '<table class="stack">'
        + head.removeprefix("<table>")
        + end
        + re.sub("<tr>.*?</tr>", label, body, flags=re.DOTALL)
    )


@lru_cache
def _cleaner() -> Any:
    from bleach.html5lib_shim import Filter
    from bleach.sanitizer import Cleaner

    class Page(Filter):
        """Headings go below the page's own, tables into a box that scrolls, and relative links start from COPIES."""

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for token in super().__iter__():
                name, start = token.get("name"), token["type"] == "StartTag"
                if re.fullmatch("h[1-6]", name or ""):
                    token["name"] = f"h{min(6, int(name[1]) + HEADING_SHIFT)}"
                if name == "a" and start:
                    token["data"] = _link(token["data"])
                box = {"name": "div", "namespace": "http://www.w3.org/1999/xhtml"}
                if name == "table" and start:
                    yield {**box, "type": "StartTag", "data": {(None, "class"): "scroll", (None, "tabindex"): "0"}}
                yield token
                if name == "table" and token["type"] == "EndTag":
                    yield {**box, "type": "EndTag", "data": {}}

    return Cleaner(tags=TAGS, attributes=ATTRIBUTES, protocols={"http", "https", "mailto"}, strip=True, filters=[Page])


def _link(attributes: dict[tuple[None, str], str]) -> dict[tuple[None, str], str]:
    address = attributes.get((None, "href"))
    if address is None or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|#", address):
        return attributes
    if address.startswith(("/", "\\")):  # another host, or the root of this machine
        return {}
    if address.startswith(SHIPPED):  # as seen from the folder of the notebooks' sources
        address = posixpath.join("..", "..", address.removeprefix(SHIPPED))
    return {**attributes, (None, "href"): posixpath.normpath(posixpath.join(COPIES, address))}
