"""The table of what was measured: kept for each processor and number of threads, and never trusted."""

from pathlib import Path

import pytest

from llmc.errors import BadOption
from llmc.runtime.crossover import Crossover
from llmc.runtime.tuning import read_gpu_tuning, read_tuning, write_gpu_tuning, write_tuning

H200, B200 = "NVIDIA H200, sm_90, 132 multiprocessors", "NVIDIA B200, sm_100, 148 multiprocessors"
MEASURED = Crossover(2, 33, "measured on an H200", 400)


def test_what_is_written_is_read_for_the_same_number_of_threads(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert read_tuning(cache, 2) == {}
    write_tuning(cache, 2, {"8x8:int4": (2, 17), "8x9:int4": (1, 1)})
    write_tuning(cache, 2, {"8x8:int4": (3, 12)})
    write_tuning(cache, 4, {"8x8:int4": (4, 40)})
    assert read_tuning(cache, 2) == {"8x8:int4": (3, 12), "8x9:int4": (1, 1)}
    assert read_tuning(cache, 4) == {"8x8:int4": (4, 40)}
    assert [path.name for path in cache.iterdir()] == ["tuning.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"x": 1}', b"\xff"])
def test_a_damaged_table_is_no_table(tmp_path: Path, content: bytes) -> None:
    write_tuning(tmp_path, 2, {"8x8:int4": (3, 12)})
    (tmp_path / "tuning.json").write_bytes(content)
    assert read_tuning(tmp_path, 2) == {}
    write_tuning(tmp_path, 2, {"8x8:int4": (3, 12)})
    assert read_tuning(tmp_path, 2) == {"8x8:int4": (3, 12)}


@pytest.mark.parametrize("pair", ["[1]", "[1, 2, 3]", "[-1, 2]", '["a", 1]', "[true, 1]", "7"])
def test_numbers_without_sense_are_no_table(tmp_path: Path, pair: str) -> None:
    write_tuning(tmp_path, 2, {"8x8:int4": (3, 12)})
    path = tmp_path / "tuning.json"
    path.write_text(path.read_text().replace("[\n   3,\n   12\n  ]", pair))
    assert pair in path.read_text()
    assert read_tuning(tmp_path, 2) == {}


def test_gpus_have_tables_of_their_own(tmp_path: Path) -> None:
    assert read_gpu_tuning(tmp_path, H200) == {}
    write_tuning(tmp_path, 2, {"8x8:int4": (3, 12)})
    write_gpu_tuning(tmp_path, H200, {"8x8:int4": Crossover(9, 9), "8x9:int4": Crossover(1, 65)})
    write_gpu_tuning(tmp_path, H200, {"8x8:int4": MEASURED})
    assert read_gpu_tuning(tmp_path, H200) == {"8x8:int4": MEASURED, "8x9:int4": Crossover(1, 65)}
    assert read_gpu_tuning(tmp_path, B200) == {}
    assert read_tuning(tmp_path, 2) == {"8x8:int4": (3, 12)}


@pytest.mark.parametrize("content", ["{", "[]", '{"%s": 1}', '{"%s": {"8x8:int4": {"flat": 9, "gemm": 2}}}'])
def test_a_damaged_table_of_a_gpu_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tuning.json").write_text(content.replace("%s", H200))
    with pytest.raises(BadOption, match=r"tuning.json: .*; remove the file, and run `llmc tune` again"):
        read_gpu_tuning(tmp_path, H200)
    with pytest.raises(BadOption, match="expected crossovers in order"):
        write_gpu_tuning(tmp_path, H200, {"8x8:int4": Crossover(9, 2)})
        read_gpu_tuning(tmp_path, H200)
