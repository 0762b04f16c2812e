// encode_boxes on the CPU: boxes (..., P, 4) xyxy and priors (P, 4) cxcywh -> offsets (..., P, 4); and decode_boxes,
// its inverse.
//
// A thread owns tiles of neighbouring priors of one image. A tile is one loop that the compiler vectorises;
// half precision is converted on the stack first. Each row of the input is read once and each row of the output is
// written once; the priors are read once for each image.
#include "box_coding/box_coding.h"

#include "core/box_math.h"
#include "core/cpu/parallel.h"
#include "core/cpu/vector_clones.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <type_traits>

namespace ssd_ext {
namespace {

constexpr int64_t kTile = 256;  // boxes; after conversion, they and their priors take 8 KB
constexpr double kBoxNanoseconds = 6;

template <typename T>
INLINE_IN_CLONES void encode_each(const T* __restrict boxes,   // (count, 4) xyxy
                                  const T* __restrict priors,  // (count, 4) cxcywh
                                  int64_t count, Variances<T> variances,
                                  T* __restrict out) {  // (count, 4)
  for (int64_t i = 0; i < count; ++i) {
    store_row(encode(load_row<Box<T>>(boxes, i), load_row<CenterBox<T>>(priors, i), variances), out, i);
  }
}

template <typename T>
INLINE_IN_CLONES void decode_each(const T* __restrict pred_offsets,  // (count, 4)
                                  const T* __restrict priors,        // (count, 4) cxcywh
                                  int64_t count, Variances<T> variances, T max_log_scale,
                                  T* __restrict out) {  // (count, 4) xyxy
  for (int64_t i = 0; i < count; ++i) {
    const Box<T> box = decode(load_row<BoxOffsets<T>>(pred_offsets, i), load_row<CenterBox<T>>(priors, i),
                              variances, max_log_scale);
    store_row(box, out, i);
  }
}

VECTOR_CLONES void encode_rows(const float* boxes, const float* priors, int64_t count, Variances<float> variances,
                               float* out) {
  encode_each(boxes, priors, count, variances, out);
}
VECTOR_CLONES void encode_rows(const double* boxes, const double* priors, int64_t count,
                               Variances<double> variances, double* out) {
  encode_each(boxes, priors, count, variances, out);
}
VECTOR_CLONES void decode_rows(const float* pred_offsets, const float* priors, int64_t count,
                               Variances<float> variances, float max_log_scale, float* out) {
  decode_each(pred_offsets, priors, count, variances, max_log_scale, out);
}
VECTOR_CLONES void decode_rows(const double* pred_offsets, const double* priors, int64_t count,
                               Variances<double> variances, double max_log_scale, double* out) {
  decode_each(pred_offsets, priors, count, variances, max_log_scale, out);
}

// Runs rows(values, priors, count, out) on one tile, with numbers in the compute type.
template <typename Rows, typename scalar_t, typename T>
void run_tile(const Rows& rows,
              const scalar_t* values,  // (count, 4)
              const scalar_t* priors,  // (count, 4) cxcywh
              int64_t count,
              T* out) {  // (count, 4)
  if constexpr (std::is_same_v<scalar_t, T>) {
    rows(values, priors, count, out);
  } else {
    T wide_values[4 * kTile], wide_priors[4 * kTile];
    std::copy_n(values, 4 * count, wide_values);
    std::copy_n(priors, 4 * count, wide_priors);
    rows(wide_values, wide_priors, count, out);
  }
}

// Runs rows(values, priors, count, out) on every tile of values (..., P, 4).
template <typename Rows>
Tensor per_prior(const Tensor& values, const char* name, const Tensor& priors_cxcywh, const Rows& rows) {
  check_per_prior(values, name, priors_cxcywh);

  const int64_t n_priors = priors_cxcywh.size(0);
  const Tensor out = torch::stable::new_empty(values, values.sizes(), compute_dtype(values));
  if (values.numel() == 0) return out;

  const Tensor values_rows = as_contiguous(values);
  const Tensor priors_rows = as_contiguous(priors_cxcywh);
  const int64_t n_images = values.numel() / (4 * n_priors);
  const int64_t tiles = (n_priors + kTile - 1) / kTile;
  dispatch_floating_dtype(values.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    const auto* const values_data = values_rows.const_data_ptr<scalar_t>();
    const auto* const priors_data = priors_rows.const_data_ptr<scalar_t>();
    auto* const out_data = out.mutable_data_ptr<T>();
    const auto run_tiles = [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t prior = tile % tiles * kTile;
        const int64_t first = tile / tiles * n_priors + prior;
        run_tile(rows, values_data + 4 * first, priors_data + 4 * prior, std::min(kTile, n_priors - prior),
                 out_data + 4 * first);
      }
    };
    parallel_for(n_images * tiles, static_cast<double>(n_priors) / tiles * kBoxNanoseconds, run_tiles);
  });
  return out;
}

Tensor encode_boxes_cpu(const Tensor& boxes, const Tensor& priors_cxcywh, double center_variance,
                        double size_variance) {
  const Variances<double> variances = {center_variance, size_variance};
  return per_prior(boxes, "boxes", priors_cxcywh, [=](auto* rows, auto* priors, int64_t count, auto* out) {
    using T = std::remove_reference_t<decltype(*out)>;
    encode_rows(rows, priors, count, variances.as<T>(), out);
  });
}

Tensor decode_boxes_cpu(const Tensor& pred_offsets, const Tensor& priors_cxcywh, double center_variance,
                        double size_variance, std::optional<double> max_log_scale) {
  const Variances<double> variances = {center_variance, size_variance};
  const double limit = max_log_scale.value_or(std::numeric_limits<double>::infinity());
  return per_prior(pred_offsets, "pred_offsets", priors_cxcywh,
                   [=](auto* rows, auto* priors, int64_t count, auto* out) {
                     using T = std::remove_reference_t<decltype(*out)>;
                     decode_rows(rows, priors, count, variances.as<T>(), static_cast<T>(limit), out);
                   });
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ext, m) {
  m.def(
      "encode_boxes(Tensor boxes, Tensor priors_cxcywh, float center_variance, float size_variance) -> Tensor");
  m.def(
      "decode_boxes(Tensor pred_offsets, Tensor priors_cxcywh, float center_variance, float size_variance, float? "
      "max_log_scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CPU, m) {
  m.impl("encode_boxes", TORCH_BOX(&ssd_ext::encode_boxes_cpu));
  m.impl("decode_boxes", TORCH_BOX(&ssd_ext::decode_boxes_cpu));
}
