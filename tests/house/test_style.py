"""The rules of the house: typed, formatted, documented, short, and nothing that runs strangers' data."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from house.package import ROOT, Module, modules, python_files
from house.typecheck import typecheck

LONGEST_FILE = 400
LONG_FILES: dict[str, str] = {}
"""Files that may be longer, each with the reason."""

VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
UNSAFE_BUILTINS = {"eval", "exec", "__import__", "breakpoint"}
UNSAFE_CALLS = {"torch.load", "torch.jit.load", "torch.export.load", "os.system", "os.popen", "yaml.load"}


def test_mypy_accepts_the_package_in_strict_mode() -> None:
    done = typecheck()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=["check", "format"])
def test_ruff_has_no_complaints(arguments: tuple[str, ...]) -> None:
    files = [str(path) for path in python_files()]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "--no-cache", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE and name not in LONG_FILES} == {}


def test_files_are_named_by_what_they_do() -> None:
    assert [path for path in python_files() if path.stem in VAGUE_NAMES or path.parent.name in VAGUE_NAMES] == []


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    written = [path for path in python_files() if path.name != "test_style.py"]
    assert [str(path) for path in written if marks.search(path.read_text())] == []


def test_the_package_runs_no_data() -> None:
    assert _offences(_unsafe) == []


def test_only_options_reads_the_environment() -> None:
    """The worker writes it: that is how Triton is configured, in a process of its own."""
    allowed = ("compiler/options.py", "codegen/triton/worker.py")
    assert [text for text in _offences(_environment) if not text.startswith(allowed)] == []


def test_only_the_command_line_prints() -> None:
    assert [text for text in _offences(_prints) if not text.startswith("compiler/cli/")] == []


def test_no_module_works_at_import() -> None:
    """Statements at module level define things; none calls for effect."""
    assert [
        f"{module.where(statement.lineno)}: {ast.unparse(statement)[:80]}"
        for module in modules()
        for statement in module.tree.body
        if isinstance(statement, ast.For | ast.While | ast.With)
        or (isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant))
    ] == []


def _offences(find: Callable[[ast.AST], str | None]) -> list[str]:
    return [
        f"{module.where(getattr(node, 'lineno', 1))}: {offence}"
        for module in modules()
        for node in ast.walk(module.tree)
        if (offence := find(node)) is not None
    ]


def _unsafe(node: ast.AST) -> str | None:
    if isinstance(node, ast.Import) and any(alias.name.partition(".")[0] in UNSAFE_MODULES for alias in node.names):
        return ast.unparse(node)
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNSAFE_MODULES:
        return ast.unparse(node)
    if isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_CALLS:
        return ast.unparse(node)
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_BUILTINS:
        return ast.unparse(node)
    risky = {"shell", "allow_pickle", "trust_remote_code"}
    if any(word.arg in risky and ast.unparse(word.value) != "False" for word in node.keywords):
        return ast.unparse(node)
    return None


def _environment(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv", "os.environb"}:
        return ast.unparse(node)
    return None


def _prints(node: ast.AST) -> str | None:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
        return ast.unparse(node)
    return None


def test_the_rules_see_what_they_forbid() -> None:
    """The checks above are not blind: each finds its offence in a line that commits it."""
    found = {
        line: next((text for node in ast.walk(ast.parse(line)) if (text := rule(node)) is not None), None)
        for rule, line in [
            (_unsafe, "import pickle"),
            (_unsafe, "from pickle import loads"),
            (_unsafe, "eval(text)"),
            (_unsafe, "torch.load(path)"),
            (_unsafe, "subprocess.run(text, shell=True)"),
            (_environment, "os.environ['HOME']"),
            (_prints, "print(text)"),
        ]
    }
    assert [line for line, text in found.items() if text is None] == []
    harmless = Module("harmless", ROOT / "compiler" / "errors.py")
    assert [node for node in ast.walk(harmless.tree) if _unsafe(node)] == []
