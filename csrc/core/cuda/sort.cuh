// Sorting of unique keys on the GPU. Since keys are unique, the result depends on the keys alone.
//
// The first launch sorts tiles of 1024 keys in shared memory (a bitonic network). Each further launch merges four runs
// at a time: the place of a key in the merged run is the number of smaller keys in the four runs, which a thread finds
// by bisection. 1 + log4(N / 1024) launches, rounded up.
#pragma once

#include "core/cuda/block_ops.cuh"
#include "core/cuda/launch.cuh"
#include "core/cuda/scratch.cuh"
#include "core/order.h"

#include <cstdint>
#include <utility>

namespace ssd_ext {

constexpr int kSortTile = 1024;
constexpr int kMergeThreads = 256;
constexpr int kMergedRuns = 4;  // at a time

// Sorts keys in shared memory, ascending, with a bitonic network; the block has a thread for every two keys. All
// threads of the block have to call it, after a barrier, and see the sorted keys afterwards.
//
// As long as the halves that are merged have at most 32 keys, a warp reads and writes only its own keys, which lie side
// by side, and no warp waits for another.
template <typename Key>
__device__ void sort_block(Key* keys, unsigned count) {
  // If `count` is not a power of two, the missing keys count as the largest. No exchange would move them, since every
  // exchange moves the larger key upwards.
  const unsigned t = threadIdx.x;
  const auto exchange = [&](bool among_warps, unsigned low, unsigned high) {
    if (among_warps) {
      __syncthreads();
    } else {
      __syncwarp();
    }
    if (high < count && keys[high] < keys[low]) {
      const Key key = keys[low];
      keys[low] = keys[high];
      keys[high] = key;
    }
  };
  for (unsigned half = 1; half < count; half *= 2) {
    // Merges two sorted halves. The first exchange compares the first half with the mirrored second half. The others
    // work within ever smaller parts, each half as large as a part of the exchange before. Warps have to wait for each
    // other if a part of this exchange or of the exchange before has more than the 2 * kWarpSize keys that one warp
    // owns. At the first exchange of a merge, its own parts (2 * half keys) are the larger ones; at the others, the
    // parts of the exchange before (4 * stride keys). `half` and `stride` are powers of two.
    const unsigned distance = t & (half - 1);
    const unsigned middle = 2 * t - 2 * distance + half;
    exchange(half > kWarpSize, middle - 1 - distance, middle + distance);
    for (unsigned stride = half / 2; stride > 0; stride /= 2) {
      const unsigned low = 2 * t - (t & (stride - 1));
      exchange(2 * stride > kWarpSize, low, low + stride);
    }
  }
  __syncthreads();
}

// make_key(i) gives the i-th of n keys.
template <typename MakeKey>
__global__ void __launch_bounds__(kSortTile / 2)
    sort_tiles_kernel(const MakeKey make_key, RankKey* __restrict__ keys, int64_t n) {
  SHARED_ARRAY(RankKey, tile, kSortTile);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kSortTile;
  const auto count = static_cast<unsigned>(n - begin < kSortTile ? n - begin : kSortTile);
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) tile[i] = make_key(begin + i);
  __syncthreads();
  sort_block(tile, count);
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) keys[begin + i] = tile[i];
}

// Merges kMergedRuns neighbouring sorted runs of `width` keys, a power of two; the last run may be shorter.
static __global__ void __launch_bounds__(kMergeThreads)
    merge_runs_kernel(const RankKey* __restrict__ runs,  // (N,)
                      RankKey* __restrict__ merged,      // (N,)
                      int64_t n, int64_t width) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kMergeThreads + threadIdx.x;
  if (i >= n) return;
  const RankKey key = runs[i];
  const int64_t first = i / (kMergedRuns * width) * (kMergedRuns * width);
  int64_t smaller[kMergedRuns] = {};  // keys of each run that are known to be smaller
  for (int64_t step = width; step > 0; step /= 2) {
    for (int run = 0; run < kMergedRuns; ++run) {  // a thread waits for the loads of all runs at once
      const int64_t count = smaller[run] + step;
      const int64_t last = first + run * width + count - 1;
      if (count <= width && last < n && runs[last] < key) smaller[run] = count;
    }
  }
  int64_t place = first;
  for (const int64_t count : smaller) place += count;
  merged[place] = key;
}

// The keys make_key(0), ..., make_key(n - 1), sorted; n >= 1.
template <typename MakeKey>
Scratch<RankKey> sorted_keys(const MakeKey& make_key, int64_t n, const Tensor& like, cudaStream_t stream) {
  Scratch<RankKey> keys(like, n);
  // One thread for two keys. A list shorter than a tile takes a smaller block, whose barriers are faster.
  unsigned threads = kSortTile / 2;
  while (threads > 32 && threads >= n) threads /= 2;
  launch(sort_tiles_kernel<MakeKey>, ceil_div(n, kSortTile), threads, stream, make_key, keys.data(), n);
  if (n <= kSortTile) return keys;
  Scratch<RankKey> merged(like, n);
  for (int64_t width = kSortTile; width < n; width *= kMergedRuns) {
    launch(merge_runs_kernel, ceil_div(n, kMergeThreads), kMergeThreads, stream, keys.data(), merged.data(), n, width);
    std::swap(keys, merged);
  }
  return keys;
}

}  // namespace ssd_ext
