"""How one weight is packed: the choice of its format, the nodes that pack it, what is lost, and its recipe."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from llmc.errors import BadInput
from llmc.ir.infer import fake_mode
from llmc.ir.model import Model
from llmc.ir.packed_blocks import STORED_FORMATS, pack_blocks
from llmc.ir.packed_formats import FLOAT_FORMATS, FORMATS, pack, unpack
from llmc.ir.weights import Expr, Source, Weight

aten = torch.ops.aten
dialect = torch.ops.llmc

Storage = Literal["float", "fp8", "int8", "int6", "int4", "int4:64", "int4:128", "keep"]
"""What weights are stored as: the dtype they have, what they are rounded to, or what the file holds."""

ROUNDED: Mapping[Storage, str] = {
    "fp8": "fp8",
    "int8": "int8",
    "int6": "int6",
    "int4": "int4",
    "int4:64": "int4g64",
    "int4:128": "int4g128",
}
"""The packed format of what weights are rounded to."""

SAMPLE_ROWS = 512
"""Rows of a weight whose rounding is measured."""


class StoredRows(Protocol):
    """A weight as a file stores it."""

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """Stored bytes, [rows, bytes of a row]."""


@runtime_checkable
class StoresBlocks(Protocol):
    """A checkpoint reader whose tensors can also be had in the blocks in which they are stored."""

    def stored_type(self, key: str) -> str:
        """The type in which a tensor is stored, such as `Q4_K`; types joined by + when it is made of several."""

    def blocks(self, key: str) -> StoredRows | None:
        """What is stored, rows in the tensor's order; None when the tensor is not just rows of the file."""


@dataclass(frozen=True)
class Packing:
    """How one weight is packed."""

    weight: fx.Node
    """The placeholder of the weight: [N, K], or experts in any layout."""
    format: str
    blocks: fx.Node | None = None
    """The placeholder of the stored blocks that are repacked; None when the weight's values are packed."""
    stored: str = ""
    """ggml's type of these blocks."""

    def parts(self, of: Mapping[fx.Node, Any], arrange: Callable[[Any], Any] | None = None) -> list[Any]:
        """Trace the packing of the values `of` the placeholders; `arrange` brings experts to the layout of the op."""
        if self.blocks is not None:
            packed = dialect.pack_blocks.default(of[self.blocks], self.stored, int(self.weight.meta["val"].shape[-1]))
        else:
            value = of[self.weight]
            packed = dialect.pack_weight.default(arrange(value) if arrange else value, self.format)
        return [packed[place] for place in range(len(FORMATS[self.format].parts))]

    def inputs(self) -> list[fx.Node]:
        """The placeholders that `parts` needs the values of, and those that the rewrite replaces."""
        return [self.weight] if self.blocks is None else [self.weight, self.blocks]


def choose_packing(model: Model, weight: fx.Node, storage: Storage, repack: bool = True) -> Packing:
    """How `weight` is packed as `storage`; stored blocks are only taken over when `repack` allows it."""
    if storage in ROUNDED:
        return Packing(weight, ROUNDED[storage])
    types = stored_types(model.weights[weight.name])
    own = FLOAT_FORMATS[weight.meta["val"].dtype]
    if storage == "float" or not types:
        return Packing(weight, own)
    if types <= {"F16"}:
        return Packing(weight, "f16")
    if types <= {"F16", "BF16", "F32", "F64"}:
        return Packing(weight, own)
    (stored,) = types if len(types) == 1 else ("",)
    blocks = _blocks(model.weights[weight.name]) if repack and stored in STORED_FORMATS else None
    if blocks is None:
        return Packing(weight, "int8")
    placeholder = model.add_weight(f"{weight.name}_blocks", blocks, blocks.fake(fake_mode(model.graph)))
    return Packing(weight, STORED_FORMATS[stored], placeholder, stored)


def stored_types(recipe: Weight) -> set[str]:
    """The types in which the checkpoint stores what `recipe` reads; empty when it says nothing of types."""
    sources = [source for source in recipe.sources() if isinstance(source.reader, StoresBlocks)]
    return {name for source in sources for name in _stored(source).split("+")}


def _stored(source: Source) -> str:
    assert isinstance(source.reader, StoresBlocks)
    return source.reader.stored_type(source.key)


