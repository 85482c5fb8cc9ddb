"""Hugging Face models to `Model`: a directory with its checkpoint, or a live module."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from llmc.errors import BadInput, UnsupportedModel
from llmc.frontend import hf_attention, hf_experts
from llmc.frontend.checkpoint import ModuleReader, SafetensorsReader
from llmc.frontend.conversion import translated
from llmc.frontend.export import Binder, LogitsOf, traced
from llmc.frontend.hf_build import build
from llmc.frontend.lengths import Condition, traced_for
from llmc.ir.model import Model
from llmc.ir.weights import Constant, Expr, Reader, Source, Weight


def from_module(module: nn.Module, *, context: int | None = None) -> Model:
    """Trace a live module (transformers causal LM, or any module `tokens [1, S] -> logits [1, S, V]`).

    The module is left as it was. Its tensors are read, not copied, when the artifact is written. `context` is the
    longest sequence to serve; None is what the model was made for.

    Raises:
        UnsupportedModel: the module cannot be traced.
    """
    bind = bind_to(module)
    training = module.training
    module.eval()
    try:
        return _trace(module, bind, getattr(module, "config", None), context)
    finally:
        module.train(training)


def from_graph(graph: fx.GraphModule, *, context: int | None = None) -> Model:
    """Trace a graph, which computes the same in training and not, for sequences of up to `context` tokens.

    Raises:
        UnsupportedModel: the graph cannot be traced.
    """
    return _trace(graph, bind_to(graph), None, context)


def from_config(
    config: Any,  # noqa: ANN401 - transformers' config
    reader: Reader,
    *,
    dtype: torch.dtype,
    context: int | None = None,
) -> Model:
    """Build the causal LM of `config` without memory for its parameters, trace it, and bind them to `reader`.

    Raises:
        BadInput: the checkpoint lacks a parameter, or one has another shape.
        UnsupportedModel: transformers knows no causal LM for the configuration, or it cannot be traced.
    """
    return _from_checkpoint(build(config, dtype), reader, context)


def from_directory(path: Path, *, dtype: torch.dtype | None = None, context: int | None = None) -> Model:
    """Read a Hugging Face directory: config.json and safetensors (one file or a sharded index).

    `dtype` is the type to compute in; by default the checkpoint's own. The checkpoint's tensors may be named, split and
    laid out otherwise than the module's parameters, as far as transformers loads them.

    Raises:
        BadInput: a file is damaged or missing, or the checkpoint lacks a parameter, or one has another shape.
        UnsupportedModel: transformers knows no causal LM for the configuration, the checkpoint is quantized, or the
            model cannot be traced.
    """
    import transformers

    if not (path / "config.json").is_file():
        raise BadInput(f"{path} has no config.json; expected a Hugging Face model directory or a .gguf file")
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise BadInput(f"{path / 'config.json'} cannot be read: {error}") from error
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UnsupportedModel(f"{path}: its weights are quantized ({method}); expected float weights, or a .gguf file")
    reader = SafetensorsReader(path)
    module: Any = build(config, dtype or _config_dtype(config) or _stored_dtype(reader))
    return _from_checkpoint(module, translated(reader, module), context)


def bind_to(module: nn.Module) -> Binder:
    """Recipes that read the tensors of a live module; what the trace made itself becomes a constant."""
    reader = ModuleReader(module)

    def bind(name: str, tensor: torch.Tensor) -> Weight:
        return Source.of(reader, name) if name in reader.names() else Constant(tensor.detach())

    return bind


def _from_checkpoint(module: nn.Module, reader: Reader, context: int | None) -> Model:
    def bind(name: str, tensor: torch.Tensor) -> Weight:
        return _bind(name, tensor, reader, module)

    return _trace(module, bind, module.config, context)


def _trace(
    module: nn.Module,
    bind: Callable[[str, torch.Tensor], Weight],
    config: Any,  # noqa: ANN401 - transformers' config, or None
    context: int | None,
) -> Model:
    """Trace `module` for sequences of `context` tokens, of as many as its configuration says when that is None."""
    known = facts(config)
    limit = known.get("max_positions")
    limit = limit if isinstance(limit, int) else None
    model = traced_for(partial(_traced, module, bind), asked=context, limit=limit)
    model.info.update({**known, **model.info})
    if limit is not None:
        model.limit(limit)
    return model


def _traced(
    module: nn.Module, bind: Callable[[str, torch.Tensor], Weight], length: int, example: int
) -> tuple[Model, Sequence[Condition]]:
    if not _is_pretrained(module):
        return traced(LogitsOf(module, length), bind, example)
    hf_attention.register()
    hf_experts.register()
    refusals: list[UnsupportedModel] = []
    for implementation in (hf_attention.NAME, "eager"):
        with _implementations(module, implementation):
            try:
                return traced(LogitsOf(module, length, use_cache=False), bind, example)
            except UnsupportedModel as error:
                refusals.append(error)
    raise refusals[-1]


def _is_pretrained(module: nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel)


@contextlib.contextmanager
def _implementations(module: Any, attention: str) -> Iterator[None]:  # noqa: ANN401 - a PreTrainedModel
    """Set the attention and experts implementations of a transformers model, and put the old ones back after."""
    configs = [part.config for part in module.modules() if hasattr(part, "config")]
    before = [
        (config, name, getattr(config, name, None))
        for config in configs
        for name in ("_attn_implementation_internal", "_experts_implementation_internal")
        if hasattr(config, name)
    ]
    try:
        if module._can_set_attn_implementation():
            with contextlib.suppress(ValueError):
                module.set_attn_implementation(attention)
        with contextlib.suppress(ValueError, RuntimeError, AttributeError):
            module.set_experts_implementation(hf_experts.NAME)
        yield
    finally:
        for config, name, value in before:
            setattr(config, name, value)


def _bind(name: str, tensor: torch.Tensor, reader: Reader, module: nn.Module) -> Weight:
    if name in reader.names():
        return _checked(Source.of(reader, name), name, tensor)
    if isinstance(tensor, torch._subclasses.FakeTensor):
        raise BadInput(
            f"the checkpoint lacks {name} {tuple(tensor.shape)}; expected every parameter of {type(module).__name__}"
        )
    return Constant(tensor.detach())


def _checked(weight: Weight, name: str, tensor: torch.Tensor) -> Weight:
    if weight.shape != tuple(tensor.shape):
        raise BadInput(
            f"{name} is {weight.shape} in the checkpoint; expected {tuple(tensor.shape)} from the configuration"
        )
    if weight.dtype != tensor.dtype:
        return Expr.of(torch.ops.aten._to_copy.default, weight, dtype=tensor.dtype)
    return weight


def _config_dtype(config: Any) -> torch.dtype | None:  # noqa: ANN401 - transformers' config
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), None)
    return dtype if isinstance(dtype, torch.dtype) else None


def _stored_dtype(reader: Reader) -> torch.dtype:
    """The float dtype of the checkpoint's first such tensor, which is what transformers computes in too."""
    dtypes = (reader.dtype(reader.key(name)) for name in reader.names())
    return next((dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1), torch.float32)


def facts(config: Any) -> dict[str, object]:  # noqa: ANN401 - transformers' config, or None
    """What the manifest says of the source model, as far as its configuration tells."""
    if config is None:
        return {}
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    end = getattr(config, "eos_token_id", None)
    ends = [end] if isinstance(end, int) else [item for item in end or () if isinstance(item, int)]
    found: dict[str, object] = {
        "model_type": getattr(config, "model_type", ""),
        "max_positions": getattr(text, "max_position_embeddings", None),
        "eos_token_ids": ends,
        "bos_token_id": getattr(config, "bos_token_id", None),
    }
    return {name: value for name, value in found.items() if value is not None}
