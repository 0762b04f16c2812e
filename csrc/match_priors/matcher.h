// Matching on the CPU, image by image, for the ops that need it.
#pragma once

#include "core/cpu/box_columns.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace ssd_ext {

// Converts boxes (N, 4) of any dtype and alignment to the compute type, aligned.
template <typename T, typename scalar_t>
std::vector<Box<T>> load_boxes(const scalar_t* boxes, int64_t n) {
  std::vector<Box<T>> loaded(n);
  for (int64_t i = 0; i < n; ++i) loaded[i] = load_box<T>(boxes, i);
  return loaded;
}

constexpr int64_t kPriorTile = 64;  // few priors, so that they lie close together and many objects overlap none of them

// Behind the last prior a tile has boxes of zeros, which match nothing.
template <typename T>
struct PriorTile {
  Box<T> bounds;  // no prior of the tile overlaps a box outside of it
  BoxColumns<T, kPriorTile> priors;
};

// Fills a tile with kPriorTile priors, (kPriorTile, 4) xyxy or cxcywh.
void lay_out(const float* priors, bool cxcywh, PriorTile<float>& tile);
void lay_out(const double* priors, bool cxcywh, PriorTile<double>& tile);

template <typename T>
class Matcher {
 public:
  // priors: (P, 4) xyxy or cxcywh.
  Matcher(const T* priors, bool cxcywh, int64_t n_priors, double threshold, bool bipartite)
      : n_priors_(n_priors),
        threshold_(static_cast<T>(threshold)),
        bipartite_(bipartite),
        n_tiles_((n_priors + kPriorTile - 1) / kPriorTile),
        tiles_(new PriorTile<T>[n_tiles_]) {
    const int64_t n_full = n_priors / kPriorTile;
    for (int64_t t = 0; t < n_full; ++t) lay_out(priors + t * kPriorTile * 4, cxcywh, tiles_[t]);
    if (n_full == n_tiles_) return;
    T last[kPriorTile * 4] = {};
    std::copy(priors + n_full * kPriorTile * 4, priors + n_priors * 4, last);
    lay_out(last, cxcywh, tiles_[n_full]);
  }

  // The time that match_image takes on one thread.
  double nanoseconds(int64_t count) const { return 0.8 * static_cast<double>((count + 1) * n_priors_); }

  // The object of every prior (P,), -1 for background, given the objects of the image.
  void match_image(const Box<T>* boxes, int32_t count, int32_t* match) const;

 private:
  int64_t n_priors_;
  T threshold_;
  bool bipartite_;
  int64_t n_tiles_;
  std::unique_ptr<PriorTile<T>[]> tiles_;
};

}  // namespace ssd_ext
