"""Where in the user's model a trace went wrong: the module and the source line, for messages of refusal."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import sympy
import torch
from torch import nn
from torch.fx.experimental import symbolic_shapes
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_NOT_THE_MODEL = (str(Path(torch.__file__).parent), str(Path(__file__).parent), contextlib.__file__, "<")


@contextlib.contextmanager
def specialized_lengths(module: nn.Module) -> Iterator[list[str]]:
    """Within this, the places where a trace of `module` turns its dynamic length into a constant are listed.

    A Python loop over the tokens does so, and a branch or a table of fixed size that holds for one length only.
    """
    places: list[str] = []
    original: Any = getattr(ShapeEnv, "_set_replacement", None)  # not public: without it the list stays empty
    if original is None:
        yield places
        return

    def recording(environment: ShapeEnv, symbol: sympy.Symbol, target: sympy.Expr, *rest: object) -> None:
        if isinstance(target, sympy.Integer):
            places.append(_place(_frames_outward(sys._getframe(1)), module))
        original(environment, symbol, target, *rest)

    ShapeEnv._set_replacement = recording  # type: ignore[method-assign, assignment]
    try:
        yield places
    finally:
        ShapeEnv._set_replacement = original  # type: ignore[method-assign]


@contextlib.contextmanager
def located_guards(module: nn.Module) -> Iterator[None]:
    """Within this, each guard of a trace of `module` is located by the module and its source line."""
    original: Any = getattr(ShapeEnv, "_get_sloc", None)  # not public either: without it guards have no place
    location: Any = getattr(symbolic_shapes, "SLoc", None)
    if original is None or location is None:
        yield
        return

    def located(environment: ShapeEnv, *args: object, **kwargs: object) -> object:
        return location(_place(_frames_outward(sys._getframe(1)), module), None)

    ShapeEnv._get_sloc = located  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ShapeEnv._get_sloc = original  # type: ignore[method-assign]


def place_of_call(module: nn.Module) -> str:
    """The place in the own code of `module` that the caller was called from; "" when it was not called from there."""
    return _place(_frames_outward(sys._getframe(1)), module)


def raised_at(error: BaseException, module: nn.Module) -> str:
    """The place in the model's own code that an exception came from; "" when it did not come from there."""
    return _place(reversed(list(_frames_of(error.__traceback__))), module)


def _frames_outward(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _frames_of(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _place(frames: Iterator[tuple[FrameType, int]], module: nn.Module) -> str:
    """`layers.0.mixer at modeling_mamba.py:366`, from the innermost frame that is the model's, and its module."""
    names = {id(part): name for name, part in module.named_modules()}
    source = ""
    for frame, line in frames:
        file = frame.f_code.co_filename
        if not source:
            if file.startswith(_NOT_THE_MODEL):
                continue
            source = f"{Path(file).name}:{line}"
        name = names.get(id(frame.f_locals.get("self")))
        if name is not None:
            return f"{name} at {source}" if name else source
    return source
