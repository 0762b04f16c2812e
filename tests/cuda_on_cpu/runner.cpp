#include "runner.h"

#include "block.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

namespace cuda_on_cpu {

Index threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr unsigned char kUnset = 0xCD;  // in float a large negative number, as an index far out of bounds
constexpr size_t kInterleaved = 4;      // blocks at once, where their threads take turns

std::mutex one_launch_at_a_time;
std::vector<std::unique_ptr<Block>> blocks;  // kept from launch to launch: stacks are expensive to make
Block* block = nullptr;                      // the block of the running thread
Thread* running = nullptr;
std::mt19937 random_number;  // launches do not seed it again, so that calls of one kernel differ
void (*running_kernel)(const void*);
const void* running_arguments;

Index unflatten(uint64_t number, const Index& extent) {
  return {static_cast<unsigned>(number % extent.x), static_cast<unsigned>(number / extent.x % extent.y),
          static_cast<unsigned>(number / extent.x / extent.y)};
}

bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool same(const Site& a, const Site& b) {
  return a.line == b.line && same(a.file, b.file) && same(a.name, b.name);
}

std::string text(const Index& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

std::string location(const Site& site) {
  const char* slash = std::strrchr(site.file, '/');
  return (slash ? slash + 1 : site.file) + (":" + std::to_string(site.line));
}

std::string text(const Site& site) { return site.name + (" at " + location(site)); }

std::string hex(unsigned mask) {
  char digits[16];
  std::snprintf(digits, sizeof digits, "0x%08x", mask);
  return digits;
}

void entry() {
  running->fiber.entered();
  acquire(block->begun);
  try {
    running_kernel(running_arguments);
  } catch (const std::exception& error) {
    block->error = error.what();
  }
  release(block->ended);
  running->state = State::kExited;
  running->fiber.exit();
}

void check_in_kernel(const Site& site) {
  if (running == nullptr) {
    std::fprintf(stderr, "%s outside of a kernel\n", text(site).c_str());
    std::abort();
  }
}

void wait(State state, const Site& site, uint64_t value) {
  Thread& thread = *running;
  thread.state = state;
  thread.site = site;
  thread.value = value;
  thread.fiber.suspend();
}

// Lanes of the warp that have not exited.
unsigned alive_lanes(size_t warp) {
  unsigned lanes = 0;
  for (size_t i = warp * kWarp; i < std::min(block->threads.size(), (warp + 1) * kWarp); ++i) {
    if (block->threads[i]->state != State::kExited) lanes |= 1u << (i % kWarp);
  }
  return lanes;
}

// Completes the collective that this thread waits in, if all its lanes are there.
bool complete_collective(size_t i) {
  const Thread& first = *block->threads[i];
  const size_t warp_begin = i / kWarp * kWarp;
  const unsigned lanes = first.mask & alive_lanes(i / kWarp);
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const Thread& thread = *block->threads[warp_begin + lane];
    if (thread.state != State::kInWarp || thread.mask != first.mask || !same(thread.site, first.site))
      return false;
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    Thread& thread = *block->threads[warp_begin + lane];
    block->values[warp_begin + lane] = thread.value;
    thread.lanes = lanes;
    thread.marks.completed += 1;
    thread.state = State::kReady;
  }
  return true;
}

// Completes the block barrier, if all threads that have not exited wait at the same one.
bool complete_barrier() {
  const Thread* first = nullptr;
  Votes votes = {};
  for (const auto& thread : block->threads) {
    if (thread->state == State::kExited) continue;
    if (first == nullptr) first = thread.get();
    if (thread->state != State::kAtBarrier || !same(thread->site, first->site)) return false;
    votes.all += 1;
    votes.in_favour += thread->value != 0;
  }
  block->votes = votes;
  block->marks.completed += 1;
  for (const auto& thread : block->threads) {
    if (thread->state == State::kAtBarrier) thread->state = State::kReady;
  }
  return true;
}

// The error if no thread can run on: what is wrong, then which threads wait where.
std::string stuck() {
  bool all_at_barrier = true;
  bool mismatch = false;
  for (size_t i = 0; i < block->threads.size(); ++i) {
    const Thread& thread = *block->threads[i];
    if (thread.state != State::kExited && thread.state != State::kAtBarrier) all_at_barrier = false;
    if (thread.state != State::kInWarp) continue;
    for (size_t j = i / kWarp * kWarp; j < std::min(block->threads.size(), (i / kWarp + 1) * kWarp); ++j) {
      const Thread& other = *block->threads[j];
      if (other.state == State::kInWarp && (thread.mask >> (j % kWarp) & 1) &&
          (other.mask != thread.mask || !same(other.site, thread.site))) {
        mismatch = true;
      }
    }
  }
  std::string message = all_at_barrier ? "threads wait at different barriers"
                        : mismatch ? "lanes of a warp wait in different collectives or give different masks"
                                   : "deadlock";
  message += " in block " + text(blockIdx) + ":";

  std::vector<bool> told(block->threads.size(), false);
  size_t exited = 0;
  for (size_t i = 0; i < block->threads.size(); ++i) {
    const Thread& first = *block->threads[i];
    exited += first.state == State::kExited;
    if (first.state == State::kExited || told[i]) continue;
    size_t count = 0;
    for (size_t j = i; j < block->threads.size(); ++j) {
      const Thread& other = *block->threads[j];
      if (other.state == first.state && same(other.site, first.site) &&
          (first.state == State::kAtBarrier || other.mask == first.mask)) {
        told[j] = true;
        count += 1;
      }
    }
    message +=
        " " + std::to_string(count) + " thread(s) from " + text(first.index) + " on in " + text(first.site);
    message += (first.state == State::kInWarp ? " with mask " + hex(first.mask) : "") + ";";
  }
  return message + " " + std::to_string(exited) + " exited";
}

// The error if a shared array was overrun, else an empty text.
std::string damaged_guard() {
  size_t begin = 0;
  const auto intact = [](size_t from, size_t to) {
    return std::all_of(block->shared + from, block->shared + to,
                       [](unsigned char byte) { return byte == kUnset; });
  };
  std::string after;
  for (const SharedArray& array : block->arrays) {
    if (!intact(begin, array.begin)) {
      return "a write" + after + " before the shared array " + text(array.site) + ", block " + text(blockIdx);
    }
    begin = array.end;
    after = " after the shared array " + text(array.site) + " or";
  }
  if (intact(begin, block->shared_used)) return "";
  return "a write after the shared array " + text(block->arrays.back().site) + ", block " + text(blockIdx);
}

void reset_shared() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(block->shared, sizeof block->shared);
#endif
  std::memset(block->shared, kUnset, sizeof block->shared);
  block->arrays.clear();
  block->shared_used = kGuardBytes;
  block->shared_bytes = 0;
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(block->shared, sizeof block->shared);
#endif
}

