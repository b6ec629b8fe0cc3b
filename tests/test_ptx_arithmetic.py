"""The PTX machine's arithmetic against Python's integers and fractions, which are exact."""

import itertools
import math
import operator
import random
import struct
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
import pytest

from kernels.ptx.arithmetic import UnknownOperationError, operation
from kernels.ptx.program import UNSIGNED

RANDOM = random.Random(0)
FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}
"""Bits of precision, exponents of the smallest and of the largest normal number."""
NAN, INF = math.nan, math.inf


def compute(opcode: str, rows: Iterable[tuple[int, ...]]) -> list[int]:
    """What an opcode makes of each row of operands, given as bits."""
    function, sizes = operation(opcode)
    columns = zip(*rows, strict=True)
    arrays = [
        np.array(column, UNSIGNED[size] if size else np.bool_) for column, size in zip(columns, sizes, strict=True)
    ]
    with np.errstate(all="ignore"):  # as the machine runs it
        return function(*arrays).tolist()


# Integers


def integers(bits: int) -> list[int]:
    """Patterns of so many bits: the corners, and others."""
    corners = [0, 1, 2, 3, 7, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits - 1) + 1, (1 << bits) - 2, (1 << bits) - 1]
    return corners + [RANDOM.getrandbits(bits) for _ in range(12)] + [RANDOM.getrandbits(bits // 2) for _ in range(4)]


def number(type_: str, pattern: int) -> int:
    """The integer that a pattern means."""
    bits = int(type_[1:])
    return pattern - (pattern >> bits - 1 << bits) if type_[0] == "s" else pattern


def divided(a: int, b: int) -> int:
    """Rounded towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) if b else -1


INTEGER: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul.lo": operator.mul,
    "min": min,
    "max": max,
    "div": divided,
    "rem": lambda a, b: a - divided(a, b) * b if b else -1,
}
INTEGER_TYPES = [kind + bits for kind in "su" for bits in ("16", "32", "64")]


@pytest.mark.parametrize("type_", INTEGER_TYPES)
@pytest.mark.parametrize("name", INTEGER)
def test_integers_wrap(name, type_):
    bits = int(type_[1:])
    pairs = list(itertools.product(integers(bits), repeat=2))
    expected = [INTEGER[name](number(type_, a), number(type_, b)) % (1 << bits) for a, b in pairs]
    assert compute(f"{name}.{type_}", pairs) == expected


@pytest.mark.parametrize("type_", INTEGER_TYPES)
def test_products_twice_as_wide(type_):
    """All of it, and its upper half; of 64 bits there is the upper half alone."""
    bits = int(type_[1:])
    pairs = list(itertools.product(integers(bits), repeat=2))
    products = [number(type_, a) * number(type_, b) for a, b in pairs]
    assert compute(f"mul.hi.{type_}", pairs) == [(product >> bits) % (1 << bits) for product in products]
    if bits < 64:
        assert compute(f"mul.wide.{type_}", pairs) == [product % (1 << 2 * bits) for product in products]


@pytest.mark.parametrize("type_", ["s16", "u16", "s32", "u32"])
@pytest.mark.parametrize("which", ["lo", "hi", "wide"])
def test_mad(which, type_):
    bits = int(type_[1:])
    result = 2 * bits if which == "wide" else bits
    rows = [(*pair, RANDOM.getrandbits(result)) for pair in itertools.product(integers(bits), repeat=2)]
    shift = bits if which == "hi" else 0
    expected = [((number(type_, a) * number(type_, b) >> shift) + c) % (1 << result) for a, b, c in rows]
    assert compute(f"mad.{which}.{type_}", rows) == expected


@pytest.mark.parametrize("type_", ["s16", "s32", "s64"])
def test_neg_and_abs(type_):
    bits = int(type_[1:])
    rows = [(a,) for a in integers(bits)]
    assert compute(f"neg.{type_}", rows) == [-a % (1 << bits) for (a,) in rows]
    assert compute(f"abs.{type_}", rows) == [abs(number(type_, a)) % (1 << bits) for (a,) in rows]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts_below_at_and_over_the_width(bits):
    """At the width and over it nothing is left, or the sign."""
    rows = list(itertools.product(integers(bits), [0, 1, bits - 1, bits, bits + 1, 255, 256, 2**31, 2**32 - 1]))
    assert compute(f"shl.b{bits}", rows) == [(a << min(b, bits)) % (1 << bits) for a, b in rows]
    assert compute(f"shr.u{bits}", rows) == [a >> min(b, bits) for a, b in rows]
    assert compute(f"shr.b{bits}", rows) == [a >> min(b, bits) for a, b in rows]
    expected = [(number(f"s{bits}", a) >> min(b, bits)) % (1 << bits) for a, b in rows]
    assert compute(f"shr.s{bits}", rows) == expected


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    pairs = list(itertools.product(integers(bits), repeat=2))
    for name, truth in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
        assert compute(f"{name}.b{bits}", pairs) == [truth(a, b) for a, b in pairs]
    assert compute(f"not.b{bits}", [(a,) for a, _ in pairs]) == [(1 << bits) - 1 - a for a, _ in pairs]


def test_logic_of_predicates():
    pairs = list(itertools.product([False, True], repeat=2))
    for name, truth in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
        assert compute(f"{name}.pred", pairs) == [truth(a, b) for a, b in pairs]
    assert compute("not.pred", [(False,), (True,)]) == [True, False]


POSITIONS = [0, 1, 5, 8, 31, 32, 33, 255, 256, 260]  # their lowest byte counts


def bfe(a: int, position: int, length: int, signed: bool) -> int:
    """The code in section 9.7.1.19, bit by bit."""
    position, length = position & 255, length & 255
    sign = a >> min(position + length - 1, 31) & 1 if signed and length else 0
    bits = [a >> position + i & 1 if i < length and position + i <= 31 else sign for i in range(32)]
    return sum(bit << i for i, bit in enumerate(bits))


def bfi(a: int, b: int, position: int, length: int) -> int:
    """The code in section 9.7.1.20, bit by bit."""
    position, length = position & 255, length & 255
    bits = [b >> i & 1 for i in range(32)]
    for i in range(length):
        if position + i <= 31:
            bits[position + i] = a >> i & 1
    return sum(bit << i for i, bit in enumerate(bits))


@pytest.mark.parametrize("type_", ["u32", "s32"])
def test_bfe(type_):
    rows = list(itertools.product(integers(32), POSITIONS, POSITIONS))
    assert compute(f"bfe.{type_}", rows) == [bfe(*row, signed=type_ == "s32") for row in rows]


def test_bfi():
    rows = list(itertools.product(integers(32)[::3], integers(32)[::3], POSITIONS, POSITIONS))
    assert compute("bfi.b32", rows) == [bfi(*row) for row in rows]


def test_prmt():
    rows = [tuple(RANDOM.getrandbits(32) for _ in range(3)) for _ in range(500)] + [(0x80, 0x7F, 0xC480)]

    def permuted(a: int, b: int, selector: int) -> bytes:
        either = struct.pack("<II", a, b)
        chosen = [selector >> 4 * i & 15 for i in range(4)]
        return bytes(255 * (either[c & 7] >> 7) if c & 8 else either[c & 7] for c in chosen)

    assert compute("prmt.b32", rows) == [int.from_bytes(permuted(*row), "little") for row in rows]


COMPARE = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


@pytest.mark.parametrize("type_", INTEGER_TYPES)
def test_comparisons_of_integers(type_):
    pairs = list(itertools.product(integers(int(type_[1:])), repeat=2))
    for name, truth in COMPARE.items():
        expected = [truth(number(type_, a), number(type_, b)) for a, b in pairs]
        assert compute(f"setp.{name}.{type_}", pairs) == expected
        if type_[0] == "u" and name not in ("eq", "ne"):
            other = {"lt": "lo", "le": "ls", "gt": "hi", "ge": "hs"}[name]
            assert compute(f"setp.{other}.{type_}", pairs) == expected


def test_selp_and_mov():
    rows = [(1, 2, True), (3, 4, False)]
    assert compute("selp.b32", rows) == compute("selp.f32", rows) == [1, 4]
    assert compute("mov.b64", [(2**63,)]) == [2**63]


# Floating point


def decoded(type_: str, bits: int) -> float:
    if type_ == "bf16":
        return struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    code, whole = {"f16": ("<e", "<H"), "f32": ("<f", "<I"), "f64": ("<d", "<Q")}[type_]
    return struct.unpack(code, struct.pack(whole, bits))[0]


def pattern(type_: str, value: float) -> int:
    """The bits of a number that the type can hold."""
    if type_ == "bf16":
        return struct.unpack("<I", struct.pack("<f", value))[0] >> 16
    code, whole = {"f16": ("<e", "<H"), "f32": ("<f", "<I"), "f64": ("<d", "<Q")}[type_]
    return struct.unpack(whole, struct.pack(code, value))[0]


def rounded(type_: str, value: Fraction) -> float:
    """To the nearest number of the type, to the even one of two equally near; beyond the largest, to infinity."""
    precision, smallest, largest = FORMATS[type_]
    if value == 0:
        return 0.0
    exponent = value.numerator.bit_length() - value.denominator.bit_length() - 1  # or one more
    exponent += abs(value) >= Fraction(2) ** (exponent + 1)
    step = Fraction(2) ** (max(exponent, smallest) - precision + 1)
    near = round(value / step) * step
    if abs(near) >= Fraction(2) ** (largest + 1):
        return INF if value > 0 else -INF
    return math.copysign(float(near), value)


def floats(type_: str, count: int) -> list[int]:
    """Bits of numbers: zeros, denormals, the smallest and largest, infinities, NaN, and any."""
    width = 64 if type_ == "f64" else 32 if type_ == "f32" else 16
    precision = FORMATS[type_][0]
    exponents = (1 << width - precision) - 1
    infinity, one = exponents << precision - 1, (exponents >> 1) << precision - 1
    half = [0, 1, 2, 3, (1 << precision - 1) - 1, 1 << precision - 1, one, one + 1, one - 1, infinity - 1, infinity]
    half += [infinity + 1, infinity + (1 << precision - 2)]  # NaN
    some = [RANDOM.getrandbits(width) for _ in range(count)]
    some += [one ^ RANDOM.getrandbits(precision) for _ in range(count)]  # close to each other
    return half + [bits | 1 << width - 1 for bits in half] + some


def same(type_: str, got: int, expected: float) -> bool:
    """Whether bits are a number, zeros of different sign apart. NaN is one value."""
    value = decoded(type_, got)
    if math.isnan(expected) or math.isnan(value):
        return math.isnan(expected) and math.isnan(value)
    return value == expected and math.copysign(1, value) == math.copysign(1, expected)


def check(opcode: str, type_: str, rows: list[tuple], expected: list[float], result: str | None = None) -> None:
    for row, got, wanted in zip(rows, compute(opcode, rows), expected, strict=True):
        numbers = [decoded(type_, bits) for bits in row]
        assert same(result or type_, got, wanted), (
            f"{opcode} of {numbers}: {decoded(result or type_, got)!r}, {wanted!r}"
        )


def exactly(name: str, type_: str, a: float, b: float, c: float = -0.0) -> float:
    """IEEE 754: the exact result, rounded once. Sums and products of infinities, NaN and zeros are as Python's."""
    if name == "div" and b == 0:
        return NAN if a == 0 or math.isnan(a) else math.copysign(INF, a) * math.copysign(1, b)
    plain = {"add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b, "fma": lambda: a * b + c}
    if not all(map(math.isfinite, (a, b, c))):
        return a / b if name == "div" else plain[name]()
    x, y, z = map(Fraction, (a, b, c))
    value = {"add": x + y, "sub": x - y, "mul": x * y, "fma": x * y + z}.get(name)
    if name == "div":
        value = x / y
    if value == 0:
        return a / b if name == "div" else plain[name]() if 0 in (a, b) or name != "fma" else 0.0
    return rounded(type_, value)


@pytest.mark.parametrize("name, type_", [
    *itertools.product(["add", "sub", "mul"], ["f16", "bf16", "f32", "f64"]), ("div.rn", "f32"), ("div.rn", "f64"),
    ("add.rn", "f32"), ("mul.rn", "f32"),
])  # fmt: skip
def test_sums_products_and_quotients_are_rounded_to_nearest(name, type_):
    pairs = list(itertools.product(floats(type_, 12), repeat=2))
    expected = [exactly(name.split(".")[0], type_, *(decoded(type_, bits) for bits in pair)) for pair in pairs]
    check(f"{name}.{type_}", type_, pairs, expected)


@pytest.mark.parametrize("type_", ["f16", "bf16", "f32"])
def test_fma_of_any_numbers(type_):
    rows = list(itertools.product(floats(type_, 3), repeat=3))
    check(
        f"fma.rn.{type_}", type_, rows, [exactly("fma", type_, *(decoded(type_, bits) for bits in row)) for row in rows]
    )


@pytest.mark.parametrize("type_", ["f16", "bf16"])
def test_fma_of_16_bits_next_to_halfway(type_):
    """(1 + i)(1 - i) is a little less than 1, half of the last place of c: float32 would see a tie."""
    precision, _, largest = FORMATS[type_]
    rows = []
    for _ in range(1000):
        i, scale = (
            RANDOM.choice([1, 2, 5]) * 2.0 ** (1 - precision),
            2.0 ** RANDOM.randint(-largest, largest - precision),
        )
        a, b = RANDOM.choice([1, -1]) * (1 + i), RANDOM.choice([1 - i, 1, 1 + i])
        c = RANDOM.choice([1, -1]) * float(RANDOM.randint(2**precision, 2 ** (precision + 1)) // 2 * 2)
        rows.append(tuple(pattern(type_, x) for x in (a, b * scale, c * scale) if abs(x) < 2.0**largest))
    rows = [row for row in rows if len(row) == 3]
    check(
        f"fma.rn.{type_}", type_, rows, [exactly("fma", type_, *(decoded(type_, bits) for bits in row)) for row in rows]
    )


def test_fma_next_to_halfway():
    """(1 + i)(1 - i) is a little less than 1, half of the last place of c: float64 alone would round to a tie."""
    rows = []
    for _ in range(2000):
        i, scale = RANDOM.choice([2, 3, 7, 100]) * 2.0**-23, 2.0 ** RANDOM.randint(-120, 90)
        near = (1 + i) * RANDOM.choice([1, -1]), RANDOM.choice([1 - i, 1, 1 + i])
        c = RANDOM.choice([1, -1]) * float(RANDOM.randint(2**24, 2**24 + 8) // 2 * 2)
        rows.append(tuple(pattern("f32", value) for value in (near[0], near[1] * scale, c * scale)))
    check("fma.rn.f32", "f32", rows, [exactly("fma", "f32", *(decoded("f32", bits) for bits in row)) for row in rows])


def test_fma_of_denormals():
    """A denormal has fewer bits, and so is rounded elsewhere: products are close to half of the smallest one."""
    rows = []
    for _ in range(2000):
        i = RANDOM.choice([0, 2, 3, 7, 2**20, 2**22]) * 2.0**-23
        a, b = (1 + i) * RANDOM.choice([1, -1]), RANDOM.choice([1 - i, 1, 1 + i]) * RANDOM.choice([1, 3, 2.0**-9])
        c = RANDOM.choice([0, 1, -1, RANDOM.randint(-(2**23), 2**23)])
        rows.append(tuple(pattern("f32", x) for x in (a * 2.0**-75, b * 2.0**-75, c * 2.0**-149)))
    check("fma.rn.f32", "f32", rows, [exactly("fma", "f32", *(decoded("f32", bits) for bits in row)) for row in rows])


def test_fma_around_overflow():
    largest = decoded("f32", 0x7F7FFFFF)
    sources = (largest, -largest, 2.0**104), (1.0, 0.5, 2.0, -1.0), (2.0**103, -(2.0**103), 2.0**102, largest, 1e-30)
    rows = [tuple(pattern("f32", x) for x in row) for row in itertools.product(*sources)]
    check("fma.rn.f32", "f32", rows, [exactly("fma", "f32", *(decoded("f32", bits) for bits in row)) for row in rows])


@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_square_roots(type_):
    rows = [(bits,) for bits in floats(type_, 200)]
    precision = FORMATS[type_][0]

    def root(x: float) -> float:
        if math.isnan(x) or x in (0, INF) or x < 0:
            return x if x == 0 or x == INF else NAN
        scaled = Fraction(x) * Fraction(4) ** 1200  # an integer: isqrt is exact
        low = math.isqrt(scaled.numerator << 4)
        sticky = Fraction(2 * low + (low * low != scaled.numerator << 4), 8)  # one bit more tells inexact roots apart
        assert scaled.denominator == 1 and low.bit_length() > precision + 2
        return rounded(type_, sticky / Fraction(2) ** 1200)

    check(f"sqrt.rn.{type_}", type_, rows, [root(decoded(type_, bits)) for (bits,) in rows])


@pytest.mark.parametrize("type_", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("name", ["min", "max", "min.NaN", "max.NaN"])
def test_extremes_with_nan_and_signed_zeros(name, type_):
    """The other operand of a NaN, or NaN if the opcode says so; -0 is smaller than +0."""
    choose = max if name.startswith("max") else min
    pairs = list(itertools.product(floats(type_, 6), repeat=2))

    def truth(a: float, b: float) -> float:
        numbers = [x for x in (a, b) if not math.isnan(x)]
        if not numbers or (name.endswith("NaN") and len(numbers) < 2):
            return NAN
        return choose(numbers, key=lambda x: (x, math.copysign(1, x)))

    check(f"{name}.{type_}", type_, pairs, [truth(*(decoded(type_, bits) for bits in pair)) for pair in pairs])


@pytest.mark.parametrize("type_", ["f16", "bf16", "f32", "f64"])
def test_signs(type_):
    rows = [(bits,) for bits in floats(type_, 20)]
    values = [decoded(type_, bits) for (bits,) in rows]
    check(f"neg.{type_}", type_, rows, [-value for value in values])
    check(f"abs.{type_}", type_, rows, [abs(value) for value in values])


@pytest.mark.parametrize("type_", ["f16", "bf16", "f32", "f64"])
def test_comparisons_with_nan(type_):
    """Of NaN, ordered ones are false (``ne``, too), and unordered ones are true."""
    pairs = list(itertools.product(floats(type_, 6), repeat=2))
    numbers = [(decoded(type_, a), decoded(type_, b)) for a, b in pairs]
    unordered = [math.isnan(a) or math.isnan(b) for a, b in numbers]
    for name, truth in COMPARE.items():
        ordered = [truth(a, b) and not nan for (a, b), nan in zip(numbers, unordered, strict=True)]
        assert compute(f"setp.{name}.{type_}", pairs) == ordered
        assert compute(f"setp.{name}u.{type_}", pairs) == [a or b for a, b in zip(ordered, unordered, strict=True)]
    assert compute(f"setp.nan.{type_}", pairs) == unordered
    assert compute(f"setp.num.{type_}", pairs) == [not nan for nan in unordered]


def flushed(value: float) -> float:
    return math.copysign(0.0, value) if abs(value) < 2.0**-126 else value


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma.rn"])
def test_ftz_makes_zeros_of_denormals(name):
    """Of operands and of the result, with their sign."""
    count = 3 if name == "fma.rn" else 2
    rows = list(itertools.product(floats("f32", 3 if count == 3 else 12), repeat=count))
    rows += [tuple(pattern("f32", x) for x in (2.0**-70, 2.0**-70, -0.0)[:count])]
    plain = name.split(".")[0]
    expected = [flushed(exactly(plain, "f32", *(flushed(decoded("f32", bits)) for bits in row))) for row in rows]
    full, _, rounding = name.partition(".")
    check(f"{full}{'.' + rounding if rounding else ''}.ftz.f32", "f32", rows, expected)


APPROXIMATE = {
    "ex2": lambda x: math.pow(2.0, x) if x < 128 else INF,
    "lg2": lambda x: math.log2(x) if x > 0 else -INF if x == 0 else NAN,
    "rcp": lambda x: 1 / x if x else math.copysign(INF, x),
    "rsqrt": lambda x: 1 / math.sqrt(x) if x > 0 else math.copysign(INF, x) if x == 0 else NAN,
    "sqrt": lambda x: math.sqrt(x) if x >= 0 else NAN,
    "sin": lambda x: math.sin(x) if math.isfinite(x) else NAN,
    "cos": lambda x: math.cos(x) if math.isfinite(x) else NAN,
    "tanh": math.tanh,
}


@pytest.mark.parametrize("ftz", [False, True], ids=["", "ftz"])
@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_functions_are_at_most_one_away(name, ftz):
    rows = [(bits,) for bits in floats("f32", 200)]
    rows += [(pattern("f32", RANDOM.uniform(-30, 30)),) for _ in range(200)]
    flush = flushed if ftz else lambda x: x
    for (bits,), got in zip(rows, compute(f"{name}.approx{'.ftz' * ftz}.f32", rows), strict=True):
        x = flush(decoded("f32", bits))
        truth = NAN if math.isnan(x) else APPROXIMATE[name](x)
        near = flush(rounded("f32", Fraction(truth))) if math.isfinite(truth) else truth
        if math.isfinite(near) and near:
            assert abs(got - pattern("f32", near)) <= 1, f"{name} of {x!r}: {decoded('f32', got)!r}, {near!r}"
        else:
            value = decoded("f32", got)
            assert value == near or (math.isnan(value) and math.isnan(near)), f"{name} of {x!r}: {value!r}, {near!r}"


def test_division_full_and_approx():
    pairs = list(itertools.product(floats("f32", 12), repeat=2))
    expected = [exactly("div", "f32", decoded("f32", a), decoded("f32", b)) for a, b in pairs]
    check("div.full.f32", "f32", pairs, expected)
    check("div.approx.f32", "f32", pairs, expected)


@pytest.mark.parametrize("pair, half", [("f16x2", "f16"), ("bf16x2", "bf16")])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "min", "max", "min.NaN", "max.NaN", "neg", "abs"])
def test_two_halves_at_once(name, pair, half):
    count = 1 if name in ("neg", "abs") else 2
    low, high = ([RANDOM.choice(floats(half, 30)) for _ in range(400 * count)] for _ in "lh")
    rows = lambda values: list(zip(*[iter(values)] * count, strict=True))
    both = rows([a | b << 16 for a, b in zip(low, high, strict=True)])
    expected = zip(compute(f"{name}.{half}", rows(low)), compute(f"{name}.{half}", rows(high)), strict=True)
    assert compute(f"{name}.{pair}", both) == [a | b << 16 for a, b in expected]


def test_comparison_of_two_halves_gives_two_predicates():
    one, two, nan = (pattern("f16", value) for value in (1.0, 2.0, NAN))
    function, sizes = operation("setp.lt.f16x2")
    a, b = (np.array([x], np.uint32) for x in (one | two << 16, two | nan << 16))
    assert [part.tolist() for part in function(a, b)] == [[True], [False]] and sizes == (4, 4)


# Conversions


@pytest.mark.parametrize("source, target", [
    ("f32", "f16"), ("f32", "bf16"), ("f64", "f32"), ("f64", "f16"), ("f16", "f32"), ("bf16", "f32"), ("f32", "f64"),
])  # fmt: skip
def test_conversions_between_floats(source, target):
    """Halfway cases, denormals and overflow among them."""
    values = floats(source, 500)
    if FORMATS[source][0] > FORMATS[target][0]:
        for bits in floats(target, 200):
            value = decoded(target, bits)
            if math.isfinite(value) and value and (whole := pattern(source, value)) > 9:
                step = 1 << FORMATS[source][0] - FORMATS[target][0]
                values += [whole + step // 2 + nearby for nearby in (-1, 0, 1)]
    rows = [(bits,) for bits in values]
    truth = lambda x: math.copysign(rounded(target, Fraction(x)), x) if math.isfinite(x) else x
    rounding = "" if FORMATS[source][0] < FORMATS[target][0] else ".rn"
    check(f"cvt{rounding}.{target}.{source}", source, rows, [truth(decoded(source, bits)) for bits in values], target)


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_nan_of_16_bits_is_canonical(half):
    assert compute(f"cvt.rn.{half}.f32", [(0x7F800001,), (0xFFC00000,)]) == [0x7FFF, 0x7FFF]


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_conversion_to_two_halves(half):
    """The first source becomes the upper half."""
    rows = [(pattern("f32", 1.5), pattern("f32", -2.0)), (pattern("f32", 1e30), pattern("f32", NAN))]
    single = lambda bits: compute(f"cvt.rn.{half}.f32", [(bits,)])[0]
    assert compute(f"cvt.rn.{half}x2.f32", rows) == [single(a) << 16 | single(b) for a, b in rows]


@pytest.mark.parametrize("source", ["u8", "s8", "u16", "s16", "u32", "s32"])
@pytest.mark.parametrize("target", ["f16", "bf16", "f32", "f64"])
def test_conversions_of_integers_to_floats(source, target):
    bits = int(source[1:])
    values = integers(bits) + ([2**24 + 1, 2**25 + 2, 2**25 + 6, 2**31 - 64, 65519, 65520] if bits == 32 else [])
    expected = [rounded(target, Fraction(number(source, value))) for value in values]
    for value, got, wanted in zip(
        values, compute(f"cvt.rn.{target}.{source}", [(value,) for value in values]), expected, strict=True
    ):
        assert same(target, got, wanted), f"{value}: {decoded(target, got)}, {wanted}"


@pytest.mark.parametrize("target", ["s32", "u32", "s16", "u16", "s8", "u8"])
@pytest.mark.parametrize("source", ["f16", "f32", "f64"])
def test_conversions_of_floats_to_integers(source, target):
    """The nearest integer that there is; NaN gives 0."""
    bits, ways = int(target[1:]), {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
    low = -(1 << bits - 1) if target[0] == "s" else 0
    high = low + (1 << bits) - 1
    values = [x for bits in floats(source, 100) for x in [decoded(source, bits)]]
    values += [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127.5, 255.5, 3.75, -3.75]
    for way, whole in ways.items():
        got = compute(f"cvt.{way}.{target}.{source}", [(pattern(source, x),) for x in values])
        for x, value in zip(values, got, strict=True):
            truth = 0 if math.isnan(x) else low if x == -INF else high if x == INF else min(max(whole(x), low), high)
            assert value % (1 << bits) == truth % (1 << bits), f"cvt.{way}.{target}.{source} of {x!r}"


@pytest.mark.parametrize("source", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("target", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_conversions_between_integers(source, target):
    """A wider target gets the source's sign; a narrower one its lower bits."""
    rows = [(value,) for value in integers(int(source[1:]))]
    bits = int(target[1:])
    got = [value % (1 << bits) for value in compute(f"cvt.{target}.{source}", rows)]
    assert got == [number(source, value) % (1 << bits) for (value,) in rows]


@pytest.mark.parametrize("opcode", [
    "add", "add.cc.u32", "add.sat.f32", "add.rz.f32", "mul.wide.s64", "mul24.lo.s32", "fma.rn.f64", "fma.rn.relu.f16",
    "cvt.sat.u8.s32", "cvt.rz.f32.f64", "cvt.rn.f32.s64", "cvt.rna.tf32.f32", "min.xorsign.abs.f32", "bfe.u64",
    "setp.lt.and.f32", "ex2.approx.f64", "popc.b32", "lop3.b32", "dp4a.s32.s32", "vadd.s32",
])  # fmt: skip
def test_unknown_operations_are_refused(opcode):
    with pytest.raises(UnknownOperationError):
        operation(opcode)
