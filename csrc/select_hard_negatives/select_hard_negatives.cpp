// Hard negatives on the CPU: loss (B, P), positive (B, P) bool -> (B, P) bool.
//
// A thread owns whole images. It turns the losses of an image into keys (order.h; positives get 0) and finds
// the k-th largest key bit by bit: each bit is one counting pass over keys that lie in the second-level cache,
// which the compiler vectorises. At most 32 such passes (64 for double), whatever the losses are; no sort.
#include "core/checks.h"
#include "core/cpu/parallel.h"
#include "select_hard_negatives/select_largest.h"
#include "core/cpu/vector_clones.h"
#include "select_hard_negatives/select_hard_negatives.h"
#include "core/order.h"

#include <algorithm>
#include <memory>

namespace ssd_ext {
namespace {

constexpr double kPriorNanoseconds = 4;

// Counters as wide as the keys, so that a vector holds as many of both.
template <typename Bits>
INLINE_IN_CLONES int64_t count_at_least(const Bits* keys, int64_t n, Bits least) {
  Bits count = 0;
  for (int64_t i = 0; i < n; ++i) count += keys[i] >= least;
  return static_cast<int64_t>(count);
}

template <typename Bits>
INLINE_IN_CLONES void select_largest_of(const Bits* keys, int64_t n, int64_t k, bool* selected) {
  if (k == 0) {
    std::fill_n(selected, n, false);
    return;
  }
  // The largest value that at least k keys reach, or any value that exactly k keys reach.
  Bits value = 0;
  int64_t reaching = n;
  for (Bits bit = Bits(1) << (8 * sizeof(Bits) - 1); bit != 0 && reaching != k; bit >>= 1) {
    const int64_t count = count_at_least(keys, n, static_cast<Bits>(value | bit));
    if (count >= k) {
      value |= bit;
      reaching = count;
    }
  }
  // Before `end` equal keys are selected too, behind it larger ones only.
  int64_t end = n;
  for (int64_t surplus = reaching - k; surplus > 0; surplus -= keys[end] == value) --end;
  for (int64_t i = 0; i < end; ++i) selected[i] = keys[i] >= value;
  for (int64_t i = end; i < n; ++i) selected[i] = keys[i] > value;
}

// The keys of an image; returns the number of its positives.
template <typename scalar_t, typename T>
INLINE_IN_CLONES int64_t make_keys_of(const scalar_t* loss, const bool* positive, int64_t n, bits_t<T>* keys) {
  int64_t n_pos = 0;
  for (int64_t i = 0; i < n; ++i) {
    keys[i] = positive[i] ? 0 : ordered_bits(static_cast<T>(loss[i]));
    n_pos += positive[i];
  }
  return n_pos;
}

// Instruction sets are chosen per function, which a template cannot be.
VECTOR_CLONES int64_t make_keys(const float* loss, const bool* positive, int64_t n, uint32_t* keys) {
  return make_keys_of<float, float>(loss, positive, n, keys);
}
VECTOR_CLONES int64_t make_keys(const double* loss, const bool* positive, int64_t n, uint64_t* keys) {
  return make_keys_of<double, double>(loss, positive, n, keys);
}
template <typename scalar_t>
int64_t make_keys(const scalar_t* loss, const bool* positive, int64_t n, uint32_t* keys) {
  return make_keys_of<scalar_t, float>(loss, positive, n, keys);
}

Tensor select_hard_negatives_cpu(const Tensor& loss, const Tensor& positive, double ratio,
                                 int64_t min_negatives) {
  check_losses(loss, positive);

  const int64_t n_images = loss.size(0);
  const int64_t n_priors = loss.size(1);
  const Tensor selected = torch::stable::new_empty(positive, {n_images, n_priors});
  if (n_images == 0 || n_priors == 0) return selected;

  const Tensor losses = torch::stable::contiguous(loss);
  const Tensor positives = torch::stable::contiguous(positive);
  const auto* positives_data = static_cast<const bool*>(positives.const_data_ptr());
  auto* selected_data = static_cast<bool*>(selected.mutable_data_ptr());
  dispatch_floating_dtype(loss.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto* losses_data = static_cast<const scalar_t*>(losses.const_data_ptr());
    const auto select_images = [&](int64_t begin, int64_t end) {
      const std::unique_ptr<bits_t<compute_t<scalar_t>>[]> keys(new bits_t<compute_t<scalar_t>>[n_priors]);
      for (int64_t offset = begin * n_priors; offset < end * n_priors; offset += n_priors) {
        const int64_t n_pos =
            make_keys(losses_data + offset, positives_data + offset, n_priors, keys.get());
        const int64_t k = hard_negative_count(n_pos, n_priors - n_pos, ratio, min_negatives);
        select_largest(keys.get(), n_priors, k, selected_data + offset);
      }
    };
    parallel_for(n_images, static_cast<double>(n_priors) * kPriorNanoseconds, select_images);
  });
  return selected;
}

}  // namespace

VECTOR_CLONES void select_largest(const uint32_t* keys, int64_t n, int64_t k, bool* selected) {
  select_largest_of(keys, n, k, selected);
}
VECTOR_CLONES void select_largest(const uint64_t* keys, int64_t n, int64_t k, bool* selected) {
  select_largest_of(keys, n, k, selected);
}

}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CPU, m) {
  m.impl("select_hard_negatives", TORCH_BOX(&ssd_ext::select_hard_negatives_cpu));
}
