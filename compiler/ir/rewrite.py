"""Changing a graph: the one door, and the rules that go through it.

`Rewriter.replace` swaps a subgraph for another after proving them equal on random inputs, numbers the rewrite and keeps
values and origins right. `Rule` is the declarative form: what to `find`, `unless` when, what to `replace` it by.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from llmc.errors import BuildFailed
from llmc.ir.infer import fake_mode, same_type
from llmc.ir.match import Match, Pattern
from llmc.ir.model import Model, Origin
from llmc.ir.prove import Disproved, Kind, Prover
from llmc.ir.show import type_text
from llmc.ir.subgraph import dependants, extract, has_side_effects, merged_origin
from llmc.ir.tracing import Value, trace

SWEEPS = 64
"""Passes of `apply_rules` over a graph before it gives up: rules that still fire undo each other."""


@dataclass(frozen=True)
class Applied:
    """One rewrite that was made."""

    number: int
    """Counted over the whole build, from 1."""
    rule: str
    node: str
    """Name of the (first) node that was replaced."""
    origin: str
    error: float
    """Largest difference in the proof, relative to the size of the result; 0 when nothing was proved."""
    seconds: float


@dataclass(frozen=True)
class Refused:
    """A near miss: a place where a rule nearly fired."""

    rule: str
    node: str
    origin: str
    reason: str


@dataclass
class Rewriter:
    """The one door through which recognisers and fusions change a model's graph."""

    model: Model
    prove: bool = True
    """Whether to run both sides of every rewrite on random inputs."""
    stop_after: int | None = None
    """How many rewrites to make at most; None for no limit."""
    applied: list[Applied] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._prover = Prover()

    @property
    def stopped(self) -> bool:
        """Whether the limit of rewrites is reached, so that `replace` changes nothing any more."""
        return self.stop_after is not None and len(self.applied) >= self.stop_after

    def replace(
        self,
        rule: str,
        inputs: Sequence[fx.Node],
        outputs: Sequence[fx.Node],
        build: Callable[..., Any],
        *,
        kind: Kind = "reassociating",
        proof: Callable[[], float] | None = None,
        assume: Mapping[fx.Node, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ) -> bool:
        """Replace the subgraph that computes `outputs` from `inputs` by what `build` computes from them.

        Args:
            rule: name under which the rewrite is counted and reported.
            inputs: where the subgraph begins. Symbolic sizes on the way need not be listed.
            outputs: the nodes whose users are redirected; dtype, rank and size of the replacements must be the same.
            build: called with one `llmc.ir.tracing.Value` for each input; returns one value for each output.
            kind: "exact" when the results must be bit-equal, "reassociating" when rounding may differ.
            proof: run instead of the proof on random inputs, for a rewrite that reads the values of weights; returns
                the error, or raises `llmc.ir.prove.Disproved`.
            assume: what is known of some inputs beyond their type, as a change made to their random values.

        Returns whether the graph was changed: not once `stop_after` rewrites were made, and not when an input is
        computed from an output (recorded as a near miss).

        Raises:
            BuildFailed: the replacement does not compute the same.
            InvalidGraph: the subgraph reaches a placeholder that is no input, or an op with side effects.
        """
        if self.stopped:
            return False
        start = time.perf_counter()
        before = extract(inputs, outputs)
        moved = dependants(inputs, outputs)
        if any(node in moved for node in inputs):
            self.refuse(rule, outputs[0], f"{_first(inputs, moved).name} is computed from what would be replaced")
            return False
        mode = fake_mode(self.model.graph)
        after, values = trace(build, {node.name: node.meta["val"] for node in inputs}, mode)
        known = {node.name: change for node, change in (assume or {}).items()}
        error = self._check(rule, outputs, values, proof or (lambda: self._prover.prove(before, after, kind, known)))
        origin = merged_origin([_origin(node) for node in outputs])
        name = outputs[0].name
        self._splice(inputs, outputs, after, [value.node for value in values], moved, origin)
        seconds = time.perf_counter() - start
        self.applied.append(Applied(len(self.applied) + 1, rule, name, str(origin), error, seconds))
        return True

    def record(self, rule: str, node: fx.Node, error: float, seconds: float) -> None:
        """Count and number a rewrite of the whole graph, made by a pass that proves it itself."""
        self.applied.append(Applied(len(self.applied) + 1, rule, node.name, str(_origin(node)), error, seconds))

    def refuse(self, rule: str, node: fx.Node, reason: str) -> None:
        """Record that `rule` nearly fired at `node`, and why it did not. The same near miss is recorded once."""
        refused = Refused(rule, node.name, str(_origin(node)), reason)
        if refused not in self.refused:
            self.refused.append(refused)

    def _check(
        self, rule: str, outputs: Sequence[fx.Node], values: Sequence[Value], proof: Callable[[], float]
    ) -> float:
        """The error of the proof. Raises `BuildFailed` when the values are not those of the outputs."""
        where = f"rewrite {len(self.applied) + 1}, {rule}, at {outputs[0].name} ({_origin(outputs[0])})"
        again = f"LLMC_STOP_AFTER={len(self.applied)} builds without it, `llmc bisect` finds the first bad rewrite"
        if len(values) != len(outputs):
            raise BuildFailed(f"{where}: returns {len(values)} values; expected {len(outputs)}; {again}")
        for output, value in zip(outputs, values, strict=True):
            have, want = value.node.meta["val"], output.meta["val"]
            if not same_type(have, want):
                gives = f"gives {type_text(have)}; expected {type_text(want)}"
                raise BuildFailed(f"{where}: {gives}, the type of {output.name}; {again}")
        if not self.prove:
            return 0.0
        try:
            return proof()
        except Disproved as disproved:
            raise BuildFailed(f"{where}: {disproved}; {again}") from disproved

    def _splice(
        self,
        inputs: Sequence[fx.Node],
        outputs: Sequence[fx.Node],
        after: fx.Graph,
        results: Sequence[fx.Node],
        moved: list[fx.Node],
        origin: Origin,
    ) -> None:
        """Copy the nodes of `after` into the graph, redirect the users of the outputs, erase what is dead."""
        graph = self.model.graph
        last_input, first_output = max(inputs, default=min(outputs)), min(outputs)
        placeholders = after.find_nodes(op="placeholder")
        copies: dict[fx.Node, fx.Node] = dict(zip(placeholders, inputs, strict=True))
        at = graph.inserting_before(last_input.next if first_output < last_input else first_output)
        cursor = last_input
        with at:
            for node in after.nodes:
                if node.op != "call_function":
                    continue
                args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
                copy = graph.create_node("call_function", node.target, args, kwargs, name=node.name)
                copy.meta.update(val=node.meta["val"], origin=origin)
                copies[node] = cursor = copy
        for node in moved:
            cursor.append(node)
            cursor = node
        for output, result in zip(outputs, results, strict=True):
            if result in placeholders:
                output.replace_all_uses_with(copies[result])
                continue
            if len(outputs) > 1 and results.count(result) == 1:
                copies[result].meta["origin"] = _origin(output)
            output.replace_all_uses_with(copies[result])
        _erase_dead([*outputs, *inputs, *copies.values()])


Finder = Callable[..., Any]


@dataclass(frozen=True)
class Rule:
    """A rewrite, declared: `find` it, `unless` there is a reason not to, `replace` it.

    Parameters of `find` are wildcards (see `llmc.ir.match`). `replace` takes any of them by name: a value for what
    binds a node, the constant itself otherwise, None for a wildcard that the matched alternative does not have;
    a parameter called `match` receives the `Match`.
    """

    name: str
    find: Finder | Sequence[Finder]
    """The pattern, or several, tried in order."""
    replace: Callable[..., Any]
    unless: Callable[[Match], str | None] | None = None
    """The reason for refusing a match; None to go ahead."""
    kind: Kind = "reassociating"

    def patterns(self) -> list[Pattern]:
        """The traced patterns."""
        return [Pattern(find) for find in (self.find if isinstance(self.find, Sequence) else [self.find])]


def apply_rules(model: Model, rewriter: Rewriter, rules: Sequence[Rule]) -> int:
    """Apply `rules` everywhere until none fires; return the number of rewrites made.

    The patterns are taken in order, each over the whole graph: what an earlier one can have, a later one cannot.
    A match is refused, and recorded as a near miss, when `unless` gives a reason or an inner value has other users.
    Raises `BuildFailed` when the rules never come to an end, and what `Rewriter.replace` raises.
    """
    patterns = [(rule, pattern) for rule in rules for pattern in rule.patterns()]
    total = 0
    for _ in range(SWEEPS):
        made = 0
        for rule, pattern in patterns:
            for node in model.calls(pattern.target):
                made += not node._erased and _apply_at(node, rewriter, rule, pattern)
        total += made
        if not made or rewriter.stopped:
            return total
    names = ", ".join(rule.name for rule in rules)
    raise BuildFailed(f"{names}: still firing after {SWEEPS} sweeps; a replacement must not match its own rule again")


def _apply_at(node: fx.Node, rewriter: Rewriter, rule: Rule, pattern: Pattern) -> bool:
    match = None if rewriter.stopped else pattern.match(node)
    if match is None:
        return False
    reason = rule.unless(match) if rule.unless else None
    elsewhere = match.used_elsewhere()
    if reason is None and elsewhere is not None:
        reason = f"{elsewhere.name} is also used elsewhere"
    if reason is not None:
        rewriter.refuse(rule.name, node, reason)
        return False
    return rewriter.replace(rule.name, match.inputs(), match.outputs, _builder(rule, match), kind=rule.kind)


def _builder(rule: Rule, match: Match) -> Callable[..., Any]:
    names = list(inspect.signature(rule.replace).parameters)
    inputs = match.inputs()

    def build(*values: Value) -> object:
        of = dict(zip(inputs, values, strict=True))
        chosen = {name: match if name == "match" else _substitute(match[name], of) for name in names}
        return rule.replace(**chosen)

    return build


def _substitute(bound: Any, of: dict[fx.Node, Value]) -> Any:  # noqa: ANN401 - a node, a constant, a list of them
    if isinstance(bound, fx.Node):
        return of[bound]
    return [_substitute(item, of) for item in bound] if isinstance(bound, (list, tuple)) else bound


def _origin(node: fx.Node) -> Origin:
    origin = node.meta.get("origin")
    return origin if isinstance(origin, Origin) else Origin()


def _first(nodes: Sequence[fx.Node], among: list[fx.Node]) -> fx.Node:
    return next(node for node in nodes if node in among)


def _erase_dead(candidates: Sequence[fx.Node]) -> None:
    """Erase those of `candidates` that nothing uses, and what only they used. Placeholders and side effects stay."""
    stack = list(candidates)
    while stack:
        node = stack.pop()
        if node._erased or node.users or node.op != "call_function" or has_side_effects(node):
            continue
        stack.extend(node.all_input_nodes)
        node.graph.erase_node(node)
