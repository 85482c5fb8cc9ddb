"""Torch as the host of a native program: it computes what has no native form, in the program's own memory.

Rows are computed one by one, each from copies that are contiguous and aligned, on one thread: in many operations torch
rounds the last bit by where an element lies and how many there are, and a token's result is to be the same in any
batch. Ops whose results are exact are done for all rows at once.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import fx

from llmc.codegen.layout import Domain
from llmc.codegen.torch_calls import STORED, Layout, TorchCall, digest, read_calls

aten = torch.ops.aten

EXACT = frozenset({
    aten._to_copy.default, aten.abs.default, aten.add.Tensor, aten.all.dim, aten.amax.default, aten.amin.default,
    aten.any.dim, aten.argmax.default, aten.argmin.default, aten.argsort.default, aten.bitwise_and.Tensor,
    aten.bitwise_not.default, aten.bitwise_or.Tensor, aten.bitwise_xor.Scalar, aten.bitwise_xor.Tensor,
    aten.cat.default, aten.ceil.default, aten.clamp.default, aten.clone.default, aten.constant_pad_nd.default,
    aten.copy.default, aten.cummax.default, aten.cummin.default, aten.div.Tensor, aten.eq.Scalar, aten.eq.Tensor,
    aten.expand.default, aten.expand_as.default, aten.flip.default, aten.floor.default, aten.full.default,
    aten.gather.default, aten.ge.Scalar, aten.ge.Tensor, aten.gt.Scalar, aten.gt.Tensor, aten.index_select.default,
    aten.isin.Tensor_Tensor, aten.le.Scalar, aten.le.Tensor, aten.leaky_relu.default, aten.logical_and.default,
    aten.logical_not.default, aten.logical_or.default, aten.logical_xor.default, aten.lt.Scalar, aten.lt.Tensor,
    aten.masked_fill.Scalar, aten.max.dim, aten.maximum.default, aten.min.dim, aten.minimum.default, aten.mul.Tensor,
    aten.nan_to_num.default, aten.ne.Scalar, aten.ne.Tensor, aten.neg.default, aten.one_hot.default,
    aten.permute.default, aten.relu.default, aten.repeat.default, aten.reshape.default, aten.roll.default,
    aten.round.default, aten.scatter.value, aten.select.int, aten.select_scatter.default, aten.sign.default,
    aten.slice.Tensor, aten.slice_scatter.default, aten.sort.default, aten.split_with_sizes.default,
    aten.squeeze.dims, aten.stack.default, aten.sub.Tensor, aten.topk.default, aten.trunc.default,
    aten.unfold.default, aten.unsqueeze.default, aten.where.self,
})  # fmt: skip
"""Ops that move, compare or choose elements, or round once as IEEE says: all ways to do them give equal bits."""


def computes_by_row(call: TorchCall) -> bool:
    """Whether a call is computed row after row, not for all rows at once."""
    return bool(call.rows) and not all(_is_exact(node) for node in call.module.graph.nodes)


class TorchHost:
    """Computes the calls of one program; implements `llmc.runtime.host.Host`."""

    def __init__(self, calls: Sequence[TorchCall], content: bytes) -> None:
        """`content` is the file of the calls, which tells programs apart."""
        self._calls = [_Prepared(call) for call in calls]
        self.digest = digest(content)

    @staticmethod
    def read(content: bytes) -> "TorchHost":
        """The host of the calls in a file. Raises ArtifactRejected."""
        return TorchHost(read_calls(content), content)

    def values(self, number: int) -> int:
        """See `llmc.runtime.host.Host`."""
        return len(self._calls[number].layouts) if 0 <= number < len(self._calls) else 0

    def run(self, number: int, addresses: Sequence[int], tokens: int, rows: int) -> None:
        """See `llmc.runtime.host.Host`."""
        with torch.inference_mode(), _one_thread():
            self._calls[number].run(addresses, tokens, rows)

    def clear(self, number: int, addresses: Sequence[int], tokens: int, rows: int) -> None:
        """See `llmc.runtime.host.Host`."""
        with torch.inference_mode():
            for view in self._calls[number].views(addresses, tokens, rows)[1]:
                view.zero_()


class _Prepared:
    """A call, with what is the same in every step."""

    def __init__(self, call: TorchCall) -> None:
        self.call = call
        self.layouts = (*call.inputs, *call.outputs)
        nodes = list(call.module.graph.nodes)
        given = [node for node in nodes if node.op == "placeholder"]
        self.dtypes = [_dtype(node) for node in given[: len(call.inputs)]]
        self.counted = len(given) > len(call.inputs)
        self.by_row = computes_by_row(call)

    def views(self, addresses: Sequence[int], tokens: int, rows: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Inputs and outputs where they lie."""
        count = _count(self.call.rows, tokens, rows)
        made = [_view(address, layout, count) for address, layout in zip(addresses, self.layouts, strict=True)]
        return made[: len(self.call.inputs)], made[len(self.call.inputs) :]

    def run(self, addresses: Sequence[int], tokens: int, rows: int) -> None:
        count = _count(self.call.rows, tokens, rows)
        if not count:
            return
        inputs, outputs = self.views(addresses, tokens, rows)
        given = zip(
            inputs, self.call.inputs, self.dtypes, strict=True
        )  # weights and the like are the same for all rows
        inputs = [view.to(dtype).contiguous() if at.row_axis is None else view for view, at, dtype in given]
        if not self.by_row:
            self._compute(inputs, outputs, count)
            return
        for row in range(count):
            self._compute(_row(inputs, self.call.inputs, row), _row(outputs, self.call.outputs, row), 1)

    def _compute(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], count: int) -> None:
        given = [
            view if at.row_axis is None else view.to(dtype, copy=True, memory_format=torch.contiguous_format)
            for view, at, dtype in zip(inputs, self.call.inputs, self.dtypes, strict=True)
        ]
        results = self.call.module(*given, *([count] if self.counted else []))
        for view, result in zip(outputs, results, strict=True):
            view.copy_(result)


def _row(views: Sequence[torch.Tensor], layouts: Sequence[Layout], row: int) -> list[torch.Tensor]:
    axes = [layout.row_axis for layout in layouts]
    return [view if axis is None else view.narrow(axis, row, 1) for view, axis in zip(views, axes, strict=True)]


def _count(domain: Domain, tokens: int, rows: int) -> int:
    return {"T": tokens, "R": rows, "": 1}[domain]


def _view(address: int, layout: Layout, count: int) -> torch.Tensor:
    """The tensor at an address; as_strided refuses to reach beyond the buffer."""
    dtype = STORED[layout.dtype]
    elements = layout.width * (count if layout.rows else 1)
    if not elements:
        return torch.empty([count if size is None else size for size, _ in layout.axes], dtype=dtype)
    memory = (ctypes.c_char * (elements * dtype.itemsize)).from_address(address)
    sizes = [count if size is None else size for size, _ in layout.axes]
    row = layout.width if layout.rows else 0
    strides = [row if size is None else stride for size, stride in layout.axes]
    return torch.frombuffer(memory, dtype=dtype).as_strided(sizes, strides, layout.offset)


def _dtype(node: fx.Node) -> torch.dtype:
    return STORED[node.meta["type"].partition("[")[0]]


def _is_exact(node: fx.Node) -> bool:
    if node.op != "call_function":
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # sizes, and the parts of a result
    return node.target in EXACT and "alpha" not in node.kwargs


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
