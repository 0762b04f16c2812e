// Greedy non-maximum suppression on the GPU: boxes (N, 4) xyxy, scores (N,), idxs (N,) -> (K,) int64.
//
// 1. The boxes are ranked by score, and the ranks are sorted by group (sort.cuh). After this, each group is a range of
//    positions.
// 2. Groups that lie inside one tile of 256 positions are joined into one segment; every other group is a segment of
//    its own. A segment is cut into bands of 512 positions.
// 3. All pairs inside a band are tested at once: a thread tests 32 pairs and sets one bit for each.
// 4. There is one launch for each round r, up to N / 512 rounds. A block owns a tile of positions. For each segment
//    that reaches into the tile (at most three) it settles band r, bit by bit, and tests the boxes that lie behind the
//    band in its own tile against the kept boxes of the band. All blocks of a segment settle its band in the same way,
//    so that a round needs one launch and no second pass over the band.
// 5. The kept boxes are counted and written in the order of their ranks.
//
// The host waits for the size of the output, between the two parts of 5. It also waits for the length of the longest
// segment if there are groups and there may be more than a few rounds. Memory is linear in N, with 64 bytes of pairs
// for each box.
#include "nms/nms.h"

#include "core/box_math.h"
#include "core/cuda/block_ops.cuh"
#include "core/cuda/launch.cuh"
#include "core/cuda/scratch.cuh"
#include "core/cuda/settle.cuh"
#include "core/cuda/sort.cuh"

#include <optional>

namespace ssd_ext {
namespace {

constexpr int kTile = 256;  // positions, and threads of a block
constexpr int kBand = 512;  // positions whose pairs fit into shared memory as bits
constexpr int kWords = kBand / 32;
constexpr int kFewRounds = 4;  // an empty launch takes 2 us, reading the number of rounds from the device 8 us or more
constexpr int kAtOnce = 4;  // kept boxes that a box is tested against at a time
static_assert(kTile <= kBand, "the segment inside a tile has one band");
static_assert(kWords <= static_cast<int>(kWarpSize), "each lane of a warp keeps one word");

struct Range {
  int begin, end;  // positions
};

// The data of a position.
struct Position {
  Range segment;
  int group_end;
  unsigned rank;
};

// ---------------------------------------------------------------------------------------------- the positions

template <typename scalar_t>
struct ScoreKey {
  const scalar_t* scores;  // (N,)

  __device__ RankKey operator()(int64_t i) const {
    return {descending_bits(static_cast<compute_t<scalar_t>>(scores[i])), static_cast<uint32_t>(i)};
  }
};

template <typename id_t>
struct GroupKey {
  const id_t* ids;        // (N,)
  const RankKey* ranked;  // (N,) boxes by rank

