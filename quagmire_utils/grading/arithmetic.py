"""Exact, bounded arithmetic on LaTeX formulas for the second grader, without sympy or eval.

`evaluate` returns a Fraction where the value is one, otherwise a number of mpmath with more bits than any part of the
formula has; a sum that vanishes to half of them is zero. A variable stands for a fixed number that differs from point
to point: positive at the first, a positive integer at the second, negative at the third. So does what notation leaves
open: at the second point `\\log` has base 10, `1/2x` is 1/(2x) and `f(x+1)` a product. Formulas are equal, or
different, if they are at both points. Whatever is unknown, too large or too deep raises `BeyondError`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

Value = Fraction | Any  # a real or complex number of mpmath

_MAX_TOKENS = 400
_MAX_DEPTH = 40
_MAX_DIGITS = 1000  # of a number as written
_MAX_BITS = 40_000  # of an exact number; beyond that there is no answer worth reading
_MAX_FACTORIAL = 3000
_BITS = 256  # of numbers that are not exact, and twice the bits of the exact ones they are made of
_MAX_PRECISION = 16_384
_MIN_DIGITS = 6  # significant digits from which a decimal fraction may be a rounded value

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*|\.\d+)|(\\[a-zA-Z]+|\\%|\\\|)|([a-zA-Z])|(.))", re.DOTALL)
_DECIMAL = re.compile(r"-?\d*\.\d+")
_INFINITY = re.compile(r"([+-]?)\s*\\infty")
_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "arcsin": lambda c, x: c.asin(x), "arccos": lambda c, x: c.acos(x), "arctan": lambda c, x: c.atan(x),
    "sinh": lambda c, x: c.sinh(x), "cosh": lambda c, x: c.cosh(x), "tanh": lambda c, x: c.tanh(x),
    "exp": lambda c, x: c.exp(x), "ln": lambda c, x: c.log(x), "log": lambda c, x: c.log(x),
    "lg": lambda c, x: c.log(x, 10), "sin": lambda c, x: c.sin(x), "cos": lambda c, x: c.cos(x),
}  # fmt: skip
FUNCTIONS = frozenset(_FUNCTIONS) | frozenset(_TRIGONOMETRIC)
_GREEK = re.compile(
    r"\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|varphi|chi|"
    r"psi|omega|hbar|ell|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega)"
)
_SOFT = frozenset("ABCDFJKLNTVWcghms") | {"C_1", "C_2", "c_1", "c_2", "\\Omega", "\\mu"}  # also units and constants


class BeyondError(Exception):
    """The second grader cannot judge this."""


class Reading(NamedTuple):
    """The value of a formula, what it depends on, whether all its parts are real, and the bits that it needed."""

    value: Value
    names: frozenset[str]  # of variables, and of conventions: "?", "base 8"
    real: bool
    bits: int


@lru_cache(maxsize=16)
def _context(bits: int) -> Any:
    from mpmath.ctx_mp import MPContext

    context = MPContext()
    context.prec = bits
    return context


@lru_cache(maxsize=8192)
def evaluate(text: str, point: int = 0, variables: tuple[tuple[str, Value], ...] = (), bits: int = _BITS) -> Reading:
    """Return the value of a formula at a point, with the given values of variables. Raises BeyondError without one."""
    try:
        while True:
            reader = _Reader(text, point, dict(variables), bits)
            value = reader.read()
            needed = _BITS + 2 * reader.size
            if needed <= bits or not reader.inexact:
                return Reading(value, frozenset(reader.names), reader.is_real or reader.imaginary, bits)
            if needed > _MAX_PRECISION:
                raise BeyondError("too large to be compared")
            bits = 1 << (needed - 1).bit_length()
    except (ArithmeticError, ValueError, TypeError, RecursionError) as error:
        raise BeyondError(f"no value: {type(error).__name__}") from error


def difference(answer: str, gold: str, point: int = 0, variables: tuple[tuple[str, Value], ...] = ()) -> Value:
    """Return answer - gold at a point; Fraction(0) if they are equal. Raises BeyondError."""
    mine, theirs = evaluate(answer, point, variables), evaluate(gold, point, variables)
    if mine.bits != theirs.bits:
        bits = max(mine.bits, theirs.bits)
        mine, theirs = evaluate(answer, point, variables, bits), evaluate(gold, point, variables, bits)
    return add(mine.value, -theirs.value, mine.bits)


def add(left: Value, right: Value, bits: int = _BITS) -> Value:
    """Return a sum; Fraction(0) if it vanishes to half the bits."""
    total = left + right
    if isinstance(total, Fraction):
        return total
    context = _context(bits)
    scale = max(context.convert(abs(left)), context.convert(abs(right)))
    return Fraction(0) if abs(total) <= context.ldexp(scale, -bits // 2) else total


def sortable(value: Value) -> Any:
    """Return a real number that can be compared with others of its kind."""
    return _context(_BITS).convert(value)


def is_real(value: Value) -> bool:
    """Return whether a number has no imaginary part, to half the bits."""
    return isinstance(value, Fraction) or abs(value.imag) <= abs(value) * 2.0 ** (-_BITS // 2)


def roots(left: str, right: str, name: str, variables: tuple[tuple[str, Value], ...] = ()) -> list[Value]:
    """Return the real roots of left = right in a variable. Raises BeyondError unless it is linear or quadratic."""
    at = {x: difference(left, right, 0, (*variables, (name, Fraction(x)))) for x in (-1, 0, 1, 2, 5)}
    a = add(add(at[1], at[-1]) / 2, -at[0])
    b = add(at[1], -at[-1]) / 2
    if any(add(at[x], -(a * x * x + b * x + at[0])) for x in (2, 5)) or not (a or b):
        raise BeyondError("not linear or quadratic")
    if not a:
        return [-(at[0] if isinstance(b, Fraction) else sortable(at[0])) / b]
    discriminant = add(b * b, -4 * a * at[0])
    if not is_real(discriminant) or discriminant < 0:
        return []
    root = _exact_root(discriminant, 2) if isinstance(discriminant, Fraction) else None
    root = _context(_BITS).sqrt(_context(_BITS).convert(discriminant)) if root is None else root
    exact = isinstance(a, Fraction) and isinstance(b, Fraction) and isinstance(root, Fraction)
    return [(add(-b, sign * root) if exact else sortable(add(-b, sign * root))) / (2 * a) for sign in (-1, 1)]


def same_value(answer: str, gold: str, tolerance: float | None = None) -> bool | None:
    """Return whether two formulas have the same value, wherever they have one if they have variables; None if unclear.

    A percent sign may be missing on either side. A decimal fraction of six or more significant digits may be the other
    side rounded to its places. tolerance: absolute, between numbers.
    """
    try:
        infinite = _INFINITY.fullmatch(answer), _INFINITY.fullmatch(gold)
        if any(infinite):
            if all(infinite):
                return (infinite[0][1] == "-") == (infinite[1][1] == "-")
            evaluate(answer if infinite[1] else gold)
            return False
        (answer, answer_percent), (gold, gold_percent) = _percent(answer), _percent(gold)
        same = _same(answer, gold, tolerance)
        if answer_percent != gold_percent and same is False:
            pair = (f"({answer})/100", gold) if answer_percent else (answer, f"({gold})/100")
            return _same(*pair, tolerance)
        if same is False and ("\u00b0" in answer) != ("\u00b0" in gold):  # degrees on one side, radians on the other?
            pair = (f"({answer})\\pi/180", gold) if "\u00b0" in answer else (answer, f"({gold})\\pi/180")
            return None if _same(*pair, None) else False
    except (BeyondError, ArithmeticError, ValueError, TypeError):
        return None
    return same


def _percent(text: str) -> tuple[str, bool]:
    bare = re.sub(r"\\?%$", "", text.strip()).strip()
    return bare, bare != text.strip()


def _same(answer: str, gold: str, tolerance: float | None) -> bool | None:
    mine, theirs = evaluate(answer).names, evaluate(gold).names
    same, real = _same_at(answer, gold, 0, tolerance)
    if not mine and not theirs:
        return same
    bases = [{name for name in names if name.startswith("base")} for names in (mine, theirs)]
    if bases[0] != bases[1]:
        return None if same or not all(bases) else False  # 341_5 is not 341_6, but is it 341, or 96?
    again, also_real = _same_at(answer, gold, 1, tolerance)
    if same != again:
        return None
    if not same:
        if not (real or also_real):
            return None
        one_sided = sorted((mine ^ theirs) - {"?"})
        if one_sided and set(one_sided) <= _SOFT:  # perhaps a unit, 5 m and 5, or a constant of integration
            without = [tuple((name, Fraction(value)) for name in one_sided) for value in (0, 1)]
            return False if all(difference(answer, gold, 0, variables) for variables in without) else None
        return False
    try:
        same, real = _same_at(answer, gold, 2, tolerance)
    except BeyondError:
        return True  # there is no such point
    return True if same or not real else None  # as \\sqrt{x^2} and x: equal for positive numbers only


def _same_at(answer: str, gold: str, point: int, tolerance: float | None) -> tuple[bool, bool]:
    """Return whether two formulas are equal at a point, and whether both are real there."""
    gap = difference(answer, gold, point)
    real = evaluate(answer, point).real and evaluate(gold, point).real
    if not gap:
        return True, real
    gap = abs(gap)
    if tolerance is not None and gap <= tolerance * (1 + 1e-9):
        return True, real
    return _may_round(answer, gap) or _may_round(gold, gap), real


def _may_round(text: str, gap: Value) -> bool:
    """Return whether `text` has enough decimal digits to be a number `gap` away, rounded."""
    if not _DECIMAL.fullmatch(text.strip()):
        return False
    places = len(text.strip().partition(".")[2])
    digits = text.strip().lstrip("-").replace(".", "").lstrip("0")
    return len(digits) >= _MIN_DIGITS and 2 * 10**places * gap <= 1


def _variable(name: str, point: int) -> Fraction:
    """Return a number for a name: between 1/2 and 5/2, an integer from 5 to 64, or a negative number."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {point}".encode("utf-8", "surrogatepass")).digest()[:4], "big")
    if point == 1:
        return Fraction(5 + seed % 60)
    number = Fraction(1, 2) + Fraction(seed % 1999, 1000)
    return -number if point == 2 else number


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


