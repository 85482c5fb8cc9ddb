"""Small models whose masks are no window: chunks, first keys beside a window, blocks here and there."""

from collections.abc import Callable

import torch
from properties.plain_models import PlainModel, Recipe
from torch import Tensor

from llmc.zoo.randomise import randomise

LENGTH = 200
Seen = Callable[[Tensor, Tensor], Tensor]
"""Whether queries see keys, by positions."""
MASKS: dict[str, tuple[Seen, str]] = {
    "chunks": (lambda q, k: (k <= q) & (q // 100 == k // 100), "visits keys q // 100 * 100 to q, and no others"),
    "first keys and a window": (
        lambda q, k: (k <= q) & ((k < 4) | (q - k < 50)),
        "visits keys 0 to minimum(q, 3) and q - 49 to q, and no others",
    ),
    "each second block": (lambda q, k: (k <= q) & ((q // 64 - k // 64) % 2 == 0), "by lists that each step makes"),
}
"""With what `llmc explain` says of them."""


def masked_model(seen: Seen) -> PlainModel:
    """Two layers with a mask."""

    def mask(length: int, x: Tensor) -> Tensor:
        here = torch.arange(length, device=x.device)
        return seen(here[:, None], here[None, :])

    model = PlainModel(Recipe(vocab=128))
    for block in model.blocks:
        block.attention.mask = mask
    randomise(model)
    return model.eval()


def prompt() -> Tensor:
    """Of all tokens."""
    return torch.randint(0, 128, (LENGTH,), generator=torch.Generator().manual_seed(3))
