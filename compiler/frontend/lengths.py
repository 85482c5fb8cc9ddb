"""For which lengths a trace holds, and the trace that holds for the longest sequence to serve.

Tracing follows one way through a model's code. Where that code asks how long the sequence is, by its shape or by a
tensor of positions (`max(position_ids) + 1 > 4096`), the trace holds for the lengths that get the same answer. A cache
is filled token by token by one program, so a model is compiled as it is for sequences as long as the context, and
shorter ones are computed as beginnings of such a sequence. From which length on the model itself does so is kept.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode

from llmc.errors import UnsupportedModel
from llmc.frontend.places import place_of_call
from llmc.ir.coordinate_rules import RULES
from llmc.ir.coordinates import Coordinates, as_predicate
from llmc.ir.mask import LENGTH
from llmc.ir.model import UNLIMITED_CONTEXT, Model

EXAMPLE_LENGTH = 11
"""Tokens in the traced example: a size that no model dimension is likely to share."""

SHORTEST, CONDITIONS = "shortest", "conditions"
"""Facts about a model: from which length on the source computes the same, and the conditions that bound it."""


@dataclass(frozen=True)
class Condition:
    """What a trace takes for granted of the length, and where the model asks for it."""

    holds: sympy.Basic
    """In `mask.LENGTH`."""
    place: str

    @classmethod
    def at(cls, predicate: sympy.Basic, length: int, place: str) -> "Condition":
        """`predicate` as it is at `length` tokens: itself, or its contrary."""
        return cls(predicate if predicate.subs(LENGTH, length) == sympy.true else sympy.Not(predicate), place)

    def __str__(self) -> str:
        text = str(self.holds.subs(LENGTH, sympy.Symbol("length")))
        return f"{text} in {self.place}" if self.place else text


@dataclass(frozen=True)
class Traced:
    """A model as traced at some length, and the lengths that it holds for."""

    model: Model
    conditions: tuple[Condition, ...]
    """Those that bound the lengths."""
    shortest: int
    longest: int


class AnswersFromLength(TorchFunctionMode):
    """Within this, what a tensor computed from positions alone holds is known as far as the length is.

    torch.export cannot branch on a tensor. Asked for its truth (`if seq_len > 4096:`), such a tensor gives that at
    `answered_at` tokens, which becomes a condition; asked for its number, that as an expression of the length.
    """

    def __init__(self, length: int | torch.SymInt, answered_at: int, module: nn.Module) -> None:
        """`length` is the number of tokens of the sequence on which `module` is traced."""
        super().__init__()
        self.length = length
        self.answered_at = answered_at
        self.module = module
        self.conditions: list[Condition] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever `func` returns
        """Call `func`, unless it asks for what follows from the length."""
        if func in _ASKING and isinstance(self.length, torch.SymInt):
            value = _formula(args[0])
            if value is not None and func is torch.Tensor.__bool__:
                return self._answer(as_predicate(value))
            if value is not None:
                return sympy.lambdify(LENGTH, value, modules=[_PYTHON, "math"])(self.length)
        return func(*args, **(kwargs or {}))

    def _answer(self, predicate: sympy.Basic) -> bool:
        condition = Condition.at(predicate, self.answered_at, place_of_call(self.module))
        self.conditions.append(condition)
        return bool(condition.holds == predicate)


_ASKING: tuple[object, ...] = (torch.Tensor.__bool__, torch.Tensor.item)
_PYTHON: dict[str, object] = {"Max": max, "Min": min, "Mod": lambda a, b: a % b, "floor": lambda a: a // 1}


def _formula(tensor: torch.Tensor) -> sympy.Basic | None:
    """The one element of a tensor in the middle of a trace as a function of the length; None where it is none."""
    mode = get_proxy_mode()
    if mode is None or any(size != 1 for size in tensor.shape):
        return None
    slot = get_proxy_slot(tensor, mode.tracer, None)
    if slot is None or tensor.is_floating_point():
        return None
    nothing = Model(fx.GraphModule(nn.Module(), fx.Graph()), {})
    return _of_length(Coordinates(nothing, RULES), slot.proxy.node)


def _of_length(coordinates: Coordinates, node: fx.Node) -> sympy.Basic | None:
    formula = coordinates.of(node)
    if formula is None:
        return None
    value = formula.at((sympy.S.Zero,) * len(formula.shape))
    return value if value.free_symbols <= {LENGTH} and not value.has(sympy.core.function.AppliedUndef) else None


def guards(program: torch.export.ExportedProgram) -> list[Condition]:
    """What the tracer was told of the length on its way through the model's code."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        sizes: Sequence[object] = value.shape if isinstance(value, torch.Tensor) else ()
        for size in sizes:
            if isinstance(size, torch.SymInt):
                return [Condition(_in_length(guard.expr), _location(guard)) for guard in size.node.shape_env.guards]
    return []


