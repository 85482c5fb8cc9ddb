"""The set-up scripts agree with pyproject.toml and work from any directory."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from house.package import FOLDERS, ROOT
from packaging.requirements import Requirement

SCRIPTS = ["examples/setup.sh", "examples/quickstart.sh", "tests/run.sh", ".ci/run"]


def _requirements() -> list[Requirement]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    return [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["test"]]


def test_every_folder_of_the_package_is_installed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    folders = {
        str(path.parent.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(setuptools["package-dir"].values()) == folders
    assert set(setuptools["package-dir"]) == set(setuptools["packages"])


def test_a_wheel_holds_every_file_that_the_package_reads(tmp_path: Path) -> None:
    for name in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    wanted = {
        "/".join(("llmc", *((folder,) if folder != "compiler" else ()), path.relative_to(ROOT / folder).as_posix()))
        for folder in FOLDERS
        for pattern in ("*.py", "*.h", "*.cpp")
        for path in (ROOT / folder).rglob(pattern)
    }
    assert wanted - held == set()


def _pins() -> dict[str, str]:
    lines = (ROOT / "examples" / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_dependency_is_pinned_to_a_version_that_pyproject_accepts() -> None:
    pins = _pins()
    assert [str(need) for need in _requirements() if not need.specifier.contains(pins.get(need.name, "0"))] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def _sourced(tmp_path: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    text = "\n".join([f"source {ROOT / 'examples' / 'setup.sh'}", *commands])
    environment = {"PATH": "/usr/bin:/bin", "LLMC_VENV": str(tmp_path / "venv"), "HOME": str(tmp_path)}
    return subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )


def test_a_step_runs_once_and_again_only_when_its_stamp_or_its_check_fails(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    install = "install() { echo installed; touch made; }"
    done = _sourced(
        tmp_path,
        install,
        "step thing 1 'test -f made' install",
        "step thing 1 'test -f made' install",
        "rm made",
        "step thing 1 'test -f made' install",
        "step thing 2 'test -f made' install",
    )
    assert (done.returncode, done.stdout) == (0, "installed\n" * 3), done.stderr
    assert done.stderr.count("thing: ready") == 1


def test_a_step_that_fails_ends_in_4_and_leaves_no_stamp(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    done = _sourced(tmp_path, "step thing 1 true false")
    assert done.returncode == 4
    assert "error: thing could not be installed; the first time needs the network" in done.stderr
    assert list((tmp_path / "venv").iterdir()) == []
    done = _sourced(tmp_path, "step thing 1 false true")
    assert done.returncode == 4
    assert "thing was installed but does not work" in done.stderr


@pytest.mark.parametrize(("found", "installed"), [("true", ""), ("test -f made", "ziglang\n")])
def test_a_compiler_is_installed_where_none_is_found(tmp_path: Path, found: str, installed: str) -> None:
    (tmp_path / "venv").mkdir()
    pip = 'pip_install() { echo "$@"; touch made; }'
    again = "step compiler 1 has_compiler install_compiler"
    done = _sourced(tmp_path, f"has_compiler() {{ {found}; }}", pip, again, again)
    assert (done.returncode, done.stdout) == (0, installed), done.stderr
    assert done.stderr.count("compiler: ready") == 1


def test_a_machine_without_a_new_python_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = _sourced(tmp_path, f"PATH={tmp_path / 'bin'}", "find_python")
    assert done.returncode == 4
    assert "error: no Python 3.11 or newer found" in done.stderr
