// Matching on the CPU: boxes (G, 4) of B images and priors (P, 4) xyxy -> (B, P), the object of every prior.
//
// 1. The priors are laid out once in tiles, with one array per coordinate.
// 2. A thread owns an image, or a run of its tiles if there are few images. It offers each object to each tile that
//    the object can overlap, in one vectorised loop over the priors. Each prior keeps its best object, and each object
//    keeps its best prior of the run.
// 3. Each object of an image forces its best prior to match it, or the objects take their priors one by one
//    (bipartite).
//
// There is no IoU matrix. Besides the output, memory is needed for the tiles and for one candidate per object and run.
#include "match_priors/match_priors.h"

#include "core/box_math.h"
#include "core/cpu/parallel.h"
#include "core/cpu/vector_clones.h"
#include "match_priors/matcher.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

namespace ssd_ext {
namespace {

constexpr int64_t kTile = kPriorTile;

// An integer as wide as T, because a loop over both then vectorises best. An IoU is never negative, so the bits of IoUs
// compare in the same order as the IoUs.
template <typename T>
using int_of_width = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <typename T>
inline int_of_width<T> as_int(T value) {
  int_of_width<T> bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// For the priors of a tile: the best of the objects that have been offered.
template <typename T>
struct TileMatch {
  T best[kTile];           // highest IoU so far
  int_of_width<T> owner[kTile];  // the first object that has it, -1 for none
  T iou[kTile];            // IoU with the object offered last
};

// The smallest value, or the largest one. A NaN fails every comparison; it may be left out, because a prior with a NaN
// overlaps nothing.
template <bool kLargest, typename T>
INLINE_IN_CLONES T extreme_of(const T* __restrict values) {  // (kTile,)
  constexpr int64_t kLanes = 16;  // a loop over lanes can be vectorised
  const auto beyond = [](T a, T b) { return kLargest ? a > b : a < b; };
  T extremes[kLanes];
  std::fill_n(extremes, kLanes, std::numeric_limits<T>::infinity() * (kLargest ? -1 : 1));
  for (int64_t k = 0; k < kTile; k += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      extremes[lane] = beyond(values[k + lane], extremes[lane]) ? values[k + lane] : extremes[lane];
    }
  }
  return *std::min_element(extremes, extremes + kLanes, beyond);
}

// Row: the form of the rows.
template <typename Row, typename T>
INLINE_IN_CLONES void lay_out_rows(const T* __restrict rows, PriorTile<T>& tile) {  // rows (kTile, 4)
  for (int64_t k = 0; k < kTile; ++k) tile.priors.set(k, corners(load_row<Row>(rows, k)));
  const auto& priors = tile.priors;
  tile.bounds = {extreme_of<false>(priors.x0), extreme_of<false>(priors.y0), extreme_of<true>(priors.x1),
                 extreme_of<true>(priors.y1)};
}

template <typename T>
INLINE_IN_CLONES void lay_out_any(const T* priors, bool cxcywh, PriorTile<T>& tile) {
  cxcywh ? lay_out_rows<CenterBox<T>>(priors, tile) : lay_out_rows<Box<T>>(priors, tile);
}

// False only if the object has IoU 0 with all priors of the tile.
template <typename T>
inline bool can_overlap(const Box<T>& box, const PriorTile<T>& tile) {
  return box.x0 < tile.bounds.x1 && box.x1 > tile.bounds.x0 && box.y0 < tile.bounds.y1 &&
         box.y1 > tile.bounds.y0;
}

// A prior takes this object if their IoU is > 0 and higher than the IoU of the prior with every object offered before.
// Returns the highest IoU of a prior with this object.
template <typename T>
INLINE_IN_CLONES T offer_to_tile(const Box<T>& box, int64_t object, const PriorTile<T>& tile, TileMatch<T>& match) {
  const Box<T> row = box;  // a copy: the compiler sees that `match` cannot change it
  const T row_area = area(row);
  const auto owner = static_cast<int_of_width<T>>(object);
  int_of_width<T> highest = 0;
  for (int64_t k = 0; k < kTile; ++k) {
    const T value = iou(row, row_area, tile.priors.box(k), tile.priors.areas[k]);
    const bool better = value > match.best[k];
    match.best[k] = better ? value : match.best[k];
    match.owner[k] = better ? owner : match.owner[k];
    match.iou[k] = value;
    highest = std::max(highest, as_int(value));
  }
  T result;
  std::memcpy(&result, &highest, sizeof result);
  return result;
}

VECTOR_CLONES float offer(const Box<float>& box, int64_t object, const PriorTile<float>& tile,
                          TileMatch<float>& match) {
  return offer_to_tile(box, object, tile, match);
}
VECTOR_CLONES double offer(const Box<double>& box, int64_t object, const PriorTile<double>& tile,
                           TileMatch<double>& match) {
  return offer_to_tile(box, object, tile, match);
}

template <typename T>
void clear(TileMatch<T>& match) {
  std::fill_n(match.best, kTile, T(0));
  std::fill_n(match.owner, kTile, int_of_width<T>(-1));
}

// For the tiles begin..end of one image: each prior takes its best object if the IoU reaches the threshold; each object
// gets its best prior in these tiles as its candidate.
template <typename T>
void match_run(const Box<T>* boxes, int32_t count,  // of the image
               const PriorTile<T>* tiles,           // all
               int64_t begin, int64_t end, int64_t n_priors, T threshold,
               Candidate<T>* candidates,  // (count,)
               int32_t* match) {          // (P,)
  std::fill_n(candidates, count, Candidate<T>{0, 0});
  TileMatch<T> tile_match;
  for (int64_t t = begin; t < end; ++t) {
    clear(tile_match);
    for (int32_t object = 0; object < count; ++object) {
      const Box<T>& box = boxes[object];
      if (!can_overlap(box, tiles[t])) continue;
      const T highest = offer(box, object, tiles[t], tile_match);
      if (highest > candidates[object].iou) {
        const T* const first = std::find(tile_match.iou, tile_match.iou + kTile, highest);
        candidates[object] = {highest, static_cast<int32_t>(t * kTile + (first - tile_match.iou))};
      }
    }
    const int64_t tile_priors = std::min(kTile, n_priors - t * kTile);
    for (int64_t k = 0; k < tile_priors; ++k) {
      const bool positive = tile_match.best[k] >= threshold;
      match[t * kTile + k] = positive ? static_cast<int32_t>(tile_match.owner[k]) : -1;
    }
  }
}

// The best prior of an object among the priors that are not taken.
template <typename T>
Candidate<T> best_free_prior(const Box<T>& box, const PriorTile<T>* tiles, int64_t n_priors, const int32_t* match) {
  Candidate<T> best = {0, 0};
  TileMatch<T> tile_match;
  clear(tile_match);
  for (int64_t t = 0; t * kTile < n_priors; ++t) {
    if (!can_overlap(box, tiles[t]) || !(offer(box, 0, tiles[t], tile_match) > best.iou)) continue;
    const int64_t tile_priors = std::min(kTile, n_priors - t * kTile);
    for (int64_t k = 0; k < tile_priors; ++k) {
      const int64_t p = t * kTile + k;
      if (tile_match.iou[k] > best.iou && !is_taken(match[p])) {
        best = {tile_match.iou[k], static_cast<int32_t>(p)};
      }
    }
  }
  return best;
}

// Each object whose best IoU is > 0 takes its best prior; of two objects that take the same prior, the object with the
// higher index wins.
template <typename T>
void force_best_priors(const Candidate<T>* candidates,  // (count,), the best prior of each object
                       int32_t count,
                       int32_t* match) {  // (P,)
  for (int32_t object = 0; object < count; ++object) {  // in rising order, so that the highest object wins
    if (candidates[object].iou > 0) match[candidates[object].index] = object;
  }
}

// For every object, the next object with the same box, or -1.
template <typename T>
std::vector<int32_t> next_alike(const Box<T>* boxes, int32_t count) {
  std::vector<int32_t> order(count), next(count, -1);
  std::iota(order.begin(), order.end(), 0);
  const auto compare = [&](int32_t a, int32_t b) { return std::memcmp(&boxes[a], &boxes[b], sizeof(Box<T>)); };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const int sign = compare(a, b);
    return sign ? sign < 0 : a < b;
  });
  for (int32_t i = 1; i < count; ++i) {
    if (compare(order[i - 1], order[i]) == 0) next[order[i - 1]] = order[i];
  }
  return next;
}

