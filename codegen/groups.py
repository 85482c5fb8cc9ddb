"""What each linear takes into its prologue and epilogue, decided on the graph before anything has a place in memory.

A node is taken into an epilogue when the linear's result has no other reader, and everything else that the node reads
does not depend on the linear: it can then be computed before. Groups are ordered so that it is.
"""

import heapq
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import fx

from llmc.codegen.layout import View
from llmc.codegen.view_ops import VIEWS, apply, columns, is_cast, own_view, shape_of
from llmc.ir.model import Model

aten, llmc = torch.ops.aten, torch.ops.llmc

LINEAR = llmc.linear_packed.default
ATTENTION = llmc.cached_attention.default
UNARY = {
    aten.gelu.default: "gelu",
    aten.relu.default: "relu",
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
    aten.neg.default: "neg",
}
BINARY = {aten.add.Tensor: "add", aten.mul.Tensor: "mul", aten.sub.Tensor: "sub", aten.div.Tensor: "div"}
NORMS = {llmc.rms_norm.default, llmc.layer_norm.default}
Independent = Callable[[object], bool]
"""Whether an argument does not depend on the linear at hand."""
_PROLOGUES = {*NORMS, llmc.gated_act.default, *UNARY}


@dataclass
class Leaf:
    """One view of a linear's result, and what its heads go through."""

    node: fx.Node
    columns: list[int]
    """First output of each head."""
    size: int
    """Outputs of a head."""
    norm: fx.Node | None = None
    rope: fx.Node | None = None
    attention: fx.Node | None = None
    role: str = "store"
    seen: list[fx.Node] = field(default_factory=list)
    """Casts and views of the last of these, as attention reads it."""


@dataclass
class Group:
    """A linear with what is fused to it."""

    linear: fx.Node
    prologue: fx.Node | None = None
    gate: fx.Node | None = None
    """The gated activation, when the result is split into its two inputs."""
    chain: list[tuple[fx.Node, int]] = field(default_factory=list)
    """Pointwise nodes in order, each with the position of the running value among its arguments."""
    leaves: list[Leaf] = field(default_factory=list)
    """The heads that the result is split into; empty unless some of them are fused."""
    nodes: list[fx.Node] = field(default_factory=list)
    """Everything computed here, the linear first; not the prologue, which may be computed in several places."""

    @property
    def result(self) -> fx.Node:
        """The node whose value the group stores."""
        return self.chain[-1][0] if self.chain else self.gate or self.linear


def find_groups(model: Model, excluded: Iterable[fx.Node] = ()) -> list[Group]:
    """The groups of a packed graph, one for each linear; `excluded` nodes are in none."""
    order = {node: place for place, node in enumerate(model.graph.nodes)}
    ancestors = _ancestors(model.graph)
    left_out = frozenset(excluded)
    claimed = set(left_out)
    groups = []
    for linear in model.calls(LINEAR):
        if linear in left_out:
            continue
        group = Group(linear, nodes=[linear])
        _follow(group, model, order, ancestors, claimed)
        claimed.update(group.nodes)
        groups.append(group)
    for group in groups:  # what an epilogue has taken is not done again in a prologue
        source = _prologue(group.linear)
        if source is not None and source not in claimed and left_out.isdisjoint(source.users):
            group.prologue = source
    return groups


def schedule(model: Model, groups: Iterable[Group]) -> list[fx.Node | Group]:
    """Nodes and groups in an order that respects every dependency, as near to the graph's own as possible."""
    owner: dict[fx.Node, Group] = {node: group for group in groups for node in group.nodes}
    inlined = {group.prologue for group in groups if group.prologue is not None}
    units: dict[int, fx.Node | Group] = {}
    place: dict[fx.Node | int, int] = {}
    for number, node in enumerate(model.graph.nodes):
        if node.op != "call_function" or node in inlined:
            continue
        unit = owner.get(node)
        key = number if unit is None else place.setdefault(id(unit), number)
        units.setdefault(key, node if unit is None else unit)
        place[node] = key
    needs: dict[int, set[int]] = {key: set() for key in units}
    for node in [node for node in place if isinstance(node, fx.Node)]:
        for source in _real_inputs(node, inlined):
            if source in place and place[source] != place[node]:
                needs[place[node]].add(place[source])
    ready = [key for key, wanted in needs.items() if not wanted]
    heapq.heapify(ready)
    readers: dict[int, list[int]] = {}
    for key, wanted in needs.items():
        for source_key in wanted:
            readers.setdefault(source_key, []).append(key)
    result = []
    while ready:
        key = heapq.heappop(ready)
        result.append(units[key])
        for reader in readers.get(key, ()):
            needs[reader].discard(key)
            if not needs[reader]:
                heapq.heappush(ready, reader)
    assert len(result) == len(units), "the groups of a graph depend on each other in a circle"
    return result


