"""Each element of a value's last dimension as a sum of products: `lane 3 = x[3] · cos[3] - x[11] · sin[3]`.

Rotary embeddings are written in a dozen ways (halves, pairs, complex numbers, chunks, permutations, with the rest of
the head passed through), but all of them compute the same sums. So they are not matched but followed: from a chosen
`root` forward, data movement moves lanes, products with other values attach a factor to them, sums collect them.

A value that comes from the root is an integer array [P, 4, ...lanes]: P terms for each lane, and of each term the
fields SIGN (0: no term), SOURCE (lane of the root), FACTOR (index into `Lanes.factors`, -1 for none) and LANE (lane of
the factor). The lane dimensions are those after the root's leading dimensions; a complex value has one more, of 2.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from llmc.ir.signature import arguments

aten = torch.ops.aten

SIGN, SOURCE, FACTOR, LANE = range(4)

Terms = NDArray[np.int64]


class Untracked(Exception):
    """The value depends on the root in a way that is not a sum of products of lanes; the text says how."""


class Lanes:
    """Follows the last dimension of `root` through the graph."""

    def __init__(self, root: fx.Node) -> None:
        """Follow from `root`, a tensor [..., D] with D a number."""
        self.root = root
        self.lead = root.meta["val"].dim() - 1
        self.factors: list[tuple[fx.Node, str]] = []
        """What lanes were multiplied by: a node, and "" for it as it is, "real" or "imag" for a part of it."""
        self.arithmetic: list[fx.Node] = []
        """The sums and products on the way."""
        self._known: dict[fx.Node, Terms | None] = {}

    def of(self, node: object) -> Terms | None:
        """The lanes of `node`; None when it does not come from the root. Raises `Untracked`."""
        if node is self.root:
            size = self.root.meta["val"].shape[-1]
            lanes = np.arange(size)
            return np.stack([np.ones_like(lanes), lanes, np.full_like(lanes, -1), np.zeros_like(lanes)])[None]
        if not isinstance(node, fx.Node) or node.target not in FOLLOWED or node < self.root:
            return None
        if node not in self._known:
            terms = FOLLOWED[node.target](self, node, arguments(node))
            if terms is not None:
                self._check(node, terms)
            self._known[node] = terms
        return self._known[node]

    def factor(self, node: fx.Node, part: str = "") -> int:
        """The index of a factor, which is listed if it was not."""
        if (node, part) not in self.factors:
            self.factors.append((node, part))
        return self.factors.index((node, part))

    def _check(self, node: fx.Node, terms: Terms) -> None:
        if isinstance(node.meta["val"], (tuple, list)):
            return
        shape = tuple(node.meta["val"].shape)
        complex_part = (2,) if node.meta["val"].is_complex() else ()
        if not same_sizes(shape[: self.lead], self.root.meta["val"].shape[: self.lead]):
            raise Untracked(f"{node.name} changes the dimensions before the last one of {self.root.name}")
        if (*shape[self.lead :], *complex_part) != terms.shape[2:]:
            raise Untracked(f"{node.name} has a symbolic size in its last dimension")


def same_sizes(first: Any, second: Any) -> bool:  # noqa: ANN401 - sequences of ints and SymInts
    """Whether two shapes are equal as formulas, without adding a guard."""
    return [str(size) for size in first] == [str(size) for size in second]


Handler = Callable[[Lanes, fx.Node, dict[str, Any]], Terms | None]


def _moved(move: Callable[[Terms, fx.Node, dict[str, Any], int], Terms]) -> Handler:
    """A handler for data movement: `move` gets the lanes, and the number to add to a dimension to find it in them."""

    def handle(lanes: Lanes, node: fx.Node, args: dict[str, Any]) -> Terms | None:
        terms = lanes.of(node.args[0])
        return None if terms is None else move(terms, node, args, 2 - lanes.lead)

    return handle


def _axis(dim: int, shift: int, node: fx.Node) -> int:
    if dim + shift < 2:
        raise Untracked(f"{node.name} acts on a dimension before the last one")
    return dim + shift


def _negated(terms: Terms) -> Terms:
    result = terms.copy()
    result[:, SIGN] *= -1
    return result


def _slice(terms: Terms, node: fx.Node, args: dict[str, Any], shift: int) -> Terms:
    taken = [slice(None)] * terms.ndim
    taken[_axis(args["dim"], shift, node)] = slice(args["start"], args["end"], args["step"])
    return terms[tuple(taken)]


def _select(terms: Terms, node: fx.Node, args: dict[str, Any], shift: int) -> Terms:
    result: Terms = terms.take(args["index"], axis=_axis(args["dim"], shift, node))
    return result


def _unsqueeze(terms: Terms, node: fx.Node, args: dict[str, Any], shift: int) -> Terms:
    return np.expand_dims(terms, _axis(args["dim"], shift, node))


def _reshape(terms: Terms, node: fx.Node, args: dict[str, Any], shift: int) -> Terms:
    sizes = node.meta["val"].shape[2 - shift :]
    if not all(isinstance(size, int) for size in sizes) or np.prod([1, *sizes]) != terms[0, 0].size:
        raise Untracked(f"{node.name} merges lanes with the dimensions before")
    return terms.reshape(*terms.shape[:2], *sizes)


def _permute(terms: Terms, node: fx.Node, args: dict[str, Any], shift: int) -> Terms:
    lead = 2 - shift
    if list(args["dims"][:lead]) != list(range(lead)):
        raise Untracked(f"{node.name} permutes the dimensions before the last one")
    return terms.transpose(0, 1, *(dim + shift for dim in args["dims"][lead:]))


def _cast(terms: Terms, node: fx.Node, args: dict[str, Any], shift: int) -> Terms:
    if not node.meta["val"].is_floating_point():
        raise Untracked(f"{node.name} casts to {node.meta['val'].dtype}")
    return terms


def _split(lanes: Lanes, node: fx.Node, args: dict[str, Any]) -> Terms | None:
    split, index = node.args
    if not isinstance(split, fx.Node) or split.target is not aten.split_with_sizes.default:
        return None
    terms = lanes.of(split.args[0])
    if terms is None:
        return None
    cut = arguments(split)
    start = sum(cut["split_sizes"][:index])
    axis = _axis(cut["dim"], 2 - lanes.lead, node)
    return terms.take(range(start, start + cut["split_sizes"][index]), axis=axis)


def _cat(lanes: Lanes, node: fx.Node, args: dict[str, Any]) -> Terms | None:
    parts = [lanes.of(part) for part in args["tensors"]]
    found = [part for part in parts if part is not None]
    if not found:
        return None
    if len(found) < len(parts):
        raise Untracked(f"{node.name} joins lanes with another value")
    return np.concatenate(_padded(found), axis=_axis(args["dim"], 2 - lanes.lead, node))


def _padded(parts: list[Terms]) -> list[Terms]:
    """The same with empty terms added, so that all have as many."""
    most = max(len(part) for part in parts)
    return [np.pad(part, [(0, most - len(part))] + [(0, 0)] * (part.ndim - 1)) for part in parts]


def _complex(lanes: Lanes, node: fx.Node, args: dict[str, Any]) -> Terms | None:
    real, imag = lanes.of(args["real"]), lanes.of(args["imag"])
    if real is None or imag is None:
        return None
    return np.stack(_padded([real, imag]), axis=-1)


def _sum(sign: int) -> Handler:
    def handle(lanes: Lanes, node: fx.Node, args: dict[str, Any]) -> Terms | None:
        first, second = lanes.of(args["self"]), lanes.of(args["other"])
        if first is None and second is None:
            return None
        lanes.arithmetic.append(node)
        if first is None or second is None or args["alpha"] != 1 or first.shape[1:] != second.shape[1:]:
            raise Untracked(f"{node.name} adds another value")
        return np.concatenate([first, second if sign > 0 else _negated(second)])

    return handle


def _product(lanes: Lanes, node: fx.Node, args: dict[str, Any]) -> Terms | None:
    first, second = lanes.of(args["self"]), lanes.of(args["other"])
    if first is None and second is None:
        return None
    lanes.arithmetic.append(node)
    terms, factor = (first, args["other"]) if first is not None else (second, args["self"])
    if first is not None and second is not None:
        raise Untracked(f"{node.name} multiplies {lanes.root.name} by itself")
    if terms is None or not isinstance(factor, fx.Node) or (terms[:, FACTOR] >= 0).any():
        raise Untracked(f"{node.name} multiplies more than once, or by a number")
    if not factor.meta["val"].is_complex():
        if node.meta["val"].is_complex():
            raise Untracked(f"{node.name} multiplies a complex value by a real one")
        return _times(lanes, node, terms, factor, "")
    turned = np.stack([_negated(terms[..., 1]), terms[..., 0]], axis=-1)
    return np.concatenate([_times(lanes, node, terms, factor, "real"), _times(lanes, node, turned, factor, "imag")])


def _times(lanes: Lanes, node: fx.Node, terms: Terms, factor: fx.Node, part: str) -> Terms:
    """The lanes with a factor attached. Its lanes must be those of the last dimension, or one for all."""
    sizes = factor.meta["val"].shape[-1:]
    shape = terms.shape[2:-1] if part else terms.shape[2:]
    if len(shape) != 1 or not sizes or sizes[0] not in (1, *shape):
        raise Untracked(f"{node.name} multiplies lanes of {list(shape)} by {factor.name} {list(sizes)}")
    index = np.arange(shape[0]) if sizes[0] == shape[0] else np.zeros(shape, dtype=np.int64)
    result = terms.copy()
    result[:, FACTOR] = np.where(result[:, SIGN] == 0, -1, lanes.factor(factor, part))
    result[:, LANE] = index[:, None] if part else index
    return result


FOLLOWED: dict[object, Handler] = {
    aten.neg.default: _moved(lambda terms, *_: _negated(terms)),
    aten.slice.Tensor: _moved(_slice),
    aten.select.int: _moved(_select),
    aten.unsqueeze.default: _moved(_unsqueeze),
    aten.reshape.default: _moved(_reshape),
    aten.permute.default: _moved(_permute),
    aten._to_copy.default: _moved(_cast),
    aten.view_as_complex.default: _moved(lambda terms, *_: terms),
    aten.view_as_real.default: _moved(lambda terms, *_: terms),
    operator.getitem: _split,
    aten.cat.default: _cat,
    aten.complex.default: _complex,
    aten.add.Tensor: _sum(1),
    aten.sub.Tensor: _sum(-1),
    aten.mul.Tensor: _product,
}
"""The ops that lanes are followed through."""

MOVES = frozenset(FOLLOWED) - {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor}
"""Those of them that compute nothing."""
