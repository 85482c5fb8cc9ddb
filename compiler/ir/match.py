"""Finding subgraphs: a pattern is a traced function, its parameters are the wildcards.

    def find(x, w, eps):
        wide = shared(x.float())
        return w * (wide * torch.rsqrt((wide * wide).mean(-1, True) + eps)).to(torch.bfloat16)

A pattern is anchored at the last value it returns and matched backwards from there. A wildcard binds whatever stands in
its place: a node, a number, a dtype, a list of them; met twice, it must bind the same. A parameter annotated `Tensor`
binds only nodes, one annotated `int`, `float`, `bool` or `str` only constants of that type. Arguments are compared by
name with defaults filled in, dimensions counted from the end are resolved with the rank of the matched input, and both
orders of a commutative op are tried.
"""

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from llmc.errors import InvalidGraph
from llmc.ir.infer import leaves
from llmc.ir.signature import arguments, by_name, from_front, rank_of_input
from llmc.ir.tracing import Value, aten, trace

_COMMUTATIVE: frozenset[object] = frozenset(
    {
        aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default, aten.eq.Tensor, aten.ne.Tensor,
        aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.logical_and.default, aten.logical_or.default,
        operator.add, operator.mul,
    }
)  # fmt: skip
"""Ops whose first two arguments may be swapped."""

_CONSTANTS: dict[object, tuple[type, ...]] = {int: (int,), float: (float, int), bool: (bool,), str: (str,)}


def shared(value: Value) -> Value:
    """In a pattern: `value` may also be used outside of the match (and is then kept)."""
    value.node.meta["shared"] = True
    return value


def named(value: Value, name: str) -> Value:
    """In a pattern: the matched node can be asked for as `match.inner[name]`."""
    value.node.meta["name"] = name
    return value


