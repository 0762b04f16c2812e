// Greedy non-maximum suppression on the GPU: boxes (N, 4) xyxy, scores (N,), idxs (N,) -> (K,) int64.
//
// 1. The boxes are ranked by score, and the ranks are sorted by group (sort.cuh). After this, each group is a range of
//    positions.
// 2. Groups that lie inside one tile of 256 positions are joined into one segment; every other group is a segment of
//    its own.
// 3. In each round, every segment settles its band: the next 512 boxes that nothing has suppressed yet. A block owns a
//    tile of positions, and works for each segment that reaches into it (at most three). A round has two launches:
//    a. The blocks of a segment list its band, each for itself, and share the tests of the pairs of the band: a thread
//       tests 32 pairs and sets one bit for each.
//    b. They settle the band, bit by bit and all in the same way, and each tests the boxes that lie behind the band in
//       its own tile against the kept boxes of the band.
//    So the number of rounds depends on the number of kept boxes, and is N / 512 only if all boxes are kept.
// 4. The kept boxes are counted and written in the order of their ranks.
//
// After a few rounds, the host reads back the number of kept boxes, and whether more rounds may be needed; if so, it
// launches more. Memory is linear in N, with 64 bytes of pairs for each box.
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
constexpr int kBand = 512;  // boxes whose pairs fit into shared memory as bits
constexpr int kWords = kBand / 32;
constexpr int kScanned = 2048;  // positions that are searched at once for the boxes of a band
constexpr int kScannedWords = kScanned / 32;
// Rounds before the host asks whether more are needed; groups are seldom longer than two bands. An empty round takes
// 4 us, waiting for the device 8 us or more.
constexpr int kRounds = 8;
constexpr int kRoundsOfGroups = 2;
// Resident blocks of find_pairs_kernel per multiprocessor: 64 registers for a thread. Without this bound the compiler
// saves registers for more blocks, and spills.
constexpr int kPairBlocks = 4;
constexpr int kAtOnce = 4;  // kept boxes that a box is tested against at a time
static_assert(kTile <= kBand, "the segment inside a tile has one band");
static_assert(kScannedWords <= 2 * static_cast<int>(kWarpSize), "each lane of a warp counts two words");
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

// What is known about the segments; the entries of a segment are those of its first position.
struct Progress {
  int* begins;  // (N,) all positions before this one are settled
  int* counts;  // (N,) boxes of the band
  int* bands;   // (N,) positions of the boxes of the band, from the first position of the segment on
};

// How the blocks of a segment share its work.
struct Share {
  int index;  // of this block among the blocks of the segment; 0 has its first position
  int count;  // of these blocks
};

__device__ Share share_of(const Range& segment) {
  const int first = segment.begin / kTile;
  return {static_cast<int>(blockIdx.x) - first, (segment.end - 1) / kTile - first + 1};
}

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
                         Progress progress, int n) {
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
  progress.begins[i] = i;
  positions[i] = own;
  sorted[i] = load_box<T>(boxes, ranked[own.rank].index);
  alive[i] = true;
}

// ------------------------------------------------------------------------------------------------ suppression

// Lists the first positions of a range that are alive, at most kBand, in shared memory, with all threads of the block.
// Returns how many there are; kBand + 1 if there are more.
//   words: kScannedWords words in shared memory. There has to be a barrier before the next call.
__device__ int list_alive(const bool* alive, int begin, int end, int* list, unsigned* words) {
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const int warp = static_cast<int>(threadIdx.x / kWarpSize);
  constexpr int kWarps = kTile / static_cast<int>(kWarpSize);
  constexpr int kHalf = kScannedWords / 2;
  int found = 0;
  for (int first = begin; first < end && found <= kBand; first += kScanned) {
    if (first != begin) __syncthreads();  // no thread still reads the words
    for (int word = warp; word < kScannedWords; word += kWarps) {
      const int i = first + word * 32 + lane;
      const unsigned votes = __ballot_sync(kAllLanes, i < end && alive[i]);
      if (lane == 0) words[word] = votes;
    }
    __syncthreads();
    const unsigned low = lane < kHalf ? __popc(words[lane]) : 0;
    const unsigned high = lane < kHalf ? __popc(words[kHalf + lane]) : 0;
    for (int word = warp; word < kScannedWords; word += kWarps) {
      const unsigned before = warp_sum((lane < word ? low : 0) + (kHalf + lane < word ? high : 0));
      const int rank = found + static_cast<int>(before) + __popc(words[word] & ((1u << lane) - 1));
      if ((words[word] >> lane & 1) && rank < kBand) list[rank] = first + word * 32 + lane;
    }
    found += static_cast<int>(warp_sum(low + high));
  }
  __syncthreads();
  return min(found, kBand + 1);
}

