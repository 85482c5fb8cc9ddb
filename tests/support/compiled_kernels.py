"""Generated kernels compiled for a GPU and run by this CPU, in place of the interpreter of their source.

The functions have the names and the meaning of those of `support.triton_interpreter` that harnesses use, so that a test
can put these in their place: `run_compiled(monkeypatch, "sm_90", module, ...)`.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.native import cache
from support.software_machine import Array, DeviceMemory, PtxModule

from llmc.codegen.triton.compile import LIBRARY
from llmc.codegen.triton.kernel import KernelText, module_text

_NUMBERS = {"i32": np.int32, "i64": np.int64, "fp32": np.float32}


@lru_cache(maxsize=1)
def _sources() -> bytes:
    """What all kernels depend on, as a hash."""
    paths = [*sorted(LIBRARY.glob("*.py")), LIBRARY.parent / "worker.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).digest()


class _Compiler:
    """A process that compiles, one kernel after another; what it made is kept for later sessions."""

    def __init__(self) -> None:
        self.folder = cache() / "kernels"
        self.folder.mkdir(exist_ok=True)
        self._worker: subprocess.Popen[str] | None = None

    def __call__(self, text: KernelText, level: str) -> tuple[str, dict[str, Any]]:
        """PTX, and its facts."""
        source = module_text({text.kind: text}, "A kernel.")
        parts = (source, level, str(text.parameters), str(text.warps), str(text.stages))
        key = hashlib.sha256(_sources() + "\0".join(parts).encode()).hexdigest()[:40]
        facts, ptx = self.folder / f"{key}.json", self.folder / f"{key}.s"
        if not facts.exists():
            answer = self._compile(key, source, text, level)
            assert "files" in answer, answer.get("error")
            with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as made:
                json.dump(answer["files"], made)
            Path(made.name).replace(facts)
        return ptx.read_text(), json.loads(facts.read_text())

    def _compile(self, key: str, source: str, text: KernelText, level: str) -> dict[str, Any]:
        if self._worker is None:
            command = [sys.executable, "-m", "llmc.codegen.triton.worker", str(self.folder)]
            self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        module = self.folder / f"{key}.py"
        module.write_text(source)
        job = {
            "key": key, "module": str(module), "kernel": text.kind, "parameters": text.parameters, "level": level,
            "warps": text.warps, "stages": text.stages,
        }  # fmt: skip
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(json.dumps(job) + "\n")
        self._worker.stdin.flush()
        answer: dict[str, Any] = json.loads(self._worker.stdout.readline())
        return answer


@lru_cache(maxsize=1)
def _compiler() -> _Compiler:
    return _Compiler()


@dataclass(frozen=True)
class Compiled:
    """A kernel for one target."""

    text: KernelText
    level: str
    edit: Callable[[str], str] = str
    """What to make of its PTX."""

    @cached_property
    def _made(self) -> tuple[PtxModule, dict[str, Any]]:
        ptx, facts = _compiler()(self.text, self.level)
        return PtxModule(self.edit(ptx)), facts

    def launch(self, grid: Sequence[int], arguments: Sequence[Any], seed: int, reachable: Sequence[Any]) -> "Done":
        """Run it: tensors and numbers, in the order of its parameters."""
        module, facts = self._made
        memory = DeviceMemory(*map(_array, reachable))
        values: list[Any] = []
        for value, (_, type) in zip(arguments, self.text.parameters, strict=True):
            values.append(_array(value) if isinstance(value, torch.Tensor) else _NUMBERS[type](value))
        nothing = np.uint64(0)  # Triton adds two pointers
        module.launch(
            facts["symbol"], grid, facts["threads"], [*values, nothing, nothing], shared=facts["shared"], seed=seed,
            memory=memory, programmatic=self.text.pdl,
        )  # fmt: skip
        return Done(self.text.kind, memory)


@dataclass(frozen=True)
class Done:
    """What a launch has written; two programs that write the same byte are an error by themselves."""

    kernel: str
    memory: DeviceMemory = field(repr=False)

    def assert_written(self, *tensors: torch.Tensor) -> None:
        """Every byte of some arguments, or of views of them, was written."""
        for tensor in tensors:
            whole = torch.as_strided(tensor, [_extent(tensor)], [1])
            written = torch.from_numpy(self.memory.written(_array(whole))).reshape(-1, tensor.element_size()).all(1)
            seen = torch.as_strided(written, tensor.shape, tensor.stride(), 0)
            assert seen.all(), f"{self.kernel}: {int((~seen).sum())} of {seen.numel()} elements were never written"

    assert_written_once = assert_written


def _extent(tensor: torch.Tensor) -> int:
    """Elements from the first to the last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _array(tensor: torch.Tensor) -> Array:
    """The bytes of a tensor."""
    assert tensor.is_contiguous()
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def run_compiled(
    monkeypatch: pytest.MonkeyPatch,
    level: str,
    *harnesses: ModuleType,
    seed: int = 0,
    edit: Callable[[str], str] = str,
) -> None:
    """Let harnesses that interpret kernels run them compiled for `level` instead; blocks in an order by `seed`.

    `edit` changes their PTX.
    """

    def load_kernels(kernels: Mapping[str, KernelText]) -> SimpleNamespace:
        # Programmatic dependent launch is of newer GPUs than some harnesses ask for.
        levels = {name: "sm_90" if text.pdl else level for name, text in kernels.items()}
        return SimpleNamespace(**{name: Compiled(text, levels[name], edit) for name, text in kernels.items()})

    def launch(kernel: Compiled, grid: Sequence[int], *arguments: Any, reachable: Sequence[Any] = (), **_: Any) -> Done:
        return kernel.launch(grid, arguments, seed, reachable)

    for harness in harnesses:
        monkeypatch.setattr(harness, "module_text", lambda kernels, title: kernels)
        monkeypatch.setattr(harness, "load_kernels", load_kernels)
        monkeypatch.setattr(harness, "launch", launch)
