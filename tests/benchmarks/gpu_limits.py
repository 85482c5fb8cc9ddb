"""The limits of this machine's GPU, to be measured before all else: `gpu_limits.py`. Needs no torch."""

from llmc.bench.gpu_probes import GpuProbes
from llmc.runtime.cuda.driver import Driver


def main() -> None:
    driver = Driver()
    gpu = driver.gpus()[0]
    probes = GpuProbes(driver, gpu)
    for _ in range(3):  # clocks rise in the first
        bandwidth, boundaries = probes.bandwidth(), probes.boundaries()
        dependent = "none" if boundaries.dependent is None else f"{boundaries.dependent * 1e6:.2f} us"
        print(
            f"{gpu.name}, CUDA {driver.version_text}: reads {bandwidth / 1e9:.0f} GB/s; boundary of kernels in a graph"
            f" {boundaries.plain * 1e6:.2f} us, with dependent launch {dependent}"
        )


if __name__ == "__main__":
    main()
