"""What PTX's arithmetic instructions compute, on arrays of register bits (section 9.7).

:func:`operation` looks an opcode up: ``operation("fma.rn.f32")`` is a function of three uint32 arrays that returns one,
and the sizes of its operands. What PTX leaves open is decided here:

- Approximate functions (ex2, lg2, rsqrt, sqrt.approx, div.full, ...) return the float32 nearest to the exact value,
  or at most one away from it. Hardware may be off by 1 to 2 ulp more (section 9.7.3 has each bound).
- NaN has no payload. Of 16-bit types it is 0x7FFF, as section 9.7.9 says of conversions.
- Integers divided by 0 give all ones.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kernels.ptx.program import SIGNED, UNSIGNED, Array, size_of

Function = Callable[..., Any]
"""Of arrays of bits, returns one; a comparison of two halves returns two."""

FLOATS = ("f16", "bf16", "f32", "f64")
PAIRS = {"f16x2": "f16", "bf16x2": "bf16", "s16x2": "s16", "u16x2": "u16"}  # two in a register
SMALLEST_NORMAL = np.float32(2.0**-126)


class Operation(NamedTuple):
    """What an instruction computes: a function of its sources' bits, and the sources' sizes in bytes (0: predicate)."""

    function: Function
    sizes: tuple[int, ...]


class UnknownOperationError(Exception):
    """The opcode is not arithmetic, or a form of it that is not known."""


@functools.cache
def operation(opcode: str) -> Operation:
    """The operation of an opcode, for example ``"mad.wide.s32"``.

    Raises:
        UnknownOperationError: nothing is known of this opcode, or of one of its modifiers.
    """
    base, *modifiers = opcode.split(".")
    if base not in _FAMILIES or not modifiers:
        raise UnknownOperationError(opcode)
    type_ = modifiers.pop()
    try:
        if type_ in PAIRS and base != "cvt":
            function, sizes = _FAMILIES[base](base, modifiers, PAIRS[type_])
            return Operation(_both_halves(function), tuple(2 * size for size in sizes))
        return _FAMILIES[base](base, modifiers, type_)
    except (KeyError, ValueError) as error:
        raise UnknownOperationError(opcode) from error


def _take(modifiers: list[str], *known: str) -> set[str]:
    """The modifiers as a set. An unknown one is an error."""
    if not set(modifiers) <= set(known):
        raise UnknownOperationError(modifiers)
    return set(modifiers)


# Floating point: bits to numbers, and back


def decode(type_: str, bits: Array) -> Array:
    """The numbers behind the bits: float32, of f64 float64."""
    if type_ == "f16":
        return bits.view(np.float16).astype(np.float32)
    if type_ == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view({"f32": np.float32, "f64": np.float64}[type_])


def encode(type_: str, numbers: Array) -> Array:
    """The bits of numbers, rounded to the nearest value, and to the even one of two equally near."""
    if type_ == "f32":
        return numbers.astype(np.float32, copy=False).view(np.uint32)
    if type_ == "f64":
        return numbers.astype(np.float64, copy=False).view(np.uint64)
    if type_ == "f16":
        bits = numbers.astype(np.float16).view(np.uint16)
    else:
        wide = numbers.astype(np.float32, copy=False).view(np.uint32)
        one, half = np.uint32(1), np.uint32(0x7FFF)
        bits = ((wide + half + (wide >> np.uint32(16) & one)) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FFF), bits)


def flush(numbers: Array) -> Array:
    """.ftz: denormal float32 become zeros of the same sign."""
    return np.where(np.abs(numbers) < SMALLEST_NORMAL, np.copysign(np.float32(0), numbers), numbers)


def _to_odd(near: Array, error: Array) -> Array:
    """Numbers rounded to nearest, off by ``error``, rounded to odd instead, which a second rounding does no harm to.

    (Boldo and Melquiond 2008, https://inria.hal.science/inria-00080427)
    """
    bits = near.view(SIGNED[near.dtype.itemsize])
    inexact = (error != 0) & (bits & 1 == 0) & np.isfinite(near)
    return np.where(inexact, np.where((error > 0) == ~np.signbit(near), bits + 1, bits - 1), bits).view(near.dtype)


def _sum_and_error(product: Array, c: Array) -> tuple[Array, Array]:
    """The sum in float64, and the error of its rounding, exactly."""
    total = product + c
    rest = total - product
    return total, (product - (total - rest)) + (c - rest)


def fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32, rounded once.

    The product is exact in float64, the sum is rounded. To round that again to float32 is wrong only if the float64
    looks halfway between two float32.
    """
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + c
    halfway = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    if (halfway | (np.abs(total) < SMALLEST_NORMAL)).any():  # denormals have fewer bits
        total = _to_odd(*_sum_and_error(product, c))
    return total.astype(np.float32)


def _fused_multiply_add_halves(a: Array, b: Array, c: Array) -> Array:
    """The same of 16-bit numbers: in float32, rounded to odd."""
    total = _to_odd(*_sum_and_error(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)))
    near = total.astype(np.float32)
    return _to_odd(near, total - near)


