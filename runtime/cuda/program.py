"""A compiled program on a GPU: its memory, planned here and nowhere else, and the launches of each step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt

from llmc.errors import BadRequest
from llmc.runtime.crossover import LIBRARY
from llmc.runtime.cuda.choices import STEPS
from llmc.runtime.cuda.decode_graphs import MOST_SEQUENCES, DecodeGraphs
from llmc.runtime.cuda.device import Device, Memory, Place, padded
from llmc.runtime.cuda.plan import (
    CACHE_BYTES,
    STEP_ARRAYS,
    Argument,
    Launch,
    Plan,
    Product,
    Workspace,
    cache_arrays,
)
from llmc.runtime.cuda.selection import select
from llmc.runtime.cuda.step_arrays import StepArrays
from llmc.runtime.cuda.weights import Weights, load_weights
from llmc.runtime.decoding import Continuation, Continued
from llmc.runtime.program import Batch
from llmc.runtime.shares import Tuned

FIRST_TOKENS = 256
"""The arena is made for so many tokens at first, and doubled when a step has more."""
KEPT_LOGITS_BYTES = 64 << 20
"""Logits up to this size are written into one array again and again; longer ones are given away."""


class GpuProgram:
    """Runs a compiled program; implements `llmc.runtime.decoding.Decoder`. Not for use by several threads at a time.

    All memory is held by this object: weights, caches, the arena (the intermediate values of one step), workspaces,
    logits and the arrays of a step. Recorded graphs use the same memory; the driver's own for a recording is beside it.
    """

    def __init__(
        self,
        plan: Plan,
        device: Device,
        weights: Weights,
        tuned: Mapping[str, Tuned] | None = None,
    ) -> None:
        """Copy the weights to the device, on which the kernels of the plan are.

        tuned: the crossovers that choose the variants of linears, and the shares of attentions, in place of the plan's
        own. Where the device has no
        library of products, they are computed by the program's own kernels.

        Raises ArtifactRejected if a weight is missing, BadOption if crossovers are out of order, and OutOfMemory.
        """
        plan = select(plan, tuned, without=() if device.multiplies else (LIBRARY,))
        self.plan = plan
        self.block_multiple = plan.block_size
        self.device = device
        self._kernels = {kernel.name: kernel for kernel in plan.kernels}
        self.weights = load_weights(plan, device, weights)
        """Where each lies."""
        self._caches: list[dict[str, Place]] = []
        self._cache_blocks = 0
        self._capacity = 0
        self._arena: Memory | None = None
        self._workspaces: dict[str, Memory] = {}
        self._sequences = 0
        """For how many tokens can be chosen."""
        self._rows = 0
        self._device_logits: Memory | None = None
        self._logits: npt.NDArray[np.float32] = np.empty((0, plan.vocabulary), np.float32)
        self._arrays = StepArrays(device)
        self._graphs = DecodeGraphs(plan, device, self.run)
        self.decode_steps = STEPS if plan.sampling else 0

    def tune(self, tuned: Mapping[str, Tuned]) -> None:
        """Let these crossovers and shares choose from now on; linears and attentions not among them keep theirs.

        Raises BadOption if crossovers are out of order.
        """
        self._graphs.forget()
        self.plan = select(self.plan, tuned, without=() if self.device.multiplies else (LIBRARY,))
        self._graphs = DecodeGraphs(self.plan, self.device, self.run)
        self._capacity, self._arena = 0, None  # other launches may need other memory

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Set aside zeroed caches; what the former ones held is gone.

        One block more than asked for takes what the padding of a batch writes. Raises BadRequest unless the blocks
        have the size that the kernels are made for, and OutOfMemory.
        """
        if block_size != self.plan.block_size:
            raise BadRequest(f"block size: {block_size} tokens, expected {self.plan.block_size}, as the program has it")
        self._graphs.forget()
        self._caches, self._cache_blocks = [], 0
        sizes = [self._cache_sizes(layer, num_blocks + 1) for layer in range(len(self.plan.caches))]
        memory = self.device.allocate(sum(padded(size) for each in sizes for size in each.values()) or 1)
        offset = 0
        for each in sizes:
            places = dict[str, Place]()
            for name, size in each.items():
                places[name] = Place(memory, offset)
                offset += padded(size)
            self._caches.append(places)
        self._cache_blocks = num_blocks
        self._reserve(max(self._capacity, FIRST_TOKENS), max(self._rows, 1))

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Run one step; logits [R, V]. The next step may overwrite the array that is returned."""
        self._compute(batch)
        rows = len(batch.rows)
        if rows != len(self._logits) or self._logits.nbytes > KEPT_LOGITS_BYTES:
            self._logits = np.empty((rows, self.plan.vocabulary), np.float32)
        assert self._device_logits is not None, "_reserve() makes them"
        self.device.download(Place(self._device_logits, 0), self._logits)
        return self._logits

    def step_and_choose(self, batch: Batch, continuations: Sequence[Continuation]) -> list[Continued]:
        """Run one step, and choose a token from each row of logits, on the device (see `Decoder`).

        Raises NumericsGateFailed if logits are not numbers.
        """
        assert self.plan.sampling, "not all programs choose tokens"
        if not continuations:
            self._compute(batch)
            return []
        size = self._graphs.size_for(len(continuations))
        self._reserve(size, size, size)  # before there are logits, which do not move with their memory
        self._compute(batch)
        return self._graphs.choose(continuations)

    def _compute(self, batch: Batch) -> None:
        """Ask for a step."""
        assert self._cache_blocks, "allocate() comes first"
        tokens = len(batch.tokens)
        if tokens == len(batch.lengths) <= MOST_SEQUENCES and np.array_equal(batch.rows, np.arange(tokens)):
            size = self._graphs.size_for(tokens)
            self._reserve(size, size)
            self._graphs.step(batch, self._cache_blocks)
        else:
            self._graphs.interrupt()
            self._launch(batch)

    def decode(self, continuations: Sequence[Continuation]) -> list[Continued]:
        """The next tokens of each sequence, chosen on the device: `decode_steps`, or fewer where a sequence ends.

        Raises NumericsGateFailed if logits are not numbers.
        """
        assert self._cache_blocks and self.plan.sampling, "allocate() comes first; not all programs choose tokens"
        size = self._graphs.size_for(len(continuations))
        self._reserve(size, size, size)
        return self._graphs.decode(continuations, self._cache_blocks)

    def prepared(self, batch: Batch) -> tuple[Mapping[str, int], StepArrays]:
        """The sizes and arrays with which `run` repeats launches of a decode step, for measurements."""
        size = self._graphs.size_for(len(batch.tokens))
        self._reserve(size, size)
        return self._graphs.prepared(batch, self._cache_blocks)

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block of every cache onto another."""
        for layer, places in enumerate(self._caches):
            for name, size in self._cache_sizes(layer, 1).items():
                memory, offset = places[name]
                self.device.copy(Place(memory, offset + source * size), Place(memory, offset + target * size), size)

    def run(
        self, launches: Sequence[Launch | Product], sizes: Mapping[str, int], arrays: StepArrays, times: int = 1
    ) -> None:
        """Ask the device for the launches that a step of these sizes takes, on arrays that are there; for all of them
        so many `times`."""
        asked = []
        for ask in self._asked(launches, sizes, arrays):
            ask()
            asked.append(ask)
        for ask in chain.from_iterable(repeat(asked, times - 1)):
            ask()

    def _asked(
        self, launches: Sequence[Launch | Product], sizes: Mapping[str, int], arrays: StepArrays
    ) -> Iterator[Callable[[], None]]:
        """What asks the device for each launch that takes place."""
        for launch in launches:
            if not launch.when.holds(sizes):
                continue
            if isinstance(launch, Product):
                if rows := sizes[launch.rows]:
                    yield self._product(launch, rows, sizes, arrays)
                continue
            x, y, z = (extent.at(sizes) for extent in launch.grid)
            for argument in launch.arguments:
                if argument.kind == "shares":
                    shares = self.plan.shares[argument.name]
                    y += shares.at(sizes["B"]) - shares.rule
            if x and y and z:
                kernel = self._kernels[launch.kernel]
                arguments = [self.locate(argument, sizes, arrays) for argument in launch.arguments]
                yield partial(self.device.launch, kernel, (x, y, z), arguments, kernel.pdl)

    def _product(self, product: Product, rows: int, sizes: Mapping[str, int], arrays: StepArrays) -> Callable[[], None]:
        weight, inputs, sums = (self.locate(argument, sizes, arrays) for argument in product.arguments)
        assert isinstance(weight, Place) and isinstance(inputs, Place) and isinstance(sums, Place), "matrices"
        return partial(self.device.multiply, product, rows, weight, inputs, sums)

    def _launch(self, batch: Batch) -> None:
        """Ask for the launches of any step, without recording them."""
        self.run(self.plan.launches, *self.arranged(batch))

    def arranged(self, batch: Batch, arrays: StepArrays | None = None) -> tuple[Mapping[str, int], StepArrays]:
        """The sizes of any step, and its arrays, which are on the device then; it has room for the step.

        arrays: those to fill in place of the program's own.
        """
        arrays = self._arrays if arrays is None else arrays
        self._reserve(len(batch.tokens), len(batch.rows))
        given = {name: getattr(batch, name) for name in STEP_ARRAYS}
        arrays.lay_out({name: array.shape for name, array in given.items()})
        for name, array in given.items():
            arrays.arrays[name][...] = array
        arrays.upload()
        sizes = {"T": len(batch.tokens), "B": len(batch.lengths), "R": len(batch.rows), "M": batch.blocks.shape[1]}
        return sizes | {"F": 0}, arrays

    def locate(self, argument: Argument, sizes: Mapping[str, int], arrays: StepArrays) -> Place | int:
        """What a launch is given for an argument in a step of these sizes."""
        if argument.kind == "arena":
            assert self._arena is not None, "_reserve() makes it"
            return Place(self._arena, argument.number * self._capacity)
        if argument.kind == "weight":
            return self.weights[argument.name]
        if argument.kind == "step":
            return arrays.place(argument.name)
        if argument.kind == "size":
            return sizes[argument.name]
        if argument.kind == "shares":
            return self.plan.shares[argument.name].at(sizes["B"])
        if argument.kind == "cache":
            return self._caches[argument.number][argument.name]
        if argument.kind == "workspace":
            return Place(self._workspaces[argument.name], 0)
        assert argument.kind == "logits" and self._device_logits is not None, f"a launch is given a {argument.kind}"
        return Place(self._device_logits, 0)

    def _cache_sizes(self, layer: int, blocks: int) -> dict[str, int]:
        """Bytes of each array of a layer's cache in so many blocks."""
        cache = self.plan.caches[layer]
        numbers = blocks * cache.heads * self.plan.block_size
        element = CACHE_BYTES[cache.dtype]
        sizes = {"k": numbers * cache.key_size * element, "v": numbers * cache.value_size * element}
        return {name: sizes.get(name, 4 * numbers) for name in cache_arrays(cache.dtype)}

    def _used_workspaces(self) -> list[Workspace]:
        """Those of launches that can take place: variants that are not chosen need no memory."""
        launches = [launch for launch in self.plan.launches if launch.when.most is None or launch.when.most > 0]
        arguments = [argument for launch in (*launches, *self.plan.sampling) for argument in launch.arguments]
        names = {argument.name for argument in arguments if argument.kind == "workspace"}
        return [workspace for workspace in self.plan.workspaces if workspace.name in names]

    def _reserve(self, tokens: int, rows: int, sequences: int = 0) -> None:
        """See that a step of so many tokens and rows of logits has room, and one in which tokens are chosen for so many
        sequences. Raises OutOfMemory."""
        if sequences > self._sequences:
            self._graphs.forget()
            self._sequences = 0
            for workspace in self._used_workspaces():
                if workspace.bytes_per_sequence:
                    self._make_workspace(workspace, self._capacity, sequences)
            self._sequences = sequences
        if tokens > self._capacity:
            capacity = max(1 << (tokens - 1).bit_length(), FIRST_TOKENS)
            self._graphs.forget()
            self._capacity, self._arena = 0, None  # given back before more is asked for
            self._arena = self.device.allocate(self.plan.arena_bytes_per_token * capacity or 1, zeroed=False)
            for workspace in self._used_workspaces():
                if workspace.bytes_per_token or workspace.name not in self._workspaces:
                    self._make_workspace(workspace, capacity, self._sequences)
            self._capacity = capacity
        if rows > self._rows:
            self._graphs.forget()
            self._rows, self._device_logits = 0, None
            self._device_logits = self.device.allocate(4 * rows * self.plan.vocabulary, zeroed=False)
            self._rows = rows

    def _make_workspace(self, workspace: Workspace, tokens: int, sequences: int) -> None:
        """Zeroed, for steps of up to so many tokens, and of sequences whose tokens are chosen."""
        self._workspaces.pop(workspace.name, None)  # given back before more is asked for
        each = workspace.bytes_per_token * tokens + workspace.bytes_per_sequence * sequences
        self._workspaces[workspace.name] = self.device.allocate(max(workspace.bytes + each, 1))