def _in_length(expression: sympy.Basic) -> sympy.Basic:
    return expression.xreplace({symbol: LENGTH for symbol in expression.free_symbols})


def _location(guard: Any) -> str:  # noqa: ANN401 - torch's ShapeGuard
    place = guard.sloc.framework_loc
    return place if isinstance(place, str) else ""


def decide(model: Model, length: int) -> list[Condition]:
    """Give each tensor that says something of the length alone the value that it has at `length` tokens."""
    coordinates = Coordinates(model, RULES)
    decided = []
    for node in model.calls():
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dtype != torch.bool or any(size != 1 for size in value.shape):
            continue
        predicate = _of_length(coordinates, node)
        if predicate is None or node.target is torch.ops.aten.full.default:
            continue
        condition = Condition.at(predicate, length, str(node.meta["origin"]))
        decided.append(condition)
        with model.graph.inserting_before(node):
            fill = model.graph.call_function(
                torch.ops.aten.full.default, (list(value.shape), condition.holds == predicate)
            )
            fill.kwargs = {"dtype": torch.bool, "device": value.device, "pin_memory": False}
        fill.meta.update(val=value, origin=node.meta["origin"])
        node.replace_all_uses_with(fill)
    model.graph.eliminate_dead_code()
    model.drop_unused_weights()
    return decided


def _prime(most: int) -> int:
    """The largest prime up to `most`: a length that is hardly that of anything else in a model."""
    return next((n for n in range(most, 2, -1) if all(n % i for i in range(2, isqrt(n) + 1))), 2)


def span(conditions: Sequence[Condition], length: int, most: int) -> tuple[int, int, tuple[Condition, ...]] | None:
    """The lengths around `length`, of 1 to `most`, at which all conditions hold, and the conditions that bound them.

    None if they do not hold at `length` itself.

    A single length that is told apart from all others, as a size that happens to be that of a table is, bounds nothing.
    """
    lengths = np.arange(1, max(most, length) + 3)
    all_hold = np.ones(len(lengths), bool)
    bounding = []
    for condition in dict.fromkeys(conditions):
        holds = _evaluated(condition, lengths)
        holds[0] |= holds[1]  # a traced length is two at least, and stands for one
        if np.count_nonzero(~holds) > 1:
            all_hold &= holds
            bounding.append(condition)
    if not all_hold[length - 1]:
        return None
    fails = lengths[~all_hold]
    below, above = fails[fails < length], fails[fails > length]
    return int(below.max(initial=0)) + 1, int(above.min(initial=len(lengths) + 1)) - 1, tuple(bounding)


