// How every kernel is launched: device guard, stream, grid arithmetic, launch, shared memory.
//
// A launch is an ordinary function call and shared memory is declared through the macro below, so that a .cu
// file is plain C++ that also compiles without nvcc: tests/cuda_on_cpu runs the same source on the CPU.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace ssd_ext {

using torch::stable::accelerator::DeviceGuard;

// T name[count] in shared memory; count is a constant.
#ifndef SHARED_ARRAY
#define SHARED_ARRAY(T, name, count) __shared__ T name[count]
#endif

// The stream that torch uses on this tensor's device.
inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// kernel<<<blocks, threads, 0, stream>>>(arguments...), and throws if the launch fails. Arguments convert to the
// kernel's parameter types.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, dim3 threads, cudaStream_t stream,
            Arguments&&... arguments) {
  STD_TORCH_CHECK(blocks <= INT32_MAX, "the input is too large for a GPU: ", blocks, " blocks of threads");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = threads;
  config.stream = stream;
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

}  // namespace ssd_ext
