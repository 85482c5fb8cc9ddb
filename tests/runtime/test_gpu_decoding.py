"""Decode steps of GPU programs: recorded, padded, and several at a time with the tokens chosen on the device."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.interpreted_device import InterpretedDevice
from support.native_artifact import tokenizer_json
from support.tiny_choosing import tiny_choosing
from support.tiny_gpu_program import BLOCK, CHOOSING, PLAN, TEXT, V, batch, expected, weights

from llmc.errors import NumericsGateFailed
from llmc.runtime.cuda.choices import STEPS
from llmc.runtime.cuda.device import Grid, Place
from llmc.runtime.cuda.plan import Kernel, Plan
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.decoding import Continuation, Continued, Decoder
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.request import Generation
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session
from llmc.runtime.tokenizer import Tokenizer


def make(plan: Plan, blocks: int = 8, text: str = TEXT) -> tuple[GpuProgram, InterpretedDevice]:
    device = InterpretedDevice(text)
    program = GpuProgram(plan, device, weights())
    program.allocate(blocks, BLOCK)
    return program, device


def session(plan: Plan, text: str = TEXT, sequences: int = 4) -> tuple[Session, InterpretedDevice]:
    program, device = make(plan, blocks=4 * sequences, text=text)
    facts = ModelFacts(V, eos_token_ids=(2,))
    return Session(program, facts, Ranges(tokens=64, sequences=sequences, context=64), block_size=BLOCK), device


def go_on(token: int, position: int, blocks: list[int], remaining: int = 100, ends: tuple[int, ...] = ()):
    return Continuation(token, position, blocks, SamplingParams(), np.zeros(0, np.bool_), np.zeros(0), ends, remaining)


def decoded(program: GpuProgram, *continuations: Continuation) -> list[list[int]]:
    return [made.tokens for made in program.decode(continuations)]


def greedy(tokens: list[int], count: int) -> list[int]:
    made = list(tokens)
    for _ in range(count):
        made.append(int(expected(made)[-1].argmax()))
    return made[len(tokens) :]


@pytest.mark.parametrize("sequences", [1, 2, 3, 5])
def test_batches_are_padded_to_the_next_recording(sequences: int) -> None:
    program, device = make(PLAN)
    prompts = [[token, 3] for token in range(sequences)]
    program.step(batch(*((prompt, 0, [at]) for at, prompt in enumerate(prompts))))
    for place in (2, 3):
        logits = program.step(batch(*(([5], place, [at]) for at in range(sequences))))
        prompts = [[*prompt, 5] for prompt in prompts]
        np.testing.assert_array_equal(logits, np.stack([expected(prompt)[-1] for prompt in prompts]))
    assert device.replays == 2


def test_recordings_follow_memory_that_moves() -> None:
    program, device = make(PLAN, blocks=24)
    program.step(batch(([1], 0, [0])))
    many = [([1, 2, 3] * 13, 0, [3 * at, 3 * at + 1, 3 * at + 2]) for at in range(7)]
    program.step(batch(*many))  # a larger arena, more rows
    np.testing.assert_array_equal(program.step(batch(([4], 0, [3]))), expected([4]))
    program.allocate(20, BLOCK)
    np.testing.assert_array_equal(program.step(batch(([4], 0, [18]))), expected([4]))
    # a wider block table: columns beyond those of the recording
    wide = program.step(batch(([4], 0, [*range(20), 1, 2])))
    np.testing.assert_array_equal(wide, expected([4]))
    assert device.replays == 4


def test_padding_writes_no_block_of_a_sequence() -> None:
    program, _ = make(PLAN, blocks=3)
    tokens = [[1], [2], [3]]
    program.step(batch(*((each, 0, [at]) for at, each in enumerate(tokens))))
    for place, each in enumerate(tokens):
        logits = program.step(batch(([6], 1, [place])))
        np.testing.assert_array_equal(logits, expected([*each, 6])[-1:])


def test_a_program_that_chooses_says_how_many_tokens_it_makes() -> None:
    (without, _), (program, _) = make(PLAN), make(CHOOSING)
    assert isinstance(program, Decoder)
    assert (without.decode_steps, program.decode_steps) == (0, STEPS)


def test_several_tokens_are_made_for_each_look_of_the_host() -> None:
    program, device = make(CHOOSING)
    program.step(batch(([1, 2, 3], 0, [0]), ([4], 0, [2])))
    made = decoded(program, go_on(5, 3, [0, 1]), go_on(6, 1, [2, 3]))
    assert made == [greedy([1, 2, 3, 5], STEPS), greedy([4, 6], STEPS)]
    assert device.replays == 2, "the next one has begun"
    # What was made is in the cache: two blocks of it, the second begun meanwhile.
    left = 100 - STEPS
    rest = decoded(program, go_on(made[0][-1], 3 + STEPS, [0, 1], left), go_on(made[1][-1], 1 + STEPS, [2, 3], left))
    assert rest == [greedy([1, 2, 3, 5, *made[0]], STEPS), greedy([4, 6, *made[1]], STEPS)]
    assert device.replays == 3


def test_what_was_begun_too_early_harms_nobody() -> None:
    """Between two looks of the host a sequence leaves, another takes its block, one is stepped by the host."""
    program, device = make(CHOOSING)
    made = decoded(program, go_on(1, 0, [0, 1]), go_on(2, 0, [2, 3]))
    assert device.replays == 2
    # Alone now, and the other's blocks belong to a third, whose prompt is fed meanwhile.
    prompt = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5]
    logits = program.step(batch((prompt, 0, [2]), rows=[9]))
    np.testing.assert_array_equal(logits, expected(prompt)[-1:])
    rest = decoded(program, go_on(made[0][-1], STEPS, [0, 1]), go_on(6, len(prompt), [2, 3]))
    assert rest == [greedy([1, *made[0]], STEPS), greedy([*prompt, 6], STEPS)]
    # The host makes a step of its own in the middle, with another token than the likeliest.
    other = (rest[0][-1] + 1) % V
    logits = program.step(batch(([other], 2 * STEPS, [0, 1])))
    np.testing.assert_array_equal(logits, expected([1, *made[0], *rest[0][:-1], other])[-1:])
    last = decoded(program, go_on(5, 2 * STEPS + 1, [0, 1], remaining=3))
    assert last == [greedy([1, *made[0], *rest[0][:-1], other, 5], 3)]


def test_other_end_tokens_and_limits_are_not_taken_for_the_same() -> None:
    program, _ = make(CHOOSING)
    (made,) = decoded(program, go_on(1, 0, [0, 1]))
    following = greedy([1, *made], STEPS)
    (limited,) = decoded(program, go_on(made[-1], STEPS, [0, 1], remaining=2))
    assert limited == following[:2]
    (ended,) = decoded(program, go_on(made[-1], STEPS, [0, 1], ends=(following[0],)))
    assert ended == following[:1]


def test_each_sequence_ends_by_itself() -> None:
    program, device = make(CHOOSING)
    all_tokens = greedy([1], STEPS)
    end = next(token for token in all_tokens if token != all_tokens[0])
    stopped = all_tokens[: all_tokens.index(end) + 1]
    made = decoded(program, go_on(1, 0, [0]), go_on(1, 0, [1], ends=(end,)), go_on(1, 0, [2], remaining=2))
    assert made == [all_tokens, stopped, all_tokens[:2]]
    assert device.replays == 1
    few = decoded(program, go_on(1, 0, [0], remaining=3), go_on(1, 0, [1], remaining=1))
    assert few == [all_tokens[:3], all_tokens[:1]]
    assert device.replays == 4, "no more steps than are needed"


def test_logits_that_are_not_numbers_are_an_error() -> None:
    broken = weights()
    broken["scale"][...] = np.nan
    program = GpuProgram(CHOOSING, InterpretedDevice(TEXT), broken)
    program.allocate(2, BLOCK)
    with pytest.raises(NumericsGateFailed, match="largest logit is not finite"):
        program.decode([go_on(1, 0, [0])])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_new_tokens=21, ignore_eos=True),
        SamplingParams(max_new_tokens=21),
        SamplingParams(max_new_tokens=13, temperature=2000.0, seed=5, ignore_eos=True),
        SamplingParams(max_new_tokens=5, temperature=500.0, seed=1),
    ],
)
def test_a_session_makes_the_tokens_that_the_host_would_choose(params: SamplingParams) -> None:
    prompts = [[1, 2, 3], [4], [5, 6, 0, 1]]
    each = [dataclasses.replace(params, max_new_tokens=params.max_new_tokens + more) for more in (0, 3, 1)]
    (host, _), (device, recorded) = session(PLAN), session(CHOOSING)
    have, want = device.generate(prompts, each), host.generate(prompts, each)
    for one, other in zip(have, want, strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
    assert recorded.launches["choose_0"] > 0
    assert device.blocks_in_use == 0


HOT = 3000.0
"""A temperature at which tokens of the tiny program vary: its logits lie hundreds apart."""
DRAWN = {"temperature": HOT, "seed": 5}
EACH_WAY = [
    SamplingParams(repetition_penalty=1.7),
    SamplingParams(logprobs=2),
    SamplingParams(**DRAWN, logprobs=0, repetition_penalty=1.3),
    SamplingParams(**DRAWN, top_k=3),
    SamplingParams(**DRAWN, top_p=0.6, logprobs=20),
    SamplingParams(**DRAWN, top_k=4, top_p=0.8, min_p=0.1, repetition_penalty=2.0),
    SamplingParams(**DRAWN, min_p=0.3),
]


def assert_same(have: Generation, want: Generation) -> None:
    assert (have.token_ids, have.finish_reason) == (want.token_ids, want.finish_reason)
    assert (have.logprobs is None) == (want.logprobs is None)
    for one, other in zip(have.logprobs or (), want.logprobs or (), strict=True):
        assert [one.token_id, *dict(one.top)] == [other.token_id, *dict(other.top)]
        found = [one.logprob, *dict(one.top).values()]
        np.testing.assert_allclose(found, [other.logprob, *dict(other.top).values()], rtol=1e-6, atol=1e-6)


def test_every_way_of_choosing_is_the_device_s() -> None:
    """Prompts of different ways in one batch, some of which begin as others end: the host never sees logits."""
    each = [dataclasses.replace(way, max_new_tokens=19 + at, ignore_eos=True) for at, way in enumerate(EACH_WAY)]
    prompts = [[1 + at % 5, at % V] for at in range(len(each))]
    (model, device), (host, _) = session(*tiny_choosing(), sequences=5), session(PLAN, sequences=5)
    downloaded = []
    download = device.download
    device.download = lambda place, array: (downloaded.append(array.dtype), download(place, array))  # type: ignore
    have, want = model.generate(prompts, each), host.generate(prompts, each)
    for one, other in zip(have, want, strict=True):
        assert_same(one, other)
    assert {launch for launch in device.launches if launch.startswith("sampling")} == {
        "sampling_0", "sampling_1", "sampling_2"
    }  # fmt: skip
    assert device.launches["logits_0"] == device.launches["sampling_0"]
    assert np.float32 not in downloaded, "logits"


@pytest.mark.parametrize("way", EACH_WAY, ids=range(len(EACH_WAY)))
def test_the_next_tokens_are_begun_before_the_host_looks(way: SamplingParams) -> None:
    params = dataclasses.replace(way, max_new_tokens=3 * STEPS + 1, ignore_eos=True)
    (model, device), (host, _) = session(*tiny_choosing()), session(PLAN)
    program, begun = model.program, []
    assert isinstance(program, GpuProgram)
    decode = program.decode

    def counted(continuations: Sequence[Continuation]) -> list[Continued]:
        before = device.replays
        made = decode(continuations)
        begun.append(device.replays - before)
        return made

    program.decode = counted  # type: ignore[method-assign]
    assert_same(model.generate([[1, 2]], params)[0], host.generate([[1, 2]], params)[0])
    assert begun == [2, 1, 0], "the second and third were under way when they were asked for"


def test_without_limits_only_one_launch_follows_a_step() -> None:
    params = SamplingParams(max_new_tokens=STEPS + 1, temperature=HOT, ignore_eos=True)
    model, device = session(*tiny_choosing())
    model.generate([[1, 2], [3]], [params, SamplingParams(max_new_tokens=STEPS + 1, ignore_eos=True)])
    assert device.launches["sampling_0"] == STEPS + 1 and "sampling_1" not in device.launches


def test_a_replay_that_was_begun_is_not_that_of_another_request() -> None:
    """Its blocks, last token and position are the same, what came before is not: it was fed meanwhile."""
    program, _ = make(CHOOSING)
    (made,) = decoded(program, go_on(1, 0, [0, 1]))
    prompt = [4] * STEPS
    program.step(batch((prompt, 0, [0]), rows=[STEPS - 1]))
    (other,) = decoded(program, go_on(made[-1], STEPS, [0, 1], 100 - STEPS))
    assert other == greedy([*prompt, made[-1]], STEPS)


def test_a_stop_text_ends_a_sequence_among_tokens_that_were_made() -> None:
    program, device = make(CHOOSING)
    model = Session(program, ModelFacts(V), Ranges(64, 4, 64), Tokenizer(tokenizer_json().decode()), block_size=BLOCK)
    drawn = {"temperature": 2000.0, "seed": 5}
    (free, neighbour) = model.generate(["abc", "de"], SamplingParams(max_new_tokens=12, **drawn))
    stop = free.text[2:5]
    params = [SamplingParams(max_new_tokens=12, stop=(stop,), **drawn), SamplingParams(max_new_tokens=12, **drawn)]
    stopped, other = model.generate(["abc", "de"], params)
    assert (stopped.text, stopped.finish_reason) == (free.text[: free.text.index(stop)], "stop")
    assert other.token_ids == neighbour.token_ids
    assert device.launches["choose_0"] > 0 and model.blocks_in_use == 0


def test_the_stream_gives_tokens_of_all_prompts_in_turn() -> None:
    model, _ = session(CHOOSING)
    params = SamplingParams(max_new_tokens=4, ignore_eos=True)
    order = [increment.index for increment in model.stream([[1], [2]], params)]
    assert order == [0, 1] * 4


class _Interrupted(InterpretedDevice):
    """Ctrl-C comes when it is asked for something for the `left`th time from now on."""

    left = 1 << 30

    def _asked(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def upload(self, place: Place, array: npt.NDArray[Any]) -> None:
        self._asked()
        super().upload(place, array)

    def download(self, place: Place, array: npt.NDArray[Any]) -> None:
        self._asked()
        super().download(place, array)

    def launch(self, kernel: Kernel, grid: Grid, arguments: Sequence[Place | int], pdl: bool) -> None:
        self._asked()
        super().launch(kernel, grid, arguments, pdl)


def test_a_session_works_after_an_interrupt_at_any_point() -> None:
    """Before, between and in recordings, with a replay under way."""
    params = SamplingParams(max_new_tokens=2 * STEPS + 3, temperature=2000.0, seed=5, ignore_eos=True)
    prompts = [[1, 2, 3], [4]]

    def made() -> tuple[Session, _Interrupted]:
        program = GpuProgram(CHOOSING, device := _Interrupted(TEXT), weights())
        return Session(program, ModelFacts(V), Ranges(64, 4, 64), block_size=BLOCK), device

    model, device = made()
    device.left = begun = 1000
    wanted = [one.token_ids for one in model.generate(prompts, params)]
    asked = begun - device.left
    assert asked > 20
    for place in range(1, asked + 1, 7):
        model, device = made()
        device.left = place
        with pytest.raises(KeyboardInterrupt):
            model.generate(prompts, params)
        assert model.blocks_in_use == 0
        assert [one.token_ids for one in model.generate(prompts, params)] == wanted
