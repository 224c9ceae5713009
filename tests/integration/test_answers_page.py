"""The browsable answers: whatever a model wrote stays text, in a real browser too; the right answers are shown."""

import base64
import html
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest

from quagmire_utils.data import Problem
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.report.browse import browse_answers, plain, show_audit
from quagmire_utils.report.evaluation_page import Page
from quagmire_utils.report.notebook import words

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
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
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")
ALLOWED = {"details", "summary", "b", "code", "pre", "p", "table", "tr", "th", "td", "div", "br"}


class Tags(HTMLParser):
    """The elements and attributes that a browser would see, and the text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.text, self.open = set(), set(), "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.open += [tag] if tag != "br" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "the page's own elements stay balanced"

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Every payload as response, extracted answer, question, gold and problem's id, under each verdict."""
    store = SampleStore(tmp_path_factory.mktemp("store"))
    problems = {"evil <b>set</b>": [Problem(f"{p}", f"Q {p}", f"G {p}") for p in PAYLOADS]}
    rows = []
    for i, payload in enumerate(PAYLOADS):
        for index, verdict in enumerate(("correct", "wrong", "timeout")):
            rows.append(
                {
                    "benchmark": "evil <b>set</b>",
                    "problem": problems["evil <b>set</b>"][i].id.encode("utf-8", "backslashreplace").decode(),
                    "index": index,
                    "text": f"answer {payload}",
                    "tokens": 3,
                    "finish_reason": "length" if index else "stop",
                    "extracted": f"X {payload}".encode("utf-8", "replace").decode(),
                    "verdict": verdict,
                }
            )
    problems = {
        name: [Problem(p.id.encode("utf-8", "backslashreplace").decode(), p.question, p.answer) for p in some]
        for name, some in problems.items()
    }
    store.append(pd.DataFrame(rows, dtype=object))  # of lone surrogates, a column of strings can't be made
    audit = pd.DataFrame(rows, dtype=object).assign(
        kind="only the first grader says correct", samples=2, gold=PAYLOADS[0]
    )
    audit = audit.assign(second_verdict="wrong", second_extracted=PAYLOADS[1], ending=audit["text"])
    audit.attrs = {"samples": 36, "disagreements": 36}
    return browse_answers(store, problems, each=len(PAYLOADS)) + show_audit(audit, rows=36)


def test_no_payload_becomes_markup(page):
    seen = Tags(page)
    assert seen.elements <= ALLOWED
    assert seen.attributes <= {"style", "class", "open"}
    assert not seen.open
    page.encode("utf-8")  # no lone surrogates: a notebook is a UTF-8 file
    for payload in PAYLOADS[:9]:
        assert f"answer {payload}" in seen.text, "and nothing of it is lost"
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed to open the page in")
def test_no_payload_runs_in_a_real_browser(page, tmp_path):
    """The same page with one payload left unescaped is the proof that this test would notice."""
    titles = {}
    for name, body in (("escaped", page), ("control", page + PAYLOADS[1])):
        file = tmp_path / f"{name}.html"
        opened = re.sub("<details", "<details open", body)
        file.write_text(f"<!doctype html><meta charset=utf-8><title>safe</title><body>{opened}", encoding="utf-8")
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--virtual-time-budget=4000", "--dump-dom", file.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
        titles[name] = re.search("<title>(.*?)</title>", dom)[1]
        if name == "escaped":
            found = Tags(
                re.sub(
                    r".*<body[^>]*>|</body>.*", "", dom.replace("<tbody>", "").replace("</tbody>", ""), flags=re.DOTALL
                )
            )
            assert found.elements <= ALLOWED
            assert not any(attribute.startswith("on") for attribute in found.attributes)
    assert titles == {"escaped": "safe", "control": "owned"}


