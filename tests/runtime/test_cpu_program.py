"""A native program in the runtime: its memory, its steps, its refusals. The program is tiny_program.cpp."""

import gc
import os
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from support.tiny_program import V, expected, library, weights

from llmc.errors import ArtifactRejected, BadOption, BadRequest
from llmc.runtime.batch import Piece, pack
from llmc.runtime.cpu_program import CpuProgram
from llmc.runtime.generate import logits_of, run_step
from llmc.runtime.kv_cache import BlockPool, BlockTable
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.memory import HUGE_PAGE, Region, address, available_bytes
from llmc.runtime.piece_hash import PieceHash, hash_file
from llmc.runtime.program import Batch
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session
from llmc.runtime.weights_memory import read_data

TOKENS = [3, 1, 4, 1, 5, 6, 2, 6, 5, 3, 5, 0, 6, 2, 1, 3, 3, 4, 0, 1]
RANGES = Ranges(tokens=512, sequences=8, context=512)


@pytest.fixture
def program() -> CpuProgram:
    return CpuProgram(library().path, weights(), threads=1)


def session(program: CpuProgram, **options: int) -> Session:
    return Session(program, ModelFacts(V), RANGES, **options)


def test_logits_are_those_of_the_program_in_steps_of_any_size(program: CpuProgram) -> None:
    want = expected(weights(), TOKENS)
    assert np.array_equal(session(program).logits(TOKENS), want)
    program.allocate(4, 16)
    for most in (1, 3, 16, 17):
        assert np.array_equal(logits_of(TOKENS, program, BlockPool(4, 16), most), want)


def test_long_steps_grow_the_arena(program: CpuProgram) -> None:
    tokens = (TOKENS * 20)[:333]
    assert np.array_equal(session(program).logits(tokens), expected(weights(), tokens))


def test_greedy_generation_takes_the_likeliest_token(program: CpuProgram) -> None:
    prompts = [TOKENS[:5], [2], TOKENS]
    done = session(program).generate(prompts, SamplingParams(max_new_tokens=40))
    for prompt, result in zip(prompts, done, strict=True):
        tokens = list(prompt)
        for token in result.token_ids:
            assert token == expected(weights(), tokens)[-1].argmax()
            tokens.append(token)


def test_forked_sequences_get_copies_of_shared_blocks(program: CpuProgram) -> None:
    program.allocate(8, 16)
    table = BlockTable(BlockPool(8, 16))
    run_step(program, pack([Piece(TOKENS, table, "last")]))
    other = table.fork()
    packed = pack([Piece([1], table, "last"), Piece([2], other, "last")])
    assert len(packed.copies) == 1
    logits = run_step(program, packed)
    assert np.array_equal(logits[0], expected(weights(), [*TOKENS, 1])[-1])
    assert np.array_equal(logits[1], expected(weights(), [*TOKENS, 2])[-1])


def test_a_step_writes_its_logits_where_the_one_before_did(program: CpuProgram) -> None:
    program.allocate(4, 16)
    table = BlockTable(BlockPool(4, 16))
    first = run_step(program, pack([Piece([1], table, "last")]))
    kept = first.copy()
    second = run_step(program, pack([Piece([2], table, "last")]))
    assert second is first
    assert not np.array_equal(first, kept)
    assert run_step(program, pack([Piece([2, 3], table, "all")])).shape == (2, V)


def test_a_batch_that_comes_again_with_other_numbers_is_read_again(program: CpuProgram) -> None:
    program.allocate(1, 16)
    one = np.array([3], np.int64)
    batch = Batch(one, one * 0, one * 0, np.array([0, 1]), one * 0 + 1, np.zeros((1, 1), np.int64), one * 0)
    assert np.array_equal(program.step(batch)[0], expected(weights(), [3])[0])
    one[0] = 5
    assert np.array_equal(program.step(batch)[0], expected(weights(), [5])[0])


@pytest.mark.parametrize("size", [0, 1, 8, 17, -16])
def test_blocks_hold_a_multiple_of_sixteen_tokens(program: CpuProgram, size: int) -> None:
    with pytest.raises(BadRequest, match="expected a multiple of 16"):
        program.allocate(2, size)


def test_the_cache_begins_zeroed_and_may_be_allocated_anew(program: CpuProgram) -> None:
    for blocks, size in ((2, 16), (64, 16), (1, 48), (2, 16)):
        program.allocate(blocks, size)
        assert not any(cache.any() for cache in program._caches)
        assert np.array_equal(
            logits_of(TOKENS[:16], program, BlockPool(blocks, size), 16), expected(weights(), TOKENS[:16])
        )


def test_memory_that_the_machine_has_not_is_an_error(program: CpuProgram) -> None:
    with pytest.raises(MemoryError):
        program.allocate(1 << 50, 16)
    with pytest.raises(MemoryError):
        Region(1 << 60)


