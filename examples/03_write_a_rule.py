"""A rewrite of your own: it fires where it may, says why it did not, and is stopped where it is wrong.

Run it with `python examples/03_write_a_rule.py`; it takes a few seconds.
"""

import torch
from torch import nn

from llmc.errors import BuildFailed
from llmc.frontend.hf import from_module
from llmc.ir.match import Match
from llmc.ir.rewrite import Rewriter, Rule, apply_rules
from llmc.ir.show import show
from llmc.ir.tracing import Value


class Swish(nn.Module):
    """Token ids [1, S] to logits [1, S, 8], with x * sigmoid(x) spelled out in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.head = nn.Linear(4, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        swish = x * torch.sigmoid(x)
        gate = torch.sigmoid(swish)
        return self.head(swish * gate + gate)


def find(x: Value) -> Value:
    return x * torch.sigmoid(x)


def not_a_number(match: Match) -> str | None:
    dtype = match.node.meta["val"].dtype
    return None if dtype.is_floating_point else f"{dtype} has no silu"


SILU = Rule("silu", find, replace=lambda x: torch.ops.aten.silu.default(x), unless=not_a_number)
WRONG = Rule("gelu", find, replace=lambda x: torch.ops.aten.gelu.default(x))

model = from_module(Swish())
print("Before:\n", show(model), sep="")
try:
    apply_rules(model, Rewriter(model), [WRONG])
except BuildFailed as error:
    print(f"The wrong rule is stopped:\n  {error}\n")

rewriter = Rewriter(model)
apply_rules(model, rewriter, [SILU])
print("After:\n", show(model), sep="")
for done in rewriter.applied:
    print(f"#{done.number} {done.rule} at {done.node}: error {done.error:.1e}, proved in {done.seconds * 1e3:.0f} ms")
for miss in rewriter.refused:
    print(f"{miss.rule} did not fire at {miss.node}: {miss.reason}")
