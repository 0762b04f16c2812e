// The runner behind the CUDA subset in include/cuda_runtime.h: each CUDA thread is a fiber. CUDA_ON_CPU_ORDER sets the
// order in which they run. `forward` (or unset) and `reverse` run one block after another, in this order of blocks and
// threads. `interleaved` runs a few blocks at once, and their threads take turns in any order, so that a block can see
// the writes of another block that still runs.
//
// A thread runs until it must wait: at a block barrier or in a collective of its warp. When no thread can run on, every
// barrier or collective that all its threads have reached is completed. If there is none, the kernel is wrong, and the
// launch fails with a message that names the threads and the places where they wait.
//
// CUDA_ON_CPU_WITHOUT_BARRIER=box_iou.cu:54 removes the barrier in this line, to test that the race is detected.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_on_cpu {

// The place of a barrier, collective or shared array in the source. Two with the same name in one line are not
// distinguished.
struct Site {
  const char* name;
  const char* file;
  int line;
};

struct Index {
  unsigned x, y, z;
};

// The built-in variables of the running thread. Only one launch runs at a time, and all its fibers are on one
// system thread.
extern Index threadIdx, blockIdx, blockDim, gridDim;

// __syncthreads: waits for all threads of the block that have not exited; returns for how many of them the
// predicate holds.
struct Votes {
  int in_favour, all;
};
Votes block_barrier(const Site& site, bool predicate);

// A collective of a warp: waits until all lanes of the mask that have not exited are in this collective with this mask.
// values[lane] is the value that a lane gave, for lanes that took part; valid until the thread waits again.
struct Exchange {
  unsigned lane, lanes;
  const uint64_t* values;
};
Exchange warp_exchange(const Site& site, unsigned mask, uint64_t value, bool orders_memory = false);

// Memory of a shared array, the same for all threads of the block. It is filled with 0xCD. The bytes around it are
// unreadable under AddressSanitizer, and are checked for writes when the block has ended.
void* shared_array(const Site& site, size_t bytes, size_t alignment);

// Ends the launch with an error about the running thread.
[[noreturn]] void fail(const Site& site, const std::string& what);

// Runs kernel(arguments) for every thread of the grid. Returns false if the launch failed, with the reason in `error`.
bool run(Index grid, Index block, void (*kernel)(const void* arguments), const void* arguments,
         std::string& error);

}  // namespace cuda_on_cpu
