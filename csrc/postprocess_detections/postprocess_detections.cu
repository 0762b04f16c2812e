// Detection on the GPU: pred_offsets (B, P, 4), pred_logits (B, P, C), priors (P, 4) cxcywh -> the best boxes
// (B, K, 4) of each image after softmax or sigmoid, threshold and non-maximum suppression in each class, their scores
// (B, K) and labels (B, K), and how many there are (B,).
//
// 1. find_candidates_kernel: a block owns a tile of rows of logits in shared memory, a thread one row. Every candidate
//    with a score above min_score is written to a list of its image as a key (postprocess_detections.h). The order of
//    the list has no effect, since keys are unique. A warp counts its candidates and reserves room for them in the list
//    with one atomic addition; a warp whose rows are all background needs no exponential. The list has room for all
//    priors with all classes, so no candidate can be lost. Reads the logits once, writes 8 bytes per candidate.
// 2. walk_candidates_kernel: a block owns an image. Only better boxes of its own class can suppress a box, so the block
//    walks the candidates of all classes together, best first, and stops when top_k are kept. It takes the next best
//    candidates from the list band by band, sorts a band in shared memory, decodes its boxes, and drops those that a
//    kept box suppresses. Then, in each round, it takes the next 32 candidates that nothing has suppressed yet, settles
//    them among themselves, and drops the later candidates of the band that one of the newly kept boxes suppresses. So
//    the number of rounds depends on the number of kept boxes, and not on that of candidates. The first kept boxes stay
//    in shared memory, the others are read back from the output. For each band, the block reads the list from the
//    second-level cache; if the list is longer than a band, it first reads a few of the keys. It also reads 32 bytes
//    per candidate of a band, and writes 28 bytes per row of the output.
//
// Images are processed in sub-batches, so that their lists fit into a fixed amount of memory.
#include "postprocess_detections/postprocess_detections.h"

#include "core/any_rows.h"
#include "core/cuda/block_ops.cuh"
#include "core/cuda/launch.cuh"
#include "core/cuda/row_tile.cuh"
#include "core/cuda/scratch.cuh"
#include "core/cuda/settle.cuh"
#include "core/cuda/sort.cuh"
#include "core/softmax.h"

#include <algorithm>

