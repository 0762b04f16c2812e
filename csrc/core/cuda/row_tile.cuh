// Tiles of rows of logits in shared memory, so that a thread can own a row although a warp reads memory well
// only side by side.
//
// The threads of a block copy neighbouring rows, with 16-byte loads between those addresses that allow it;
// then each thread walks along a row of its own. Rows lie an odd number of elements apart: threads that look
// at the same class of neighbouring rows look into different banks.
#pragma once

#include "core/cuda/launch.cuh"
#include "core/cuda/pack.cuh"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace ssd_ext {

constexpr int kMaxTileRows = 64;  // and the threads of a block
// The sizes of a tile. 64 rows of up to 23 float classes (47 of two bytes) take the small one, with which an
// H100 keeps all the threads that it can; rows of hundreds of classes still fill the large one. The medium one
// has 64 rows of up to 95 classes of two bytes, or 32 of float: of these an H100 keeps 17 tiles, and while a
// few are on their way the others keep it busy.
constexpr int kSmallTile = 6 << 10;
constexpr int kMediumTile = 12 << 10;
constexpr int kLargeTile = 24 << 10;
// Fewer rows would leave the threads without work: longer rows are read where they are, for 4 KB of cache per
// warp hold what it reads next.
constexpr int kFewestTileRows = 16;

// `count` <= kMaxTileRows neighbouring rows of (N, C), of which thread i < count may read row(i). kBytes:
// the size of a tile, or 0 to leave the rows where they are.
template <typename scalar_t, int kBytes>
class RowTile {
 public:
  using Unit = Pack<scalar_t>;
  static constexpr int kShared = kBytes / sizeof(Unit) + 1;  // rows may begin and end in the middle of a unit

  // All threads of the block call it. shared: kShared units in shared memory; before they are used again
  // there has to be a barrier.
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
  static constexpr int kLoads = 4;  // of a thread at a time: the few threads of large tiles need several

  // Whole units, and the elements before and after them. Returns where the first element is: as far from the
  // begin of its unit as in `from`.
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

  // Rows of an even number of elements, with a gap of one after each. No division for each element: every
  // step goes on by the same number of rows and elements.
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

// Calls function(std::integral_constant<int, kBytes>(), rows of a tile) for the rows of n_classes elements.
template <typename scalar_t, typename Function>
void dispatch_row_tile(int64_t n_classes, const Function& function) {
  const int64_t row_bytes = (n_classes | 1) * static_cast<int64_t>(sizeof(scalar_t));
  const auto rows_in = [=](int bytes) {
    return static_cast<int>(std::min<int64_t>(kMaxTileRows, bytes / row_bytes));
  };
  constexpr int kHalf = kMaxTileRows / 2;  // one warp: a few rows more would keep a second one as busy as it
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
