"""What has no native form becomes regions that torch computes: which nodes, in which order, and what is refused."""

from collections.abc import Callable

import pytest
import torch
from support.odd_models import Layers, decoder

import llmc
from llmc.codegen.cpp.emit import CpuSource
from llmc.codegen.regions import Linear, RowRegion, TorchRegion
from llmc.codegen.torch_calls import read_calls, write_calls


def compiled(change: Callable[[torch.Tensor], torch.Tensor]) -> CpuSource:
    """The program of a decoder whose two layers end in `change`."""
    build = llmc.compile(decoder(change), program="cpu", prove=False)._build
    assert build is not None and build.native is not None, build and build.report["program"]
    return build.native.source


def parts(source: CpuSource) -> list[list[str]]:
    """The ops of each region that torch computes."""
    return [
        [node.target.__name__.split(".")[0] for node in region.call.module.graph.nodes if node.op == "call_function"]
        for region in source.regions
        if isinstance(region, TorchRegion)
    ]


def test_an_op_without_a_native_form_is_a_region_of_the_repeated_layer() -> None:
    source = compiled(torch.erfc)
    kinds = [type(region) for region in source.regions]
    assert kinds == [RowRegion, *[Linear, Linear, TorchRegion, RowRegion] * 2, Linear]
    assert [(loop.period, loop.count) for loop in source.loops] == [(4, 2)]
    assert len(source.torch) == 1  # both layers call the same


def test_the_report_says_how_much_is_native_and_what_is_not_and_why() -> None:
    program = llmc.compile(decoder(torch.erfc), program="cpu", prove=False).report["program"]
    assert isinstance(program, dict) and program["kind"] == "cpu"
    assert program["native"] == pytest.approx(1 - 2 / 13)
    (left,) = program["torch"]
    assert left["op"] == "aten.erfc" and left["count"] == 2 and left["reason"].endswith("has no native form")
    assert left["origin"].startswith("layers.* at ")


def test_all_native_is_said_too() -> None:
    assert compiled(torch.relu).description["native"] == 1.0
    assert compiled(torch.relu).torch == ()


def test_neighbours_without_a_native_form_are_one_region() -> None:
    source = compiled(lambda x: torch.sort(torch.erfc(x), -1).values)
    assert parts(source) == [["erfc", "sort", "getitem"]] * 2


def test_what_is_native_stays_so_between_them() -> None:
    source = compiled(lambda x: torch.erfc(torch.erfc(x) * 2))
    assert parts(source) == [["erfc"]] * 4


def test_views_at_the_end_of_a_region_are_no_part_of_it() -> None:
    assert parts(compiled(lambda x: torch.cat(torch.erfc(x).split(8, -1)[::-1], -1))) == [["erfc"]] * 2


def test_complex_numbers_never_leave_torch() -> None:
    def turned(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (16, 2)))
        return torch.view_as_real(pairs * pairs).flatten(-2)

    assert all(ops[0] == "view_as_complex" and ops[-1] == "view_as_real" for ops in parts(compiled(turned)))


def test_values_of_other_sizes_than_rows_stay_within_a_region() -> None:
    """Twice as many rows as tokens have no place in a native program."""
    source = compiled(lambda x: torch.relu(torch.cat([x, -x], 1))[:, : x.shape[1]])
    assert parts(source) == [["cat", "relu", "slice"]] * 2


def test_rows_in_another_order_are_left_to_the_reference_program() -> None:
    """A region is computed row by row; backwards and forwards again would be right only as a whole."""
    report = llmc.compile(decoder(lambda x: torch.relu(x.flip(1)).flip(1)), program="cpu", prove=False).report[
        "program"
    ]
    assert isinstance(report, dict) and report["kind"] == "reference"
    assert "not one token each, in order" in str(report["reason"])


def test_a_linear_over_more_axes_is_computed_from_its_packed_weight() -> None:
    class Split(Layers):
        def __init__(self) -> None:
            super().__init__(None)
            self.small = torch.nn.Linear(8, 8)

        def change(self, x: torch.Tensor) -> torch.Tensor:
            return self.small(x.unflatten(-1, (4, 8))).flatten(-2)

    build = llmc.compile(Split().eval(), program="cpu", prove=False)._build
    assert build is not None and build.native is not None
    region = next(region for region in build.native.source.regions if isinstance(region, TorchRegion))
    assert parts(build.native.source)[0] == ["linear_packed"]
    assert [view.buffer.place for view in region.inputs] == ["arena", "weight", "weight"]


def test_strict_makes_it_an_error_that_names_the_op_and_its_line() -> None:
    with pytest.raises(llmc.errors.BuildFailed, match=r"bessel_j0.*odd_models\.py:\d+.*leave out --strict"):
        llmc.compile(decoder(torch.special.bessel_j0), program="cpu", strict=True)


def test_the_program_names_the_file_of_its_calls() -> None:
    from llmc.codegen.torch_calls import digest

    source = compiled(torch.erfc)
    content = write_calls(source.torch)
    assert digest(content) in source.text
    (call,) = read_calls(content)
    assert call.rows == "T" and [layout.width for layout in call.inputs] == [32]
