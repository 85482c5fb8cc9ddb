"""One spelling for each thing, so that each idiom needs one pattern."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from llmc.errors import InvalidGraph
from llmc.ir.infer import fake_mode
from llmc.ir.model import Model
from llmc.ir.prove import Kind, Prover
from llmc.ir.rewrite import Rewriter
from llmc.passes.canonicalize_arithmetic import ARITHMETIC
from llmc.passes.canonicalize_casts import CASTS
from llmc.passes.canonicalize_exchange import exchange
from llmc.passes.canonicalize_products import PRODUCTS
from llmc.passes.canonicalize_site import Site, respell
from llmc.passes.canonicalize_sizes import unify_sizes
from llmc.passes.canonicalize_views import VIEWS

Respelling = Callable[[Site], fx.Node | None]
"""What a call becomes: another node of the same value, or None to leave it."""

RESPELLINGS: dict[object, Respelling] = {**ARITHMETIC, **CASTS, **PRODUCTS, **VIEWS}
"""The respelling of each op that has another spelling. An op that is not here has one already."""

_EXACT = frozenset({*CASTS, *VIEWS})
"""What must be bit-equal; arithmetic and products may be computed in another order."""

_SWEEPS = 16


@dataclass(frozen=True)
class Canonicalize:
    """Spell every op in one way: projections as `linear`, views as `reshape` and `permute`, casts as `_to_copy`.

    Arguments are given by position, dimensions counted from the front, defaults and devices left out. A number is the
    second operand; `x.pow(2)` is `mul(x, x)`; a division by a power of two is a product; what changes nothing (clone,
    dropout, a cast to the same dtype, a full slice, `+ 0`, `· 1`) is removed. Each symbolic size is computed once.
    """

    name: ClassVar[str] = "canonicalize"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Respell the whole graph; return the number of calls changed.

        Every respelling keeps dtype and sizes, and each kind of call is run on random inputs in both spellings once.

        Raises:
            BuildFailed: a respelling does not compute the same.
            InvalidGraph: the respellings never come to an end.
        """
        mode = fake_mode(model.graph)
        prover = Prover() if rewriter.prove else None
        total = 0
        for _ in range(_SWEEPS):
            changes = unify_sizes(model) + sum(_change(model, mode, prover, node) for node in model.calls())
            if not changes:
                return total
            total += changes
            model.graph.eliminate_dead_code()
        raise InvalidGraph(f"canonicalize: still changing after {_SWEEPS} sweeps; two respellings undo each other")


def _change(model: Model, mode: FakeTensorMode, prover: Prover | None, node: fx.Node) -> int:
    """Respell one call; return the number of changes."""
    if not node.users:
        return 0
    changes = int(respell(node))
    rule = RESPELLINGS.get(node.target)
    if rule is None:
        return changes
    kind: Kind = "exact" if node.target in _EXACT else "reassociating"
    return changes + exchange(Canonicalize.name, Site(model, mode, node), rule, kind, prover)
