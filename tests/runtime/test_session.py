"""Sessions over a real program in numpy: batching, chunks, order and memory never change what is generated."""

from collections.abc import Iterator

import numpy as np
import pytest
from support import small_tokenizer
from support.numpy_program import VOCABULARY, NumpyProgram, dense_logits

from llmc.errors import BadRequest
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.request import Generation
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session
from llmc.runtime.tokenizer import Tokenizer

FACTS = ModelFacts(VOCABULARY, max_positions=64, eos_token_ids=(2,))
RANGES = Ranges(tokens=32, sequences=4, context=64)
PROMPTS = [[7], [3, 9, 1, 4, 22, 8, 40], [5, 5, 5], [11] * 20, [30, 31], [9, 8, 7, 6, 5]]


def session(ranges: Ranges = RANGES, **options: int) -> Session:
    return Session(NumpyProgram(), FACTS, ranges, block_size=4, **options)


def program_of(model: Session) -> NumpyProgram:
    assert isinstance(model.program, NumpyProgram)
    return model.program


def greedy_by_hand(prompt: list[int], count: int) -> list[int]:
    program, tokens = NumpyProgram(), list(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(dense_logits(program, tokens)[-1])))
    return tokens[len(prompt) :]


def essence(results: list[Generation]) -> list[tuple[object, ...]]:
    return [(result.token_ids, result.text, result.finish_reason, result.logprobs) for result in results]


def test_greedy_tokens_are_those_of_recomputing_the_whole_sequence_each_time() -> None:
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    results = session().generate(PROMPTS, params)
    assert [list(result.token_ids) for result in results] == [greedy_by_hand(prompt, 12) for prompt in PROMPTS]
    assert [result.prompt_token_ids for result in results] == [tuple(prompt) for prompt in PROMPTS]
    assert {result.finish_reason for result in results} == {"length"}


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize("chunk", [None, 1, 3, 32])
def test_a_request_gives_the_same_bits_alone_or_in_any_batch_whole_or_in_chunks(
    temperature: float, chunk: int | None
) -> None:
    params = SamplingParams(max_new_tokens=10, temperature=temperature, seed=9, logprobs=3, repetition_penalty=1.1)
    alone = [session().generate([prompt], params)[0] for prompt in PROMPTS]
    together = session().generate(PROMPTS, params, prefill_chunk=chunk)
    assert essence(together) == essence(alone)
    reversed_ = session(num_blocks=11).generate(PROMPTS[::-1], params, prefill_chunk=chunk)
    assert essence(reversed_[::-1]) == essence(alone)


def test_narrow_steps_give_the_same_tokens() -> None:
    params = SamplingParams(max_new_tokens=10)
    narrow = session(Ranges(tokens=2, sequences=4, context=64))
    assert essence(narrow.generate(PROMPTS, params)) == essence(session().generate(PROMPTS, params))
    assert max(len(batch.tokens) for batch in program_of(narrow).steps) == 2


def test_steps_hold_no_padding_and_sequences_leave_as_they_finish() -> None:
    model = session()
    lengths = [1, 5, 2, 3]
    model.generate(PROMPTS[:4], [SamplingParams(max_new_tokens=count, ignore_eos=True) for count in lengths])
    assert [batch.tokens.size for batch in program_of(model).steps] == [31, 3, 2, 1, 1]
    assert [batch.rows.size for batch in program_of(model).steps] == [4, 3, 2, 1, 1]


def test_waiting_requests_enter_as_others_leave_and_reuse_their_blocks() -> None:
    model = session(num_blocks=9)
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    results = model.generate(PROMPTS * 2, params)
    assert essence(results) == essence(session().generate(PROMPTS, params)) * 2
    steps = program_of(model).steps
    assert max(int(batch.blocks.max()) for batch in steps) == 8
    assert max(batch.lengths.size for batch in steps) > 1
    assert (program_of(model).allocated, model.blocks_in_use) == ([9], 0)


def test_the_cache_grows_between_calls_and_only_as_needed() -> None:
    model = session()
    assert (model.num_blocks, program_of(model).allocated) == (0, [])
    model.generate([[1] * 9], SamplingParams(max_new_tokens=4))
    model.generate([[1] * 5], SamplingParams(max_new_tokens=4))
    assert program_of(model).allocated == [3]
    model.generate([[1] * 9] * 3, SamplingParams(max_new_tokens=4))
    assert program_of(model).allocated == [3, 9]


