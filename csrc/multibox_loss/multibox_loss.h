// What the multibox loss has on the CPU and on the GPU alike: targets and losses of ONE prior, the checks.
#pragma once

#include "core/box_math.h"
#include "core/checks.h"
#include "match_priors/match_priors.h"

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>
#include <string>

namespace ssd_ext {

// The class a matched prior has to predict. On a GPU nobody has checked the labels: one out of range may not
// become an index out of range.
C10_HOST_DEVICE inline int64_t class_of(int64_t label, int64_t n_classes) {
  return label < 0 ? 0 : label < n_classes ? label : n_classes - 1;
}

// |d|, or smooth L1 of d, of all four differences.
template <typename T>
C10_HOST_DEVICE inline double localization_error(const BoxOffsets<T>& predicted, const BoxOffsets<T>& target,
                                                 bool smooth) {
  const T differences[4] = {predicted.x - target.x, predicted.y - target.y, predicted.w - target.w,
                            predicted.h - target.h};
  double sum = 0;
  for (const T d : differences) {
    const T error = d < T(0) ? -d : d;
    sum += static_cast<double>(!smooth ? error : error < T(1) ? error * error * T(0.5) : error - T(0.5));
  }
  return sum;
}

// The derivative of |d|, or of smooth L1 of d.
template <typename T>
C10_HOST_DEVICE inline T localization_slope(T d, bool smooth) {
  if (smooth) return d > T(1) ? T(1) : d < T(-1) ? T(-1) : d;
  return static_cast<T>((d > T(0)) - (d < T(0)));
}

// The objects of a batch, and what the network has to predict of them. T is the compute type; i counts the
// priors of all images in a row.
template <typename T>
struct Targets {
  const T* boxes;          // (G, 4) xyxy
  const int64_t* labels;   // (G,)
  const int32_t* offsets;  // (B + 1,)
  const T* priors;         // (P, 4) cxcywh
  const int32_t* match;    // (B, P)
  int64_t n_objects, n_priors, n_classes;
  Variances<T> variances;

  // The object of prior i in the image, -1 for background, which any other number out of range stands for too.
  C10_HOST_DEVICE int32_t object(int64_t i) const {
    const int32_t object = match[i];
    return object >= 0 && object < objects_of(i / n_priors, offsets, n_objects).count ? object : -1;
  }
  C10_HOST_DEVICE int64_t true_class(int64_t i, int32_t object) const {
    return object < 0 ? 0 : class_of(labels[row(i, object)], n_classes);
  }
  // object >= 0.
  C10_HOST_DEVICE BoxOffsets<T> true_offsets(int64_t i, int32_t object) const {
    return encode(load_box<T>(boxes, row(i, object)), load_row<CenterBox<T>>(priors, i % n_priors), variances);
  }

