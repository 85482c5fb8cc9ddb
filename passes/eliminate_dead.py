"""What nothing reads is removed."""

from dataclasses import dataclass
from typing import ClassVar

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.ir.subgraph import has_side_effects


@dataclass(frozen=True)
class EliminateDead:
    """Remove calls and weights that the outputs do not need; inputs and calls that write an argument stay."""

    name: ClassVar[str] = "eliminate_dead"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Remove all of them; return how many."""
        removed = 0
        for node in reversed(list(model.calls())):
            if not node.users and not has_side_effects(node):
                model.graph.erase_node(node)
                removed += 1
        return removed + model.drop_unused_weights()
