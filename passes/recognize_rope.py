"""Rotary position embeddings: whatever way they are spelled, one `llmc.rope`.

A sum of two products, or a complex product, starts a search: around it, the largest value whose lanes (see
`llmc.passes.lanes`) are `a · cos - b · sin` and `b · cos + a · sin` for pairs (a, b) of lanes of one tensor is a
rotation. How the pairs lie in the tensor and in the result (as halves or as neighbours), whether the tables have one
lane for each pair or for each element, and whether further lanes pass through, is read off the lanes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import fx

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter
from llmc.passes.lanes import FACTOR, LANE, MOVES, SIGN, SOURCE, Lanes, Terms, Untracked, same_sizes

aten = torch.ops.aten

_REACH = 10
"""Steps to look back for the rotated tensor and ahead for the result; the longest known spelling needs 6."""


@dataclass(frozen=True)
class RecognizeRope:
    """Name rotary embeddings: halves or pairs, real or complex, partial, permuted, with full or half-sized tables."""

    name: ClassVar[str] = "recognize_rope"

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Recognise all rotations of `model`; return how many."""
        found = 0
        for node in model.calls(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor):
            if node.users and _may_rotate(node):
                found += self._recognize(node, rewriter)
        return found

    def _recognize(self, seed: fx.Node, rewriter: Rewriter) -> int:
        reasons: list[str] = []
        for result, source, cast in _regions(seed):
            lanes = Lanes(source)
            try:
                rotation = _read(lanes, result)
            except Untracked:
                continue
            except _NotRotation as near_miss:
                reasons.append(str(near_miss))
                continue
            tables, tabulate = _tables(lanes.factors)
            build = _builder(rotation, tabulate, result.meta["val"].dtype if cast else None)
            return int(rewriter.replace(self.name, [source, *tables], [result], build))
        if reasons:
            rewriter.refuse(self.name, seed, reasons[-1])
        return 0


class _NotRotation(Exception):
    """Lanes are mixed in pairs, but not as a rotation does; the text says why."""


@dataclass(frozen=True)
class _Column:
    """The lanes of a table that one element of each pair is multiplied by: start, start + step, ..."""

    factor: int
    start: int
    step: int


@dataclass(frozen=True)
class _Rotation:
    """How the lanes of a result come from those of the rotated tensor."""

    size: int
    """Lanes that are rotated; the others pass through."""
    pairs_in: bool
    """Whether a pair is two neighbours of the tensor, rather than one lane of each half."""
    pairs_out: bool
    cos: tuple[_Column, _Column]
    """Of the first elements of the pairs and of the second ones."""
    sin: tuple[_Column, _Column]
    backward: bool
    """Whether the sine has the other sign."""


def _may_rotate(node: fx.Node) -> bool:
    """Whether `node` is a sum of two products of tensors, or a complex product."""
    operands = node.args[:2]
    if node.target is aten.mul.Tensor:
        value = node.meta["val"]
        return isinstance(value, torch.Tensor) and value.is_complex() and all(isinstance(x, fx.Node) for x in operands)
    return all(isinstance(x, fx.Node) and _is_product(x) for x in operands)


def _is_product(node: fx.Node) -> bool:
    if node.target is aten._to_copy.default and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.target is aten.mul.Tensor and isinstance(node.args[1], fx.Node)


def _regions(seed: fx.Node) -> Iterator[tuple[fx.Node, fx.Node, bool]]:
    """Candidates around `seed`: the result, the rotated tensor, and whether to cast the latter; the best ones first.

    That is the farthest result and the nearest tensor, without a cast if there is such a pair.
    """
    results = list(reversed(list(_ahead(seed))))
    sources = [node for node in _behind(seed) if _is_real(node)]
    for cast in (False, True):
        for result in results:
            for source in sources:
                if _fits(result.meta["val"], source.meta["val"], cast):
                    yield result, source, cast


def _fits(result: torch.Tensor, source: torch.Tensor, cast: bool) -> bool:
    return same_sizes(result.shape, source.shape) and (result.dtype != source.dtype) == cast


def _is_real(node: fx.Node) -> bool:
    value = node.meta["val"]
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dim() > 0
        and isinstance(value.shape[-1], int)
    )


def _ahead(node: fx.Node) -> Iterator[fx.Node]:
    """`node` and what data movement alone makes of it, while that has one user."""
    for _ in range(_REACH):
        if _is_real(node):
            yield node
        users = list(node.users)
        if len(users) != 1 or users[0].target not in MOVES:
            return
        node = users[0]


def _behind(seed: fx.Node) -> Iterator[fx.Node]:
    """What the products of `seed` are products of, and what that is moved from, the nearest first."""
    products = [seed] if seed.target is aten.mul.Tensor else seed.all_input_nodes
    level = [node for product in products for node in product.all_input_nodes]
    seen: set[fx.Node] = set()
    for _ in range(_REACH):
        level = [node for node in dict.fromkeys(level) if node not in seen]
        seen.update(level)
        yield from level
        level = [source for node in level if node.target in _BEHIND for source in node.all_input_nodes]


