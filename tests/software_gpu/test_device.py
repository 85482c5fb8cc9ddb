"""The driver and the device with kernels that run: memory, launches, recorded chains, and what goes wrong."""

import gc

import numpy as np
import pytest
from support import gpu_device, software_driver
from support.gpu_device import ADD, add_ptx, make

from llmc.errors import DeviceFailed
from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.device import Place
from llmc.runtime.cuda.driver import Driver, Gpu

pytestmark = pytest.mark.parametrize("target", ["sm_90"], indirect=True)


def test_copies_of_every_length_come_back(driver: Driver, gpu: Gpu) -> None:
    gpu_device.copies_come_back(driver, gpu)


@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_kernels_follow_each_other(driver: Driver, gpu: Gpu, recorded: bool, pdl: bool) -> None:
    gpu_device.kernels_follow_each_other(driver, gpu, recorded=recorded, pdl=pdl)


def test_code_for_another_gpu_is_refused_by_name(driver: Driver, gpu: Gpu) -> None:
    gpu_device.wrong_code_is_refused_by_name(driver, gpu)


def test_too_much_memory_is_an_error_with_both_numbers(driver: Driver, gpu: Gpu) -> None:
    gpu_device.too_much_memory_is_an_error(driver, gpu)


def test_what_a_kernel_does_wrong_is_said_and_ends_the_context(driver: Driver, gpu: Gpu) -> None:
    device = make(driver, gpu, pdl=False)
    x, y = (Place(device.allocate(4 * 256), 0) for _ in range(2))
    with pytest.raises(DeviceFailed, match=r"LAUNCH_FAILED \(add: line \d+: .*0x\w+: in no allocation"):
        device.launch(ADD, (3, 1, 1), [x, y, 300], False)
        device.synchronize()
    with pytest.raises(DeviceFailed, match="LAUNCH_FAILED"):
        device.download(y, np.zeros(1, np.float32))
    del device, x, y
    gc.collect()
    again = make(driver, gpu, pdl=False)
    again.download(Place(again.allocate(8), 0), np.zeros(1, np.float32))


def test_a_kernel_that_does_not_wait_for_the_one_before_it_is_found(driver: Driver, gpu: Gpu) -> None:
    text = add_ptx(pdl=True).replace("griddepcontrol.wait;", "")
    device = CudaDevice(driver, gpu, {"add": Image(text.encode(), "add", 0, 128)})
    x, y = (Place(device.allocate(4 * 256), 0) for _ in range(2))
    with pytest.raises(DeviceFailed, match=r"LAUNCH_FAILED.*without waiting for the launch before"):
        for pair in ((x, y), (y, x)):
            device.launch(ADD, (2, 1, 1), [*pair, 256], True)
        device.synchronize()


def test_machine_code_and_text_for_other_gpus_are_refused(driver: Driver, gpu: Gpu) -> None:
    with pytest.raises(DeviceFailed, match="NO_BINARY_FOR_GPU"):
        CudaDevice(driver, gpu, {"add": Image(b"\x7fELF and so on", "add", 0, 128)})
    newer = software_driver.driver((12, 0))
    text = add_ptx(pdl=True).replace("sm_90", "sm_90a").encode()
    with pytest.raises(DeviceFailed, match="sm_90a does not run on this device"):
        CudaDevice(newer, newer.gpus()[0], {"add": Image(text, "add", 0, 128)})


def test_all_memory_is_given_back(driver: Driver, gpu: Gpu) -> None:
    gc.collect()
    before = software_driver.counts()
    device = make(driver, gpu, pdl=False)
    memory = device.allocate(1000)
    assert software_driver.counts()["bytes"] == before["bytes"] + 1000
    del device, memory
    gc.collect()
    after = software_driver.counts()
    assert {name: after[name] for name in ("bytes", "contexts", "modules", "streams", "pinned")} == {
        name: before[name] for name in ("bytes", "contexts", "modules", "streams", "pinned")
    }
