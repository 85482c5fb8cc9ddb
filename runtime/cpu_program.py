"""A compiled program on this machine's CPUs: a shared library, called once for each step.

The library owns its team of threads and nothing else. Weights, cache and arena (the intermediate values of one step)
lie in memory that is set aside here; how a cache is laid out within a block is the library's own business. Its C
functions are described in `codegen/cpp/include/llmc/engine.h`.
"""

import ctypes
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmc.errors import ArtifactRejected, BadOption, BadRequest, OutOfMemory
from llmc.runtime.checked_json import Field, parse
from llmc.runtime.cpu_features import machine_of, usable_cpus
from llmc.runtime.host import HOST_CALL, Host, HostCalls, check_host
from llmc.runtime.memory import Bytes, Region, address, padded
from llmc.runtime.native_sample import NativeChoice
from llmc.runtime.program import Batch
from llmc.runtime.sample import Choose

ABI = 1
"""The version of the C functions that this runtime calls."""
BLOCK_MULTIPLE = 16
"""Blocks of the cache hold a multiple of so many tokens: a vector register of keys."""
MAX_THREADS = 1024
_FIRST_ARENA_TOKENS = 64
_KEPT_LOGITS_BYTES = 64 << 20
"""Logits up to this size are written into one array again and again; longer ones are given away."""


