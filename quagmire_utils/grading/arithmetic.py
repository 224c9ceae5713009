"""Exact, bounded arithmetic on LaTeX formulas for the second grader, without sympy or eval.

`evaluate` returns a Fraction where the value is one, otherwise a complex number. Variables stand for fixed numbers that
differ from point to point. Whatever is unknown, too large or too deep raises `BeyondError`.
"""

from __future__ import annotations

import cmath
import hashlib
import math
import re
from collections.abc import Callable
from fractions import Fraction

Value = Fraction | complex
POINTS = 3

_MAX_TOKENS = 400
_MAX_DEPTH = 40
_MAX_DIGITS = 1000  # of a number as written
_MAX_BITS = 8_000  # of an exact number; beyond that there is no answer worth reading
_TOLERANCE = 1e-9  # relative, between values that are not exact
_MIN_DIGITS = 6  # significant digits from which a decimal fraction may be a rounded value

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*|\.\d+)|(\\[a-zA-Z]+|\\%|\\\|)|([a-zA-Z])|(.))", re.DOTALL)
_DECIMAL = re.compile(r"-?\d*\.\d+")
_CONSTANTS: dict[str, Value] = {"\\pi": complex(math.pi), "e": complex(math.e), "i": 1j}
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "arcsin": cmath.asin, "arccos": cmath.acos,
    "arctan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "ln": cmath.log, "log": cmath.log,
    "exp": cmath.exp, "cot": lambda x: 1 / cmath.tan(x), "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
}  # fmt: skip
_GREEK = re.compile(
    r"\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|varphi|chi|"
    r"psi|omega|hbar|ell|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega)"
)


class BeyondError(Exception):
    """The second grader cannot judge this."""


def is_number_word(word: str) -> bool:
    """Return whether a word in upright type belongs to the formula; it is a unit otherwise."""
    return word in _FUNCTIONS and word not in ("sinh", "cosh", "tanh")


def same_value(answer: str, gold: str, tolerance: float | None = None) -> bool:
    """Return whether two formulas have the same value, at each point if they have variables.

    A percent sign may be missing on either side. A decimal fraction of six or more significant digits may be the other
    side rounded to its places. tolerance: absolute, between numbers.
    """
    if "\\infty" in answer or "\\infty" in gold:
        return re.sub(r"^\+|\s", "", answer) == re.sub(r"^\+|\s", "", gold)
    (answer, answer_percent), (gold, gold_percent) = _percent(answer), _percent(gold)
    if answer_percent != gold_percent and _same(answer, gold, tolerance):
        return True
    answer = f"({answer})/100" if answer_percent and not gold_percent else answer
    gold = f"({gold})/100" if gold_percent and not answer_percent else gold
    return _same(answer, gold, tolerance)


def _percent(text: str) -> tuple[str, bool]:
    bare = re.sub(r"\\?%$", "", text.strip()).strip()
    return bare, bare != text.strip()


def _same(answer: str, gold: str, tolerance: float | None) -> bool:
    for point in range(POINTS):
        mine, theirs = evaluate(answer, point), evaluate(gold, point)
        if isinstance(mine, Fraction) and isinstance(theirs, Fraction):
            equal = mine == theirs
        else:
            mine, theirs = _complex(mine), _complex(theirs)
            equal = abs(mine - theirs) <= _TOLERANCE * max(abs(mine), abs(theirs), 1e-3)
        if equal:
            continue
        gap = abs(_complex(mine) - _complex(theirs))
        if not (tolerance is not None and gap <= tolerance * (1 + 1e-9)) and not (
            _may_round(answer, gap) or _may_round(gold, gap)
        ):
            return False
    return True


def _may_round(text: str, gap: float) -> bool:
    """Return whether `text` has enough decimal digits to be a number `gap` away, rounded."""
    if not _DECIMAL.fullmatch(text.strip()):
        return False
    places = len(text.strip().partition(".")[2])
    digits = text.strip().lstrip("-").replace(".", "").lstrip("0")
    return len(digits) >= _MIN_DIGITS and gap <= 0.5 * 10.0**-places * (1 + 1e-9)


def evaluate(text: str, point: int) -> Value:
    """Return the value of a formula at a point. Raises BeyondError where it has none."""
    try:
        return _checked(_Reader(text, point).read())
    except (ArithmeticError, ValueError, RecursionError) as error:
        raise BeyondError(f"no value: {type(error).__name__}") from error


