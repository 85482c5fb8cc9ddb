"""Sizes of fake tensors: known as numbers, or known to be equal whatever their symbols stand for."""

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true


def number(size: object) -> int | None:
    """A size as a number; None when it is symbolic."""
    if isinstance(size, torch.SymInt):
        return int(size.node.expr) if size.node.expr.is_Integer else None
    return size if isinstance(size, int) else None


def same_size(x: int | torch.SymInt, y: int | torch.SymInt) -> bool:
    """Whether two sizes are equal whatever the symbols in them stand for."""
    return statically_known_true(x == y)


def same_shape(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two fake tensors have the same sizes whatever the symbols in them stand for."""
    return x.dim() == y.dim() and all(map(same_size, x.shape, y.shape))


def same_type(x: object, y: object) -> bool:
    """Whether two values have the same dtype and sizes; element by element for several."""
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
        return x.dtype == y.dtype and same_shape(x, y)
    if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
        return len(x) == len(y) and all(map(same_type, x, y))
    return type(x) is type(y)
