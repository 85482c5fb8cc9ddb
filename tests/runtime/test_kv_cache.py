"""The map of the cache: what is taken, shared, copied and given back, and that wrong maps change results."""

import random

import numpy as np
import pytest
from support.numpy_program import NumpyProgram, dense_logits

from llmc.errors import BadRequest
from llmc.runtime.batch import Packer, Piece, Rows, pack
from llmc.runtime.generate import run_step
from llmc.runtime.kv_cache import BlockPool, BlockTable


def feed(program: NumpyProgram, *pieces: Piece) -> np.ndarray:
    return run_step(program, pack(list(pieces)))


def test_slots_follow_the_blocks_and_the_lowest_free_block_is_taken_first() -> None:
    pool = BlockPool(6, 4)
    first, second = BlockTable(pool), BlockTable(pool)
    assert first.extend(5).slots.tolist() == [0, 1, 2, 3, 4]
    assert second.extend(3).slots.tolist() == [8, 9, 10]
    assert first.extend(4).slots.tolist() == [5, 6, 7, 12]
    assert (first.blocks, second.blocks, pool.available) == ([0, 1, 3], [2], 2)
    first.release()
    assert second.extend(2).slots.tolist() == [11, 0]


def test_too_few_blocks_is_an_error_that_says_how_many_and_changes_nothing() -> None:
    pool = BlockPool(3, 4)
    table, other = BlockTable(pool), BlockTable(pool)
    table.extend(5)
    with pytest.raises(BadRequest, match="2 blocks of 4 tokens needed, 1 of 3 are free; raise num_blocks"):
        table.extend(8)
    with pytest.raises(BadRequest, match="2 blocks of 4 tokens needed, 1 of 3"):
        pack([Piece([1] * 4, table, "last"), Piece([1], other, "last")])
    assert (table.length, table.blocks, other.blocks, pool.available) == (5, [0, 1], [], 1)
    with pytest.raises(BadRequest, match="0 blocks of 4 tokens"):
        BlockPool(0, 4)


def test_a_fork_shares_blocks_and_copies_the_last_one_when_it_writes() -> None:
    pool = BlockPool(8, 4)
    table = BlockTable(pool)
    table.extend(6)
    fork = table.fork()
    assert fork.blocks == [0, 1]
    assert [pool.holders(block) for block in (0, 1)] == [2, 2]
    extension = fork.extend(1)
    assert extension.copies == ((1, 2),)
    assert extension.slots.tolist() == [10]
    assert table.extend(1).copies == ()
    assert (table.blocks, fork.blocks) == ([0, 1], [0, 2])
    table.release()
    assert [pool.holders(block) for block in (0, 1, 2)] == [1, 0, 1]
    fork.release()
    assert pool.available == 8


def test_a_fork_at_the_end_of_a_block_copies_nothing() -> None:
    pool = BlockPool(8, 4)
    table = BlockTable(pool)
    table.extend(8)
    assert table.fork().extend(1).copies == ()


def test_reserved_blocks_belong_to_the_table_and_not_to_its_forks() -> None:
    pool = BlockPool(4, 4)
    table = BlockTable(pool)
    table.reserve(9)
    assert (table.length, table.blocks, pool.available) == (0, [0, 1, 2], 1)
    table.extend(4)
    assert table.fork().blocks == [0]
    table.reserve(8)
    assert table.blocks == [0, 1, 2]


def test_forgotten_tokens_are_written_anew() -> None:
    pool = BlockPool(4, 4)
    table = BlockTable(pool)
    table.extend(10)
    table.truncate(5)
    assert (table.blocks, pool.available) == ([0, 1], 2)
    assert table.extend(2).slots.tolist() == [5, 6]


