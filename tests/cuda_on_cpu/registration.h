// Included before every .cu file: its kernels for (library, CUDA) are registered for (library_cuda_on_cpu, CPU)
// instead.
#pragma once

#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(library, device, m) \
  _STABLE_TORCH_LIBRARY_IMPL(library##_cuda_on_cpu, CPU, m, C10_UID)