_BEHIND = MOVES | {aten.mul.Tensor, aten.split_with_sizes.default}


def _read(lanes: Lanes, result: fx.Node) -> _Rotation:
    """The rotation that `result` is. Raises `_NotRotation`, or `Untracked` when it is nothing like one."""
    terms = lanes.of(result)
    if terms is None or terms.ndim != 3:
        raise Untracked(f"{result.name} does not come from {lanes.root.name}")
    terms = np.take_along_axis(terms, np.argsort(terms[:, SIGN : SIGN + 1] == 0, axis=0, kind="stable"), axis=0)
    counts = (terms[:, SIGN] != 0).sum(axis=0)
    size = int((counts == 2).sum())
    mixed = len(terms) > 1 and bool((terms[0, SOURCE] != terms[1, SOURCE])[counts == 2].any())
    if not size or not mixed:
        raise Untracked(f"{result.name} does not mix lanes")
    if (counts[:size] != 2).any() or (terms[0, SIGN:LANE, size:] != _untouched(terms, size)).any():
        raise _NotRotation(f"the {size} rotated lanes of {result.name} are not its first ones, or the rest is changed")
    if size % 2 or (terms[:2, FACTOR, :size] < 0).any():
        raise _NotRotation(f"{size} lanes of {result.name} are sums of two, not all of them of products")
    used = [user for node in lanes.arithmetic for user in node.users if node is not result]
    outside = [user for user in used if lanes.of(user) is None or user > result]
    if outside:
        raise _NotRotation(f"a product or sum of the rotation is also used by {outside[0].name}")
    for pairs_in, pairs_out in ((False, False), (True, True), (True, False), (False, True)):
        rotation = _as_rotation(terms[:2, :, :size], pairs_in, pairs_out)
        if rotation is not None:
            return rotation
    raise _NotRotation(f"{result.name} mixes lanes of {lanes.root.name} in pairs, but not as a rotation does")


def _untouched(terms: Terms, size: int) -> Terms:
    """Fields SIGN, SOURCE and FACTOR of lanes from `size` on that pass through."""
    rest = np.arange(size, terms.shape[2])
    return np.stack([np.ones_like(rest), rest, np.full_like(rest, -1)])


