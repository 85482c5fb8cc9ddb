"""Kernels compiled without a GPU: what comes out, what is kept, and what a kernel that is wrong says."""

from pathlib import Path

import pytest

from llmc.codegen.layout import Buffer
from llmc.codegen.triton import compile as compiling
from llmc.codegen.triton.compile import Binary, compile_kernels
from llmc.codegen.triton.kernel import KernelText
from llmc.codegen.triton.sass import bytes_in_flight, read_sass
from llmc.errors import BuildFailed, MissingTool


def _copy(*, spoilt: bool = False) -> KernelText:
    text = KernelText("copy", "Copies rows of 1024 numbers.")
    x = text.pointer(Buffer(1, "a", "T", 1024, "f32", "arena"), "x")
    y = text.pointer(Buffer(2, "b", "T", 1024, "f32", "arena"), "y")
    text.add(
        "row = tl.program_id(0).to(tl.int64)",
        "column = tl.arange(0, 1024)",
        f"values = tl.load({x} + row * 1024 + column{' + nothing' if spoilt else ''})",
        f"tl.store({y} + row * 1024 + column, values)",
    )
    return text


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.mark.parametrize("level", ["sm_80", "sm_90"])
def test_loads_are_sixteen_bytes_wide(cache: Path, level: str) -> None:
    made = compile_kernels({"copy_0": _copy()}, level, cache=cache)["copy_0"]
    machine = read_sass(made.code)
    assert (made.symbol, made.threads, machine.stack) == ("copy", 128, 0)
    assert machine.loads == (16, 16)  # 1024 numbers by 128 threads
    assert bytes_in_flight(machine) == 32


def test_only_the_oldest_target_carries_text_for_newer_gpus(cache: Path) -> None:
    oldest, newer = (compile_kernels({"k": _copy()}, level, cache=cache)["k"] for level in ("sm_80", "sm_90"))
    assert oldest.portable and not newer.portable
    assert ".version 8.0" in oldest.assembly and ".target sm_80" in oldest.assembly


def test_what_was_compiled_is_kept_unless_it_is_damaged(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_kernels({"copy_0": _copy()}, "sm_90", cache=cache)

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiling, "_compile", refuse)
    assert compile_kernels({"other_name": _copy()}, "sm_90", cache=cache) == {"other_name": first["copy_0"]}
    monkeypatch.undo()
    (damaged,) = [path for path in (cache / "cuda").glob("*.bin") if path.read_bytes() == first["copy_0"].code]
    damaged.write_bytes(first["copy_0"].code[:-1] + b"?")
    assert compile_kernels({"copy_0": _copy()}, "sm_90", cache=cache) == first


def test_other_options_are_other_kernels(cache: Path) -> None:
    wide = _copy()
    wide.warps = 8
    made: dict[str, Binary] = compile_kernels({"narrow": _copy(), "wide": wide}, "sm_90", cache=cache)
    assert (made["narrow"].threads, made["wide"].threads) == (128, 256)


def test_a_kernel_that_is_wrong_is_named_and_kept(cache: Path) -> None:
    with pytest.raises(BuildFailed, match=r"compile copy for sm_90: Triton refuses (\S+)\n(.|\n)*nothing") as failed:
        compile_kernels({"copy_0": _copy(spoilt=True)}, "sm_90", cache=cache)
    kept = Path(str(failed.value).split("refuses ")[1].split()[0])
    assert "column + nothing" in kept.read_text()


def test_what_the_assembler_refuses_is_named(cache: Path) -> None:
    text = _copy()
    text.add("tl.extra.cuda.gdc_wait()")
    with pytest.raises(BuildFailed, match=r"compile copy for sm_80: Triton refuses \S+\n(.|\n)*requires .target sm_90"):
        compile_kernels({"copy_0": text}, "sm_80", cache=cache)


def test_without_triton_the_error_says_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "version", lambda name: "3.2.0")
    with pytest.raises(MissingTool, match=r"Triton is 3\.2\.0, 3\.6 or newer is needed; pip install triton"):
        compile_kernels({"copy_0": _copy()}, "sm_90", cache=cache)


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cuda").write_text("a file")
    with pytest.raises(BuildFailed, match="set LLMC_CACHE to a directory that can be written"):
        compile_kernels({"copy_0": _copy()}, "sm_90", cache=tmp_path)
