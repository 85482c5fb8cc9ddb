"""The compiler: found or asked for in words, run once for equal input, its results kept and checked."""

import json
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from llmc.codegen.cpp import toolchain
from llmc.codegen.cpp.toolchain import compile_levels, compile_library, find_compiler
from llmc.errors import BadOption, BuildFailed, MissingTool
from llmc.runtime.native_trust import built_here

SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    (tmp_path / "include" / "llmc").mkdir(parents=True)
    (tmp_path / "include" / "llmc" / "answer.h").write_text("#define ANSWER 42\n")
    return tmp_path / "include"


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_equal_input_is_compiled_once_and_kept_under_the_hash_of_its_bytes(cache: Path) -> None:
    first = compile_library(SOURCE, "portable", cache=cache)
    second = compile_library(SOURCE, "portable", cache=cache)
    assert (first.cached, second.cached) == (False, True)
    assert first.path == second.path == built_here(cache, first.sha256)
    assert first.path.name == f"{first.sha256}.so"
    assert not [path for path in first.path.parent.iterdir() if path.name.startswith(".compiling")]


def test_equal_input_gives_equal_bytes_from_anywhere(cache: Path, tmp_path: Path) -> None:
    first = compile_library(SOURCE, "portable", cache=cache)
    second = compile_library(SOURCE, "portable", cache=tmp_path / "another place")
    assert second.cached is False
    assert first.path.read_bytes() == second.path.read_bytes()


def test_whatever_goes_into_a_library_makes_another_entry(cache: Path, headers: Path) -> None:
    source = '#include "llmc/answer.h"\nextern "C" int answer() { return ANSWER; }\n'
    compile_library(source, "portable", cache=cache, headers=headers)
    assert compile_library(source, "portable", cache=cache, headers=headers).cached
    assert not compile_library(source + "\n", "portable", cache=cache, headers=headers).cached
    (headers / "llmc" / "answer.h").write_text("#define ANSWER 43\n")
    assert not compile_library(source, "portable", cache=cache, headers=headers).cached
    (headers / "llmc" / "unused.h").write_text("")
    assert not compile_library(source, "portable", cache=cache, headers=headers).cached


@pytest.mark.skipif(len(find_compiler().levels) == 1, reason="this machine has one level of instructions")
def test_all_levels_are_compiled_and_differ(cache: Path) -> None:
    source = SOURCE.replace("42", "\n#ifdef __AVX512VNNI__\n3\n#elif defined(__AVX2__)\n2\n#else\n1\n#endif\n")
    made = compile_levels(source, cache=cache)
    assert list(made) == ["avx512", "avx2", "portable"]
    assert len({library.sha256 for library in made.values()}) == 3


@pytest.mark.parametrize("damage", ["library", "record", "no library", "json"])
def test_a_damaged_entry_is_made_again(cache: Path, damage: str) -> None:
    made = compile_library(SOURCE, "portable", cache=cache)
    content = made.path.read_bytes()
    (record,) = made.path.parent.glob("*.json")
    match damage:
        case "library":
            made.path.write_bytes(content[:-1] + b"x")
            assert built_here(cache, made.sha256) is None
        case "record":
            record.write_text(json.dumps({**json.loads(record.read_text()), "sha256": "../escape"}))
        case "no library":
            made.path.unlink()
        case "json":
            record.write_text("{")
    again = compile_library(SOURCE, "portable", cache=cache)
    assert (again.cached, again.path.read_bytes()) == (False, content)
    assert compile_library(SOURCE, "portable", cache=cache).cached


def test_processes_that_compile_the_same_wait_for_the_first(cache: Path) -> None:
    code = f"""
from pathlib import Path
from llmc.codegen.cpp.toolchain import compile_library
made = compile_library({SOURCE!r}, "portable", cache=Path({str(cache)!r}))
print(made.cached, made.sha256)
"""
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: subprocess.run([sys.executable, "-c", code], capture_output=True), range(4)))
    said = [run.stdout.decode().split() for run in done]
    assert sorted(cached for cached, _ in said) == ["False", "True", "True", "True"], [run.stderr for run in done]
    assert len({sha256 for _, sha256 in said}) == 1


def test_an_error_shows_the_compilers_first_lines_and_keeps_the_source(cache: Path) -> None:
    source = "int answer( { return 42; }\n"
    with pytest.raises(BuildFailed, match=r"refuses the generated program; again with .*\n  .*error") as caught:
        compile_library(source, "portable", cache=cache)
    (kept,) = (cache / "native").glob("failed-*.cpp")
    assert str(kept) in str(caught.value)
    assert kept.read_text() == source
    assert len(str(caught.value).splitlines()) < 20


def test_a_cache_that_cannot_be_written_says_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildFailed, match="set LLMC_CACHE to a directory"):
        compile_library(SOURCE, "portable", cache=tmp_path / "file")


def test_a_level_that_the_machine_has_not_is_refused(cache: Path) -> None:
    with pytest.raises(BadOption, match="isa: 'sse9' is no level of"):
        compile_library(SOURCE, "sse9", cache=cache)


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match=r"none of g\+\+, clang\+\+, c\+\+ is installed; install .*ziglang"):
        find_compiler()


def test_old_and_broken_compilers_are_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    script(tmp_path / "g++", 'echo "g++ (Debian 8.3.0-6) 8.3.0"')
    script(tmp_path / "c++", "exit 1")
    with pytest.raises(MissingTool, match=r"'g\+\+ \(Debian 8.3.0-6\) 8.3.0', gcc 11 or newer .*c\+\+ is broken"):
        find_compiler()
    new = script(tmp_path / "clang++", 'echo "Debian clang version 19.1.7"')
    assert (find_compiler().command, find_compiler().kind) == ((str(new),), "clang")


def test_the_ziglang_package_is_the_last_resort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `python -m ziglang c++`; here a script stands for Python."""
    python = script(tmp_path / "python", '[ "$1 $2 $3" = "-m ziglang c++" ] && echo "clang version 20.1.2"')
    monkeypatch.setattr(toolchain, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    zig = find_compiler()
    assert zig.command == (str(python), "-m", "ziglang", "c++")
    assert "-march=x86_64_v3" in replace(zig, machine="x86_64-unknown-linux-musl").flags("avx2")


def test_a_chosen_compiler_is_the_only_one_looked_at(tmp_path: Path) -> None:
    assert find_compiler("g++").version
    with pytest.raises(BadOption, match=r"is not a C\+\+ compiler that runs"):
        find_compiler(str(tmp_path / "nothing"))
    old = script(tmp_path / "old", 'echo "g++ 4.9.2"')
    with pytest.raises(MissingTool, match="gcc 11 or newer is needed"):
        find_compiler(str(old))


def test_what_others_could_have_written_is_not_counted_as_built_here(cache: Path) -> None:
    made = compile_library(SOURCE, "portable", cache=cache)
    folder = made.path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert built_here(cache, "0" * 64) is None
    folder.chmod(0o777)
    assert built_here(cache, made.sha256) is None
    folder.chmod(0o700)
    made.path.chmod(0o666)
    assert built_here(cache, made.sha256) is None