def test_any_sequence_of_operations_keeps_the_count() -> None:
    draw = random.Random(1)
    pool = BlockPool(12, 3)
    tables = [BlockTable(pool)]
    for _ in range(3000):
        table = draw.choice(tables)
        action = draw.choice(["extend", "extend", "fork", "truncate", "release", "reserve"])
        try:
            if action == "extend":
                slots = table.extend(draw.randrange(1, 6)).slots
                assert all(pool.holders(int(slot) // 3) == 1 for slot in slots)
            elif action == "reserve":
                table.reserve(draw.randrange(12))
            elif action == "fork" and len(tables) < 6:
                tables.append(table.fork())
            elif action == "truncate":
                table.truncate(draw.randrange(table.length + 1))
            elif action == "release":
                table.release()
        except BadRequest:
            pass
        held = [block for each in tables for block in each.blocks]
        assert [pool.holders(block) for block in range(12)] == [held.count(block) for block in range(12)]
        assert pool.available == 12 - len(set(held))
    for table in tables:
        table.release()
    assert pool.available == 12


def test_forked_sequences_continue_as_if_each_were_alone() -> None:
    program, prompt = NumpyProgram(), [7, 3, 9, 1, 4, 22]
    program.allocate(8, 4)
    table = BlockTable(BlockPool(8, 4))
    feed(program, Piece(prompt, table, "last"))
    fork = table.fork()
    logits = feed(program, Piece([5, 6], table, "last"), Piece([40, 41], fork, "last"))
    np.testing.assert_allclose(logits[0], dense_logits(program, [*prompt, 5, 6])[-1], atol=1e-5)
    np.testing.assert_allclose(logits[1], dense_logits(program, [*prompt, 40, 41])[-1], atol=1e-5)
    logits = feed(program, Piece([1], fork, "last"), Piece([1], table, "last"))
    np.testing.assert_allclose(logits[0], dense_logits(program, [*prompt, 40, 41, 1])[-1], atol=1e-5)
    np.testing.assert_allclose(logits[1], dense_logits(program, [*prompt, 5, 6, 1])[-1], atol=1e-5)
    assert program.copied == [(1, 2)]


def test_without_the_copy_a_fork_would_see_other_tokens() -> None:
    program, prompt = NumpyProgram(), [7, 3, 9, 1, 4, 22]
    program.allocate(8, 4)
    table = BlockTable(BlockPool(8, 4))
    feed(program, Piece(prompt, table, "last"))
    fork = table.fork()
    logits = program.step(pack([Piece([40], fork, "last")]).batch)
    assert np.abs(logits[0] - dense_logits(program, [*prompt, 40])[-1]).max() > 1e-3


def test_a_step_may_mix_whole_prompts_parts_of_prompts_and_single_tokens() -> None:
    program = NumpyProgram()
    program.allocate(16, 4)
    pool = BlockPool(16, 4)
    whole, part, single = BlockTable(pool), BlockTable(pool), BlockTable(pool)
    feed(program, Piece([1, 2, 3], single, "none"), Piece([9] * 5, part, "none"))
    packed = pack([Piece([4], single, "last"), Piece([8] * 3, part, "none"), Piece([5, 6, 7], whole, "all")])
    batch = packed.batch
    assert batch.starts.tolist() == [0, 1, 4, 7]
    assert batch.lengths.tolist() == [4, 8, 3]
    assert batch.positions.tolist() == [3, 5, 6, 7, 0, 1, 2]
    assert batch.rows.tolist() == [0, 4, 5, 6]
    assert packed.rows == (slice(0, 1), slice(1, 1), slice(1, 4))
    assert batch.blocks.tolist() == [[0, 0], [1, 2], [3, 0]]
    logits = program.step(batch)
    np.testing.assert_allclose(logits[0], dense_logits(program, [1, 2, 3, 4])[-1], atol=1e-5)
    np.testing.assert_allclose(logits[1:], dense_logits(program, [5, 6, 7]), atol=1e-5)


def test_a_step_without_wanted_rows_asks_for_one() -> None:
    packed = pack([Piece([1, 2], BlockTable(BlockPool(1, 4)), "none")])
    assert packed.batch.rows.tolist() == [1]
    assert packed.rows == (slice(0, 0),)


def test_steps_that_reuse_the_arrays_of_the_last_are_what_they_would_be_anew() -> None:
    """Two sets of tables live the same life: one packed by a Packer, the other each step from the start."""
    draw = random.Random(11)
    packer, pools = Packer(), [BlockPool(64, 4) for _ in range(2)]
    tables = [[BlockTable(pool) for _ in range(3)] for pool in pools]
    reused = 0
    last = None
    for number in range(400):
        live = [place for place in range(3) if number % 50 < 40 or place != 1]
        if draw.random() < 0.05:
            for pair in tables:
                pair[0].truncate(pair[0].length // 2)
        if draw.random() < 0.05:
            for pair in tables:
                pair[2].release()
                pair[2] = pair[0].fork()
        counts = [1 if draw.random() < 0.9 else draw.randint(1, 3) for _ in live]
        rows: list[Rows] = ["last" if draw.random() < 0.95 else "none" for _ in live]
        if any(table.length + 3 > 60 for table in tables[0]):
            for table in (*tables[0], *tables[1]):
                table.release()
        found, wanted = (
            make([
                Piece([number + at for at in range(count)], pair[place], row)
                for place, count, row in zip(live, counts, rows, strict=True)
            ])
            for make, pair in zip((packer.pack, pack), tables, strict=True)
        )  # fmt: skip
        assert (found.copies, found.rows) == (wanted.copies, wanted.rows)
        for name in ("tokens", "positions", "slots", "starts", "lengths", "blocks", "rows"):
            assert np.array_equal(getattr(found.batch, name), getattr(wanted.batch, name)), (number, name)
        reused += found.batch is last
        last = found.batch
    assert 50 < reused < 350