@dataclass(frozen=True)
class _BlockReader:
    """A reader of the stored blocks of another reader's tensors."""

    reader: StoresBlocks

    def names(self) -> list[str]:
        """None: its sources are made by key."""
        return []

    def key(self, name: str) -> str:
        """`name` itself."""
        return name

    def shape(self, key: str) -> tuple[int, ...]:
        """Rows and bytes of a row."""
        return tuple(self._data(key).shape)

    def dtype(self, key: str) -> torch.dtype:
        """uint8."""
        return torch.uint8

    def read(self, key: str) -> torch.Tensor:
        """A copy of the bytes."""
        return torch.from_numpy(np.array(self._data(key)))

    def _data(self, key: str) -> npt.NDArray[np.uint8]:
        found = self.reader.blocks(key)
        if found is None:
            raise BadInput(f"{key}: is not stored as rows of blocks")
        return found.data


def _blocks(recipe: Weight) -> Weight | None:
    """The recipe of the stored blocks of a matrix; None unless it is rows of the file, one below the other."""
    if isinstance(recipe, Source):
        found = recipe.reader.blocks(recipe.key) if isinstance(recipe.reader, StoresBlocks) else None
        if found is None or len(recipe.shape) != 2 or not isinstance(recipe.reader, StoresBlocks):
            return None
        return Source(_BlockReader(recipe.reader), recipe.key, tuple(found.data.shape), torch.uint8)
    if isinstance(recipe, Expr) and recipe.target is aten._to_copy.default and recipe.dtype in FLOAT_FORMATS:
        return _blocks(recipe.args[0])
    if isinstance(recipe, Expr) and recipe.target is aten.cat.default and recipe.args[1:] in ((), (0,)):
        parts = [_blocks(part) for part in recipe.args[0]] if not recipe.kwargs.get("dim") else [None]
        known = [part for part in parts if part is not None]
        return Expr.of(aten.cat.default, known, 0) if len(known) == len(parts) else None
    return None


def rounding_error(model: Model, packing: Packing) -> float:
    """The RMS of what packing changes in a sample of rows of the weight, relative to the RMS of these rows."""
    recipe = model.weights[packing.weight.name]
    rows = recipe.evaluate().flatten(0, -2)
    some = torch.arange(0, rows.shape[0], max(1, rows.shape[0] // SAMPLE_ROWS))
    sample = rows[some].float()
    if packing.blocks is None:
        parts = pack(sample, packing.format)
    else:
        blocks = model.weights[packing.blocks.name].evaluate()
        parts = pack_blocks(blocks[some], packing.stored, sample.shape[1])
    difference = unpack(parts, packing.format, *sample.shape).sub_(sample)
    return (difference.square().mean() / sample.square().mean().clamp(min=1e-30)).sqrt().item()


def make_recipes(model: Model) -> None:
    """Make weights of everything that is packed in the graph, however large padding has made it."""
    mode = fake_mode(model.graph)
    known: dict[Weight, fx.Node] = {}
    for node in model.calls(dialect.pack_weight.default, dialect.pack_blocks.default):
        whole = _recipe(model, node)
        stored = node.target is dialect.pack_blocks.default
        format = STORED_FORMATS[str(node.args[1])] if stored else str(node.args[1])
        stem = next(_placeholders(node)).name.removesuffix("_blocks")
        for part in sorted(node.users, key=lambda user: int(str(user.args[1]))):
            value, place = part.meta["val"], int(str(part.args[1]))
            recipe = Expr(whole.target, whole.args, {}, tuple(value.shape), value.dtype, output=place)
            if recipe not in known:
                name = f"{stem}_{list(FORMATS[format].parts)[place]}"
                known[recipe] = model.add_weight(name, recipe, recipe.fake(mode))
            part.replace_all_uses_with(known[recipe])
    model.graph.eliminate_dead_code()
    model.drop_unused_weights()


def _recipe(model: Model, node: fx.Node) -> Expr:
    """The recipe of a node that is computed from weights alone."""

    def filled(value: Any) -> Any:  # noqa: ANN401 - any argument
        if isinstance(value, fx.Node):
            return model.weights[value.name] if model.is_weight(value) else _recipe(model, value)
        return [filled(item) for item in value] if isinstance(value, (list, tuple)) else value

    value = node.meta["val"]
    shape, dtype = (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else ((), torch.uint8)
    assert callable(node.target)
    return Expr(node.target, tuple(filled(arg) for arg in node.args), {}, shape, dtype)


def _placeholders(node: fx.Node) -> Iterator[fx.Node]:
    for source in node.all_input_nodes:
        if source.op == "placeholder":
            yield source
        else:
            yield from _placeholders(source)
