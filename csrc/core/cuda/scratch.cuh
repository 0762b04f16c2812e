// Memory that a host function needs while its kernels run.
#pragma once

#include "core/checks.h"

#include <cstdint>

namespace ssd_ext {

// T data[count] from torch's allocator, not initialised. It may go out of scope before the kernels have run: the
// allocator reuses the memory only for later work on the same stream.
template <typename T>
class Scratch {
 public:
  Scratch(const Tensor& like, int64_t count)
      : bytes_(torch::stable::new_empty(like, {count * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte)) {}

  T* data() const { return static_cast<T*>(bytes_.mutable_data_ptr()); }

 private:
  Tensor bytes_;
};

}  // namespace ssd_ext
