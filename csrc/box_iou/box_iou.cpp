// Pairwise IoU on the CPU: boxes1 (N, 4), boxes2 (M, 4) xyxy -> (N, M).
//
// The output is cut into tiles, and a thread owns whole tiles. A thread converts the columns of a tile once, into one
// array per coordinate on the stack. Then each row of the tile is one loop over these arrays, which the compiler
// vectorises. Writes 4 bytes per pair (8 for double) and allocates nothing but the output.
#include "core/box_math.h"
#include "core/checks.h"
#include "core/cpu/box_columns.h"
#include "core/cpu/parallel.h"
#include "core/cpu/vector_clones.h"

#include <algorithm>

namespace ssd_ext {
namespace {

constexpr int64_t kTileRows = 64;      // a column is converted once for this many pairs
constexpr int64_t kTileColumns = 512;  // 10 KB of columns (20 KB in double) stay in the first-level cache
constexpr double kPairNanoseconds = 0.5;

template <typename T>
using Columns = BoxColumns<T, kTileColumns>;

template <typename T>
INLINE_IN_CLONES void iou_of_row(const Box<T>& box, const Columns<T>& columns, int64_t count, T* __restrict out) {
  const Box<T> row = box;  // a copy: the compiler sees that `out` cannot change it
  const T row_area = area(row);
  for (int64_t j = 0; j < count; ++j) out[j] = iou(row, row_area, columns.box(j), columns.areas[j]);
}

VECTOR_CLONES void iou_row(const Box<float>& box, const Columns<float>& columns, int64_t count, float* out) {
  iou_of_row(box, columns, count, out);
}
VECTOR_CLONES void iou_row(const Box<double>& box, const Columns<double>& columns, int64_t count, double* out) {
  iou_of_row(box, columns, count, out);
}

template <typename scalar_t, typename T>
void iou_tile(const scalar_t* boxes1,  // (N, 4) xyxy
              const scalar_t* boxes2,  // (M, 4) xyxy
              T* out,                  // (N, M)
              int64_t m, int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end) {
  const int64_t count = column_end - column_begin;
  Columns<T> columns;
  for (int64_t j = 0; j < count; ++j) columns.set(j, load_box<T>(boxes2, column_begin + j));
  for (int64_t i = row_begin; i < row_end; ++i) {
    iou_row(load_box<T>(boxes1, i), columns, count, out + i * m + column_begin);
  }
}

Tensor box_iou_cpu(const Tensor& boxes1, const Tensor& boxes2) {
  check_boxes_alike(boxes1, "boxes1", boxes2, "boxes2");

  const int64_t n = boxes1.size(0);
  const int64_t m = boxes2.size(0);
  const Tensor out = torch::stable::new_empty(boxes1, {n, m}, compute_dtype(boxes1));
  if (n == 0 || m == 0) return out;

  const Tensor rows = as_contiguous(boxes1);
  const Tensor columns = as_contiguous(boxes2);
  const int64_t row_tiles = (n + kTileRows - 1) / kTileRows;
  const int64_t column_tiles = (m + kTileColumns - 1) / kTileColumns;
  dispatch_floating_dtype(boxes1.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    const auto* const rows_data = rows.const_data_ptr<scalar_t>();
    const auto* const columns_data = columns.const_data_ptr<scalar_t>();
    auto* const out_data = out.mutable_data_ptr<T>();
    const auto run_tiles = [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t i = tile / column_tiles * kTileRows;
        const int64_t j = tile % column_tiles * kTileColumns;
        iou_tile(rows_data, columns_data, out_data, m, i, std::min(n, i + kTileRows), j, std::min(m, j + kTileColumns));
      }
    };
    const double tile_nanoseconds = static_cast<double>(n * m) / (row_tiles * column_tiles) * kPairNanoseconds;
    parallel_for(row_tiles * column_tiles, tile_nanoseconds, run_tiles);
  });
  return out;
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ext, m) {
  m.def("box_iou(Tensor boxes1, Tensor boxes2) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CPU, m) { m.impl("box_iou", TORCH_BOX(&ssd_ext::box_iou_cpu)); }
