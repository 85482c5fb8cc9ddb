"""What the machine code of linears and experts looks like, without a GPU: `PYTHONPATH=tests linear_code.py [--levels
sm_90] [--formats int4,bf16] [--shapes 1b.qkv,moe.mixtral] [--rows 1,8]`.

A line for each launch: programs for each multiprocessor and how many fit on one; registers and accesses to spilled
ones; barriers in the loop; bytes of weights on their way on a multiprocessor; instructions of a thread for each weight
that it multiplies; how long matrix units work for what the loop has them do, as a share of the time that issuing its
instructions takes; the size of the code.
"""

import argparse
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace

from support.linear_cases import Case, layer
from support.linear_regions import Outline
from support.mixtures import mixture

from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.compile import Binary, compile_kernels
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_experts import emit_experts
from llmc.codegen.triton.kernel import Draft
from llmc.codegen.triton.linear_formats import FORMS
from llmc.codegen.triton.static_checks import Examination, examine, inner_loop, traits_of
from llmc.options import cache_directory

LEVELS = ("sm_80", "sm_89", "sm_90", "sm_100")
FORMATS = ("bf16", "fp8", "int8", "int6", "int6g16", "int4", "int4g64", "int4g128", "int4m")
MODELS = {
    "smollm2": (576, 1536, 9, 3, 64, 49152),
    "1b": (2048, 8192, 32, 8, 64, 128256),
    "8b": (4096, 14336, 32, 8, 128, 128256),
}
"""Features, features within a layer's MLP, heads of queries, of keys, their size, and tokens."""
MIXTURES = {"mixtral": (8, 4096, 14336, 2), "qwen": (128, 2048, 768, 8)}
"""Experts, features, features within an expert, and experts of a token."""
KINDS = ("linear", "experts_up", "experts_down")
MULTIPLICATIONS = {"sm_80": 1024, "sm_89": 512, "sm_90": 1024, "sm_100": 1024}
"""Of a multiprocessor's matrix units in a cycle, of operands in registers; twice as many from shared memory."""


def shapes() -> dict[str, Case | tuple[int, int, int, int]]:
    """Linears of layers by model and name, and mixtures."""
    found: dict[str, Case | tuple[int, int, int, int]] = {f"moe.{name}": sizes for name, sizes in MIXTURES.items()}
    for model, (d, wide, heads, keys, size, tokens) in MODELS.items():
        found |= {f"{model}.{name}": case for name, case in layer(d, wide, heads, keys, size).items()}
        found[f"{model}.head"] = Case(n=tokens, k=d, source="rms_norm", domain="R", indirect=True)
    return found


def launches(name: str, format: str, level: str, rows: int) -> Iterator[tuple[str, Draft]]:
    """What serves so many rows of a shape, but for kernels that multiply nothing."""
    shape = shapes()[name]
    if isinstance(shape, Case):
        drafts = Outline(replace(shape, format=format, target=level)).drafts()
    else:
        drafts = emit_experts(mixture(format, *shape), Context(Target.preset(level), Crossovers(), (), 128, 1000))
    for draft in drafts:
        if isinstance(draft, Draft) and draft.when.holds({"T": rows, "R": rows, "B": 1}) and draft.kernel.kind in KINDS:
            yield f"{name}{draft.kernel.kind.removeprefix('linear').replace('experts_', '.')}", draft


def matrix_share(seen: Examination, draft: Draft, level: str) -> float:
    """Cycles of matrix units for a round of the loop over those that issuing it takes, for one warp."""
    loop = inner_loop(seen.machine, traits_of(draft, Target.preset(level)))
    if loop is None:
        return 0.0
    cycles = 0.0
    for item in loop.body:
        small, large = re.match(r"HMMA\.16816", item.op), re.match(r"HGMMA\.64x(\d+)x16", item.op)
        cycles += 16 * 8 * 16 / MULTIPLICATIONS[level] if small else 0
        cycles += 16 * int(large[1]) * 16 / (2 * MULTIPLICATIONS[level]) if large else 0
    return cycles / (len(loop.body) / 4)


def line(seen: Examination, binary: Binary, draft: Draft, level: str, rows: int) -> str:
    """The numbers of one launch."""
    traits, machine = traits_of(draft, Target.preset(level), rows), seen.machine
    spilled = machine.counts["LDL"] + machine.counts["STL"]
    loop = inner_loop(machine, traits)
    barriers = loop.counts["BAR"] if loop is not None else 0
    return (
        f"{traits.programs:6.2f} {seen.blocks_per_sm:5} {draft.kernel.warps:5} {draft.kernel.stages:6} |"
        f" {machine.registers:4} {spilled:5} {barriers:3} {seen.in_flight_per_sm / 1024:5.0f}"
        f" {seen.instructions_a_weight:8.2f} {matrix_share(seen, draft, level):7.0%} {len(binary.code) / 1024:4.0f}"
        f" {'; '.join(seen.findings)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, values in (("levels", LEVELS), ("formats", FORMATS), ("shapes", shapes()), ("rows", ["1", "8", "16"])):
        parser.add_argument(f"--{name}", default=",".join(values), help="some of these, with commas between")
    given = parser.parse_args()
    print("target  format   rows shape            progs fit warps stages | regs spill bar KB/SM instr/wt matrix  KB")
    choices = (getattr(given, name).split(",") for name in ("levels", "formats", "shapes", "rows"))
    for level, format, shape, rows in itertools.product(*choices):
        assert format in FORMS, f"{format} is a format"
        for name, draft in launches(shape, format, level, int(rows)):
            binary = compile_kernels({"k": draft.kernel}, level, cache=cache_directory())["k"]
            seen = examine(binary, traits_of(draft, Target.preset(level), int(rows)), level)
            print(f"{level:7} {format:8} {rows:>4} {name:16}{line(seen, binary, draft, level, int(rows))}", flush=True)


if __name__ == "__main__":
    main()
