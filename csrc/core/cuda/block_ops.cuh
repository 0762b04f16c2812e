// Operations of all threads of a block: counting, selecting the largest of many keys, adding.
//
// Counters are integers, and other numbers are added in a fixed order, so that the order in which threads and warps
// arrive changes no result. All threads of the block have to call these functions, and a block has whole warps only.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace ssd_ext {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffff;

// Over a warp, with the result in every lane: the sum, the bits that any lane has set, the largest.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // has no instructions for these
template <typename Operation>
__device__ __forceinline__ unsigned warp_reduce(unsigned value, const Operation& operation) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = operation(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}
__device__ __forceinline__ unsigned warp_sum(unsigned value) {
  return warp_reduce(value, [](unsigned a, unsigned b) { return a + b; });
}
__device__ __forceinline__ unsigned warp_or(unsigned bits) {
  return warp_reduce(bits, [](unsigned a, unsigned b) { return a | b; });
}
__device__ __forceinline__ unsigned warp_max(unsigned value) {
  return warp_reduce(value, [](unsigned a, unsigned b) { return max(a, b); });
}
#else
__device__ __forceinline__ unsigned warp_sum(unsigned value) { return __reduce_add_sync(kAllLanes, value); }
__device__ __forceinline__ unsigned warp_or(unsigned bits) { return __reduce_or_sync(kAllLanes, bits); }
__device__ __forceinline__ unsigned warp_max(unsigned value) { return __reduce_max_sync(kAllLanes, value); }
#endif

__device__ __forceinline__ uint64_t warp_max(uint64_t value) {
  const auto own = static_cast<unsigned>(value >> 32);
  const unsigned high = warp_max(own);
  const unsigned low = warp_max(own == high ? static_cast<unsigned>(value) : 0u);
  return uint64_t(high) << 32 | low;
}

// Adds kCounters counters over a block; add() can be called repeatedly, with one barrier in each call.
template <int kCounters>
class BlockSums {
 public:
  // Three sets of sums are used in turn: one is added to, the next is set to 0 meanwhile, and other threads may still
  // read the one before.
  static constexpr int kShared = 3 * kCounters;
  static_assert(kShared <= static_cast<int>(kWarpSize), "a block has a thread for each");

  // shared: kShared counters in shared memory.
  __device__ explicit BlockSums(unsigned* shared) : shared_(shared) {
    if (threadIdx.x < kShared) shared_[threadIdx.x] = 0;
    __syncthreads();
  }

  // Replaces each counter by its sum over all threads.
  __device__ void add(unsigned (&counters)[kCounters]) {
    unsigned* const sums = shared_ + set_ * kCounters;
    set_ = (set_ + 1) % 3;
    for (int i = 0; i < kCounters; ++i) {
      const unsigned sum = warp_sum(counters[i]);
      if (threadIdx.x % kWarpSize == 0) atomicAdd(sums + i, sum);
    }
    if (threadIdx.x < kCounters) shared_[set_ * kCounters + threadIdx.x] = 0;
    __syncthreads();
    for (int i = 0; i < kCounters; ++i) counters[i] = sums[i];
  }

 private:
  unsigned* const shared_;
  int set_ = 0;
};

// The number of threads before this one for which the predicate holds. warp_counts: one counter in shared memory
// for each warp of the block.
__device__ inline unsigned block_rank(bool predicate, unsigned* warp_counts) {
  const unsigned lane = threadIdx.x % kWarpSize;
  const unsigned warp = threadIdx.x / kWarpSize;
  const unsigned votes = __ballot_sync(kAllLanes, predicate);
  if (lane == 0) warp_counts[warp] = __popc(votes);
  __syncthreads();
  unsigned rank = __popc(votes & ((1u << lane) - 1));
  for (unsigned i = 0; i < warp; ++i) rank += warp_counts[i];
  return rank;
}

