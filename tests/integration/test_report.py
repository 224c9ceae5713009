"""The page of the study: what it shows, that nothing in it can act, and how it looks in a real headless browser."""

import base64
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from browsing import Elements, look_at

from quagmire_utils.core.paths import ROOT
from quagmire_utils.report import clean
from quagmire_utils.report.card import update_readme
from quagmire_utils.report.page import build, write_report
from quagmire_utils.report.study import PLACES, Headline

HOSTILE = (
    "<script>window.hacked = 1; document.title = 'hacked'</script>",
    '<img src=x onerror="window.hacked = 2">',
    '<svg onload="window.hacked = 3"><script>window.hacked = 4</script></svg>',
    '<iframe src="https://example.org/"></iframe><object data="https://example.org/"></object>',
    '<a href="javascript:window.hacked = 5" onclick="window.hacked = 6">press</a>',
    '<a href="java\nscript:window.hacked = 7">press</a><a href="data:text/html,<script>1</script>">press</a>',
    "<style>* { display: none }</style><link rel=stylesheet href=https://example.org/a.css>",
    '<div style="background: url(https://example.org/a.png); position: fixed; inset: 0">over everything</div>',
    "<form action=https://example.org/><input name=q><button>send</button></form>",
    '<base href=https://example.org/><meta http-equiv=refresh content="0; url=https://example.org/">',
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.hacked=8&gt;">',
    '<noscript><p title="</noscript><img src=x onerror=window.hacked=9>">',
    "</td></tr></table></main></body></html><h1>the end?</h1>",
    '<table id="provenance" class="claim"><tr><td>not closed',
)
URL_ATTRIBUTES = {"src", "href", "action", "data", "background", "poster", "srcset", "formaction"}


def png(width: int = 900, height: int = 500) -> str:
    """A picture that is not of one colour."""
    from PIL import Image

    pixels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def shown(tags: str, *outputs: dict[str, str], **metadata: dict) -> nbformat.NotebookNode:
    made = [nbformat.v4.new_output("display_data", data=data, metadata=metadata) for data in outputs]
    return nbformat.v4.new_code_cell("show()", metadata={"tags": tags.split()}, outputs=made)


def write_notebook(folder: Path, name: str, *cells: nbformat.NotebookNode, title: str, **parameters: object) -> None:
    claim = f"The paper finds *something* for `{name}`, [its source](../x.md)."
    first = nbformat.v4.new_markdown_cell(f"# {title}\n\n{claim}")
    run = {"parameters": {"profile": "example", **parameters}, "duration": 4.6, "end_time": "2026-01-02T03:04:05+00:00"}
    provenance = shown("provenance", {"text/markdown": "*Provenance:* profile example, measured · commit 12345678"})
    book = nbformat.v4.new_notebook(cells=[first, *cells, provenance], metadata={"papermill": run})
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    nbformat.write(book, folder / "notebooks" / f"{name}.ipynb")


