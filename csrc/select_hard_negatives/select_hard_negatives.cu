// Hard negatives on the GPU: loss (B, P), positive (B, P) bool -> (B, P) bool.
//
// A block owns an image, a thread every blockDim.x-th prior. The threads turn the losses into keys (order.h; positives
// get 0) and select the largest by counting (block_ops.cuh). Keys stay in registers up to 9216 priors; with more
// priors, every pass reads the losses again, from the second-level cache. One launch; reads 5 bytes per prior (float)
// and writes 1.
#include "select_hard_negatives/select_hard_negatives.h"

#include "core/cuda/block_ops.cuh"
#include "core/cuda/launch.cuh"
#include "core/order.h"
#include "select_hard_negatives/select_hard_negatives.cuh"

#include <algorithm>

namespace ssd_ext {
namespace {

template <typename scalar_t, typename T, bool kInRegisters>
__global__ void __launch_bounds__(kMiningThreads, 1)
    select_hard_negatives_kernel(const scalar_t* __restrict__ loss,  // (B, P)
                                 const bool* __restrict__ positive,  // (B, P)
                                 bool* __restrict__ selected,        // (B, P)
                                 unsigned n_priors, double ratio, int64_t min_negatives) {
  SHARED_ARRAY(unsigned, shared_sums, BlockSums<3>::kShared);
  BlockSums<3> sums(shared_sums);
  const int64_t image = static_cast<int64_t>(blockIdx.x) * n_priors;
  const auto is_positive = [&](unsigned prior) { return positive[image + prior]; };
  const auto key_of = [&](unsigned prior) { return ordered_bits(static_cast<T>(loss[image + prior])); };
  const auto nothing = [](auto) {};
  select_hard_negatives_of_image<kInRegisters, bits_t<T>>(is_positive, key_of, n_priors, ratio, min_negatives, sums,
                                                          selected + image, nothing, nothing);
}

Tensor select_hard_negatives_cuda(const Tensor& loss, const Tensor& positive, double ratio, int64_t min_negatives) {
  check_losses(loss, positive);

  const DeviceGuard guard(loss.get_device_index());
  const int64_t n_images = loss.size(0);
  const int64_t n_priors = loss.size(1);
  const Tensor selected = torch::stable::new_empty(positive, {n_images, n_priors});
  if (n_images == 0 || n_priors == 0) return selected;

  const Tensor losses = as_contiguous(loss);
  const Tensor positives = as_contiguous(positive);
  const cudaStream_t stream = current_stream(loss);
  const bool in_registers = n_priors <= kMiningPriors;
  // Whole warps, as few as can hold all keys in registers.
  const int64_t warps = ceil_div(n_priors, kWarpSize * kMiningKeys);
  const auto threads = static_cast<unsigned>(std::min<int64_t>(kMiningThreads, warps * kWarpSize));
  dispatch_floating_dtype(loss.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    launch(in_registers ? select_hard_negatives_kernel<scalar_t, T, true>
                        : select_hard_negatives_kernel<scalar_t, T, false>,
           n_images, threads, stream, losses.const_data_ptr<scalar_t>(), positives.const_data_ptr<bool>(),
           selected.mutable_data_ptr<bool>(), static_cast<unsigned>(n_priors), ratio, min_negatives);
  });
  return selected;
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CUDA, m) {
  m.impl("select_hard_negatives", TORCH_BOX(&ssd_ext::select_hard_negatives_cuda));
}
