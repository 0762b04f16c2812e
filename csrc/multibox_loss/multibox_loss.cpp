// The SSD loss on the CPU: pred_offsets (B, P, 4), pred_logits (B, P, C) and packed objects -> conf_loss,
// loc_loss, n_pos, match (B, P), selected (B, P); and its gradients.
//
// Forward: a thread owns an image, or all threads own the tiles of one where images are few. It matches the
// priors (match_priors.cpp). From tiles of 64 rows it computes the cross entropy of each prior, the only thing
// kept of the logits, which are read once; it selects the hard negatives and adds up the losses of what counts.
// Targets are computed where they are needed only.
//
// Backward: a task owns a run of priors, fills their gradients with zeros and computes those of the few that
// count from their logits.
#include "core/any_rows.h"
#include "core/box_math.h"
#include "core/checks.h"
#include "core/cpu/huge_pages.h"
#include "core/cpu/logit_tile.h"
#include "match_priors/matcher.h"
#include "core/cpu/parallel.h"
#include "core/cpu/prefetch.h"
#include "select_hard_negatives/select_largest.h"
#include "core/cpu/vector_clones.h"
#include "select_hard_negatives/select_hard_negatives.h"
#include "core/lane_sums.h"
#include "match_priors/match_priors.h"
#include "multibox_loss/multibox_loss.h"
#include "core/order.h"
#include "core/softmax.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace ssd_ext {
namespace {

constexpr double kLogitNanoseconds = 1.2;          // forward
constexpr double kGradientNanoseconds = 0.4;       // of a logit

// --------------------------------------------------------------------------------------------------- forward

// The cross entropies of the priors begin..end of an image.
template <typename scalar_t, typename T>
void cross_entropies(const scalar_t* logits,  // (B * P, C)
                     const Targets<T>& targets, int64_t image, int64_t begin, int64_t end,
                     T* tile,  // (C, kTileRows), scratch
                     T* ce) {  // (P,)
  const int64_t first = image * targets.n_priors;
  const scalar_t* row_logits[kTileRows];
  T true_logits[kTileRows], tile_ce[kTileRows];
  const int64_t n_classes = targets.n_classes;
  for (; begin < end; begin += kTileRows) {
    const int64_t rows = std::min(kTileRows, end - begin);
    const scalar_t* const tile_logits = logits + (first + begin) * n_classes;
    for (int64_t row = 0; row < rows; ++row) row_logits[row] = tile_logits + row * n_classes;
    load_tile(row_logits, rows, n_classes, tile);
    prefetch(tile_logits + kTileRows * n_classes, kTileRows * n_classes * sizeof(scalar_t));
    std::copy_n(tile, kTileRows, true_logits);  // of background, as nearly always
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = first + begin + row;
      const int32_t object = targets.match[i];
      if (object >= 0) true_logits[row] = tile[targets.true_class(i, object) * kTileRows + row];
    }
    cross_entropy_of_tile(tile, n_classes, true_logits, tile_ce);
    std::copy_n(tile_ce, rows, ce + begin);
  }
}

template <typename T>
INLINE_IN_CLONES int64_t make_keys_of(const T* __restrict ce, const int32_t* __restrict match, int64_t n,
                                      bits_t<T>* __restrict keys) {
  int64_t n_pos = 0;
  for (int64_t p = 0; p < n; ++p) {
    keys[p] = match[p] >= 0 ? 0 : ordered_bits(ce[p]);
    n_pos += match[p] >= 0;
  }
  return n_pos;
}

// The keys of an image to select negatives by, 0 for its positives; returns their number. Instruction sets are
// chosen per function, which a template cannot be.
VECTOR_CLONES int64_t make_keys(const float* ce, const int32_t* match, int64_t n, uint32_t* keys) {
  return make_keys_of(ce, match, n, keys);
}
int64_t make_keys(const double* ce, const int32_t* match, int64_t n, uint64_t* keys) {
  return make_keys_of(ce, match, n, keys);
}

