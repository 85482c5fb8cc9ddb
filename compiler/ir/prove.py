"""The proof of a rewrite: both sides run on random inputs and compared.

First in fp64, every float dtype widened: the algebra must agree to rounding. Then in the model's own dtypes, judged
against the fp64 result: a rewrite may round differently, but not worse than what it replaces. Graphs of the same text
are proved once, so that equal layers cost one proof.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import fx

from llmc.ir.draw import (
    DEFAULT_BOUND,
    Round,
    bounds,
    draw,
    is_large,
    larger_rounds,
    number,
    rounds,
    symbols,
)
from llmc.ir.free_sizes import free_sizes
from llmc.ir.infer import leaves
from llmc.ir.interpret import run_graph

Kind = Literal["exact", "reassociating"]
"""exact: bit-equal in the model's dtypes; reassociating: equal up to rounding, and not rounding worse."""

Assumptions = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
"""By input: changes its random values to such as can occur."""

HEAVY_BYTES = 256 << 20
"""Inputs larger than this in fp64 are proved in fp32 and with fewer trials; a 3B layer then takes about a second."""


@dataclass(frozen=True)
class Tolerance:
    """How much a replacement may differ."""

    ratio: float
    """Its RMSE against fp64 may be this many times that of what it replaces ..."""
    floor: float
    """... plus this, relative to the RMS of the result."""


ALGEBRA = {
    torch.float64: 1e-9,  # 2^-53 grows by 1e4 in a sum of 1e8 terms and by 1e3 in exp of scores around 1e3
    torch.float32: 2e-3,  # the same reasoning from 2^-24, for graphs too large to be run in fp64
}
"""Largest difference between both sides in a wide dtype, relative to the largest element."""

SCALE_FLOOR = 1e-6
"""Where the inputs make an output vanish, it is compared at this fraction of its size in the other trials."""

ROUNDING = {
    torch.float16: Tolerance(1.1, 2.0**-15),  # the promise; a sixteenth of a rounding where eager has no error
    torch.bfloat16: Tolerance(1.1, 2.0**-12),  # the same, 8 bits of mantissa
    torch.float32: Tolerance(2.0, 1e-6),  # the promise; one accumulation of 4096 in another order
    torch.float64: Tolerance(2.0, 1e-13),  # the same as fp32, 29 bits further
}
"""By the narrowest float dtype in the subgraph: RMSE against fp64, relative to that of the original."""

SAMPLING = 4.0
"""Two independent roundings of n elements differ in RMSE by about 1/sqrt(n): this many times that is no difference."""


class Disproved(Exception):
    """Both sides differ; the message says where and by how much."""


@dataclass
class _Score:
    """Squared errors over all trials, relative to the mean square of the result."""

    before: float = 0.0
    after: float = 0.0
    count: int = 0


@dataclass
class Prover:
    """Proves rewrites, each text once."""

    proved: dict[str, float] = field(default_factory=dict)
    """Largest relative error, by digest of both sides."""

    def prove(
        self,
        before: fx.Graph,
        after: fx.Graph,
        kind: Kind,
        assume: Assumptions | None = None,
    ) -> float:
        """The largest relative difference found between the graphs, which take the same inputs.

        `before` may have further placeholders for sizes. `assume` changes the random values of the inputs it names to
        such as can occur. Raises `Disproved` when the difference is too large.
        """
        known = [_assumption(node, (assume or {}).get(node.name)) for node in before.find_nodes(op="placeholder")]
        text = "\n".join((kind, *known, structural_text(before), structural_text(after)))
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self.proved:
            self.proved[key] = _prove(before, after, kind, int(key[:12], 16), assume or {})
        return self.proved[key]


def _prove(before: fx.Graph, after: fx.Graph, kind: Kind, seed: int, assume: Assumptions) -> float:
    """Prove with small weights where no op names their sizes; if that fails, the sizes as they are decide."""
    smaller = free_sizes(before, after)
    if smaller:
        with suppress(Disproved):
            return _Proof(before, after, kind, seed, assume, smaller).run()
    return _Proof(before, after, kind, seed, assume, {}).run()


def structural_text(graph: fx.Graph) -> str:
    """The graph as text without the names of its nodes: equal for equal computations on equal types."""
    names: dict[fx.Node, str] = {}
    lines: list[str] = []
    for node in graph.nodes:
        names[node] = f"%{len(names)}"
        args = fx.map_arg((node.args, node.kwargs), lambda source: _Name(names[source]))
        types = ""
        if node.op == "placeholder":
            types = ";".join(_type_text(leaf) for leaf in leaves(node.meta["val"]))
        what = "" if node.op == "placeholder" else str(node.target)
        lines.append(f"{node.op} {what} {args!r} {types}")
    return "\n".join(lines)


