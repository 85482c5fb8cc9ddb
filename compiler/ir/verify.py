"""The invariants of the IR. A graph is valid when:

1. torch's own check passes: single assignment, every value defined before its use, unique names;
2. it has placeholders, calls and one output, nothing else; the output is last and a tuple of nodes;
3. a call's target is an ATen or llmc op, one that somebody else has registered, or one of the functions in `FUNCTIONS`;
4. ops write to no argument, but for llmc ops that say so in their schema;
5. weight placeholders come first, and each has a recipe of its shape and dtype; no recipe lacks its placeholder;
6. every node but the output has an `Origin` in `meta["origin"]`;
7. every node but the output has the type that fake propagation of its call gives, in `meta["val"]`;
8. every call without side effects has a user;
9. the symbolic sizes of the inputs are still free: no op since the trace has fixed one to a number.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

import sympy
import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from llmc.errors import InvalidGraph
from llmc.ir.infer import fake_mode, infer, leaves, same_type
from llmc.ir.model import Model, Origin
from llmc.ir.show import expression, type_text
from llmc.ir.subgraph import has_side_effects

FUNCTIONS: frozenset[object] = frozenset(
    {
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.mod,
        operator.getitem,
        torch.sym_max,
        torch.sym_min,
    }
)
"""The targets that are no ops: arithmetic on sizes, and picking one of several results."""


@dataclass
class Verifier:
    """Checks models. Keep one for many checks: a call on the same types is propagated once."""

    inferred: dict[str, object] = field(default_factory=dict)
    """Values by the text of a call and the types of its arguments."""

    def check(self, model: Model) -> None:
        """Raise `InvalidGraph`, naming the node and the clause, when `model` breaks an invariant."""
        self._lint(model)  # 1
        self._nodes(model)  # 2, 3, 4
        self._weights(model)  # 5
        for node in model.graph.nodes:
            if node.op == "output":
                continue
            if not isinstance(node.meta.get("origin"), Origin):  # 6
                raise InvalidGraph(f'{node.name}: meta["origin"] is {node.meta.get("origin")!r}; expected an Origin')
            val = node.meta.get("val")
            if not all(isinstance(leaf, (torch.Tensor, torch.SymInt, int)) for leaf in leaves(val)):
                raise InvalidGraph(f'{node.name}: meta["val"] is {val!r}; expected a fake tensor or size')
        self._types(model)  # 7
        for node in model.calls():
            if not node.users and not has_side_effects(node):  # 8
                raise InvalidGraph(f"{_where(node)}: nothing uses it; erase it")
        self._sizes(model)  # 9

    def _lint(self, model: Model) -> None:
        try:
            model.graph.lint()
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InvalidGraph(f"the graph is not well formed: {str(error).splitlines()[0]}") from error

    def _nodes(self, model: Model) -> None:
        *calls, output = model.graph.nodes
        if output.op != "output":
            raise InvalidGraph(f"{output.name}: the last node is a {output.op}; expected the output")
        result = output.args[0]
        if not isinstance(result, (tuple, list)) or not all(isinstance(value, fx.Node) for value in result):
            raise InvalidGraph(f"output: returns {result!r}; expected a tuple of nodes")
        for node in calls:
            if node.op not in ("placeholder", "call_function"):
                raise InvalidGraph(f"{node.name}: is a {node.op}; expected a placeholder or a call_function")
            if node.op == "call_function":
                _check_target(node)

    def _weights(self, model: Model) -> None:
        placeholders = [node.name for node in model.placeholders()]
        for name in model.weights:
            if name not in placeholders:
                raise InvalidGraph(f"weight {name}: has a recipe, but the graph has no placeholder of this name")
        if set(placeholders[: len(model.weights)]) != set(model.weights):
            late = next(name for name in placeholders[len(model.weights) :] if name in model.weights)
            raise InvalidGraph(f"weight {late}: its placeholder comes after an input; weights come first")
        for node in model.placeholders()[: len(model.weights)]:
            recipe, val = model.weights[node.name], node.meta.get("val")
            typed = isinstance(val, torch.Tensor) and val.dtype == recipe.dtype and tuple(val.shape) == recipe.shape
            if not typed:
                recipe_type = f"{recipe.dtype}{list(recipe.shape)}"
                raise InvalidGraph(f"weight {node.name}: recorded as {type_text(val)}, its recipe gives {recipe_type}")

    def _types(self, model: Model) -> None:
        mode = fake_mode(model.graph)
        for node in model.calls():
            key = _call_text(node)
            if key not in self.inferred:
                try:
                    self.inferred[key] = infer(mode, node.target, node.args, node.kwargs)  # type: ignore[arg-type]
                except Exception as error:
                    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                    raise InvalidGraph(f"{_where(node)}: cannot be applied to its arguments: {reason}") from error
            if not same_type(self.inferred[key], node.meta["val"]):
                gives, records = type_text(self.inferred[key]), type_text(node.meta["val"])
                raise InvalidGraph(f'{_where(node)}: gives {gives}, but meta["val"] is {records}')

    def _sizes(self, model: Model) -> None:
        for node in model.inputs():
            for size, environment in _expressions(node.meta["val"]):
                now = environment.replace(size)
                if now.is_number and not size.is_number:
                    raise InvalidGraph(f"{node.name}: its size {size} has become {now}; expected it to stay free")


def verify(model: Model) -> None:
    """Raise `InvalidGraph` when `model` breaks an invariant of this module."""
    Verifier().check(model)


def _check_target(node: fx.Node) -> None:
    target = node.target
    if target in FUNCTIONS:
        return
    if not isinstance(target, OpOverload):
        raise InvalidGraph(
            f"{node.name}: calls {target}; expected an aten or llmc op, another registered one, or arithmetic on sizes"
        )
    if target.namespace != "llmc" and has_side_effects(node):
        raise InvalidGraph(f"{node.name}: {target} writes to its argument; use the functional form")


def _call_text(node: fx.Node) -> str:
    args = fx.map_arg((node.args, node.kwargs), lambda source: type_text(source.meta["val"]))
    return f"{node.target} {args!r}"


def _expressions(val: object) -> Iterator[tuple[sympy.Expr, ShapeEnv]]:
    for leaf in leaves(val):
        for size in leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,):
            if isinstance(size, torch.SymInt):
                yield size.node._expr, size.node.shape_env


def _where(node: fx.Node) -> str:
    return f"{node.name} = {expression(node)} ({node.meta.get('origin')})"