def _smaller(a: Array, b: Array) -> Array:
    return np.where(a == b, np.where(np.signbit(a), a, b), np.fmin(a, b))  # -0 is smaller than +0


def _larger(a: Array, b: Array) -> Array:
    return np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b))


def _unless_nan(function: Function) -> Function:
    """The function with NaN where an operand is NaN."""
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), a + b, function(a, b))


def _exactly(function: Function) -> Function:
    """The function computed in float64 and rounded to float32."""
    return lambda x: function(x.astype(np.float64)).astype(np.float32)


_APPROXIMATE = {
    "ex2": _exactly(np.exp2),
    "lg2": _exactly(np.log2),
    "rcp": _exactly(np.reciprocal),
    "rsqrt": _exactly(lambda x: 1.0 / np.sqrt(x)),
    "sin": _exactly(np.sin),
    "cos": _exactly(np.cos),
    "tanh": _exactly(np.tanh),
}
_FLOAT: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "sqrt": np.sqrt,
    "neg": np.negative,
    "abs": np.abs,
    "min": _smaller,
    "max": _larger,
    "fma": fused_multiply_add,
    **_APPROXIMATE,
}


def _float(base: str, modifiers: list[str], type_: str) -> Operation:
    known = {"min": ("NaN", "ftz"), "max": ("NaN", "ftz"), "neg": ("ftz",), "abs": ("ftz",)}
    given = _take(modifiers, *known.get(base, ("rn", "approx", "full", "ftz")))
    if type_ == "f64" and (base == "fma" or base in _APPROXIMATE):
        raise UnknownOperationError(type_)
    function = _fused_multiply_add_halves if base == "fma" and type_ != "f32" else _FLOAT[base]
    if "NaN" in given:
        function = _unless_nan(function)
    if "ftz" in given:
        compute = lambda *x: encode(type_, flush(function(*[flush(decode(type_, a)) for a in x])))
    else:
        compute = lambda *x: encode(type_, function(*[decode(type_, a) for a in x]))
    count = {"fma": 3, "add": 2, "sub": 2, "mul": 2, "div": 2, "min": 2, "max": 2}.get(base, 1)
    return Operation(compute, (size_of(type_),) * count)


def halves(x: Array) -> tuple[Array, Array]:
    """The low and the high half of each register, in a type half as wide."""
    width = x.dtype.itemsize // 2
    half = UNSIGNED[width]
    return x.astype(half), (x >> x.dtype.type(8 * width)).astype(half)


def join(low: Array, high: Array) -> Array:
    """Registers of two halves."""
    width = low.dtype.itemsize
    whole = UNSIGNED[2 * width]
    return low.astype(whole) | (high.astype(whole) << whole(8 * width))


