"""GGUF files as Hugging Face models: configuration and parameter names, by transformers' own tables.

This file and `gguf_tokenizer` are the only ones that touch transformers' GGUF loader, whose parts are not public. It
has two generations: weight transforms for new architectures, tensor processors for the others. Both are applied one
tensor at a time.
"""

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import transformers
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFValueType, GGUFWriter, TensorNameMap, get_tensor_name_map
from torch import nn
from transformers import modeling_gguf_pytorch_utils as legacy
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS, get_gguf_config
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
from transformers.integrations.gguf.utils import get_gguf_conversion_mapping

from llmc.errors import BadInput, UnsupportedModel
from llmc.frontend.conversion import TranslatedReader, Translation, WeightTransforms
from llmc.frontend.gguf import GgufFile
from llmc.frontend.gguf_header import Value
from llmc.frontend.gguf_rope import ROPE_TENSORS, with_rope_scaling
from llmc.frontend.gguf_tokenizer import gguf_tokenizer
from llmc.frontend.tokenizer import TokenizerFiles

_MAX_LAYERS = 4096
"""Longest array of numbers taken for one of the layers'."""
_MAX_ROWS = 1 << 24
"""Most rows that float32 numbers exactly."""


class GgufModel(NamedTuple):
    """What a GGUF file says about a Hugging Face model."""

    config: transformers.PretrainedConfig
    reader: "GgufReader"
    tokenizer: TokenizerFiles


class Blocks(NamedTuple):
    """A parameter as the file stores it."""

    type: str
    """Name of the storage type in ggml, such as `Q4_K`."""
    data: npt.NDArray[np.uint8]
    """Stored bytes, [rows, bytes of a row]; rows in the order of the parameter's."""


def open_gguf(path: Path | str) -> GgufModel:
    """Read the configuration and the tokenizer of a GGUF file and prepare to read its tensors.

    Raises:
        BadInput: the file is damaged, or its metadata contradicts its tensors.
        UnsupportedModel: transformers has no causal LM for the file, or the file has tensors the model does not use.
    """
    file = GgufFile(path)
    config = gguf_config(file)
    auto: Any = transformers.AutoModelForCausalLM
    try:
        with torch.device("meta"):
            module = auto.from_config(config, trust_remote_code=False)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UnsupportedModel(f"{file.path}: no causal LM can be built of {config.model_type}: {reason}") from error
    return GgufModel(config, GgufReader(file, module), gguf_tokenizer(file))


def gguf_config(file: GgufFile) -> transformers.PretrainedConfig:
    """The configuration that the file's metadata describes."""
    fields = _config_fields(file)
    if fields.get("model_type") not in transformers.CONFIG_MAPPING:
        raise UnsupportedModel(f"{file.path}: transformers has no model of type {fields.get('model_type')!r}")
    fields = with_rope_scaling(file, _architecture(file), fields)
    try:
        return transformers.AutoConfig.for_model(**fields)
    except Exception as error:
        kind = fields["model_type"]
        raise BadInput(f"{file.path}: the metadata makes no configuration of {kind}: {error}") from error