// Repeatedly, the object of the best remaining pair takes its prior. If another object has meanwhile taken the
// candidate of an object, the candidate is replaced only when the object comes to the top of the heap. This is early
// enough, because the next candidate of the object ranks lower. Of the objects with the same box, only the first one
// without a prior is in the heap, since it ranks highest. The others wait until it has a prior; otherwise each of them
// would search for a new prior whenever one of them takes a prior.
template <typename T>
void take_best_pairs(const Box<T>* boxes,  // (count,), of the image
                     const PriorTile<T>* tiles, int64_t n_priors,
                     Candidate<T>* candidates,  // (count,), the best prior of each object
                     int32_t count,
                     int32_t* match) {  // (P,)
  std::vector<Candidate<T>> heap;  // of objects, each with its best IoU; the best on top
  const auto below = [](const Candidate<T>& a, const Candidate<T>& b) { return outranks(b, a); };
  const auto push = [&](int32_t object) {
    if (!(candidates[object].iou > 0)) return;
    heap.push_back({candidates[object].iou, object});
    std::push_heap(heap.begin(), heap.end(), below);
  };
  const std::vector<int32_t> next = next_alike(boxes, count);
  std::vector<bool> waits(count, false);
  for (const int32_t object : next) {
    if (object >= 0) waits[object] = true;
  }
  for (int32_t object = 0; object < count; ++object) {
    if (!waits[object]) push(object);
  }
  while (!heap.empty()) {
    const int32_t object = heap.front().index;
    std::pop_heap(heap.begin(), heap.end(), below);
    heap.pop_back();
    int32_t& prior_match = match[candidates[object].index];
    if (!is_taken(prior_match)) {
      prior_match = taken_by(object);
      if (next[object] >= 0) push(next[object]);
    } else {
      candidates[object] = best_free_prior(boxes[object], tiles, n_priors, match);
      push(object);
    }
  }
  std::transform(match, match + n_priors, match, without_mark);
}

}  // namespace

