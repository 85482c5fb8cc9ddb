"""Linear regions made by hand and run by the interpreter, from weights as artifacts hold them to stored results."""

from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from support.linear_cases import Case
from support.triton_interpreter import Launch, launch, load_kernels

from llmc.codegen.layout import Buffer, Scalar, View, fresh
from llmc.codegen.regions import ChainStep, HeadPart, Linear, Norm, Rotation, RowOp
from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_linear import emit_linear
from llmc.codegen.triton.emit_rearrangement import emit_rearrangement
from llmc.codegen.triton.kernel import Draft, Ref, module_text
from llmc.codegen.triton.linear_library import ProductDraft
from llmc.codegen.triton.narrowing import takes
from llmc.codegen.triton.packed import PackedWeight
from llmc.ir.ops import ACTIVATIONS, layer_norm, rms_norm, rope
from llmc.ir.packed_formats import FORMATS, pack, padded_columns, tile_count, unpack
from llmc.runtime.crossover import Crossover
from llmc.runtime.program import CacheSpec

TYPES = {
    "*fp32": torch.float32, "*fp16": torch.float16, "*bf16": torch.bfloat16, "*i64": torch.int64, "*i32": torch.int32,
    "*i16": torch.int16, "*u8": torch.uint8,
}  # fmt: skip
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ROUNDING = {"f32": 2.0**-19, "f16": 2.0**-10}
"""By format, what rounding of activations and the order of sums may do, as a part of the sum of all magnitudes."""
BLOCK = 128


