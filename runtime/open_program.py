"""From an artifact to a session of its native program: choose the library, see that it may run, read the weights.

Nothing here needs torch, so a process that only generates starts at once.
"""

from collections.abc import Callable
from pathlib import Path

from llmc.errors import ArtifactRejected
from llmc.runtime.artifact import Artifact, Verify
from llmc.runtime.cpu_features import LEVELS, choose
from llmc.runtime.cpu_program import CpuProgram
from llmc.runtime.host import Host
from llmc.runtime.native_trust import built_here
from llmc.runtime.session import Session
from llmc.runtime.tokenizer import Tokenizer
from llmc.runtime.tuning import read_tuning

CPU = "cpu"
"""What the manifest calls the native program."""
TORCH = "torch"
"""The role of the file that says what a native program has torch compute."""


def open_cpu_session(
    artifact: Artifact,
    *,
    cache: Path,
    verify: Verify = "full",
    trust: bool = False,
    threads: int | None = None,
    pin: bool = False,
    tuned: bool = True,
    host: Callable[[bytes], Host] | None = None,
) -> Session:
    """A session of the native program of an artifact that was opened with "fast".

    Args:
        artifact: what holds it.
        cache: llmc's cache directory, where the libraries that this machine made are kept, and what was tuned.
        verify: "full" hashes the weights as they are read.
        trust: run the library even if this machine did not make it.
        threads: how many compute; None is one for each CPU that this process may use.
        pin: whether each thread stays on a CPU of its own.
        tuned: use what was measured on this machine.
        host: makes what computes the parts of the program without a native form, from the file that says what they are;
            called only for a program that has such parts.

    Raises:
        ArtifactRejected: there is no library for this machine, it may not run, or the weights are damaged.
        BadOption: `threads` is not a number of threads.
    """
    roles = artifact.manifest.programs.get(CPU, {})
    _, name = choose({level: roles[level] for level in LEVELS if level in roles})
    library = _allowed(artifact, name, cache, trust)
    weights = artifact.load_weights(verify=verify)
    helper = host(artifact.read(roles[TORCH])) if host is not None and TORCH in roles else None
    program = CpuProgram(library, weights.bytes(), threads=threads, pin=pin, host=helper)
    vocabulary, facts = program.description.vocabulary, artifact.manifest.model
    if vocabulary != facts.vocab_size:  # a token beyond the program's tables would be read from elsewhere
        raise ArtifactRejected(
            f"{artifact.root}: the manifest says {facts.vocab_size} tokens, its program knows {vocabulary};"
            " build the artifact again"
        )
    if tuned:
        program.tune(read_tuning(cache, program.threads))
    tokenizer = Tokenizer.from_artifact(artifact)  # while the weights are still being hashed
    weights.check()
    return Session(program, facts, artifact.manifest.ranges, tokenizer)


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