VECTOR_CLONES void lay_out(const float* priors, bool cxcywh, PriorTile<float>& tile) {
  lay_out_any(priors, cxcywh, tile);
}
VECTOR_CLONES void lay_out(const double* priors, bool cxcywh, PriorTile<double>& tile) {
  lay_out_any(priors, cxcywh, tile);
}

template <typename T>
void Matcher<T>::match_image(const Box<T>* boxes, int32_t count, int32_t* match) const {
  // With few objects there is one run, and a run has at least one tile however many threads there are.
  const int64_t runs = std::max<int64_t>(1, std::min(n_tiles_, tasks_of(nanoseconds(count))));
  std::vector<Candidate<T>> candidates(runs * count);
  share_out(runs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      match_run(boxes, count, tiles_.get(), run * n_tiles_ / runs, (run + 1) * n_tiles_ / runs, n_priors_,
                threshold_, candidates.data() + run * count, match);
    }
  });
  Candidate<T>* const best = candidates.data();  // of the first run, then of all runs
  for (int64_t run = 1; run < runs; ++run) {
    for (int32_t object = 0; object < count; ++object) {
      const Candidate<T>& other = best[run * count + object];
      if (outranks(other, best[object])) best[object] = other;
    }
  }
  if (bipartite_) {
    take_best_pairs(boxes, tiles_.get(), n_priors_, best, count, match);
  } else {
    force_best_priors(best, count, match);
  }
}

template class Matcher<float>;
template class Matcher<double>;

namespace {

Tensor match_priors_cpu(const Tensor& boxes, const Tensor& row_splits, const Tensor& priors_xyxy,
                        double threshold, const std::string& mode) {
  const bool bipartite = check_match_arguments(boxes, row_splits, priors_xyxy, mode);

  const int64_t n_images = row_splits.size(0) - 1;
  const int64_t n_objects = boxes.size(0);
  const int64_t n_priors = priors_xyxy.size(0);
  const Tensor match = torch::stable::new_empty(boxes, {n_images, n_priors}, ScalarType::Int);
  if (n_images == 0 || n_priors == 0) return match;

  const Tensor objects = as_contiguous(boxes);
  const Tensor splits = as_contiguous(row_splits);
  const Tensor priors = as_contiguous(priors_xyxy);
  dispatch_floating_dtype(boxes.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = compute_t<scalar_t>;
    const std::vector<Box<T>> all_priors = load_boxes<T>(priors.const_data_ptr<scalar_t>(), n_priors);
    const Matcher<T> matcher(&all_priors[0].x0, false, n_priors, threshold, bipartite);
    const std::vector<Box<T>> all_boxes = load_boxes<T>(objects.const_data_ptr<scalar_t>(), n_objects);
    const auto* const splits_data = splits.const_data_ptr<int32_t>();
    auto* const match_data = match.mutable_data_ptr<int32_t>();
    parallel_over_images(n_images, n_images, matcher.nanoseconds(n_objects / n_images), [&](const auto& next_image) {
      for (int64_t image = next_image(); image < n_images; image = next_image()) {
        const ImageObjects rows = objects_of(image, splits_data, n_objects);
        matcher.match_image(all_boxes.data() + rows.begin, rows.count, match_data + image * n_priors);
      }
    });
  });
  return match;
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ext, m) {
  m.def(
      "match_priors(Tensor boxes, Tensor row_splits, Tensor priors_xyxy, float threshold, str mode) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CPU, m) {
  m.impl("match_priors", TORCH_BOX(&ssd_ext::match_priors_cpu));
}
