"""Which token each element of each value belongs to: the proof that a packed step keeps tokens apart.

The graph is run on *labels* instead of numbers, at a small concrete length: every element carries the index of the one
token that it depends on, or `SHARED` when it is the same for all. Data movement moves labels, pointwise ops must
meet equal labels, reductions and contractions must stay within one token. An op that would mix two tokens, and is not
attention over the cache, is named with its source line.
"""

import torch
from torch import fx

from llmc.errors import UnsupportedModel
from llmc.ir.labels import Label, Labels, Mixes, join
from llmc.ir.locality_rules import RULES, check_counts, from_shared, is_pointwise
from llmc.ir.model import Model


def token_labels(model: Model, tokens: int, rows: int = 0) -> dict[fx.Node, Label]:
    """Label every tensor of a packed graph, for `tokens` tokens in the step and `rows` rows of logits asked for.

    Raises:
        UnsupportedModel: an op mixes tokens, or its effect on tokens is not known; the message names it.
    """
    walk = Labels(model, tokens, rows)
    for node in model.graph.nodes:
        if node.op == "placeholder":
            per_token = node.name in ("tokens", "positions")
            walk.of[node] = torch.arange(walk.shape(node)[0]) if per_token else None
        elif node.op == "call_function":
            _visit(walk, node)
    return walk.of


def _visit(walk: Labels, node: fx.Node) -> None:
    """Label one node from its arguments."""
    if isinstance(node.meta.get("val"), (torch.SymInt, int)):
        walk.sizes[node] = walk.concrete(node.meta["val"])
        return
    try:
        result = _labels(walk, node)
    except Mixes as reason:
        raise UnsupportedModel(
            f"{str(node.target).removesuffix('.default')} at {node.meta['origin']} mixes tokens: {reason}; it cannot "
            "run token by token, and llmc knows no cached form of it"
        ) from None
    if isinstance(result, list):
        walk.several[node] = result
    else:
        walk.of[node] = result


def _labels(walk: Labels, node: fx.Node) -> Label | list[torch.Tensor]:
    check_counts(walk, node)
    tensors = [arg for arg in node.all_input_nodes if arg not in walk.sizes]
    if all(walk.label(arg) is None and arg not in walk.several for arg in tensors):
        return from_shared(walk, node) if isinstance(node.meta["val"], torch.Tensor) else None
    rule = RULES.get(node.target)
    if rule is not None:
        return rule(walk, node)
    if is_pointwise(node.target):
        return join(*(walk.full(arg) for arg in tensors))
    raise Mixes("its effect on tokens is not known")
