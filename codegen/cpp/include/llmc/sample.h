// The next token from a row of logits, in float64, by the rules and in the order of Hugging Face's `generate`: repetition
// penalty, temperature, top-k, top-p, min-p.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace llmc {

/// How to choose. A value of 0 (1 for top_p and repetition_penalty) turns its rule off.
struct Sampling {
  double temperature;         // 0: the likeliest token
  double top_p, min_p;        // see runtime/sample.py
  double repetition_penalty;  // for the tokens that were seen
  int64_t top_k;              // more where several tie for the last place
};

/// Bytes of memory that `sample` works in.
constexpr size_t sample_scratch_bytes(int64_t vocabulary) { return size_t(vocabulary) * 24; }

/// The token of the greatest logit, the first of equal ones; -1 if that is no finite number.
inline int64_t argmax(const float* logits, int64_t n) {
  constexpr int64_t kBlock = 1024;  // its maximum is a loop that vectorises; only the best block is searched
  int64_t best = 0;
  float top = -INFINITY;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t end = std::min(n, start + kBlock);
    float high = -INFINITY;
    bool number = true;
    for (int64_t i = start; i < end; ++i) high = high < logits[i] ? logits[i] : high;
    for (int64_t i = start; i < end; ++i) number &= logits[i] == logits[i];
    if (!number) return -1;
    if (high > top) top = high, best = start;
  }
  if (!std::isfinite(top)) return -1;
  while (logits[best] != top) ++best;
  return best;
}

/// e^x for x <= 0, to about an ulp; 0 below -708. Free of branches, so that loops of it vectorise.
inline double exponential(double x) {
  constexpr double kShift = 0x1.8p52;  // a sum with it is rounded to an integer, in its low bits
  const double clamped = x < -708.0 ? -708.0 : x;
  const double shifted = clamped * 1.4426950408889634 + kShift;
  const double n = shifted - kShift;
  const double r = (clamped - n * 0x1.62e42fefa38p-1) - n * 0x1.ef35793c7673p-45;  // ln 2 in two parts
  double y = 1.0 / 6227020800.0;
  constexpr double kFactorials[] = {479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1};
  for (double f : kFactorials) y = y * r + 1.0 / f;
  const int64_t exponent = (std::bit_cast<int64_t>(shifted) - std::bit_cast<int64_t>(kShift) + 1023) << 52;
  return x < -708.0 ? 0.0 : y * std::bit_cast<double>(exponent);
}

/// The tokens that may still be chosen, in ascending order.
struct Candidates {
  int32_t* token;
  double* weight;  // relative probability
  int64_t count;

  /// Drops those for which keep(i) is false.
  template <class Keep>
  void filter(Keep keep) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (!keep(i)) continue;
      token[kept] = token[i];
      weight[kept++] = weight[i];
    }
    count = kept;
  }
};

/// The k-th greatest score. Only those near the top are ranked: scores are relative to the greatest one, which is 0.
inline double greatest(const double* scores, int64_t n, int64_t k, double* space) {
  for (double reach = 4;; reach *= 2) {
    const bool all = reach > 1e6;
    int64_t found = 0;
    for (int64_t i = 0; i < n; ++i)
      if (all || scores[i] >= -reach) space[found++] = scores[i];
    if (found < k && !all) continue;
    std::nth_element(space, space + (k - 1), space + found, [](double a, double b) { return a > b; });
    return space[k - 1];
  }
}

/// Keeps the likeliest tokens that together reach `top_p`, of equally likely ones the first. `order` is space for them.
inline void keep_top_p(Candidates& all, double top_p, int32_t* order) {
  double total = 0, likeliest = 0;
  for (int64_t i = 0; i < all.count; ++i) {
    total += all.weight[i];
    likeliest = std::max(likeliest, all.weight[i]);
  }
  for (double part = 0x1p-10;; part = part > 0x1p-1000 ? part * part : 0) {
    int64_t found = 0;
    double mass = 0;
    for (int64_t i = 0; i < all.count; ++i) {
      if (all.weight[i] < likeliest * part) continue;
      order[found++] = int32_t(i);
      mass += all.weight[i];
    }
    if (mass < top_p * total && part > 0) continue;  // these do not reach it: rank more
    std::sort(order, order + found, [&](int32_t a, int32_t b) {
      return all.weight[a] != all.weight[b] ? all.weight[a] > all.weight[b] : a < b;
    });
    double before = 0;
    int64_t kept = 0;
    while (kept < found && (kept == 0 || before < top_p * total)) before += all.weight[order[kept++]];
    std::sort(order, order + kept);
    int64_t next = 0;
    return all.filter([&](int64_t i) { return next < kept && order[next] == i && ++next > 0; });
  }
}

/// The next token given its n logits, or -1 if they are not numbers. `seen` [n] marks the tokens that are penalised, or is
/// null; `random` is uniform in [0, 1); `scratch` has sample_scratch_bytes(n), aligned to 8.
inline int64_t sample(const float* logits, int64_t n, const Sampling& how, const uint8_t* seen, double random, void* scratch) {
  const bool penalised = seen != nullptr && how.repetition_penalty != 1.0;
  const int64_t likeliest = argmax(logits, n);
  if (likeliest < 0 || (how.temperature == 0 && !penalised)) return likeliest;
  auto* scores = static_cast<double*>(scratch);
  Candidates candidates{reinterpret_cast<int32_t*>(scores + 2 * n), scores + n, 0};
  int32_t* order = candidates.token + n;

  for (int64_t i = 0; i < n; ++i) scores[i] = logits[i];
  if (penalised) {
    const double penalty = how.repetition_penalty;
    for (int64_t i = 0; i < n; ++i)
      if (seen[i]) scores[i] = scores[i] < 0 ? scores[i] * penalty : scores[i] / penalty;
  }
  int64_t first = 0;
  for (int64_t i = 1; i < n; ++i)
    if (scores[i] > scores[first]) first = i;
  if (how.temperature == 0) return first;

  const double top = scores[first];
  for (int64_t i = 0; i < n; ++i) scores[i] = (scores[i] - top) / how.temperature;
  const double lowest = how.top_k > 0 && how.top_k < n ? greatest(scores, n, how.top_k, candidates.weight) : -INFINITY;
  for (int64_t i = 0; i < n; ++i) candidates.weight[i] = exponential(scores[i]);
  for (int64_t i = 0; i < n; ++i) candidates.token[i] = int32_t(i);
  candidates.count = n;
  candidates.filter([&](int64_t i) { return scores[i] >= lowest && scores[i] > -INFINITY; });
  if (how.top_p < 1) keep_top_p(candidates, how.top_p, order);
  if (how.min_p > 0) candidates.filter([&](int64_t i) { return candidates.weight[i] >= how.min_p; });

  double total = 0;
  for (int64_t i = 0; i < candidates.count; ++i) total += candidates.weight[i];
  const double wanted = random * total;
  double sum = 0;
  for (int64_t i = 0; i < candidates.count; ++i) {
    sum += candidates.weight[i];
    if (sum > wanted) return candidates.token[i];
  }
  return candidates.token[candidates.count - 1];
}

}  // namespace llmc
