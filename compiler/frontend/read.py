"""The front door: whatever the user has, to a `Model`, its tokenizer, and where it came from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn

from llmc.errors import BadInput, BadOption, UnsupportedModel
from llmc.frontend import hf
from llmc.frontend.export import to_model
from llmc.frontend.gguf_model import open_gguf
from llmc.frontend.lengths import EXAMPLE_LENGTH, Condition, guards, traced_for
from llmc.frontend.tokenizer import TokenizerFiles, read_tokenizer
from llmc.ir.model import Model
from llmc.ir.weights import Constant, Weight

_HASHED = 1 << 22
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Origin:
    """Where a model came from, for the manifest."""

    kind: str
    """"gguf", "huggingface", "module", "graph" or "export"."""
    name: str
    hash: str
    """SHA-256 of its files; empty for what lives in memory."""


@dataclass(frozen=True)
class Read:
    """A model as read, before any pass."""

    model: Model
    tokenizer: TokenizerFiles | None
    origin: Origin


def read(
    model: str | Path | nn.Module | fx.GraphModule | torch.export.ExportedProgram,
    dtype: torch.dtype | None,
    context: int | None = None,
) -> Read:
    """Read any kind of source, for sequences of up to `context` tokens; None is what the model was made for.

    Raises:
        BadOption: `model` is nothing that can be compiled, or `dtype` is asked of something that has its own.
        BadInput: its files are damaged.
        UnsupportedModel: it cannot be traced.
    """
    if isinstance(model, (str, Path)):
        return _read_path(Path(model), dtype, context)
    if dtype is not None:
        raise BadOption(f"dtype: a {type(model).__name__} has its dtype already; convert it before compiling")
    if isinstance(model, torch.export.ExportedProgram):
        return Read(_from_program(model, context), None, Origin("export", "ExportedProgram", ""))
    if isinstance(model, fx.GraphModule):
        return Read(hf.from_graph(model, context=context), None, Origin("graph", "GraphModule", ""))
    if isinstance(model, nn.Module):
        return Read(hf.from_module(model, context=context), None, Origin("module", type(model).__name__, ""))
    raise BadOption(
        f"model: a {type(model).__name__} cannot be compiled; expected a path, an nn.Module, a GraphModule or an "
        "ExportedProgram"
    )


def _read_path(path: Path, dtype: torch.dtype | None, context: int | None) -> Read:
    if path.is_dir():
        origin = Origin("huggingface", path.name, _digest(_checkpoint_files(path)))
        tokenizer = read_tokenizer(path) if any((path / name).is_file() for name in _TOKENIZERS) else None
        return Read(hf.from_directory(path, dtype=dtype, context=context), tokenizer, origin)
    if not path.is_file():
        raise BadOption(f"model: there is no {path}; expected a Hugging Face directory or a .gguf file")
    opened = open_gguf(path)
    model = hf.from_config(opened.config, opened.reader, dtype=dtype or torch.float32, context=context)
    model.info["eos_token_ids"] = list(opened.tokenizer.eos_token_ids)
    return Read(model, opened.tokenizer, Origin("gguf", path.name, _digest([path])))


def _checkpoint_files(path: Path) -> list[Path]:
    files = sorted([*path.glob("config.json"), *path.glob("*.safetensors")])
    if not files:
        raise BadInput(f"{path} holds no config.json and no .safetensors; expected a Hugging Face model directory")
    return files


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while piece := stream.read(_HASHED):
                digest.update(piece)
    return digest.hexdigest()


def _from_program(program: torch.export.ExportedProgram, context: int | None) -> Model:
    def bind(name: str, tensor: torch.Tensor) -> Weight:
        return Constant(tensor.detach(), name)

    def trace(length: int, example: int) -> tuple[Model, Sequence[Condition]]:
        if example != EXAMPLE_LENGTH:
            raise UnsupportedModel(f"the program was not exported for {length} tokens; export it on so many")
        return to_model(program.run_decompositions({}), bind, strip=""), guards(program)

    return traced_for(trace, asked=context)
