r"""The grader of multiple choice: which letter a response chooses, and whether it is the gold's.

The first of four places that names a letter decides. Boxes: `\boxed{C}`, `\boxed{\text{(C) 5 kg}}`, `\boxed C`. What is
announced at the start of a line or sentence: `Answer: C`, `**Final answer:** (C)`, `#### C`, `Antwort: C`. The last
sentence such as "the answer is (C)", "option C is correct" or "la respuesta es C". The last line, if it is a label:
`(C)`, `C. 5 kg`, "... so (C)", "... hence C."

Several letters are no choice: different letters in boxes (one `\boxed{A, C}` or two boxes), in announcing lines, or in
the deciding sentence are NO_ANSWER. But boxes and lines of a later paragraph replace those of an earlier one. Only what
follows a closing `</think>` counts. Wide letters and brackets (\uff22) are read as ASCII, and tags (`<answer>`) are
ignored. All patterns are linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from operator import itemgetter, methodcaller

from quagmire_utils.grading.verdicts import Verdict

_MAX_BOX = 1000  # characters in a box that may hold a choice
_MAX_SENTENCES = 1000  # that are read, from the end
_TAIL = 400  # characters at the end that are searched first
_BRACE = re.compile(r"\\(?:boxed|fbox)\s?\{|[{}]")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s{1,3}([A-Z])\b")
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")
_COMMAND = re.compile(r"\\(?:text|math)?(?:bf|it|rm|sf|tt)|\\text|\\boldsymbol|\\left|\\right|\\q?quad|\\displaystyle")
_STYLES = {"\\,", "\\;", "\\:", "\\!", "\\ ", "\\(", "\\)", "\\[", "\\]", "{", "}", "$", "*", "_", "~", '"', "'", "`"}
_BRACKETS = {"(", ")", "[", "]", ".", ":", "\u3002"}
_BETWEEN = {",", ";", "/", "&", "\\&", "and", "or", "+"}
_REASON = {"because", "since", "as", "with", "for", "not", "rather"}
_NARROW = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20, 0x3010: 0x5B, 0x3011: 0x5D}
_TAG = re.compile(r"</?[A-Za-z]{1,10}>")
_CHOICE = {"option", "choice", "answer"}
_FOREIGN = r"(?:respuesta|antwort|r[e\u00e9]ponse|risposta|resposta)"
_ANNOUNCEMENT = (
    r"(?:(?:the|my|so)[ \t]+)?(?:final[ \t]+|correct[ \t]+|best[ \t]+)?"
    rf"(?:ans|answer|choice|option|{_FOREIGN}|\u043e\u0442\u0432\u0435\u0442|\u7b54\u3048|\u6b63\u89e3|\uc815\ub2f5)"
    r"(?:[ \t]+is)?[ \t*_]*(?:[:=]|[ \t]-)\s*(?=(.{0,80}))"
)
_ANNOUNCING = re.compile(
    rf"^[ \t>*#_\-]*(?:{_ANNOUNCEMENT}|(?<=####)[ \t]*(?=(.{{0,80}})))", re.IGNORECASE | re.MULTILINE
)
_ANNOUNCING_WITHIN = re.compile(rf"[.!?;,\u21d2\u2192]\s{{1,3}}[*_]{{0,3}}{_ANNOUNCEMENT}", re.IGNORECASE)
_SAYING = re.compile(
    r"\b(?:answer|choice|option)\s{1,3}(?:(?:would|should|must|has\s{1,3}to)\s{1,3})?(?:is|was|be)\b"
    r"(?:,?\s{1,3}(?:therefore|thus|hence|clearly|indeed)\b,?|\s{1,3}\w{1,12}[:,]\s{1,3}it\s{1,3}is\b"
    r"|\s{1,3}not\s{1,3}\W{0,3}[A-Z]\W{0,3}\sbut\b)?[\s:*]{0,9}(?=([^\n]{0,80}))"
    r"|(?:\u7b54\u6848\s{0,3}(?:\u662f|\u4e3a|\u5e94\u4e3a|:)|(?<!\u4e0d)\u9009\u62e9?|\u7b54\u3048\u306f|\u6b63\u89e3\u306f|\uc815\ub2f5\uc740)[\s:*]{0,9}(?=([^\n]{0,80}))"
    rf"|\b{_FOREIGN}\s{{1,3}}(?:\w{{1,12}}\s{{1,3}})?(?:es|ist|est|\u00e8|\u00e9)\b[\s:*]{{0,9}}(?=([^\n]{{0,80}}))"
    r"|\b(?:so|thus|hence|therefore|only)\b[\s,*]{1,5}((?-i:\b[A-Z]\b)\*{0,2})\s{1,3}is\s{1,3}(?:the\s{1,3})?"
    r"(?:correct|right|best)\b"
    r"|\b(?:option|choice|answer)\s{1,3}([^\n]{1,12}?)\s{1,3}is\s{1,3}(?:the\s{1,3})?(?:correct|right|best)\b"
    r"|(\([A-Z]\))\s{1,3}is\s{1,3}(?:the\s{1,3})?(?:correct|right|best)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_LABEL_AT_END = re.compile(r"\(([A-Z])\)[\s.*$]*$")
_CHOSEN_AT_END = re.compile(
    r"\b(?:so|thus|hence|therefore|(?<!not )(?:choose|pick|select|go\s{1,3}with)|w\u00e4hle|elijo|choisis|scelgo|"
    r"escolho)\b[\s,:*]{1,5}(?:(?:option|choice|answer)\s{1,3})?\*{0,2}((?-i:\b[A-Z]\b))[\s.*$]*$",
    re.IGNORECASE,
)
_LABEL = re.compile(r"\(([A-Z])\)")

Label = tuple[str, int]  # the letter, in upper case, and where it stands


def extract(response: str) -> tuple[int, int] | None:
    """Return start and end of the chosen letter; None where a response chooses none, or several."""
    start = response.rfind("</think>") + 1
    text = response if response.isascii() else response.translate(_NARROW)
    text = _TAG.sub(lambda tag: " " * len(tag[0]), text)  # positions stay
    for find in (_in_boxes, _in_lines, _in_sentences, _in_last_line):
        labels = find(text, start)
        if labels and find in (_in_boxes, _in_lines):
            paragraph = text.rfind("\n\n", start, labels[-1][1])
            labels = [label for label in labels if label[1] > paragraph]
        if labels:
            one = len({letter for letter, _ in labels}) == 1
            return (labels[-1][1], labels[-1][1] + 1) if one else None
    return None


def judge(answer: str, gold: str, tolerance: float | None) -> Verdict:
    """Return CORRECT if the letter is the gold's, else WRONG."""
    return Verdict.CORRECT if show(answer) == show(gold) else Verdict.WRONG


