// The one order of scores and losses, for host and device: value descending, then index ascending.
//
// Values become unsigned integers that compare as the values do. A key is this integer followed by the index, so no
// two keys are equal. Therefore every sort or selection by such keys gives the same answer, in whatever order it
// works. Only integer operations are used: flushing subnormal numbers to zero changes nothing.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace ssd_ext {

// The unsigned integer as wide as the compute type T: float or double.
template <typename T>
using bits_t = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;

// Larger for larger values; -0 equals 0, and all NaNs are equal to each other and larger than all other values. The
// result is never 0, so 0 can stand for "no value".
template <typename T>
C10_HOST_DEVICE inline bits_t<T> ordered_bits(T value) {
  using Bits = bits_t<T>;
  constexpr Bits kSign = Bits(1) << (8 * sizeof(Bits) - 1);
  constexpr Bits kInfinity = static_cast<Bits>(sizeof(T) == 8 ? 0x7ff0000000000000 : 0x7f800000);
  Bits bits;
  memcpy(&bits, &value, sizeof bits);
  const Bits magnitude = bits & ~kSign;
  const Bits ordered = bits & kSign ? kSign - magnitude : kSign + magnitude;
  return magnitude > kInfinity ? ~Bits(0) : ordered;
}

// The value that has these ordered bits; 0 instead of -0, and one NaN instead of all.
template <typename T>
C10_HOST_DEVICE inline T value_of_bits(bits_t<T> ordered) {
  using Bits = bits_t<T>;
  constexpr Bits kSign = Bits(1) << (8 * sizeof(Bits) - 1);
  const Bits bits = ordered < kSign ? kSign + (kSign - ordered) : ordered - kSign;
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// A key that sorts ascending: the best value first, equal ones by their index.
struct RankKey {
  uint64_t high;  // the smaller, the better
  uint32_t index;
};

C10_HOST_DEVICE inline bool operator<(const RankKey& a, const RankKey& b) {
  return a.high < b.high || (a.high == b.high && a.index < b.index);
}

}  // namespace ssd_ext
