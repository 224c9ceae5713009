"""Exact, bounded arithmetic on LaTeX formulas for the second grader: mpmath, no sympy or eval.

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
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

Value = Fraction | Any  # a real or complex number of mpmath
Variables = tuple[tuple[str, Value], ...]  # names and their values

_MAX_TOKENS = 400
_MAX_DEPTH = 40
_MAX_DIGITS = 1000  # of a number as written
_MAX_BITS = 40_000  # of an exact number; beyond that there is no answer worth reading
_MAX_FACTORIAL = 3000
_BITS = 256  # of numbers that are not exact, and twice the bits of the exact ones they are made of
_MAX_PRECISION = 4096

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*|\.\d+)|(\\[a-zA-Z]+|\\%|\\\|)|([a-zA-Z])|(.))", re.DOTALL)
_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
_OF_MPMATH = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "lg": "log10"}  # named otherwise there
FUNCTIONS = {*_TRIGONOMETRIC, *_OF_MPMATH, "sinh", "cosh", "tanh", "exp", "ln", "log"}
_GREEK = re.compile(
    r"\\(?:alpha|beta|[Gg]amma|[Dd]elta|(?:var)?epsilon|zeta|eta|[Tt]heta|kappa|[Ll]ambda|mu|nu|xi|rho|[Ss]igma|tau|chi|"
    r"(?:var)?phi|Phi|[Pp]si|[Oo]mega|hbar|ell)"
)
_UNKNOWN = re.compile(r"(?<![\\A-Za-z])(?<!_\{)(?:[A-Za-z]{4}|[A-Za-z]{3}\()")  # a word or function, as gcd(2,3)
_ENDS = frozenset(
    ["", *"+-)]}|,;=&:*/", "\\cdot", "\\times", "\\div", "\\}", "\\rfloor", "\\rceil"]
)  # what follows a product


class BeyondError(Exception):
    """The second grader cannot judge this."""


class Reading(NamedTuple):
    """The value of a formula, what it depends on, whether all its parts are real, and the bits that it needed."""

    value: Value
    names: frozenset[str]  # of variables; also "?" and "/" (open conventions), "base 8", "floor" (of variables)
    real: bool
    bits: int


@lru_cache(maxsize=16)
def context_of(bits: int = _BITS) -> Any:
    """Return mpmath with that many bits."""
    from mpmath.ctx_mp import MPContext

    context = MPContext()
    context.prec = bits
    return context


@lru_cache(maxsize=8192)
def evaluate(text: str, point: int = 0, variables: Variables = (), bits: int = _BITS) -> Reading:
    """Return the value of a formula at a point, with the given values of variables. Raises BeyondError without one."""
    try:
        while True:
            reader = _Reader(text, point, dict(variables), bits)
            value = reader.group("")
            needed = _BITS + 2 * reader.size
            if needed <= bits or not reader.inexact:
                return Reading(value, frozenset(reader.names), reader.is_real or reader.imaginary, bits)
            if needed > _MAX_PRECISION:
                raise BeyondError("too large to be compared")
            bits = 1 << (needed - 1).bit_length()
    except (ArithmeticError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise BeyondError(f"no value: {type(error).__name__}") from error


def difference(answer: str, gold: str, point: int = 0, variables: Variables = ()) -> Value:
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
    context = context_of(bits)
    scale = max(context.convert(abs(left)), context.convert(abs(right)))
    return Fraction(0) if abs(total) <= context.ldexp(scale, -bits // 2) else total


def is_real(value: Value) -> bool:
    """Return whether a number has no imaginary part, to half the bits."""
    return isinstance(value, Fraction) or abs(value.imag) <= abs(value) * 2.0 ** (-_BITS // 2)


def _variable(name: str, point: int) -> Fraction:
    """Return a number for a name: between 1/2 and 5/2, an integer from 5 to 64, or a negative number."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {point}".encode("utf-8", "surrogatepass")).digest()[:4], "big")
    if point == 1:
        return Fraction(5 + seed % 60)
    number = Fraction(1, 2) + Fraction(seed % 1999, 1000)
    return -number if point == 2 else number


def exact_root(value: Fraction, degree: int) -> Fraction | None:
    """Return the root of a non-negative fraction if it is a fraction."""
    parts = value.numerator, value.denominator
    if value < 0 or degree > 64 or max(map(int.bit_length, parts)) > 512:
        return None
    root = Fraction(*(math.isqrt(part) if degree == 2 else round(part ** (1 / degree)) for part in parts))
    return root if root**degree == value else None


def _is_integer(value: Value, most: int) -> bool:
    return isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= most


