// The hard negatives of an image, found by one block.
#pragma once

#include "core/cuda/block_ops.cuh"
#include "select_hard_negatives/select_hard_negatives.h"

#include <cstdint>

namespace ssd_ext {

constexpr int kMiningThreads = 512;  // maximum number of threads of the block
// Keys that a thread keeps in registers. A block keeps 9216, so that the 8732 priors of SSD300 fit.
constexpr int kMiningKeys = 18;
constexpr int64_t kMiningPriors = kMiningThreads * kMiningKeys;

// The keys of the priors with the indices `first`, `first + blockDim.x`, ...; 0 for positives and beyond the last
// prior.
template <typename Bits, typename IsPositive, typename KeyOf>
__device__ __forceinline__ void load_mining_keys(const IsPositive& is_positive, const KeyOf& key_of,
                                                 unsigned n_priors, unsigned first, Bits (&keys)[kMiningKeys]) {
  if (sizeof(Bits) > 4) {  // one after another, because registers are scarce
    for (int i = 0; i < kMiningKeys; ++i) {
      const unsigned prior = first + i * blockDim.x;
      keys[i] = prior < n_priors && !is_positive(prior) ? key_of(prior) : 0;
    }
    return;
  }
  // All numbers are read, needed or not, so that no read waits for another one.
  const auto existing = [&](int i) { return min(first + i * blockDim.x, n_priors - 1); };
  bool positive[kMiningKeys];
  for (int i = 0; i < kMiningKeys; ++i) positive[i] = is_positive(existing(i));
  for (int i = 0; i < kMiningKeys; ++i) keys[i] = key_of(existing(i));
  for (int i = 0; i < kMiningKeys; ++i) {
    if (positive[i] || first + i * blockDim.x >= n_priors) keys[i] = 0;
  }
}

// Writes `selected`, and calls negative(key) for each prior that is selected and positive(p) for each prior p that is
// positive, each in rising order of the priors; thread p % blockDim.x does so. Returns the number of positive priors.
//
//   is_positive(p): whether prior p is positive
//   key_of(p):      the key of its loss (order.h); any key if the prior is positive
//   kInRegisters:   keeps the keys in registers; n_priors must be at most kMiningKeys * blockDim.x.
//                   Otherwise each pass over the keys computes them again.
template <bool kInRegisters, typename Bits, typename IsPositive, typename KeyOf, typename Negative, typename Positive>
__device__ unsigned select_hard_negatives_of_image(const IsPositive& is_positive, const KeyOf& key_of,
                                                   unsigned n_priors, double ratio, int64_t min_negatives,
                                                   BlockSums<3>& sums,
                                                   bool* selected,  // (P,)
                                                   const Negative& negative, const Positive& positive) {
  Bits keys[kMiningKeys];
  const auto load = [&](unsigned first) { load_mining_keys(is_positive, key_of, n_priors, first, keys); };
  if (kInRegisters) load(threadIdx.x);
  const auto for_each_batch = [&](const auto& function) {
    if (kInRegisters) {
      function(threadIdx.x);
    } else {
      for (unsigned first = threadIdx.x; first < n_priors; first += kMiningKeys * blockDim.x) {
        load(first);
        function(first);
      }
    }
  };
  const auto for_each_key = [&](const auto& function) {
    for_each_batch([&](unsigned first) {
      for (int i = 0; i < kMiningKeys; ++i) function(keys[i], first + i * blockDim.x);
    });
  };

  unsigned counts[3] = {};
  for_each_key([&](Bits key, unsigned) { counts[0] += key != 0; });
  sums.add(counts);
  const unsigned n_neg = counts[0];
  const auto k = static_cast<unsigned>(hard_negative_count(n_priors - n_neg, n_neg, ratio, min_negatives));
  Selection<Bits> hardest = {};
  if (k > 0) hardest = select_largest<Bits>(for_each_key, n_priors, n_neg, k, sums);
  for_each_batch([&](unsigned first) {
    // The positive priors, one bit each. They are few, and each costs much: a separate loop below handles them, one bit
    // of every lane at a time.
    unsigned positives = 0;
    for (int i = 0; i < kMiningKeys; ++i) {
      const unsigned prior = first + i * blockDim.x;
      if (prior >= n_priors) break;
      const bool is_selected = k > 0 && hardest.contains(keys[i], prior);
      selected[prior] = is_selected;
      if (is_selected) negative(keys[i]);
      positives |= static_cast<unsigned>(keys[i] == 0) << i;
    }
    for (; positives != 0; positives &= positives - 1) {
      positive(first + (__ffs(static_cast<int>(positives)) - 1) * blockDim.x);
    }
  });
  return n_priors - n_neg;
}

}  // namespace ssd_ext
