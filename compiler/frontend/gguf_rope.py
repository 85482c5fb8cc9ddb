"""The scaling of rotary embeddings in a GGUF file, which transformers' GGUF loader passes over.

Without it a long-context model computes other angles than it was trained with and says nothing. What cannot be
expressed in a transformers configuration is refused.
"""

import math
from typing import Any

import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmc.errors import BadInput, UnsupportedModel
from llmc.frontend.gguf import GgufFile

FREQUENCY_FACTORS = "rope_freqs.weight"
"""The tensor that divides each frequency: how llama.cpp writes the scaling of llama 3."""

SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
"""The same for sequences of up to the original length, and for longer ones: how it writes longrope."""

ROPE_TENSORS = frozenset({FREQUENCY_FACTORS, SHORT_FACTORS, LONG_FACTORS})
"""Tensors that say something of the configuration, and are no parameters."""


def with_rope_scaling(file: GgufFile, architecture: str, fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` of a configuration, with the scaling that the file's metadata or tensor of factors describes.

    Raises `UnsupportedModel` for a scaling that transformers has no configuration for.
    """
    scaling: dict[str, Any] | None
    if SHORT_FACTORS in file.tensors or LONG_FACTORS in file.tensors:
        scaling, sizes = _of_two_factors(file, architecture, fields)
        fields = {**fields, **sizes}
    elif FREQUENCY_FACTORS in file.tensors:
        scaling = _of_factors(file, architecture, fields)
    else:
        scaling = _of_metadata(file, architecture)
    if scaling is None or "rope_scaling" in fields:
        return fields
    if "rope_parameters" in fields:
        return {**fields, "rope_parameters": {**fields["rope_parameters"], **scaling}}
    return {**fields, "rope_scaling": scaling}


def _of_metadata(file: GgufFile, architecture: str) -> dict[str, Any] | None:
    prefix = f"{architecture}.rope.scaling"
    kind, factor = file.metadata.get(f"{prefix}.type"), file.metadata.get(f"{prefix}.factor")
    if kind in (None, "none"):
        return None
    if not isinstance(factor, int | float) or not factor > 0:
        raise BadInput(f"{file.path}: {prefix}.factor is {factor}, expected a number above 0")
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)} if factor != 1 else None
    original = file.metadata.get(f"{prefix}.original_context_length")
    if kind != "yarn" or not isinstance(original, int):
        raise UnsupportedModel(
            f"{file.path}: {prefix}.type is {kind!r}, expected linear, or yarn and its original length"
        )
    attention = file.metadata.get(f"{prefix}.attn_factor", 1.0)
    if not isinstance(attention, int | float):
        raise BadInput(f"{file.path}: {prefix}.attn_factor is {attention!r}, expected a number")
    return {
        "rope_type": "yarn",
        "factor": float(factor),
        "original_max_position_embeddings": original,
        "attention_factor": attention * (1 + 0.1 * math.log(max(factor, 1.0))),
    }


def _of_two_factors(file: GgufFile, architecture: str, fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """longrope with the factors of both lengths, and the fields that lie beside it in a configuration."""
    original = file.metadata.get(f"{architecture}.rope.scaling.original_context_length")
    missing = [name for name in (SHORT_FACTORS, LONG_FACTORS) if name not in file.tensors]
    if missing or not isinstance(original, int):
        what = missing[0] if missing else f"{architecture}.rope.scaling.original_context_length"
        raise BadInput(f"{file.path}: has no {what}, expected it beside the factors of rotary frequencies")
    short, long = (file.read(name).reshape(-1).tolist() for name in (SHORT_FACTORS, LONG_FACTORS))
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
    }
    attention = file.metadata.get(f"{architecture}.rope.scaling.attn_factor")
    if isinstance(attention, int | float):
        scaling["attention_factor"] = float(attention)
    sizes: dict[str, Any] = {"original_max_position_embeddings": original}
    head = fields["hidden_size"] // fields["num_attention_heads"]
    if 2 * len(short) != head:
        sizes["partial_rotary_factor"] = 2 * len(short) / head
    return scaling, sizes


def _of_factors(file: GgufFile, architecture: str, fields: dict[str, Any]) -> dict[str, Any] | None:
    """llama 3's scaling with these factors. The file has only the outcome, so it is computed anew and compared."""
    factors = file.read(FREQUENCY_FACTORS)
    if torch.all(factors == 1):
        return None
    original = file.metadata.get(f"{architecture}.rope.scaling.original_context_length", 8192)
    scaling = {
        "rope_type": "llama3",
        "factor": factors.max().item(),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }
    try:
        config = transformers.AutoConfig.for_model(**fields, rope_scaling=scaling)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    except Exception as error:
        raise BadInput(f"{file.path}: metadata cannot be scaled as llama 3: {error!r}") from error
    size = 2 * scaled.numel()
    plain = fields.get("rope_theta", 10000.0) ** -(torch.arange(0, size, 2) / size)
    if factors.shape != scaled.shape or not torch.allclose(plain / scaled, factors, rtol=1e-3):
        raise UnsupportedModel(
            f"{file.path}: {FREQUENCY_FACTORS} is another scaling than llama 3's, the only one known"
        )
    return scaling
