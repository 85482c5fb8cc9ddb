"""Attention regions made by hand and run by the interpreter: sequences with a paged cache, taken step by step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from support.triton_interpreter import Launch, launch, load_kernels

import llmc.ir.masked_attention  # noqa: F401
from llmc.codegen.layout import Buffer, View, fresh
from llmc.codegen.regions import Attention
from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_attention import emit_attention
from llmc.codegen.triton.kernel import Draft, Ref, module_text
from llmc.ir.cache_formats import format_of, stored_width
from llmc.ir.mask import evaluate
from llmc.runtime.program import CacheSpec

BLOCK_SIZE = 128
ELEMENTS = {"*fp32": torch.float32, "*i32": torch.int32}
FORMATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64", torch.bool: "u8"}


@dataclass(frozen=True)
class Case:
    """One attention."""

    heads: int = 4
    key_heads: int = 2
    key_size: int = 16
    value_size: int = 16
    dtype: torch.dtype = torch.bfloat16
    mask: str = "k <= q"
    bias: str = "0"
    softcap: float = 0.0
    sinks: torch.Tensor | None = None
    tables: tuple[torch.Tensor, ...] = ()
    target: str = "sm_90"
    scale: float = 0.25
    bounded: bool = False
    """Whether kernels do without a running maximum."""
    listed: bool = False
    """Whether kernels go over lists of blocks."""
    cores: int | None = None
    """Those of the target, if not as many as it has: how many programs divide keys among them."""

    @property
    def tolerance(self) -> float:
        """What rounding of the weights may do, as a fraction of the greatest value; fp32 is off by the order of sums,
        and by the last bit of great scores.
        """
        return {torch.float32: 2e-6 * max(1.0, self.softcap / 8), torch.float16: 2**-11}.get(self.dtype, 2**-8)

    def context(self) -> Context:
        spec = CacheSpec(self.key_heads, self.key_size, self.value_size, format_of(self.dtype))
        bounded = frozenset({0} if self.bounded else ())
        listed = frozenset({0} if self.listed else ())
        target = Target.preset(self.target)
        target = replace(target, cores=self.cores or target.cores)
        return Context(target, Crossovers(), (spec,), BLOCK_SIZE, 100, bounded=bounded, listed=listed)

    def region(self) -> Attention:
        def weight(name: str, value: torch.Tensor) -> View:
            return fresh(Buffer(9, name, "", value.numel(), FORMATS[value.dtype], "weight"), tuple(value.shape))

        query = Buffer(0, "query", "T", self.heads * self.key_size, "f32", "arena")
        output = Buffer(1, "output", "T", self.heads * self.value_size, "f32", "arena")
        return Attention(
            "attention", "", 0, self.heads, self.key_heads, self.key_size, self.value_size,
            fresh(query, (None, self.heads, self.key_size)), fresh(output, (None, self.heads, self.value_size)),
            None if self.sinks is None else weight("sinks", self.sinks),
            tuple(weight(f"table_{number}", table) for number, table in enumerate(self.tables)),
            self.mask, self.bias, self.scale, self.softcap, (),
        )  # fmt: skip


def attention_drafts(case: Case) -> list[Draft]:
    """The launches of an attention."""
    return emit_attention(case.region(), case.context())


def _unwritten(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A cache of NaN; where numbers have a scale, it is the scale that is NaN."""
    if dtype.itemsize > 1:
        return torch.full(tuple(shape), torch.nan, dtype=dtype)
    return torch.full(tuple(shape), 0x7F, dtype=torch.int8).view(dtype)


