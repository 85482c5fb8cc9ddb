"""Open an artifact and make a session of it. A native program is opened without torch; only the reference needs it."""

from pathlib import Path

from llmc.compiled_model import CompiledModel
from llmc.errors import ArtifactRejected
from llmc.options import cache_directory, check_program
from llmc.runtime.artifact import Artifact, Verify
from llmc.runtime.open_program import CPU, open_cpu_session
from llmc.runtime.session import Session
from llmc.runtime.tokenizer import Tokenizer


def load(
    directory: str | Path,
    *,
    verify: Verify = "full",
    program: str | None = None,
    threads: int | None = None,
    pin: bool = False,
    trust: bool = False,
    tuned: bool = True,
) -> CompiledModel:
    """Open an artifact.

    Args:
        directory: what `llmc build` or `CompiledModel.save` wrote.
        verify: "fast" checks all but the hash of the weights.
        program: "cpu" or "reference"; the native one where the artifact holds it, when None.
        threads: how many threads a native program computes with; one for each CPU of this process when None.
        pin: whether each of these threads stays on a CPU of its own.
        trust: run native code that was not built on this machine.
        tuned: use what `llmc tune` measured on this machine.

    Raises:
        ArtifactRejected: any file is damaged, altered, renamed, added or missing, its graph is not valid, it does not
            hold the program or none for this machine, or its native code was built elsewhere and is not trusted.
        BadOption: an argument is wrong.
    """
    check_program(program)
    root = Path(directory)
    artifact = Artifact.open(root, verify="fast")
    manifest = artifact.manifest
    chosen = program or (CPU if CPU in manifest.programs else "reference")
    if chosen not in manifest.programs:
        raise ArtifactRejected(f"{root}: holds programs {sorted(manifest.programs)}; expected the {chosen} program")
    if chosen == CPU:
        session = open_cpu_session(
            artifact,
            cache=cache_directory(),
            verify=verify,
            trust=trust,
            threads=threads,
            pin=pin,
            tuned=tuned,
        )
    else:
        from llmc.codegen.reference import open_reference

        artifact.check_weights(verify)
        program_in_torch = open_reference(artifact)
        session = Session(program_in_torch, manifest.model, manifest.ranges, Tokenizer.from_artifact(artifact))
    report: dict[str, object] = {
        "passes": manifest.content["passes"],
        "rewrites": manifest.content["rewrites"],
        **manifest.report,
    }
    return CompiledModel(lambda: session, report, None)
