// Detection on the CPU: pred_offsets (B, P, 4) and pred_logits (B, P, C) -> the best top_k boxes of each image
// after softmax or sigmoid, threshold and non-maximum suppression in each class.
//
// A thread owns an image, or all threads own the rows of one image if there are few images.
// 1. It lists the candidates, pairs of a prior and a class, as keys (postprocess_detections.h). It reads the logits
//    once, computes the softmax only for rows that may pass, and divides only if a score may pass.
// 2. It walks the candidates of all classes together, best first. A box is decoded, and kept if no kept box of its
//    class suppresses it, until top_k are kept. Only better boxes of its own class can suppress a box, so the result
//    equals suppression in every class followed by the cut to top_k. The next best candidates are selected and sorted
//    in bands: candidates that are never reached are never sorted.
//
// A list has room for all candidates that could pass. The number of images that are processed at once is limited, so
// that all lists together stay small.
#include "postprocess_detections/postprocess_detections.h"

#include "core/any_rows.h"
#include "core/cpu/kept_index.h"
#include "core/cpu/logit_tile.h"
#include "core/cpu/parallel.h"
#include "core/cpu/vector_clones.h"
#include "core/softmax.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

namespace ssd_ext {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kListBytes = 48 << 20;    // limit of all lists together; most of this memory is never touched
constexpr double kLogitNanoseconds = 0.7;   // for a trained network, where few rows pass the screen
constexpr double kScreenedNanoseconds = 5;  // for a logit of a row that passes
constexpr int64_t kFirstBand = 256;         // candidates; each further band is twice as large

// Lists the rows with a class whose logit is at least `least` above that of background; returns their number.
template <typename scalar_t>
INLINE_IN_CLONES int64_t screen_each(const scalar_t* logits,  // (n_rows, C)
                                     int64_t n_rows, int64_t n_classes, bool sigmoid, float least,
                                     int32_t* passing) {
  int64_t n_passing = 0;
  for (int64_t row = 0; row < n_rows; ++row, logits += n_classes) {
    const float background = sigmoid ? 0.0f : static_cast<float>(logits[0]);
    int32_t any = 0;
    for (int64_t c = 1; c < n_classes; ++c) any |= static_cast<float>(logits[c]) - background >= least;
    passing[n_passing] = static_cast<int32_t>(row);
    n_passing += any;
  }
  return n_passing;
}

VECTOR_CLONES int64_t screen(const float* logits, int64_t n_rows, int64_t n_classes, bool sigmoid, float least,
                             int32_t* passing) {
  return screen_each(logits, n_rows, n_classes, sigmoid, least, passing);
}
VECTOR_CLONES int64_t screen(const BFloat16* logits, int64_t n_rows, int64_t n_classes, bool sigmoid, float least,
                             int32_t* passing) {
  return screen_each(logits, n_rows, n_classes, sigmoid, least, passing);
}
VECTOR_CLONES int64_t screen(const Half* logits, int64_t n_rows, int64_t n_classes, bool sigmoid, float least,
                             int32_t* passing) {
  return screen_each(logits, n_rows, n_classes, sigmoid, least, passing);
}
int64_t screen(const double* logits, int64_t n_rows, int64_t n_classes, bool sigmoid, float least, int32_t* passing) {
  return screen_each(logits, n_rows, n_classes, sigmoid, least, passing);
}

// Lists the candidates of some priors of an image; returns the end of the list.
template <typename scalar_t>
uint64_t* list_candidates(const scalar_t* logits,  // (P, C)
                          int64_t n_priors, int64_t n_classes,
                          const int32_t* screened,  // (n_screened,), the priors
                          int64_t n_screened, float min_score,
                          uint64_t* list) {  // (n_screened * (C - 1),)
  const scalar_t* rows[kLogitRows];
  float sums[kLogitRows], largest[kLogitRows];
  int64_t passing[kLogitRows];
  const std::unique_ptr<float[]> tile(new float[n_classes * kLogitRows]);
  for (int64_t first = 0; first < n_screened; first += kLogitRows) {
    const int64_t n_rows = std::min(kLogitRows, n_screened - first);
    const int32_t* const priors = screened + first;
    for (int64_t row = 0; row < n_rows; ++row) rows[row] = logits + priors[row] * n_classes;
    load_tile(rows, n_rows, n_classes, tile.get());
    exponentiate_tile(tile.get(), n_classes, sums, largest);
    int64_t n_passing = 0;
    for (int64_t row = 0; row < n_rows; ++row) {
      if (score_may_exceed(largest[row], sums[row], min_score)) passing[n_passing++] = row;
    }
    for (int64_t c = 1; c < n_classes; ++c) {
      const float* const exponentials = tile.get() + c * kLogitRows;
      for (int64_t i = 0; i < n_passing; ++i) {
        const int64_t row = passing[i];
        if (!score_may_exceed(exponentials[row], sums[row], min_score)) continue;
        const float score = exponentials[row] / sums[row];
        if (score > min_score) *list++ = DetectionKey::pack(score, c - 1, priors[row], n_priors);
      }
    }
  }
  return list;
}

// As list_candidates, but the score of a class is the sigmoid of its logit.
template <typename scalar_t>
uint64_t* list_sigmoid_candidates(const scalar_t* logits,  // (P, C)
                                  int64_t n_priors, int64_t n_classes,
                                  const int32_t* screened,  // (n_screened,), the priors
                                  int64_t n_screened, float min_score, float least,
                                  uint64_t* list) {  // (n_screened * (C - 1),)
  for (const int32_t* prior = screened; prior < screened + n_screened; ++prior) {
    const scalar_t* const row = logits + *prior * n_classes;
    for (int64_t c = 1; c < n_classes; ++c) {
      const auto logit = static_cast<float>(row[c]);
      if (!(logit >= least)) continue;
      const float score = sigmoid(logit);
      if (score > min_score) *list++ = DetectionKey::pack(score, c - 1, *prior, n_priors);
    }
  }
  return list;
}

// Moves the n best keys to the front, in any order.
//
// If there are many keys, a pivot from a sample excludes most of them (as in the selection of Floyd and Rivest). If it
// leaves fewer than n, all keys are used.
void select_best(uint64_t* begin, uint64_t* end, int64_t n) {
  constexpr int64_t kStride = 61;  // has no common factor with the size of the tiles that the keys come from
  if (end - begin > kStride * n) {
    std::vector<uint64_t> sample;
    for (int64_t i = 0; i < end - begin; i += kStride) sample.push_back(begin[i]);
    const auto pivot = sample.begin() + 2 * n / kStride + 8;
    std::nth_element(sample.begin(), pivot, sample.end(), std::greater<>());
    uint64_t* const above = std::partition(begin, end, [&](uint64_t key) { return key >= *pivot; });
    if (above - begin >= n) end = above;
  }
  std::nth_element(begin, begin + n, end, std::greater<>());
}

// The data that all images share.
struct Detector {
  AnyRows pred_offsets;  // (B * P, 4)
  AnyRows priors;        // (P, 4) cxcywh
  int64_t n_priors, n_classes;
  const DetectionOptions& options;
  Detections out;