// Lists the bands of a round, and tests their pairs. Word w of the pairs of box k of a band: bit b says whether the box
// suppresses box 32 * w + b of its band, for later boxes only. Words before the word of the box itself are not written.
template <typename T>
__global__ void __launch_bounds__(kTile, kPairBlocks)
    find_pairs_kernel(const Position* __restrict__ positions,  // (N,)
                      const Box<T>* __restrict__ sorted,       // (N,)
                      const bool* __restrict__ alive,          // (N,)
                      Progress progress,
                      unsigned* __restrict__ pairs,  // (kWords, N); box k is at the k-th position of its segment
                      unsigned* __restrict__ more,   // set to 1 if boxes may be alive behind a band; may be null
                      T threshold, int n) {
  SHARED_ARRAY(int, band, kBand);
  SHARED_ARRAY(unsigned, words, kScannedWords);
  const int tile_begin = static_cast<int>(blockIdx.x) * kTile;
  const int tile_end = n - tile_begin < kTile ? n : tile_begin + kTile;
  Range segment;
  for (int at = tile_begin; at < tile_end; at = segment.end) {
    segment = positions[at].segment;
    if (at != tile_begin) __syncthreads();  // no thread still reads the shared memory of the segment before
    const int found = list_alive(alive, progress.begins[segment.begin], segment.end, band, words);
    const int count = min(found, kBand);
    const Share share = share_of(segment);
    if (share.index == 0) {
      for (int k = threadIdx.x; k < count; k += kTile) progress.bands[segment.begin + k] = band[k];
      if (threadIdx.x == 0) progress.counts[segment.begin] = count;
      if (threadIdx.x == 0 && more != nullptr && found > kBand) atomicMax(more, 1u);
    }
    const int n_items = (count + 31) / 32 * count;
    for (int item = share.index * kTile + static_cast<int>(threadIdx.x); item < n_items; item += share.count * kTile) {
      const int word = item / count;
      const int k = item % count;
      if (word < k / 32) continue;
      const Box<T> box = sorted[band[k]];
      const int group_end = positions[band[k]].group_end;
      const int first = word * 32;
      const int last = count < first + 32 ? count : first + 32;
      unsigned bits = 0;
      for (int j = first > k ? first : k + 1; j < last && band[j] < group_end; ++j) {
        if (suppresses(box, sorted[band[j]], threshold)) bits |= 1u << (j - first);
      }
      pairs[static_cast<int64_t>(word) * n + segment.begin + k] = bits;
    }
  }
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
__device__ __forceinline__ int keep_of_band(const int* band,        // (size,) positions
                                            int size,
                                            const Box<T>* sorted,   // (N,)
                                            const unsigned* pairs,  // (kWords, N), from the first box of the band on
                                            int n,
                                            Box<T>* kept_boxes,      // shared; holds the pairs first
                                            unsigned* kept_words) {  // (kWords,), shared
  auto* const rows = reinterpret_cast<unsigned*>(kept_boxes);        // (kWords, kBand)
  const unsigned lane = threadIdx.x % kWarpSize;
  const int n_words = (size + 31) / 32;
  for (int k = threadIdx.x; k < kBand; k += kTile) {
    unsigned words[kWords];  // all loads are in flight at once
    for (int word = 0; word < kWords; ++word) {
      const bool is_set = k < size && k / 32 <= word && word < n_words;
      words[word] = is_set ? pairs[static_cast<int64_t>(word) * n + k] : 0;
    }
    for (int word = 0; word < kWords; ++word) rows[word * kBand + k] = words[word];
  }
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    const int left = size - static_cast<int>(lane) * 32;  // boxes of this lane's word and of those behind it
    const unsigned alive = left >= 32 ? kAllLanes : left > 0 ? (1u << left) - 1 : 0;
    const unsigned word = settle_band(alive, rows, n_words);
    if (lane < kWords) kept_words[lane] = word;
  }
  __syncthreads();
  int n_kept = 0;
  for (int word = 0; word < n_words; ++word) {
    const unsigned bits = kept_words[word];
    if (threadIdx.x / kWarpSize == word % (kTile / kWarpSize) && bits >> lane & 1) {
      kept_boxes[n_kept + __popc(bits & ((1u << lane) - 1))] = sorted[band[word * 32 + static_cast<int>(lane)]];
    }
    n_kept += __popc(bits);
  }
  __syncthreads();
  return n_kept;
}

