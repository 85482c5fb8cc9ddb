"""How keys and values are stored in the cache."""

import math

import pytest
import torch

import llmc.ir.masked_attention  # noqa: F401
from llmc.ir.cache_formats import (
    CACHE_FORMATS,
    LARGEST,
    format_of,
    from_stored,
    head_size,
    read_rows,
    stored_width,
    to_stored,
    write_rows,
)
from llmc.runtime.program import CacheSpec

STEPS = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 0.51 / 127, "fp8": 2**-4}
"""What rounding may change, of floats as a fraction of a number, of integers of the largest."""


@pytest.mark.parametrize("name", CACHE_FORMATS)
@pytest.mark.parametrize("size", [1, 2, 33, 64])
def test_what_is_stored_is_near_what_was_given(name: str, size: int) -> None:
    dtype = CACHE_FORMATS[name]
    reach = 2 if name == "float16" else 6  # a scale reaches as far as floats of 32 bits do
    scales = torch.logspace(-reach, reach, 7)[:, None, None]
    x = torch.randn(7, 3, size, generator=torch.Generator().manual_seed(size)) * scales
    stored = to_stored(x, dtype)
    assert stored.dtype == dtype and stored.shape == (7, 3, stored_width(size, dtype))
    assert head_size(stored.shape[-1], dtype) == size and format_of(dtype) == name
    largest = x.abs().amax(-1, keepdim=True)
    near = largest if name == "int8" else torch.maximum(x.abs(), largest * 2**-9)
    assert ((from_stored(stored).float() - x).abs() <= STEPS[name] * near).all()


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_the_largest_number_stays_within_its_range(name: str) -> None:
    dtype = CACHE_FORMATS[name]
    x = torch.rand(1000, 1, generator=torch.Generator().manual_seed(1)) * 100 + 1e-3
    numbers = to_stored(torch.cat((x, -x), -1), dtype)[:, :2].float()
    assert numbers.abs().max() <= LARGEST[dtype]
    assert numbers.abs().min() >= LARGEST[dtype] * 0.98  # the scale is rounded up by less than a 128th


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_zeros_and_what_is_no_number(name: str) -> None:
    dtype = CACHE_FORMATS[name]
    odd = torch.tensor([[0.0, 0.0], [1e-40, -1e-40], [math.nan, 1.0]])
    found = from_stored(to_stored(odd, dtype))
    assert not found[:2].any() and found[2].isnan().all()


@pytest.mark.parametrize("name", CACHE_FORMATS)
def test_rows_are_written_to_their_slots_and_read_by_blocks(name: str) -> None:
    dtype = CACHE_FORMATS[name]
    x = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(0))
    cache = torch.zeros(4, 3, 2, stored_width(6, dtype), dtype=dtype)
    blocks = torch.tensor([2, 0])
    slots = torch.tensor([6, 7, 8, 0, 1])
    write_rows(cache, slots, x)
    assert torch.equal(read_rows(cache, blocks, 5), from_stored(to_stored(x, dtype)))
    untouched = cache.view(torch.uint8).flatten(0, 1).sum((-1, -2))
    assert untouched.nonzero().flatten().tolist() == sorted(slots.tolist())


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_attention_reads_what_it_wrote(name: str) -> None:
    dtype, generator = CACHE_FORMATS[name], torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(9, heads, size, generator=generator) for heads, size in ((4, 8), (2, 8), (2, 5)))
    caches = [torch.zeros(2, 16, 2, stored_width(size, dtype), dtype=dtype) for size in (8, 5)]
    step = (torch.arange(9), torch.arange(9) + 16, torch.tensor([0, 9]), torch.tensor([9]), torch.tensor([[1]]))
    found = torch.ops.llmc.cached_attention(q, k, v, *caches, *step, None, [], "k <= q", "0", 0.3, 0.0)
    rounded = [from_stored(to_stored(part, dtype)) for part in (k, v)]
    whole = [part.transpose(0, 1)[None] for part in (q, *rounded)]
    expected = torch.ops.llmc.masked_attention(*whole, None, [], "k <= q", "0", 0.3, 0.0)
    torch.testing.assert_close(found, expected[0].transpose(0, 1))


@pytest.mark.parametrize("name", CACHE_FORMATS)
def test_the_runtime_counts_the_bytes_that_are_stored(name: str) -> None:
    dtype = CACHE_FORMATS[name]
    elements = 3 * (stored_width(20, dtype) + stored_width(24, dtype))
    assert CacheSpec(3, 20, 24, name).token_bytes == elements * dtype.itemsize
