"""Values that only linears read are stored as they multiply them, and no others."""

import pytest

import llmc
from llmc.codegen.regions import Attention, Linear
from llmc.codegen.triton.emit import GpuSource
from llmc.zoo import tiny


def source(quantize: str | None) -> GpuSource:
    """A small Llama for a GPU."""
    return llmc.compile(tiny("llama"), quantize=quantize, target="sm_90", prove=False)._build.gpu.sources["sm_90"]


@pytest.mark.parametrize(("quantize", "dtype"), [("int4", "bf16"), (None, "f32")])
def test_what_attention_gives_linears(quantize: str | None, dtype: str) -> None:
    """Weights of float32 multiply in float32."""
    regions = source(quantize).regions
    outputs = [region.output.buffer for region in regions if isinstance(region, Attention)]
    assert {buffer.dtype for buffer in outputs} == {dtype}
    readers = [region.source for region in regions if isinstance(region, Linear)]
    assert all(any(getattr(reader, "buffer", None) == buffer for reader in readers) for buffer in outputs)


def test_what_is_added_to_stays_float32() -> None:
    regions = [region for region in source("int4").regions if isinstance(region, Linear) and region.chain]
    assert regions and all(region.target is not None and region.target.buffer.dtype == "f32" for region in regions)


def test_fewer_launches_make_rows_ready() -> None:
    """Of a layer's four linears, two have norms before them, and the last has rows of 96 columns, no whole units."""
    made = source("int4")
    sizes = {"T": 20, "R": 1, "B": 1, "F": 0}
    names = [getattr(launch, "kernel", "") for launch in made.plan.launches if launch.when.holds(sizes)]
    layers = sum(isinstance(region, Attention) for region in made.regions)
    assert sum(name.startswith("rows_") for name in names) == 1 + 3 * layers
