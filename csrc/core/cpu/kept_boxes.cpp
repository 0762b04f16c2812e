#include "core/cpu/kept_boxes.h"

#include "core/cpu/vector_clones.h"
#include "core/order.h"

namespace ssd_ext {
namespace {

template <typename T>
INLINE_IN_CLONES bool is_suppressed_by(const KeptBlock<T>* blocks, int64_t n_blocks, const Box<T>& candidate,
                             T threshold) {
  const Box<T> box = candidate;  // a copy stays in registers
  const T box_area = area(box);
  for (const KeptBlock<T>* block = blocks; block < blocks + n_blocks; ++block) {
    bits_t<T> may = 0;  // as wide as T, so that a vector holds equally many of both
    for (int64_t j = 0; j < kKeptBlock; ++j) {
      may |= iou_may_exceed(overlap(block->box(j), block->areas[j], box, box_area), threshold);
    }
    if (may == 0) continue;
    bits_t<T> does = 0;
    for (int64_t j = 0; j < kKeptBlock; ++j) {
      does |= iou(block->box(j), block->areas[j], box, box_area) > threshold;
    }
    if (does != 0) return true;
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

}  // namespace ssd_ext
