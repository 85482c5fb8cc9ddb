"""The runtime against a libcuda that is compiled with the real cuda.h: names, types, layouts, order, and errors."""

import ctypes
import gc
import threading

import numpy as np
import pytest
from support import fake_cuda
from support.tiny_gpu_program import BLOCK, PLAN, batch, expected, weights

from llmc.errors import DeviceFailed, MissingTool
from llmc.runtime.cuda import cuda_device
from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.device import Place
from llmc.runtime.cuda.driver import Driver, LaunchAttribute, LaunchConfig
from llmc.runtime.cuda.plan import Kernel
from llmc.runtime.cuda.program import GpuProgram

HALVES = PLAN.kernels[0]


def test_structures_lie_as_the_header_says() -> None:
    found = (ctypes.c_size_t * 13)()
    fake_cuda.library().fake_layout(found)
    config, attribute = LaunchConfig, LaunchAttribute
    assert list(found) == [
        ctypes.sizeof(config),
        config.grid_x.offset,
        config.block_x.offset,
        config.shared_bytes.offset,
        config.stream.offset,
        config.attributes.offset,
        config.attribute_count.offset,
        ctypes.sizeof(attribute),
        attribute.value.offset,
        8,
        4,
        4,
        8,
    ]


def test_gpus_are_described() -> None:
    (gpu,) = fake_cuda.driver().gpus()
    assert (gpu.name, gpu.capability, gpu.level, gpu.multiprocessors) == ("Fake H200", (9, 0), "sm_90", 132)
    assert gpu.memory_bytes == 1 << 30


def test_a_program_runs_on_it() -> None:
    program = GpuProgram(PLAN, fake_cuda.device(), weights())
    program.allocate(4, BLOCK)
    prompt = [1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]
    np.testing.assert_array_equal(program.step(batch((prompt, 0, [2, 1]))), expected(prompt))
    program.copy_block(1, 3)
    logits = program.step(batch(([6], 18, [2, 3])))
    np.testing.assert_array_equal(logits, expected([*prompt, 6])[-1:])


def test_a_program_runs_in_another_thread() -> None:
    program = GpuProgram(PLAN, fake_cuda.device(), weights())
    found = []

    def work() -> None:
        program.allocate(1, BLOCK)
        found.append(program.step(batch(([1, 2], 0, [0]))))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], expected([1, 2]))


def test_copies_larger_than_a_stage_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "STAGE_BYTES", 64)
    device = fake_cuda.device()
    memory = device.allocate(4000)
    given = np.arange(900, dtype=np.int32)
    device.upload(Place(memory, 16), given)
    given += 1  # it may change at once
    back = np.zeros(900, np.int32)
    device.download(Place(memory, 16), back)
    np.testing.assert_array_equal(back, np.arange(900))
    edge = np.ones(4, np.int32)
    device.download(Place(memory, 0), edge)
    assert not edge.any(), "what was not written is zero"


def test_recorded_launches_run_when_they_are_replayed() -> None:
    device = fake_cuda.device()
    source, target = device.allocate(64), device.allocate(64)
    before = fake_cuda.counts()

    def record() -> None:
        device.launch(HALVES, (2, 1, 1), [Place(source, 0), Place(target, 0)], pdl=True)

    graph = device.capture(record)
    device.upload(Place(source, 0), np.arange(16, dtype=np.float32))
    back = np.zeros(16, np.float32)
    device.download(Place(target, 0), back)
    assert not back.any()
    graph.replay()
    device.download(Place(target, 0), back)
    assert back.tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    after = fake_cuda.counts()
    assert (after["programmatic"] - before["programmatic"], after["replays"] - before["replays"]) == (1, 1)


def test_older_drivers_launch_without_programmatic_dependencies() -> None:
    macro = "FAKE_VERSION=12010"
    device = fake_cuda.device(macro)
    memory = device.allocate(64)
    device.launch(HALVES, (1, 1, 1), [Place(memory, 0), Place(memory, 32)], pdl=True)
    assert fake_cuda.counts(macro)["programmatic"] == 0


def test_everything_is_given_back() -> None:
    gc.collect()
    before = fake_cuda.counts()
    program = GpuProgram(PLAN, fake_cuda.device(), weights())
    program.allocate(4, BLOCK)
    graph = program.device.capture(lambda: None)
    during = fake_cuda.counts()
    held = ("bytes", "streams", "events", "modules", "graphs", "pinned", "contexts")
    assert all(during[name] > before[name] for name in held)
    del program, graph
    gc.collect()
    assert {name: fake_cuda.counts()[name] for name in held} == {name: before[name] for name in held}


def test_memory_that_is_not_there_is_an_error() -> None:
    with pytest.raises(MemoryError, match=r"2000000000 bytes of memory on the GPU, \d+ are free"):
        fake_cuda.device().allocate(2_000_000_000)


def test_code_that_does_not_load_is_named_with_the_reason() -> None:
    driver = fake_cuda.driver()
    with pytest.raises(DeviceFailed, match=r"linear_0: cuModuleLoadDataEx: CUDA_ERROR_INVALID_IMAGE .*ptxas: not"):
        CudaDevice(driver, driver.gpus()[0], {"linear_0": Image(b"cubin", "linear_0", 0, 128)})
    with pytest.raises(DeviceFailed, match=r"linear_0: cuModuleGetFunction: CUDA_ERROR_NOT_FOUND"):
        CudaDevice(driver, driver.gpus()[0], {"linear_0": Image(b"fake", "linear_0", 0, 128)})
    with pytest.raises(DeviceFailed, match=r"needs 240000 bytes of shared memory, a block of Fake H200 has 232448"):
        CudaDevice(driver, driver.gpus()[0], {"linear_0": Image(b"fake", "linear_0", 240_000, 128)})


def test_a_launch_that_is_refused_is_named() -> None:
    device = fake_cuda.device()
    memory = device.allocate(64)
    with pytest.raises(DeviceFailed, match=r"halves_0 over \(1, 70000, 1\): cuLaunchKernelEx"):
        device.launch(HALVES, (1, 70_000, 1), [Place(memory, 0), Place(memory, 32)], pdl=False)


def test_a_kernel_that_is_not_loaded_is_a_bug() -> None:
    with pytest.raises(KeyError):
        fake_cuda.device().launch(Kernel("other", (), 1, 1, False), (1, 1, 1), [], pdl=False)


def test_without_a_driver_or_a_gpu_the_reason_is_said() -> None:
    with pytest.raises(MissingTool, match=r"libnothing.so.1: .*; GPU programs need an NVIDIA GPU and its driver"):
        Driver("libnothing.so.1")
    with pytest.raises(MissingTool, match=r"has no cuInit; install a driver for CUDA 12"):
        Driver("libc.so.6")
    with pytest.raises(MissingTool, match=r"no NVIDIA GPU is visible"):
        fake_cuda.driver("FAKE_DEVICES=0")
    with pytest.raises(MissingTool, match=r"the driver is for CUDA 11.8; install one for 12.0"):
        fake_cuda.driver("FAKE_VERSION=11080")
