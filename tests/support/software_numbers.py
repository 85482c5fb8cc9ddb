"""Instructions of the GPU in software, one at a time."""

import ctypes

import numpy as np
from numpy.typing import NDArray
from support.software_cuda import numbers

Array = NDArray[np.generic]
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""What registers hold, by bytes."""


def evaluate(opcode: str, *operands: Array) -> Array:
    """The bits of the result for arrays of bits, padded to whole warps."""
    library = numbers()
    signature = library.number_signature(opcode.encode())
    assert signature, f"no {opcode}"
    sizes = [signature >> (4 * at) & 15 for at in range(6) if signature >> (4 * at) & 15]
    assert sizes[1:] == [operand.dtype.itemsize for operand in operands], f"{opcode}: bytes {sizes}"
    count = len(operands[0])
    padded = -(-count // 32) * 32
    given = [np.ascontiguousarray(np.resize(operand, padded)) for operand in operands]
    result = np.zeros(padded, UNSIGNED[sizes[0]])
    pointers = (ctypes.c_void_p * len(given))(*(array.ctypes.data for array in given))
    library.run_number(
        opcode.encode(), ctypes.c_uint64(padded), (ctypes.c_void_p * 1)(result.ctypes.data), pointers
    )  # fmt: skip
    return result[:count]
