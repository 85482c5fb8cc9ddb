"""Launch kernels in the interpreter: programs in a seeded order, memory checked, what was written reported."""

import functools
import hashlib
import importlib.util
import inspect
import linecache
import os
import random
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import triton.language as tl
from support.triton_interpreter import reductions, shortcuts
from support.triton_interpreter.libdevice import Interpreter
from support.triton_interpreter.memory import Argument, share_regions
from support.triton_interpreter.races import NOBODY, Races
from support.triton_interpreter.values import Value
from triton.language.extra import cuda, libdevice
from triton.runtime import interpreter as stock

Order = int | Literal["forward", "backward"] | None
Program = tuple[int, int, int]

_written: dict[Any, set[str]] = {}
"""By kernel, the arguments that earlier launches found it to write."""
_launches: Counter[str] = Counter()
"""By test, how many launches have had a seed."""


class Launch:
    """A launch that has ended: what its programs wrote."""

    def __init__(self, kernel: str, order: Order, programs: int, arguments: Sequence[Argument], races: Races) -> None:
        self.kernel = kernel
        self.order = order
        """The order of programs; `launch(..., order=...)` with it repeats the launch."""
        self.programs = programs
        self._arguments = arguments
        self._races = races

    def assert_written(self, *tensors: torch.Tensor) -> None:
        """Every element of some arguments, or of views of them, was written."""
        for tensor in tensors:
            unwritten = np.argwhere(self._history(tensor, "writer") == NOBODY)
            if len(unwritten):
                raise AssertionError(
                    f"{self.kernel}: {len(unwritten)} of {tensor.numel()} elements of {self._name(tensor)} were never "
                    f"written, the first at {tuple(map(int, unwritten[0]))}"
                )

    def assert_written_once(self, *tensors: torch.Tensor) -> None:
        """Every element of some arguments, or of views of them, was written, and by one program only."""
        self.assert_written(*tensors)
        for tensor in tensors:
            shared = np.argwhere(self._history(tensor, "shared"))
            if len(shared):
                raise AssertionError(
                    f"{self.kernel}: {len(shared)} of {tensor.numel()} elements of {self._name(tensor)} were written "
                    f"by several programs, the first at {tuple(map(int, shared[0]))}"
                )

    def _argument(self, tensor: torch.Tensor) -> Argument:
        start = tensor.data_ptr()
        for argument in self._arguments:
            if argument.start <= start < argument.start + argument.size:
                return argument
        raise ValueError(f"{self.kernel}: a tensor of shape {list(tensor.shape)} is in no argument of the launch")

    def _name(self, tensor: torch.Tensor) -> str:
        return str(self._argument(tensor))

    def _history(self, tensor: torch.Tensor, what: Literal["writer", "shared"]) -> Any:
        """What is known of each element, in the tensor's shape."""
        argument = self._argument(tensor)
        shadow = self._races.shadow(argument)
        if shadow is None:
            return np.full(tuple(tensor.shape), NOBODY if what == "writer" else 0)
        elements = np.zeros(tuple(tensor.shape), np.int64)
        for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            elements += (np.arange(size) * stride).reshape([-1 if at == axis else 1 for at in range(tensor.dim())])
        elements += (tensor.data_ptr() - argument.start) // tensor.element_size()
        granules = shadow.granules(argument, tensor.element_size(), elements).reshape(*elements.shape, -1)
        return shadow.writer[granules].min(-1) if what == "writer" else shadow.shared[granules].any(-1)


def install() -> None:
    """Make this process's interpreter exact and checked; `kernel[grid](...)` becomes `launch(kernel, grid, ...)`.

    Raises:
        RuntimeError: triton was imported without TRITON_INTERPRET=1, so kernels are compiled, not interpreted.
    """
    if not isinstance(tl.standard.sum, stock.InterpretedFunction):
        raise RuntimeError("TRITON_INTERPRET=1 was not set when triton was imported; tests/conftest.py sets it")
    if isinstance(stock.interpreter_builder, Interpreter):
        return
    builder = Interpreter()
    # `tl.device_assert` is on. Checks of each integer operation for overflow would cost more than the operations.
    builder.options = stock.InterpreterOptions(debug=True, sanitize_overflow=False)
    stock.interpreter_builder = builder
    stock.interpreter_semantic = shortcuts.Semantic(builder)
    stock.TensorHandle = Value
    stock.InterpretedFunction.run = _run
    stock.InterpretedFunction.__call__ = _call