namespace ssd_ext {
namespace {

// Memory for the lists of a sub-batch, unless one image alone needs more. Each sub-batch waits for the slowest walk of
// the sub-batch before. SSD300 with 81 classes needs 5.6 MB for an image, a quarter of the memory of its first feature
// map.
constexpr int64_t kListBytes = 1 << 30;
// Resident blocks of find_candidates_kernel per multiprocessor: 64 registers for a thread. Without this bound the
// compiler saves registers for more blocks, and spills.
constexpr int kTileBlocks = 16;
constexpr int kWalkThreads = 512;
constexpr int kWalkWarps = kWalkThreads / kWarpSize;
constexpr int kBand = 1024;  // more candidates than a trained network finds in most images
// If the list is longer than a band, the lowest key of the band is guessed from one in kSparse runs of kRun
// neighbouring keys. A run is as much as one memory access reads. kSparse is prime, so that a periodic pattern in the
// list does not bias the sample.
constexpr int kRun = 4;
constexpr int kSparse = 17;
// The sampled key of this rank is the guess (see guess_begin). The band is then three fifths full on average.
constexpr int kSampleRank = kBand * 3 / 5 / kSparse;
constexpr int kBandWords = kBand / 32;
constexpr int kPicked = kWarpSize;  // candidates that are settled together
// Kept boxes in shared memory, one for each thread; the others are read from the output.
constexpr int kNearKept = kWalkThreads;
constexpr int kNearLabels = 512;  // classes whose counters are in shared memory
static_assert(kBand <= 2 * kWalkThreads, "sort_block has a thread for every two keys");
static_assert(kBandWords <= static_cast<int>(kWarpSize), "each lane of a warp reads one word");
static_assert(kBand % 32 == 0, "a warp changes whole words");
static_assert(kWalkThreads % kRun == 0, "threads read whole runs");

// -------------------------------------------------------------------------------------------- the candidates

template <typename scalar_t, int kTileBytes>
__global__ void __launch_bounds__(kMaxTileRows, kTileBlocks)
    find_candidates_kernel(const scalar_t* __restrict__ logits,  // (b, P, C)
                           uint64_t* __restrict__ keys,          // (b, P * (C - 1)), the lists
                           unsigned* __restrict__ counts,        // (b,), their lengths; 0 at the start
                           int64_t n_priors, int64_t n_classes, int64_t n_tiles, int tile_rows,
                           bool sigmoid_scores, float min_score, float least_difference) {
  using Tile = RowTile<scalar_t, kTileBytes>;
  SHARED_ARRAY(typename Tile::Unit, shared, Tile::kShared);
  const int64_t image = blockIdx.x / n_tiles;
  const int64_t first = blockIdx.x % n_tiles * tile_rows;
  const int n_rows = static_cast<int>(n_priors - first < tile_rows ? n_priors - first : tile_rows);
  const Tile tile(logits + (image * n_priors + first) * n_classes, n_rows, n_classes, shared);

  const int thread = threadIdx.x;
  if (thread / static_cast<int>(kWarpSize) * static_cast<int>(kWarpSize) >= n_rows) return;  // a warp without rows
  const bool has_row = thread < n_rows;
  const scalar_t* const row = tile.row(has_row ? thread : 0);
  const auto logit = [&](int64_t c) { return static_cast<float>(row[c]); };
  const float background = sigmoid_scores ? 0.0f : logit(0);
  // Most rows are background, and in many warps all rows are. A NaN difference excludes no row.
  float best = logit(1);
  for (int64_t c = 2; c < n_classes; ++c) best = larger(best, logit(c));
  const bool may_pass = has_row && !(best - background < least_difference);
  if (!__any_sync(kAllLanes, may_pass)) return;

  RowSum<float> whole = {};
  if (!sigmoid_scores) whole = sum_row<float>(logit, n_classes);
  const unsigned lane = threadIdx.x % kWarpSize;
  uint64_t* const list = keys + image * n_priors * (n_classes - 1);
  unsigned next = 0;  // counts the candidates, then the next free element of the list
  for (int pass = 0; pass < 2; ++pass) {
    const bool writes = pass == 1;  // in the first pass the warp only counts
    for (int64_t c = 1; c < n_classes; ++c) {
      bool passes = may_pass && !(logit(c) - background < least_difference);
      float score = 0;
      if (passes) {
        score = sigmoid_scores ? sigmoid(logit(c)) : exp_of_logit(logit(c), whole.maximum) / whole.sum;
        passes = score > min_score;
      }
      const unsigned votes = __ballot_sync(kAllLanes, passes);
      if (writes && passes) {
        list[next + __popc(votes & ((1u << lane) - 1))] = DetectionKey::pack(score, c - 1, first + thread, n_priors);
      }
      next += __popc(votes);
    }
    if (writes || next == 0) return;
    const unsigned begin = lane == 0 ? atomicAdd(counts + image, next) : 0;
    next = __shfl_sync(kAllLanes, begin, 0);
  }
}

// ------------------------------------------------------------------------------------------------- the bands

// The candidates of an image. Keys >= `bound` have been walked.
struct Candidates {
  const uint64_t* keys;  // (n,)
  int64_t n;
  uint64_t bound;
  // If the candidates of a class are limited: how many of each class were in the bands so far.
  const unsigned* walked;  // (C - 1,), or null
  int64_t limit;
  uint32_t n_priors;

  __device__ bool is_full(uint32_t label) const { return walked != nullptr && walked[label] >= limit; }

