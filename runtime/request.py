"""One prompt on its way to a finished text, and what the caller gets to see of it."""

import time
from dataclasses import dataclass, replace
from typing import Literal

from llmc.runtime.batch import Piece
from llmc.runtime.decoding import MOST_ENDS, Continuation
from llmc.runtime.kv_cache import BlockTable
from llmc.runtime.sample import Choose, Row, Sampler, SamplingParams, TokenLogprobs, logprobs_of
from llmc.runtime.stop_texts import StopTexts
from llmc.runtime.tokenizer import TextStream

FinishReason = Literal["stop", "length"]
""""stop": an end token, a stop token or a stop text came; "length": max_new_tokens were made."""


@dataclass(frozen=True)
class Increment:
    """One new token of one prompt."""

    index: int
    """Which prompt, counted from 0."""
    token_id: int
    text: str
    """The text that has become certain with this token; maybe empty. Put together, the text of the result."""
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason | None
    """None until the last token of this prompt."""


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in seconds of wall-clock time."""

    waiting: float
    """Until its first step, for room in the batch and in the cache."""
    prefill: float
    """From its first step to its first token."""
    decode: float
    """From its first token to its last."""


@dataclass(frozen=True)
class Generation:
    """The continuation of one prompt."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """All new tokens, the one that ended the text included."""
    text: str
    """Their text, without end tokens and cut before a stop text; empty if the session has no tokenizer."""
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None
    """One for each of `token_ids`; None unless asked for."""
    timings: Timings


class Request:
    """One prompt, how far it has come, and the blocks that it holds."""

    def __init__(
        self,
        index: int,
        prompt: list[int],
        params: SamplingParams,
        vocab_size: int,
        end_tokens: frozenset[int],
        text: TextStream | None,
        choose: Choose | None = None,
    ) -> None:
        """`end_tokens` end the text; `text` decodes what follows the prompt, if there is a tokenizer; `choose` is the
        program's own way to choose tokens, if it has one."""
        self.index = index
        self.prompt = prompt
        self.params = params
        self.finish_reason: FinishReason | None = None
        self.table: BlockTable | None = None
        self._tokens = list(prompt)
        self._sampler = Sampler(params, vocab_size, prompt, choose)
        self._end_tokens = end_tokens
        self._text = text
        self._stops = StopTexts(params.stop)
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._times = [time.perf_counter()]

    @property
    def longest(self) -> int:
        """Tokens in the cache when it has made all tokens that it may; the last one is never fed."""
        return len(self.prompt) + self.params.max_new_tokens - 1

    def admit(self, table: BlockTable) -> None:
        """Start: reserve all blocks that it can come to need. Raises BadRequest, holding nothing, if they are taken."""
        table.reserve(self.longest)
        self.table = table
        self._times.append(time.perf_counter())

    def release(self) -> None:
        """Give back the blocks; harmless when it holds none."""
        if self.table is not None:
            self.table.release()
            self.table = None

    def next_piece(self, most: int, chunk: int | None) -> Piece:
        """Its part of the next step: at most `most` tokens, of a prompt at most `chunk`."""
        assert self.table is not None, "only an admitted request takes part in a step"
        fed = self.table.length
        prompt_left = len(self.prompt) - fed
        count = min(len(self._tokens) - fed, most, chunk if chunk and prompt_left > 0 else most)
        complete = fed + count == len(self._tokens)
        return Piece(self._tokens[fed : fed + count], self.table, "last" if complete else "none")

    @property
    def can_be_continued(self) -> bool:
        """Whether `continuation` may be asked for: one token is left to be fed, and not too many can end the text."""
        assert self.table is not None, "only an admitted request takes part in a step"
        return len(self._tokens) - self.table.length == 1 and len(self._end_tokens) <= MOST_ENDS

    def continuation(self, most: int) -> Continuation:
        """What a program needs to choose its next tokens, at most `most`, and to begin with as many after them. They
        must then be accepted, one by one."""
        assert self.table is not None, "only an admitted request takes part in a step"
        remaining = self.params.max_new_tokens - (len(self._tokens) - len(self.prompt))
        return Continuation(
            token=self._tokens[-1],
            position=len(self._tokens) - 1,
            blocks=self.table.blocks,
            params=self.params,
            seen=self._sampler.seen,
            uniforms=self._sampler.uniforms(min(2 * most, remaining)),
            ends=tuple(sorted(self._end_tokens)),
            remaining=remaining,
        )

    def choice(self) -> Continuation:
        """What a program needs to choose its next token and no other, whatever may end the text."""
        return replace(self.continuation(1), ends=(), remaining=1)

    def accept(self, logits: Row) -> Increment:
        """Choose the token that follows from [V] logits; sets `finish_reason` when it is the last."""
        token = self._sampler.choose(logits)
        wanted = self.params.logprobs
        return self._append(token, None if wanted is None else logprobs_of(logits, token, wanted))

    def accept_token(self, token: int, logprobs: TokenLogprobs | None) -> Increment:
        """Take the token that follows, as a program chose it; sets `finish_reason` when it is the last."""
        self._sampler.take(token)
        return self._append(token, logprobs)

    def _append(self, token: int, logprobs: TokenLogprobs | None) -> Increment:
        if logprobs is not None:
            self._logprobs.append(logprobs)
        self._tokens.append(token)
        self._times.append(time.perf_counter())
        made = len(self._tokens) - len(self.prompt)
        if token in self._end_tokens:
            self.finish_reason = "stop"
        elif made == self.params.max_new_tokens:
            self.finish_reason = "length"
        piece = self._text_of(token)
        self._pieces.append(piece)
        return Increment(self.index, token, piece, logprobs, self.finish_reason)

    def result(self) -> Generation:
        """The finished continuation."""
        assert self.finish_reason is not None, "the request is not finished"
        queued, started, first, last = self._times[0], self._times[1], self._times[2], self._times[-1]
        return Generation(
            prompt_token_ids=tuple(self.prompt),
            token_ids=tuple(self._tokens[len(self.prompt) :]),
            text="".join(self._pieces),
            finish_reason=self.finish_reason,
            logprobs=None if self.params.logprobs is None else tuple(self._logprobs),
            timings=Timings(started - queued, first - started, last - first),
        )

    def _text_of(self, token: int) -> str:
        """The text that is certain after `token`. A stop text in it ends the request."""
        if self._text is None:
            return ""
        new = "" if token in self._end_tokens else self._text.push(token)
        if self.finish_reason is not None:
            new += self._text.finish()
        piece = self._stops.push(new)
        if self._stops.found:
            self.finish_reason = "stop"
        elif self.finish_reason is not None:
            piece += self._stops.finish()
        return piece
