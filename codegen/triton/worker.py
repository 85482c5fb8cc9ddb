"""Compiles kernels for a GPU, in a process of its own: `python -m llmc.codegen.triton.worker FOLDER`.

Reads one job a line from stdin and answers each with a line. Triton reads its configuration from the environment when
it is imported, and the switch of its interpreter when a kernel is defined: neither is the caller's business.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

LOWEST_PTX = 80
"""Version of the PTX of sm_80, times ten: it is kept for GPUs that are not known yet."""


def main() -> None:
    """Serve jobs until stdin ends. A job is {"key", "module", "kernel", "parameters", "level", "warps", "stages"}."""
    folder = Path(sys.argv[1])
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # a third of the size, and no paths of this machine
    import triton

    # Of the two assemblers that Triton brings, this one makes code that drivers of CUDA 12 load.
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    os.environ["TRITON_PTXAS_BLACKWELL_PATH"] = str(assembler)
    answers, sys.stdout = sys.stdout, sys.stderr  # Triton prints what the assembler refuses
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"key": job["key"], "files": compile_one(job, folder)}
        except Exception as error:  # whatever a compiler raises is the answer to this job
            answer = {"key": job["key"], "error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def compile_one(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compile one kernel; writes its binary into `folder` and returns what is known of it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    spec = importlib.util.spec_from_file_location(f"kernel_{job['key'][:16]}", job["module"])
    assert spec is not None and spec.loader is not None, "a module that was just written"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    signature = dict(job["parameters"])
    # Every allocation of the runtime is aligned: without being told, Triton loads element by element.
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, type in enumerate(signature.values()) if type.startswith("*")
    }
    source = ASTSource(fn=getattr(module, job["kernel"]), signature=signature, constexprs={}, attrs=aligned)
    target, options = _target(GPUTarget, job)
    made = compile_kernel(source, target=target, options=options)
    meta = made.metadata
    assert not getattr(meta, "global_scratch_size", 0), "kernels get no scratch memory from the runtime"
    kind = "cubin" if target.backend == "cuda" else "hsaco"
    (folder / f"{job['key']}.bin").write_bytes(made.asm[kind])
    (folder / f"{job['key']}.s").write_text(str(made.asm["ptx" if kind == "cubin" else "amdgcn"]))
    return {
        "symbol": meta.name,
        "shared": meta.shared,
        "threads": meta.num_warps * (32 if target.backend == "cuda" else 64),
        "version": triton_version(),
        "portable": "ptx_version" in options,
    }


def _target(kind: Any, job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401 - a class of Triton
    level = str(job["level"])
    options: dict[str, Any] = {"num_warps": job["warps"], "num_stages": job["stages"], "enable_fp_fusion": True}
    if level.startswith("gfx"):
        return kind("hip", level, 64), options
    if level == "sm_80":
        options["ptx_version"] = LOWEST_PTX
    return kind("cuda", int(level.removeprefix("sm_")), 32), options


def triton_version() -> str:
    """The version of Triton."""
    import triton

    return str(triton.__version__)


if __name__ == "__main__":
    main()
