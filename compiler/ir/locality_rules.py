"""How each op moves token labels: the table behind `llmc.ir.locality`."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from llmc.ir.infer import leaves
from llmc.ir.labels import SHARED, Label, Labels, Mixes, join, within

aten = torch.ops.aten
dialect = torch.ops.llmc

Rule = Callable[[Labels, fx.Node], Label | list[Tensor]]
"""The labels of a node's result, one for each tensor where it has several. Raises `Mixes`."""


def is_pointwise(target: object) -> bool:
    """Whether an ATen op acts on each element alone, as its tag says."""
    return isinstance(target, torch._ops.OpOverload) and (torch.Tag.pointwise in target.tags or target in _POINTWISE)


_POINTWISE = {
    aten._to_copy.default, aten.to.dtype, aten.clone.default, aten.where.self, aten.where.ScalarOther,
    aten.where.ScalarSelf, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.clamp.default, aten.dropout.default,
    aten.pow.Tensor_Scalar, aten.alias.default, aten.detach.default, aten.contiguous.default, aten.isin.Tensor_Scalar,
    aten.full_like.default, aten.zeros_like.default, aten.ones_like.default, aten.empty_like.default,
    aten.nan_to_num.default, aten.softplus.default, aten.polar.default, aten.complex.default, aten.expand_as.default,
    aten.type_as.default, aten.hardswish.default, aten.floor_divide.default, aten.log_sigmoid.default,
    dialect.gated_act.default,
}  # fmt: skip


def check_counts(walk: Labels, node: fx.Node) -> None:
    """Refuse what takes the number of tokens in a step, which is no property of a sequence, for a number.

    Raises:
        Mixes: the number enters a value, not only a shape.
    """
    counts = any(walk.counts_tokens(arg) for arg in node.all_input_nodes if arg in walk.sizes)
    filled = node.target in _FILLED_WITH and walk.counts_tokens(_argument(node, _FILLED_WITH[node.target], "", 0))
    if filled or (counts and node.target not in _FILLS and node.target not in _MOVEMENT):
        raise Mixes("it computes with the number of tokens in the step, which is no property of a sequence")


def from_shared(walk: Labels, node: fx.Node) -> Label:
    """Labels of what is computed from no token: shared, or one element a token where a dimension runs over tokens.

    Raises:
        Mixes: its elements are told apart by their place in the step.
    """
    dims = walk.token_dims(node)
    if not dims:
        return None
    if node.target is aten.slice.Tensor:
        raise Mixes("it cuts as many rows from a table as the step has tokens, whatever their positions")
    if node.target not in _FILLS:
        raise Mixes("it counts the tokens of the step, which is no position in a sequence")
    if len(dims) > 1:
        raise Mixes("it has an element for each two tokens of the step")
    (dim,) = dims
    shape = walk.shape(node)
    return torch.arange(shape[dim]).reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)


def _moved(walk: Labels, node: fx.Node) -> Tensor | list[Tensor]:
    # Data movement: run the op itself on the labels.
    def value(arg: fx.Node) -> int | Tensor:
        return walk.sizes[arg] if arg in walk.sizes else walk.full(arg).contiguous()

    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value)
    assert callable(node.target)
    result: Tensor | Sequence[Tensor] = node.target(*args, **kwargs)
    return result if isinstance(result, Tensor) else list(result)


def _item(walk: Labels, node: fx.Node) -> Tensor:
    source, place = node.args
    assert isinstance(source, fx.Node) and isinstance(place, int)
    return walk.several[source][place]


def _padded(walk: Labels, node: fx.Node) -> Tensor:
    if node.target is aten.pad.default and _argument(node, 2, "mode", "constant") != "constant":
        raise Mixes("its effect on tokens is not known")
    pads = [walk.concrete(pad) for pad in _sequence(node.args[1])]
    return functional.pad(walk.full(node.args[0]), pads, value=SHARED)


def _argument(node: fx.Node, position: int, name: str, default: object) -> Any:  # noqa: ANN401 - any argument
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _sequence(value: object) -> Sequence[object]:
    assert isinstance(value, (list, tuple)), f"expected a list argument, got {value!r}"
    return value


