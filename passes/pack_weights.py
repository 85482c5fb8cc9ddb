"""Weights in the form that native kernels read: packed in tiles, as floats or as small integers."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from llmc.ir.model import Model
from llmc.ir.packed_formats import FLOAT_FORMATS, FORMATS
from llmc.ir.packed_layout import GROUP, TILE
from llmc.ir.prove import Prover
from llmc.ir.rewrite import Rewriter
from llmc.ir.tracing import trace
from llmc.passes.merge_linears import LINEAR
from llmc.passes.pack_experts import MOE, pack_experts
from llmc.passes.packing import ROUNDED, Packing, Storage, choose_packing, make_recipes, rounding_error

aten = torch.ops.aten
dialect = torch.ops.llmc

EMBEDDING = aten.embedding.default

_WEIGHT: dict[object, int] = {LINEAR: 1, EMBEDDING: 0}
"""Where the weight is among the arguments; the input is the other of the first two."""

_ENDS = frozenset({dialect.rms_norm.default, dialect.layer_norm.default, dialect.cached_attention.default, MOE})
"""What the search for the linear behind a value does not look behind."""


@dataclass(frozen=True)
class PackWeights:
    """Make every linear, tied embedding and mixture of experts read packed weights.

    `weights` says how they are stored (see `llmc.passes.packing.Storage`). Where they are rounded, the projection to
    the logits is stored as `head`. Routers of experts, and what is smaller than a tile, stay in floats.
    """

    name: ClassVar[str] = "pack_weights"
    weights: Storage = "float"
    head: Storage | None = None
    """None leaves it to what the others are and how large it is."""
    large_head: int = 1 << 27
    """Weights from which six bits beside four save more time than they cost: 64 Ki tokens at 2,048 columns."""

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Pack everything that can be; return the number of ops replaced.

        Floats are kept bit for bit, which is proved. Where values are rounded, the error of the rewrite is that of
        its weight, measured in a sample of its rows.
        """
        plan = self._plan(model, rewriter)
        run = _Run(model, rewriter, plan)
        made = sum(run.pack(node) for node in model.calls(LINEAR, EMBEDDING))
        for node in model.calls(MOE):
            made += pack_experts(
                model,
                rewriter,
                self.name,
                node,
                lambda weight, as_is: choose_packing(model, weight, self.weights, as_is),
            )
        make_recipes(model)
        return made

    def _plan(self, model: Model, rewriter: Rewriter) -> dict[fx.Node, Packing]:
        """How each matrix is packed that a linear reads, and, of what the file stores, each table."""
        heads, routers = _linears_behind([model.graph.output_node()]), _linears_behind(_choices(model))
        plan: dict[fx.Node, Packing] = {}
        for linear in model.calls(LINEAR):
            weight = linear.args[1]
            reason = _refusal(model, weight)
            if reason is not None:
                rewriter.refuse(self.name, linear, reason)
            elif isinstance(weight, fx.Node) and weight not in plan:
                readers = set(weight.users)
                plan[weight] = choose_packing(model, weight, self._storage(weight, readers & heads, readers & routers))
        for embedding in model.calls(EMBEDDING):
            table = embedding.args[0]
            if self.weights == "keep" and table not in plan and _refusal(model, table) is None:
                assert isinstance(table, fx.Node)
                packing = choose_packing(model, table, "keep")
                if FORMATS[packing.format].quantized:
                    plan[table] = packing
        return plan

    def _storage(self, weight: fx.Node, heads: Iterable[fx.Node], routers: Iterable[fx.Node]) -> Storage:
        rows, columns = weight.meta["val"].shape
        if routers or rows < TILE or columns < GROUP:
            return "float"
        if not heads or self.weights not in ROUNDED:
            return self.weights
        return self.head or self._usual_head(rows * columns)

    def _usual_head(self, elements: int) -> Storage:
        """How a head of so many weights is stored: four bits would cost it more than all the others together."""
        if not self.weights.startswith("int4"):
            return self.weights
        return "int6" if self.weights != "int4" or elements >= self.large_head else "int8"