def test_more_requests_than_sequences_are_served_in_turn() -> None:
    model = session(max_sequences=2)
    params = SamplingParams(max_new_tokens=5)
    assert essence(model.generate(PROMPTS, params)) == essence(session().generate(PROMPTS, params))
    assert max(batch.lengths.size for batch in program_of(model).steps) == 2


def test_prompts_of_other_requests_enter_in_chunks_beside_those_that_decode() -> None:
    model = session()
    model.generate([[7], [11] * 9], SamplingParams(max_new_tokens=6, ignore_eos=True), prefill_chunk=3)
    steps = program_of(model).steps
    assert [np.diff(batch.starts).tolist() for batch in steps[:4]] == [[1, 3], [1, 3], [1, 3], [1, 1]]
    assert [batch.rows.tolist() for batch in steps[:4]] == [[0], [0], [0, 3], [0, 1]]


def test_generation_ends_at_the_models_end_token_and_at_stop_tokens() -> None:
    prompt = next([token] for token in range(VOCABULARY) if len(set(greedy_by_hand([token], 6))) > 2)
    expected = greedy_by_hand(prompt, 6)
    stop = next(token for token in expected[1:] if token != expected[0])
    end = expected.index(stop) + 1
    (result,) = session().generate([prompt], SamplingParams(max_new_tokens=6, stop_token_ids=(stop,), ignore_eos=True))
    assert (list(result.token_ids), result.finish_reason) == (expected[:end], "stop")
    facts = ModelFacts(VOCABULARY, 64, (stop,))
    model = Session(NumpyProgram(), facts, RANGES)
    (result,) = model.generate([prompt], SamplingParams(max_new_tokens=6))
    assert (list(result.token_ids), result.finish_reason) == (expected[:end], "stop")
    (result,) = model.generate([prompt], SamplingParams(max_new_tokens=6, ignore_eos=True))
    assert (list(result.token_ids), result.finish_reason) == (expected, "length")


def test_streams_yield_what_generate_returns() -> None:
    model = session()
    params = SamplingParams(max_new_tokens=7, logprobs=2)
    expected = model.generate(PROMPTS, params)
    tokens: list[list[int]] = [[] for _ in PROMPTS]
    ends: dict[int, str] = {}
    for increment in model.stream(PROMPTS, params):
        assert increment.index not in ends
        tokens[increment.index].append(increment.token_id)
        logprobs = expected[increment.index].logprobs
        assert logprobs is not None
        assert increment.logprobs == logprobs[len(tokens[increment.index]) - 1]
        if increment.finish_reason is not None:
            ends[increment.index] = increment.finish_reason
    assert [tuple(each) for each in tokens] == [result.token_ids for result in expected]
    assert ends == {index: result.finish_reason for index, result in enumerate(expected)}


def test_closing_a_stream_gives_back_its_blocks() -> None:
    model = session()
    stream = model.stream(PROMPTS, SamplingParams(max_new_tokens=20, ignore_eos=True))
    assert model.blocks_in_use == 0
    next(stream)
    assert model.blocks_in_use > 0
    close(stream)
    assert model.blocks_in_use == 0


def test_a_failing_program_gives_back_the_blocks() -> None:
    model = session()
    model.generate([[1]], SamplingParams(max_new_tokens=2))
    program_of(model).head = program_of(model).head[:, :3]
    with pytest.raises(ValueError, match="matmul"):
        model.generate(PROMPTS, SamplingParams(max_new_tokens=4))
    assert model.blocks_in_use == 0


def test_two_streams_share_one_cache() -> None:
    params = SamplingParams(max_new_tokens=9, ignore_eos=True)
    expected = [greedy_by_hand(prompt, 9) for prompt in ([7, 8, 9], [10, 11])]
    model = session(num_blocks=6)
    first, second = model.stream([[7, 8, 9]], params), model.stream([[10, 11]], params)
    pairs = list(zip(first, second, strict=True))
    assert [[left.token_id for left, _ in pairs], [right.token_id for _, right in pairs]] == expected
    third = model.stream([[1] * 20], SamplingParams(max_new_tokens=2))
    other = model.stream([[7, 8, 9]], params)
    next(other)
    with pytest.raises(BadRequest, match="6 blocks of 4 tokens needed, 3 of 6 are free"):
        next(third)
    close(other)
    assert model.blocks_in_use == 0