  // Calls function(key) for each waiting key of this thread; only one run out of `every` is read. A key waits if it has
  // not been walked and its class is not full.
  template <typename Function>
  __device__ void for_each_waiting(int every, const Function& function) const {
    constexpr int kBatch = 16;  // loads of a thread in flight
    const unsigned t = threadIdx.x;
    const int step = kWalkThreads * every;
    for (int64_t first = t / kRun * kRun * every + t % kRun; first < n; first += kBatch * step) {
      const int left = n - first < kBatch * step ? static_cast<int>(n - first) : kBatch * step;
      uint64_t batch[kBatch];
      for (int j = 0; j < kBatch; ++j) {
        batch[j] = j * step < left ? keys[first + j * step] : bound;  // `bound` itself is skipped below
      }
      for (const uint64_t key : batch) {
        if (key < bound && !is_full(DetectionKey::pair(key) / n_priors)) function(key);
      }
    }
  }
};

// Guesses the lowest key of a band. Each thread finds its best waiting key; only one run out of `every` is read.
// Returns the rank-th best of these keys; 0 if fewer than `rank` threads find a key.
//   best: kWalkThreads keys in shared memory. There has to be a barrier before they are used again.
__device__ uint64_t guess_begin(const Candidates& candidates, int every, int rank, uint64_t* best) {
  uint64_t own = 0;
  candidates.for_each_waiting(every, [&](uint64_t key) { own = key > own ? key : own; });
  best[threadIdx.x] = ~own;
  __syncthreads();
  sort_block(best, kWalkThreads);
  return ~best[rank - 1];
}

// Writes the waiting keys >= `begin` to the band, as many as fit; returns how many there are.
__device__ unsigned fill_band(const Candidates& candidates, uint64_t begin, uint64_t* band, unsigned* shared_count) {
  if (threadIdx.x == 0) *shared_count = 0;
  __syncthreads();
  candidates.for_each_waiting(1, [&](uint64_t key) {
    if (key < begin) return;
    const unsigned i = atomicAdd(shared_count, 1u);
    if (i < kBand) band[i] = ~key;
  });
  __syncthreads();
  return *shared_count;
}

// Takes the next best candidates of those that wait, at most kBand; returns their number, 0 at the end.
//   band: in shared memory, for their keys. The keys are inverted, so that the best is the smallest.
__device__ unsigned take_band(Candidates& candidates, uint64_t* band, unsigned* shared_count) {
  uint64_t begin = 0;
  auto count = static_cast<unsigned>(candidates.n);
  if (candidates.n <= kBand) {  // a short list is one band
    for (unsigned i = threadIdx.x; i < count; i += kWalkThreads) band[i] = ~candidates.keys[i];
    __syncthreads();
  } else {
    // A guess is too low if more than kBand waiting keys are >= the guess. If the guess from a part of the keys is too
    // low, it is repeated with all keys, and with ever lower ranks while it is still too low. With all keys, at most
    // `rank` threads have keys of the band, and the thread whose best key is the guess has no other one. So at most
    // rank - 1 threads have more than one. With rank 1, the band is therefore the best key alone.
    int every = kSparse;
    int rank = kSampleRank;
    do {
      begin = guess_begin(candidates, every, rank, band);
      count = fill_band(candidates, begin, band, shared_count);
      rank = every > 1 ? kWalkThreads / 2 : rank / 4;
      every = 1;
    } while (count > kBand && rank > 0);
    if (count > kBand) count = kBand;
  }
  candidates.bound = begin;
  sort_block(band, count);
  return count;
}

// -------------------------------------------------------------------------------------------------- the walk

// The boxes kept so far and their classes - 1: the first kNearKept in shared memory, all of them in the output.
struct KeptBoxes {
  Box<float>* near_boxes;  // (kNearKept,)
  uint32_t* near_labels;   // (kNearKept,)
  Detections out;          // of the image

  __device__ Box<float> box(int64_t k) const { return k < kNearKept ? near_boxes[k] : out.boxes[k]; }
  __device__ uint32_t label(int64_t k) const {
    return k < kNearKept ? near_labels[k] : static_cast<uint32_t>(out.labels[k] - 1);
  }
  __device__ void set(int64_t k, const Box<float>& box, float score, uint32_t label) const {
    out.boxes[k] = box;
    out.scores[k] = score;
    out.labels[k] = int64_t(label) + 1;
    if (k >= kNearKept) return;
    near_boxes[k] = box;
    near_labels[k] = label;
  }
};

// The candidates of a band, best first, and what is known about them; all in shared memory. Thread t has candidates
// t, t + kWalkThreads ...
struct Band {
  const uint64_t* keys;     // (size,) inverted
  const Box<float>* boxes;  // (size,)
  const uint32_t* labels;   // (size,) class - 1
  int size;                 // at most kBand
  unsigned* alive;          // (kBandWords,) a bit for each candidate: whether it waits, and nothing suppresses it yet
  int* picked;              // (kPicked,) candidates that are settled together, best first
  unsigned* pairs;          // (kPicked,) bit j: whether this picked candidate suppresses picked candidate j