def wide_table(columns: int = 14) -> str:
    rng = np.random.default_rng(0)
    families = ["Llama3-8B-Instruct", "Mistral-NeMo-12B-Instruct"]
    index = pd.MultiIndex.from_product([families, ["paper", "measured (example)"]])
    names = [f"a rather long name of column {i}" for i in range(columns)]
    frame = pd.DataFrame(rng.random((4, columns)), index=index, columns=names)
    frame["verdict"] = ["holds", "fails", "undecided", "not run"]
    return frame._repr_html_()


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """Executed notebooks as a run leaves them: a figure, a table, claims, hostile output; the others not executed."""
    folder = tmp_path_factory.mktemp("results") / "example"
    write_notebook(
        folder,
        "fig03_sft_vs_rl",
        shown("", {"text/markdown": "a step on the way"}),
        shown("report", {"image/png": png(), "text/plain": "<Figure>"}, **{"image/png": {"width": 450}}),
        shown("report", {"text/markdown": "**Figure 3 (profile example, measured).** One marker per candidate. More."}),
        nbformat.v4.new_markdown_cell("## What our scale says"),
        shown("report", {"text/markdown": "Fig. 3: **undecided** at this scale."}),
        shown("headline", Headline("R² = 0.43", "R² = 0.62 [0.41, 0.99]", "n = 7 | one")._repr_mimebundle_()),
        title="Figure 3: the score explains a part",
        k=16,
    )
    write_notebook(
        folder,
        "table01_spearman",
        shown("report", {"text/markdown": "**Table 1: ranks** (profile example)"}, {"text/html": wide_table()}),
        title="Table 1: which predictor ranks",
    )
    write_notebook(folder, "claims", shown("report", {"text/html": wide_table(5)}), title="The ledger of claims")
    streams = nbformat.v4.new_output("stream", name="stdout", text="\x1b[31mred\x1b[0m\x00 \u202e<b>plain</b>\n")
    cell = shown("report", *[{"text/html": text} for text in HOSTILE], *[{"text/markdown": text} for text in HOSTILE])
    damaged = {"image/png": base64.b64encode(b"no picture").decode()}
    cell.outputs += [streams, *shown("", damaged).outputs]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><script>window.hacked = 10</script>'
        '<image href="https://example.org/x.png"/><rect width="40" height="20"/></svg>'
    )
    cell.outputs += shown("", {"image/svg+xml": svg}, {"application/javascript": "window.hacked = 11"}).outputs
    cell.outputs += shown("", {"text/plain": "word" * 400}, {"text/html": "<td>" + "unbreakable" * 50}).outputs
    write_notebook(
        folder, "fig04_epochs", cell, title="Figure 4: <script>window.hacked = 12</script>", note="<b onclick=alert(1)>"
    )
    (folder / "figures").mkdir()
    (folder / "figures" / "fig03_sft_vs_rl.svg").write_text(svg)
    (folder / "notebooks" / "fig05_torn.ipynb").write_text('{"cells": [')
    write_report(folder)
    return folder


def article(page: str, place: str) -> str:
    return re.search(rf'<article id="{place}">.*?</article>', page, re.DOTALL)[0]


def test_an_article_has_the_title_the_outputs_the_papers_caption_and_a_link(example):
    part = article(build(example), "fig03")
    wanted = ("<h3>Figure 3. The paper: the score explains a part</h3>", "micro models, profile example")
    wanted += ("<img ", "<figcaption>", "One marker per candidate. More.</p>", "The paper’s caption", "with R² = 0.43")
    wanted += ("<h4>What our scale says</h4>", "<strong>undecided</strong>")
    wanted += ('<a href="notebooks/fig03_sft_vs_rl.ipynb">', '<a href="figures/fig03_sft_vs_rl.svg">', "k = 16")
    places = [part.index(text) for text in wanted]
    assert places == sorted(places)
    assert 'alt="Figure 3 (profile example, measured). One marker per candidate. More."' in part
    assert 'width="450" height="250"' in part  # half of the file's 900 x 500
    assert "a step on the way" not in part
    assert "Paper: R²" not in part  # the headline is for docs/reproduction.md
    table = article(build(example), "table01")
    assert "<em>something</em>" in table
    assert '<a href="x.md">its source</a>' in table  # ../x.md as seen from notebooks/


def test_what_was_not_executed_names_the_command(example):
    page = build(example)
    for place in set(PLACES) - {"fig03", "fig04", "table01"} | {"paper_audit"}:
        assert f"./reproduce.sh --profile example --only {place}</code>" in article(page, place)
        assert "<strong>not run</strong>" in article(page, place)
    assert "3 of 20 figures and tables" in page


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("render", [clean.sanitized, clean.markdown, clean.preformatted])
def test_hostile_output_keeps_no_element_that_acts(render, text):
    for tag, attributes in Elements(render(text)).found:
        assert tag in clean.TAGS | {"div"}
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "id", "srcdoc")]
        for name in URL_ATTRIBUTES & attributes.keys():
            assert re.match(r"(https?:|mailto:|#|notebooks/)", attributes[name]), attributes


