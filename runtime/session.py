"""A loaded model, ready for prompts: it checks requests, owns the map of the cache and runs the token loop."""

import dataclasses
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from llmc.errors import BadRequest
from llmc.runtime.chat_template import Message
from llmc.runtime.generate import generate, logits_of
from llmc.runtime.kv_cache import BlockPool
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.program import Program
from llmc.runtime.request import Generation, Increment, Request
from llmc.runtime.sample import Chooser, SamplingParams, check_token_ids
from llmc.runtime.tokenizer import Tokenizer

BLOCK_SIZE = 128
"""Tokens in a block of the cache. Attention reads each head's part of a block in one piece: SmolLM2's 2,048 tokens in
bf16 take native code 62 us a layer in blocks of 16, 44 in blocks of 64, 39 in blocks of 256 (2 cores of a Zen 4)."""
GROWN_TOKENS = 16_384
"""A cache whose size was not given grows for several sequences up to so many tokens, or one full context if longer."""

Prompts = Sequence[str] | Sequence[Sequence[int]]
Params = SamplingParams | Sequence[SamplingParams]


class Session:
    """Generates with one program. Threads may share it: they take turns, streams step by step, others call by call."""

    def __init__(
        self,
        program: Program,
        facts: ModelFacts,
        ranges: Ranges,
        tokenizer: Tokenizer | None = None,
        *,
        num_blocks: int | None = None,
        block_size: int = BLOCK_SIZE,
        max_context: int | None = None,
        max_sequences: int | None = None,
    ) -> None:
        """`num_blocks` fixes the size of the cache; by default it grows between calls as the requests ask for it.

        `max_context` and `max_sequences` narrow what the artifact serves. Raises BadRequest if they would widen it.
        """
        most = min(ranges.context, facts.max_positions or ranges.context)
        self.program = program
        self._turn = threading.RLock()
        self.facts = facts
        self.tokenizer = tokenizer
        self.ranges = dataclasses.replace(
            ranges,
            context=_narrow("max_context", max_context, most),
            sequences=_narrow("max_sequences", max_sequences, ranges.sequences),
        )
        self._block_size = block_size
        self._grows = num_blocks is None
        self._pool = BlockPool(1 if num_blocks is None else num_blocks, block_size)
        if num_blocks is not None:
            self._allocate(num_blocks)
        self._allocated = num_blocks is not None

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache as it is now."""
        return self._pool.num_blocks if self._allocated else 0

    @property
    def blocks_in_use(self) -> int:
        """Blocks that unfinished requests hold."""
        return self._pool.num_blocks - self._pool.available

    def generate(
        self, prompts: Prompts, params: Params | None = None, *, prefill_chunk: int | None = None
    ) -> list[Generation]:
        """Continue each prompt, given as text or as token ids; texts get the special tokens that the model expects.

        `params` is for all prompts or one for each; the default takes the likeliest token, 128 times at most.
        `prefill_chunk` is how many tokens of a prompt enter one step at most. Raises BadRequest before any step if a
        request lies outside what the model serves.
        """
        requests = self._requests(prompts, params)
        with self._turn:
            for _ in self._run(requests, prefill_chunk):
                pass
        return [request.result() for request in requests]

    def stream(
        self, prompts: Prompts, params: Params | None = None, *, prefill_chunk: int | None = None
    ) -> Iterator[Increment]:
        """Like `generate`, but yields each token of each prompt as it is made. Closing the iterator ends all requests.

        Raises BadRequest at once, not at the first token.
        """
        return self._run(self._requests(prompts, params), prefill_chunk)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """[T, V] logits after each of `tokens`. Raises BadRequest for tokens or lengths that are not served."""
        checked = check_token_ids(tokens, self.facts.vocab_size, "tokens")
        self._check_length(len(checked), 0, "tokens")
        with self._turn:
            self._prepare([self._pool.blocks_for(len(checked))])
            return logits_of(checked, self.program, self._pool, self.ranges.tokens)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> list[int]:
        """Token ids of a conversation, by the model's chat template. Raises BadRequest if it has none or refuses."""
        tokenizer = self._need_tokenizer("chat")
        text = tokenizer.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables)
        return tokenizer.encode(text, add_special_tokens=False)

    def _run(self, requests: Sequence[Request], prefill_chunk: int | None) -> Iterator[Increment]:
        if prefill_chunk is not None and not 1 <= prefill_chunk <= self.ranges.tokens:
            raise BadRequest(f"prefill_chunk: {prefill_chunk}, expected an integer from 1 to {self.ranges.tokens}")
        needs = [self._pool.blocks_for(request.longest) for request in requests]
        with self._turn:
            self._prepare(needs)
        return self._loop(requests, needs, prefill_chunk)

    def _loop(self, requests: Sequence[Request], needs: Sequence[int], chunk: int | None) -> Iterator[Increment]:
        """The token loop in the cache as it is when the first token is asked for: it may have grown since."""
        with self._turn:
            self._prepare(needs)
            increments = generate(requests, self.program, self._pool, self.ranges, chunk)
        try:
            while True:
                with self._turn:
                    increment = next(increments, None)
                if increment is None:
                    return
                yield increment
        finally:
            with self._turn:
                increments.close()

    def _requests(self, prompts: Prompts, params: Params | None) -> list[Request]:
        if isinstance(prompts, str):
            raise BadRequest("prompts: expected a list of prompts, found one text; put it into a list")
        each = (
            [params or SamplingParams()] * len(prompts) if isinstance(params, SamplingParams | None) else list(params)
        )
        if len(each) != len(prompts):
            raise BadRequest(f"params: {len(each)} for {len(prompts)} prompts; give one for each or one for all")
        return [self._request(index, prompt, each[index]) for index, prompt in enumerate(prompts)]

    def _request(self, index: int, prompt: str | Iterable[object], params: SamplingParams) -> Request:
        where = f"prompt {index}"
        if not isinstance(cast(object, prompt), Iterable):
            raise BadRequest(f"{where}: expected a text or a list of token ids, found a {type(prompt).__name__}")
        if isinstance(prompt, str):
            tokens = self._need_tokenizer(where).encode(prompt)
        else:
            tokens = check_token_ids(prompt, self.facts.vocab_size, where)
        self._check_length(len(tokens), params.max_new_tokens, where)
        if params.stop:
            self._need_tokenizer("stop")
        stops = check_token_ids(params.stop_token_ids, self.facts.vocab_size, "stop_token_ids")
        ends = frozenset(stops) | frozenset(() if params.ignore_eos else self.facts.eos_token_ids)
        text = None if self.tokenizer is None else self.tokenizer.stream(tokens)
        choose = self.program.choose if isinstance(self.program, Chooser) else None
        return Request(index, tokens, params, self.facts.vocab_size, ends, text, choose)

    def _need_tokenizer(self, where: str) -> Tokenizer:
        if self.tokenizer is None:
            raise BadRequest(f"{where}: this model has no tokenizer; give token ids and no stop texts")
        return self.tokenizer

    def _check_length(self, tokens: int, new: int, where: str) -> None:
        context = self.ranges.context
        if tokens == 0:
            raise BadRequest(f"{where}: no tokens; give at least one, such as the token that begins a text")
        if tokens >= context and new:
            raise BadRequest(f"{where}: {tokens} tokens leave no room in a context of {context}; shorten it")
        if tokens + new > context:
            total = f"{tokens} tokens and {new} new ones" if new else f"{tokens} tokens"
            way_out = f"lower max_new_tokens to {context - tokens}" if new else "shorten it"
            raise BadRequest(f"{where}: {total} exceed the context of {context}; {way_out}")

    def _prepare(self, needs: Sequence[int]) -> None:
        """See that the largest of `needs` (blocks of each request) fits; grow the cache for all if allowed."""
        largest = max(needs, default=0)
        idle = self._pool.available == self._pool.num_blocks
        if self._grows and idle:
            limit = self._pool.blocks_for(max(GROWN_TOKENS, self.ranges.context))
            wanted = max(largest, min(sum(needs), limit), self.num_blocks)
            if wanted > self.num_blocks:
                self._allocated = False
                self._allocate(wanted)
                self._pool, self._allocated = BlockPool(wanted, self._block_size), True
        if largest > self._pool.num_blocks:
            raise BadRequest(
                f"cache: a request needs {largest} blocks of {self._block_size} tokens, the session has"
                f" {self._pool.num_blocks}; raise num_blocks or shorten the request"
            )

    def _allocate(self, blocks: int) -> None:
        try:
            self.program.allocate(blocks, self._block_size)
        except MemoryError as error:
            facts = str(error).split(";")[0] or "out of memory"
            raise BadRequest(
                f"cache: {blocks} blocks of {self._block_size} tokens do not fit into memory ({facts}); lower"
                " num_blocks, send fewer requests or shorten them"
            ) from None


def _narrow(name: str, value: int | None, most: int) -> int:
    if value is None:
        return most
    if isinstance(value, bool) or not isinstance(cast(object, value), int) or not 1 <= value <= most:
        raise BadRequest(f"{name}: {value!r}, expected an integer from 1 to {most}, which the artifact serves")
    return value
