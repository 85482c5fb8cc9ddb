"""Turn a graph over one whole sequence into a packed step over a paged cache.

Before: `f(tokens [1, S]) -> logits [1, S, V]`, attention by formula masks. After: `f(tokens [T], positions [T], slots
[T], starts [B + 1], lengths [B], blocks [B, M], rows [R], k_cache_0, v_cache_0, ...) -> logits [R, V]`, where T runs
over the tokens of all sequences of the step. Nothing else of the graph changes: an op that acts on each token alone
acts on packed tokens as it did on a sequence. That this is so is proved by `llmc.ir.locality`, op by op.
"""

import time
from dataclasses import dataclass
from typing import ClassVar

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from llmc.errors import BuildFailed, UnsupportedModel
from llmc.ir.coordinate_rules import RULES
from llmc.ir.coordinates import Coordinates, Formula
from llmc.ir.infer import infer
from llmc.ir.labels import SHARED
from llmc.ir.locality import token_labels
from llmc.ir.mask import LENGTH
from llmc.ir.model import STEP_INPUTS, Model, Origin
from llmc.ir.prove import Disproved
from llmc.ir.prove_steps import prove_steps
from llmc.ir.rewrite import Rewriter
from llmc.passes.table_rows import check_rows, check_vocabulary

aten = torch.ops.aten

MASKED = torch.ops.llmc.masked_attention.default
CACHED = torch.ops.llmc.cached_attention.default

_EXAMPLE = {
    "tokens": (11,),
    "positions": (11,),
    "slots": (11,),
    "starts": (4,),
    "lengths": (3,),
    "blocks": (3, 5),
    "rows": (7,),
}
_EXAMPLE_BLOCKS, _EXAMPLE_BLOCK_SIZE = 13, 16
# Equal example sizes become one symbol (duck shapes): T 11, B 3, B + 1 4, M 5, R 7, blocks 13, block size 16.


