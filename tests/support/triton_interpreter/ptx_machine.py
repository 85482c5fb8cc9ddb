"""Registers of PTX as arrays, one element for each invocation, and what its instructions share."""

import struct
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from support.triton_interpreter.formats import Array
from support.triton_interpreter.ptx_text import (
    SINK,
    Address,
    Immediate,
    Instruction,
    Operand,
    PtxError,
    Register,
    Vector,
)

Bits = NDArray[np.unsignedinteger]
NUMBER_TYPES = {f"{kind}{bits}": bits for kind in ("b", "u", "s", "f") for bits in (8, 16, 32, 64)}
NUMBER_TYPES |= {"bf16": 16, "f16x2": 32, "bf16x2": 32, "u16x2": 32, "s16x2": 32, "pred": 1}
NUMBER_TYPES |= {"e4m3x2": 16, "e5m2x2": 16, "f32x2": 64}


class Outside(Protocol):
    """What assembly reaches beyond its registers."""

    def touch(self, addresses: NDArray[np.uint64], size: int) -> None:
        """Check that bytes at addresses belong to arguments."""

    def load(self, addresses: NDArray[np.uint64], size: int) -> Array:
        """Unsigned integers of `size` bytes at addresses."""

    def store(self, addresses: NDArray[np.uint64], values: Array) -> None:
        """Write unsigned integers."""

    def barrier(self) -> None:
        """All threads of the program wait for each other."""


class Machine:
    """The registers of all invocations of an assembly text."""

    def __init__(self, outside: Outside, count: int) -> None:
        self.outside = outside
        self.count = count
        self.registers: dict[str, Array] = {}

    def result(self, name: str) -> Array:
        """An output register.

        Raises:
            PtxError: nothing was written to it.
        """
        if name not in self.registers:
            raise PtxError(f"the assembly writes nothing to {name}")
        return np.broadcast_to(self.registers[name], (self.count,))

    def read(self, operand: Operand, bits: int, instruction: Instruction) -> Array:
        """An operand as unsigned integers of `bits` bits; booleans for 1 bit."""
        dtype = np.dtype(np.bool_ if bits == 1 else f"u{bits // 8}")
        if isinstance(operand, Immediate):
            return np.array(number(operand.text, bits, instruction), dtype=np.uint64).astype(dtype)
        if isinstance(operand, Vector):
            each = bits // len(operand.items)
            parts = [self.read(item, each, instruction).astype(dtype) for item in operand.items]
            merged = parts[0]
            for at, part in enumerate(parts[1:], 1):
                merged = merged | (part << dtype.type(each * at))
            return merged
        if not isinstance(operand, Register):
            raise PtxError(f"no model of {operand} in {instruction.text!r}")
        if operand.name not in self.registers:
            raise PtxError(f"{operand.name} is read before it is written in {instruction.text!r}")
        if operand.bits < bits:
            raise PtxError(f"{operand.name} has {operand.bits} bits, {bits} are read in {instruction.text!r}")
        return self.registers[operand.name].astype(dtype, copy=False)

    def write(self, operand: Operand, values: Array, instruction: Instruction) -> None:
        """Set a register, or the registers of a vector, in invocations where the guard holds."""
        if isinstance(operand, Vector):
            each = 8 * values.dtype.itemsize // len(operand.items)
            for at, item in enumerate(operand.items):
                part = values >> values.dtype.type(each * at)
                self.write(item, part.astype(f"u{each // 8}"), instruction)
            return
        if not isinstance(operand, Register):
            raise PtxError(f"{operand} cannot be written in {instruction.text!r}")
        if operand is SINK:
            return
        dtype = np.dtype(np.bool_ if operand.bits == 1 else f"u{operand.bits // 8}")
        wide = values.astype(dtype, copy=False)
        if instruction.guard is not None:
            holds = self.read(instruction.guard, 1, instruction) ^ instruction.guard_negated
            old = self.registers.get(operand.name)
            if old is None:
                if not np.all(holds):
                    raise PtxError(f"{operand.name} has no value where the guard fails in {instruction.text!r}")
            else:
                wide = np.where(holds, wide, old)
        self.registers[operand.name] = wide

    def addresses(self, operand: Operand, instruction: Instruction) -> NDArray[np.uint64]:
        """The addresses that `[base + offset]` stands for."""
        if not isinstance(operand, Address):
            raise PtxError(f"no address: {instruction.text!r}")
        base = np.broadcast_to(self.read(operand.base, 64, instruction), (self.count,))
        return (base.astype(np.int64) + operand.offset).astype(np.uint64)


Step = Callable[[Machine, Instruction], None]
"""What an instruction does. Raises `PtxError` for forms that have no model."""


def number(text: str, bits: int, instruction: Instruction) -> int:
    """The bits of an immediate value.

    Raises:
        PtxError: it does not fit.
    """
    negative = text.startswith("-")
    digits = text.removeprefix("-")
    if digits[:2] in ("0f", "0F"):
        value = int(digits[2:], 16)
        if bits == 64:
            value = int.from_bytes(struct.pack("<d", struct.unpack("<f", struct.pack("<I", value))[0]), "little")
    elif digits[:2] in ("0d", "0D"):
        value = int(digits[2:], 16)
    elif any(letter in digits for letter in ".eE") and not digits.lower().startswith("0x"):
        code = {32: "<f", 64: "<d"}.get(bits)
        if code is None:
            raise PtxError(f"a number with a fraction in {instruction.text!r}")
        return int.from_bytes(struct.pack(code, float(text)), "little")
    else:
        value = int(digits, 0)
    if negative:
        value = -value
    if not -(1 << bits) < value < 1 << max(bits, 1):
        raise PtxError(f"{text} does not fit {bits} bits in {instruction.text!r}")
    return value & ((1 << max(bits, 1)) - 1)


def number_type(instruction: Instruction, which: int = -1) -> str:
    """The last type among an instruction's modifiers, or the one before with -2.

    Raises:
        PtxError: there is none.
    """
    types = [modifier for modifier in instruction.modifiers if modifier in NUMBER_TYPES]
    if len(types) < -which:
        raise PtxError(f"no type that has a model: {instruction.text!r}")
    return types[which]


def only(instruction: Instruction, allowed: Sequence[str]) -> None:
    """Refuse modifiers, types aside, that are not listed.

    Raises:
        PtxError: there are some.
    """
    for modifier in instruction.modifiers:
        if modifier not in NUMBER_TYPES and modifier not in allowed:
            raise PtxError(f"no model of .{modifier} in {instruction.text!r}")
