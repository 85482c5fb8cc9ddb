"""How each op moves token labels: the table behind `llmc.ir.locality`."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from llmc.ir.locality import SHARED, Label, Mixes, _Walk, join, within

aten = torch.ops.aten
dialect = torch.ops.llmc

Rule = Callable[[_Walk, fx.Node], Any]


def is_pointwise(target: object) -> bool:
    """Whether an ATen op acts on each element alone, as its tag says."""
    return isinstance(target, torch._ops.OpOverload) and (torch.Tag.pointwise in target.tags or target in _POINTWISE)


_POINTWISE = {
    aten._to_copy.default, aten.to.dtype, aten.clone.default, aten.where.self, aten.where.ScalarOther,
    aten.where.ScalarSelf, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.clamp.default, aten.dropout.default,
    aten.pow.Tensor_Scalar, aten.alias.default, aten.detach.default, aten.contiguous.default, aten.isin.Tensor_Scalar,
    aten.full_like.default, aten.zeros_like.default, aten.ones_like.default,
    aten.nan_to_num.default, aten.softplus.default, aten.expand_as.default, aten.type_as.default,
    dialect.gated_act.default,
}  # fmt: skip


def _moved(walk: _Walk, node: fx.Node) -> Any:  # noqa: ANN401 - one label or a list of them
    # Data movement: run the op itself on the labels.
    def value(arg: fx.Node) -> object:
        return walk.sizes[arg] if arg in walk.sizes else walk.full(arg)

    args = fx.node.map_arg(node.args, value)
    kwargs = fx.node.map_arg(node.kwargs, value)
    assert callable(node.target)
    result = node.target(*args, **kwargs)
    return list(result) if isinstance(result, (tuple, list)) else result


def _item(walk: _Walk, node: fx.Node) -> Label:
    labels = walk.labels[node.args[0]]  # type: ignore[index]
    return None if labels is None else labels[node.args[1]]  # type: ignore[index,return-value]


def _padded(walk: _Walk, node: fx.Node) -> Tensor:
    label = walk.full(node.args[0])  # type: ignore[arg-type]
    pads = [walk.concrete(pad) for pad in node.args[1]]  # type: ignore[union-attr]
    return aten.constant_pad_nd.default(label, pads, SHARED)  # type: ignore[no-any-return]


def _argument(node: fx.Node, position: int, name: str, default: object) -> Any:  # noqa: ANN401 - any argument
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _reduced(position: int = 1, keepdim: int = 2) -> Rule:
    def rule(walk: _Walk, node: fx.Node) -> Any:  # noqa: ANN401 - one label, or two for max.dim
        label = walk.full(node.args[0])  # type: ignore[arg-type]
        dims = _argument(node, position, "dim", None)
        if dims is None or dims == []:
            dims = list(range(label.dim()))
        dims = sorted({dim % label.dim() for dim in ([dims] if isinstance(dims, int) else dims)})
        reduced = within(label, dims)
        result = reduced if _argument(node, keepdim, "keepdim", False) else reduced.squeeze(dims)
        several = isinstance(node.meta["val"], (tuple, list))
        return [result] * len(node.meta["val"]) if several else result

    return rule


def _along(position: int = 1, default: int = -1) -> Rule:
    def rule(walk: _Walk, node: fx.Node) -> Any:  # noqa: ANN401 - one label, or two for topk and sort
        label = walk.full(node.args[0])  # type: ignore[arg-type]
        dim = _argument(node, position, "dim", default)
        reduced = within(label, [dim % label.dim()])
        values = node.meta["val"]
        if isinstance(values, (tuple, list)):
            return [reduced.expand([walk.concrete(size) for size in value.shape]) for value in values]
        return reduced.expand(walk.shape(node))

    return rule


def _normalised(walk: _Walk, node: fx.Node) -> Tensor:
    label = walk.full(node.args[0])  # type: ignore[arg-type]
    sizes = node.args[1] if node.target in (aten.layer_norm.default, aten.rms_norm.default) else [0]
    dims = list(range(label.dim() - len(sizes), label.dim()))  # type: ignore[arg-type]
    return within(label, dims).expand(label.shape)


def _linear(walk: _Walk, node: fx.Node) -> Tensor:
    for weight in node.args[1:]:
        if walk.label(weight) is not None:
            raise Mixes("its weight depends on tokens")
    label = walk.full(node.args[0])  # type: ignore[arg-type]
    return within(label, [label.dim() - 1]).expand(walk.shape(node))


def _matmul(walk: _Walk, node: fx.Node) -> Tensor:
    offset = 1 if node.target in (aten.addmm.default, aten.baddbmm.default) else 0
    left, right = walk.full(node.args[offset]), walk.full(node.args[offset + 1])  # type: ignore[arg-type]
    if left.dim() == 1 or right.dim() == 1:
        raise Mixes("a product with a vector is not followed")
    result = join(within(left, [left.dim() - 1]), within(right, [right.dim() - 2]))
    if offset:
        result = join(result, walk.full(node.args[0]))  # type: ignore[arg-type]
    return result.expand(walk.shape(node))


def _embedding(walk: _Walk, node: fx.Node) -> Tensor:
    if walk.label(node.args[0]) is not None:
        raise Mixes("its table depends on tokens")
    return walk.full(node.args[1])[..., None].expand(walk.shape(node))  # type: ignore[arg-type]


def _indexed(walk: _Walk, node: fx.Node) -> Tensor:
    base, places = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    if walk.label(base) is not None:
        return aten.index.Tensor(walk.full(base), [_known(walk, place) for place in places])  # type: ignore[arg-type]
    indexed = [i for i, place in enumerate(places) if place is not None]
    label = join(*(walk.full(places[i]) for i in indexed))
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    after = len(node.meta["val"].shape) - label.dim() - (indexed[0] if adjacent else 0)
    return label[(...,) + (None,) * after].expand(walk.shape(node))


def _known(walk: _Walk, place: object) -> Tensor | None:
    """The value of an index that is a constant of the model, so that gathering by it only moves labels."""
    if place is None:
        return None
    if not walk.model.is_weight(place):
        raise Mixes("it gathers from values of several tokens")
    return walk.model.weights[place.name].evaluate()  # type: ignore[attr-defined]


def _copied(walk: _Walk, node: fx.Node) -> Tensor:
    return walk.full(node.args[1]).expand(walk.shape(node))  # type: ignore[arg-type]


def _gathered(walk: _Walk, node: fx.Node) -> Tensor:
    base, index = walk.full(node.args[0]), walk.full(node.args[2])  # type: ignore[arg-type]
    dim = int(node.args[1]) % base.dim()  # type: ignore[arg-type]
    source = within(base, [dim])
    cut = tuple(slice(None) if d == dim else slice(0, index.shape[d]) for d in range(base.dim()))
    return join(source[cut].expand(index.shape), index)


def _scattered(walk: _Walk, node: fx.Node) -> Tensor:
    base = walk.full(node.args[0])  # type: ignore[arg-type]
    dim = int(node.args[1]) % base.dim()  # type: ignore[arg-type]
    parts = [base] + [walk.full(arg) for arg in node.args[2:] if isinstance(arg, fx.Node) and arg not in walk.sizes]
    return join(*(within(part, [dim]) for part in parts)).expand(base.shape)


def _one_hot(walk: _Walk, node: fx.Node) -> Tensor:
    return walk.full(node.args[0])[..., None].expand(walk.shape(node))  # type: ignore[arg-type]


def _complex(walk: _Walk, node: fx.Node) -> Tensor:
    label = walk.full(node.args[0])  # type: ignore[arg-type]
    if node.target is aten.view_as_complex.default:
        return within(label, [label.dim() - 1]).squeeze(-1)
    return label[..., None].expand(*label.shape, 2)


def _blank(walk: _Walk, node: fx.Node) -> Label:
    return None


def _created(walk: _Walk, node: fx.Node) -> Label:
    for arg in node.all_input_nodes:
        if arg in walk.sizes and isinstance(arg.meta["val"], torch.SymInt):
            raise Mixes("it counts the tokens of the step, which is no position in a sequence")
    return None


def _selected_rows(walk: _Walk, node: fx.Node) -> Tensor:
    # index_select by a placeholder of the step (the rows asked for): row r is taken to be token r.
    base = walk.full(node.args[0])  # type: ignore[arg-type]
    index = node.args[2]
    if not (isinstance(index, fx.Node) and index.name == "rows"):
        return aten.index_select.default(base, node.args[1], _known(walk, index))
    dim = int(node.args[1]) % base.dim()  # type: ignore[arg-type]
    return base.index_select(dim, torch.arange(walk.shape(node)[dim]))


def _rope(walk: _Walk, node: fx.Node) -> Tensor:
    x, cos, sin = (walk.full(arg) for arg in node.args[:3])  # type: ignore[arg-type]
    parts = [within(part, [part.dim() - 1]) for part in (x, cos, sin)]
    return join(*parts).expand(x.shape)


def _cached(walk: _Walk, node: fx.Node) -> Tensor:
    for name, arg in zip(("query", "key", "value"), node.args[:3], strict=False):
        label = walk.full(arg)  # type: ignore[arg-type]
        own = torch.arange(label.shape[0]).reshape(-1, 1, 1).expand(label.shape)
        if not torch.equal(torch.where(label == SHARED, own, label), own):
            raise Mixes(f"its {name} rows are not one token each, in order")
    shape = walk.shape(node)
    return torch.arange(shape[0]).reshape(-1, 1, 1).expand(shape)


def _moe(walk: _Walk, node: fx.Node) -> Tensor:
    x, ids, weights = (within(walk.full(arg), [1]) for arg in node.args[:3])  # type: ignore[arg-type]
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

RULES: dict[object, Rule] = {
    **dict.fromkeys(_MOVEMENT, _moved),
    operator.getitem: _item,
    aten.constant_pad_nd.default: _padded,
    aten.arange.start_step: _created,
    aten.arange.default: _created,
    aten.arange.start: _created,
    aten.copy.default: _copied,
    aten.new_empty.default: _blank,
    aten.empty_like.default: _blank,
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
    aten.view_as_complex.default: _complex,
    aten.view_as_real.default: _complex,
}
"""Label rule of each op that is not pointwise."""
