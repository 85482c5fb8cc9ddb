"""What `quantize` and `kv_dtype` ask for, as passes: defaults that depend on the model are settled here."""

from typing import get_args

import torch

from llmc.ir.model import Model
from llmc.passes.pack_weights import PackWeights
from llmc.passes.packing import Storage, stored_types


def weight_packing(quantize: str | None, kind: str, head: str | None = None) -> PackWeights:
    """How the weights of a native program are packed.

    `quantize` and `head` are the options; `kind` where the model came from (`llmc.frontend.read.Origin.kind`): a GGUF
    file keeps what it stores when nothing is said, any other model its floats.
    """
    chosen = quantize or ("keep" if kind == "gguf" else "float")
    storage: dict[str, Storage] = {name: name for name in get_args(Storage)}
    return PackWeights(storage[chosen], None if head is None else storage[head])


def cache_dtype(model: Model, packing: PackWeights, kv_dtype: str | None) -> str | None:
    """The dtype of the caches of a native program: `kv_dtype`, or one that fits the weights; None for the model's own.

    Weights of four bits go with bfloat16, of six and eight with float16: the rounding is well below theirs.
    """
    if kv_dtype is not None:
        return kv_dtype
    types = {kind for weight in model.weights.values() for kind in stored_types(weight)}
    four = any("4" in kind for kind in types if kind not in _FLOATS)
    if packing.weights.startswith("int4") or (packing.weights == "keep" and four):
        narrow = torch.bfloat16
    elif packing.weights not in ("float", "keep") or (packing.weights == "keep" and types - _FLOATS):
        narrow = torch.float16
    else:
        return None
    return str(narrow).removeprefix("torch.")


_FLOATS = {"F64", "F32", "F16", "BF16"}
"""Types of ggml that are not quantized."""
