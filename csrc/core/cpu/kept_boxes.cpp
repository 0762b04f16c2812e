#include "core/cpu/kept_index.h"

#include "core/cpu/vector_clones.h"
#include "core/order.h"

namespace ssd_ext {
namespace {

// Whether a box of the block suppresses `box`.
template <typename T, int64_t kSize>
INLINE_IN_CLONES bool has_suppressor(const BoxColumns<T, kSize>& block, const Box<T>& box, T box_area, T threshold) {
  bits_t<T> may = 0;  // as wide as T, so that a vector holds equally many of both
  for (int64_t j = 0; j < kSize; ++j) {
    may |= iou_may_exceed(overlap(block.box(j), block.areas[j], box, box_area), threshold);
  }
  if (may == 0) return false;
  bits_t<T> does = 0;
  for (int64_t j = 0; j < kSize; ++j) {
    does |= iou(block.box(j), block.areas[j], box, box_area) > threshold;
  }
  return does != 0;
}

template <typename T>
INLINE_IN_CLONES bool is_suppressed_by(const KeptBlock<T>* blocks, int64_t n_blocks, const Box<T>& candidate,
                                       T threshold) {
  const Box<T> box = candidate;  // a copy stays in registers
  const T box_area = area(box);
  for (const KeptBlock<T>* block = blocks; block < blocks + n_blocks; ++block) {
    if (has_suppressor(*block, box, box_area, threshold)) return true;
  }
  return false;
}

template <typename T>
INLINE_IN_CLONES bool is_suppressed_by(const BucketBlock<T>* blocks, const int32_t* listed, int64_t n,
                                       const Box<T>& candidate, T threshold) {
  const Box<T> box = candidate;
  const T box_area = area(box);
  for (int64_t i = 0; i < n; ++i) {
    if (has_suppressor(blocks[listed[i]], box, box_area, threshold)) return true;
  }
  return false;
}

}  // namespace

VECTOR_CLONES bool is_suppressed(const KeptBlock<float>* blocks, int64_t n_blocks, const Box<float>& box,
                                 float threshold) {
  return is_suppressed_by(blocks, n_blocks, box, threshold);
}
VECTOR_CLONES bool is_suppressed(const KeptBlock<double>* blocks, int64_t n_blocks, const Box<double>& box,
                                 double threshold) {
  return is_suppressed_by(blocks, n_blocks, box, threshold);
}
VECTOR_CLONES bool is_suppressed(const BucketBlock<float>* blocks, const int32_t* listed, int64_t n,
                                 const Box<float>& box, float threshold) {
  return is_suppressed_by(blocks, listed, n, box, threshold);
}
VECTOR_CLONES bool is_suppressed(const BucketBlock<double>* blocks, const int32_t* listed, int64_t n,
                                 const Box<double>& box, double threshold) {
  return is_suppressed_by(blocks, listed, n, box, threshold);
}

}  // namespace ssd_ext
