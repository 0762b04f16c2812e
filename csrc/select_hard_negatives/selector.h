// Selects hard negatives on the CPU, image by image, for the ops that need them.
#pragma once

#include "core/order.h"

#include <cstdint>
#include <memory>

namespace ssd_ext {

// T: the compute type of the losses.
template <typename T>
class HardNegativeSelector {
 public:
  HardNegativeSelector(int64_t n_priors, double ratio, int64_t min_negatives)
      : n_priors_(n_priors), ratio_(ratio), min_negatives_(min_negatives), keys_(new bits_t<T>[n_priors]) {}

  // Selects the hard negatives of an image; returns the number of its positives. Other files may call it with losses of
  // float or double, and int32_t as positive_t.
  template <typename scalar_t, typename positive_t>
  int64_t select(const scalar_t* loss,        // (P,)
                 const positive_t* positive,  // (P,) bool, or int32_t matches: >= 0 for a positive
                 bool* selected);             // (P,)

 private:
  int64_t n_priors_;
  double ratio_;
  int64_t min_negatives_;
  std::unique_ptr<bits_t<T>[]> keys_;
};

}  // namespace ssd_ext
