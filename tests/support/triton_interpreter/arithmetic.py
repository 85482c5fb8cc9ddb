"""The operations of a program on its own values: what each number format gives on the GPU, not what numpy makes of it.

Arithmetic on bfloat16 and 8-bit floats is done in float32 and rounded once, which for + - * / and comparisons is the
correctly rounded result. A dot product multiplies exactly and accumulates in float32; float32 operands lose the bits
that tensor cores do not read, unless `input_precision="ieee"`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton.language as tl
from support.triton_interpreter.formats import Array, fused, is_held_as_bits, narrow, to_integer, to_tf32, widen
from support.triton_interpreter.values import Value
from triton._C.libtriton import ir
from triton.runtime import interpreter as stock

Operation = Callable[..., Array]


_NUMPY_TYPES = {
    "int1": np.dtype(np.bool_), **{f"fp{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "bf16": np.dtype(np.uint16), "fp8e4nv": np.dtype(np.uint8), "fp8e5": np.dtype(np.uint8),
}  # fmt: skip


def numpy_type(dtype: tl.dtype) -> np.dtype:
    """The type of the arrays that hold a type's values, or addresses for pointers.

    Raises:
        NotImplementedError: the format has no model.
    """
    scalar = dtype.scalar
    found = _NUMPY_TYPES.get(scalar.name)
    if found is None:
        if not scalar.is_ptr():
            raise NotImplementedError(f"the format {scalar} has no model")
        return np.dtype(np.uint64)
    return found


def _floating(operation: Operation) -> Callable[..., Value]:
    """A builder's method for an operation whose operands and result have one floating type."""

    def method(self: Any, first: Value, *others: Value) -> Value:
        dtype = first.dtype.scalar
        if is_held_as_bits(dtype):
            operands = [widen(value.data, value.dtype.scalar) for value in (first, *others)]
            return Value(narrow(operation(*operands), dtype), dtype)
        return Value(_kept(operation(first.data, *(other.data for other in others)), first.data.dtype), dtype)

    return method


def _kept(result: Array, dtype: np.dtype) -> Array:
    return result if result.dtype == dtype else result.astype(dtype)


def _compared(operation: Operation) -> Callable[..., Value]:
    """A builder's method for a comparison."""

    def method(self: Any, lhs: Value, rhs: Value) -> Value:
        dtype = lhs.dtype.scalar
        if is_held_as_bits(dtype):
            return Value(operation(widen(lhs.data, dtype), widen(rhs.data, dtype)), tl.int1)
        return Value(operation(lhs.data, rhs.data), tl.int1)

    return method


def _unordered(operation: Operation) -> Operation:
    return lambda lhs, rhs: operation(lhs, rhs) | (lhs != lhs) | (rhs != rhs)


def _ordered_not_equal(lhs: Array, rhs: Array) -> Array:
    found: Array = (lhs != rhs) & (lhs == lhs) & (rhs == rhs)
    return found


def _integral(operation: Operation) -> Callable[..., Value]:
    """A builder's method for an operation on integers of one type; on `int1` arithmetic is modulo 2."""

    def method(self: Any, lhs: Value, rhs: Value) -> Value:
        if lhs.data.dtype == np.bool_:
            wide = operation(lhs.data.astype(np.int8), rhs.data.astype(np.int8))
            return Value((wide & 1).astype(np.bool_), lhs.dtype)
        return Value(_kept(operation(lhs.data, rhs.data), lhs.data.dtype), lhs.dtype)

    return method


def _divided(lhs: Array, rhs: Array) -> Array:
    """Division that rounds towards zero, as the GPU's does."""
    quotient = np.floor_divide(lhs, rhs)
    if lhs.dtype.kind == "u":
        return quotient
    inexact = quotient * rhs != lhs
    found: Array = quotient + (inexact & ((lhs < 0) != (rhs < 0)))
    return found


def _shifted_right(lhs: Array, rhs: Array) -> Array:
    signed = np.dtype(f"i{lhs.dtype.itemsize}") if lhs.dtype.kind == "u" else lhs.dtype
    return np.right_shift(lhs.view(signed), rhs.astype(signed)).view(lhs.dtype)


def _logical_right(lhs: Array, rhs: Array) -> Array:
    unsigned = np.dtype(f"u{lhs.dtype.itemsize}") if lhs.dtype.kind == "i" else lhs.dtype
    return np.right_shift(lhs.view(unsigned), rhs.astype(unsigned)).view(lhs.dtype)


