// New tensors; the large ones are placed in huge pages, if the system allows this.
#pragma once

#include "core/checks.h"

#include <cstdint>
#include <initializer_list>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ssd_ext {

// A new tensor (sizes) on the CPU, contiguous, in the dtype of `like`, not initialised.
//
// The system maps new memory page by page when it is first written. For a gradient of 90 MB in pages of 4 KB this
// takes longer than computing the gradient, and memory of this size is returned to the system every time it is freed.
// If the system leaves the choice to the program (transparent_hugepage: madvise), this function asks for pages of 2 MB,
// and the tensor begins at the start of such a page.
inline Tensor new_in_huge_pages(const Tensor& like, std::initializer_list<int64_t> sizes) {
#if defined(__linux__)
  constexpr int64_t kHugePage = 2 << 20;
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes.begin()[i];
  const int64_t bytes = *sizes.begin() * strides[0] * static_cast<int64_t>(like.element_size());
  if (bytes >= kHugePage) {
    const Tensor owner = torch::stable::new_empty(like, {bytes + kHugePage}, ScalarType::Byte);
    auto* const data = static_cast<char*>(owner.mutable_data_ptr());
    char* const begin = data + (-reinterpret_cast<uintptr_t>(data)) % kHugePage;
    madvise(begin, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    return torch::stable::from_blob(begin, sizes, strides, like.device(), like.scalar_type(), [owner](void*) {});
  }
#endif
  return torch::stable::new_empty(like, sizes);
}

}  // namespace ssd_ext