def _dim(node: fx.Node, label: Tensor) -> int:
    # The dimension that is the second argument, counted from the front.
    dim = node.args[1]
    assert isinstance(dim, int), f"expected a dimension, got {dim!r}"
    return dim % label.dim()


def _reduced(position: int = 1, keepdim: int = 2, default: int | None = None) -> Rule:
    def rule(walk: Labels, node: fx.Node) -> Tensor | list[Tensor]:
        label = walk.full(node.args[0])
        dims = _argument(node, position, "dim", default)
        if dims is None or dims == []:
            dims = list(range(label.dim()))
        dims = sorted({dim % label.dim() for dim in ([dims] if isinstance(dims, int) else dims)})
        reduced = within(label, dims)
        result = reduced if _argument(node, keepdim, "keepdim", False) else reduced.squeeze(dims)
        several = isinstance(node.meta["val"], (tuple, list))
        return [result] * len(node.meta["val"]) if several else result

    return rule


def _along(position: int = 1, default: int = -1) -> Rule:
    def rule(walk: Labels, node: fx.Node) -> Tensor | list[Tensor]:
        label = walk.full(node.args[0])
        dim = _argument(node, position, "dim", default)
        reduced = within(label, [dim % label.dim()])
        values = node.meta["val"]
        if isinstance(values, (tuple, list)):
            return [reduced.expand([walk.concrete(size) for size in value.shape]) for value in values]
        return reduced.expand(walk.shape(node))

    return rule


def _normalised(walk: Labels, node: fx.Node) -> Tensor:
    label = walk.full(node.args[0])
    count = len(_sequence(node.args[1])) if node.target in (aten.layer_norm.default, aten.rms_norm.default) else 1
    dims = list(range(label.dim() - count, label.dim()))
    return within(label, dims).expand(label.shape)


def _linear(walk: Labels, node: fx.Node) -> Tensor:
    if any(walk.label(weight) is not None for weight in leaves(node.args[1:])):
        raise Mixes("its weight depends on tokens")
    label = walk.full(node.args[0])
    return within(label, [label.dim() - 1]).expand(walk.shape(node))


def _matmul(walk: Labels, node: fx.Node) -> Tensor:
    offset = 1 if node.target in (aten.addmm.default, aten.baddbmm.default) else 0
    left, right = walk.full(node.args[offset]), walk.full(node.args[offset + 1])
    if left.dim() == 1 or right.dim() == 1:
        raise Mixes("a product with a vector is not followed")
    result = join(within(left, [left.dim() - 1]), within(right, [right.dim() - 2]))
    if offset:
        result = join(result, walk.full(node.args[0]))
    return result.expand(walk.shape(node))


def _embedding(walk: Labels, node: fx.Node) -> Tensor:
    if walk.label(node.args[0]) is not None:
        raise Mixes("its table depends on tokens")
    return walk.full(node.args[1])[..., None].expand(walk.shape(node))


def _embedding_packed(walk: Labels, node: fx.Node) -> Tensor:
    if any(walk.label(table) is not None for table in leaves(node.args[1])):
        raise Mixes("its table depends on tokens")
    return walk.full(node.args[0])[..., None].expand(walk.shape(node))


def _indexed(walk: Labels, node: fx.Node) -> Tensor:
    base, places = node.args[0], _sequence(node.args[1])
    if walk.label(base) is not None:
        known = [_known(walk, place) for place in places]
        return walk.full(base)[tuple(slice(None) if place is None else place for place in known)]
    indexed = [i for i, place in enumerate(places) if place is not None]
    label = join(*(walk.full(places[i]) for i in indexed))
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    after = len(node.meta["val"].shape) - label.dim() - (indexed[0] if adjacent else 0)
    return label[(...,) + (None,) * after].expand(walk.shape(node))


def _known(walk: Labels, place: object) -> Tensor | None:
    """The value of an index that is a constant of the model, so that gathering by it only moves labels."""
    if place is None:
        return None
    if not isinstance(place, fx.Node) or not walk.model.is_weight(place):
        raise Mixes("it gathers from values of several tokens")
    return walk.model.weights[place.name].evaluate()


