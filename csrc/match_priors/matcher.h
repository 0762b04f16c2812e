// Matching on the CPU, image by image, for the ops that need it.
#pragma once

#include "core/cpu/box_columns.h"

#include <cstdint>
#include <limits>
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

template <typename T>
class Matcher {
 public:
  // prior(p) gives prior p as a Box<T>.
  template <typename Prior>
  Matcher(const Prior& prior, int64_t n_priors, double threshold, bool bipartite)
      : n_priors_(n_priors),
        threshold_(static_cast<T>(threshold)),
        bipartite_(bipartite),
        tiles_((n_priors + kPriorTile - 1) / kPriorTile) {
    constexpr T kInf = std::numeric_limits<T>::infinity();
    for (PriorTile<T>& tile : tiles_) tile.bounds = {kInf, kInf, -kInf, -kInf};
    for (int64_t p = 0; p < n_priors; ++p) add(prior(p), p);
  }

  // The time that match_image takes on one thread.
  double nanoseconds(int64_t count) const { return 0.8 * static_cast<double>((count + 1) * n_priors_); }

  // The object of every prior (P,), -1 for background, given the objects of the image.
  void match_image(const Box<T>* boxes, int32_t count, int32_t* match) const;

 private:
  void add(const Box<T>& prior, int64_t p) {
    PriorTile<T>& tile = tiles_[p / kPriorTile];
    tile.priors.set(p % kPriorTile, prior);
    // A NaN fails every comparison; it may be left out, because a prior with a NaN overlaps nothing.
    if (prior.x0 < tile.bounds.x0) tile.bounds.x0 = prior.x0;
    if (prior.y0 < tile.bounds.y0) tile.bounds.y0 = prior.y0;
    if (prior.x1 > tile.bounds.x1) tile.bounds.x1 = prior.x1;
    if (prior.y1 > tile.bounds.y1) tile.bounds.y1 = prior.y1;
  }

  int64_t n_priors_;
  T threshold_;
  bool bipartite_;
  std::vector<PriorTile<T>> tiles_;
};

}  // namespace ssd_ext
