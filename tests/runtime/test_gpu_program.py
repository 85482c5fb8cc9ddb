"""The runtime of GPU programs, with the interpreter in place of a GPU."""

import dataclasses

import numpy as np
import pytest
from support.interpreted_device import InterpretedDevice
from support.tiny_gpu_program import BLOCK, PLAN, TEXT, V, batch, expected, weights

from llmc.errors import ArtifactRejected, BadRequest
from llmc.runtime.cuda.device import Place
from llmc.runtime.cuda.plan import Argument
from llmc.runtime.cuda.program import FIRST_TOKENS, GpuProgram
from llmc.runtime.cuda.step_arrays import StepArrays
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session


def make() -> GpuProgram:
    return GpuProgram(PLAN, InterpretedDevice(TEXT), weights())


def test_a_step_computes_what_the_plan_says() -> None:
    program = make()
    program.allocate(4, BLOCK)
    prompt = [1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]
    np.testing.assert_array_equal(program.step(batch((prompt, 0, [2, 1]))), expected(prompt))
    other = [5, 5, 2]
    logits = program.step(batch(([6], 18, [2, 1]), (other, 0, [3]), rows=[0, 3]))
    np.testing.assert_array_equal(logits, np.stack([expected([*prompt, 6])[-1], expected(other)[-1]]))


def test_steps_larger_than_the_arena_make_it_grow() -> None:
    program = make()
    program.allocate(40, BLOCK)
    many = [(([1, 2, 3] * 20)[:40], 0, [3 * at, 3 * at + 1, 3 * at + 2]) for at in range(7)]
    assert sum(len(tokens) for tokens, _, _ in many) > FIRST_TOKENS
    logits = program.step(batch(*many))
    np.testing.assert_array_equal(logits, np.concatenate([expected(tokens) for tokens, _, _ in many]))


def test_blocks_are_copied_in_every_cache() -> None:
    program = make()
    program.allocate(3, BLOCK)
    program.step(batch(([1, 2, 3], 0, [1])))
    program.copy_block(1, 2)
    program.step(batch(([6], 3, [1])))
    np.testing.assert_array_equal(program.step(batch(([5], 3, [2]))), expected([1, 2, 3, 5])[-1:])


def test_a_cache_that_is_made_anew_is_empty() -> None:
    program = make()
    program.allocate(1, BLOCK)
    program.step(batch(([1, 2, 3], 0, [0])))
    program.allocate(2, BLOCK)
    assert program.step(batch(([4], 1, [0])))[0].tolist() == (expected([0, 4])[-1]).tolist()


def test_workspaces_outlive_steps() -> None:
    program = make()
    program.allocate(2, BLOCK)
    program.step(batch(([1, 2, 3], 0, [0])))
    program.step(batch(([1, 2], 3, [0])))
    total = np.zeros(1, np.int64)
    place = program.locate(Argument("workspace", "total"), {}, StepArrays(program.device))
    assert isinstance(place, Place)
    program.device.download(place, total)
    assert total[0] == 5


def test_a_session_generates_with_it() -> None:
    session = Session(make(), ModelFacts(V), Ranges(tokens=64, sequences=4, context=64), block_size=BLOCK)
    prompts = [[1, 2, 3], [4], [5, 6, 0, 1]]
    results = session.generate(prompts, SamplingParams(max_new_tokens=20))
    for prompt, result in zip(prompts, results, strict=True):
        tokens = list(prompt)
        for token in result.token_ids:
            assert token == expected(tokens)[-1].argmax()
            tokens.append(token)


def test_blocks_of_another_size_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"block size: 32 tokens, expected 16"):
        make().allocate(2, 32)


def test_a_missing_weight_is_named() -> None:
    given = weights()
    del given["scale"]
    with pytest.raises(ArtifactRejected, match="'scale'"):
        GpuProgram(PLAN, InterpretedDevice(TEXT), given)


def test_a_weight_of_another_length_is_refused() -> None:
    with pytest.raises(ArtifactRejected, match=r"'scale' has 24 bytes, expected 28"):
        GpuProgram(PLAN, InterpretedDevice(TEXT), weights() | {"scale": np.zeros(V - 1, np.float32)})


def test_launches_that_do_not_apply_are_passed_over() -> None:
    none = dataclasses.replace(PLAN.launches[1], when=dataclasses.replace(PLAN.launches[1].when, decode=True))
    program = GpuProgram(
        dataclasses.replace(PLAN, launches=(PLAN.launches[0], none, PLAN.launches[2])),
        device := InterpretedDevice(TEXT),
        weights(),
    )
    program.allocate(2, BLOCK)
    program.step(batch(([1, 2], 0, [0])))
    assert "sum_0" not in device.launches
    program.step(batch(([1], 2, [0])))
    assert device.launches["sum_0"] == 1
