"""A packed graph as regions: where each value lives, and what is computed in which order.

Every float value is float32 in memory, whatever the model's dtype. What has no native form is left to torch, or raises
`Unlowered`.
"""

import operator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import fx

from llmc.codegen.groups import ATTENTION, BINARY, UNARY, Group, find_groups, is_square, schedule
from llmc.codegen.heads import split_heads
from llmc.codegen.layout import Buffer, Domain, Scalar, Value, View, fresh
from llmc.codegen.regions import (
    Attention,
    ChainStep,
    Experts,
    HeadPart,
    Linear,
    Region,
    RowOp,
)
from llmc.codegen.row_ops import row_op
from llmc.codegen.row_runs import origin_of, row_regions
from llmc.codegen.torch_regions import TorchNodes
from llmc.codegen.unlowered import Unlowered
from llmc.codegen.view_ops import VIEWS, apply, is_cast, own_view
from llmc.codegen.walk import substitute, weights_of
from llmc.ir.model import STEP_INPUTS, Model
from llmc.ir.show import size_letters

aten, llmc = torch.ops.aten, torch.ops.llmc

DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64", torch.bool: "u8"}
"""What a weight's elements are called in a program."""


@dataclass
class Lowered:
    """The regions of a program in order, and what they work on."""

    regions: list[Region]
    weights: list[str]
    """Names of the weights that regions read, in the order of their first use."""
    weight_bytes: list[int]
    vocabulary: int


def lower(model: Model, *, leave_to_torch: bool = False) -> Lowered:
    """The regions of a packed graph whose linears are packed.

    Raises `Unlowered` for what has no native form; if torch may compute that, for what torch cannot either.
    """
    known: dict[fx.Node, str] = {}
    while True:
        try:
            return _Lowering(model, TorchNodes(model, known) if leave_to_torch else None).run()
        except Unlowered as error:
            if not leave_to_torch or error.final or error.node in known or error.node.target is ATTENTION:
                raise
            known[error.node] = error.reason  # what else is fused depends on it: begin again


