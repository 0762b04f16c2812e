// The softmax of many rows of logits at once on the CPU; softmax.h has the softmax of one row.
//
// A tile holds 64 rows, transposed: one class after another. So each step of a row becomes a loop over 64 neighbouring
// numbers, which the compiler vectorises.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ssd_ext {

constexpr int64_t kLogitRows = 64;

// Fills a tile with n_rows <= kLogitRows rows and, after the last one, with zeros. Each row is given by the address of
// its first logit.
template <typename T, typename scalar_t>
void load_tile(const scalar_t* const* rows, int64_t n_rows, int64_t n_classes, T* tile) {
  if (n_rows < kLogitRows) std::fill_n(tile, n_classes * kLogitRows, T(0));
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int64_t c = 0; c < n_classes; ++c) tile[c * kLogitRows + row] = static_cast<T>(rows[row][c]);
  }
}
void load_tile(const float* const* rows, int64_t n_rows, int64_t n_classes, float* tile);

// Copies a tile back to n_rows rows, each given by the address of its first number.
template <typename T, typename scalar_t>
void store_tile(const T* tile, int64_t n_rows, int64_t n_classes, scalar_t* const* rows) {
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int64_t c = 0; c < n_classes; ++c) rows[row][c] = static_cast<scalar_t>(tile[c * kLogitRows + row]);
  }
}

// The cross entropy of every row, given the logit of its true class.
void cross_entropy_of_tile(const float* tile, int64_t n_classes, const float* true_logits, float* ce);
void cross_entropy_of_tile(const double* tile, int64_t n_classes, const double* true_logits, double* ce);

// Replaces the logits of a tile by the gradients of the cross entropies: (softmax - one hot) * factor.
void differentiate_tile(float* tile, int64_t n_classes, const int32_t* true_classes, float factor);
void differentiate_tile(double* tile, int64_t n_classes, const int32_t* true_classes, double factor);

// Replaces the logits of a tile by exp_of_logit. Also writes, for each row, the sum of these numbers and the largest of
// them among the classes >= 1 (0 if there is no such class).
void exponentiate_tile(float* tile, int64_t n_classes, float* sums, float* largest);

}  // namespace ssd_ext
