// The boxes that greedy non-maximum suppression has kept so far, laid out for the test of the next one against all.
#pragma once

#include "core/cpu/box_columns.h"

#include <cstdint>
#include <vector>

namespace ssd_ext {

// Number of boxes in a block. The loop over a block is unrolled and vectorised. A larger block means more unneeded tests
// and divisions, a smaller one more branches: with 64, boxes in clusters take 1.3 times as long; with 16, boxes of which
// none is suppressed take 1.1 times as long.
constexpr int64_t kKeptBlock = 32;

template <typename T>
using KeptBlock = BoxColumns<T, kKeptBlock>;

// Whether a box of these blocks has an IoU > threshold with `box`; threshold >= 0 or NaN.
bool is_suppressed(const KeptBlock<float>* blocks, int64_t n_blocks, const Box<float>& box, float threshold);
bool is_suppressed(const KeptBlock<double>* blocks, int64_t n_blocks, const Box<double>& box, double threshold);

template <typename T>
class KeptBoxes {
 public:
  void clear() {
    blocks_.clear();
    count_ = 0;
  }

  void push_back(const Box<T>& box) {
    if (count_ % kKeptBlock == 0) blocks_.push_back({});  // a block of zeros
    blocks_.back().set(count_++ % kKeptBlock, box);
  }

  int64_t size() const { return count_; }
  Box<T> operator[](int64_t i) const { return blocks_[i / kKeptBlock].box(i % kKeptBlock); }

  // Whether one of the kept boxes suppresses this box.
  bool suppress(const Box<T>& box, T threshold) const {
    if (threshold < 0) return count_ > 0;  // every IoU is greater
    return is_suppressed(blocks_.data(), static_cast<int64_t>(blocks_.size()), box, threshold);
  }

 private:
  std::vector<KeptBlock<T>> blocks_;
  int64_t count_ = 0;
};

}  // namespace ssd_ext
