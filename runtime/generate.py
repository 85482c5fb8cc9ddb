"""The token loop: requests enter the batch as room allows, take part in steps together, and leave as they finish."""

from collections import deque
from collections.abc import Generator, Sequence

import numpy as np
import numpy.typing as npt

from llmc.runtime.batch import Packed, Packer, Piece, pack
from llmc.runtime.decoding import Decoder
from llmc.runtime.kv_cache import BlockPool, BlockTable
from llmc.runtime.manifest import Ranges
from llmc.runtime.program import Program
from llmc.runtime.request import Increment, Request


def generate(
    requests: Sequence[Request], program: Program, pool: BlockPool, ranges: Ranges, chunk: int | None
) -> Generator[Increment]:
    """Run all requests to their end, yielding each token as it is made.

    A request is admitted, in order, once there is room in the step and once all blocks that it can come to need are
    free, so that none ever has to be interrupted. Closing the iterator gives back all blocks. Raises BadRequest if
    others hold the blocks that the next request needs.
    """
    waiting, running, packer = deque(requests), list[Request](), Packer()
    try:
        while waiting or running:
            _admit(waiting, running, pool, min(ranges.sequences, ranges.tokens))
            increments = _step(running, program, packer, ranges.tokens, chunk)
            if any(increment.finish_reason is not None for increment in increments):
                for request in running:
                    if request.finish_reason is not None:
                        request.release()
                running = [request for request in running if request.finish_reason is None]
            yield from increments
    finally:
        for request in requests:
            request.release()


def logits_of(tokens: Sequence[int], program: Program, pool: BlockPool, most: int) -> npt.NDArray[np.float32]:
    """[T, V] logits after each of `tokens`, computed in steps of at most `most` tokens."""
    table = BlockTable(pool)
    try:
        pieces = [Piece(tokens[at : at + most], table, "all") for at in range(0, len(tokens), most)]
        return np.concatenate([run_step(program, pack([piece])).copy() for piece in pieces])
    finally:
        table.release()


def run_step(program: Program, packed: Packed) -> npt.NDArray[np.float32]:
    """Make the copies that a step needs, run it, and return its [R, V] logits."""
    _copy(program, packed)
    return program.step(packed.batch)


def _copy(program: Program, packed: Packed) -> None:
    for source, target in packed.copies:
        program.copy_block(source, target)


def _admit(waiting: deque[Request], running: list[Request], pool: BlockPool, most: int) -> None:
    while waiting and len(running) < most:
        needed = pool.blocks_for(waiting[0].longest)
        if running and needed > pool.available:
            return
        waiting[0].admit(BlockTable(pool))
        running.append(waiting.popleft())


def _step(
    running: Sequence[Request], program: Program, packer: Packer, tokens: int, chunk: int | None
) -> list[Increment]:
    """One step of all running requests: each gets at least one of the step's `tokens`."""
    decoder = program if isinstance(program, Decoder) and program.decode_steps else None
    if decoder is not None and all(request.can_be_continued for request in running):
        return _decode(running, decoder)
    pieces: list[Piece] = []
    left = tokens
    for behind, request in zip(range(len(running) - 1, -1, -1), running, strict=True):
        pieces.append(request.next_piece(left - behind, chunk))
        left -= len(pieces[-1].tokens)
    packed = packer.pack(pieces)
    wanted = zip(running, packed.rows, strict=True)
    complete = [(request, rows.start) for request, rows in wanted if rows.start < rows.stop]
    if decoder is not None:
        _copy(program, packed)
        chosen = decoder.step_and_choose(packed.batch, [request.choice() for request, _ in complete])
        return [request.accept_token(*made.at(0)) for (request, _), made in zip(complete, chosen, strict=True)]
    logits = run_step(program, packed)
    return [request.accept(logits[row]) for request, row in complete]


def _decode(running: Sequence[Request], program: Decoder) -> list[Increment]:
    """Several tokens for each running request, chosen by the program, step after step."""
    tables = [request.table for request in running if request.table is not None]
    for copy in [copy for table in tables for copy in table.extend(1).copies]:
        program.copy_block(*copy)
    chosen = program.decode([request.continuation(program.decode_steps) for request in running])
    for table, made in zip(tables, chosen, strict=True):
        table.length += len(made.tokens) - 1  # all but the last have been fed
    increments: list[Increment] = []
    for step in range(max(len(made.tokens) for made in chosen)):
        for request, made in zip(running, chosen, strict=True):
            if step < len(made.tokens) and request.finish_reason is None:  # a stop text ends it before its tokens do
                increments.append(request.accept_token(*made.at(step)))
    return increments