  // The candidates of an image, in any order, at the front of the list; returns their end.
  template <typename scalar_t>
  uint64_t* find_candidates(const scalar_t* logits,  // (P, C)
                            int32_t* screened,       // (P,), scratch
                            uint64_t* list) const {  // (P * (C - 1),)
    const float least = least_difference_to_background(options.min_score);
    const auto min_score = static_cast<float>(options.min_score);
    const int64_t n_screened = screen(logits, n_priors, n_classes, options.sigmoid, least, screened);
    // The screened rows are cut into runs, each with its own part of the list.
    const int64_t runs = std::min(n_screened, tasks_of(n_screened * n_classes * kScreenedNanoseconds));
    std::vector<int64_t> sizes(runs);
    const auto begin_of = [&](int64_t run) { return run * n_screened / runs; };
    const auto part_of = [&](int64_t run) { return list + begin_of(run) * (n_classes - 1); };
    share_out(runs, 1, [&](int64_t run, int64_t last_run) {
      for (; run < last_run; ++run) {
        const int32_t* const priors = screened + begin_of(run);
        const int64_t n = begin_of(run + 1) - begin_of(run);
        uint64_t* const part = part_of(run);
        uint64_t* const end =
            options.sigmoid
                ? list_sigmoid_candidates(logits, n_priors, n_classes, priors, n, min_score, least, part)
                : list_candidates(logits, n_priors, n_classes, priors, n, min_score, part);
        sizes[run] = end - part;
      }
    });
    uint64_t* end = list;
    for (int64_t run = 0; run < runs; ++run) end = std::copy_n(part_of(run), sizes[run], end);
    return end;
  }