 private:
  C10_HOST_DEVICE int64_t row(int64_t i, int32_t object) const {
    return objects_of(i / n_priors, offsets, n_objects).begin + object;
  }
};

// The arguments of the loss, all contiguous.
struct MultiboxTensors {
  Tensor pred_offsets, pred_logits, boxes, labels, offsets, priors_cxcywh;
};

inline MultiboxTensors contiguous_arguments(const Tensor& pred_offsets, const Tensor& pred_logits,
                                            const Tensor& boxes, const Tensor& labels, const Tensor& offsets,
                                            const Tensor& priors_cxcywh) {
  return {torch::stable::contiguous(pred_offsets), torch::stable::contiguous(pred_logits),
          torch::stable::contiguous(boxes),        torch::stable::contiguous(labels),
          torch::stable::contiguous(offsets),      torch::stable::contiguous(priors_cxcywh)};
}

template <typename T>
Targets<T> targets_of(const MultiboxTensors& tensors, const Tensor& match, double center_variance,
                      double size_variance) {
  return {static_cast<const T*>(tensors.boxes.const_data_ptr()),
          static_cast<const int64_t*>(tensors.labels.const_data_ptr()),
          static_cast<const int32_t*>(tensors.offsets.const_data_ptr()),
          static_cast<const T*>(tensors.priors_cxcywh.const_data_ptr()),
          static_cast<const int32_t*>(match.const_data_ptr()),
          tensors.boxes.size(0),
          tensors.pred_logits.size(1),
          tensors.pred_logits.size(2),
          {static_cast<T>(center_variance), static_cast<T>(size_variance)}};
}

struct ImageLoss {
  double conf, loc;
  int64_t n_pos;
};

// What the sums over the batch are divided by.
C10_HOST_DEVICE inline double conf_divisor(int64_t n_pos) { return n_pos > 1 ? static_cast<double>(n_pos) : 1; }
C10_HOST_DEVICE inline double loc_divisor(int64_t n_pos, bool smooth) {
  return conf_divisor(n_pos) * (smooth ? 1 : 4);
}

// Checks what forward and backward both take; returns whether the localisation loss is smooth L1. Predictions
// may be of two dtypes, of which float64 goes only with itself; boxes and priors are in the compute dtype.
inline bool check_multibox_arguments(const Tensor& pred_offsets, const Tensor& pred_logits,
                                     const Tensor& boxes, const Tensor& labels, const Tensor& offsets,
                                     const Tensor& priors_cxcywh, const std::string& loc_loss) {
  check_predictions(pred_offsets, pred_logits, priors_cxcywh);
  const int64_t n_images = pred_logits.size(0);
  const int64_t n_priors = pred_logits.size(1);
  STD_TORCH_CHECK(n_priors <= INT32_MAX, "there may be at most 2^31 - 1 priors, got ", n_priors);
  check_boxes(boxes, "boxes");
  STD_TORCH_CHECK(labels.dim() == 1 && labels.size(0) == boxes.size(0) &&
                      labels.scalar_type() == ScalarType::Long,
                  "labels must be (", boxes.size(0), ",) int64, got ", shape_of(labels), " ",
                  torch::headeronly::toString(labels.scalar_type()));
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) == n_images + 1 &&
                      offsets.scalar_type() == ScalarType::Int,
                  "offsets must be (", n_images + 1, ",) int32, got ", shape_of(offsets), " ",
                  torch::headeronly::toString(offsets.scalar_type()));
  const ScalarType dtype = compute_dtype(pred_logits);
  STD_TORCH_CHECK(compute_dtype(pred_offsets) == dtype && boxes.scalar_type() == dtype &&
                      priors_cxcywh.scalar_type() == dtype,
                  "boxes and priors_cxcywh must be in the compute dtype of pred_offsets and pred_logits, ",
                  torch::headeronly::toString(dtype), ", got ", torch::headeronly::toString(boxes.scalar_type()),
                  " and ", torch::headeronly::toString(priors_cxcywh.scalar_type()));
  check_same_device(pred_logits, "pred_logits", boxes, "boxes");
  check_same_device(pred_logits, "pred_logits", labels, "labels");
  check_same_device(pred_logits, "pred_logits", offsets, "offsets");
  STD_TORCH_CHECK(loc_loss == "l1" || loc_loss == "smooth_l1", "loc_loss must be one of l1, smooth_l1, got ",
                  loc_loss);
  return loc_loss == "smooth_l1";
}

// Checks what the backward takes besides.
inline void check_multibox_results(const Tensor& grad_conf, const Tensor& grad_loc, const Tensor& pred_logits,
                                   const Tensor& match, const Tensor& selected, const Tensor& n_pos) {
  const int64_t n_images = pred_logits.size(0);
  const int64_t n_priors = pred_logits.size(1);
  for (const Tensor* tensor : {&match, &selected}) {
    STD_TORCH_CHECK(tensor->dim() == 2 && tensor->size(0) == n_images && tensor->size(1) == n_priors,
                    "match and selected must have the shape (", n_images, ", ", n_priors, "), got ",
                    shape_of(*tensor));
    check_same_device(pred_logits, "pred_logits", *tensor, "match and selected");
  }
  STD_TORCH_CHECK(match.scalar_type() == ScalarType::Int && selected.scalar_type() == ScalarType::Bool &&
                      n_pos.scalar_type() == ScalarType::Long,
                  "match, selected and n_pos must be Int, Bool and Long");
  const ScalarType dtype = compute_dtype(pred_logits);
  for (const Tensor* tensor : {&grad_conf, &grad_loc}) {
    STD_TORCH_CHECK(tensor->scalar_type() == dtype, "gradients must be in ",
                    torch::headeronly::toString(dtype), ", got ",
                    torch::headeronly::toString(tensor->scalar_type()));
  }
  for (const Tensor* tensor : {&grad_conf, &grad_loc, &n_pos}) {
    STD_TORCH_CHECK(tensor->numel() == 1, "the gradients and n_pos must be one number each, got ",
                    shape_of(*tensor));
    check_same_device(pred_logits, "pred_logits", *tensor, "the gradients and n_pos");
  }
}

}  // namespace ssd_ext
