"""One projection for queries, keys and values."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes.merge_linears import merge_linears, reached_linears

aten = torch.ops.aten
dialect = torch.ops.llmc

ATTENTIONS = (dialect.attention.default, dialect.masked_attention.default, dialect.cached_attention.default)

_ONE_INPUT = frozenset(
    {
        aten.reshape.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dims, aten.expand.default,
        aten.slice.Tensor, aten.select.int, aten.split_with_sizes.default, operator.getitem, aten._to_copy.default,
        dialect.rms_norm.default, dialect.layer_norm.default,
    }
)  # fmt: skip
"""Between a low-rank projection and the one that it feeds (multi-head latent attention)."""

_TOKEN_WISE = _ONE_INPUT | {
    aten.cat.default, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default,
    aten.slice_scatter.default, aten.copy.default, aten.sigmoid.default, aten.tanh.default, aten.clamp.default,
    aten.rsqrt.default, aten.mean.dim, aten.sum.dim_IntList, aten.where.self, aten.repeat_interleave.self_int,
    aten.view_as_complex.default, aten.view_as_real.default, dialect.rope.default,
}  # fmt: skip
"""Between a projection and the attention."""


@dataclass(frozen=True)
class FuseQkv:
    """Make the projections that feed one attention, and read the same input, one projection.

    Looks back from queries, keys and values through norms, rotary embeddings and views. The projections to the low
    ranks of multi-head latent attention, one step further back, are merged too.
    """

    name: ClassVar[str] = "fuse_qkv"
    together: bool = False
    """Whether weights that a file stores in different types may become one, because they will be stored alike."""

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Fuse at every attention of `model`; return how many projections were made."""
        return sum(
            merge_linears(model, rewriter, self.name, list(_projections(node)), self.together)
            for node in model.calls(*ATTENTIONS)
        )


def _projections(attention: fx.Node) -> Iterator[fx.Node]:
    for operand in attention.args[:3]:
        assert isinstance(operand, fx.Node)
        for linear in reached_linears(operand, _TOKEN_WISE):
            yield linear
            source = linear.args[0]
            assert isinstance(source, fx.Node)
            yield from reached_linears(source, _ONE_INPUT)