def test_a_stream_that_begins_after_the_cache_has_grown_uses_the_new_one() -> None:
    params = SamplingParams(max_new_tokens=5, ignore_eos=True)
    model = session()
    early = model.stream([[7, 8, 9]], params)
    model.generate([[1] * 30] * 3, params)
    assert [increment.token_id for increment in early] == greedy_by_hand([7, 8, 9], 5)


def test_logits_of_a_sequence_are_those_of_the_dense_model_in_steps_of_any_size() -> None:
    tokens = [3, 9, 1, 4, 22, 8, 40, 17, 2, 2, 6]
    expected = dense_logits(NumpyProgram(), tokens)
    for size in (1, 4, 32):
        model = session(Ranges(tokens=size, sequences=1, context=64))
        np.testing.assert_allclose(model.logits(tokens), expected, atol=1e-5)
        assert model.blocks_in_use == 0


def test_logprobs_are_those_of_the_dense_model() -> None:
    (result,) = session().generate([[3, 9, 1]], SamplingParams(max_new_tokens=3, temperature=0.8, seed=1, logprobs=2))
    assert result.logprobs is not None
    logits = dense_logits(NumpyProgram(), [3, 9, 1, *result.token_ids])[2:-1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, token, found in zip(logprobs, result.token_ids, result.logprobs, strict=True):
        assert found.token_id == token
        assert found.logprob == pytest.approx(row[token], abs=1e-5)
        assert [top for top, _ in found.top] == np.argsort(-row)[:2].tolist()


def test_timings_add_up() -> None:
    (result,) = session().generate([[1, 2]], SamplingParams(max_new_tokens=3))
    assert result.timings.waiting >= 0
    assert result.timings.prefill > 0
    assert result.timings.decode > 0


REFUSED = [
    ([[]], {}, "prompt 0: no tokens; give at least one"),
    ([[1], [50]], {}, "prompt 1: token 0 is 50, expected an integer from 0 to 49"),
    ([[1, -1]], {}, "prompt 0: token 1 is -1"),
    ([[1.5]], {}, "prompt 0: token 0 is 1.5"),
    ([[True]], {}, "prompt 0: token 0 is True"),
    ([[1 << 70]], {}, "prompt 0: token 0 is an integer beyond 64 bits"),
    ([1, 2], {}, "prompt 0: expected a text or a list of token ids, found a int"),
    ("text", {}, "prompts: expected a list of prompts, found one text"),
    (["text"], {}, "prompt 0: this model has no tokenizer"),
    ([[1] * 60], {"max_new_tokens": 5}, "60 tokens and 5 new ones exceed the context of 64; lower max_new_tokens to 4"),
    ([[1] * 64], {"max_new_tokens": 1}, "64 tokens leave no room in a context of 64"),
    ([[1]], {"stop": ("x",)}, "stop: this model has no tokenizer"),
    ([[1]], {"stop_token_ids": (50,)}, "stop_token_ids: token 0 is 50"),
]


@pytest.mark.parametrize(("prompts", "params", "message"), REFUSED)
def test_requests_outside_what_is_served_are_refused_before_any_step(
    prompts: list[list[int]], params: dict[str, int], message: str
) -> None:
    model = session()
    with pytest.raises(BadRequest, match=message):
        model.generate(prompts, SamplingParams(**{"max_new_tokens": 4, **params}))  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=message):
        model.stream(prompts, SamplingParams(**{"max_new_tokens": 4, **params}))  # type: ignore[arg-type]
    assert program_of(model).steps == []


def test_options_outside_what_the_artifact_serves_are_refused() -> None:
    with pytest.raises(
        BadRequest, match="max_context: 65, expected an integer from 1 to 64, which the artifact serves"
    ):
        session(max_context=65)
    with pytest.raises(BadRequest, match="max_sequences: 0, expected an integer from 1 to 4"):
        session(max_sequences=0)
    with pytest.raises(BadRequest, match="cache: 0 blocks"):
        session(num_blocks=0)
    with pytest.raises(BadRequest, match="prefill_chunk: 33, expected an integer from 1 to 32"):
        session().generate([[1]], SamplingParams(max_new_tokens=4), prefill_chunk=33)
    with pytest.raises(BadRequest, match="params: 1 for 2 prompts"):
        session().generate([[1], [2]], [SamplingParams()])
    with pytest.raises(BadRequest, match="needs 5 blocks of 4 tokens, the session has 4; raise num_blocks"):
        session(num_blocks=4).generate([[1] * 10], SamplingParams(max_new_tokens=10))
    with pytest.raises(BadRequest, match="tokens: 65 tokens exceed the context of 64"):
        session().logits([1] * 65)
    with pytest.raises(BadRequest, match="context of 16"):
        session(max_context=16).generate([[1] * 10], SamplingParams(max_new_tokens=10))


