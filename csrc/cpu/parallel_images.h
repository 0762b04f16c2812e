// A loop over images by as many threads as there are, be the images many or few.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace ssd_ext {

// Calls function(begin, end) for ranges of images. With an image for every thread the ranges run in parallel,
// at most `most` of them at once, and a parallel loop inside of the function runs on one thread; with fewer
// images one call gets all of them, and a loop inside has all threads.
template <typename Function>
void parallel_over_images(int64_t n_images, int64_t most, const Function& function) {
  const int64_t ranges = std::min<int64_t>(torch::stable::get_num_threads(), most);
  const int64_t grain = n_images < ranges || ranges <= 1 ? n_images : (n_images + ranges - 1) / ranges;
  torch::stable::parallel_for(0, n_images, std::max<int64_t>(1, grain), function);
}

}  // namespace ssd_ext
