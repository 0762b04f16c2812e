// Shared by detection on CPU and GPU: options, outputs, checks, and the order of the candidates.
#pragma once

#include "core/box_math.h"
#include "core/checks.h"
#include "core/exact_math.h"

#include <torch/headeronly/macros/Macros.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <tuple>

namespace ssd_ext {

// From the offsets of a prior to the box of a detection.
struct BoxDecoder {
  Variances<float> variances;
  float max_log_scale;
  bool clip;

  C10_HOST_DEVICE Box<float> operator()(const BoxOffsets<float>& offsets, const CenterBox<float>& prior) const {
    const Box<float> box = decode(offsets, prior, variances, max_log_scale);
    return clip ? clipped(box) : box;
  }
};

struct DetectionOptions {
  double min_score, max_overlap;
  int64_t top_k;
  std::optional<int64_t> pre_nms_top_k;
  BoxDecoder decoder;
  bool sigmoid;  // else softmax
};

struct DetectionOutputs {
  Tensor boxes, labels, scores, counts;  // (B, K, 4) xyxy, (B, K), (B, K), (B,)
};

// New outputs for these logits: zeros if no kernel will write them, else not initialised.
inline DetectionOutputs new_detections(const Tensor& pred_logits, int64_t top_k, bool zeros = false) {
  const auto output = [&](std::initializer_list<int64_t> shape, ScalarType dtype) {
    return zeros ? torch::stable::new_zeros(pred_logits, shape, dtype)
                 : torch::stable::new_empty(pred_logits, shape, dtype);
  };
  const int64_t n_images = pred_logits.size(0);
  return {output({n_images, top_k, 4}, ScalarType::Float), output({n_images, top_k}, ScalarType::Long),
          output({n_images, top_k}, ScalarType::Float), output({n_images}, ScalarType::Int)};
}

struct Detections {
  Box<float>* boxes;
  int64_t* labels;
  float* scores;
  int32_t* counts;
};

inline Detections data_of(const DetectionOutputs& outputs) {
  return {reinterpret_cast<Box<float>*>(outputs.boxes.mutable_data_ptr<float>()),
          outputs.labels.mutable_data_ptr<int64_t>(), outputs.scores.mutable_data_ptr<float>(),
          outputs.counts.mutable_data_ptr<int32_t>()};
}

using Detection = DetectionOutputs(const Tensor& pred_offsets, const Tensor& pred_logits, const Tensor& priors_cxcywh,
                                   const DetectionOptions& options);

// The op with the arguments of its schema, computed by kDetect, the detection of one device.
template <Detection kDetect>
std::tuple<Tensor, Tensor, Tensor, Tensor> boxed_detection(
    const Tensor& pred_offsets, const Tensor& pred_logits, const Tensor& priors_cxcywh, double min_score,
    double max_overlap, int64_t top_k, std::optional<int64_t> pre_nms_top_k, double center_variance,
    double size_variance, const std::string& score, bool clip, std::optional<double> max_log_scale) {
  check_predictions(pred_offsets, pred_logits, priors_cxcywh);
  const int64_t n_priors = pred_logits.size(1);
  const int64_t n_classes = pred_logits.size(2);
  STD_TORCH_CHECK(n_priors <= UINT32_MAX && n_priors * (n_classes - 1) <= UINT32_MAX,
                  "there may be at most 2^32 - 1 pairs of a prior and a class, got ", shape_of(pred_logits));
  STD_TORCH_CHECK(top_k >= 0, "top_k must be >= 0, got ", top_k);
  STD_TORCH_CHECK(!pre_nms_top_k || *pre_nms_top_k >= 0, "pre_nms_top_k must be >= 0, got ", *pre_nms_top_k);
  STD_TORCH_CHECK(score == "softmax" || score == "sigmoid", "score must be softmax or sigmoid, got ", score);
  const Variances<double> variances = {center_variance, size_variance};
  const double most = max_log_scale.value_or(std::numeric_limits<double>::infinity());
  const BoxDecoder decoder = {variances.as<float>(), static_cast<float>(most), clip};
  const DetectionOutputs out = kDetect(pred_offsets, pred_logits, priors_cxcywh,
                                       {min_score, max_overlap, top_k, pre_nms_top_k, decoder, score == "sigmoid"});
  return {out.boxes, out.labels, out.scores, out.counts};
}

// A pair of a prior and a class as one number. All candidates of an image have different numbers, and a better
// candidate has a larger number. The upper 32 bits are the bits of the score, which rise with a positive score. The
// lower 32 bits are the inverted pair: larger for a lower class, then for a lower prior.
struct DetectionKey {
  // label: class - 1.
  C10_HOST_DEVICE static uint64_t pack(float score, int64_t label, int64_t prior, int64_t n_priors) {
    return static_cast<uint64_t>(bits_of(score)) << 32 | ~static_cast<uint32_t>(label * n_priors + prior);
  }
  C10_HOST_DEVICE static float score(uint64_t key) { return float_of(static_cast<uint32_t>(key >> 32)); }
  // label * n_priors + prior.
  C10_HOST_DEVICE static uint32_t pair(uint64_t key) { return ~static_cast<uint32_t>(key); }
};

// A lower limit for the logit of a class minus the logit of background. Below it, the score is never > min_score,
// whatever the other logits are, because the sum of the exponentials is at least that of background. With sigmoid the
// score is less than the exponential of the logit, so the same holds with a background logit of 0. The margin is far
// larger than all rounding errors, except for exponentials near the smallest numbers: for these there is no limit.
inline float least_difference_to_background(double min_score) {
  constexpr double kMargin = 1e-3;
  constexpr double kTiny = 1e-30;
  return static_cast<float>(min_score >= kTiny ? std::log(min_score) - kMargin
                                               : -std::numeric_limits<double>::infinity());
}

}  // namespace ssd_ext
