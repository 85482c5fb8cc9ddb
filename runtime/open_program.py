"""From an artifact to its native program: choose the library, see that it may run, read the weights.

Nothing here needs torch, so a process that only generates starts at once.
"""

from pathlib import Path

from llmc.errors import ArtifactRejected
from llmc.runtime.artifact import Artifact, Verify
from llmc.runtime.cpu_features import LEVELS, choose
from llmc.runtime.cpu_program import CpuProgram
from llmc.runtime.memory import Bytes
from llmc.runtime.native_trust import built_here

CPU = "cpu"
"""What the manifest calls the native program."""


def open_cpu_program(
    artifact: Artifact,
    *,
    cache: Path,
    verify: Verify = "full",
    trust: bool = False,
    threads: int | None = None,
    pin: bool = False,
) -> CpuProgram:
    """The native program of an artifact that was opened with "fast", ready to run.

    Args:
        artifact: what holds it.
        cache: llmc's cache directory, where the libraries that this machine made are kept.
        verify: "full" hashes the weights as they are read.
        trust: run the library even if this machine did not make it.
        threads: how many compute; None is one for each CPU that this process may use.
        pin: whether each thread stays on a CPU of its own.

    Raises:
        ArtifactRejected: there is no library for this machine, it may not run, or the weights are damaged.
        BadOption: `threads` is not a number of threads.
    """
    roles = artifact.manifest.programs.get(CPU, {})
    _, name = choose({level: roles[level] for level in LEVELS if level in roles})
    library = _allowed(artifact, name, cache, trust)
    return CpuProgram(library, _weights(artifact, verify), threads=threads, pin=pin)


def _allowed(artifact: Artifact, name: str, cache: Path, trust: bool) -> Path | bytes:
    """The library `name`: the one that this machine made, if it is that; else the artifact's, if it is trusted."""
    own = built_here(cache, artifact.manifest.files[name].sha256)
    if own is not None:
        return own
    if not trust:
        raise ArtifactRejected(
            f"{artifact.root / name}: native code that this machine did not make is not run unasked; if you trust where"
            " it comes from, say --trust (trust=True), else build the artifact here or use --program reference"
        )
    return artifact.read(name)


def _weights(artifact: Artifact, verify: Verify) -> dict[str, Bytes]:
    """The bytes of each weight, in one piece of memory."""
    data = artifact.load_weights(verify=verify)
    return {name: data[info.begin : info.end] for name, info in artifact.weights_header.tensors.items()}
