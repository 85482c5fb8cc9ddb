"""Attention as Triton kernels: one for steps in which every sequence has one token, one for all others.

Both take the query heads of a key head together, as rows of a matrix, and go over the keys in blocks, which the block
table finds. A decode step divides a sequence's keys over several programs, the last of which merges their results.
"""

from llmc.codegen.regions import Attention
from llmc.codegen.triton.attention_decode import DecodeAttention
from llmc.codegen.triton.attention_prefill import PrefillAttention
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_cache import emit_scaled_stores
from llmc.codegen.triton.kernel import Draft


def emit_attention(region: Attention, context: Context) -> list[Draft]:
    """The launches of one region."""
    kernels = [*DecodeAttention(region, context).drafts(), *PrefillAttention(region, context).drafts()]
    return [*emit_scaled_stores(region.layer, context), *kernels]
