"""Tiny random models of transformers' families, with sizes that no two dimensions share by accident."""

import torch
import transformers
from torch import nn

from llmc.frontend.hf import from_module
from llmc.ir.model import Model

SIZES = {
    "hidden_size": 32,
    "n_embd": 32,
    "intermediate_size": 24,
    "ffn_dim": 24,
    "word_embed_proj_dim": 32,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 4,
    "rotary_dim": 4,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "num_experts": 5,
    "num_local_experts": 5,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny(family: str, dtype: torch.dtype = torch.float32, **options: object) -> transformers.PreTrainedModel:
    """A random causal LM of `family` with two layers, every parameter drawn anew so that none is one or zero."""
    kind = transformers.CONFIG_MAPPING[family]
    sizes = {name: value for name, value in SIZES.items() if hasattr(kind(), name)}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**(sizes | options)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval().to(dtype)


def tiny_model(family: str, dtype: torch.dtype = torch.float32, **options: object) -> Model:
    """`tiny`, traced."""
    return from_module(tiny(family, dtype, **options))


def tokens(length: int = 9) -> torch.Tensor:
    """Token ids for a tiny model: [1, length]."""
    return torch.randint(3, 60, (1, length), generator=torch.Generator().manual_seed(length))


def parts(model: nn.Module, *attributes: str) -> list[nn.Module]:
    """The parts of `model` that have all of `attributes`."""
    return [part for part in model.modules() if all(hasattr(part, name) for name in attributes)]
