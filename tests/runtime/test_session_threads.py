"""Threads that share a session: their steps come one after another."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from support.numpy_program import VOCABULARY, NumpyProgram

from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.program import Batch
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session

FACTS = ModelFacts(VOCABULARY, max_positions=64)
RANGES = Ranges(tokens=32, sequences=4, context=64)
PROMPTS = [[7], [5, 5, 5], [30, 31]]


def alone(prompt: list[int], count: int) -> list[int]:
    """What a session says that nobody shares."""
    model = Session(NumpyProgram(), FACTS, RANGES, block_size=4)
    return list(model.generate([prompt], SamplingParams(max_new_tokens=count, ignore_eos=True))[0].token_ids)


class _Alone(NumpyProgram):
    """Notices when a second step begins before the first has ended."""

    begun = most = 0

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        self.begun += 1
        self.most = max(self.most, self.begun)
        time.sleep(1e-3)
        logits = super().step(batch)
        self.begun -= 1
        return logits


@pytest.mark.parametrize("streamed", [False, True])
def test_threads_take_turns(streamed: bool) -> None:
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    model = Session(program := _Alone(), FACTS, RANGES, block_size=4, num_blocks=40)

    def work(prompt: list[int]) -> list[int]:
        if streamed:
            return [increment.token_id for increment in model.stream([prompt], params)]
        return list(model.generate([prompt], params)[0].token_ids)

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(work, PROMPTS)) == [alone(prompt, 9) for prompt in PROMPTS]
    assert (program.most, model.blocks_in_use) == (1, 0)


def test_generations_of_several_threads_need_no_room_for_all_at_once() -> None:
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    model = Session(_Alone(), FACTS, RANGES, block_size=4, num_blocks=4)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: model.generate([[5, 5, 5]], params)[0].token_ids, range(3)))
    assert [list(tokens) for tokens in found] == [alone([5, 5, 5], 9)] * 3
