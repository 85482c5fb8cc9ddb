"""The one way to test a pass: golden counts or text, the verifier, numerics against the interpreter, idempotence."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from support.tolerances import relative_tolerance
from torch import fx, nn

from llmc.ir.interpret import interpret
from llmc.ir.model import Model, Origin
from llmc.ir.rewrite import Rewriter
from llmc.ir.show import show
from llmc.ir.tracing import short_name
from llmc.ir.verify import verify
from llmc.ir.weights import Constant, Weight


class RewritingPass(Protocol):
    """What `check_pass` runs."""

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Change the model; return the number of changes."""


def check_pass(
    passes: RewritingPass | Sequence[RewritingPass],
    before: Callable[..., Any] | nn.Module | Model,
    *examples: torch.Tensor,
    dynamic: Mapping[int, Sequence[int]] | None = None,
    counts: Mapping[str, int] | None = None,
    changes: int | None = None,
    refused: Sequence[str] | None = None,
    text: str | None = None,
) -> Model:
    """Run `passes` on `before` and check the result in every way; return the changed model.

    Checked: the invariants (before and after), the outputs on `examples` and on their first slices along the dynamic
    dimensions, that a second run changes nothing, and as far as given: the ops that remain (`counts`, all of them, by
    short name), the number of `changes`, the reasons of near misses, the golden `text` of the body as `show` prints it.
    """
    model = before if isinstance(before, Model) else trace(before, *examples, dynamic=dynamic)
    verify(model)
    trials = [examples] + ([_first_slices(examples, dynamic)] if dynamic else [])
    expected = [interpret(model, trial) for trial in trials]
    steps = passes if isinstance(passes, Sequence) else [passes]
    rewriter = Rewriter(model)
    made = sum(step.run(model, rewriter) for step in steps)
    model.drop_unused_weights()
    verify(model)
    for trial, wanted in zip(trials, expected, strict=True):
        for have, want in zip(interpret(model, trial), wanted, strict=True):
            assert_close(have, want)
    shown = show(model)
    again = sum(step.run(model, Rewriter(model)) for step in steps)
    assert again == 0, f"not idempotent: a second run makes {again} changes"
    assert show(model) == shown, "not idempotent: a second run reports no change but makes one"
    assert counts is None or op_counts(model) == dict(sorted(counts.items())), shown
    assert changes is None or made == changes, f"{made} changes, expected {changes}\n{shown}"
    assert refused is None or [near.reason for near in rewriter.refused] == list(refused), rewriter.refused
    assert text is None or body(shown) == text.strip().splitlines(), shown
    return model


def assert_close(have: torch.Tensor, want: torch.Tensor) -> None:
    """Same dtype and shape, NaN in the same places, values within the tolerance of the dtype."""
    assert have.dtype == want.dtype and have.shape == want.shape, f"{have.dtype}{have.shape}, {want.dtype}{want.shape}"
    if not want.dtype.is_floating_point:
        assert torch.equal(have, want)
        return
    tolerance = relative_tolerance(want.dtype)
    scale = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0
    torch.testing.assert_close(have, want, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def body(shown: str) -> list[str]:
    """The lines of a shown graph between its signature and its end, without comments."""
    lines = [line.partition("  #")[0].strip() for line in shown.splitlines()]
    return lines[lines.index("):") + 1 :]


def _first_slices(examples: Sequence[torch.Tensor], dynamic: Mapping[int, Sequence[int]]) -> tuple[torch.Tensor, ...]:
    """The examples with every dynamic dimension cut to size one."""
    cut = list(examples)
    for place, dims in dynamic.items():
        for dim in dims:
            cut[place] = cut[place].narrow(dim, 0, 1)
    return tuple(cut)


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
    called = module.forward if isinstance(fn, nn.Module) else fn
    return model_of(program, [name for name in inspect.signature(called).parameters][: len(examples)])


def model_of(program: torch.export.ExportedProgram, names: Sequence[str]) -> Model:
    """The model of an exported program, weights first; `names` are those of its inputs."""
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
    spare = iter(names)
    for node in sorted(placeholders, key=lambda node: node.name not in stored):
        path = stored.get(node.name)
        copies[node] = graph.placeholder(path.replace(".", "_") if path else next(spare, node.name))
        copies[node].meta.update(val=node.meta["val"], origin=Origin(path or "input"))
        if path:
            weights[copies[node].name] = Constant(tensors[path], name=path)
    for node in program.graph.nodes:
        if node.op == "call_function":
            if node.meta.get("val") is None:
                continue  # an assertion of the tracer
            args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
            copies[node] = graph.call_function(node.target, args, kwargs, name=short_name(node.target))
            stack = node.meta.get("nn_module_stack") or {}
            paths = [path for path, _ in stack.values() if not path.startswith("_empty")]
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