def _is_integer(value: Value, most: int) -> bool:
    return isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= most


class _Reader:
    """A recursive-descent reader of one formula: sum, product (juxtaposition too), power, atom."""

    def __init__(self, text: str, point: int, variables: dict[str, Value], bits: int) -> None:
        self.tokens = [next(filter(None, match.groups()), "") for match in _TOKEN.finditer(text.strip())]
        if not self.tokens or len(self.tokens) > _MAX_TOKENS:
            raise BeyondError("nothing, or too much")
        self.next = 0
        self.point = point
        self.variables = variables
        self.bits = bits
        self.depth = 0
        self.angle = False  # within the argument of a trigonometric function
        self.names: set[str] = set()
        self.size = 0  # bits of the largest number, or of the smallest part of one
        self.inexact = False
        self.is_real = True
        self.imaginary = False  # i occurs

    # ------------------------------------------------------------------------------------------------------ numbers

    def checked(self, value: Value) -> Value:
        """Return a number of bearable size, and note that size."""
        if isinstance(value, Fraction):
            size = max(value.numerator.bit_length(), value.denominator.bit_length())
        else:
            self.inexact = True
            context = _context(self.bits)
            if not context.isfinite(value):
                raise BeyondError("not finite")
            size = abs(int(context.mag(value))) if value else 0
            self.is_real = self.is_real and is_real(value)
        if size > _MAX_BITS:
            raise BeyondError("too large")
        self.size = max(self.size, size)
        return value

    def real(self, value: Value) -> Any:
        """Return a number of mpmath (real or complex)."""
        self.inexact = True
        return _context(self.bits).convert(value)

    def quotient(self, above: Value, below: Value) -> Value:
        exact = isinstance(above, Fraction) and isinstance(below, Fraction)
        return self.checked(above / below if exact else self.real(above) / below)

    def small(self, value: Value) -> Value:
        """Return the value of a function, which is zero if it vanishes to half the bits."""
        tiny = _context(self.bits).ldexp(1, -self.bits // 2)
        return Fraction(0) if abs(value) <= tiny else value

    def power_of(self, base: Value, exponent: Value) -> Value:
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            if exponent.denominator == 1:
                size = max(base.numerator.bit_length(), base.denominator.bit_length())
                if abs(exponent) * size > _MAX_BITS:
                    raise BeyondError("too large")
                return self.checked(base**exponent.numerator)
            if base < 0 and exponent.denominator % 2:
                raise BeyondError("a root of a negative number")
            root = _exact_root(base, exponent.denominator)
            if root is not None:
                return self.power_of(root, Fraction(exponent.numerator))
        if not base:
            raise BeyondError("a power of zero")
        return self.checked(self.real(base) ** self.real(exponent))

    def root(self, base: Value, degree: Value) -> Value:
        if isinstance(degree, Fraction) and degree.denominator == 1 and degree % 2 and is_real(base) and base < 0:
            return -self.power_of(-base, 1 / degree)
        return self.power_of(base, 1 / degree) if base else Fraction(0) / degree

    def apply(self, name: str, value: Value) -> Value:
        """Return the value of a function."""
        context, x = _context(self.bits), self.real(value)
        if name in _FUNCTIONS:
            return self.checked(
                _FUNCTIONS[name](context, x) if name == "exp" else self.small(_FUNCTIONS[name](context, x))
            )
        sine, cosine = self.small(context.sin(x)), self.small(context.cos(x))
        ratio = {"tan": (sine, cosine), "cot": (cosine, sine), "sec": (1, cosine), "csc": (1, sine)}[name]
        return self.quotient(*ratio)

    # ------------------------------------------------------------------------------------------------------- tokens

    def read(self) -> Value:
        value = self.sum()
        if self.next < len(self.tokens):
            raise BeyondError(f"cannot read {self.tokens[self.next]!r}")
        return value

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.next + ahead] if self.next + ahead < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.next += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise BeyondError(f"{token} is missing")

    # ------------------------------------------------------------------------------------------------------ grammar

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise BeyondError("too deep")
        value = self.product()
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value = add(value, sign * self.product(), self.bits)
        self.depth -= 1
        return value

    def follows_factor(self) -> bool:
        """Return whether a factor follows without a sign of multiplication."""
        token = self.peek()
        if token[:1].isdigit() or token[:1] == ".":
            raise BeyondError("a number after a factor")
        return token != "" and token not in ("+", "-", ")", "]", "}", "|", ",", ";", "=", "&", ":", "\\}", "*", "/")

    def product(self) -> Value:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power(first=True)
        while True:
            token = self.peek()
            if token in ("*", "\\cdot", "\\times"):
                self.take()
                value = self.checked(value * self.signed())
            elif token in ("/", "\\div"):
                self.take()
                divisor = self.signed()
                while self.follows_factor() and self.peek() not in ("\\cdot", "\\times", "\\div"):
                    self.names.add("?")  # 1/2x
                    if self.point == 1:
                        divisor = self.checked(divisor * self.power())
                    else:
                        break
                value = self.quotient(value, divisor)
            elif self.follows_factor():
                value = self.checked(value * self.power())
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
            mixed = isinstance(fraction, Fraction) and 0 < fraction < 1 and value
            value = self.checked(value + fraction if mixed else value * fraction)
        while self.peek() in ("!", "\u00b0"):
            if self.take() == "\u00b0":
                value = value * self.real(_context(self.bits).pi) / 180 if self.angle else value
            elif self.peek() == "!":
                raise BeyondError("a double factorial")
            elif _is_integer(value, _MAX_FACTORIAL):
                value = self.checked(Fraction(math.factorial(value.numerator)))
            elif abs(value) > 100:
                raise BeyondError("a factorial")
            else:
                value = self.checked(_context(self.bits).factorial(self.real(value)))
        if self.peek() == "^":
            self.take()
            return self.power_of(value, self.exponent())
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
            return self.number(token)
        if token in ("{", "(", "["):
            return self.group({"{": "}", "(": ")", "[": "]"}[token])
        if token == "|":
            return abs(self.group("|"))
        if token in ("\\frac", "\\binom"):
            above, below = self.argument(), self.argument()
            return self.quotient(above, below) if token == "\\frac" else self.binomial(above, below)
        if token == "\\sqrt":
            degree = Fraction(2)
            if self.peek() == "[":
                self.take()
                degree = self.group("]")
            return self.root(self.argument(), degree)
        if token[1:] in FUNCTIONS:
            return self.function(token[1:])
        if token == "i" and self.peek() != "_":
            self.imaginary = True
            return self.real(1j)
        if token in ("e", "\\pi") and self.peek() != "_":
            context = _context(self.bits)
            return self.real(context.pi if token == "\\pi" else context.e)
        if re.fullmatch("[a-zA-Z]", token) or _GREEK.fullmatch(token):
            return self.variable(token + self.subscript())
        raise BeyondError(f"cannot read {token!r}")

    def number(self, token: str) -> Value:
        if len(token) > _MAX_DIGITS:
            raise BeyondError("a long number")
        if self.peek() != "_":
            return self.checked(Fraction(token))
        self.take()
        base = self.argument()
        if not (_is_integer(base, 36) and token.isdigit()):
            raise BeyondError("a base")
        self.names.add(f"base {base}")
        return self.checked(Fraction(int(token, int(base))))

    def variable(self, name: str) -> Value:
        """Return the value of a variable, or of an unknown function such as f(2): by its name and arguments."""
        number = self.peek() == "(" and self.peek(1).isdigit() and self.peek(2) in (")", ",")
        if number or (self.peek() == "(" and name[0] in "fghFGH" and self.point != 1):
            self.take()
            arguments = [self.sum()]
            while self.peek() == ",":
                self.take()
                arguments.append(self.sum())
            self.expect(")")
            parts = (str(x) if isinstance(x, Fraction) else _context(self.bits).nstr(x, 20) for x in arguments)
            name = f"{name}({','.join(parts)})"
        self.names.add(name)
        return self.checked(self.variables[name] if name in self.variables else _variable(name, self.point))

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
        base = power = None
        if name == "log" and self.peek() == "_":
            self.take()
            base = self.argument()
        elif name == "log":
            self.names.add("?")
            base = Fraction(10) if self.point == 1 else None
        if self.peek() == "^":
            self.take()
            power = self.exponent()
            if power == -1:
                raise BeyondError("an inverse or a reciprocal")
        outside, self.angle = self.angle, name in _TRIGONOMETRIC
        bracketed = self.peek() in ("(", "{", "[", "|")
        argument = self.power()
        while not bracketed and (self.peek()[:1].isalpha() or self.peek() in ("\\pi", "\\frac", "\\sqrt")):
            argument = self.checked(argument * self.power())  # \\sin 2x
        self.angle = outside
        value = self.apply(name, argument)
        if base is not None:
            value = self.quotient(value, _context(self.bits).log(self.real(base)))
        return value if power is None else self.power_of(value, power)

    def binomial(self, above: Value, below: Value) -> Value:
        if _is_integer(above, _MAX_FACTORIAL) and _is_integer(below, _MAX_FACTORIAL):
            return self.checked(Fraction(math.comb(above.numerator, below.numerator)))
        if abs(above) > 100 or abs(below) > 100:
            raise BeyondError("a binomial coefficient")
        return self.checked(_context(self.bits).binomial(self.real(above), self.real(below)))
