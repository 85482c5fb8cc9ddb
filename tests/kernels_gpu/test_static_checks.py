"""Checks of machine code find what they are for, in kernels that are made to be wrong in one way each."""

from dataclasses import replace
from pathlib import Path

import pytest

from llmc.codegen.layout import Buffer
from llmc.codegen.triton.compile import Binary, compile_kernels
from llmc.codegen.triton.early_reads import early_reads
from llmc.codegen.triton.kernel import KernelText
from llmc.codegen.triton.static_checks import Examination, Traits, examine, time_for


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def _compiled(cache: Path, text: KernelText) -> Binary:
    return compile_kernels({"k": text}, "sm_90", cache=cache)["k"]


def _product(
    weight: str, *, early: str = "w", order: tuple[str, ...] = ("weights", "wait", "inputs"), length: int = 65536
) -> KernelText:
    """A row of `length` weights times as many inputs, 1024 at a time; `order` is that of the first piece."""
    text = KernelText("product", pdl=True)
    dtype = {"bf16": "bf16", "u8": "u8"}[weight]
    w = text.pointer(Buffer(1, "weight", "", 4096, dtype, "weight"), "w")
    x = text.pointer(Buffer(2, "x", "T", 4096, "f32", "arena"), "x")
    y = text.pointer(Buffer(3, "y", "T", 64, "f32", "arena"), "y")
    lines = {
        "weights": f"first = tl.load({w if early == 'w' else x} + k).to(tl.float32)",
        "wait": "tl.extra.cuda.gdc_wait()",
        "inputs": f"given = tl.load({x} + k)",
    }
    text.add(
        "k = tl.arange(0, 1024)",
        *(lines[name] for name in order),
        *(line for name, line in lines.items() if name not in order and name != "wait"),
        "total = first * given",
        f"for start in range(1024, {length}, 1024):",
        f"    weight = tl.load({w} + start + k, eviction_policy='evict_first').to(tl.float32)",
        f"    total += weight * tl.load({x} + start + k)",
        f"tl.store({y} + tl.program_id(0), tl.sum(total))",
    )
    return text


def _findings(cache: Path, text: KernelText, **traits: object) -> Examination:
    return examine(_compiled(cache, text), Traits(pdl=True, constants=frozenset([0]), **traits), "sm_90")  # type: ignore[arg-type]


def test_weights_may_be_read_before_the_wait(cache: Path) -> None:
    text = _product("bf16")
    assert early_reads(_compiled(cache, text).assembly) == {0}
    assert _findings(cache, text).findings == ()


def test_a_copy_to_shared_memory_reads_too() -> None:
    text = """
    ld.param.b64 %rd1, [k_param_0];
    ld.param.b64 %rd2, [k_param_1];
    mov.b32 %r1, global_smem;
    add.s64 %rd3, %rd2, 16;
    cp.async.cg.shared.global [ %r1 + 0 ], [ %rd3 + 0 ], 0x10, 0x10;
    griddepcontrol.wait;
    ld.global.b32 %r2, [ %rd1 + 0 ];
    """
    assert early_reads(text) == {1}


@pytest.mark.parametrize(("level", "most"), [("sm_80", 99 << 10), ("sm_90", 227 << 10)])
def test_a_block_has_the_shared_memory_of_the_least_gpu_that_runs_it(cache: Path, level: str, most: int) -> None:
    text = KernelText("nothing")
    text.add("pass")
    binary = compile_kernels({"k": text}, level, cache=cache)["k"]
    fits, too_much = (replace(binary, shared=shared) for shared in (most, most + 1))
    assert not any("shared" in finding for finding in examine(fits, Traits(), level).findings)
    found = [finding for finding in examine(too_much, Traits(), level).findings if "shared" in finding]
    assert found == [f"{most + 1} bytes of shared memory, {level} has {most} for a block"]


def test_inputs_may_not(cache: Path) -> None:
    found = _findings(cache, _product("bf16", early="x")).findings
    assert found == ("parameters [1] are read before it waits for its predecessor, and are no constants",)


def test_a_kernel_that_does_not_wait_is_found(cache: Path) -> None:
    found = _findings(cache, _product("bf16", order=("weights", "inputs"))).findings
    assert found == ("it is launched before its predecessor has ended, and does not wait for it",)


def test_conversions_in_a_loop_over_small_weights_are_found(cache: Path) -> None:
    found = _findings(cache, _product("u8"), weight_bits=8).findings
    assert any("conversions from integers in the inner loop" in finding for finding in found), found


def test_too_little_in_flight_is_found(cache: Path) -> None:
    examination = _findings(cache, _product("bf16"), weight_bits=16, programs=1.0)
    assert 0 < examination.in_flight_per_sm < 32 << 10 and 0 < examination.instructions_a_weight < 15
    assert any("in flight on a multiprocessor" in finding for finding in examination.findings)