void enter(Block& other) {
  block = &other;
  blockIdx = other.index;
}

void begin_block(const Index& index, size_t n_threads) {
  block->index = index;
  block->has_turn = true;
  while (block->threads.size() > n_threads) block->threads.pop_back();
  while (block->threads.size() < n_threads) block->threads.push_back(std::make_unique<Thread>());
  block->values.resize(n_threads);
  reset_shared();
  block->error.clear();
  for (size_t i = 0; i < n_threads; ++i) {
    Thread& thread = *block->threads[i];
    thread.number = static_cast<unsigned>(i);
    thread.index = unflatten(i, blockDim);
    thread.state = State::kReady;
    thread.fiber.start(entry);
  }
  release(block->begun);
}

// Called when all threads have exited: returns an error, or an empty text.
std::string end_block() {
  acquire(block->ended);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(block->shared, sizeof block->shared);
#endif
  return damaged_guard();
}

// Called when all threads of the block have run until they wait or exit: completes the waits that can be completed.
// Returns whether there was one.
bool complete_waits() {
  bool progress = complete_barrier();
  for (size_t i = 0; i < block->threads.size(); ++i) {
    if (block->threads[i]->state == State::kInWarp && complete_collective(i)) progress = true;
  }
  return progress;
}

enum class Order { kForward, kReverse, kInterleaved };

// A GPU guarantees no order of blocks and threads: a result that depends on the order is wrong.
Order order_of_environment() {
  const char* order = std::getenv("CUDA_ON_CPU_ORDER");
  if (order == nullptr || same(order, "forward")) return Order::kForward;
  return same(order, "reverse") ? Order::kReverse : Order::kInterleaved;
}

struct Turn {
  Block* block;
  Thread* thread;
};

