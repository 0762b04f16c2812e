// A loop over images by as many threads as there are, be the images many or few.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace ssd_ext {

// Calls work(next_image) on several threads at once, at most `most`; next_image() gives each image to one of them,
// and n_images or more at the end. A parallel loop inside of the work then runs on one thread. With fewer images
// than threads one call gets all of them, and a loop inside has all threads.
//
// Whoever is done takes the next image, since images differ: no result may depend on who had which.
template <typename Work>
void parallel_over_images(int64_t n_images, int64_t most, const Work& work) {
  std::atomic<int64_t> next(0);
  const auto next_image = [&] { return next.fetch_add(1, std::memory_order_relaxed); };
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), most);
  if (threads <= 1 || n_images < threads) return work(next_image);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { work(next_image); });
}

}  // namespace ssd_ext