@dataclass
class _Lowering:
    model: Model
    torch: TorchNodes | None
    values: dict[fx.Node, Value | list[Value]] = field(default_factory=dict)
    regions: list[Region] = field(default_factory=list)
    pending: list[tuple[RowOp, fx.Node]] = field(default_factory=list)
    written: set[tuple[fx.Node, str]] = field(default_factory=set)
    keys: Any = field(default_factory=count)

    def run(self) -> Lowered:
        graph = self.model.graph
        self.letters = size_letters(graph)
        self.output: fx.Node = graph.output_node().args[0][0]  # type: ignore[index,assignment]
        for node in self.model.placeholders():
            self._placeholder(node)
        groups = find_groups(self.model, () if self.torch is None else self.torch.known)
        for unit in schedule(self.model, groups):
            self._unit(unit)
        self._torch_region()
        self._flush()
        self._finish()
        if self.torch is not None:
            self.torch.check()
        values = {node.name: node.meta["val"] for node in self.model.placeholders()}
        names = list(dict.fromkeys(name for region in self.regions for name in weights_of(region)))
        sizes = [values[name].numel() * values[name].dtype.itemsize for name in names]
        return Lowered(self.regions, names, sizes, int(self.output.meta["val"].shape[-1]))

    def _unit(self, unit: fx.Node | Group) -> None:
        nodes = [unit] if isinstance(unit, fx.Node) else [*unit.nodes, *([unit.prologue] if unit.prologue else [])]
        if self.torch is not None and isinstance(unit, fx.Node):
            if self.torch.is_done(unit):
                return
            reason = self.torch.reason(unit)
            if reason is not None:
                self._leave(unit, reason)
                return
        if self.torch is not None and self.torch.are_read_by(nodes):
            if isinstance(unit, fx.Node) and self._joins(unit):
                return
            self._torch_region()
        if isinstance(unit, Group):
            self._linear(unit)
        elif unit.target is ATTENTION:
            self._attention(unit)
        elif unit.target is llmc.moe_packed.default:
            self._experts(unit)
        else:
            try:
                self._row(unit)
            except Unlowered as error:
                if self.torch is None:
                    raise
                self._leave(unit, error.reason)

    # --- what torch computes

    def _leave(self, node: fx.Node, reason: str) -> None:
        assert self.torch is not None, "torch may compute it"
        if not self.torch.fits(node):
            self._torch_region()
        for item in self.torch.add(node, reason):
            with suppress(Unlowered):  # it may have no place, if nothing native reads it
                self.values[item] = self.new(item)

    def _joins(self, node: fx.Node) -> bool:
        """Whether a node that reads what torch computes has no native form either; then torch computes it too."""
        if node.target in (ATTENTION, llmc.moe_packed.default):
            return False
        pending = list(self.pending)
        try:
            self._row(node)
        except Unlowered as error:
            self._leave(node, error.reason)
            return True
        self.pending = pending
        return False

    def _torch_region(self) -> None:
        if self.torch is None or not self.torch.gathered:
            return
        region, values, views = self.torch.make(self)
        self._flush()
        self.regions.append(region)
        self.values.update(values)
        for node in views:
            self._unit(node)

    # --- values

    def _placeholder(self, node: fx.Node) -> None:
        value = node.meta["val"]
        if self.model.is_weight(node):
            if value.dtype in DTYPES:
                buffer = Buffer(next(self.keys), node.name, "", value.numel(), DTYPES[value.dtype], "weight")
                self.values[node] = fresh(buffer, tuple(value.shape))
        elif node.name in STEP_INPUTS:
            domain: Domain = "R" if node.name == "rows" else "T"
            if node.name in ("tokens", "positions", "slots", "rows"):
                self.values[node] = fresh(Buffer(next(self.keys), node.name, domain, 1, "i64", "step"), (None,))

    def _domain(self, node: fx.Node) -> Domain:
        symbols = [size for size in node.meta["val"].shape if not isinstance(size, int)]
        if not symbols:
            return ""
        letters = {self.letters.get(symbol.node.expr) for symbol in symbols}
        if len(symbols) != 1 or not letters <= {"T", "R"}:
            raise Unlowered(node, f"sizes {tuple(map(str, node.meta['val'].shape))} are not rows of fixed size")
        return "T" if letters == {"T"} else "R"

    def new(self, node: fx.Node, output: int | None = None) -> View:
        """A new place in the arena for a node's value, or for one of its values."""
        value = node.meta["val"] if output is None else node.meta["val"][output]
        dtype = "f32" if value.dtype.is_floating_point else DTYPES.get(value.dtype, "i64")
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        if output is None:
            return own_view(node, next(self.keys), self._domain(node), dtype)
        width = 1
        for size in shape:
            width *= 1 if size is None else size
        row: Domain = "T" if None in shape else ""
        return fresh(Buffer(next(self.keys), f"{node.name}_{output}", row, width, dtype, "arena"), shape)

    def value(self, arg: object, node: fx.Node) -> Value:
        """What an argument of `node` is."""
        if isinstance(arg, bool | int | float):
            return Scalar(arg, "f32" if isinstance(arg, float) else "i64")
        if isinstance(arg, fx.Node) and isinstance(self.values.get(arg), (View, Scalar)):
            return self.values[arg]  # type: ignore[return-value]
        given = arg.target if isinstance(arg, fx.Node) else arg
        raise Unlowered(node, f"reads {given}, which has no place in a native program")

    def view(self, arg: object, node: fx.Node) -> View:
        """An argument that is not a number."""
        found = self.value(arg, node)
        if isinstance(found, Scalar):
            raise Unlowered(node, f"argument {arg} is a number, not a tensor")
        return found

    def maybe(self, arg: object, node: fx.Node) -> View | None:
        """An argument that may be None."""
        return None if arg is None else self.view(arg, node)

    # --- operations on rows

    def _row(self, node: fx.Node) -> None:
        if node.target in VIEWS or is_cast(node):
            source = self.values.get(node.args[0])  # type: ignore[arg-type]
            if isinstance(source, View):
                seen = apply(node, source)
                if seen is not None:
                    self.values[node] = seen  # type: ignore[assignment]
                    return
            elif isinstance(source, Scalar):
                self.values[node] = source
                return
            if node.target not in (aten.reshape.default, aten._to_copy.default):
                raise Unlowered(node, "this view would move rows")
        if node.target is operator.getitem:
            several = self.values.get(node.args[0])  # type: ignore[arg-type]
            if not isinstance(several, list):
                raise Unlowered(node, "takes one of several values that are not known")
            self.values[node] = several[node.args[1]]  # type: ignore[index]
            return
        if node.target is aten.index_select.default and self._is_rows(node):
            source_view = self.view(node.args[0], node)
            self.values[node] = View(source_view.buffer, source_view.axes, source_view.offset, True)
            return
        made = row_op(node, self)
        if isinstance(made, Scalar):
            self.values[node] = made
            return
        for op in made:
            self.pending.append((op, node))
        outputs = [output for op in made for output in op.outputs]
        self.values[node] = outputs[-1] if isinstance(node.meta["val"], torch.Tensor) else list(made[-1].outputs)

    def _is_rows(self, node: fx.Node) -> bool:
        index, source = node.args[2], self.values.get(node.args[0])  # type: ignore[arg-type]
        if not isinstance(index, fx.Node) or index.name != "rows" or not isinstance(source, View):
            return False
        return source.buffer.domain == "T" and source.axes[int(str(node.args[1]))].size is None

    def _flush(self) -> None:
        """Make regions of the row operations so far."""
        self.regions += row_regions(self.pending)
        self.pending.clear()

    # --- anchors

    def _linear(self, group: Group) -> None:
        node = group.linear
        args: Any = node.args
        x, parts, bias, format_, n, k = args[:6]
        source: View | RowOp
        if group.prologue is not None:
            made = row_op(group.prologue, self)
            assert not isinstance(made, Scalar) and len(made) == 1, "a prologue is one operation"
            source = made[0]
        else:
            source = self.view(x, node)
        if node.meta["val"].dim() != 2:
            raise Unlowered(node, f"a linear over {node.meta['val'].dim()} axes")
        self._flush()
        head_parts: tuple[HeadPart, ...] = ()
        head_of: tuple[tuple[int, int], ...] = ()
        target = None
        if group.leaves:
            head_parts, head_of = split_heads(group, self)
        else:
            target = self.new(group.result)
            self.values[group.result] = target
        gate = "" if group.gate is None else str(group.gate.args[2])
        chain = tuple(self._chain_step(step, position) for step, position in group.chain)
        origin = origin_of(node)
        self.regions.append(
            Linear(
                name=node.name, origin=origin, domain=self._domain(node), format=str(format_), n=int(n), k=int(k),
                weights=tuple(str(part.name) for part in parts),
                source=source, bias=self.maybe(bias, node), gate=gate, chain=chain, target=target, parts=head_parts,
                head_of=head_of, head_size=group.leaves[0].size if group.leaves else 0,
                nodes=tuple(item.name for item in group.nodes),
            )
        )  # fmt: skip

    def _chain_step(self, node: fx.Node, position: int) -> ChainStep:
        target: Any = node.target
        if target in UNARY:
            name = UNARY[target]
            if name == "gelu" and node.kwargs.get("approximate", (*node.args, "none", "none")[1]) == "tanh":
                name = "gelu_tanh"
            return ChainStep(name, None)
        if is_square(node):
            return ChainStep("square", None)
        return ChainStep(BINARY[target], self.value(node.args[1 - position], node), swapped=position == 1)

    def _attention(self, node: fx.Node) -> None:
        args: Any = node.args
        q, k, v = args[:3]
        layer = int(str(args[3]).rsplit("_", 1)[1])
        heads, key_size = (int(size) for size in q.meta["val"].shape[1:])
        key_heads, value_size = (int(size) for size in v.meta["val"].shape[1:])
        for role, source in (("k", k), ("v", v)):
            if (node, role) not in self.written:
                op = RowOp(f"write_{role}", node.name, (self.view(source, node),), (self._slots(),), {"layer": layer})
                self.pending.append((op, node))
        self._flush()
        output = self.new(node)
        self.values[node] = output
        self.regions.append(
            Attention(
                name=node.name, origin=origin_of(node), layer=layer, heads=heads, key_heads=key_heads,
                key_size=key_size, value_size=value_size, query=self.view(q, node), output=output,
                sinks=self.maybe(args[10], node), tables=tuple(self.view(table, node) for table in args[11]),
                mask=args[12], bias=args[13], scale=float(args[14]), softcap=float(args[15]), nodes=(node.name,),
            )
        )  # fmt: skip

    def stored(self, arg: fx.Node, node: fx.Node) -> View:
        """An argument whose rows lie one after another in a buffer of their own; it is copied if they do not."""
        view = self.view(arg, node)
        if view.is_contiguous and not view.offset and not view.indirect and view.elements == view.buffer.width:
            return view
        copy = self.new(arg)
        self.pending.append((RowOp("copy", node.name, (view,), (copy,)), node))
        return copy

    def _slots(self) -> View:
        node = next(node for node in self.model.inputs() if node.name == "slots")
        return self.view(node, node)

    def _experts(self, node: fx.Node) -> None:
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        rows = [self.stored(given[name], node) for name in ("x", "expert_ids", "expert_weights")]
        self._flush()
        output = self.new(node)
        self.values[node] = output
        plain = {name: value for name, value in given.items() if isinstance(value, (str, int, float, bool))}
        self.regions.append(
            Experts(
                name=node.name, origin=origin_of(node), domain=self._domain(node),
                source=rows[0], ids=rows[1], gates=rows[2],
                up=tuple(part.name for part in given["up"]), down=tuple(part.name for part in given["down"]),
                up_bias=self.maybe(given["up_bias"], node), down_bias=self.maybe(given["down_bias"], node),
                output=output, attrs=plain, nodes=(node.name,),
            )
        )  # fmt: skip

    # --- the end

    def _finish(self) -> None:
        """The output is the caller's memory: rename the buffer that the last region writes."""
        old = self.stored(self.output, self.output).buffer
        self._flush()
        if old.place != "arena" or old.dtype != "f32":
            raise Unlowered(self.output, "the logits are not computed in the program's last step", final=True)
        new = Buffer(old.key, "logits", old.domain, old.width, old.dtype, "logits")
        self.regions = [substitute(region, old, new) for region in self.regions]
