"""Tokens chosen by native code: what `llmc.runtime.sample` does in numpy, in one call of a program's library.

Both compute in float64 and draw by the same number, so they choose the same token, but for sums that differ in their
last bit and a number that falls just there.
"""

import ctypes

import numpy as np
import numpy.typing as npt

from llmc.errors import ArtifactRejected
from llmc.runtime.memory import address
from llmc.runtime.sample import Row, SamplingParams

MAX_SCRATCH = 1 << 32


class _Sampling(ctypes.Structure):
    """`llmc::Sampling`: what `SamplingParams` says of choosing, as C sees it."""

    _fields_ = [
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        ("top_k", ctypes.c_int64),
    ]


class NativeChoice:
    """Chooses tokens; implements `llmc.runtime.sample.Choose`. Not for use by several threads at a time."""

    def __init__(self, library: ctypes.CDLL, vocabulary: int) -> None:
        """`library` exports `llmc_sample`; logits have `vocabulary` numbers. Raises ArtifactRejected."""
        self._function = library.llmc_sample
        self._function.restype = ctypes.c_int64
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._function.argtypes = [pointer, number, pointer, pointer, ctypes.c_double, pointer]
        library.llmc_sample_scratch.restype = number
        library.llmc_sample_scratch.argtypes = [number]
        size = library.llmc_sample_scratch(vocabulary)
        if not 0 < size <= MAX_SCRATCH:
            raise ArtifactRejected(f"program: its sampler asks for {size} bytes; build the artifact again")
        self._vocabulary = vocabulary
        self._scratch = np.empty(size // 8 + 1)  # takes up room once it is touched
        self._params: SamplingParams | None = None
        self._how = _Sampling()

    def __call__(self, logits: Row, params: SamplingParams, seen: npt.NDArray[np.bool_], uniform: float) -> int:
        """The next token given its [V] logits, or -1 if they are not numbers; `seen` is empty for no penalty."""
        assert logits.dtype == np.float32 and logits.flags.c_contiguous and logits.size == self._vocabulary
        assert seen.size in (0, self._vocabulary)
        if params is not self._params:
            how = (params.temperature, params.top_p, params.min_p, params.repetition_penalty, params.top_k)
            self._params, self._how = params, _Sampling(*how)
        marks = address(seen) if seen.size else None
        where, how_at = address(logits), ctypes.addressof(self._how)
        token: int = self._function(where, self._vocabulary, how_at, marks, uniform, address(self._scratch))
        return token
