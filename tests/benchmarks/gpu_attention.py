"""Decode attention from 128 to 32k tokens against SDPA and FlexAttention: `PYTHONPATH=tests gpu_attention.py [1b|8b]`.

Microseconds a layer, for one sequence in bfloat16; four layers with caches of their own, in one graph each.
"""

import statistics
import sys
from collections.abc import Callable

import torch
from benchmarks.gpu_models import SHAPES, gpu_session, random_llama

from llmc.bench.gpu_kernels import kernel_times

LAYERS = 4
DEPTHS = (128, 512, 2048, 8192, 32768)


def main(shape: str = "8b") -> None:
    program = gpu_session(random_llama(shape, LAYERS), max_context=DEPTHS[-1] + 1).program
    print(f"{shape}: {'depth':>8} {'llmc':>9} {'SDPA':>9} {'Flex':>9}  (us a layer)")
    for depth in DEPTHS:
        times = kernel_times(program, program.device, sequences=1, position=depth - 1)
        own = sum(time.seconds for time in times if time.kernel.startswith("attention")) / LAYERS
        queries, keys, values = tensors(shape, depth, "cuda")
        others = [graphed(attend, queries, keys, values) / LAYERS for attend in (sdpa, compiled_flex())]
        print(f"    {depth:8} " + " ".join(f"{seconds * 1e6:9.2f}" for seconds in (own, *others)))


def tensors(shape: str, depth: int, device: str) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Of each layer the query of one token, and keys and values of `depth`."""
    sizes = SHAPES[shape]

    def make(heads: int, tokens: int) -> list[torch.Tensor]:
        return [torch.randn(1, heads, tokens, sizes.head, device=device, dtype=torch.bfloat16) for _ in range(LAYERS)]

    return make(sizes.heads, 1), make(sizes.key_heads, depth), make(sizes.key_heads, depth)


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)


def compiled_flex() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(lambda query, key, value: flex_attention(query, key, value, enable_gqa=True), dynamic=False)


def graphed(attend: Callable[..., torch.Tensor], *inputs: list[torch.Tensor]) -> float:
    """Seconds of all layers, recorded in a CUDA graph."""

    def layers() -> None:
        for query, key, value in zip(*inputs, strict=True):
            attend(query, key, value)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compiled and warmed up before it is recorded
        for _ in range(3):
            layers()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers()
    times = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 10 / 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    main(*sys.argv[1:])
