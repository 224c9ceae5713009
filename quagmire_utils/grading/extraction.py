r"""Where a response's final answer is, and what its LaTeX means without its dressing.

The final answer is looked for in what follows the thinking: the last box, else the last stated answer ("the answer
is", "####", `<answer>`), else, where any answer will do, whatever math-verify reads in the text. Thinking that never
ends and a last box that is cut off leave no answer, because what stands before them was not final. All searches are
linear.
"""

from __future__ import annotations

import ast
import contextlib
import html
import re
from typing import NamedTuple

_MAX_BOX = 1000  # characters within which the end of a box is looked for
_MAX_STATED = 60  # characters of a line that is an answer as it stands

# Openings and ends of thinking, as models mark them.
_THINKING = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>|\[(/?)THINK\]|◁(/?)think▷|<(/?)seed:think>")
_BOX = re.compile(
    r"(?:\\(?:boxed|fbox|framebox)|(?<![\\A-Za-z])boxed|\x08oxed)\s*(?:\{(?!\s*\})|(?<=d)\s+(?=[-+]?[\d.]))|\\boxed(?=\d)"
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"[-+]?[\d.,/]*\d")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;]|\band\b|\bor\b|\\[()\[\],;]|\\quad|\\qquad|\\text\{\s*(?:,?\s*and|or)\s*\}|[a-zA-Z]\s*=)*"
)
_PERCENT = re.compile(r"[\s$]*(?:\\?%|percent\b)")
_GOES_ON_AFTER_BOX = re.compile(
    r"\s*(?:\^|\\(?:pi|sqrt)(?![a-z])|\\times\s*10\s*\^)[^$\n.=]{0,40}?(?=\\[)\]]|[$\n.=]|$)"
)
_FORMULA_BEFORE_BOX = re.compile(r"(?:\$|\\[(\[]|=)\s*(-?)\s*$")
_FORMULA_AFTER_BOX = re.compile(  # no letters but variables, as most are units
    r"\s*(?:[-+*/x-z]|\\(?:times|cdot|div)(?![a-z]))(?:[-+*/x-z\s\d.^(){}]|\\(?:times|cdot|frac|sqrt|pi)(?![a-z])){0,40}"
    r"(?<=[\dx-z)}])\s*(?=\$|\\[)\]])"
)
STATED = re.compile(
    r"(?:answers?\W{0,4}\s*(?:is|are|:|=)|^[^\S\n]*A(?:ns)?:|####|答案\s*(?:是|为|：|:)|答えは?[:：]?|<answer>"
    r"|^[#*_ \t]*(?:final[ \t]+)?answer(?:[*_]{2}(?=[ \t]+\S)|[*_ \t]*$))[\s:：*=]*(?:(?:option|choice)\s+)?",
    re.IGNORECASE | re.MULTILINE,
)
_FORMULA = re.compile(r"\$\$?([^$]{1,300})\$\$?|\\\((.{1,300}?)\\\)|\\\[(.{1,300}?)\\\]", re.DOTALL)
_GOES_ON = re.compile(r"\s*(?:,(?!\s*(?:not|which|because|since|so)\b)|and\b|or\b|times\b|%|\\%)|[A-Za-z\d\\^]")
_OPERATION = r"\s+(?:times|plus|minus|over|divided\s+by|(?:percent\s+|(?<=%\s))of)\s+\d"  # 5 plus 1
_ALTERED = re.compile(  # words beside a number that make it another one
    r"(?:not|twice|double|half|triple|(?:greater|more|less|fewer)\s+than)\b"
    rf"|{_OPERATION}|\s+(?:(?:to|or)\s+\d|or\s+(?:more|less)\b|(?:less|more)\s+than\b|squared\b|cubed\b|hours?\s+and\b)"
)
_BOLD = re.compile(r"(?<=\s)\*\*(?=\S)|(?<=\S)\*\*(?![\w(\\])")  # not x**2
_SCALE = re.compile(r"\s+(?:hundred|thousand|million|billion|trillion)\b")
_NUMBER = re.compile(r"[-+]?\\?\$?(?:\d+\s+\d+/\d+|\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?|\.\d+)\s*%?(?=\s|$)")
_WORDS = re.compile(
    r"(?<![\\a-zA-Z])(?!and|or|pi|sqrt|log|ln|sin|cos|tan|exp|[aApP][mM]\b)[^\W\d_]{2,}|[\u4e00-\u9fff]"
)
_READABLE = re.compile(r"[$\\\[\d]")  # each of math-verify's patterns needs one of these
_OPTION = re.compile(r"\(?[A-J][.):]\)?\s+(?=\S)")