def _places(size: int, pairs: bool) -> tuple[Terms, Terms]:
    """The lanes of the first and of the second elements of all pairs."""
    each = np.arange(size // 2)
    return (2 * each, 2 * each + 1) if pairs else (each, each + size // 2)


def _as_rotation(terms: Terms, pairs_in: bool, pairs_out: bool) -> _Rotation | None:
    size = terms.shape[2]
    a, b = _places(size, pairs_in)
    first, second = _places(size, pairs_out)
    top, bottom = _with_sources(terms[:, :, first], a, b), _with_sources(terms[:, :, second], b, a)
    if top is None or bottom is None:
        return None
    (a_cos, b_sin), (b_cos, a_sin) = top, bottom
    sign = int(a_sin[SIGN, 0])
    if (a_cos[SIGN] != 1).any() or (b_cos[SIGN] != 1).any():
        return None
    if (a_sin[SIGN] != sign).any() or (b_sin[SIGN] != -sign).any():
        return None
    columns = [_column(part) for part in (a_cos, b_cos, a_sin, b_sin)]
    cos_first, cos_second, sin_second, sin_first = columns
    if cos_first is None or cos_second is None or sin_first is None or sin_second is None:
        return None
    return _Rotation(size, pairs_in, pairs_out, (cos_first, cos_second), (sin_first, sin_second), sign < 0)


def _with_sources(terms: Terms, kept: Terms, turned: Terms) -> tuple[Terms, Terms] | None:
    """Of lanes with two terms each, [2, 4, n], the terms whose source is `kept` and those whose source is `turned`."""
    swapped = terms[0, SOURCE] != kept
    one, other = np.where(swapped, terms[1], terms[0]), np.where(swapped, terms[0], terms[1])
    if (one[SOURCE] != kept).any() or (other[SOURCE] != turned).any():
        return None
    return one, other


def _column(terms: Terms) -> _Column | None:
    """The lanes of the table in [4, n] terms; None unless they are of one table and equally spaced."""
    factor, lanes = int(terms[FACTOR, 0]), terms[LANE]
    step = int(lanes[1] - lanes[0]) if len(lanes) > 1 else 1
    if (terms[FACTOR] != factor).any() or step < 1 or (np.diff(lanes) != step).any():
        return None
    return _Column(factor, int(lanes[0]), step)


Tabulate = Callable[[Sequence[Any]], list[Any]]


def _tables(factors: Sequence[tuple[fx.Node, str]]) -> tuple[list[fx.Node], Tabulate]:
    """The nodes that the factors are computed from, and how to compute the factors from their values.

    Complex factors are taken apart into cosine and sine, so that nothing complex is left.
    """
    nodes: list[fx.Node] = []
    recipes: list[tuple[list[fx.Node], Callable[..., Any]]] = []
    for node, part in factors:
        inputs, recipe = _part_of(node, part) if part else ([node], lambda value: value)
        nodes.extend(inputs)
        recipes.append((inputs, recipe))
    nodes = list(dict.fromkeys(nodes))

    def tabulate(values: Sequence[Any]) -> list[Any]:
        value = dict(zip(nodes, values, strict=True))
        return [recipe(*(value[node] for node in inputs)) for inputs, recipe in recipes]

    return nodes, tabulate


_ON_EACH_PART = frozenset({aten.unsqueeze.default, aten.slice.Tensor, aten.permute.default, aten.mul.Tensor})


def _part_of(node: fx.Node, part: str) -> tuple[list[fx.Node], Callable[..., Any]]:
    """How to compute the real or imaginary part of a complex `node`: from real inputs if it is made of such."""
    source = node.args[0] if node.args else None
    if node.target is aten.polar.default:
        turn = aten.cos.default if part == "real" else aten.sin.default
        return list(node.args), lambda length, angle: aten.mul.Tensor(turn(angle), length)  # type: ignore[arg-type]
    if node.target is aten.complex.default:
        chosen = node.args[0] if part == "real" else node.args[1]
        return [chosen], lambda value: value  # type: ignore[list-item]
    if node.target is aten.view_as_complex.default:
        return [source], lambda value: aten.select.int(value, -1, 0 if part == "real" else 1)  # type: ignore[list-item]
    if node.target in _ON_EACH_PART and isinstance(source, fx.Node) and node.all_input_nodes == [source]:
        inputs, recipe = _part_of(source, part)
        target: Any = node.target
        rest = node.args[1:]
        return inputs, lambda *values: target(recipe(*values), *rest, **node.kwargs)
    index = 0 if part == "real" else 1
    return [node], lambda value: aten.select.int(aten.view_as_real.default(value), -1, index)


def _builder(rotation: _Rotation, tabulate: Tabulate, dtype: torch.dtype | None) -> Callable[..., Any]:
    """The function of the tensor and the tables that computes `rotation`, in `dtype` if one is given."""
    interleaved = rotation.pairs_out

    def build(x: Any, *values: Any) -> Any:  # noqa: ANN401 - traced values
        tables = tabulate(values)
        cos = _table(tables, rotation.cos, rotation.size, interleaved)
        sin = _table(tables, rotation.sin, rotation.size, interleaved)
        if rotation.backward:
            sin = -sin
        if dtype is not None:
            x = x.to(dtype)
        if rotation.pairs_in != rotation.pairs_out:
            x = _rearranged(x, rotation.size, rotation.pairs_in)
        return torch.ops.llmc.rope.default(x, cos, sin, interleaved)

    return build


def _table(tables: Sequence[Any], columns: tuple[_Column, _Column], size: int, interleaved: bool) -> Any:  # noqa: ANN401
    """The table with a lane for each element, from the columns of the first and the second elements of the pairs."""
    first = columns[0]
    expected = (_Column(first.factor, 0, 2), _Column(first.factor, 1, 2))
    if not interleaved:
        expected = (_Column(first.factor, 0, 1), _Column(first.factor, size // 2, 1))
    if columns == expected and tables[first.factor].shape[-1] == size:
        return tables[first.factor]
    parts = [_taken(tables[column.factor], column, size // 2) for column in columns]
    if not interleaved:
        return torch.cat(parts, dim=-1)
    pairs = torch.cat([part.unsqueeze(-1) for part in parts], dim=-1)
    return pairs.reshape(*_sizes_before(pairs, 2), size)


def _taken(table: Any, column: _Column, count: int) -> Any:  # noqa: ANN401
    whole = table.shape[-1]
    if column == _Column(column.factor, 0, 1) and whole == count:
        return table
    end = min(column.start + count * column.step, whole)
    return aten.slice.Tensor(table, -1, column.start, end, column.step)


def _rearranged(x: Any, size: int, pairs: bool) -> Any:  # noqa: ANN401
    """The first `size` lanes put from pairs to halves, or from halves to pairs."""
    whole = x.shape[-1]
    rotated = x if whole == size else aten.slice.Tensor(x, -1, 0, size)
    sizes = [size // 2, 2] if pairs else [2, size // 2]
    before = _sizes_before(rotated, 1)
    rotated = rotated.reshape(*before, *sizes).transpose(-1, -2).reshape(*before, size)
    return rotated if whole == size else torch.cat([rotated, aten.slice.Tensor(x, -1, size, whole)], dim=-1)


def _sizes_before(value: Any, last: int) -> list[Any]:  # noqa: ANN401
    """The sizes before the `last` dimensions as a reshape is told them: -1 for the one that is symbolic."""
    sizes = list(value.val.shape[:-last])
    symbolic = sum(not isinstance(size, int) for size in sizes)
    return [size if isinstance(size, int) else -1 for size in sizes] if symbolic < 2 else value.shape[:-last]