@dataclass(frozen=True)
class MakeIncremental:
    """Packed-token form with a paged cache, and logits for the rows asked for."""

    name: ClassVar[str] = "make_incremental"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Convert the model; return the number of attention layers given a cache, 0 when it is in packed form already.

        Raises:
            UnsupportedModel: an op mixes tokens; the message names the op, the module and the source line.
        """
        if any(node.name == "positions" for node in model.inputs()):
            return 0
        if rewriter.stopped:
            return 0
        start = time.perf_counter()
        graph = model.graph
        graph.eliminate_dead_code()
        before = _copy(graph) if rewriter.prove else None
        tokens = model.inputs()[0]
        inputs = _step_inputs(model, tokens)
        _read_positions(model, inputs["positions"])
        with graph.inserting_after(model.placeholders()[-1]):
            whole = graph.call_function(aten.unsqueeze.default, (inputs["tokens"], 0))
        whole.meta["origin"] = Origin("tokens")
        tokens.replace_all_uses_with(whole)
        graph.erase_node(tokens)
        inputs["tokens"].name = "tokens"
        inputs["tokens"].target = "tokens"
        layers = _cache_attention(model, inputs)
        graph.eliminate_dead_code()
        model.drop_unused_weights()
        propagate(model)
        _check(model)
        check_vocabulary(whole, int(_result(model).meta["val"].shape[-1]))
        propagate(model, after=_select_rows(model, inputs["rows"]))
        error = self._prove(before, model, rewriter) if before is not None else 0.0
        rewriter.record(self.name, inputs["tokens"], error, time.perf_counter() - start)
        return layers

    def _prove(self, before: fx.Graph, model: Model, rewriter: Rewriter) -> float:
        try:
            return prove_steps(before, model)
        except Disproved as disproved:
            raise BuildFailed(f"rewrite {len(rewriter.applied) + 1}, {self.name}: {disproved}") from disproved


def _copy(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def _step_inputs(model: Model, tokens: fx.Node) -> dict[str, fx.Node]:
    inputs: dict[str, fx.Node] = {}
    after = tokens
    for name in STEP_INPUTS:
        with model.graph.inserting_after(after):
            after = inputs[name] = model.graph.placeholder("step_tokens" if name == "tokens" else name)
        after.meta["origin"] = Origin(name)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    for name, shape in _EXAMPLE.items():
        inputs[name].meta["val"] = _fake(mode, torch.zeros(shape, dtype=torch.int64), len(shape))
    return inputs


def _fake(mode: FakeTensorMode, example: torch.Tensor, dynamic: int) -> torch.Tensor:
    kinds = [DimDynamic.DUCK] * dynamic + [DimDynamic.STATIC] * (example.dim() - dynamic)
    context = StatelessSymbolicContext(dynamic_sizes=kinds, constraint_sizes=[None] * example.dim())  # type: ignore[var-annotated]
    return mode.from_tensor(example, symbolic_context=context)


def _read_positions(model: Model, positions: fx.Node) -> None:
    """Make everything that is computed from token indices alone a function of `positions`."""
    _read_tables(model, positions)
    coordinates = Coordinates(model, RULES)
    for node in list(model.graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        formula = coordinates.of(node)
        place = _position_axis(formula)
        if formula is None or place is None:
            continue
        axis, value = place
        feeds = [user for user in node.users if _position_axis(coordinates.of(user) if _tensor(user) else None) is None]
        if not feeds or all(user.target is MASKED for user in feeds):
            continue
        for user in feeds:
            check_rows(model, user, node, value)
        with model.graph.inserting_before(node):
            replacement = _emit(model.graph, value, positions, node, axis)
        for user in feeds:
            user.replace_input_with(node, replacement)


def _read_tables(model: Model, positions: fx.Node) -> None:
    """Where the first S rows of a table are cut out, one for each token of a sequence, read those at `positions`."""
    length = model.inputs()[0].meta["val"].shape[1]
    for node in model.calls(aten.slice.Tensor):
        given: list[object] = [*node.args, *(0, 0, None, 1)[len(node.args) - 1 :]]
        base, dim, start, end, step = given
        assert isinstance(base, fx.Node) and isinstance(dim, int)
        taken, held = node.meta["val"].shape, base.meta["val"].shape
        if start != 0 or step != 1 or end is None or not isinstance(held[dim], int):
            continue
        if not isinstance(taken[dim], torch.SymInt) or taken[dim].node.expr != length.node.expr:
            continue
        model.limit(held[dim])
        with model.graph.inserting_before(node):
            if dim == 0 and len(held) == 2:
                rows = model.graph.call_function(aten.embedding.default, (base, positions))
            else:
                rows = model.graph.call_function(aten.index.Tensor, (base, [*[None] * dim, positions]))
        rows.meta.update(val=node.meta["val"], origin=node.meta["origin"])
        feeds = [user for user in node.users if user.target is not MASKED]
        for user in feeds:
            user.replace_input_with(node, rows)


def _tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _position_axis(formula: Formula | None) -> tuple[int, sympy.Expr] | None:
    """Where a formula is a function of one token coordinate alone: the dimension, and the function in `p`."""
    if formula is None:
        return None
    axes = [i for i, size in enumerate(formula.shape) if size == LENGTH]
    if len(axes) != 1 or any(LENGTH in size.free_symbols for i, size in enumerate(formula.shape) if i != axes[0]):
        return None
    index = tuple(
        sympy.Symbol("p" if i == axes[0] else f"i{i}", integer=True, nonnegative=True)
        for i in range(len(formula.shape))
    )
    value = formula.at(index)
    if value.free_symbols != {index[axes[0]]} or value.atoms(sympy.core.function.AppliedUndef):
        return None
    return axes[0], value


def _emit(graph: fx.Graph, value: sympy.Expr, positions: fx.Node, like: fx.Node, axis: int) -> fx.Node:
    """Compute `value`, a function of p, from the positions, in the shape and dtype of `like`."""
    origin, dtype, rank = like.meta["origin"], like.meta["val"].dtype, like.meta["val"].dim()

    def call(target: object, *args: object, **kwargs: object) -> fx.Node:
        node = graph.call_function(target, args, kwargs)  # type: ignore[arg-type]
        node.meta["origin"] = origin
        return node

    def build(part: sympy.Expr) -> object:
        if part.is_Symbol:
            return positions
        if part.is_Integer:
            return int(part)
        if part.is_Number:
            return float(part)
        if isinstance(part, (sympy.Add, sympy.Mul)):
            target = aten.add.Tensor if isinstance(part, sympy.Add) else aten.mul.Tensor
            numbers = [term for term in part.args if term.is_number]
            terms = [build(term) for term in part.args if not term.is_number]
            result = terms[0]
            for term in [*terms[1:], *(build(term) for term in numbers)]:
                result = call(target, result, term)
            return result
        if isinstance(part, sympy.Mod):
            return call(aten.remainder.Scalar, build(part.args[0]), build(part.args[1]))
        if isinstance(part, sympy.floor):
            above, below = part.args[0].as_numer_denom()
            return call(aten.div.Tensor_mode, build(above), build(below), rounding_mode="floor")
        if isinstance(part, (sympy.Min, sympy.Max)) and len(part.args) == 2:
            bound, inner = sorted(part.args, key=lambda term: not term.is_number)
            bounds = (build(bound), None) if isinstance(part, sympy.Max) else (None, build(bound))
            return call(aten.clamp.default, build(inner), *bounds)
        raise UnsupportedModel(
            f"{like.name} ({origin}) computes {value} from positions p; expected sums, products, minima or integer "
            "division"
        )

    node = build(value)
    assert isinstance(node, fx.Node)
    if dtype != torch.int64:
        node = call(aten._to_copy.default, node, dtype=dtype)
    for dim in range(rank):
        if dim != axis:
            node = call(aten.unsqueeze.default, node, dim)
    sizes = [-1 if dim == axis else size for dim, size in enumerate(like.meta["val"].shape)]
    if any(isinstance(size, int) and size not in (-1, 1) for size in sizes):
        node = call(aten.expand.default, node, sizes)
    return node


def _cache_attention(model: Model, inputs: dict[str, fx.Node]) -> int:
    graph = model.graph
    mode = inputs["tokens"].meta["val"].fake_mode
    layers = 0
    last = inputs["rows"]
    step = [inputs[name] for name in ("positions", "slots", "starts", "lengths", "blocks")]
    for node in model.calls(MASKED):
        q, k, v, *rest = node.args
        origin = node.meta["origin"]
        caches = []
        for kind, source in (("k", k), ("v", v)):
            value = source.meta["val"]  # type: ignore[union-attr]
            with graph.inserting_after(last):
                last = graph.placeholder(f"{kind}_cache_{layers}")
            shape = (_EXAMPLE_BLOCKS, _EXAMPLE_BLOCK_SIZE, int(value.shape[1]), int(value.shape[3]))
            last.meta["val"] = _fake(mode, torch.empty(shape, dtype=value.dtype), 2)
            last.meta["origin"] = origin
            caches.append(last)
        with graph.inserting_before(node):

            def call(target: object, *args: object, origin: Origin = origin) -> fx.Node:
                made = graph.call_function(target, args)  # type: ignore[arg-type]
                made.meta["origin"] = origin
                return made

            rows = [call(aten.select.int, call(aten.permute.default, part, [0, 2, 1, 3]), 0, 0) for part in (q, k, v)]
            out = call(CACHED, *rows, *caches, *step, *rest)
            whole = call(aten.permute.default, call(aten.unsqueeze.default, out, 0), [0, 2, 1, 3])
        node.replace_all_uses_with(whole)
        graph.erase_node(node)
        layers += 1
    return layers


def propagate(model: Model, after: fx.Node | None = None) -> None:
    """Infer every value of the graph anew from its placeholders, or only those from the node `after` on."""
    inputs = model.inputs()
    mode = inputs[0].meta["val"].fake_mode
    for node in model.graph.nodes:
        if after is not None and node is not after and node < after:
            continue
        if node.op == "placeholder":
            if node.name in model.weights:
                node.meta["val"] = model.weights[node.name].fake(mode)
            continue
        if node.op == "output":
            continue
        try:
            node.meta["val"] = infer(mode, node.target, node.args, node.kwargs)
        except Exception as error:
            raise UnsupportedModel(
                f"{node.target} at {node.meta['origin']} does not run on any number of packed tokens "
                f"({type(error).__name__}); expected ops that act on each token alone, or attention"
            ) from error


def _result(model: Model) -> fx.Node:
    """The node that is the graph's one output."""
    (results,) = model.graph.output_node().args
    assert isinstance(results, (list, tuple)) and isinstance(results[0], fx.Node), "expected a graph with one output"
    return results[0]


