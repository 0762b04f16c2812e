// exp and log with the same bits on every machine, for host and device.
//
// Math libraries differ in the last bits of exp and log. In a kernel that compares scores or losses, a single different
// bit can give a different index. The float versions here consist of separate + - * operations and integer operations
// in a fixed order, so that the CPU (-ffp-contract=off), vectorised or not, and the GPU (-fmad=false) give the same
// bits. They have no branches. Error over all floats: below 0.93 ulp (tools/derive_exact_math.py derives the constants
// and tries every float). exp(0) is 1 and log(1) is 0.
//
// The double versions call the library: results are equal up to rounding, not to the bit.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ssd_ext {

C10_HOST_DEVICE inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

C10_HOST_DEVICE inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// ln 2 in two parts. The first has 16 bits: its product with a whole number below 256 is exact.
constexpr float kLn2High = 0.693145752f;
constexpr float kLn2Low = 1.42860677e-06f;
constexpr float kLog2E = 1.44269502f;
// 1.5 * 2^23: neighbouring floats of this size differ by 1. Adding it rounds a number to a whole number, which then
// is in the low bits.
constexpr float kToWhole = 12582912.0f;
constexpr uint32_t kToWholeBits = 0x4B400000u;

constexpr uint32_t kInfBits = 0x7F800000u;
constexpr uint32_t kNanBits = 0x7FC00000u;

constexpr float kLeastExp = -104.0f;   // from here down, e^x is less than half of the smallest subnormal number
constexpr float kLargestExp = 89.0f;  // from here up, e^x is above the largest number

// e^x = e_r * 2^n for x from kLeastExp to kLargestExp. For a NaN, e_r is NaN; for any other x, it is arbitrary.
struct ExpParts {
  float e_r;
  uint32_t exponent;  // n + bias in the low 9 bits; the bits above are arbitrary
};

// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r = 1 + r + r^2 q(r) with q of degree 4. bias: at most 254, and even: with
// an odd one, a tie between two n would go to the other one.
C10_HOST_DEVICE inline ExpParts exp_parts(float x, float bias) {
  const float whole = x * kLog2E + (kToWhole + bias);
  const float n = whole - (kToWhole + bias);
  const float high = x - n * kLn2High;
  const float low = n * kLn2Low;
  const float r = high - low;
  float q = 0.00138145976f;
  q = q * r + 0.00836871658f;
  q = q * r + 0.0416683890f;
  q = q * r + 0.166665211f;
  q = q * r + 0.499999940f;
  return {1.0f + (high + (r * r * q - low)), bits_of(whole)};
}

// e^x: gradual underflow for results below 2^-126, inf for x above 88.72, exp(-inf) = 0, exp(NaN) = NaN.
C10_HOST_DEVICE inline float exact_exp(float x) {
  // 2^n is multiplied in two halves, since one float cannot hold 2^128 or 2^-150.
  const ExpParts parts = exp_parts(x, 254.0f);  // the sum of the biases of both halves
  const uint32_t half = parts.exponent >> 1;
  const float e_x = parts.e_r * float_of(half << 23) * float_of((parts.exponent - half) << 23);
  return x < kLeastExp ? 0.0f : x > kLargestExp ? float_of(kInfBits) : e_x;
}

// exact_exp for x <= 0 or NaN, with four operations less.
C10_HOST_DEVICE inline float exact_exp_below_1(float x) {
  // n is from -150 to 0, so 2^(n + 63) is a normal number. Only the last product is rounded, as in exact_exp.
  const ExpParts parts = exp_parts(x < kLeastExp ? kLeastExp : x, 127.0f + 63.0f);
  return parts.e_r * float_of(parts.exponent << 23) * 0x1p-63f;
}

// The natural logarithm: log(0) and log(-0) are -inf, log(inf) is inf, and the logarithm of a negative number or of NaN
// is NaN.
//
// x = 2^e m with m in [sqrt(1/2), sqrt(2)), f = m - 1, and log(1 + f) = f - f^2 / 2 + f^3 q(f) with q of degree 7.
C10_HOST_DEVICE inline float exact_log(float x) {
  const bool subnormal = x < 1.17549435e-38f;            // 2^-126
  const float normal = subnormal ? x * 8388608.0f : x;  // 2^23
  const uint32_t bits = bits_of(normal);
  constexpr uint32_t kBias = 128;
  constexpr uint32_t kSqrtHalfBits = 0x3F3504F3u;
  const uint32_t biased_e = (bits + ((kBias << 23) - kSqrtHalfBits)) >> 23;
  const float f = float_of(bits + (kBias << 23) - (biased_e << 23)) - 1.0f;
  const float e = float_of(kToWholeBits + biased_e) - (kToWhole + kBias + (subnormal ? 23.0f : 0.0f));
  float q = -0.0763456374f;
  q = q * f + 0.127616122f;
  q = q * f - 0.131601736f;
  q = q * f + 0.142017528f;
  q = q * f - 0.166233584f;
  q = q * f + 0.200012267f;
  q = q * f - 0.250008196f;
  q = q * f + 0.333333313f;
  const float tail = f * f * (f * q - 0.5f);
  const float log_x = e * kLn2High + (f + (tail + e * kLn2Low));
  const float inf = float_of(kInfBits);
  const float special = x == 0.0f ? -inf : x == inf ? inf : float_of(kNanBits);
  return (x > 0.0f) & (x < inf) ? log_x : special;
}

C10_HOST_DEVICE inline double exact_exp(double x) { return std::exp(x); }
C10_HOST_DEVICE inline double exact_exp_below_1(double x) { return std::exp(x); }
C10_HOST_DEVICE inline double exact_log(double x) { return std::log(x); }

}  // namespace ssd_ext
