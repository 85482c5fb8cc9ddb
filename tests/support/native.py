"""Test programs in C++ against the headers of the kernels: compiled once, cached by what went into them."""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

INCLUDE = Path(__file__).resolve().parents[2] / "codegen/cpp/include"
HARNESSES = Path(__file__).resolve().parents[1] / "kernels"
"""Where harnesses find headers of their own."""
Isa = Literal["avx512", "avx2", "portable"]
ISAS: tuple[Isa, ...] = ("avx512", "avx2", "portable")

_TARGETS: dict[str, tuple[str, ...]] = {
    "avx512": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mavx512vbmi"),
    "avx2": ("-march=x86-64-v3",),
    "portable": ("-march=x86-64",),
}
_NEEDS: dict[str, set[str]] = {
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "avx512vbmi"},
    "avx2": {"avx2", "fma", "f16c"},
    "portable": set(),
}
_FLAGS = (
    "-std=c++20", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-fno-math-errno",
    "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-pthread",
    "-Wno-uninitialized", "-Wno-maybe-uninitialized",  # GCC 12 means its own intrinsics
)  # fmt: skip
_SANITIZERS = {
    "address": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-O1", "-g", "-fsanitize=thread"),
}


def compile_native(
    source: str | Path | Sequence[Path], *, isa: Isa = "avx512", sanitize: bool = False, flags: Sequence[str] = ()
) -> ctypes.CDLL:
    """The functions that a harness exports (`extern "C"` and visible: use `EXPORT`), compiled for an ISA level.

    `source` is C++ text, the path of a file, or files that become one library; a file's own folder is looked through
    for what it includes. With `sanitize` only what is undefined is found (a library in this process has no address
    sanitizer; see `run_native`), and it ends the process. Skips the test where this CPU or compiler cannot.
    """
    extra = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all") if sanitize else ("-O3",)
    if isinstance(source, str | Path):
        return ctypes.CDLL(str(_build(source, isa, (*extra, "-shared", *flags))))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(lambda part: _build(part, isa, (*extra, "-c", *flags)), source))
    return ctypes.CDLL(str(_link(objects, isa, (*extra, "-shared", *flags))))


def run_native(
    source: str | Path,
    *,
    isa: Isa = "avx512",
    sanitizer: Literal["address", "thread"] = "address",
    arguments: Sequence[str] = (),
    flags: Sequence[str] = (),
    timeout: float = 120,
) -> str:
    """What a harness with a `main` prints, under the address and undefined-behaviour sanitizers or that of threads.

    Fails with its output if it does not end with 0. Skips the test where this CPU or compiler cannot.
    """
    program = _build(source, isa, (*_SANITIZERS[sanitizer], *flags))
    found = subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )  # fmt: skip
    assert found.returncode == 0, f"exit {found.returncode}\n{found.stdout[-2000:]}\n{found.stderr[-6000:]}"
    return found.stdout


EXPORT = '#define EXPORT extern "C" __attribute__((visibility("default")))\n'


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split(":")[1].split()) for line in lines if line.startswith("flags")), frozenset())


def runs_here(isa: Isa) -> bool:
    """Whether this CPU has the instructions of an ISA level."""
    return _NEEDS[isa] <= _cpu_flags()


def _included(text: str, folders: Sequence[Path]) -> dict[Path, str]:
    """The headers that a text includes by quotes, and what those include."""
    found: dict[Path, str] = {}
    waiting = [text]
    while waiting:
        for name in re.findall(r'^\s*#\s*include "(.*)"', waiting.pop(), re.MULTILINE):
            path = next((folder / name for folder in folders if (folder / name).exists()), None)
            if path is not None and path not in found:
                found[path] = path.read_text()
                waiting.append(found[path])
    return found


def cache() -> Path:
    """A folder for what tests have compiled."""
    root = Path(tempfile.gettempdir()) / f"llmc-native-tests-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    assert root.stat().st_uid == os.getuid(), f"{root} belongs to somebody else"
    return root


def _build(source: str | Path, isa: Isa, flags: Sequence[str]) -> Path:
    text = source.read_text() if isinstance(source, Path) else source
    folders = (INCLUDE, HARNESSES, *([source.parent] if isinstance(source, Path) else []))
    options = (*flags, *(f"-I{folder}" for folder in folders))
    content = [EXPORT + "#line 1\n" + text, *_included(text, folders).values()]
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        code = Path(folder, "harness.cpp")
        code.write_text(content[0])
        return _compiled([code], isa, options, content)


def _link(objects: Sequence[Path], isa: Isa, flags: Sequence[str]) -> Path:
    return _compiled(objects, isa, flags, [path.name for path in objects])


def _compiled(files: Sequence[Path], isa: Isa, flags: Sequence[str], content: Sequence[str]) -> Path:
    """What the compiler makes of files; `content` is what they say, by which the result is found again."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    if not runs_here(isa):
        pytest.skip(f"this CPU has no {isa}")
    options = (*_TARGETS[isa], *_FLAGS, *flags)
    key = hashlib.sha256("\0".join([*content, compiler, *options]).encode())
    built = cache() / key.hexdigest()[:32]
    if built.exists():
        return built
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        made = Path(folder, "harness")
        done = subprocess.run(
            [compiler, *options, *map(str, files), "-o", str(made)], capture_output=True, text=True, check=False
        )  # fmt: skip
        if "sanitize" in done.stderr and "cannot find" in done.stderr:
            pytest.skip("the compiler has no sanitizers")
        assert done.returncode == 0, f"the harness does not compile:\n{done.stderr[-8000:]}"
        made.replace(built)  # one whole file, whoever else builds the same
    return built
