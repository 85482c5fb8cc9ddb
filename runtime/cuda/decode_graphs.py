"""Decode steps as recorded launches: one recording for each size of a batch, replayed with other numbers in its arrays.

A batch is padded to the next size. Padding sequences have one token, whose K and V go to a block of the cache that
belongs to nobody.

Where all sequences take their likeliest token and none has ended, the next replay begins before the host has looked at
the tokens of the last one. If it then asks for something else, what that replay wrote is never read: it lies behind the
ends of its sequences, and whatever is written there later comes later in the stream.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from llmc.errors import NumericsGateFailed
from llmc.runtime.cuda.device import Device, Graph
from llmc.runtime.cuda.plan import Launch, Plan, Product
from llmc.runtime.cuda.step_arrays import Shape, StepArrays
from llmc.runtime.decoding import MOST_ENDS, Continuation
from llmc.runtime.program import Batch

STEPS = 8
"""Tokens that each sequence of a batch gets before the host looks at them."""
MOST_SEQUENCES = 256
"""Larger batches are launched directly: what recording saves is small beside what they compute."""
_FIRST_BLOCKS = 16
NOTHING, NOT_A_NUMBER = -1, -2
"""What stands in `chosen` where no token was chosen, and where the largest logit is not finite."""

Array = np.ndarray[Shape, np.dtype[np.int64]]
Run = Callable[[Sequence[Launch | Product], Mapping[str, int], StepArrays], None]


@dataclass
class _Bucket:
    """Recordings for one number of sequences."""

    sequences: int
    arrays: StepArrays
    blocks: int = 0
    """Columns of the block table."""
    graphs: dict[int, Graph] = field(default_factory=dict)
    """By how many tokens each sequence gets; 0 is a step whose logits the host wants."""

    @property
    def sizes(self) -> dict[str, int]:
        """Of its steps."""
        return {"T": self.sequences, "B": self.sequences, "R": self.sequences, "M": self.blocks}


@dataclass(frozen=True)
class _Ahead:
    """A replay that has begun before it was asked for."""

    bucket: _Bucket
    continuations: list[Continuation]
    """What it goes on from."""


class DecodeGraphs:
    """The recordings of one program, made when they are first needed."""

    def __init__(self, plan: Plan, device: Device, run: Run) -> None:
        """`run` asks the device for the launches of a step of some sizes."""
        self._plan, self._device, self._run = plan, device, run
        self._buckets: dict[int, _Bucket] = {}
        self._ahead: _Ahead | None = None

    def forget(self) -> None:
        """Memory is about to move: no recording is valid any more, and nothing runs."""
        self._device.synchronize()
        self._ahead = None
        for bucket in self._buckets.values():
            bucket.graphs.clear()

    def size_for(self, sequences: int) -> int:
        """The sequences of the recording that a batch is padded to: a power of two, or a multiple of the block size."""
        if sequences > self._plan.block_size:
            return sequences + -sequences % self._plan.block_size
        return 1 << (sequences - 1).bit_length()

    def step(self, batch: Batch, spare: int) -> None:
        """Compute the logits of a step in which every sequence has one token, all of which want them.

        `spare` is the block that belongs to nobody.
        """
        self._graph(self._prepared(batch, spare), 0).replay()

    def prepared(self, batch: Batch, spare: int) -> tuple[dict[str, int], StepArrays]:
        """The sizes of the recording that takes such a batch, and its arrays, which are on the device then."""
        bucket = self._prepared(batch, spare)
        return bucket.sizes, bucket.arrays

    def _prepared(self, batch: Batch, spare: int) -> _Bucket:
        self._ahead = None  # its arrays may be those that are filled here
        count, columns = batch.blocks.shape
        bucket = self._bucket(count, columns)
        arrays = self._padded(bucket, count, spare)
        for name in ("tokens", "positions", "slots", "lengths"):
            arrays[name][:count] = getattr(batch, name)
        arrays["blocks"][:count, :columns] = batch.blocks
        bucket.arrays.upload()
        return bucket

    def decode(self, continuations: Sequence[Continuation], spare: int) -> list[list[int]]:
        """The next tokens of each sequence (see `Decoder.decode`)."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and _same(ahead.continuations, continuations):
            bucket = ahead.bucket
        else:
            bucket = self._bucket(len(continuations), max(len(given.blocks) for given in continuations))
            _fill(self._padded(bucket, len(continuations), spare), continuations, self._plan.block_size)
            bucket.arrays.upload()
            self._replay(bucket, continuations)
        bucket.arrays.download("chosen")
        chosen = bucket.arrays.arrays["chosen"][: len(continuations)].copy()
        if (chosen == NOT_A_NUMBER).any():
            raise NumericsGateFailed(
                "sample: the largest logit is not finite, expected a number; compile the model with another dtype"
            )
        made: list[list[int]] = [row[row != NOTHING].tolist() for row in chosen]
        self._go_on(bucket, continuations, made)
        return made

    def _go_on(self, bucket: _Bucket, continuations: Sequence[Continuation], made: Sequence[Sequence[int]]) -> None:
        """Begin the replay that follows, if what it goes on from is known."""
        following = [_following(given, tokens) for given, tokens in zip(continuations, made, strict=True)]
        known = [given for given in following if given is not None]
        if len(known) < len(following):
            return
        bucket.arrays.arrays["made"][...] = 0
        bucket.arrays.arrays["chosen"][...] = NOTHING
        bucket.arrays.upload("made", "chosen")  # the device has brought the others up to date
        self._replay(bucket, known)
        self._ahead = _Ahead(bucket, known)

    def _replay(self, bucket: _Bucket, continuations: Sequence[Continuation]) -> None:
        most = max(continuation.remaining for continuation in continuations)
        if most >= STEPS:
            self._graph(bucket, STEPS).replay()
        else:
            for _ in range(most):
                self._graph(bucket, 1).replay()

    def _bucket(self, sequences: int, columns: int) -> _Bucket:
        size = self.size_for(sequences)
        bucket = self._buckets.setdefault(size, _Bucket(size, StepArrays(self._device)))
        if columns > bucket.blocks:
            bucket.graphs.clear()
            bucket.blocks = max(1 << (columns - 1).bit_length(), _FIRST_BLOCKS)
            bucket.arrays.lay_out(_shapes(size, bucket.blocks, bool(self._plan.sampling)))
        return bucket

    def _padded(self, bucket: _Bucket, count: int, spare: int) -> Mapping[str, Array]:
        """The arrays of a bucket with its padding filled in, from sequence `count` on."""
        arrays = bucket.arrays.arrays
        arrays["starts"][...] = np.arange(bucket.sequences + 1)
        arrays["rows"][...] = np.arange(bucket.sequences)
        arrays["tokens"][count:] = 0
        arrays["positions"][count:] = 0
        # Each has a place of its own there, so that no two write to the same.
        places = np.arange(bucket.sequences - count) % self._plan.block_size
        arrays["slots"][count:] = spare * self._plan.block_size + places
        arrays["lengths"][count:] = 1
        arrays["blocks"][...] = 0
        arrays["blocks"][count:, 0] = spare
        return arrays

    def _graph(self, bucket: _Bucket, steps: int) -> Graph:
        if steps not in bucket.graphs:
            each = [self._plan.launches, self._plan.sampling] * steps if steps else [self._plan.launches]
            launches = list(chain.from_iterable(each))
            bucket.graphs[steps] = self._device.capture(lambda: self._run(launches, bucket.sizes, bucket.arrays))
        return bucket.graphs[steps]