class Arithmetic(stock.InterpreterBuilder):
    """The interpreter's builder with arithmetic of the GPU's formats."""

    create_fadd, create_fsub = _floating(np.add), _floating(np.subtract)
    create_fmul, create_fdiv = _floating(np.multiply), _floating(np.divide)
    create_frem = _floating(np.fmod)
    create_precise_divf = create_approx_divf = create_fdiv
    create_minnumf, create_maxnumf = _floating(np.fmin), _floating(np.fmax)
    create_minimumf, create_maximumf = _floating(np.minimum), _floating(np.maximum)
    create_exp, create_exp2 = _floating(np.exp), _floating(np.exp2)
    create_log, create_log2 = _floating(np.log), _floating(np.log2)
    create_sin, create_cos = _floating(np.sin), _floating(np.cos)
    create_sqrt = create_precise_sqrt = _floating(np.sqrt)
    create_rsqrt = _floating(lambda x: 1 / np.sqrt(x))
    create_floor, create_ceil = _floating(np.floor), _floating(np.ceil)

    create_fcmpOLT, create_fcmpULT = _compared(np.less), _compared(_unordered(np.less))
    create_fcmpOGT, create_fcmpUGT = _compared(np.greater), _compared(_unordered(np.greater))
    create_fcmpOLE, create_fcmpULE = _compared(np.less_equal), _compared(_unordered(np.less_equal))
    create_fcmpOGE, create_fcmpUGE = _compared(np.greater_equal), _compared(_unordered(np.greater_equal))
    create_fcmpOEQ, create_fcmpUEQ = _compared(np.equal), _compared(_unordered(np.equal))
    create_fcmpONE, create_fcmpUNE = _compared(_ordered_not_equal), _compared(np.not_equal)
    create_icmpSLE = create_icmpULE = _compared(np.less_equal)
    create_icmpSLT = create_icmpULT = _compared(np.less)
    create_icmpSGE = create_icmpUGE = _compared(np.greater_equal)
    create_icmpSGT = create_icmpUGT = _compared(np.greater)
    create_icmpEQ, create_icmpNE = _compared(np.equal), _compared(np.not_equal)

    create_add, create_sub, create_mul = _integral(np.add), _integral(np.subtract), _integral(np.multiply)
    create_sdiv = create_udiv = create_idiv = _integral(_divided)
    create_srem = create_urem = _integral(np.fmod)
    create_and, create_or = _integral(np.bitwise_and), _integral(np.bitwise_or)
    create_xor, create_shl = _integral(np.bitwise_xor), _integral(np.left_shift)
    create_lshr, create_ashr = _integral(_logical_right), _integral(_shifted_right)
    create_minsi = create_minui = _integral(np.minimum)
    create_maxsi = create_maxui = _integral(np.maximum)

    def create_iabs(self, arg: Value) -> Value:
        return Value(np.abs(arg.data), arg.dtype)

    def create_fneg(self, arg: Value) -> Value:
        if is_held_as_bits(arg.dtype.scalar):
            sign = arg.data.dtype.type(1 << (8 * arg.data.dtype.itemsize - 1))
            return Value(arg.data ^ sign, arg.dtype)
        return Value(np.negative(arg.data), arg.dtype)

    def create_fabs(self, arg: Value) -> Value:
        if is_held_as_bits(arg.dtype.scalar):
            rest = arg.data.dtype.type((1 << (8 * arg.data.dtype.itemsize - 1)) - 1)
            return Value(arg.data & rest, arg.dtype)
        return Value(np.abs(arg.data), arg.dtype)

    def create_clampf(self, arg: Value, low: Value, high: Value, propagate_nans: Any) -> Value:
        if propagate_nans == ir.PROPAGATE_NAN.NONE:
            return self.create_minnumf(self.create_maxnumf(arg, low), high)
        return self.create_minimumf(self.create_maximumf(arg, low), high)

    def create_select(self, condition: Value, lhs: Value, rhs: Value) -> Value:
        chosen = np.where(condition.data, lhs.data, rhs.data)
        return Value(chosen, rhs.dtype, lhs.argument if lhs.argument is rhs.argument else None)

    def create_fma(self, x: Value, y: Value, z: Value) -> Value:
        dtype = z.dtype.scalar
        if is_held_as_bits(dtype) or dtype == tl.float16:
            operands = [widen(value.data, value.dtype.scalar) for value in (x, y, z)]
            return Value(narrow(fused(*operands), dtype), dtype)
        made: Value = super().create_fma(x, y, z)
        return Value(made.data, dtype)

    def cast_impl(self, src: Value, dst_type: tl.dtype) -> Value:
        return Value(converted(src.data, src.dtype.scalar, dst_type.scalar), dst_type.scalar)

    create_si_to_fp = create_ui_to_fp = create_fp_to_si = create_fp_to_ui = cast_impl
    create_fp_ext = create_fp_trunc = cast_impl

    def create_int_cast(self, src: Value, dst_type: tl.dtype, is_signed: bool) -> Value:
        return Value(src.data.astype(numpy_type(dst_type)), dst_type.scalar)

    def create_fp_to_fp(self, src: Value, dst_type: tl.dtype, rounding: Any) -> Value:
        toward_zero = rounding == ir.ROUNDING_MODE.RTZ
        return Value(converted(src.data, src.dtype.scalar, dst_type.scalar, toward_zero), dst_type.scalar)

    def create_dot(self, a: Value, b: Value, acc: Value, precision: Any, max_num_imprecise_acc: int) -> Value:
        kind = a.dtype.scalar
        if kind == tl.int8:
            # Sums of fewer than 2^39 products of bytes are exact in float64, which has a fast product.
            product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)).astype(np.int64)
            return Value((acc.data + product).astype(np.int32), tl.int32)
        if kind == tl.float64:
            return Value(np.matmul(a.data, b.data) + acc.data, tl.float64)
        left, right = widen(a.data, kind), widen(b.data, b.dtype.scalar)
        if kind == tl.float32 and precision == ir.INPUT_PRECISION.TF32:
            left, right = to_tf32(left), to_tf32(right)
        total = np.matmul(left, right) + acc.data.astype(np.float32, copy=False)
        return Value(total.astype(acc.data.dtype, copy=False), acc.dtype.scalar)

    # Shapes. numpy's own helpers cost more than the work on blocks of this size.

    def create_splat(self, ret_ty: tl.dtype, arg: Value) -> Value:
        return Value(_spread(arg.data, tuple(_sizes(ret_ty.shape))), arg.dtype, arg.argument)

    def create_unsplat(self, arg: Value) -> Value:
        return Value(arg.data.reshape(-1)[:1], arg.dtype, arg.argument)

    def create_broadcast(self, arg: Value, shape: Sequence[int]) -> Value:
        return Value(_spread(arg.data, tuple(_sizes(shape))), arg.dtype, arg.argument)

    def create_expand_dims(self, arg: Value, axis: int) -> Value:
        index = (slice(None),) * axis + (None,)
        return Value(arg.data[index], arg.dtype, arg.argument)

    def create_reshape(self, arg: Value, shape: Sequence[int], allow_reorder: bool) -> Value:
        return Value(arg.data.reshape(tuple(_sizes(shape))), arg.dtype, arg.argument)

    def create_trans(self, arg: Value, perm: Sequence[int]) -> Value:
        return Value(arg.data.transpose(tuple(_sizes(perm))), arg.dtype, arg.argument)

    def create_bitcast(self, src: Value, dst_type: tl.dtype) -> Value:
        data = src.data if src.data.flags.c_contiguous else np.ascontiguousarray(src.data)
        return Value(data.view(numpy_type(dst_type)), dst_type.scalar, src.argument)

    create_int_to_ptr = create_ptr_to_int = create_bitcast

    def create_addptr(self, ptr: Value, offset: Value) -> Value:
        size = max(1, ptr.get_element_ty().primitive_bitwidth // 8)
        return Value(ptr.data + (offset.data.astype(np.int64) * size).view(np.uint64), ptr.dtype, ptr.argument)

    # What has no effect where programs run one after another.

    def create_grid_dependency_wait(self) -> None:
        """The previous kernel has ended already."""

    def create_grid_dependency_launch_dependents(self) -> None:
        """The next kernel starts when this one has ended."""


def converted(data: Array, source: tl.dtype, target: tl.dtype, toward_zero: bool = False) -> Array:
    """Values of one scalar type as another; integers that become small floats pass through float32."""
    if source == target:
        return data
    if target.is_floating():
        if is_held_as_bits(target) or target == tl.float16:
            wide = widen(data, source)
            return narrow(wide, target, toward_zero)
        return widen(data, source).astype(numpy_type(target), copy=False)
    if source.is_floating() and target.is_int() and target != tl.int1:
        wide = widen(data, source) if is_held_as_bits(source) else data
        into = numpy_type(target)
        # The GPU converts to 16 bits at least and keeps the low byte.
        through = np.dtype(f"{into.kind}{max(2, into.itemsize)}")
        return to_integer(wide, through).astype(into)
    return data.astype(numpy_type(target))


def _spread(data: Array, shape: tuple[int, ...]) -> Array:
    """numpy.broadcast_to, whose checks cost more than the rest of most operations."""
    if data.size == 1:
        return np.ndarray(shape, data.dtype, np.ascontiguousarray(data), 0, (0,) * len(shape))
    if not data.flags.c_contiguous:
        return np.broadcast_to(data, shape)
    strides = [0 if have == 1 else stride for have, stride in zip(data.shape, data.strides, strict=True)]
    return np.ndarray(shape, data.dtype, data, 0, strides)


def _sizes(shape: Any) -> list[int]:
    return [int(getattr(size, "value", size)) for size in shape]
