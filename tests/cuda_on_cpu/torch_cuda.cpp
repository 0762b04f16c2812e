// The CUDA part of torch's C interface, for a machine without CUDA: a device guard and a stream that do
// nothing, and errors that carry the runner's message. The library is linked with -Bsymbolic, so that its
// calls find these functions and not torch's.
#include <cuda_runtime.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace {
thread_local std::string last_error;
}

cudaError_t cuda_on_cpu::record(bool succeeded, const std::string& error) {
  if (!succeeded) last_error = error;
  return succeeded ? cudaSuccess : cudaErrorLaunchFailure;
}

extern "C" {

AOTITorchError torch_c10_cuda_check_msg(int32_t err, const char*, const char*, uint32_t, bool,
                                        char** error_msg) {
  *error_msg = err == cudaSuccess ? nullptr : strdup(("CUDA kernel on the CPU: " + last_error).c_str());
  if (err != cudaSuccess) last_error.clear();
  return TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* error_msg) { free(error_msg); }

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** ret_stream) {
  *ret_stream = nullptr;
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* ret_guard) {
  *ret_guard = nullptr;
  return TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return TORCH_SUCCESS; }

}  // extern "C"
