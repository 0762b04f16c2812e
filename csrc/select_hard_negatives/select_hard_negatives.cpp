// Hard negatives on the CPU: loss (B, P), positive (B, P) bool -> (B, P) bool.
//
// A thread owns whole images. It turns the losses of an image into keys (order.h; positives get 0) and finds the k-th
// largest key bit by bit. Each bit takes one counting pass, which the compiler vectorises, over keys that lie in the
// second-level cache. There are at most 32 passes (64 for double), whatever the losses are, and no sort.
#include "select_hard_negatives/select_hard_negatives.h"

#include "core/cpu/parallel.h"
#include "core/cpu/vector_clones.h"
#include "core/order.h"
#include "select_hard_negatives/selector.h"

#include <algorithm>

namespace ssd_ext {
namespace {

constexpr double kPriorNanoseconds = 4;

// The counter is as wide as a key, so that a vector holds equally many of both.
template <typename Bits>
INLINE_IN_CLONES int64_t count_at_least(const Bits* keys, int64_t n, Bits least) {
  Bits count = 0;
  for (int64_t i = 0; i < n; ++i) count += keys[i] >= least;
  return static_cast<int64_t>(count);
}

// selected[i] = whether keys[i] is one of the k largest; of equal keys, those with the lowest index are selected.
// 0 <= k <= n < 2^32, and at least k keys are not 0: a key of 0 is never selected.
template <typename Bits>
INLINE_IN_CLONES void select_largest_of(const Bits* keys, int64_t n, int64_t k, bool* selected) {
  if (k == 0) {
    std::fill_n(selected, n, false);
    return;
  }
  // The largest value such that at least k keys are >= value, or any value such that exactly k keys are.
  Bits value = 0;
  int64_t reaching = n;
  for (Bits bit = Bits(1) << (8 * sizeof(Bits) - 1); bit != 0 && reaching != k; bit >>= 1) {
    const int64_t count = count_at_least(keys, n, static_cast<Bits>(value | bit));
    if (count >= k) {
      value |= bit;
      reaching = count;
    }
  }
  // Before `end`, keys equal to the value are selected too; from `end` on, larger keys only.
  int64_t end = n;
  for (int64_t surplus = reaching - k; surplus > 0; surplus -= keys[end] == value) --end;
  for (int64_t i = 0; i < end; ++i) selected[i] = keys[i] >= value;
  for (int64_t i = end; i < n; ++i) selected[i] = keys[i] > value;
}

inline bool is_positive(bool positive) { return positive; }
inline bool is_positive(int32_t match) { return match >= 0; }

template <typename T, typename scalar_t, typename positive_t>
INLINE_IN_CLONES int64_t make_keys_of(const scalar_t* __restrict loss, const positive_t* __restrict positive,
                                      int64_t n, bits_t<T>* __restrict keys) {
  int64_t n_pos = 0;
  for (int64_t i = 0; i < n; ++i) {
    keys[i] = is_positive(positive[i]) ? 0 : ordered_bits(static_cast<T>(loss[i]));
    n_pos += is_positive(positive[i]);
  }
  return n_pos;
}

// Writes the keys of an image, 0 for its positives; returns the number of positives.
VECTOR_CLONES int64_t make_keys(const float* loss, const bool* positive, int64_t n, uint32_t* keys) {
  return make_keys_of<float>(loss, positive, n, keys);
}
VECTOR_CLONES int64_t make_keys(const float* loss, const int32_t* match, int64_t n, uint32_t* keys) {
  return make_keys_of<float>(loss, match, n, keys);
}
VECTOR_CLONES int64_t make_keys(const double* loss, const bool* positive, int64_t n, uint64_t* keys) {
  return make_keys_of<double>(loss, positive, n, keys);
}
template <typename scalar_t, typename positive_t, typename Bits>
int64_t make_keys(const scalar_t* loss, const positive_t* positive, int64_t n, Bits* keys) {
  return make_keys_of<compute_t<scalar_t>>(loss, positive, n, keys);
}
VECTOR_CLONES void select_largest(const uint32_t* keys, int64_t n, int64_t k, bool* selected) {
  select_largest_of(keys, n, k, selected);
}
VECTOR_CLONES void select_largest(const uint64_t* keys, int64_t n, int64_t k, bool* selected) {
  select_largest_of(keys, n, k, selected);
}

}  // namespace

template <typename T>
template <typename scalar_t, typename positive_t>
int64_t HardNegativeSelector<T>::select(const scalar_t* loss, const positive_t* positive, bool* selected) {
  const int64_t n_pos = make_keys(loss, positive, n_priors_, keys_.get());
  const int64_t k = hard_negative_count(n_pos, n_priors_ - n_pos, ratio_, min_negatives_);
  select_largest(keys_.get(), n_priors_, k, selected);
  return n_pos;
}

template int64_t HardNegativeSelector<float>::select(const float*, const int32_t*, bool*);
template int64_t HardNegativeSelector<double>::select(const double*, const int32_t*, bool*);

namespace {

Tensor select_hard_negatives_cpu(const Tensor& loss, const Tensor& positive, double ratio, int64_t min_negatives) {
  check_losses(loss, positive);

  const int64_t n_images = loss.size(0);
  const int64_t n_priors = loss.size(1);
  const Tensor selected = torch::stable::new_empty(positive, {n_images, n_priors});
  if (n_images == 0 || n_priors == 0) return selected;

  const Tensor losses = as_contiguous(loss);
  const Tensor positives = as_contiguous(positive);
  dispatch_floating_dtype(loss.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto* const losses_data = losses.const_data_ptr<scalar_t>();
    const auto* const positives_data = positives.const_data_ptr<bool>();
    auto* const selected_data = selected.mutable_data_ptr<bool>();
    parallel_for(n_images, static_cast<double>(n_priors) * kPriorNanoseconds, [&](int64_t image, int64_t end) {
      HardNegativeSelector<compute_t<scalar_t>> selector(n_priors, ratio, min_negatives);
      for (; image < end; ++image) {
        const int64_t first = image * n_priors;
        selector.select(losses_data + first, positives_data + first, selected_data + first);
      }
    });
  });
  return selected;
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ext, m) {
  m.def("select_hard_negatives(Tensor loss, Tensor positive, float ratio, int min_negatives) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CPU, m) {
  m.impl("select_hard_negatives", TORCH_BOX(&ssd_ext::select_hard_negatives_cpu));
}
