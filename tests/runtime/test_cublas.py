"""Products by cuBLAS: arguments, order, errors and the search, by a library that is compiled with the real header."""

import dataclasses
import gc
from pathlib import Path

import numpy as np
import pytest
from support import fake_cuda

from llmc.errors import DeviceFailed, MissingTool
from llmc.runtime.cuda.cublas import NONE, Cublas, find_cublas
from llmc.runtime.cuda.cuda_device import CudaDevice
from llmc.runtime.cuda.device import Place
from llmc.runtime.cuda.multiplier import WORKSPACE_BYTES
from llmc.runtime.cuda.plan import ALWAYS, Argument, Number, Product

ARGUMENT = Argument("arena")
TYPES: dict[Number, type] = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


def product(dtype: Number, n: int, k: int, stride: int | None = None) -> Product:
    return Product(ARGUMENT, ARGUMENT, ARGUMENT, dtype, n, k, stride or n, "T", ALWAYS, 0)


def stored(values: np.ndarray, dtype: Number) -> np.ndarray:
    """Small whole numbers, which every dtype holds."""
    if dtype == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(TYPES[dtype])


def matrices(device: CudaDevice, dtype: Number, rows: int, n: int, k: int) -> tuple[list[Place], np.ndarray]:
    """Where weight, inputs and sums lie, and what the sums become."""
    random = np.random.default_rng(rows * n + k)
    weight, inputs = (random.integers(-8, 8, shape) for shape in ((n, k), (rows, k)))
    places = []
    for array in (stored(weight, dtype), stored(inputs, dtype), np.zeros((rows, n + 4), np.float32)):
        places.append(Place(device.allocate(array.nbytes), 0))
        device.upload(places[-1], array)
    return places, (inputs @ weight.T).astype(np.float32)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_product_has_the_sums_of_each_row(dtype: Number) -> None:
    device = fake_cuda.device(cublas=fake_cuda.cublas())
    assert device.multiplies and device.products.startswith("cuBLAS 12.8.4 (/")
    places, expected = matrices(device, dtype, rows=5, n=12, k=24)
    device.multiply(product(dtype, 12, 24, stride=16), 5, *places)
    found = np.zeros((5, 16), np.float32)
    device.download(places[2], found)
    np.testing.assert_array_equal(found[:, :12], expected)
    assert not found[:, 12:].any(), "what lies between the rows is left alone"


def test_recorded_products_run_when_they_are_replayed() -> None:
    device = fake_cuda.device(cublas=fake_cuda.cublas())
    places, expected = matrices(device, "bf16", rows=3, n=16, k=8)
    before = fake_cuda.counts()["products"]
    graph = device.capture(lambda: device.multiply(product("bf16", 16, 8), 3, *places))
    assert fake_cuda.counts()["products"] == before
    for _ in range(2):
        graph.replay()
    assert fake_cuda.counts()["products"] == before + 2
    found = np.zeros((3, 16), np.float32)
    device.download(places[2], found)
    np.testing.assert_array_equal(found, expected)


def test_everything_is_given_back() -> None:
    gc.collect()
    before = fake_cuda.counts()
    device = fake_cuda.device(cublas=fake_cuda.cublas())
    during = fake_cuda.counts()
    assert during["handles"] == before["handles"] + 1 and during["bytes"] == before["bytes"] + WORKSPACE_BYTES
    del device
    gc.collect()
    after = fake_cuda.counts()
    assert {name: after[name] for name in ("handles", "bytes", "streams")} == {
        name: before[name] for name in ("handles", "bytes", "streams")
    }


@pytest.mark.parametrize(
    ("wrong", "rows"),
    [
        (product("bf16", 16, 12), 3),  # rows of the weight do not begin at multiples of 16 bytes
        (product("bf16", 16, 16), 3),  # more than was allocated
        (product("bf16", 16, 8, stride=8), 3),  # rows of sums run into each other
        (product("bf16", 16, 8), 900),
        (product("f32", 16, 8), 3),
    ],
)
def test_what_the_library_refuses_is_an_error_that_names_it(wrong: Product, rows: int) -> None:
    device = fake_cuda.device(cublas=fake_cuda.cublas())
    places, _ = matrices(device, "bf16", rows=3, n=16, k=8)
    with pytest.raises(DeviceFailed, match=r"cublasGemmEx: status 7 \(said the library\) from /"):
        device.multiply(wrong, rows, *places)


def test_a_device_without_the_library_says_why() -> None:
    device = fake_cuda.device(cublas=find_cublas(12040, NONE))
    assert not device.multiplies and device.products == "none: cuBLAS is not wanted"


def test_a_library_that_cannot_be_used_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fake_cuda.cublas()
    call = Cublas.call

    def refuse(self: Cublas, name: str, *arguments: object) -> None:
        if name == "cublasSetWorkspace_v2":
            raise DeviceFailed("cublasSetWorkspace_v2: status 8")
        call(self, name, *arguments)

    monkeypatch.setattr(Cublas, "call", refuse)
    before = fake_cuda.counts()["bytes"]
    device = fake_cuda.device(cublas=dataclasses.replace(found, named=False))
    assert fake_cuda.counts()["bytes"] == before, "it takes no memory"
    assert not device.multiplies and device.products == "none: cublasSetWorkspace_v2: status 8"
    with pytest.raises(DeviceFailed, match="status 8"):
        fake_cuda.device(cublas=found)  # which was named


def test_the_library_is_looked_for_among_packages_by_the_version_of_the_driver(tmp_path: Path) -> None:
    real = Path(fake_cuda.library()._name)
    old, new = tmp_path / "nvidia/cublas/lib/libcublas.so.12", tmp_path / "nvidia/cu13/lib/libcublas.so.13"
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.symlink_to(real)
    for version, expected in ((12040, old), (13000, new)):
        found = find_cublas(version, packages=["", str(tmp_path)])
        assert found.cublas is not None and found.cublas.path == str(expected)
        assert found.says == f"cuBLAS 12.8.4 ({expected})"


def test_none_is_found() -> None:
    found = find_cublas(11080, packages=[])
    assert found.cublas is None
    assert found.says == "none: no libcublas for this driver among the packages of this Python or on this system"


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    broken = tmp_path / "nvidia/cublas/lib/libcublas.so.12"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a library")
    found = find_cublas(12040, packages=[str(tmp_path)])
    assert found.cublas is None and str(broken) in found.says
    with pytest.raises(MissingTool, match=r"name in LLMC_CUBLAS a libcublas\.so that loads, or 'none'"):
        find_cublas(12040, str(broken))
    with pytest.raises(MissingTool, match="has no cublasCreate_v2"):
        find_cublas(12040, "libc.so.6")