// Selects the hard negatives of an image and adds up the losses.
template <typename T>
ImageLoss add_up_image(const T* ce,                  // (P,)
                       const AnyRows& pred_offsets,  // (B * P, 4)
                       const Targets<T>& targets, int64_t image, double ratio, int64_t min_negatives,
                       bool smooth,
                       bits_t<T>* keys,   // (P,), scratch
                       bool* selected) {  // (B * P,)
  const int64_t n_priors = targets.n_priors;
  const int64_t first = image * n_priors;
  selected += first;
  const int64_t n_pos = make_keys(ce, targets.match + first, n_priors, keys);
  const int64_t k = hard_negative_count(n_pos, n_priors - n_pos, ratio, min_negatives);
  select_largest(keys, n_priors, k, selected);
  LaneSums<kPriorLanes> conf, loc;
  for (int64_t p = 0; p < n_priors; ++p) {
    const int64_t i = first + p;
    const int32_t object = targets.match[i];
    if (object < 0 && !selected[p]) continue;
    conf.add(p, ce[p]);
    if (object < 0) continue;
    const auto predicted = load_row<BoxOffsets<T>>(pred_offsets, i);
    loc.add(p, localization_error(predicted, targets.true_offsets(i, object), smooth));
  }
  return {conf.total(), loc.total(), n_pos};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> multibox_loss_cpu(
    const Tensor& pred_offsets, const Tensor& pred_logits, const Tensor& boxes, const Tensor& labels,
    const Tensor& offsets, const Tensor& priors_cxcywh, double threshold, double neg_pos_ratio,
    const std::string& loc_loss, const std::string& matching, int64_t min_negatives, double center_variance,
    double size_variance) {
  const bool smooth =
      check_multibox_arguments(pred_offsets, pred_logits, boxes, labels, offsets, priors_cxcywh, loc_loss);
  const bool bipartite = check_match_mode(matching);

  const int64_t n_images = pred_logits.size(0);
  const int64_t n_priors = pred_logits.size(1);
  const int64_t n_classes = pred_logits.size(2);
  const ScalarType dtype = compute_dtype(pred_logits);
  const Tensor conf = torch::stable::new_empty(pred_logits, {}, dtype);
  const Tensor loc = torch::stable::new_empty(pred_logits, {}, dtype);
  const Tensor n_pos = torch::stable::new_empty(pred_logits, {}, ScalarType::Long);
  const Tensor match = torch::stable::new_empty(pred_logits, {n_images, n_priors}, ScalarType::Int);
  const Tensor selected = torch::stable::new_empty(pred_logits, {n_images, n_priors}, ScalarType::Bool);

  const MultiboxTensors inputs =
      contiguous_arguments(pred_offsets, pred_logits, boxes, labels, offsets, priors_cxcywh);
  dispatch_floating_dtype(pred_logits.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    const auto targets = targets_of<T>(inputs, match, center_variance, size_variance);
    const auto* const logits_data = static_cast<const scalar_t*>(inputs.pred_logits.const_data_ptr());
    const AnyRows offsets_rows = rows_of(inputs.pred_offsets);
    const std::vector<Box<T>> objects = load_boxes<T>(targets.boxes, targets.n_objects);
    auto* const match_data = static_cast<int32_t*>(match.mutable_data_ptr());
    auto* const selected_data = static_cast<bool*>(selected.mutable_data_ptr());
    std::vector<ImageLoss> losses(n_images);

    const int64_t tiles = (n_priors + kTileRows - 1) / kTileRows;  // of an image
    const double tile_nanoseconds = static_cast<double>(kTileRows * n_classes) * kLogitNanoseconds;
    const Matcher<T> matcher([&](int64_t p) { return corners(load_row<CenterBox<T>>(targets.priors, p)); },
                             n_priors, threshold, bipartite);
    const int64_t objects_per_image = targets.n_objects / std::max<int64_t>(1, n_images);
    const double image_nanoseconds = tiles * tile_nanoseconds + matcher.nanoseconds(objects_per_image);
    parallel_over_images(n_images, n_images, image_nanoseconds, [&](const auto& next_image) {
      const std::unique_ptr<T[]> ce(new T[n_priors]);
      const std::unique_ptr<bits_t<T>[]> keys(new bits_t<T>[n_priors]);
      for (int64_t image = next_image(); image < n_images; image = next_image()) {
        const ImageObjects rows = objects_of(image, targets.offsets, targets.n_objects);
        matcher.match_image(objects.data() + rows.begin, rows.count, match_data + image * n_priors);
        parallel_for(tiles, tile_nanoseconds, [&](int64_t from, int64_t to) {
          const std::unique_ptr<T[]> tile(new T[n_classes * kTileRows]);
          cross_entropies(logits_data, targets, image, from * kTileRows, std::min(n_priors, to * kTileRows),
                          tile.get(), ce.get());
        });
        losses[image] = add_up_image(ce.get(), offsets_rows, targets, image, neg_pos_ratio, min_negatives,
                                     smooth, keys.get(), selected_data);
      }
    });

    LaneSums<kImageLanes> conf_sum, loc_sum;
    int64_t total_pos = 0;
    for (int64_t image = 0; image < n_images; ++image) {
      conf_sum.add(image, losses[image].conf);
      loc_sum.add(image, losses[image].loc);
      total_pos += losses[image].n_pos;
    }
    *static_cast<T*>(conf.mutable_data_ptr()) = static_cast<T>(conf_sum.total() / conf_divisor(total_pos));
    *static_cast<T*>(loc.mutable_data_ptr()) = static_cast<T>(loc_sum.total() / loc_divisor(total_pos, smooth));
    *static_cast<int64_t*>(n_pos.mutable_data_ptr()) = total_pos;
  });
  return {conf, loc, n_pos, match, selected};
}

