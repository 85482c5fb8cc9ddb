"""Checkpoints whose tensors are not named, split or laid out as the model's parameters are.

transformers describes the way from one to the other as weight transforms, which its loader applies to a whole
checkpoint. Here they are applied to one parameter at a time, when it is read.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform, rename_source_key

from llmc.errors import BadInput
from llmc.ir.weights import Reader


def translated(reader: Reader, module: PreTrainedModel) -> "TranslatedReader":
    """`reader`, a checkpoint in the hub's names, under the names and shapes of the transformers model `module`.

    Raises `BadInput` when a tensor that is only renamed has another shape than the parameter.
    """
    transforms = WeightTransforms(reader.names(), module, get_model_conversion_mapping(module))
    result = TranslatedReader(reader, transforms, module)
    for name in result.names():
        sources = [] if transforms.converts(name) else result.sources(name)
        if len(sources) == 1 and reader.shape(sources[0]) != result.shape(name):
            stored, expected = list(reader.shape(sources[0])), list(result.shape(name))
            raise BadInput(f"{sources[0]} is {stored} in the checkpoint; expected {expected} by the configuration")
    return result


class Translation(Protocol):
    """How the tensors of a checkpoint become the parameters of a model."""

    @property
    def sources(self) -> Mapping[str, Sequence[str]]:
        """For each name in the model, the checkpoint's tensors that it is made of."""

    def convert(self, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The parameter `name`, given the values of its sources."""


class TranslatedReader:
    """The tensors of a checkpoint under the names, and with the shapes, of a model's parameters.

    `module` may be on the meta device: only its names, shapes and ties are used.
    """

    def __init__(self, base: Reader, translation: Translation, module: nn.Module) -> None:
        self._base, self._translation = base, translation
        self._shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        self._keys = {name: name for name in translation.sources if name in self._shapes}
        parameters = list(module.named_parameters(remove_duplicate=False))
        stored = {id(parameter): name for name, parameter in reversed(parameters) if name in self._keys}
        for name, parameter in parameters:
            if id(parameter) in stored:
                self._keys.setdefault(name, stored[id(parameter)])

    def names(self) -> Collection[str]:
        """Names in the model that the checkpoint has a tensor for, tied ones included."""
        return self._keys.keys()

    def key(self, name: str) -> str:
        """`name`, or what it is tied to if the checkpoint lacks it. Raises `BadInput` for a name without a tensor."""
        if name not in self._keys:
            raise BadInput(f"the checkpoint has no tensor for {name!r}; it has those of {len(self._keys)} others")
        return self._keys[name]

    def shape(self, key: str) -> tuple[int, ...]:
        """Sizes of the parameter."""
        return self._shapes[self.key(key)]

    def dtype(self, key: str) -> torch.dtype:
        """Element type of the first tensor that the parameter is made of."""
        return self._base.dtype(self.sources(key)[0])

    def sources(self, key: str) -> Sequence[str]:
        """Names in the checkpoint of the tensors that the parameter is made of."""
        return self._translation.sources[self.key(key)]

    def read(self, key: str) -> torch.Tensor:
        """Read the sources and convert them. Raises `BadInput` when the result has another shape than the model's."""
        tensors = {name: self._base.read(name) for name in self.sources(key)}
        return self.convert(key, tensors)

    def convert(self, key: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The parameter, given the values of its sources."""
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        try:
            tensor = self._translation.convert(self.key(key), tensors)
        except (ValueError, RuntimeError, IndexError, KeyError) as error:
            raise BadInput(f"{key}: cannot be made of {shapes}: {error}") from error
        if tuple(tensor.shape) != self.shape(key):
            raise BadInput(f"{key}: {shapes} make {list(tensor.shape)}, expected {list(self.shape(key))}")
        return tensor


class WeightTransforms:
    """The weight transforms of transformers as a translation, for the checkpoint's `names` and a `module`."""

    def __init__(self, names: Collection[str], module: nn.Module, transforms: Sequence[WeightTransform]) -> None:
        self._module = module
        self._patterns: dict[str, list[tuple[str, str]]] = defaultdict(list)
        """For each first target, its sources and the pattern each of them matched."""
        self._converters: dict[str, tuple[str, WeightConverter]] = {}
        """For each target of a converter, the first target of the same conversion, and the converter."""
        renamings = [deepcopy(transform) for transform in transforms if isinstance(transform, WeightRenaming)]
        converters = [deepcopy(transform) for transform in transforms if isinstance(transform, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        state = module.state_dict()
        prefix: Any = getattr(module, "base_model_prefix", None)
        self.sources: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names, key=_natural):
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:
                target, pattern = name, None
            if pattern is None:
                self.sources[target].append(name)
                continue
            converter = by_pattern[pattern]
            self._patterns[target].append((name, pattern))
            for other in converter.target_patterns:
                part = target.replace(converter.target_patterns[0], other)
                self._converters[part] = target, converter
                self.sources[part].append(name)

    def converts(self, name: str) -> bool:
        """Whether the parameter `name` is more than a renamed tensor."""
        return name in self._converters

    def convert(self, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run the converter of `name`, if it has one. Raises `ValueError` when that does not make `name`."""
        if name not in self._converters:
            return next(iter(tensors.values()))
        first, shared = self._converters[name]
        converter: Any = deepcopy(shared)
        for source, pattern in self._patterns[first]:
            converter.add_tensor(first, source, pattern, tensors[source])
        made: dict[str, Any] = converter.convert(
            first, model=self._module, config=getattr(self._module, "config", None)
        )
        if name not in made:
            raise ValueError(f"the conversion makes {', '.join(made)}")
        value = made[name]
        tensor: torch.Tensor = value[0] if isinstance(value, list) else value
        return tensor


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts layer 2 before layer 10, as the order of experts needs."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
