"""Asks a transformers model for attention as one op.

transformers lets a model's attention and its mask be supplied by name. Under the name `llmc` a model emits one
`llmc::attention` a layer, with scale, softcap and sinks as arguments, and its mask as the boolean tensor that its own
mask functions give. Models that do not follow the interface keep their own code, which passes recognise in the graph.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llmc.errors import UnsupportedModel
from llmc.ir import ops  # noqa: F401 - declares torch.ops.llmc.attention

NAME = "llmc"

_IGNORED = frozenset(
    {
        "position_ids", "use_cache", "output_attentions", "output_router_logits", "sliding_window", "cache_position",
        "output_hidden_states", "return_dict", "past_key_values", "num_items_in_batch", "is_causal", "training",
        "layer_idx", "implementation", "logits_to_keep",
    }
)  # fmt: skip
"""Keyword arguments that models pass along without a meaning of their own: a window is in the mask already."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,  # noqa: ANN401 - whatever a model passes along
) -> tuple[Tensor, None]:
    """Attention for `transformers.AttentionInterface`: query [B, H, S, D], key and value [B, Hk, K, D] -> [B, S, H, D].

    Raises:
        UnsupportedModel: the model passes an argument that would change the result in a way unknown here.
    """
    unknown = sorted(name for name, item in others.items() if item is not None and name not in _IGNORED)
    if unknown:
        raise UnsupportedModel(
            f"{type(module).__name__} passes {', '.join(unknown)} to its attention; expected mask, scale, softcap or "
            "sinks"
        )
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    scale = float(query.shape[-1] ** -0.5) if scaling is None else float(scaling)
    out = torch.ops.llmc.attention(
        query, key, value, attention_mask, s_aux, scale, float(softcap or 0.0), attention_mask is None and causal
    )
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the name `llmc` known to transformers as an attention implementation with a boolean mask."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def mask(*args: Any, **options: Any) -> Tensor | None:  # noqa: ANN401 - transformers' own signature
        options.update(allow_is_causal_skip=False)
        result: Tensor | None = sdpa_mask(*args, **options)
        return result

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, mask)
