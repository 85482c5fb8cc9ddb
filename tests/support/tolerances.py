"""How far results may be from each other in tests, in one table, each with its reason."""

import torch

_RELATIVE = {
    torch.float64: 1e-10,  # 53-bit mantissa; sums of a few thousand terms, some cancellation
    torch.float32: 2e-5,  # 24-bit mantissa; one accumulation of 4096 in another order
    torch.float16: 4e-3,  # 11-bit mantissa; four roundings in a row
    torch.bfloat16: 3e-2,  # 8-bit mantissa; four roundings in a row
}


def relative_tolerance(dtype: torch.dtype) -> float:
    """The difference allowed between two computations of one thing in `dtype`, relative to the largest element."""
    return _RELATIVE[dtype]