def _copied(walk: Labels, node: fx.Node) -> Tensor:
    return walk.full(node.args[1]).expand(walk.shape(node))


def _gathered(walk: Labels, node: fx.Node) -> Tensor:
    base, index = walk.full(node.args[0]), walk.full(node.args[2])
    dim = _dim(node, base)
    source = within(base, [dim])
    cut = tuple(slice(None) if d == dim else slice(0, index.shape[d]) for d in range(base.dim()))
    return join(source[cut].expand(index.shape), index)


def _scattered(walk: Labels, node: fx.Node) -> Tensor:
    base = walk.full(node.args[0])
    dim = _dim(node, base)
    parts = [base] + [walk.full(arg) for arg in node.args[2:] if isinstance(arg, fx.Node) and arg not in walk.sizes]
    return join(*(within(part, [dim]) for part in parts)).expand(base.shape)


def _one_hot(walk: Labels, node: fx.Node) -> Tensor:
    return walk.full(node.args[0])[..., None].expand(walk.shape(node))


def _is_in(walk: Labels, node: fx.Node) -> Tensor:
    if walk.label(node.args[1]) is not None:
        raise Mixes("it looks for values among those of tokens")
    return walk.full(node.args[0])


def _log_sigmoid(walk: Labels, node: fx.Node) -> list[Tensor]:
    # The second result is scratch memory.
    scratch = node.meta["val"][1].shape
    return [walk.full(node.args[0]), torch.full([walk.concrete(size) for size in scratch], SHARED)]


def _complex(walk: Labels, node: fx.Node) -> Tensor:
    label = walk.full(node.args[0])
    if node.target is aten.view_as_complex.default:
        return within(label, [label.dim() - 1]).squeeze(-1)
    return label[..., None].expand(*label.shape, 2)


def _selected_rows(walk: Labels, node: fx.Node) -> Tensor:
    # index_select by a placeholder of the step (the rows asked for): row r is taken to be token r.
    if walk.label(node.args[0]) is None and walk.label(node.args[2]) is not None:  # rows of a table, one for each token
        shape = walk.shape(node)
        place = _argument(node, 1, "dim", 0) % len(shape)
        return walk.full(node.args[2]).reshape([-1 if d == place else 1 for d in range(len(shape))]).expand(shape)
    base = walk.full(node.args[0])
    index = node.args[2]
    if not (isinstance(index, fx.Node) and index.name == "rows"):
        known = _known(walk, index)
        assert known is not None, "index_select without an index"
        return base.index_select(_dim(node, base), known)
    dim = _dim(node, base)
    return base.index_select(dim, torch.arange(walk.shape(node)[dim]))


def _rope(walk: Labels, node: fx.Node) -> Tensor:
    x, cos, sin = (walk.full(arg) for arg in node.args[:3])
    parts = [within(part, [part.dim() - 1]) for part in (x, cos, sin)]
    return join(*parts).expand(x.shape)


def _cached(walk: Labels, node: fx.Node) -> Tensor:
    for name, arg in zip(("query", "key", "value"), node.args[:3], strict=False):
        label = walk.full(arg)
        own = torch.arange(label.shape[0]).reshape(-1, 1, 1).expand(label.shape)
        if not torch.equal(torch.where(label == SHARED, own, label), own):
            raise Mixes(f"its {name} rows are not one token each, in order")
    shape = walk.shape(node)
    return torch.arange(shape[0]).reshape(-1, 1, 1).expand(shape)


def _moe(walk: Labels, node: fx.Node) -> Tensor:
    x, ids, weights = (within(walk.full(arg), [1]) for arg in node.args[:3])
    return join(x, ids, weights).expand(walk.shape(node))


