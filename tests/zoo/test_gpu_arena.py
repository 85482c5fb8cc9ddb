"""Kernels stay within their buffers: these lie side by side in the arena, where no check of whole allocations helps."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from support.interpreted_device import HostMemory
from zoo.test_gpu import VOCAB, gpu_program

from llmc.codegen.plan_memory import Buffer, Plan
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.program import Batch
from llmc.zoo import tiny
from llmc.zoo.checks import prefill, ragged, sequences
from llmc.zoo.steps import run_in_pieces

GAP = 256
"""Bytes a token between two buffers: with room for 256 tokens, 64 KB."""
UNTOUCHED = 0xFF
"""What memory holds that was not asked for zeroed; read as floats it is not a number."""


def spaced(buffers: Sequence[Buffer]) -> Plan:
    """A place of its own for each buffer, with gaps between them."""
    offsets, end = {}, GAP
    for buffer in buffers:
        offsets[buffer.key] = end
        end += -(-buffer.size // 64) * 64 + GAP
    return Plan(offsets, {buffer.key: "token" for buffer in buffers}, end, 0, end, 0)


def stray_bytes(program: GpuProgram, sizes: dict[int, int], tokens: int) -> int:
    """Bytes that were written outside of the first rows of buffers; `sizes` are those of a token, by offset."""
    memory, capacity = program._arena, program._capacity
    assert isinstance(memory, HostMemory)
    outside = np.ones(memory.bytes, bool)
    for offset, size in sizes.items():
        outside[offset * capacity : offset * capacity + size * tokens] = False
    return int((memory.content.numpy()[outside] != UNTOUCHED).sum())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "deepseek_v3"])
def test_nothing_is_written_beside_a_buffer(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[int, int] = {}

    def planned(buffers: Sequence[Buffer]) -> Plan:
        made = spaced(buffers)
        sizes.update((made.offsets[buffer.key], buffer.size) for buffer in buffers)
        return made

    monkeypatch.setattr("llmc.codegen.triton.emit.plan", planned)
    program = gpu_program(tiny(family))
    prompts, tokens = sequences(VOCAB), [0]
    step = program.step

    def counted(batch: Batch) -> npt.NDArray[np.float32]:
        tokens.append(len(batch.tokens))
        return step(batch)

    monkeypatch.setattr(program, "step", counted)
    pieces = {0: run_in_pieces(program, prompts[0], [1, 13, 1, 1, 1])}
    for logits in (pieces, prefill(program, prompts), ragged(program, prompts)):
        assert all(rows.isfinite().all() for rows in logits.values())
    assert stray_bytes(program, sizes, max(tokens)) == 0


def test_what_is_written_beside_a_buffer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmc.codegen.triton.emit.plan", spaced)
    program = gpu_program(tiny("llama"))
    prefill(program, sequences(VOCAB)[:1])
    assert stray_bytes(program, {}, 1) > 0
