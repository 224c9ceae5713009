"""Which training questions a benchmark forbids: equal text, or a run of shared words.

The scores of Sec. 4 mean nothing on problems that a model has been trained on, and public SFT and RL sets hold many of
them (MATH's training problems alone repeat hundreds of AIME's), so every set is checked against all seven benchmarks.

    clean, removed = decontaminate(traces, load_benchmark("math500"))
    BenchmarkIndex(problems).meets("What is $1+2$?")     # None, or (the benchmark problem's id, the words shared)

Datasets write one problem in several ways (`\\dfrac` and `\\frac`, `\\left(` and `(`, `\\(` and `$`), so questions are
compared by what their LaTeX says, not by how it is set.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.problems import Problem, Trace, digest

NGRAM = 13  # words in a row; what GPT-3's decontamination used (Brown et al. 2020, App. C), and many since
FEWEST = 8  # words of a question that is looked for inside others; the least that the same appendix allows
RULE = 2  # raise it when what counts as equal changes: scans are cached under it

_TYPESETTING = re.compile(
    r"\\(?:(?:left|right)\.|(?:left|right|bigg?[lrm]?|displaystyle|textstyle|limits|q?quad"
    r"|text(?:rm|bf|it)?|math(?:rm|bf|it)|mbox|operatorname|boldsymbol)(?![a-z])|[,;:!()\[\]\s])|[$~]"
)
_ALIAS = re.compile(r"\\(?:[dtc](frac)|(le|ge|ne)q|[lc](dots))(?![a-z])")
_BARE_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")
_THOUSANDS = re.compile(r"(?<=\d)\{?,\}?(?=\d{3}(?!\d))")
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u02bc\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        **{"\u00b2": "^2", "\u00b3": "^3", "\u00b0": r"^\circ ", "\u00d7": r"\times ", "\u22c5": r"\cdot "},
        **{"\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u03c0": r"\pi ", "\u221a": r"\sqrt "},
    }
)


class Removal(NamedTuple):
    """A trace left out: the benchmark problem that its question matches, and the words shared ("" for equal text)."""

    trace: Trace
    problem_id: str
    shared: str


class BenchmarkIndex:
    """Questions that must not be trained on.

    A question matches a problem if they are the same by `same_question` (operators count: `1+2` is not `1*2`), if they
    share `ngram` consecutive words, or if the question contains a whole problem of `FEWEST` to `ngram` - 1 words. If it
    matches several problems, the first one found is named.
    """

    def __init__(self, problems: Iterable[Problem], ngram: int = NGRAM) -> None:
        if ngram < 2:
            raise ParameterError("ngram", ngram, "at least 2")
        problems = list(problems)
        self.ngram = ngram
        self.digest = f"{RULE}-{ngram}-{digest(problems)}"  # stands for the questions and the rule
        self._same: dict[str, str] = {}
        self._grams: dict[tuple[str, ...], str] = {}
        self._short: dict[tuple[str, ...], list[tuple[str, str]]] = {}  # by first words: (what must be held, id)
        for problem in problems:
            plain = plain_latex(problem.question)
            words = _words(plain)
            self._same.setdefault(_squeeze(plain), problem.id)
            for gram in _ngrams(words, ngram):
                self._grams.setdefault(gram, problem.id)
            if FEWEST <= len(words) < ngram:
                self._short.setdefault(tuple(words[:FEWEST]), []).append((_squeeze(plain), problem.id))

    def meets(self, question: str) -> tuple[str, str] | None:
        """Return (id of the problem that the question matches, words shared or "" for equal text), or None."""
        plain = plain_latex(question)
        squeezed = _squeeze(plain)
        if squeezed in self._same:
            return self._same[squeezed], ""
        words = _words(plain)
        for gram in _ngrams(words, self.ngram):
            if gram in self._grams:
                return self._grams[gram], " ".join(gram)
        for start in _ngrams(words, FEWEST) if self._short else ():
            for whole, problem_id in self._short.get(start, ()):
                if whole in squeezed:
                    return problem_id, " ".join(start)
        return None


def decontaminate(
    traces: Sequence[Trace], problems: Iterable[Problem], *, ngram: int = NGRAM
) -> tuple[list[Trace], list[Removal]]:
    """Return (clean traces, removed ones): no clean trace's question matches a problem (see `BenchmarkIndex`)."""
    index = BenchmarkIndex(problems, ngram)
    met = [(trace, index.meets(trace.question)) for trace in traces]
    return [trace for trace, match in met if not match], [Removal(trace, *match) for trace, match in met if match]


def normalise(text: str) -> str:
    """Return the text without differences of case, spacing, dollar signs and Unicode forms."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    # split() drops what the regular expression \s matches, at a tenth of the time
    return "".join(text.casefold().replace("$", "").split())


def same_question(text: str) -> str:
    """Return a form of a question that is the same for all its spellings.

    It ignores case, spacing, Unicode forms, math delimiters, braces, fonts, sizes, thin spaces, the marks at the end,
    and the difference between `\\dfrac12` and `\\frac{1}{2}`.
    """
    return _squeeze(plain_latex(text))


def plain_latex(text: str) -> str:
    """Return the text in lower case, without LaTeX that only sets type."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_SIGNS))
    text = text.casefold()
    if "," in text:
        text = _THOUSANDS.sub("", text)
    if "\\" in text:
        text = _ALIAS.sub(lambda found: f"\\{found[1] or found[2] or found[3]}", _TYPESETTING.sub(" ", text))
        text = _BARE_FRACTION.sub(r"\\frac{\1}{\2}", text)
    else:
        text = text.replace("$", " ").replace("~", " ")
    return text


def _squeeze(plain: str) -> str:
    # where two arguments meet stays seen: 12 over 3 is not 1 over 23
    text = "".join(plain.split()).replace("}{", "|").replace("{", "").replace("}", "")
    return text.strip(".,;:?") or text


def _words(plain: str) -> list[str]:
    return re.findall(r"\w+", plain)


def _ngrams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)
