"""A step after which tokens are chosen by the device's kernels, in the interpreter, and what the host would choose."""

from dataclasses import dataclass, field

import numpy as np
import torch
from support.rearranged_weights import TYPES
from support.triton_interpreter import launch, load_kernels

from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_sampling import emit_sampling
from llmc.codegen.triton.kernel import module_text
from llmc.runtime.cuda.choices import marks
from llmc.runtime.sample import MAX_LOGPROBS, SamplingParams, process

HORIZON, BLOCKS = 4, 3


@dataclass
class Step:
    """The arrays of a decode step of some sequences, each with its own way of sampling."""

    logits: torch.Tensor
    ways: list[SamplingParams]
    level: str = "sm_80"
    seen: np.ndarray | None = None
    """[V] the tokens that are penalised."""
    arrays: dict[str, torch.Tensor] = field(default_factory=dict)
    memory: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.ways)
        random = np.random.Generator(np.random.PCG64(5))
        self.uniforms = random.random((count, HORIZON))

        def bits(values: object) -> torch.Tensor:
            return torch.from_numpy(np.asarray(values, np.float64).copy()).view(torch.int64)

        self.arrays |= {
            "temperatures": bits([way.temperature for way in self.ways]),
            "top_ks": torch.tensor([way.top_k for way in self.ways]),
            "top_ps": bits([way.top_p for way in self.ways]),
            "min_ps": bits([way.min_p for way in self.ways]),
            "penalties": bits([way.repetition_penalty for way in self.ways]),
            "seen": torch.from_numpy(marks(self.marked)).repeat(count, 1),
            "logprobs": torch.tensor([-1 if way.logprobs is None else way.logprobs for way in self.ways]),
            "ranked": torch.full((count, HORIZON, 1 + MAX_LOGPROBS), -1),
            "totals": torch.full((count, HORIZON), -1),
            "uniforms": bits(self.uniforms).flatten(),
            "ends": torch.full((count, 8), -1),
            "remaining": torch.full((count,), HORIZON),
            "made": torch.zeros(count, dtype=torch.int64),
            "chosen": torch.full((count, HORIZON), -1),
            "horizon": torch.tensor([HORIZON]),
            "tokens": torch.full((count,), 99),
            "positions": torch.arange(count) + 126,
            "lengths": torch.arange(count) + 127,
            "slots": torch.full((count,), 77),
            "blocks": torch.arange(count * BLOCKS).reshape(count, BLOCKS) + 10,
        }

    @property
    def marked(self) -> np.ndarray:
        return np.zeros(self.vocabulary, np.bool_) if self.seen is None else self.seen

    def run(self) -> list[int]:
        """The launches after a step; how many programs each had."""
        drafts = emit_sampling(context := Context(Target.preset(self.level), Crossovers(), (), 128, self.vocabulary))
        module = load_kernels(module_text({f"kernel_{i}": draft.kernel for i, draft in enumerate(drafts)}, "Sampling."))
        sizes = {"B": len(self.ways), "F": int(any(limits(way, self.vocabulary) for way in self.ways))}
        grids = []
        for number, draft in enumerate(drafts):
            for name, space in context.workspaces.items():
                bytes = torch.zeros(space.bytes_per_sequence * len(self.ways), dtype=torch.uint8)
                self.memory.setdefault(name, bytes)
            arguments = [
                self._argument(ref.argument, type)
                for ref, (_, type) in zip(draft.kernel.refs, draft.kernel.parameters, strict=True)
            ]
            grid = tuple(extent.at(sizes) for extent in draft.grid)
            if draft.when.holds(sizes):
                grids.append(grid[0] * grid[1])
                launch(getattr(module, f"kernel_{number}"), grid, *arguments)
        return grids

    def _argument(self, argument: object, type: str) -> object:
        kind, name = argument.kind, argument.name  # type: ignore[attr-defined]
        if kind == "size":
            return BLOCKS
        if kind == "workspace":
            return self.memory[name].view({**TYPES, "*i32": torch.int32}[type])
        return self.logits if kind == "logits" else self.arrays[name]

    @property
    def vocabulary(self) -> int:
        return self.logits.shape[1]

    def draw_with(self, row: int, place: int, number: float) -> None:
        """Instead of a random number."""
        self.uniforms[row, place] = number
        self.arrays["uniforms"].view(torch.float64)[row * HORIZON + place] = number

    def wanted(self, row: int, place: int = 0) -> int:
        """The host's choice, by the same random number."""
        logits = self.logits[row].numpy()
        scores = process(logits, self.ways[row], self.marked)
        if not self.ways[row].temperature:
            return int(scores.argmax())
        candidates = np.flatnonzero(scores > -np.inf)
        cumulative = np.cumsum(np.exp(scores[candidates] - scores[candidates].max()))
        at = np.searchsorted(cumulative, self.uniforms[row, place] * cumulative[-1], side="right")
        return int(candidates[min(int(at), len(candidates) - 1)])


def limits(way: SamplingParams, vocabulary: int) -> bool:
    return way.temperature > 0 and (0 < way.top_k < vocabulary or way.top_p < 1 or way.min_p > 0)
