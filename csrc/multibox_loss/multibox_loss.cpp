// The SSD loss on the CPU: pred_offsets (B, P, 4), pred_logits (B, P, C) and packed objects -> conf_loss,
// loc_loss, n_pos, match (B, P), selected (B, P); and its gradients.
//
// Forward: a thread owns an image, or all threads own the tiles of one image if there are few images. It matches the
// priors (match_priors.cpp). It reads the logits once, in tiles of 64 rows, and keeps only the cross entropy of each
// prior. It selects the hard negatives and adds up the losses of positives and hard negatives. Targets are computed for
// positives only.
//
// Backward: a task owns a run of priors. It fills their gradients with zeros, and then computes the gradients of the
// few priors that count (positives and hard negatives) from their logits.
#include "multibox_loss/multibox_loss.h"

#include "core/any_rows.h"
#include "core/cpu/huge_pages.h"
#include "core/cpu/logit_tile.h"
#include "core/cpu/parallel.h"
#include "core/cpu/prefetch.h"
#include "core/lane_sums.h"
#include "match_priors/matcher.h"
#include "select_hard_negatives/selector.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

namespace ssd_ext {
namespace {

constexpr double kLogitNanoseconds = 1.2;     // for each logit, forward
constexpr double kGradientNanoseconds = 0.4;  // for each logit, backward

// --------------------------------------------------------------------------------------------------- forward

// The cross entropies of the priors begin..end of an image.
template <typename scalar_t, typename T>
void cross_entropies(const scalar_t* logits,  // (B * P, C)
                     const Targets<T>& targets, int64_t image, int64_t begin, int64_t end,
                     T* ce) {  // (P,)
  const int64_t first = image * targets.n_priors;
  const scalar_t* row_logits[kLogitRows];
  T true_logits[kLogitRows], tile_ce[kLogitRows];
  const int64_t n_classes = targets.n_classes;
  const std::unique_ptr<T[]> tile(new T[n_classes * kLogitRows]);
  for (; begin < end; begin += kLogitRows) {
    const int64_t rows = std::min(kLogitRows, end - begin);
    const scalar_t* const tile_logits = logits + (first + begin) * n_classes;
    for (int64_t row = 0; row < rows; ++row) row_logits[row] = tile_logits + row * n_classes;
    load_tile(row_logits, rows, n_classes, tile.get());
    prefetch(tile_logits + kLogitRows * n_classes, kLogitRows * n_classes * sizeof(scalar_t));
    // At first the logits of class 0, background, which is the true class of nearly all rows.
    std::copy_n(tile.get(), kLogitRows, true_logits);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t i = first + begin + row;
      const int32_t object = targets.match[i];
      if (object >= 0) true_logits[row] = tile[targets.true_class(i, object) * kLogitRows + row];
    }
    cross_entropy_of_tile(tile.get(), n_classes, true_logits, tile_ce);
    std::copy_n(tile_ce, rows, ce + begin);
  }
}

// Selects the hard negatives of an image and adds up the losses.
template <typename T>
ImageLoss add_up_image(const T* ce,                  // (P,)
                       const AnyRows& pred_offsets,  // (B * P, 4)
                       const Targets<T>& targets, int64_t image, bool smooth, HardNegativeSelector<T>& selector,
                       bool* selected) {  // (B * P,)
  const int64_t n_priors = targets.n_priors;
  const int64_t first = image * n_priors;
  selected += first;
  const int64_t n_pos = selector.select(ce, targets.match + first, selected);
  LaneSums<kPriorLanes> positives, negatives, loc;
  for (int64_t p = 0; p < n_priors; ++p) {
    const int64_t i = first + p;
    const int32_t object = targets.match[i];
    if (object < 0) {
      if (selected[p]) negatives.add(p, ce[p]);
      continue;
    }
    positives.add(p, ce[p]);
    const auto predicted = load_row<BoxOffsets<T>>(pred_offsets, i);
    loc.add(p, localization_error(predicted, targets.true_offsets(i, object), smooth));
  }
  return {positives.total() + negatives.total(), loc.total(), n_pos};
}

template <typename T>
void add_up_batch(const std::vector<ImageLoss>& losses, bool smooth, T* conf_loss, T* loc_loss,
                  int64_t* n_pos) {  // one number each
  LaneSums<kImageLanes> conf, loc;
  int64_t total_pos = 0;
  for (size_t image = 0; image < losses.size(); ++image) {
    conf.add(image, losses[image].conf);
    loc.add(image, losses[image].loc);
    total_pos += losses[image].n_pos;
  }
  *conf_loss = static_cast<T>(conf.total() / conf_divisor(total_pos));
  *loc_loss = static_cast<T>(loc.total() / loc_divisor(total_pos, smooth));
  *n_pos = total_pos;
}

// The losses of the images; fills match and selected.
template <typename scalar_t, typename T = compute_t<scalar_t>>
std::vector<ImageLoss> losses_of_images(const LossInputs& inputs, const LossOptions& options, const Tensor& match,
                                        const Tensor& selected) {
  const Targets<T> targets(inputs, match, options.variances);
  const int64_t n_images = inputs.pred_logits.size(0);
  const int64_t n_priors = targets.n_priors;
  const auto* const logits = inputs.pred_logits.const_data_ptr<scalar_t>();
  const AnyRows pred_offsets = rows_of(inputs.pred_offsets);
  auto* const match_data = match.mutable_data_ptr<int32_t>();
  auto* const selected_data = selected.mutable_data_ptr<bool>();

  const std::vector<Box<T>> objects = load_boxes<T>(targets.boxes, targets.n_objects);
  const bool cxcywh = !inputs.priors_xyxy;
  const T* const priors = cxcywh ? targets.priors : inputs.priors_xyxy->const_data_ptr<T>();
  const Matcher<T> matcher(priors, cxcywh, n_priors, options.threshold, options.bipartite);
  const int64_t tiles = (n_priors + kLogitRows - 1) / kLogitRows;  // of an image
  const double tile_nanoseconds = static_cast<double>(kLogitRows * targets.n_classes) * kLogitNanoseconds;
  const double image_nanoseconds =
      tiles * tile_nanoseconds + matcher.nanoseconds(targets.n_objects / std::max<int64_t>(1, n_images));
  std::vector<ImageLoss> losses(n_images);
  parallel_over_images(n_images, n_images, image_nanoseconds, [&](const auto& next_image) {
    const std::unique_ptr<T[]> ce(new T[n_priors]);
    HardNegativeSelector<T> selector(n_priors, options.neg_pos_ratio, options.min_negatives);
    for (int64_t image = next_image(); image < n_images; image = next_image()) {
      const ImageObjects rows = objects_of(image, targets.row_splits, targets.n_objects);
      matcher.match_image(objects.data() + rows.begin, rows.count, match_data + image * n_priors);
      parallel_for(tiles, tile_nanoseconds, [&](int64_t begin, int64_t end) {
        cross_entropies(logits, targets, image, begin * kLogitRows, std::min(n_priors, end * kLogitRows), ce.get());
      });
      losses[image] = add_up_image(ce.get(), pred_offsets, targets, image, options.smooth, selector, selected_data);
    }
  });
  return losses;
}

LossOutputs multibox_loss_cpu(const LossInputs& inputs, const LossOptions& options) {
  const LossOutputs outputs = new_losses(inputs.pred_logits);
  dispatch_floating_dtype(inputs.pred_logits.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    const auto losses = losses_of_images<scalar_t>(as_contiguous(inputs), options, outputs.match, outputs.selected);
    add_up_batch(losses, options.smooth, outputs.conf_loss.mutable_data_ptr<T>(),
                 outputs.loc_loss.mutable_data_ptr<T>(), outputs.n_pos.mutable_data_ptr<int64_t>());
  });
  return outputs;
}