def test_no_prompts_give_no_results() -> None:
    assert session().generate([]) == []


def close(stream: Iterator[object]) -> None:
    stream.close()  # type: ignore[attr-defined]


class Scripted:
    """A program whose likeliest next token follows a script, whatever the cache holds: what text tests need."""

    def __init__(self, script: list[int], vocabulary: int) -> None:
        self.script, self.vocabulary = script, vocabulary
        self.prompt = 0

    def allocate(self, num_blocks: int, block_size: int) -> None:
        self.prompt = 0

    def copy_block(self, source: int, target: int) -> None:
        pass

    def step(self, batch: object) -> np.ndarray:
        positions = batch.positions  # type: ignore[attr-defined]
        self.prompt = self.prompt or len(positions)
        logits = np.zeros((1, self.vocabulary), np.float32)
        logits[0, self.script[positions[-1] + 1 - self.prompt]] = 1
        return logits


def scripted(text: str, prompt: str = "the fox", kind: str = "byte_level") -> tuple[Session, Tokenizer, list[int]]:
    """A session that writes `text` after `prompt`."""
    tokenizer = Tokenizer(getattr(small_tokenizer, kind)())
    script = tokenizer.encode(text, add_special_tokens=False)
    program = Scripted([*script, 2, *script], 340)
    return Session(program, ModelFacts(340, None, (2,)), Ranges(64, 1, 256), tokenizer), tokenizer, script


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_text_streams_without_breaking_characters_and_without_the_end_token(kind: str) -> None:
    text = " jumps 東京 🙂🙃 café"
    model, _, script = scripted(text, kind=kind)
    increments = list(model.stream(["the fox"]))
    assert [increment.token_id for increment in increments] == [*script, 2]
    assert "".join(increment.text for increment in increments).strip() == text.strip()
    assert not any("\ufffd" in increment.text for increment in increments)
    assert increments[-1].finish_reason == "stop"


def test_a_character_that_is_never_completed_shows_at_the_end_only() -> None:
    model, _, script = scripted("ab 🙂")
    (result,) = model.generate(["x"], SamplingParams(max_new_tokens=len(script) - 1))
    assert result.text == "ab \ufffd"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("stop",), "a "),
        (("stop here,",), "a "),
        (("here, a st",), "a stop "),
        (("never",), "a stop here, a stop there"),
        (("there!", "a stop t"), "a stop here, "),
        (("e",), "a stop h"),
        (("a",), ""),
        (("there",), "a stop here, a stop "),
        (("there, and on",), "a stop here, a stop there"),
    ],
)
def test_text_ends_before_a_stop_text_and_never_streams_past_it(stop: tuple[str, ...], expected: str) -> None:
    model, tokenizer, script = scripted("a stop here, a stop there")
    params = SamplingParams(stop=stop)
    increments = list(model.stream([[40, 41]], params))
    seen = ""
    for increment in increments:
        seen += increment.text
        assert expected.startswith(seen)
    assert seen == expected
    assert increments[-1].finish_reason == "stop"
    (result,) = Session(model.program, model.facts, model.ranges, tokenizer).generate([[40, 41]], params)
    assert result.text == expected
    assert len(result.token_ids) <= len(script) + 1
    if expected != "a stop here, a stop there":
        assert len(result.token_ids) < len(script) + 1


def test_a_stop_text_that_comes_with_the_last_token_still_counts() -> None:
    model, _, script = scripted("a stop here")
    (result,) = model.generate([[40]], SamplingParams(max_new_tokens=len(script), stop=("here",)))
    assert (result.text, result.finish_reason) == ("a stop ", "stop")
    (result,) = model.generate([[40]], SamplingParams(max_new_tokens=len(script), stop=("here and",)))
    assert (result.text, result.finish_reason) == ("a stop here", "length")


def test_a_conversation_is_encoded_by_the_chat_template() -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = Tokenizer(small_tokenizer.byte_fallback(), {"bos_token": "<s>"}, source)
    model = Session(NumpyProgram(), FACTS, RANGES, tokenizer)
    assert model.encode_chat([{"role": "user", "content": "the fox"}])[0] == 1
    assert model.encode_chat([{"role": "user", "content": "the fox"}]).count(1) == 1
    with pytest.raises(BadRequest, match="chat: this model has no tokenizer"):
        session().encode_chat([])
