"""Decoding end to end against torch.compile: `PYTHONPATH=tests gpu_end_to_end.py [1b|8b] [float,int8,int4]`.

Tokens a second of one sequence after 128 tokens, in rounds that take turns: llmc as a caller of `generate` sees it;
transformers' model with a static cache, max-autotune, its step and the choice of the token in one compiled function.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from benchmarks.gpu_models import gpu_session, random_llama
from torch import nn

from llmc.runtime.sample import SamplingParams

PROMPT, NEW, ROUNDS = 128, 256, 5


def main(shape: str = "1b", storages: str = "float") -> None:
    module = random_llama(shape)
    contenders: dict[str, Callable[[list[int]], float]] = {}
    for storage in storages.split(","):
        session = gpu_session(module, None if storage == "float" else storage, max_context=PROMPT + NEW + 1)
        contenders[f"llmc {storage}"] = lambda prompt, session=session: own_rate(session, prompt)
    decode = TorchDecoder(module.cuda(), PROMPT + NEW, mode="max-autotune")
    contenders["torch.compile bfloat16"] = decode.rate
    prompts = torch.randint(0, module.config.vocab_size, (ROUNDS + 1, PROMPT)).tolist()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number, prompt in enumerate(prompts):
        for name, run in contenders.items():
            rate = run(prompt)
            if number:  # the first compiles, allocates and records
                rates[name].append(rate)
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, rates["torch.compile bfloat16"], strict=True))
        print(f"{shape} {name:24} {statistics.median(found):8.1f} tok/s  {ratio:.2f}x torch.compile, {found}")


def own_rate(session, prompt: list[int]) -> float:
    (made,) = session.generate([prompt], SamplingParams(max_new_tokens=NEW, ignore_eos=True))
    return (NEW - 1) / made.timings.decode


class TorchDecoder:
    """Greedy decoding by a compiled step over a static cache."""

    def __init__(self, module: nn.Module, longest: int, mode: str | None) -> None:
        """`mode` is that of torch.compile; None does not compile."""
        from transformers import StaticCache

        self._module = module
        self._device = next(module.parameters()).device
        self._cache = StaticCache(config=module.config, max_cache_len=longest)
        self._compiled = mode is not None
        self._step = torch.compile(self._next, mode=mode, fullgraph=True) if mode is not None else self._next

    def _next(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """tokens [1, T], positions [T] -> [1, 1] the likeliest token after them."""
        logits = self._module(
            tokens, past_key_values=self._cache, cache_position=positions, position_ids=positions[None], use_cache=True
        ).logits
        return logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def decode(self, prompt: list[int], new: int) -> tuple[list[int], float]:
        """`new` tokens, and the seconds from the first of them to the last."""
        self._cache.reset()
        positions = torch.arange(len(prompt) + new, device=self._device)
        token = self._next(torch.tensor([prompt], device=self._device), positions[: len(prompt)])
        made = [token.clone()]
        self._wait()
        began = time.perf_counter()
        for place in range(len(prompt), len(prompt) + new - 1):
            if self._compiled:
                torch.compiler.cudagraph_mark_step_begin()
            token = self._step(token, positions[place : place + 1]).clone()
            made.append(token)
        self._wait()
        return torch.cat(made, 1)[0].tolist(), time.perf_counter() - began

    def rate(self, prompt: list[int]) -> float:
        """Tokens a second."""
        return (NEW - 1) / self.decode(prompt, NEW)[1]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
