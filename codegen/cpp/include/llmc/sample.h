// The next token from a row of logits, in float64, by the rules and in the order of Hugging Face's `generate`:
// repetition penalty, temperature, top-k, top-p, min-p.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "llmc/simd.h"

namespace llmc {

/// How to choose. A value of 0 (1 for top_p and repetition_penalty) turns its rule off.
struct Sampling {
  double temperature;         // 0: the likeliest token
  double top_p, min_p;        // see runtime/sample.py
  double repetition_penalty;  // for the tokens that were seen
  int64_t top_k;              // more where several tie for the last place
};

inline constexpr int64_t kSampleBlock = 64;  // weights of which the greatest is known, so that small ones are passed by

/// Bytes of memory that `sample` works in.
constexpr size_t sample_scratch_bytes(int64_t vocabulary) {
  return size_t(vocabulary) * 24 + size_t(vocabulary / kSampleBlock + 1) * 8;
}

/// The token of the greatest logit, the first of equal ones; -1 if that is no finite number.
inline int64_t argmax(const float* logits, int64_t n) {
  constexpr int64_t kBlock = 1024;  // only the block of the greatest one is searched
  int64_t best = 0;
  float top = -INFINITY;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t end = std::min(n, start + kBlock);
    F32x16 high = F32x16::broadcast(-INFINITY), differences = F32x16::zero();  // NaN where a logit is NaN or infinite
    int64_t i = start;
    for (; i + 16 <= end; i += 16) {
      const F32x16 v = F32x16::loadu(logits + i);
      high = max(high, v);
      differences = differences + (v - v);
    }
    float highest = reduce_max(high);
    bool number = reduce_add(differences) == 0;
    for (; i < end; ++i) highest = std::max(highest, logits[i]), number &= std::isfinite(logits[i]);
    if (!number) {
      highest = -INFINITY;
      for (i = start; i < end; ++i) {
        if (std::isnan(logits[i])) return -1;
        highest = std::max(highest, logits[i]);
      }
    }
    if (highest > top) top = highest, best = start;
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

inline void exponentials(const double* __restrict x, int64_t n, double* __restrict y) {
  for (int64_t i = 0; i < n; ++i) y[i] = exponential(x[i]);
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

/// The sum of n weights.
inline double sum_of_weights(const double* weight, int64_t n) {
  double sums[8] = {};
  const int64_t whole = n / 8 * 8;
  for (int64_t i = 0; i < whole; i += 8)
    for (int64_t j = 0; j < 8; ++j) sums[j] += weight[i + j];
  for (int64_t i = whole; i < n; ++i) sums[i - whole] += weight[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

/// The greatest number of each block of x; the greatest of all.
inline double greatest_of_blocks(const double* x, int64_t n, double* greatest) {
  for (int64_t start = 0; start < n; start += kSampleBlock) {
    const int64_t end = std::min(n, start + kSampleBlock), whole = start + (end - start) / 8 * 8;
    double high[8];
    std::fill_n(high, 8, -INFINITY);
    for (int64_t i = start; i < whole; i += 8)
      for (int64_t j = 0; j < 8; ++j) high[j] = x[i + j] > high[j] ? x[i + j] : high[j];
    for (int64_t i = whole; i < end; ++i) high[i - whole] = std::max(high[i - whole], x[i]);
    greatest[start / kSampleBlock] = *std::max_element(high, high + 8);
  }
  return *std::max_element(greatest, greatest + (n - 1) / kSampleBlock + 1);
}

/// Makes the scores of tokens that were seen less by a factor.
inline void penalise(double* scores, int64_t n, const uint8_t* seen, double penalty) {
  const auto one = [&](int64_t i) {
    if (seen[i]) scores[i] = scores[i] < 0 ? scores[i] * penalty : scores[i] / penalty;
  };
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {  // few are
    uint64_t any;
    std::memcpy(&any, seen + i, sizeof any);
    for (int64_t j = i; any != 0 && j < i + 8; ++j) one(j);
  }
  for (; i < n; ++i) one(i);
}

/// Keeps the likeliest tokens that together reach `top_p`, of equally likely ones the first. `order` and `greatest` are
/// space for them and for the greatest weight of each block.
inline void keep_top_p(Candidates& all, double top_p, int32_t* order, double* greatest) {
  const double* weight = all.weight;
  const double likeliest = greatest_of_blocks(weight, all.count, greatest);
  // Visits the tokens, in order, whose weight is at least `least`.
  const auto for_weights = [&all, weight, greatest](double least, auto visit) {
    for (int64_t start = 0; start < all.count; start += kSampleBlock) {
      if (greatest[start / kSampleBlock] < least) continue;
      const int64_t end = std::min(all.count, start + kSampleBlock);
      for (int64_t i = start; i < end; ++i)
        if (weight[i] >= least) visit(i);
    }
  };
  const auto before = [weight](int64_t a, int64_t b) { return weight[a] != weight[b] ? weight[a] > weight[b] : a < b; };
  double mass = top_p * sum_of_weights(weight, all.count);
  int64_t n = 0;
  for (double part = 0x1p-4;; part *= part) {  // mostly those near the likeliest one reach it
    double sum = 0;
    n = 0;
    for_weights(likeliest * part, [&](int64_t i) { order[n++] = int32_t(i), sum += weight[i]; });
    if (sum >= mass || n == all.count) break;
  }
  // The last that is needed: a quicksort that goes only into the part where the mass is reached.
  int32_t last;
  for (;;) {
    last = order[n / 2];
    std::swap(order[n / 2], order[n - 1]);
    const int64_t left = std::partition(order, order + n - 1, [&](int32_t i) { return before(i, last); }) - order;
    double sum = 0;
    for (int64_t i = 0; i < left; ++i) sum += weight[order[i]];
    if (left > 0 && sum >= mass) {
      n = left;
    } else {
      mass -= sum + weight[last];
      order += left;
      n -= left + 1;
      if (mass <= 0 || n == 0) break;
    }
  }
  const double lowest = weight[last];  // its own place is overwritten while the others move up
  int64_t kept = 0;
  for_weights(lowest, [&](int64_t i) {
    if (weight[i] == lowest && i > last) return;
    all.token[kept] = all.token[i];
    all.weight[kept++] = weight[i];
  });
  all.count = kept;
}

/// The next token given its n logits, or -1 if they are not numbers. `seen` [n] marks the tokens that are penalised, or
/// is null; `random` is uniform in [0, 1); `scratch` has sample_scratch_bytes(n), aligned to 8.
inline int64_t sample(const float* logits, int64_t n, const Sampling& how, const uint8_t* seen, double random,
                      void* scratch) {
  const bool penalised = seen != nullptr && how.repetition_penalty != 1.0;
  const int64_t likeliest = argmax(logits, n);
  if (likeliest < 0 || (how.temperature == 0 && !penalised)) return likeliest;
  auto* scores = static_cast<double*>(scratch);
  double* greatest_weights = scores + 2 * n;
  Candidates candidates{reinterpret_cast<int32_t*>(greatest_weights + n / kSampleBlock + 1), scores + n, 0};
  int32_t* order = candidates.token + n;

  for (int64_t i = 0; i < n; ++i) scores[i] = logits[i];
  double top = scores[likeliest];
  if (penalised) {
    penalise(scores, n, seen, how.repetition_penalty);
    top = greatest_of_blocks(scores, n, greatest_weights);
  }
  if (how.temperature == 0) return std::find(scores, scores + n, top) - scores;

  for (int64_t i = 0; i < n; ++i) scores[i] = (scores[i] - top) / how.temperature;
  const double lowest = how.top_k > 0 && how.top_k < n ? greatest(scores, n, how.top_k, candidates.weight) : -INFINITY;
  // A block of which every token stays, as mostly all do without top-k, is copied without a look at each.
  int64_t count = 0;
  for (int64_t start = 0; start < n; start += kSampleBlock) {
    const int64_t end = std::min(n, start + kSampleBlock);
    int dropped = 0;
    for (int64_t i = start; i < end; ++i) dropped += !(scores[i] >= lowest && scores[i] > -INFINITY);
    if (dropped == end - start) continue;
    if (dropped == 0) {
      for (int64_t i = start; i < end; ++i) candidates.token[count + i - start] = int32_t(i);
      std::memmove(scores + count, scores + start, size_t(end - start) * sizeof(double));
      count += end - start;
      continue;
    }
    for (int64_t i = start; i < end; ++i) {
      if (!(scores[i] >= lowest && scores[i] > -INFINITY)) continue;
      candidates.token[count] = int32_t(i);
      scores[count++] = scores[i];
    }
  }
  candidates.count = count;
  exponentials(scores, count, candidates.weight);
  if (how.top_p < 1) keep_top_p(candidates, how.top_p, order, greatest_weights);
  if (how.min_p > 0) candidates.filter([&](int64_t i) { return candidates.weight[i] >= how.min_p; });

  double left = random * sum_of_weights(candidates.weight, candidates.count);
  constexpr int64_t kBlock = 256;  // whole blocks are passed by their sums
  int64_t i = 0;
  for (; i + kBlock < candidates.count; i += kBlock) {
    const double sum = sum_of_weights(candidates.weight + i, kBlock);
    if (sum > left) break;
    left -= sum;
  }
  for (; i < candidates.count; ++i) {
    left -= candidates.weight[i];
    if (left < 0) return candidates.token[i];
  }
  return candidates.token[candidates.count - 1];
}

}  // namespace llmc
