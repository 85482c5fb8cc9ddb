"""What the language works out again for every value, remembered: a program here does little else.

These replace methods of the language while a kernel runs. They give what the methods give; tests run both.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import triton.language as tl
from triton.language.semantic import TritonSemantic

core = tl.core
_block_init = core.block_type.__init__
_types: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
_shapes: dict[tuple[int, ...], Any] = {}
_blocks: dict[tuple[str, tuple[int, ...]], Any] = {}
_WHOLE = frozenset({"int1", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))})
_KEPT = _WHOLE | {"fp32", "fp64"}
"""Types that two operands of one type keep."""
_KEPT_UNLESS_DIVIDED = _KEPT | {"fp16", "bf16"}
_SCALAR = (core.constexpr(1), core.tuple([]))


def block_type_init(self: Any, element_ty: tl.dtype, shape: Iterable[Any]) -> None:
    """`block_type.__init__`. Types of one shape share the tuple of their shape."""
    sizes = tuple([size.value if type(size) is core.constexpr else size for size in shape])
    facts = _types.get((element_ty.name, sizes))
    if facts is not None and getattr(element_ty, "address_space", 1) == 1:
        self.__dict__ = facts.copy()
        return
    _block_init(self, element_ty, list(sizes))
    self.shape = _shapes.setdefault(sizes, self.shape)
    self.sizes = sizes
    self.facts = (core.constexpr(math.prod(sizes)), core.tuple([core.constexpr(size) for size in sizes]))
    _types[element_ty.name, sizes] = self.__dict__.copy()


def tensor_init(self: Any, handle: Any, kind: Any) -> None:
    """`tensor.__init__`."""
    self.handle = handle
    self.type = kind
    self.dtype = kind.scalar
    self.numel, self.shape = kind.facts if kind.is_block() else _SCALAR


def dtype_equal(self: tl.dtype, other: Any) -> bool:
    """`dtype.__eq__`."""
    if self is other:
        return True
    if isinstance(other, core.constexpr):
        other = other.value
    return isinstance(other, core.dtype) and self.name == other.name


def _block(scalar: tl.dtype, sizes: tuple[int, ...]) -> Any:
    """The type of a block; one object for each, but for pointers."""
    if scalar.is_ptr():
        return core.block_type(scalar, list(sizes))
    found = _blocks.get((scalar.name, sizes))
    if found is None:
        found = _blocks[scalar.name, sizes] = core.block_type(scalar, list(sizes))
    return found


@functools.cache
def _merged(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that two shapes of one rank broadcast to, if they do."""
    if len(left) != len(right):
        return None
    sizes = tuple(max(pair) for pair in zip(left, right, strict=True))
    fits = all(size in (1, whole) for one in (left, right) for size, whole in zip(one, sizes, strict=True))
    return sizes if fits else None


class Semantic(TritonSemantic):
    """The rules of the language, with short ways for operands that agree already."""

    def __init__(self, builder: Any) -> None:
        super().__init__(builder)
        self._constants: dict[tuple[str, str], Any] = {}

    def broadcast_impl_value(self, lhs: Any, rhs: Any) -> Any:
        """Operands of one shape are returned as they are, scalars and axes of one element spread out."""
        left, right = lhs.type, rhs.type
        if not left.is_block():
            return (self._spread(lhs, right.sizes), rhs) if right.is_block() else (lhs, rhs)
        if not right.is_block():
            return lhs, self._spread(rhs, left.sizes)
        if left.shape is right.shape:
            return lhs, rhs
        sizes = _merged(left.sizes, right.sizes)
        if sizes is None:
            return super().broadcast_impl_value(lhs, rhs)
        return self._spread(lhs, sizes), self._spread(rhs, sizes)

    def _spread(self, value: Any, sizes: tuple[int, ...]) -> Any:
        kind = value.type
        if kind.is_block() and kind.sizes == sizes:
            return value
        return core.tensor(self.builder.create_broadcast(value.handle, sizes), _block(kind.scalar, sizes))

    def binary_op_type_checking_impl(
        self,
        lhs: Any,
        rhs: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> Any:
        """Operands of one type that needs no promotion are not cast, and numbers are made tensors once."""
        left, right = type(lhs), type(rhs)
        if left is core.tensor:
            name = lhs.dtype.name
            if right is core.tensor:
                if name == rhs.dtype.name:
                    if name in (_KEPT if div_or_mod else _KEPT_UNLESS_DIVIDED):
                        return self.broadcast_impl_value(lhs, rhs)
                elif allow_lhs_ptr and rhs.dtype.name in _WHOLE and lhs.dtype.is_ptr():
                    return self.broadcast_impl_value(lhs, rhs)
            elif arithmetic_check and _takes(name, right, rhs):
                return self.broadcast_impl_value(lhs, self._constant(rhs, lhs.dtype))
        elif right is core.tensor and arithmetic_check and _takes(rhs.dtype.name, left, lhs):
            return self.broadcast_impl_value(self._constant(lhs, rhs.dtype), rhs)
        return super().binary_op_type_checking_impl(
            lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod
        )

    def _constant(self, value: int | float, dtype: tl.dtype) -> Any:
        key = (dtype.name, repr(value))
        found = self._constants.get(key)
        if found is None:
            found = self._constants[key] = self.scalar_constant(value, dtype)
        return found


def _takes(name: str, kind: type, value: Any) -> bool:
    """Whether a number next to a tensor of a type becomes one of that type."""
    if name == "fp32":
        return kind is float or kind is int
    bits = {"int32": 31, "int64": 63}.get(name)
    return bits is not None and kind is int and -(1 << bits) <= value < 1 << bits


REPLACED: list[tuple[Any, str, Callable[..., Any]]] = [
    (core.block_type, "__init__", block_type_init),
    (core.tensor, "__init__", tensor_init),
    (core.dtype, "__eq__", dtype_equal),
    (core.dtype, "__hash__", lambda self: hash(self.name)),
]
"""Owner, name, and what takes its place."""
