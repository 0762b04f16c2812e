// Loops on several threads, where they gain more than waking threads may cost.
//
// On an idle machine a thread wakes in microseconds. On a busy one it waits until the system takes a processor from
// somebody else, and the loop waits with it: 4 to 12 ms were measured with two busy processes on two processors. So a
// loop says what it will take, and what takes one thread less than kWorthWaking stays with the caller: below it, two
// threads took 8 ms instead of 0.1 to 0.6 there, and above it they won (decoding, mining, matching, loss).
#pragma once

#include <torch/csrc/stable/ops.h>
#ifndef _WIN32
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace ssd_ext {

// Nanoseconds of one thread of an AMD EPYC with AVX-512, as are those that loops pass here.
constexpr double kWorthWaking = 1e6;
constexpr double kWorthATask = 5e4;  // long beside the handing out of a task

// How many tasks a loop of so many nanoseconds is cut into.
inline int64_t tasks_of(double nanoseconds) {
  return nanoseconds < kWorthWaking ? 1 : static_cast<int64_t>(nanoseconds / kWorthATask) + 1;
}

// Whether this process was forked from one that has asked this before. The threads of that one are not here, and GNU's
// OpenMP waits for them for ever.
inline bool threads_stayed_behind() {
#ifdef _WIN32
  return false;
#else
  static const pid_t first = getpid();
  return getpid() != first;
#endif
}

// Calls function(begin, end) for parts of 0..n of this size or more, on several threads where there are several.
template <typename Function>
void share_out(int64_t n, int64_t least, const Function& function) {
  if (n > least && threads_stayed_behind()) return function(static_cast<int64_t>(0), n);
  torch::stable::parallel_for(0, n, least, function);
}

// Calls function(begin, end) for parts of 0..n, each item of which takes so many nanoseconds.
template <typename Function>
void parallel_for(int64_t n, double nanoseconds, const Function& function) {
  const int64_t tasks = tasks_of(static_cast<double>(n) * nanoseconds);
  share_out(n, (n + tasks - 1) / tasks, function);
}

// Calls work(next_image) on several threads at once, at most `most`; next_image() gives each image to one of them,
// and n_images or more at the end. A parallel loop inside of the work then runs on one thread. Where images are fewer
// than threads and each of them is worth them all, one call gets all images, and a loop inside has all threads.
//
// Whoever is done takes the next image, since images differ: no result may depend on who had which.
template <typename Work>
void parallel_over_images(int64_t n_images, int64_t most, double nanoseconds, const Work& work) {  // of each image
  std::atomic<int64_t> next(0);
  const auto next_image = [&] { return next.fetch_add(1, std::memory_order_relaxed); };
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t tasks = std::min({threads, most, n_images, tasks_of(static_cast<double>(n_images) * nanoseconds)});
  if (tasks <= 1 || (tasks < threads && tasks_of(nanoseconds) > 1)) return work(next_image);
  share_out(tasks, 1, [&](int64_t, int64_t) { work(next_image); });
}

}  // namespace ssd_ext