// LaneSums::total of lane_sums.h, with thread i as lane i: thread 0 gets the sum of the numbers of the kLanes threads
// of the block. shared: kLanes numbers in shared memory, which the next call may use again; a block of one warp needs
// none.
template <int kLanes, typename T>
__device__ T sum_of_lanes(T number, T* shared = nullptr) {
  // With a single step over shared memory, the next call could overwrite a number that this call has not read yet.
  static_assert(kLanes == kWarpSize || kLanes >= 4 * kWarpSize, "one warp, or at least four");
  const int lane = threadIdx.x;
  int half = kLanes / 2;
  for (; half >= static_cast<int>(kWarpSize); half /= 2) {
    // Each step has its own part of the array, so one barrier for each step is enough.
    if (half <= lane && lane < 2 * half) shared[lane] = number;
    __syncthreads();
    if (lane < half) number += shared[half + lane];
  }
  for (; half > 0; half /= 2) number += __shfl_down_sync(kAllLanes, number, half);
  return number;
}

// The keys above `value`, and the keys equal to `value` with an index up to `last`.
template <typename Bits>
struct Selection {
  Bits value;
  unsigned last;

  __device__ bool contains(Bits key, unsigned index) const {
    return key > value || (key == value && index <= last);
  }
};

// Selects the k largest keys of the block; of equal keys, those with the lowest index. A key of 0 is never selected.
//
// Each pass over the keys finds two bits of the k-th largest key. Then each pass finds two bits of the index of the
// last selected key that equals it. There is no sort, and the number of passes has a bound, whatever the keys are.
//
//   for_each_key(f): calls f(key, index) for each key of this thread
//   n:               number of keys of the block; all indices are below n
//   n_candidates:    number of keys that are not 0, at least k
//   k:               at least 1
template <typename Bits, typename ForEachKey>
__device__ Selection<Bits> select_largest(const ForEachKey& for_each_key, unsigned n, unsigned n_candidates,
                                          unsigned k, BlockSums<3>& sums) {
  // The largest value such that at least k keys are >= value, or any value such that exactly k keys are.
  Selection<Bits> selection = {1, kAllLanes};
  unsigned reaching = n_candidates;
  if (reaching == k) return selection;
  selection.value = 0;
  for (int shift = 8 * sizeof(Bits) - 2; shift >= 0 && reaching != k; shift -= 2) {
    unsigned counts[3] = {};
    for_each_key([&](Bits key, unsigned) {
      for (unsigned digit = 1; digit < 4; ++digit) {
        counts[digit - 1] += key >= (selection.value | Bits(digit) << shift);
      }
    });
    sums.add(counts);
    unsigned largest = 0;  // digit with a count of at least k; a larger digit has a smaller count
    for (unsigned digit = 1; digit < 4; ++digit) {
      if (counts[digit - 1] < k) continue;
      largest = digit;
      reaching = counts[digit - 1];
    }
    selection.value |= Bits(largest) << shift;
  }
  if (reaching == k) return selection;

  unsigned counts[3] = {};
  for_each_key([&](Bits key, unsigned) { counts[0] += key > selection.value; });
  sums.add(counts);
  const unsigned wanted = k - counts[0];  // number of keys to select that equal the value
  // The index of the last one is the largest index with fewer than `wanted` of these keys before it.
  selection.last = 0;
  int shift = 0;
  while (shift < 30 && n >> shift >= 4) shift += 2;
  for (; shift >= 0; shift -= 2) {
    unsigned before[3] = {};
    for_each_key([&](Bits key, unsigned index) {
      for (unsigned digit = 1; digit < 4; ++digit) {
        before[digit - 1] += key == selection.value && index < (selection.last | digit << shift);
      }
    });
    sums.add(before);
    unsigned largest = 0;  // the counts rise with the digit
    for (unsigned digit = 1; digit < 4; ++digit) {
      if (before[digit - 1] < wanted) largest = digit;
    }
    selection.last |= largest << shift;
  }
  return selection;
}

}  // namespace ssd_ext
