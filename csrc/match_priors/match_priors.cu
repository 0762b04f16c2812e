// Matching on the GPU: boxes (G, 4) of B images and priors (P, 4) -> (B, P), the object of every prior.
//
// 1. best_pairs_kernel: a warp owns 32 neighbouring priors of an image at a time. Each prior takes its best object, and
//    each object gets its best prior of the warp as a candidate (match_priors.cuh).
// 2. force_best_priors_kernel: a block owns an image. A warp reduces the candidates of an object to its best prior,
//    which then matches the object. For bipartite matching, take_best_pairs_kernel replaces this kernel; again a block
//    owns an image.
//
// There is no IoU matrix and no atomic operation. Writes 4 bytes for each prior of each image, and 8 bytes (double: 16)
// for each object and column of candidates, of which there is one for each warp of an image. Reads 4 numbers for each
// prior of each image, the objects of an image once for each warp, and each candidate once.
#include "match_priors/match_priors.h"

#include "core/box_math.h"
#include "core/cuda/block_ops.cuh"
#include "core/cuda/launch.cuh"
#include "core/cuda/scratch.cuh"
#include "match_priors/match_priors.cuh"

#include <algorithm>

namespace ssd_ext {
namespace {

constexpr int kWarp = kWarpSize;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Maximum number of blocks for an image. More are not needed to fill a GPU, and each adds 8 candidates per object.
constexpr int64_t kMaxBlocks = 128;

// The best of the candidates of a block, returned in all threads. `of_warps` may be used again after the next barrier.
template <typename T>
__device__ Candidate<T> best_of_block(const Candidate<T>& own, Candidate<T>* of_warps) {  // (kWarps,), shared
  const Candidate<T> best = best_of_warp(own);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = best;
  __syncthreads();
  return best_of_warp(of_warps[threadIdx.x % kWarps]);
}

template <typename scalar_t, typename T>
__global__ void __launch_bounds__(kThreads)
    best_pairs_kernel(const scalar_t* __restrict__ boxes,      // (G, 4) xyxy
                      const int32_t* __restrict__ row_splits,  // (B + 1,)
                      const scalar_t* __restrict__ priors,     // (P, 4) xyxy
                      Candidate<T>* __restrict__ candidates,   // (G, columns)
                      int32_t* __restrict__ match,             // (B, P)
                      int64_t n_objects, int64_t n_priors, int columns, T threshold) {
  const int blocks = columns / kWarps;  // of an image
  const int64_t image = blockIdx.x / blocks;
  const int block = blockIdx.x % blocks;
  const int column = block * kWarps + threadIdx.x / kWarp;
  const ImageObjects rows = objects_of(image, row_splits, n_objects);
  bool first = true;
  for (int64_t begin = int64_t(block) * kThreads; begin < n_priors; begin += int64_t(blocks) * kThreads) {
    const int64_t p = begin + threadIdx.x;
    const Box<T> prior = p < n_priors ? load_box<T>(priors, p) : Box<T>{0, 0, 0, 0};
    const int32_t object = match_warp(prior, p, boxes, rows, candidates, column, columns, first, threshold);
    if (p < n_priors) match[image * n_priors + p] = object;
    first = false;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    force_best_priors_kernel(const int32_t* __restrict__ row_splits,       // (B + 1,)
                             const Candidate<T>* __restrict__ candidates,  // (G, columns)
                             int32_t* __restrict__ match,                  // (B, P)
                             int64_t n_objects, int64_t n_priors, int columns) {
  SHARED_ARRAY(int32_t, forced, kThreads);
  force_best_priors<kThreads>(candidates, columns, objects_of(blockIdx.x, row_splits, n_objects),
                              match + blockIdx.x * n_priors, forced);
}

// Repeatedly, the object of the best remaining pair takes its prior. If another object has meanwhile taken the
// candidate of an object, the candidate is replaced only when it is the best of all. This is early enough, because the
// next candidate of the object ranks lower.
// Prior: the form of the priors, Box or CenterBox.
template <typename Prior, typename scalar_t, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    take_best_pairs_kernel(const scalar_t* __restrict__ boxes,      // (G, 4) xyxy
                           const int32_t* __restrict__ row_splits,  // (B + 1,)
                           const scalar_t* __restrict__ priors,     // (P, 4)
                           Candidate<T>* __restrict__ candidates,   // (G, columns)
                           int32_t* __restrict__ match,             // (B, P)
                           int64_t n_objects, int64_t n_priors, int columns) {
  SHARED_ARRAY(Candidate<T>, of_warps, kWarps);

  const int thread = threadIdx.x;
  // The values of row_splits are not checked on a GPU. If they fall, images share objects, and two blocks would replace
  // the candidates of these objects at the same time. So no object takes a prior then.
  bool rising = true;
  for (int64_t i = thread; i < gridDim.x; i += kThreads) rising = rising && row_splits[i] <= row_splits[i + 1];
  if (!__syncthreads_and(rising)) return;

  const ImageObjects rows = objects_of(blockIdx.x, row_splits, n_objects);
  candidates += rows.begin * columns;  // the first candidate of every object becomes its best one
  match += blockIdx.x * n_priors;

  for (int64_t object = thread / kWarp; object < rows.count; object += kWarps) {
    const Candidate<T> best = best_of_columns(candidates + object * columns, columns);
    if (thread % kWarp == 0) candidates[object * columns] = best;
  }
  __syncthreads();
  while (true) {
    Candidate<T> top = {0, 0};  // an object
    for (int64_t object = thread; object < rows.count; object += kThreads) {
      const Candidate<T> other = {candidates[object * columns].iou, static_cast<int32_t>(object)};
      if (outranks(other, top)) top = other;
    }
    top = best_of_block(top, of_warps);
    if (!(top.iou > T(0))) break;

    Candidate<T>& candidate = candidates[static_cast<int64_t>(top.index) * columns];
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

template <typename Prior, typename scalar_t, typename T>
void launch_take_best_pairs(const scalar_t* boxes, const int32_t* row_splits, const scalar_t* priors,
                            Candidate<T>* candidates, int32_t* match, int64_t n_images, int64_t n_objects,
                            int64_t n_priors, int columns, cudaStream_t stream) {
  launch(take_best_pairs_kernel<Prior, scalar_t, T>, n_images, kThreads, stream, boxes, row_splits, priors, candidates,
         match, n_objects, n_priors, columns);
}

template void launch_take_best_pairs<Box<float>>(const float*, const int32_t*, const float*, Candidate<float>*,
                                                 int32_t*, int64_t, int64_t, int64_t, int, cudaStream_t);
template void launch_take_best_pairs<Box<double>>(const double*, const int32_t*, const double*, Candidate<double>*,
                                                  int32_t*, int64_t, int64_t, int64_t, int, cudaStream_t);
template void launch_take_best_pairs<CenterBox<float>>(const float*, const int32_t*, const float*, Candidate<float>*,
                                                       int32_t*, int64_t, int64_t, int64_t, int, cudaStream_t);
template void launch_take_best_pairs<CenterBox<double>>(const double*, const int32_t*, const double*,
                                                        Candidate<double>*, int32_t*, int64_t, int64_t, int64_t, int,
                                                        cudaStream_t);

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
    using T = compute_t<scalar_t>;
    const auto* const box_data = objects.const_data_ptr<scalar_t>();
    const auto* const split_data = splits.const_data_ptr<int32_t>();
    const auto* const prior_data = priors.const_data_ptr<scalar_t>();
    auto* const match_data = match.mutable_data_ptr<int32_t>();
    const int64_t blocks = std::min(kMaxBlocks, ceil_div(n_priors, kThreads));  // of an image
    const auto columns = static_cast<int>(blocks * kWarps);
    const Scratch<Candidate<T>> candidates(boxes, n_objects * columns);
    launch(best_pairs_kernel<scalar_t, T>, n_images * blocks, kThreads, stream, box_data, split_data,
           prior_data, candidates.data(), match_data, n_objects, n_priors, columns, static_cast<T>(threshold));
    if (n_objects == 0) return;
    if (bipartite) {
      launch_take_best_pairs<Box<T>>(box_data, split_data, prior_data, candidates.data(), match_data, n_images,
                                     n_objects, n_priors, columns, stream);
    } else {
      launch(force_best_priors_kernel<T>, n_images, kThreads, stream, split_data, candidates.data(), match_data,
             n_objects, n_priors, columns);
    }
  });
  return match;
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CUDA, m) {
  m.impl("match_priors", TORCH_BOX(&ssd_ext::match_priors_cuda));
}
