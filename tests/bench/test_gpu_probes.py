"""The probes of a GPU: their PTX is accepted by the assembler for every generation, and they are launched as meant."""

import subprocess
from pathlib import Path

import pytest
from support import fake_cuda

from llmc.bench.gpu_probes import CHAIN, REPETITIONS, GpuProbes, nothing_ptx, reading_ptx


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        (reading_ptx(), ("sm_80", "sm_90", "sm_120")),
        (nothing_ptx(pdl=False), ("sm_80", "sm_90")),
        (nothing_ptx(pdl=True), ("sm_90", "sm_100")),
    ],
    ids=["read", "nothing", "nothing with dependent launch"],
)
def test_the_assembler_takes_the_probes(text: str, levels: tuple[str, ...], tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    if not ptxas.exists():
        pytest.skip("this Triton ships no ptxas")
    source = tmp_path / "probe.ptx"
    source.write_text(text)
    for level in levels:
        command = [str(ptxas), f"-arch={level}", "-v", str(source), "-o", str(tmp_path / "probe.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "0 bytes spill stores" in done.stderr


def test_probes_measure_what_they_launch() -> None:
    driver = fake_cuda.driver()
    probes = GpuProbes(driver, driver.gpus()[0])
    before = fake_cuda.counts()
    # Everything takes 1.5 ms on the fake: the bytes are those of whole rounds in a quarter of its 1 GiB.
    round_bytes = 132 * 8 * 256 * 8 * 16
    assert probes.bandwidth() == pytest.approx((1 << 28) // round_bytes * round_bytes / 1.5e-3)
    found = probes.boundaries()
    assert (found.plain, found.dependent) == (0, 0)
    after = {name: count - before[name] for name, count in fake_cuda.counts().items()}
    chains = (1 + REPETITIONS) * (CHAIN + 3 * CHAIN)
    assert after["launches"] == 1 + REPETITIONS + 2 * chains
    assert (after["programmatic"], after["replays"]) == (4 * CHAIN, 4 * (1 + REPETITIONS))