class _Step(ctypes.Structure):
    """`llmc::Step`: what `Batch` says, as C sees it."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("T", "B", "M", "R")),
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "slots", "starts", "lengths", "blocks", "rows")),
        ("block_size", ctypes.c_int),
    ]


@dataclass(frozen=True)
class Description:
    """What a library says of its program."""

    weights: tuple[str, ...]
    """In the order in which it takes them."""
    weight_bytes: tuple[int, ...]
    """The length of each."""
    caches: tuple[tuple[int, int], ...]
    """For each layer the bytes that K and V of a token take."""
    arena_bytes: int
    arena_bytes_per_token: int
    vocabulary: int
    crossovers: tuple[str, ...]
    """Names of the choices that can be tuned, such as "960x576:int4"."""
    regions: int
    """How many regions a step has; 0 if it does not say."""
    torch: str
    """SHA-256 of the file of what the program has torch compute; empty if it has it compute nothing."""

    @staticmethod
    def read(text: bytes) -> "Description":
        """Parse and check it. Raises ArtifactRejected."""
        document = parse(text, "program")
        known = dict(document.entries(64))

        def number(name: str) -> int:
            return known[name].integer(0, 1 << 50)

        def texts(name: str) -> tuple[str, ...]:
            return tuple(item.text() for item in known[name].items(1_000_000))

        needed = ("weights", "weight_bytes", "caches", "arena_bytes", "arena_bytes_per_token", "vocabulary")
        if missing := [name for name in needed if name not in known]:
            raise ArtifactRejected(f"program: says nothing of {', '.join(missing)}; build the artifact again")
        if len(known["weights"].items(1_000_000)) != len(known["weight_bytes"].items(1_000_000)):
            known["weight_bytes"].reject("a length for each weight")
        return Description(
            weights=texts("weights"),
            weight_bytes=_numbers(known["weight_bytes"]),
            caches=tuple(_pair(item) for item in known["caches"].items(100_000)),
            arena_bytes=number("arena_bytes"),
            arena_bytes_per_token=number("arena_bytes_per_token"),
            vocabulary=number("vocabulary"),
            crossovers=texts("crossovers") if "crossovers" in known else (),
            regions=known["regions"].integer(0, 1 << 24) if "regions" in known else 0,
            torch=known["torch"].text() if "torch" in known else "",
        )


class CpuProgram:
    """Runs a compiled program; implements `llmc.runtime.program.Program`. Not for use by several threads at a time."""

    block_multiple = BLOCK_MULTIPLE

    def __init__(
        self,
        library: Path | bytes,
        weights: Mapping[str, npt.NDArray[np.generic]],
        *,
        threads: int | None = None,
        pin: bool = False,
        host: Host | None = None,
    ) -> None:
        """Load `library` (its bytes, or a file that nobody alters) and start its threads.

        Args:
            library: native code; the caller has seen to it that it may run (see `llmc.runtime.native_trust`).
            weights: by name, each contiguous and on a 64-byte boundary; those that the program does not ask for are
                not kept.
            threads: how many compute; None is one for each CPU that this process may use.
            pin: whether each thread stays on a CPU of its own; the calling one, which computes too, stays free.
            host: what computes the parts of the program that have no native form.

        Raises:
            ArtifactRejected: the library is no program for this runtime, or its weights or its host are missing.
            BadOption: `threads` is not a number of threads. OutOfMemory: they could not be started.
        """
        cpus = usable_cpus()
        threads = len(cpus) if threads is None else threads
        if isinstance(threads, bool) or not 1 <= threads <= MAX_THREADS:
            raise BadOption(
                f"threads: {threads}, expected a number from 1 to {MAX_THREADS}; this machine has {len(cpus)}"
            )
        self.threads = threads
        self._library = _load(library)
        self.description = Description.read(self._library.llmc_describe())
        check_host(self.description.torch, host)
        self._weights = [_weight(self.description, place, weights) for place in range(len(self.description.weights))]
        able = hasattr(self._library, "llmc_sample")  # libraries of the first versions cannot
        self.choose: Choose | None = NativeChoice(self._library, self.description.vocabulary) if able else None
        """Chooses tokens from logits."""
        self._pointers = _pointers(self._weights)
        order = [cpus[thread % len(cpus)] for thread in range(threads)]
        pinned = (ctypes.c_int * threads)(*order) if pin else None
        self._machine = ctypes.c_void_p(self._library.llmc_open(self._pointers, threads, pinned))
        if not self._machine:
            raise OutOfMemory(f"threads: {threads} could not be started; use fewer")
        self._step = _Step()
        self._host = None if host is None else HostCalls(host, self._step)
        if self._host is not None:
            self._library.llmc_set_host.argtypes = [ctypes.c_void_p, HOST_CALL]
            self._library.llmc_set_host(self._machine, self._host.function)
        # The machine reads the weights and calls the host until it is closed, so the finalizer keeps them.
        close, kept = self._library.llmc_close, [self._weights, self._pointers, self._host]
        self._close = weakref.finalize(self, _close, close, self._machine, kept)
        self._caches: list[Bytes] = []
        self._cache_pointers = _pointers([])
        self._block_size, self._num_blocks = BLOCK_MULTIPLE, 0
        self._arena = Region(0)
        self._capacity = 0
        self._step_pointer = ctypes.byref(self._step)
        self._bound: Batch | None = None
        self._logits: npt.NDArray[np.float32] = np.empty((0, self.description.vocabulary), np.float32)
        self._logits_address = 0

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Set aside zeroed caches; what the former ones held is gone.

        Raises BadRequest unless `block_size` is a multiple of 16, and OutOfMemory.
        """
        if block_size < 1 or block_size % BLOCK_MULTIPLE:
            raise BadRequest(f"block size: {block_size} tokens, expected a multiple of {BLOCK_MULTIPLE}")
        tokens = num_blocks * block_size
        sizes = [tokens * size for pair in self.description.caches for size in pair]
        self._num_blocks, self._caches = 0, []
        region = Region(sum(padded(size) for size in sizes))
        self._caches = [region.carve(size) for size in sizes]
        self._cache_pointers = _pointers(self._caches)
        self._block_size, self._num_blocks = block_size, num_blocks
        self._grow_arena(max(self._capacity, _FIRST_ARENA_TOKENS))

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Run one step; logits [R, V]. The next step may overwrite the array that is returned."""
        if batch is not self._bound:
            self._bind(batch)
        self._check(self._library.llmc_step(self._machine, self._step_pointer, self._logits_address))
        return self._logits

    def measure(self, batch: Batch) -> list[float]:
        """Run one step; the seconds that each of its regions took, in the order in which they ran.

        Raises ArtifactRejected if the program cannot tell.
        """
        regions = self.description.regions
        if not regions or not hasattr(self._library, "llmc_measure"):
            raise ArtifactRejected("program: does not say how long its regions take; build the artifact again")
        self._bind(batch)
        times = np.zeros(regions + 1, np.int64)
        self._library.llmc_measure.argtypes = [ctypes.c_void_p] * 4
        self._check(self._library.llmc_measure(self._machine, self._step_pointer, self._logits_address, address(times)))
        seconds: list[float] = (np.diff(times) / 1e9).tolist()
        return seconds

    def _check(self, code: int) -> None:
        """Raise if a step with this result failed."""
        if code != 0:
            raise BadRequest(f"step: the program refused it with code {code}; this is a bug in llmc")
        if self._host is not None:
            self._host.check()

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block of every cache onto another."""
        for cache in self._caches:
            blocks = cache.reshape(self._num_blocks, -1)
            blocks[target] = blocks[source]

    def tune(self, crossovers: Mapping[str, tuple[int, int]]) -> None:
        """Set from how many rows on a linear runs in its flat and in its GEMM form, by the names in the description.

        Names that this program does not have are passed over: a table serves many programs.
        """
        for place, name in enumerate(self.description.crossovers):
            if name in crossovers and self._library.llmc_tune(self._machine, place, *crossovers[name]) != 0:
                raise ArtifactRejected(f"program: does not let {name} be tuned; build the artifact again")

    def close(self) -> None:
        """End the threads; the program cannot run any more."""
        self._close()
        self._machine = ctypes.c_void_p()

    def _bind(self, batch: Batch) -> None:
        """Point at the arrays of `batch`. They stay alive with it, so a batch that comes again is bound already."""
        assert self._num_blocks and self._machine, "allocate() comes first, close() last"
        self._bound = None
        tokens, rows = len(batch.tokens), len(batch.rows)
        if tokens > self._capacity:
            self._grow_arena(1 << (tokens - 1).bit_length())
        step = self._step
        step.T, step.B, step.R = tokens, len(batch.lengths), rows
        step.M = batch.blocks.shape[1]
        step.block_size = self._block_size
        for name in ("tokens", "positions", "slots", "starts", "lengths", "blocks", "rows"):
            array = getattr(batch, name)
            assert array.dtype == np.int64 and array.flags.c_contiguous, name
            setattr(step, name, address(array))
        if rows != len(self._logits) or self._logits.nbytes > _KEPT_LOGITS_BYTES:
            self._logits = np.empty((rows, self.description.vocabulary), np.float32)
            self._logits_address = address(self._logits)
        if self._logits.nbytes <= _KEPT_LOGITS_BYTES:
            self._bound = batch

    def _grow_arena(self, tokens: int) -> None:
        described = self.description
        if tokens > self._capacity:
            self._arena = Region(described.arena_bytes + tokens * described.arena_bytes_per_token)
            self._capacity = tokens
        code = self._library.llmc_allocate(
            self._machine, self._cache_pointers, self._block_size, address(self._arena.bytes), self._capacity
        )
        if code != 0:
            raise OutOfMemory(f"the program refused its memory with code {code}; close other programs")


