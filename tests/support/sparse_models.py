"""Hugging Face directories with the shapes of published models, and weights of zeros that take no room on disk.

What is emitted for a model depends on its shapes alone, so plans and kernels of large ones can be tested without them.
Vectors are ones, for what a program reads of them (the weights of norms that bound attention's scores).
"""

import json
import struct
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path

from support.popular_models import POPULAR

_SHARD = 1 << 32
"""Elements of a file, unless one tensor has more: what is mapped at once must be less than a machine's memory."""
_ONE = b"\x80\x3f"
"""In bfloat16."""


def write_sparse(directory: Path, name: str, layers: int = 2) -> Path:
    """Write config.json and a sparse model.safetensors in bfloat16 of so many layers of a model of `POPULAR`."""
    import torch
    import transformers

    kind, fields = POPULAR[name]
    directory.mkdir(parents=True, exist_ok=True)
    config_class = transformers.CONFIG_MAPPING[kind]
    depth = config_class.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    (directory / "config.json").write_text(
        json.dumps({"model_type": kind, **fields, depth: layers, "dtype": "bfloat16"})
    )
    config = transformers.AutoConfig.from_pretrained(directory)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tied = set(module.all_tied_weights_keys) if config.tie_word_embeddings else set()
    shapes = {n: list(tensor.shape) for n, tensor in module.state_dict().items() if n not in tied}
    _write_shards(directory, shapes)
    return directory


def _write_shards(directory: Path, shapes: dict[str, list[int]]) -> None:
    shards: list[dict[str, list[int]]] = [{}]
    for name, shape in shapes.items():
        if sum(map(prod, shards[-1].values())) + prod(shape) > _SHARD:
            shards.append({})
        shards[-1][name] = shape
    files = {f"model-{number}.safetensors": shard for number, shard in enumerate(shards) if shard}
    for file, shard in files.items():
        _write(directory / file, shard)
    weight_map = {name: file for file, shard in files.items() for name in shard}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _write(path: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, dict[str, object]] = {}
    starts = list(accumulate((2 * prod(shape) for shape in shapes.values()), initial=0))
    for (name, shape), (start, end) in zip(shapes.items(), pairwise(starts), strict=True):
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + starts[-1])
        for shape, start in zip(shapes.values(), starts, strict=False):
            if len(shape) == 1:
                file.seek(8 + len(text) + start)
                file.write(_ONE * shape[0])
