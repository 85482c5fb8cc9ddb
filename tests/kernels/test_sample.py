"""The native sampler against that of the runtime."""

import ctypes
import functools

import numpy as np
import numpy.typing as npt
import pytest
from support.native import ISAS, Isa, compile_native, run_native

from llmc.runtime.sample import Sampler, SamplingParams

HARNESS = """
#include "llmc/sample.h"
using namespace llmc;
EXPORT int64_t choose(const float* x, int64_t n, const Sampling* how, const uint8_t* seen, double u, void* scratch) {
  return sample(x, n, *how, seen, u, scratch);
}
EXPORT int scratch(int64_t n) { return int(sample_scratch_bytes(n)); }
EXPORT void powers(const double* x, int64_t n, double* y) { exponentials(x, n, y); }
"""
SANITIZED = """
#include <cstdio>
#include <vector>
int main() {
  for (int64_t n : {1, 2, 17, 1023, 1025, 5000}) {
    std::vector<float> x(static_cast<size_t>(n));
    std::vector<uint8_t> seen(static_cast<size_t>(n), 1);
    std::vector<double> scratch(sample_scratch_bytes(n) / 8);
    for (int64_t i = 0; i < n; ++i) x[size_t(i)] = float(i * 7919 % 1000) / 100 - 3;
    for (double temperature : {0.0, 0.3, 1e6})
      for (int64_t top_k : {0, 1, 5, 100000})
        for (double top_p : {0.0, 0.5, 0.999999, 1.0})
          for (double min_p : {0.0, 0.1, 1.0}) {
            const Sampling how{temperature, top_p, min_p, 1.3, top_k};
            const int64_t token = choose(x.data(), n, &how, seen.data(), 0.999999, scratch.data());
            if (token < 0 || token >= n) return 1;
          }
  }
  std::puts("ok");
}
"""


class Sampling(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        ("top_k", ctypes.c_int64),
    )


@functools.cache
def library(isa: Isa) -> ctypes.CDLL:
    built = compile_native(HARNESS, isa=isa)
    built.choose.restype = ctypes.c_int64
    built.scratch.argtypes = [ctypes.c_int64]
    return built


def choose(
    isa: Isa,
    logits: npt.NDArray[np.float32],
    params: SamplingParams,
    random: float,
    seen: npt.NDArray[np.bool_] | None = None,
) -> int:
    how = Sampling(params.temperature, params.top_p, params.min_p, params.repetition_penalty, params.top_k)
    scratch = np.empty(library(isa).scratch(logits.size) // 8)
    marks = None if seen is None else ctypes.c_void_p(seen.ctypes.data)
    token: int = library(isa).choose(
        ctypes.c_void_p(logits.ctypes.data), ctypes.c_int64(logits.size), ctypes.byref(how), marks,
        ctypes.c_double(random), ctypes.c_void_p(scratch.ctypes.data),
    )  # fmt: skip
    return token


CASES = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=40),
    SamplingParams(temperature=1.3, top_p=0.9),
    SamplingParams(temperature=0.8, top_k=50, top_p=0.95),
    SamplingParams(temperature=1.0, min_p=0.05),
    SamplingParams(temperature=50.0, top_p=0.99),
    SamplingParams(temperature=1.0, top_p=0.0),
    SamplingParams(temperature=1e-3, top_k=3, top_p=0.5, min_p=0.5),
    SamplingParams(temperature=1.0, top_k=1 << 40, repetition_penalty=1.2),
    SamplingParams(temperature=0.0, repetition_penalty=5.0),
    SamplingParams(),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("params", CASES, ids=range(len(CASES)))
def test_chooses_as_the_runtime_does(isa: Isa, params: SamplingParams) -> None:
    rng = np.random.default_rng(0)
    for vocabulary in (1, 2, 17, 1000, 30_000):
        logits = (rng.standard_normal(vocabulary) * 4).astype(np.float32)
        prompt = rng.integers(0, vocabulary, 5).tolist()
        for seed in range(20):
            with_seed = SamplingParams(**{**vars(params), "seed": seed})
            expected = Sampler(with_seed, vocabulary, prompt).choose(logits)
            seen = np.isin(np.arange(vocabulary), prompt)
            random = np.random.Generator(np.random.PCG64(seed)).random()
            assert choose(isa, logits, params, random, seen) == expected


@pytest.mark.parametrize("isa", ISAS)
def test_ties_and_hidden_tokens(isa: Isa) -> None:
    logits = np.array([1, 3, 3, -np.inf, 3, 2] * 200, np.float32)
    assert choose(isa, logits, SamplingParams(), 0.5) == 1
    params = SamplingParams(temperature=1.0, top_k=2)
    chosen = {choose(isa, logits, params, u) for u in np.linspace(0, 0.9999, 2000)}
    assert chosen == set(np.flatnonzero(logits == 3))  # all that tie for the last place
    everything = {choose(isa, logits, SamplingParams(temperature=1.0), u) for u in np.linspace(0, 0.99999, 20_000)}
    assert everything == set(np.flatnonzero(logits > -np.inf))


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_no_number(isa: Isa) -> None:
    for bad in (np.nan, np.inf):
        logits = np.zeros(3000, np.float32)
        logits[2999] = bad
        assert choose(isa, logits, SamplingParams(), 0.5) == -1
        assert choose(isa, logits, SamplingParams(temperature=1.0), 0.5) == -1
    assert choose(isa, np.full(5, -np.inf, np.float32), SamplingParams(), 0.5) == -1


@pytest.mark.parametrize("isa", ISAS)
def test_exponential(isa: Isa) -> None:
    x = np.concatenate([np.linspace(-708, 0, 100_001), [-np.inf, -1e4]])
    y = np.empty_like(x)
    library(isa).powers(ctypes.c_void_p(x.ctypes.data), ctypes.c_int64(x.size), ctypes.c_void_p(y.ctypes.data))
    np.testing.assert_allclose(y[:-2], np.exp(x[:-2]), rtol=4e-16)
    assert not y[-2:].any()


def test_under_sanitizers() -> None:
    assert run_native(HARNESS + SANITIZED, isa="avx2") == "ok\n"
