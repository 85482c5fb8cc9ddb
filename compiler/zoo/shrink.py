"""Any transformers configuration, made tiny.

Sizes are recognised by the role that a field's name gives away (`hidden_size`, `n_embd` and `d_model` are all the width
of the model), and lists with one entry for each layer are cut to the fewest layers that still show every kind of layer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ROLES: tuple[tuple[int, str], ...] = (
    # Widths of the model.
    (64, "hidden_size n_embd d_model emb_dim word_embed_proj_dim embedding_size input_embedding_size embedding_dim"),
    (64, "output_embedding_size hidden_size_global lru_width attention_hidden_size pronunciation_embed_dim"),
    (64, "shape_embed_dim backbone_hidden_size out_hidden_size vision_output_dim projector_input_dim mamba_dt_rank"),
    (64, "projector_output_dim adapter_out_dim adapter_in_dim adapter_input_size output_channels ple_embed_dim"),
    (128, "mamba_d_ssm conv_output_size"),
    (32, "dim_model_base hidden_size_per_layer_input"),
    # Widths of feed-forward blocks.
    (96, "intermediate_size ffn_dim n_inner d_ff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dff dim_ff d_inner"),
    (96, "dense_intermediate_size shared_intermediate_size feed_forward_size mlp_dim prompt_mid_dim"),
    (32, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size router_hidden_size"),
    (32, "moe_shared_expert_intermediate_size shared_experts_intermediate_size"),
    # Depths.
    (2, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_blocks depth"),
    (2, "encoder_layers num_encoder_layers conf_num_hidden_layers num_global_layers num_layers_per_stack"),
    (2, "n_layers_per_attn_res_block"),
    # Heads.
    (4, "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"),
    (4, "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_value_heads"),
    (4, "linear_num_heads num_attention_heads_per_layer conf_num_attention_heads attention_heads"),
    (2, "num_key_value_heads swa_num_key_value_heads num_global_key_value_heads num_kv_heads kv_n_heads"),
    (2, "linear_num_key_heads index_n_heads n_mamba_heads num_query_groups o_groups"),
    (8, "mamba_n_heads mamba_num_heads"),
    (16, "head_dim global_head_dim swa_head_dim kv_channels attention_head_dim dim_head d_head d_kv linear_head_dim"),
    (16, "linear_key_head_dim linear_value_head_dim v_head_dim qk_nope_head_dim attention_head_size index_head_dim"),
    (16, "mamba_d_head mamba_head_dim mamba_headdim"),
    (8, "qk_rope_head_dim rotary_dim d_rel"),
    (24, "qk_head_dim q_lora_rank"),
    (32, "kv_lora_rank o_lora_rank"),
    (8, "laurel_rank adapter_rank gated_norm_rank hc_lowrank"),
    # Experts.
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k zero_expert_num"),
    (2, "n_group num_expert_group"),
    (1, "topk_group"),
    # Which layers are of which kind, where that is said by a period.
    (2, "attn_layer_period expert_layer_period no_rope_layer_interval interleave_moe_layer_step"),
    (1, "attn_layer_offset expert_layer_offset first_k_dense_replace num_dense_layers moe_layer_start_index"),
    # Reach: short enough for a test to cross.
    (8, "sliding_window sliding_window_size window_size attention_window_size attention_chunk_size local_attention"),
    (8, "index_topk rel_extent local_attention_window_len keep_window_size log_scaling_n_floor"),
    (4, "index_block_size lsh_attn_chunk_length local_attn_chunk_length"),
    (2, "index_topk_blocks"),
    (64, "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length max_target_positions"),
    # Vocabularies and special tokens.
    (128, "vocab_size decoder_vocab_size vocab_size_per_layer_input audio_vocab_size pronunciation_vocab_size"),
    (128, "shape_vocab_size ngram_vocab_size_base unpadded_vocab_size encoder_hash_byte_group_vocab codebook_size"),
    (0, "pad_token_id"),
    (1, "bos_token_id cls_token_id decoder_start_token_id"),
    (2, "eos_token_id sep_token_id eod_token_id forced_eos_token_id"),
    # State-space models.
    (8, "state_size mamba_d_state ssm_state_size time_step_rank"),
    (4, "chunk_size mamba_chunk_size block_size"),
    # Vision and audio parts of models that also take text: present, never run.
    (8, "patch_size base_channels nemo_conv_channels ext_pw_out_channel depthwise_separable_out_channel num_filters"),
    (32, "image_size crop_size prompt_length num_centroids"),
)  # fmt: skip

SIZES: Mapping[str, int] = {name: value for value, names in _ROLES for name in names.split()}
"""The tiny size of each configuration field that is known by its role."""

SET_EVEN_IF_NONE = frozenset(
    {"num_key_value_heads", "num_experts_per_tok", "n_routed_experts", "head_dim", "eos_token_id", "bos_token_id"}
)
"""Fields that get their size also where the default is None (derive it), else heads would not be grouped."""

_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_INDEX_LIST = re.compile(r"(layers|idxs|ids|indexes|indices)$")


@dataclass(frozen=True)
class Correction:
    """What the general shrinking gets wrong for one model type."""

    because: str
    """Why the type needs it."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Configuration fields to set; a dotted name reaches into a nested configuration."""
    leave: tuple[str, ...] = ()
    """Fields to leave at the type's defaults."""


