// encode_boxes on the GPU: boxes (..., P, 4) xyxy and priors (P, 4) cxcywh -> offsets (..., P, 4); and decode_boxes,
// its inverse.
//
// A thread owns one row, and a block owns blockDim.x neighbouring rows. If an input is aligned, a row is loaded as a
// whole; a row of the output is always stored as a whole. Reads 16 bytes per box (32 for double, 8 for half precision)
// and writes 16 (32 for double); the priors stay in the cache.
#include "box_coding/box_coding.h"

#include "core/box_math.h"
#include "core/cuda/launch.cuh"
#include "core/cuda/pack.cuh"

#include <limits>
#include <optional>

namespace ssd_ext {
namespace {

constexpr int kThreads = 256;

template <typename Row, typename scalar_t>
__device__ Row load(const scalar_t* rows, int64_t i, bool aligned) {
  if (!aligned) return load_row<Row>(rows, i);
  const Pack<scalar_t, 4> row = reinterpret_cast<const Pack<scalar_t, 4>*>(rows)[i];
  return load_row<Row>(row.values, 0);
}

template <typename T>
struct Encode {
  using Input = Box<T>;
  using Output = BoxOffsets<T>;
  Variances<T> variances;

  __device__ Output operator()(const Input& box, const CenterBox<T>& prior) const {
    return encode(box, prior, variances);
  }
};

template <typename T>
struct Decode {
  using Input = BoxOffsets<T>;
  using Output = Box<T>;
  Variances<T> variances;
  T max_log_scale;

  __device__ Output operator()(const Input& offsets, const CenterBox<T>& prior) const {
    return decode(offsets, prior, variances, max_log_scale);
  }
};

template <typename scalar_t, typename T, typename Operation>
__global__ void __launch_bounds__(kThreads)
    per_prior_kernel(const scalar_t* __restrict__ values,  // (B, P, 4)
                     const scalar_t* __restrict__ priors,  // (P, 4) cxcywh
                     T* __restrict__ out,                  // (B, P, 4)
                     int64_t n_rows, int64_t n_priors, bool values_aligned, bool priors_aligned,
                     Operation operation) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n_rows) return;
  const auto value = load<typename Operation::Input>(values, i, values_aligned);
  const auto prior = load<CenterBox<T>>(priors, i % n_priors, priors_aligned);
  reinterpret_cast<typename Operation::Output*>(out)[i] = operation(value, prior);
}

// Runs operation_of(T()), an Encode<T> or Decode<T>, on values (..., P, 4).
template <typename OperationOf>
Tensor per_prior(const Tensor& values, const char* name, const Tensor& priors_cxcywh, const OperationOf& operation_of) {
  check_per_prior(values, name, priors_cxcywh);

  const DeviceGuard guard(values.get_device_index());
  const int64_t n_priors = priors_cxcywh.size(0);
  const Tensor out = torch::stable::new_empty(values, values.sizes(), compute_dtype(values));
  if (values.numel() == 0) return out;

  const Tensor values_rows = as_contiguous(values);
  const Tensor priors_rows = as_contiguous(priors_cxcywh);
  const cudaStream_t stream = current_stream(values);
  const int64_t n_rows = values.numel() / 4;
  dispatch_floating_dtype(values.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    const auto* const values_data = values_rows.const_data_ptr<scalar_t>();
    const auto* const priors_data = priors_rows.const_data_ptr<scalar_t>();
    auto operation = operation_of(T());
    launch(per_prior_kernel<scalar_t, T, decltype(operation)>, ceil_div(n_rows, kThreads), kThreads, stream,
           values_data, priors_data, out.mutable_data_ptr<T>(), n_rows, n_priors,
           is_aligned<Pack<scalar_t, 4>>(values_data), is_aligned<Pack<scalar_t, 4>>(priors_data), operation);
  });
  return out;
}

Tensor encode_boxes_cuda(const Tensor& boxes, const Tensor& priors_cxcywh, double center_variance,
                         double size_variance) {
  const Variances<double> variances = {center_variance, size_variance};
  return per_prior(boxes, "boxes", priors_cxcywh, [=](auto zero) {
    using T = decltype(zero);
    return Encode<T>{variances.as<T>()};
  });
}

Tensor decode_boxes_cuda(const Tensor& pred_offsets, const Tensor& priors_cxcywh, double center_variance,
                         double size_variance, std::optional<double> max_log_scale) {
  const Variances<double> variances = {center_variance, size_variance};
  const double limit = max_log_scale.value_or(std::numeric_limits<double>::infinity());
  return per_prior(pred_offsets, "pred_offsets", priors_cxcywh, [=](auto zero) {
    using T = decltype(zero);
    return Decode<T>{variances.as<T>(), static_cast<T>(limit)};
  });
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CUDA, m) {
  m.impl("encode_boxes", TORCH_BOX(&ssd_ext::encode_boxes_cuda));
  m.impl("decode_boxes", TORCH_BOX(&ssd_ext::decode_boxes_cuda));
}
