"""C++ source to shared libraries: find a compiler, run it once for each level of instructions, keep what it made.

The cache is two kinds of files in `<cache>/native`: `<key>.json` names the library that an input gave (the key is the
SHA-256 of everything that goes into it: source, headers, flags, compiler), and `<sha256>.so` is that library under the
hash of its own bytes. So equal libraries are kept once, a damaged one is noticed, and a library that lies here under
its hash is one that this machine made: `llmc.runtime.native_trust` relies on that.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from llmc.codegen.compile_cache import key_of, locked
from llmc.errors import BadOption, BuildFailed, MissingTool
from llmc.runtime.cpu_features import usable_cpus
from llmc.runtime.native_trust import library_folder, library_path

HEADERS = Path(__file__).parent / "include"
"""The template headers that generated programs include."""
ISA_FLAGS = {
    "avx512": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mavx512vbmi"),
    "avx2": ("-march=x86-64-v3",),
    "portable": ("-march=x86-64",),
}
"""Levels of instructions, best first, and the flags that allow them; on other machines than x86-64 there is only
"portable", without a flag."""
FLAGS = (
    "-std=c++20", "-O3", "-g0", "-shared", "-fPIC", "-pthread", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden",
    # Bits are part of what is promised: no fused operation but those that the source spells.
    "-ffp-contract=off", "-fno-math-errno",
    "-Wl,--build-id=none",
)  # fmt: skip
OLDEST = {"gcc": 11, "clang": 14}
"""First versions that know C++20 and x86-64-v4."""
NAMES = ("g++", "clang++", "c++")
"""Compilers, in the order in which they are looked for; the ziglang package comes last."""
TIMEOUT = 1800
"""Seconds that one compilation may take."""
_ERROR_LINES = 12
_HOW_TO_INSTALL = (
    "install one (Debian: apt install g++; anywhere: pip install ziglang), name one with LLMC_CXX, or build with"
    " --program reference"
)


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that will do."""

    command: tuple[str, ...]
    """How it is called."""
    kind: str
    """"gcc" or "clang"."""
    version: str
    """The first line of its `--version`."""
    machine: str
    """What it compiles for, such as `x86_64-linux-gnu`."""

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels of instructions that it compiles for, best first."""
        return tuple(ISA_FLAGS) if self.machine.startswith(("x86_64", "amd64")) else ("portable",)

    def flags(self, isa: str) -> tuple[str, ...]:
        """Every flag but the names of files."""
        if isa not in self.levels:
            raise BadOption(f"isa: {isa!r} is no level of {self.machine}; use {', '.join(self.levels)}")
        chosen = ISA_FLAGS[isa] if len(self.levels) > 1 else ()
        if "ziglang" in self.command:  # it spells the names of processors with underscores
            chosen = tuple(flag.replace("x86-64", "x86_64").replace("64-v", "64_v") for flag in chosen)
        return (*FLAGS, *chosen)


@dataclass(frozen=True)
class Library:
    """A compiled program."""

    isa: str
    path: Path
    """In the cache; it stays as long as nobody clears that."""
    sha256: str
    cached: bool
    """Whether it was there already."""


def find_compiler(chosen: str | None = None) -> Compiler:
    """The compiler named by `chosen` (a path or a name on PATH), else the first of those installed that will do.

    Raises:
        MissingTool: there is none, or only older ones; the message says what to install.
        BadOption: `chosen` is no C++ compiler.
    """
    if chosen is not None:
        path = shutil.which(chosen)
        compiler = None if path is None else _examine((path,))
        if compiler is None:
            raise BadOption(f"compiler: {chosen} is not a C++ compiler that runs; name g++ or clang++")
        if reason := _too_old(compiler):
            raise MissingTool(f"compiler: {chosen} is {reason}; {_HOW_TO_INSTALL}")
        return compiler
    reasons = []
    for command in _candidates():
        compiler = _examine(command)
        reason = "broken" if compiler is None else _too_old(compiler)
        if compiler is not None and reason is None:
            return compiler
        reasons.append(f"{' '.join(command)} is {reason}")
    found = "; ".join(reasons) or f"none of {', '.join(NAMES)} is installed"
    raise MissingTool(f"no C++ compiler: {found}; {_HOW_TO_INSTALL}")


def compile_library(
    source: str, isa: str, *, cache: Path, compiler: Compiler | None = None, headers: Path = HEADERS
) -> Library:
    """Compile `source` for one level of instructions; equal input gives equal bytes.

    Processes that compile the same at a time wait for the first. Raises BuildFailed with the compiler's first lines;
    the source is kept then. Raises what `find_compiler` raises.
    """
    compiler = compiler or find_compiler()
    flags = compiler.flags(isa)
    key = _key(source, headers, compiler, flags)
    folder = library_folder(cache)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(folder / f"{key}.lock"):
            known = _look_up(cache, key, isa)
            return known or _compile(source, isa, cache, key, compiler, headers)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BuildFailed(
            f"compiler cache: {error.filename or folder}: {reason}; set LLMC_CACHE to a directory that can be written"
        ) from error


def compile_levels(
    source: str,
    levels: Sequence[str] | None = None,
    *,
    cache: Path,
    compiler: Compiler | None = None,
    headers: Path = HEADERS,
) -> dict[str, Library]:
    """Compile `source` for several levels (all that there are, when None), as many at a time as there are CPUs.

    Raises what `compile_library` raises; of several failures the best level's.
    """
    compiler = compiler or find_compiler()
    levels = compiler.levels if levels is None else tuple(levels)
    with ThreadPoolExecutor(min(len(levels), len(usable_cpus()))) as pool:
        made = {
            isa: pool.submit(compile_library, source, isa, cache=cache, compiler=compiler, headers=headers)
            for isa in levels
        }
    return {isa: future.result() for isa, future in made.items()}


def _candidates() -> Iterator[tuple[str, ...]]:
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            yield (path,)
    if find_spec("ziglang") is not None:
        yield (sys.executable, "-m", "ziglang", "c++")


@lru_cache(maxsize=16)
def _examine(command: tuple[str, ...]) -> Compiler | None:
    """What `command` says of itself; None if it is no compiler that runs."""
    version, machine = _output(*command, "--version"), _output(*command, "-dumpmachine")
    if not version or not machine:
        return None
    kind = "clang" if "clang" in version else "gcc"
    return Compiler(command, kind, version.splitlines()[0], machine.strip())


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _too_old(compiler: Compiler) -> str | None:
    found = re.search(r"(\d+)\.\d+", re.sub(r"\([^)]*\)", "", compiler.version))
    oldest = OLDEST[compiler.kind]
    if found is not None and int(found[1]) >= oldest:
        return None
    return f"{compiler.version!r}, {compiler.kind} {oldest} or newer is needed"


def _key(source: str, headers: Path, compiler: Compiler, flags: Sequence[str]) -> str:
    parts = [compiler.version, compiler.machine, " ".join(compiler.command), " ".join(flags), source]
    for path in sorted(headers.rglob("*.h")):
        parts += [path.relative_to(headers).as_posix(), path.read_text()]
    return key_of(parts)


def _look_up(cache: Path, key: str, isa: str) -> Library | None:
    """The library that this input gave, if its bytes are still those that the compiler wrote."""
    try:
        record = json.loads((library_folder(cache) / f"{key}.json").read_text())
        sha256 = str(record["sha256"])
        path = library_path(cache, sha256)
        if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return Library(isa, path, sha256, cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged: it is made again
    return None


def _compile(source: str, isa: str, cache: Path, key: str, compiler: Compiler, headers: Path) -> Library:
    folder = library_folder(cache)
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=folder) as name:
        work = Path(name)
        (work / "program.cpp").write_text(source)
        command = [
            *compiler.command,
            *compiler.flags(isa),
            f"-ffile-prefix-map={work}=.",
            f"-ffile-prefix-map={headers}=include",
            f"-I{headers}",
            "-o", "program.so", "program.cpp",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            raise BuildFailed(f"compile {isa}: {compiler.command[0]} took longer than {TIMEOUT} s") from None
        if done.returncode != 0 or not (work / "program.so").is_file():
            kept = folder / f"failed-{key[:16]}.cpp"
            kept.write_text(source)
            raise BuildFailed(_failure(isa, compiler, done, kept, headers))
        content = (work / "program.so").read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        path = library_path(cache, sha256)
        (work / "program.so").replace(path)
        record = {"sha256": sha256, "isa": isa, "compiler": compiler.version, "machine": compiler.machine}
        (work / "record").write_text(json.dumps(record))
        (work / "record").replace(folder / f"{key}.json")
    return Library(isa, path, sha256, cached=False)


def _failure(isa: str, compiler: Compiler, done: subprocess.CompletedProcess[str], kept: Path, headers: Path) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if "error" in line), 0)
    shown = "\n  ".join(lines[first : first + _ERROR_LINES]) or f"it ended in {done.returncode}"
    again = " ".join([*compiler.command, *compiler.flags(isa), f"-I{headers}", str(kept)])
    return f"compile {isa}: {compiler.version} refuses the generated program; again with `{again}`\n  {shown}"
