"""Products: `aten.linear` for every projection by a weight, `aten.matmul` for every product of activations."""

from collections.abc import Callable

from torch import fx

from llmc.ir.model import Model
from llmc.passes.canonicalize_site import Site, aten

_WEIGHT_VIEWS = (aten.permute.default, aten.t.default, aten.transpose.int, aten._to_copy.default, aten.reshape.default)


def _is_projection(model: Model, node: fx.Node) -> bool:
    """Whether `node` is a matrix made from one weight alone."""
    if node.meta["val"].dim() != 2:
        return False
    while not model.is_weight(node):
        if node.target not in _WEIGHT_VIEWS:
            return False
        node = node.args[0]  # type: ignore[assignment]
    return True


def _matmul(first: str, second: str) -> Callable[[Site], fx.Node | None]:
    def respell(site: Site) -> fx.Node | None:
        x, y = site[first], site[second]
        if _is_projection(site.model, y):
            return site.call(aten.linear.default, x, site.call(aten.permute.default, y, [1, 0]))
        return None if site.node.target is aten.matmul.default else site.call(aten.matmul.default, x, y)

    return respell


def _addmm(site: Site) -> fx.Node | None:
    """`beta · bias + alpha · (x y)`, as a linear where it is one."""
    names = ("mat1", "mat2") if site.node.target is aten.addmm.default else ("batch1", "batch2")
    bias, x, y = site["self"], site[names[0]], site[names[1]]
    alpha, beta = site["alpha"], site["beta"]
    plain = alpha == 1 and beta == 1 and y.meta["val"].dim() == 2
    if plain and bias.meta["val"].dim() == 1 and bias.meta["val"].shape[0] == y.meta["val"].shape[1]:
        return site.call(aten.linear.default, x, site.call(aten.permute.default, y, [1, 0]), bias)
    product = site.call(aten.matmul.default, x, y)
    if alpha != 1:
        product = site.call(aten.mul.Tensor, product, alpha)
    if beta == 0:
        return product
    return site.call(aten.add.Tensor, product, bias if beta == 1 else site.call(aten.mul.Tensor, bias, beta))


PRODUCTS: dict[object, Callable[[Site], fx.Node | None]] = {
    aten.mm.default: _matmul("self", "mat2"),
    aten.bmm.default: _matmul("self", "mat2"),
    aten.matmul.default: _matmul("self", "other"),
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
}
"""Respellings of matrix products."""