def _run(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> Launch | None:
    return None if warmup else launch(self, grid, *args, **options)


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A kernel calls another function of its kind; the names it uses are in place since the launch."""
    return _function(self)(*args, **kwargs)


def launch(
    kernel: Any,
    grid: int | Sequence[int] | Callable[[dict[str, Any]], Sequence[int]],
    *args: Any,
    order: Order = None,
    reachable: Sequence[torch.Tensor] = (),
    unordered: Collection[str] = (),
    **options: Any,
) -> Launch:
    """Run a kernel for all programs of a grid, one after another.

    Args:
        kernel: a function decorated with `triton.jit`.
        grid: number of programs along up to three axes.
        args: its arguments: tensors on the CPU, numbers, constants.
        order: seed of the order of programs, or "forward" (the last axis fastest) or "backward". By default a seed
            from the name of the running test, which is printed and so shown when the test fails.
        reachable: tensors that are no arguments and whose addresses are read from memory.
        unordered: names of arguments whose races are meant.
        options: arguments by name. Launch options such as `num_warps` are accepted and change nothing.

    Raises:
        IndexError: an access outside every tensor argument.
        RaceError: programs of the launch, or threads of one program, race for an element.
    """
    install()
    if not isinstance(kernel, stock.InterpretedFunction):
        raise TypeError(f"{kernel!r} is no kernel of this interpreter; was TRITON_INTERPRET=1 set when it was made?")
    name = kernel.fn.__name__
    bound = _bound(kernel, args, options)
    constants = _constants(kernel)
    arguments = [Argument(key, value) for key, value in _tensors(bound)]
    arguments += [Argument(f"reachable[{at}]", tensor) for at, tensor in enumerate(reachable)]
    share_regions(arguments)
    by_name = {argument.name: argument for argument in arguments}
    sizes = _sizes(grid(bound) if callable(grid) else grid)
    programs, order = _ordered(sizes, order, name)
    builder = stock.interpreter_builder
    races = Races(builder.place, unordered, _written.get(kernel.fn, ()))
    builder.open(name, arguments, races)
    builder.set_grid_dim(*sizes)
    function = _function(kernel)
    with language(), np.errstate(all="ignore"):
        values = {key: value if key in constants else _value(value, key, by_name) for key, value in bound.items()}
        try:
            for program in programs:
                builder.begin(program)
                function(**values)
        except Exception as error:
            error.add_note(f"{name}: program {builder.grid_idx} of grid {sizes}, programs in order {order!r}")
            raise
        finally:
            builder.arguments = ()
    _written.setdefault(kernel.fn, set()).update(races.written)
    return Launch(name, order, len(programs), arguments, races)


def _bound(kernel: Any, args: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    signature = _signature(kernel.fn)
    known = {key: value for key, value in options.items() if key in signature.parameters}
    bound = signature.bind(*args, **known)
    bound.apply_defaults()
    return dict(bound.arguments)


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def _constants(kernel: Any) -> set[str]:
    annotations = inspect.get_annotations(kernel.fn)
    return {name for name, kind in annotations.items() if kind is tl.constexpr or str(kind).endswith("constexpr")}


def _tensors(values: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors among a kernel's arguments, also those in tuples and behind descriptors, with names."""
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, tuple):
            yield from _tensors({f"{name}[{at}]": item for at, item in enumerate(value)})
        elif isinstance(value, stock.TensorDescriptor):
            yield name, value.base


def _value(value: Any, name: str, arguments: dict[str, Argument]) -> Any:
    """An argument as the kernel sees it."""
    if isinstance(value, tuple):
        return tl.tuple([_value(item, f"{name}[{at}]", arguments) for at, item in enumerate(value)])
    if isinstance(value, float):
        return tl.tensor(Value(np.array([value], np.float32), tl.float32), tl.float32)
    converted = stock._implicit_cvt(value)
    if isinstance(value, torch.Tensor):
        converted.handle.argument = arguments[name]
    elif isinstance(value, stock.TensorDescriptor):
        converted.handle.base.argument = arguments[name]
    return converted


