"""Decode linears in percent of the read ceiling: `PYTHONPATH=tests gpu_linears.py [1b|8b] [bfloat16,int8,int4]`.

Every kernel of a step by itself, over all layers (8 of the 8B shape), for 1, 4 and 16 sequences.
"""

import sys

from benchmarks.gpu_models import gpu_session, random_llama

from llmc.bench.gpu_kernels import kernel_times
from llmc.bench.gpu_probes import GpuProbes
from llmc.runtime.cuda.driver import Driver

POSITION = 512


def main(shape: str = "1b", storages: str = "float,int8,int4") -> None:
    driver = Driver()
    ceiling = GpuProbes(driver, driver.gpus()[0]).bandwidth()
    print(f"{driver.gpus()[0].name}: reads {ceiling / 1e9:.0f} GB/s")
    for storage in storages.split(","):
        module = random_llama(shape, layers=8 if shape == "8b" else None)
        program = gpu_session(module, None if storage == "float" else storage).program
        for sequences in (1, 4, 16):
            print(f"{shape} {storage}, {sequences} sequences at {POSITION}")
            for time in kernel_times(program, program.device, sequences, POSITION):
                share = time.weight_bytes / time.seconds / ceiling
                rate = f"{time.weight_bytes / 1e6:9.1f} MB {share:7.1%}" if time.weight_bytes else ""
                each = time.seconds / time.launches * 1e6
                print(f"  {time.kernel:20} {time.launches:4} launches {each:9.2f} us each {rate}")


if __name__ == "__main__":
    main(*sys.argv[1:])
