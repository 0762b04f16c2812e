// Pairwise IoU on the GPU: boxes1 (N, 4), boxes2 (M, 4) xyxy -> (N, M).
//
// A block owns a tile of 32 rows and blockDim.x * kColumns columns. The row boxes and their areas lie in shared memory;
// a thread keeps its columns in registers and processes every blockDim.y-th row. If rows of the output are 16-byte
// aligned, the columns of a thread are neighbours and are written in one store. Otherwise they lie blockDim.x apart, so
// that the stores of a warp are contiguous. Writes 4 bytes per pair (8 for double). A column of 16 bytes (32 for
// double, 8 for half precision) is read once for 32 pairs, so the kernel reads 1/8 as many bytes as it writes (1/16 in
// half precision).
#include "core/box_math.h"
#include "core/checks.h"
#include "core/cuda/launch.cuh"
#include "core/cuda/pack.cuh"

#include <algorithm>
#include <cstdint>

namespace ssd_ext {
namespace {

constexpr int kTileRows = 32;  // one read of a column serves this many pairs
constexpr int kMaxThreads = 128;

template <typename scalar_t, typename T, bool kAligned>
__global__ void __launch_bounds__(kMaxThreads)
    box_iou_kernel(const scalar_t* __restrict__ boxes1,  // (N, 4) xyxy
                   const scalar_t* __restrict__ boxes2,  // (M, 4) xyxy
                   T* __restrict__ out,                  // (N, M)
                   int64_t n, int64_t m, int64_t column_tiles) {
  constexpr int kColumns = Pack<T>::kCount;
  SHARED_ARRAY(Box<T>, rows, kTileRows);
  SHARED_ARRAY(T, row_areas, kTileRows);

  const int64_t row_begin = blockIdx.x / column_tiles * kTileRows;
  const int64_t column_begin = blockIdx.x % column_tiles * (blockDim.x * kColumns);
  const int row_count = static_cast<int>(n - row_begin < kTileRows ? n - row_begin : kTileRows);

  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < row_count; i += blockDim.x * blockDim.y) {
    rows[i] = load_box<T>(boxes1, row_begin + i);
    row_areas[i] = area(rows[i]);
  }
  __syncthreads();

  int64_t index[kColumns];
  Box<T> columns[kColumns];
  T column_areas[kColumns];
  for (int k = 0; k < kColumns; ++k) {
    index[k] = column_begin + (kAligned ? threadIdx.x * kColumns + k : k * blockDim.x + threadIdx.x);
    columns[k] = load_box<T>(boxes2, index[k] < m ? index[k] : m - 1);
    column_areas[k] = area(columns[k]);
  }
  for (int i = threadIdx.y; i < row_count; i += blockDim.y) {
    const Box<T> row = rows[i];
    const T row_area = row_areas[i];
    T* const out_row = out + (row_begin + i) * m;
    Pack<T> store;
    for (int k = 0; k < kColumns; ++k) store.values[k] = iou(row, row_area, columns[k], column_areas[k]);
    if (kAligned) {
      if (index[0] < m) *reinterpret_cast<Pack<T>*>(out_row + index[0]) = store;
    } else {
      for (int k = 0; k < kColumns; ++k) {
        if (index[k] < m) out_row[index[k]] = store.values[k];
      }
    }
  }
}

Tensor box_iou_cuda(const Tensor& boxes1, const Tensor& boxes2) {
  check_boxes_alike(boxes1, "boxes1", boxes2, "boxes2");

  const DeviceGuard guard(boxes1.get_device_index());
  const int64_t n = boxes1.size(0);
  const int64_t m = boxes2.size(0);
  const Tensor out = torch::stable::new_empty(boxes1, {n, m}, compute_dtype(boxes1));
  if (n == 0 || m == 0) return out;

  const Tensor rows = as_contiguous(boxes1);
  const Tensor columns = as_contiguous(boxes2);
  const cudaStream_t stream = current_stream(boxes1);
  dispatch_floating_dtype(boxes1.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    constexpr int kColumns = Pack<T>::kCount;
    // The fewest threads that cover all columns at once; the other threads of the block take further rows.
    int threads = 1;
    while (threads < kMaxThreads && threads * kColumns < m) threads *= 2;
    const dim3 block(threads, std::min(kMaxThreads / threads, kTileRows));
    const int64_t column_tiles = ceil_div(m, threads * kColumns);
    auto* const out_data = out.mutable_data_ptr<T>();
    const bool aligned = m % kColumns == 0 && is_aligned<Pack<T>>(out_data);
    launch(aligned ? box_iou_kernel<scalar_t, T, true> : box_iou_kernel<scalar_t, T, false>,
           ceil_div(n, kTileRows) * column_tiles, block, stream, rows.const_data_ptr<scalar_t>(),
           columns.const_data_ptr<scalar_t>(), out_data, n, m, column_tiles);
  });
  return out;
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CUDA, m) { m.impl("box_iou", TORCH_BOX(&ssd_ext::box_iou_cuda)); }
