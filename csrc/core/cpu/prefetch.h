// Prefetching, for reads that the processor does not foresee by itself.
#pragma once

#include <cstdint>

namespace ssd_ext {

// Begins to load these bytes into the cache. They need not be valid memory.
inline void prefetch([[maybe_unused]] const void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__GNUC__)
  constexpr int64_t kCacheLine = 64;
  for (int64_t i = 0; i < bytes; i += kCacheLine) __builtin_prefetch(static_cast<const char*>(data) + i);
#endif
}

}  // namespace ssd_ext
