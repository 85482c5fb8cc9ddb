"""The package as the house rules see it: its modules, their files, and what each imports."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"compiler": "llmc", "passes": "llmc.passes", "codegen": "llmc.codegen", "runtime": "llmc.runtime"}
"""The folders of the package, and the names under which they are installed."""


@dataclass(frozen=True)
class Module:
    """One Python file of the package."""

    name: str
    """Name to import it by, such as `llmc.ir.model`."""
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.path.read_text(), str(self.path))

    def imports(self) -> Iterator[tuple[str, int]]:
        """What it imports at any depth, by full name, with the line."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            if isinstance(node, ast.ImportFrom):
                base = node.module or ""
                assert node.level == 0, f"{self.path}:{node.lineno}: import by full name"
                yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)

    def where(self, line: int) -> str:
        """Place for a message."""
        return f"{self.path.relative_to(ROOT)}:{line}"


def modules() -> list[Module]:
    """All modules of the package, sorted by name."""
    found = []
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found.append(Module(".".join(part for part in parts if part != "__init__"), path))
    return sorted(found, key=lambda module: module.name)


def python_files() -> list[Path]:
    """Every Python file of the repository that people write."""
    return sorted(path for folder in (*FOLDERS, "tests", "examples") for path in (ROOT / folder).rglob("*.py"))
