"""Reductions and scans: whole blocks at a time, in a tree of the combining function as the GPU does.

A sum of bfloat16 rounds at each step, as it does there. Which elements meet first differs between the two, so a
combining function must be associative, up to rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton.language as tl
from support.triton_interpreter.arithmetic import numpy_type
from support.triton_interpreter.formats import Array, is_held_as_bits
from support.triton_interpreter.values import Value

Tensors = tuple[tl.tensor, ...]


def _combining(function: Any) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(function, "fn", function)
    return found


def _direct(name: str) -> set[str]:
    return {f"_{name}_combine_tie_break_left", f"_{name}_combine_tie_break_fast"}


def reduce(
    input: Any, axis: Any, combine_fn: Any, keep_dims: Any = False, _semantic: Any = None, _generator: Any = None
) -> Any:
    """`tl.reduce`: a tensor or a tuple of tensors, reduced along `axis`, or along all where it is None."""
    several = isinstance(input, tuple | tl.tuple)
    inputs: Tensors = tuple(input) if several else (input,)
    axis, keep = _plain(axis), bool(_plain(keep_dims))
    rank = len(inputs[0].shape)
    if axis is not None and axis < 0:
        axis += rank
    arrays = [value.handle.data for value in inputs]
    types = [value.dtype for value in inputs]
    if axis is None:
        arrays = [array.reshape(-1) for array in arrays]
    found = _reduced(arrays, types, axis or 0, combine_fn)
    if keep:
        sizes = [1 if axis in (None, at) else size for at, size in enumerate(inputs[0].handle.data.shape)]
        found = [array.reshape(sizes) for array in found]
    results = tuple(_tensor(array, dtype) for array, dtype in zip(found, types, strict=True))
    return results if several else results[0]


def associative_scan(
    input: Any, axis: Any, combine_fn: Any, reverse: Any = False, _semantic: Any = None, _generator: Any = None
) -> Any:
    """`tl.associative_scan`: all partial results along `axis`, from its end where `reverse`."""
    several = isinstance(input, tuple | tl.tuple)
    inputs: Tensors = tuple(input) if several else (input,)
    axis = _plain(axis) % len(inputs[0].shape)
    types = [value.dtype for value in inputs]
    arrays = [np.moveaxis(value.handle.data, axis, 0) for value in inputs]
    if _plain(reverse):
        arrays = [array[::-1] for array in arrays]
    arrays = [np.ascontiguousarray(array) for array in arrays]
    step = 1
    while step < len(arrays[0]):
        later = _combined(combine_fn, [np.roll(array, step, 0) for array in arrays], arrays, types)
        arrays = [np.concatenate([old[:step], new[step:]]) for old, new in zip(arrays, later, strict=True)]
        step *= 2
    if _plain(reverse):
        arrays = [array[::-1] for array in arrays]
    arrays = [np.ascontiguousarray(np.moveaxis(array, 0, axis)) for array in arrays]
    results = tuple(_tensor(array, dtype) for array, dtype in zip(arrays, types, strict=True))
    return results if several else results[0]


def _reduced(arrays: Sequence[Array], types: Sequence[tl.dtype], axis: int, combine_fn: Any) -> list[Array]:
    name = getattr(_combining(combine_fn), "__name__", "")
    standard = getattr(_combining(combine_fn), "__module__", "") == tl.standard.__name__
    if standard and not any(map(is_held_as_bits, types)):
        if name in _WHOLE:
            return [_WHOLE[name](arrays[0], axis)]
        if name in _direct("argmax"):
            return _extreme(arrays, axis, np.argmax, -np.inf)
        if name in _direct("argmin"):
            return _extreme(arrays, axis, np.argmin, np.inf)
    moved = [np.moveaxis(array, axis, 0) for array in arrays]
    while len(moved[0]) > 1:
        half = len(moved[0]) // 2
        rest = [array[2 * half :] for array in moved]
        # Neighbours meet, which keeps the order of operands for functions that do not commute.
        met = _combined(combine_fn, [a[0 : 2 * half : 2] for a in moved], [a[1 : 2 * half : 2] for a in moved], types)
        moved = [np.concatenate([new, old]) if len(old) else new for new, old in zip(met, rest, strict=True)]
    return [array[0] for array in moved]


_WHOLE: dict[str, Callable[[Array, int], Array]] = {
    "_sum_combine": lambda array, axis: np.sum(array, axis=axis, dtype=array.dtype),
    "_elementwise_max": lambda array, axis: np.fmax.reduce(array, axis=axis),
    "_elementwise_min": lambda array, axis: np.fmin.reduce(array, axis=axis),
    "_xor_combine": lambda array, axis: np.bitwise_xor.reduce(array, axis=axis),
    "_or_combine": lambda array, axis: np.bitwise_or.reduce(array, axis=axis),
}


def _extreme(arrays: Sequence[Array], axis: int, find: Callable[..., Any], worst: float) -> list[Array]:
    """The largest or smallest value and its index; of equal ones the leftmost, NaN last."""
    values, indices = arrays
    ranked = np.where(values != values, worst, values) if values.dtype.kind == "f" else values
    where = np.expand_dims(find(ranked, axis=axis), axis)
    return [np.take_along_axis(array, where, axis=axis).squeeze(axis) for array in (values, indices)]


def _combined(combine_fn: Any, left: Sequence[Array], right: Sequence[Array], types: Sequence[tl.dtype]) -> list[Array]:
    operands = [_tensor(array, dtype) for side in (left, right) for array, dtype in zip(side, types, strict=True)]
    found = _combining(combine_fn)(*operands) if not callable(combine_fn) else combine_fn(*operands)
    results = found if isinstance(found, tuple | tl.tuple) else (found,)
    shape = left[0].shape
    return [np.broadcast_to(result.handle.data, shape) for result in results]


def _tensor(array: Array, dtype: tl.dtype) -> tl.tensor:
    if array.ndim == 0:
        return tl.tensor(Value(array.reshape(1).astype(numpy_type(dtype), copy=False), dtype), dtype)
    kind = tl.block_type(dtype, list(array.shape))
    return tl.tensor(Value(array.astype(numpy_type(dtype), copy=False), dtype), kind)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, tl.constexpr) else value
