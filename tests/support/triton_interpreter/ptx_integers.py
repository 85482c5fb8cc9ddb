"""Instructions of PTX on bits and integers."""

from collections.abc import Callable

import numpy as np
from support.triton_interpreter.formats import Array
from support.triton_interpreter.ptx_machine import NUMBER_TYPES, Machine, Step, number, number_type, only
from support.triton_interpreter.ptx_text import Immediate, Instruction, PtxError


def move(machine: Machine, step: Instruction) -> None:
    """`mov`, also between a register and the parts of it."""
    bits = NUMBER_TYPES[number_type(step)]
    machine.write(step.operands[0], machine.read(step.operands[1], bits, step), step)


def bitwise(operation: Callable[..., Array]) -> Step:
    """`and`, `or`, `xor`, `not`, also on predicates."""

    def run(machine: Machine, step: Instruction) -> None:
        only(step, ())
        bits = NUMBER_TYPES[number_type(step)]
        sources = [machine.read(operand, bits, step) for operand in step.operands[1:]]
        machine.write(step.operands[0], operation(*sources), step)

    return run


def lop3(machine: Machine, step: Instruction) -> None:
    """Any function of three bits, by its table of eight results."""
    only(step, ())
    a, b, c = (machine.read(operand, 32, step) for operand in step.operands[1:4])
    last = step.operands[4]
    if not isinstance(last, Immediate):
        raise PtxError(f"the table of lop3 is a number: {step.text!r}")
    table = number(last.text, 8, step)
    found: Array = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), np.uint32)
    for case in range(8):
        if table >> case & 1:
            found |= (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
    machine.write(step.operands[0], found, step)


def permute(machine: Machine, step: Instruction) -> None:
    """`prmt`: each byte of the result is one of the eight of two registers, or its sign eight times over."""
    only(step, ())
    a, b, selector = (machine.read(operand, 32, step) for operand in step.operands[1:4])
    source = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    found: Array = np.zeros(np.broadcast_shapes(source.shape, selector.shape), np.uint32)
    for byte in range(4):
        chosen = (selector >> np.uint32(4 * byte)) & np.uint32(0xF)
        value = (source >> ((chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(0xFF)
        signs = np.where(value & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
        value = np.where(chosen & np.uint32(8), signs, value)
        found |= value.astype(np.uint32) << np.uint32(8 * byte)
    machine.write(step.operands[0], found, step)


def shift(machine: Machine, step: Instruction) -> None:
    """`shl` and `shr`; by more than the width all bits leave, or become the sign."""
    only(step, ())
    kind = number_type(step)
    bits = NUMBER_TYPES[kind]
    value = machine.read(step.operands[1], bits, step)
    count = machine.read(step.operands[2], 32, step).astype(np.int64)
    if step.name == "shl":
        moved = np.left_shift(value, np.minimum(count, bits - 1).astype(value.dtype))
        found = np.where(count >= bits, value.dtype.type(0), moved)
    elif kind[0] == "s":
        found = np.right_shift(value.view(f"i{bits // 8}"), np.minimum(count, bits - 1).astype(f"i{bits // 8}"))
        found = found.view(value.dtype)
    else:
        moved = np.right_shift(value, np.minimum(count, bits - 1).astype(value.dtype))
        found = np.where(count >= bits, value.dtype.type(0), moved)
    machine.write(step.operands[0], found.astype(value.dtype), step)


def funnel_shift(machine: Machine, step: Instruction) -> None:
    """`shf`: 32 bits out of 64 that two registers make."""
    only(step, ("l", "r", "wrap", "clamp"))
    low, high = (machine.read(operand, 32, step).astype(np.uint64) for operand in step.operands[1:3])
    count = machine.read(step.operands[3], 32, step).astype(np.uint64)
    count = count & np.uint64(31) if "wrap" in step.modifiers else np.minimum(count, np.uint64(32))
    both = low | (high << np.uint64(32))
    found = (both << count) >> np.uint64(32) if "l" in step.modifiers else both >> count
    machine.write(step.operands[0], found.astype(np.uint32), step)


def _whole(machine: Machine, step: Instruction, kind: str, at: int) -> Array:
    """An operand as integers of a type; of packed types [..., 2]."""
    bits = NUMBER_TYPES[kind]
    value = machine.read(step.operands[at], bits, step)
    if kind.endswith("x2"):
        value = np.stack([value & np.uint32(0xFFFF), value >> np.uint32(16)], axis=-1).astype(np.uint16)
    return value.view(f"i{value.dtype.itemsize}") if kind[0] == "s" else value


def _joined(values: Array, kind: str) -> Array:
    unsigned = values.view(f"u{values.dtype.itemsize}")
    if not kind.endswith("x2"):
        return unsigned
    return unsigned[..., 0].astype(np.uint32) | (unsigned[..., 1].astype(np.uint32) << np.uint32(16))


def integer(operation: Callable[..., Array]) -> Step:
    """An operation on integers of one type that keeps their width."""

    def run(machine: Machine, step: Instruction) -> None:
        only(step, ("lo", "sat"))
        kind = number_type(step)
        sources = [_whole(machine, step, kind, at) for at in range(1, len(step.operands))]
        if "sat" in step.modifiers:
            if kind != "s32":
                raise PtxError(f".sat has a model for .s32: {step.text!r}")
            wide = operation(*(source.astype(np.int64) for source in sources))
            found = np.clip(wide, -(2**31), 2**31 - 1).astype(np.int32)
        else:
            found = operation(*sources).astype(sources[0].dtype)
        machine.write(step.operands[0], _joined(found, kind), step)

    return run


def multiply(machine: Machine, step: Instruction) -> None:
    """`mul` and `mad` of integers: the low half of the product, the high half, or all of it."""
    only(step, ("lo", "hi", "wide"))
    kind = number_type(step)
    bits = NUMBER_TYPES[kind]
    a, b = (_whole(machine, step, kind, at) for at in (1, 2))
    if bits == 64 and "lo" not in step.modifiers:
        raise PtxError(f"products of 128 bits have no model: {step.text!r}")
    product = a.astype(f"{a.dtype.kind}8") * b.astype(f"{b.dtype.kind}8")
    if "hi" in step.modifiers:
        product = product >> product.dtype.type(bits)
    size = bits // 8 * (2 if "wide" in step.modifiers else 1)
    found = product.astype(f"{a.dtype.kind}{size}")
    if step.name == "mad":
        found = found + machine.read(step.operands[3], 8 * size, step).view(found.dtype)
    machine.write(step.operands[0], _joined(found, kind), step)


def extract(machine: Machine, step: Instruction) -> None:
    """`bfe`: a field of bits, with its sign for signed types."""
    only(step, ())
    kind = number_type(step)
    bits = NUMBER_TYPES[kind]
    value = machine.read(step.operands[1], bits, step).astype(np.uint64)
    start, length = (machine.read(step.operands[at], 32, step).astype(np.uint64) & np.uint64(0xFF) for at in (2, 3))
    length = np.minimum(length, np.uint64(bits))
    mask = np.where(length >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(length, np.uint64(63))) - np.uint64(1))
    found = np.where(start >= bits, np.uint64(0), value >> np.minimum(start, np.uint64(63))) & mask
    if kind[0] == "s":
        last = np.minimum(start + np.maximum(length, np.uint64(1)) - np.uint64(1), np.uint64(bits - 1))
        negative = (value >> last) & np.uint64(1) & (length > 0).astype(np.uint64)
        found = np.where(negative != 0, found | ~mask, found)
    machine.write(step.operands[0], found.astype(f"u{bits // 8}"), step)


def insert(machine: Machine, step: Instruction) -> None:
    """`bfi`: a field of bits put into another value."""
    only(step, ())
    bits = NUMBER_TYPES[number_type(step)]
    field, value = (machine.read(step.operands[at], bits, step).astype(np.uint64) for at in (1, 2))
    start, length = (machine.read(step.operands[at], 32, step).astype(np.uint64) & np.uint64(0xFF) for at in (3, 4))
    mask = np.where(length >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(length, np.uint64(63))) - np.uint64(1))
    mask = np.where(start >= bits, np.uint64(0), mask << np.minimum(start, np.uint64(63)))
    moved = field << np.minimum(start, np.uint64(63))
    machine.write(step.operands[0], ((value & ~mask) | (moved & mask)).astype(f"u{bits // 8}"), step)


def count_bits(machine: Machine, step: Instruction) -> None:
    """`popc` and `clz`, whose result has 32 bits."""
    only(step, ())
    bits = NUMBER_TYPES[number_type(step)]
    value = machine.read(step.operands[1], bits, step)
    if step.name == "popc":
        found = np.bitwise_count(value)
    else:
        smeared = value.copy()
        for distance in (1, 2, 4, 8, 16, 32)[: bits.bit_length() - 1]:
            smeared |= smeared >> value.dtype.type(distance)
        found = bits - np.bitwise_count(smeared).astype(np.int64)
    machine.write(step.operands[0], found.astype(np.uint32), step)


def reverse_bits(machine: Machine, step: Instruction) -> None:
    """`brev`."""
    only(step, ())
    bits = NUMBER_TYPES[number_type(step)]
    value = machine.read(step.operands[1], bits, step)
    found = np.zeros_like(value)
    for at in range(bits):
        found |= ((value >> value.dtype.type(at)) & value.dtype.type(1)) << value.dtype.type(bits - 1 - at)
    machine.write(step.operands[0], found, step)


def dot_of_bytes(machine: Machine, step: Instruction) -> None:
    """`dp4a`: four products of bytes added to 32 bits."""
    signs = [modifier[0] for modifier in step.modifiers]
    a, b, c = (machine.read(step.operands[at], 32, step) for at in (1, 2, 3))
    total: Array = c.astype(np.int64)
    for byte in range(4):
        left, right = ((value >> np.uint32(8 * byte)).astype(np.uint8) for value in (a, b))
        wide = [part.view(np.int8) if sign == "s" else part for part, sign in zip((left, right), signs, strict=True)]
        total = total + wide[0].astype(np.int64) * wide[1].astype(np.int64)
    machine.write(step.operands[0], total.astype(np.uint32), step)
