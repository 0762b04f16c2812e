// The SSD loss on the GPU: pred_offsets (B, P, 4), pred_logits (B, P, C) and packed objects -> conf_loss,
// loc_loss, n_pos, match (B, P), selected (B, P); and its gradients.
//
// Forward, after matching (match_priors.cu):
// 1. cross_entropies_kernel: a block owns a tile of rows in shared memory, a thread one row. Only the cross entropy of
//    each row is kept.
// 2. add_up_image_kernel: a block owns an image. It selects the hard negatives (select_hard_negatives.cuh), then adds
//    up the losses of positives and hard negatives; the targets of the few positives are encoded on the way.
// 3. add_up_batch_kernel: one warp adds up the images.
// Reads the logits once and writes 9 bytes (double: 13) per prior: cross entropy, match and selected, which the later
// kernels read from the second-level cache.
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

namespace ssd_ext {
namespace {

constexpr int kGradientThreads = 128;
// Lanes for a row that counts. Rows that count lie close together, so a block works on 16 of them at once. A row is
// summed up class by class, so more lanes would hardly make it faster.
constexpr int kRowLanes = 8;

// --------------------------------------------------------------------------------------------------- forward

template <typename scalar_t, typename T, int kTileBytes>
__global__ void __launch_bounds__(kMaxTileRows)
    cross_entropies_kernel(const scalar_t* __restrict__ logits,  // (B * P, C)
                           const Targets<T> targets,
                           T* __restrict__ ce,  // (B * P,)
                           int64_t n_rows, int tile_rows) {
  using Tile = RowTile<scalar_t, kTileBytes>;
  SHARED_ARRAY(typename Tile::Unit, shared, Tile::kShared);

  const int64_t n_classes = targets.n_classes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * tile_rows;
  const int count = static_cast<int>(n_rows - first < tile_rows ? n_rows - first : tile_rows);
  const Tile tile(logits + first * n_classes, count, n_classes, shared);
  const int thread = threadIdx.x;
  if (thread >= count) return;

  const int64_t i = first + thread;
  const int32_t object = targets.object(i);  // this load is in flight while the sum is computed
  const scalar_t* const row = tile.row(thread);
  const auto logit = [=](int64_t c) { return static_cast<T>(row[c]); };
  const RowSum<T> all = sum_row<T>(logit, n_classes);
  ce[i] = cross_entropy(logit(targets.true_class(i, object)), all.maximum, all.sum);
}

template <typename T, bool kInRegisters>
__global__ void __launch_bounds__(kPriorLanes, 1)
    add_up_image_kernel(const T* __restrict__ ce,    // (B, P)
                        const AnyRows pred_offsets,  // (B, P, 4)
                        const Targets<T> targets,
                        bool* __restrict__ selected,     // (B, P)
                        ImageLoss* __restrict__ losses,  // (B,)
                        double ratio, int64_t min_negatives, bool smooth) {
  SHARED_ARRAY(unsigned, shared_counters, BlockSums<3>::kShared);
  SHARED_ARRAY(double, shared_lanes, kPriorLanes);
  BlockSums<3> counters(shared_counters);

  const auto n_priors = static_cast<unsigned>(targets.n_priors);
  const int64_t image = static_cast<int64_t>(blockIdx.x) * n_priors;
  ce += image;
  selected += image;
  const int32_t* const match = targets.match + image;
  const auto is_positive = [&](unsigned prior) { return match[prior] >= 0; };
  const auto key_of = [&](unsigned prior) { return ordered_bits(ce[prior]); };
  double conf = 0;
  double loc = 0;
  const auto count = [&](unsigned prior) {
    const int32_t object = match[prior];
    conf += static_cast<double>(ce[prior]);
    if (object < 0) return;
    const auto predicted = load_row<BoxOffsets<T>>(pred_offsets, image + prior);
    loc += localization_error(predicted, targets.true_offsets(image + prior, object), smooth);
  };
  const unsigned n_pos = select_hard_negatives_of_image<kInRegisters, bits_t<T>>(
      is_positive, key_of, n_priors, ratio, min_negatives, counters, selected, count);
  conf = sum_of_lanes<kPriorLanes>(conf, shared_lanes);
  loc = sum_of_lanes<kPriorLanes>(loc, shared_lanes);
  if (threadIdx.x == 0) losses[blockIdx.x] = {conf, loc, n_pos};
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
    const auto match = [&](auto launch_match, const T* priors) {
      launch_match(targets.boxes, targets.row_splits, priors, outputs.match.mutable_data_ptr<int32_t>(), n_images,
                   targets.n_objects, n_priors, options.threshold, options.bipartite, logits, stream);
    };
    if (inputs.priors_xyxy) {
      match(&launch_match_priors<Box<T>, T>, inputs.priors_xyxy->const_data_ptr<T>());
    } else {
      match(&launch_match_priors<CenterBox<T>, T>, targets.priors);
    }

    const Scratch<T> ce(logits, n_rows);
    dispatch_row_tile<scalar_t>(targets.n_classes, [&](auto tile_bytes, int tile_rows) {
      launch(cross_entropies_kernel<scalar_t, T, decltype(tile_bytes)::value>, ceil_div(n_rows, tile_rows),
             tile_threads(tile_rows), stream, inputs.pred_logits.const_data_ptr<scalar_t>(), targets, ce.data(), n_rows,
             tile_rows);
    });

    const Scratch<ImageLoss> losses(logits, n_images);
    static_assert(kPriorLanes == kMiningThreads, "the block that mines also adds up");
    launch(n_priors <= kMiningPriors ? add_up_image_kernel<T, true> : add_up_image_kernel<T, false>, n_images,
           kPriorLanes, stream, ce.data(), rows_of(inputs.pred_offsets), targets,
           outputs.selected.mutable_data_ptr<bool>(), losses.data(), options.neg_pos_ratio, options.min_negatives,
           options.smooth);
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
__global__ void __launch_bounds__(kGradientThreads)
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