def _check(model: Model) -> None:
    for tokens in (5, 3):
        label = token_labels(model, tokens)[_result(model)]
        own = torch.arange(tokens).reshape(1, -1, 1)
        if label is None or not torch.equal(torch.where(label == SHARED, own, label), own.expand(label.shape)):
            raise UnsupportedModel(
                "the logits are not one row a token, in order; expected logits [1, S, V] of tokens [1, S]"
            )


_ROW_WISE = {
    aten.linear.default, aten.tanh.default, aten._to_copy.default, aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor,
    aten.sub.Tensor, aten.slice.Tensor, torch.ops.llmc.rms_norm.default, torch.ops.llmc.layer_norm.default,
    aten.layer_norm.default, aten.clone.default,
}  # fmt: skip


def _select_rows(model: Model, rows: fx.Node) -> fx.Node:
    """Compute logits only for the rows asked for: select them before the last projection, then drop the batch of one.

    Returns the node that selects; every value from there on is another.
    """
    output = model.graph.output_node()
    result = _result(model)
    reader, point = output, result
    while point.target in _ROW_WISE and (point is result or len(point.users) == 1):
        varying = [source for source in point.all_input_nodes if not model.is_weight(source)]
        if len(varying) != 1 or varying[0] is not point.args[0] or varying[0].meta["val"].dim() != 3:
            break
        reader, point = point, varying[0]
    with model.graph.inserting_before(reader):
        chosen = model.graph.call_function(aten.index_select.default, (point, 1, rows))
    chosen.meta["origin"] = point.meta["origin"]
    reader.replace_input_with(point, chosen)
    last = _result(model)
    with model.graph.inserting_before(output):
        logits = model.graph.call_function(aten.select.int, (last, 0, 0))
    logits.meta["origin"] = last.meta["origin"]
    output.args = ((logits,),)
    return chosen
