"""Regions that torch computes as C++: the process that called the program is asked to."""

from llmc.codegen.cpp.function import Function
from llmc.codegen.regions import TorchRegion


def emit_torch(region: TorchRegion, number: int) -> Function:
    """The function of a region; `number` is the place of its call among those of the program."""
    function = Function("torch")
    values = [function.pointer(view.buffer) for view in region.inputs]
    values += [function.pointer(view.buffer, written=True) for view in region.outputs]
    function.add(f"on_host(team, run, {number}, {{{', '.join(values)}}});")
    return function
