// The SSD loss on the GPU: pred_offsets (B, P, 4), pred_logits (B, P, C) and packed objects -> conf_loss,
// loc_loss, n_pos, match (B, P), selected (B, P); and its gradients.
//
// Forward, after matching (match_priors.cu):
// 1. cross_entropies_kernel: a block owns a tile of rows in shared memory, a thread one row; the cross
//    entropy is the only thing kept of the logits.
// 2. add_up_image_kernel: a block owns an image. It selects the hard negatives (hard_negatives.cuh), then
//    adds up the losses of what counts; the targets of the few positives are encoded on the way.
// 3. add_up_batch_kernel: one warp adds up the images.
// Reads the logits once and writes 9 bytes (double: 13) per prior: cross entropy, match and selected, which
// the later kernels find in the second-level cache.
//
// Backward, gradients_kernel: a block owns 128 rows. It fills their gradients with zeros, and then replaces
// those of the rows that count, each by a group of lanes. Writes each gradient once and reads 5 bytes per
// prior; few rows count and are read too.
#include "core/any_rows.h"
#include "core/box_math.h"
#include "core/checks.h"
#include "core/cuda/block_ops.cuh"
#include "select_hard_negatives/select_hard_negatives.cuh"
#include "core/cuda/launch.cuh"
#include "match_priors/match_priors.cuh"
#include "core/cuda/row_tile.cuh"
#include "core/cuda/scratch.cuh"
#include "core/lane_sums.h"
#include "match_priors/match_priors.h"
#include "multibox_loss/multibox_loss.h"
#include "core/order.h"
#include "core/softmax.h"

#include <cstdint>
#include <string>
#include <tuple>