def _load(library: Path | bytes) -> ctypes.CDLL:
    with _file_of(library) as path:
        try:
            loaded = ctypes.CDLL(path)
            described = loaded.llmc_abi()
        except (OSError, AttributeError) as error:
            raise ArtifactRejected(f"program: cannot be loaded ({error}); build the artifact on this machine") from None
    if described != ABI:
        raise ArtifactRejected(
            f"program: made for version {described} of the runtime, this one has {ABI}; build the artifact again"
        )
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    loaded.llmc_describe.restype = ctypes.c_char_p
    loaded.llmc_open.restype = pointer
    loaded.llmc_open.argtypes = [pointer, ctypes.c_int, pointer]
    loaded.llmc_close.restype = None
    loaded.llmc_close.argtypes = [pointer]
    loaded.llmc_allocate.argtypes = [pointer, pointer, number, pointer, number]
    loaded.llmc_step.argtypes = [pointer, pointer, pointer]
    loaded.llmc_tune.argtypes = [pointer, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    return loaded


@contextmanager
def _file_of(library: Path | bytes) -> Iterator[str]:
    """A name under which the system's loader finds `library`. Bytes go to a file that nobody else can reach and that is
    removed once it is loaded, so that what runs is what was checked."""
    content = library if isinstance(library, bytes) else library.read_bytes()[:64]
    machine = machine_of(content)
    if machine is not None and machine != os.uname().machine:
        raise ArtifactRejected(f"program: compiled for {machine}, this machine is {os.uname().machine}; build it again")
    if isinstance(library, Path):
        yield str(library)
        return
    with tempfile.TemporaryDirectory(prefix="llmc-") as folder:
        path = Path(folder) / "program.so"
        path.write_bytes(library)
        yield str(path)


def _weight(described: Description, place: int, weights: Mapping[str, npt.NDArray[np.generic]]) -> Bytes:
    name, expected = described.weights[place], described.weight_bytes[place]
    if name not in weights:
        raise ArtifactRejected(f"program: needs a weight {name!r} that is not there; build the artifact again")
    array = weights[name]
    if array.nbytes != expected:
        raise ArtifactRejected(
            f"program: weight {name!r} has {array.nbytes} bytes, expected {expected}; build the artifact again"
        )
    assert array.flags.c_contiguous and address(array) % 64 == 0, f"{name} lies where the program cannot read it"
    return array.reshape(-1).view(np.uint8)


def _pointers(arrays: Sequence[Bytes]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * max(len(arrays), 1))(*(address(array) for array in arrays))


def _close(close: Callable[[ctypes.c_void_p], None], machine: ctypes.c_void_p, kept: list[object]) -> None:
    close(machine)
    kept.clear()


def _numbers(field: Field) -> tuple[int, ...]:
    return tuple(item.integer(0, 1 << 50) for item in field.items(1_000_000))


def _pair(field: Field) -> tuple[int, int]:
    numbers = _numbers(field)
    if len(numbers) != 2:
        field.reject("a list of two integers")
    return numbers[0], numbers[1]
