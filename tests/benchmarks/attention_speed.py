"""How fast attention over the paged cache is beside the memory bandwidth: python tests/benchmarks/attention_speed.py"""

import ctypes
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.native import compile_native

SHAPES = (("SmolLM2", 9, 3, 64, 30, 2048), ("SmolLM2", 9, 3, 64, 60, 64), ("1B", 32, 8, 64, 8, 8192))
"""Name, query heads, key heads, their size, caches that take turns, keys."""
ELEMENTS = {"bf16": ("BF16", 2, 0), "int8": ("Int8", 1, 2), "f32": ("F32", 4, 0)}
"""In C++; bytes of an element, and of the scale of a key or value."""
BLOCK_SIZE = 256
_SOURCE = r"""
#include <chrono>
#include "attention_harness.h"
template <class Body>
double timed(int threads, size_t scratch, int rounds, Body body) {
  struct Work { Body& body; int rounds; double best; } work{body, rounds, 1e9};
  Pool pool(threads, nullptr, scratch);
  pool.run([](Team& team, void* argument) {
    Work& w = *static_cast<Work*>(argument);
    for (int i = 0; i < w.rounds; ++i) {
      team.barrier();
      const auto start = std::chrono::steady_clock::now();
      w.body(team);
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (team.tid == 0) w.best = std::min(w.best, took);
    }
  }, &work);
  return work.best;
}
/// Seconds a layer: `layers` caches take turns.
template <class E, int H, int HK, int D>
double run(const Step& step, void* const* caches, int layers, const float* q, float* y, int threads, int rounds) {
  auto* shared = static_cast<std::byte*>(std::aligned_alloc(64, attention_shared_bytes<E, H, HK, D, D>()));
  const double best = timed(threads, attention_scratch_bytes<E, H, HK, D, D>(), rounds, [&](Team& team) {
    for (int i = 0; i < layers; ++i) {
      using Type = typename Stored<E>::type;
      auto *k = static_cast<Type*>(caches[2 * i]), *v = static_cast<Type*>(caches[2 * i + 1]);
      const Cache<E> cache{k, v, HK, D, D, step.block_size};
      attention<E, H, HK, D, D>(team, step, cache, nullptr, 0.125f, 0.0f, Causal{},
          [&](int64_t t, int h) { return q + (t * H + h) * D; }, shared,
          [&](int64_t t, int h, const float* out) { std::copy_n(out, D, y + (t * H + h) * D); });
      team.barrier();
    }
  });
  std::free(shared);
  return best / layers;
}
EXPORT double read_all(const int64_t* data, int64_t count, int threads) {
  return timed(threads, 64, 8, [&](Team& team) {
    int64_t sums[32] = {};
    const int64_t part = count / team.n / 32 * 32;
    for (int64_t i = part * team.tid; i < part * (team.tid + 1); i += 32)
      for (int j = 0; j < 32; ++j) sums[j] |= data[i + j];
    for (int64_t sum : sums) *reinterpret_cast<volatile int64_t*>(team.scratch) = sum;
    team.barrier();
  });
}
"""


def _memory(count: int) -> np.ndarray:
    made = np.empty(count + 4096, np.uint8)
    made.view(np.uint16)[:] = np.random.default_rng(0).integers(0x3D00, 0x3E00, made.size // 2, dtype=np.uint16)
    return made[-made.ctypes.data % 64 :]


def main() -> None:
    """Prints GB/s of decoding and GFLOP/s of prefill, on one and on two threads. Takes half a minute."""
    calls = {(kind, h, hk, d) for kind in ELEMENTS for _, h, hk, d, _, _ in SHAPES}
    exports = "".join(
        f"EXPORT double {kind}_{h}_{hk}_{d}(const Step& s, void* const* c, int l, const float* q,"
        " float* y, int n, int r)"
        f" {{ return run<{ELEMENTS[kind][0]}, {h}, {hk}, {d}>(s, c, l, q, y, n, r); }}\n"
        for kind, h, hk, d in sorted(calls)
    )
    library = compile_native(_SOURCE + exports)
    library.read_all.restype = ctypes.c_double
    big = _memory(512 << 20)
    for kind in ELEMENTS:
        for name, heads, key_heads, size, layers, keys in SHAPES:
            _measure(library, kind, big, name, heads, key_heads, size, layers, keys, tokens=1)
        _measure(library, kind, big, "SmolLM2", 9, 3, 64, 1, 512, tokens=512)


def _measure(
    library: ctypes.CDLL,
    kind: str,
    big: np.ndarray,
    name: str,
    heads: int,
    key_heads: int,
    size: int,
    layers: int,
    keys: int,
    tokens: int,
) -> None:
    from tests.kernels.test_attention import _Step

    _, item, scale = ELEMENTS[kind]
    stored = key_heads * (size * item + scale)
    blocks = -(-keys // BLOCK_SIZE)
    table = np.arange(blocks)
    arrays = {
        "positions": np.arange(keys - tokens, keys),
        "starts": np.array([0, tokens]),
        "lengths": np.array([keys]),
        "blocks": table,
    }
    step = _Step(tokens, 1, blocks, 0, block_size=BLOCK_SIZE)
    for field, array in arrays.items():
        setattr(step, field, array.ctypes.data)
    part = blocks * BLOCK_SIZE * stored
    memory = _memory(2 * layers * part)
    caches = (ctypes.c_void_p * (2 * layers))(*(memory.ctypes.data + i * part for i in range(2 * layers)))
    q = np.random.default_rng(1).standard_normal((tokens, heads, size), dtype=np.float32)
    y = np.empty_like(q)
    attend = getattr(library, f"{kind}_{heads}_{key_heads}_{size}")
    attend.restype = ctypes.c_double
    for threads in (1, 2):
        took = attend(
            ctypes.byref(step), caches, layers, q.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p),
            threads, 60 if tokens == 1 else 30,
        )  # fmt: skip
        text = f"{name} {kind}, {tokens} tokens at {keys}, {threads} threads: {took * 1e6:.1f} us"
        if tokens == 1:
            words = big.size // 8 // 64 * 64
            bandwidth = (
                words * 8 / library.read_all(big.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(words), threads)
            )
            rate = 2 * keys * stored / took
            print(f"{text}, {rate / 1e9:.1f} GB/s of {bandwidth / 1e9:.1f} ({bandwidth / rate:.2f}x the reading alone)")
        else:
            operations = 4 * tokens * (keys - tokens / 2) * heads * size
            print(f"{text}, {operations / took / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