namespace ssd_ext {
namespace {

constexpr int kGradientThreads = 128;
// Of a row that counts. Rows that count lie close together: so a block works on 16 of them at once, and as a
// row is summed up class by class, more lanes would hardly make it faster.
constexpr int kRowLanes = 8;

// --------------------------------------------------------------------------------------------------- forward

template <typename scalar_t, typename T, int kTileBytes>
__global__ void __launch_bounds__(kTileRows)
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
  const int32_t object = targets.object(i);  // on its way while the sum is computed
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> multibox_loss_cuda(
    const Tensor& pred_offsets, const Tensor& pred_logits, const Tensor& boxes, const Tensor& labels,
    const Tensor& offsets, const Tensor& priors_cxcywh, double threshold, double neg_pos_ratio,
    const std::string& loc_loss, const std::string& matching, int64_t min_negatives, double center_variance,
    double size_variance) {
  const bool smooth =
      check_multibox_arguments(pred_offsets, pred_logits, boxes, labels, offsets, priors_cxcywh, loc_loss);
  const bool bipartite = check_match_mode(matching);

  const DeviceGuard guard(pred_logits.get_device_index());
  const int64_t n_images = pred_logits.size(0);
  const int64_t n_priors = pred_logits.size(1);
  const int64_t n_classes = pred_logits.size(2);
  const int64_t n_rows = n_images * n_priors;
  const bool empty = n_rows == 0;
  const auto number = [&](ScalarType dtype) {  // 0 if no kernel is to write it
    return empty ? torch::stable::new_zeros(pred_logits, {}, dtype)
                 : torch::stable::new_empty(pred_logits, {}, dtype);
  };
  const Tensor conf = number(compute_dtype(pred_logits));
  const Tensor loc = number(compute_dtype(pred_logits));
  const Tensor n_pos = number(ScalarType::Long);
  const Tensor match = torch::stable::new_empty(pred_logits, {n_images, n_priors}, ScalarType::Int);
  const Tensor selected = torch::stable::new_empty(pred_logits, {n_images, n_priors}, ScalarType::Bool);
  if (empty) return {conf, loc, n_pos, match, selected};

  const MultiboxTensors inputs =
      contiguous_arguments(pred_offsets, pred_logits, boxes, labels, offsets, priors_cxcywh);
  const cudaStream_t stream = current_stream(pred_logits);
  dispatch_floating_dtype(pred_logits.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    const auto targets = targets_of<T>(inputs, match, center_variance, size_variance);
    launch_match_priors<CenterBox<T>>(targets.boxes, targets.offsets, targets.priors,
                                      static_cast<int32_t*>(match.mutable_data_ptr()), n_images,
                                      targets.n_objects, n_priors, threshold, bipartite, match, stream);

    const Scratch<T> ce(pred_logits, n_rows);
    dispatch_row_tile<scalar_t>(n_classes, [&](auto tile_bytes, int tile_rows) {
      launch(cross_entropies_kernel<scalar_t, T, decltype(tile_bytes)::value>,
             dim3(static_cast<unsigned>(ceil_div<int64_t>(n_rows, tile_rows))), dim3(kTileRows), stream,
             static_cast<const scalar_t*>(inputs.pred_logits.const_data_ptr()), targets, ce.data(), n_rows,
             tile_rows);
    });

    const Scratch<ImageLoss> losses(pred_logits, n_images);
    static_assert(kPriorLanes == kMiningThreads, "the block that mines also adds up");
    launch(n_priors <= kMiningPriors ? add_up_image_kernel<T, true> : add_up_image_kernel<T, false>,
           dim3(static_cast<unsigned>(n_images)), dim3(kPriorLanes), stream, ce.data(), rows_of(inputs.pred_offsets),
           targets, static_cast<bool*>(selected.mutable_data_ptr()), losses.data(), neg_pos_ratio,
           min_negatives, smooth);
    launch(add_up_batch_kernel<T>, dim3(1), dim3(kImageLanes), stream, losses.data(),
           static_cast<T*>(conf.mutable_data_ptr()), static_cast<T*>(loc.mutable_data_ptr()),
           static_cast<int64_t*>(n_pos.mutable_data_ptr()), n_images, smooth);
  });
  return {conf, loc, n_pos, match, selected};
}

// -------------------------------------------------------------------------------------------------- backward

// sum_row of softmax.h by kRowLanes lanes, for all of them; all groups of the warp together. Only the maximum
// is found in another order, which changes no bit: next to a NaN, where it could, the sum is NaN anyway.
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

// By the block. `to` begins with a unit.
template <typename scalar_t>
__device__ void fill_with_zeros(scalar_t* to, int64_t n) {
  using Unit = Unit16<scalar_t>;
  const int64_t units = n / Unit::kCount;
  const int thread = threadIdx.x;
  for (int64_t i = thread; i < units; i += kGradientThreads) reinterpret_cast<Unit*>(to)[i] = Unit{};
  for (int64_t i = units * Unit::kCount + thread; i < n; i += kGradientThreads) to[i] = scalar_t{};
}

// Row i of a (N, 4) tensor that this file has made, hence aligned: at once.
template <typename scalar_t, typename T>
__device__ void store_row(void* rows, int64_t i, const BoxOffsets<T>& row) {
  struct alignas(4 * sizeof(scalar_t)) Unit {
    scalar_t values[4];
  };
  static_cast<Unit*>(rows)[i] = {static_cast<scalar_t>(row.x), static_cast<scalar_t>(row.y),
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
                     const int64_t* __restrict__ n_pos,      // one number each
                     const AnyRows pred_offsets,             // (B * P, 4)
                     const scalar_t* __restrict__ logits,    // (B * P, C)
                     const bool* __restrict__ selected,      // (B * P,)
                     const Targets<T> targets,
                     void* __restrict__ grad_offsets,        // (B * P, 4), in the dtype of pred_offsets
                     scalar_t* __restrict__ grad_logits,     // (B * P, C)
                     int64_t n_rows, bool smooth) {
  SHARED_ARRAY(int, rows, kGradientThreads);  // those that count
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
      const BoxOffsets<T> target = targets.true_offsets(i, object);
      grad = {localization_slope(predicted.x - target.x, smooth) * factor,
              localization_slope(predicted.y - target.y, smooth) * factor,
              localization_slope(predicted.w - target.w, smooth) * factor,
              localization_slope(predicted.h - target.h, smooth) * factor};
    }
    store_row(grad_offsets, pred_offsets.dtype, i, grad);
  }
  fill_with_zeros(grad_logits + first * n_classes, count * n_classes);
  __syncthreads();  // the zeros come before what replaces them