  // Walks the candidates of an image best first and writes its detections.
  void walk(int64_t image, uint64_t* candidates, uint64_t* end,
            std::vector<KeptIndex<float>>& kept) const {  // scratch: one for each label (class - 1)
    for (KeptIndex<float>& of_label : kept) of_label.clear();
    std::vector<int64_t> walked(kept.size());  // number of candidates of each label
    const auto max_overlap = rounded_down<float>(options.max_overlap);
    const int64_t limit = options.pre_nms_top_k.value_or(std::numeric_limits<int64_t>::max());
    const int64_t first = image * options.top_k;
    const int64_t last = first + options.top_k;
    int64_t k = first;
    for (int64_t band = kFirstBand; candidates < end && k < last; band *= 2) {
      uint64_t* const band_end = candidates + std::min<int64_t>(band, end - candidates);
      if (band_end < end) select_best(candidates, end, band);
      std::sort(candidates, band_end, std::greater<>());
      for (; candidates < band_end && k < last; ++candidates) {
        const int64_t pair = DetectionKey::pair(*candidates);
        const int64_t label = pair / n_priors;
        if (walked[label]++ >= limit) continue;
        const int64_t prior = pair % n_priors;
        const Box<float> box = options.decoder(load_row<BoxOffsets<float>>(pred_offsets, image * n_priors + prior),
                                               load_row<CenterBox<float>>(priors, prior));
        if (kept[label].suppress(box, max_overlap)) continue;
        kept[label].push_back(box);
        out.boxes[k] = box;
        out.scores[k] = DetectionKey::score(*candidates);
        out.labels[k] = label + 1;
        ++k;
      }
    }
    std::fill(out.boxes + k, out.boxes + last, Box<float>{0, 0, 0, 0});
    std::fill(out.scores + k, out.scores + last, 0.0f);
    std::fill(out.labels + k, out.labels + last, 0);
    out.counts[image] = static_cast<int32_t>(k - first);
  }
};

DetectionOutputs postprocess_detections_cpu(const Tensor& pred_offsets, const Tensor& pred_logits,
                                            const Tensor& priors_cxcywh, const DetectionOptions& options) {
  const int64_t n_images = pred_logits.size(0);
  const int64_t n_priors = pred_logits.size(1);
  const int64_t n_classes = pred_logits.size(2);
  const DetectionOutputs outputs = new_detections(pred_logits, options.top_k);
  if (n_images == 0) return outputs;

  const Tensor all_logits = as_contiguous(pred_logits);
  const Tensor all_offsets = as_contiguous(pred_offsets);
  const Tensor all_priors = as_contiguous(priors_cxcywh);
  const Detector detector = {rows_of(all_offsets), rows_of(all_priors), n_priors,
                             n_classes,            options,             data_of(outputs)};
  const int64_t list_size = n_priors * (n_classes - 1);  // of an image
  const int64_t most_lists = std::max<int64_t>(1, kListBytes / (8 * std::max<int64_t>(1, list_size)));
  const double image_nanoseconds = static_cast<double>(n_priors * n_classes) * kLogitNanoseconds;
  dispatch_floating_dtype(pred_logits.scalar_type(), [&](auto zero) {
    const auto* const logits = all_logits.const_data_ptr<decltype(zero)>();
    parallel_over_images(n_images, most_lists, image_nanoseconds, [&](const auto& next_image) {
      const std::unique_ptr<uint64_t[]> list(new uint64_t[list_size]);
      const std::unique_ptr<int32_t[]> screened(new int32_t[n_priors]);
      std::vector<KeptIndex<float>> kept(n_classes - 1);
      for (int64_t image = next_image(); image < n_images; image = next_image()) {
        const auto* const image_logits = logits + image * n_priors * n_classes;
        uint64_t* const end = detector.find_candidates(image_logits, screened.get(), list.get());
        detector.walk(image, list.get(), end, kept);
      }
    });
  });
  return outputs;
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ext, m) {
  m.def(
      "postprocess_detections(Tensor pred_offsets, Tensor pred_logits, Tensor priors_cxcywh, float min_score, float"
      " max_overlap, int top_k, int? pre_nms_top_k, float center_variance, float size_variance, str score, bool "
      "clip, float? max_log_scale) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CPU, m) {
  m.impl("postprocess_detections", TORCH_BOX(&ssd_ext::boxed_detection<ssd_ext::postprocess_detections_cpu>));
}
