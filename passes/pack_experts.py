"""Mixtures of experts on packed weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from llmc.ir.model import Model
from llmc.ir.packed_formats import FLOAT_FORMATS, FORMATS
from llmc.ir.prove import Prover
from llmc.ir.rewrite import Rewriter
from llmc.ir.tracing import trace
from llmc.passes.packing import Packing, rounding_error

aten = torch.ops.aten
dialect = torch.ops.llmc

MOE = dialect.moe.default

_TOKENS, _EXPERTS, _WIDTH, _SIZE = 5, 3, 20, 40
"""Sizes at which a rewrite to floats is proved: odd ones, so that tiles and groups have padding."""


def pack_experts(
    model: Model, rewriter: Rewriter, rule: str, moe: fx.Node, choose: Callable[[fx.Node, bool], Packing]
) -> bool:
    """Replace `llmc.moe` by `llmc.moe_packed`; return whether that was done.

    Layouts become one: [E, 2F, D] with the gate first, and [E, D, F]. `choose` is asked for the packing of each of
    the two weights, and told whether they lie in the file as they are needed.
    """
    up, down, straight = moe.args[3], moe.args[5], not (moe.args[9] or moe.args[10])
    for matrix in (up, down):
        if not isinstance(matrix, fx.Node) or not model.is_weight(matrix) or len(matrix.users) > 1:
            rewriter.refuse(rule, moe, f"its weight {matrix} is computed in the graph or also used elsewhere")
            return False
        if matrix.meta["val"].dtype not in FLOAT_FORMATS:
            rewriter.refuse(rule, moe, f"{matrix} is {matrix.meta['val'].dtype}, which has no packed format")
            return False
    assert isinstance(up, fx.Node) and isinstance(down, fx.Node)
    plans = (choose(up, straight), choose(down, straight))
    others = [arg for arg in moe.args if isinstance(arg, fx.Node)]
    inputs = list(dict.fromkeys([*others, *plans[0].inputs(), *plans[1].inputs()]))

    def build(*values: Any) -> object:  # noqa: ANN401 - traced values
        return _packed(moe, plans, dict(zip(inputs, values, strict=True)))

    def proof() -> float:
        if any(FORMATS[plan.format].quantized for plan in plans):
            return max(rounding_error(model, plan) for plan in plans)
        return _prove_layout(moe, plans)

    return rewriter.replace(rule, inputs, [moe], build, proof=proof)


def _packed(moe: fx.Node, plans: Sequence[Packing], of: Mapping[fx.Node, Any]) -> object:
    """`moe_packed` in place of `moe`, given the values `of` its arguments."""
    x, ids, shares, _, up_bias, down, down_bias, act, gated, interleaved, transposed, limit, offset = moe.args
    assert isinstance(down, fx.Node)
    experts, width = (int(down.meta["val"].shape[place]) for place in (0, 1 if transposed else 2))

    def straight(matrix: Any) -> Any:  # noqa: ANN401 - a traced value
        return aten.permute.default(matrix, [0, 2, 1]) if transposed else matrix

    def halves(value: Any) -> Any:  # noqa: ANN401 - a traced value
        """Gate and up as two halves, where they alternate."""
        if not (gated and interleaved):
            return value
        rest = list(value.shape)[2:]
        pairs = aten.reshape.default(value, [experts, width, 2, *rest])
        apart = aten.permute.default(pairs, [0, 2, 1, *range(3, 3 + len(rest))])
        return aten.reshape.default(apart, [experts, 2 * width, *rest])

    return dialect.moe_packed.default(
        *(of[arg] for arg in (x, ids, shares) if isinstance(arg, fx.Node)),
        plans[0].parts(of, lambda matrix: halves(straight(matrix))),
        halves(of[up_bias]) if isinstance(up_bias, fx.Node) else None,
        plans[1].parts(of, straight),
        of[down_bias] if isinstance(down_bias, fx.Node) else None,
        plans[0].format, plans[1].format, experts, width, act, gated, limit, offset,
    )  # fmt: skip


def _prove_layout(moe: fx.Node, plans: Sequence[Packing]) -> float:
    """Prove the rewrite at small sizes: what it does to a weight does not depend on how large that is."""
    gated, transposed = bool(moe.args[8]), bool(moe.args[10])
    rows = 2 * _WIDTH if gated else _WIDTH
    sizes = {
        0: (_TOKENS, _SIZE), 1: (_TOKENS, 2), 2: (_TOKENS, 2),
        3: (_EXPERTS, _SIZE, rows) if transposed else (_EXPERTS, rows, _SIZE), 4: (_EXPERTS, rows),
        5: (_EXPERTS, _WIDTH, _SIZE) if transposed else (_EXPERTS, _SIZE, _WIDTH), 6: (_EXPERTS, _SIZE),
    }  # fmt: skip
    places = {place: arg for place, arg in enumerate(moe.args) if isinstance(arg, fx.Node)}
    with FakeTensorMode() as mode:
        inputs = {f"a{place}": torch.empty(sizes[place], dtype=arg.meta["val"].dtype) for place, arg in places.items()}

    def plain(*values: Any) -> object:  # noqa: ANN401 - traced values
        given = iter(values)
        return MOE(*(next(given) if place in places else arg for place, arg in enumerate(moe.args)))

    before, _ = trace(plain, inputs, mode)
    small = before.find_nodes(op="call_function", target=MOE)[0]
    weights = [small.args[3], small.args[5]]
    chosen = [Packing(weight, plan.format) for weight, plan in zip(weights, plans, strict=True)]

    def packed(*values: Any) -> object:  # noqa: ANN401 - traced values
        return _packed(small, chosen, dict(zip(before.find_nodes(op="placeholder"), values, strict=True)))

    after, _ = trace(packed, inputs, mode)
    return Prover().prove(before, after, "reassociating")
