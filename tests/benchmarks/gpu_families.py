"""Programs for GPUs of published models of many families, without a GPU: `PYTHONPATH=tests gpu_families.py [--models
gpt-oss-20b,falcon-7b] [--levels sm_90] [--formats float,int4] [--tokens 1,8,32,512]`.

Two layers of each are built in their real shapes, over weights of zeros. A line for each number of tokens: launches of
a step and of its second layer, kernels, how long it took to build the model and to compile what was not compiled
before, and how large the machine code is. Then what `static_checks` has to say of each kernel, and the kernels that do
not compile.
"""

import argparse
import itertools
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from support.model_code import compiled, examined, launches, launches_of_layer
from support.popular_models import POPULAR
from support.sparse_models import write_sparse

import llmc
from llmc.codegen.triton.emit import GpuSource
from llmc.errors import LlmcError
from llmc.options import cache_directory

LEVELS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")


def source_of(name: str, level: str, format: str) -> GpuSource:
    """The program of a model of `POPULAR`."""
    with TemporaryDirectory() as folder:
        options = {} if format == "float" else {"quantize": format}
        model = llmc.compile(
            write_sparse(Path(folder) / "model", name), target=level, program="reference", prove=False, **options
        )
    assert model._build is not None and model._build.gpu is not None
    return model._build.gpu.sources[level]


def examine(source: GpuSource, level: str, tokens: int) -> tuple[str, list[str]]:
    """Kernels, seconds and kilobytes of a step as text, and a line for each finding."""
    began = time.perf_counter()
    binaries = compiled(source, level, tokens, cache_directory())
    seconds = time.perf_counter() - began
    lines = []
    if level.startswith("sm_"):
        for name, seen in examined(source, binaries, level, tokens):
            lines += [f"    {name} ({source.kernels[name].comment}): {finding}" for finding in seen.findings]
    size = sum(len(binary.code) for binary in binaries.values())
    return f"{len(binaries):7} {seconds:7.1f} s {size >> 10:5} KB", lines


def report(name: str, level: str, format: str, steps: list[int]) -> None:
    """Print the lines of one program."""
    began = time.perf_counter()
    head = f"{name:18} {level:7} {format:9}"
    try:
        source = source_of(name, level, format)
    except LlmcError as error:
        print(f"{head} is refused: {error}", flush=True)
        return
    seconds = time.perf_counter() - began
    for tokens in steps:
        counts = (
            f"{tokens:6} {len(launches(source, tokens)):8} {launches_of_layer(source, tokens, 1):5} {seconds:5.0f} s"
        )
        try:
            code, lines = examine(source, level, tokens)
        except LlmcError as error:
            code, lines = str(error), []
        print("\n".join([f"{head} {counts} {code}", *lines]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    choices = {"models": POPULAR, "levels": LEVELS[2:3], "formats": ["float"], "tokens": ["1", "8", "32", "512"]}
    for option, values in choices.items():
        parser.add_argument(f"--{option}", default=",".join(values), help="some of these, with commas between")
    given = parser.parse_args()
    print("model              target  weights   tokens launches layer  built kernels compiled    code, and findings")
    programs = itertools.product(given.models.split(","), given.levels.split(","), given.formats.split(","))
    for name, level, format in programs:
        report(name, level, format, [int(tokens) for tokens in given.tokens.split(",")])


if __name__ == "__main__":
    main()
