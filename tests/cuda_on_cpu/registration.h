// Included before every .cu file: what it registers for (library, CUDA) goes to (library_cuda_on_cpu, CPU).
#pragma once

#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(library, device, m) \
  _STABLE_TORCH_LIBRARY_IMPL(library##_cuda_on_cpu, CPU, m, C10_UID)