_MOVEMENT = (
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.permute.default, aten.transpose.int,
    aten.t.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
    aten.expand.default, aten.slice.Tensor, aten.select.int, aten.cat.default, aten.stack.default,
    aten.split_with_sizes.default, aten.split.Tensor, aten.chunk.default, aten.unbind.int, aten.repeat.default,
    aten.flip.default, aten.roll.default, aten.flatten.using_ints, aten.unflatten.int, aten.repeat_interleave.self_int,
    aten.narrow.default, aten.unfold.default, aten.tile.default, aten.movedim.int, aten.slice_scatter.default,
    aten.select_scatter.default,
)  # fmt: skip

_FILLS = {
    aten.full.default, aten.zeros.default, aten.ones.default, aten.new_empty.default, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default, aten.expand.default,
}  # fmt: skip
"""Ops that take a number of tokens as a size, and give every token the same."""

_FILLED_WITH = {aten.full.default: 1, aten.new_full.default: 2}
"""Position of the number that an op fills in."""

RULES: dict[object, Rule] = {
    **dict.fromkeys(_MOVEMENT, _moved),
    operator.getitem: _item,
    aten.constant_pad_nd.default: _padded,
    aten.pad.default: _padded,
    aten.copy.default: _copied,
    aten.new_empty.default: from_shared,
    aten.new_zeros.default: from_shared,
    aten.new_ones.default: from_shared,
    aten.new_full.default: from_shared,
    aten.mean.dim: _reduced(),
    aten.sum.dim_IntList: _reduced(),
    aten.amax.default: _reduced(),
    aten.amin.default: _reduced(),
    aten.prod.dim_int: _reduced(),
    aten.any.dim: _reduced(),
    aten.all.dim: _reduced(),
    aten.argmax.default: _reduced(),
    aten.argmin.default: _reduced(),
    aten.max.dim: _reduced(),
    aten.min.dim: _reduced(),
    aten.logsumexp.default: _reduced(),
    aten.linalg_vector_norm.default: _reduced(2, 3),
    aten.norm.ScalarOpt_dim: _reduced(2, 3),
    aten.var.correction: _reduced(1, 3),
    aten.var.dim: _reduced(1, 3),
    aten.std.correction: _reduced(1, 3),
    aten.std.dim: _reduced(1, 3),
    aten.mean.default: _reduced(9, 9),
    aten.sum.default: _reduced(9, 9),
    aten.max.default: _reduced(9, 9),
    aten.min.default: _reduced(9, 9),
    aten.any.default: _reduced(9, 9),
    aten.all.default: _reduced(9, 9),
    aten.softmax.int: _along(),
    aten._softmax.default: _along(),
    aten.log_softmax.int: _along(),
    aten._log_softmax.default: _along(),
    aten.cumsum.default: _along(),
    aten.cumprod.default: _along(),
    aten.cummax.default: _along(),
    aten.cummin.default: _along(),
    aten.logcumsumexp.default: _along(),
    aten.kthvalue.default: _reduced(2, 3, default=-1),
    aten.median.dim: _reduced(),
    aten.sort.default: _along(),
    aten.argsort.default: _along(),
    aten.topk.default: _along(2),
    aten.glu.default: _along(),
    aten.layer_norm.default: _normalised,
    aten.rms_norm.default: _normalised,
    dialect.rms_norm.default: _normalised,
    dialect.layer_norm.default: _normalised,
    dialect.rope.default: _rope,
    dialect.moe.default: _moe,
    dialect.moe_packed.default: _moe,
    dialect.linear_packed.default: _linear,
    dialect.embedding_packed.default: _embedding_packed,
    dialect.cached_attention.default: _cached,
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mm.default: _matmul,
    aten.addmm.default: _matmul,
    aten.baddbmm.default: _matmul,
    aten.embedding.default: _embedding,
    aten.index.Tensor: _indexed,
    aten.index_select.default: _selected_rows,
    aten.gather.default: _gathered,
    aten.scatter.src: _scattered,
    aten.scatter.value: _scattered,
    aten.scatter_add.default: _scattered,
    aten.one_hot.default: _one_hot,
    aten.isin.Tensor_Tensor: _is_in,
    aten.log_sigmoid_forward.default: _log_sigmoid,
    aten.view_as_complex.default: _complex,
    aten.view_as_real.default: _complex,
}
"""Label rule of each op that is not pointwise."""