// -------------------------------------------------------------------------------------------------- backward

// The gradients of the cross entropies of some rows, a tile after the other.
template <typename scalar_t, typename T>
void logits_gradients(const scalar_t* logits,  // (B * P, C)
                      const Targets<T>& targets, const std::vector<int64_t>& rows, T factor,
                      T* tile,           // (C, kTileRows), scratch
                      scalar_t* grad) {  // (B * P, C)
  const scalar_t* row_logits[kTileRows];
  scalar_t* row_grads[kTileRows];
  int32_t true_classes[kTileRows] = {};
  const int64_t n_classes = targets.n_classes;
  const auto n_rows = static_cast<int64_t>(rows.size());
  for (int64_t first = 0; first < n_rows; first += kTileRows) {
    const int64_t count = std::min(kTileRows, n_rows - first);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = rows[first + j];
      row_logits[j] = logits + i * n_classes;
      row_grads[j] = grad + i * n_classes;
      true_classes[j] = static_cast<int32_t>(targets.true_class(i, targets.object(i)));
    }
    load_tile(row_logits, count, n_classes, tile);
    // The rows lie far apart: without a hint the processor would wait for each of them.
    const int64_t next = std::min(n_rows, first + 2 * kTileRows);
    for (int64_t j = first + kTileRows; j < next; ++j) {
      prefetch(logits + rows[j] * n_classes, n_classes * sizeof(scalar_t));
    }
    differentiate_tile(tile, n_classes, true_classes, factor);
    store_tile(tile, count, n_classes, row_grads);
  }
}

