"""How much memory `llmc build` takes for a large model: python tests/benchmarks/build_memory.py [small|1b|3b] [DIR].

A llama of that shape is written to DIR with random weights, one shard at a time, and built in a process of its own,
whose anonymous resident memory is sampled. Pages of mapped files are not counted: the system takes them back when it
needs them. Prints one line: bytes of the weights, the peak, and the seconds of the build.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from safetensors.torch import save_file

_INTERVAL = 0.02
"""Seconds between two samples."""


class Shape(NamedTuple):
    """The sizes of a llama with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    intermediate: int
    vocabulary: int

    def config(self) -> transformers.LlamaConfig:
        """The configuration, in bfloat16."""
        return transformers.LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            dtype="bfloat16",
            architectures=["LlamaForCausalLM"],
        )


SHAPES = {
    "small": Shape(hidden=2048, layers=4, heads=16, key_heads=4, intermediate=5632, vocabulary=16384),
    "1b": Shape(hidden=2048, layers=16, heads=32, key_heads=8, intermediate=8192, vocabulary=128256),
    "3b": Shape(hidden=3072, layers=28, heads=24, key_heads=8, intermediate=8192, vocabulary=128256),
}


class Measured(NamedTuple):
    """One build."""

    weights: int
    """Bytes of the checkpoint."""
    largest: int
    """Bytes of the weights of one layer, or of the embedding if that is larger."""
    peak: int
    """Largest anonymous resident memory of the build, in bytes."""
    baseline: int
    """The same of a process that has imported what a build imports, in bytes."""
    seconds: float


def write_checkpoint(shape: Shape, directory: Path) -> tuple[int, int]:
    """Write random weights, a shard for each layer; return the bytes of all, and of the largest shard."""
    config = shape.config()
    config.save_pretrained(directory)
    with torch.device("meta"):
        module = transformers.LlamaForCausalLM(config)
    shards: dict[str, list[tuple[str, torch.Size]]] = {}
    for name, parameter in module.named_parameters():
        layer = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        shards.setdefault(f"model-{layer}.safetensors", []).append((name, parameter.shape))
    weight_map, sizes = {}, []
    generator = torch.Generator().manual_seed(0)
    for shard, members in shards.items():
        tensors = {name: _random(size, generator) for name, size in members}
        save_file(tensors, directory / shard, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, shard))
        sizes.append(sum(tensor.numel() * 2 for tensor in tensors.values()))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(sizes), max(sizes)


def _random(size: torch.Size, generator: torch.Generator) -> torch.Tensor:
    row = torch.randn(1_000_003, generator=generator).mul_(0.02).to(torch.bfloat16)
    count = size.numel()
    return row.repeat(-(-count // len(row)))[:count].reshape(size)


def measure(shape: Shape, directory: Path) -> Measured:
    """Write the checkpoint, build it, and measure. Raises CalledProcessError when the build fails."""
    weights, largest = write_checkpoint(shape, directory / "model")
    imports = [sys.executable, "-c", "import transformers, llmc.driver\nfrom transformers import LlamaForCausalLM"]
    baseline = max(_samples(imports))
    began = time.perf_counter()
    command = [sys.executable, "-m", "llmc", "build", str(directory / "model"), "-o", str(directory / "out.llmc")]
    peak = max(_samples([*command, "--quiet"]))
    return Measured(weights, largest, peak, baseline, time.perf_counter() - began)


def _samples(command: list[str]) -> Iterator[int]:
    """Anonymous resident memory of the process in bytes, again and again until it ends."""
    yield 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            line = next(
                (line for line in status.read_text().splitlines() if line.startswith("RssAnon")), "RssAnon: 0 kB"
            )
            yield int(line.split()[1]) << 10
            time.sleep(_INTERVAL)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def main(arguments: list[str]) -> None:
    """Measure the shape named first, in the directory named second."""
    name = arguments[0] if arguments else "3b"
    with tempfile.TemporaryDirectory(dir=arguments[1] if len(arguments) > 1 else None) as directory:
        found = measure(SHAPES[name], Path(directory))
    print(
        f"{name}: weights {found.weights / 1e9:.2f} GB, largest shard {found.largest / 1e9:.2f} GB, "
        f"anonymous memory at most {found.peak / 1e9:.2f} GB ({found.baseline / 1e9:.2f} GB of it imports), "
        f"{found.seconds:.0f} s"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
