"""A small artifact for the tests, with every part that a real one has."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmc.runtime.artifact_writer import ArtifactWriter
from llmc.runtime.checked_json import canonical

WEIGHTS = "weights.safetensors"
Change = Callable[[dict[str, Any]], None]

FACTS: dict[str, Any] = {
    "llmc_version": "0.1.0",
    "source": {"kind": "gguf", "name": "tiny.gguf", "hash": "ab" * 32},
    "model": {"vocab_size": 50, "max_positions": 64, "eos_token_ids": [2], "bos_token_id": 1, "architecture": "tiny"},
    "options": {"dtype": "float32"},
    "ranges": {"tokens": [1, 32], "sequences": [1, 8], "context": [1, 64]},
    "kv": {"layers": [{"heads": 2, "key_size": 4, "value_size": 4, "dtype": "float32"}]},
    "programs": {"reference": {"graph": "program/graph.json"}},
    "passes": [{"name": "fuse_qkv", "changes": 1}],
    "rewrites": [{"number": 1, "rule": "fuse_qkv", "origin": "layers.0", "error": 1e-16}],
    "report": {"ops": {"aten.linear.default": 3}},
}
GRAPH = b'{"nodes": []}'
TOKENIZER = b'{"version": "1.0"}'


def tensors() -> dict[str, np.ndarray]:
    """Weights of several types, of which some are not a multiple of 64 bytes long."""
    random = np.random.Generator(np.random.PCG64(5))
    return {
        "embed.weight": random.standard_normal((50, 8)).astype(np.float32),
        "norm": random.standard_normal(8).astype(np.float16),
        "odd": random.integers(0, 9, (3, 3, 3)).astype(np.int8),
        "half": random.integers(0, 1 << 16, (5,)).astype(np.uint16),
        "mask": random.integers(0, 2, (7,)).astype(np.bool_),
        "scalar": np.array(2.5, dtype=np.float64),
        "empty": np.zeros((0, 4), np.float32),
    }


def dtype_name(name: str, array: np.ndarray) -> str:
    """What the manifest calls the type: "half" stands for bfloat16, which numpy lacks."""
    return "bfloat16" if name == "half" else array.dtype.name


def write(path: Path, *, replace: bool = False, facts: dict[str, Any] | None = None) -> Path:
    """Write the artifact."""
    arrays = tensors()
    with ArtifactWriter(path, replace=replace) as writer:
        with writer.open_weights({n: (dtype_name(n, a), a.shape) for n, a in arrays.items()}) as weights:
            for name, array in arrays.items():
                weights.write(name, array)
        writer.add_bytes("program/graph.json", GRAPH)
        writer.add_bytes("tokenizer/tokenizer.json", TOKENIZER)
        writer.publish(copy.deepcopy(FACTS if facts is None else facts))
    return path


def reseal(path: Path, change: Change = lambda manifest: None) -> None:
    """Change the manifest as an attacker would: with all hashes, lengths and the digest made right again."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    for name in list(manifest["files"]):
        if (path / name).is_file():
            content = (path / name).read_bytes()
            pieces = manifest["files"][name].get("pieces")
            told = {"bytes": len(content), **({"pieces": pieces} if pieces else {})}
            if pieces:  # their hashes are hashed
                parts = [content[begin : begin + pieces] for begin in range(0, len(content), pieces)]
                content = b"".join(hashlib.sha256(part).digest() for part in parts)
            manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), **told}
    change(manifest)
    manifest.pop("digest", None)
    content = canonical(manifest)
    digest = hashlib.sha256(content).hexdigest()
    (path / "manifest.json").write_bytes(canonical({**manifest, "digest": digest}))


def rewrite_header(path: Path, change: Change) -> None:
    """Change the header of the weights and make every hash right again."""
    content = (path / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    (path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    reseal(path)