// -------------------------------------------------------------------------------------------------- backward

// The data that all rows share.
template <typename scalar_t, typename offsets_t>
struct Gradients {
  using T = compute_t<scalar_t>;
  const scalar_t* logits;         // (B * P, C)
  const offsets_t* pred_offsets;  // (B * P, 4)
  const bool* selected;           // (B * P,)
  Targets<T> targets;
  bool smooth;
  T conf_factor, loc_factor;
  scalar_t* grad_logits;    // (B * P, C)
  offsets_t* grad_offsets;  // (B * P, 4)

  // Writes the gradients of the rows begin..end.
  void fill(int64_t begin, int64_t end) const {
    std::memset(grad_logits + begin * targets.n_classes, 0, (end - begin) * targets.n_classes * sizeof(scalar_t));
    std::memset(grad_offsets + begin * 4, 0, (end - begin) * 4 * sizeof(offsets_t));
    std::vector<int64_t> rows;  // positives and hard negatives
    for (int64_t i = begin; i < end; ++i) {
      const int32_t object = targets.object(i);
      if (object < 0 && !selected[i]) continue;
      rows.push_back(i);
      if (object < 0) continue;
      const auto predicted = load_row<BoxOffsets<T>>(pred_offsets, i);
      const auto gradient = localization_gradient(predicted, targets.true_offsets(i, object), smooth, loc_factor);
      store_row(gradient, grad_offsets, i);
    }
    fill_logits(rows);
  }