def _assumption(node: fx.Node, change: Callable[[torch.Tensor], torch.Tensor] | None) -> str:
    """What is assumed of an input, as text: the place where the change of its values is written."""
    code = getattr(change, "__code__", None)
    return "" if change is None else f"{getattr(change, '__module__', '')}:{getattr(code, 'co_firstlineno', change)}"


class _Name(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _type_text(leaf: object) -> str:
    return f"{leaf.dtype}{tuple(leaf.shape)}" if isinstance(leaf, torch.Tensor) else str(leaf)


class _Proof:
    """One proof: the inputs are drawn, run and compared, trial by trial."""

    def __init__(
        self,
        before: fx.Graph,
        after: fx.Graph,
        kind: Kind,
        seed: int,
        assume: Assumptions,
        smaller: Mapping[int, int],
    ) -> None:
        self.assume, self.smaller = assume, smaller
        self.before, self.after, self.kind = before, after, kind
        self.generator = torch.Generator().manual_seed(seed)
        self.placeholders = before.find_nodes(op="placeholder")
        self.symbols = symbols(before)
        self.limits = bounds((before, after))
        some = Round(dict.fromkeys(self.symbols, 5), "ordinary", smaller)
        tensors = [node.meta["val"] for node in self.placeholders if isinstance(node.meta["val"], torch.Tensor)]
        elements = sum(math.prod(some.shape(val)) for val in tensors)
        self.heavy = elements * 8 > HEAVY_BYTES
        self.wide = torch.float32 if self.heavy else torch.float64
        self.narrow = _narrowest(before)
        self.kept: dict[tuple[str, torch.dtype | None], torch.Tensor] = {}
        self.scores: list[_Score] = []
        self.scales: dict[int, float] = {}
        self.error = 0.0

    def run(self) -> float:
        """The largest relative difference. Raises `Disproved`."""
        reasons: list[str] = []
        done = sum(self._trial(round_, reasons) for round_ in rounds(self.symbols, self.heavy, self.smaller))
        if not done and not self.smaller:
            done = sum(self._trial(round_, reasons) for round_ in larger_rounds(self.symbols))
        if not done:
            raise Disproved(f"cannot be tested: what it replaces fails on every input drawn; first: {reasons[0]}")
        self._judge_rounding()
        return self.error

    def _trial(self, round_: Round, reasons: list[str]) -> bool:
        """Whether the original accepted the inputs of this trial. Raises `Disproved` when the sides differ."""
        native, expected = None, None
        for shrink in (1, 8, 1 << 30):
            try:
                native = self._draw(round_, shrink)
                expected = self._run_wide(self.before, native)
                break
            except (RuntimeError, IndexError, ValueError) as error:
                reasons.append(f"{round_}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        if native is None or expected is None:
            return False
        try:
            found = self._run_wide(self.after, native)
            rounded = _run_native(self.after, native)
        except Exception as error:
            raise Disproved(f"fails where what it replaces does not ({round_}): {error}") from error
        for place, (want, have) in enumerate(zip(expected, found, strict=True)):
            self._compare(place, want, have, round_)
        original = _run_native(self.before, native)
        self.scores = self.scores or [_Score() for _ in expected]
        for place, (exact, old, new) in enumerate(zip(expected, original, rounded, strict=True)):
            self._compare_native(place, exact, old, new, round_)
        return True

    def _draw(self, round_: Round, shrink: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for node in self.placeholders:
            val = node.meta["val"]
            if not isinstance(val, torch.Tensor):
                values[node.name] = number(val, round_.sizes)
                continue
            if (node.name, None) in self.kept:
                values[node.name] = self.kept[node.name, None]
                continue
            keep = is_large(val, round_)
            limit = min([DEFAULT_BOUND, *(number(size, round_.sizes) for size in self.limits[node.name])])
            style = replace(round_, style="ordinary") if keep else round_
            value = draw(val, style, max(limit // shrink, 1), self.generator)
            values[node.name] = value = self.assume[node.name](value) if node.name in self.assume else value
            if keep:
                self.kept[node.name, None] = value
        return values

    def _widen(self, name: str, value: Any) -> Any:  # noqa: ANN401 - a tensor or a size
        """An input in the wide dtype; large ones are converted once."""
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if (name, None) not in self.kept:
            return value.to(self.wide)
        if (name, self.wide) not in self.kept:
            self.kept[name, self.wide] = value.to(self.wide)
        return self.kept[name, self.wide]

    def _run_wide(self, graph: fx.Graph, values: dict[str, Any]) -> tuple[Any, ...]:
        """The outputs of `graph` with every float dtype replaced by the wide one."""
        with _default_dtype(self.wide):
            return run_graph(graph, lambda node: self._widen(node.name, values[node.name]), _widened(self.wide))

    def _compare(self, place: int, want: Any, have: Any, round_: Round) -> None:  # noqa: ANN401
        """Compare one output of both sides in the wide dtype."""
        if _shape(want) != _shape(have):
            raise Disproved(f"output {place} is {_shape(have)}, expected {_shape(want)} ({round_})")
        if not isinstance(want, torch.Tensor) or not want.is_floating_point():
            if not _equal(want, have):
                raise Disproved(f"output {place} differs in integers ({round_})")
            return
        if want.numel() == 0:
            return
        regular = torch.isfinite(want)
        strange = ~regular & ~torch.isnan(want)
        if not torch.isfinite(have[regular]).all() or not torch.equal(want[strange], have[strange]):
            raise Disproved(f"output {place} has NaN or infinity where the original has none ({round_})")
        want, have = want[regular], have[regular]
        if want.numel() == 0:
            return
        self.scales[place] = max(self.scales.get(place, 0.0), want.abs().max().item())
        scale = max(want.abs().max().item(), SCALE_FLOOR * self.scales[place], 1e-30)
        error = (want - have).abs().max().item() / scale
        self.error = max(self.error, error)
        if error > ALGEBRA[self.wide]:
            raise Disproved(
                f"output {place} differs by {error:.2g} of its largest element in {_dtype(self.wide)}, "
                f"allowed {ALGEBRA[self.wide]:.2g} ({round_})"
            )

    def _compare_native(self, place: int, exact: Any, old: Any, new: Any, round_: Round) -> None:  # noqa: ANN401
        """Compare one output of both sides in the model's dtypes, and add to its score."""
        if not isinstance(old, torch.Tensor) or _shape(old) != _shape(new) or old.dtype != new.dtype:
            if not isinstance(old, torch.Tensor) and old == new:
                return
            raise Disproved(f"output {place} is {_shape(new)}, expected {_shape(old)} ({round_})")
        if self.kind == "exact":
            if not _equal(old, new):
                raise Disproved(f"output {place} is not bit-equal ({round_})")
            return
        if not old.is_floating_point() or old.numel() == 0:
            return
        regular = torch.isfinite(old)
        if not torch.isfinite(new[regular]).all():
            raise Disproved(f"output {place} has NaN or infinity in {_dtype(new.dtype)}, the original none ({round_})")
        regular &= torch.isfinite(exact)
        truth = exact[regular].double()
        mean_square = truth.square().mean().item() if truth.numel() else 0.0
        if mean_square == 0.0:
            return
        score = self.scores[place]
        score.before += (old[regular].double() - truth).square().sum().item() / mean_square
        score.after += (new[regular].double() - truth).square().sum().item() / mean_square
        score.count += truth.numel()

    def _judge_rounding(self) -> None:
        tolerance = ROUNDING[self.narrow] if self.narrow in ROUNDING else ROUNDING[torch.float16]
        if self.wide == self.narrow:
            return
        for place, score in enumerate(self.scores):
            if not score.count:
                continue
            before, after = math.sqrt(score.before / score.count), math.sqrt(score.after / score.count)
            allowed = tolerance.ratio * before * (1 + SAMPLING / math.sqrt(score.count)) + tolerance.floor
            if after > allowed:
                raise Disproved(
                    f"output {place} rounds worse in {_dtype(self.narrow)}: relative RMSE {after:.2g} against "
                    f"{_dtype(self.wide)}, the original {before:.2g}, allowed {allowed:.2g}"
                )


def _run_native(graph: fx.Graph, values: dict[str, Any]) -> tuple[Any, ...]:
    """The outputs of `graph` in the model's own dtypes."""
    return run_graph(graph, lambda node: values[node.name])


def _widened(wide: torch.dtype) -> Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Any]:
    def widen(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return wide
        return type(value)(widen(item) for item in value) if type(value) in (list, tuple) else value

    def call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        target: Any = node.target
        return target(*[widen(arg) for arg in args], **{key: widen(value) for key, value in kwargs.items()})

    return call


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Ops that name no dtype make floats of this one."""
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


def _narrowest(graph: fx.Graph) -> torch.dtype:
    floats = [
        leaf.dtype
        for node in graph.nodes
        for leaf in leaves(node.meta.get("val"))
        if isinstance(leaf, torch.Tensor) and leaf.dtype.is_floating_point
    ]
    return max(floats, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


def _equal(x: Any, y: Any) -> bool:  # noqa: ANN401 - tensors, or numbers
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        return bool(x == y)
    return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())


def _shape(value: object) -> Sequence[int]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
