"""Chains of views become one view, and views that undo each other none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from llmc.ir.infer import fake_mode
from llmc.ir.model import Model
from llmc.ir.prove import Kind, Prover
from llmc.ir.rewrite import Rewriter
from llmc.ir.sizes import number, same_shape, same_size
from llmc.passes.canonicalize_exchange import exchange
from llmc.passes.canonicalize_site import Site, aten

_SHAPES = frozenset({aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dims})
"""Views that keep the elements in order."""


@dataclass(frozen=True)
class MergeViews:
    """Merge each view with the view it is applied to: reshapes, permutations, expansions; needs the canonical forms.

    A projection between two reshapes that only fold and unfold its leading dimensions loses both.
    """

    name: ClassVar[str] = "merge_views"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Merge all chains; return the number of calls changed.

        Raises:
            BuildFailed: a merged view is not what the chain was.
        """
        mode = fake_mode(model.graph)
        prover = Prover() if rewriter.prove else None
        total = 0
        while True:
            changes = 0
            for node in model.calls(*_MERGES):
                if node.users:
                    kind: Kind = "reassociating" if node.args[0].target is aten.linear.default else "exact"  # type: ignore[union-attr]
                    changes += exchange(self.name, Site(model, mode, node), _MERGES[node.target], kind, prover)
            model.graph.eliminate_dead_code()
            total += changes
            if not changes:
                return total


def _shape(site: Site) -> fx.Node | None:
    x: fx.Node = site["self"]
    if same_shape(x.meta["val"], site.val):
        return x
    if x.target is aten.linear.default:
        return _unfolded_linear(site, x)
    if x.target not in _SHAPES:
        return None
    base: fx.Node = x.args[0]  # type: ignore[assignment]
    if same_shape(base.meta["val"], site.val):
        return base
    if site.node.target is aten.unsqueeze.default and x.target is aten.unsqueeze.default:
        return None
    sizes = site.sizes(site.val)
    return None if sizes is None else site.call(aten.reshape.default, base, sizes)


def _unfolded_linear(site: Site, linear: fx.Node) -> fx.Node | None:
    """`reshape(linear(reshape(x)))` as `linear(reshape(x))`, when the outer reshape keeps the last dimension."""
    folded: fx.Node = linear.args[0]  # type: ignore[assignment]
    if folded.target not in _SHAPES or len(linear.users) > 1 or site.val.dim() == 0:
        return None
    width, sizes = number(folded.meta["val"].shape[-1]), site.sizes(site.val)
    if width is None or sizes is None or not same_size(site.val.shape[-1], linear.meta["val"].shape[-1]):
        return None
    source: fx.Node = folded.args[0]  # type: ignore[assignment]
    unfolded = site.call(aten.reshape.default, source, [*sizes[:-1], width])
    if same_shape(source.meta["val"], unfolded.meta["val"]):
        site.made.remove(unfolded)
        site.node.graph.erase_node(unfolded)
        unfolded = source
    return site.call(aten.linear.default, unfolded, *linear.args[1:])


def _permute(site: Site) -> fx.Node | None:
    x, order = site["self"], list(site["dims"])
    if x.target is not aten.permute.default:
        return None
    base, inner = x.args
    merged = [inner[dim] for dim in order]
    identity = merged == sorted(merged)
    return base if identity else site.call(aten.permute.default, base, merged)


def _expand(site: Site) -> fx.Node | None:
    x, sizes = site["self"], list(site["size"])
    if x.target is not aten.expand.default:
        return None
    base, inner = x.args
    added = len(sizes) - len(inner)
    merged = [inner[dim - added] if size == -1 else size for dim, size in enumerate(sizes)]
    return site.call(aten.expand.default, base, merged)


_MERGES: dict[object, Callable[[Site], fx.Node | None]] = {
    **dict.fromkeys(_SHAPES, _shape),
    aten.permute.default: _permute,
    aten.expand.default: _expand,
}
