"""Any module `tokens -> logits` to an FX graph, through torch.export.

The trace holds one sequence, tokens [1, S] with S dynamic: a packed step later runs the same graph with S standing for
all its tokens, so the batch dimension of the source never needs a symbol. Weights and buffers become placeholders.
"""

import contextlib
import keyword
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from llmc.errors import UnsupportedModel
from llmc.frontend.convolutions import RefusesConvolutions
from llmc.frontend.lengths import EXAMPLE_LENGTH, AnswersFromLength, Condition, guards
from llmc.frontend.places import located_guards, raised_at, specialized_lengths
from llmc.ir.model import Model, Origin
from llmc.ir.verify import FUNCTIONS
from llmc.ir.weights import Weight

_KEPT = (
    "linear", "matmul", "scaled_dot_product_attention", "layer_norm", "rms_norm", "softmax", "log_softmax", "dropout",
    "diff", "repeat_interleave", "silu", "gelu", "embedding", "conv1d", "pad", "sym_size",
)  # fmt: skip
"""Composite ATen ops that passes recognise or labels need whole; every other composite is taken apart."""

_TAKEN_APART = (
    "rsub", "new_ones", "new_zeros", "new_full", "ones", "zeros", "ones_like", "zeros_like", "full_like", "t",
    "unbind", "stack", "split", "masked_fill", "addcmul", "addcdiv", "triu", "tril",
)  # fmt: skip
"""Plain ATen ops that have one other spelling in the tidied graph."""

_TIDIED = (
    "new_ones", "new_zeros", "ones", "zeros", "ones_like", "zeros_like", "__and__", "__or__", "type_as", "square",
    "masked_fill",
)  # fmt: skip
"""Composites that the tidy passes spell anew themselves, so that they alone are no reason to trace again."""

_WRAPPERS = (torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast)

Binder = Callable[[str, torch.Tensor], Weight]
"""Gives the recipe of a parameter or buffer from its dotted name and the tensor that the trace saw."""


@dataclass(frozen=True)
class _Strip:
    """Module paths of the trace start with the wrapper's attribute; users know them without."""

    prefix: str = "module."

    def __call__(self, name: str) -> str:
        return name.removeprefix(self.prefix) if name != self.prefix.rstrip(".") else ""


class LogitsOf(nn.Module):
    """Wraps a module so that it maps token ids [1, S] to logits [1, S, V], whatever it returns."""

    def __init__(self, module: nn.Module, answered_at: int = EXAMPLE_LENGTH, **fixed: object) -> None:
        """Keep `module`, and the keyword arguments to pass it beside the tokens.

        Where a trace meets a branch on the number of tokens, it goes the way of `answered_at` tokens.
        """
        super().__init__()
        self.module = module
        self.answered_at = answered_at
        self.fixed = fixed
        self.conditions: list[Condition] = []
        """What the last trace took for granted of the number of tokens."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of `tokens`."""
        answers = AnswersFromLength(tokens.shape[1], self.answered_at, self.module)
        with answers, RefusesConvolutions(self.module):
            result = self.module(tokens, **self.fixed)
        self.conditions[:] = answers.conditions
        logits = getattr(result, "logits", None)
        if isinstance(logits, torch.Tensor):
            return logits
        if isinstance(result, dict) and isinstance(result.get("logits"), torch.Tensor):
            return torch.as_tensor(result["logits"])
        if isinstance(result, (tuple, list)) and result and isinstance(result[0], torch.Tensor):
            return result[0]
        if isinstance(result, torch.Tensor):
            return result
        raise UnsupportedModel(
            f"{type(self.module).__name__} returns {type(result).__name__}; expected logits: a tensor, a tuple that "
            "starts with one, or an object with `.logits`"
        )


