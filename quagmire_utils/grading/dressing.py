r"""Take the dressing off an answer: `undress(r"\boldsymbol{12}.")` is `12`.

Answers mean the same in many spellings: styles and colours, Unicode signs, plain text for LaTeX, units, punctuation.
`undress` turns them into the LaTeX that math-verify reads; nothing that could change a value is guessed at.
"""

from __future__ import annotations

import ast
import contextlib
import html
import re
import unicodedata
from fractions import Fraction

from quagmire_utils.grading.extraction import closing

_STYLES = re.compile(
    r"\\(?:boldsymbol|mathbf|bm|bf|textbf|textit|emph|mathit|mathsf|mathtt|underline|uline|ensuremath|boxed|fbox|"
    r"(?:text)?color\s*\{[^{}]*\}|colorbox\s*\{[^{}]*\})\s*\{"
)
_SWITCHES = re.compile(r"\\(?:displaystyle|textstyle|bf|it|rm|large|Large|color\s*\{[^{}]*\})(?![a-zA-Z])\s*")
_ENVIRONMENT = re.compile(
    r"\\begin\{(?:aligned|align|gathered|split|equation|gather)\*?\}(.*)\\end\{[a-z]+\*?\}", re.DOTALL
)
_LETTER = re.compile(r"\\(?:mathrm|text|operatorname|rm)\s*\{\s*([ieπ])\s*\}")
_THIN = re.compile(r"(?<=\d)(?:,?\\[,:; !]\s?|~|\{,\}|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_SPACES = re.compile(r"(?<!\\)\\[,:;! ]|~|\\q?quad(?![a-zA-Z])|[\u00a0\u2009\u202f\u200b]")
_UNIT = re.compile(
    r"(?<=[\d})])\s*\\(?:text|mathrm|mbox|textrm|operatorname)\s*\{([^{}]*)\}\s*(?:\^\s*(?:\{-?\d\}|\d|\\circ))?[.]?$"
)
_NO_UNIT = re.compile(
    r"\s*(?:and|or|[ap]\.?m\.?|hundred|thousand|million|billion|trillion|dozen|[ieπ])\b", re.IGNORECASE
)
_PLAIN_UNIT = re.compile(
    r"(?<=\d)\s*(?:[€£¥₹₽]|(?:USD|EUR|GBP|dollars?|cents?|euros?|degrees?|(?:sq(?:uare|\.)?|cubic|cu\.)\s+[a-z]+|units?|"
    r"hours?|minutes?|seconds?|days?|weeks?|months?|years?|miles?|meters?|feet|inches|cm|km|kg|mph)\b\.?|"
    r"\\ *\\Omega|\\(?:euro|pounds|Omega)(?![a-zA-Z])|[\u4e00-\u9fff]{1,2})$"
)
_SAID = re.compile(
    r"^\\text\s*\{\s*(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?\s*\}|^(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?\s+",
    re.IGNORECASE,
)
_MIXED = re.compile(r"(?<![\d./\\^_{])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/.])")
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})(?![\w.])")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)(?:\\(?:overline|bar)\s*\{(\d+)\}|\\dot\s*\{(\d)\})")
_DEGREES = re.compile(r"\\(sin|cos|tan|cot|sec|csc)\s*\(?\s*(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)\s*\)?")
_WORDS = re.compile(r"(?<![\\a-zA-Z])(pi|theta|infinity|infty|sqrt|log|ln|sin|cos|tan)(?![a-zA-Z])")
_ROOT = re.compile(r"\\sqrt\s*\(")
_UNBRACED = re.compile(
    r"\\(d?t?frac)\s*([a-zA-Z0-9])\s*([a-zA-Z0-9])(?![a-zA-Z0-9]*\})|\\(d?t?frac)\s+([a-zA-Z])([a-zA-Z])"
)
_EXPONENT = re.compile(r"(?<=10)\^\s*([+-]?\d{2,})")
_APPROXIMATE = re.compile(r"^(?:\\approx|\\sim|≈|~)\s*")
_AND = re.compile(r"(?<=[\w})\]])\s+(?:and|or)\s+(?=[-\w\\({\[])")
_CLOCK = re.compile(r"\\text\s*\{\s*(\d{1,2}:\d{2}[^{}]*|[AaPp]\.?[Mm]\.?)\s*\}")
_IMAGINARY = re.compile(r"(?<=\d)\s+(?=i(?![a-zA-Z]))")
_OPTION = re.compile(r"^\(?[A-J][.):]\)?\s+(?=\S)")

_SIGNS = str.maketrans({
    "\u2212": "-", "\u2013": "-", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u00f7": "/",
    "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\neq ",
    "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in ", "\u00b1": "\\pm ", "\u2205": "\\emptyset ",
    "\u3001": ",", "\u3002": ".",
})  # fmt: skip
_UNICODE_ROOT = re.compile(r"([√∛∜])\s*(\(|\{|\d+(?:\.\d+)?|[a-zA-Z])")
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")


