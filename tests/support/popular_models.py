"""Configurations of published models, as their config.json has them; `sparse_models` writes two layers of one.

Where layers differ in kind, the two are one of each. Only what changes shapes or operations is given: the rest are the
defaults of transformers.
"""

from collections.abc import Mapping

_WINDOW, _FULL = "sliding_attention", "full_attention"
_MIXED = {"layer_types": [_WINDOW, _FULL]}
_YARN = {"rope_type": "yarn", "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
         "original_max_position_embeddings": 4096}  # fmt: skip


def _sizes(width: int, inner: int, heads: int, keys: int, vocabulary: int) -> dict[str, object]:
    return {
        "hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads, "num_key_value_heads": keys,
        "vocab_size": vocabulary,
    }  # fmt: skip


POPULAR: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "Llama-3.2-1B": ("llama", {
        **_sizes(2048, 8192, 32, 8, 128256), "head_dim": 64, "rope_theta": 5e5, "max_position_embeddings": 131072,
        "tie_word_embeddings": True}),
    "Qwen2.5-0.5B": ("qwen2", {
        **_sizes(896, 4864, 14, 2, 151936), "rope_theta": 1e6, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True}),
    "Qwen2.5-7B": ("qwen2", {
        **_sizes(3584, 18944, 28, 4, 152064), "rope_theta": 1e6, "max_position_embeddings": 131072}),
    "Qwen3-0.6B": ("qwen3", {
        **_sizes(1024, 3072, 16, 8, 151936), "head_dim": 128, "rope_theta": 1e6, "max_position_embeddings": 40960,
        "tie_word_embeddings": True}),
    "Qwen3-8B": ("qwen3", {
        **_sizes(4096, 12288, 32, 8, 151936), "head_dim": 128, "rope_theta": 1e6, "max_position_embeddings": 40960}),
    "Qwen3-30B-A3B": ("qwen3_moe", {
        **_sizes(2048, 6144, 32, 4, 151936), "head_dim": 128, "rope_theta": 1e6, "max_position_embeddings": 40960,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True}),
    "Qwen1.5-MoE-A2.7B": ("qwen2_moe", {
        **_sizes(2048, 5632, 16, 16, 151936), "rope_theta": 1e6, "max_position_embeddings": 8192, "num_experts": 60,
        "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632}),
    "gemma-2-2b": ("gemma2", {
        **_sizes(2304, 9216, 8, 4, 256000), "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "max_position_embeddings": 8192}),
    "gemma-3-1b": ("gemma3_text", {
        **_sizes(1152, 6912, 4, 1, 262144), **_MIXED, "head_dim": 256, "query_pre_attn_scalar": 256,
        "sliding_window": 512, "max_position_embeddings": 32768}),
    "gemma-3-4b": ("gemma3_text", {
        **_sizes(2560, 10240, 8, 4, 262208), **_MIXED, "head_dim": 256, "query_pre_attn_scalar": 256,
        "sliding_window": 1024, "max_position_embeddings": 131072,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "Phi-3-mini": ("phi3", {
        **_sizes(3072, 8192, 32, 32, 32064), "sliding_window": 2047, "max_position_embeddings": 4096}),
    "Phi-4": ("phi3", {
        **_sizes(5120, 17920, 40, 10, 100352), "rope_theta": 25e4, "max_position_embeddings": 16384}),
    "Mistral-7B": ("mistral", {
        **_sizes(4096, 14336, 32, 8, 32000), "sliding_window": 4096, "max_position_embeddings": 32768}),
    "Mixtral-8x7B": ("mixtral", {
        **_sizes(4096, 14336, 32, 8, 32000), "rope_theta": 1e6, "max_position_embeddings": 32768,
        "num_local_experts": 8, "num_experts_per_tok": 2}),
    "OLMo-2-7B": ("olmo2", {
        **_sizes(4096, 11008, 32, 32, 100352), "rope_theta": 5e5, "max_position_embeddings": 4096}),
    "OLMoE-1B-7B": ("olmoe", {
        **_sizes(2048, 1024, 16, 16, 50304), "max_position_embeddings": 4096, "num_experts": 64,
        "num_experts_per_tok": 8, "norm_topk_prob": False}),
    "gpt2": ("gpt2", {"n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}),
    "gpt-j-6b": ("gptj", {
        "n_embd": 4096, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400, "n_positions": 2048,
        "tie_word_embeddings": False}),
    "pythia-2.8b": ("gpt_neox", {
        "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32, "vocab_size": 50304,
        "rotary_pct": 0.25, "max_position_embeddings": 2048}),
    "gpt-neox-20b": ("gpt_neox", {
        "hidden_size": 6144, "intermediate_size": 24576, "num_attention_heads": 64, "vocab_size": 50432,
        "rotary_pct": 0.25, "max_position_embeddings": 2048, "hidden_act": "gelu_fast"}),
    "falcon-7b": ("falcon", {
        "hidden_size": 4544, "num_attention_heads": 71, "vocab_size": 65024, "multi_query": True,
        "parallel_attn": True, "new_decoder_architecture": False, "bias": False, "alibi": False}),
    "bloom-560m": ("bloom", {"hidden_size": 1024, "n_head": 16, "vocab_size": 250880}),
    "mpt-7b": ("mpt", {
        "d_model": 4096, "n_heads": 32, "vocab_size": 50432, "max_seq_len": 2048,
        "attn_config": {"alibi": True, "attn_impl": "eager"}}),
    "starcoder2-3b": ("starcoder2", {
        **_sizes(3072, 12288, 24, 2, 49152), "rope_theta": 999999.4420358813, "sliding_window": 4096,
        "max_position_embeddings": 16384, "use_bias": True}),
    "stablelm-2-1.6b": ("stablelm", {
        **_sizes(2048, 5632, 32, 32, 100352), "partial_rotary_factor": 0.25, "use_qkv_bias": True,
        "max_position_embeddings": 4096}),
    "stablelm-2-12b": ("stablelm", {
        **_sizes(5120, 13824, 32, 8, 100352), "partial_rotary_factor": 0.25, "qk_layernorm": True,
        "use_parallel_residual": True, "max_position_embeddings": 4096}),
    "command-r": ("cohere", {
        **_sizes(8192, 22528, 64, 64, 256000), "logit_scale": 0.0625, "rope_theta": 8e6,
        "max_position_embeddings": 131072}),
    "command-r7b": ("cohere2", {
        **_sizes(4096, 14336, 32, 8, 256000), **_MIXED, "logit_scale": 0.25, "rope_theta": 5e4,
        "sliding_window": 4096, "max_position_embeddings": 8192}),
    "gpt-oss-20b": ("gpt_oss", {
        **_sizes(2880, 2880, 64, 8, 201088), **_MIXED, "head_dim": 64, "num_local_experts": 32,
        "num_experts_per_tok": 4, "sliding_window": 128, "rope_theta": 15e4, "max_position_embeddings": 131072}),
    "DeepSeek-V2-Lite": ("deepseek_v2", {
        **_sizes(2048, 10944, 16, 16, 102400), "moe_intermediate_size": 1408, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "q_lora_rank": None,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "topk_method": "greedy", "routed_scaling_factor": 1.0, "rope_scaling": _YARN,
        "max_position_embeddings": 163840}),
    "DeepSeek-V3": ("deepseek_v3", {
        **_sizes(7168, 18432, 128, 128, 129280), "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 1, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 8,
        "topk_group": 4, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "rope_scaling": _YARN,
        "max_position_embeddings": 163840}),
    "SmolLM3-3B": ("smollm3", {
        **_sizes(2048, 11008, 16, 4, 128256), "no_rope_layers": [1, 0], "rope_theta": 5e6,
        "max_position_embeddings": 65536}),
    "granite-3.1-2b": ("granite", {
        **_sizes(2048, 8192, 32, 8, 49155), "embedding_multiplier": 12.0, "attention_multiplier": 0.015625,
        "residual_multiplier": 0.22, "logits_scaling": 8.0, "rope_theta": 5e6, "max_position_embeddings": 131072,
        "tie_word_embeddings": True}),
    "GLM-4-9B": ("glm4", {
        **_sizes(4096, 13696, 32, 2, 151552), "head_dim": 128, "partial_rotary_factor": 0.5, "attention_bias": True,
        "max_position_embeddings": 32768}),
    "EXAONE-4.0-32B": ("exaone4", {
        **_sizes(5120, 27392, 40, 8, 102400), **_MIXED, "head_dim": 128, "sliding_window": 4096, "rope_theta": 1e6,
        "max_position_embeddings": 131072}),
    "Minitron-4B": ("nemotron", {
        **_sizes(3072, 9216, 24, 8, 256000), "head_dim": 128, "partial_rotary_factor": 0.5, "hidden_act": "relu2",
        "max_position_embeddings": 4096}),
    "opt-125m": ("opt", {
        "hidden_size": 768, "ffn_dim": 3072, "num_attention_heads": 12, "vocab_size": 50272,
        "word_embed_proj_dim": 768, "max_position_embeddings": 2048}),
    "phi-1.5": ("phi", {
        **_sizes(2048, 8192, 32, 32, 51200), "partial_rotary_factor": 0.5, "max_position_embeddings": 2048}),
    "phi-2": ("phi", {
        **_sizes(2560, 10240, 32, 32, 51200), "partial_rotary_factor": 0.4, "max_position_embeddings": 2048}),
    "MiniCPM3-4B": ("minicpm3", {
        **_sizes(2560, 6400, 40, 40, 73448), "q_lora_rank": 768, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32, "max_position_embeddings": 32768}),
}  # fmt: skip
"""The type of model and its fields, by name."""
