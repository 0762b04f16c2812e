// A block of CUDA threads and all its data.
#pragma once

#include "fiber.h"
#include "runner.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;
constexpr size_t kSharedBytes = 48 << 10;  // a block of every architecture has as much by default
constexpr size_t kGuardBytes = 64;         // before, between and after shared arrays

enum class State { kReady, kAtBarrier, kInWarp, kExited };

// For ThreadSanitizer, everything before release(mark) happens before everything after a later acquire(mark). It learns
// of no other order between fibers, so conflicting accesses that a kernel does not order by a barrier are a race.
#if defined(CUDA_ON_CPU_TSAN)
inline void release(char& mark) { __tsan_release(&mark); }
inline void acquire(char& mark) { __tsan_acquire(&mark); }
#else
inline void release(char&) {}
inline void acquire(char&) {}
#endif

// The mark of the next wait and the mark of the last completed wait. They alternate, because a thread that runs on to
// its next wait must not call release() on a mark that other threads have yet to acquire. These threads would seem
// ordered after the accesses that it made in between.
struct Marks {
  char mark[2] = {};
  unsigned completed = 0;  // waits
  char& next() { return mark[completed % 2]; }
  char& last() { return mark[(completed + 1) % 2]; }
};

struct Thread {
  Fiber fiber;
  unsigned number = 0;  // in the block
  Index index = {};
  State state = State::kReady;
  Site site = {};      // where it waits
  uint64_t value = 0;  // its contribution there: a predicate or the value of a lane
  unsigned mask = 0;   // of the collective it waits in
  unsigned lanes = 0;  // the lanes that took part in the last collective
  Marks marks;
};

struct SharedArray {
  Site site;
  size_t begin, end;
};

struct Block {
  Index index = {};
  bool has_turn;  // whether its threads run in this pass
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<uint64_t> values;  // of the last collectives, one for each thread
  Votes votes = {};
  Marks marks;
  char begun = 0, ended = 0;  // marks too
  std::vector<SharedArray> arrays;
  alignas(kGuardBytes) unsigned char shared[kSharedBytes + 64 * kGuardBytes];
  size_t shared_used = 0;   // with guards
  size_t shared_bytes = 0;  // without
  std::string error;
};

}  // namespace cuda_on_cpu
