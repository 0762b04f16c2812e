// Shared by matching on CPU and GPU: the checks, the order of candidates, the objects of an image, the mark of a taken
// prior.
#pragma once

#include "core/checks.h"

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>
#include <string>

namespace ssd_ext {

// A prior (or an object) that may be chosen, and its IoU. An IoU of 0 means that there is no candidate.
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

// Whatever values row_splits holds, the rows lie within the n_objects rows of boxes.
C10_HOST_DEVICE inline ImageObjects objects_of(int64_t image, const int32_t* row_splits, int64_t n_objects) {
  int64_t limits[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t row = row_splits[image + i];
    limits[i] = row < 0 ? 0 : row < n_objects ? row : n_objects;
  }
  return {limits[0], static_cast<int32_t>(limits[1] > limits[0] ? limits[1] - limits[0] : 0)};
}

// While bipartite matching runs, `match` marks the priors that objects have finally taken: with numbers below -1,
// which have no other meaning.
C10_HOST_DEVICE inline int32_t taken_by(int32_t object) { return -2 - object; }
C10_HOST_DEVICE inline bool is_taken(int32_t match) { return match < -1; }
C10_HOST_DEVICE inline int32_t without_mark(int32_t match) { return is_taken(match) ? -2 - match : match; }

// Returns whether the mode is "bipartite".
inline bool check_match_mode(const std::string& mode) {
  STD_TORCH_CHECK(mode == "per_prior" || mode == "bipartite", "mode must be one of per_prior, bipartite, got ", mode);
  return mode == "bipartite";
}

// Checks the arguments of match_priors; returns whether the mode is "bipartite".
inline bool check_match_arguments(const Tensor& boxes, const Tensor& row_splits, const Tensor& priors_xyxy,
                                  const std::string& mode) {
  check_boxes_alike(boxes, "boxes", priors_xyxy, "priors_xyxy");
  STD_TORCH_CHECK(row_splits.dim() == 1 && row_splits.size(0) >= 1 && row_splits.scalar_type() == ScalarType::Int,
                  "row_splits must be (B + 1,) int32, got ", shape_of(row_splits), " ",
                  toString(row_splits.scalar_type()));
  check_same_device(boxes, "boxes", row_splits, "row_splits");
  STD_TORCH_CHECK(priors_xyxy.size(0) <= INT32_MAX, "there may be at most 2^31 - 1 priors, got ",
                  priors_xyxy.size(0));
  return check_match_mode(mode);
}

}  // namespace ssd_ext
