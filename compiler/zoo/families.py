"""Every causal-LM family that transformers maps, as a tiny random model.

Reading a family's configuration is the one place where llmc names families, and it does so for its tests alone: the
compiler itself knows none of them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from llmc.errors import BadOption
from llmc.zoo.randomise import randomise
from llmc.zoo.shrink import Correction, set_field, shrink

CORRECTIONS: Mapping[str, Correction] = {
    "bamba": Correction("without it no layer has attention", {"attn_layer_indices": [1]}),
    "cohere_compass_text": Correction(
        "rotary parameters are looked up by the kind of layer, and the defaults have none",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": None,
            },
        },
    ),
    "dbrx": Correction(
        "its attention reads fields that the defaults lack",
        {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 2.0},
    ),
    "deepseek_v4": Correction(
        "short sequences must reach across several compressed blocks",
        {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    ),
    "dots1": Correction("the defaults leave the number of shared experts open", {"n_shared_experts": 1}),
    "dots3_note_text": Correction(
        "in both kinds of layer the sizes of heads must add up",
        {
            "num_hidden_layers": 2,
            "layer_types": ["indexed_attention", "sliding_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "head_dim": 24,
            "per_layer_config": {
                1: {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 24, "head_dim": 32}
            },
        },
    ),
    "gemma3n_text": Correction(
        "the last layers read the keys and values of earlier ones of their kind",
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "intermediate_size": [96] * 4,
            "activation_sparsity_pattern": [0.95, 0.0, 0.95, 0.0],
        },
    ),
    "granitemoehybrid": Correction(
        "without it no layer has attention", {"layer_types": ["linear_attention", "full_attention"]}
    ),
    "hunyuan_v1_moe": Correction("the defaults have a single expert", {"num_experts": 4, "moe_topk": 2}),
    "lfm2": Correction("the defaults make every layer attention", {"layer_types": ["conv", "full_attention"]}),
    "lfm2_moe": Correction("the defaults name no layers", {"layer_types": ["conv", "full_attention"]}),
    "mamba2": Correction("heads times their size must be twice the width", {"num_heads": 8, "head_dim": 16}),
    "qwen4_exp_text": Correction(
        "the defaults leave the sparse attention's indexer without sizes",
        {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 8,
            "indexer_compress_ratio": 4,
        },
    ),
    "reformer": Correction(
        "sizes of the factored positions must multiply to the length and add up to the width",
        {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [32, 32], "num_buckets": 4},
    ),
    "xlm": Correction("by default it is an encoder", {"causal": True}),
    "xlnet": Correction("by default each token sees all others", {"attn_type": "uni"}),
    "xmod": Correction("its adapters need a language", {"default_language": "en_XX"}),
    "zamba": Correction(
        "the first layer cannot be a shared one; other sizes follow from the width",
        {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
        ("attention_hidden_size", "attention_head_dim", "mamba_dt_rank"),
    ),
    "zamba2": Correction(
        "sizes follow from the width",
        {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
        (
            "attention_hidden_size",
            "attention_head_dim",
            "mamba_headdim",
            "kv_channels",
            "num_query_groups",
            "hybrid_layer_ids",
        ),
    ),
}
"""By family. Everything else follows from the roles in `llmc.zoo.shrink`."""

NOT_A_DECODER: Mapping[str, str] = {
    "gemma3n": "its vision tower needs Pillow and timm, which llmc does not need; gemma3n_text is its language model",
    "gemma4_assistant": "a draft model that reads hidden states and keys of another model, not tokens alone",
    "gemma4_unified_assistant": "a draft model that reads hidden states and keys of another model, not tokens alone",
    "musicgen": "reads several codebooks of audio codes at a time, not one sequence of tokens",
    "musicgen_melody": "reads several codebooks of audio codes at a time, not one sequence of tokens",
}
"""Families with no language model that maps `input_ids` alone to the logits of the next token, and why."""


def families() -> list[str]:
    """The names of all causal-LM families that the installed transformers maps, in alphabetical order."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(family: str, **changes: object) -> Any:  # noqa: ANN401 - transformers' config
    """The small configuration of `family`, with `changes` to its fields on top.

    Raises:
        BadOption: transformers maps no such family, or it is one of NOT_A_DECODER.
    """
    import transformers

    if family in NOT_A_DECODER:
        raise BadOption(f"{family}: {NOT_A_DECODER[family]}")
    if family not in families():
        version = transformers.__version__
        raise BadOption(f"transformers {version} maps no causal LM {family!r}; see `python -m llmc.zoo --list`")
    kind = transformers.CONFIG_MAPPING[family]
    small = shrink(kind(), CORRECTIONS)
    for name, value in changes.items():
        set_field(small, name, value)
    return kind(**small)


def tiny(family: str, seed: int = 0, **changes: object) -> nn.Module:
    """A tiny causal LM of `family` in float32 and evaluation mode; every parameter is random, the same for each `seed`.

    Args:
        family: a name from `families()`.
        seed: of the random parameters.
        changes: configuration fields to set instead of the small defaults.

    Raises:
        BadOption: transformers maps no such family.
    """
    import transformers

    config = tiny_config(family, **changes)
    torch.manual_seed(seed)
    module: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(module, seed)
    return module.eval()