  __device__ RankKey operator()(int64_t rank) const {
    return {static_cast<uint64_t>(ids[ranked[rank].index]), static_cast<uint32_t>(rank)};
  }
};

// The number of keys whose group comes before this group. If `with`, the keys of this group are counted too.
__device__ int count_before(const RankKey* grouped, int n, uint64_t group, bool with) {
  int low = 0;
  int high = n;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    const uint64_t other = grouped[middle].high;
    if (other < group || (with && other == group)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ Range group_at(const RankKey* grouped, int n, int i) {
  const uint64_t group = grouped[i].high;
  return {count_before(grouped, n, group, false), count_before(grouped, n, group, true)};
}

template <typename scalar_t, typename T>
__global__ void __launch_bounds__(kTile)
    set_positions_kernel(const scalar_t* __restrict__ boxes,   // (N, 4) xyxy
                         const RankKey* __restrict__ ranked,   // (N,) boxes by rank
                         const RankKey* __restrict__ grouped,  // (N,) ranks by group; null: all in one
                         Position* __restrict__ positions,     // (N,)
                         Box<T>* __restrict__ sorted,          // (N,) the boxes, by position
                         bool* __restrict__ alive,             // (N,) by position: nothing suppresses it yet
                         unsigned* __restrict__ longest,       // length of a segment, 0 at the start; may be null
                         int n) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x;
  if (at >= n) return;
  const int i = static_cast<int>(at);
  Position own = {{0, n}, n, static_cast<unsigned>(i)};
  if (grouped != nullptr) {
    const Range group = group_at(grouped, n, i);
    const int tile_begin = i - static_cast<int>(threadIdx.x);
    const int tile_end = n - tile_begin < kTile ? n : tile_begin + kTile;
    own = {group, group.end, grouped[i].index};
    if (group.begin >= tile_begin && group.end <= tile_end) {
      const Range first = group_at(grouped, n, tile_begin);
      const Range last = group_at(grouped, n, tile_end - 1);
      own.segment.begin = first.begin < tile_begin ? first.end : tile_begin;
      own.segment.end = last.end > tile_end ? last.begin : tile_end;
    }
  }
  if (longest != nullptr && i == own.segment.begin) atomicMax(longest, static_cast<unsigned>(own.segment.end - i));
  positions[i] = own;
  sorted[i] = load_box<T>(boxes, ranked[own.rank].index);
  alive[i] = true;
}

// ------------------------------------------------------------------------------------------------ suppression

// Word w of the pairs of a position: bit b says whether its box suppresses the box at position 32 * w + b of its band,
// for later positions only. Words before the word of the position itself are not written.
template <typename T>
__global__ void __launch_bounds__(kTile)
    find_pairs_kernel(const Position* __restrict__ positions,  // (N,)
                      const Box<T>* __restrict__ sorted,       // (N,)
                      unsigned* __restrict__ pairs,            // (kWords, N)
                      T threshold, int n) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x;
  if (at >= static_cast<int64_t>(n) * kWords) return;
  const int word = static_cast<int>(at / n);
  const int i = static_cast<int>(at % n);
  const Position own = positions[i];
  const int in_band = (i - own.segment.begin) % kBand;
  if (word < in_band / 32) return;
  const int first = i - in_band + word * 32;  // the position of bit 0
  const Box<T> box = sorted[i];
  unsigned bits = 0;
  const int last = own.group_end < first + 32 ? own.group_end : first + 32;
  for (int j = first > i ? first : i + 1; j < last; ++j) {
    if (suppresses(box, sorted[j], threshold)) bits |= 1u << (j - first);
  }
  pairs[at] = bits;
}

// Settles a band, by one warp: returns which of the boxes still alive are kept. Lane w has word w of the band.
//   rows: kWords rows of pairs in shared memory
__device__ unsigned settle_band(unsigned alive, const unsigned* rows, int n_words) {
  const unsigned lane = threadIdx.x % kWarpSize;
  unsigned own_kept = 0;  // bit w: whether this lane's box of word w is kept
  for (int word = 0; word < n_words; ++word) {
    const unsigned* const row = rows + word * kBand + lane;
    unsigned suppressed = 0;  // by the kept boxes of this lane in the words before
    for (int before = 0; before < word; ++before) {
      suppressed |= row[before * 32] & (own_kept >> before & 1 ? kAllLanes : 0);
    }
    const unsigned left = __shfl_sync(kAllLanes, alive, word) & ~warp_or(suppressed);
    const unsigned kept = settle(left, row[word * 32]);
    own_kept |= (kept >> lane & 1) << word;
    if (static_cast<int>(lane) == word) alive = kept;
  }
  return alive;
}

// Whether one of n kept boxes suppresses a box. Few of them overlap it much, so most are ruled out kAtOnce at a time,
// without a branch between them and without a division.
template <typename T>
__device__ bool any_suppresses(const Box<T>* kept, int n, const Box<T>& box, T threshold) {
  const T box_area = area(box);
  for (int first = 0; first < n; first += kAtOnce) {
    bool may = threshold < T(0);
    for (int k = first; k < first + kAtOnce; ++k) {
      const Box<T> other = kept[k < n ? k : n - 1];  // past the end, the last one again
      may |= iou_may_exceed(overlap(other, area(other), box, box_area), threshold);
    }
    if (!may) continue;
    for (int k = first; k < first + kAtOnce && k < n; ++k) {
      if (suppresses(kept[k], box, threshold)) return true;
    }
  }
  return false;
}

// Settles a band, with all threads of the block; returns how many of its boxes are kept.
//   kept_words: one bit for each box of the band, set if the box is kept
template <typename T>
__device__ __forceinline__ int keep_of_band(const Range& band,
                                            const Box<T>* sorted,   // (N,)
                                            const unsigned* pairs,  // (kWords, N)
                                            const bool* alive,      // (N,)
                                            int n,
                                            Box<T>* kept_boxes,      // shared; holds the pairs first
                                            unsigned* kept_words) {  // (kWords,), shared
  auto* const rows = reinterpret_cast<unsigned*>(kept_boxes);        // (kWords, kBand)
  const unsigned lane = threadIdx.x % kWarpSize;
  const int size = band.end - band.begin;
  const int n_words = (size + 31) / 32;
  for (int k = threadIdx.x; k < kBand; k += kTile) {
    const unsigned votes = __ballot_sync(kAllLanes, k < size && alive[band.begin + k]);
    if (lane == 0) kept_words[k / 32] = votes;
    unsigned words[kWords];  // all loads are in flight at once
    for (int word = 0; word < kWords; ++word) {
      const bool is_set = k < size && k / 32 <= word && word < n_words;
      words[word] = is_set ? pairs[static_cast<int64_t>(word) * n + band.begin + k] : 0;
    }
    for (int word = 0; word < kWords; ++word) rows[word * kBand + k] = words[word];
  }
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    const unsigned word = settle_band(lane < kWords ? kept_words[lane] : 0, rows, n_words);
    if (lane < kWords) kept_words[lane] = word;
  }
  __syncthreads();
  int n_kept = 0;
  for (int word = 0; word < n_words; ++word) {
    const unsigned bits = kept_words[word];
    if (threadIdx.x / kWarpSize == word % (kTile / kWarpSize) && bits >> lane & 1) {
      kept_boxes[n_kept + __popc(bits & ((1u << lane) - 1))] = sorted[band.begin + word * 32 + lane];
    }
    n_kept += __popc(bits);
  }
  __syncthreads();
  return n_kept;
}

template <typename T>
__global__ void __launch_bounds__(kTile)
    suppress_kernel(const Position* __restrict__ positions,  // (N,)
                    const Box<T>* __restrict__ sorted,       // (N,)
                    const unsigned* __restrict__ pairs,      // (kWords, N)
                    bool* __restrict__ alive,                // (N,)
                    bool* __restrict__ is_kept,              // (N,) by rank; false at the start
                    T threshold, int n, int round) {
  SHARED_ARRAY(Box<T>, kept_boxes, kWords * kBand * sizeof(unsigned) / sizeof(Box<T>));
  SHARED_ARRAY(unsigned, kept_words, kWords);

  const int tile_begin = static_cast<int>(blockIdx.x) * kTile;
  const int tile_end = n - tile_begin < kTile ? n : tile_begin + kTile;
  const int i = tile_begin + static_cast<int>(threadIdx.x);

  Range segment;
  for (int at = tile_begin; at < tile_end; at = segment.end) {
    segment = positions[at].segment;
    if ((segment.end - segment.begin - 1) / kBand < round) continue;
    const int begin = segment.begin + round * kBand;
    const Range band = {begin, segment.end - begin < kBand ? segment.end : begin + kBand};
    // After this barrier, no thread still reads the shared memory of the segment before.
    const bool waits = i >= at && i >= begin && i < segment.end && i < tile_end && alive[i];
    if (!__syncthreads_or(waits)) continue;

    const int n_kept = keep_of_band(band, sorted, pairs, alive, n, kept_boxes, kept_words);
    if (!waits) continue;
    if (i < band.end) {
      if (kept_words[(i - begin) / 32] >> ((i - begin) % 32) & 1) is_kept[positions[i].rank] = true;
    } else if (any_suppresses(kept_boxes, n_kept, sorted[i], threshold)) {
      alive[i] = false;
    }
  }
}

// ------------------------------------------------------------------------------------------------- the output

constexpr int kOutputThreads = 256;

__global__ void __launch_bounds__(kOutputThreads)
    count_kept_kernel(const bool* __restrict__ is_kept,  // (N,) by rank
                      unsigned* __restrict__ counts,     // (blocks,)
                      unsigned* __restrict__ total,      // 0 at the start
                      int64_t n) {
  const int64_t rank = static_cast<int64_t>(blockIdx.x) * kOutputThreads + threadIdx.x;
  const unsigned count = __syncthreads_count(rank < n && is_kept[rank]);
  if (threadIdx.x == 0) {
    counts[blockIdx.x] = count;
    atomicAdd(total, count);
  }
}

__global__ void __launch_bounds__(kOutputThreads)
    write_kept_kernel(const bool* __restrict__ is_kept,    // (N,) by rank
                      const unsigned* __restrict__ counts,  // (blocks,)
                      const RankKey* __restrict__ ranked,   // (N,) boxes by rank
                      int64_t* __restrict__ out,            // (K,)
                      int64_t n) {
  using Sums = BlockSums<1>;
  SHARED_ARRAY(unsigned, shared_sums, Sums::kShared);
  SHARED_ARRAY(unsigned, warp_counts, kOutputThreads / kWarpSize);
  Sums sums(shared_sums);
  unsigned before[1] = {};
  for (unsigned block = threadIdx.x; block < blockIdx.x; block += kOutputThreads) before[0] += counts[block];
  sums.add(before);
  const int64_t rank = static_cast<int64_t>(blockIdx.x) * kOutputThreads + threadIdx.x;
  const bool kept = rank < n && is_kept[rank];
  const unsigned kept_before = before[0] + block_rank(kept, warp_counts);
  if (kept) out[kept_before] = ranked[rank].index;
}

// Reads a number that the device computes; waits for it.
unsigned read_back(const unsigned* number, cudaStream_t stream) {
  unsigned value = 0;
  STD_CUDA_CHECK(cudaMemcpyAsync(&value, number, sizeof value, cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  return value;
}

Tensor write_kept(const bool* is_kept, const RankKey* ranked, int64_t n, const Tensor& like, cudaStream_t stream) {
  const int64_t blocks = ceil_div(n, kOutputThreads);
  const Scratch<unsigned> counts(like, blocks + 1);
  unsigned* const total = counts.data() + blocks;
  STD_CUDA_CHECK(cudaMemsetAsync(total, 0, sizeof *total, stream));
  launch(count_kept_kernel, blocks, kOutputThreads, stream, is_kept, counts.data(), total, n);
  const int64_t n_kept = read_back(total, stream);
  const Tensor out = torch::stable::new_empty(like, {n_kept}, ScalarType::Long);
  launch(write_kept_kernel, blocks, kOutputThreads, stream, is_kept, counts.data(), ranked,
         out.mutable_data_ptr<int64_t>(), n);
  return out;
}

// --------------------------------------------------------------------------------------------------- the ops

// ranked and grouped as in set_positions_kernel.
template <typename scalar_t>
Tensor nms_of_sorted(const Tensor& boxes, const RankKey* ranked, const RankKey* grouped,
                     double iou_threshold, cudaStream_t stream) {
  using T = compute_t<scalar_t>;
  const auto n = static_cast<int>(boxes.size(0));
  const auto threshold = rounded_down<T>(iou_threshold);
  const Scratch<Position> positions(boxes, n);
  const Scratch<Box<T>> sorted(boxes, n);
  const Scratch<bool> alive(boxes, n);
  const Scratch<bool> is_kept(boxes, n);
  const Scratch<unsigned> pairs(boxes, int64_t(n) * kWords);
  STD_CUDA_CHECK(cudaMemsetAsync(is_kept.data(), 0, n, stream));
  int64_t rounds = ceil_div(n, kBand);
  const bool asks = grouped != nullptr && rounds > kFewRounds;
  const Scratch<unsigned> longest(boxes, 1);
  if (asks) STD_CUDA_CHECK(cudaMemsetAsync(longest.data(), 0, sizeof(unsigned), stream));
  launch(set_positions_kernel<scalar_t, T>, ceil_div(n, kTile), kTile, stream, boxes.const_data_ptr<scalar_t>(),
         ranked, grouped, positions.data(), sorted.data(), alive.data(), asks ? longest.data() : nullptr, n);
  launch(find_pairs_kernel<T>, ceil_div(int64_t(n) * kWords, kTile), kTile, stream, positions.data(), sorted.data(),
         pairs.data(), threshold, n);
  if (asks) rounds = ceil_div(read_back(longest.data(), stream), kBand);
  for (int round = 0; round < rounds; ++round) {
    launch(suppress_kernel<T>, ceil_div(n, kTile), kTile, stream, positions.data(), sorted.data(), pairs.data(),
           alive.data(), is_kept.data(), threshold, n, round);
  }
  return write_kept(is_kept.data(), ranked, n, boxes, stream);
}

// idxs: null if all boxes are in one group.
Tensor nms_of_groups(const Tensor& boxes, const Tensor& scores, const Tensor* idxs, double iou_threshold) {
  const DeviceGuard guard(boxes.get_device_index());
  const int64_t n = boxes.size(0);
  if (n == 0) return torch::stable::new_empty(scores, {0}, ScalarType::Long);

  const Tensor all_boxes = as_contiguous(boxes);
  const Tensor all_scores = as_contiguous(scores);
  const cudaStream_t stream = current_stream(boxes);
  std::optional<Scratch<RankKey>> ranked, grouped;
  dispatch_floating_dtype(scores.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const ScoreKey<scalar_t> score_key = {all_scores.const_data_ptr<scalar_t>()};
    ranked = sorted_keys(score_key, n, boxes, stream);
  });
  if (idxs != nullptr) {
    const Tensor ids = as_contiguous(*idxs);
    dispatch_id_dtype(ids.scalar_type(), [&](auto zero) {
      using id_t = decltype(zero);
      const GroupKey<id_t> group_key = {ids.const_data_ptr<id_t>(), ranked->data()};
      grouped = sorted_keys(group_key, n, boxes, stream);
    });
  }
  std::optional<Tensor> out;
  dispatch_floating_dtype(boxes.scalar_type(), [&](auto zero) {
    out = nms_of_sorted<decltype(zero)>(all_boxes, ranked->data(), grouped ? grouped->data() : nullptr,
                                        iou_threshold, stream);
  });
  return *out;
}

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_scored_boxes(boxes, scores);
  return nms_of_groups(boxes, scores, nullptr, iou_threshold);
}

Tensor batched_nms_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  check_scored_boxes(boxes, scores);
  check_idxs(idxs, scores);
  return nms_of_groups(boxes, scores, &idxs, iou_threshold);
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CUDA, m) {
  m.impl("nms", TORCH_BOX(&ssd_ext::nms_cuda));
  m.impl("batched_nms", TORCH_BOX(&ssd_ext::batched_nms_cuda));
}
