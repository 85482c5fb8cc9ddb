"""Packed weights as kernels of a GPU find them: laid out by the program's own kernels, in the interpreter."""

import torch
from support.triton_interpreter import launch, load_kernels

from llmc.codegen.triton.emit_rearrangement import emit_rearrangement
from llmc.codegen.triton.kernel import module_text
from llmc.codegen.triton.packed import PackedWeight
from llmc.ir.packed_formats import FORMATS, pack
from llmc.ir.packed_layout import TILE, padded_columns

TYPES = {
    "*i64": torch.int64, "*i32": torch.int32, "*i16": torch.int16, "*u8": torch.uint8, "*fp32": torch.float32,
    "*fp16": torch.float16, "*bf16": torch.bfloat16,
}  # fmt: skip
"""What pointers of Triton's types point at."""


def part_names(role: str, format: str) -> tuple[str, ...]:
    """The names of the parts of a weight."""
    return tuple(f"{role}_{part}" for part in FORMATS[format].parts)


def rearranged(role: str, weight: torch.Tensor, format: str) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The parts of a weight as they are stored, and as bytes, by name, as kernels read them."""
    parts = pack(weight, format)
    columns = padded_columns(weight.shape[-1])
    packed = PackedWeight(part_names(role, format), format, parts[0].shape[0] * TILE, columns)
    memory = {name: part.reshape(-1).view(torch.uint8) for name, part in zip(packed.parts, parts, strict=True)}
    for name, size, draft in emit_rearrangement(packed):
        types = {parameter: TYPES[type] for parameter, type in draft.kernel.parameters}
        target = torch.zeros(size, dtype=torch.uint8)
        given = {"source": memory[name].view(types["source"]), "target": target.view(types["target"])}
        module = load_kernels(module_text({"kernel": draft.kernel}, "A rearrangement."))
        grid = tuple(extent.at({}) for extent in draft.grid)
        done = launch(module.kernel, grid, *(given[name] for name, _ in draft.kernel.parameters))
        done.assert_written(given["target"])
        memory[name] = target
    return parts, memory
