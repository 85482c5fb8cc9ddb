"""A Hugging Face directory of the llama family as a GGUF file in bfloat16, for llama.cpp to quantize.

Tokens are fed to the engines as numbers, so the file holds no vocabulary.
"""

from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open

from llmc.errors import UnsupportedModel

_ROTATED = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
"""Weights whose rows llama.cpp wants in pairs of rotated elements, and the number of their heads."""


def write_gguf(source: Path, target: Path) -> Path:
    """Write the model in the directory `source` to the file `target`.

    Raises UnsupportedModel for other families than llama.
    """
    import json

    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    if config.get("model_type") != "llama":
        raise UnsupportedModel(
            f"{source}: bench writes GGUF files of the llama family only, not of {config.get('model_type')}; convert it"
            " with llama.cpp's convert_hf_to_gguf.py and name the file with --peer-model"
        )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(target, "llama", use_temp_file=False)
    _write_facts(writer, config)
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  -- not a mapping
                if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config["tie_word_embeddings"]):
                    continue
                short = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if short is None:
                    raise UnsupportedModel(f"{source}: llama.cpp has no name for the weight {name}")
                _add(writer, short, _paired(name, tensors.get_tensor(name), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _write_facts(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    theta = config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 10_000.0)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _paired(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """Rows of Q and K in llama.cpp's order: (i, i + D / 2) side by side instead of the halves one after the other."""
    field = next((field for part, field in _ROTATED.items() if f".{part}." in name), None)
    if field is None:
        return tensor
    heads = config.get(field) or config["num_attention_heads"]
    halves = tensor.reshape(heads, 2, -1, tensor.shape[-1])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _add(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor) -> None:
    if tensor.dim() < 2:
        writer.add_tensor(name, tensor.float().numpy())
        return
    content = tensor.bfloat16().contiguous().view(torch.uint8).numpy()
    writer.add_tensor(name, content, raw_dtype=gguf.GGMLQuantizationType.BF16)
