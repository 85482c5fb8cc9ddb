"""A whole program for one GPU target: Triton source of its kernels, and the plan that launches them.

Every region becomes one launch or several, of which a step takes those that fit its sizes. Kernels whose texts are the
same are one kernel.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from llmc.codegen.key_ranges import key_ranges
from llmc.codegen.layout import Buffer
from llmc.codegen.lower import Lowered, lower
from llmc.codegen.plan_memory import Buffer as Lifetime
from llmc.codegen.plan_memory import Plan as MemoryPlan
from llmc.codegen.plan_memory import plan
from llmc.codegen.regions import Attention, Experts, Linear, Region, TorchRegion
from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.attention_lists import listed
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_attention import emit_attention
from llmc.codegen.triton.emit_experts import emit_experts
from llmc.codegen.triton.emit_linear import emit_linear
from llmc.codegen.triton.emit_rearrangement import emit_rearrangement
from llmc.codegen.triton.emit_rows import emit_rows
from llmc.codegen.triton.emit_sampling import emit_sampling
from llmc.codegen.triton.kernel import Draft, KernelText, Ref, module_text
from llmc.codegen.triton.linear_library import ProductDraft
from llmc.codegen.triton.narrowing import narrowed
from llmc.codegen.triton.packed import packed_weights
from llmc.codegen.triton.score_bounds import score_bound
from llmc.ir.model import Model
from llmc.runtime.cuda.plan import Argument, Cache, Kernel, Launch, Plan, Product, Rearrangement
from llmc.runtime.program import CacheSpec

SIZES = {"f32": 4, "f16": 2, "bf16": 2, "i64": 8, "u8": 1, "i8": 1, "fp8": 1}
"""Bytes of the elements of buffers."""
BLOCK_SIZE = 128
"""Tokens in a block of the cache."""


@dataclass(frozen=True)
class GpuSource:
    """A generated program."""

    kernels: Mapping[str, KernelText]
    """By name, in the order of their first launch."""
    plan: Plan
    regions: tuple[Region, ...]
    memory: MemoryPlan
    notes: Mapping[int, str] = field(default_factory=dict)
    """What there is to say of regions, by their numbers."""

    @property
    def text(self) -> str:
        """The Python module of all kernels."""
        return module_text(
            self.kernels, f"Kernels of a transformer step for {self.plan.target}: {len(self.plan.launches)} launches."
        )

    def kernels_of(self, region: int) -> tuple[str, ...]:
        """Names of the kernels that compute a region for one token, by the region's number."""
        sizes = {"T": 1, "B": 1, "R": 1}
        launches = [launch for launch in self.plan.launches if launch.region == region and launch.when.holds(sizes)]
        return tuple(dict.fromkeys(launch.kernel for launch in launches if isinstance(launch, Launch)))


def emit(model: Model, caches: Iterable[CacheSpec], target: Target, crossovers: Crossovers | None = None) -> GpuSource:
    """The program of a packed graph. Raises `llmc.codegen.unlowered.Unlowered` for what has no form on a GPU."""
    return _Emitter(model, lower(model), tuple(caches), target, crossovers or Crossovers()).run()


