"""Inline assembly: PTX text evaluated on arrays, one element for each invocation.

An invocation handles `pack` elements, which fill registers of 32 bits together where they are smaller. Which elements
meet in an invocation is not specified, so here it is shuffled: assembly that mixes the elements of an invocation
gives wrong results, as it may on a GPU after any change of layout.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import triton.language as tl
from numpy.typing import NDArray
from support.triton_interpreter.arithmetic import numpy_type
from support.triton_interpreter.formats import Array
from support.triton_interpreter.memory import Memory
from support.triton_interpreter.ptx_instructions import INSTRUCTIONS
from support.triton_interpreter.ptx_machine import Machine
from support.triton_interpreter.ptx_text import Instruction, PtxError, parse
from support.triton_interpreter.values import Value

Model = Callable[..., Array | tuple[Array, ...]]
_models: dict[str, Model] = {}
_REGISTERS = {"h": 16, "r": 32, "f": 32, "l": 64, "d": 64, "b": 1}


def register_asm(text: str, model: Model) -> None:
    """Give assembly a model of its own, for what the evaluator cannot: a function of the arguments' arrays."""
    _models[text.strip()] = model


class Results(list[Value]):
    """The values that inline assembly returns."""

    def get_result(self, index: int) -> Value:
        """One of them."""
        return self[index]


