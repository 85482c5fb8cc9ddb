"""Keys and values kept in fewer bits than they are computed in."""

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from llmc.ir.cache_formats import CACHE_FORMATS, LARGEST, stored_width
from llmc.ir.infer import fake_mode
from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter

CACHED = torch.ops.llmc.cached_attention.default


@dataclass(frozen=True)
class NarrowCache:
    """Give the caches of `cached_attention` another format: keys and values are rounded as they are written.

    The error of the rewrite is that rounding: half a unit in the last place, of integers half a level, as a fraction of
    the largest element.
    """

    name: ClassVar[str] = "narrow_cache"
    format: str
    """A name in `llmc.ir.cache_formats.CACHE_FORMATS`."""

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Change the inputs of a packed step; return how many caches have another dtype now."""
        start, dtype = time.perf_counter(), CACHE_FORMATS[self.format]
        caches = [cache for node in model.calls(CACHED) for cache in node.args[3:5] if isinstance(cache, fx.Node)]
        changed = [cache for cache in dict.fromkeys(caches) if cache.meta["val"].dtype != dtype]
        if not changed or rewriter.stopped:
            return 0
        error = max(_rounding(cache.meta["val"].dtype, dtype) for cache in changed)
        for cache in changed:
            value = cache.meta["val"]
            with fake_mode(model.graph):
                cache.meta["val"] = value.new_empty(
                    (*value.shape[:-1], stored_width(int(value.shape[-1]), dtype)), dtype=dtype
                )
        rewriter.record(self.name, changed[0], error, time.perf_counter() - start)
        return len(changed)


def _rounding(of: torch.dtype, to: torch.dtype) -> float:
    """What storing numbers of dtype `of` as `to` changes at most, as a fraction of the largest."""
    if to == torch.int8:
        return 0.5 / LARGEST[to]
    return torch.finfo(to).eps / 2 if torch.finfo(to).eps > torch.finfo(of).eps else 0.0
