// Sums of doubles with the same bits on the CPU and on the GPU: number i goes to lane i % kLanes, a lane adds
// its numbers in rising order, and a tree adds the lanes. On the GPU a thread is a lane.
#pragma once

#include <cstdint>

namespace ssd_ext {

constexpr int kPriorLanes = 512;  // for the sum over the priors of an image: one for each thread of the image's block
constexpr int kImageLanes = 32;   // for the sum over the images: one for each thread of a warp

// The sum on the CPU. A 0 need not be added, because no lane is ever -0.
template <int kLanes>
class LaneSums {
 public:
  void add(int64_t i, double number) { lanes_[i % kLanes] += number; }

  // The tree: lane i takes lane i + kLanes / 2, then lane i + kLanes / 4, and so on. No number can be added afterwards.
  double total() {
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes_[i] += lanes_[i + half];
    }
    return lanes_[0];
  }

 private:
  static_assert((kLanes & (kLanes - 1)) == 0, "the tree halves the lanes");
  double lanes_[kLanes] = {};
};

}  // namespace ssd_ext