def undress(text: str) -> str:
    """Return an answer without its dressing, in LaTeX."""
    text = text.strip().strip("`").strip().rstrip("。")
    if text.isdigit() and text.isascii():
        return text
    if text.startswith("**") and text.endswith("**"):
        text = text.strip("*").strip()
    if not text.isascii():
        text = _ascii(text)
    text = _SAID.sub("", text)
    text = _SWITCHES.sub("", _unwrapped(text))
    if environment := _ENVIRONMENT.fullmatch(text):
        text = environment[1].replace("&", "")
    text = _AND.sub(", ", _APPROXIMATE.sub("", _LETTER.sub(r"\1", text))).replace("\\lg", "\\log_{10}")
    text = _CLOCK.sub(r"\1", _SPACES.sub(" ", _THIN.sub("", text)).strip())
    if re.search(r"\d", text):
        text = _numbers(text)
    text = _WORDS.sub(r"\\\1 ", text).replace("\\infinity", "\\infty").replace("**", "^")
    text = _UNBRACED.sub(lambda m: f"\\frac{{{m[2] or m[5]}}}{{{m[3] or m[6]}}}", text)
    while root := _ROOT.search(text):
        end = _bracket(text, root.end())
        if end is None:
            break
        text = f"{text[: root.start()]}\\sqrt{{{text[root.end() : end]}}}{text[end + 1 :]}"
    return text.strip().rstrip(".,;").strip()


def undress_gold(text: str) -> str:
    """Return a gold without its dressing, also without what public sets write around it: a solution, a letter, HTML."""
    text = html.unescape(text).strip()
    if "####" in text:
        text = text.rpartition("####")[2]
    elif text.startswith("{'") or text.startswith('{"'):
        with contextlib.suppress(ValueError, SyntaxError, KeyError, TypeError):
            text = str(ast.literal_eval(text)["ground_truth"])
    return undress(_OPTION.sub("", text))


def _ascii(text: str) -> str:
    for sign in set(text):
        name = unicodedata.decomposition(sign)
        if name.startswith("<fraction>"):
            above, below = (int(part) for part in unicodedata.normalize("NFKC", sign).split("\u2044"))
            text = re.sub(rf"(\d*)\s*{sign}", rf"\g<1>\\frac{{{above}}}{{{below}}}", text)
        elif name.startswith(("<wide>", "<narrow>")):
            text = text.replace(sign, unicodedata.normalize("NFKC", sign))
    text = _SUPERSCRIPTS.sub(lambda m: f"^{{{_plain(m[0])}}}", text)
    text = _SUBSCRIPTS.sub(lambda m: f"_{{{_plain(m[0])}}}", text)
    while root := _UNICODE_ROOT.search(text):
        degree = {"√": "", "∛": "[3]", "∜": "[4]"}[root[1]]
        if root[2] in "({":
            text = f"{text[: root.start()]}\\sqrt{degree}{root[2]}{text[root.end() :]}"
        else:
            text = f"{text[: root.start()]}\\sqrt{degree}{{{root[2]}}}{text[root.end() :]}"
    return text.translate(_SIGNS)


def _plain(scripts: str) -> str:
    return unicodedata.normalize("NFKC", scripts).replace("\u2212", "-")


def _unwrapped(text: str) -> str:
    """Take styles off their contents: `\\boldsymbol{x}` is `x`."""
    while style := _STYLES.search(text):
        end = closing(text, style.end())
        if end is None:
            return text
        text = text[: style.start()] + text[style.end() : end] + text[end + 1 :]
    return text


def _numbers(text: str) -> str:
    unit = _UNIT.search(text)
    if unit and not _NO_UNIT.match(unit[1]):
        text = text[: unit.start()]
    text = _PLAIN_UNIT.sub("", text)
    text = _REPEATING.sub(_rational, text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _SCIENTIFIC.sub(lambda m: f"{m[1]}\\times 10^{{{int(m[2])}}}", text)
    text = _TIMES_TEN.sub(r"\\times ", text)
    text = _DEGREES.sub(r"\\\1(\\frac{\2\\pi}{180})", text)
    text = _EXPONENT.sub(r"^{\1}", text)
    return _IMAGINARY.sub("", text)


def _rational(match: re.Match[str]) -> str:
    """Return a repeating decimal as a fraction."""
    whole, fixed, repeating = match[1] or "0", match[2], match[3] or match[4]
    value = Fraction(int(whole + fixed + repeating) - int(whole + fixed), 10 ** len(fixed) * (10 ** len(repeating) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _bracket(text: str, start: int) -> int | None:
    depth = 1
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return None
