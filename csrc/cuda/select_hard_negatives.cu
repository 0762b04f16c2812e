// Hard negatives on the GPU: loss (B, P), positive (B, P) bool -> (B, P) bool.
//
// A block owns an image. Its threads turn the losses into keys (order.h; positives get 0), each thread every
// blockDim.x-th prior, and select the largest by counting (block_ops.cuh). Keys stay in registers up to 9216
// priors; for more priors every pass reads the losses again, from the second-level cache. One launch; reads
// 5 bytes per prior (float) and writes 1.
#include "checks.h"
#include "cuda/block_ops.cuh"
#include "cuda/launch.cuh"
#include "hard_negatives.h"
#include "order.h"

#include <algorithm>
#include <cstdint>

namespace ssd_ext {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kItems = 18;  // keys of a thread: 9216 in a block, so that the 8732 priors of SSD300 fit

template <typename scalar_t, typename T>
__device__ bits_t<T> key_of(const scalar_t* loss, const bool* positive, unsigned i) {
  return positive[i] ? 0 : ordered_bits(static_cast<T>(loss[i]));
}

template <typename scalar_t, typename T, bool kInRegisters>
__global__ void __launch_bounds__(kMaxThreads)
    select_hard_negatives_kernel(const scalar_t* __restrict__ loss,  // (B, P)
                                 const bool* __restrict__ positive,  // (B, P)
                                 bool* __restrict__ selected,        // (B, P)
                                 unsigned n_priors, double ratio, int64_t min_negatives) {
  using Bits = bits_t<T>;
  using Sums = BlockSums<3>;
  SHARED_ARRAY(unsigned, shared_sums, Sums::kShared);
  Sums sums(shared_sums);

  const int64_t image = static_cast<int64_t>(blockIdx.x) * n_priors;
  loss += image;
  positive += image;
  selected += image;

  Bits keys[kItems];
  if (kInRegisters) {
    for (int i = 0; i < kItems; ++i) {
      const unsigned prior = i * blockDim.x + threadIdx.x;
      keys[i] = prior < n_priors ? key_of<scalar_t, T>(loss, positive, prior) : 0;
    }
  }
  const auto for_each_key = [&](const auto& function) {
    if (kInRegisters) {
      for (int i = 0; i < kItems; ++i) function(keys[i], i * blockDim.x + threadIdx.x);
    } else {
      for (unsigned prior = threadIdx.x; prior < n_priors; prior += blockDim.x) {
        function(key_of<scalar_t, T>(loss, positive, prior), prior);
      }
    }
  };

  unsigned counts[3] = {};
  for_each_key([&](Bits key, unsigned) { counts[0] += key != 0; });
  sums.add(counts);
  const unsigned n_neg = counts[0];
  const auto k =
      static_cast<unsigned>(hard_negative_count(n_priors - n_neg, n_neg, ratio, min_negatives));
  Selection<Bits> hardest = {};
  if (k > 0) hardest = select_largest<Bits>(for_each_key, n_priors, n_neg, k, sums);
  for_each_key([&](Bits key, unsigned prior) {
    if (prior < n_priors) selected[prior] = k > 0 && hardest.contains(key, prior);
  });
}

Tensor select_hard_negatives_cuda(const Tensor& loss, const Tensor& positive, double ratio,
                                  int64_t min_negatives) {
  check_losses(loss, positive);

  const DeviceGuard guard(loss.get_device_index());
  const int64_t n_images = loss.size(0);
  const int64_t n_priors = loss.size(1);
  const Tensor selected = torch::stable::new_empty(positive, {n_images, n_priors});
  if (n_images == 0 || n_priors == 0) return selected;

  const Tensor losses = torch::stable::contiguous(loss);
  const Tensor positives = torch::stable::contiguous(positive);
  const cudaStream_t stream = current_stream(loss);
  const bool in_registers = n_priors <= kMaxThreads * kItems;
  // Whole warps, as few as hold all keys in their registers.
  const int64_t warps = ceil_div<int64_t>(n_priors, kWarpSize * kItems);
  const auto threads = static_cast<unsigned>(std::min<int64_t>(kMaxThreads, warps * kWarpSize));
  dispatch_floating_dtype(loss.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    launch(in_registers ? select_hard_negatives_kernel<scalar_t, T, true>
                        : select_hard_negatives_kernel<scalar_t, T, false>,
           dim3(static_cast<unsigned>(n_images)), dim3(threads), stream,
           static_cast<const scalar_t*>(losses.const_data_ptr()),
           static_cast<const bool*>(positives.const_data_ptr()),
           static_cast<bool*>(selected.mutable_data_ptr()), static_cast<unsigned>(n_priors), ratio,
           min_negatives);
  });
  return selected;
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CUDA, m) {
  m.impl("select_hard_negatives", TORCH_BOX(&ssd_ext::select_hard_negatives_cuda));
}
