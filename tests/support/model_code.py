"""The machine code of a model's program for a GPU, as the launches of a step of so many tokens use it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmc.codegen.regions import Attention
from llmc.codegen.target import Target
from llmc.codegen.triton.compile import Binary, compile_kernels
from llmc.codegen.triton.emit import GpuSource
from llmc.codegen.triton.kernel import Draft
from llmc.codegen.triton.static_checks import Examination, examine, traits_of
from llmc.runtime.cuda.plan import Launch, Product

LONGEST_BATCH = 128
"""Rows up to which a step decodes one token of each of so many sequences; beyond, it reads a prompt."""


def launches(source: GpuSource, tokens: int) -> list[Launch | Product]:
    """Those of a step, but for the choice of tokens."""
    sizes = _sizes(tokens)
    return [launch for launch in source.plan.launches if launch.when.holds(sizes)]


def launches_of_layer(source: GpuSource, tokens: int, layer: int) -> int:
    """How many of them belong to a layer, by the modules that their regions come from."""
    module = re.compile(rf"\.{layer}(\.|$| )")
    return sum(bool(module.search(source.regions[launch.region].origin)) for launch in launches(source, tokens))


def compiled(source: GpuSource, level: str, tokens: int, cache: Path) -> dict[str, Binary]:
    """The kernels of a step, by name."""
    names = dict.fromkeys(launch.kernel for launch in launches(source, tokens) if isinstance(launch, Launch))
    return compile_kernels({name: source.kernels[name] for name in names}, level, cache=cache)


def examined(
    source: GpuSource, binaries: Mapping[str, Binary], level: str, tokens: int
) -> Iterator[tuple[str, Examination]]:
    """Each kernel of a step once, and what its machine code is like."""
    seen = set()
    for launch in launches(source, tokens):
        if not isinstance(launch, Launch) or launch.kernel in seen:
            continue
        seen.add(launch.kernel)
        region = source.regions[launch.region]
        logits = not isinstance(region, Attention) and region.domain == "R"
        rows = 1 if logits and tokens > LONGEST_BATCH else tokens
        traits = traits_of(Draft(source.kernels[launch.kernel], launch.grid), Target.preset(level), rows)
        yield launch.kernel, examine(binaries[launch.kernel], traits, level)


def _sizes(tokens: int) -> dict[str, int]:
    batch = tokens if tokens <= LONGEST_BATCH else 1
    return {"T": tokens, "B": batch, "R": batch}
