// The SSD loss on the GPU: pred_offsets (B, P, 4), pred_logits (B, P, C) and packed objects -> conf_loss,
// loc_loss, n_pos, match (B, P), selected (B, P); and its gradients.
//
// Forward, three launches (bipartite matching: four):
// 1. rows_kernel: a block owns tiles of neighbouring rows of one image, in shared memory, a thread one row. A warp
//    matches its 32 priors by the threshold (match_priors.cuh). A thread sums up its row, and keeps the sum and the
//    cross entropy against background.
// 2. add_up_image_kernel: a block owns an image. Its objects force their best priors to match. Then it selects the hard
//    negatives (select_hard_negatives.cuh), whose losses it still has in registers, and adds up the losses; the cross
//    entropies and the targets of the few positives are computed on the way.
// 3. add_up_batch_kernel: one warp adds up the images.
// Reads the logits once and writes 17 bytes (double: 29) per prior: cross entropy, sum, match and selected, which the
// later kernels read from the second-level cache; of the sums they read only the few of positives.
//
// Backward, gradients_kernel: a block owns 128 rows. It fills the gradients of their logits with zeros, and then
// replaces the gradients of the rows that count (positives and hard negatives); a group of lanes owns such a row. So
// the gradients of the logits are written twice in these few rows, and all other gradients once. Reads 5 bytes per
// prior; the logits of the rows that count are read too.
#include "multibox_loss/multibox_loss.h"

#include "core/any_rows.h"
#include "core/cuda/block_ops.cuh"
#include "core/cuda/launch.cuh"
#include "core/cuda/pack.cuh"
#include "core/cuda/row_tile.cuh"
#include "core/cuda/scratch.cuh"
#include "core/lane_sums.h"
#include "core/order.h"
#include "core/softmax.h"
#include "match_priors/match_priors.cuh"
#include "select_hard_negatives/select_hard_negatives.cuh"

#include <algorithm>
#include <optional>

