// Loops on several threads, if this saves more time than waking threads may cost.
//
// On an idle machine a thread wakes in microseconds. On a busy one it waits until the system takes a processor from
// another process, and the loop waits with it: 4 to 12 ms were measured with two busy processes on two processors. So
// every loop states its time on one thread, and a loop below kWorthWaking runs on the calling thread. On that busy
// machine, loops below this limit took 8 ms on two threads instead of 0.1 to 0.6 ms on one; loops above it were faster
// on two (decoding, mining, matching, loss).
#pragma once

#include <torch/csrc/stable/ops.h>
#ifndef _WIN32
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace ssd_ext {

// Nanoseconds on one thread of an AMD EPYC with AVX-512; loops pass their times in the same unit.
constexpr double kWorthWaking = 1e6;
constexpr double kWorthATask = 5e4;  // much longer than it takes to hand out a task

// The number of tasks for a loop that takes this many nanoseconds on one thread.
inline int64_t tasks_of(double nanoseconds) {
  return nanoseconds < kWorthWaking ? 1 : static_cast<int64_t>(nanoseconds / kWorthATask) + 1;
}

// Whether this process was forked from a process that has called this function before. The threads of its parent do not
// exist in this process, and GNU's OpenMP would wait for them for ever.
inline bool threads_stayed_behind() {
#ifdef _WIN32
  return false;
#else
  static const pid_t first = getpid();
  return getpid() != first;
#endif
}

// Calls function(begin, end) for parts of 0..n with `least` items or more, on several threads if there are several.
template <typename Function>
void share_out(int64_t n, int64_t least, const Function& function) {
  if (n > least && threads_stayed_behind()) return function(static_cast<int64_t>(0), n);
  torch::stable::parallel_for(0, n, least, function);
}

// Calls function(begin, end) for parts of 0..n. Each item takes this many nanoseconds.
template <typename Function>
void parallel_for(int64_t n, double nanoseconds, const Function& function) {
  const int64_t tasks = tasks_of(static_cast<double>(n) * nanoseconds);
  share_out(n, (n + tasks - 1) / tasks, function);
}

// Calls work(next_image) on up to `most` threads at once. next_image() gives each image to one of the calls, and
// returns n_images or more when none is left. A parallel loop inside `work` then runs on one thread. If there are
// fewer images than threads, and each image takes long enough for several threads, there is a single call. It gets all
// images, and a loop inside it has all threads.
//
// Images take different times, so each call takes the next image when it has finished one. No result may depend on
// which call had which image.
//
//   nanoseconds: the time of one image on one thread
template <typename Work>
void parallel_over_images(int64_t n_images, int64_t most, double nanoseconds, const Work& work) {
  std::atomic<int64_t> next(0);
  const auto next_image = [&] { return next.fetch_add(1, std::memory_order_relaxed); };
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t tasks = std::min({threads, most, n_images, tasks_of(static_cast<double>(n_images) * nanoseconds)});
  if (tasks <= 1 || (tasks < threads && tasks_of(nanoseconds) > 1)) return work(next_image);
  share_out(tasks, 1, [&](int64_t, int64_t) { work(next_image); });
}

}  // namespace ssd_ext
