// The softmax of ONE row of logits, for host and device. No other file repeats its formulas.
//
// A row is read from class 0 upwards, first for its maximum, then for the sum of its exponentials, which are added one
// after another. So a GPU thread that owns a row and a CPU vector that holds the same class of many rows take the same
// steps. The sum is NaN if the row has a NaN or +inf, or if all its logits are -inf.
#pragma once

#include "core/exact_math.h"

#include <torch/headeronly/macros/Macros.h>

#include <cmath>
#include <cstdint>

namespace ssd_ext {

// The maximum after one more logit. A NaN may get lost here, but it makes the sum NaN. fmax loses other NaNs, and may
// return the other one of 0 and -0: this changes no bit of the results. On a GPU it is one instruction instead of two.
template <typename T>
C10_HOST_DEVICE inline T larger(T maximum, T logit) {
#if defined(__CUDA_ARCH__) || defined(CUDA_ON_CPU)  // the latter in tests/cuda_on_cpu
  return std::fmax(maximum, logit);
#else
  return logit > maximum ? logit : maximum;
#endif
}

// The numerator of the softmax: at most 1, and 1 for the largest logit.
template <typename T>
C10_HOST_DEVICE inline T exp_of_logit(T logit, T maximum) {
  return exact_exp_below_1(logit - maximum);
}

// 1 / (1 + exp(-logit)), computed with an exponential that is at most 1.
template <typename T>
C10_HOST_DEVICE inline T sigmoid(T logit) {
  const T exponential = exact_exp_below_1(logit > T(0) ? -logit : logit);
  return (logit > T(0) ? T(1) : exponential) / (T(1) + exponential);
}

// -log(softmax) of the logit of the true class.
template <typename T>
C10_HOST_DEVICE inline T cross_entropy(T true_logit, T maximum, T sum) {
  return exact_log(sum) - (true_logit - maximum);
}

// False means that exponential / sum is not greater than min_score. This is decided without a division: if the rounded
// quotient is greater than min_score, so is the exact one, hence exponential > min_score * sum. Rounding this product
// cannot make it greater than exponential.
template <typename T>
C10_HOST_DEVICE inline bool score_may_exceed(T exponential, T sum, T min_score) {
  return exponential >= min_score * sum;
}

template <typename T>
struct alignas(2 * sizeof(T)) RowSum {  // aligned, so that a GPU loads and stores it as a whole
  T maximum, sum;  // maximum of the logits, sum of exp_of_logit
};

// logit(c) gives the logit of class c of the row, in the compute type T; n_classes >= 1.
template <typename T, typename Logit>
C10_HOST_DEVICE inline RowSum<T> sum_row(const Logit& logit, int64_t n_classes) {
  RowSum<T> row = {logit(0), T(0)};
  for (int64_t c = 1; c < n_classes; ++c) row.maximum = larger(row.maximum, logit(c));
  for (int64_t c = 0; c < n_classes; ++c) row.sum += exp_of_logit(logit(c), row.maximum);
  return row;
}

}  // namespace ssd_ext