@pytest.mark.parametrize("threads", [0, -1, True, 1025])
def test_a_number_of_threads_without_sense_is_refused(threads: int) -> None:
    with pytest.raises(BadOption, match=r"threads: .*, expected a number from 1 to 1024"):
        CpuProgram(library().path, weights(), threads=threads)


def test_threads_that_do_not_start_are_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="101 could not be started"):
        CpuProgram(library().path, weights(), threads=101)


def test_the_default_is_a_thread_for_each_cpu_of_the_process() -> None:
    assert CpuProgram(library().path, weights()).threads == len(os.sched_getaffinity(0))
    assert CpuProgram(library().path, weights(), threads=2, pin=True).threads == 2


def test_a_library_may_be_given_as_bytes_and_two_of_them_stay_apart() -> None:
    content = library().path.read_bytes()
    other = library("OTHER").path.read_bytes()
    made = [CpuProgram(given, weights(), threads=1) for given in (content, other)]
    for program in made:
        program.allocate(2, 16)
        assert np.array_equal(logits_of(TOKENS, program, BlockPool(2, 16), 20), expected(weights(), TOKENS))


def test_what_is_no_program_is_rejected(tmp_path: Path) -> None:
    for content, message in (
        (b"", "cannot be loaded"),
        (b"\x7fELF\x02\x01" + bytes(12) + b"\xb7\x00" + bytes(40), "compiled for aarch64, this machine is"),
        (library("ABI 99").path.read_bytes(), "made for version 99 of the runtime, this one has 1"),
    ):
        with pytest.raises(ArtifactRejected, match=message):
            CpuProgram(content, weights())
    with pytest.raises(ArtifactRejected, match="cannot be loaded"):
        CpuProgram(Path(np._core._multiarray_umath.__file__), weights())


def test_weights_must_be_there_and_as_long_as_the_program_reads() -> None:
    given = weights()
    with pytest.raises(ArtifactRejected, match="needs a weight 'scale'"):
        CpuProgram(library().path, {"table": given["table"]})
    with pytest.raises(ArtifactRejected, match="weight 'table' has 28 bytes, expected 196"):
        CpuProgram(library().path, {**given, "table": given["scale"]})


def test_crossovers_are_set_by_name(program: CpuProgram) -> None:
    program.tune({"7x7:f32": (2, 9), "another": (1, 1)})


def test_a_program_ends_with_its_last_reference() -> None:
    before = threading.active_count()
    program = CpuProgram(library().path, weights(), threads=1)
    gone = weakref.ref(program)
    del program
    gc.collect()
    assert gone() is None
    assert threading.active_count() == before
    program = CpuProgram(library().path, weights(), threads=1)
    program.close()
    program.close()


def test_regions_are_zeroed_aligned_and_take_room_only_where_touched() -> None:
    region = Region(64 << 30)
    assert address(region.bytes) % HUGE_PAGE == 0
    first, second = region.carve(100), region.carve(1)
    assert (address(first) % 64, address(second) - address(first)) == (0, 128)
    assert not first.any()
    available = available_bytes()
    assert available is None or available > 1 << 20


@pytest.mark.parametrize("available", [None, 0], ids=["read", "mapped"])
@pytest.mark.parametrize("size", [0, 1, 1000, (20 << 20) + 5])
def test_data_of_a_file_is_read_and_hashed_or_mapped_where_memory_is_short(
    tmp_path: Path, size: int, available: int | None
) -> None:
    import hashlib

    content = np.random.default_rng(0).integers(0, 256, 64 + size, np.uint8).tobytes()
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        loaded = read_data(file.fileno(), 64, size, content[:64], available)
        assert loaded.data.tobytes() == content[64:]
        assert loaded.hashing is not None
        assert loaded.hashing.result() == hashlib.sha256(content).hexdigest()
        for begin, pieces in ((64, 1 << 20), (64, 50), (64, 64), (64, 1000), (7, 16 << 20)):
            if size // pieces > 1000:
                continue
            by_pieces = read_data(file.fileno(), begin, 64 + size - begin, content[:begin], available, pieces).hashing
            digests = [hashlib.sha256(content[at : at + pieces]).digest() for at in range(0, len(content), pieces)]
            expected = hashlib.sha256(b"".join(digests)).hexdigest()
            whole = PieceHash(pieces)
            for at in range(0, len(content), 999_999):
                whole.update(content[at : at + 999_999])
            assert by_pieces is not None and by_pieces.result() == expected
            assert hash_file(file.fileno(), len(content), pieces) == whole.hexdigest() == expected
        if available is None:
            with pytest.raises(OSError, match="expected more"):
                read_data(file.fileno(), 64, size + 1)
