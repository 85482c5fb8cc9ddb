"""Attention reads each key head as often as it has query heads: copies of key heads are not needed."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.ir.sizes import number

aten = torch.ops.aten
dialect = torch.ops.llmc

_HEADS = 1
"""Dimension of the heads in the operands of an attention, [B, H, S, D]."""

_SWAP = [0, 2, 1, 3]


@dataclass(frozen=True)
class RemoveKvRepeats:
    """Give grouped attention its few key and value heads, where the model repeats each for every query head.

    Undoes `repeat_interleave`, and `expand` followed by `reshape`, before or after heads and tokens are swapped.
    """

    name: ClassVar[str] = "remove_kv_repeats"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Remove the repeats at every attention of `model`; return at how many."""
        calls = model.calls(dialect.attention.default, dialect.masked_attention.default)
        return sum(self._remove(node, rewriter) for node in calls)

    def _remove(self, attention: fx.Node, rewriter: Rewriter) -> int:
        key, value = attention.args[1:3]
        assert isinstance(key, fx.Node) and isinstance(value, fx.Node)
        found = {name: _repeat(node) for name, node in (("keys", key), ("values", value))}
        tiled = [name for name, repeat in found.items() if isinstance(repeat, str)]
        if tiled:
            rewriter.refuse(self.name, attention, f"the heads of the {tiled[0]} are {found[tiled[0]]}")
            return 0
        keys, values = found["keys"], found["values"]
        if keys is None and values is None:
            return 0
        if not isinstance(keys, _Repeat) or not isinstance(values, _Repeat) or keys.times != values.times:
            times = {name: repeat.times if isinstance(repeat, _Repeat) else 1 for name, repeat in found.items()}
            reason = f"keys are repeated {times['keys']} times, values {times['values']} times"
            rewriter.refuse(self.name, attention, reason)
            return 0
        others = [node for node in attention.all_input_nodes if node not in (key, value)]
        inputs = list(dict.fromkeys([*others, keys.source, values.source]))

        def build(*of: Any) -> object:  # noqa: ANN401 - traced values
            value_of = dict(zip(inputs, of, strict=True))
            value_of[key], value_of[value] = keys.undone(value_of[keys.source]), values.undone(value_of[values.source])
            args = fx.map_arg(attention.args, value_of.__getitem__)
            return attention.target(*args)  # type: ignore[operator]

        return int(rewriter.replace(self.name, inputs, [attention], build))


@dataclass(frozen=True)
class _Repeat:
    """An operand whose heads are those of `source`, each repeated `times` times in a row."""

    source: fx.Node
    times: int
    extra: int | None
    """The dimension of size 1 that `source` has where the copies are made; None when it has none."""
    swapped: bool
    """Whether `source` has tokens before heads."""

    def undone(self, source: Any) -> Any:  # noqa: ANN401 - a traced value
        """The operand without the copies, from the traced value of `source`."""
        if self.extra is not None:
            source = aten.squeeze.dims(source, [self.extra])
        return aten.permute.default(source, _SWAP) if self.swapped else source


def _repeat(operand: fx.Node) -> _Repeat | str | None:
    """The repeat that makes `operand`; None when it has none, how its heads are laid out when that is no repeat."""
    swapped = operand.target is aten.permute.default and list(operand.args[1]) == _SWAP  # type: ignore[arg-type]
    node: Any = operand.args[0] if swapped else operand
    heads = 2 if swapped else _HEADS
    if node.target is aten.repeat_interleave.self_int:
        return _Repeat(node.args[0], node.args[1], None, swapped) if node.args[2:3] == (heads,) else None
    copies = node.args[0] if node.target is aten.reshape.default else node
    enlarged = _enlarged(copies) if copies.target is aten.expand.default else None
    if enlarged is None:
        return None
    source = copies.args[0]
    dim, times = enlarged
    sizes = _sizes(source)
    if copies is node:
        return _Repeat(source, times, None, swapped) if dim == heads else None
    rest = sizes[:dim] + sizes[dim + 1 :]
    if len(rest) != 4 or _sizes(node) != [
        _product(size, times) if at == heads else size for at, size in enumerate(rest)
    ]:
        return None
    if dim == heads:
        return "repeated as a whole, not each in a row"
    return _Repeat(source, times, dim, swapped) if dim == heads + 1 else None


def _enlarged(expand: fx.Node) -> tuple[int, int] | None:
    """The one dimension that `expand` enlarges, and its new size; None when there are several, or new ones."""
    assert isinstance(expand.args[0], fx.Node)
    before, after = _sizes(expand.args[0]), _sizes(expand)
    changed = [(dim, size) for dim, size in enumerate(after) if before[dim : dim + 1] == [1] and size not in (1, None)]
    return changed[0] if len(before) == len(after) and len(changed) == 1 else None


def _sizes(node: fx.Node) -> list[int | None]:
    return [number(size) for size in node.meta["val"].shape]


def _product(size: int | None, times: int) -> int | None:
    return None if size is None else size * times
