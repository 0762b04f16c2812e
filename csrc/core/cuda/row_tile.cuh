// Tiles of rows of logits in shared memory. They let each thread own a row, although a warp reads global memory
// efficiently only if its threads read neighbouring addresses.
//
// The threads of a block copy neighbouring rows, with 16-byte loads where the alignment allows it. Then each thread
// walks along a row of its own. Rows lie an odd number of elements apart, so that threads that read the same class of
// neighbouring rows read from different banks.
#pragma once

#include "core/cuda/launch.cuh"
#include "core/cuda/pack.cuh"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace ssd_ext {

constexpr int kMaxTileRows = 64;  // also the largest number of threads of a block
// The sizes of a tile in bytes. The small one holds 64 rows of up to 23 float classes (47 classes of two bytes); with
// it an H100 has as many resident threads as it can have. The medium one holds 64 rows of up to 95 classes of two
// bytes, or 32 rows of up to 95 float classes; a multiprocessor of an H100 holds 17 such tiles, and while a few are
// loaded the others keep it busy. The large one still holds enough rows of hundreds of classes.
constexpr int kSmallTile = 6 << 10;
constexpr int kMediumTile = 12 << 10;
constexpr int kLargeTile = 24 << 10;
// With fewer rows in a tile, too many threads would have no work. So if rows are so long that fewer fit into the large
// tile, they are read from global memory; each warp then needs 4 KB of cache for the data that it reads next.
constexpr int kFewestTileRows = 16;

// `count` <= kMaxTileRows neighbouring rows of (N, C). Thread i < count may read row(i). kBytes: the size of a tile,
// or 0 to leave the rows in global memory.
template <typename scalar_t, int kBytes>
class RowTile {
 public:
  using Unit = Pack<scalar_t>;
  static constexpr int kShared = kBytes / sizeof(Unit) + 1;  // rows may begin and end in the middle of a unit

  // All threads of the block have to call it. shared: kShared units in shared memory; there has to be a barrier
  // before they are used again.
  __device__ RowTile(const scalar_t* rows, int count, int64_t n_classes, Unit* shared)
      : rows_(rows), pitch_(n_classes) {
    if constexpr (kBytes > 0) {
      auto* const tile = reinterpret_cast<scalar_t*>(shared);
      const int row = static_cast<int>(n_classes);
      if (row % 2 != 0) {
        rows_ = copy(rows, count * row, tile);
      } else {
        copy_apart(rows, count * row, row, tile);
        rows_ = tile;
        pitch_ = row + 1;
      }
      __syncthreads();
    }
  }

  __device__ const scalar_t* row(int i) const { return rows_ + i * pitch_; }

 private:
  // Loads that a thread has in flight. With large tiles, few threads are resident on a multiprocessor, so each of them
  // needs several.
  static constexpr int kLoads = 4;

  // Copies whole units, and the elements before and after them. Returns the address of the copy. It lies as far behind
  // the beginning of a unit as `from` does.
  static __device__ const scalar_t* copy(const scalar_t* from, int n, scalar_t* tile) {
    constexpr int kCount = Unit::kCount;
    const int skew = static_cast<int>(reinterpret_cast<uintptr_t>(from) % sizeof(Unit) / sizeof(scalar_t));
    scalar_t* const to = tile + skew;
    const int thread = threadIdx.x;
    const int before = min((kCount - skew) % kCount, n);
    const int units = (n - before) / kCount;
    const int after = before + units * kCount;
    const auto* const from_units = reinterpret_cast<const Unit*>(from + before);
    auto* const to_units = reinterpret_cast<Unit*>(to + before);
    const int threads = blockDim.x;
    for (int i = thread; i < units; i += kLoads * threads) {
      Unit loaded[kLoads];
      for (int j = 0; j < kLoads; ++j) {
        if (i + j * threads < units) loaded[j] = from_units[i + j * threads];
      }
      for (int j = 0; j < kLoads; ++j) {
        if (i + j * threads < units) to_units[i + j * threads] = loaded[j];
      }
    }
    if (thread < before) to[thread] = from[thread];
    if (after + thread < n) to[after + thread] = from[after + thread];
    return to;
  }

  // Copies rows of an even number of elements, with a gap of one element after each row. There is no division for
  // each element, because every step advances by the same number of rows and elements.
  static __device__ void copy_apart(const scalar_t* from, int n, int row, scalar_t* to) {
    const int threads = blockDim.x;
    int y = static_cast<int>(threadIdx.x) / row;
    int x = static_cast<int>(threadIdx.x) % row;
    for (int i = threadIdx.x; i < n; i += threads) {
      to[y * (row + 1) + x] = from[i];
      y += threads / row;
      x += threads % row;
      if (x >= row) {
        x -= row;
        ++y;
      }
    }
  }

  const scalar_t* rows_;
  int64_t pitch_;
};

// The number of threads of a block with a tile of so many rows: whole warps, with a row for each thread. A warp without
// rows would take the place of one that works: a multiprocessor assigns the warps of a block to its four schedulers in
// turn, so with every second warp idle, two of the schedulers may have nothing to do.
inline int tile_threads(int tile_rows) { return static_cast<int>(ceil_div(tile_rows, 32) * 32); }

// Calls function(std::integral_constant<int, kBytes>(), number of rows of a tile) with the tile that suits rows of
// n_classes elements.
template <typename scalar_t, typename Function>
void dispatch_row_tile(int64_t n_classes, const Function& function) {
  const int64_t row_bytes = (n_classes | 1) * static_cast<int64_t>(sizeof(scalar_t));
  const auto rows_in = [=](int bytes) {
    return static_cast<int>(std::min<int64_t>(kMaxTileRows, bytes / row_bytes));
  };
  // The rows of one warp. A few more rows would occupy a second warp for as long as 32 more rows do.
  constexpr int kHalf = kMaxTileRows / 2;
  if (rows_in(kSmallTile) == kMaxTileRows) {
    function(std::integral_constant<int, kSmallTile>(), kMaxTileRows);
  } else if (rows_in(kMediumTile) >= kHalf) {
    function(std::integral_constant<int, kMediumTile>(), rows_in(kMediumTile) == kMaxTileRows ? kMaxTileRows : kHalf);
  } else if (rows_in(kLargeTile) >= kFewestTileRows) {
    function(std::integral_constant<int, kLargeTile>(), rows_in(kLargeTile));
  } else {
    function(std::integral_constant<int, 0>(), kMaxTileRows);
  }
}

}  // namespace ssd_ext
