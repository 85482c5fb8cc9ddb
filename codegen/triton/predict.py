"""How long a decode step should take on a GPU: bytes over the bandwidth, and a cost for each kernel boundary.

    predict_decode(model, source, target, dependent=True) -> Prediction

At one token a step nothing but memory counts: the time is what the weights and the cache take to be read, plus what
each launch costs beside its work (the gap, the ramp of its loads and its last wave), plus the latency of attention,
whose splits wait for each other. Kernels that are launched before their predecessor has ended (programmatic dependent
launch) ask for their weights while it ends, which hides most of a boundary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from llmc.codegen.cost import at, region_cost
from llmc.codegen.describe import nodes_of
from llmc.codegen.regions import Attention
from llmc.codegen.target import Target
from llmc.codegen.triton.emit import GpuSource
from llmc.ir.model import Model

READ_SHARE = 0.9
"""Of the datasheet's bandwidth what reads reach (assumed: copies on Hopper are reported at 0.88 to 0.92)."""
BOUNDARY, DEPENDENT_BOUNDARY = 2.5e-6, 1.0e-6
"""Seconds that a launch within a captured graph costs beside its work (assumed: a gap of 1.3 us is reported for H100,
the rest is ramp and tail); and with dependent launch."""
ATTENTION_LATENCY, DEPENDENT_ATTENTION_LATENCY = 1.5e-6, 1.0e-6
"""Seconds that an attention takes more than that: its loads depend on each other, and its splits are merged."""
CHOOSING = 2.5e-6
"""Seconds that choosing the next token takes beside its launches' boundaries, where no top-k, top-p or min-p rules out
any: six reads and atomic operations that wait for each other (assumed: 0.3 us each, logits are found in the L2 cache,
and 0.7 where a program says that it has come to its end)."""
CONTEXT = 512
"""Tokens in the cache."""


@dataclass(frozen=True)
class Prediction:
    """A decode step of one sequence."""

    bytes: float
    """Weights, cache and activations read and written."""
    launches: int
    attentions: int
    reading: float
    """Seconds for the bytes."""
    boundaries: float
    """Seconds for the launches and for what attention waits."""
    choices: int
    """Launches that choose the next token; 0 where the host does."""
    choosing: float
    """Seconds for them."""

    @property
    def tokens_per_second(self) -> float:
        """Steps a second."""
        return 1 / (self.reading + self.boundaries + self.choosing)


def predict_decode(model: Model, source: GpuSource, target: Target, *, dependent: bool) -> Prediction:
    """Predict a step of one token after `CONTEXT` others.

    model: the packed graph that `source` was emitted from. dependent: with programmatic dependent launch, or without.
    """
    sizes: Mapping[str, int] = {"T": 1, "B": 1, "R": 1, "F": 0}
    nodes = {node.name: node for node in model.graph.nodes}
    moved = sum(at(region_cost(nodes_of(region, nodes), model).bytes, context=CONTEXT) for region in source.regions)
    launches = [launch for launch in source.plan.launches if launch.when.holds(sizes)]
    attentions = sum(isinstance(region, Attention) for region in source.regions)
    boundary = DEPENDENT_BOUNDARY if dependent else BOUNDARY
    latency = DEPENDENT_ATTENTION_LATENCY if dependent else ATTENTION_LATENCY
    choices = sum(launch.when.holds(sizes) for launch in source.plan.sampling)
    return Prediction(
        bytes=moved,
        launches=len(launches),
        attentions=attentions,
        reading=moved / (READ_SHARE * target.bandwidth.value),
        boundaries=len(launches) * boundary + attentions * latency,
        choices=choices,
        choosing=choices * boundary + CHOOSING if choices else 0.0,
    )
