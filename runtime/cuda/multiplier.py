"""Products of matrices on a stream of a GPU, by cuBLAS."""

import contextlib
import ctypes
import weakref
from ctypes import c_float

from llmc.errors import DeviceFailed
from llmc.runtime.cuda.cublas import Cublas
from llmc.runtime.cuda.cuda_context import CudaContext
from llmc.runtime.cuda.driver import Handle

WORKSPACE_BYTES = 32 << 20
"""Memory that products may use, as much as the library asks for on Hopper: splitting of sums needs room."""
TRANSPOSED, AS_STORED = 1, 0
"""Values of cublasOperation_t."""
TYPES = {"f32": 0, "f16": 2, "bf16": 14}
"""Values of cudaDataType_t."""
FLOAT_SUMS = 68
"""CUBLAS_COMPUTE_32F: products and sums in fp32, whose factors are not rounded to TF32 in the default mode."""
DEFAULT_ALGORITHM = -1
WHOLE_SUMS = 16
"""CUBLAS_DEFAULT_MATH with CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: parts of a sum meet in fp32 as well."""


class Multiplier:
    """Products on one stream of a GPU, in memory that is given to them: nothing is allocated while they run, so that
    they can be recorded, and the same product gives the same bits again."""

    def __init__(self, owner: object, cublas: Cublas, context: CudaContext, stream: Handle, workspace: int) -> None:
        """Begin. Raises DeviceFailed, and OutOfMemory.

        owner: what the library is used for; when it is gone, what was made here is given back. workspace: the address
        of `WORKSPACE_BYTES` of the GPU's memory.
        """
        self.cublas = cublas
        self._context = context
        self._handle = Handle()
        context.enter()
        cublas.call("cublasCreate_v2", ctypes.byref(self._handle))
        weakref.finalize(owner, _destroy, cublas, context, self._handle).atexit = False
        cublas.call("cublasSetStream_v2", self._handle, stream)  # which takes any workspace away
        cublas.call("cublasSetWorkspace_v2", self._handle, workspace, WORKSPACE_BYTES)
        cublas.call("cublasSetMathMode", self._handle, WHOLE_SUMS)
        self._one, self._zero = c_float(1.0), c_float(0.0)

    def multiply(
        self, weight: int, inputs: int, sums: int, *, dtype: str, rows: int, n: int, k: int, stride: int
    ) -> None:
        """sums [rows, n] = inputs [rows, k] times the transpose of weight [n, k].

        weight, inputs, sums: addresses of matrices whose rows follow one another; those of sums begin `stride` numbers
        (fp32) apart. dtype: of weight and inputs, f32, f16 or bf16.
        """
        # The library counts columns first: what is [rows, n] here is [n, rows] there.
        self._context.enter()
        kind = TYPES[dtype]
        self.cublas.call(
            "cublasGemmEx", self._handle, TRANSPOSED, AS_STORED, n, rows, k, ctypes.addressof(self._one),
            weight, kind, k, inputs, kind, k, ctypes.addressof(self._zero), sums, TYPES["f32"], stride,
            FLOAT_SUMS, DEFAULT_ALGORITHM,
        )  # fmt: skip


def _destroy(cublas: Cublas, context: CudaContext, handle: Handle) -> None:
    """After a kernel has failed, nothing can be given back: all goes with the context."""
    with contextlib.suppress(DeviceFailed):
        context.enter()
        cublas.call("cublasDestroy_v2", handle)
