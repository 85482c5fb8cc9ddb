"""The driver and the device for real: memory, launches, recorded chains, and what goes wrong."""

import pytest
from support import gpu_device

from llmc.bench.gpu_probes import GpuProbes
from llmc.runtime.cuda.driver import Driver, Gpu


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


def test_the_probes_find_plausible_limits(driver: Driver, gpu: Gpu) -> None:
    probes = GpuProbes(driver, gpu)
    bandwidth, boundaries = probes.bandwidth(), probes.boundaries()
    print(f"{gpu.name}: reads {bandwidth / 1e9:.0f} GB/s, boundary {boundaries.plain * 1e6:.2f} us", boundaries)
    assert 1e11 < bandwidth < 3e13
    assert 1e-7 < boundaries.plain < 1e-4
