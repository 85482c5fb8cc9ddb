"""tests/runtime/tiny_program.cpp, compiled: a native program without kernels, and what it computes."""

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from llmc.codegen.cpp.toolchain import Library, compile_library
from llmc.runtime.memory import Region

V = 7
SOURCE = (Path(__file__).parents[1] / "runtime" / "tiny_program.cpp").read_text()


@lru_cache(maxsize=1)
def cache() -> Path:
    """A cache of compiled libraries of this process alone."""
    return Path(tempfile.mkdtemp(prefix="llmc-tests-"))


def library(*macros: str) -> Library:
    """The program for any machine of this kind, with macros defined."""
    return compile_library("".join(f"#define {macro}\n" for macro in macros) + SOURCE, "portable", cache=cache())


def weights() -> dict[str, np.ndarray]:
    """Its weights, each on a boundary of 64 bytes."""
    random = np.random.Generator(np.random.PCG64(7))
    region = Region(4096)
    made = {"table": (V, V), "scale": (V,)}
    views = {
        name: region.carve(4 * int(np.prod(shape))).view(np.float32).reshape(shape) for name, shape in made.items()
    }
    for view in views.values():
        view[...] = random.integers(-50, 50, view.shape)
    return views


def expected(given: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """[T, V] logits after each of `tokens`."""
    sums = np.cumsum(tokens)
    return np.stack([given["table"][token] + given["scale"] * total for token, total in zip(tokens, sums, strict=True)])