def _sizes(grid: Any) -> Program:
    sizes = (grid,) if isinstance(grid, int) else tuple(map(int, grid))
    if not 1 <= len(sizes) <= 3 or min(sizes) < 0:
        raise ValueError(f"a grid has one to three sizes, found {grid!r}")
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


def _ordered(sizes: Program, order: Order, kernel: str) -> tuple[list[Program], Order]:
    programs = [(x, y, z) for x in range(sizes[0]) for y in range(sizes[1]) for z in range(sizes[2])]
    if order is None:
        order = _seed()
        if len(programs) > 1:
            print(f"{kernel}: {len(programs)} programs, order={order}")
    if order == "backward":
        programs.reverse()
    elif order != "forward":
        random.Random(order).shuffle(programs)
    return programs, order


def _seed() -> int:
    """A seed that depends on the running test and counts its launches, so that a test alone repeats what it did."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" (")[0]
    _launches[test] += 1
    return int.from_bytes(hashlib.sha256(f"{test} {_launches[test]}".encode()).digest()[:4], "big")


@functools.cache
def _function(kernel: Any) -> Callable[..., Any]:
    """The Python function of a kernel, with names of the language that its module imported one by one made callable."""
    found: Callable[..., Any] = kernel.rewrite()
    names = found.__globals__
    for name, value in list(names.items()):
        if tl.core.is_builtin(value):
            names[name] = _with_semantic(value)
    return found


def _with_semantic(builtin: Callable[..., Any]) -> Callable[..., Any]:
    inner = getattr(builtin, "__wrapped__", builtin)

    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = stock.interpreter_semantic
        return inner(*args, **kwargs)

    return call


class _Recorded:
    """Stands in for the interpreter's scope of replaced names: notes what to replace."""

    def __init__(self) -> None:
        self.changes: dict[tuple[int, str], tuple[Any, str, Any]] = {}

    def set_attr(self, owner: Any, name: str, value: Any) -> None:
        """Note that `owner.name` becomes `value`."""
        self.changes[id(owner), name] = (owner, name, value)


@functools.cache
def _replacements() -> list[tuple[Any, str, Any, Any]]:
    """Names of the language that work on the interpreter while a kernel runs: owner, name, old value, new value."""
    noted = _Recorded()
    owners = [tl, tl.core, tl.math, tl.core.tensor, tl.core.tensor_descriptor_base, cuda, cuda.libdevice, cuda.gdc]
    for owner in [*owners, cuda.utils]:
        for name, member in inspect.getmembers(owner):
            if tl.core.is_builtin(member):
                noted.set_attr(owner, name, _with_semantic(member))
    for name, member in inspect.getmembers(cuda.libdevice):
        if tl.core.is_builtin(member) and hasattr(libdevice, name):
            noted.set_attr(libdevice, name, _with_semantic(member))
    for language in (tl, tl.core):
        stock._patch_lang_tensor(language.tensor, noted)
        stock._patch_lang_core(language, noted)
        noted.set_attr(language, "reduce", reductions.reduce)
        noted.set_attr(language, "associative_scan", reductions.associative_scan)
    for owner, name, value in shortcuts.REPLACED:
        noted.set_attr(owner, name, value)
    missing = object()
    return [
        (owner, name, owner.__dict__.get(name, getattr(owner, name, missing)), value)
        for owner, name, value in noted.changes.values()
    ]


_depth = 0


@contextmanager
def language() -> Iterator[None]:
    """While it lasts, functions of the language act on the interpreter."""
    global _depth
    _depth += 1
    try:
        if _depth == 1:
            for owner, name, _, new in _replacements():
                setattr(owner, name, new)
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            for owner, name, old, _ in _replacements():
                setattr(owner, name, old)


def load_kernels(text: str, name: str = "kernels") -> types.ModuleType:
    """The module that a text defines. It is kept as a file, from which `triton.jit` reads the source of its kernels."""
    install()
    folder = Path(tempfile.gettempdir()) / f"llmc-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / f"{name}_{key}.py"
    if not path.exists():
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(text)
        draft.replace(path)
    linecache.checkcache(str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