class _Emitter:
    def __init__(
        self, model: Model, lowered: Lowered, caches: Sequence[CacheSpec], target: Target, crossovers: Crossovers
    ) -> None:
        lowered = replace(lowered, regions=narrowed(lowered.regions))
        self.model, self.lowered, self.caches, self.target = model, lowered, caches, target
        self.context = Context(target, crossovers, tuple(caches), BLOCK_SIZE, lowered.vocabulary)
        self._lists: dict[tuple[str, tuple[str, ...], int], bool] = {}
        attentions = {n: region for n, region in enumerate(lowered.regions) if isinstance(region, Attention)}
        bounds = {n: score_bound(region, lowered.regions, self._weight) for n, region in attentions.items()}
        dtypes = {n: caches[region.layer].dtype for n, region in attentions.items()}
        self.context.listed = frozenset(region.layer for region in attentions.values() if self._listed(region))
        self.notes = {
            n: f"{bounds[n].note(dtypes[n])};"
            f" {key_ranges(region.mask, region.heads).note(listed=region.layer in self.context.listed)}"
            for n, region in attentions.items()
        }
        self.context.bounded = frozenset(
            region.layer for n, region in attentions.items() if not bounds[n].maximum_with(dtypes[n])
        )
        self.drafts = [
            (number, draft) for number, region in enumerate(lowered.regions) for draft in self._drafts(region)
        ]
        self.names: dict[str, str] = {}
        self.kernels: dict[str, tuple[Kernel, KernelText]] = {}

    def _listed(self, region: Attention) -> bool:
        """Whether steps make lists of the blocks that its mask lets queries see."""
        key = region.mask, tuple(view.buffer.name for view in region.tables), region.heads
        if key not in self._lists:
            mask, tables, heads = key
            self._lists[key] = listed(mask, [self._weight(table) for table in tables], heads)
        return self._lists[key]

    def _weight(self, name: str) -> torch.Tensor:
        return self.model.weights[name].evaluate()

    def run(self) -> GpuSource:
        memory = plan(self._lifetimes())
        launches = tuple(
            self._product(draft, number, memory)
            if isinstance(draft, ProductDraft)
            else self._launch(draft, number, memory)
            for number, draft in self.drafts
        )
        sampling = tuple(self._launch(draft, -1, memory) for draft in emit_sampling(self.context))
        rearrangements = self._rearrangements(memory)
        made = Plan(
            target=self.target.level,
            kernels=tuple(kernel for kernel, _ in self.kernels.values()),
            launches=launches,
            weights=tuple(self.lowered.weights),
            weight_bytes=tuple(self.lowered.weight_bytes),
            rearrangements=rearrangements,
            caches=tuple(Cache(c.heads, c.key_size, c.value_size, c.dtype) for c in self.caches),
            workspaces=tuple(self.context.workspaces.values()),
            arena_bytes_per_token=memory.per_token,
            vocabulary=self.lowered.vocabulary,
            block_size=BLOCK_SIZE,
            sampling=sampling,
            crossovers=self.context.chosen,
            shares=self.context.shares,
        )
        return GpuSource(
            {name: text for name, (_, text) in self.kernels.items()},
            made,
            tuple(self.lowered.regions),
            memory,
            self.notes,
        )

    def _drafts(self, region: Region) -> Sequence[Draft | ProductDraft]:
        if isinstance(region, Linear):
            return emit_linear(region, self.context)
        if isinstance(region, Attention):
            return emit_attention(region, self.context)
        if isinstance(region, Experts):
            return emit_experts(region, self.context)
        assert not isinstance(region, TorchRegion), "lowering leaves nothing to torch unless it is asked to"
        return emit_rows(region, self.context)

    def _rearrangements(self, memory: MemoryPlan) -> tuple[Rearrangement, ...]:
        return tuple(
            Rearrangement(name, size, self._launch(draft, -1, memory))
            for weight in packed_weights(self.model, self.lowered.weights)
            for name, size, draft in emit_rearrangement(weight)
        )

    def _lifetimes(self) -> list[Lifetime]:
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        buffers: dict[int, Buffer] = {}
        for place, (_, draft) in enumerate(self.drafts):
            for buffer in (ref.buffer for ref in draft.refs if ref.buffer is not None):
                buffers[buffer.key] = buffer
                first.setdefault(buffer.key, place)
                last[buffer.key] = place
        return [
            Lifetime(key=key, first=first[key], last=last[key], size=buffer.width * SIZES[buffer.dtype], unit="token")
            for key, buffer in buffers.items()
        ]

    def _launch(self, draft: Draft, region: int, memory: MemoryPlan) -> Launch:
        arguments = tuple(_argument(ref, memory) for ref in draft.refs)
        return Launch(self._name(draft.kernel), draft.grid, arguments, draft.when, region, draft.candidate)

    def _product(self, draft: ProductDraft, region: int, memory: MemoryPlan) -> Product:
        weight, inputs, sums = (_argument(ref, memory) for ref in draft.refs)
        return Product(
            weight, inputs, sums, draft.dtype, draft.n, draft.k, draft.stride, draft.rows, draft.when, region,
            draft.candidate,
        )  # fmt: skip

    def _name(self, text: KernelText) -> str:
        form = f"{text.kind} {text.warps} {text.stages} {text.pdl} {text.parameters}\n{text.text('kernel')}"
        if form not in self.names:
            number = sum(name.rpartition("_")[0] == text.kind for name in self.names.values())
            name = f"{text.kind}_{number}"
            self.names[form] = name
            kernel = Kernel(name, tuple(text.parameters), text.warps, text.stages, text.pdl)
            self.kernels[name] = kernel, text
        return self.names[form]


def _argument(ref: Ref, memory: MemoryPlan) -> Argument:
    if ref.argument is not None:
        return ref.argument
    assert ref.buffer is not None, "an argument is a buffer or says itself what it is"
    return Argument("arena", number=memory.offsets[ref.buffer.key])


__all__ = ["BLOCK_SIZE", "GpuSource", "emit"]