def test_the_page_to_send_is_as_harmless_and_needs_nothing(page, tmp_path):
    """Answers, a table and sentences that hold every payload, as one file in a real browser: nothing runs or loads."""
    from IPython.display import HTML, Image

    from quagmire_utils.report.browser import Browser, find_chromium

    names = [payload.encode("utf-8", "replace").decode() for payload in PAYLOADS]
    whole = Page(f"model {names[0]}")
    table = pd.DataFrame({"score": names, names[1]: 1}, index=pd.Index(names, name="benchmark"))
    whole.keep(f"Scores {names[0]}", words(" ".join(names)), table)
    whole.keep("Answers", HTML(page), Image(data=PIXEL, format="png", width=1))
    file = whole.write(tmp_path / "evaluation.html")
    text = file.read_text(encoding="utf-8")
    assert "script-src" not in text
    assert "default-src 'none'" in text
    assert "<script" not in text.lower()
    body = Tags(re.sub(r"(?s).*<body>|</body>.*|<(meta|link|img|input)\b[^>]*>", "", text))
    assert body.elements <= ALLOWED | {"header", "main", "section", "h1", "h2", "thead", "tbody", "figure"} | {
        *("em", "strong", "a", "ul", "li", "blockquote")
    }
    assert not any(attribute.startswith("on") for attribute in body.attributes)
    if find_chromium() is None:
        pytest.skip("no Chromium or Chrome is installed to open the page in")
    with Browser() as browser:
        browser.open(file, width=1280)
        assert browser.evaluate("document.title") == f"Evaluation of model {names[0]}"
        assert browser.evaluate("document.scripts.length") == 0
        assert browser.evaluate("document.documentElement.scrollWidth") <= 1280
        assert [request for request in browser.requests if not request.startswith("data:")] == []
        assert browser.problems == []


def test_right_wrong_and_undecided_answers_of_every_benchmark(tmp_path):
    store = SampleStore(tmp_path / "store")
    problems = {name: [Problem(f"p{i}", f"question {i}", str(i)) for i in range(6)] for name in ("one", "two")}
    verdicts = ("correct", "wrong", "no_answer")
    rows = [
        {"benchmark": name, "problem": f"p{i}", "index": j, "text": f"{name} says {i}.{j}", "tokens": 10 + i}
        | {"finish_reason": "length" if verdict == "no_answer" else "stop", "extracted": str(i), "verdict": verdict}
        for name in problems
        for i in range(6)
        for j, verdict in enumerate(verdicts)
    ]
    for part in (rows[:20], rows[20:]):
        store.append(pd.DataFrame(part))
    page = browse_answers(store, problems, each=2)
    assert page.count("<details") == 3 + 3 * 2 * 2
    assert page.count("<details open") == 3 + 3  # every kind, and the first answer of each
    text = Tags(page).text
    assert "right: 12 of 36 answers, 4 shown" in text
    assert "wrong: 12 of 36 answers, 4 shown" in text
    assert "undecided or silent: 12 of 36 answers, 4 shown" in text
    for name in problems:
        for i in (0, 3):  # spread over the benchmark
            for j in range(3):
                assert f"{name} says {i}.{j}" in text
    assert text.count("cut off at the token limit") == 4
    assert "question 3" in text
    only = browse_answers(store, {"one": problems["one"][:1]}, each=2)
    assert "right: 1 of 3 answers, 1 shown" in Tags(only).text
    assert "two says" not in only


def test_long_answers_keep_their_beginning_and_their_end():
    shown = plain("a" * 9000 + "THE END", 100)
    assert shown.startswith("a" * 50)
    assert shown.endswith("THE END")
    assert "[... 8,907 characters ...]" in shown
    assert plain(None) == plain(float("nan")) == plain(pd.NA) == ""
    assert plain("<&\"'>") == html.escape("<&\"'>")


def test_an_audit_without_disagreements_is_a_sentence():
    empty = pd.DataFrame({"problem": []})
    empty.attrs = {"samples": 200, "disagreements": 0}
    assert "0 of 200 answers otherwise (100.00 % agree)" in show_audit(empty)
    empty.attrs = {"samples": 1200, "disagreements": 1, "undecided": 1000}
    assert "1 of 200 answers otherwise (99.50 % agree). About 1,000 more it cannot tell." in show_audit(empty)
    empty.attrs = {"samples": 3, "disagreements": 0, "undecided": 3}
    assert "0 of 0 answers otherwise. About 3 more it cannot tell." in show_audit(empty)
    many = pd.DataFrame({"problem": range(40), "gold": "<b>"})
    assert "The first 30 of 40 distinct cases" in show_audit(many)
    assert "&lt;b&gt;" in show_audit(many)