// Settles the bands of a round, and drops the boxes behind them that they suppress.
template <typename T>
__global__ void __launch_bounds__(kTile)
    suppress_kernel(const Position* __restrict__ positions,  // (N,)
                    const Box<T>* __restrict__ sorted,       // (N,)
                    const unsigned* __restrict__ pairs,      // (kWords, N)
                    bool* __restrict__ alive,                // (N,)
                    Progress progress,
                    bool* __restrict__ is_kept,  // (N,) by rank; false at the start
                    T threshold, int n) {
  SHARED_ARRAY(Box<T>, kept_boxes, kWords * kBand * sizeof(unsigned) / sizeof(Box<T>));
  SHARED_ARRAY(unsigned, kept_words, kWords);

  const int tile_begin = static_cast<int>(blockIdx.x) * kTile;
  const int tile_end = n - tile_begin < kTile ? n : tile_begin + kTile;
  const int i = tile_begin + static_cast<int>(threadIdx.x);

  Range segment;
  for (int at = tile_begin; at < tile_end; at = segment.end) {
    segment = positions[at].segment;
    const int size = progress.counts[segment.begin];
    const int* const band = progress.bands + segment.begin;
    const int behind = size > 0 ? band[size - 1] + 1 : segment.end;  // the first position behind the band
    const bool is_first = share_of(segment).index == 0;
    if (is_first && threadIdx.x == 0) progress.begins[segment.begin] = behind;
    // After this barrier, no thread still reads the shared memory of the segment before.
    const bool waits = i >= behind && i < segment.end && i < tile_end && alive[i];
    if (!__syncthreads_or(waits || (is_first && size > 0))) continue;

    const int n_kept = keep_of_band(band, size, sorted, pairs + segment.begin, n, kept_boxes, kept_words);
    for (int k = threadIdx.x; is_first && k < size; k += kTile) {
      if (kept_words[k / 32] >> (k % 32) & 1) is_kept[positions[band[k]].rank] = true;
    }
    if (waits && any_suppresses(kept_boxes, n_kept, sorted[i], threshold)) alive[i] = false;
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

// What the host has to know after some rounds.
struct Summary {
  unsigned n_kept;  // so far
  unsigned more;    // 1: more rounds may be needed
};

// Reads the summary that the device computes; waits for it.
Summary read_back(const Summary* summary, cudaStream_t stream) {
  Summary value = {};
  STD_CUDA_CHECK(cudaMemcpyAsync(&value, summary, sizeof value, cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  return value;
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
  const Scratch<int> numbers(boxes, int64_t(n) * 3);
  const Progress progress = {numbers.data(), numbers.data() + n, numbers.data() + 2 * int64_t(n)};
  const int64_t output_blocks = ceil_div(n, kOutputThreads);
  const Scratch<unsigned> counts(boxes, output_blocks);
  const Scratch<Summary> summary(boxes, 1);
  STD_CUDA_CHECK(cudaMemsetAsync(is_kept.data(), 0, n, stream));
  const int64_t tiles = ceil_div(n, kTile);
  launch(set_positions_kernel<scalar_t, T>, tiles, kTile, stream, boxes.const_data_ptr<scalar_t>(), ranked, grouped,
         positions.data(), sorted.data(), alive.data(), progress, n);
  Summary found = {0, 1};
  for (int64_t left = ceil_div(n, kBand); left > 0 && found.more != 0;) {  // no segment needs more rounds than that
    STD_CUDA_CHECK(cudaMemsetAsync(summary.data(), 0, sizeof(Summary), stream));
    for (int round = grouped != nullptr ? kRoundsOfGroups : kRounds; round > 0 && left > 0; --round, --left) {
      launch(find_pairs_kernel<T>, tiles, kTile, stream, positions.data(), sorted.data(), alive.data(), progress,
             pairs.data(), round == 1 ? &summary.data()->more : nullptr, threshold, n);
      launch(suppress_kernel<T>, tiles, kTile, stream, positions.data(), sorted.data(), pairs.data(), alive.data(),
             progress, is_kept.data(), threshold, n);
    }
    launch(count_kept_kernel, output_blocks, kOutputThreads, stream, is_kept.data(), counts.data(),
           &summary.data()->n_kept, n);
    found = read_back(summary.data(), stream);
  }
  const Tensor out = torch::stable::new_empty(boxes, {static_cast<int64_t>(found.n_kept)}, ScalarType::Long);
  launch(write_kept_kernel, output_blocks, kOutputThreads, stream, is_kept.data(), counts.data(), ranked,
         out.mutable_data_ptr<int64_t>(), n);
  return out;
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