def _both_halves(function: Function) -> Function:
    """A function of 16-bit registers for registers that hold two. Of predicates it returns both."""

    def compute(*x: Array) -> Array | tuple[Array, Array]:
        low, high = (function(*part) for part in zip(*map(halves, x), strict=True))
        return (low, high) if low.dtype == np.bool_ else join(low, high)

    return compute


# Integers and bits


def _signed(type_: str) -> bool:
    return type_[0] == "s"


def _view(type_: str, bits: Array) -> Array:
    """The integers behind the bits."""
    return bits.view((SIGNED if _signed(type_) else UNSIGNED)[size_of(type_)])


def _product(type_: str) -> Function:
    """The whole product, twice as wide."""
    wide = (SIGNED if _signed(type_) else UNSIGNED)[2 * size_of(type_)]
    return lambda a, b: (_view(type_, a).astype(wide) * _view(type_, b).astype(wide)).view(UNSIGNED[2 * size_of(type_)])


def _upper_half(type_: str) -> Function:
    """The product's upper half. Of 64 bits it is summed from products of 32 bits, which NumPy can hold."""
    size = size_of(type_)
    if size < 8:
        whole, unsigned, wide = _product(type_), UNSIGNED[size], UNSIGNED[2 * size]
        return lambda a, b: (whole(a, b) >> wide(8 * size)).astype(unsigned)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)

    def compute(a: Array, b: Array) -> Array:
        middle = (a >> half) * (b & low) + ((a & low) * (b & low) >> half)
        other = (a & low) * (b >> half) + (middle & low)
        upper = (a >> half) * (b >> half) + (middle >> half) + (other >> half)
        if _signed(type_):
            upper = (
                upper - np.where(a >> np.uint64(63), b, np.uint64(0)) - np.where(b >> np.uint64(63), a, np.uint64(0))
            )
        return upper

    return compute


def _multiply(base: str, modifiers: list[str], type_: str) -> Operation:
    """mul and mad: the product's lower half, its upper half, or all of it."""
    if type_ in FLOATS:
        return _float(base, modifiers, type_)
    (which,), size = modifiers, size_of(type_)
    if which == "lo":
        product: Function = np.multiply
    elif which == "wide":
        product = _product(type_)
    elif which == "hi":
        product = _upper_half(type_)
    else:
        raise UnknownOperationError(which)
    if base == "mul":
        return Operation(product, (size, size))
    return Operation(lambda a, b, c: product(a, b) + c, (size, size, 2 * size if which == "wide" else size))


def _add(base: str, modifiers: list[str], type_: str) -> Operation:
    if type_ in FLOATS:
        return _float(base, modifiers, type_)
    _take(modifiers)
    return Operation({"add": np.add, "sub": np.subtract}[base], (size_of(type_),) * 2)


def _sign(base: str, modifiers: list[str], type_: str) -> Operation:
    if type_ in FLOATS:
        return _float(base, modifiers, type_)
    _take(modifiers)
    size = size_of(type_)
    unsigned = UNSIGNED[size]
    negative = lambda a: ~a + unsigned(1)
    absolute = lambda a: np.abs(a.view(SIGNED[size])).view(unsigned)
    return Operation({"neg": negative, "abs": absolute}[base], (size,))


def _extremum(base: str, modifiers: list[str], type_: str) -> Operation:
    if type_ in FLOATS:
        return _float(base, modifiers, type_)
    _take(modifiers)
    choose = {"min": np.minimum, "max": np.maximum}[base]
    unsigned = UNSIGNED[size_of(type_)]
    return Operation(lambda a, b: choose(_view(type_, a), _view(type_, b)).view(unsigned), (size_of(type_),) * 2)


