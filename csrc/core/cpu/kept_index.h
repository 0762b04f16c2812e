// The boxes that greedy non-maximum suppression has kept so far, found by their place.
//
// A few boxes are tested one after the other. More are also put into grids, one for each class of sizes: class e has
// the boxes whose longer side is at least 2^(e-1) and less than 2^e. A box is in the cell of its left top corner, and a
// cell is 2^(e+1) wide and high, so a box that may overlap another one is in one of about four cells of each class.
// Classes of much larger or smaller boxes are left out, since their IoU with the box is at most the ratio of the longer
// sides. The cells are buckets of a hash table. Cells that share a bucket cost time and change no result, because every
// box in a bucket is tested.
//
// All decisions are exact: cells are found by multiplying with powers of two, and bounds that could suffer from
// rounding have a margin or are not used.
#pragma once

#include "core/cpu/kept_boxes.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace ssd_ext {

constexpr int64_t kBucketBlock = 8;  // one vector of AVX2 in float32

template <typename T>
using BucketBlock = BoxColumns<T, kBucketBlock>;

// Whether a box of the listed blocks has an IoU > threshold with `box`; threshold >= 0 or NaN.
bool is_suppressed(const BucketBlock<float>* blocks, const int32_t* listed, int64_t n, const Box<float>& box,
                   float threshold);
bool is_suppressed(const BucketBlock<double>* blocks, const int32_t* listed, int64_t n, const Box<double>& box,
                   double threshold);

// Up to kLinear kept boxes are tested one after the other.
template <typename T, int64_t kLinear = 1024>
class KeptIndex {
 public:
  void clear() {
    all_.clear();
    clear_grids();
    heads_.clear();
  }

  int64_t size() const { return all_.size(); }

  void push_back(const Box<T>& box) {
    all_.push_back(box);
    if (all_.size() <= kLinear) return;
    if (2 * blocks_.size() >= heads_.size()) {
      rebuild();
    } else {
      insert(box);
    }
  }

  // Whether one of the kept boxes suppresses this box.
  bool suppress(const Box<T>& box, T threshold) const {
    if (heads_.empty() || threshold < 0) return all_.suppress(box, threshold);
    const Kind kind = kind_of(box);
    if (kind == kNoOverlap) return false;
    if (kind == kOdd) return all_.suppress(box, threshold);
    if (odd_.size() > 0 && odd_.suppress(box, threshold)) return true;
    const T side = longer_side(box);
    // With a tiny threshold, the margin below would not cover the rounding errors of products close to 0.
    const T least_ratio = threshold >= T(1e-6) ? threshold * T(0.999) : T(0);
    int32_t listed[kListed];
    int64_t n = 0;
    for (const SizeClass& its : classes_) {
      if (its.size < least_ratio * side || side < least_ratio * (its.size / 2)) continue;
      if (!(longest_in(its, box) < kMostUnits)) return all_.suppress(box, threshold);  // too many small cells
      // A kept box that overlaps this one begins less than its own size before it.
      const int64_t left = (units(box.x0, its) - 1) >> 1, right = units(box.x1, its) >> 1;
      const int64_t top = (units(box.y0, its) - 1) >> 1, bottom = units(box.y1, its) >> 1;
      for (int64_t y = top; y <= bottom; ++y) {
        for (int64_t x = left; x <= right; ++x) {
          for (int32_t block = heads_[bucket(its, x, y)]; block >= 0; block = next_[block]) {
            listed[n++] = block;
            if (n < kListed) continue;
            if (is_suppressed(blocks_.data(), listed, n, box, threshold)) return true;
            n = 0;
          }
        }
      }
    }
    return n > 0 && is_suppressed(blocks_.data(), listed, n, box, threshold);
  }

