"""Does a compiled model compute what its source computes? The numbers promise, checked on whole models.

Both are run on the same random tokens and judged against the source in float64: the compiled model may be off by at
most a small multiple of what eager torch is off by in the same dtype. A model that rounds its weights or activations to
integers is off by more, on purpose: it is judged by how far its distributions are from the source's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmc.codegen.reference import DTYPES, from_model
from llmc.errors import BadInput, NumericsGateFailed
from llmc.ir.model import Model
from llmc.runtime.artifact import Artifact
from llmc.runtime.program import Batch

FACTORS = {torch.float32: 2.0, torch.float16: 1.1, torch.bfloat16: 1.1, torch.float64: 2.0}
"""How many times eager's error a compiled model may have. float32 sums in another order; the others round more."""
FLOOR = 1e-6
"""Error that is always allowed, relative to the size of the logits: a few roundings of float32."""
DIVERGENCE = {"int4": 0.5, "int6": 0.1, "int8": 0.05, "fp8": 0.1, "keep": 0.05}
"""The largest mean KL divergence, in nats, by how weights are stored: four bits cost what they cost, six little, eight
and the activations of kept weights next to nothing."""
ROUNDED_CACHES = {"int8": 0.05, "fp8": 0.5}
"""The same by how keys and values are stored, where the weights are floats."""
LENGTHS = (1, 7, 33, 64)
"""Lengths of the sequences that are compared: alone, odd, and across block edges."""


@dataclass(frozen=True)
class Comparison:
    """How far a compiled model is from its source. Errors are root mean squares of differences of logits."""

    tokens: int
    """Positions whose logits were compared."""
    error: float
    """Of the compiled model, against the source in float64."""
    eager_error: float
    """Of the source in the compiled model's dtype, in eager torch."""
    limit: float
    """The largest error that passes."""
    largest: float
    """The largest difference of any logit, against float64."""
    top1: float
    """Share of positions with the same likeliest token as in float64."""
    kl: float
    """Mean KL divergence from float64 to the compiled model, in nats."""
    kl_limit: float | None = None
    """The largest divergence that passes, for a model that rounds to integers; its error is then not judged."""

    @property
    def passed(self) -> bool:
        """Whether what is judged is within its limit and no logit is NaN or infinite."""
        return self.error <= self.limit if self.kl_limit is None else self.kl <= self.kl_limit

    def verdict(self, name: str) -> str:
        """What there is to say of the artifact or model `name` if this did not pass."""
        if self.kl_limit is not None:
            return (
                f"{name}: distributions diverge from the source's by {self.kl:.2e} nats, at most {self.kl_limit:.2e} is"
                f" allowed for rounded weights; {self.top1:.0%} of the likeliest tokens agree; store them in more bits"
            )
        return (
            f"{name}: logits differ from the source by {self.error:.2e} (root mean square), at most {self.limit:.2e} is"
            f" allowed; eager torch differs by {self.eager_error:.2e}; find the first bad rewrite with `llmc bisect`"
        )

    def check(self, name: str) -> None:
        """Raise NumericsGateFailed, naming `name`, if this did not pass."""
        if not self.passed:
            raise NumericsGateFailed(self.verdict(name))


@dataclass(frozen=True)
class Expected:
    """What a source model computes on a few random sequences: the judge of everything compiled from it."""

    inputs: tuple[Tensor, ...]
    """Token ids, [1, S] each."""
    true: Tensor
    """[T, V] logits of all sequences, one after another, in float64."""
    eager: Tensor
    """[T, V] the same as eager torch computes them in `dtype`."""
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        source: Callable[[torch.dtype], nn.Module],
        dtype: torch.dtype,
        vocab_size: int,
        max_context: int | None = None,
        shortest: int = 1,
    ) -> "Expected":
        """Run the module that `source` builds, in float64 and in `dtype`, one after the other.

        Each sequence is the beginning of one of `shortest` tokens at least: the source may compute shorter ones
        otherwise, as rotary embeddings do that are scaled by the length.
        """
        inputs = tuple(_inputs(vocab_size, max_context))
        true, eager = (_logits(source(kind), inputs, shortest) for kind in (torch.float64, dtype))
        return cls(inputs, true, eager, dtype)

    def compare(self, compiled: Callable[[Tensor], Tensor]) -> Comparison:
        """Judge `compiled`, which maps token ids [1, S] to logits [1, S, V]."""
        have = torch.cat([compiled(tokens)[0].double() for tokens in self.inputs])
        eager_error = _rms(self.eager - self.true)
        divergence = nn.functional.kl_div(
            have.log_softmax(-1), self.true.log_softmax(-1), reduction="batchmean", log_target=True
        )
        return Comparison(
            tokens=len(have),
            error=_rms(have - self.true),
            eager_error=eager_error,
            limit=FACTORS[self.dtype] * eager_error + FLOOR * _rms(self.true),
            largest=(have - self.true).abs().max().item(),
            top1=(have.argmax(-1) == self.true.argmax(-1)).double().mean().item(),
            kl=divergence.item(),
        )


