"""A model in the compiler: one FX graph, and the weights it is a function of.

The graph is a pure function: its first placeholders are the weights, the others the inputs. Nothing is stored in the
GraphModule itself, so the graph runs anywhere once every placeholder has a value.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx

from llmc.ir.weights import Weight

STEP_INPUTS = ("tokens", "positions", "slots", "starts", "lengths", "blocks", "rows")
"""The inputs of a packed step that precede the caches, all int64; see `llmc.runtime.program.Batch`."""

UNLIMITED_CONTEXT = 1 << 20
"""Longest sequence served, in tokens, where the model itself names no limit."""


@dataclass(frozen=True)
class Origin:
    """Where a node comes from in the user's model."""

    module: str = ""
    """Dotted path of the module that computed it, such as `model.layers.0.self_attn`."""
    source: str = ""
    """Source line, such as `modeling_llama.py:214`."""

    def __str__(self) -> str:
        return " at ".join(part for part in (self.module, self.source) if part) or "unknown origin"


@dataclass
class Model:
    """A model on its way through the passes.

    Every node has `meta["val"]` (a fake tensor or a SymInt, whose symbolic sizes are torch's) and `meta["origin"]`
    (an `Origin`). Weight placeholders come first and are the keys of `weights`.
    """

    graph_module: fx.GraphModule
    weights: dict[str, Weight]
    """Recipe of each weight, by the name of its placeholder."""
    info: dict[str, object] = field(default_factory=dict)
    """Facts about the source for the manifest: vocabulary size, largest position, model type, end tokens."""

    @property
    def graph(self) -> fx.Graph:
        """The graph of `graph_module`."""
        return self.graph_module.graph

    def placeholders(self) -> list[fx.Node]:
        """All placeholders, weights first, in calling order."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def inputs(self) -> list[fx.Node]:
        """The placeholders that are not weights."""
        return [node for node in self.placeholders() if node.name not in self.weights]

    def is_weight(self, node: object) -> bool:
        """Whether `node` is the placeholder of a weight."""
        return isinstance(node, fx.Node) and node.op == "placeholder" and node.name in self.weights

    def add_weight(self, name: str, weight: Weight, value: torch.Tensor) -> fx.Node:
        """Add a weight placeholder after the last weight; `value` is its fake tensor."""
        after: fx.Node | None = None
        for node in self.graph.nodes:
            if node.op != "placeholder" or node.name not in self.weights:
                break
            after = node
        first = next(iter(self.graph.nodes))
        with self.graph.inserting_before(first) if after is None else self.graph.inserting_after(after):
            placeholder = self.graph.placeholder(name)
        placeholder.meta.update(val=value, origin=Origin(name))
        self.weights[placeholder.name] = weight
        return placeholder

    def drop_unused_weights(self) -> int:
        """Remove the weights that nothing reads; return how many."""
        unused = [node for node in self.placeholders() if node.name in self.weights and not node.users]
        for node in unused:
            self.graph.erase_node(node)
            del self.weights[node.name]
        return len(unused)

    def limit(self, tokens: int) -> None:
        """Serve no sequence of more than `tokens` tokens: the model itself computes no longer ones."""
        known = self.info.get("max_positions")
        self.info["max_positions"] = min(tokens, known) if isinstance(known, int) else tokens

    def calls(self, *targets: object) -> Iterator[fx.Node]:
        """The calls of the given targets (of all, when none is given), in order; safe to rewrite while iterating."""
        for node in list(self.graph.nodes):
            if node.op == "call_function" and (not targets or node.target in targets):
                yield node

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the graph in eager torch on `inputs`; a weight is read when first needed, dropped after its last use."""
        from llmc.ir.interpret import interpret

        return interpret(self, inputs)
