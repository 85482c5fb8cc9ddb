"""How long choosing a token takes, in numpy and in native code: python tests/benchmarks/sample_speed.py"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from llmc.runtime.native_sample import NativeChoice
from llmc.runtime.sample import Row, Sampler, SamplingParams
from tests.support.native import compile_native

VOCABULARIES = (49_152, 128_256)
CASES = {
    "greedy": SamplingParams(),
    "temperature": SamplingParams(temperature=0.8, seed=1),
    "top-p": SamplingParams(temperature=0.8, top_p=0.9, seed=1),
    "top-k": SamplingParams(temperature=0.8, top_k=40, seed=1),
    "top-k, top-p, min-p": SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, seed=1),
    "top-p, repetition penalty": SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=1),
}
_ROUNDS = 50


def _microseconds(sampler: Sampler, logits: Row) -> float:
    taken = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        sampler.choose(logits)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken)) * 1e6


def main() -> None:
    """Prints medians in microseconds. Takes some seconds."""
    library = compile_native('#include "llmc/sample_function.h"')
    for vocabulary in VOCABULARIES:
        random = np.random.default_rng(0)
        logits = (random.standard_normal(vocabulary) * 2.5).astype(np.float32)
        logits[random.integers(0, vocabulary, 20)] += 8  # a few that are likely, as models give
        native = NativeChoice(library, vocabulary)
        for name, params in CASES.items():
            took = [_microseconds(Sampler(params, vocabulary, [1, 2, 3], way), logits) for way in (None, native)]
            print(f"{vocabulary} logits, {name}: numpy {took[0]:.0f} us, with native code {took[1]:.0f} us")


if __name__ == "__main__":
    main()