  const T factor = *grad_conf / static_cast<T>(conf_divisor(*n_pos));
  constexpr int kRowsOfWarp = kWarpSize / kRowLanes;
  const int group = thread / kRowLanes;
  // A warp goes on as a whole: groups without a row of their own repeat the last one and write nothing.
  for (int place = group; place - group % kRowsOfWarp < *n_counting; place += kGradientThreads / kRowLanes) {
    const bool has_row = place < *n_counting;
    const int64_t row = first + rows[has_row ? place : *n_counting - 1];
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

std::tuple<Tensor, Tensor> multibox_loss_backward_cuda(
    const Tensor& grad_conf, const Tensor& grad_loc, const Tensor& pred_offsets, const Tensor& pred_logits,
    const Tensor& boxes, const Tensor& labels, const Tensor& offsets, const Tensor& priors_cxcywh,
    const Tensor& match, const Tensor& selected, const Tensor& n_pos, const std::string& loc_loss,
    double center_variance, double size_variance) {
  const bool smooth =
      check_multibox_arguments(pred_offsets, pred_logits, boxes, labels, offsets, priors_cxcywh, loc_loss);
  check_multibox_results(grad_conf, grad_loc, pred_logits, match, selected, n_pos);

  const DeviceGuard guard(pred_logits.get_device_index());
  const int64_t n_images = pred_logits.size(0);
  const int64_t n_priors = pred_logits.size(1);
  const int64_t n_classes = pred_logits.size(2);
  const int64_t n_rows = n_images * n_priors;
  const Tensor grad_offsets = torch::stable::new_empty(pred_offsets, {n_images, n_priors, 4});
  const Tensor grad_logits = torch::stable::new_empty(pred_logits, {n_images, n_priors, n_classes});
  if (n_rows == 0) return {grad_offsets, grad_logits};

  const MultiboxTensors inputs =
      contiguous_arguments(pred_offsets, pred_logits, boxes, labels, offsets, priors_cxcywh);
  const Tensor matches = torch::stable::contiguous(match);
  const Tensor negatives = torch::stable::contiguous(selected);
  const cudaStream_t stream = current_stream(pred_logits);
  dispatch_floating_dtype(pred_logits.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    launch(gradients_kernel<scalar_t, T>,
           dim3(static_cast<unsigned>(ceil_div<int64_t>(n_rows, kGradientThreads))), dim3(kGradientThreads),
           stream, static_cast<const T*>(grad_conf.const_data_ptr()),
           static_cast<const T*>(grad_loc.const_data_ptr()),
           static_cast<const int64_t*>(n_pos.const_data_ptr()), rows_of(inputs.pred_offsets),
           static_cast<const scalar_t*>(inputs.pred_logits.const_data_ptr()),
           static_cast<const bool*>(negatives.const_data_ptr()),
           targets_of<T>(inputs, matches, center_variance, size_variance),
           grad_offsets.mutable_data_ptr(), static_cast<scalar_t*>(grad_logits.mutable_data_ptr()), n_rows,
           smooth);
  });
  return {grad_offsets, grad_logits};
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CUDA, m) {
  m.impl("multibox_loss", TORCH_BOX(&ssd_ext::multibox_loss_cuda));
  m.impl("multibox_loss_backward", TORCH_BOX(&ssd_ext::multibox_loss_backward_cuda));
}
