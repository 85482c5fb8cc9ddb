"""Keys and values kept in fewer bits than they are computed in."""

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from llmc.ir.model import Model
from llmc.ir.rewrite import Rewriter

CACHED = torch.ops.llmc.cached_attention.default


@dataclass(frozen=True)
class NarrowCache:
    """Give the caches of `cached_attention` another dtype: keys and values are rounded as they are written.

    The error of the rewrite is that rounding, half a unit in the last place.
    """

    name: ClassVar[str] = "narrow_cache"
    dtype: str
    """"float32", "float16" or "bfloat16"."""

    def run(self, model: Model, rewriter: Rewriter) -> int:
        """Change the inputs of a packed step; return how many caches have another dtype now."""
        start, dtype = time.perf_counter(), getattr(torch, self.dtype)
        caches = [cache for node in model.calls(CACHED) for cache in node.args[3:5] if isinstance(cache, fx.Node)]
        changed = [cache for cache in dict.fromkeys(caches) if cache.meta["val"].dtype != dtype]
        if not changed or rewriter.stopped:
            return 0
        widest = max(changed, key=lambda cache: -torch.finfo(cache.meta["val"].dtype).eps)
        narrower = torch.finfo(dtype).eps > torch.finfo(widest.meta["val"].dtype).eps
        for cache in changed:
            cache.meta["val"] = cache.meta["val"].to(dtype)
        error = torch.finfo(dtype).eps / 2 if narrower else 0.0
        rewriter.record(self.name, changed[0], error, time.perf_counter() - start)
        return len(changed)