class GgufReader(TranslatedReader):
    """The tensors of a GGUF file under the names of a transformers model, in float32.

    `module`, which may be on the meta device, is the model of `gguf_config(file)`.
    """

    def __init__(self, file: GgufFile, module: nn.Module) -> None:
        translation = _translation(file, module)
        super().__init__(file, translation, module)
        self._file = file
        used = ROPE_TENSORS | {source for sources in translation.sources.values() for source in sources}
        ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
        unused = [name for name in file.names() if name not in used]
        if unused and not ignored:
            shown = ", ".join(unused[:3])
            kind = type(module).__name__
            raise UnsupportedModel(f"{file.path}: {kind} has no parameter for {len(unused)} tensors such as {shown}")

    def stored_type(self, key: str) -> str:
        """How the file stores the parameter, such as `Q4_K`; types joined by + when it is made of several tensors."""
        return "+".join(self._file.tensors[source].type.name for source in self.sources(key))

    def read_rows(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of a parameter, [stop - start, ...]; only those are dequantized where that can be."""
        order = self._row_order(key)
        if order is None or len(self.shape(key)) != 2:
            return self.read(key)[start:stop]
        (source,) = self.sources(key)
        rows = order[start:stop]
        if np.array_equal(rows, np.arange(start, stop)):
            return self._file.read_rows(source, start, stop)
        return torch.cat([self._file.read_rows(source, row, row + 1) for row in rows.tolist()])

    def blocks(self, key: str) -> Blocks | None:
        """The parameter as it is stored, without dequantizing; None when its values or its rows differ from the file's.

        Rows that the file has in another order, as llama's queries and keys, are gathered in the parameter's.
        """
        order = self._row_order(key)
        if order is None:
            return None
        (source,) = self.sources(key)
        data = self._file.blocks(source)
        in_order = np.array_equal(order, np.arange(len(order)))
        return Blocks(self.stored_type(key), data if in_order else data[order])

    def _row_order(self, key: str) -> npt.NDArray[np.int64] | None:
        """Which row of the file each row of the parameter is, found by converting row numbers and column numbers.

        None when the conversion does more than to move whole rows.
        """
        sources = self.sources(key)
        if len(sources) != 1 or len(self._file.shape(sources[0])) < 2:
            return None
        (source,) = sources
        shape, rows = self._file.shape(source), self._file.tensors[source].rows
        columns = torch.arange(shape[-1], dtype=torch.float32)
        numbers = torch.arange(rows, dtype=torch.float32).reshape(*shape[:-1], 1)
        try:
            probe = columns.expand(shape)
            across = self._translation.convert(self.key(key), {source: probe})
            if across is probe:
                return np.arange(rows)
            down = self._translation.convert(self.key(key), {source: numbers})
        except (ValueError, RuntimeError, IndexError, KeyError):
            return None
        whole = across.shape[-1] == shape[-1] and bool((across == columns).all())
        order = down.reshape(-1).to(torch.int64).numpy()
        if not whole or tuple(down.shape) != (*self.shape(key)[:-1], 1) or rows > _MAX_ROWS:
            return None
        return order if np.array_equal(np.sort(order), np.arange(rows)) else None


class _Processors:
    """The tensor processors of transformers as a translation."""

    def __init__(self, file: GgufFile, module: nn.Module, config: dict[str, Any]) -> None:
        architecture = _architecture(file)
        processor: Any = legacy.TENSOR_PROCESSORS.get(architecture, legacy.TensorProcessor)
        self._processor = processor(config=config)
        self._targets = _targets(module, self._processor, _name_map(architecture, config["num_hidden_layers"]))
        self.sources: dict[str, list[str]] = defaultdict(list)
        for name in file.names():
            # Experts, three-dimensional, are bare parameters in transformers: their names have no suffix.
            target = self._targets.get(name) or self._targets.get(name.removesuffix(".weight"))
            if target is not None:
                self.sources[target].append(name)

    def convert(self, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Process the tensors of `name`. Raises `UnsupportedModel` when transformers does not make `name` of them."""
        made: dict[str, torch.Tensor] = {}
        for source, tensor in tensors.items():
            values = tensor.numpy()
            result = self._processor.process(
                weights=values,
                name=source,
                tensor_key_mapping=self._targets,
                parsed_parameters={"tensors": made},
            )
            if result.name in self._targets:
                untouched = result.weights is values
                changed = tensor if untouched else torch.from_numpy(np.ascontiguousarray(result.weights))
                made[self._targets[result.name]] = changed
        if name not in made:
            raise UnsupportedModel(f"{name}: transformers does not know how to make it of {', '.join(tensors)}")
        return made[name]


def _translation(file: GgufFile, module: nn.Module) -> Translation:
    architecture = _architecture(file)
    config: Any = module.config
    if architecture in GGUF_ARCHS:
        return WeightTransforms(file.names(), module, get_gguf_conversion_mapping(architecture, config))
    layers = {"num_hidden_layers": config.num_hidden_layers}
    return _Processors(file, module, {**config.to_dict(), **_config_fields(file), **layers})


@cache
def _name_map(architecture: str, layers: int) -> TensorNameMap:
    known: dict[str, MODEL_ARCH] = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise UnsupportedModel(f"the gguf package does not know the architecture {architecture!r}")
    return get_tensor_name_map(known[architecture], layers)


def _targets(module: nn.Module, processor: Any, names: TensorNameMap, prefix: str = "") -> dict[str, str]:  # noqa: ANN401
    """The parameter that each name in a file stands for: those of `module`, then of its children, the first one wins.

    Children are asked because some files were made from a model without its head, whose names lack a prefix.
    """
    found: dict[str, str] = {}
    for parameter in map(processor.preprocess_name, module.state_dict()):
        stem, dot, suffix = parameter.rpartition(".")
        if suffix not in ("weight", "bias"):
            stem, dot, suffix = parameter, "", ""
        name = names.get_name(stem)
        if name is None:
            processor.perform_fallback_tensor_mapping(found, dot + suffix, prefix, parameter)
        else:
            found[name + dot + suffix] = prefix + parameter
    for child, submodule in module.named_children():
        for name, parameter in _targets(submodule, processor, names, f"{prefix}{child}.").items():
            found.setdefault(name, parameter)
    return found


def _architecture(file: GgufFile) -> str:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise BadInput(f"{file.path}: general.architecture is {architecture!r}, expected the name of an architecture")
    return architecture


def _config_fields(file: GgufFile) -> dict[str, Any]:
    """The fields of a transformers configuration, from the metadata."""
    architecture = _architecture(file)
    layers = file.metadata.get(f"{architecture}.block_count")
    if isinstance(layers, int) and not 0 < layers <= len(file.tensors):
        found = f"{layers} layers in {len(file.tensors)} tensors"
        raise BadInput(f"{file.path}: {architecture}.block_count says {found}, expected a tensor or more a layer")
    try:
        if architecture in GGUF_CONFIG_ARCHS:
            return dict(get_gguf_config(_counted(file.metadata), tuple(file.names())))
        known = {*legacy.GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer"}
        if _letters(architecture) not in map(_letters, known):
            expected = ", ".join(sorted(known | {*GGUF_CONFIG_ARCHS}))
            raise UnsupportedModel(f"{file.path}: architecture {architecture!r}, expected one of {expected}")
        fields = _legacy_fields(file, architecture)
    except UnsupportedModel:
        raise
    except Exception as error:
        raise BadInput(f"{file.path}: metadata of {architecture!r} is incomplete or wrong: {error!r}") from error
    if "token_embd.weight" in file.tensors:
        fields["vocab_size"] = file.shape("token_embd.weight")[0]
        fields["tie_word_embeddings"] = "output.weight" not in file.tensors
    return fields


def _letters(architecture: str) -> str:
    """A name without what the two sides spell differently: transformers has qwen2_moe for the files' qwen2moe."""
    return architecture.replace("_", "").replace("-", "")


def _counted(metadata: dict[str, Value]) -> dict[str, Any]:
    """The metadata in the form of transformers' own reader: arrays of strings as their lengths, others as lists."""
    lists = {key: value.tolist() for key, value in metadata.items() if isinstance(value, np.ndarray)}
    return metadata | {key: len(value) for key, value in metadata.items() if isinstance(value, list)} | lists


def _legacy_fields(file: GgufFile, architecture: str) -> dict[str, Any]:
    """The fields, by the loader that only reads files: it is given one without the vocabulary and the data.

    It spends ten seconds on a vocabulary of 262,144 (gemma 3, 2 cores, 2026-11), of which it needs the length.
    """
    with tempfile.TemporaryDirectory(prefix="llmc-") as directory:
        path = Path(directory) / "metadata.gguf"
        writer = GGUFWriter(path, architecture)
        for key, value in file.metadata.items():
            _add(writer, key, value)
        writer.add_array("tokenizer.ggml.tokens", ["", ""])
        for name in file.names():
            writer.add_tensor(name, np.zeros(1, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        load: Any = legacy.load_gguf_checkpoint
        fields: dict[str, Any] = load(str(path))["config"]
    return fields


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    """Copy a value of the metadata that can bear on the configuration: scalars, and numbers of the layers."""
    if key in ("general.architecture", "general.alignment") or isinstance(value, list):
        return
    if not isinstance(value, np.ndarray):
        writer.add_key_value(key, value, _value_type(value))
    elif 0 < len(value) <= _MAX_LAYERS:
        numbers = value.tolist()
        writer.add_key_value(key, numbers, GGUFValueType.ARRAY, _value_type(min(numbers)))


def _value_type(value: bool | int | float | str) -> GGUFValueType:
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    if isinstance(value, int):
        return GGUFValueType.INT64 if value < 0 else GGUFValueType.UINT64
    return GGUFValueType.FLOAT64 if isinstance(value, float) else GGUFValueType.STRING
