"""The elements of a pass in a kernel: their indices, and values that are read, kept in registers and stored."""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from llmc.codegen.layout import Scalar, Value, View
from llmc.codegen.regions import RowOp
from llmc.codegen.triton.kernel import KernelText, literal, offset
from llmc.codegen.triton.row_passes import Key, Pass, kept, key_of, operand_strides, result_strides


@dataclass(frozen=True)
class Register:
    """A value of a pass: its name, its dtype ("u8" is a bool there), and the tile's axes that it has."""

    name: str
    dtype: str
    axes: frozenset[str] = frozenset()


@dataclass
class Run:
    """Axes of a pass that one index walks."""

    places: tuple[int, ...]
    name: str
    axis: str
    """Of the tile: "element" where it has one axis, otherwise "group" or "column"."""


@dataclass
class Elements:
    """The elements of one pass in a kernel under construction: a vector, or groups times whole columns."""

    kernel: KernelText
    one: Pass
    row: str
    """The int64 row; "" where there is but one."""
    names: Any
    """A counter for the registers of the kernel."""
    suffix: str = ""
    """Of the other names that the pass gives, which a loop must not share with other passes."""
    pad: str = ""
    runs: list[Run] = field(default_factory=list)
    registers: dict[Key, Register] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    """For each axis of the tile that has more places than elements: which of them are elements."""
    tile: tuple[int, int] = (1, 1)
    """Groups and columns of a tile of whole rows."""

    @property
    def group(self) -> str:
        """The name of the groups of the tile, [groups, 1]; 0 where there is but one."""
        return f"group{self.suffix}"

    @property
    def column(self) -> str:
        """The name of the columns of the tile, [1, columns]."""
        return f"column{self.suffix}"

    def add(self, *lines: str) -> None:
        """Append lines at the present depth."""
        self.kernel.add(*(self.pad + line for line in lines))

    def assign(self, text: str, dtype: str, axes: frozenset[str]) -> Register:
        """A new register with the value of an expression."""
        name = f"v{next(self.names)}"
        self.add(f"{name} = {text}")
        return Register(name, dtype, axes)

    # --- indices

    def split(self, element: str, axis: str, places: tuple[int, ...]) -> None:
        """Name the indices of axes that `element` walks together, in as few runs as operands allow."""
        merged: list[tuple[int, ...]] = []
        for place in places:
            if merged and self._merges(merged[-1][-1], place):
                merged[-1] = (*merged[-1], place)
            else:
                merged.append((place,))
        for number, run in enumerate(merged):
            inner = prod(self.one.shape[place] for later in merged[number + 1 :] for place in later)
            size = prod(self.one.shape[place] for place in run)
            text = element + (f" // {inner}" if inner != 1 else "") + (f" % {size}" if number else "")
            name = element
            if len(merged) > 1:
                name = f"i{run[0]}{self.suffix}"
                self.add(f"{name} = {text}")
            self.runs.append(Run(run, name, axis))

    def _merges(self, before: int, place: int) -> bool:
        return all(
            strides is not None and strides[before] == strides[place] * self.one.shape[place]
            for op in self.one.ops
            for strides in _all_strides(op)
            if strides is None or strides
        )

    def index(self, place: int) -> str:
        """The index along one axis of the pass, which is a run of its own."""
        return next(run.name for run in self.runs if run.places == (place,))

    def indices(self, op: RowOp) -> list[str]:
        """An index for each axis of an operation, "0" where it has no other and at the row axis."""
        found = ["0"] * (max(kept(op), default=-1) + 1)
        for number, place in enumerate(kept(op)):
            found[place] = self.index(number)
        return found

    def at(self, strides: tuple[int, ...]) -> tuple[list[str], frozenset[str]]:
        """Terms of the offset of elements with such strides, and the axes of the tile that it has."""
        terms, axes = list[str](), set[str]()
        for run in self.runs if strides else ():
            stride = strides[run.places[-1]]
            if stride:
                terms.append(run.name if stride == 1 else f"{run.name} * {stride}")
                axes.add(run.axis)
        return terms, frozenset(axes)

    def mask(self, axes: frozenset[str]) -> str:
        """A condition for the elements among places with these axes; "" where all are."""
        return " & ".join(name for axis, name in self.masks.items() if axis in axes)

    # --- memory

    def base(self, view: View, role: str) -> str:
        """A pointer to the first element of this row of a view."""
        pointer = self.kernel.pointer(view.buffer, role)
        row = "wanted" if view.indirect else self.row
        start = offset(replace(view, axes=(), indirect=False), row, ())
        return pointer if start == "0" else f"{pointer} + {start}"

    def load(self, view: View, role: str, terms: list[str], axes: frozenset[str], extra: str = "") -> Register:
        """Read elements at an offset; f16 and bf16 become fp32, bytes conditions. `extra` is one more condition."""
        address = " + ".join([self.base(view, role), *terms])
        mask = " & ".join(part for part in (self.mask(axes), extra) if part)
        text = f"tl.load({address}, mask={mask}, other=0)" if mask else f"tl.load({address})"
        dtype = view.buffer.dtype
        if dtype in ("f16", "bf16"):
            return self.assign(f"{text}.to(tl.float32)", "f32", axes)
        return self.assign(f"{text} != 0" if dtype == "u8" else text, dtype, axes)

    def operand(self, op: RowOp, place: int) -> Register:
        """An operand that is read where it is needed, or a number."""
        value: Value | None = op.inputs[place]
        if isinstance(value, Scalar):
            return Register(literal(value), value.dtype)
        assert isinstance(value, View), f"{op.op} has operand {place}"
        strides = operand_strides(op, place)
        assert strides is not None, f"operand {place} of {op.op} is read elsewhere"
        key = key_of(value, strides)
        if key not in self.registers:
            role = "weight" if value.buffer.place == "weight" else value.buffer.name
            role = role if value.buffer.place in ("weight", "step") else "source"
            self.registers[key] = self.load(value, role, *self.at(strides))
        return self.registers[key]

    def keep(self, op: RowOp, register: Register) -> None:
        """Store the result of an operation; what follows finds it in its register."""
        view, strides = op.outputs[0], result_strides(op)
        self.store(view, register, strides)
        self.registers[key_of(view, strides)] = register

    def store(self, view: View, register: Register, strides: tuple[int, ...]) -> None:
        """Store a register at the elements of a view."""
        terms, axes = self.at(strides)
        if self.one.whole and strides and not axes:
            terms.append(self.group)  # the one number of the one group, which is 0: gives it the value's shape
        address = " + ".join([self.base(view, "target"), *terms])
        mask = self.mask(axes)
        self.add(f"tl.store({address}, {register.name}{f', mask={mask}' if mask else ''})")


def _all_strides(op: RowOp) -> list[tuple[int, ...] | None]:
    """Those of all operands and results; None where one is read elsewhere, so that each axis needs its index."""
    if op.op == "scatter_into":
        return [None]
    operands = [operand_strides(op, place) for place, value in enumerate(op.inputs) if isinstance(value, View)]
    return [*operands, result_strides(op)] if op.op not in ("write_k", "write_v") else operands
