"""Small decoders without attention whose layers end in an op of the test's choice."""

from collections.abc import Callable

import torch
from torch import nn

V, D = 40, 32


class Layer(nn.Module):
    """Two residuals: a linear, and `change` of another."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(D, D), nn.Linear(D, D)
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)
        return x + self.change(self.second(x))


class Layers(nn.Module):
    """Two of them between an embedding and a head; `change` may be a method instead."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(V, D)
        self.layers = nn.ModuleList([Layer(change or self.change) for _ in range(2)])
        self.head = nn.Linear(D, V)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def decoder(change: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model in evaluation mode, its parameters the same every time."""
    return Layers(change).to(dtype).eval()