def _real_inputs(node: fx.Node, inlined: set[fx.Node]) -> Iterable[fx.Node]:
    for source in node.all_input_nodes:
        if source in inlined:
            yield from _real_inputs(source, inlined)
        else:
            yield source


def _ancestors(graph: fx.Graph) -> dict[fx.Node, int]:
    """For each node a bit set of all that it depends on, itself included."""
    found: dict[fx.Node, int] = {}
    for number, node in enumerate(graph.nodes):
        bits = 1 << number
        for source in node.all_input_nodes:
            bits |= found[source]
        found[node] = bits
    return found


def _prologue(linear: fx.Node) -> fx.Node | None:
    source = linear.args[0]
    if not isinstance(source, fx.Node) or source.target not in _PROLOGUES:
        return None
    last = source.meta["val"].dim() - 1
    if last != 1 or any(user.target is not LINEAR or user.args[0] is not source for user in source.users):
        return None
    return source


def _follow(
    group: Group, model: Model, order: dict[fx.Node, int], ancestors: dict[fx.Node, int], claimed: set[fx.Node]
) -> None:
    linear = group.linear
    bit = 1 << order[linear]

    def independent(value: object) -> bool:
        return not isinstance(value, fx.Node) or not ancestors[value] & bit

    node = linear
    gated = _gate(linear)
    if gated is not None and gated not in claimed:
        group.nodes += [*linear.users, *next(iter(linear.users)).users, gated]
        group.gate = node = gated
    else:
        leaves = _leaves(linear, independent)
        if leaves is not None and claimed.isdisjoint(leaves[1]):
            group.leaves, taken = leaves
            group.nodes += taken
            return
    while len(node.users) == 1:
        user = next(iter(node.users))
        position = _chain_position(user, node, model, independent)
        if position is None or user in claimed:
            return
        group.chain.append((user, position))
        group.nodes.append(user)
        node = user


def _chain_position(user: fx.Node, node: fx.Node, model: Model, independent: Independent) -> int | None:
    """Where `node` stands among the operands of a pointwise `user` that an epilogue can do; None if it cannot."""
    if user.target in UNARY:
        return 0
    if user.target not in BINARY or user.kwargs.get("alpha", 1) != 1 or user.kwargs.get("rounding_mode") is not None:
        return None
    if tuple(user.meta["val"].shape) != tuple(node.meta["val"].shape):
        return None
    if is_square(user):
        return 0
    position = 0 if user.args[0] is node else 1
    other = user.args[1 - position]
    if other is node or not independent(other):
        return None
    if isinstance(other, fx.Node):
        shape = tuple(other.meta["val"].shape)
        small = (
            len(shape) <= 1 and model.is_weight(other) and (not shape or shape[0] in (1, node.meta["val"].shape[-1]))
        )
        if shape != tuple(node.meta["val"].shape) and not small:
            return None
    return position


def is_square(node: fx.Node) -> bool:
    """Whether a node multiplies a value by itself."""
    return node.target is aten.mul.Tensor and node.args[0] is node.args[1]


