// Matching in CUDA: what match_priors.cu and other ops that begin with matching share.
//
// A warp matches 32 neighbouring priors of one image, one in each lane (match_warp). Its best candidate for each object
// goes to an array with one column for each warp of the image. Then one block reads the candidates of an image, and
// each object forces its best prior to match it (force_best_priors). For bipartite matching,
// launch_take_best_pairs replaces the second step.
#pragma once

#include "core/box_math.h"
#include "core/checks.h"
#include "core/cuda/block_ops.cuh"
#include "core/cuda/launch.cuh"
#include "core/order.h"
#include "match_priors/match_priors.h"

#include <cstdint>
#include <cstring>

namespace ssd_ext {

// The best of the candidates of a warp, returned in all lanes.
template <typename T>
__device__ Candidate<T> best_of_warp(const Candidate<T>& own) {
  bits_t<T> iou;  // no IoU is negative, so the bits compare in the same order as the IoUs
  memcpy(&iou, &own.iou, sizeof iou);
  const bits_t<T> highest = warp_max(iou);
  const unsigned lowest_index = ~warp_max(iou == highest ? ~static_cast<unsigned>(own.index) : 0u);
  Candidate<T> best = {0, static_cast<int32_t>(lowest_index)};
  memcpy(&best.iou, &highest, sizeof highest);
  return best;
}

// The best candidate of an object, returned in all lanes of the calling warp.
template <typename T>
__device__ Candidate<T> best_of_columns(const Candidate<T>* candidates, int columns) {  // (columns,)
  Candidate<T> best = {0, 0};
  for (int column = threadIdx.x % kWarpSize; column < columns; column += kWarpSize) {
    const Candidate<T> other = candidates[column];
    if (outranks(other, best)) best = other;
  }
  return best_of_warp(best);
}

// The smallest box around the boxes of a warp, returned in all lanes. No coordinate may be NaN.
template <typename T>
__device__ Box<T> bounds_of_warp(Box<T> box) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const auto of_other_lane = [=](T x) { return __shfl_xor_sync(kAllLanes, x, distance); };
    const Box<T> other = {of_other_lane(box.x0), of_other_lane(box.y0), of_other_lane(box.x1), of_other_lane(box.y1)};
    box = {other.x0 < box.x0 ? other.x0 : box.x0, other.y0 < box.y0 ? other.y0 : box.y0,
           other.x1 > box.x1 ? other.x1 : box.x1, other.y1 > box.y1 ? other.y1 : box.y1};
  }
  return box;
}

// Returns the object that a prior of the image matches by the threshold, or -1. Writes a column of the candidates of
// the image, or, unless `first`, replaces it where it finds better ones. All lanes of the warp have to call it, with
// neighbouring priors; a lane without a prior passes a box of zeros, which overlaps nothing.
//
// Each lane first tests one object against the bounds of the 32 priors. Only objects that overlap the bounds are
// compared with the priors.
template <typename T, typename scalar_t>
__device__ int32_t match_warp(Box<T> prior, int64_t index,         // of the prior
                              const scalar_t* __restrict__ boxes,  // (G, 4) xyxy
                              const ImageObjects& rows,            // of the image
                              Candidate<T>* __restrict__ candidates,  // (G, columns)
                              int column, int columns, bool first, T threshold) {
  const int lane = threadIdx.x % kWarpSize;
  T prior_area = area(prior);
  if (!(prior_area == prior_area)) {  // a prior with a NaN overlaps nothing either
    prior = {0, 0, 0, 0};
    prior_area = 0;
  }
  const Box<T> bounds = bounds_of_warp(prior);

  Candidate<T> best = {0, -1};  // of the objects, for this prior
  for (int32_t begin = 0; begin < rows.count; begin += kWarpSize) {
    const bool exists = lane < rows.count - begin;
    const Box<T> own = exists ? load_box<T>(boxes, rows.begin + begin + lane) : Box<T>{0, 0, 0, 0};
    const bool near = own.x0 < bounds.x1 && own.x1 > bounds.x0 && own.y0 < bounds.y1 && own.y1 > bounds.y0;
    Candidate<T> of_own = {0, 0};  // of the priors, for the object of this lane
    for (unsigned left = __ballot_sync(kAllLanes, exists && near); left != 0; left &= left - 1) {
      const int j = __ffs(static_cast<int>(left)) - 1;
      const auto of_lane_j = [=](T x) { return __shfl_sync(kAllLanes, x, j); };
      const Box<T> object = {of_lane_j(own.x0), of_lane_j(own.y0), of_lane_j(own.x1), of_lane_j(own.y1)};
      Candidate<T> candidate = {iou(object, area(object), prior, prior_area), static_cast<int32_t>(index)};
      if (candidate.iou > best.iou) best = {candidate.iou, begin + j};
      candidate = best_of_warp(candidate);
      if (lane == j) of_own = candidate;
    }
    if (exists) {
      Candidate<T>& kept = candidates[(rows.begin + begin + lane) * columns + column];
      if (first || outranks(of_own, kept)) kept = of_own;
    }
  }
  return best.iou >= threshold ? best.index : -1;
}

// Each object of an image takes its best prior; if several objects have the same one, the last of them does. All
// threads of the block have to call it. `match` is complete when it returns.
template <int kThreads, typename T>
__device__ void force_best_priors(const Candidate<T>* __restrict__ candidates,  // (G, columns)
                                  int columns,
                                  const ImageObjects& rows,  // of the image
                                  int32_t* match,            // (P,), of the image
                                  int32_t* forced) {         // (kThreads,), shared
  const int thread = threadIdx.x;
  for (int32_t begin = 0; begin < rows.count; begin += kThreads) {
    const int count = rows.count - begin < kThreads ? rows.count - begin : kThreads;
    for (int j = thread / kWarpSize; j < count; j += kThreads / kWarpSize) {
      const Candidate<T> best = best_of_columns(candidates + (rows.begin + begin + j) * columns, columns);
      if (thread % kWarpSize == 0) forced[j] = best.iou > T(0) ? best.index : -1;
    }
    __syncthreads();
    if (thread < count) {
      const int32_t prior = forced[thread];
      bool last = prior >= 0;
      for (int j = thread + 1; j < count; ++j) last = last && forced[j] != prior;
      if (last) match[prior] = begin + thread;
    }
    __syncthreads();
  }
}

// Bipartite matching from the candidates of match_warp: replaces force_best_priors. Prior: the form of the priors, Box
// or CenterBox. scalar_t: float or double for other files.
template <typename Prior, typename scalar_t, typename T = compute_t<scalar_t>>
void launch_take_best_pairs(const scalar_t* boxes,       // (G, 4) xyxy
                            const int32_t* row_splits,   // (B + 1,)
                            const scalar_t* priors,      // (P, 4)
                            Candidate<T>* candidates,    // (G, columns)
                            int32_t* match,              // (B, P)
                            int64_t n_images, int64_t n_objects, int64_t n_priors, int columns, cudaStream_t stream);

}  // namespace ssd_ext
