"""The engines that llmc is compared with: what installs them, and which formats of a model they can make."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from llmc.bench.process import EngineProcess
from llmc.errors import BadOption


@dataclass(frozen=True)
class Peer:
    """One engine beside llmc."""

    name: str
    file: str
    """Its file in `engines/`, without the ending."""
    install: str
    """The command that installs it."""
    formats: tuple[str, ...]
    """The formats that it can be asked for; the first is the default."""
    suffix: str = ""
    """Ending of the file that a model is in this engine's format; empty for a directory."""


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "llama.cpp",
            "llama_cpp",
            "pip install llama-cpp-python",
            ("q4_0", "q8_0", "bf16", "q4_k_m", "q4_1"),
            ".gguf",
        ),
        Peer(
            "openvino",
            "openvino",
            "pip install openvino-genai optimum-intel nncf",
            ("int4", "int8"),
        ),
        Peer("ort", "onnxruntime", "pip install onnxruntime-genai onnx-ir torch transformers", ("int4", "int8")),
    )
}
"""By name."""


@dataclass(frozen=True)
class Contender:
    """A peer with one of its formats, such as `llama.cpp:q8_0`."""

    peer: Peer
    format: str

    @staticmethod
    def parse(text: str) -> "list[Contender]":
        """The contenders of a list such as `llama.cpp:q8_0,ort`. Raises BadOption."""
        found = []
        for item in filter(None, text.split(",")):
            name, _, format = item.strip().partition(":")
            if name not in PEERS:
                raise BadOption(f"against: {name!r} is not an engine that bench knows; use {', '.join(PEERS)}")
            peer = PEERS[name]
            if format and format not in peer.formats:
                raise BadOption(f"against: {name} has no format {format!r}; use {', '.join(peer.formats)}")
            found.append(Contender(peer, format or peer.formats[0]))
        return found

    def start(self, python: str, threads: int) -> EngineProcess:
        """The engine's process, nothing loaded yet."""
        return EngineProcess(self.peer.file, python, threads, install=self.peer.install)

    def prepared(self, process: EngineProcess, source: Path, folder: Path) -> Path:
        """The model `source` (a Hugging Face directory) in this format, made in `folder` unless it is there already."""
        target = folder / f"{self.peer.file}-{self.format}{self.peer.suffix}"
        if target.exists():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"part-{target.name}"
        if part.is_dir():
            shutil.rmtree(part)
        process.prepare(self._input(source, folder), part, self.format)
        part.rename(target)
        return target

    def _input(self, source: Path, folder: Path) -> Path:
        """What the engine converts: the directory itself, for llama.cpp a GGUF file of it."""
        if self.peer.name != "llama.cpp":
            return source
        from llmc.bench.gguf_file import write_gguf

        plain = folder / "source-bf16.gguf"
        return plain if plain.exists() else write_gguf(source, plain)


def weight_bytes(model: Path) -> int:
    """Bytes of a model's file or directory: what a decoded token reads at most, tied embeddings counted once."""
    if model.is_file():
        return model.stat().st_size
    data = [path for path in model.iterdir() if path.suffix in (".bin", ".data") and "tokenizer" not in path.name]
    return sum(path.stat().st_size for path in data)
