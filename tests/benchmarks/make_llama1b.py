"""Write a Hugging Face directory with the shape of Llama-3.2-1B and random weights: `make_llama1b.py DIR`.

Speed does not depend on the values of weights, and this needs no download: 2.5 GB of bfloat16, 16 layers of width 2048,
32 query and 8 key heads of 64, gated MLPs of 8192, tied embeddings of 128256 tokens. There is no tokenizer in it.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, LAYERS, HEADS, KEY_HEADS, HEAD, INNER, VOCABULARY = 2048, 16, 32, 8, 64, 8192, 128256

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KEY_HEADS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


def main(directory: Path) -> None:
    """Write `config.json` and `model.safetensors`."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float32).mul_(0.02).bfloat16()

    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY, WIDTH), "model.norm.weight": _ones()}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        tensors[f"{name}.input_layernorm.weight"] = _ones()
        tensors[f"{name}.post_attention_layernorm.weight"] = _ones()
        tensors[f"{name}.self_attn.q_proj.weight"] = matrix(HEADS * HEAD, WIDTH)
        tensors[f"{name}.self_attn.k_proj.weight"] = matrix(KEY_HEADS * HEAD, WIDTH)
        tensors[f"{name}.self_attn.v_proj.weight"] = matrix(KEY_HEADS * HEAD, WIDTH)
        tensors[f"{name}.self_attn.o_proj.weight"] = matrix(WIDTH, HEADS * HEAD)
        tensors[f"{name}.mlp.gate_proj.weight"] = matrix(INNER, WIDTH)
        tensors[f"{name}.mlp.up_proj.weight"] = matrix(INNER, WIDTH)
        tensors[f"{name}.mlp.down_proj.weight"] = matrix(WIDTH, INNER)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def _ones() -> torch.Tensor:
    return torch.ones(WIDTH, dtype=torch.bfloat16)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
