// Large new buffers in large pages.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ssd_ext {

// To be called before a buffer is first written. The system maps new memory page by page as it is touched,
// which for a gradient of 90 MB in pages of 4 KB takes longer than to compute it. Where the system leaves the
// choice to the program (transparent_hugepage: madvise), this asks for pages of 2 MB; elsewhere it does
// nothing. Smaller buffers than 32 MB glibc may keep and give again: they gain nothing.
inline void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 2 << 20;
  constexpr int64_t kLeast = 32 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + bytes) / kHugePage * kHugePage;
  if (bytes >= kLeast) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  static_cast<void>(data);
  static_cast<void>(bytes);
#endif
}

}  // namespace ssd_ext
