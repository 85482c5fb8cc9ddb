"""Checking a call read from a file against the schema of its op, before anything is run."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import fx
from torch._ops import OpOverload

from llmc.ir.show import DTYPES
from llmc.ir.tracing import aten

Kind = Literal["tensor", "size", "several"]
"""What a value is: a tensor, a symbolic size, or several tensors to be picked from."""

MAX_RANK = 8
MAX_ELEMENTS = 1 << 48
MAX_PICK = 4096

_SIZE = r"[A-Za-z0-9_ +*/().,-]{1,200}"
_TENSOR = re.compile(rf"(?:{'|'.join(DTYPES.values())})\[({_SIZE})?\]\Z", re.ASCII)
_SIZE_ONLY = re.compile(rf"{_SIZE}\Z", re.ASCII)


class SchemaMismatch(Exception):
    """A call does not fit its op; the message says which argument."""


def kind_of_type(text: str) -> Kind | None:
    """The kind of value that a type such as `f32[T, 8]`, `(f32[T], i64[T])` or `T` describes; None when malformed."""
    if text.startswith("("):
        inner = text[1:-1]
        parts = re.split(r"(?<=\]), ", inner) if inner else []
        return "several" if text.endswith(")") and all(_is_tensor_type(part) for part in parts) and parts else None
    if "[" in text:
        return "tensor" if _is_tensor_type(text) else None
    return "size" if _SIZE_ONLY.match(text) else None


def _is_tensor_type(text: str) -> bool:
    found = _TENSOR.match(text)
    if found is None:
        return False
    sizes = (found.group(1) or "").split(", ")
    elements = 1
    for size in sizes:
        elements *= int(size) if size.isdecimal() and len(size) < 16 else 1
    return len(sizes) <= MAX_RANK and elements <= MAX_ELEMENTS


def check_call(
    target: Callable[..., Any], args: Sequence[object], kwargs: Mapping[str, object], kinds: Mapping[fx.Node, Kind]
) -> Kind:
    """The kind of what `target` returns on these arguments; `kinds` are those of the nodes among them.

    Raises `SchemaMismatch` when an argument is missing, unknown, given twice, or of the wrong kind.
    """
    if not isinstance(target, OpOverload):
        return _check_function(target, args, kwargs, kinds)
    parameters = list(target._schema.arguments)
    positional = [parameter for parameter in parameters if not parameter.kwarg_only]
    if len(args) > len(positional):
        raise SchemaMismatch(f"{len(args)} positional arguments; expected at most {len(positional)}")
    given = dict(zip((parameter.name for parameter in positional), args, strict=False))
    known = {parameter.name for parameter in parameters}
    for name in kwargs:
        if name not in known or name in given:
            raise SchemaMismatch(f"argument {name!r:.40} is {'given twice' if name in given else 'unknown'}")
    given.update(kwargs)
    for parameter in parameters:
        if parameter.name not in given:
            if not parameter.has_default_value():
                raise SchemaMismatch(f"argument {parameter.name!r} is missing")
        elif not _fits(given[parameter.name], str(parameter.real_type), getattr(parameter, "N", None), kinds):
            value = str(given[parameter.name])[:40]
            raise SchemaMismatch(f"argument {parameter.name!r} is {value}; expected {parameter.real_type}")
    returns = [str(result.real_type) for result in target._schema.returns]
    if target is aten.sym_size.int:
        return "size"
    if len(returns) > 1 or returns[0] == "List[Tensor]":
        return "several"
    if returns != ["Tensor"]:
        raise SchemaMismatch(f"returns {returns}; expected tensors")
    return "tensor"


def _check_function(
    target: Callable[..., Any], args: Sequence[object], kwargs: Mapping[str, object], kinds: Mapping[fx.Node, Kind]
) -> Kind:
    if len(args) != 2 or kwargs:
        raise SchemaMismatch(f"{len(args)} arguments; expected two")
    first, second = args
    if target is operator.getitem:
        if not isinstance(first, fx.Node) or kinds[first] != "several":
            raise SchemaMismatch("picks from what is no result of several tensors")
        if not _is_int(second) or not 0 <= int(str(second)) < MAX_PICK:
            raise SchemaMismatch(f"picks {str(second)[:40]}; expected a number from 0 to {MAX_PICK - 1}")
        return "tensor"
    if not all(_is_size(value, kinds) for value in args):
        raise SchemaMismatch("calculates with what is no size")
    return "size"


def _fits(value: object, kind: str, fixed: int | None, kinds: Mapping[fx.Node, Kind]) -> bool:
    """Whether `value` may be passed for a parameter of type `kind`; `fixed` is its length when one number may stand."""
    if kind.startswith("Optional["):
        return value is None or _fits(value, kind[9:-1], fixed, kinds)
    if kind.startswith("List["):
        inner = kind[5:-1]
        if isinstance(value, list):
            return len(value) <= MAX_PICK and all(_fits(item, inner, None, kinds) for item in value)
        return fixed is not None and _fits(value, inner, None, kinds)
    if kind == "Tensor":
        return (isinstance(value, fx.Node) and kinds[value] == "tensor") or _is_number(value, kinds)
    return _SCALARS[kind](value, kinds) if kind in _SCALARS else False


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object, kinds: Mapping[fx.Node, Kind]) -> bool:
    return _is_int(value) or (isinstance(value, fx.Node) and kinds[value] == "size")


def _is_number(value: object, kinds: Mapping[fx.Node, Kind]) -> bool:
    return isinstance(value, (int, float)) or _is_size(value, kinds)


def _is(kind: type) -> Callable[[object, Mapping[fx.Node, Kind]], bool]:
    return lambda value, kinds: isinstance(value, kind)


_SCALARS: dict[str, Callable[[object, Mapping[fx.Node, Kind]], bool]] = {
    "int": _is_size,
    "SymInt": _is_size,
    "float": lambda value, kinds: isinstance(value, float) or _is_size(value, kinds),
    "number": _is_number,
    "bool": _is(bool),
    "str": _is(str),
    "ScalarType": _is(torch.dtype),
    "Device": _is(torch.device),
    "Layout": _is(torch.layout),
    "MemoryFormat": _is(torch.memory_format),
}
"""What may stand for a parameter of each scalar type of a schema."""