// Runs the first `count` blocks to their end; returns an error, or an empty text. In each pass every thread that can
// run does so once, until it waits. In interleaved order, the threads of all blocks run in any order, and about half
// of the blocks skip the pass, so that blocks reach different places of the kernel.
std::string run_blocks(size_t count, Order order) {
  std::vector<Turn> turns;
  for (size_t k = 0; k < count; ++k) {
    for (const auto& thread : blocks[k]->threads) turns.push_back({blocks[k].get(), thread.get()});
  }
  if (order == Order::kReverse) std::reverse(turns.begin(), turns.end());
  for (bool all_exited = false; !all_exited;) {
    if (order == Order::kInterleaved) {
      std::shuffle(turns.begin(), turns.end(), random_number);
      for (size_t k = 0; k < count; ++k) blocks[k]->has_turn = random_number() % 2 == 0;
    }
    for (const Turn& turn : turns) {
      if (turn.thread->state != State::kReady || !turn.block->has_turn) continue;
      enter(*turn.block);
      running = turn.thread;
      threadIdx = running->index;
      running->fiber.resume();
      running = nullptr;
      if (!block->error.empty()) return block->error;
    }
    all_exited = true;
    for (size_t k = 0; k < count; ++k) {
      enter(*blocks[k]);
      const auto exited = [](const auto& thread) { return thread->state == State::kExited; };
      if (std::all_of(block->threads.begin(), block->threads.end(), exited)) continue;
      all_exited = false;
      if (block->has_turn && !complete_waits()) return stuck();
    }
  }
  for (size_t k = 0; k < count; ++k) {
    enter(*blocks[k]);
    const std::string error = end_block();
    if (!error.empty()) return error;
  }
  return "";
}

}  // namespace

Votes block_barrier(const Site& site, bool predicate) {
  check_in_kernel(site);
  static const char* const removed = std::getenv("CUDA_ON_CPU_WITHOUT_BARRIER");
  if (removed != nullptr && location(site) == removed) return block->votes;
  release(block->marks.next());
  wait(State::kAtBarrier, site, predicate);
  acquire(block->marks.last());
  return block->votes;
}

Exchange warp_exchange(const Site& site, unsigned mask, uint64_t value, bool orders_memory) {
  check_in_kernel(site);
  Thread& thread = *running;
  const unsigned lane = thread.number % kWarp;
  const unsigned warp_begin = thread.number - lane;
  if (!(mask >> lane & 1))
    fail(site, "lane " + std::to_string(lane) + " is not in its own mask " + hex(mask));
  thread.mask = mask;
  if (orders_memory) release(thread.marks.next());
  wait(State::kInWarp, site, value);
  for (unsigned other = 0; orders_memory && other < kWarp; ++other) {
    if (thread.lanes >> other & 1) acquire(block->threads[warp_begin + other]->marks.last());
  }
  return {lane, thread.lanes, &block->values[warp_begin]};
}

void* shared_array(const Site& site, size_t bytes, size_t alignment) {
  check_in_kernel(site);
  for (const SharedArray& array : block->arrays) {
    if (same(array.site, site)) return block->shared + array.begin;
  }
  block->shared_bytes += bytes;
  const size_t begin = (block->shared_used + alignment - 1) / alignment * alignment;
  if (block->shared_bytes > kSharedBytes || begin + bytes + kGuardBytes > sizeof block->shared) {
    fail(site, "the block's shared arrays need more than " + std::to_string(kSharedBytes) + " bytes");
  }
  block->arrays.push_back({site, begin, begin + bytes});
  block->shared_used = begin + bytes + kGuardBytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(block->shared + begin, bytes);
#endif
  return block->shared + begin;
}

void fail(const Site& site, const std::string& what) {
  block->error = what + ": " + text(site) + ", block " + text(blockIdx) + ", thread " + text(running->index);
  running->fiber.exit();
}

bool run(Index grid, Index block_size, void (*kernel)(const void*), const void* arguments,
         std::string& error) {
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  const uint64_t count = uint64_t(block_size.x) * block_size.y * block_size.z;
  if (count == 0 || count > 1024 || block_size.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff) {
    error = "invalid launch: grid " + text(grid) + ", block " + text(block_size);
    return false;
  }
  gridDim = grid;
  blockDim = block_size;
  running_kernel = kernel;
  running_arguments = arguments;

  const Order order = order_of_environment();
  const uint64_t n_blocks = uint64_t(grid.x) * grid.y * grid.z;
  const uint64_t at_once = order == Order::kInterleaved ? kInterleaved : 1;
  while (blocks.size() < at_once) blocks.push_back(std::make_unique<Block>());
  for (uint64_t first = 0; first < n_blocks; first += at_once) {
    const uint64_t in_flight = std::min(at_once, n_blocks - first);
    for (uint64_t k = 0; k < in_flight; ++k) {
      enter(*blocks[k]);
      const uint64_t number = first + k;
      begin_block(unflatten(order == Order::kReverse ? n_blocks - 1 - number : number, grid), count);
    }
    error = run_blocks(in_flight, order);
    if (!error.empty()) {
      blocks.clear();  // their fibers are suspended in the middle of the kernel
      return false;
    }
  }
  return true;
}

}  // namespace cuda_on_cpu