def shrink(config: Any, corrections: Mapping[str, Correction]) -> dict[str, Any]:  # noqa: ANN401 - transformers' config
    """The constructor arguments that make a small version of `config`, nested configurations included.

    Args:
        config: an instance with its type's defaults.
        corrections: by model type, of `config` and of the configurations nested in it.
    """
    correction = corrections.get(config.model_type, Correction(""))
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    small: dict[str, Any] = {}
    for name in config.sub_configs:
        part = fields.pop(name, None)
        if part is not None and hasattr(part, "sub_configs"):
            small[name] = {"model_type": part.model_type, **shrink(part, corrections)}
    for name, value in fields.items():
        if name in SIZES and (value is not None or name in SET_EVEN_IF_NONE) and not isinstance(value, bool | list):
            small[name] = _keep_switch(name, value)
    small |= _cut_layers(fields, getattr(config, "_heterogeneity_spec", None))
    if fields.get("kv_lora_rank") and "num_key_value_heads" in small:
        small["num_key_value_heads"] = SIZES["num_attention_heads"]
    if fields.get("head_dim") and fields.get("head_dim") == fields.get("qk_rope_head_dim"):
        small["head_dim"] = SIZES["qk_rope_head_dim"]
    if "is_decoder" in fields:
        small["is_decoder"] = True
    small = {name: value for name, value in small.items() if name not in correction.leave}
    for name, value in correction.set.items():
        set_field(small, name, value)
    return small


def set_field(fields: dict[str, Any], name: str, value: object) -> None:
    """Set the field `name` of constructor arguments; a dotted name reaches into a nested configuration."""
    *parts, last = name.split(".")
    for part in parts:
        fields = fields.setdefault(part, {})
    fields[last] = value


def _keep_switch(name: str, value: Any) -> int:  # noqa: ANN401 - a configuration field may hold anything
    """The small size of a field, or 0 or 1 where its default switches the feature off."""
    if value in (0, 1) and name not in ("num_key_value_heads", "pad_token_id", "bos_token_id", "eos_token_id"):
        return int(value)
    return SIZES[name]


def _cut_layers(fields: Mapping[str, Any], overridden: Any) -> dict[str, Any]:  # noqa: ANN401 - transformers' own
    """Cut each list with one entry per layer to the same few layers, which show every value of every list.

    `overridden` is transformers' record of the fields that single layers override, or None.
    """
    depth = next((fields[name] for name in _LAYER_COUNTS if isinstance(fields.get(name), int)), 0)
    depth = depth or max((len(fields[name]) for name in ("layers_block_type",) if fields.get(name)), default=0)
    per_layer: dict[str, Sequence[Any]] = {}
    members: dict[str, list[bool]] = {}
    for name, value in fields.items():
        if not isinstance(value, list | tuple) or not value or not depth:
            continue
        ordinals = all(type(item) is int and item < depth for item in value) and sorted(set(value)) == list(value)
        if ordinals and _INDEX_LIST.search(name):
            members[name] = [layer in value for layer in range(depth)]
        elif len(value) == depth:
            per_layer[name] = value
    kept = cover([*per_layer.values(), *members.values()], depth)
    small: dict[str, Any] = {name: [_small_entry(name, values[i]) for i in kept] for name, values in per_layer.items()}
    overrides = getattr(overridden, "per_layer_overrides", {})
    if overrides:
        small["per_layer_config"] = {
            j: {name: _scaled(name, value, fields[name]) for name, value in overrides[i].items()}
            for j, i in enumerate(kept)
            if i in overrides
        }
    small |= {name: [j for j, i in enumerate(kept) if flags[i]] for name, flags in members.items()}
    if small:
        small |= {name: len(kept) for name in _LAYER_COUNTS if isinstance(fields.get(name), int)}
    return small


def _scaled(name: str, value: int, default: int) -> int:
    """The small size of a field that one layer overrides, as much larger or smaller than the others' as it was."""
    return max(1, SIZES.get(name, default) * value // default)


def _small_entry(name: str, value: object) -> object:
    return SIZES.get(name, value)


def cover(columns: Sequence[Sequence[Any]], depth: int) -> list[int]:
    """The fewest layers (greedily, at least two, in order) that show every value of every column."""
    missing = {(column, str(value)) for column, values in enumerate(columns) for value in values}
    kept: list[int] = []
    while missing or len(kept) < min(2, depth):
        shown = [{(column, str(values[i])) for column, values in enumerate(columns)} for i in range(depth)]
        news = {i: len(shown[i] & missing) for i in range(depth) if i not in kept}
        best = max(news, key=lambda i: (news[i], i == depth - 1, -i))
        kept.append(best)
        missing -= shown[best]
    return sorted(kept)