class Assembly(Memory):
    """The interpreter's builder with inline assembly."""

    def create_inline_asm(
        self, text: str, constraints: str, values: Sequence[Value], types: Sequence[tl.dtype], pure: bool, pack: int
    ) -> Results:
        """Evaluate assembly.

        Raises:
            PtxError: it contains what has no model, or its constraints do not fit its operands.
        """
        shape = values[0].data.shape if values else (1,)
        kinds = [kind.scalar for kind in types]
        model = _models.get(text.strip())
        if model is not None:
            found = model(*(value.data for value in values))
            arrays = found if isinstance(found, tuple) else (found,)
            return Results(Value(array, kind) for array, kind in zip(arrays, kinds, strict=True))
        count = int(np.prod(shape))
        groups = -(-count // pack)
        order = _shuffled(count, groups * pack)
        inputs = [register for value in values for register in _packed(value, order, pack)]
        outputs = [bits for kind in kinds for bits in _widths(kind, pack)]
        widths = _constrained(constraints, outputs, inputs, text)
        machine = Machine(self, groups)
        for at, register in enumerate(inputs, len(outputs)):
            machine.registers[f"${at}"] = register.astype(f"u{max(1, widths[at] // 8)}")
        for instruction in _parsed(text, tuple(widths)):
            carry_out = INSTRUCTIONS.get(instruction.name)
            if carry_out is None:
                raise PtxError(f"{self.place()}: no model of the instruction {instruction.text!r}")
            carry_out(machine, instruction)
        found_registers = [machine.result(f"${at}") for at in range(len(outputs))]
        return Results(self._unpacked(found_registers, kinds, order, count, shape, pack))

    def touch(self, addresses: NDArray[np.uint64], size: int) -> None:
        """Check that `size` bytes at each address belong to one argument."""
        self._located(Value(addresses, _pointers(1)), addresses, "prefetch")
        self._located(Value(addresses, _pointers(1)), addresses + np.uint64(size - 1), "prefetch")

    def load(self, addresses: NDArray[np.uint64], size: int) -> Array:
        """Load unsigned integers of `size` bytes."""
        return self._load(Value(addresses, _pointers(size)), None, None).data

    def store(self, addresses: NDArray[np.uint64], values: Array) -> None:
        """Store unsigned integers."""
        kind = _pointers(values.dtype.itemsize)
        self._store(Value(addresses, kind), Value(values, kind.element_ty), None)

    def barrier(self) -> None:
        """A barrier of the program's threads."""
        self.create_barrier()

    def _unpacked(
        self,
        registers: list[Array],
        kinds: Sequence[tl.dtype],
        order: NDArray[np.intp],
        count: int,
        shape: tuple[int, ...],
        pack: int,
    ) -> list[Value]:
        results = []
        for kind in kinds:
            taken = len(_widths(kind, pack))
            dtype = numpy_type(kind)
            storage = np.dtype(f"u{dtype.itemsize}")
            columns = []
            for register in registers[:taken]:
                each = pack // taken
                bits = 8 * dtype.itemsize
                columns += [(register >> register.dtype.type(bits * lane)).astype(storage) for lane in range(each)]
            registers = registers[taken:]
            grouped = np.stack(columns, axis=-1).reshape(-1)
            flat = np.empty(count, storage)
            flat[order[:count]] = grouped[:count]
            results.append(Value(flat.view(dtype).reshape(shape), kind))
        return results


@functools.cache
def _pointers(size: int) -> tl.pointer_type:
    return tl.pointer_type(getattr(tl, f"uint{8 * size}"))


@functools.lru_cache(maxsize=64)
def _shuffled(count: int, padded: int) -> NDArray[np.intp]:
    """Which element each place of the invocations holds; places beyond the elements repeat the first."""
    order = np.random.default_rng(count).permutation(count)
    return np.concatenate([order, np.full(padded - count, order[0])])


@functools.lru_cache(maxsize=256)
def _parsed(text: str, widths: tuple[int, ...]) -> list[Instruction]:
    return parse(text, widths)


def _per_register(kind: tl.dtype, pack: int) -> int:
    """How many elements share a register."""
    return min(max(1, 32 // (8 * numpy_type(kind).itemsize)), pack)


def _widths(kind: tl.dtype, pack: int) -> list[int]:
    """The bits of the registers that `pack` elements of a type fill."""
    each = _per_register(kind, pack)
    return [each * 8 * numpy_type(kind).itemsize] * (pack // each)


def _packed(value: Value, order: NDArray[np.intp], pack: int) -> list[Array]:
    """The registers of an argument: one array of unsigned integers for each, lowest element in the lowest bits."""
    data = value.data.reshape(-1)[order]
    size = data.dtype.itemsize
    elements = data.view(f"u{size}").reshape(-1, pack)
    each = _per_register(value.dtype.scalar, pack)
    if each == 1:
        return [elements[:, at] for at in range(pack)]
    merged = np.ascontiguousarray(elements.reshape(-1, pack // each, each)).view(f"u{size * each}")
    return [merged[:, at, 0] for at in range(pack // each)]


def _constrained(constraints: str, outputs: Sequence[int], inputs: Sequence[Array], text: str) -> list[int]:
    """The widths of the registers that the constraints ask for."""
    names = [part.strip() for part in constraints.split(",") if part.strip() and not part.strip().startswith("~")]
    wanted = len(outputs) + len(inputs)
    given = [len(list(group)) for group in (filter(_is_output, names), (n for n in names if not _is_output(n)))]
    if given != [len(outputs), len(inputs)]:
        raise PtxError(
            f"constraints {constraints!r} name {given[0]} outputs and {given[1]} inputs, but the types and pack make "
            f"{len(outputs)} and {len(inputs)} registers, {wanted} in all: {text.strip()[:200]!r}"
        )
    widths: list[int] = []
    for name in names:
        kind = name.removeprefix("=").removeprefix("&")
        if kind.isdigit():
            widths.append(widths[int(kind)])
        elif kind in _REGISTERS:
            widths.append(_REGISTERS[kind])
        else:
            raise PtxError(f"constraint {name!r} has no model: {text.strip()[:200]!r}")
    for have, bits in zip(widths, [*outputs, *(8 * register.dtype.itemsize for register in inputs)], strict=True):
        if have < bits:
            raise PtxError(f"{bits} bits do not fit a register of {have} ({constraints!r}): {text.strip()[:200]!r}")
    return widths


def _is_output(constraint: str) -> bool:
    return constraint.startswith("=")
