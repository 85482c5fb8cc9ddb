"""The one way to test a pass: golden counts or text, the verifier, numerics against the interpreter, idempotence."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import fx, nn

from llmc.ir.model import Model, Origin
from llmc.ir.rewrite import Rewriter
from llmc.ir.tracing import short_name
from llmc.ir.weights import Constant, Weight


class RewritingPass(Protocol):
    """What `check_pass` runs."""

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Change the model; return the number of changes."""


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def trace(
    fn: Callable[..., Any] | nn.Module, *examples: torch.Tensor, dynamic: Mapping[int, Sequence[int]] | None = None
) -> Model:
    """Trace a function of tensors, or a module, into a Model.

    `dynamic` names the dynamic dimensions of each example, `{0: [1]}` for the second dimension of the first example.
    Parameters and buffers of a module become weights. Composite ops such as `aten.linear` stay whole.
    """
    module = fn if isinstance(fn, nn.Module) else _Function(fn)
    shapes = tuple(
        dict.fromkeys((dynamic or {}).get(place, ()), torch.export.Dim.DYNAMIC) for place in range(len(examples))
    )
    spec = (shapes,) if module is not fn else shapes
    with torch.no_grad():
        program = torch.export.export(module.eval(), examples, dynamic_shapes=spec, strict=False).run_decompositions({})
    return model_of(program)


def model_of(program: torch.export.ExportedProgram) -> Model:
    """The model of an exported program, weights first."""
    signature = program.graph_signature
    stored = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**program.constants, **program.state_dict}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    weights: dict[str, Weight] = {}
    placeholders = program.graph.find_nodes(op="placeholder")
    for node in sorted(placeholders, key=lambda node: node.name not in stored):
        path = stored.get(node.name)
        copies[node] = graph.placeholder(path.replace(".", "_") if path else node.name.removeprefix("args_"))
        copies[node].meta.update(val=node.meta["val"], origin=Origin(path or "input"))
        if path:
            weights[copies[node].name] = Constant(tensors[path], name=path)
    for node in program.graph.nodes:
        if node.op == "call_function":
            if node.meta.get("val") is None:
                continue  # an assertion of the tracer
            copies[node] = graph.node_copy(node, copies.__getitem__)
            stack = node.meta.get("nn_module_stack") or {}
            paths = [path for path, _ in stack.values()]
            copies[node].meta = {"val": node.meta["val"], "origin": Origin(paths[-1] if paths else "")}
        elif node.op == "output":
            graph.output(tuple(copies[value] for value in node.args[0]))
    model = Model(fx.GraphModule(nn.Module(), graph), weights)
    model.graph.eliminate_dead_code()
    model.drop_unused_weights()
    return model


def op_counts(model: Model) -> dict[str, int]:
    """How often each op occurs, by short name, sorted."""
    counts: dict[str, int] = {}
    for node in model.calls():
        counts[short_name(node.target)] = counts.get(short_name(node.target), 0) + 1
    return dict(sorted(counts.items()))
