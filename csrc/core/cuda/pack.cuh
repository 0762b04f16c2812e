// Numbers that a thread loads or stores at once.
#pragma once

#include <cstdint>

namespace ssd_ext {

template <typename T, int kNumbers = 16 / sizeof(T)>  // 16 bytes: the widest load of a GPU
struct alignas(kNumbers * sizeof(T)) Pack {
  static constexpr int kCount = kNumbers;
  T values[kCount];
};

// Whether packs may begin at this address.
template <typename Pack>
bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % sizeof(Pack) == 0;
}

}  // namespace ssd_ext
