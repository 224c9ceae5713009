"""Which training questions a benchmark forbids: equal text, or a quarter of the words in shared runs.

The scores of Sec. 4 mean nothing on problems that a model has been trained on, and public SFT and RL sets hold many of
them (MATH's training problems alone repeat hundreds of AIME's), so every set is checked against all seven benchmarks.

    clean, removed = decontaminate(traces, load_benchmark("math500"))
    BenchmarkIndex(problems).meets("What is $1+2$?")     # None, or a Match: the benchmark's problem, the words shared

Datasets write one problem in several ways (`\\dfrac` and `\\frac`, `\\left(` and `(`, `\\(` and `$`), so questions are
compared by what their LaTeX says, not by how it is set. Competitions end many problems alike ("where m and n are
relatively prime positive integers. Find m+n."), so runs that stand in several problems do not count, and few words of
a long question prove nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data.problems import Problem, Trace, digest

NGRAM = 13  # words in a row; what GPT-3's decontamination used (Brown et al. 2020, App. C), and many since
SHARE = 0.25  # of the shorter question's words, usual ones left out, in runs shared with one problem
SAME = 0.4  # of the runs of a problem, shared with another: the same story twice; AIME's usual words are up to 0.32
PHRASE = 5  # words in a row that say nothing if many problems have them: "are relatively prime positive integers"
MANY = 8  # problems
FEWEST = 8  # shared words, and words of a question looked for inside others; the least that the same appendix allows
RULE = 4  # raise it when what counts as equal changes: scans are cached under it

_TYPESETTING = re.compile(
    r"\\(?:(?:left|right)\.|(?:left|right|bigg?[lrm]?|displaystyle|textstyle|limits|q?quad"
    r"|text(?:rm|bf|it)?|math(?:rm|bf|it)|mbox|operatorname|boldsymbol)(?![a-z])|[,;:!()\[\]\s])|[$~]"
)
_DRAWING = re.compile(r"\[asy\].*?(\[/asy\]|$)", re.DOTALL)  # the code of a figure
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


class Match(NamedTuple):
    """The benchmark problem that a question matches: its id, the words shared ("" for equal text), its question."""

    problem_id: str
    shared: str
    question: str


class BenchmarkIndex:
    """Questions that must not be trained on.

    A question matches a problem if they are the same by `same_question` (operators count: `1+2` is not `1*2`), if runs
    of `ngram` words or more make up `SHARE` of the words of either and at least `FEWEST` words, or if the question
    contains a whole problem of `FEWEST` to `ngram` - 1 words. Runs that several problems have, and phrases that many
    have, count neither as shared nor as words. If it matches several problems, the one with most words shared is named.
    """

    def __init__(self, problems: Iterable[Problem], ngram: int = NGRAM) -> None:
        if ngram < 2:
            raise ParameterError("ngram", ngram, "at least 2")
        problems = list(problems)
        self.ngram = ngram
        self.digest = f"{RULE}-{ngram}-{digest(problems)}"  # stands for the questions and the rule
        self._problems: list[Problem] = []  # of different questions
        self._same: dict[str, int] = {}
        self._short: dict[tuple[str, ...], list[tuple[str, int]]] = {}  # by first words: (what must be held, problem)
        owners: dict[tuple[str, ...], list[int]] = {}
        all_words: list[list[str]] = []
        for problem in problems:
            plain = plain_latex(problem.question)
            squeezed, words, number = _squeeze(plain), _words(plain), len(self._problems)
            if squeezed in self._same:
                continue
            self._problems.append(problem)
            all_words.append(words)
            self._same[squeezed] = number
            for gram in dict.fromkeys(_ngrams(words, ngram)):
                owners.setdefault(gram, []).append(number)
            if FEWEST <= len(words) < ngram:
                self._short.setdefault(tuple(words[:FEWEST]), []).append((squeezed, number))
        phrases = Counter(phrase for words in all_words for phrase in set(_ngrams(words, PHRASE)))
        self._phrases = {phrase for phrase, count in phrases.items() if count >= MANY}
        shared = Counter((first, other) for first, *others in owners.values() for other in others)
        runs = [max(1, len(words) - ngram + 1) for words in all_words]
        same = {pair for pair, count in shared.items() if count >= SAME * min(runs[i] for i in pair)}
        self._owner = {  # of a run that one problem has; None for one of several
            gram: first if all((first, other) in same for other in others) else None
            for gram, (first, *others) in owners.items()
        }
        self._own_words = [self._found(words)[1] for words in all_words]

    def meets(self, question: str) -> Match | None:
        """Return the problem that the question matches, or None."""
        plain = plain_latex(question)
        squeezed = _squeeze(plain)
        if squeezed in self._same:
            return self._match(self._same[squeezed], "")
        words = _words(plain)
        found, own_words = self._found(words)
        if found:
            number = max(found, key=lambda number: len(found[number]))
            if len(found[number]) >= max(FEWEST, SHARE * min(own_words, self._own_words[number])):
                return self._match(number, " ".join(words[place] for place in sorted(found[number])))
        for start in _ngrams(words, FEWEST) if self._short else ():
            for whole, number in self._short.get(start, ()):
                if whole in squeezed:
                    return self._match(number, " ".join(start))
        return None

    def _found(self, words: Sequence[str]) -> tuple[dict[int, set[int]], int]:
        """Return the places of the words shared with each problem, and the number of words, both without usual runs."""
        found: dict[int, set[int]] = {}
        usual: set[int] = set()
        for start, phrase in enumerate(_ngrams(words, PHRASE)):
            if phrase in self._phrases:
                usual.update(range(start, start + PHRASE))
        for start, gram in enumerate(_ngrams(words, self.ngram)):
            if gram in self._owner:
                number = self._owner[gram]
                places = usual if number is None else found.setdefault(number, set())
                places.update(range(start, start + self.ngram))
        own = {number: places - usual for number, places in found.items()}
        return {number: places for number, places in own.items() if places}, len(words) - len(usual)

    def _match(self, number: int, shared: str) -> Match:
        return Match(self._problems[number].id, shared, self._problems[number].question)


def decontaminate(
    traces: Sequence[Trace], problems: Iterable[Problem]
) -> tuple[list[Trace], list[tuple[Trace, Match]]]:
    """Return the traces whose questions match no problem (see `BenchmarkIndex`), and the others with their match."""
    index = BenchmarkIndex(problems)
    met = [(trace, index.meets(trace.question)) for trace in traces]
    return [trace for trace, match in met if not match], [(trace, match) for trace, match in met if match]


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
    text = text.replace("^{}", "").replace("_{}", "")  # what some typesetting leaves behind
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
    return re.findall(r"\w+", _DRAWING.sub(" ", plain) if "[asy]" in plain else plain)


def _ngrams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)