def _gate(linear: fx.Node) -> fx.Node | None:
    """The gated activation of the two halves of a linear's result, if that is all it is for."""
    if len(linear.users) != 1:
        return None
    split = next(iter(linear.users))
    if split.target is not aten.split_with_sizes.default or len(split.args[1]) != 2 or len(split.users) != 2:  # type: ignore[arg-type]
        return None
    sizes = split.args[1]
    assert isinstance(sizes, (list, tuple)), "split sizes are a list"
    halves = sorted(split.users, key=lambda item: item.args[1])  # type: ignore[arg-type,return-value]
    if sizes[0] != sizes[1] or not isinstance(sizes[0], int) or sizes[0] % 16:
        return None
    gates = {user for half in halves for user in half.users}
    if len(gates) != 1:
        return None
    gate = gates.pop()
    is_gate = gate.target is llmc.gated_act.default and gate.args[0] is halves[0] and gate.args[1] is halves[1]
    return gate if is_gate else None


def _leaves(linear: fx.Node, independent: Independent) -> tuple[list[Leaf], list[fx.Node]] | None:
    """The heads that attention reads out of a linear's result, and the nodes fused so; None if there are none."""
    found: dict[fx.Node, View] = {}
    taken: list[fx.Node] = []

    def walk(node: fx.Node, value: View | list[View]) -> bool:
        for user in node.users:
            if user.target is operator.getitem and isinstance(value, list):
                seen: View | list[View] | None = value[user.args[1]]  # type: ignore[index]
            elif (user.target in VIEWS or is_cast(user)) and isinstance(value, View):
                seen = apply(user, value)
            else:
                assert isinstance(value, View), "only getitem reads the parts of a split"
                found[node] = value
                continue
            if seen is None:
                return False
            taken.append(user)
            if not walk(user, seen):
                return False
        return True

    if not walk(linear, own_view(linear, -1, "T", "f32")):
        return None
    leaves, chains = [], []
    for node, view in found.items():
        leaf, chain = _heads(node, view, independent)
        if leaf is not None:
            leaves.append(leaf)
            chains += chain
    sizes = {leaf.size for leaf in leaves}
    width = shape_of(linear)[-1]
    starts = [start for leaf in leaves for start in leaf.columns]
    fused = {start + place for leaf in leaves for start in leaf.columns for place in range(leaf.size)}
    if any(fused & _reads(found[node]) for node in found.keys() - {leaf.node for leaf in leaves}):
        return None  # a head that something else reads must be stored as it is
    if len(sizes) != 1 or width is None or len(set(starts)) != len(starts):
        return None
    size = sizes.pop()
    if size % 16 or width % size or any(start % size for start in starts):
        return None
    return leaves, [*taken, *chains]


def _reads(view: View) -> set[int]:
    places = {view.offset}
    for axis in view.fixed:
        places = {place + index * axis.stride for place in places for index in range(axis.size or 1)}
    return places


def _heads(node: fx.Node, view: View, independent: Independent) -> tuple[Leaf | None, list[fx.Node]]:
    """What becomes of one view of a linear's result, if attention alone reads it."""
    starts = columns(view)
    if starts is None or len(node.users) != 1:
        return None, []
    leaf = Leaf(node, starts, view.axes[-1].size or 1)
    chain: list[fx.Node] = []
    last, user = _reader(node, chain)
    if user.target in NORMS and user.args[0] is last and len(user.users) == 1:
        leaf.norm = user
        chain.append(user)
        last, user = _reader(user, chain)
    if user.target is llmc.rope.default and user.args[0] is last and len(user.users) == 1:
        if not (independent(user.args[1]) and independent(user.args[2])):
            return None, []
        leaf.rope = user
        chain.append(user)
        last, user = _reader(user, chain)
    places = [place for place in range(3) if user.target is ATTENTION and user.args[place] is last]
    if len(places) != 1:
        return None, []
    computed = leaf.rope or leaf.norm
    leaf.attention, leaf.role = user, "qkv"[places[0]]
    leaf.seen = chain[chain.index(computed) + 1 :] if computed is not None else chain
    return leaf, chain


def _reader(node: fx.Node, taken: list[fx.Node]) -> tuple[fx.Node, fx.Node]:
    """What alone reads a node, and the node as it reads it: cast, or with an axis for the only head."""
    user = next(iter(node.users))
    while len(user.users) == 1 and (is_cast(user) or (user.target is aten.unsqueeze.default and user.args[1] == 1)):
        taken.append(user)
        node, user = user, next(iter(user.users))
    return node, user
