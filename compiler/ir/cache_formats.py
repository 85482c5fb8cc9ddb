"""How the cache stores keys and values: as floats, or as numbers of eight bits with a scale.

    format     dtype of the cache    width for heads of size D
    float32    torch.float32         D
    float16    torch.float16         D
    bfloat16   torch.bfloat16        D
    int8       torch.int8            D + 2: integers from -127 to 127
    fp8        torch.float8_e4m3fn   D + 2: floats up to 448

In eight bits a key or value of one token and head is D numbers and then the two bytes of its scale, a bfloat16, that
they are multiplied by. The scale is the largest magnitude / 127 (448), rounded up, so that no number goes beyond its
range; it is 0 where it would be subnormal.
"""

import torch
from torch import Tensor

CACHE_FORMATS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
"""The dtype of a cache in each format; it tells the formats apart."""

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""What the largest magnitude of a key or value becomes, in formats with a scale."""
SCALE_BYTES = 2


def stored_width(size: int, dtype: torch.dtype) -> int:
    """Elements that a key or value of `size` takes in a cache of `dtype`."""
    return size + SCALE_BYTES if dtype in LARGEST else size


def head_size(width: int, dtype: torch.dtype) -> int:
    """The size of a key or value that takes `width` elements in a cache of `dtype`."""
    return width - SCALE_BYTES if dtype in LARGEST else width


def format_of(dtype: torch.dtype) -> str:
    """The name of the format whose caches have `dtype`; the dtype's own where it is none of them."""
    names = {held: name for name, held in CACHE_FORMATS.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def to_stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values [..., D] as a cache of `dtype` holds them, [..., stored_width(D)]."""
    if dtype not in LARGEST:
        return x.to(dtype)
    numbers, scale = _scaled(x.float(), LARGEST[dtype])
    rounded = numbers.round().nan_to_num(0.0) if dtype == torch.int8 else numbers
    return torch.cat((rounded.to(dtype).view(torch.int8), scale.view(torch.int8)), dim=-1).view(dtype)


def from_stored(stored: Tensor) -> Tensor:
    """What a cache holds, [..., stored_width(D)], as numbers [..., D]: float32 where they have a scale."""
    if stored.dtype not in LARGEST:
        return stored
    scale = stored.view(torch.int8)[..., -SCALE_BYTES:].clone(memory_format=torch.contiguous_format)
    return stored[..., :-SCALE_BYTES].float() * scale.view(torch.bfloat16).float()


def _scaled(x: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """x [..., D] float32 in units of its scale, within [-largest, largest], and the scale [..., 1] bfloat16."""
    exact = x.abs().amax(-1, keepdim=True) / largest
    raised = ((exact.view(torch.int32) + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
    scale = torch.where(exact < torch.finfo(torch.float32).tiny, 0, raised)
    scale = torch.where(exact.isnan(), torch.nan, scale)
    inverse = torch.where(scale > 0, scale.float().reciprocal(), 0.0)
    return (x * inverse).clamp(-largest, largest), scale


def write_rows(cache: Tensor, slots: Tensor, x: Tensor) -> None:
    """Store x [T, Hk, D] at `slots` [T] (block · BS + offset) of a cache [NB, BS, Hk, stored_width(D)]."""
    rows = to_stored(x, cache.dtype)
    _addressable(cache).view(-1, *cache.shape[2:]).index_copy_(0, slots, _addressable(rows))


def read_rows(cache: Tensor, blocks: Tensor, length: int) -> Tensor:
    """The first `length` keys or values [length, Hk, D] of `blocks` [M] of a cache [NB, BS, Hk, stored_width(D)]."""
    rows = _addressable(cache)[blocks].flatten(0, 1)[:length]
    return from_stored(rows.view(cache.dtype))


def _addressable(x: Tensor) -> Tensor:
    """The same memory in a dtype that torch can index."""
    return x.view(torch.int8) if x.dtype.itemsize == 1 else x