class Answer(NamedTuple):
    """A final answer: itself, or (whole is False) a text in which math-verify has to find it."""

    text: str
    whole: bool


def final_answer(response: str, boxed: bool) -> Answer | None:
    """Return the final answer of a response; None without one. boxed: only a box or a stated answer counts."""
    text = after_thinking(response)
    if text is None:
        return None
    found = _last_box(text)
    if found is not None:
        return Answer(found, True) if found else None
    stated = _stated(text)
    if stated is not None or boxed:
        return stated
    return Answer(text, False) if _READABLE.search(text) else None


def after_thinking(response: str) -> str | None:
    """Return what follows the thinking; None where it never ends."""
    if "think" not in response.lower() and "<" not in response:
        return response
    last = max(_THINKING.finditer(response), key=re.Match.start, default=None)
    if last is None:
        return response
    return response[last.end() :] if any(last.groups()) else None


def _last_box(text: str) -> str | None:
    """Return the content of the last box, with those beside it; "" if it is cut off, None if there is no box."""
    boxes: list[tuple[int, str, int]] = []  # start, content, end
    end = 0
    for match in _BOX.finditer(text):
        if match.start() < end:
            continue  # within another box
        if match[0].endswith("{"):
            end = closing(text, match.end()) or len(text)
            boxes.append((match.start(), text[match.end() : end] if end < len(text) else "", end + 1))
        elif bare := _BARE_BOX.match(text, match.end()):
            end = bare.end()
            boxes.append((match.start(), bare[0], end))
    if not boxes:
        return None
    if not boxes[-1][1]:
        return ""
    start, content, end = boxes[-1]
    formula = _FORMULA_BEFORE_BOX.search(text, max(0, start - 20), start)
    more = _GOES_ON_AFTER_BOX.match(text, end) or (formula and _FORMULA_AFTER_BOX.match(text, end))
    sign, content = formula[1] if formula else "", content.strip()
    if (sign or more) and re.search("[-+]", content):
        content = f"({content})"
    contents = [sign + content + ("\\%" if _PERCENT.match(text, end) else more[0] if more else "")]
    for before, content, end in reversed(boxes[:-1]):
        between = _BETWEEN_BOXES.fullmatch(text, end, start) if 0 < start - end <= 100 else None
        if not between or "\n\n" in between[0]:
            break
        contents.append(content.strip())
        start = before
    return ", ".join(dict.fromkeys(reversed(contents)))


def closing(text: str, start: int, reach: int = _MAX_BOX) -> int | None:
    """Return where the brace opened before `start` is closed; None if nowhere within `reach` characters."""
    depth = 1
    for brace in _BRACE.finditer(text, start, start + reach):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None


def _stated(text: str) -> Answer | None:
    last = max(STATED.finditer(text), key=re.Match.start, default=None)
    if last is None:
        return None
    rest = text[last.end() :].split("</answer>")[0].strip()
    rest = _BOLD.sub("", rest).lstrip("*. \t")
    line = rest.split("\n")[0].rstrip("*. \t。")
    formula = _FORMULA.match(rest)
    if formula and not (_GOES_ON.match(rest, formula.end()) or re.search(r"[a-z]{2}\s$", formula[1] or "")):
        return Answer(next(filter(None, formula.groups())).strip(), True)
    if line and len(line) <= _MAX_STATED and not _WORDS.search(line if "=" in line else re.sub(_OPERATION, "", line)):
        return Answer(line, True)
    number = _NUMBER.match(line)
    altered = _ALTERED.match(line, number.end() if number else 0)
    if altered:
        return Answer(line, not re.match(r"\D*\d.*\D\d", line))
    if number and "<<" not in line and "=" not in line:
        scale = _SCALE.match(line, number.end())
        return Answer(line[: scale.end() if scale else number.end()].strip(), True)
    if line.endswith((":", "as follows")):  # it follows on the next lines
        return Answer(rest, False)
    return Answer(line, not _READABLE.search(line)) if line else None


def bare_gold(text: str) -> str:
    """Return a gold without what public sets write around it: a solution, a letter, HTML, a Python dictionary."""
    text = html.unescape(text).strip()
    if "####" in text:
        text = text.rpartition("####")[2]
    elif text.startswith(("{'", '{"')):
        with contextlib.suppress(ValueError, SyntaxError, KeyError, TypeError):
            text = str(ast.literal_eval(text)["ground_truth"])
    option = _OPTION.match(text)
    return text[option.end() if option else 0 :].strip()
