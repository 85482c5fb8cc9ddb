"""Instructions of PTX on floats of 16, 32 and 64 bits, and on pairs of 16-bit floats."""

from collections.abc import Callable

import numpy as np
import triton.language as tl
from support.triton_interpreter.formats import Array, fused, narrow, widen
from support.triton_interpreter.ptx_machine import NUMBER_TYPES, Machine, Step, number_type, only
from support.triton_interpreter.ptx_text import Instruction, PtxError
from triton._C.libtriton import interpreter as native

_SMALL = {"f16": tl.float16, "bf16": tl.bfloat16}
_MODIFIERS = ("rn", "ftz", "relu", "sat", "NaN", "approx", "full")


def is_float(kind: str) -> bool:
    """Whether a type of PTX is one of floats."""
    return kind.removesuffix("x2") in ("f16", "bf16", "f32", "f64")


def floats(machine: Machine, step: Instruction, kind: str, at: int) -> Array:
    """An operand as float32, or float64 for f64; of pairs [..., 2], lower half first."""
    bits = NUMBER_TYPES[kind]
    return decoded(machine.read(step.operands[at], bits, step), kind)


def decoded(value: Array, kind: str) -> Array:
    """Bits as float32, or float64 for f64; of pairs [..., 2], lower half first."""
    one = kind.removesuffix("x2")
    if kind.endswith("x2"):
        half = NUMBER_TYPES[one]
        mask = value.dtype.type((1 << half) - 1)
        value = np.stack([value & mask, value >> value.dtype.type(half)], axis=-1).astype(f"u{half // 8}")
    if one == "f16":
        return value.view(np.float16).astype(np.float32)
    if one == "bf16":
        return widen(value, tl.bfloat16)
    return value.view(np.float32 if one == "f32" else np.float64)


def encoded(values: Array, kind: str, toward_zero: bool = False) -> Array:
    """The bits of float32 or float64 values, rounded to a type; the last axis of pairs goes."""
    one = kind.removesuffix("x2")
    if one in _SMALL:
        bits = narrow(values, _SMALL[one], toward_zero).view(np.uint16)
    else:
        bits = values.astype(np.float32 if one == "f32" else np.float64).view(f"u{NUMBER_TYPES[one] // 8}")
    if not kind.endswith("x2"):
        return bits
    wide = np.dtype(f"u{NUMBER_TYPES[kind] // 8}")
    low, high = bits[..., 0].astype(wide), bits[..., 1].astype(wide)
    return low | (high << wide.type(NUMBER_TYPES[one]))


def finished(values: Array, step: Instruction) -> Array:
    """A result with the modifiers that change it: `.relu`, `.sat`."""
    if "relu" in step.modifiers:
        values = np.where(values > 0, values, np.where(values != values, values, 0))
    if "sat" in step.modifiers:
        values = np.where(values > 0, np.minimum(values, 1), 0)
    return values


def flushed(values: Array, step: Instruction) -> Array:
    """With `.ftz`, float32 values below the normal range as zeros of their sign."""
    if "ftz" not in step.modifiers or values.dtype != np.float32:
        return values
    return np.where(np.abs(values) < np.float32(2.0**-126), np.copysign(np.float32(0), values), values)


def floating(operation: Callable[..., Array]) -> Step:
    """An operation whose operands and result have one type, rounded once."""

    def run(machine: Machine, step: Instruction) -> None:
        only(step, _MODIFIERS)
        kind = number_type(step)
        if not is_float(kind):
            raise PtxError(f"no model for {kind}: {step.text!r}")
        sources = [flushed(floats(machine, step, kind, at), step) for at in range(1, len(step.operands))]
        found = flushed(finished(operation(*sources), step), step)
        machine.write(step.operands[0], encoded(found, kind), step)

    return run


def fused_multiply_add(machine: Machine, step: Instruction) -> None:
    """`fma`, rounded once."""
    only(step, _MODIFIERS)
    kind = number_type(step)
    a, b, c = np.broadcast_arrays(*(flushed(floats(machine, step, kind, at), step) for at in (1, 2, 3)))
    one = kind.removesuffix("x2")
    if one in _SMALL:
        found = fused(a, b, c)
    else:
        multiply_add = native.fma_fp32 if one == "f32" else native.fma_fp64
        found = multiply_add(*(np.ascontiguousarray(part) for part in (a, b, c)))
    machine.write(step.operands[0], encoded(flushed(finished(found, step), step), kind), step)


def smallest(machine: Machine, step: Instruction) -> None:
    """`min` and `max` of floats: a NaN loses, or with `.NaN` wins."""
    low = step.name == "min"
    if "NaN" in step.modifiers:
        floating(np.minimum if low else np.maximum)(machine, step)
    else:
        floating(np.fmin if low else np.fmax)(machine, step)


def sign(machine: Machine, step: Instruction) -> None:
    """`neg` and `abs`, which change the sign of anything, NaN included."""
    only(step, ("ftz",))
    kind = number_type(step)
    bits, one = NUMBER_TYPES[kind], NUMBER_TYPES[kind.removesuffix("x2")]
    value = machine.read(step.operands[1], bits, step)
    signs = value.dtype.type(sum(1 << at for at in range(one - 1, bits, one)))
    machine.write(step.operands[0], value ^ signs if step.name == "neg" else value & ~signs, step)


_COMPARED: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def set_predicate(machine: Machine, step: Instruction) -> None:
    """`setp`: a comparison, of pairs one for each half; may be joined to another predicate."""
    comparison, *rest = step.modifiers
    joins = [modifier for modifier in rest if modifier in ("and", "or", "xor")]
    kind = number_type(step)
    if is_float(kind):
        a, b = (floats(machine, step, kind, at) for at in (1, 2))
    else:
        a, b = (machine.read(step.operands[at], NUMBER_TYPES[kind], step) for at in (1, 2))
        if kind[0] == "s":
            a, b = a.view(f"i{a.dtype.itemsize}"), b.view(f"i{b.dtype.itemsize}")
    either_nan = (a != a) | (b != b)
    if comparison in _COMPARED:
        found = _COMPARED[comparison](a, b) & ~either_nan
    elif comparison in ("num", "nan"):
        found = either_nan if comparison == "nan" else ~either_nan
    elif comparison.removesuffix("u") in _COMPARED:
        found = _COMPARED[comparison.removesuffix("u")](a, b) | either_nan
    else:
        raise PtxError(f"no model of the comparison .{comparison} in {step.text!r}")
    if joins:
        joined = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[joins[0]]
        found = joined(found, machine.read(step.operands[3], 1, step))
    target = step.operands[0]
    halves = getattr(target, "items", None)
    if kind.endswith("x2"):
        if halves is None:
            raise PtxError(f"two predicates are needed: {step.text!r}")
        machine.write(halves[0], found[..., 0], step)
        machine.write(halves[1], found[..., 1], step)
    elif halves is not None:
        machine.write(halves[0], found, step)
        machine.write(halves[1], ~found, step)
    else:
        machine.write(target, found, step)


def select(machine: Machine, step: Instruction) -> None:
    """`selp`: one of two values by a predicate."""
    only(step, ())
    bits = NUMBER_TYPES[number_type(step)]
    a, b = (machine.read(step.operands[at], bits, step) for at in (1, 2))
    machine.write(step.operands[0], np.where(machine.read(step.operands[3], 1, step), a, b), step)
