"""Hugging Face directories with the shape of a Llama and weights of zeros that take no room on disk.

What is emitted for a model depends on its shapes alone, so plans and kernels of large ones can be tested without them.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int
    tied: bool


LLAMA_1B = Shape(16, 2048, 8192, 32, 8, 64, 128256, tied=True)
LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128256, tied=False)


def write_sparse_llama(directory: Path, shape: Shape, layers: int | None = None) -> Path:
    """Write config.json and a sparse model.safetensors in bfloat16, with the shape's own number of layers if None."""
    directory.mkdir(parents=True, exist_ok=True)
    count = shape.layers if layers is None else layers
    (directory / "config.json").write_text(json.dumps(_config(shape, count)))
    header: dict[str, object] = {}
    end = 0
    for name, sizes in _tensors(shape, count).items():
        elements = 1
        for size in sizes:
            elements *= size
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [end, end + 2 * elements]}
        end += 2 * elements
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return directory


def _config(shape: Shape, layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": shape.head,
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "max_position_embeddings": 131072,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": shape.key_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocabulary,
    }


def _tensors(shape: Shape, layers: int) -> dict[str, list[int]]:
    width, inner = shape.width, shape.inner
    query, key = shape.heads * shape.head, shape.key_heads * shape.head
    found = {"model.embed_tokens.weight": [shape.vocabulary, width], "model.norm.weight": [width]}
    if not shape.tied:
        found["lm_head.weight"] = [shape.vocabulary, width]
    for layer in range(layers):
        name = f"model.layers.{layer}"
        found |= {
            f"{name}.input_layernorm.weight": [width],
            f"{name}.post_attention_layernorm.weight": [width],
            f"{name}.self_attn.q_proj.weight": [query, width],
            f"{name}.self_attn.k_proj.weight": [key, width],
            f"{name}.self_attn.v_proj.weight": [key, width],
            f"{name}.self_attn.o_proj.weight": [width, query],
            f"{name}.mlp.gate_proj.weight": [inner, width],
            f"{name}.mlp.up_proj.weight": [inner, width],
            f"{name}.mlp.down_proj.weight": [width, inner],
        }
    return found
