"""The module of a Hugging Face configuration, in no more memory than its buffers take.

Parameters are fake: they have a shape and a dtype, and the checkpoint has their values. Buffers are real, because only
the module's own code knows them (rotary frequencies, ALiBi slopes, tables of positions). Dtypes and values are those
that transformers' own loader gives them.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from llmc.errors import UnsupportedModel


def build(config: Any, dtype: torch.dtype) -> nn.Module:  # noqa: ANN401 - transformers' config
    """The causal LM of `config`, to compute in `dtype`, with fake parameters and real buffers.

    Raises:
        UnsupportedModel: transformers knows no causal LM for the configuration, or cannot build it.
    """
    import transformers

    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    auto: Any = transformers.AutoModelForCausalLM
    try:
        with _fake_parameters(mode):
            module: nn.Module = auto.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UnsupportedModel(
            f"transformers builds no causal LM of model type {config.model_type!r}: {type(error).__name__}: {reason}"
        ) from error
    _compute_buffers_again(module)
    _keep_wide(module, dtype, mode)
    return module.eval()


@contextlib.contextmanager
def _fake_parameters(mode: FakeTensorMode) -> Iterator[None]:
    """Within this, every parameter that a module registers becomes fake: its memory is given back untouched."""
    register = nn.Module.register_parameter
    fakes: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def register_fake(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not isinstance(parameter.data, torch._subclasses.FakeTensor):
            if id(parameter) not in fakes:
                fakes[id(parameter)] = (_fake(parameter, parameter.dtype, mode), parameter)
            parameter = fakes[id(parameter)][0]
        register(module, name, parameter)

    nn.Module.register_parameter = register_fake  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _fake(parameter: torch.Tensor, dtype: torch.dtype, mode: FakeTensorMode) -> nn.Parameter:
    with mode:
        return nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=False)


def _compute_buffers_again(module: Any) -> None:  # noqa: ANN401 - a PreTrainedModel
    """Initialize the modules that have buffers while float32 is torch's default dtype, as loading a checkpoint does.

    A model is built with `dtype` for the default, and its tables of sines would be computed in that.
    """
    for part in module.modules():
        if any(True for _ in part.buffers(recurse=False)):
            part._is_hf_initialized = False
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        module.initialize_weights()
    finally:
        torch.set_default_dtype(before)


def _keep_wide(module: Any, dtype: torch.dtype, mode: FakeTensorMode) -> None:  # noqa: ANN401 - a PreTrainedModel
    """Give the parameters and stored buffers that the model asks to keep in float32 that dtype."""
    wide = {re.compile(pattern.replace("*", ".*")): kept for pattern, kept in module._get_dtype_plan(dtype).items()}
    if not wide:
        return
    for name, tensor in module.state_dict(keep_vars=True).items():
        kept = next((kept for pattern, kept in wide.items() if pattern.search(name)), tensor.dtype)
        if kept == tensor.dtype:
            continue
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        if isinstance(tensor, nn.Parameter):
            setattr(owner, attribute, _fake(tensor, kept, mode))
        else:
            setattr(owner, attribute, tensor.to(kept))