def _evaluated(condition: Condition, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    try:
        found = sympy.lambdify(LENGTH, condition.holds, modules=[_NUMPY, "numpy"])(lengths)
    except Exception as error:
        raise UnsupportedModel(
            f"the model asks whether {condition}, which cannot be followed ({type(error).__name__}); expected "
            "comparisons of lengths"
        ) from error
    return np.array(np.broadcast_to(np.asarray(found, bool), lengths.shape))


_NUMPY: dict[str, object] = {
    "Max": lambda *values: np.max(np.broadcast_arrays(*values), axis=0),
    "Min": lambda *values: np.min(np.broadcast_arrays(*values), axis=0),
    "Mod": np.mod,
    "PythonMod": np.mod,
    "FloorDiv": np.floor_divide,
    "CleanDiv": np.floor_divide,
    "ModularIndexing": lambda base, divisor, modulus: base // divisor % modulus,
    "IntTrueDiv": np.true_divide,
    "FloatTrueDiv": np.true_divide,
    "ToFloat": lambda value: value,
}
"""What torch's own functions in conditions on sizes are."""


def traced_for(
    trace: Callable[[int, int], tuple[Model, Sequence[Condition]]],
    *,
    asked: int | None = None,
    limit: int | None = None,
) -> Model:
    """The model as it is for the longest sequences to serve; where nothing says how long those are, for short ones.

    Facts that are kept: `max_positions` where the trace holds up to some length only, and `shortest` and `conditions`.

    Args:
        trace: traces the model as it is at a length, on an example of another; gives what it takes for granted.
        asked: the context that the user asks for.
        limit: the longest sequence that the model was made for.

    Raises:
        UnsupportedModel: it cannot be traced at the length asked for; the message says which context is possible.
    """
    context = min((length for length in (asked, limit) if length is not None), default=None)
    most = max(context or UNLIMITED_CONTEXT, EXAMPLE_LENGTH)

    def at(length: int) -> Traced:
        for example in (EXAMPLE_LENGTH, _prime(length), length):  # the first whose shape is taken as that of `length`
            model, conditions = trace(length, example)
            found = span([*conditions, *decide(model, length)], length, most)
            if found is not None:
                shortest, longest, bounding = found
                return Traced(model, bounding, shortest, longest)
        raise AssertionError(f"a trace at {length} tokens holds there")

    found = at(EXAMPLE_LENGTH)
    if context is not None and not found.shortest <= context <= found.longest:
        found = _extended(_at_context(at, context, found, required=asked is not None), found, at)
    if found.shortest > 1:
        found.model.info[SHORTEST] = found.shortest
    if found.longest < most:
        found.model.limit(found.longest)
    if found.shortest > 1 or found.longest < most:
        found.model.info[CONDITIONS] = [str(condition) for condition in found.conditions]
    return found.model


@contextlib.contextmanager
def shorter_as_way_out(model: Model) -> Iterator[None]:
    """Within this, a refusal of `model` says which shorter context its own code computes otherwise, if any."""
    try:
        yield
    except UnsupportedModel as error:
        if SHORTEST not in model.info:
            raise
        raise _shorter(error, int(str(model.info[SHORTEST])) - 1) from error


def _shorter(error: UnsupportedModel, longest: int) -> UnsupportedModel:
    return UnsupportedModel(
        f"{error}. That is so for longer sequences; compile with a max context of {longest}, up to which the model "
        "itself does otherwise"
    )


def _at_context(at: Callable[[int], Traced], context: int, short: Traced, *, required: bool) -> Traced:
    try:
        return at(context)
    except UnsupportedModel as error:
        if not required and short.shortest <= context:
            return short
        raise _shorter(error, short.longest) from error


def _extended(found: Traced, short: Traced, at: Callable[[int], Traced]) -> Traced:
    """`found` with all shorter lengths at which the model's code gives the same graph, whatever it asks there."""
    while found.shortest > 1:
        below = short if short.shortest < found.shortest <= short.longest + 1 else at(found.shortest - 1)
        if not _same(found.model, below.model):
            break
        found = Traced(found.model, (*found.conditions, *below.conditions), below.shortest, found.longest)
    return found


def _same(one: Model, other: Model) -> bool:
    return str(one.graph) == str(other.graph) and one.weights == other.weights