def _decompositions() -> dict[object, Callable[..., object]]:
    chosen: dict[object, Callable[..., object]] = {}
    for op, decomposition in torch.export.default_decompositions().items():
        name = op.name().removeprefix("aten::").split(".")[0]
        if not op.name().startswith("aten::") or name in _KEPT:
            continue
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")
        if composite or name in _TAKEN_APART:
            chosen[op] = decomposition
    return {**chosen, torch.ops.aten.polar.default: _polar, torch.ops.aten.complex.default: _complex}


def _complex(real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(torch.stack((real, imaginary), dim=-1))


def _polar(radius: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    # torch's own rules for the shapes of polar and complex fix symbolic sizes to numbers.
    return _complex(radius * torch.cos(angle), radius * torch.sin(angle))


def export(module: nn.Module, length: int = EXAMPLE_LENGTH) -> torch.export.ExportedProgram:
    """Export `module` (tokens [1, S] -> logits [1, S, V]) with S dynamic, functional, in ATen ops.

    Where the module's code asks for the number S itself, it is `length`. The module is left as it was.

    Raises:
        UnsupportedModel: torch.export cannot trace it with a dynamic length; the message carries the reason.
    """
    tokens = torch.zeros(1, max(length, 2), dtype=torch.int64)  # torch.export takes a size of one for a constant
    places: list[str] = []
    try:
        with torch.no_grad(), _left_as_it_was(module), located_guards(module), specialized_lengths(module) as places:
            program: torch.export.ExportedProgram = torch.export.export(
                module, (tokens,), dynamic_shapes=({1: torch.export.Dim.DYNAMIC},), strict=False
            )
            table = _decompositions()
            if _is_plain(program.graph_module, table):  # a second trace costs as much as the first
                return program
            tidied: torch.export.ExportedProgram = program.run_decompositions(table)
            return tidied
    except UnsupportedModel:
        raise
    except Exception as error:
        name = type(getattr(module, "module", module)).__name__
        if places:
            raise UnsupportedModel(
                f"{name} cannot be traced with a dynamic length: it becomes a constant in {_Strip()(places[0])}; "
                "expected a forward pass whose Python code is the same for any length, without loops over tokens"
            ) from error
        reason = _first_lines(str(error))
        if place := _Strip()(raised_at(error, module)):
            reason = f"{reason}, in {place}"
        raise UnsupportedModel(
            f"{name} cannot be traced with a dynamic length: {type(error).__name__}: {reason}; "
            "expected a module whose forward has no control flow that depends on token values"
        ) from error


@contextlib.contextmanager
def _left_as_it_was(module: nn.Module) -> Iterator[None]:
    """What a forward pass keeps in attributes belongs to its trace, and no later one can use it."""
    before = [
        (part, dict(vars(part)), dict(part._buffers), dict(part._parameters), set(part._non_persistent_buffers_set))
        for part in module.modules()
    ]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The tensor attributes? ")  # torch says that they were assigned
            yield
    finally:
        for part, attributes, buffers, parameters, unsaved in before:
            vars(part).clear()
            vars(part).update(attributes)
            for held, was in ((part._buffers, buffers), (part._parameters, parameters)):
                held.clear()
                held.update(was)  # type: ignore[arg-type]
            part._non_persistent_buffers_set.clear()
            part._non_persistent_buffers_set.update(unsaved)


def traced(module: LogitsOf, bind: Binder, example: int = EXAMPLE_LENGTH) -> tuple[Model, list[Condition]]:
    """The model of `module` traced on an example of some length, and what that takes for granted of the length.

    Raises:
        UnsupportedModel: torch.export cannot trace it, or it is no function of tokens alone.
    """
    program = export(module, example)
    return to_model(program, bind), [*module.conditions, *guards(program)]


def _is_plain(module: fx.GraphModule, table: Mapping[object, object]) -> bool:
    """Whether the graph is functional, and all in ops that the passes know."""
    for graph in (part.graph for part in module.modules() if isinstance(part, fx.GraphModule)):
        for node in graph.nodes:
            if node.op != "call_function" or node.target in _WRAPPERS:
                continue
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                return False
            if isinstance(node.target, torch._ops.OpOverload):
                name = node.target.name().removeprefix("aten::").split(".")[0]
                if node.target._schema.is_mutable or (node.target in table and name not in _TIDIED):
                    return False
    return True


def _first_lines(text: str, limit: int = 400) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:limit]


def to_model(program: torch.export.ExportedProgram, bind: Binder, *, strip: str = "module.") -> Model:
    """Turn an exported program into a `Model`: weights first, named after the module's attributes.

    Args:
        program: tokens [1, S] to logits; further user inputs are refused.
        bind: gives each parameter's and buffer's recipe.
        strip: prefix of module paths to leave out of names.
    """
    short = _Strip(strip)
    signature = program.graph_signature
    if signature.user_inputs_to_mutate:
        changed = ", ".join(signature.user_inputs_to_mutate.values())
        raise UnsupportedModel(f"the forward pass changes {changed} in place; expected a pure function of the tokens")
    if len(signature.user_inputs) != 1:
        raise UnsupportedModel(f"the traced program takes {len(signature.user_inputs)} inputs; expected tokens alone")
    stored = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    weights: dict[str, Weight] = {}
    constants = {**program.constants, **program.state_dict}
    outputs = {spec.arg.name for spec in signature.output_specs if spec.kind.name == "USER_OUTPUT"}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node in sorted(placeholders, key=lambda node: node.name not in stored):
        if node.name not in stored:
            copies[node] = graph.placeholder("tokens")
            copies[node].meta.update(val=node.meta["val"], origin=Origin("tokens"))
            continue
        if not node.users:
            continue
        name = short(stored[node.name])
        copy = graph.placeholder(_identifier(name))
        copy.meta.update(val=node.meta["val"], origin=Origin(name))
        weights[copy.name] = bind(name, constants[stored[node.name]])
        copies[node] = copy
    _copy(program.graph_module, graph, copies, short)
    returned = [value for value in program.graph.output_node().args[0] if isinstance(value, fx.Node)]
    result = [value for value in returned if value.name in outputs]
    if len(result) != 1:
        raise UnsupportedModel(f"the traced program returns {len(result)} values; expected logits alone")
    graph.output((copies[result[0]],))
    module = fx.GraphModule(nn.Module(), graph)
    model = Model(module, weights)
    model.graph.eliminate_dead_code()
    state = [name for name in map(short, signature.buffers_to_mutate.values()) if _identifier(name) in model.weights]
    if state:
        raise UnsupportedModel(
            f"the forward pass reads {', '.join(state)}, which it changes in place; expected a function of the tokens"
        )
    return model


def _identifier(name: str) -> str:
    """A dotted name as the name of an argument; a Sequential's parts begin with a number."""
    plain = re.sub(r"\W", "_", name)
    return plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"w_{plain}"


def _copy(source: fx.GraphModule, graph: fx.Graph, copies: dict[fx.Node, Any], short: _Strip) -> None:
    """Copy the calls of `source` into `graph`; what only wraps a part of it (no gradient, no autocast) is dissolved."""
    for node in source.graph.nodes:
        if node.op == "get_attr" and isinstance(getattr(source, str(node.target), None), fx.GraphModule):
            continue
        if node.op == "call_function" and node.target in _WRAPPERS:
            _dissolve(source, node, graph, copies, short)
        elif node.op == "call_function" and node.target is operator.getitem and isinstance(copies[node.args[0]], tuple):
            copies[node] = copies[node.args[0]][node.args[1]]
        elif node.op == "call_function" and node.target not in _ASSERTS:
            if node.target in _VALUE_DEPENDENT:
                raise UnsupportedModel(
                    f"{node.target} at {_origin(node, short)} makes sizes of token values; expected sizes that depend "
                    "on the number of tokens alone"
                )
            if not isinstance(node.target, torch._ops.OpOverload) and node.target not in FUNCTIONS:
                raise UnsupportedModel(
                    f"the model computes with sizes by {node.target} at {_origin(node, short)}; expected sums, "
                    "products, quotients, remainders, minima or maxima"
                )
            if node.target is torch.ops.aten.copy.default and _has_fixed_shape(node.args[0]):
                copies[node] = _overwritten(node, graph, copies)
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.target in _UNFILLED:
                copies[node].target = _UNFILLED[node.target]
                copies[node].kwargs = {key: item for key, item in node.kwargs.items() if key != "memory_format"}
            copies[node].meta = {"val": node.meta.get("val"), "origin": _origin(node, short)}
        elif node.op not in ("placeholder", "output", "call_function"):
            raise UnsupportedModel(
                f"the traced program holds a `{node.op}` node ({node.target}); expected operators only"
            )


def _has_fixed_shape(node: Any) -> bool:  # noqa: ANN401 - an argument of a node
    return all(isinstance(size, int) for size in node.meta["val"].shape)


def _overwritten(node: fx.Node, graph: fx.Graph, copies: dict[fx.Node, Any]) -> fx.Node:
    """`copy(old, new)` without `old`, of which only shape and dtype matter: what is overwritten whole is no state."""
    old, new = node.args[:2]
    assert isinstance(old, fx.Node) and isinstance(new, fx.Node), "copy takes two tensors"
    value = copies[new]
    if new.meta["val"].dtype != old.meta["val"].dtype:
        value = graph.call_function(torch.ops.aten._to_copy.default, (value,), {"dtype": old.meta["val"].dtype})
        with old.meta["val"].fake_mode:
            value.meta["val"] = new.meta["val"].to(old.meta["val"].dtype)
        value.meta["origin"] = copies[new].meta["origin"]
    return graph.call_function(torch.ops.aten.expand.default, (value, list(old.meta["val"].shape)))


def _dissolve(
    source: fx.GraphModule, node: fx.Node, graph: fx.Graph, copies: dict[fx.Node, Any], short: _Strip
) -> None:
    place, part = next((i, arg) for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
    if node.target is _WRAPPERS[1] and node.args[2]:
        raise UnsupportedModel("the traced program computes a part under autocast; expected explicit dtypes")
    body = getattr(source, str(part.target))
    inputs = [inner for inner in body.graph.nodes if inner.op == "placeholder"]
    for inner, given in zip(inputs, node.args[place + 1 :], strict=True):
        copies[inner] = copies[given]  # type: ignore[index]
    _copy(body, graph, copies, short)
    results = body.graph.output_node().args[0]
    copies[node] = tuple(copies[value] for value in results) if isinstance(results, (tuple, list)) else copies[results]


_UNFILLED = {
    torch.ops.aten.new_empty.default: torch.ops.aten.new_zeros.default,
    torch.ops.aten.empty_like.default: torch.ops.aten.zeros_like.default,
    torch.ops.aten.empty.memory_format: torch.ops.aten.zeros.default,
}
"""Memory that is written later may as well hold zeros before: a graph computes the same each time it is run."""

_VALUE_DEPENDENT = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}

_ASSERTS = (
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten._assert_async.msg,
    torch.ops.aten.sym_constrain_range_for_size.default,
    torch.ops.aten.sym_constrain_range.default,
)


def _origin(node: fx.Node, short: _Strip) -> Origin:
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for _, (name, _kind) in stack.items():
        path = name
    for prefix in ("L['self'].", "L__self__."):
        path = path.removeprefix(prefix)
    source = ""
    for line in (node.meta.get("stack_trace") or "").splitlines():
        line = line.strip()
        if line.startswith('File "') and "/torch/" not in line and "<eval_with_key>" not in line:
            file, _, rest = line[6:].partition('"')
            source = f"{Path(file).name}:{rest.split('line ')[-1].split(',')[0]}"
    return Origin(short(path), source)
