"""Imports go down only: a lower layer knows nothing of a higher one."""

import subprocess
import sys

from house.package import Module, modules

LAYERS = {
    "llmc.errors": (),
    "llmc.runtime": ("llmc.errors",),
    "llmc.options": ("llmc.errors",),
    "llmc.doctor": (
        "llmc.errors",
        "llmc.options",
        "llmc.codegen.cpp.toolchain",
        "llmc.runtime.cpu_features",
        "llmc.runtime.cuda.cublas",
        "llmc.runtime.cuda.driver",
    ),
    "llmc.ir": ("llmc.errors",),
    "llmc.passes": ("llmc.errors", "llmc.ir"),
    "llmc.codegen": ("llmc.errors", "llmc.ir", "llmc.passes", "llmc.runtime"),
    "llmc.frontend": ("llmc.errors", "llmc.ir", "llmc.passes"),
}
"""What each layer may import of llmc, besides itself and the version; modules that are not listed know all."""

RUNTIME_PACKAGES = {"numpy", "tokenizers", "jinja2"}
"""The packages that running an artifact may need."""

TORCHLESS = ("llmc", "llmc.cli", "llmc.options", "llmc.doctor", "llmc.errors", "llmc.codegen.cpp.toolchain")
"""Modules that must stay importable at once: no torch, transformers or numpy comes with them."""


def test_imports_go_down_only() -> None:
    upward = [
        f"{module.where(line)}: {module.name} imports {name}"
        for module in modules()
        for name, line in module.imports()
        if _within(name, "llmc") and name != "llmc.__version__" and not _allowed(module, name)
    ]
    assert upward == []


def test_the_runtime_uses_few_packages_and_never_torch() -> None:
    foreign = [
        f"{module.where(line)}: {name}"
        for module in modules()
        if _within(module.name, "llmc.runtime")
        for name, line in module.imports()
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names | RUNTIME_PACKAGES | {"llmc"}
        and not top.startswith("__")
    ]
    assert foreign == []


def test_the_runtime_imports_where_torch_does_not_exist() -> None:
    names = [module.name for module in modules() if _within(module.name, "llmc.runtime")]
    code = f"""
import importlib, sys
for blocked in ("torch", "transformers", "sympy", "safetensors"):
    sys.modules[blocked] = None
for name in {names!r}:
    importlib.import_module(name)
print(len([name for name in sys.modules if name.startswith("llmc.runtime")]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout.strip()) == ("", str(len(names)))


def test_the_front_door_imports_no_heavy_package() -> None:
    code = f"""
import importlib, sys
for name in {TORCHLESS!r}:
    importlib.import_module(name)
print(sorted(set(sys.modules) & {{"torch", "transformers", "numpy", "sympy", "safetensors", "tokenizers"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout.strip()) == ("", "[]")


def _allowed(module: Module, name: str) -> bool:
    layer = max((layer for layer in LAYERS if _within(module.name, layer)), key=len, default=None)
    return layer is None or any(_within(name, below) for below in (layer, *LAYERS[layer]))


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")