def compare_artifact(
    directory: str | Path, model: str | Path, *, program: str | None = None, trust: bool = False
) -> Comparison:
    """Compare the artifact in `directory` with the source `model`: a Hugging Face directory or a .gguf file.

    `program` and `trust` are those of `llmc.load`. Raises ArtifactRejected, and what reading the source raises.
    """
    from llmc.loading import load

    artifact = Artifact.open(directory, verify="fast")
    manifest = artifact.manifest
    stored = manifest.kv[0].dtype if manifest.kv else "float32"
    dtype = torch.float32 if stored in ROUNDED_CACHES else DTYPES[stored]
    source = partial(source_module, model)
    lengths = manifest.report.get("lengths")
    shortest = lengths.get("shortest", 1) if isinstance(lengths, dict) else 1
    assert isinstance(shortest, int), "builds write a number"
    expected = Expected.of(source, dtype, manifest.model.vocab_size, manifest.ranges.context, shortest)
    found = expected.compare(load(directory, program=program, trust=trust))
    if any(name.endswith(("_quants", "_scales")) for name in artifact.weights_header.tensors):
        how = str(manifest.options.get("quantize") or "keep").partition(":")[0]
        found = replace(found, kl_limit=DIVERGENCE[how])
    elif stored in ROUNDED_CACHES:
        found = replace(found, kl_limit=ROUNDED_CACHES[stored])
    return found


def graph_logits(model: Model) -> Callable[[Tensor], Tensor]:
    """The function token ids [1, S] to logits [1, S, V] of a graph, before or after it was made incremental."""
    if len(model.inputs()) == 1:
        return lambda tokens: model.run(tokens)[0]
    program = from_model(model)
    program.allocate(num_blocks=1, block_size=max(LENGTHS))

    def run(tokens: Tensor) -> Tensor:
        index = np.arange(tokens.shape[1])
        batch = Batch(
            tokens=tokens[0].numpy(),
            positions=index,
            slots=index,
            starts=np.array([0, len(index)]),
            lengths=np.array([len(index)]),
            blocks=np.array([[0]]),
            rows=index,
        )
        return torch.from_numpy(program.step(batch))[None]

    return run


def source_module(model: str | Path, dtype: torch.dtype) -> nn.Module:
    """The eager module of a Hugging Face directory or a .gguf file, with its weights, in `dtype`."""
    import transformers

    path = Path(model)
    if path.is_file():
        return _gguf_module(path, dtype)
    module: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        attn_implementation="eager",
    )
    return _eager_experts(module)


def _gguf_module(path: Path, dtype: torch.dtype) -> nn.Module:
    import transformers

    from llmc.frontend.gguf_model import open_gguf

    config, reader, _ = open_gguf(path)
    module: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    known = set(reader.names())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name not in known:
                raise BadInput(f"{path}: holds no tensor for {name}, a parameter of {type(module).__name__}")
            parameter.copy_(reader.read(name))
    return _eager_experts(module)


def _eager_experts(module: Any) -> nn.Module:  # noqa: ANN401 - a PreTrainedModel
    """`module` with a mixture computed expert by expert: the grouped product, its default, knows no float64."""
    if module._can_set_experts_implementation():
        module.set_experts_implementation("eager")
    result: nn.Module = module.eval()
    return result


def _inputs(vocab_size: int, max_context: int | None) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for length in LENGTHS:
        if max_context is None or length <= max_context:
            yield torch.randint(vocab_size, (1, length), generator=generator)


@torch.inference_mode()
def _logits(module: nn.Module, inputs: Sequence[Tensor], shortest: int) -> Tensor:
    logits = []
    for tokens in inputs:
        length = tokens.shape[1]
        whole = nn.functional.pad(tokens, (0, max(0, shortest - length)))
        logits.append(module(whole, use_cache=False).logits[0, :length].double())
    return torch.cat(logits)


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
