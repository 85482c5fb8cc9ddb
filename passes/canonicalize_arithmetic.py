"""Arithmetic: the tensor first and the number second, squares as products, no `+ 0` and no `· 1`."""

import math
from collections.abc import Callable

import torch
from torch import fx
from torch._ops import OpOverload

from llmc.ir.sizes import number, same_shape
from llmc.passes.canonicalize_site import Site, aten


def _is_number(value: object, expected: float | None = None) -> bool:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and (expected is None or value == expected)


def _tensor_first(target: OpOverload, neutral: float | None) -> Callable[[Site], fx.Node | None]:
    """A commutative op: swap a leading number, drop a neutral one, spell the scale `alpha` as a product."""

    def respell(site: Site) -> fx.Node | None:
        x, y, alpha = site["self"], site["other"], site["alpha"] or 1
        if alpha != 1:
            scaled = y * alpha if _is_number(y) else site.call(aten.mul.Tensor, y, alpha)
            return site.call(target, x, scaled)
        if neutral is not None and _is_number(y, neutral) and isinstance(x, fx.Node):
            return x
        if not isinstance(x, fx.Node) and isinstance(y, fx.Node):
            return site.call(target, y, x)
        return None if site.node.target is target else site.call(target, x, y)

    return respell


def _sub(site: Site) -> fx.Node | None:
    x, y, alpha = site["self"], site["other"], site["alpha"] or 1
    if alpha != 1:
        scaled = y * alpha if _is_number(y) else site.call(aten.mul.Tensor, y, alpha)
        return site.call(aten.sub.Tensor, x, scaled)
    if _is_number(x) and isinstance(y, fx.Node):
        return site.call(aten.rsub.Scalar, y, x)
    if _is_number(y, 0):
        return x  # type: ignore[no-any-return]
    return None if site.node.target is aten.sub.Tensor else site.call(aten.sub.Tensor, x, y)


def _rsub(site: Site) -> fx.Node | None:
    x, y, alpha = site["self"], site["other"], site["alpha"] or 1
    if alpha != 1:
        x = site.call(aten.mul.Tensor, x, alpha)
    elif _is_number(y) and site.node.target is aten.rsub.Scalar:
        return None
    return site.call(aten.rsub.Scalar, x, y) if _is_number(y) else site.call(aten.sub.Tensor, y, x)


def _div(site: Site) -> fx.Node | None:
    x, y = site["self"], site["other"]
    if _is_number(y) and isinstance(x, fx.Node) and x.meta["val"].is_floating_point() and _is_power_of_two(y):
        return x if y == 1 else site.call(aten.mul.Tensor, x, 1.0 / y)
    return None if site.node.target is aten.div.Tensor else site.call(aten.div.Tensor, x, y)


def _is_power_of_two(value: float) -> bool:
    """Whether multiplying by the inverse is the same as dividing, in every floating dtype."""
    mantissa, exponent = math.frexp(abs(value))
    return mantissa == 0.5 and abs(exponent) < 100


def _pow(site: Site) -> fx.Node | None:
    x, exponent = site["self"], site["exponent"]
    if exponent == 2:
        return site.call(aten.mul.Tensor, x, x)
    if exponent == 1:
        return x  # type: ignore[no-any-return]
    floating = x.meta["val"].is_floating_point()
    if floating and exponent in (0.5, -0.5):
        return site.call(aten.sqrt.default if exponent > 0 else aten.rsqrt.default, x)
    return None


def _square(site: Site) -> fx.Node | None:
    return site.call(aten.mul.Tensor, site["self"], site["self"])


def _logic(target: OpOverload, neutral: bool) -> Callable[[Site], fx.Node | None]:
    """Logic on booleans: one op for each connective, and no neutral operand."""

    def respell(site: Site) -> fx.Node | None:
        x, y = site["self"], site["other"]
        if not isinstance(x, fx.Node) or not isinstance(y, fx.Node):
            return None
        if x.meta["val"].dtype != torch.bool or y.meta["val"].dtype != torch.bool:
            return None
        for one, other in ((x, y), (y, x)):
            full = one.target is aten.full.default and bool(one.args[1]) is neutral
            if full and same_shape(other.meta["val"], site.val):
                return other
        return None if site.node.target is target else site.call(target, x, y)

    return respell


def _not(site: Site) -> fx.Node | None:
    return site.call(aten.bitwise_not.default, site["self"]) if site.tensor("self").dtype == torch.bool else None


