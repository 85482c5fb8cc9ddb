"""Decode steps as recorded launches: one recording for each size of a batch, replayed with other numbers in its arrays.

A batch is padded to the next size. Padding sequences have one token, whose K and V go to a block of the cache that
belongs to nobody.

Where no sequence has ended, the next replay begins before the host has looked at the tokens of the last one. If it then
asks for something else, what that replay wrote is never read: it lies behind the ends of its sequences, and whatever is
written there later comes later in the stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from llmc.runtime.cuda import choices
from llmc.runtime.cuda.choices import NOTHING, STEPS, Array
from llmc.runtime.cuda.device import Device, Graph
from llmc.runtime.cuda.plan import Launch, Plan, Product
from llmc.runtime.cuda.step_arrays import Shape, StepArrays
from llmc.runtime.decoding import Continuation, Continued
from llmc.runtime.program import Batch

MOST_SEQUENCES = 256
"""Larger batches are launched directly: what recording saves is small beside what they compute."""
_FIRST_BLOCKS = 16


class Run(Protocol):
    """Asks the device for the launches of a step of some sizes, for all of them so many times."""

    def __call__(
        self, launches: Sequence[Launch | Product], sizes: Mapping[str, int], arrays: StepArrays, times: int = 1
    ) -> None:
        """Do so."""


@dataclass
class _Bucket:
    """Recordings for one number of sequences."""

    sequences: int
    arrays: StepArrays
    blocks: int = 0
    """Columns of the block table."""
    graphs: dict[tuple[int, bool], Graph] = field(default_factory=dict)
    """By how many tokens each sequence gets, 0 for a step whose logits the host wants; and whether any are ruled out
    before one is drawn."""

    @property
    def sizes(self) -> dict[str, int]:
        """Of its steps."""
        return {"T": self.sequences, "B": self.sequences, "R": self.sequences, "M": self.blocks, "F": 0}


@dataclass(frozen=True)
class _Ahead:
    """A replay that has begun before it was asked for."""

    bucket: _Bucket
    continuations: list[Continuation]
    """What it goes on from."""


class DecodeGraphs:
    """The recordings of one program, made when they are first needed."""

    def __init__(self, plan: Plan, device: Device, run: Run) -> None:
        """`run` asks for launches."""
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

    def interrupt(self) -> None:
        """Other steps come in between: what has begun before it was asked for is not what will be asked for."""
        self._ahead = None

    def step(self, batch: Batch, spare: int) -> None:
        """Compute the logits of a step in which every sequence has one token, all of which want them.

        `spare` is the block that belongs to nobody.
        """
        self._graph(self._prepared(batch, spare), 0, False).replay()

    def prepared(self, batch: Batch, spare: int) -> tuple[dict[str, int], StepArrays]:
        """The sizes of the recording that takes such a batch, and its arrays, which are on the device then."""
        bucket = self._prepared(batch, spare)
        return bucket.sizes, bucket.arrays

    def _prepared(self, batch: Batch, spare: int) -> _Bucket:
        self.interrupt()  # its arrays may be those that are filled here
        count, columns = batch.blocks.shape
        bucket = self._bucket(count, columns)
        arrays = self._padded(bucket, count, spare)
        for name in ("tokens", "positions", "slots", "lengths"):
            arrays[name][:count] = getattr(batch, name)
        arrays["blocks"][:count, :columns] = batch.blocks
        bucket.arrays.upload()
        return bucket

    def choose(self, continuations: Sequence[Continuation]) -> list[Continued]:
        """The next token of each sequence, from the rows of logits that the last step has left; it is launched."""
        self.interrupt()
        count = len(continuations)
        bucket = self._bucket(count, max(len(given.blocks) for given in continuations))
        arrays = bucket.arrays
        large = choices.fill(arrays.arrays, continuations, self._plan.block_size)
        arrays.upload()
        if large:
            arrays.upload(*large)
        limited = any(choices.rules_out(given, self._plan.vocabulary) for given in continuations)
        sizes = {"T": count, "B": count, "R": count, "M": bucket.blocks, "F": int(limited)}
        self._run(self._plan.sampling, sizes, arrays)
        arrays.download(*choices.wanted(continuations))
        return choices.read(arrays.arrays, continuations, self._plan.vocabulary)

    def decode(self, continuations: Sequence[Continuation], spare: int) -> list[Continued]:
        """The next tokens of each sequence (see `Decoder.decode`)."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and choices.same(ahead.continuations, continuations):
            bucket = ahead.bucket
        else:
            bucket = self._bucket(len(continuations), max(len(given.blocks) for given in continuations))
            arrays = self._padded(bucket, len(continuations), spare)
            large = choices.fill(arrays, continuations, self._plan.block_size)
            bucket.arrays.upload()
            if large:
                bucket.arrays.upload(*large)
            self._replay(bucket, continuations)
        bucket.arrays.download(*choices.wanted(continuations))
        made = choices.read(bucket.arrays.arrays, continuations, self._plan.vocabulary)
        self._go_on(bucket, continuations, made)
        return made

    def _go_on(self, bucket: _Bucket, continuations: Sequence[Continuation], made: Sequence[Continued]) -> None:
        """Begin the replay that follows, if what it goes on from is known."""
        following = [choices.following(given, each.tokens) for given, each in zip(continuations, made, strict=True)]
        known = [given for given in following if given is not None]
        if len(known) < len(following):
            return
        arrays = bucket.arrays.arrays
        arrays["made"][...] = 0
        arrays["chosen"][...] = NOTHING
        changed = ["made", "chosen"]  # the device has brought the others up to date
        if any(given.params.temperature for given in known):
            choices.fill_uniforms(arrays["uniforms"], known)
            changed.append("uniforms")
        bucket.arrays.upload(*changed)
        self._replay(bucket, known)
        self._ahead = _Ahead(bucket, known)

    def _replay(self, bucket: _Bucket, continuations: Sequence[Continuation]) -> None:
        most = max(continuation.remaining for continuation in continuations)
        limited = any(choices.rules_out(continuation, self._plan.vocabulary) for continuation in continuations)
        if most >= STEPS:
            self._graph(bucket, STEPS, limited).replay()
        else:
            for _ in range(most):
                self._graph(bucket, 1, limited).replay()

    def _bucket(self, sequences: int, columns: int) -> _Bucket:
        size = self.size_for(sequences)
        bucket = self._buckets.setdefault(size, _Bucket(size, StepArrays(self._device)))
        if columns > bucket.blocks:
            bucket.graphs.clear()
            bucket.blocks = 0  # until there is room for more
            blocks = max(1 << (columns - 1).bit_length(), _FIRST_BLOCKS)
            shapes = _shapes(size, blocks)
            if self._plan.sampling:
                shapes |= choices.shapes(size, self._plan.vocabulary)
            bucket.arrays.lay_out(shapes, apart=choices.LARGE)
            bucket.blocks = blocks
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

    def _graph(self, bucket: _Bucket, steps: int, limited: bool) -> Graph:
        key = steps, limited
        if key not in bucket.graphs:
            sizes = bucket.sizes | {"F": int(limited)}
            launches = [*self._plan.launches, *self._plan.sampling] if steps else self._plan.launches
            bucket.graphs[key] = self._device.capture(lambda: self._run(launches, sizes, bucket.arrays, max(steps, 1)))
        return bucket.graphs[key]


def _shapes(sequences: int, blocks: int) -> dict[str, Shape]:
    return {
        "tokens": (sequences,),
        "positions": (sequences,),
        "slots": (sequences,),
        "starts": (sequences + 1,),
        "lengths": (sequences,),
        "blocks": (sequences, blocks),
        "rows": (sequences,),
    }
