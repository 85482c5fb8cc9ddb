"""llmc: a compiler for transformer inference.

`llmc.compile(model)` compiles a model in memory, `llmc.load(directory)` opens an artifact. Importing this package
imports neither torch nor transformers; they come with the first compilation. A native artifact runs without them.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "compile", "load"]

if TYPE_CHECKING:
    from llmc.driver import compile
    from llmc.loading import load


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    if name == "compile":
        from llmc.driver import compile

        return compile
    if name == "load":
        from llmc.loading import load

        return load
    raise AttributeError(f"module 'llmc' has no attribute {name!r}")