def check(gold: str) -> None:
    """Raise ValueError for a gold that is not one letter."""
    if not re.fullmatch(r"[A-Za-z]", gold.strip()):
        raise ValueError(f"the answer to a multiple choice must be one letter, not {gold[:40]!r}")


def show(answer: str) -> str:
    """Return the letter in upper case."""
    return unicodedata.normalize("NFKC", answer).strip().upper()


def _in_boxes(text: str, start: int) -> list[Label]:
    labels: list[Label] = [(box[1], box.start(1)) for box in _BARE_BOX.finditer(text, start)]
    opened: list[int] = []  # where the content of each box begins; 0 for another brace
    for brace in _BRACE.finditer(text, start):
        if brace[0] != "}":
            opened.append(brace.end() if len(brace[0]) > 1 else 0)
        elif opened and (begin := opened.pop()) and brace.start() - begin <= _MAX_BOX:
            labels += _read(text, begin, brace.start(), boxed=True)
    return sorted(labels, key=itemgetter(1))


def _in_lines(text: str, start: int) -> list[Label]:
    within = _ANNOUNCING_WITHIN.finditer(text, max(start, len(text) - _TAIL))
    said = sorted((*_ANNOUNCING.finditer(text, start), *within), key=methodcaller("start"))
    return [label for line in said for label in _read(text, *line.span(line.lastindex))]