def _divide(base: str, modifiers: list[str], type_: str) -> Operation:
    """div and rem, rounded towards zero as in C."""
    if type_ in FLOATS:
        return _float(base, modifiers, type_)
    _take(modifiers)
    unsigned = UNSIGNED[size_of(type_)]

    def compute(a: Array, b: Array) -> Array:
        zero = b == 0
        a, b = _view(type_, a), np.where(zero, 1, _view(type_, b)).astype(_view(type_, b).dtype)
        rest = np.fmod(a, b)
        result = rest if base == "rem" else (a - rest) // b
        return np.where(zero, ~unsigned(0), result.view(unsigned))

    return Operation(compute, (size_of(type_),) * 2)


def _shift(base: str, modifiers: list[str], type_: str) -> Operation:
    """shl and shr. A shift by the width or more gives 0, or the sign."""
    _take(modifiers)
    size = size_of(type_)
    unsigned, bits = UNSIGNED[size], 8 * size
    if base == "shr" and _signed(type_):
        signed = SIGNED[size]
        compute = lambda a, b: (a.view(signed) >> np.minimum(b, bits - 1).astype(signed)).view(unsigned)
    else:
        move = np.left_shift if base == "shl" else np.right_shift
        compute = lambda a, b: np.where(b < bits, move(a, np.minimum(b, bits - 1).astype(unsigned)), unsigned(0))
    return Operation(compute, (size, 4))


def _logic(base: str, modifiers: list[str], type_: str) -> Operation:
    _take(modifiers)
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.bitwise_not}[base]
    return Operation(function, (size_of(type_),) * (1 if base == "not" else 2))


def _extract(base: str, modifiers: list[str], type_: str) -> Operation:
    """bfe: the field of c bits of a from bit b on, with its sign if it has one."""
    _take(modifiers)
    if size_of(type_) != 4:
        raise UnknownOperationError(type_)

    def compute(a: Array, position: Array, length: Array) -> Array:
        position, length = (position & np.uint32(0xFF)).astype(np.int64), (length & np.uint32(0xFF)).astype(np.int64)
        length, position = np.minimum(length, 32), np.minimum(position, 32)
        value = _view(type_, a).astype(np.int64) >> position & (np.int64(1) << length) - 1
        if _signed(type_):
            negative = (value >> np.maximum(length - 1, 0)) & 1 == 1
            value = np.where(negative, value - (np.int64(1) << length), value)
        return value.astype(np.uint32)

    return Operation(compute, (4, 4, 4))


def _insert(base: str, modifiers: list[str], type_: str) -> Operation:
    """bfi: b, in which d bits from bit c on are replaced by those of a."""
    _take(modifiers)
    if type_ != "b32":
        raise UnknownOperationError(type_)

    def compute(a: Array, b: Array, position: Array, length: Array) -> Array:
        position, length = (np.minimum(x & np.uint32(0xFF), 32).astype(np.uint64) for x in (position, length))
        mask = ((np.uint64(1) << length) - np.uint64(1)) << position
        return ((b & ~mask) | (a.astype(np.uint64) << position & mask)).astype(np.uint32)

    return Operation(compute, (4, 4, 4, 4))


def _permute(base: str, modifiers: list[str], type_: str) -> Operation:
    """prmt: each half-byte of c names a byte of b:a. With its highest bit set, it is that byte's sign, eight times."""
    _take(modifiers)

    def compute(a: Array, b: Array, selector: Array) -> Array:
        both = join(a, b)
        result = np.uint32(0)
        for index in range(4):
            nibble = selector >> np.uint32(4 * index) & np.uint32(15)
            byte = (both >> (np.uint64(8) * (nibble & np.uint32(7)).astype(np.uint64)) & np.uint64(0xFF)).astype(
                np.uint32
            )
            sign = (byte >> np.uint32(7)) * np.uint32(0xFF)
            result = result | (np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * index))
        return result

    return Operation(compute, (4, 4, 4))


# Comparisons, choices, moves, conversions

