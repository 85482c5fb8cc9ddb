"""What any driver must do, wherever its GPU comes from: memory, launches, recorded chains, and what goes wrong."""

import numpy as np
import pytest

from llmc.errors import DeviceFailed
from llmc.runtime.cuda.cuda_device import STAGE_BYTES, CudaDevice, Image
from llmc.runtime.cuda.device import Place
from llmc.runtime.cuda.driver import Driver, Gpu
from llmc.runtime.cuda.plan import Kernel

ADD = Kernel("add", (("x", "*fp32"), ("y", "*fp32"), ("count", "i32")), 4, 1, True)


def add_ptx(*, pdl: bool) -> str:
    """y[i] += x[i] for i below `count`; with `pdl` the next kernel may begin before this one has ended."""
    wait = "griddepcontrol.wait;\n    griddepcontrol.launch_dependents;" if pdl else ""
    return f""".version 8.0
.target sm_{90 if pdl else 80}
.address_size 64
.visible .entry add(.param .u64 x, .param .u64 y, .param .u32 count, .param .u64 scratch, .param .u64 profile)
{{
    .reg .pred %outside;
    .reg .b32 %index, %threads, %block, %thread, %most;
    .reg .b64 %from, %to, %offset;
    .reg .f32 %a, %b;
    ld.param.u64 %from, [x];
    ld.param.u64 %to, [y];
    ld.param.u32 %most, [count];
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %index, %block, %threads, %thread;
    {wait}
    setp.ge.u32 %outside, %index, %most;
    @%outside ret;
    mul.wide.u32 %offset, %index, 4;
    add.u64 %from, %from, %offset;
    add.u64 %to, %to, %offset;
    ld.global.f32 %a, [%from];
    ld.global.f32 %b, [%to];
    add.f32 %b, %a, %b;
    st.global.f32 [%to], %b;
    ret;
}}
"""


def make(driver: Driver, gpu: Gpu, *, pdl: bool) -> CudaDevice:
    """A device with the kernel; skips the test where it has no programmatic launches."""
    if pdl and gpu.capability < (9, 0):
        pytest.skip(f"{gpu.name} has no programmatic dependent launch")
    return CudaDevice(driver, gpu, {"add": Image(add_ptx(pdl=pdl).encode(), "add", 0, 128)})


def copies_come_back(driver: Driver, gpu: Gpu) -> None:
    """Copies of every length, with nothing written beside them."""
    device = make(driver, gpu, pdl=False)
    for size in (1, 255, STAGE_BYTES - 1, STAGE_BYTES, 2 * STAGE_BYTES + 3):
        given = np.random.default_rng(size).integers(0, 256, size, np.uint8)
        memory = device.allocate(size + 512)
        device.upload(Place(memory, 256), given)
        back = np.zeros(size, np.uint8)
        device.download(Place(memory, 256), back)
        np.testing.assert_array_equal(back, given)
        around = np.ones(256, np.uint8)
        device.download(Place(memory, 0), around)
        assert not around.any()


def kernels_follow_each_other(driver: Driver, gpu: Gpu, *, recorded: bool, pdl: bool) -> None:
    """Fibonacci numbers: each kernel reads what the one before it wrote, so any overlap of the two would show."""
    device = make(driver, gpu, pdl=pdl)
    count, steps = 100_000, 20
    x, y = (Place(device.allocate(4 * count), 0) for _ in range(2))
    device.upload(x, np.ones(count, np.float32))

    def work() -> None:
        for step in range(steps):
            device.launch(ADD, (-(-count // 128), 1, 1), [*((x, y) if step % 2 == 0 else (y, x)), count], pdl)

    if recorded:
        graph = device.capture(work)
        graph.replay()
    else:
        work()
    back = np.zeros(count, np.float32)
    device.download(y, back)
    a, b = 1, 0
    for step in range(steps):
        a, b = (a, a + b) if step % 2 == 0 else (a + b, b)
    np.testing.assert_array_equal(back, np.full(count, b, np.float32))


def wrong_code_is_refused_by_name(driver: Driver, gpu: Gpu) -> None:
    """An instruction that does not exist."""
    text = add_ptx(pdl=False).replace("add.f32", "no_such.f32")
    with pytest.raises(DeviceFailed, match=r"^add: cuModuleLoadDataEx: CUDA_ERROR_"):
        CudaDevice(driver, gpu, {"add": Image(text.encode(), "add", 0, 128)})


def too_much_memory_is_an_error(driver: Driver, gpu: Gpu) -> None:
    """What was asked for, and what there is."""
    with pytest.raises(MemoryError, match=r"\d+ bytes of memory on the GPU, \d+ are free"):
        make(driver, gpu, pdl=False).allocate(1 << 50)
