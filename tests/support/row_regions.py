"""Row regions made by hand and run by the interpreter: buffers, operations on them, what the kernel leaves there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from support.rearranged_weights import TYPES
from support.triton_interpreter import launch, load_kernels

from llmc.codegen.layout import Axis, Buffer, Domain, View, fresh
from llmc.codegen.regions import RowOp, RowRegion
from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_rows import emit_rows
from llmc.codegen.triton.kernel import Draft, Ref, module_text
from llmc.runtime.program import CacheSpec

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64, "u8": torch.uint8}


@dataclass
class Rows:
    """Buffers of `rows` tokens, of which `wanted` are rows of logits."""

    rows: int = 3
    wanted: tuple[int, ...] = (2, 0)
    pdl: bool = False
    arrays: dict[int, torch.Tensor] = field(default_factory=dict)
    given: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    """Weights, arrays of the step and caches, by kind and name."""
    caches: tuple[CacheSpec, ...] = ()
    ops: list[RowOp] = field(default_factory=list)
    keys: count = field(default_factory=count)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        self.given["step", "rows"] = torch.tensor(self.wanted)

    def count(self, domain: Domain) -> int:
        return {"T": self.rows, "R": len(self.wanted), "": 1}[domain]

    def buffer(self, width: int, dtype: str = "f32", domain: Domain = "T", place: str = "arena") -> Buffer:
        return Buffer(next(self.keys), f"b{next(self.keys)}", domain, width, dtype, place)  # type: ignore[arg-type]

    def tensor(self, shape: Sequence[int], dtype: str = "f32", domain: Domain = "T") -> View:
        """A value with random elements, [rows, *shape]; of domain "" shape alone."""
        full = (None, *shape) if domain else tuple(shape)
        width = torch.Size(shape).numel()
        buffer = self.buffer(width, dtype, domain)
        size = (self.count(domain) * width,)
        if dtype == "i64":
            data = torch.randint(-50, 50, size, generator=self.generator)
        elif dtype == "u8":
            data = torch.randint(0, 2, size, generator=self.generator).to(torch.uint8)
        else:
            data = torch.randn(size, generator=self.generator).to(DTYPES[dtype])
        self.arrays[buffer.key] = data
        return fresh(buffer, full)

    def weight(self, value: torch.Tensor) -> View:
        """A weight."""
        dtype = next(name for name, known in DTYPES.items() if known == value.dtype)
        buffer = self.buffer(value.numel(), dtype, "", "weight")
        self.given["weight", buffer.name] = value.reshape(-1).contiguous()
        return fresh(buffer, tuple(value.shape))

    def step(self, name: str, value: torch.Tensor) -> View:
        """An array of the step."""
        self.given["step", name] = value
        return fresh(Buffer(next(self.keys), name, "T", 1, "i64", "step"), (None,))

    def set(self, view: View, value: torch.Tensor) -> View:
        """Give a value its elements."""
        self.read(view).copy_(value)
        return view

    def read(self, view: View) -> torch.Tensor:
        """The elements of a value with all its axes; bools as such."""
        kind = {"weight": "weight", "step": "step"}.get(view.buffer.place)
        data = self.given[kind, view.buffer.name] if kind else self.arrays[view.buffer.key]
        sizes = [self.count(view.domain) if axis.size is None else axis.size for axis in view.axes]
        strides = [view.buffer.width if axis.size is None else axis.stride for axis in view.axes]
        if view.indirect:
            data = data.reshape(-1, view.buffer.width)[list(self.wanted)].reshape(-1)
        found = data.as_strided(sizes, strides, view.offset)
        return found.bool() if view.buffer.dtype == "u8" else found

    def op(self, name: str, inputs: Sequence[object], outputs: Sequence[View] | View, **attrs: object) -> None:
        """Add an operation."""
        outputs = (outputs,) if isinstance(outputs, View) else tuple(outputs)
        self.ops.append(RowOp(name, name, tuple(inputs), outputs, attrs))  # type: ignore[arg-type]

    def new(self, shape: Sequence[int | None], dtype: str = "f32", domain: Domain = "T") -> View:
        """A place for a result; its buffer holds what no operation computes."""
        width = torch.Size([size for size in shape if size is not None]).numel()
        buffer = self.buffer(width, dtype, domain)
        filler = {"f32": float("nan"), "i64": -(1 << 60), "u8": 77}[dtype]
        self.arrays[buffer.key] = torch.full((self.count(domain) * width,), filler, dtype=DTYPES[dtype])
        return fresh(buffer, tuple(shape))

    def draft(self) -> Draft:
        """The one launch of the operations."""
        context = Context(Target.preset("sm_90" if self.pdl else "sm_80"), Crossovers(), self.caches, 128, 100)
        domain = self.ops[0].outputs[0].domain
        (draft,) = emit_rows(RowRegion("region", "", domain, tuple(self.ops), ()), context)
        return draft

    def run(self) -> Draft:
        """Run the operations; every element of every output buffer must be written, by one program."""
        draft = self.draft()
        kernel = load_kernels(module_text({"kernel": draft.kernel}, "Rows."))
        sizes = {"T": self.rows, "R": len(self.wanted), "B": 1}
        types = [type for _, type in draft.kernel.parameters]
        arguments = [self._argument(ref).view(TYPES[type]) for ref, type in zip(draft.kernel.refs, types, strict=True)]
        done = launch(kernel.kernel, tuple(extent.at(sizes) for extent in draft.grid), *arguments)
        for key in {view.buffer.key for op in self.ops for view in op.outputs if view.buffer.place == "arena"}:
            done.assert_written(self.arrays[key])
        return draft

    def _argument(self, ref: Ref) -> torch.Tensor:
        argument = ref.argument
        if argument is None:
            return self.arrays[ref.buffer.key]
        name = argument.name if argument.kind != "cache" else f"{argument.name}{argument.number}"
        return self.given[argument.kind, name]


def axes(view: View, *sizes_and_strides: tuple[int, int] | None) -> View:
    """The same buffer with other axes; None is the row axis."""
    return View(view.buffer, tuple(Axis(None, 0) if a is None else Axis(*a) for a in sizes_and_strides), view.offset)


def close(rows: Rows, view: View, wanted: torch.Tensor, error: float = 2e-6) -> None:
    """Hold the elements of a value against what they should be."""
    found = rows.read(view)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted.to(found.dtype), rtol=error, atol=error, equal_nan=True)
