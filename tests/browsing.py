"""Looking at a page: its elements, and in a headless Chromium what a script finds in it and what the console says."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from quagmire_utils.report.page import chromium

# what a model may write to act in a page
PAYLOADS = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</pre></details><svg onload=\"document.title='owned'\">",
    "'\"><details open ontoggle=\"document.title='owned'\"><summary>x</summary></details>",
    "<iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>",
    "<a href=\"javascript:document.title='owned'\" autofocus onfocus=\"document.title='owned'\">x</a>",
    "</textarea></title></style><style>body{display:none}</style>",
    "<!-- --><body onpageshow=\"document.title='owned'\">",
    "&lt;script&gt;document.title='owned'&lt;/script&gt;",
    "<scr\x00ipt>document.title='owned'</scr\x00ipt>",
    "$\\require{html}\\href{javascript:document.title='owned'}{x}$ \\unicode{x3C}",
    "\ud800 \u202eesrever \x1b[31m \\u003cscript\\u003e",
]

VOID = ("br", "hr", "img", "input", "link", "meta")


class Elements(HTMLParser):
    """Every start tag of a page with its attributes, the text, and the tags that are left open or closed wrongly."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", list[str]()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found.append((tag, dict(attributes)))
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.open.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.text += data


# the page is a frame of this size; a script outside of it measures once all is loaded, so that the page's policy holds
FRAME = """<!doctype html><meta charset="utf-8">
<style>:root {{ color-scheme: light dark }} iframe {{ border: 0 }}</style>
<iframe id="page" width="{width}" height="900" srcdoc="{page}"></iframe>
<script id="result" type="application/json"></script>
<script>
const frame = document.getElementById("page");
const measure = (page, view) => {{ {script} }};
addEventListener("load", () => setTimeout(() => {{
  const requests = frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name);
  const found = {{value: measure(frame.contentDocument, frame.contentWindow), requests: requests}};
  document.getElementById("result").textContent = encodeURIComponent(JSON.stringify(found));
}}, 500));
</script>
"""


def look_at(page: str, folder: Path, script: str, *, width: int = 1280, scheme: str = "light") -> dict[str, Any]:
    """Return `value`, what the script returns of `page` (document) and `view` (window); `requests`; `console`."""
    file = folder / "frame.html"
    file.write_text(FRAME.format(width=width, page=html.escape(page), script=script), encoding="utf-8")
    colours = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    window = f"--window-size={max(width, 600) + 40},1000"
    done = chromium(file, window, colours, "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom")
    found = re.search(r'<script id="result"[^>]*>(.+?)</script>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen = json.loads(unquote(found[1]))
    seen["requests"] = [address for address in seen["requests"] if not address.startswith("data:")]
    return seen | {"console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}
