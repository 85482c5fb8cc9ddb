"""How far tables of positions reach: a model serves no position whose row its table lacks."""

import numpy as np
import sympy
import torch
from torch import fx

from llmc.errors import UnsupportedModel
from llmc.ir.model import UNLIMITED_CONTEXT, Model

aten = torch.ops.aten

POSITION = sympy.Symbol("p", integer=True, nonnegative=True)


def check_rows(model: Model, reader: fx.Node, index: fx.Node, row: sympy.Expr) -> None:
    """Limit the sequences of `model` to the positions whose row is in the table, if `reader` looks `index` up in one.

    Args:
        model: the model, whose limit becomes the first position without a row.
        reader: what reads `index`; anything but a look-up is left alone.
        index: the rows looked up.
        row: the row of each position, in `POSITION`.

    Raises:
        UnsupportedModel: the first position has no row.
    """
    rows = _rows(reader, index)
    if rows is None:
        return
    positions = np.arange(UNLIMITED_CONTEXT)
    wanted = np.broadcast_to(sympy.lambdify(POSITION, row, modules="numpy")(positions), positions.shape)
    lowest = 0 if reader.target is aten.embedding.default else -rows  # an index may count from the end
    missing = positions[(wanted < lowest) | (wanted >= rows)]
    if not len(missing):
        return
    if missing[0] == 0:
        raise UnsupportedModel(
            f"{reader.target} at {reader.meta['origin']} looks up row {wanted[0]} of a table of {rows} for the first "
            "position; expected a row in it"
        )
    model.limit(int(missing[0]))


def check_vocabulary(tokens: fx.Node, logits: int) -> None:
    """See that every token that `logits` numbers tell apart has a row where `tokens` are looked up.

    Raises:
        UnsupportedModel: a table is shorter, so that a token the model may choose could not be fed to it.
    """
    for reader in tokens.users:
        rows = _rows(reader, tokens)
        if rows is not None and rows < logits:
            raise UnsupportedModel(
                f"{reader.target} at {reader.meta['origin']} looks tokens up in a table of {rows} rows, but there are "
                f"{logits} logits; expected a row for each"
            )


def _rows(reader: fx.Node, index: fx.Node) -> int | None:
    """The size of the dimension that `reader` looks `index` up in; None if it does not, or that size is dynamic."""
    if reader.target is aten.embedding.default and reader.args[1] is index:
        dim = 0
    elif reader.target is aten.index.Tensor and index in reader.args[1]:  # type: ignore[operator]
        dim = list(reader.args[1]).index(index)  # type: ignore[arg-type]
    elif reader.target in (aten.index_select.default, aten.gather.default) and reader.args[2] is index:
        dim = reader.args[1]  # type: ignore[assignment]
    else:
        return None
    table = reader.args[0]
    assert isinstance(table, fx.Node), "a look-up reads a table"
    size = table.meta["val"].shape[dim]
    return size if isinstance(size, int) else None