@dataclass
class Sequences:
    """Some sequences with random queries, keys and values, and a cache of theirs that is filled step by step."""

    case: Case
    lengths: Sequence[int]
    done: list[int] = field(default_factory=list)
    launches: list[str] = field(default_factory=list)
    """Kernels that ran, in order."""
    hidden_blocks: bool = True
    """Whether block tables lead kernels to blocks that no query of a step sees."""

    def __post_init__(self) -> None:
        case, made = self.case, np.random.default_rng(sum(self.lengths))
        self.done = [0] * len(self.lengths)
        widths = ((case.heads, case.key_size), (case.key_heads, case.key_size), (case.key_heads, case.value_size))
        self.data = [[made.standard_normal((n, *w)).astype(np.float32) for w in widths] for n in self.lengths]
        for queries, _, _ in self.data:
            queries[:] = self._exact(torch.tensor(queries)).numpy()
        used = [-(-length // BLOCK_SIZE) for length in self.lengths]
        places = iter(made.permutation(sum(used) + 1))
        self.blocks = np.zeros((len(used), max(used)), np.int64)
        for row, count in enumerate(used):
            self.blocks[row, :count] = [next(places) for _ in range(count)]
        # What was never written is NaN, in the layouts of the reference [block, token, head] and of the kernels.
        self.caches = [
            _unwritten((sum(used) + 1, BLOCK_SIZE, case.key_heads, stored_width(size, case.dtype)), case.dtype)
            for size in (case.key_size, case.value_size)
        ]
        context = case.context()
        self.drafts = emit_attention(case.region(), context)
        self.module = load_kernels(module_text({d.kernel.kind: d.kernel for d in self.drafts}, "Attention."))
        self.shares = context.shares
        self.workspaces = {w.name: torch.zeros(w.bytes // 4) for w in context.workspaces.values()}

    def _exact(self, queries: torch.Tensor) -> torch.Tensor:
        """Queries that the kernel does not round: a low-precision number over the factor that it multiplies them by."""
        case = self.case
        factor = case.scale * 1.4426950408889634 * (2 / case.softcap if case.softcap else 1)
        dtype = torch.bfloat16 if case.dtype.itemsize == 1 else case.dtype
        return (queries.double() * factor).to(dtype).double().div(factor).float()

    def step(self, counts: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take so many tokens of each sequence: what the kernels make of them, and what the definition does."""
        case = self.case
        spans = [(begin, begin + count) for begin, count in zip(self.done, counts, strict=True)]
        self.done = [end for _, end in spans]
        positions = np.concatenate([np.arange(*span) for span in spans])
        owner = np.repeat(np.arange(len(counts)), counts)
        arrays = {
            "positions": positions,
            "slots": self.blocks[owner, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
            "starts": np.concatenate([[0], np.cumsum(counts)]),
            "lengths": np.array(self.done),
            "blocks": self.blocks,
        }
        step = {name: torch.tensor(array) for name, array in arrays.items()}
        q, k, v = (
            torch.tensor(np.concatenate([made[i][slice(*span)] for made, span in zip(self.data, spans, strict=True)]))
            for i in range(3)
        )
        before = self.paged()
        wanted = torch.ops.llmc.cached_attention(
            q, k, v, *self.caches, *step.values(), case.sinks, list(case.tables), case.mask, case.bias, case.scale,
            case.softcap,
        )  # fmt: skip
        output = torch.full((len(positions), case.heads, case.value_size), torch.nan)
        # Caches with scales are filled by a kernel of their own, others by those before attention.
        new = {"new_k_0": k.flatten(1), "new_v_0": v.flatten(1)}
        if not self.hidden_blocks:
            step["blocks"] = self._without_hidden(spans)
        self._run(step, {"query": q, "output": output, **new}, before if case.dtype.itemsize == 1 else self.paged())
        return output.numpy(), wanted.numpy()

    def _without_hidden(self, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Block tables that lead nowhere where no query of a step sees a key: reading there is an error."""
        table = torch.full(self.blocks.shape, 1 << 40)
        heads = torch.arange(self.case.heads)[:, None, None]
        for row, (begin, end) in enumerate(spans):
            queries, keys = torch.arange(begin, end)[None, :, None], torch.arange(end)[None, None, :]
            seen = evaluate(self.case.mask, queries, keys, heads, self.case.tables, torch.float32)
            seen = seen.expand(len(heads), end - begin, end).flatten(0, 1).any(0)
            for block, part in enumerate(seen.split(BLOCK_SIZE)):
                if part.any():
                    table[row, block] = int(self.blocks[row, block])
        return table

    def _run(
        self, step: dict[str, torch.Tensor], named: dict[str, torch.Tensor], paged: dict[str, torch.Tensor]
    ) -> None:
        sizes = {"T": len(named["query"]), "B": len(step["lengths"]), "R": 0, "M": step["blocks"].shape[1]}

        def argument(ref: Ref, type: str) -> object:
            if ref.buffer is not None:
                rows = sizes["T"] if ref.buffer.domain == "T" else 1
                passed = torch.full((rows, ref.buffer.width), -1 << 40)
                return named.setdefault(ref.buffer.name, passed)
            found = ref.argument
            assert found is not None
            if found.kind == "size":
                return sizes[found.name]
            if found.kind == "shares":
                return self.shares[found.name].at(sizes["B"])
            if found.kind == "cache":
                return paged[found.name]
            if found.kind == "workspace":
                return self.workspaces[found.name].view(ELEMENTS[type])
            if found.kind == "weight":
                tables = {f"table_{number}": table for number, table in enumerate(self.case.tables)}
                value = tables.get(found.name, self.case.sinks)
                assert value is not None
                return value.to(torch.uint8) if value.dtype == torch.bool else value
            return step[found.name]

        for draft in self.drafts:
            if not draft.when.holds(sizes):
                continue
            grid = [extent.at(sizes) for extent in draft.grid]
            for ref in draft.kernel.refs:
                if ref.argument is not None and ref.argument.kind == "shares":
                    shares = self.shares[ref.argument.name]
                    grid[1] += shares.at(sizes["B"]) - shares.rule
            kinds = (kind for _, kind in draft.kernel.parameters)
            arguments = [argument(ref, kind) for ref, kind in zip(draft.kernel.refs, kinds, strict=True)]
            before = named["output"].clone()
            done = launch(getattr(self.module, draft.kernel.kind), grid, *arguments)
            if draft.kernel.kind == "cache":
                self._check_stored(paged)
            elif not draft.kernel.kind.endswith("_blocks"):
                self._check_written(done, draft.kernel.kind, step["starts"], named["output"], before)
            self.launches.append(draft.kernel.kind)

    def _check_written(
        self, done: Launch, kind: str, starts: torch.Tensor, output: torch.Tensor, before: torch.Tensor
    ) -> None:
        """A kernel has written what it is for, once, and nothing else: sequences of one token, or of several."""
        for start, end in pairwise(starts.tolist()):
            if (end - start == 1) == (kind == "attention_decode"):
                done.assert_written_once(output[start:end])
            else:
                assert torch.equal(output[start:end].nan_to_num(7e7), before[start:end].nan_to_num(7e7))

    def paged(self) -> dict[str, torch.Tensor]:
        """The caches as kernels hold them, by name."""
        if self.case.dtype.itemsize > 1:
            return {name: cache.transpose(1, 2).contiguous() for name, cache in zip("kv", self.caches, strict=True)}
        found: dict[str, torch.Tensor] = {}
        for name, cache in zip("kv", self.caches, strict=True):
            data = cache.view(torch.int8).transpose(1, 2).contiguous()
            numbers = data[..., :-2].contiguous()
            flipped = numbers.view(torch.uint8) ^ (128 if self.case.dtype == torch.int8 else 0)
            found[name] = flipped
            found[f"{name}_scale"] = data[..., -2:].contiguous().view(torch.bfloat16).float()[..., 0].contiguous()
        return found

    def _check_stored(self, paged: dict[str, torch.Tensor]) -> None:
        """What a launch has stored is, bit for bit, what the definition has."""
        for name, wanted in self.paged().items():
            assert torch.equal(paged[name].nan_to_num(-1.0), wanted.nan_to_num(-1.0)), name
