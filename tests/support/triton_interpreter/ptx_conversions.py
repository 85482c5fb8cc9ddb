"""The `cvt` instruction: between integers and floats, and packing pairs of small floats."""

import numpy as np
import triton.language as tl
from support.triton_interpreter.formats import Array, narrow, to_integer, widen
from support.triton_interpreter.ptx_floats import decoded, encoded, finished, flushed, is_float
from support.triton_interpreter.ptx_machine import NUMBER_TYPES, Machine, number_type, only
from support.triton_interpreter.ptx_text import Instruction, PtxError

_BYTES = {"e4m3x2": tl.float8e4nv, "e5m2x2": tl.float8e5}
_WHOLE_NUMBER = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
_ALLOWED = ("rn", "rz", "rna", "satfinite", "sat", "relu", "ftz", *_WHOLE_NUMBER)


def convert(machine: Machine, step: Instruction) -> None:
    """Carry out a `cvt`.

    Raises:
        PtxError: a form that has no model.
    """
    only(step, (*_ALLOWED, "tf32", "pack"))
    if "pack" in step.modifiers:
        _pack_integers(machine, step)
        return
    if "tf32" in step.modifiers:
        _to_tf32(machine, step)
        return
    target, source = number_type(step, -2), number_type(step)
    if len(step.operands) == 3:
        _pack(machine, step, target, source)
    elif target in _BYTES:
        halves = decoded(machine.read(step.operands[1], 32, step), source)
        machine.write(step.operands[0], _encoded_bytes(halves, target, step), step)
    elif source in _BYTES:
        pair = machine.read(step.operands[1], 16, step)
        codes = np.stack([pair & np.uint16(0xFF), pair >> np.uint16(8)], axis=-1).astype(np.uint8)
        machine.write(step.operands[0], encoded(finished(widen(codes, _BYTES[source]), step), target), step)
    else:
        _convert_one(machine, step, target, source)


def _convert_one(machine: Machine, step: Instruction, target: str, source: str) -> None:
    bits, size = NUMBER_TYPES[source], NUMBER_TYPES[target]
    value = machine.read(step.operands[1], bits, step)
    rounding = next((_WHOLE_NUMBER[name] for name in step.modifiers if name in _WHOLE_NUMBER), None)
    if is_float(source):
        wide = flushed(decoded(value, source), step)
        if is_float(target):
            if rounding is not None:
                wide = rounding(wide)
            if "satfinite" in step.modifiers:
                wide = _finite(wide, target)
            found = encoded(flushed(finished(wide, step), step), target, "rz" in step.modifiers)
        else:
            if rounding is None:
                raise PtxError(f"a conversion to integers says how it rounds: {step.text!r}")
            signed = np.dtype(f"{'i' if target[0] == 's' else 'u'}{size // 8}")
            found = to_integer(rounding(wide), signed).view(f"u{size // 8}")
    else:
        whole = value.view(f"i{bits // 8}") if source[0] == "s" else value
        if is_float(target):
            exact = whole.astype(np.float64)
            found = encoded(exact, target, "rz" in step.modifiers)
            if target == "f32" and "rz" in step.modifiers:
                raise PtxError(f"no model of .rz to f32: {step.text!r}")
        else:
            if "sat" in step.modifiers:
                info = np.iinfo(np.dtype(f"{'i' if target[0] == 's' else 'u'}{size // 8}"))
                whole = np.clip(whole.astype(object), info.min, info.max).astype(info.dtype)
            found = whole.astype(f"{'i' if target[0] == 's' else 'u'}{size // 8}").view(f"u{size // 8}")
    _write_one(machine, step, found, signed=target[0] == "s")


def _write_one(machine: Machine, step: Instruction, found: Array, signed: bool) -> None:
    """Write to a register that may be wider than the result; integers keep their value there."""
    bits = getattr(step.operands[0], "bits", 8 * found.dtype.itemsize)
    if signed and bits > 8 * found.dtype.itemsize:
        found = found.view(f"i{found.dtype.itemsize}").astype(f"i{bits // 8}").view(f"u{bits // 8}")
    machine.write(step.operands[0], found, step)


def _pack(machine: Machine, step: Instruction, target: str, source: str) -> None:
    """Two floats to a pair: the first source becomes the upper half."""
    upper, lower = (machine.read(step.operands[at], NUMBER_TYPES[source], step) for at in (1, 2))
    pair = np.stack(np.broadcast_arrays(decoded(lower, source), decoded(upper, source)), axis=-1)
    if target in _BYTES:
        found = _encoded_bytes(pair, target, step)
    else:
        if "satfinite" in step.modifiers:
            pair = _finite(pair, target.removesuffix("x2"))
        found = encoded(finished(pair, step), target, "rz" in step.modifiers)
    machine.write(step.operands[0], found, step)


def _encoded_bytes(pair: Array, target: str, step: Instruction) -> Array:
    if "satfinite" not in step.modifiers or "rn" not in step.modifiers:
        raise PtxError(f"conversions to 8-bit floats are .rn.satfinite: {step.text!r}")
    codes = narrow(finished(pair, step), _BYTES[target]).astype(np.uint16)
    return codes[..., 0] | (codes[..., 1] << np.uint16(8))


def _finite(values: Array, kind: str) -> Array:
    largest = {"f16": 65504.0, "bf16": 3.3895313892515355e38, "f32": 3.4028234663852886e38}[kind]
    return np.where(values != values, values, np.clip(values, -largest, largest))


def _to_tf32(machine: Machine, step: Instruction) -> None:
    bits = machine.read(step.operands[1], 32, step)
    if "rna" in step.modifiers:
        rounded = bits + np.uint32(0x1000)
    elif "rn" in step.modifiers:
        rounded = bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    else:
        rounded = bits
    special = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    machine.write(step.operands[0], np.where(special, bits, rounded & np.uint32(0xFFFFE000)), step)


def _pack_integers(machine: Machine, step: Instruction) -> None:
    """`cvt.pack.sat`: two saturated integers go below a shifted third operand."""
    into, source, *_ = [modifier for modifier in step.modifiers if modifier in NUMBER_TYPES]
    if source != "s32" or "sat" not in step.modifiers:
        raise PtxError(f"no model of {step.text!r}")
    bits = NUMBER_TYPES[into]
    info = np.iinfo(np.dtype(f"{'i' if into[0] == 's' else 'u'}{bits // 8}"))
    parts = [machine.read(step.operands[at], 32, step).view(np.int32) for at in (1, 2)]
    upper, lower = (np.clip(part, info.min, info.max).astype(f"u{bits // 8}").astype(np.uint32) for part in parts)
    found = lower | (upper << np.uint32(bits))
    if len(step.operands) == 4 and 2 * bits < 32:
        found = found | (machine.read(step.operands[3], 32, step) << np.uint32(2 * bits))
    machine.write(step.operands[0], found, step)