def _shapes(sequences: int, blocks: int, sampling: bool) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {
        "tokens": (sequences,),
        "positions": (sequences,),
        "slots": (sequences,),
        "starts": (sequences + 1,),
        "lengths": (sequences,),
        "blocks": (sequences, blocks),
        "rows": (sequences,),
    }
    if sampling:
        numbers = ("temperatures", "top_ks", "top_ps", "min_ps", "remaining", "made")
        shapes |= dict.fromkeys(numbers, (sequences,))
        shapes |= {"uniforms": (sequences, STEPS), "chosen": (sequences, STEPS)}
        shapes |= {"ends": (sequences, MOST_ENDS), "horizon": (1,)}
    return shapes


def _following(given: Continuation, tokens: Sequence[int]) -> Continuation | None:
    """What goes on after `tokens`; None if nothing does, or if it takes numbers that the host has yet to draw."""
    remaining = given.remaining - len(tokens)
    if given.temperature or len(tokens) < STEPS or tokens[-1] in given.ends or remaining == 0:
        return None
    return replace(given, token=tokens[-1], position=given.position + len(tokens), remaining=remaining)


def _same(known: Sequence[Continuation], asked: Sequence[Continuation]) -> bool:
    """Whether sequences go on alike. Those that are known take their likeliest token."""
    return len(known) == len(asked) and all(
        (one.token, one.position, one.remaining, one.ends) == (other.token, other.position, other.remaining, other.ends)
        and not other.temperature
        and list(one.blocks) == list(other.blocks)
        for one, other in zip(known, asked, strict=True)
    )


def _fill(arrays: Mapping[str, Array], continuations: Sequence[Continuation], block_size: int) -> None:
    """What sequences go on from, and how; the bits of float64 where a number is not an integer."""
    for name in ("temperatures", "top_ks", "top_ps", "min_ps", "remaining", "made", "uniforms"):
        arrays[name][...] = 0
    for name in ("chosen", "ends"):
        arrays[name][...] = NOTHING
    arrays["horizon"][...] = STEPS
    for row, given in enumerate(continuations):
        place, offset = divmod(given.position, block_size)
        arrays["tokens"][row] = given.token
        arrays["positions"][row] = given.position
        arrays["slots"][row] = given.blocks[place] * block_size + offset
        arrays["lengths"][row] = given.position + 1
        arrays["blocks"][row, : len(given.blocks)] = given.blocks
        arrays["temperatures"].view(np.float64)[row] = given.temperature
        arrays["top_ks"][row] = given.top_k
        arrays["top_ps"].view(np.float64)[row] = given.top_p
        arrays["min_ps"].view(np.float64)[row] = given.min_p
        arrays["uniforms"].view(np.float64)[row, : len(given.uniforms)] = given.uniforms
        arrays["ends"][row, : len(given.ends)] = given.ends
        arrays["remaining"][row] = given.remaining