def test_what_is_harmless_survives():
    table = "<table class='dataframe'><tr><th colspan=2>a</th></tr><tr><td>1 &lt; 2</td></tr></table>"
    assert '<th colspan="2">a</th>' in clean.sanitized(table)
    assert "<td>1 &lt; 2</td>" in clean.sanitized(table)
    assert clean.sanitized(table).startswith('<div class="scroll" tabindex="0"><table>')
    assert '<td class="fails">fails</td>' in clean.sanitized("<table><tr><td>fails</td></tr></table>")
    assert clean.sanitized("<style>p { color: red }</style><p>seen</p>") == "<p>seen</p>"
    assert '<a href="https://arxiv.org/abs/2510.01624">p</a>' in clean.markdown("[p](https://arxiv.org/abs/2510.01624)")
    assert '<a href="../public/README.md">p</a>' in clean.markdown("[p](../results/public/README.md)")
    assert '<td data-column="&#34;b">4</td>' in clean.markdown('|a|"b|\n|-|-|\n|3|4|')
    assert clean.markdown("x < y & z\n").strip() == "<p>x &lt; y &amp; z</p>"
    assert clean.plain("a\ud800\x07\x1b[1mb\x1b[0m\u202ec") == "a\\ud800bc"


@pytest.mark.parametrize("data", ["PHNjcmlwdD4=", "not base64!", base64.b64encode(clean.PNG).decode()])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011 - of base64, or of no PNG
        clean.picture(data, None, "alt")


MEASURE = (ROOT / "tests" / "measure.js").read_text()


@pytest.mark.requires_chromium
@pytest.mark.parametrize("name", ["example", "mini"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_real_browser(example, tmp_path, name, width, scheme):
    """Nothing is loaded, cut off or hard to read, on the example's page and on that of the committed notebooks."""
    page = build(example if name == "example" else ROOT / "results" / name)
    assert len(page.encode()) < 10_000_000
    seen = look_at(page, tmp_path, MEASURE, width=width, scheme=scheme)
    assert seen["console"] == []
    assert seen["requests"] == []
    found = seen["value"]
    assert len(found["images"]) == page.count("<img ")
    assert all(found["images"])
    assert found["width"] == width
    assert found["whole"] <= width
    assert found["overflowing"] == []
    assert found["pale"] == []
    assert found["seen"] > 50
    assert found["dark"] == (scheme == "dark")
    assert set(found["cards"]) <= {"rgb(255, 255, 255)"}
    assert found["tables"] == len(found["boxes"])
    if width == 390:  # tables are stacked
        assert [box for box in found["boxes"] if box[0] > box[1]] == []


ACT = """
const pressed = [...page.querySelectorAll('#fig04 a')].filter(a => a.textContent === 'press');
pressed.forEach(a => a.click());
return {
  hacked: view.hacked ?? null, title: page.title, pressed: pressed.length,
  acting: page.querySelectorAll('script, iframe, object, form, base, svg, input[name=q]').length,
  sections: page.querySelectorAll('main > section').length,
  origin: page.querySelector('#origin').getBoundingClientRect().height,
};
"""


@pytest.mark.requires_chromium
def test_hostile_output_does_nothing_in_a_browser(example, tmp_path):
    """Without the page's own policy, which forbids everything again: the sanitizer alone must be enough."""
    page, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", build(example))
    assert count == 1
    seen = look_at(page, tmp_path, ACT)
    assert seen["console"] == []
    assert seen["requests"] == []
    found = seen["value"]
    assert found["hacked"] is None
    assert found["pressed"] >= 1
    assert found["title"].startswith("Which SFT checkpoint")
    assert found["acting"] == 0
    assert found["sections"] == 6
    assert found["origin"] > 50  # not hidden


def test_the_readmes_table_comes_from_the_executed_notebooks(example, tmp_path, refused):
    readme = tmp_path / "README.md"
    readme.write_text("no marks")
    with refused("readme"):
        update_readme(readme, example)
    begin = "<!-- generated by `quagmire report readme example`: begin -->"
    readme.write_text(f"before\n\n{begin}\nold\n<!-- generated: end -->\n\nafter\n")
    assert update_readme(readme, example)
    assert not update_readme(readme, example)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 20
    figure = next(row for row in rows if "Figure 3" in row)
    cells = "| the score explains a part | R² = 0.43 | R² = 0.62 [0.41, 0.99] | `example`: n = 7 \\| one | 5 s |"
    assert figure.endswith(f"/notebooks/fig03_sft_vs_rl.ipynb) {cells}")
    assert rows[0].startswith("| Figure 1 | ")
    assert "| not run |" in rows[0]
