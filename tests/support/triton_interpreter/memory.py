"""The memory that a kernel may touch: its tensor arguments. Every address of every access is checked against them."""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from support.triton_interpreter.arithmetic import Arithmetic, numpy_type
from support.triton_interpreter.formats import Array, narrow, widen
from support.triton_interpreter.races import Races, Region
from support.triton_interpreter.values import Value
from triton._C.libtriton import ir

_POISON = {"bf16": 0x7FC0, "fp8e4nv": 0x7F, "fp8e5": 0x7F}
"""NaN of the formats that are held as bits."""


SPINS = 2000
"""Atomic operations of a program after which it is taken to wait for another, which cannot run meanwhile."""


class Argument:
    """A tensor argument of a kernel: the bytes from its first element to its last."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cpu":
            raise ValueError(f"argument {name} is on {tensor.device}; the interpreter reads tensors of the CPU")
        self.name = name
        self.tensor = tensor
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        self.start: int = tensor.data_ptr()
        self.size: int = (last + 1) * tensor.element_size() if tensor.numel() else 0
        self.region = Region(self.start, self.size, tensor.element_size())
        memory = (ctypes.c_uint8 * self.size).from_address(self.start)
        self._bytes: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
        self._views: dict[np.dtype, Array] = {np.dtype(np.uint8): self._bytes}

    def view(self, dtype: np.dtype) -> Array:
        """Its bytes as elements of `dtype`; a rest that fills none is left out."""
        found = self._views.get(dtype)
        if found is None:
            whole = self.size // dtype.itemsize * dtype.itemsize
            found = self._views[dtype] = self._bytes[:whole].view(dtype)
        return found

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.tensor.shape))
        return f"{self.name} ({str(self.tensor.dtype).removeprefix('torch.')}[{shape}])"


def share_regions(arguments: Sequence[Argument]) -> None:
    """Give arguments that overlap one region, in which the history of their elements is kept."""
    merged: list[Argument] = []
    for argument in sorted(arguments, key=lambda one: one.start):
        end = max((one.start + one.size for one in merged), default=0)
        if merged and argument.start >= end:
            merged = []
        merged.append(argument)
        if len(merged) > 1:
            start = merged[0].start
            sizes = [number for one in merged for number in (one.tensor.element_size(), one.start - start)]
            region = Region(start, max(end, argument.start + argument.size) - start, math.gcd(*sizes))
            for one in merged:
                one.region = region


class Access:
    """The elements that one access touches: all of one argument, by index into its bytes seen as elements."""

    __slots__ = ("argument", "dtype", "index")

    def __init__(self, argument: Argument, dtype: np.dtype, index: NDArray[np.int64]) -> None:
        self.argument = argument
        self.dtype = dtype
        self.index = index


class Memory(Arithmetic):
    """The interpreter's builder with checked loads, stores and atomic operations."""

    arguments: Sequence[Argument] = ()
    races: Races
    kernel = ""
    _spins = 0

    def _located(self, ptr: Value, addresses: NDArray[np.uint64], what: str) -> list[tuple[Any, Access]]:
        """Where addresses lie: pairs of a selection of the addresses and the access that they make.

        Raises:
            IndexError: one lies outside its argument, or outside all where its origin is unknown; or is not aligned.
        """
        dtype = numpy_type(ptr.get_element_ty())
        low, high = int(addresses.min()), int(addresses.max())
        if ptr.argument is not None:
            return [(..., self._access(ptr.argument, addresses, low, high, dtype, what))]
        for argument in self.arguments:
            if argument.start <= low and high + dtype.itemsize <= argument.start + argument.size:
                return [(..., self._access(argument, addresses, low, high, dtype, what))]
        found: list[tuple[Any, Access]] = []
        left = np.ones(addresses.shape, dtype=np.bool_)
        for argument in self.arguments:
            end = argument.start + argument.size
            inside = left & (addresses >= argument.start) & (addresses + np.uint64(dtype.itemsize) <= end)
            if inside.any():
                chosen = addresses[inside]
                limits = int(chosen.min()), int(chosen.max())
                found.append((inside, self._access(argument, chosen, *limits, dtype, what)))
                left &= ~inside
        if left.any():
            names = ", ".join(map(str, self.arguments))
            raise IndexError(
                f"{self.place()}: {what} of {int(left.sum())} of {left.size} addresses outside every argument: {names}"
            )
        return found

    def _access(
        self, argument: Argument, addresses: NDArray[np.uint64], low: int, high: int, dtype: np.dtype, what: str
    ) -> Access:
        size = dtype.itemsize
        if low < argument.start or high + size > argument.start + argument.size:
            first = (low - argument.start) // size if low < argument.start else (high - argument.start) // size
            count = argument.size // size
            raise IndexError(
                f"{self.place()}: {what} of element {first} of {argument}, which has {count} of {size} bytes each; "
                f"mask the lanes beyond its end"
            )
        offsets = (addresses - np.uint64(argument.start)).view(np.int64)
        if size == 1:
            return Access(argument, dtype, offsets)
        if (offsets & (size - 1)).any() or argument.start & (size - 1):
            raise IndexError(f"{self.place()}: {what} of {size} bytes at an address of {argument} that is not aligned")
        return Access(argument, dtype, offsets >> (size.bit_length() - 1))

    def open(self, kernel: str, arguments: Sequence[Argument], races: Races) -> None:
        """A launch begins."""
        self.kernel, self.arguments, self.races = kernel, arguments, races

    def begin(self, program: tuple[int, int, int]) -> None:
        """A program begins."""
        self.grid_idx = program
        self._spins = 0
        self.races.begin(program)

    def place(self) -> str:
        """The kernel and the program that runs, for messages."""
        return f"{self.kernel}, program {tuple(map(int, self.grid_idx))}"

    # Loads and stores.

    def create_load(self, ptr: Value, cache_policy: Any, is_volatile: bool) -> Value:
        return self._load(ptr, None, None)

    def create_masked_load(
        self, ptrs: Value, mask: Value, other: Value | None, cache_policy: Any, is_volatile: bool
    ) -> Value:
        if mask.data.all():
            return self._load(ptrs, None, None)
        return self._load(ptrs, np.broadcast_to(mask.data, ptrs.data.shape), other)

    def _load(self, ptr: Value, mask: NDArray[np.bool_] | None, other: Value | None) -> Value:
        element = ptr.get_element_ty()
        dtype = numpy_type(element)
        if mask is None:
            found = self._read(ptr, ptr.data, dtype)
            return Value(found, element)
        result = _poison(ptr.data.shape, element) if other is None else _copied(other.data, ptr.data.shape, dtype)
        if mask.any():
            result[mask] = self._read(ptr, ptr.data[mask], dtype)
        return Value(result, element)

    def _read(self, ptr: Value, addresses: NDArray[np.uint64], dtype: np.dtype) -> Array:
        located = self._located(ptr, addresses, "load")
        if len(located) == 1:
            access = located[0][1]
            self.races.read(access)
            return access.argument.view(dtype).take(access.index)
        found = np.empty(addresses.shape, dtype=dtype)
        for chosen, access in located:
            self.races.read(access)
            found[chosen] = access.argument.view(dtype).take(access.index)
        return found

    def create_store(self, ptr: Value, val: Value, cache_policy: Any) -> None:
        self._store(ptr, val, None)

    def create_masked_store(self, ptrs: Value, value: Value, mask: Value, cache_policy: Any) -> None:
        if mask.data.all():
            self._store(ptrs, value, None)
        elif mask.data.any():
            self._store(ptrs, value, np.broadcast_to(mask.data, ptrs.data.shape))

    def _store(self, ptr: Value, value: Value, mask: NDArray[np.bool_] | None) -> None:
        dtype = numpy_type(ptr.get_element_ty())
        addresses = ptr.data if mask is None else ptr.data[mask]
        data = np.broadcast_to(value.data, ptr.data.shape)
        data = (data if mask is None else data[mask]).astype(dtype, copy=False)
        for chosen, access in self._located(ptr, addresses, "store"):
            part = data[chosen]
            view = access.argument.view(dtype)
            self.races.write(access)
            view[access.index] = part
            if access.index.size > 1 and not _same_bits(view.take(access.index), part):
                raise IndexError(
                    f"{self.place()}: lanes of one store give different values for one element of {access.argument}"
                )

    # Atomic operations. Programs run one after another, so what is left to model is the result and the order.

    def create_atomic_rmw(self, op: Any, ptr: Value, val: Value, mask: Value, sem: Any, scope: Any) -> Value:
        combine = _COMBINED.get(op)
        if combine is None:
            raise NotImplementedError(f"atomic operation {op}")
        dtype = val.dtype.scalar
        return self._atomic(ptr, mask.data, val, sem, lambda old, new: _combined(combine, old, new, dtype))

    def create_atomic_cas(self, ptr: Value, cmp: Value, val: Value, sem: Any, scope: Any) -> Value:
        pairs = np.empty(ptr.data.shape, dtype=[("expected", cmp.data.dtype), ("new", val.data.dtype)])
        pairs["expected"], pairs["new"] = cmp.data, val.data
        update = lambda old, pair: np.where(old == pair["expected"], pair["new"], old)  # noqa: E731
        return self._atomic(ptr, np.True_, Value(pairs, val.dtype), sem, update)

    def create_atomic_load(self, ptr: Value, mask: Value, sem: Any, scope: Any) -> Value:
        zeros = Value(np.zeros(ptr.data.shape, numpy_type(ptr.get_element_ty())), ptr.get_element_ty())
        return self._atomic(ptr, mask.data, zeros, sem, lambda old, new: old)

    def create_atomic_store(self, ptr: Value, val: Value, mask: Value, sem: Any, scope: Any) -> None:
        self._atomic(ptr, mask.data, val, sem, lambda old, new: new)

    def create_atomic_poll(self, ptr: Value, expected: Value, timeout_ns: Any, sem: Any, scope: Any) -> Value:
        found = self.create_atomic_load(ptr, Value(np.ones(ptr.data.shape, np.bool_), tl.int1), sem, scope)
        matched = found.data == expected.data
        if not matched.all():
            raise RuntimeError(
                f"{self.place()}: waits for a value that no program before it wrote; programs of one launch need not "
                f"run at the same time"
            )
        return Value(matched, tl.int1)

    def _atomic(self, ptr: Value, mask: Any, val: Value, sem: Any, update: Callable[..., Array]) -> Value:
        self._spins += 1
        if self._spins > SPINS:
            raise RuntimeError(f"{self.place()}: {SPINS} atomic operations in one program: does it wait in a loop?")
        element = ptr.get_element_ty()
        dtype = numpy_type(element)
        addresses = ptr.data.reshape(-1)
        values = np.broadcast_to(val.data, ptr.data.shape).reshape(-1)
        chosen = np.flatnonzero(np.broadcast_to(mask, ptr.data.shape))
        old = _poison((addresses.size,), element)
        release = sem in (ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)
        acquire = sem in (ir.MEM_SEMANTIC.ACQUIRE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE)
        if chosen.size:
            for part, access in self._located(ptr, addresses[chosen], "atomic access"):
                view, lanes = access.argument.view(dtype), chosen[part]
                self.races.atomic(access, release, acquire)
                distinct = np.unique(access.index).size == access.index.size
                steps = [slice(None)] if distinct else [slice(i, i + 1) for i in range(access.index.size)]
                for step in steps:  # lanes with one address take turns
                    index = access.index[step]
                    old[lanes[step]] = view[index]
                    view[index] = update(view[index], values[lanes[step]])
        return Value(old.reshape(ptr.data.shape), element)

    def create_barrier(self) -> None:
        self.races.barrier()


