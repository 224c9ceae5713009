"""How the second grader reads LaTeX: `normalise` leaves one spelling of many.

No styles, units or thousands separators, `\\frac` for `\\dfrac`, `\\sqrt` for its sign. Every search is linear in the
text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from quagmire_utils.grading.arithmetic import FUNCTIONS
from quagmire_utils.grading.extraction import closing

MAX_ANSWER = 1000  # characters of an answer that is looked at
_BOX_COMMAND = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)")
_WORD = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|textit|textrm|texttt|textsf|textsc|emph|mbox|operatorname|mathit|mathsf|rm|bf)\s*"
    r"\{([^{}]*)\}(\s*\^\s*(?:\{?-?\d\}?))?(?=\s*([({\[])?)"
)
_LETTER = re.compile(r"\\(?:text|mathrm|mathbf|mathit|mathbb|rm|bf)\s*(?=[A-Za-z0-9](?![A-Za-z]))")
_DRESSING = re.compile(
    r"\\(?:boldsymbol|bm|pmb|underline|ensuremath|cancel)\s*(?=\{)"
    r"|\\(?:(?:text)?color(?:box)?|[hv]space\*?|tag)\s*\{[^{}]*\}"
    r"|\\(?:begin|end)\{(?:aligned|align\*?|gathered|split|equation\*?)\}|^\*\*|\*\*$"
)
_SENTENCE = re.compile(r"\\text\{[^{}]{1,30}\bis:?\s+(-?\d[\d,.]*)\}")  # the answer is 12
_LINES = re.compile(
    r"(?:\\left\s*\\\{\s*)?\\begin\{(aligned|align\*?|gathered|split|cases|array)\}(?:\{l\})?([^&]*(?:&\s*=[^&]*)*)\\end\{\1\}(?:\s*\\right\s*\.)?"
)
_STYLE = re.compile(r"\\(?:text|math|operatorname)(?:bf|rm|it|sf)?\s*(?=\{)")
_COMMAND = re.compile(r"\\!\s*|\\(?:[A-Za-z]+|.)|\^\s*\\circ|\^\s*\{\s*\\circ\s*\}|\{,\}|[$~]|[^\x00-\x7f]", re.DOTALL)
_COMMANDS = {
    **dict.fromkeys(
        ("left", "right", "bigl", "bigr", "Bigl", "Bigr", "big", "Big", "displaystyle", "textstyle", "limits",
         "large", "Large", "LARGE", "huge", "Huge", "hfill", "checkmark"), ""
    ),
    **dict.fromkeys(("nicefrac", "sfrac"), "\\frac"), "langle": "(", "rangle": ")", "textdegree": "\u00b0",
    "dfrac": "\\frac", "tfrac": "\\frac", "cfrac": "\\frac", "dbinom": "\\binom", "tbinom": "\\binom",
    "leqslant": "\\le ", "geqslant": "\\ge ", "leq": "\\le ", "geq": "\\ge ", "ne": "\\neq ", "lt": "<", "gt": ">",
    "lbrace": "\\{", "rbrace": "\\}", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "varnothing": "\\emptyset ",
    "quad": "\\quad ", "qquad": "\\quad ", "land": "\\quad ", "wedge": "\\quad ", "lor": "\\or ", "vee": "\\or ",
    "\\": "\\cr ", ",": " ", ";": " ", ":": " ", " ": " ", "!": "", "(": "", ")": "", "[": "", "]": "",
    "degree": "\u00b0", "ldots": "\\dots ", "cdots": "\\dots ", "colon": ":", "$": "",
}  # fmt: skip
_UNICODE = {
    "\u2212": "-", "\u2013": "-", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u00f7": "\\div ", "\u03c0": "\\pi ",
    "\u221e": "\\infty ", "\u03b8": "\\theta ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\neq ",
    "\u2248": "\\approx ", "\u222a": "\\cup ", "\u2208": "\\in ", "\u2026": "\\dots ", "\u221a": "\\sqrt ",
    "\u221b": "\\sqrt[3]", "\u20ac": "\\text{euro}", "\u00a3": "\\text{pound}", "\u00a5": "\\text{yen}",
    "\u20b9": "\\text{rupee}", "\u3002": "",
    "\u2205": "\\emptyset ", "\u2044": "/", "\u211d": "\\mathbb{R}", "\u00b0": "\u00b0",
}  # fmt: skip
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
PLAIN_WORDS = re.compile(r"[A-Za-z]{2}[A-Za-z'.]*(?:[\s-]+[A-Za-z'.]{2,})*\.?")
_UNIT = re.compile(
    r"(?<=[\d})\u00b0])\s*((?:sq\.?|square|cubic)?\s*(?:dollars?|cents?|units?|hours?|minutes?|seconds?|days?|"
    r"weeks?|years?|miles?|meters?|feet|foot|inch(?:es)?|cm|mm|nm|km|kg|mph|ml|Hz|rad|eV|mol|k?Pa|kJ|kN|kW|"
    r"atm|ft|yd|lbs?|oz|hrs?|mins?|secs?|in|USD|EUR|\\pmod\s*\{?\d+\}?|"
    r"m(?=\^)|(?:(?![\u5341\u767e\u5343\u4e07\u4ebf])[\u4e00-\u9fff]){1,4}|[ap]\.?m\.?|(?<=\s)[a-z]{4,}(?:\s[a-z]+)*|k?\\Omega|[\u20ac\u00a3\u00a5])"
    r"(?:\^\{?[23]\}?)?(?:[\s/*]+[a-z]{1,5}(?:\^\{?-?\d\}?)?)*)\.?$",
    re.IGNORECASE,
)
_SYMBOL = re.compile(r"((?:[^A-Za-z\\]|\\(?:times|cdot|frac|sqrt|pi)\b)*[\d}])\s+(\\mu\s*m|[NJVWKCAFTH])")  # of a unit
_SPELT = {"hr": "hour", "min": "minute", "sec": "second", "meter": "m", "metre": "m", "feet": "ft", "foot": "ft"}
_SPELT |= {"centimeter": "cm", "kilometer": "km", "inche": "in", "inch": "in", "kilogram": "kg", "gram": "g"}
UNITS = {
    "cm", "mm", "km", "ft", "in", "yard", "mile", "hour", "minute", "second", "day", "week", "month", "year", "kg",
    "dollar", "cent", "euro", "m", "g", "h", "s", "am", "pm",
}  # fmt: skip
_SIGNS = {"percent": "\\%", "degree": "\u00b0", "degrees": "\u00b0"}
_RISKY = re.compile(
    r"^squared|^cubed|not|illion|thousand|hundred|dozen|\bmod|least|most|more|less|than|"
    r"except|between|base|two|factor|times|half|double|over|plus|minus|\bno\b"
)
_MEANT = dict.fromkeys(("no solution", "no solutions", "no real solutions", "empty set", "the empty set"), "\\emptyset")
_MEANT |= dict.fromkeys(("all real numbers", "all reals", "real numbers"), "(-\\infty,\\infty)")
_NAMES = ("pi", "sqrt", "alpha", "beta", "gamma", "delta", "theta", "lambda", "omega", "sigma", "phi", "rho", "tau")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))")
_TIDY = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\*\*", "^"),  # x**2
        (r"(^|=)\s*\\quad", r"\1"),
        (r"\(\s*\)\s*$|(?<=\d)\s+\([a-z]{2,3}(?:\^\{?[23]\}?)?\)$", ""),  # 5 (cm)
        (r"(^|\\in\s*)\\mathbb\s*\{?R\}?\s*$", r"\1(-\\infty,\\infty)"),
        (r"\u00b0\s*[CF]$", "\u00b0"),
        (r"^\((\w+)\)\s*_", r"\1_"),  # (101)_2
        (r"(?<![\w./}^)])(\d+)/(\d+)\s+(?=[A-Za-z])", r"\\frac{\1}{\2}"),  # 1/2 m v^2
        (r"^([A-Za-z](?:_\w)?)\s*\\approx", r"\1="),
        (r"\.\d*\(\d+\)", r"\\unread \g<0>"),  # 0.1(6) may be 0.1666...
        (r"\s*(?<![A-Za-z\\])(percent|degrees?)(?![a-z])", lambda m: _SIGNS[m[1]]),  # 50 percent
        (rf"(?<![\\A-Za-z])({'|'.join({*FUNCTIONS, *_NAMES})})(?![a-z])", r"\\\1 "),  # pi, sqrt(2)
        (r"(?<=[A-Za-z])\{(\([^(){}]*\))\}", r"\1"),  # f{(x)}
        (r"\\sqrt\s+(\d{2,})", r"\\sqrt{\1}"),  # \sqrt 12
        (r"(?<![\w\\.}])(\d+\.?\d*)[eE]([+-]?\d{1,3})(?![\w.])", r"(\1*10^{\2})"),  # 6.2e4
        (r"(?<=\d)\s+[xX]\s+(?=10\s*\^)|(?<=\d)[xX](?=10\^)", r"\\times "),  # 6.2 x 10^4
        (r"\^\s*(-?\d{2,})", r"^{\1}"),  # 10^23
        (r"([_^])\s*\{(\w)\}", r"\1\2"),
        (r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),  # 2 2/3
        (r"(?<![\d.])(\d{1,3})((?:\s\d{3})+)(?!\d)", lambda m: m[1] + re.sub(r"\s", "", m[2])),  # 32 349
        (r"(<|>)=", lambda m: "\\le " if m[1] == "<" else "\\ge "),
        (r"(?<![A-Za-z\\])(?:,\s*)?(?:and|or)(?![A-Za-z])", lambda m: "\\or " if m[0].endswith("r") else "\\quad "),
    )
)


@lru_cache(maxsize=16384)
def normalise(text: str) -> tuple[str, tuple[str, ...]]:
    """Return LaTeX without spacing, styles, boxes, units and thousands separators; and the units and remarks."""
    text = text.strip().rstrip("\\").strip()
    if _PLAIN_NUMBER.fullmatch(text):
        return text, ()
    text = _LINES.sub(_in_one_line, _SENTENCE.sub(r"\1", text.replace("US\\$", "\\$")))
    text = _ungrouped(_BOX_COMMAND.sub("", text).strip())
    if not text.isascii():
        text = re.sub(
            "[\u2070-\u2079\u00b2\u00b3\u00b9]+", lambda run: "^{" + unicodedata.normalize("NFKC", run[0]) + "}", text
        )
        text = "".join(_plain_character(one) for one in text if unicodedata.category(one) != "Cf")  # without width
    dollars = "\\$" in text
    text = _COMMAND.sub(_command, text.replace("...", "\\dots "))
    text = _LETTER.sub("", text)
    remarks = ["dollar"] if dollars else []
    text = _ungrouped(_DRESSING.sub("", text).strip(" *`").rstrip(" .,;"))
    alone = re.fullmatch(r"(?:[A-Za-z]\s*=)?", _WORD.sub("", text).strip(" .,;:"))
    text = _WORD.sub(lambda match: _word(match, None if alone else remarks), text)
    text = _ungrouped(_STYLE.sub("", text).strip().rstrip(".,;"))
    if _PLAIN_NUMBER.fullmatch(text):
        return text, tuple(remarks)
    if PLAIN_WORDS.fullmatch(text) and text not in FUNCTIONS and text != "pi":
        text = " ".join(text.lower().split()) if len(text) > 3 or text.istitle() else text
        return _MEANT.get(text, text), ()
    text = _REPEATING.sub(_repeating, _without_thousands(re.sub(r",\s+(?=\d{3}(?!\d))", ", ", text)))
    unit = _UNIT.search(text)
    if unit and unit[1] not in _SIGNS and (unit[1] == "times" or not _RISKY.search(unit[1])):
        remarks.append(_remark(unit[1]))
        text = text[: unit.start()]
    elif symbol := _SYMBOL.fullmatch(text.strip()):
        remarks.append(symbol[2])
        text = symbol[1]
    for pattern, new in _TIDY:
        text = pattern.sub(new, text)
    text = re.sub(r"^\s*(?:=|:|\\approx|\\sim|\\therefore)\s*|\\approx.*$", "", text)
    if choice := re.fullmatch(r"\(([A-Za-z])\)", text):
        return choice[1], tuple(remarks)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s*([^\sA-Za-z0-9\\])\s*|(?<=\d) (?=[A-Za-z\\])", lambda m: m[1] or "", text).strip().rstrip(".,;")
    return text, tuple(sorted(remarks))


def _ungrouped(text: str) -> str:
    """Return a text without braces or dollars around all of it."""
    for _ in range(10):
        if not text.startswith("{") or closing(text, 1) != len(text) - 1:
            break
        text = text[1:-1].strip()
    return text


def _plain_character(character: str) -> str:
    if character in _UNICODE:
        return _UNICODE[character]
    decomposed = unicodedata.normalize("NFKC", character)
    above, slash, below = decomposed.partition("\u2044")
    return f"\\frac{{{above}}}{{{below}}}" if slash else decomposed


def _command(match: re.Match[str]) -> str:
    text = match[0]
    if text[0] == "\\":
        return _COMMANDS.get(text[1:].strip() or " ", text)
    return {"^": "\u00b0", "{": ",", "$": "", "~": " "}.get(text[0], text)


def _word(match: re.Match[str], remarks: list[str] | None) -> str:
    word = match[1].strip()
    if word in ("and", "or"):
        return " \\or " if word == "or" else " \\quad "
    if word in _SIGNS:
        return _SIGNS[word]
    if remarks is None:
        return f" {match[1]}{match[2] or ''} "
    if len(word) == 1 or word in FUNCTIONS or _PLAIN_NUMBER.fullmatch(word):
        return f" {word}{match[2] or ''} "
    if _RISKY.search(word) or (match[3] and match[1][-1:].isalpha()):  # 3 million, asin(x)
        return f" \\unread{{{word}}} "
    if remark := _remark(word):
        remarks.append(remark + re.sub(r"[\s{}^]", "", match[2] or ""))
    return " "


def _remark(word: str) -> str:
    """Return a unit or a remark in one spelling of many."""
    word = re.sub(r"[\s.:,{}]|(?<=[a-z]{2})s\b", "", word.lower())
    return re.sub("[a-z]+", lambda part: _SPELT.get(part[0], part[0]), word)


def _in_one_line(match: re.Match[str]) -> str:
    """Return the lines of an environment in one; what is not a list of equations stays as it is."""
    if match[1] in ("cases", "array") and not all("=" in line for line in match[2].split("\\\\") if line.strip()):
        return match[0]
    return ", ".join(line.replace("&", "").strip() for line in match[2].split("\\\\") if line.strip())


def _without_thousands(text: str) -> str:
    """Return a text without the commas within numbers, except between brackets: (1,234) is a pair."""
    if "," not in text:
        return text
    depth = depths(re.sub(r"(?<!\\)[{}]", " ", text))
    spaced = any(depth[comma.start()] for comma in re.finditer(r",\s", text))
    bracketed = "\\unread " if spaced else ""  # (1,000, 2,000)
    return _THOUSANDS.sub(
        lambda match: bracketed + match[0] if depth[match.start()] else match[0].replace(",", ""), text
    )


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, repeated = match[1] or "0", match[2], match[3] or match[4]
    if len(whole) + len(fixed) + len(repeated) > 100:
        return match[0]
    value = int(whole + fixed + repeated) - int(whole + fixed)
    return f"(\\frac{{{value}}}{{{10 ** len(fixed) * (10 ** len(repeated) - 1)}}})"


def depths(text: str) -> list[int]:
    """Return how many brackets are open around each character; a bracket is not within itself."""
    found, depth = [], 0
    for character in text:
        depth -= character in ")]}"
        found.append(depth)
        depth += character in "([{"
    return found


def split(text: str, separators: Sequence[str]) -> list[str]:
    """Split a text at the separators outside brackets; leave out what is empty."""
    parts, start, depth = [], 0, depths(text)
    for separator in re.finditer("|".join(map(re.escape, separators)), text):
        if depth[separator.start()] == 0:
            parts.append(text[start : separator.start()])
            start = separator.end()
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]
