"""The library that fits the machine: never one with instructions that it lacks."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from llmc.errors import ArtifactRejected
from llmc.runtime import cpu_features
from llmc.runtime.cpu_features import LEVELS, choose, features, levels, machine_of, read_features

ZEN4 = LEVELS["avx512"]
HASWELL = LEVELS["avx2"]


def test_features_are_those_that_all_processors_share() -> None:
    text = "processor : 0\nflags\t\t: fpu avx2 fma\n\nprocessor : 1\nflags\t\t: fpu avx2\n"
    assert read_features(text) == {"fpu", "avx2"}
    assert read_features("Features : asimd bf16\n") == {"asimd", "bf16"}
    assert read_features("processor : 0\n") == frozenset()


def test_levels_follow_from_features() -> None:
    assert levels(ZEN4, "x86_64") == ("avx512", "avx2", "portable")
    assert levels(HASWELL, "AMD64") == ("avx2", "portable")
    assert levels((), "x86_64") == ("portable",)
    assert levels(ZEN4, "aarch64") == ("portable",)


@pytest.mark.parametrize("missing", sorted(ZEN4))
def test_every_feature_that_is_missing_costs_the_level(missing: str) -> None:
    found = levels(ZEN4 - {missing}, "x86_64")
    assert found == (("portable",) if missing in HASWELL else ("avx2", "portable"))


def test_the_best_library_of_an_artifact_is_chosen() -> None:
    libraries = {"portable": 1, "avx2": 2, "avx512": 3}
    assert choose(libraries, ("avx512", "avx2", "portable")) == ("avx512", 3)
    assert choose(libraries, ("avx2", "portable")) == ("avx2", 2)
    assert choose({"portable": 1}, ("avx2", "portable")) == ("portable", 1)
    assert choose({"portable": 1})[0] == "portable"


def test_an_artifact_without_a_fitting_library_says_what_it_holds() -> None:
    with pytest.raises(ArtifactRejected, match="the artifact holds avx512, this machine runs avx2, portable; build it"):
        choose({"avx512": 1}, ("avx2", "portable"))
    with pytest.raises(ArtifactRejected, match="holds no library"):
        choose({}, ("portable",))


def test_the_machine_of_a_library_is_in_its_header() -> None:
    assert machine_of(Path(sys.executable).read_bytes()) in (platform.machine(), None)
    assert machine_of(b"\x7fELF\x02\x01" + bytes(12) + b"\xb7\x00" + bytes(40)) == "aarch64"
    assert machine_of(b"MZ") is None
    assert machine_of(b"\x7fELF") is None


@pytest.mark.skipif(platform.system() != "Linux", reason="needs /proc/cpuinfo")
def test_the_compiler_agrees_on_what_this_machine_has() -> None:
    done = subprocess.run(["g++", "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"], capture_output=True)
    if done.returncode != 0:
        pytest.skip("no g++")
    assert (b"__AVX512VNNI__" in done.stdout) == ("avx512_vnni" in features())
    assert (b"__AVX2__" in done.stdout) == ("avx2" in features())
    assert set(cpu_features.usable_cpus())