 private:
  static constexpr int64_t kListed = 32;  // blocks that are tested by one call
  static constexpr size_t kFewestBuckets = 2048;
  static constexpr T kMostUnits = 24;
  // A box of a smaller area, or with a longer side, is tested with all boxes: products of its sides may lose all digits
  // or become infinite.
  static constexpr T kLeastArea = sizeof(T) == 8 ? T(1e-290) : T(1e-30);
  static constexpr T kLongestSide = sizeof(T) == 8 ? T(1e150) : T(1e18);

  enum Kind { kRegular, kOdd, kNoOverlap };

  struct SizeClass {
    int exponent;
    T size;     // 2^exponent
    T inverse;  // 2^-exponent
    uint64_t hash;
  };

  static T longer_side(const Box<T>& box) { return std::max(box.x1 - box.x0, box.y1 - box.y0); }

  static Kind kind_of(const Box<T>& box) {
    const T width = box.x1 - box.x0, height = box.y1 - box.y0, its_area = width * height;
    // An infinite area makes the union infinite or NaN, and the IoU 0.
    if (!(width > 0 && height > 0 && its_area <= std::numeric_limits<T>::max())) return kNoOverlap;
    return its_area >= kLeastArea && std::max(width, height) < kLongestSide ? kRegular : kOdd;
  }

  // The longer side of a box in half cells of a class.
  static T longest_in(const SizeClass& its, const Box<T>& box) { return longer_side(box) * its.inverse; }

  // A coordinate in half cells of a class, rounded down.
  static int64_t units(T coordinate, const SizeClass& its) {
    const T scaled = coordinate * its.inverse;
    const auto whole = static_cast<int64_t>(scaled);
    return whole - (scaled < static_cast<T>(whole));
  }

  uint64_t bucket(const SizeClass& its, int64_t x, int64_t y) const {
    uint64_t hash = its.hash + static_cast<uint64_t>(x) * 0x9e3779b97f4a7c15u +
                    static_cast<uint64_t>(y) * 0xc2b2ae3d27d4eb4fu;
    hash = (hash ^ (hash >> 32)) * 0xd6e8feb86659fd93u;
    return (hash >> 32) & (heads_.size() - 1);
  }

  const SizeClass& class_of(const Box<T>& box) {
    int exponent;
    std::frexp(longer_side(box), &exponent);
    for (const SizeClass& known : classes_) {
      if (known.exponent == exponent) return known;
    }
    classes_.push_back({exponent, std::ldexp(T(1), exponent), std::ldexp(T(1), -exponent),
                        static_cast<uint64_t>(exponent) * 0x165667b19e3779f9u});
    return classes_.back();
  }

  void insert(const Box<T>& box) {
    const Kind kind = kind_of(box);
    if (kind == kOdd) odd_.push_back(box);
    if (kind != kRegular) return;
    const SizeClass& its = class_of(box);
    int32_t& head = heads_[bucket(its, units(box.x0, its) >> 1, units(box.y0, its) >> 1)];
    if (head < 0 || filled_[head] == kBucketBlock) {
      blocks_.push_back({});  // zeros, which overlap nothing
      next_.push_back(head);
      filled_.push_back(0);
      head = static_cast<int32_t>(blocks_.size()) - 1;
    }
    blocks_[head].set(filled_[head]++, box);
  }

  void rebuild() {
    clear_grids();
    heads_.assign(std::max<size_t>(kFewestBuckets, 4 * heads_.size()), -1);  // a power of two
    for (int64_t i = 0; i < all_.size(); ++i) insert(all_[i]);
  }

  void clear_grids() {
    odd_.clear();
    blocks_.clear();
    next_.clear();
    filled_.clear();
    classes_.clear();
  }

  KeptBoxes<T> all_, odd_;
  std::vector<SizeClass> classes_;
  std::vector<int32_t> heads_;  // for each bucket its first block, or -1; empty: there are few boxes
  std::vector<BucketBlock<T>> blocks_;
  std::vector<int32_t> next_;    // for each block the next one of its bucket, or -1
  std::vector<uint8_t> filled_;  // for each block its number of boxes
};

}  // namespace ssd_ext
