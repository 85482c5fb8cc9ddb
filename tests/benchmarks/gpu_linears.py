"""Linears of a GPU program: `PYTHONPATH=tests gpu_linears.py [1b|8b] [float,int8,int4]`.

Those of decode steps in percent of the read ceiling: every kernel of a step by itself, over all layers (8 of the 8B
shape), for 1, 4 and 16 sequences. Those of many rows in operations a second: each variant of each linear, the
program's own tiles beside the product by cuBLAS with the kernels around it.
"""

import sys

from benchmarks.gpu_models import gpu_session, random_llama

from llmc.bench.gpu_kernels import kernel_times
from llmc.bench.gpu_probes import GpuProbes
from llmc.bench.tune_gpu import measure
from llmc.runtime.cuda.cuda_device import CudaDevice
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.program import GpuProgram

POSITION = 512
ROWS = (64, 128, 256, 512, 1024, 2048)
"""Of prompts."""


def main(shape: str = "1b", storages: str = "float,int8,int4") -> None:
    driver = Driver()
    ceiling = GpuProbes(driver, driver.gpus()[0]).bandwidth()
    print(f"{driver.gpus()[0].name}: reads {ceiling / 1e9:.0f} GB/s")
    for storage in storages.split(","):
        module = random_llama(shape, layers=8 if shape == "8b" else None)
        program = gpu_session(module, None if storage == "float" else storage).program
        assert isinstance(program, GpuProgram) and isinstance(program.device, CudaDevice)
        for sequences in (1, 4, 16):
            print(f"{shape} {storage}, {sequences} sequences at {POSITION}")
            for time in kernel_times(program, program.device, sequences, POSITION):
                share = time.weight_bytes / time.seconds / ceiling
                rate = f"{time.weight_bytes / 1e6:9.1f} MB {share:7.1%}" if time.weight_bytes else ""
                each = time.seconds / time.launches * 1e6
                print(f"  {time.kernel:20} {time.launches:4} launches {each:9.2f} us each {rate}")
        print(f"{shape} {storage}, many rows; library: {program.device.products}")
        for line in prompts(program, program.device):
            print(line)


def prompts(program: GpuProgram, device: CudaDevice) -> list[str]:
    """A line for each linear and number of rows: microseconds and tera-operations a second of each variant."""
    tuned = measure(program, device, context=POSITION, repetitions=5, source="measured here", rows=ROWS, rotated=1)
    lines = []
    for linear, timings in tuned.timings.items():
        sizes = linear.partition(":")[0].split("x")
        operations = 2 * int(sizes[0]) * int(sizes[1])
        candidates = [(each.region, each.candidate) for each in program.plan.launches if each.candidate is not None]
        layers = len({region for region, candidate in candidates if candidate.linear == linear})
        for rows, taken in timings.items():
            each = {variant: seconds / layers for variant, seconds in taken.items()}
            cells = [f"{name} {s * 1e6:8.1f} us {rows * operations / s / 1e12:6.1f} T/s" for name, s in each.items()]
            lines.append(f"  {linear:20} {rows:5} rows  {'  '.join(cells)}")
    return lines


if __name__ == "__main__":
    main(*sys.argv[1:])
