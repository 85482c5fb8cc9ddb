"""How each kind of op is applied to operands without their dimension of size 1, and where its result would have it."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._ops import OpOverload

from llmc.ir.sizes import number, same_size
from llmc.passes.canonicalize_site import Site, aten

dialect = torch.ops.llmc


class Unit(NamedTuple):
    """What `unsqueeze(source, dim)` is made of."""

    source: fx.Node
    dim: int


Units = dict[fx.Node, Unit]
"""The values that have the dimension, by node."""


class _Keeps(Exception):
    """The op needs the dimension of size 1."""


class Dropped(NamedTuple):
    """A call without the dimension."""

    node: fx.Node
    dim: int | None
    """Where its result lacks the dimension; None when it does not lack it."""


class Call:
    """One call some of whose operands have the dimension; `node` is done again, without it, in front of `site`."""

    def __init__(self, site: Site, node: fx.Node, units: Units) -> None:
        """The call `node`; another than that of `site` when the latter is one of its several results."""
        self.site = site
        self.node = node
        self.units = units
        self.args = Site(site.model, site.mode, node).args

    def unit(self, name: str) -> Unit:
        """The operand called `name`. Raises `_Keeps` when it does not have the dimension."""
        found = self.units.get(self.args[name])
        if found is None:
            raise _Keeps
        return found

    def without(self, operand: fx.Node, dim: int) -> fx.Node:
        """`operand` without `dim`, which must have size 1."""
        if self.units.get(operand, Unit(operand, -1)).dim == dim:
            return self.units[operand].source
        if number(operand.meta["val"].shape[dim]) != 1:
            raise _Keeps
        return self.site.call(aten.squeeze.dims, operand, [dim])

    def again(self, /, **changed: object) -> fx.Node:
        """The same call with some arguments changed."""
        assert isinstance(self.node.target, OpOverload)
        schema = [argument for argument in self.node.target._schema.arguments if not argument.kwarg_only]
        names = [argument.name for argument in schema]
        count = max(len(self.node.args), *(names.index(name) + 1 for name in changed))
        args = [changed.get(name, self.args[name]) for name in names[:count]]
        return self.site.call(self.node.target, *args, **self.node.kwargs)


Rule = Callable[[Call], Dropped]


def without_unit(site: Site, units: Units) -> fx.Node | None:
    """The value of the call of `site`, computed without the dimension and given it back; None when it is needed.

    Records in `units` when the result has the dimension.
    """
    picked = site.node.target is operator.getitem
    node: Any = site.node.args[0] if picked else site.node
    try:
        dropped = _rule(node)(Call(site, node, units))
    except _Keeps:
        for made in reversed(site.made):
            made.graph.erase_node(made)
        site.made.clear()
        return None
    result = site.call(operator.getitem, dropped.node, site.node.args[1]) if picked else dropped.node
    if dropped.dim is None:
        return result
    whole = site.call(aten.unsqueeze.default, result, dropped.dim)
    units[whole] = Unit(result, dropped.dim)
    return whole


def _rule(node: fx.Node) -> Rule:
    if node.target in _RULES:
        return _RULES[node.target]
    if node.target in _POINTWISE or (isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags):
        return _pointwise
    return _unknown


def is_movement(node: fx.Node) -> bool:
    """Whether `node` computes nothing, so that it must be bit-equal without the dimension."""
    return node.target in _MOVEMENT


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].dim())


def _broadcast(call: Call, kept: int) -> Dropped:
    """An op whose operands are aligned at their last dimensions; the last `kept` dimensions are not for dropping."""
    rank = _rank(call.node)
    first = next(source for source in call.node.all_input_nodes if source in call.units)
    dim = call.units[first].dim + rank - _rank(first)
    if dim >= rank - kept:
        raise _Keeps

    def change(operand: fx.Node) -> fx.Node:
        if not isinstance(operand.meta["val"], torch.Tensor):
            return operand
        own = dim - (rank - _rank(operand))
        return operand if own < 0 else call.without(operand, own)

    args, kwargs = fx.map_arg((call.node.args, call.node.kwargs), change)
    return Dropped(call.site.call(call.node.target, *args, **kwargs), dim)  # type: ignore[arg-type]


def _pointwise(call: Call) -> Dropped:
    return _broadcast(call, 0)


def _last_dim(call: Call) -> Dropped:
    """An op over the last dimension, such as a norm."""
    return _broadcast(call, 1)


def _matmul(call: Call) -> Dropped:
    if min(_rank(call.args["self"]), _rank(call.args["other"])) < 2:
        raise _Keeps
    return _broadcast(call, 2)


def _linear(call: Call) -> Dropped:
    x = call.unit("input")
    if x.dim == _rank(x.source):
        raise _Keeps
    return Dropped(call.again(input=x.source), x.dim)


def _embedding(call: Call) -> Dropped:
    ids = call.unit("indices")
    return Dropped(call.again(indices=ids.source), ids.dim)


def _reshape(call: Call) -> Dropped:
    x = call.unit("self")
    shape, sizes = list(call.args["shape"]), list(call.node.meta["val"].shape)
    ones = [dim for dim, size in enumerate(sizes) if number(size) == 1]
    dim = x.dim if x.dim in ones else ones[0] if ones else None
    if dim is not None:
        del shape[dim], sizes[dim]
    have = x.source.meta["val"].shape
    same = len(have) == len(sizes) and all(map(same_size, have, sizes))
    return Dropped(x.source if same else call.again(self=x.source, shape=shape), dim)


def _expand(call: Call) -> Dropped:
    x = call.unit("self")
    sizes = list(call.args["size"])
    dim = x.dim + len(sizes) - _rank(call.args["self"])
    if number(call.node.meta["val"].shape[dim]) != 1:
        raise _Keeps
    return Dropped(call.again(self=x.source, size=sizes[:dim] + sizes[dim + 1 :]), dim)


def _permute(call: Call) -> Dropped:
    x, order = call.unit("self"), list(call.args["dims"])
    left = [_shifted(dim, x.dim) for dim in order if dim != x.dim]
    result = x.source if left == sorted(left) else call.again(self=x.source, dims=left)
    return Dropped(result, order.index(x.dim))


def _unsqueeze(call: Call) -> Dropped:
    x, dim = call.unit("self"), call.args["dim"]
    before = dim <= x.dim
    return Dropped(call.again(self=x.source, dim=dim if before else dim - 1), x.dim + before)


def _squeeze(call: Call) -> Dropped:
    x, dims = call.unit("self"), list(call.args["dim"])
    left = [_shifted(dim, x.dim) for dim in dims if dim != x.dim]
    result = call.again(self=x.source, dim=left) if left else x.source
    return Dropped(result, None if x.dim in dims else x.dim - sum(dim < x.dim for dim in dims))


def _select(call: Call) -> Dropped:
    x, dim = call.unit("self"), call.args["dim"]
    if dim == x.dim:
        return Dropped(x.source, None)
    return Dropped(call.again(self=x.source, dim=_shifted(dim, x.dim)), x.dim - (dim < x.dim))


def _index(call: Call) -> Dropped:
    """One index tensor, on a table that lacks the dimension or on a value that has it."""
    table, indices = call.args["self"], list(call.args["indices"])
    given = [place for place, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        raise _Keeps
    place, index = given[0], indices[given[0]]
    if index in call.units and table not in call.units:
        indices[place] = call.units[index].source
        return Dropped(call.again(indices=indices), place + call.units[index].dim)
    x = call.unit("self")
    if index in call.units or place == x.dim:
        raise _Keeps
    shorter = indices[: x.dim] + indices[x.dim + 1 :]
    return Dropped(call.again(self=x.source, indices=shorter), x.dim if x.dim < place else x.dim + _rank(index) - 1)


def _along(call: Call) -> Dropped:
    """An op along one other dimension, or a few, that keeps the rank; all its operands of that rank have the unit."""
    named = {name: value for name, value in call.args.items() if _is_tensor(value) or _is_list_of_tensors(value)}
    first = next(source for source in call.node.all_input_nodes if source in call.units)
    rank, unit = _rank(first), call.units[first].dim
    changed: dict[str, object] = {}
    for name, value in named.items():
        operands = [value] if _is_tensor(value) else list(value)
        shorter = [call.without(operand, unit) if _rank(operand) == rank else operand for operand in operands]
        changed[name] = shorter[0] if _is_tensor(value) else shorter
    return Dropped(call.again(**changed, dim=_shifted_dims(call.args.get("dim"), unit)), unit)


def _reduction(call: Call) -> Dropped:
    x = call.unit("self")
    dims: Any = call.args.get("dim")
    left = _shifted_dims(dims, x.dim)
    gone = 0 if call.args.get("keepdim") else sum(dim < x.dim for dim in ([dims] if isinstance(dims, int) else dims))
    return Dropped(call.again(self=x.source, dim=left), x.dim - gone)


def _unknown(call: Call) -> Dropped:
    """Any op: take the dimension from its result, where a first dimension of size 1 can only be that."""
    value = call.node.meta["val"]
    if call.node is not call.site.node or not isinstance(value, torch.Tensor) or value.dim() < 2:
        raise _Keeps
    if number(value.shape[0]) != 1 or all(_takes_first(user) for user in call.node.users):
        raise _Keeps
    again = call.site.call(call.node.target, *call.node.args, **call.node.kwargs)  # type: ignore[arg-type]
    return Dropped(call.site.call(aten.squeeze.dims, again, [0]), 0)


def _keeps(call: Call) -> Dropped:
    raise _Keeps


def _takes_first(user: fx.Node) -> bool:
    return user.target is aten.squeeze.dims and 0 in user.args[1]  # type: ignore[operator]


def _is_tensor(value: object) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta["val"], torch.Tensor)


def _is_list_of_tensors(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_tensor, value))


def _shifted(dim: int, unit: int) -> int:
    """Where `dim` is once the dimension `unit` is gone. Raises `_Keeps` when it is that dimension."""
    if dim == unit:
        raise _Keeps
    return dim - (dim > unit)


def _shifted_dims(dims: object, unit: int) -> object:
    if isinstance(dims, int):
        return _shifted(dims, unit)
    if isinstance(dims, (list, tuple)) and dims:
        return [_shifted(dim, unit) for dim in dims]
    raise _Keeps


_MOVEMENT: dict[object, Rule] = {
    aten.reshape.default: _reshape,
    aten.expand.default: _expand,
    aten.permute.default: _permute,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dims: _squeeze,
    aten.select.int: _select,
    aten.index.Tensor: _index,
    aten.embedding.default: _embedding,
    **dict.fromkeys(
        (
            aten.slice.Tensor, aten.cat.default, aten.split_with_sizes.default, aten.index_select.default,
            aten.gather.default, aten.scatter.value, aten.scatter.src, aten.slice_scatter.default,
            aten.repeat_interleave.self_int, aten.flip.default,
        ),
        _along,
    ),
}  # fmt: skip

_RULES: dict[object, Rule] = {
    **_MOVEMENT,
    aten.new_empty.default: _keeps,  # its result is no function of its operands, so that nothing could be proved
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    **dict.fromkeys(
        (dialect.rope.default, dialect.rms_norm.default, dialect.layer_norm.default, aten.layer_norm.default), _last_dim
    ),
    **dict.fromkeys(
        (
            aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten.cumsum.default, aten.topk.default,
            aten.sort.default, aten.sort.stable,
        ),
        _along,
    ),
    **dict.fromkeys(
        (
            aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.max.dim, aten.min.dim,
            aten.argmax.default, aten.any.dim, aten.logsumexp.default, aten.linalg_vector_norm.default,
        ),
        _reduction,
    ),
}  # fmt: skip

_POINTWISE = frozenset({aten._to_copy.default, aten.copy.default, dialect.gated_act.default})
"""Pointwise ops that torch does not tag as such."""
