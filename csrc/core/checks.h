// What every op needs from the stable ABI: names, checks of the inputs, dispatch on the dtype.
//
// The public functions in Python raise ValueErrors. A check that fails here raises a RuntimeError. These checks keep a
// direct call of the op from reading out of bounds.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <string>
#include <type_traits>

namespace ssd_ext {

using torch::headeronly::ScalarType;
using torch::headeronly::toString;
using torch::stable::Tensor;

// Ops compute and return float, or double if the inputs are double.
template <typename scalar_t>
using compute_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

inline ScalarType compute_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The tensor itself if it is contiguous, else a copy. torch's function calls the dispatcher in both cases, which takes
// as long as sorting a hundred boxes.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + ")";
}

inline void check_boxes(const Tensor& boxes, const char* name) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4, name, " must have the shape (N, 4), got ", shape_of(boxes));
}

inline void check_same_device(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  STD_TORCH_CHECK(a.device() == b.device(), a_name, " and ", b_name, " must be on the same device");
}

inline void check_same_dtype(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), a_name, " and ", b_name, " must have the same dtype, got ",
                  toString(a.scalar_type()), " and ", toString(b.scalar_type()));
}

// Two arrays of boxes that are compared with each other: shapes, devices and dtypes.
inline void check_boxes_alike(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  check_boxes(a, a_name);
  check_boxes(b, b_name);
  check_same_device(a, a_name, b, b_name);
  check_same_dtype(a, a_name, b, b_name);
}

inline void check_vector(const Tensor& vector, const char* name, int64_t size, ScalarType dtype,
                         const char* dtype_name) {
  STD_TORCH_CHECK(vector.dim() == 1 && vector.size(0) == size && vector.scalar_type() == dtype, name, " must be (",
                  size, ",) ", dtype_name, ", got ", shape_of(vector), " ", toString(vector.scalar_type()));
}

// The predictions of a network: pred_offsets (B, P, 4) and pred_logits (B, P, C), for priors (P, 4).
inline void check_predictions(const Tensor& pred_offsets, const Tensor& pred_logits, const Tensor& priors_cxcywh) {
  STD_TORCH_CHECK(pred_logits.dim() == 3 && pred_logits.size(2) >= 1,
                  "pred_logits must have the shape (B, P, C) with C >= 1, got ", shape_of(pred_logits));
  check_boxes(priors_cxcywh, "priors_cxcywh");
  const int64_t n_images = pred_logits.size(0);
  const int64_t n_priors = pred_logits.size(1);
  STD_TORCH_CHECK(pred_offsets.dim() == 3 && pred_offsets.size(0) == n_images &&
                      pred_offsets.size(1) == n_priors && pred_offsets.size(2) == 4,
                  "pred_offsets must have the shape (", n_images, ", ", n_priors, ", 4), got ",
                  shape_of(pred_offsets));
  STD_TORCH_CHECK(priors_cxcywh.size(0) == n_priors, "priors_cxcywh must have ", n_priors, " rows, got ",
                  shape_of(priors_cxcywh));
  check_same_device(pred_logits, "pred_logits", pred_offsets, "pred_offsets");
  check_same_device(pred_logits, "pred_logits", priors_cxcywh, "priors_cxcywh");
}

// Calls function(scalar_t()) with the C++ type of a floating dtype. The Python functions convert integers to a floating
// dtype before they call an op.
template <typename Function>
void dispatch_floating_dtype(ScalarType dtype, const Function& function) {
  switch (dtype) {
    case ScalarType::Float: return function(float());
    case ScalarType::Double: return function(double());
    case ScalarType::Half: return function(torch::headeronly::Half());
    case ScalarType::BFloat16: return function(torch::headeronly::BFloat16());
    default:
      STD_TORCH_CHECK(false, "expected a floating dtype, got ", toString(dtype));
  }
}

}  // namespace ssd_ext
