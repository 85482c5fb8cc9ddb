"""Tokens chosen by a program's own code are those that numpy chooses."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from support.native import compile_native

import llmc
from llmc.errors import NumericsGateFailed
from llmc.runtime.native_sample import NativeChoice
from llmc.runtime.sample import Chooser, Sampler, SamplingParams
from llmc.zoo import tiny

CASES = (
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=1),
    SamplingParams(temperature=0.8, top_k=3, seed=2),
    SamplingParams(temperature=1.5, top_p=0.7, seed=3),
    SamplingParams(temperature=1.0, min_p=0.2, seed=4),
    SamplingParams(temperature=0.9, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.3, seed=5),
    SamplingParams(repetition_penalty=1.5),
)


@cache
def choice(vocabulary: int) -> NativeChoice:
    return NativeChoice(compile_native('#include "llmc/sample_function.h"'), vocabulary)


@pytest.mark.parametrize("params", CASES, ids=range(len(CASES)))
def test_a_sampler_chooses_the_same_with_native_code(params: SamplingParams) -> None:
    for vocabulary in (1, 15, 17, 1023, 1025):
        random = np.random.default_rng(vocabulary)
        prompt = random.integers(0, vocabulary, 3).tolist()
        native = Sampler(params, vocabulary, prompt, choice(vocabulary))
        numpy = Sampler(params, vocabulary, prompt)
        rows = [(random.standard_normal(vocabulary) * 3).astype(np.float32) for _ in range(40)]
        assert [native.choose(row) for row in rows] == [numpy.choose(row) for row in rows]


def test_requests_with_other_params_take_turns() -> None:
    logits = np.linspace(0, 1, 100, dtype=np.float32)
    samplers = [Sampler(replace(params, seed=9), 100, [99], choice(100)) for params in CASES]
    alone = [[Sampler(replace(params, seed=9), 100, [99]).choose(logits)] for params in CASES]
    assert [[sampler.choose(logits)] for sampler in samplers] == alone


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_stop_the_request(bad: float) -> None:
    for params in CASES:
        sampler = Sampler(params, 3, [0], choice(3))
        with pytest.raises(NumericsGateFailed, match="the largest logit is"):
            sampler.choose(np.array([1, bad, 2], np.float32))


def test_a_native_program_chooses_its_tokens() -> None:
    session = llmc.compile(tiny("llama"), program="cpu", strict=True, prove=False).session
    program, prompts = session.program, [[1, 2, 3], [5], [7, 7, 7, 7]]
    assert isinstance(program, Chooser) and program.choose is not None
    params = [replace(case, max_new_tokens=12) for case in CASES[1:4]]
    chosen = [result.token_ids for result in session.generate(prompts, params)]
    program.choose = None
    assert [result.token_ids for result in session.generate(prompts, params)] == chosen
