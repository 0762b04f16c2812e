// Kernels that show what the runner gets right and which mistakes it reports; used by
// tests/kernels/test_cuda_on_cpu.py alone.
#include "core/checks.h"
#include "core/cuda/launch.cuh"

#include <cstdint>
#include <string>

namespace {

using ssd_ext::Tensor;

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 64;

// ---------------------------------------------------------------------------------------- what must be right

// Sum of each block's numbers, by halving; `kBarrier = false` leaves out the barrier between the halvings.
template <bool kBarrier>
__global__ void __launch_bounds__(kThreads) block_sum_kernel(const int* x,  // (n)
                                                             int* sums,     // (blocks)
                                                             int n) {
  SHARED_ARRAY(int, partial, kThreads);
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  partial[threadIdx.x] = i < n ? x[i] : 0;
  if (kBarrier) __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    if (kBarrier) __syncthreads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

// One row of 32 numbers for each collective of a warp.
__global__ void warp_kernel(const int* x,  // (32)
                            int* out) {    // (11, 32)
  const int lane = threadIdx.x;
  const unsigned mine = x[lane];
  int row = 0;
  const auto put = [&](unsigned value) { out[32 * row++ + lane] = static_cast<int>(value); };
  put(__ballot_sync(kAll, mine % 2));
  put(__any_sync(kAll, mine > 30));
  put(__shfl_sync(kAll, mine, 5));
  put(__shfl_sync(kAll, mine, 5, 8));
  put(__shfl_down_sync(kAll, mine, 3));
  put(__shfl_xor_sync(kAll, mine, 9));
  put(__reduce_add_sync(kAll, mine));
  put(__reduce_max_sync(kAll, mine));
  put(__reduce_or_sync(kAll, mine + 1));
  // Halves of the warp go different ways and do different things.
  if (lane < 16) {
    put(__reduce_max_sync(0x0000ffffu, mine));
  } else {
    put(__ballot_sync(0xffff0000u, 1));
  }
  // Only some lanes are left; the others named in the mask have exited.
  if (lane >= 20) return;
  put(__reduce_add_sync(kAll, 1));
}

__global__ void votes_kernel(const int* x,  // (64)
                             int* out) {    // (3)
  const int count = __syncthreads_count(x[threadIdx.x] > 0);
  const int any = __syncthreads_or(x[threadIdx.x] > 0);
  const int all = __syncthreads_and(x[threadIdx.x] > 0);
  if (threadIdx.x == 0) {
    out[0] = count;
    out[1] = any;
    out[2] = all;
  }
}

__global__ void atomics_kernel(const int* x,  // (64)
                               int* out) {    // (2), starts with zeros
  const int mine = x[threadIdx.x];
  atomicAdd(&out[0], mine);
  atomicMax(&out[1], mine);
}

// Each thread writes its coordinates as one number, in blocks of three dimensions.
__global__ void index_kernel(int* out) {  // (grid x, block z, y, x)
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[blockIdx.x * (blockDim.x * blockDim.y * blockDim.z) + thread] =
      static_cast<int>(blockIdx.x + 1000 * threadIdx.x + 10000 * threadIdx.y + 100000 * threadIdx.z);
}

// ------------------------------------------------------------------------------------- what must be reported

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void deadlock_kernel() {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

__global__ void mask_kernel() { __ballot_sync(threadIdx.x % 32 < 8 ? 0x0000ffffu : kAll, 1); }

__global__ void call_site_kernel() {
  if (threadIdx.x % 2) {
    __ballot_sync(kAll, 1);
  } else {
    __ballot_sync(kAll, 1);
  }
}

__global__ void own_mask_kernel() { __syncwarp(0x0000ffffu); }

__global__ void exited_source_kernel(int* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_sync(kAll, 1, 5);
}

__global__ void unset_shared_kernel(int* out) {
  SHARED_ARRAY(int, unset, kThreads);
  out[threadIdx.x] = unset[threadIdx.x];
}

__global__ void shared_overrun_kernel(int* out) {
  SHARED_ARRAY(int, first, kThreads);
  SHARED_ARRAY(int, second, kThreads);
  int* const volatile end = first + kThreads;
  first[threadIdx.x] = second[threadIdx.x] = 1;
  if (threadIdx.x == 0) *end = 1;
  out[threadIdx.x] = first[threadIdx.x];
}

__global__ void shared_too_large_kernel(int* out) {
  SHARED_ARRAY(double, large, 7000);
  large[threadIdx.x] = 1;
  out[threadIdx.x] = static_cast<int>(large[threadIdx.x]);
}

__global__ void global_overrun_kernel(int* out, int n) { out[n + threadIdx.x] = 1; }

// Lane 0 writes, the others read: right with __syncwarp in between, a race without.
template <bool kSync>
__global__ void warp_handover_kernel(int* out) {
  SHARED_ARRAY(int, value, 1);
  if (threadIdx.x == 0) value[0] = 1;
  if (kSync) __syncwarp();
  out[threadIdx.x] = value[0];
}

// A shuffle moves a value but does not order memory: this hand-over is a race.
__global__ void shuffle_handover_kernel(int* out) {
  SHARED_ARRAY(int, value, 1);
  if (threadIdx.x == 0) value[0] = 1;
  __shfl_sync(kAll, 1, 0);
  out[threadIdx.x] = value[0];
}

// ------------------------------------------------------------------------------------------------- host side

// x (n) int32 -> what the kernel of this name writes, int32.
Tensor run(const Tensor& x, const std::string& kernel) {
  const Tensor input = torch::stable::contiguous(x);
  const int n = static_cast<int>(x.size(0));
  const int* const in = input.const_data_ptr<int>();
  const auto zeros = [&](int64_t count) { return torch::stable::new_zeros(x, {count}); };
  const auto launch = [&](auto* function, int64_t blocks, dim3 threads, auto... arguments) {
    ssd_ext::launch(function, blocks, threads, ssd_ext::current_stream(x), arguments...);
  };
  const auto start = [&](auto* function, int threads) {
    const Tensor out = zeros(threads);
    launch(function, 1, threads, out.mutable_data_ptr<int>());
    return out;
  };
  const auto start_alone = [&](auto* function) {
    launch(function, 1, kThreads);
    return zeros(0);
  };
  const int64_t blocks = ssd_ext::ceil_div(n, kThreads);
  if (kernel == "block_sum" || kernel == "block_sum_without_barrier") {
    const Tensor out = zeros(blocks);
    launch(kernel == "block_sum" ? block_sum_kernel<true> : block_sum_kernel<false>, blocks, kThreads, in,
           out.mutable_data_ptr<int>(), n);
    return out;
  }
  if (kernel == "warp") {
    const Tensor out = zeros(11 * 32);
    launch(warp_kernel, 1, 32, in, out.mutable_data_ptr<int>());
    return out;
  }
  if (kernel == "votes" || kernel == "atomics") {
    const Tensor out = zeros(3);
    launch(kernel == "votes" ? votes_kernel : atomics_kernel, 1, kThreads, in, out.mutable_data_ptr<int>());
    return out;
  }
  if (kernel == "index") {
    const Tensor out = zeros(4 * 5 * 3 * 2);
    launch(index_kernel, 4, dim3(5, 3, 2), out.mutable_data_ptr<int>());
    return out;
  }
  if (kernel == "divergent_barrier") return start_alone(divergent_barrier_kernel);
  if (kernel == "deadlock") return start_alone(deadlock_kernel);
  if (kernel == "mask") return start_alone(mask_kernel);
  if (kernel == "call_site") return start_alone(call_site_kernel);
  if (kernel == "own_mask") return start_alone(own_mask_kernel);
  if (kernel == "exited_source") return start(exited_source_kernel, 32);
  if (kernel == "unset_shared") return start(unset_shared_kernel, kThreads);
  if (kernel == "shared_overrun") return start(shared_overrun_kernel, kThreads);
  if (kernel == "shared_too_large") return start(shared_too_large_kernel, kThreads);
  if (kernel == "too_many_threads") return start(unset_shared_kernel, 1025);
  if (kernel == "warp_handover") return start(warp_handover_kernel<true>, 32);
  if (kernel == "warp_handover_without_sync") return start(warp_handover_kernel<false>, 32);
  if (kernel == "shuffle_handover") return start(shuffle_handover_kernel, 32);
  if (kernel == "too_many_blocks") launch(own_mask_kernel, (int64_t(1) << 32) + 1, 1);
  STD_TORCH_CHECK(kernel == "global_overrun", "no kernel ", kernel);
  const Tensor out = zeros(n);
  launch(global_overrun_kernel, 1, 1, out.mutable_data_ptr<int>(), n);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(selftest, CUDA, m) { m.impl("run", TORCH_BOX(&run)); }
