"""What a module computes, judged by eager torch alone: in its own float32, and in float64 throughout."""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_LOW = (torch.float32, torch.float16, torch.bfloat16)
_COMPLEX = (torch.complex64,)


class InFloat64(TorchDispatchMode):
    """Within this, whatever asks for a lower precision gets float64: `x.float()` in a norm, a softmax's dtype."""

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call `func` with every floating dtype among its arguments replaced by float64."""
        return func(*tree_map(_raised, tuple(args)), **tree_map(_raised, dict(kwargs or {})))


def _raised(value: object) -> object:
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _LOW else torch.complex128 if value in _COMPLEX else value
    return value


def logits_of(module: nn.Module, tokens: Sequence[int]) -> torch.Tensor:
    """Logits [S, V] of one sequence from one whole forward pass without a cache, as `module` computes them.

    `module` is a causal LM of transformers, or any module that maps token ids [1, S] to logits [1, S, V].
    """
    from transformers import PreTrainedModel

    ids = torch.tensor([list(tokens)])
    with torch.inference_mode():
        if isinstance(module, PreTrainedModel):
            return torch.as_tensor(module(input_ids=ids, use_cache=False).logits)[0]
        return torch.as_tensor(module(ids))[0]


def true_logits_of(module: nn.Module, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits [S, V] of each sequence with every float of the computation in float64; `module` is left as it is."""
    raised: Any = copy.deepcopy(module).double()
    with contextlib.suppress(AttributeError, ValueError, RuntimeError):
        raised.set_experts_implementation("eager")  # the grouped product of a mixture has no float64
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64():  # type: ignore[no-untyped-call]
            return [logits_of(raised, tokens) for tokens in sequences]
    finally:
        torch.set_default_dtype(default)


def is_causal(module: nn.Module, tokens: Sequence[int]) -> bool:
    """Whether changing the last token leaves the logits of all earlier ones as they were, to rounding."""
    changed = [*tokens[:-1], tokens[-1] + 1]
    before, after = logits_of(module, tokens), logits_of(module, changed)
    difference = (before[:-1] - after[:-1]).abs().max().item()
    return difference <= 1e-4 * before.abs().max().item()