_COMBINED: dict[Any, Callable[..., Array]] = {
    ir.ATOMIC_OP.ADD: np.add, ir.ATOMIC_OP.FADD: np.add,
    ir.ATOMIC_OP.MIN: np.minimum, ir.ATOMIC_OP.UMIN: np.minimum,
    ir.ATOMIC_OP.MAX: np.maximum, ir.ATOMIC_OP.UMAX: np.maximum,
    ir.ATOMIC_OP.AND: np.bitwise_and, ir.ATOMIC_OP.OR: np.bitwise_or, ir.ATOMIC_OP.XOR: np.bitwise_xor,
    ir.ATOMIC_OP.XCHG: lambda old, new: new,
}  # fmt: skip


def _combined(combine: Callable[..., Array], old: Array, new: Array, dtype: tl.dtype) -> Array:
    if dtype.name == "bf16":
        return narrow(combine(widen(old, dtype), widen(new, dtype)), dtype)
    return combine(old, new)


def _poison(shape: tuple[int, ...], element: tl.dtype) -> Array:
    """What lanes that were not loaded hold: NaN, or for integers a pattern that is no small number."""
    dtype = numpy_type(element)
    if element.name in _POISON:
        return np.full(shape, _POISON[element.name], dtype)
    if dtype.kind == "f":
        return np.full(shape, np.nan, dtype)
    return np.frombuffer(b"\xa5" * 8, dtype)[0] * np.ones(shape, dtype) if dtype.kind != "b" else np.ones(shape, dtype)


def _copied(data: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    made = np.empty(shape, dtype)
    made[...] = data
    return made


def _same_bits(left: Array, right: Array) -> bool:
    if left.dtype.kind == "f":
        bits = np.dtype(f"u{left.dtype.itemsize}")
        return bool((left.view(bits) == np.ascontiguousarray(right).view(bits)).all())
    return bool((left == right).all())