namespace ssd_ext {
namespace {

// Maximum number of blocks of rows_kernel for an image. More are not needed to fill a GPU, and each adds one or two
// candidates per object.
constexpr int64_t kMaxBlocks = 512;
constexpr int kGradientThreads = 128;
// Resident blocks of gradients_kernel per multiprocessor: 64 registers for a thread. Without this bound the compiler
// saves registers for more blocks, and spills.
constexpr int kGradientBlocks = 8;
// Lanes for a row that counts. Rows that count lie close together, so a block works on 16 of them at once. A row is
// summed up class by class, so more lanes would hardly make it faster.
constexpr int kRowLanes = 8;

// --------------------------------------------------------------------------------------------------- forward

// The sums and the cross entropies against background of all rows.
template <typename T>
struct Rows {
  RowSum<T>* sums;  // (B, P)
  T* ce;            // (B, P)
};

template <typename scalar_t, typename T, int kTileBytes>
__global__ void __launch_bounds__(kMaxTileRows)
    rows_kernel(const scalar_t* __restrict__ logits,  // (B, P, C)
                const Targets<T> targets,
                const T* __restrict__ corners_of_priors,  // (P, 4) xyxy, or null: those of the targets' priors
                Candidate<T>* __restrict__ candidates,    // (G, columns)
                int32_t* __restrict__ match,              // (B, P)
                const Rows<T> rows, int tile_rows, int blocks, int columns, T threshold) {
  using Tile = RowTile<scalar_t, kTileBytes>;
  SHARED_ARRAY(typename Tile::Unit, shared, Tile::kShared);

  const int64_t n_priors = targets.n_priors;
  const int64_t image = blockIdx.x / blocks;  // blocks: of an image
  const int block = blockIdx.x % blocks;
  const int thread = threadIdx.x;
  const auto column = static_cast<int>(block * (blockDim.x / kWarpSize) + thread / kWarpSize);
  const ImageObjects objects = objects_of(image, targets.row_splits, targets.n_objects);
  bool first = true;
  for (int64_t begin = int64_t(block) * tile_rows; begin < n_priors; begin += int64_t(blocks) * tile_rows) {
    const int count = static_cast<int>(n_priors - begin < tile_rows ? n_priors - begin : tile_rows);
    const bool has_row = thread < count;
    const int64_t p = begin + thread;
    const Box<T> prior = !has_row            ? Box<T>{0, 0, 0, 0}
                         : corners_of_priors ? load_row<Box<T>>(corners_of_priors, p)
                                             : corners(load_row<CenterBox<T>>(targets.priors, p));
    const int32_t object = match_warp(prior, p, targets.boxes, objects, candidates, column, columns, first, threshold);
    const int64_t i = image * n_priors + p;
    if (has_row) match[i] = object;

    if (!first) __syncthreads();  // other threads may still read the last tile
    first = false;
    const Tile tile(logits + (image * n_priors + begin) * targets.n_classes, count, targets.n_classes, shared);
    if (!has_row) continue;
    const scalar_t* const row = tile.row(thread);
    const auto logit = [=](int64_t c) { return static_cast<T>(row[c]); };
    const RowSum<T> sum = sum_row<T>(logit, targets.n_classes);
    rows.sums[i] = sum;
    rows.ce[i] = cross_entropy(logit(0), sum.maximum, sum.sum);
  }
}

// candidates: null if the objects have their priors already.
template <typename scalar_t, typename T, bool kInRegisters>
__global__ void __launch_bounds__(kPriorLanes, 1)
    add_up_image_kernel(const scalar_t* __restrict__ logits,  // (B, P, C)
                        const AnyRows pred_offsets,           // (B, P, 4)
                        const Rows<T> rows, const Targets<T> targets,
                        const Candidate<T>* __restrict__ candidates,  // (G, columns)
                        int32_t* match,                               // (B, P), that of the targets
                        bool* __restrict__ selected,                  // (B, P)
                        ImageLoss* __restrict__ losses,               // (B,)
                        int columns, double ratio, int64_t min_negatives, bool smooth) {
  SHARED_ARRAY(unsigned, shared_counters, BlockSums<3>::kShared);
  SHARED_ARRAY(double, shared_lanes, kPriorLanes);
  SHARED_ARRAY(int32_t, forced, kPriorLanes);
  BlockSums<3> counters(shared_counters);

  const auto n_priors = static_cast<unsigned>(targets.n_priors);
  const int64_t image = static_cast<int64_t>(blockIdx.x) * n_priors;
  match += image;
  if (candidates != nullptr) {
    force_best_priors<kPriorLanes>(candidates, columns,
                                   objects_of(blockIdx.x, targets.row_splits, targets.n_objects), match, forced);
  }
  const auto is_positive = [&](unsigned prior) { return match[prior] >= 0; };
  const auto key_of = [&](unsigned prior) { return ordered_bits(rows.ce[image + prior]); };
  double positives = 0;
  double negatives = 0;
  double loc = 0;
  const auto add_negative = [&](bits_t<T> key) { negatives += static_cast<double>(value_of_bits<T>(key)); };
  const auto add_positive = [&](unsigned prior) {
    const int64_t i = image + prior;
    const int32_t object = match[prior];
    const RowSum<T> row = rows.sums[i];
    const auto true_logit = static_cast<T>(logits[i * targets.n_classes + targets.true_class(i, object)]);
    positives += static_cast<double>(cross_entropy(true_logit, row.maximum, row.sum));
    const auto predicted = load_row<BoxOffsets<T>>(pred_offsets, i);
    loc += localization_error(predicted, targets.true_offsets(i, object), smooth);
  };
  const unsigned n_pos = select_hard_negatives_of_image<kInRegisters, bits_t<T>>(
      is_positive, key_of, n_priors, ratio, min_negatives, counters, selected + image, add_negative, add_positive);
  positives = sum_of_lanes<kPriorLanes>(positives, shared_lanes);
  negatives = sum_of_lanes<kPriorLanes>(negatives, shared_lanes);
  loc = sum_of_lanes<kPriorLanes>(loc, shared_lanes);
  if (threadIdx.x == 0) losses[blockIdx.x] = {positives + negatives, loc, n_pos};
}

template <typename T>
__global__ void __launch_bounds__(kImageLanes)
    add_up_batch_kernel(const ImageLoss* __restrict__ losses,  // (B,)
                        T* __restrict__ conf_loss, T* __restrict__ loc_loss,
                        int64_t* __restrict__ n_pos,  // one number each
                        int64_t n_images, bool smooth) {
  ImageLoss lane = {0, 0, 0};
  for (int64_t image = threadIdx.x; image < n_images; image += kImageLanes) {
    lane.conf += losses[image].conf;
    lane.loc += losses[image].loc;
    lane.n_pos += losses[image].n_pos;
  }
  const ImageLoss batch = {sum_of_lanes<kImageLanes>(lane.conf), sum_of_lanes<kImageLanes>(lane.loc),
                           sum_of_lanes<kImageLanes>(lane.n_pos)};
  if (threadIdx.x != 0) return;
  *conf_loss = static_cast<T>(batch.conf / conf_divisor(batch.n_pos));
  *loc_loss = static_cast<T>(batch.loc / loc_divisor(batch.n_pos, smooth));
  *n_pos = batch.n_pos;
}

LossOutputs multibox_loss_cuda(const LossInputs& given, const LossOptions& options) {
  const Tensor& logits = given.pred_logits;
  const DeviceGuard guard(logits.get_device_index());
  const int64_t n_images = logits.size(0);
  const int64_t n_priors = logits.size(1);
  const int64_t n_rows = n_images * n_priors;
  const LossOutputs outputs = new_losses(logits, n_rows == 0);
  if (n_rows == 0) return outputs;

  const LossInputs inputs = as_contiguous(given);
  const cudaStream_t stream = current_stream(logits);
  dispatch_floating_dtype(logits.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    const Targets<T> targets(inputs, outputs.match, options.variances);
    const auto* const logit_data = inputs.pred_logits.const_data_ptr<scalar_t>();
    auto* const match = outputs.match.mutable_data_ptr<int32_t>();
    const Scratch<RowSum<T>> sums(logits, n_rows);
    const Scratch<T> ce(logits, n_rows);
    const Rows<T> rows = {sums.data(), ce.data()};
    const T* const corners_of_priors = inputs.priors_xyxy ? inputs.priors_xyxy->const_data_ptr<T>() : nullptr;
    std::optional<Scratch<Candidate<T>>> candidates;
    int columns = 0;
    dispatch_row_tile<scalar_t>(targets.n_classes, [&](auto tile_bytes, int tile_rows) {
      const int threads = tile_threads(tile_rows);
      const auto blocks = static_cast<int>(std::min(kMaxBlocks, ceil_div(n_priors, tile_rows)));  // of an image
      columns = blocks * threads / static_cast<int>(kWarpSize);
      candidates.emplace(logits, targets.n_objects * columns);
      launch(rows_kernel<scalar_t, T, decltype(tile_bytes)::value>, n_images * blocks, threads, stream, logit_data,
             targets, corners_of_priors, candidates->data(), match, rows, tile_rows, blocks, columns,
             static_cast<T>(options.threshold));
    });
    if (options.bipartite && targets.n_objects > 0) {
      const auto take_best_pairs = [&](auto launch_take, const T* priors) {
        launch_take(targets.boxes, targets.row_splits, priors, candidates->data(), match, n_images, targets.n_objects,
                    n_priors, columns, stream);
      };
      corners_of_priors ? take_best_pairs(&launch_take_best_pairs<Box<T>, T>, corners_of_priors)
                        : take_best_pairs(&launch_take_best_pairs<CenterBox<T>, T>, targets.priors);
    }

    const Scratch<ImageLoss> losses(logits, n_images);
    static_assert(kPriorLanes == kMiningThreads, "the block that mines also adds up");
    launch(n_priors <= kMiningPriors ? add_up_image_kernel<scalar_t, T, true> : add_up_image_kernel<scalar_t, T, false>,
           n_images, kPriorLanes, stream, logit_data, rows_of(inputs.pred_offsets), rows, targets,
           options.bipartite ? nullptr : candidates->data(), match, outputs.selected.mutable_data_ptr<bool>(),
           losses.data(), columns, options.neg_pos_ratio, options.min_negatives, options.smooth);
    launch(add_up_batch_kernel<T>, 1, kImageLanes, stream, losses.data(), outputs.conf_loss.mutable_data_ptr<T>(),
           outputs.loc_loss.mutable_data_ptr<T>(), outputs.n_pos.mutable_data_ptr<int64_t>(), n_images, options.smooth);
  });
  return outputs;
}

// -------------------------------------------------------------------------------------------------- backward

// sum_row of softmax.h, computed by kRowLanes lanes and returned in all of them; all groups of the warp have to call it
// together. Only the maximum is found in another order. This changes no bit: with a NaN in the row the maximum may
// differ, but then the sum is NaN anyway.
template <typename T, typename Logit>
__device__ RowSum<T> sum_row_by_group(const Logit& logit, int64_t n_classes) {
  const int lane = threadIdx.x % kRowLanes;
  RowSum<T> row = {logit(0), T(0)};
  for (int64_t c = lane; c < n_classes; c += kRowLanes) row.maximum = larger(row.maximum, logit(c));
  for (int distance = kRowLanes / 2; distance > 0; distance /= 2) {
    row.maximum = larger(row.maximum, __shfl_xor_sync(kAllLanes, row.maximum, distance));
  }
  for (int64_t begin = 0; begin < n_classes; begin += kRowLanes) {
    const int64_t c = begin + lane;
    const T exponential = c < n_classes ? exp_of_logit(logit(c), row.maximum) : T(0);
    for (int i = 0; i < kRowLanes; ++i) row.sum += __shfl_sync(kAllLanes, exponential, i, kRowLanes);
  }
  return row;
}

// Called by all threads of the block. `to` is aligned to a unit.
template <typename scalar_t>
__device__ void fill_with_zeros(scalar_t* to, int64_t n) {
  using Unit = Pack<scalar_t>;
  const int64_t units = n / Unit::kCount;
  const int thread = threadIdx.x;
  for (int64_t i = thread; i < units; i += kGradientThreads) reinterpret_cast<Unit*>(to)[i] = Unit{};
  for (int64_t i = units * Unit::kCount + thread; i < n; i += kGradientThreads) to[i] = scalar_t{};
}

// Stores row i of an (N, 4) tensor as a whole. This file has allocated the tensor, so it is aligned.
template <typename scalar_t, typename T>
__device__ void store_row(void* rows, int64_t i, const BoxOffsets<T>& row) {
  static_cast<Pack<scalar_t, 4>*>(rows)[i] = {static_cast<scalar_t>(row.x), static_cast<scalar_t>(row.y),
                                              static_cast<scalar_t>(row.w), static_cast<scalar_t>(row.h)};
}

template <typename T>
__device__ void store_row(void* rows, ScalarType dtype, int64_t i, const BoxOffsets<T>& row) {
  switch (dtype) {
    case ScalarType::Double: return store_row<double>(rows, i, row);
    case ScalarType::Half: return store_row<torch::headeronly::Half>(rows, i, row);
    case ScalarType::BFloat16: return store_row<torch::headeronly::BFloat16>(rows, i, row);
    default: return store_row<float>(rows, i, row);
  }
}

template <typename scalar_t, typename T>
__global__ void __launch_bounds__(kGradientThreads, kGradientBlocks)
    gradients_kernel(const T* __restrict__ grad_conf, const T* __restrict__ grad_loc,
                     const int64_t* __restrict__ n_pos,    // one number each
                     const AnyRows pred_offsets,           // (B * P, 4)
                     const scalar_t* __restrict__ logits,  // (B * P, C)
                     const bool* __restrict__ selected,    // (B * P,)
                     const Targets<T> targets,
                     void* __restrict__ grad_offsets,     // (B * P, 4), in the dtype of pred_offsets
                     scalar_t* __restrict__ grad_logits,  // (B * P, C)
                     int64_t n_rows, bool smooth) {
  SHARED_ARRAY(int, rows, kGradientThreads);  // the rows that count
  SHARED_ARRAY(int, n_counting, 1);

  const int thread = threadIdx.x;
  const int64_t n_classes = targets.n_classes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kGradientThreads;
  const int64_t left = n_rows - first;
  const int count = static_cast<int>(left < kGradientThreads ? left : kGradientThreads);
  if (thread == 0) *n_counting = 0;
  __syncthreads();

  const int64_t i = first + thread;
  if (thread < count) {
    const int32_t object = targets.object(i);
    if (object >= 0 || selected[i]) rows[atomicAdd(n_counting, 1)] = thread;
    BoxOffsets<T> grad = {0, 0, 0, 0};
    if (object >= 0) {
      const T factor = *grad_loc / static_cast<T>(loc_divisor(*n_pos, smooth));
      const auto predicted = load_row<BoxOffsets<T>>(pred_offsets, i);
      grad = localization_gradient(predicted, targets.true_offsets(i, object), smooth, factor);
    }
    store_row(grad_offsets, pred_offsets.dtype, i, grad);
  }
  fill_with_zeros(grad_logits + first * n_classes, count * n_classes);
  __syncthreads();  // the zeros must be written before the gradients that replace them

  const T factor = *grad_conf / static_cast<T>(conf_divisor(*n_pos));
  constexpr int kRowsOfWarp = kWarpSize / kRowLanes;
  const int group = thread / kRowLanes;
  // A warp loops as a whole: groups without a row of their own repeat the last row and write nothing.
  for (int k = group; k - group % kRowsOfWarp < *n_counting; k += kGradientThreads / kRowLanes) {
    const bool has_row = k < *n_counting;
    const int64_t row = first + rows[has_row ? k : *n_counting - 1];
    const scalar_t* const row_logits = logits + row * n_classes;
    const auto logit = [=](int64_t c) { return static_cast<T>(row_logits[c]); };
    const RowSum<T> all = sum_row_by_group<T>(logit, n_classes);
    if (!has_row) continue;
    const int64_t true_class = targets.true_class(row, targets.object(row));
    for (int64_t c = thread % kRowLanes; c < n_classes; c += kRowLanes) {
      const T softmax = exp_of_logit(logit(c), all.maximum) / all.sum;
      const T one_hot = c == true_class ? T(1) : T(0);
      grad_logits[row * n_classes + c] = static_cast<scalar_t>((softmax - one_hot) * factor);
    }
  }
}

LossGradients multibox_loss_backward_cuda(const LossInputs& given, const LossResults& results,
                                          const LossOptions& options) {
  const Tensor& logits = given.pred_logits;
  const DeviceGuard guard(logits.get_device_index());
  const int64_t n_rows = logits.size(0) * logits.size(1);
  const Tensor grad_offsets = torch::stable::new_empty(given.pred_offsets, given.pred_offsets.sizes());
  const Tensor grad_logits = torch::stable::new_empty(logits, logits.sizes());
  if (n_rows == 0) return {grad_offsets, grad_logits};

  const LossInputs inputs = as_contiguous(given);
  const Tensor match = as_contiguous(results.match);
  const Tensor selected = as_contiguous(results.selected);
  const cudaStream_t stream = current_stream(logits);
  dispatch_floating_dtype(logits.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    launch(gradients_kernel<scalar_t, T>, ceil_div(n_rows, kGradientThreads), kGradientThreads, stream,
           results.grad_conf.const_data_ptr<T>(), results.grad_loc.const_data_ptr<T>(),
           results.n_pos.const_data_ptr<int64_t>(), rows_of(inputs.pred_offsets),
           inputs.pred_logits.const_data_ptr<scalar_t>(), selected.const_data_ptr<bool>(),
           Targets<T>(inputs, match, options.variances), grad_offsets.mutable_data_ptr(),
           grad_logits.mutable_data_ptr<scalar_t>(), n_rows, options.smooth);
  });
  return {grad_offsets, grad_logits};
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CUDA, m) {
  using Loss = ssd_ext::BoxedLoss<ssd_ext::multibox_loss_cuda, ssd_ext::multibox_loss_backward_cuda>;
  m.impl("multibox_loss", TORCH_BOX(&Loss::forward));
  m.impl("multibox_loss_backward", TORCH_BOX(&Loss::backward));
}
