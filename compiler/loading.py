"""Open an artifact and make a session of it. Torch is imported for the reference program alone, and for a native one of
which a part has no native form."""

from pathlib import Path

from llmc.compiled_model import CompiledModel
from llmc.errors import ArtifactRejected, MissingTool
from llmc.options import RUN_PROGRAMS, cache_directory, check_program, chosen_cublas
from llmc.runtime.artifact import Artifact, Verify
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.open_session import CUDA, held, open_cuda_session, runs_here
from llmc.runtime.host import Host
from llmc.runtime.manifest import Manifest
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
        program: "cuda", "cpu" or "reference". When None, the first of these that the artifact holds; the GPU's only
            where this machine has a GPU that its code is for.
        threads: how many threads a native program computes with; one for each CPU of this process when None.
        pin: whether each of these threads stays on a CPU of its own.
        trust: run native code that was not built on this machine.
        tuned: use what `llmc tune` measured on this machine.

    Raises:
        ArtifactRejected: any file is damaged, altered, renamed, added or missing, its graph is not valid, it does not
            hold the program or none for this machine, or its native code was built elsewhere and is not trusted.
        BadOption: an argument is wrong.
        MissingTool: the GPU's program is asked for and there is none. DeviceFailed: the GPU's driver refuses it.
    """
    check_program(program, RUN_PROGRAMS)
    root = Path(directory)
    artifact = Artifact.open(root, verify="fast")
    manifest = artifact.manifest
    chosen, passed_over = (program, "") if program else _default(manifest)
    if chosen not in manifest.programs:
        raise ArtifactRejected(f"{root}: holds {held(manifest)}; expected the {chosen} program")
    if chosen == CUDA:
        session = open_cuda_session(
            artifact, cache=cache_directory(), verify=verify, trust=trust, tuned=tuned, cublas=chosen_cublas()
        )
    elif chosen == CPU:
        session = open_cpu_session(
            artifact,
            cache=cache_directory(),
            verify=verify,
            trust=trust,
            threads=threads,
            pin=pin,
            tuned=tuned,
            host=_torch_host,
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
    return CompiledModel(lambda: session, report, None, passed_over)


def _default(manifest: Manifest) -> tuple[str, str]:
    """The program to run, and why it is not the one for GPUs where there is one."""
    if runs_here(manifest):
        return CUDA, ""
    return CPU if CPU in manifest.programs else "reference", _no_gpu(manifest) if CUDA in manifest.programs else ""


def _no_gpu(manifest: Manifest) -> str:
    try:
        gpu = Driver().gpus()[0]
    except MissingTool as error:
        return f"not on a GPU: {error}"
    way_out = "no kernels are made for it" if gpu.target == "cpu" else f"build it with --target {gpu.target}"
    return f"not on {gpu.name} ({gpu.level}): the artifact holds {held(manifest)}; {way_out}"


def _torch_host(content: bytes) -> Host:
    from llmc.codegen.torch_host import TorchHost

    return TorchHost.read(content)
