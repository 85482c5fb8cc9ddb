"""An artifact whose program is tests/runtime/tiny_program.cpp, with a tokenizer of single characters."""

import copy
from pathlib import Path

from support import tiny_program
from support.small_artifact import FACTS

from llmc.runtime.artifact_writer import ArtifactWriter

GRAPH = b'{"nodes": []}'
LETTERS = "abcdefg"


def tokenizer_json() -> bytes:
    """A tokenizer that knows the letters a to g and nothing else."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({letter: place for place, letter in enumerate(LETTERS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer.to_str().encode()


def write(
    path: Path,
    *,
    levels: tuple[str, ...] = ("portable",),
    tokenizer: bool = True,
    explanation: bytes | None = None,
) -> Path:
    """Write the artifact, with the same library for each of `levels`."""
    facts = copy.deepcopy(FACTS)
    facts["model"] = {"vocab_size": tiny_program.V, "max_positions": 512, "eos_token_ids": [], "bos_token_id": None}
    facts["ranges"] = {"tokens": [1, 256], "sequences": [1, 8], "context": [1, 512]}
    files = {level: f"program/cpu-{level}.so" for level in levels}
    facts["programs"] = {
        "reference": {"graph": "program/graph.json"},
        "cpu": {"source": "program/cpu.cpp", **files},
    }
    if explanation is not None:
        facts["programs"]["cpu"]["explanation"] = "program/cpu.json"
    arrays = tiny_program.weights()
    library = tiny_program.library()
    with ArtifactWriter(path) as writer:
        writer.add_bytes("program/graph.json", GRAPH)
        writer.add_bytes("program/cpu.cpp", tiny_program.SOURCE.encode())
        if explanation is not None:
            writer.add_bytes("program/cpu.json", explanation)
        for name in files.values():
            writer.add_file(name, library.path)
        if tokenizer:
            writer.add_bytes("tokenizer/tokenizer.json", tokenizer_json())
        with writer.open_weights({name: ("float32", array.shape) for name, array in arrays.items()}) as weights:
            for name, array in arrays.items():
                weights.write(name, array)
        writer.publish(facts)
    return path