std::tuple<Tensor, Tensor> multibox_loss_backward_cpu(
    const Tensor& grad_conf, const Tensor& grad_loc, const Tensor& pred_offsets, const Tensor& pred_logits,
    const Tensor& boxes, const Tensor& labels, const Tensor& offsets, const Tensor& priors_cxcywh,
    const Tensor& match, const Tensor& selected, const Tensor& n_pos, const std::string& loc_loss,
    double center_variance, double size_variance) {
  const bool smooth =
      check_multibox_arguments(pred_offsets, pred_logits, boxes, labels, offsets, priors_cxcywh, loc_loss);
  check_multibox_results(grad_conf, grad_loc, pred_logits, match, selected, n_pos);

  const int64_t n_images = pred_logits.size(0);
  const int64_t n_priors = pred_logits.size(1);
  const int64_t n_classes = pred_logits.size(2);
  const Tensor grad_offsets = torch::stable::new_empty(pred_offsets, {n_images, n_priors, 4});
  const Tensor grad_logits = new_in_huge_pages(pred_logits, {n_images, n_priors, n_classes});
  if (n_images == 0 || n_priors == 0) return {grad_offsets, grad_logits};

  const MultiboxTensors inputs =
      contiguous_arguments(pred_offsets, pred_logits, boxes, labels, offsets, priors_cxcywh);
  const Tensor matches = torch::stable::contiguous(match);
  const Tensor negatives = torch::stable::contiguous(selected);
  dispatch_floating_dtype(pred_logits.scalar_type(), [&](auto logits_zero) {
    dispatch_floating_dtype(pred_offsets.scalar_type(), [&](auto offsets_zero) {
      using scalar_t = decltype(logits_zero);
      using offsets_t = decltype(offsets_zero);
      using T = compute_t<scalar_t>;
      const auto targets = targets_of<T>(inputs, matches, center_variance, size_variance);
      const auto* const logits_data = static_cast<const scalar_t*>(inputs.pred_logits.const_data_ptr());
      const auto* const offsets_data = static_cast<const offsets_t*>(inputs.pred_offsets.const_data_ptr());
      const auto* const selected_data = static_cast<const bool*>(negatives.const_data_ptr());
      auto* const grad_logits_data = static_cast<scalar_t*>(grad_logits.mutable_data_ptr());
      auto* const grad_offsets_data = static_cast<offsets_t*>(grad_offsets.mutable_data_ptr());
      const int64_t total_pos = *static_cast<const int64_t*>(n_pos.const_data_ptr());
      const T conf_factor =
          *static_cast<const T*>(grad_conf.const_data_ptr()) / static_cast<T>(conf_divisor(total_pos));
      const T loc_factor =
          *static_cast<const T*>(grad_loc.const_data_ptr()) / static_cast<T>(loc_divisor(total_pos, smooth));

      const double row_nanoseconds = static_cast<double>(n_classes) * kGradientNanoseconds;
      parallel_for(n_images * n_priors, row_nanoseconds, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<T[]> tile(new T[n_classes * kTileRows]);
        std::memset(grad_logits_data + begin * n_classes, 0, (end - begin) * n_classes * sizeof(scalar_t));
        std::memset(grad_offsets_data + begin * 4, 0, (end - begin) * 4 * sizeof(offsets_t));
        std::vector<int64_t> rows;  // that count
        for (int64_t i = begin; i < end; ++i) {
          const int32_t object = targets.object(i);
          if (object < 0 && !selected_data[i]) continue;
          rows.push_back(i);
          if (object < 0) continue;
          const auto predicted = load_row<BoxOffsets<T>>(offsets_data, i);
          const BoxOffsets<T> target = targets.true_offsets(i, object);
          offsets_t* const grad = grad_offsets_data + 4 * i;
          const auto slope = [&](T d) {
            return static_cast<offsets_t>(localization_slope(d, smooth) * loc_factor);
          };
          grad[0] = slope(predicted.x - target.x);
          grad[1] = slope(predicted.y - target.y);
          grad[2] = slope(predicted.w - target.w);
          grad[3] = slope(predicted.h - target.h);
        }
        logits_gradients(logits_data, targets, rows, conf_factor, tile.get(), grad_logits_data);
      });
    });
  });
  return {grad_offsets, grad_logits};
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CPU, m) {
  m.impl("multibox_loss", TORCH_BOX(&ssd_ext::multibox_loss_cpu));
  m.impl("multibox_loss_backward", TORCH_BOX(&ssd_ext::multibox_loss_backward_cpu));
}
