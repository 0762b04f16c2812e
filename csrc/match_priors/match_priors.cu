// Matching on the GPU: boxes (G, 4) of B images and priors (P, 4) -> (B, P), the object of every prior.
//
// 1. best_pairs_kernel: a block owns a chunk of the priors of one image, a thread one prior at a time, in registers.
//    The objects are read through shared memory. Each prior keeps its best object, and each object gets its best prior
//    of the chunk as a candidate: by reductions in each warp, then through shared memory in the block.
// 2. force_best_priors_kernel: the same blocks. A warp reduces the candidates of an object to its best prior. Then
//    every thread finds the object, if any, that chose its prior. Only the thread that owns a prior writes it, so
//    there is no race. For bipartite matching, take_best_pairs_kernel replaces this kernel; a block of
//    take_best_pairs_kernel owns an image.
//
// There is no IoU matrix and no atomic operation. Writes 4 bytes for each prior of each image, and 8 bytes (double: 16)
// for each object and chunk. Reads 4 numbers for each prior of each image, and the candidates of an image once for each
// of its chunks.
#include "match_priors/match_priors.h"

#include "core/box_math.h"
#include "core/cuda/block_ops.cuh"
#include "core/cuda/launch.cuh"
#include "core/cuda/scratch.cuh"
#include "core/order.h"
#include "match_priors/match_priors.cuh"

#include <algorithm>
#include <cstring>

