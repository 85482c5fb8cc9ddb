"""From an artifact to a session of its GPU program: choose the GPU's code, see that it may run, upload the weights."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from llmc.errors import ArtifactRejected, MissingTool
from llmc.runtime.artifact import Artifact, Verify
from llmc.runtime.crossover import Crossover
from llmc.runtime.cuda.code_file import read_section
from llmc.runtime.cuda.cublas import FoundCublas, find_cublas
from llmc.runtime.cuda.cuda_device import CudaDevice, Image
from llmc.runtime.cuda.driver import LIBRARY, Driver, Gpu
from llmc.runtime.cuda.plan import Plan, Product
from llmc.runtime.cuda.plan_file import PlanFile, parse_plan
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.cuda.selection import select
from llmc.runtime.manifest import Manifest
from llmc.runtime.native_trust import GPU_SUFFIX, built_here
from llmc.runtime.session import Session
from llmc.runtime.shares import Shares
from llmc.runtime.tokenizer import Tokenizer
from llmc.runtime.tuning import read_gpu_tuning

CUDA = "cuda"
"""What the manifest calls the programs for GPUs."""
FIRST_EXACT = 90
"""Code of this level and above runs on GPUs of exactly that level; before, on later ones of the same generation too."""
FIRST_WITH_PTX = 80
"""The level whose PTX is kept, for GPUs that there is no code for."""


def open_cuda_session(
    artifact: Artifact,
    *,
    cache: Path,
    verify: Verify = "full",
    trust: bool = False,
    tuned: bool = True,
    library: str = LIBRARY,
    cublas: str = "",
) -> Session:
    """A session on the first GPU that this process may see, of an artifact that was opened with "fast".

    Args:
        artifact: what holds the program.
        cache: llmc's cache directory, where what this machine compiled is kept, and what was tuned.
        verify: "full" hashes the weights as they are read.
        trust: run code that this machine did not make.
        tuned: use what was measured on GPUs of this kind.
        library: the driver.
        cublas: the library of products (see `find_cublas`); the device's `products` says what came of it.

    Raises:
        MissingTool: there is no GPU, no driver for it, or `cublas` does not load.
        ArtifactRejected: there is no code for the GPU, it may not run, or a file is damaged.
        BadOption: what was measured cannot be read.
        DeviceFailed: the driver refuses the code. OutOfMemory: the GPU's memory is too small for the weights.
    """
    manifest = artifact.manifest
    try:
        driver = Driver(library)
        gpu = driver.gpus()[0]
    except MissingTool as error:
        raise MissingTool(f"{error}; {artifact.root} holds {held(manifest)}") from None
    plan, images = _code(artifact, gpu, cache, trust)
    _check_facts(artifact, plan)
    table = read_gpu_tuning(cache, gpu.kind) if tuned else {}
    device = CudaDevice(driver, gpu, images, cublas_for(plan, driver, cublas))
    program = GpuProgram(plan, device, artifact.stream_weights(verify=verify), table)
    tokenizer = Tokenizer.from_artifact(artifact)
    return Session(program, manifest.model, manifest.ranges, tokenizer, block_size=plan.block_size)


def cublas_for(plan: Plan, driver: Driver, cublas: str = "") -> FoundCublas:
    """The library that computes a plan's products; it is not looked for where there are none.

    Raises MissingTool if `cublas` names one that does not load.
    """
    if not any(isinstance(launch, Product) for launch in plan.launches):
        return FoundCublas(None, "none: the program has no products for cuBLAS")
    return find_cublas(driver.version, cublas)


def runs_here(manifest: Manifest, library: str = LIBRARY) -> bool:
    """Whether this machine has a GPU that the artifact holds a program for."""
    targets = manifest.programs.get(CUDA, {})
    if not targets:
        return False
    try:
        gpu = Driver(library).gpus()[0]
    except MissingTool:
        return False
    return any(True for _ in candidates(targets, gpu))


def read_choices(
    artifact: Artifact, target: str, cache: Path, library: str = LIBRARY
) -> tuple[dict[str, Crossover], dict[str, Shares]]:
    """From how many rows on the variants of each linear serve in an artifact's program for `target`, and over how many
    programs its attentions divide their keys.

    They are the program's own, or what was measured on this machine's GPU, if that is one that runs this program.

    Raises ArtifactRejected if the plan is damaged, BadOption if what was measured is.
    """
    plan, roles = read_plan(artifact, target).plan, artifact.manifest.programs[CUDA]
    try:
        gpu = Driver(library).gpus()[0]
    except MissingTool:
        return dict(plan.crossovers), dict(plan.shares)
    best = next((level for level, _ in candidates(roles, gpu)), "")
    chosen = select(plan, read_gpu_tuning(cache, gpu.kind) if best == target else {})
    return dict(chosen.crossovers), dict(chosen.shares)


def read_plan(artifact: Artifact, target: str) -> PlanFile:
    """What the artifact holds for a target that its manifest names. Raises ArtifactRejected."""
    roles = artifact.manifest.programs[CUDA]
    where = roles[target]
    file = parse_plan(artifact.read(where), where, artifact.manifest.files[roles[f"{target}.bin"]].bytes)
    if file.plan.target != target:
        raise ArtifactRejected(f"{where}: a plan for {file.plan.target}, expected {target}; build the artifact again")
    return file


def held(manifest: Manifest) -> str:
    """What an artifact has to run, for messages."""
    gpus = sorted(role for role in manifest.programs.get(CUDA, {}) if "." not in role)
    programs = [f"cuda for {', '.join(gpus)}" if name == CUDA else name for name in sorted(manifest.programs)]
    return f"programs {'; '.join(programs)}"


def _code(artifact: Artifact, gpu: Gpu, cache: Path, trust: bool) -> tuple[Plan, dict[str, Image]]:
    """The plan for a GPU and the code of its kernels."""
    roles = artifact.manifest.programs.get(CUDA, {})
    for target, compiled in candidates(roles, gpu):
        file = read_plan(artifact, target)
        code = file.code if compiled else file.ptx
        if code is not None:
            name = roles[f"{target}.bin"]
            content = _allowed(artifact, name, cache, trust)
            return file.plan, read_section(content, code.section, code.binaries, name)
    raise ArtifactRejected(
        f"{artifact.root}: holds {held(artifact.manifest)}, this machine has {gpu.name} ({gpu.level});"
        f" build the artifact with --target {gpu.target}, or use --program cpu"
    )


def candidates(targets: Iterable[str], gpu: Gpu) -> Iterator[tuple[str, bool]]:
    """Targets, of those given, whose code may run on a GPU, best first, and whether it is machine code; otherwise it is
    PTX. What else is given, such as the names of other files of programs, is no target.
    """
    major, minor = gpu.capability
    level = 10 * major + minor
    levels = sorted((int(name[3:]) for name in targets if name.startswith("sm_") and "." not in name), reverse=True)
    for found in levels:
        if found == level or (found < FIRST_EXACT and found // 10 == major and found < level):
            yield f"sm_{found}", True
    if FIRST_WITH_PTX in levels and level >= FIRST_WITH_PTX:
        yield f"sm_{FIRST_WITH_PTX}", False


def _check_facts(artifact: Artifact, plan: Plan) -> None:
    """That plan and manifest speak of the same model: a token beyond its tables would be read from elsewhere."""
    facts, caches = artifact.manifest.model, artifact.manifest.kv
    if plan.vocabulary != facts.vocab_size:
        raise ArtifactRejected(
            f"{artifact.root}: the manifest says {facts.vocab_size} tokens, its program knows {plan.vocabulary};"
            " build the artifact again"
        )
    mine = [(cache.heads, cache.key_size, cache.value_size, cache.dtype) for cache in plan.caches]
    if mine != [(cache.heads, cache.key_size, cache.value_size, cache.dtype) for cache in caches]:
        raise ArtifactRejected(f"{artifact.root}: its program has other caches than the manifest; build it again")


def _allowed(artifact: Artifact, name: str, cache: Path, trust: bool) -> bytes:
    """The content of a file of code: what this machine made, or the artifact's, if it is trusted."""
    if not trust and built_here(cache, artifact.manifest.files[name].sha256, GPU_SUFFIX) is None:
        raise ArtifactRejected(
            f"{artifact.root / name}: GPU code that this machine did not make is not run unasked; if you trust where it"
            " comes from, say --trust (trust=True), else build the artifact here or use --program reference"
        )
    return artifact.read(name)