_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def _compare(base: str, modifiers: list[str], type_: str) -> Operation:
    """setp. Of NaN, ``lt`` and its like are false, ``ltu`` and its like true (section 9.3.2)."""
    (how,) = modifiers
    size = (size_of(type_),) * 2
    if type_ not in FLOATS:
        return Operation(lambda a, b: _COMPARE[how](_view(type_, a), _view(type_, b)), size)
    nan = lambda a, b: np.isnan(a) | np.isnan(b)
    if how in ("nan", "num"):
        test = nan if how == "nan" else lambda a, b: ~nan(a, b)
    elif how.endswith("u"):
        ordered = _COMPARE[how[:-1]]
        test = lambda a, b: ordered(a, b) | nan(a, b)
    else:
        ordered = _COMPARE[how]
        test = lambda a, b: ordered(a, b) & ~nan(a, b)
    return Operation(lambda a, b: test(decode(type_, a), decode(type_, b)), size)


def _select(base: str, modifiers: list[str], type_: str) -> Operation:
    _take(modifiers)
    return Operation(lambda a, b, p: np.where(p, a, b), (size_of(type_), size_of(type_), 0))


def _move(base: str, modifiers: list[str], type_: str) -> Operation:
    _take(modifiers)
    return Operation(lambda a: a, (size_of(type_),))


_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}  # to integers


def _convert(base: str, modifiers: list[str], source: str) -> Operation:
    """cvt.to.from: between sizes of integers and of floating-point numbers, and from one to the other."""
    target = modifiers.pop()
    if target in ("f16x2", "bf16x2") and source == "f32":  # the first source becomes the upper half
        _take(modifiers, "rn")
        half = target[:-2]
        return Operation(lambda a, b: join(encode(half, decode("f32", b)), encode(half, decode("f32", a))), (4, 4))
    size, to_float, from_float = (size_of(source),), target in FLOATS, source in FLOATS
    if to_float and from_float:
        _take(modifiers, "rn")
        return Operation(lambda a: encode(target, decode(source, a)), size)
    if to_float:
        _take(modifiers, "rn")
        if size_of(source) > 4:
            raise UnknownOperationError(source)  # float64 does not hold every 64-bit integer
        return Operation(lambda a: encode(target, _low(source, a).astype(np.float64)), size)
    integer = (SIGNED if _signed(target) else UNSIGNED)[size_of(target)]
    if from_float:  # the nearest that the integer can be; NaN gives 0
        (how,), limits = modifiers, np.iinfo(integer)
        if size_of(target) > 4:
            raise UnknownOperationError(target)
        to_whole = _ROUND[how]

        def compute(a: Array) -> Array:
            number = decode(source, a).astype(np.float64)
            return np.clip(to_whole(np.where(np.isnan(number), 0.0, number)), limits.min, limits.max).astype(integer)

        return Operation(compute, size)
    _take(modifiers)
    return Operation(lambda a: _low(source, a).astype(integer), size)


def _low(type_: str, bits: Array) -> Array:
    """The integers in the lower bits of registers that may be wider."""
    return _view(type_, bits.astype(UNSIGNED[size_of(type_)]))


_FAMILIES: dict[str, Callable[[str, list[str], str], Operation]] = {
    **dict.fromkeys(("fma", "sqrt", *_APPROXIMATE), _float),
    **dict.fromkeys(("mul", "mad"), _multiply),
    **dict.fromkeys(("add", "sub"), _add),
    **dict.fromkeys(("neg", "abs"), _sign),
    **dict.fromkeys(("min", "max"), _extremum),
    **dict.fromkeys(("div", "rem"), _divide),
    **dict.fromkeys(("shl", "shr"), _shift),
    **dict.fromkeys(("and", "or", "xor", "not"), _logic),
    "bfe": _extract,
    "bfi": _insert,
    "prmt": _permute,
    "setp": _compare,
    "selp": _select,
    "mov": _move,
    "cvt": _convert,
}
