"""All instructions of PTX that have a model, by name. Those on memory and on order are here."""

import numpy as np
from support.triton_interpreter import ptx_integers as integers
from support.triton_interpreter.formats import Array
from support.triton_interpreter.ptx_conversions import convert
from support.triton_interpreter.ptx_floats import (
    floating,
    fused_multiply_add,
    is_float,
    select,
    set_predicate,
    sign,
    smallest,
)
from support.triton_interpreter.ptx_machine import NUMBER_TYPES, Machine, Step, number_type
from support.triton_interpreter.ptx_text import Immediate, Instruction, PtxError, Register, Vector


def _either(on_floats: Step, on_integers: Step) -> Step:
    """The model of a name that PTX uses for floats and integers."""

    def run(machine: Machine, step: Instruction) -> None:
        (on_floats if is_float(number_type(step)) else on_integers)(machine, step)

    return run


def _nothing(machine: Machine, step: Instruction) -> None:
    """Order between kernels and hints to caches change no result."""


def _barrier(machine: Machine, step: Instruction) -> None:
    machine.outside.barrier()


def _prefetch(machine: Machine, step: Instruction) -> None:
    """Prefetching must not leave the arguments; else it does nothing."""
    size = 1
    if len(step.operands) > 1:
        count = machine.read(step.operands[1], 32, step)
        size = int(count.max())
        if (count % 16).any():
            raise PtxError(f"a bulk prefetch takes a multiple of 16 bytes, found {size}: {step.text!r}")
    machine.outside.touch(machine.addresses(step.operands[0], step), size)


def _asynchronous(machine: Machine, step: Instruction) -> None:
    if step.modifiers[:3] != ("async", "bulk", "prefetch"):
        raise PtxError(f"no model of {step.text!r}")
    _prefetch(machine, step)


def _policy(machine: Machine, step: Instruction) -> None:
    """A cache policy is a number that only loads and stores look at."""
    machine.write(step.operands[0], np.zeros(machine.count, np.uint64), step)


def _vector(step: Instruction, which: int) -> tuple[list[Register], int, str]:
    operand = step.operands[which]
    items = list(operand.items) if isinstance(operand, Vector) else [operand]
    registers = [item for item in items if isinstance(item, Register | Immediate)]
    wanted = next((int(m[1:]) for m in step.modifiers if m in ("v2", "v4", "v8")), 1)
    if len(registers) != wanted or "global" not in step.modifiers:
        raise PtxError(f"no model of {step.text!r}")
    kind = number_type(step)
    return registers, NUMBER_TYPES[kind] // 8, kind  # type: ignore[return-value]


def _guarded(machine: Machine, step: Instruction) -> Array:
    if step.guard is None:
        return np.ones(machine.count, np.bool_)
    holds = machine.read(step.guard, 1, step) ^ step.guard_negated
    return np.broadcast_to(holds, (machine.count,))


def _load(machine: Machine, step: Instruction) -> None:
    """`ld.global`, with any cache hints."""
    registers, size, _ = _vector(step, 0)
    addresses, chosen = machine.addresses(step.operands[1], step), _guarded(machine, step)
    for at, register in enumerate(registers):
        found = np.zeros(machine.count, f"u{size}")
        if chosen.any():
            found[chosen] = machine.outside.load(addresses[chosen] + np.uint64(at * size), size)
        machine.write(register, found, step)


def _store(machine: Machine, step: Instruction) -> None:
    """`st.global`, with any cache hints."""
    registers, size, _ = _vector(step, 1)
    addresses, chosen = machine.addresses(step.operands[0], step), _guarded(machine, step)
    for at, register in enumerate(registers):
        values = np.broadcast_to(machine.read(register, 8 * size, step), (machine.count,))
        if chosen.any():
            machine.outside.store(addresses[chosen] + np.uint64(at * size), values[chosen])


INSTRUCTIONS: dict[str, Step] = {
    "mov": integers.move,
    "lop3": integers.lop3,
    "prmt": integers.permute,
    "and": integers.bitwise(np.bitwise_and),
    "or": integers.bitwise(np.bitwise_or),
    "xor": integers.bitwise(np.bitwise_xor),
    "not": integers.bitwise(np.invert),
    "shl": integers.shift,
    "shr": integers.shift,
    "shf": integers.funnel_shift,
    "bfe": integers.extract,
    "bfi": integers.insert,
    "popc": integers.count_bits,
    "clz": integers.count_bits,
    "brev": integers.reverse_bits,
    "dp4a": integers.dot_of_bytes,
    "add": _either(floating(np.add), integers.integer(np.add)),
    "sub": _either(floating(np.subtract), integers.integer(np.subtract)),
    "mul": _either(floating(np.multiply), integers.multiply),
    "mad": _either(fused_multiply_add, integers.multiply),
    "fma": fused_multiply_add,
    "min": _either(smallest, integers.integer(np.minimum)),
    "max": _either(smallest, integers.integer(np.maximum)),
    "neg": _either(sign, integers.integer(np.negative)),
    "abs": _either(sign, integers.integer(np.abs)),
    "div": floating(np.divide),
    "rcp": floating(lambda x: (1 / x).astype(x.dtype)),
    "sqrt": floating(np.sqrt),
    "rsqrt": floating(lambda x: (1 / np.sqrt(x)).astype(x.dtype)),
    "ex2": floating(np.exp2),
    "lg2": floating(np.log2),
    "sin": floating(np.sin),
    "cos": floating(np.cos),
    "tanh": floating(np.tanh),
    "setp": set_predicate,
    "selp": select,
    "cvt": convert,
    "ld": _load,
    "st": _store,
    "createpolicy": _policy,
    "prefetch": _prefetch,
    "prefetchu": _prefetch,
    "cp": _asynchronous,
    "griddepcontrol": _nothing,
    "fence": _nothing,
    "membar": _nothing,
    "nanosleep": _nothing,
    "bar": _barrier,
    "barrier": _barrier,
}
