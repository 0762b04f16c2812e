// Shared by the multibox loss on CPU and GPU: options, arguments and their checks; the targets and losses of ONE prior.
#pragma once

#include "core/box_math.h"
#include "core/checks.h"
#include "match_priors/match_priors.h"

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

namespace ssd_ext {

// ------------------------------------------------------------------------------------------------ the arguments

struct LossOptions {
  double threshold, neg_pos_ratio;
  bool smooth, bipartite;  // smooth L1 instead of L1; bipartite matching instead of per prior
  int64_t min_negatives;
  Variances<double> variances;
};

struct LossInputs {
  Tensor pred_offsets, pred_logits, boxes, labels, row_splits, priors_cxcywh;
  std::optional<Tensor> priors_xyxy;  // forward only: the corners of the priors for matching
};

inline LossInputs as_contiguous(const LossInputs& x) {
  std::optional<Tensor> corners;
  if (x.priors_xyxy) corners = as_contiguous(*x.priors_xyxy);
  return {as_contiguous(x.pred_offsets), as_contiguous(x.pred_logits),
          as_contiguous(x.boxes),        as_contiguous(x.labels),
          as_contiguous(x.row_splits),   as_contiguous(x.priors_cxcywh),
          corners};
}

// The arguments of the backward besides the inputs.
struct LossResults {
  Tensor grad_conf, grad_loc, match, selected, n_pos;
};

// Makes LossOptions from the arguments of the schema, and checks them.
inline LossOptions loss_options(double threshold, double neg_pos_ratio, const std::string& loc_loss,
                                const std::string& matching, int64_t min_negatives, double center_variance,
                                double size_variance) {
  STD_TORCH_CHECK(loc_loss == "l1" || loc_loss == "smooth_l1", "loc_loss must be one of l1, smooth_l1, got ", loc_loss);
  return {threshold,     neg_pos_ratio, loc_loss == "smooth_l1", check_match_mode(matching),
          min_negatives, {center_variance, size_variance}};
}

// pred_offsets and pred_logits may have different dtypes, but if one is float64 the other must be float64 too. Boxes
// and priors must have the compute dtype.
inline void check_loss_inputs(const LossInputs& x) {
  check_predictions(x.pred_offsets, x.pred_logits, x.priors_cxcywh);
  const int64_t n_priors = x.pred_logits.size(1);
  STD_TORCH_CHECK(n_priors <= INT32_MAX, "there may be at most 2^31 - 1 priors, got ", n_priors);
  check_boxes(x.boxes, "boxes");
  check_vector(x.labels, "labels", x.boxes.size(0), ScalarType::Long, "int64");
  check_vector(x.row_splits, "row_splits", x.pred_logits.size(0) + 1, ScalarType::Int, "int32");
  const ScalarType dtype = compute_dtype(x.pred_logits);
  STD_TORCH_CHECK(compute_dtype(x.pred_offsets) == dtype && x.boxes.scalar_type() == dtype &&
                      x.priors_cxcywh.scalar_type() == dtype,
                  "boxes and priors_cxcywh must be in the compute dtype of pred_offsets and pred_logits, ",
                  toString(dtype), ", got ", toString(x.boxes.scalar_type()), " and ",
                  toString(x.priors_cxcywh.scalar_type()));
  check_same_device(x.pred_logits, "pred_logits", x.boxes, "boxes");
  check_same_device(x.pred_logits, "pred_logits", x.labels, "labels");
  check_same_device(x.pred_logits, "pred_logits", x.row_splits, "row_splits");
  if (!x.priors_xyxy) return;
  check_boxes_alike(x.priors_cxcywh, "priors_cxcywh", *x.priors_xyxy, "priors_xyxy");
  STD_TORCH_CHECK(x.priors_xyxy->size(0) == n_priors, "priors_xyxy must have ", n_priors, " rows, got ",
                  shape_of(*x.priors_xyxy));
}

inline void check_loss_results(const LossResults& results, const Tensor& pred_logits) {
  const auto& [grad_conf, grad_loc, match, selected, n_pos] = results;
  const int64_t n_images = pred_logits.size(0);
  const int64_t n_priors = pred_logits.size(1);
  for (const Tensor* tensor : {&match, &selected}) {
    STD_TORCH_CHECK(tensor->dim() == 2 && tensor->size(0) == n_images && tensor->size(1) == n_priors,
                    "match and selected must have the shape (", n_images, ", ", n_priors, "), got ", shape_of(*tensor));
    check_same_device(pred_logits, "pred_logits", *tensor, "match and selected");
  }
  STD_TORCH_CHECK(match.scalar_type() == ScalarType::Int && selected.scalar_type() == ScalarType::Bool &&
                      n_pos.scalar_type() == ScalarType::Long,
                  "match, selected and n_pos must be Int, Bool and Long");
  const ScalarType dtype = compute_dtype(pred_logits);
  for (const Tensor* tensor : {&grad_conf, &grad_loc}) {
    STD_TORCH_CHECK(tensor->scalar_type() == dtype, "gradients must be in ", toString(dtype), ", got ",
                    toString(tensor->scalar_type()));
  }
  for (const Tensor* tensor : {&grad_conf, &grad_loc, &n_pos}) {
    STD_TORCH_CHECK(tensor->numel() == 1, "the gradients and n_pos must be one number each, got ", shape_of(*tensor));
    check_same_device(pred_logits, "pred_logits", *tensor, "the gradients and n_pos");
  }
}

// ------------------------------------------------------------------------------------------------------- the ops

struct LossOutputs {
  Tensor conf_loss, loc_loss, n_pos;  // one number each
  Tensor match, selected;             // (B, P)
};

// New outputs for these logits. The losses and n_pos are 0 if no kernel will write them, else not initialised.
inline LossOutputs new_losses(const Tensor& pred_logits, bool zeros = false) {
  const auto number = [&](ScalarType dtype) {
    return zeros ? torch::stable::new_zeros(pred_logits, {}, dtype) : torch::stable::new_empty(pred_logits, {}, dtype);
  };
  const auto per_prior = [&](ScalarType dtype) {
    return torch::stable::new_empty(pred_logits, {pred_logits.size(0), pred_logits.size(1)}, dtype);
  };
  const ScalarType dtype = compute_dtype(pred_logits);
  return {number(dtype), number(dtype), number(ScalarType::Long), per_prior(ScalarType::Int),
          per_prior(ScalarType::Bool)};
}

// grad_offsets (B, P, 4) and grad_logits (B, P, C).
using LossGradients = std::tuple<Tensor, Tensor>;

using LossForward = LossOutputs(const LossInputs&, const LossOptions&);
using LossBackward = LossGradients(const LossInputs&, const LossResults&, const LossOptions&);

// The ops with the arguments of their schemas, computed by the functions of one device. Options: the parameters of
// loss_options.
template <LossForward kForward, LossBackward kBackward, typename Options = decltype(loss_options)>
struct BoxedLoss;

template <LossForward kForward, LossBackward kBackward, typename... Options>
struct BoxedLoss<kForward, kBackward, LossOptions(Options...)> {
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
      const Tensor& pred_offsets, const Tensor& pred_logits, const Tensor& boxes, const Tensor& labels,
      const Tensor& row_splits, const Tensor& priors_cxcywh, Options... options, std::optional<Tensor> priors_xyxy) {
    const LossInputs inputs = {pred_offsets, pred_logits, boxes, labels, row_splits, priors_cxcywh, priors_xyxy};
    check_loss_inputs(inputs);
    const LossOutputs out = kForward(inputs, loss_options(options...));
    return {out.conf_loss, out.loc_loss, out.n_pos, out.match, out.selected};
  }

