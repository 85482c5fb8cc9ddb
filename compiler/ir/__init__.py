"""What a model is in llmc: an FX graph of ATen and `llmc::` ops, weights as recipes, rewrites with their proof."""

from llmc.ir import masked_attention, ops, packed, packed_blocks

__all__ = ["masked_attention", "ops", "packed", "packed_blocks"]
