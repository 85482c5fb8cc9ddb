"""Random weights that hide nothing: a forgotten bias, norm weight, sink or mask must change the logits."""

import torch
from torch import nn

SPREAD = 0.3
"""Standard deviation of vectors (norm weights, biases, sinks) around what the model's own initialisation gave them."""

GAIN = 1.2
"""Standard deviation of a projection's output for unit inputs: attention scores then spread by more than one."""


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter and every persistent floating buffer of `module` random values, in place.

    Vectors keep their place (a norm weight stays around 1, a bias around 0) and get a spread; matrices get the standard
    deviation `GAIN / sqrt(inputs)`. Tied weights stay tied.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in _tensors(module):
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            if tensor.ndim >= 2 and not _constant(tensor):
                tensor.copy_(noise * GAIN * tensor.shape[-1] ** -0.5)
            else:
                tensor.copy_(tensor + SPREAD * noise)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    """The parameters and persistent floating buffers, each once."""
    found: list[torch.Tensor] = list(module.parameters())
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set and buffer.is_floating_point():
                found.append(buffer)
    return list({id(tensor): tensor for tensor in found}.values())


def _constant(tensor: torch.Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())