@dataclass
class _Run:
    """One run of the pass over linears and embeddings."""

    model: Model
    rewriter: Rewriter
    plan: dict[fx.Node, Packing]
    prover: Prover = field(default_factory=Prover)
    errors: dict[fx.Node, float] = field(default_factory=dict)
    """What packing changes in each weight, once measured."""

    def pack(self, node: fx.Node) -> bool:
        """Make a linear or an embedding read packed weights; return whether that was done."""
        place = _WEIGHT[node.target]
        weight, source = node.args[place], node.args[1 - place]
        if weight not in self.plan or not isinstance(weight, fx.Node) or not isinstance(source, fx.Node):
            return False
        bias = node.args[2] if node.target is LINEAR and len(node.args) > 2 else None
        packing = self.plan[weight]
        read = [source, *packing.inputs(), *([bias] if isinstance(bias, fx.Node) else [])]
        inputs = list(dict.fromkeys(read))

        def build(*values: Any) -> object:  # noqa: ANN401 - traced values
            of = dict(zip(inputs, values, strict=True))
            given = (of[source], of[bias] if isinstance(bias, fx.Node) else None)
            return _packed(node.target, *given, packing.parts(of), packing.format, weight.meta["val"])

        return self.rewriter.replace(
            PackWeights.name, inputs, [node], build, proof=lambda: self._prove(node, packing, source, bias is not None)
        )

    def _prove(self, node: fx.Node, packing: Packing, source: fx.Node, bias: bool) -> float:
        """The error of the rewrite. Raises `Disproved` when floats are not kept bit for bit."""
        weight = packing.weight
        own = FLOAT_FORMATS[weight.meta["val"].dtype] == packing.format
        if own:
            return _prove_floats(self.prover, node.target, source.meta["val"].dtype, weight.meta["val"].dtype, bias)
        if weight not in self.errors:
            self.errors[weight] = rounding_error(self.model, packing)
        return self.errors[weight]


def _packed(target: object, source: Any, bias: Any, parts: list[Any], format: str, weight: torch.Tensor) -> object:  # noqa: ANN401 - traced values
    n, k = (int(size) for size in weight.shape)
    if target is EMBEDDING:
        return dialect.embedding_packed.default(source, parts, format, n, k, weight.dtype)
    return dialect.linear_packed.default(source, parts, bias, format, n, k)


def _prove_floats(prover: Prover, target: Any, source: torch.dtype, dtype: torch.dtype, bias: bool) -> float:  # noqa: ANN401 - an op
    """Prove the rewrite of `target` to floats at small sizes: what it does does not depend on how large a weight is."""
    n, k = 37, 83
    with FakeTensorMode() as mode:
        x = torch.empty(5, dtype=source) if target is EMBEDDING else torch.empty(5, k, dtype=source)
        weight = torch.empty(n, k, dtype=dtype)
        inputs = {"x": x, "weight": weight, **({"bias": torch.empty(n, dtype=dtype)} if bias else {})}
    format = FLOAT_FORMATS[dtype]

    def plain(x: Any, weight: Any, *bias: Any) -> object:  # noqa: ANN401 - traced values
        return EMBEDDING(weight, x) if target is EMBEDDING else LINEAR(x, weight, *bias)

    def packed(x: Any, weight_value: Any, *bias: Any) -> object:  # noqa: ANN401 - traced values
        (data,) = dialect.pack_weight.default(weight_value, format)
        return _packed(target, x, bias[0] if bias else None, [data], format, weight)

    before, after = (trace(function, inputs, mode)[0] for function in (plain, packed))
    return prover.prove(before, after, "exact")


def _refusal(model: Model, weight: object) -> str | None:
    """Why a matrix is not packed; None when it is."""
    if not isinstance(weight, fx.Node) or not model.is_weight(weight):
        return f"its weight {weight} is computed in the graph"
    value = weight.meta["val"]
    if value.dim() != 2 or value.dtype not in FLOAT_FORMATS:
        return f"its weight {weight.name} is {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    for user in weight.users:
        places = [place for place, arg in enumerate(user.args) if arg is weight]
        if user.target not in _WEIGHT or places != [_WEIGHT[user.target]]:
            return f"{user.name} also reads its weight {weight.name}"
    return None


def _choices(model: Model) -> list[fx.Node]:
    """What chooses among experts, or weighs them."""
    found = [arg for moe in model.calls(MOE) for arg in moe.args[1:3] if isinstance(arg, fx.Node)]
    return [*found, *model.calls(aten.topk.default)]


def _linears_behind(ends: list[fx.Node]) -> set[fx.Node]:
    """The linears from which `ends` are computed with no other linear, norm or attention between."""
    stack, seen = list(ends), set(ends)
    while stack:
        node = stack.pop()
        if node.target is not LINEAR and node.target not in _ENDS:
            fresh = [source for source in node.all_input_nodes if source not in seen]
            seen.update(fresh)
            stack.extend(fresh)
    return {node for node in seen if node.target is LINEAR}