def _variable(name: str, point: int) -> Fraction:
    """Return a number between 1/2 and 5/2 for a name; negative at the last point."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {point}".encode("utf-8", "surrogatepass")).digest()[:4], "big")
    number = Fraction(1, 2) + Fraction(seed % 1999, 1000)
    return -number if point == POINTS - 1 else number


def _checked(value: Value) -> Value:
    if isinstance(value, Fraction):
        if value.numerator.bit_length() + value.denominator.bit_length() > _MAX_BITS:
            raise BeyondError("too large")
    elif not cmath.isfinite(value):
        raise BeyondError("not finite")
    return value


def _complex(value: Value) -> complex:
    try:
        return complex(value)
    except OverflowError as error:
        raise BeyondError("too large") from error


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if abs(exponent) * size > _MAX_BITS:
                raise BeyondError("too large")
            return base**exponent.numerator
        root = _exact_root(base, exponent.denominator)
        if root is not None:
            return _power(root, Fraction(exponent.numerator))
    return _complex(base) ** _complex(exponent)


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """Return the root of a non-negative fraction if it is a fraction."""
    if value < 0 or degree > 64:
        return None
    parts = []
    for whole in (value.numerator, value.denominator):
        if whole.bit_length() > 512:
            return None
        guess = math.isqrt(whole) if degree == 2 else round(whole ** (1 / degree))
        if guess**degree != whole:
            return None
        parts.append(guess)
    return Fraction(*parts)


def _operate(operator: str, left: Value, right: Value) -> Value:
    if not (isinstance(left, Fraction) and isinstance(right, Fraction)):
        left, right = _complex(left), _complex(right)
    if operator == "+":
        return _checked(left + right)
    if operator == "-":
        return _checked(left - right)
    return _checked(left * right if operator == "*" else left / right)


class _Reader:
    """A recursive-descent reader of one formula: sum, product (juxtaposition too), power, atom."""

    def __init__(self, text: str, point: int) -> None:
        self.tokens = [next(filter(None, match.groups()), "") for match in _TOKEN.finditer(text.strip())]
        if not self.tokens or len(self.tokens) > _MAX_TOKENS:
            raise BeyondError("nothing, or too much")
        self.next = 0
        self.point = point
        self.depth = 0

    def read(self) -> Value:
        value = self.sum()
        if self.next < len(self.tokens):
            raise BeyondError(f"cannot read {self.tokens[self.next]!r}")
        return value

    def peek(self) -> str:
        return self.tokens[self.next] if self.next < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.next += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise BeyondError(f"{token} is missing")

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise BeyondError("too deep")
        value = self.product()
        while self.peek() in ("+", "-"):
            value = _operate(self.take(), value, self.product())
        self.depth -= 1
        return value

    def product(self) -> Value:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power(first=True)
        while True:
            token = self.peek()
            if token in ("*", "\\cdot", "\\times"):
                self.take()
                value = _operate("*", value, self.signed())
            elif token in ("/", "\\div"):
                self.take()
                value = _operate("/", value, self.signed())
            elif token and token not in "+-)]}|,;=&:" and token != "\\}":
                value = _operate("*", value, self.power())
            else:
                return -value if negative else value

    def signed(self) -> Value:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        return -self.power() if negative else self.power()

    def power(self, *, first: bool = False) -> Value:
        whole = self.peek()
        value = self.atom()
        if first and whole.isdigit() and self.peek() == "\\frac":  # a mixed number, 1\frac{1}{2}
            fraction = self.atom()
            if not (isinstance(fraction, Fraction) and 0 < fraction < 1):
                return _operate("*", value, fraction)
            value = _operate("+", value, fraction)
        while self.peek() == "!":
            self.take()
            if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 500:
                raise BeyondError("a factorial")
            value = Fraction(math.factorial(value.numerator))
        if self.peek() == "^":
            self.take()
            return _checked(_power(value, self.exponent()))
        return value

    def exponent(self) -> Value:
        if self.peek() in ("+", "-"):
            negative = self.take() == "-"
            value = self.atom()
            return -value if negative else value
        return self.argument()

    def argument(self) -> Value:
        """Read the argument of a command: a group in braces, or one digit or letter, as in \\frac12."""
        token = self.peek()
        if re.fullmatch(r"\d{2,}", token):
            self.tokens[self.next : self.next + 1] = list(token)
        return self.atom()

    def group(self, closer: str) -> Value:
        value = self.sum()
        self.expect(closer)
        return value

    def atom(self) -> Value:
        token = self.take()
        if token[:1].isdigit() or token.startswith("."):
            if len(token) > _MAX_DIGITS:
                raise BeyondError("a long number")
            if self.peek() == "_":
                raise BeyondError("a number in another base")
            return Fraction(token)
        if token in ("{", "(", "["):
            return self.group({"{": "}", "(": ")", "[": "]"}[token])
        if token == "|":
            return Fraction(abs(value)) if isinstance(value := self.group("|"), Fraction) else complex(abs(value))
        if token in ("\\frac", "\\binom"):
            above = self.argument()
            below = self.argument()
            return _operate("/", above, below) if token == "\\frac" else _binomial(above, below)
        if token == "\\sqrt":
            degree = Fraction(2)
            if self.peek() == "[":
                self.take()
                degree = self.group("]")
            return _checked(_power(self.argument(), _operate("/", Fraction(1), degree)))
        if token[1:] in _FUNCTIONS:
            return self.function(token[1:])
        if token in _CONSTANTS and self.peek() != "_":
            return _CONSTANTS[token]
        if re.fullmatch("[a-zA-Z]", token) or _GREEK.fullmatch(token):
            return _variable(token + self.subscript(), self.point)
        raise BeyondError(f"cannot read {token!r}")

    def subscript(self) -> str:
        """Read the subscript that belongs to the name of a variable, if any."""
        if self.peek() != "_":
            return ""
        self.take()
        if self.peek() != "{":
            return "_" + self.take()
        self.take()
        name = "_"
        while self.peek() not in ("}", ""):
            name += self.take()
        self.expect("}")
        return name

    def function(self, name: str) -> Value:
        function = _FUNCTIONS[name]
        base = power = None
        if name == "log" and self.peek() == "_":
            self.take()
            base = self.argument()
        if self.peek() == "^":
            self.take()
            power = self.exponent()
            if power == -1:
                raise BeyondError("an inverse or a reciprocal")
        argument = self.power()
        while self.peek() and (self.peek()[0].isalnum() or self.peek() in ("\\pi", "\\frac", "\\sqrt")):
            argument = _operate("*", argument, self.power())  # \\sin 2x
        value = function(_complex(argument))
        if base is not None:
            value /= cmath.log(_complex(base))
        return _checked(value if power is None else _power(value, power))


def _binomial(above: Value, below: Value) -> Value:
    if not all(isinstance(part, Fraction) and part.denominator == 1 and 0 <= part <= 1000 for part in (above, below)):
        raise BeyondError("a binomial coefficient")
    return Fraction(math.comb(above.numerator, below.numerator))
