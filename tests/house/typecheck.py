"""Type-check llmc as it is installed: `python tests/house/typecheck.py [mypy options]`.

The folders compiler/, passes/, codegen/ and runtime/ are the package `llmc` only once installed, and mypy does not
follow that mapping. So mypy is shown a folder of links, build/typed/llmc, laid out like the installed package.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def link_package(target: Path) -> None:
    """Lay `llmc` out under `target` as links to the files of the repository; remove links to files that have gone."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        folders: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    wanted = {
        target.joinpath(*package.split("."), path.name): path
        for package, folder in folders.items()
        for path in (ROOT / folder).glob("*.py")
    }
    for link in target.rglob("*.py"):
        if link not in wanted:
            link.unlink(missing_ok=True)
    for link, path in wanted.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path)


def typecheck(*options: str) -> subprocess.CompletedProcess[str]:
    """Run mypy on the whole package; the paths in its output are those of the repository's files."""
    target = ROOT / "build" / "typed"
    link_package(target)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *options, "-p", "llmc"],
        cwd=target,
        capture_output=True,
        text=True,
        check=False,
    )
    for package in ("passes", "codegen", "runtime"):
        done.stdout = done.stdout.replace(f"llmc/{package}/", f"{package}/")
    done.stdout = done.stdout.replace("llmc/", "compiler/")
    return done


if __name__ == "__main__":
    result = typecheck(*sys.argv[1:])
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    sys.exit(result.returncode)
