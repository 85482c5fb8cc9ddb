"""What a GPU does at best: how fast kernels read its memory, and what the boundary between two kernels costs.

The probes are PTX, which the driver compiles: they need neither Triton nor torch.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.device import Memory, Place
from llmc.runtime.cuda.driver import Driver, Gpu
from llmc.runtime.cuda.plan import Kernel

THREADS = 256
UNROLLED = 8
"""Loads of 16 bytes that a thread has under way."""
BLOCKS_OF_MULTIPROCESSOR = 8
READ_BYTES = 2 << 30
"""Far more than any cache on the chip."""
CHAIN = 100
"""Kernels in the chain whose boundaries are measured."""
REPETITIONS = 7
PDL_LEVEL = 90


@dataclass(frozen=True)
class Boundaries:
    """Seconds from one kernel's begin to the next one's, in a recorded chain of kernels that do nothing."""

    plain: float
    dependent: float | None
    """With programmatic dependent launch; None on GPUs that have none."""


class GpuProbes:
    """The probes on one GPU."""

    def __init__(self, driver: Driver, gpu: Gpu) -> None:
        """Compile them. Raises DeviceFailed."""
        self._gpu = gpu
        self._has_pdl = int(gpu.level[3:]) >= PDL_LEVEL
        images = {"read": image(reading_ptx(), "read"), "nothing": image(nothing_ptx(pdl=False), "nothing")}
        if self._has_pdl:
            images["nothing_pdl"] = image(nothing_ptx(pdl=True), "nothing")
        self.device = CudaDevice(driver, gpu, images)
        self._memory: Memory | None = None

    def bandwidth(self) -> float:
        """Bytes a second that a kernel reads, the median of several passes over 2 GiB (less on small GPUs)."""
        grid = (self._gpu.multiprocessors * BLOCKS_OF_MULTIPROCESSOR, 1, 1)
        round_bytes = grid[0] * THREADS * UNROLLED * 16
        size = min(READ_BYTES, self._gpu.memory_bytes // 4) // round_bytes * round_bytes
        if self._memory is None:
            self._memory = self.device.allocate(size + 256)
        memory = self._memory
        kernel = Kernel("read", (("data", "*u8"), ("sum", "*u8"), ("vectors", "i32")), THREADS // 32, 1, False)
        arguments: list[Place | int] = [Place(memory, 0), Place(memory, size), size // 16]

        def read() -> None:
            self.device.launch(kernel, grid, arguments, pdl=False)

        read()
        return size / statistics.median(self.device.measure(read) for _ in range(REPETITIONS))

    def boundaries(self) -> Boundaries:
        """Measure now."""
        return Boundaries(self._boundary("nothing"), self._boundary("nothing_pdl") if self._has_pdl else None)

    def _boundary(self, name: str) -> float:
        kernel = Kernel(name, (), 1, 1, name == "nothing_pdl")

        def chain(length: int) -> Callable[[], None]:
            def record() -> None:
                for _ in range(length):
                    self.device.launch(kernel, (self._gpu.multiprocessors, 1, 1), [], kernel.pdl)

            return self.device.capture(record).replay

        short, long = chain(CHAIN), chain(3 * CHAIN)
        times = []
        for replay in (short, long):
            replay()
            times.append(statistics.median(self.device.measure(replay) for _ in range(REPETITIONS)))
        return float(np.diff(times)[0]) / (2 * CHAIN)  # what starting a graph costs falls out


def image(text: str, symbol: str) -> Image:
    """PTX as the device loads it."""
    return Image(text.encode(), symbol, 0, THREADS)


def nothing_ptx(*, pdl: bool) -> str:
    """A kernel that does nothing; with `pdl` it lets the next one begin, and waits for the one before."""
    body = "griddepcontrol.launch_dependents;\n    griddepcontrol.wait;\n    ret;" if pdl else "ret;"
    return f"""{_header(PDL_LEVEL if pdl else 80)}
.visible .entry nothing(.param .u64 scratch, .param .u64 profile)
{{
    {body}
}}
"""


def reading_ptx() -> str:
    """A kernel that reads `vectors` times 16 bytes; it would write what they add up to if that were one number."""
    offsets = [f"    mad.lo.u64 %at{place}, %stride, {place}, %begin;" for place in range(UNROLLED)]
    loads = [
        f"    ld.global.v4.u32 {{%a{place}, %b{place}, %c{place}, %d{place}}}, [%at{place}];"
        for place in range(UNROLLED)
    ]
    sums = [f"    xor.b32 %sum, %sum, %{name}{place};" for place in range(UNROLLED) for name in ("a", "b", "c", "d")]
    steps = [f"    add.u64 %at{place}, %at{place}, %step;" for place in range(UNROLLED)]
    newline = "\n"
    return f"""{_header(80)}
.visible .entry read(.param .u64 data, .param .u64 sum, .param .u32 vectors, .param .u64 scratch, .param .u64 profile)
{{
    .reg .pred %more;
    .reg .pred %is;
    .reg .b32 %sum, %block, %threads, %blocks, %thread, %index, %count, %each;
    .reg .b32 %a<{UNROLLED}>, %b<{UNROLLED}>, %c<{UNROLLED}>, %d<{UNROLLED}>;
    .reg .b64 %begin, %stride, %step, %out, %offset, %at<{UNROLLED}>;
    ld.param.u64 %begin, [data];
    ld.param.u64 %out, [sum];
    ld.param.u32 %count, [vectors];
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %blocks, %nctaid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %index, %block, %threads, %thread;
    mul.lo.u32 %each, %blocks, %threads;
    mul.wide.u32 %offset, %index, 16;
    add.u64 %begin, %begin, %offset;
    mul.wide.u32 %stride, %each, 16;
    mul.lo.u64 %step, %stride, {UNROLLED};
    mul.lo.u32 %each, %each, {UNROLLED};
    mov.u32 %sum, 0;
{newline.join(offsets)}
    sub.u32 %count, %count, %each;
AGAIN:
{newline.join(loads)}
{newline.join(sums)}
{newline.join(steps)}
    add.u32 %index, %index, %each;
    setp.le.u32 %more, %index, %count;
    @%more bra AGAIN;
    setp.eq.u32 %is, %sum, 305419897;
    @%is st.global.u32 [%out], %sum;
    ret;
}}
"""


def _header(level: int) -> str:
    return f".version 8.0\n.target sm_{level}\n.address_size 64"