class _Reader:
    """A recursive-descent reader of one formula: sum, product (juxtaposition too), power, atom."""

    def __init__(self, text: str, point: int, variables: dict[str, Value], bits: int) -> None:
        self.tokens = [next(filter(None, match.groups()), "") for match in _TOKEN.finditer(text.strip())]
        if not self.tokens or len(self.tokens) > _MAX_TOKENS or _UNKNOWN.search(text):
            raise BeyondError("nothing, too much, or a word")
        self.tokens += [""] * 3  # the end, as far as `peek` looks ahead
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

    def checked(self, value: Value) -> Value:
        """Return a number of bearable size, and note that size."""
        if isinstance(value, Fraction):
            size = max(value.numerator.bit_length(), value.denominator.bit_length())
        else:
            self.inexact = True
            context = context_of(self.bits)
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
        return context_of(self.bits).convert(value)

    def quotient(self, above: Value, below: Value) -> Value:
        exact = isinstance(above, Fraction) and isinstance(below, Fraction)
        return self.checked(above / below if exact else self.real(above) / below)

    def power_of(self, base: Value, exponent: Value) -> Value:
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            if exponent.denominator == 1:
                size = max(base.numerator.bit_length(), base.denominator.bit_length())
                if abs(exponent) * size > _MAX_BITS:
                    raise BeyondError("too large")
                return self.checked(base**exponent.numerator)
            if base < 0 and exponent.denominator % 2:
                raise BeyondError("a root of a negative number")
            root = exact_root(base, exponent.denominator)
            if root is not None:
                return self.power_of(root, Fraction(exponent.numerator))
        if not base:
            raise BeyondError("a power of zero")
        return self.checked(self.real(base) ** self.real(exponent))

    def root(self, base: Value, degree: Value) -> Value:
        odd = isinstance(degree, Fraction) and degree % 2 == 1 and is_real(base) and base < 0
        return -self.power_of(-base, 1 / degree) if odd else self.power_of(base, 1 / degree)

    def apply(self, name: str, value: Value) -> Value:
        """Return the value of a function; zero if it vanishes to half the bits."""
        context = context_of(self.bits)
        result = getattr(context, _OF_MPMATH.get(name, name))(self.real(value))
        if name in _TRIGONOMETRIC and context.mag(result) > self.bits // 2:
            raise BeyondError("a pole")
        vanishes = name != "exp" and abs(result) <= context.ldexp(1, -self.bits // 2)
        return Fraction(0) if vanishes else self.checked(result)

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.next + ahead]

    def take(self) -> str:
        self.next += 1
        return self.tokens[self.next - 1]

    def accept(self, token: str) -> bool:
        """Take the next token if it is this one."""
        found = self.peek() == token
        self.next += found
        return found

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
        before = self.tokens[self.next - 1]
        if (token[:1].isdigit() or token[:1] == ".") and before != ")" and (before.isdigit() or self.peek(1) != "^"):
            raise BeyondError("a number after a factor")
        return token not in _ENDS

    def sign(self) -> int:
        sign = 1
        while self.peek() in ("+", "-"):
            sign = -sign if self.take() == "-" else sign
        return sign

    def product(self) -> Value:
        sign = self.sign()
        value = self.power(first=True)
        while True:
            token = self.peek()
            if token in ("*", "\\cdot", "\\times"):
                self.take()
                value = self.checked(value * self.sign() * self.power())
            elif token in ("/", "\\div"):
                self.take()
                divisor = self.sign() * self.power()
                if self.follows_factor():  # 1/2x
                    self.names.add("?")
                    divisor = self.checked(divisor * self.power()) if self.point == 1 else divisor
                while self.point == 1 and self.follows_factor():  # 1/2xy
                    self.names.add("/")
                    divisor = self.checked(divisor * self.power())
                value = self.quotient(value, divisor)
            elif self.follows_factor():
                value = self.checked(value * self.power())
            else:
                return sign * value

    def power(self, *, first: bool = False) -> Value:
        whole = self.peek()
        value = self.atom()
        if first and whole.isdigit() and self.peek() == "\\frac":  # a mixed number, 1\frac{1}{2}
            start = self.next
            fraction = self.atom()
            plain = all(token.isdigit() or token in "{}" for token in self.tokens[start + 1 : self.next])
            mixed = plain and 0 < fraction < 1 and value
            value = self.checked(value + fraction if mixed else value * fraction)
        while self.peek() in ("!", "\u00b0"):
            if self.take() == "\u00b0":
                value = value * self.real(context_of(self.bits).pi) / 180 if self.angle else value
            elif self.peek() == "!":
                raise BeyondError("a double factorial")
            elif _is_integer(value, _MAX_FACTORIAL):
                value = self.checked(Fraction(math.factorial(value.numerator)))
            elif abs(value) > 100:
                raise BeyondError("a factorial")
            else:
                value = self.checked(context_of(self.bits).factorial(self.real(value)))
        if self.accept("^"):
            return self.power_of(value, self.sign() * self.argument())
        return value

    def argument(self) -> Value:
        """Read the argument of a command: a group in braces, or one digit or letter, as in \\frac12."""
        token = self.peek()
        if re.fullmatch(r"\d{2,}", token):
            self.tokens[self.next : self.next + 1] = list(token)
        return self.atom()

    def group(self, closer: str) -> Value:
        value = self.sum()
        if not self.accept(closer):
            raise BeyondError(f"cannot read {self.peek()!r}")
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
        if token in ("\\lfloor", "\\lceil"):
            sign = 1 if token == "\\lfloor" else -1
            value = sign * self.group("\\r" + token[2:])
            self.names |= {"floor"} if self.names else set()
            exact = isinstance(value, Fraction)
            return sign * (Fraction(math.floor(value)) if exact else context_of(self.bits).floor(value))
        if token == "\\sqrt":
            degree = self.group("]") if self.accept("[") else Fraction(2)
            return self.root(self.argument(), degree)
        if token[1:] in FUNCTIONS:
            return self.function(token[1:])
        if token == "i" and self.peek() != "_":
            self.imaginary = True
            return self.real(1j)
        if token in ("e", "\\pi") and self.peek() != "_":
            return self.real(getattr(context_of(self.bits), token.lstrip("\\")))
        if re.fullmatch("[a-zA-Z]", token) or _GREEK.fullmatch(token):
            return self.variable(token + self.subscript())
        raise BeyondError(f"cannot read {token!r}")

    def number(self, token: str) -> Value:
        if len(token) > _MAX_DIGITS:
            raise BeyondError("a long number")
        if not self.accept("_"):
            return self.checked(Fraction(token))
        base = self.argument()
        if not (_is_integer(base, 36) and token.isdigit()):
            raise BeyondError("a base")
        self.names.add(f"base {base}")
        return self.checked(Fraction(int(token, int(base))))

    def variable(self, name: str) -> Value:
        """Return the value of a variable, or of an unknown function such as f(2): by its name and arguments."""
        number = self.peek() == "(" and self.peek(1).isdigit() and self.peek(2) in (")", ",")
        if re.match(r"[ACP]_\d", name) and self.peek() == "^":
            raise BeyondError("perhaps a binomial coefficient")
        known = self.point != 1 or (number and name not in ("x", "y", "z", "n"))  # otherwise perhaps a product
        if known and (number or (self.peek() == "(" and name[0] in "fghFGH")):
            self.take()
            arguments = []
            while not arguments or self.accept(","):
                arguments.append(self.sum())
            if not self.accept(")"):
                raise BeyondError("arguments without an end")
            parts = (str(x) if isinstance(x, Fraction) else context_of(self.bits).nstr(x, 20) for x in arguments)
            name = f"{name}({','.join(parts)})"
        self.names.add(name)
        return self.checked(self.variables[name] if name in self.variables else _variable(name, self.point))

    def subscript(self) -> str:
        """Read the subscript that belongs to the name of a variable, if any."""
        if not self.accept("_"):
            return ""
        name = "_" + self.take()
        while name.startswith("_{") and not name.endswith("}") and self.peek():
            name += self.take()
        return name

    def function(self, name: str) -> Value:
        base = power = None
        if name == "log" and self.accept("_"):
            base = self.argument()
        elif name == "log":
            self.names.add("?")
            base = Fraction(10) if self.point == 1 else None
        if self.accept("^"):
            power = self.sign() * self.argument()
            if power == -1:
                raise BeyondError("an inverse or a reciprocal")
        outside, self.angle = self.angle, name in _TRIGONOMETRIC
        bracketed = self.peek() in ("(", "{", "[", "|")
        argument = self.atom() if self.peek() == "(" else self.power()
        while not bracketed and (self.peek()[:1].isalpha() or self.peek() in ("\\pi", "\\frac", "\\sqrt")):
            argument = self.checked(argument * self.power())  # \\sin 2x
        self.angle = outside
        value = self.apply(name, argument)
        if base is not None:
            value = self.quotient(value, context_of(self.bits).log(self.real(base)))
        if power is None and bracketed and self.accept("^"):  # \\cos(x)^2
            power = self.sign() * self.argument()
        return value if power is None else self.power_of(value, power)

    def binomial(self, above: Value, below: Value) -> Value:
        if _is_integer(above, _MAX_FACTORIAL) and _is_integer(below, _MAX_FACTORIAL):
            return self.checked(Fraction(math.comb(above.numerator, below.numerator)))
        if abs(above) > 100 or abs(below) > 100:
            raise BeyondError("a binomial coefficient")
        return self.checked(context_of(self.bits).binomial(self.real(above), self.real(below)))
