"""What a build can be told, validated in one place; the only file that reads the environment.

An argument wins over its environment variable. `LLMC_DUMP` is the directory for the numbered dumps of the graph,
`LLMC_STOP_AFTER` the number of rewrites to perform, `LLMC_PROGRAM` the kind of program, `LLMC_CXX` the C++ compiler,
`LLMC_CACHE` the directory for what builds can share, `LLMC_CUBLAS` the libcublas that GPU programs use.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmc.errors import BadOption

DTYPES = ("float32", "float16", "bfloat16")
"""What `dtype` may be."""

KV_DTYPES = (*DTYPES, "int8", "fp8")
"""What `kv_dtype` may be."""

STORAGES = ("float", "fp8", "int8", "int6", "int4", "int4:64", "int4:128", "keep")
"""What `quantize` may be; the number after a colon is that of weights that share a scale, 32 where none is said."""

HEADS = ("float", "fp8", "int8", "int6", "int4", "int4:64", "int4:128")
"""What `head` may be."""

THIS_GPU = "cuda"
"""The target that stands for that of this machine's GPU."""
TARGETS = ("cpu", THIS_GPU, "sm_80", "sm_89", "sm_90", "sm_100", "gfx942")
"""What `target` may name: this kind of CPU, and the GPUs that kernels are made for."""

PROGRAMS = ("cpu", "reference")
"""What `program` may be: native code, or the graph in eager torch."""
RUN_PROGRAMS = ("cuda", *PROGRAMS)
"""What of an artifact may be run: besides those, its program for this machine's GPU."""


@dataclass(frozen=True)
class Options:
    """The options of one build."""

    dtype: str | None = None
    """The dtype to compile the model in; None is the checkpoint's own."""
    max_context: int | None = None
    """The longest sequence to serve, in tokens, at least 1; None is what the model was made for."""
    prove: bool = True
    """Whether each rewrite is tested on the subgraph it replaces."""
    dump: Path | None = None
    """Where to write the graph after each pass that changes it; None writes nothing."""
    stop_after: int | None = None
    """Perform only the first so many rewrites, at least 0; None performs all."""
    quantize: str | None = None
    """How a native program stores weights: as the floats they are, as integers, or as the GGUF file stores them
    ("keep"). None is "keep" for a GGUF file and "float" for everything else."""
    head: str | None = None
    """How it stores the projection to the logits, and the embedding if that is the same table, when `quantize` says
    what the others are rounded to. None is "int6" beside "int4:64" and "int4:128", and beside "int4" where it has 2^27
    weights or more, else "int8"; beside all else it is what the others are."""
    kv_dtype: str | None = None
    """How keys and values are stored in the cache; None is a dtype that fits the weights."""

    program: str | None = None
    """The kind of program; None is native code where a compiler is found."""
    strict: bool = False
    """Whether a part that has no native form is an error; otherwise torch computes it."""
    compiler: str | None = None
    """The C++ compiler, as a path or a name; None is the first that is found."""
    targets: tuple[str, ...] = ("cpu",)
    """The machines to build for, of `TARGETS`."""

    def __post_init__(self) -> None:
        """Check the values; raises BadOption."""
        check_program(self.program)
        for target in self.targets:
            if target not in TARGETS:
                raise BadOption(f"target: {target!r} is no machine to build for; use any of {', '.join(TARGETS)}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise BadOption(f"dtype: {self.dtype!r} is not a dtype of a compiled model; use {', '.join(DTYPES)}")
        if self.quantize is not None and self.quantize not in STORAGES:
            raise BadOption(f"quantize: {self.quantize!r} is not a way to store weights; use {', '.join(STORAGES)}")
        if self.head is not None and self.head not in HEADS:
            raise BadOption(f"head: {self.head!r} is not a way to store the head; use {', '.join(HEADS)}")
        if self.head is not None and self.quantize in (None, "float", "keep"):
            raise BadOption(f"head: {self.head!r} needs `quantize` to say what the other weights are rounded to")
        if self.kv_dtype is not None and self.kv_dtype not in KV_DTYPES:
            raise BadOption(f"kv dtype: {self.kv_dtype!r} is not a dtype of a cache; use {', '.join(KV_DTYPES)}")
        if self.max_context is not None and self.max_context < 1:
            raise BadOption(f"max context: {self.max_context} is less than 1 token; use 1 or more, or leave it out")
        if self.stop_after is not None and self.stop_after < 0:
            raise BadOption(f"stop after: {self.stop_after} rewrites cannot be performed; use 0 or more")
        if self.dump is not None and self.dump.exists() and not self.dump.is_dir():
            raise BadOption(f"dump: {self.dump} is a file; name a directory")

    @classmethod
    def read(
        cls,
        *,
        dtype: str | None = None,
        max_context: int | None = None,
        prove: bool = True,
        dump: str | Path | None = None,
        stop_after: int | None = None,
        quantize: str | None = None,
        head: str | None = None,
        kv_dtype: str | None = None,
        program: str | None = None,
        strict: bool = False,
        target: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> "Options":
        """The options given, completed from `environment` (the process's own, when None); raises BadOption."""
        environment = os.environ if environment is None else environment
        if dump is None:
            dump = environment.get("LLMC_DUMP") or None
        if stop_after is None:
            stop_after = _whole_number(environment, "LLMC_STOP_AFTER")
        folder = None if dump is None else Path(dump)
        return cls(
            dtype,
            max_context,
            prove,
            folder,
            stop_after,
            quantize,
            head,
            kv_dtype,
            program or environment.get("LLMC_PROGRAM") or None,
            strict,
            chosen_compiler(environment),
            ("cpu",) if target is None else tuple(dict.fromkeys(part.strip() for part in target.split(","))),
        )

    @property
    def gpus(self) -> tuple[str, ...]:
        """The targets that are GPUs."""
        return tuple(target for target in self.targets if target != "cpu")


def chosen_compiler(environment: Mapping[str, str] | None = None) -> str | None:
    """The C++ compiler that `LLMC_CXX` names, as a path or a name on PATH; None if it names none."""
    return (os.environ if environment is None else environment).get("LLMC_CXX") or None


def chosen_cublas(environment: Mapping[str, str] | None = None) -> str:
    """The libcublas that `LLMC_CUBLAS` names, or "none" for none; "" if it is to be looked for."""
    return (os.environ if environment is None else environment).get("LLMC_CUBLAS", "")


def check_program(program: str | None, known: tuple[str, ...] = PROGRAMS) -> None:
    """Raise BadOption unless `program` is None or one of `known`."""
    if program is not None and program not in known:
        raise BadOption(f"program: {program!r} is no kind of program; use {' or '.join(known)}")


def cache_directory(environment: Mapping[str, str] | None = None) -> Path:
    """Where llmc may keep what builds can share: `LLMC_CACHE`, else `llmc` in the user's cache directory.

    Raises BadOption if `LLMC_CACHE` names a file. The directory need not exist.
    """
    environment = os.environ if environment is None else environment
    if chosen := environment.get("LLMC_CACHE"):
        if Path(chosen).is_file():
            raise BadOption(f"LLMC_CACHE: {chosen} is a file; name a directory")
        return Path(chosen)
    if base := environment.get("XDG_CACHE_HOME"):
        return Path(base) / "llmc"
    return Path.home() / ".cache" / "llmc"


def _whole_number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise BadOption(f"{name}: {text!r} is not a whole number; set it to one such as 12, or unset it")
    return int(text)
