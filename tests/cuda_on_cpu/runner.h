// What the CUDA subset in include/cuda_runtime.h is made of: each CUDA thread is a fiber. CUDA_ON_CPU_ORDER
// says in which order they run: `forward` (or unset) and `reverse` run one block after another, in this order
// of blocks and threads; `interleaved` runs a few blocks at once, whose threads take turns in any order, so
// that a block can see what another one is just writing.
//
// A thread runs until it must wait: at a block barrier or in a collective of its warp. When no thread can run
// on, every barrier or collective that all its threads have reached is completed; if there is none, the
// kernel is wrong and the launch fails with a message that says who waits where.
//
// CUDA_ON_CPU_WITHOUT_BARRIER=box_iou.cu:54 takes away the barrier in this line: a test of those who look for races.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_on_cpu {

// Where a barrier, collective or shared array stands in the source; two of one name in one line are not told
// apart.
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

// A collective of a warp: waits until all lanes of the mask that have not exited are in this collective with
// this mask. Of the lanes that took part, values[lane] is what they gave; valid until the thread waits again.
struct Exchange {
  unsigned lane, lanes;
  const uint64_t* values;
};
Exchange warp_exchange(const Site& site, unsigned mask, uint64_t value, bool orders_memory = false);

// Memory of a shared array, the same for all threads of the block: filled with 0xCD, unreadable around it
// under AddressSanitizer, and checked for writes around it when the block has ended.
void* shared_array(const Site& site, size_t bytes, size_t alignment);

// Ends the launch with an error about the running thread.
[[noreturn]] void fail(const Site& site, const std::string& what);

// Runs kernel(arguments) for every thread of the grid. False if the launch failed, and why in `error`.
bool run(Index grid, Index block, void (*kernel)(const void* arguments), const void* arguments,
         std::string& error);

}  // namespace cuda_on_cpu
