"""Kernels to machine code, for GPUs that need not be there: compiled by worker processes, kept in a cache.

The cache is `<cache>/cuda/<key>.{bin,s,json}`; the key is the SHA-256 of everything that goes into a kernel:
its text, the library that it calls, its options, the target and Triton's version.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmc.codegen.compile_cache import key_of, locked
from llmc.codegen.triton.kernel import KernelText, module_text
from llmc.errors import BuildFailed, MissingTool
from llmc.runtime.cpu_features import usable_cpus

LIBRARY = Path(__file__).parent / "library"
OLDEST = (3, 6)
"""The first version of Triton that knows what the kernels use."""
_SUFFIXES = ("bin", "s")
_HOW_TO_INSTALL = "pip install triton==3.9.0 (Linux; no GPU is needed), or leave out --target"


@dataclass(frozen=True)
class Binary:
    """One compiled kernel."""

    code: bytes
    """A cubin, or an hsaco."""
    symbol: str
    shared: int
    """Bytes of shared memory."""
    threads: int
    assembly: str
    """What the code was assembled from."""
    portable: bool
    """Whether newer GPUs can compile that; it is so for sm_80."""


def check_triton() -> str:
    """The version of Triton that is installed. Raises MissingTool if there is none, or an older one than is needed."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        raise MissingTool(f"GPU programs: Triton is not installed; {_HOW_TO_INSTALL}") from None
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        raise MissingTool(f"GPU programs: Triton is {found}, 3.6 or newer is needed; {_HOW_TO_INSTALL}")
    return found


def compile_kernels(kernels: Mapping[str, KernelText], level: str, *, cache: Path) -> dict[str, Binary]:
    """Compile `kernels`, by name, for one target such as sm_90; as many at a time as there are CPUs.

    Raises MissingTool without Triton, and BuildFailed if a kernel does not compile; its source is kept then.
    """
    triton = check_triton()
    folder = cache / "cuda"
    keys = {name: _key(text, level, triton) for name, text in kernels.items()}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(folder / "lock"):
            found = {name: _look_up(folder, key) for name, key in keys.items()}
            missing = {keys[name]: text for name, text in kernels.items() if found[name] is None}
            if missing:
                _compile(missing, level, folder)
                found |= {name: _look_up(folder, key) for name, key in keys.items() if key in missing}
    except OSError as error:
        reason = error.strerror or str(error)
        raise BuildFailed(
            f"kernel cache: {error.filename or folder}: {reason}; set LLMC_CACHE to a directory that can be written"
        ) from error
    return {name: binary for name, binary in found.items() if binary is not None}


def _compile(kernels: Mapping[str, KernelText], level: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=folder) as name:
        work = Path(name)
        longest = sorted(kernels.items(), key=lambda item: -len(item[1].lines))  # so that all workers end together
        jobs = [_job(key, text, level, work) for key, text in longest]
        count = min(len(jobs), len(usable_cpus()))
        for answer in _answers([jobs[start::count] for start in range(count)], work):
            text = kernels[answer["key"]]
            if "error" in answer:
                kept = folder / f"failed-{answer['key'][:16]}.py"
                kept.write_text(module_text({text.kind: text}, text.comment or text.kind))
                raise BuildFailed(f"compile {text.kind} for {level}: Triton refuses {kept}\n  {answer['error']}")
            _keep(answer, work, folder)


def _job(key: str, text: KernelText, level: str, work: Path) -> str:
    module = work / f"{key}.py"
    module.write_text(module_text({text.kind: text}, text.comment or text.kind))
    return json.dumps(
        {
            "key": key, "module": str(module), "kernel": text.kind, "parameters": text.parameters, "level": level,
            "warps": text.warps, "stages": text.stages,
        }
    )  # fmt: skip


def _answers(shares: Sequence[Sequence[str]], work: Path) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "llmc.codegen.triton.worker", str(work)]
    workers = []
    for number, share in enumerate(shares):
        jobs = work / f"jobs-{number}"
        jobs.write_text("\n".join(share) + "\n")
        with jobs.open() as stdin, (work / f"errors-{number}").open("w") as stderr:
            worker = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, text=True)
        workers.append((worker, work / f"errors-{number}", len(share)))
    try:
        for worker, errors, expected in workers:
            assert worker.stdout is not None, "its output is read"
            answered = 0
            for line in worker.stdout:
                answered += 1
                yield json.loads(line)
            if worker.wait() != 0 or answered < expected:
                tail = "\n  ".join(errors.read_text(errors="replace").strip().splitlines()[-8:])
                raise BuildFailed(f"compile kernels: the compiler ended in {worker.returncode}\n  {tail}")
    finally:
        for worker, _, _ in workers:
            worker.kill()
            worker.communicate()


def _keep(answer: Mapping[str, Any], work: Path, folder: Path) -> None:
    """Move what a worker made into the cache, what is known of it last."""
    key, facts = str(answer["key"]), dict(answer["files"])
    for suffix in _SUFFIXES:
        made = work / f"{key}.{suffix}"
        if made.is_file():
            facts[suffix] = hashlib.sha256(made.read_bytes()).hexdigest()
            made.replace(folder / made.name)
    (work / f"{key}.json").write_text(json.dumps(facts))
    (work / f"{key}.json").replace(folder / f"{key}.json")


def _look_up(folder: Path, key: str) -> Binary | None:
    """What this input gave before, if its bytes are still those that were written."""
    try:
        facts = json.loads((folder / f"{key}.json").read_text())
        content = {suffix: (folder / f"{key}.{suffix}").read_bytes() for suffix in _SUFFIXES if suffix in facts}
        if any(hashlib.sha256(code).hexdigest() != facts[suffix] for suffix, code in content.items()):
            return None
        return Binary(
            code=content["bin"],
            symbol=str(facts["symbol"]),
            shared=int(facts["shared"]),
            threads=int(facts["threads"]),
            assembly=content["s"].decode(),
            portable=bool(facts["portable"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: it is made again


def _key(text: KernelText, level: str, triton: str) -> str:
    module = module_text({text.kind: text}, text.kind)
    return key_of([triton, level, _library(), str(text.warps), str(text.stages), str(text.parameters), module])


@lru_cache(maxsize=1)
def _library() -> str:
    """The hash of all library functions and of the worker, which says how kernels are compiled."""
    digest = hashlib.sha256()
    for path in [*sorted(LIBRARY.glob("*.py")), Path(__file__).with_name("worker.py")]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