namespace ssd_ext {
namespace {

constexpr int kWarp = kWarpSize;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kObjects = 64;  // objects in shared memory at once: 5.4 KB with their candidates, 11 KB in double
// Maximum number of chunks of an image. More blocks are not needed to fill a GPU, and each chunk adds one candidate per
// object.
constexpr int64_t kMaxChunks = 128;

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

// The best of the candidates of a block, returned in all threads. `of_warps` may be used again after the next barrier.
template <typename T>
__device__ Candidate<T> best_of_block(const Candidate<T>& own, Candidate<T>* of_warps) {  // (kWarps,), shared
  const Candidate<T> best = best_of_warp(own);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = best;
  __syncthreads();
  return best_of_warp(of_warps[threadIdx.x % kWarps]);
}

// The best candidate of an object, returned in all lanes of the calling warp.
template <typename T>
__device__ Candidate<T> best_of_chunks(const Candidate<T>* candidates, int chunks) {  // (chunks,)
  Candidate<T> best = {0, 0};
  for (int chunk = threadIdx.x % kWarp; chunk < chunks; chunk += kWarp) {
    const Candidate<T> other = candidates[chunk];
    if (outranks(other, best)) best = other;
  }
  return best_of_warp(best);
}

// Prior: Box<T> or CenterBox<T>, the form of the priors.
template <typename Prior, typename scalar_t, typename T>
__global__ void __launch_bounds__(kThreads)
    best_pairs_kernel(const scalar_t* __restrict__ boxes,      // (G, 4) xyxy
                      const int32_t* __restrict__ row_splits,  // (B + 1,)
                      const scalar_t* __restrict__ priors,     // (P, 4)
                      Candidate<T>* __restrict__ candidates,   // (G, chunks)
                      int32_t* __restrict__ match,             // (B, P)
                      int64_t n_objects, int64_t n_priors, int chunks, T threshold) {
  SHARED_ARRAY(Box<T>, objects, kObjects);
  SHARED_ARRAY(T, areas, kObjects);
  SHARED_ARRAY(Candidate<T>, of_warps, kWarps * kObjects);

  const int64_t image = blockIdx.x / chunks;
  const int chunk = blockIdx.x % chunks;
  const int thread = threadIdx.x;
  const ImageObjects rows = objects_of(image, row_splits, n_objects);

  const int64_t stride = static_cast<int64_t>(chunks) * kThreads;
  for (int64_t first = chunk * kThreads; first < n_priors; first += stride) {
    const int64_t p = first + thread;
    const Box<T> prior = p < n_priors ? corners(load_row<Prior>(priors, p)) : Box<T>{0, 0, 0, 0};
    const T prior_area = area(prior);
    Candidate<T> best = {0, -1};  // of the objects, for this prior
    for (int64_t begin = 0; begin < rows.count; begin += kObjects) {
      const int count = static_cast<int>(rows.count - begin < kObjects ? rows.count - begin : kObjects);
      if (thread < count) {
        objects[thread] = load_box<T>(boxes, rows.begin + begin + thread);
        areas[thread] = area(objects[thread]);
      }
      __syncthreads();
      for (int j = 0; j < count; ++j) {
        Candidate<T> candidate = {iou(objects[j], areas[j], prior, prior_area), static_cast<int32_t>(p)};
        if (candidate.iou > best.iou) best = {candidate.iou, static_cast<int32_t>(begin + j)};
        // Most objects overlap none of 32 priors that lie side by side.
        if (__any_sync(kAllLanes, candidate.iou > 0)) candidate = best_of_warp(candidate);
        if (thread % kWarp == 0) of_warps[thread / kWarp * kObjects + j] = candidate;
      }
      __syncthreads();
      if (thread < count) {
        Candidate<T>& kept = candidates[(rows.begin + begin + thread) * chunks + chunk];
        Candidate<T> candidate = of_warps[thread];
        for (int warp = 1; warp < kWarps; ++warp) {
          const Candidate<T> other = of_warps[warp * kObjects + thread];
          if (outranks(other, candidate)) candidate = other;
        }
        if (first < stride || outranks(candidate, kept)) kept = candidate;
      }
    }
    if (p < n_priors) match[image * n_priors + p] = best.iou >= threshold ? best.index : -1;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    force_best_priors_kernel(const int32_t* __restrict__ row_splits,       // (B + 1,)
                             const Candidate<T>* __restrict__ candidates,  // (G, chunks)
                             int32_t* __restrict__ match,                  // (B, P)
                             int64_t n_objects, int64_t n_priors, int chunks) {
  SHARED_ARRAY(int32_t, forced, kThreads);  // the best prior of an object, -1 for none

  const int64_t image = blockIdx.x / chunks;
  const int thread = threadIdx.x;
  const ImageObjects rows = objects_of(image, row_splits, n_objects);

  const int64_t stride = static_cast<int64_t>(chunks) * kThreads;
  for (int64_t begin = 0; begin < rows.count; begin += kThreads) {
    const int count = static_cast<int>(rows.count - begin < kThreads ? rows.count - begin : kThreads);
    for (int j = thread / kWarp; j < count; j += kWarps) {
      const Candidate<T> best = best_of_chunks(candidates + (rows.begin + begin + j) * chunks, chunks);
      if (thread % kWarp == 0) forced[j] = best.iou > T(0) ? best.index : -1;
    }
    __syncthreads();
    for (int64_t p = blockIdx.x % chunks * kThreads + thread; p < n_priors; p += stride) {
      int owner = -1;
      for (int j = 0; j < count; ++j) {  // in rising order, so that the highest object wins
        if (forced[j] == p) owner = j;
      }
      if (owner >= 0) match[image * n_priors + p] = static_cast<int32_t>(begin + owner);
    }
    __syncthreads();
  }
}

// Repeatedly, the object of the best remaining pair takes its prior. If another object has meanwhile taken the
// candidate of an object, the candidate is replaced only when it is the best of all. This is early enough, because the
// next candidate of the object ranks lower.
template <typename Prior, typename scalar_t, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    take_best_pairs_kernel(const scalar_t* __restrict__ boxes,      // (G, 4) xyxy
                           const int32_t* __restrict__ row_splits,  // (B + 1,)
                           const scalar_t* __restrict__ priors,     // (P, 4)
                           Candidate<T>* __restrict__ candidates,   // (G, chunks)
                           int32_t* __restrict__ match,             // (B, P)
                           int64_t n_objects, int64_t n_priors, int chunks) {
  SHARED_ARRAY(Candidate<T>, of_warps, kWarps);

  const int thread = threadIdx.x;
  // The values of row_splits are not checked on a GPU. If they fall, images share objects, and two blocks would replace
  // the candidates of these objects at the same time. So no object takes a prior then.
  bool rising = true;
  for (int64_t i = thread; i < gridDim.x; i += kThreads) rising = rising && row_splits[i] <= row_splits[i + 1];
  if (!__syncthreads_and(rising)) return;

  const ImageObjects rows = objects_of(blockIdx.x, row_splits, n_objects);
  candidates += rows.begin * chunks;  // the first candidate of every object becomes its best one
  match += blockIdx.x * n_priors;

  for (int64_t object = thread / kWarp; object < rows.count; object += kWarps) {
    const Candidate<T> best = best_of_chunks(candidates + object * chunks, chunks);
    if (thread % kWarp == 0) candidates[object * chunks] = best;
  }
  __syncthreads();
  while (true) {
    Candidate<T> top = {0, 0};  // an object
    for (int64_t object = thread; object < rows.count; object += kThreads) {
      const Candidate<T> other = {candidates[object * chunks].iou, static_cast<int32_t>(object)};
      if (outranks(other, top)) top = other;
    }
    top = best_of_block(top, of_warps);
    if (!(top.iou > T(0))) break;

    Candidate<T>& candidate = candidates[static_cast<int64_t>(top.index) * chunks];
    int32_t& prior_match = match[candidate.index];
    if (__syncthreads_or(is_taken(prior_match))) {
      const Box<T> box = load_box<T>(boxes, rows.begin + top.index);
      const T box_area = area(box);
      Candidate<T> best = {0, 0};
      for (int64_t p = thread; p < n_priors; p += kThreads) {
        const Box<T> prior = corners(load_row<Prior>(priors, p));
        const Candidate<T> other = {iou(box, box_area, prior, area(prior)), static_cast<int32_t>(p)};
        if (outranks(other, best) && !is_taken(match[p])) best = other;
      }
      best = best_of_block(best, of_warps);
      if (thread == 0) candidate = best;
    } else if (thread == 0) {
      prior_match = taken_by(top.index);
      candidate.iou = 0;
    }
    __syncthreads();
  }
  for (int64_t p = thread; p < n_priors; p += kThreads) match[p] = without_mark(match[p]);
}

}  // namespace

template <typename Prior, typename scalar_t>
void launch_match_priors(const scalar_t* boxes, const int32_t* row_splits, const scalar_t* priors,
                         int32_t* match, int64_t n_images, int64_t n_objects, int64_t n_priors,
                         double threshold, bool bipartite, const Tensor& like, cudaStream_t stream) {
  using T = compute_t<scalar_t>;
  const auto chunks = static_cast<int>(std::min(kMaxChunks, ceil_div(n_priors, kThreads)));
  const Scratch<Candidate<T>> candidates(like, n_objects * chunks);
  launch(best_pairs_kernel<Prior, scalar_t, T>, n_images * chunks, kThreads, stream, boxes, row_splits, priors,
         candidates.data(), match, n_objects, n_priors, chunks, static_cast<T>(threshold));
  if (n_objects == 0) return;
  if (bipartite) {
    launch(take_best_pairs_kernel<Prior, scalar_t, T>, n_images, kThreads, stream, boxes, row_splits, priors,
           candidates.data(), match, n_objects, n_priors, chunks);
  } else {
    launch(force_best_priors_kernel<T>, n_images * chunks, kThreads, stream, row_splits, candidates.data(), match,
           n_objects, n_priors, chunks);
  }
}

template void launch_match_priors<Box<float>>(const float*, const int32_t*, const float*, int32_t*, int64_t, int64_t,
                                              int64_t, double, bool, const Tensor&, cudaStream_t);
template void launch_match_priors<Box<double>>(const double*, const int32_t*, const double*, int32_t*, int64_t, int64_t,
                                               int64_t, double, bool, const Tensor&, cudaStream_t);
template void launch_match_priors<CenterBox<float>>(const float*, const int32_t*, const float*, int32_t*, int64_t,
                                                    int64_t, int64_t, double, bool, const Tensor&, cudaStream_t);
template void launch_match_priors<CenterBox<double>>(const double*, const int32_t*, const double*, int32_t*, int64_t,
                                                     int64_t, int64_t, double, bool, const Tensor&, cudaStream_t);

namespace {

Tensor match_priors_cuda(const Tensor& boxes, const Tensor& row_splits, const Tensor& priors_xyxy,
                         double threshold, const std::string& mode) {
  const bool bipartite = check_match_arguments(boxes, row_splits, priors_xyxy, mode);

  const DeviceGuard guard(boxes.get_device_index());
  const int64_t n_images = row_splits.size(0) - 1;
  const int64_t n_objects = boxes.size(0);
  const int64_t n_priors = priors_xyxy.size(0);
  const Tensor match = torch::stable::new_empty(boxes, {n_images, n_priors}, ScalarType::Int);
  if (n_images == 0 || n_priors == 0) return match;

  const Tensor objects = as_contiguous(boxes);
  const Tensor splits = as_contiguous(row_splits);
  const Tensor priors = as_contiguous(priors_xyxy);
  const cudaStream_t stream = current_stream(boxes);
  dispatch_floating_dtype(boxes.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    launch_match_priors<Box<compute_t<scalar_t>>>(
        objects.const_data_ptr<scalar_t>(), splits.const_data_ptr<int32_t>(), priors.const_data_ptr<scalar_t>(),
        match.mutable_data_ptr<int32_t>(), n_images, n_objects, n_priors, threshold, bipartite, boxes, stream);
  });
  return match;
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CUDA, m) {
  m.impl("match_priors", TORCH_BOX(&ssd_ext::match_priors_cuda));
}
