"""What `llmc.compile` and `llmc.load` return: a model that generates, gives logits, and can be saved."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llmc.errors import BadOption, BadRequest
from llmc.runtime.request import Generation
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session

if TYPE_CHECKING:  # a model that was loaded runs without torch
    import torch

    from llmc.driver import Progress
    from llmc.packaging import Build


class CompiledModel:
    """A compiled model. Its weights are read when it first runs or is saved, not before."""

    def __init__(
        self, session: Callable[[], Session], report: dict[str, object], build: "Build | None", passed_over: str = ""
    ) -> None:
        """Callers use `llmc.compile` and `llmc.load`."""
        self._open = session
        self._build = build
        self.report = report
        """What the build did: passes, rewrites with their errors, near misses with their reasons, ops that remain."""
        self.passed_over = passed_over
        """Why an artifact that holds a program for GPUs is run by another, which nobody has asked for; else empty."""

    @cached_property
    def session(self) -> Session:
        """The runtime session, with full control over batches and the cache."""
        return self._open()

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        chat: bool = False,
        prefill_chunk: int | None = None,
        **sampling: object,
    ) -> list[Generation]:
        """Continue each prompt, given as text or token ids.

        `chat` sends each prompt as a user's message through the chat template. `sampling` are the fields of
        `llmc.runtime.sample.SamplingParams`. Raises `BadRequest` for what the model does not serve.
        """
        return self.session.generate(self._prompts(prompts, chat), _params(sampling), prefill_chunk=prefill_chunk)

    def stream(self, prompt: str | Sequence[int], *, chat: bool = False, **sampling: object) -> Iterator[str]:
        """The continuation of one prompt, piece by piece as its text becomes certain."""
        given = [prompt] if isinstance(prompt, str) else [list(prompt)]
        prompts = self._prompts(given, chat)
        for increment in self.session.stream(prompts, _params(sampling)):
            if increment.text:
                yield increment.text

    def __call__(self, input_ids: "torch.Tensor | Sequence[Sequence[int]]") -> "torch.Tensor":
        """Logits [B, S, V] (float32) of token ids [B, S]."""
        import torch

        rows = input_ids.tolist() if isinstance(input_ids, torch.Tensor) else [list(row) for row in input_ids]
        if not rows or not isinstance(rows[0], list):
            raise BadRequest("input_ids: expected token ids of shape [B, S]")
        if len({len(row) for row in rows}) != 1:
            raise BadRequest("input_ids: rows of different lengths make no tensor; call once for each, or use generate")
        return torch.stack([torch.from_numpy(self.session.logits(row)) for row in rows])

    def compile_program(self, progress: "Progress | None" = None) -> None:
        """Compile the native programs, for all levels of instructions and all GPUs, which `save` does otherwise.

        `progress` is told of the phase "compile", and of one for each GPU. Raises BuildFailed.
        """
        if self._build is None:
            return
        gpu, native = self._build.gpu, self._build.native
        if gpu is not None:
            for level in gpu.sources:
                began = time.perf_counter()
                if progress is not None:
                    progress(f"compile for {level}", None, {})
                kernels = gpu.compile(level)
                if progress is not None:
                    size = sum(len(binary.code) for binary in kernels.values())
                    told: dict[str, object] = {"kernels": len(kernels), "bytes": size}
                    progress(f"compile for {level}", time.perf_counter() - began, told)
        if native is None:
            return
        began = time.perf_counter()
        if progress is not None:
            progress("compile", None, {})
        made = native.compile()
        if progress is not None:
            facts = {"levels": " ".join(made), "cached": sum(library.cached for library in made.values())}
            progress("compile", time.perf_counter() - began, facts)

    def save(self, directory: str | Path, *, force: bool = False) -> Path:
        """Write the artifact; nothing is left behind if that fails. `force` replaces an artifact that is there.

        Raises:
            BadOption: the directory exists, or the model was loaded from an artifact (copy that instead).
        """
        if self._build is None:
            raise BadOption("save: this model was loaded from an artifact; copy its directory")
        from llmc.packaging import save

        return save(self._build, Path(directory), force=force)

    def _prompts(
        self, prompts: str | Sequence[str] | Sequence[Sequence[int]], chat: bool
    ) -> list[str] | list[list[int]]:
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        if not chat:
            return given  # type: ignore[return-value]
        texts = [prompt for prompt in given if isinstance(prompt, str)]
        if len(texts) != len(given):
            raise BadRequest("chat: expected prompts as text, found token ids")
        return [self.session.encode_chat([{"role": "user", "content": text}]) for text in texts]


def _params(sampling: dict[str, object]) -> SamplingParams:
    try:
        return SamplingParams(**sampling)  # type: ignore[arg-type]
    except TypeError as error:
        known = ", ".join(SamplingParams.__dataclass_fields__)
        raise BadRequest(f"sampling: {error}; expected any of {known}") from error