  static LossGradients backward(const Tensor& grad_conf, const Tensor& grad_loc, const Tensor& pred_offsets,
                                const Tensor& pred_logits, const Tensor& boxes, const Tensor& labels,
                                const Tensor& row_splits, const Tensor& priors_cxcywh, const Tensor& match,
                                const Tensor& selected, const Tensor& n_pos, Options... options) {
    const LossInputs inputs = {pred_offsets, pred_logits, boxes, labels, row_splits, priors_cxcywh, std::nullopt};
    const LossResults results = {grad_conf, grad_loc, match, selected, n_pos};
    check_loss_inputs(inputs);
    check_loss_results(results, pred_logits);
    return kBackward(inputs, results, loss_options(options...));
  }
};

// ----------------------------------------------------------------------------------------------------- one prior

// The class that a matched prior has to predict. On a GPU the labels are not checked by default: one out of range must
// not become an index out of range.
C10_HOST_DEVICE inline int64_t class_of(int64_t label, int64_t n_classes) {
  return label < 0 ? 0 : label < n_classes ? label : n_classes - 1;
}

// The sum of |d|, or of smooth L1 of d, over the four differences d.
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

// The gradient of the localization error, times a factor.
template <typename T>
C10_HOST_DEVICE inline BoxOffsets<T> localization_gradient(const BoxOffsets<T>& predicted,
                                                           const BoxOffsets<T>& target, bool smooth, T factor) {
  return {localization_slope(predicted.x - target.x, smooth) * factor,
          localization_slope(predicted.y - target.y, smooth) * factor,
          localization_slope(predicted.w - target.w, smooth) * factor,
          localization_slope(predicted.h - target.h, smooth) * factor};
}

// The objects of a batch, and the targets that the network has to predict. T is the compute type; i counts the priors
// of all images, one image after another.
template <typename T>
struct Targets {
  const T* boxes;             // (G, 4) xyxy
  const int64_t* labels;      // (G,)
  const int32_t* row_splits;  // (B + 1,)
  const T* priors;            // (P, 4) cxcywh
  const int32_t* match;       // (B, P)
  int64_t n_objects, n_priors, n_classes;
  Variances<T> variances;

  // inputs, match: contiguous.
  Targets(const LossInputs& inputs, const Tensor& match, const Variances<double>& variances)
      : boxes(inputs.boxes.const_data_ptr<T>()),
        labels(inputs.labels.const_data_ptr<int64_t>()),
        row_splits(inputs.row_splits.const_data_ptr<int32_t>()),
        priors(inputs.priors_cxcywh.const_data_ptr<T>()),
        match(match.const_data_ptr<int32_t>()),
        n_objects(inputs.boxes.size(0)),
        n_priors(inputs.pred_logits.size(1)),
        n_classes(inputs.pred_logits.size(2)),
        variances(variances.as<T>()) {}

  // The object of prior i, as its index in the image; -1 for background. Any other index out of range counts as
  // background too.
  C10_HOST_DEVICE int32_t object(int64_t i) const {
    const int32_t object = match[i];
    return object >= 0 && object < objects_of(i / n_priors, row_splits, n_objects).count ? object : -1;
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
    return objects_of(i / n_priors, row_splits, n_objects).begin + object;
  }
};

struct ImageLoss {
  double conf, loc;
  int64_t n_pos;
};

// The divisors of the sums over the batch.
C10_HOST_DEVICE inline double conf_divisor(int64_t n_pos) { return n_pos > 1 ? static_cast<double>(n_pos) : 1; }
C10_HOST_DEVICE inline double loc_divisor(int64_t n_pos, bool smooth) {
  return conf_divisor(n_pos) * (smooth ? 1 : 4);
}

}  // namespace ssd_ext
