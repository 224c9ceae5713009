"""The second grader against truth."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quagmire_utils.data import BENCHMARKS, load_benchmark
from quagmire_utils.grading.second import prove


def test_golds_and_answers_in_boxes_within_boxes_or_prose_are_read():
    for gold in ("\\boxed{5}", "$\\boxed{ 5 }$", "So it is \\fbox{\\boxed{5}}.", "The answer is 5.", "{5}"):
        assert [prove(answer, gold) for answer in ("5", "\\boxed{10/2}", "6")] == [True, True, False]
    assert [prove("1+\\boxed{5}", gold) for gold in "56"] == [False, True]
    assert prove("3, 4", "\\boxed{3} or \\boxed{4}") is True


# each line is a gold and answers that are proved equal (=), proved different (!), or undecided (?)
PROOFS = r"""
= 1234567 ~ 1,234,567 ~ 1{,}234{,}567 ~ 1\,234\,567 ~ 1,\! 234,\! 567 ~ \$1,234,567 ~ 1 234 567
= (1, 234, 5) ~ (1,234,5)
= \{1, 100\} ~ \{1,100\} ~ 100, 1
! 2640 ~ [2,640] ~ 2,64 ~ (2,640)
? 81, 256 ~ 81,256
! 2793 ~ 27,93
! 1728 ~ 1331, 1728 ~ 1727.99
= \frac{1}{2} ~ 0.5 ~ \dfrac12 ~ 1/2 ~ 50\% ~ 2^{-1} ~ .5 ~ 50 percent ~ \frac ab \cdot \frac{b}{2a}
! \frac{1}{2} ~ 0.51 ~ 2 ~ -\frac12
= \frac{1}{3} ~ 0.333333 ~ 0.\overline{3} ~ \tfrac13
= \frac{2}{3} ~ 0.6666666666666666
! \frac{1}{3} ~ 0.333 ~ 0.334
= \frac{5}{18} ~ 0.2\overline{7} ~ 0.2\dot{7} ~ 0.2\bar 7
= \frac{8}{3} ~ 2 2/3 ~ 2\frac{2}{3} ~ 2\frac23 \text{ hours} ~ 2⅔
! 2 ~ 2 2/3 ~ 22/3 ~ \frac43
= 62000 ~ 6.2e4 ~ 6.2E4 ~ 6.2\times10^4 ~ 6.2 x 10^4 ~ 62 \cdot 10^3
? 15 ~ 5!! ~ 3 5 ~ 15\text{ million}
! 2 \times 10^{-19} ~ 3 \times 10^{-19} ~ 0 ~ 2 \times 10^{-19} \sqrt{2}
! \frac{1}{2005!} ~ \frac{1}{2007!}
! \sqrt{2} ~ \sqrt{2}+10^{-90} ~ 1.4142
! e^{-1000} ~ e^{-1001}
= 0 ~ \sqrt{2}\sqrt{3}-\sqrt{6} ~ \sin(10^{15}\pi) ~ 1-1
! 0 ~ \sqrt{10^{40}+1}-10^{20} ~ 10^{-9}
= -2 ~ \sqrt[3]{-8} ~ -\sqrt[3]{8} ~ -√4
= \sqrt{2}+\sqrt{3} ~ \sqrt{5+2\sqrt6} ~ sqrt(2)+sqrt(3) ~ √2 + √3 ~ \frac{1}{\sqrt3-\sqrt2}
= \frac{\sqrt{3}}{2} ~ \sin 60^\circ ~ \cos\frac{\pi}{6} ~ sqrt(3)/2 ~ \frac{3}{2\sqrt3} ~ 0.8660254
= 2\pi ~ 2pi ~ 2*pi ~ 2π ~ 360^\circ \cdot \frac{\pi}{180}
= 3 ~ \log_2 8 ~ \lg 1000 ~ \log_{10} 1000 ~ \log 8/\log 2 ~ \ln e^3
? 2 ~ \log 100
= 30^\circ ~ 30 ~ 30 degrees ~ \angle ABC = 30^{\circ} ~ 30°
! 30^\circ ~ 31
? 30^\circ ~ \frac{\pi}{6}
? -2 ~ (-8)^{1/3}
= 341_5 ~ 341_{5}
! 341_5 ~ 341_6 ~ 342
? 341_5 ~ 341 ~ 96 ~ 140_8 ~ 129_5
= 0, 1, -1 ~ 0, \pm 1
= x=3,y=-2 ~ \begin{cases}x=3\\y=-2\end{cases} ~ \begin{aligned}x&=3\\ y&=-2\end{aligned}
= (4,5) ~ P(4,5) ~ \{(4,5)\}
= 12, 13 ~ 12 and 13 ~ 13 \text{ or } 12 ~ x=12, x=13 ~ \{13, 12\} ~ 12 \quad 13 ~ 12; 13
! 12, 13 ~ 12 ~ 12, 14 ~ (13, 14)
? (1,2) ~ 1,2 ~ \begin{pmatrix}1\\2\end{pmatrix} ~ x=1, y=2
! (1,2) ~ \{1,2\} ~ [1,2] ~ (2,1) ~ 2,1 ~ (1,2,3) ~ 3
= 1, 2, \dots, n ~ 1, 2, \ldots, n
! 1, 2, \dots, n ~ 1, 3, 5, \dots, 2n-1
? 1, 2, \dots, n ~ 1, 2, 3, \dots, n ~ 1, 2, 3
= 1\pm\sqrt{19} ~ 1+\sqrt{19}, 1-\sqrt{19}
= \emptyset ~ \{\} ~ \varnothing ~ \text{None}
! \emptyset ~ 0 ~ 5
? 5 ~ \{5\}
= 5 ~ five ~ \large 5 ~ 5 \hfill ~ 5 J ~ 5\ \mu\text{m} ~ £5 ~ 5 (cm) ~ 5个 ~ x \approx 5 ~ 5 = x
! 5 ~ four ~ x \approx 6 ~ P(5,5)
= \begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{bmatrix} 1 & 2 \\ 3 & 4.0 \end{bmatrix}
! \begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{pmatrix}1&3\\2&4\end{pmatrix} ~ 5
? -2 ~ \begin{vmatrix}1&2\\3&4\end{vmatrix} ~ \begin{cases}-2\end{cases}
= (2, \infty) ~ x > 2 ~ 2 < x ~ 2x > 4 ~ \{x : x > 2\} ~ \{x \in \mathbb{R} \mid x>2\} ~ x \in (2,+\infty)
! (2, \infty) ~ x \ge 2 ~ [2,\infty) ~ x < 2 ~ x > 3
= [\sqrt{3}, 5) ~ \sqrt{3} \le k < 5 ~ k>=√3, k<5 ~ 5 > k \geqslant \sqrt{3}
= (-\infty,-1)\cup(3,\infty) ~ x<-1 \text{ or } x>3 ~ (3,\infty) \cup (-\infty,-1) ~ x^2-2x>3
! (-\infty,-1)\cup(3,\infty) ~ (-\infty,-1]\cup(3,\infty) ~ 1<x<3
= [1,3] ~ [1,2]\cup(2,3] ~ [1,2]\cup[2,3]
= (-\infty,2)\cup(2,\infty) ~ x \ne 2
= [-3,3] ~ |x| \le 3
! [-3,3] ~ |x|<3 ~ |x| \ge 3
= (x+1)^2 ~ x^2+2x+1 ~ x²+2x+1 ~ x**2+2*x+1 ~ (1+x)(x+1) ~ (x+1)^2 \text{ by the formula}
! (x+1)^2 ~ x^2+1 ~ (y+1)^2 ~ 4
= x\sqrt{y} ~ \sqrt{x^2y}
? x ~ \sqrt{x^2} ~ x+C
= yx ~ xy
= \frac{n!}{(n-2)!} ~ n(n-1) ~ 2\binom{n}{2} ~ n^2-n
? (-1)^n ~ \cos(n\pi)
? \frac{x}{2} ~ 1/2x
= \frac{x}{2} ~ 1/2 x ~ \nicefrac{x}{2}
= \cos^2 x ~ \cos(x)^2 ~ cos(x)**2 ~ \operatorname{cos}^2 x
? \arcsin x ~ \operatorname{asin}(x) ~ \sin^{-1} x
? f(x) = x^2 ~ f(t) = t^2
! 6p ~ 3p(2)
! 0 ~ f(0) ~ I(0)
= f(1, 200) ~ f(1,200)
! \lfloor n \rfloor ~ \lfloor n \rfloor + 1
= -3 ~ \lfloor -2.5 \rfloor ~ \lceil -\sqrt{10} \rceil
? 10 ~ C_5^2 ~ C(5,2)
? 12 ~ \gcd(12,144) ~ gcd(12,144) ~ floor(12.5)
? 3R^2 ~ 3r^2
= \frac{5}{2n} ~ 5\frac{1}{2n} ~ \frac5{2n}
= 4 ~ AB=4 ~ |AB| = 4 ~ f(3)=4 ~ \sin\theta = 4 ~ \text{Area} = 4 ~ 1 + 3 = 4 ~ x = f(1) = 4 ~ S_{ABC}=4 ~ \approx 4
! 4 ~ AB=5 ~ x = 2+3 = 5
? 4 ~ 2x=8 ~ 1+3=5 ~ x^2=4 ~ x+y=4
= y=2x+3 ~ f(x)=2x+3 ~ 2x-y+3=0 ~ 2x+3 ~ x = \frac{y-3}{2}
! y=2x+3 ~ y=2x-3 ~ 2x+y+3=0
= \frac{x^2}{25}+\frac{y^2}{9}=1 ~ 9x^2+25y^2=225
! (2,3) ~ (x,y) = (3,2)
= \frac{\sqrt3}{3} ~ \frac{\sqrt{3}}{3} \approx 0.577
= \text{Evelyn} ~ Evelyn ~ \textbf{evelyn} ~ \boldsymbol{\text{Evelyn}}.
! \text{Evelyn} ~ \text{Bob} ~ 5
! even ~ odd ~ 2 ~ (2,4)
? 0 ~ none
= \text{No solution} ~ \emptyset ~ \text{empty set}
= \mathbb{R} ~ \text{all real numbers} ~ (-\infty,\infty)
= \text{(C)} ~ C ~ (C) ~ \mathrm{C}
! \text{(C)} ~ B
? \text{(C)} ~ c
= 125 ~ 125~\text{cm}^2 ~ 125 cm ~ 125€ ~ 125 \text{ square units} ~ 125 USD ~ 125 apples in all
= 2500000 ~ 2.5 million ~ 2.5\text{ million} ~ 2500 thousand
= 3-2e^{-1} ~ \frac{3e-2}{e}
= 7\text{ m/s} ~ 7 m/s ~ 7
= 7 ~ 7 times ~ 7 \pmod{12}
? 125\text{ m/h} ~ 125 miles/hour ~ 125\text{ meters} ~ 125 minutes ~ 125\text{ m}^2
! 12\text{ km} ~ 12 m ~ 12\text{ cm} ~ 12 cm ~ 13 km ~ 12\text{ g} ~ 12 hours ~ 12\text{ m/s} ~ 12 m/s
! 12 m/s ~ 12\text{ km/h} ~ 12 miles/hour ~ 12\text{ seconds}
? \$1.25 ~ 125 cents
= 5 ~ 5\ \Omega ~ 5 kg m/s^2 ~ 5 km/h ~ 5 rad/s
? Sunday ~ Sun ~ a Sunday
? (1,2),(1,-2) ~ (1,\pm 2)
? \frac13 ~ 0.333... ~ 0.333\ldots
? 125 ~ 125 m ~ 125 million ~ 125 \text{ or more}
! 125 ~ 126 m ~ 12x
? 2 \pmod{12} ~ 2 \pmod 7 ~ 2abcd
= 4:30 \text{ PM} ~ 4:30 ~ \text{4:30 p.m.}
! 4:30 \text{ PM} ~ 4:30 a.m.
! 11:00 ~ 2:00
? 4:30 ~ 16:30 ~ 8:60 ~ 4.5
= \frac79 ~ \boldsymbol{\frac{7}{9}} ~ \underline{\frac79} ~ \color{blue}{\frac79} ~ \mathbf{\frac{7}{9}} ~ **7/9**
= 12 ~ 12. ~ $12$ ~ \(12\) ~ \displaystyle 12 ~ \textcolor{red}{12} ~ \begin{aligned}12\end{aligned} ~ １２ ~ \text{12}
= 4-7i ~ 4-7 i ~ 4-7\mathrm{i}
"""
PROVED = PROOFS.strip().splitlines()
GOLDS = [line[2:].split(" ~ ")[0] for line in PROVED]


@pytest.mark.parametrize("line", PROVED)
def test_what_is_equal_different_or_undecided(line):
    gold, *answers = line[2:].split(" ~ ")
    truth = {"=": True, "!": False, "?": None}[line[0]]
    assert {answer: prove(answer, gold) for answer in answers} == dict.fromkeys(answers, truth)
    assert prove(gold, gold) is True


def written(number):
    n, d = number.numerator, number.denominator
    sign = "-" if n < 0 else ""
    ways = [f"{n}/{d}", f"{sign}\\frac{{{abs(n)}}}{{{d}}}", f"{sign}\\dfrac{{{3 * abs(n)}}}{{{3 * d}}}"]
    ways.append(f"{n}\\cdot {d}^{{-1}}")
    if d == 1:
        ways += [f"{n}", f"{n}.0", f"{n:,}", f"{n}\\text{{ apples}}"]
    if 10**6 % d == 0:
        ways.append(f"{sign}{math.floor(abs(number))}.{abs(number) % 1 * 10**6 // 1:06}")
    return ways


fractions = st.builds(Fraction, st.integers(-3000, 3000), st.sampled_from([1, 1, 2, 3, 4, 7, 8, 10, 25, 64]))


@settings(max_examples=300, deadline=None)
@given(fractions, fractions, st.data())
def test_rational_numbers_are_compared_exactly_however_they_are_written(one, other, data):
    answer, gold = data.draw(st.sampled_from(written(one))), data.draw(st.sampled_from(written(other)))
    assert prove(answer, gold) is (one == other)


def test_a_tolerance_is_absolute():
    answers = ["4.2", "4.1", "4.3", "4.31", "x"]
    assert [prove(answer, "4.2", 0.1) for answer in answers] == [True] * 3 + [False] * 2


PIECES = [
    "\\boxed{", "}", "{", "(", ")", "[", "]", "|", ",", ";", "=", "<", "\\frac", "\\sqrt", "^", "_", "!", "\\pm", "9",
    "12", "x", "e", "\\pi", "\\sin", "\\log", "\\infty", "\\cup", "\\text{ and }", "\\begin{pmatrix}", "&", "\\\\",
    "$", "%", " ", "\\{", "\\}", "answer is ", "A: ", "#### ", "\n", "-", "+", "/", "\\cdot", "0", ".",
    "\\", "\u0663", "\ud800", "\x00",
]  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from(GOLDS))
def test_no_text_raises(pieces, gold):
    text = "".join(pieces)
    assert prove(text, gold) in (True, False, None)
    assert prove("5", text or "0") in (True, False, None)


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^9}}", "10^{10^{10}}", "100000000!", "2^{20000}^{20000}", "((((" * 200, "(" * 300 + "5" + ")" * 300,
        "\\sqrt{" * 100 + "5" + "}" * 100, "{" * 900, "5" * 900 + "!", "1" * 5000, "1/0", "\\frac{1}{0}", "0^{-1}",
        "\\log 0", "\\binom{1000000}{500000}", "\\tan\\frac{\\pi}{0}", "1e999", "\\exp{1000}", "(" + "1," * 400 + "1)",
        "\\sqrt[0]{5}", "a" * 900 + "!=5", "\\ab" * 200 + "!=5", "x=" * 300 + "5", "(1," * 200, "\\sin" * 150 + "5",
        "1<x<" * 150 + "2", "\\cup".join(f"({i},{i + 1})" for i in range(90)), "\\exp(" * 9 + "9" + ")" * 9,
        "5" + " " * 900 + "5", "2^{0.5^{-9999}}", "+-" * 300 + "5", "\\begin{pmatrix}" * 50,
        "__import__('os').system('true')",
    ],
)  # fmt: skip
def test_hostile_answers_are_neither_evaluated_nor_accepted(text):
    assert prove(text, "7") in (False, None)
    assert prove(text * 300, "7") in (False, None)


@pytest.mark.requires_data
@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_it_reads_the_golds_of_the_benchmarks(name, data_dir):
    unreadable = 0
    for problem in load_benchmark(name, data_dir=data_dir):
        assert prove(problem.answer, problem.answer) is True
        other = prove("-987654321", problem.answer)
        assert other in (False, None)
        unreadable += other is None
    assert unreadable <= {"math500": 7, "olympiad": 10, "minerva": 10}.get(name, 0)  # other bases, floors, factorials