 private:
  // Writes the gradients of the logits of these rows, one tile after another.
  void fill_logits(const std::vector<int64_t>& rows) const {
    const scalar_t* row_logits[kLogitRows];
    scalar_t* row_grads[kLogitRows];
    int32_t true_classes[kLogitRows] = {};
    const int64_t n_classes = targets.n_classes;
    const std::unique_ptr<T[]> tile(new T[n_classes * kLogitRows]);
    const auto n_rows = static_cast<int64_t>(rows.size());
    for (int64_t first = 0; first < n_rows; first += kLogitRows) {
      const int64_t count = std::min(kLogitRows, n_rows - first);
      for (int64_t j = 0; j < count; ++j) {
        const int64_t i = rows[first + j];
        row_logits[j] = logits + i * n_classes;
        row_grads[j] = grad_logits + i * n_classes;
        true_classes[j] = static_cast<int32_t>(targets.true_class(i, targets.object(i)));
      }
      load_tile(row_logits, count, n_classes, tile.get());
      // The rows lie far apart: without a prefetch the processor would wait for each of them.
      const int64_t next = std::min(n_rows, first + 2 * kLogitRows);
      for (int64_t j = first + kLogitRows; j < next; ++j) {
        prefetch(logits + rows[j] * n_classes, n_classes * sizeof(scalar_t));
      }
      differentiate_tile(tile.get(), n_classes, true_classes, conf_factor);
      store_tile(tile.get(), count, n_classes, row_grads);
    }
  }
};

LossGradients multibox_loss_backward_cpu(const LossInputs& given, const LossResults& results,
                                         const LossOptions& options) {
  const Tensor& logits = given.pred_logits;
  const int64_t n_images = logits.size(0);
  const int64_t n_priors = logits.size(1);
  const int64_t n_classes = logits.size(2);
  const Tensor grad_offsets = torch::stable::new_empty(given.pred_offsets, {n_images, n_priors, 4});
  const Tensor grad_logits = new_in_huge_pages(logits, {n_images, n_priors, n_classes});
  if (n_images == 0 || n_priors == 0) return {grad_offsets, grad_logits};

  const LossInputs inputs = as_contiguous(given);
  const Tensor match = as_contiguous(results.match);
  const Tensor selected = as_contiguous(results.selected);
  const int64_t n_pos = *results.n_pos.const_data_ptr<int64_t>();
  dispatch_floating_dtype(logits.scalar_type(), [&](auto logits_zero) {
    dispatch_floating_dtype(given.pred_offsets.scalar_type(), [&](auto offsets_zero) {
      using scalar_t = decltype(logits_zero);
      using offsets_t = decltype(offsets_zero);
      using T = compute_t<scalar_t>;
      const Gradients<scalar_t, offsets_t> gradients = {
          inputs.pred_logits.const_data_ptr<scalar_t>(),
          inputs.pred_offsets.const_data_ptr<offsets_t>(),
          selected.const_data_ptr<bool>(),
          Targets<T>(inputs, match, options.variances),
          options.smooth,
          *results.grad_conf.const_data_ptr<T>() / static_cast<T>(conf_divisor(n_pos)),
          *results.grad_loc.const_data_ptr<T>() / static_cast<T>(loc_divisor(n_pos, options.smooth)),
          grad_logits.mutable_data_ptr<scalar_t>(),
          grad_offsets.mutable_data_ptr<offsets_t>()};
      parallel_for(n_images * n_priors, static_cast<double>(n_classes) * kGradientNanoseconds,
                   [&](int64_t begin, int64_t end) { gradients.fill(begin, end); });
    });
  });
  return {grad_offsets, grad_logits};
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ext, m) {
  m.def(
      "multibox_loss(Tensor pred_offsets, Tensor pred_logits, Tensor boxes, Tensor labels, Tensor row_splits, "
      "Tensor priors_cxcywh, float threshold, float neg_pos_ratio, str loc_loss, str matching, int min_negatives, "
      "float center_variance, float size_variance, Tensor? priors_xyxy=None) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "multibox_loss_backward(Tensor grad_conf, Tensor grad_loc, Tensor pred_offsets, Tensor pred_logits, Tensor "
      "boxes, Tensor labels, Tensor row_splits, Tensor priors_cxcywh, Tensor match, Tensor selected, Tensor n_pos, "
      "float threshold, float neg_pos_ratio, str loc_loss, str matching, int min_negatives, float center_variance, "
      "float size_variance) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CPU, m) {
  using Loss = ssd_ext::BoxedLoss<ssd_ext::multibox_loss_cpu, ssd_ext::multibox_loss_backward_cpu>;
  m.impl("multibox_loss", TORCH_BOX(&Loss::forward));
  m.impl("multibox_loss_backward", TORCH_BOX(&Loss::backward));
}
