"""What the machine code of attention looks like, without a GPU: `PYTHONPATH=tests attention_code.py [--levels sm_90]`.

A line for each target, head size, cache and kernel: registers and spilled bytes of a thread, barriers in the loop over
keys, instructions that a warp issues for a key (in all warps of a program), how many of them multiply matrices, and
what a multiprocessor has asked for while it works.
"""

import argparse
import itertools
from collections.abc import Iterable, Iterator

import torch
from support.attention_regions import Case

from llmc.codegen.triton.attention_decode import DecodeAttention
from llmc.codegen.triton.attention_kernel import AttentionKernel
from llmc.codegen.triton.attention_prefill import PrefillAttention
from llmc.codegen.triton.compile import compile_kernels
from llmc.codegen.triton.sass import Loop
from llmc.codegen.triton.static_checks import Traits, examine
from llmc.options import cache_directory

LEVELS = ("sm_80", "sm_89", "sm_90", "sm_100")
SIZES = ("64", "80", "96", "128", "192", "256")
CACHES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
KINDS = ("decode", "prefill")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, values in (("levels", LEVELS), ("sizes", SIZES), ("caches", CACHES), ("kinds", KINDS)):
        parser.add_argument(f"--{name}", default=",".join(values), help="some of these, with commas between")
    parser.add_argument("--bounded", action="store_true", help="kernels without a running maximum")
    given = parser.parse_args()
    print("target  D      cache kind     rows keys warps stages | regs spill bar instr/key mma% KB/SM findings")
    for level in given.levels.split(","):
        shapes = itertools.product(given.sizes.split(","), given.caches.split(","))
        kernels = {
            f"{size:6} {cache:5} {kernel.kind:8}": kernel
            for size, cache in shapes
            for kernel in kernels_of(size, cache, level, given.bounded)
            if kernel.kind in given.kinds.split(",")
        }
        for line in table(kernels, level):
            print(f"{level:7} {line}", flush=True)


def kernels_of(size: str, cache: str, level: str, bounded: bool) -> Iterable[AttentionKernel]:
    """Those of 32 query heads over 8 key heads; sizes of keys and values may differ, as in 576/512."""
    keys, _, values = size.partition("/")
    case = Case(32, 8, int(keys), int(values or keys), CACHES[cache], target=level, bounded=bounded)
    region, context = case.region(), case.context()
    return DecodeAttention(region, context), PrefillAttention(region, context)


def table(kernels: dict[str, AttentionKernel], level: str) -> Iterator[str]:
    """A line for each of some kernels."""
    binaries = compile_kernels({name: kernel.text for name, kernel in kernels.items()}, level, cache=cache_directory())
    for name, kernel in kernels.items():
        text, tile = kernel.text, kernel.tile
        seen = examine(binaries[name], Traits(0, True, text.most_barriers, frozenset(), text.pdl), level)
        loop = max(seen.machine.loops, key=lambda loop: (_multiplications(loop), -len(loop.body)))  # without a mask
        share = _multiplications(loop) / len(loop.body)
        flying = seen.blocks_per_sm * max(0, tile.stages - 2) * tile.keys * kernel.shape.key_bytes
        yield (
            f"{name} {tile.rows:4} {tile.keys:4} {text.warps:5} {text.stages:6} | {seen.machine.registers:4}"
            f" {seen.machine.stack:5} {loop.counts['BAR']:3} {len(loop.body) * text.warps / tile.keys:9.1f}"
            f" {share:4.0%} {flying / 1024:5.0f} {'; '.join(seen.findings)}"
        )


def _multiplications(loop: Loop) -> int:
    return sum("MMA" in item.name for item in loop.body)


if __name__ == "__main__":
    main()