  // Of candidates of one class, whether the first suppresses the second, which is worse.
  __device__ bool drops(int better, int worse, float max_overlap) const {
    return labels[better] == labels[worse] && suppresses(boxes[better], boxes[worse], max_overlap);
  }

  // Leaves only those candidates alive for which predicate(i) holds. Each warp changes words of its own.
  template <typename Predicate>
  __device__ void leave(const Predicate& predicate) const {
    const int lane = static_cast<int>(threadIdx.x % kWarpSize);
    for (int first = static_cast<int>(threadIdx.x) - lane; first < size; first += kWalkThreads) {
      const unsigned word = alive[first / 32];
      if (word == 0) continue;
      const unsigned votes = __ballot_sync(kAllLanes, (word >> lane & 1) && predicate(first + lane));
      __syncwarp();  // all lanes have read the word
      if (lane == 0) alive[first / 32] = votes;
    }
  }
};

// Leaves only the candidates that are among the best `limit` of their class, and counts those of the band. One warp
// calls it.
//   walked: candidates of each class in the bands before
__device__ void leave_best_of_class(const Band& band, unsigned* walked, int64_t limit) {
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  for (int first = 0; first < band.size; first += kWarpSize) {
    const bool has_own = first + lane < band.size;
    const uint32_t label = has_own ? band.labels[first + lane] : 0;
    unsigned alike = 0;  // those of the same class among these 32
    for (int j = 0; j < static_cast<int>(kWarpSize) && first + j < band.size; ++j) {
      alike |= static_cast<unsigned>(band.labels[first + j] == label) << j;
    }
    const unsigned better = __popc(alike & ((1u << lane) - 1));
    const unsigned votes = __ballot_sync(kAllLanes, has_own && walked[label] + better < limit);
    __syncwarp();  // all lanes have read the counters
    if (has_own && better == 0) walked[label] += __popc(alike);
    if (lane == 0) band.alive[first / 32] = votes;
    __syncwarp();
  }
}

// Picks the best candidates that are alive, at most kPicked; returns their number. All candidates before the last of
// them are then picked or dropped.
__device__ int pick(const Band& band) {
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
  const unsigned own_alive = lane < kBandWords ? __popc(band.alive[lane]) : 0;
  for (int first = static_cast<int>(threadIdx.x) - lane; first < band.size; first += kWalkThreads) {
    const unsigned word = band.alive[first / 32];
    const unsigned before = warp_sum(lane < first / 32 ? own_alive : 0);
    const unsigned rank = before + __popc(word & ((1u << lane) - 1));
    if ((word >> lane & 1) && rank < kPicked) band.picked[rank] = first + lane;
  }
  __syncthreads();
  return min(static_cast<int>(warp_sum(own_alive)), kPicked);
}

// The picked candidates that are kept, one bit each, in all threads: all warps settle them in the same way. Each warp
// takes a few of them, and tests all later ones against each.
__device__ unsigned settle_picked(const Band& band, int count, float max_overlap) {
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);  // lane i has picked candidate i, in every warp
  const bool has_own = lane < count;
  const int own = band.picked[has_own ? lane : 0];
  for (int i = static_cast<int>(threadIdx.x / kWarpSize); i < count; i += kWalkWarps) {
    const bool goes = has_own && lane > i && band.drops(band.picked[i], own, max_overlap);
    const unsigned votes = __ballot_sync(kAllLanes, goes);
    if (lane == 0) band.pairs[i] = votes;
  }
  __syncthreads();
  return settle(kAllLanes >> (kPicked - count), has_own ? band.pairs[lane] : 0);
}

// Adds the picked candidates that are kept to the kept boxes, up to top_k. The first threads do it, one for each.
__device__ __forceinline__ void keep(const Band& band, int count, unsigned kept, const KeptBoxes& kept_boxes,
                                     int64_t n_kept, int64_t top_k) {
  const int own = static_cast<int>(threadIdx.x);
  if (own >= count || !(kept >> own & 1)) return;
  const int64_t k = n_kept + __popc(kept & ((1u << own) - 1));
  const int i = band.picked[own];
  if (k < top_k) kept_boxes.set(k, band.boxes[i], DetectionKey::score(~band.keys[i]), band.labels[i]);
}

__global__ void __launch_bounds__(kWalkThreads, 1)
    walk_candidates_kernel(const uint64_t* __restrict__ keys,    // (b, P * (C - 1)), the lists
                           const unsigned* __restrict__ counts,  // (b,), their lengths
                           unsigned* far_walked,  // (b, C - 1), 0 at the start; used for more than kNearLabels classes
                           AnyRows pred_offsets,  // (B, P, 4)
                           AnyRows priors,        // (P, 4) cxcywh
                           Detections out,        // (B, K, ...)
                           int64_t first_image, int64_t n_priors, int64_t n_labels,
                           int64_t limit,  // of candidates of a class; 0: no limit
                           int64_t top_k, float max_overlap, BoxDecoder decoder) {
  SHARED_ARRAY(unsigned, shared_count, 1);
  SHARED_ARRAY(uint64_t, band_keys, kBand > kWalkThreads ? kBand : kWalkThreads);
  SHARED_ARRAY(Box<float>, boxes, kBand);
  SHARED_ARRAY(uint32_t, labels, kBand);
  SHARED_ARRAY(unsigned, alive, kBandWords);
  SHARED_ARRAY(int, picked, kPicked);
  SHARED_ARRAY(unsigned, pairs, kPicked);
  SHARED_ARRAY(Box<float>, near_boxes, kNearKept);
  SHARED_ARRAY(uint32_t, near_labels, kNearKept);
  SHARED_ARRAY(unsigned, near_walked, kNearLabels);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t image = first_image + blockIdx.x;
  out = {out.boxes + image * top_k, out.labels + image * top_k, out.scores + image * top_k, out.counts + image};
  const KeptBoxes kept_boxes = {near_boxes, near_labels, out};
  // If there is a limit: how many candidates of each class were in the bands so far.
  unsigned* walked = nullptr;
  if (limit > 0) walked = n_labels <= kNearLabels ? near_walked : far_walked + blockIdx.x * n_labels;
  if (thread < kNearLabels) near_walked[thread] = 0;
  __syncthreads();
  Candidates candidates = {keys + blockIdx.x * n_priors * n_labels, counts[blockIdx.x], ~uint64_t(0), walked,
                           limit, static_cast<uint32_t>(n_priors)};

  int64_t n_kept = 0;
  while (candidates.bound > 0 && n_kept < top_k) {
    const auto size = static_cast<int>(take_band(candidates, band_keys, shared_count));
    if (size == 0) break;
    for (int i = thread; i < kBand; i += kWalkThreads) {
      const unsigned votes = __ballot_sync(kAllLanes, i < size);
      if (i % 32 == 0) alive[i / 32] = votes;
      if (i >= size) continue;
      const uint32_t pair = DetectionKey::pair(~band_keys[i]);
      labels[i] = pair / candidates.n_priors;
      const int64_t prior = pair % candidates.n_priors;
      boxes[i] = decoder(load_row<BoxOffsets<float>>(pred_offsets, image * n_priors + prior),
                         load_row<CenterBox<float>>(priors, prior));
    }
    const Band band = {band_keys, boxes, labels, size, alive, picked, pairs};
    __syncthreads();
    if (walked != nullptr) {
      if (thread < static_cast<int>(kWarpSize)) leave_best_of_class(band, walked, limit);
      __syncthreads();
    }
    if (n_kept > 0) {
      band.leave([&](int i) {
        for (int64_t k = 0; k < n_kept; ++k) {
          if (kept_boxes.label(k) == labels[i] && suppresses(kept_boxes.box(k), boxes[i], max_overlap)) return false;
        }
        return true;
      });
    }
    while (true) {
      __syncthreads();  // the words of `alive` are those of all warps
      const int count = pick(band);
      if (count == 0) break;
      const unsigned kept = settle_picked(band, count, max_overlap);
      keep(band, count, kept, kept_boxes, n_kept, top_k);
      n_kept = min(n_kept + __popc(kept), top_k);
      if (n_kept == top_k) break;
      const int last = picked[count - 1];
      band.leave([&](int i) {
        if (i <= last) return false;
        for (unsigned left = kept; left != 0; left &= left - 1) {
          if (band.drops(picked[__ffs(left) - 1], i, max_overlap)) return false;
        }
        return true;
      });
    }
  }

  if (thread == 0) *out.counts = static_cast<int32_t>(n_kept);
  for (int64_t k = n_kept + thread; k < top_k; k += kWalkThreads) {
    out.boxes[k] = {};
    out.scores[k] = 0;
    out.labels[k] = 0;
  }
}

// --------------------------------------------------------------------------------------------------- the op

template <typename scalar_t>
void find_candidates(const scalar_t* logits, uint64_t* keys, unsigned* counts, int64_t n_images,
                     int64_t n_priors, int64_t n_classes, const DetectionOptions& options, cudaStream_t stream) {
  dispatch_row_tile<scalar_t>(n_classes, [&](auto tile_bytes, int tile_rows) {
    const int64_t n_tiles = ceil_div(n_priors, tile_rows);
    launch(find_candidates_kernel<scalar_t, decltype(tile_bytes)::value>, n_tiles * n_images, tile_threads(tile_rows),
           stream, logits, keys, counts, n_priors, n_classes, n_tiles, tile_rows, options.sigmoid,
           static_cast<float>(options.min_score), least_difference_to_background(options.min_score));
  });
}

DetectionOutputs postprocess_detections_cuda(const Tensor& pred_offsets, const Tensor& pred_logits,
                                             const Tensor& priors_cxcywh, const DetectionOptions& options) {
  const DeviceGuard guard(pred_logits.get_device_index());
  const int64_t n_images = pred_logits.size(0);
  const int64_t n_priors = pred_logits.size(1);
  const int64_t n_classes = pred_logits.size(2);
  const int64_t n_labels = n_classes - 1;
  const int64_t n_keys = n_priors * n_labels;
  const bool is_empty = n_images == 0 || n_keys == 0 || options.top_k == 0 || options.pre_nms_top_k == 0;
  const DetectionOutputs outputs = new_detections(pred_logits, options.top_k, is_empty);
  if (is_empty) return outputs;

  const Tensor all_logits = as_contiguous(pred_logits);
  const Tensor all_offsets = as_contiguous(pred_offsets);
  const Tensor all_priors = as_contiguous(priors_cxcywh);
  const cudaStream_t stream = current_stream(pred_logits);
  const int64_t most = std::clamp<int64_t>(kListBytes / (n_keys * int64_t(sizeof(uint64_t))), 1, n_images);
  const int64_t step = ceil_div(n_images, ceil_div(n_images, most));  // sub-batches of one size
  const Scratch<uint64_t> keys(pred_logits, step * n_keys);
  const int64_t n_walked = options.pre_nms_top_k && n_labels > kNearLabels ? n_labels : 0;
  const int64_t n_counters = step * (1 + n_walked);
  const Scratch<unsigned> counters(pred_logits, n_counters);
  unsigned* const list_counts = counters.data();
  dispatch_floating_dtype(pred_logits.scalar_type(), [&](auto zero) {
    const auto* const logits = all_logits.const_data_ptr<decltype(zero)>();
    for (int64_t first = 0; first < n_images; first += step) {
      const int64_t n = std::min(step, n_images - first);
      STD_CUDA_CHECK(cudaMemsetAsync(list_counts, 0, n_counters * sizeof(unsigned), stream));
      find_candidates(logits + first * n_priors * n_classes, keys.data(), list_counts, n, n_priors, n_classes,
                      options, stream);
      launch(walk_candidates_kernel, n, kWalkThreads, stream, keys.data(), list_counts, list_counts + step,
             rows_of(all_offsets), rows_of(all_priors), data_of(outputs), first, n_priors, n_labels,
             options.pre_nms_top_k.value_or(0), options.top_k, rounded_down<float>(options.max_overlap),
             options.decoder);
    }
  });
  return outputs;
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CUDA, m) {
  m.impl("postprocess_detections", TORCH_BOX(&ssd_ext::boxed_detection<ssd_ext::postprocess_detections_cuda>));
}
