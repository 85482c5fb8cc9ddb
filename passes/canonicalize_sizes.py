"""Symbolic sizes: each computed once, constant ones as numbers."""

import torch
from torch import fx

from llmc.ir.model import Model
from llmc.ir.sizes import number


def unify_sizes(model: Model) -> int:
    """Write sizes that are known as numbers, and let one node compute each of the others; return the changes made."""
    first: dict[str, fx.Node] = {}
    changes = 0
    for node in model.calls():
        value = node.meta.get("val")
        if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool) or not node.users:
            continue
        known = number(value)
        if known is not None:
            for user in list(node.users):
                _fill_in(user, node, known)
            changes += 1
            continue
        earlier = first.setdefault(str(value), node)
        if earlier is not node:
            node.replace_all_uses_with(earlier)
            changes += 1
    return changes


def _fill_in(user: fx.Node, size: fx.Node, known: int) -> None:
    """Give `user` the number `known` where it reads the node `size`."""

    def fill(source: fx.Node) -> fx.node.Argument:
        return known if source is size else source

    user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), fill)
