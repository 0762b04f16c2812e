// The part of CUDA that the project's kernels use, for g++ in place of nvcc. The compiler finds this file before the
// header of the same name in the CUDA toolkit.
//
// Left out on purpose: __shared__ (launch.cuh has a macro for it, which this file defines first), atomics on float
// (their order of addition is not fixed), __activemask (the program does not determine its result), inline PTX.
#pragma once

#include "../runner.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

// ---------------------------------------------------------------------------------- qualifiers and built-ins

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

using cuda_on_cpu::blockDim;
using cuda_on_cpu::blockIdx;
using cuda_on_cpu::gridDim;
using cuda_on_cpu::threadIdx;

constexpr int warpSize = 32;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ------------------------------------------------------------------------------------------------- host side

using cudaStream_t = void*;

enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;      // ignored: a launch runs immediately
};

namespace cuda_on_cpu {
cudaError_t record(bool succeeded, const std::string& error);  // the next check reports the error
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Call call = {kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  const auto run_thread = [](const void* data) {
    const auto& call = *static_cast<const Call*>(data);
    std::apply(call.first, call.second);
  };
  const dim3 grid = config->gridDim;
  const dim3 block = config->blockDim;
  std::string error;
  const bool succeeded =
      cuda_on_cpu::run({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, run_thread, &call, error);
  return cuda_on_cpu::record(succeeded, error);
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2 };

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

// --------------------------------------------------------------------------------------------- shared memory

#define SHARED_ARRAY(T, name, count)                                                    \
  static_assert(std::is_trivially_destructible_v<T>, "shared memory holds plain data"); \
  T(&name)                                                                              \
  [count] = *static_cast<T(*)[count]>(                                                  \
      ::cuda_on_cpu::shared_array({#name, __FILE__, __LINE__}, sizeof(T[count]), alignof(T)))

// ----------------------------------------------------------------------------- barriers and warp collectives

// The place of the call, because default arguments are evaluated where a function is called.
#define CUDA_ON_CPU_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_ON_CPU_CALLER) {
  cuda_on_cpu::block_barrier({"__syncthreads", file, line}, false);
}

inline int __syncthreads_count(int predicate, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::block_barrier({"__syncthreads_count", file, line}, predicate != 0).in_favour;
}

inline int __syncthreads_or(int predicate, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::block_barrier({"__syncthreads_or", file, line}, predicate != 0).in_favour != 0;
}

inline int __syncthreads_and(int predicate, CUDA_ON_CPU_CALLER) {
  const cuda_on_cpu::Votes votes =
      cuda_on_cpu::block_barrier({"__syncthreads_and", file, line}, predicate != 0);
  return votes.in_favour == votes.all;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_CALLER) {
  cuda_on_cpu::warp_exchange({"__syncwarp", file, line}, mask, 0, true);
}

namespace cuda_on_cpu {

inline unsigned ballot(const Site& site, unsigned mask, bool predicate) {
  const Exchange exchange = warp_exchange(site, mask, predicate);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (exchange.lanes >> lane & 1) votes |= static_cast<unsigned>(exchange.values[lane]) << lane;
  }
  return votes;
}

// source(lane, segment) gives the lane to read from, a signed number; `segment` is the first lane of the segment of
// `lane`. For a source outside of the segment it gives `lane` itself.
template <typename T, typename Source>
T shuffle(const Site& site, unsigned mask, T value, int width, const Source& source) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const Exchange exchange = warp_exchange(site, mask, bits);
  const int lane = static_cast<int>(exchange.lane);
  const int from = source(lane, lane / width * width);
  if (from < 0 || from > 31 || !(exchange.lanes >> from & 1)) {
    fail(site, "lane " + std::to_string(lane) + " reads lane " + std::to_string(from) +
                   ", which did not take part");
  }
  T result;
  std::memcpy(&result, &exchange.values[from], sizeof result);
  return result;
}

template <typename Operation>
unsigned reduce(const Site& site, unsigned mask, unsigned value, const Operation& operation) {
  const Exchange exchange = warp_exchange(site, mask, value);
  unsigned result = value;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (lane == exchange.lane || !(exchange.lanes >> lane & 1)) continue;
    result = operation(result, static_cast<unsigned>(exchange.values[lane]));
  }
  return result;
}

}  // namespace cuda_on_cpu

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::ballot({"__ballot_sync", file, line}, mask, predicate != 0);
}

inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::ballot({"__any_sync", file, line}, mask, predicate != 0) != 0;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::shuffle({"__shfl_sync", file, line}, mask, value, width,
                              [=](int, int segment) { return segment + (source & (width - 1)); });
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::shuffle({"__shfl_down_sync", file, line}, mask, value, width,
                              [=](int lane, int segment) {
                                const int from = lane + static_cast<int>(delta);
                                return from >= segment + width ? lane : from;
                              });
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::shuffle({"__shfl_xor_sync", file, line}, mask, value, width,
                              [=](int lane, int segment) {
                                const int from = lane ^ lane_mask;
                                return from >= segment + width ? lane : from;
                              });
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::reduce({"__reduce_add_sync", file, line}, mask, value,
                             [](unsigned a, unsigned b) { return a + b; });
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::reduce({"__reduce_max_sync", file, line}, mask, value,
                             [](unsigned a, unsigned b) { return a > b ? a : b; });
}

inline unsigned __reduce_or_sync(unsigned mask, unsigned value, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::reduce({"__reduce_or_sync", file, line}, mask, value,
                             [](unsigned a, unsigned b) { return a | b; });
}

// ----------------------------------------------------------------------------------- atomics (integers only)

template <typename T>
T atomicAdd(T* address, T value) {
  static_assert(std::is_integral_v<T>, "the order of float additions would not be fixed");
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

template <typename T>
T atomicMax(T* address, T value) {
  static_assert(std::is_integral_v<T>, "CUDA has no such atomic of floats");
  T before = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (before < value &&
         !__atomic_compare_exchange_n(address, &before, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return before;
}

// ------------------------------------------------------------------------------------- arithmetic intrinsics

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

template <typename T>
T min(T a, T b) {
  static_assert(std::is_integral_v<T>, "of floats, CUDA's min ignores NaN");
  return a < b ? a : b;
}

template <typename T>
T max(T a, T b) {
  static_assert(std::is_integral_v<T>, "of floats, CUDA's max ignores NaN");
  return a > b ? a : b;
}
