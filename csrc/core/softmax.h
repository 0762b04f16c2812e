// The softmax of ONE row of logits, for host and device: the only place with its formulas.
//
// A row is read from class 0 upwards, first for its maximum, then for the sum of its exponentials, one after
// another: a GPU thread that owns a row and a CPU vector that holds the same class of many rows take the same
// steps. A NaN or +inf in a row makes its sum NaN, as does a row of nothing but -inf.
#pragma once

#include "core/exact_math.h"

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>

namespace ssd_ext {

// The maximum so far, after one more logit. A NaN may get lost here; it comes back in the sum.
template <typename T>
C10_HOST_DEVICE inline T larger(T maximum, T logit) {
  return logit > maximum ? logit : maximum;
}

// Softmax without its denominator: at most 1, and 1 for the largest logit.
template <typename T>
C10_HOST_DEVICE inline T exp_of_logit(T logit, T maximum) {
  return exact_exp_below_1(logit - maximum);
}

// 1 / (1 + exp(-logit)), by an exponential that is at most 1.
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

// False only if exponential / sum is not greater than min_score: decides without a division. The rounded
// quotient being greater, so is the exact one, and exponential > min_score * sum, which rounding to a
// floating number cannot carry beyond one.
template <typename T>
C10_HOST_DEVICE inline bool score_may_exceed(T exponential, T sum, T min_score) {
  return exponential >= min_score * sum;
}

template <typename T>
struct RowSum {
  T maximum, sum;  // of the logits, and of exp_of_logit
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