@dataclass
class Match:
    """One place where a pattern fits."""

    node: fx.Node
    """The anchor: the node of the last value that the pattern returns."""
    bound: dict[str, Any]
    """What each wildcard stands for: a node, a constant, or a list of them."""
    inner: dict[str, fx.Node]
    """The nodes that the pattern marked with `named`."""
    outputs: list[fx.Node]
    """The nodes of the values that the pattern returns."""
    nodes: list[fx.Node]
    """Every matched node that is not a wildcard, in graph order."""
    kept: set[fx.Node] = field(default_factory=set)
    """Matched nodes that may have other users."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - a node or a constant
        """What the wildcard `name` stands for. None for a wildcard of another alternative of the rule."""
        return self.bound.get(name)

    def val(self, name: str) -> Any:  # noqa: ANN401 - a fake tensor or a constant
        """The fake tensor of wildcard or inner value `name`; a constant as it is."""
        found = self.bound[name] if name in self.bound else self.inner[name]
        return found.meta["val"] if isinstance(found, fx.Node) else found

    def inputs(self) -> list[fx.Node]:
        """The nodes bound by wildcards, each once, in the order of the parameters."""
        bound = leaves(list(self.bound.values()))
        return list(dict.fromkeys(value for value in bound if isinstance(value, fx.Node)))

    def used_elsewhere(self) -> fx.Node | None:
        """The first inner node that something outside of the match also uses, unless the pattern allows it."""
        inside = set(self.nodes)
        for node in self.nodes:
            if node not in self.kept and any(user not in inside for user in node.users):
                return node
        return None


class Pattern:
    """A traced pattern, ready to be tried on nodes."""

    def __init__(self, find: Callable[..., Any]) -> None:
        """Trace `find`. Raises `InvalidGraph` when it uses what cannot be traced or ignores a parameter."""
        self.kinds = {
            name: parameter.annotation for name, parameter in inspect.signature(find, eval_str=True).parameters.items()
        }
        graph, outputs = trace(find, dict.fromkeys(self.kinds), None)
        self.wildcards = {node: name for node, name in zip(graph.find_nodes(op="placeholder"), self.kinds, strict=True)}
        unused = [name for node, name in self.wildcards.items() if not node.users]
        if unused:
            raise InvalidGraph(f"{getattr(find, '__name__', 'pattern')}: parameter {unused[0]!r} is not used")
        self.outputs = [value.node for value in outputs]
        self.anchor = self.outputs[-1]
        if self.anchor in self.wildcards:
            raise InvalidGraph(f"{getattr(find, '__name__', 'pattern')}: returns a parameter; expected an op")
        self.target = self.anchor.target

    def match(self, node: fx.Node) -> Match | None:
        """The first way in which the pattern fits with its last op at `node`; None when there is none."""
        if node.target is not self.target:
            return None
        return next(self._matches(node), None)

    def _matches(self, node: fx.Node) -> Iterator[Match]:
        for found in self._solve(((self.anchor, node),), {}):
            if not all(output in found for output in self.outputs):
                raise InvalidGraph("pattern: an output is not computed from the last output; replace it separately")
            inner = {part: at for part, at in found.items() if part not in self.wildcards}
            outputs = [inner[output] for output in self.outputs]
            kept = {at for part, at in inner.items() if part.meta.get("shared")}
            yield Match(
                node=node,
                bound={name: found[part] for part, name in self.wildcards.items() if part in found},
                inner={part.meta["name"]: at for part, at in inner.items() if "name" in part.meta},
                outputs=outputs,
                nodes=sorted(set(inner.values())),
                kept=kept | set(outputs),
            )

    def _solve(self, goals: tuple[tuple[Any, Any], ...], found: Mapping[fx.Node, Any]) -> Iterator[dict[fx.Node, Any]]:
        """Every assignment of pattern nodes that satisfies `goals`, pairs of a pattern argument and an actual one."""
        if not goals:
            yield dict(found)
            return
        (part, actual), rest = goals[0], goals[1:]
        if not isinstance(part, fx.Node):
            deeper = _pairs(part, actual)
            if deeper is not None:
                yield from self._solve(deeper + rest, found)
            return
        if part in found:
            if _same(found[part], actual):
                yield from self._solve(rest, found)
            return
        if part in self.wildcards:
            if self._accepts(self.wildcards[part], actual):
                yield from self._solve(rest, {**found, part: actual})
            return
        if not isinstance(actual, fx.Node) or actual.op != "call_function" or actual.target is not part.target:
            return
        for deeper in _argument_pairs(part, actual):
            yield from self._solve(deeper + rest, {**found, part: actual})

    def _accepts(self, name: str, actual: object) -> bool:
        kind = self.kinds[name]
        if kind in (Tensor, Value, fx.Node):
            return isinstance(actual, fx.Node)
        if kind in _CONSTANTS:
            return isinstance(actual, _CONSTANTS[kind]) and (kind is bool or not isinstance(actual, bool))
        return True


def _argument_pairs(part: fx.Node, actual: fx.Node) -> Iterator[tuple[tuple[Any, Any], ...]]:
    """The ways to pair the arguments of two calls of one op; two when it is commutative."""
    have = arguments(actual)
    want = by_name(part.target, part.args, part.kwargs)
    want = from_front(part.target, want, rank_of_input(have))
    if want.keys() != have.keys():
        return
    yield tuple((want[name], have[name]) for name in want)
    if part.target in _COMMUTATIVE:
        first, second, *others = want
        swapped = {**have, first: have[second], second: have[first]}
        if not _same(have[first], have[second]):
            yield tuple((want[name], swapped[name]) for name in (first, second, *others))


def _pairs(part: object, actual: object) -> tuple[tuple[Any, Any], ...] | None:
    """The pairs that must match for a constant or list of a pattern to match `actual`; None when they cannot."""
    if isinstance(part, (list, tuple)):
        if not isinstance(actual, (list, tuple)) or len(part) != len(actual):
            return None
        return tuple(zip(part, actual, strict=True))
    return () if _same(part, actual) else None


def _same(x: object, y: object) -> bool:
    if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
        return len(x) == len(y) and all(_same(a, b) for a, b in zip(x, y, strict=True))
    if isinstance(x, bool) or isinstance(y, bool) or isinstance(x, fx.Node) or isinstance(y, fx.Node):
        return x is y
    if isinstance(x, (int, float)) and isinstance(y, (int, float)):
        return x == y
    return type(x) is type(y) and x == y