@dataclass
class Made:
    """What a case makes: the region, its values, and what they should become."""

    case: Case
    arrays: dict[int, torch.Tensor] = field(default_factory=dict)
    given: dict[tuple[str, str], Any] = field(default_factory=dict)
    keys: Any = field(default_factory=count)
    launched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        case = self.case
        self.random = torch.Generator().manual_seed(case.n * 7 + case.k + case.rows)
        self.total = case.rows + 2 if case.indirect else case.rows
        self._pack()
        self.slots = torch.randperm(3 * BLOCK, generator=self.random)[: case.rows]
        self.given["step", "slots"] = self.slots
        self.given["step", "rows"] = torch.randperm(self.total, generator=self.random)[: case.rows]
        for size in "TR":
            self.given["size", size] = case.rows
        self.bias = self._weight(torch.randn(case.n, generator=self.random)) if case.bias else None
        self._source()
        dtype = getattr(torch, case.cache)
        self.specs = (CacheSpec(1, 1, 1, case.cache),)
        if case.heads:
            heads = {role: number for role, number in case.heads}
            self.specs = (CacheSpec(heads.get("k", 1), case.head_size, case.head_size, case.cache),)
            for role in "kv":
                shape = (3, heads.get(role, 1), BLOCK, case.head_size)
                self.given["cache", role] = torch.full(shape, torch.nan, dtype=dtype)
        self.region = self._region()

    def _pack(self) -> None:
        case = self.case
        weight = torch.randn(case.n, case.k, generator=self.random) / case.k**0.5
        self.parts = pack(weight, case.format)
        self.weight = unpack(self.parts, case.format, case.n, case.k)

    def tensor(self, rows: int, width: int) -> tuple[View, torch.Tensor]:
        """Random rows of the arena."""
        buffer = Buffer(next(self.keys), "rows", self.case.domain, width, "f32", "arena")  # type: ignore[arg-type]
        data = torch.randn(rows, width, generator=self.random)
        self.arrays[buffer.key] = data
        return fresh(buffer, (None, width) if self.case.domain else (width,)), data

    def new(self, shape: tuple[int, ...]) -> View:
        """A place for results."""
        width = torch.Size(shape).numel()
        buffer = Buffer(next(self.keys), "y", self.case.domain, width, "f32", "arena")  # type: ignore[arg-type]
        self.arrays[buffer.key] = torch.full((self.case.rows, width), torch.nan)
        return fresh(buffer, (None, *shape) if self.case.domain else shape)

    def _weight(self, value: torch.Tensor) -> View:
        dtype = next(name for name, known in DTYPES.items() if known == value.dtype)
        buffer = Buffer(next(self.keys), f"weight_{next(self.keys)}", "", value.numel(), dtype, "weight")
        self.given["weight", buffer.name] = value.reshape(-1).contiguous()
        return fresh(buffer, tuple(value.shape))

    def _source(self) -> None:
        case = self.case
        self.source: View | RowOp
        view, x = self.tensor(self.total, case.k)
        x += 0.5 * (case.source in ("rms_norm", "layer_norm"))
        if case.narrow and takes(case.format, case.k):
            view = replace(view, buffer=replace(view.buffer, dtype="bf16"))
            self.arrays[view.buffer.key] = x.bfloat16()
            x = x.bfloat16().float()
        if case.indirect:
            view, x = replace(view, indirect=True), x[self.given["step", "rows"]]
        made = View(Buffer(next(self.keys), "made", case.domain, case.k, "f32", "arena"), view.axes)  # type: ignore[arg-type]
        self.source, self.x = view, x
        if case.source in ("rms_norm", "layer_norm"):
            gamma = torch.rand(case.k, generator=self.random).bfloat16() + 0.5
            weight = self._weight(gamma)
            if case.source == "rms_norm":
                offset = 1.0 if case.bias else 0.0
                self.source = RowOp("rms_norm", "", (view, weight, None), (made,), {"eps": 1e-5, "offset": offset})
                self.x = rms_norm(x, gamma.float(), 1e-5, offset, True)
            else:
                beta = torch.randn(case.k, generator=self.random)
                attrs = {"eps": 1e-5, "offset": 0.0}
                self.source = RowOp("layer_norm", "", (view, weight, self._weight(beta)), (made,), attrs)
                self.x = layer_norm(x, gamma.float(), beta, 1e-5, True)
        elif case.source == "gated_act":
            other, up = self.tensor(self.total, case.k)
            self.source = RowOp("gated_act", "", (view, other), (made,), {"act": "silu"})
            self.x = ACTIVATIONS["silu"](x) * up
        elif case.source:
            self.source = RowOp(case.source, "", (view,), (made,), {})
            self.x = -x if case.source == "neg" else ACTIVATIONS[case.source](x)

    def _chain(self, columns: int) -> tuple[ChainStep, ...]:
        steps = []
        for number, name in enumerate(self.case.chain):
            if name == "scale":
                steps.append(ChainStep("mul", Scalar(0.375, "f32")))
            elif name == "weigh":
                steps.append(ChainStep("mul", self._weight(torch.randn(columns, generator=self.random).bfloat16())))
            elif name in ("add", "sub", "mul"):
                steps.append(ChainStep(name, self.tensor(self.case.rows, columns)[0], swapped=number % 2 == 1))
            else:
                steps.append(ChainStep(name, None))
        return tuple(steps)

    def _region(self) -> Linear:
        case = self.case
        self.target = None
        parts: tuple[HeadPart, ...] = ()
        head_of: list[tuple[int, int]] = []
        if case.heads:
            parts = self._parts()
            head_of = [(part, head) for part, (_, number) in enumerate(case.heads) for head in range(number)]
            if case.interleaved_parts:
                least = min(number for _, number in case.heads)
                head_of.sort(key=lambda item: (item[1] * least // case.heads[item[0]][1], item[0], item[1]))
        else:
            self.target = self.new((case.n // 2 if case.gate else case.n,))
        columns = case.n // 2 if case.gate else case.n
        names = tuple(f"part_{number}" for number in range(len(self.parts)))
        return Linear(
            "linear", "", case.domain, case.format, case.n, case.k, names, self.source, self.bias, case.gate,  # type: ignore[arg-type]
            self._chain(columns), self.target, parts, tuple(head_of), case.head_size if parts else 0, (),
        )  # fmt: skip

    def _parts(self) -> tuple[HeadPart, ...]:
        case, parts = self.case, []
        turn = None
        if case.rotated:
            angles = torch.randn(case.rows, case.rotated, generator=self.random)
            self.cos, self.sin = angles.cos(), angles.sin()
            views = [self.tensor(case.rows, case.rotated)[0] for _ in range(2)]
            self.arrays[views[0].buffer.key], self.arrays[views[1].buffer.key] = self.cos, self.sin
            turn = Rotation(views[0], views[1], case.rotated, case.interleaved)
        for role, number in case.heads:
            norm = None
            if case.head_norm and role in "qk":
                weight = self._weight(torch.rand(case.head_size, generator=self.random) + 0.5)
                bias = self._weight(torch.randn(case.head_size, generator=self.random))
                norm = Norm(case.head_norm, weight, bias if case.head_norm == "layer_norm" else None, 1e-5, 0.0)
            width = case.n // case.head_size if role == "store" else number
            target = self.new((width, case.head_size)) if role in ("q", "store") else None
            parts.append(
                HeadPart(role, number, norm, turn if role in "qk" else None, target, 0 if role in "kv" else -1)
            )
        return tuple(parts)

    # --- running

    def context(self) -> Context:
        case = self.case
        crossovers = Crossovers(default=Crossover(case.flat, case.gemm, "test", case.library))
        return Context(Target.preset(case.target), crossovers, self.specs, BLOCK, 100)

    def drafts(self) -> list[Draft | ProductDraft]:
        """All launches of the region."""
        context = self.context()
        made = emit_linear(self.region, context)
        for workspace in context.workspaces.values():
            size = workspace.bytes + workspace.bytes_per_token * self.case.rows
            before = 0 if workspace.name == "linear_counters" else 0xFF
            self.given["workspace", workspace.name] = torch.full((size,), before, dtype=torch.uint8)
        return made

    def rearrange(self) -> None:
        """Lay the weight out as kernels read it."""
        case = self.case
        names = tuple(f"part_{number}" for number in range(len(self.parts)))
        weight = PackedWeight(names, case.format, tile_count(case.n) * 16, padded_columns(case.k))
        for name, part in zip(names, self.parts, strict=True):
            self.given["weight", name] = part.contiguous().reshape(-1).view(torch.uint8)
        for name, size, draft in emit_rearrangement(weight):
            source, target = self.given["weight", name], torch.full((size,), 0xA5, dtype=torch.uint8)
            done = self.launch(draft, {"source": source, "target": target})
            done.assert_written_once(done_view(draft, target))
            self.given["weight", name] = target

    def run(self) -> None:
        """Run what the region launches for its rows; every element of results must be written, by one program."""
        self.rearrange()
        sizes = {"T": self.case.rows, "R": self.case.rows, "B": 1}
        done: list[Launch] = []
        for draft in self.drafts():
            if draft.when.holds(sizes) and isinstance(draft, ProductDraft):
                self.multiply(draft)
            elif draft.when.holds(sizes):
                done.append(self.launch(draft, {}))
                self.launched.append(draft.kernel.comment)
        assert done, "no launch serves the rows"
        assert not self.given.get(("workspace", "linear_counters"), torch.zeros(1)).any(), "counters are zero again"
        outputs = [self.target] if self.target else [part.target for part in self.region.parts if part.target]
        for view in outputs:
            array = self.arrays[view.buffer.key]
            if self.launched[-1] != "product" and not any(role == "store" for role, _ in self.case.heads):
                done[-1].assert_written_once(array)

    def multiply(self, draft: ProductDraft) -> None:
        """Compute a product."""
        type = {"f32": "*fp32", "f16": "*fp16", "bf16": "*bf16"}[draft.dtype]
        weight, inputs, sums = (
            self._argument(ref, given, {}).reshape(-1)
            for ref, given in zip(draft.refs, (type, type, "*fp32"), strict=True)
        )
        rows = self.case.rows
        left = inputs[: rows * draft.k].reshape(rows, draft.k).float()
        right = weight[: draft.n * draft.k].reshape(draft.n, draft.k).float()
        sums[: rows * draft.stride].reshape(rows, draft.stride)[:, : draft.n] = left @ right.T
        self.launched.append("product")

    def launch(self, draft: Draft, special: dict[str, torch.Tensor]) -> Launch:
        """Run one launch; `special` holds the arguments of a kind of which there is one."""
        kernel = load_kernels(module_text({"kernel": draft.kernel}, "A linear."))
        sizes = {"T": self.case.rows, "R": self.case.rows, "B": 1}
        arguments = [
            self._argument(ref, type, special)
            for ref, (_, type) in zip(draft.kernel.refs, draft.kernel.parameters, strict=True)
        ]
        return launch(kernel.kernel, tuple(extent.at(sizes) for extent in draft.grid), *arguments)

    def _argument(self, ref: Ref, type: str, special: dict[str, torch.Tensor]) -> Any:
        argument = ref.argument
        if argument is None:
            assert ref.buffer is not None
            buffer = ref.buffer
            if buffer.key not in self.arrays:
                self.arrays[buffer.key] = torch.full(
                    (self.case.rows, buffer.width), torch.nan, dtype=DTYPES[buffer.dtype]
                )
            return self.arrays[buffer.key]
        if argument.kind in special:
            return special[argument.kind].view(TYPES[type])
        found = self.given[argument.kind, argument.name]
        return found.view(TYPES[type]) if isinstance(found, torch.Tensor) and found.dtype == torch.uint8 else found

    # --- what it should be

    def wanted(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums [rows, n] with the bias, and how far from them results may be."""
        case = self.case
        y, size = self.x @ self.weight.T, self.x.abs() @ self.weight.abs().T
        if self.bias is not None:
            y += self.given["weight", self.bias.buffer.name]
        unpacked = case.rows >= case.library and case.format not in ROUNDING and case.format != "bf16"
        return y, size * ROUNDING.get(case.format, 2.0**-8) * (1.5 if unpacked else 1) + 1e-6

    def check(self) -> None:
        """Compare what was stored with what it should be."""
        y, bound = self.wanted()
        if self.case.heads:
            self._check_heads(y, bound)
            return
        if self.case.gate:
            (gate, up), (low, high) = y.chunk(2, -1), bound.chunk(2, -1)
            y = ACTIVATIONS[self.case.gate](gate) * up
            bound = 1.2 * (low * up.abs() + high * gate.abs() + low * high)
        for step in self.region.chain:
            other = None
            if isinstance(step.operand, Scalar):
                other = torch.tensor(step.operand.value)
            elif step.operand is not None:
                name = step.operand.buffer
                other = (self.given["weight", name.name] if name.place == "weight" else self.arrays[name.key]).float()
            if other is None:
                y = -y if step.op == "neg" else ACTIVATIONS[step.op](y)
                bound = bound * 1.2
            else:
                left, right = (other, y) if step.swapped else (y, other)
                y = getattr(torch, step.op)(left, right)
                bound = bound * (other.abs() if step.op == "mul" else 1)
        assert self.target is not None
        compare(self.arrays[self.target.buffer.key], y, bound)

    def _check_heads(self, y: torch.Tensor, bound: torch.Tensor) -> None:
        case = self.case
        for place, (number, head) in enumerate(self.region.head_of):
            part = self.region.parts[number]
            columns = slice(place * case.head_size, (place + 1) * case.head_size)
            values, near = y[:, columns], bound[:, columns].amax(-1, keepdim=True) * 1.5
            if part.norm is not None:
                spread = (
                    values.std(-1, keepdim=True)
                    if part.norm.bias is not None
                    else values.square().mean(-1, keepdim=True).sqrt()
                )
                near = near / spread * 4
                weight = self.given["weight", part.norm.weight.buffer.name]  # type: ignore[union-attr]
                if part.norm.op == "rms_norm":
                    values = rms_norm(values, weight, 1e-5, 0.0, True)
                else:
                    values = layer_norm(values, weight, self.given["weight", part.norm.bias.buffer.name], 1e-5, True)  # type: ignore[union-attr]
            if part.rotation is not None:
                values = rope(values, self.cos, self.sin, case.interleaved)
            if part.role in "kv":
                cache = self.given["cache", part.role]
                found = cache[self.slots // BLOCK, head, self.slots % BLOCK].float()
                near = near + values.abs() * 2.0**-8
            else:
                found = self.arrays[part.target.buffer.key].view(case.rows, -1, case.head_size)[:, head]  # type: ignore[union-attr]
            compare(found, values, near)


class Outline(Made):
    """A case without its weight, to be compiled and not to be run: it may be large."""

    def _pack(self) -> None:
        self.parts = [torch.empty(0) for _ in FORMATS[self.case.format].parts]


def done_view(draft: Draft, target: torch.Tensor) -> torch.Tensor:
    """The result of a rearrangement as its kernel saw it."""
    type = dict(draft.kernel.parameters)["target"]
    return target.view(TYPES[type])


def compare(found: torch.Tensor, wanted: torch.Tensor, bound: torch.Tensor) -> None:
    """Every element is as near as it should be, and is a number."""
    off = (found - wanted).abs() - bound
    off[found.isnan()] = torch.inf
    assert off.max() <= 0, (
        f"{int((off > 0).sum())} of {off.numel()} are off, the worst by {off.max():.3e} beyond its bound"
    )


def check(case: Case) -> list[str]:
    """Run a case and compare; what was launched."""
    made = Made(case)
    made.run()
    made.check()
    return made.launched
