"""The families that llmc promises to compile, and the switches of their configurations that change the numbers."""

from collections.abc import Mapping
from typing import Any

REQUIRED = (
    "llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo",
    "gpt_neox", "gptj", "opt", "bloom", "falcon", "mpt", "olmo", "olmo2", "olmo3", "cohere", "cohere2", "granite",
    "stablelm", "starcoder2", "smollm3", "glm4", "exaone4", "persimmon", "biogpt", "codegen", "gpt_bigcode", "mixtral",
    "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "deepseek_v3",
)  # fmt: skip
"""Families that must compile as they are."""


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    """A configuration's rotary parameters, scaled in the way of `kind`; the tests' sequences go past the original 8."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


_LONGROPE = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.0 + 0.5 * i for i in range(8)]}

VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama without grouped heads": ("llama", {"num_key_value_heads": 4}),
    "llama with one key head": ("llama", {"num_key_value_heads": 1}),
    "llama with heads wider than the model": ("llama", {"head_dim": 24}),
    "llama, linear rope": ("llama", rope("linear", factor=4.0)),
    "llama, yarn rope": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama, llama3 rope": (
        "llama",
        rope("llama3", factor=8.0, original_max_position_embeddings=16, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "qwen2 with a window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "qwen2_moe with a dense layer": ("qwen2_moe", {"mlp_only_layers": [0]}),
    "phi with normalised queries and keys": ("phi", {"qk_layernorm": True}),
    "phi3 with a window": ("phi3", {"sliding_window": 8}),
    "starcoder2 with a window": ("starcoder2", {"sliding_window": 8}),
    "gpt_neox without parallel residual": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon with alibi": ("falcon", {"alibi": True}),
    "falcon of the new architecture": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon without parallel attention": ("falcon", {"parallel_attn": False}),
    "falcon with a key head for each query head": ("falcon", {"multi_query": False, "num_kv_heads": 4, "bias": True}),
    "falcon with alibi and without parallel attention": ("falcon", {"alibi": True, "parallel_attn": False}),
    "bloom with another residual": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "gpt2 with scores scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_bigcode with a key head for each query head": ("gpt_bigcode", {"multi_query": False}),
    "opt with norms after": ("opt", {"do_layer_norm_before": False}),
    "opt with a narrow embedding": ("opt", {"word_embed_proj_dim": 32}),
    "mpt with clipped projections": ("mpt", {"attn_config.clip_qkv": 0.5}),
    "olmo with clipped projections": ("olmo", {"clip_qkv": 0.5}),
    "stablelm with normalised queries and keys": ("stablelm", {"qk_layernorm": True}),
    "stablelm with a parallel residual": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "cohere with normalised queries and keys": ("cohere", {"use_qk_norm": True}),
    "gemma3 with images, fed text": ("gemma3", {}),
    "gemma2 untied": ("gemma2", {"tie_word_embeddings": False}),
    "granite with multipliers": (
        "granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0},
    ),
    "deepseek_v3 without a low rank of queries": ("deepseek_v3", {"q_lora_rank": None}),
    "exaone4 with full attention": ("exaone4", {"layer_types": ["full_attention", "full_attention"]}),
}
"""By name: the family and the configuration fields to change."""


def longrope(original: int) -> dict[str, Any]:
    """Rotary parameters with one set of factors for up to `original` tokens, and another for more."""
    return rope("longrope", **_LONGROPE, original_max_position_embeddings=original) | {
        "original_max_position_embeddings": original
    }


DEPENDS_ON_LENGTH: Mapping[str, tuple[str, dict[str, Any], int]] = {
    "llama, dynamic rope": ("llama", rope("dynamic", factor=4.0) | {"max_position_embeddings": 32}, 1),
    "phi3, longrope beyond the original length": ("phi3", longrope(8), 9),
    "phi3, longrope up to the original length": ("phi3", longrope(32) | {"max_position_embeddings": 32}, 1),
    "phimoe, longrope beyond the original length": (
        "phimoe",
        rope("longrope", **_LONGROPE, original_max_position_embeddings=8, short_mscale=1.1, long_mscale=1.3),
        9,
    ),
}
"""Rotary scalings whose angles depend on how long the whole sequence is: family, changes, and from which length on the
model itself computes what the compiled one does.

A cached key was rotated when the sequence was shorter, so a program with a cache has the angles of one regime for all
lengths: those of the context that it serves.
"""

RECURRENT = (
    "mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "lfm2", "lfm3", "minimax",
)  # fmt: skip
"""Families that mix tokens by a scan, a convolution or a linear attention, which llmc does not compile."""

NOT_CAUSAL = ("cpmant", "reformer")
"""Families whose logits depend on later tokens."""
