"""The answers to browse: whatever a model wrote stays text, in a real browser too; the right answers are shown."""

import base64
import re

import pandas as pd
import pytest
from browsing import PAYLOADS, Elements, look_at

from quagmire_utils.data import Problem
from quagmire_utils.evaluation.store import SampleStore
from quagmire_utils.report.answers import browse_answers, show_audit
from quagmire_utils.report.notebook import words
from quagmire_utils.report.page import EvaluationPage

SET = "evil <b>set</b>"
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")
ALLOWED = {"details", "summary", "b", "code", "pre", "p", "table", "tr", "th", "td", "div", "br"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Every payload as response, extracted answer, question, gold and problem's id, under each verdict."""
    ids = [payload.encode("utf-8", "backslashreplace").decode() for payload in PAYLOADS]
    problems = {SET: [Problem(name, f"Q {p}", f"G {p}") for name, p in zip(ids, PAYLOADS, strict=True)]}
    rows = [
        {"benchmark": SET, "problem": name, "index": index, "text": f"answer {payload}", "tokens": 3}
        | {"finish_reason": "length" if index else "stop", "verdict": verdict}
        | {"extracted": f"X {payload}".encode("utf-8", "replace").decode()}
        for name, payload in zip(ids, PAYLOADS, strict=True)
        for index, verdict in enumerate(("correct", "wrong", "timeout"))
    ]
    frame = pd.DataFrame(rows, dtype=object)  # of lone surrogates, a column of strings can't be made
    store = SampleStore(tmp_path_factory.mktemp("store"))
    store.append(frame)
    audit = frame.assign(kind="only the first grader says correct", samples=2, gold=PAYLOADS[0])
    audit = audit.assign(second_verdict="wrong", second_extracted=PAYLOADS[1], ending=audit["text"])
    audit.attrs = dict.fromkeys(("undecided", "not_math", "either", "both", "unread"), 0)
    audit.attrs |= {"samples": 36, "disagreements": 36}
    return browse_answers(store, problems, each=len(PAYLOADS)) + show_audit(audit, rows=36)


def test_no_payload_becomes_markup(page):
    seen = Elements(page)
    assert {tag for tag, _ in seen.found} <= ALLOWED
    assert {name for _, attributes in seen.found for name in attributes} <= {"style", "class", "open"}
    assert not seen.open
    page.encode("utf-8")  # no lone surrogates: a notebook is a UTF-8 file
    for payload in PAYLOADS[:9]:
        assert f"answer {payload}" in seen.text, "and nothing of it is lost"
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)


SEEN = """
page.querySelectorAll('details').forEach(e => { e.open = true; });
const all = [...page.querySelectorAll('*')];
return {
  title: page.title, scripts: page.scripts.length, width: page.documentElement.scrollWidth,
  tags: [...new Set([...page.body.querySelectorAll('*')].map(e => e.localName))],
  acting: all.flatMap(e => e.getAttributeNames()).filter(name => name.startsWith('on')),
};
"""


@pytest.fixture(scope="module")
def evaluation(page, tmp_path_factory) -> str:
    """The page to send to a colleague: answers, a table and sentences that hold every payload."""
    from IPython.display import HTML, Image

    names = [payload.encode("utf-8", "replace").decode() for payload in PAYLOADS]
    whole = EvaluationPage(f"model {names[0]}")
    table = pd.DataFrame({"score": names, names[1]: 1}, index=pd.Index(names, name="benchmark"))
    whole.keep(f"Scores {names[0]}", words(" ".join(names)), table)
    whole.keep("Answers", HTML(page), Image(data=PIXEL, format="png", width=1))
    return whole.write(tmp_path_factory.mktemp("page")).read_text(encoding="utf-8")


def test_the_page_to_send_holds_no_element_that_acts(evaluation):
    assert "script-src" not in evaluation
    assert "default-src 'none'" in evaluation
    assert "<script" not in evaluation.lower()
    body = Elements(re.sub(r"(?s).*<body>|</body>.*", "", evaluation))
    known = {"header", "main", "section", "h1", "h2", "thead", "tbody", "figure", "img"}
    known |= {"em", "strong", "a", "ul", "li", "blockquote", "label", "input"}
    assert all(attributes["type"] == "checkbox" for tag, attributes in body.found if tag == "input")  # enlarge pictures
    assert {tag for tag, _ in body.found} <= ALLOWED | known
    assert not any(name.startswith("on") for _, attributes in body.found for name in attributes)
    assert not body.open


@pytest.mark.requires_chromium
def test_no_payload_runs_in_a_real_browser(page, evaluation, tmp_path):
    """The same answers with one payload left unescaped show that this test would notice."""
    whole = "<!doctype html><meta charset=utf-8><title>safe</title><body>{}"
    found = look_at(whole.format(page), tmp_path, SEEN)["value"]
    assert (found["title"], found["acting"]) == ("safe", [])
    assert set(found["tags"]) <= ALLOWED | {"tbody"}
    assert look_at(whole.format(page + PAYLOADS[1]), tmp_path, SEEN)["value"]["title"] == "owned"
    sent = look_at(evaluation, tmp_path, SEEN)
    assert (sent["console"], sent["requests"]) == ([], [])
    found = sent["value"]
    assert (found["title"], found["scripts"], found["acting"]) == (f"Evaluation of model {PAYLOADS[0]}", 0, [])
    assert found["width"] <= 1280


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
    text = Elements(page).text
    for kind in ("right", "wrong", "undecided or no answer"):
        assert f"{kind}: 12 of 36 answers, 4 shown" in text
    assert all(f"{name} says {i}.{j}" in text for name in problems for i in (0, 3) for j in range(3))  # spread out
    assert text.count("cut off at the token limit") == 4