def test_only_programs_that_there_are_have_something_in_flight(cache: Path) -> None:
    one, two = (_findings(cache, _product("bf16"), weight_bits=16, programs=many) for many in (1.0, 2.0))
    assert two.in_flight_per_sm == 2 * one.in_flight_per_sm and one.blocks_per_sm > 2


def test_rounds_that_are_all_under_way_are_enough(cache: Path) -> None:
    traits = {"weight_bits": 16, "round_bytes": 2048, "stages": 3, "programs": 1.0}
    said = [_findings(cache, _product("bf16"), rounds=rounds, **traits).findings for rounds in (2, 32)]
    assert [any("in flight" in finding for finding in findings) for findings in said] == [False, True]


@pytest.mark.parametrize(("index", "found"), [("k", False), ("(k * 3 % 1024)", True)])
def test_loads_that_rounds_wait_for_are_found(cache: Path, index: str, found: bool) -> None:
    """Bytes that lie apart cannot come in the background; those that lie together come four at a time."""
    text = KernelText("product")
    w = text.pointer(Buffer(1, "weight", "", 65536, "f32", "weight"), "w")
    z = text.pointer(Buffer(2, "zeros", "", 65536, "u8", "weight"), "z")
    y = text.pointer(Buffer(3, "y", "T", 64, "f32", "arena"), "y")
    text.add(
        "k = tl.arange(0, 1024)",
        "total = tl.zeros((1024,), tl.float32)",
        "for start in tl.range(0, 65536, 1024, num_stages=3):",
        f"    total += tl.load({w} + start + k) * tl.load({z} + start + {index}).to(tl.float32)",
        f"tl.store({y} + tl.program_id(0), tl.sum(total))",
    )
    traits = Traits(weight_bits=32, round_bytes=4096, rounds=64, stages=3)
    said = examine(_compiled(cache, text), traits, "sm_90").findings
    assert any("not under way" in finding for finding in said) == found, said


def test_time_for_a_weight_is_that_of_its_target() -> None:
    """132 multiprocessors of 128 instructions a cycle at 1.98 GHz, while memory delivers 0.9 of 4.8 TB/s."""
    assert time_for(16, "sm_90") == pytest.approx(132 * 128 * 1.98 / (0.9 * 4800) * 2)
    assert time_for(4.75, "sm_100") < time_for(4.75, "sm_90") < time_for(4.75, "sm_80") < time_for(4.75, "sm_89")


def test_a_loop_that_is_unrolled_is_examined_as_well(cache: Path) -> None:
    examination = _findings(cache, _product("u8", length=3072), weight_bits=8)
    assert not examination.machine.loops and examination.instructions_a_weight > 0
    assert any("conversions" in finding for finding in examination.findings)


@pytest.mark.parametrize("held", [False, True])
def test_products_that_wait_for_one_another_are_found(cache: Path, held: bool) -> None:
    """Registers that a product reads in the next round are written while the product of this one still reads them."""
    text = KernelText("products", matrix_units=True)
    w = text.pointer(Buffer(1, "weight", "", 1 << 20, "bf16", "weight"), "w")
    y = text.pointer(Buffer(2, "y", "T", 4096, "f32", "arena"), "y")
    text.add(
        "k = tl.arange(0, 64)",
        "at = k[:, None] * 64 + k[None, :]",
        f"first = tl.load({w} + at)",
        "before = tl.zeros((64, 64), tl.int16)",
        "total = tl.zeros((64, 64), tl.float32)",
        f"for start in tl.range(4096, {text.size('T')}, 4096):",
        f"    matrix = tl.load({w} + start + at)",
        "    found = tl.dot(first, matrix).to(tl.bfloat16)",
        f"    total = tl.dot({'before.to(tl.bfloat16, bitcast=True)' if held else 'found'}, matrix, total * 0.5)",
        "    before = found.to(tl.int16, bitcast=True)",
        f"tl.store({y} + at, total)",
    )
    said = examine(_compiled(cache, text), Traits(matrix_units=True), "sm_90").findings
    assert [finding.partition(" is waited")[0] for finding in said] == held * ["each of 8 products of a group of warps"]


def test_a_loop_outside_of_matrix_units_is_found(cache: Path) -> None:
    found = _findings(cache, _product("bf16"), matrix_units=True).findings
    assert "the inner loop multiplies outside of tensor cores" in found


def test_spilled_registers_are_found(cache: Path) -> None:
    text = KernelText("spill")
    x = text.pointer(Buffer(2, "x", "T", 65536, "f32", "arena"), "x")
    y = text.pointer(Buffer(3, "y", "T", 65536, "f32", "arena"), "y")
    text.warps = 1
    text.add(
        "i = tl.arange(0, 16384)",
        f"a = tl.load({x} + i)",
        "total = tl.sum(a)",
        f"tl.store({y} + i, a / total)",
    )
    found = examine(_compiled(cache, text), Traits(), "sm_90").findings
    assert any(finding.startswith("registers are spilled") for finding in found), found