def _widened(target: OpOverload, *names: str) -> Callable[[Site], fx.Node | None]:
    """An op that casts its input on the way: the cast as its own call."""

    def respell(site: Site) -> fx.Node | None:
        dtype = site["dtype"]
        if dtype is None and site.node.target is target:
            return None
        x = site["self"]
        if dtype is not None and dtype != x.meta["val"].dtype:
            x = site.call(aten._to_copy.default, x, dtype=dtype)
        return site.call(target, x, *(site[name] for name in names))

    return respell


def _private_softmax(site: Site) -> fx.Node | None:
    x = site["self"]
    if site["half_to_float"]:
        x = site.call(aten._to_copy.default, x, dtype=torch.float32)
    return site.call(aten.softmax.int, x, site["dim"])


def _full(site: Site) -> fx.Node | None:
    """Anything filled with one number: `full`, its dtype given."""
    name = str(site.node.target)
    value = (
        0 if "zeros" in name else 1 if "ones" in name else site["s"] if site["s"] is not None else site["fill_value"]
    )
    if not isinstance(value, (int, float)):
        return None
    if site.node.target is aten.full.default:
        return (
            None
            if site["dtype"] is not None
            else site.call(aten.full.default, site["size"], value, dtype=site.val.dtype)
        )
    sizes = [number(size) for size in site.val.shape]
    given = site["size"] if site["size"] is not None else sizes
    if None in given:
        return None
    return site.call(aten.full.default, list(given), value, dtype=site.val.dtype)


def _put(site: Site) -> fx.Node | None:
    """One value written where a mask is true is a choice of each element."""
    base, indices, value = site["self"], site["indices"], site["values"]
    if site["accumulate"] or len(indices) != 1 or any(size != 1 for size in value.meta["val"].shape):
        return None
    (mask,) = indices
    if mask.meta["val"].dtype != torch.bool or value.meta["val"].dtype != site.val.dtype:
        return None
    for _ in range(site.val.dim() - mask.meta["val"].dim()):
        mask = site.call(aten.unsqueeze.default, mask, mask.meta["val"].dim())
    if value.meta["val"].dim():
        value = site.call(aten.reshape.default, value, [])
    return site.call(aten.where.self, mask, value, base)


ARITHMETIC: dict[object, Callable[[Site], fx.Node | None]] = {
    aten.add.Tensor: _tensor_first(aten.add.Tensor, 0),
    aten.add.Scalar: _tensor_first(aten.add.Tensor, 0),
    aten.mul.Tensor: _tensor_first(aten.mul.Tensor, 1),
    aten.mul.Scalar: _tensor_first(aten.mul.Tensor, 1),
    aten.sub.Tensor: _sub,
    aten.sub.Scalar: _sub,
    aten.rsub.Tensor: _rsub,
    aten.rsub.Scalar: _rsub,
    aten.div.Tensor: _div,
    aten.div.Scalar: _div,
    aten.true_divide.Tensor: _div,
    aten.pow.Tensor_Scalar: _pow,
    aten.square.default: _square,
    aten.__and__.Tensor: _logic(aten.bitwise_and.Tensor, True),
    aten.__or__.Tensor: _logic(aten.bitwise_or.Tensor, False),
    aten.bitwise_and.Tensor: _logic(aten.bitwise_and.Tensor, True),
    aten.bitwise_or.Tensor: _logic(aten.bitwise_or.Tensor, False),
    aten.logical_and.default: _logic(aten.bitwise_and.Tensor, True),
    aten.logical_or.default: _logic(aten.bitwise_or.Tensor, False),
    aten.logical_not.default: _not,
    aten.index_put.default: _put,
    aten.softmax.int: _widened(aten.softmax.int, "dim"),
    aten.log_softmax.int: _widened(aten.log_softmax.int, "dim"),
    aten._softmax.default: _private_softmax,
    aten.mean.dim: _widened(aten.mean.dim, "dim", "keepdim"),
    aten.sum.dim_IntList: _widened(aten.sum.dim_IntList, "dim", "keepdim"),
    **dict.fromkeys(
        (
            aten.full.default, aten.full_like.default, aten.new_full.default, aten.scalar_tensor.default,
            aten.zeros.default, aten.ones.default, aten.zeros_like.default, aten.ones_like.default,
            aten.new_zeros.default, aten.new_ones.default,
        ),
        _full,
    ),
}  # fmt: skip
"""Respellings of arithmetic, logic, reductions and fills."""
