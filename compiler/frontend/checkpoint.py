"""Readers of checkpoints: the tensors behind the `Source` weights of a model, read one at a time.

Nothing here unpickles, follows a path out of the checkpoint's directory, or loads a tensor before it is asked for.
"""

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from llmc.errors import BadInput

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_INDEX_LIMIT = 256 << 20
"""Largest index file accepted, in bytes; that of a model of 10,000 tensors has one million."""

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class _Shard(Protocol):
    """What is used of an open `safe_open`."""

    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> _Slice: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...


class SafetensorsReader:
    """The tensors of a `.safetensors` file, or of a directory with one or with an index of shards.

    Files are mapped; `read` returns a view of the mapping. Raises `BadInput` for a damaged file, for an index that
    names a file outside the directory, and for tensors the index promises and the shards lack.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._files: dict[str, _Shard] = {}
        if self._path.is_dir() and not (self._path / _SINGLE).exists():
            self._open_index()
        else:
            file = _contained(self._path, _SINGLE) if self._path.is_dir() else self._path
            handle = _open(file)
            self._files = dict.fromkeys(handle.keys(), handle)

    def _open_index(self) -> None:
        weight_map = _read_index(self._path / _INDEX)
        shards = {shard: _open(_contained(self._path, shard)) for shard in sorted(set(weight_map.values()))}
        present = {shard: set(handle.keys()) for shard, handle in shards.items()}
        for name, shard in weight_map.items():
            if name not in present[shard]:
                raise BadInput(f"{self._path / shard}: has no tensor {name!r}, which {_INDEX} places there")
            self._files[name] = shards[shard]

    def names(self) -> Collection[str]:
        """Names of the tensors in the files. A tied tensor appears under the one name that was saved."""
        return self._files.keys()

    def key(self, name: str) -> str:
        """`name` itself. Raises `BadInput` for an unknown name."""
        if name not in self._files:
            raise BadInput(f"{self._path}: has no tensor {name!r}; it has {len(self._files)} others")
        return name

    def shape(self, key: str) -> tuple[int, ...]:
        """Sizes of the tensor."""
        return tuple(self._files[self.key(key)].get_slice(key).get_shape())

    def dtype(self, key: str) -> torch.dtype:
        """Element type of the tensor. Raises `BadInput` for one that torch lacks or packs below a byte."""
        spelled = self._files[self.key(key)].get_slice(key).get_dtype()
        if spelled not in _DTYPES:
            raise BadInput(f"{self._path}: {key} is of type {spelled}, expected one of {', '.join(_DTYPES)}")
        return _DTYPES[spelled]

    def read(self, key: str) -> torch.Tensor:
        """A view of the mapped file. Raises `BadInput` when it cannot be read."""
        try:
            return self._files[self.key(key)].get_tensor(key)
        except SafetensorError as error:
            raise BadInput(f"{self._path}: tensor {key}: {error}") from error


class ModuleReader:
    """The parameters and buffers of a live module, non-persistent buffers too; nothing is copied.

    Names that share a tensor, or storage seen in the same way, have one key: the first of them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._tensors: dict[str, torch.Tensor] = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        first: dict[object, str] = {}
        self._keys = {name: first.setdefault(_identity(tensor), name) for name, tensor in self._tensors.items()}

    def names(self) -> Collection[str]:
        """Dotted names of all parameters and buffers, tied ones included."""
        return self._tensors.keys()

    def key(self, name: str) -> str:
        """The first name of the tensor called `name`. Raises `BadInput` for an unknown name."""
        if name not in self._keys:
            raise BadInput(f"module has no parameter or buffer {name!r}; it has {len(self._keys)} others")
        return self._keys[name]

    def shape(self, key: str) -> tuple[int, ...]:
        """Sizes of the tensor."""
        return tuple(self._tensors[self.key(key)].shape)

    def dtype(self, key: str) -> torch.dtype:
        """Element type of the tensor."""
        return self._tensors[self.key(key)].dtype

    def read(self, key: str) -> torch.Tensor:
        """The tensor itself, moved to the CPU if it is elsewhere. Raises `BadInput` for one without values."""
        tensor = self._tensors[self.key(key)]
        if tensor.is_meta:
            raise BadInput(f"{key}: is on the meta device and has no values; load the weights before compiling")
        return tensor.detach().cpu()


def _identity(tensor: torch.Tensor) -> object:
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _open(file: Path) -> _Shard:
    if not file.is_file():
        raise BadInput(f"{file}: no such file; expected a safetensors file, or a directory with {_SINGLE} or {_INDEX}")
    try:
        return cast(_Shard, safe_open(str(file), framework="pt"))
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file}: not a safetensors file: {error}") from error


def _read_index(index: Path) -> dict[str, str]:
    if not index.is_file():
        raise BadInput(f"{index.parent}: has neither {_SINGLE} nor {_INDEX}; llmc does not read pickled weights")
    if index.stat().st_size > _INDEX_LIMIT:
        raise BadInput(f"{index}: has {index.stat().st_size} bytes, expected at most {_INDEX_LIMIT}")
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInput(f"{index}: not an index of shards: {error!r}; expected a JSON object with weight_map") from error
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BadInput(f"{index}: weight_map is no object of strings; expected tensor names to shard files")
    return weight_map


def _contained(directory: Path, name: str) -> Path:
    """The file `name` of a checkpoint directory. Raises `BadInput` for one that lies elsewhere.

    A link may lead into the directory itself, or from a snapshot of the Hugging Face cache to its blobs.
    """
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise BadInput(f"{directory}: names the shard {name!r}, expected a file inside the directory")
    root = directory.resolve()
    target = (directory / name).resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not (target.is_relative_to(root) or target.is_relative_to(blobs)):
        raise BadInput(f"{directory}: {name} leads to {target}, expected a file inside the directory")
    return target
