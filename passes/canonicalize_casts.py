"""Casts and copies: one spelling, `aten._to_copy(x, dtype=)`, and none that changes nothing."""

from collections.abc import Callable

import torch
from torch import fx

from llmc.passes.canonicalize_site import Site, aten


def _cast_to(site: Site, x: fx.Node, dtype: torch.dtype) -> fx.Node | None:
    """`x` in `dtype`: itself, or what it was widened from, or a `_to_copy`; None when the call is that already."""
    have = x.meta["val"].dtype
    if have == dtype:
        return x
    if x.target is aten._to_copy.default:
        source: fx.Node = x.args[0]  # type: ignore[assignment]
        if source.meta["val"].dtype == dtype and _holds(have, dtype):
            return source
    if site.node.target is aten._to_copy.default:
        return None
    return site.call(aten._to_copy.default, x, dtype=dtype)


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every value of `narrow` comes back unchanged from `wide`."""
    if narrow == torch.bool:
        return True
    kinds = wide.is_floating_point, narrow.is_floating_point
    return kinds[0] == kinds[1] and torch.promote_types(wide, narrow) == wide


def _cast(site: Site) -> fx.Node | None:
    return _cast_to(site, site["self"], site.val.dtype)


def _copy(site: Site) -> fx.Node | None:
    x: fx.Node = site["self"]
    return x


def _dropout(site: Site) -> fx.Node | None:
    x: fx.Node = site["input"]
    return None if site["train"] and site["p"] > 0 else x


CASTS: dict[object, Callable[[Site], fx.Node | None]] = {
    **dict.fromkeys(
        (
            aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other,
            aten.type_as.default,
        ),
        _cast,
    ),
    **dict.fromkeys(
        (
            aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default,
            aten.lift_fresh_copy.default, aten.lift_fresh.default,
        ),
        _copy,
    ),
    aten.dropout.default: _dropout,
    aten.feature_dropout.default: _dropout,
}  # fmt: skip
"""Respellings of casts and copies."""
