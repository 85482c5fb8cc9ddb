"""Refuses convolutions over tokens while a model is traced, before minutes go into tracing what follows them.

State-space models and linear attention begin with a short convolution over tokens. No pass gives it a cache, so that
the trace would be refused in the end; but what follows in such models takes long to trace.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from llmc.errors import UnsupportedModel
from llmc.frontend.places import place_of_call


class RefusesConvolutions(TorchFunctionMode):
    """Within this, a convolution over a dynamic length raises UnsupportedModel, with its place in the model."""

    def __init__(self, module: nn.Module) -> None:
        """`module` is the one that is traced."""
        super().__init__()
        self.module = module

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever `func` returns
        """Call `func`, unless it convolves tokens."""
        given = {**dict(zip(("input", "weight"), args, strict=False)), **(kwargs or {})}
        if func is torch.conv1d:
            length, kernel = given["input"].shape[-1], given["weight"].shape[-1]
            if isinstance(length, torch.SymInt) and kernel != 1:
                raise UnsupportedModel(
                    f"aten.conv1d at {place_of_call(self.module)} mixes tokens: it combines {kernel} of them; it "
                    "cannot run token by token, and llmc knows no cached form of it"
                )
        return func(*args, **(kwargs or {}))
