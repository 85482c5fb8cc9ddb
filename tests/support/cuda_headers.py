"""NVIDIA's headers, where packages have brought them."""

import importlib.util
import sys
from pathlib import Path


def cuda_headers() -> list[Path]:
    """Folders of cuda.h, which Triton ships, and of cublas_api.h; empty if there is no cuda.h."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return []
    include = Path(triton.origin).parent / "backends/nvidia/include"
    if not (include / "cuda.h").exists():
        return []
    wheels = [Path(folder, "nvidia/cu13/include") for folder in sys.path]
    return [*(wheel for wheel in wheels if (wheel / "cublas_api.h").exists()), include]


def include_flags() -> tuple[str, ...]:
    """What tells the compiler of them."""
    return tuple(flag for folder in cuda_headers() for flag in ("-isystem", str(folder)))
