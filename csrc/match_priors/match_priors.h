// What matching has on the CPU and on the GPU alike: the checks, the order of candidates, the objects of an
// image, the mark of a taken prior.
#pragma once

#include "core/checks.h"

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>
#include <limits>
#include <string>

namespace ssd_ext {

// A prior (or an object) that may be chosen, and its IoU; an IoU of 0 stands for none.
template <typename T>
struct alignas(2 * sizeof(T)) Candidate {
  T iou;
  int32_t index;
};

// The one order of all choices: the highest IoU, then the lowest index.
template <typename T>
C10_HOST_DEVICE inline bool outranks(const Candidate<T>& a, const Candidate<T>& b) {
  return a.iou > b.iou || (a.iou == b.iou && a.index < b.index);
}

// The rows of the packed boxes that belong to one image.
struct ImageObjects {
  int64_t begin;
  int32_t count;
};

// Whatever the offsets hold, the rows lie within the n_objects that there are.
C10_HOST_DEVICE inline ImageObjects objects_of(int64_t image, const int32_t* offsets, int64_t n_objects) {
  int64_t limits[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t offset = offsets[image + i];
    limits[i] = offset < 0 ? 0 : offset < n_objects ? offset : n_objects;
  }
  return {limits[0], static_cast<int32_t>(limits[1] > limits[0] ? limits[1] - limits[0] : 0)};
}

// While bipartite matching runs, `match` marks the priors that objects have taken for good by numbers below
// -1, which no other match is.
C10_HOST_DEVICE inline int32_t taken_by(int32_t object) { return -2 - object; }
C10_HOST_DEVICE inline bool is_taken(int32_t match) { return match < -1; }
C10_HOST_DEVICE inline int32_t without_mark(int32_t match) { return is_taken(match) ? -2 - match : match; }

// Returns whether the mode is "bipartite".
inline bool check_match_mode(const std::string& mode) {
  STD_TORCH_CHECK(mode == "per_prior" || mode == "bipartite",
                  "mode must be one of per_prior, bipartite, got ", mode);
  return mode == "bipartite";
}

// Checks the arguments of match_priors; returns whether the mode is "bipartite".
inline bool check_match_arguments(const Tensor& boxes, const Tensor& offsets, const Tensor& priors_xyxy,
                                  const std::string& mode) {
  check_boxes(boxes, "boxes");
  check_boxes(priors_xyxy, "priors_xyxy");
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == ScalarType::Int,
                  "offsets must be (B + 1,) int32, got ", shape_of(offsets), " ",
                  torch::headeronly::toString(offsets.scalar_type()));
  check_same_device(boxes, "boxes", offsets, "offsets");
  check_same_device(boxes, "boxes", priors_xyxy, "priors_xyxy");
  check_same_dtype(boxes, "boxes", priors_xyxy, "priors_xyxy");
  STD_TORCH_CHECK(priors_xyxy.size(0) <= std::numeric_limits<int32_t>::max(),
                  "there may be at most 2^31 - 1 priors, got ", priors_xyxy.size(0));
  return check_match_mode(mode);
}

}  // namespace ssd_ext