def _in_sentences(text: str, start: int) -> list[Label]:
    for first in dict.fromkeys((max(start, len(text) - _TAIL), start)):  # the last one counts, and is mostly there
        for said in reversed(deque(_SAYING.finditer(text, first), _MAX_SENTENCES)):
            begin, end = said.span(said.lastindex or 0)
            stop = _SENTENCE_END.search(text, begin, end)
            labels = _read(text, begin, stop.end() if stop else end)
            if labels:
                return labels
    return []


def _in_last_line(text: str, start: int) -> list[Label]:
    end = len(text.rstrip().rstrip("`").rstrip())
    begin = max(text.rfind("\n", start, end) + 1, start)
    if end - begin > 300:
        return []
    before = len(text[start:begin].rstrip()) + start
    labels = _read(text, begin, end)
    if labels:  # the end of a list of all choices is no answer
        return labels + _read(text, max(text.rfind("\n", start, before) + 1, start, before - 300), before)
    closing = _LABEL_AT_END.search(text, begin, end)
    if closing is None:
        chosen = _CHOSEN_AT_END.search(text, begin, end)
        return [(chosen[1], chosen.start(1))] if chosen else []
    return [(label[1], label.start(1)) for label in _LABEL.finditer(text, begin, end)]


def _read(text: str, start: int, end: int, *, boxed: bool = False) -> list[Label]:
    """Return the labels that a short text consists of, or begins with; none if it is something else."""
    found = _TOKEN.finditer(text, start, end)
    tokens = [(one[0], one.start()) for one in found if one[0] not in _STYLES and not _COMMAND.fullmatch(one[0])]
    while tokens and tokens[0][0].lower() in _CHOICE:
        tokens = tokens[1:]
    said = [(word, at) for word, at in tokens if word not in _BRACKETS]
    letters = [(word.upper(), at) for word, at in said if len(word) == 1 and word.isalpha() and word.isascii()]
    others = [word for word, _ in said if not (len(word) == 1 and word.isalpha() and word.isascii())]
    meant = boxed or len(letters) == len(said) == 1 or all(text[at].isupper() for _, at in letters)
    if letters and meant and all(word.lower() in _BETWEEN for word in others):
        return letters
    if boxed and len(said) == 1 and re.fullmatch(r"[A-J]{2,}", said[0][0]):
        return [(letter, said[0][1] + i) for i, letter in enumerate(said[0][0])]
    # A label and what it stands for: `C. 5 kg`, `(C) because ...`.
    opened = len(tokens) > 1 and tokens[0][0] in ("(", "[")
    first, rest = (tokens[1:2], tokens[2:]) if opened else (tokens[:1], tokens[1:])
    if not first or not re.fullmatch(r"[A-Z]", first[0][0]) or not rest:
        return []
    aside = rest[0][0] == "(" and any(map(str.isspace, text[first[0][1] : rest[0][1]]))  # B (iron), but not P(A)
    marks = {")", "]", ".", ":", ",", ";", "-", "\u2013", "\u2014"}
    if rest[0][0] not in marks and rest[0][0].lower() not in _REASON and not aside:
        return []
    if rest[0][0] == "." and rest[1:2] and rest[1][1] == rest[0][1] + 1 and rest[1][0].isdigit():
        return []
    found = [first[0]]
    for before, (word, at), after in zip(tokens, tokens[1:], [*tokens[2:], ("", 0)], strict=False):
        if word.lower() in _REASON:
            break  # why this one, or why not the others
        bracketed = before[0] in ("(", "[") and after[0] in (")", "]")
        if re.fullmatch(r"[A-Z]", word) and at > first[0][1] and (bracketed or before[0].lower() in ("and", "or")):
            found.append((word, at))
    return found
