// Detection on the CPU: pred_offsets (B, P, 4) and pred_logits (B, P, C) -> the best top_k boxes of each image
// after softmax, threshold and non-maximum suppression in each class.
//
// A thread owns an image, or all threads own the rows of one where images are few.
// 1. It lists the candidates, priors with a class, as keys (detection.h). It reads the logits once, computes the
//    softmax of rows that may pass and divides where a score may pass.
// 2. It walks the candidates best first over all classes together: a box is decoded and kept if no kept box of
//    its class suppresses it, until top_k are kept. Only better boxes of its class decide over a box, so this
//    equals suppression in every class followed by the cut. The next best candidates are selected and sorted in
//    bands: what is never reached is never sorted.
//
// A list has room for all that could pass; only so many images are at work that all lists stay small.
#include "core/any_rows.h"
#include "core/box_math.h"
#include "core/checks.h"
#include "core/cpu/kept_boxes.h"
#include "core/cpu/logit_tile.h"
#include "core/cpu/parallel.h"
#include "core/cpu/vector_clones.h"
#include "postprocess_detections/postprocess_detections.h"
#include "core/softmax.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

namespace ssd_ext {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kListBytes = 48 << 20;     // of all lists together; most of it is never touched
constexpr double kLogitNanoseconds = 0.7;     // of a trained network, where few rows pass the screen
constexpr double kScreenedNanoseconds = 5;    // of a logit of these
constexpr int64_t kFirstBand = 256;          // candidates; each further band is twice as large

// The rows with a class whose logit minus that of background is at least `least`; returns their number.
template <typename scalar_t>
INLINE_IN_CLONES int64_t screen_each(const scalar_t* logits,  // (n_rows, C)
                                     int64_t n_rows, int64_t n_classes, float least, int32_t* passing) {
  int64_t n_passing = 0;
  for (int64_t row = 0; row < n_rows; ++row, logits += n_classes) {
    const auto background = static_cast<float>(logits[0]);
    int32_t any = 0;
    for (int64_t c = 1; c < n_classes; ++c) any |= static_cast<float>(logits[c]) - background >= least;
    passing[n_passing] = static_cast<int32_t>(row);
    n_passing += any;
  }
  return n_passing;
}

// Instruction sets are chosen per function, which a template cannot be.
VECTOR_CLONES int64_t screen(const float* logits, int64_t n_rows, int64_t n_classes, float least,
                             int32_t* passing) {
  return screen_each(logits, n_rows, n_classes, least, passing);
}
VECTOR_CLONES int64_t screen(const BFloat16* logits, int64_t n_rows, int64_t n_classes, float least,
                             int32_t* passing) {
  return screen_each(logits, n_rows, n_classes, least, passing);
}
VECTOR_CLONES int64_t screen(const Half* logits, int64_t n_rows, int64_t n_classes, float least,
                             int32_t* passing) {
  return screen_each(logits, n_rows, n_classes, least, passing);
}
int64_t screen(const double* logits, int64_t n_rows, int64_t n_classes, float least, int32_t* passing) {
  return screen_each(logits, n_rows, n_classes, least, passing);
}

// Lists the candidates of some priors of an image; returns the end of the list.
template <typename scalar_t>
uint64_t* list_candidates(const scalar_t* logits,  // (P, C)
                          int64_t n_priors, int64_t n_classes,
                          const int32_t* screened,  // (n_screened,), the priors
                          int64_t n_screened, float min_score,
                          float* tile,       // (C, kTileRows), scratch
                          uint64_t* list) {  // (n_screened * (C - 1),)
  const scalar_t* rows[kTileRows];
  float sums[kTileRows], largest[kTileRows];
  int64_t passing[kTileRows];
  for (int64_t first = 0; first < n_screened; first += kTileRows) {
    const int64_t n_rows = std::min(kTileRows, n_screened - first);
    const int32_t* const priors = screened + first;
    for (int64_t row = 0; row < n_rows; ++row) rows[row] = logits + priors[row] * n_classes;
    load_tile(rows, n_rows, n_classes, tile);
    exponentiate_tile(tile, n_classes, sums, largest);
    int64_t n_passing = 0;
    for (int64_t row = 0; row < n_rows; ++row) {
      if (score_may_exceed(largest[row], sums[row], min_score)) passing[n_passing++] = row;
    }
    for (int64_t c = 1; c < n_classes; ++c) {
      const float* const exponentials = tile + c * kTileRows;
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

// Moves the n best keys to the front, in any order.
//
// Of many keys a pivot from a sample leaves few (as in the selection of Floyd and Rivest). It may leave too
// few; then all are looked at after all.
void select_best(uint64_t* begin, uint64_t* end, int64_t n) {
  constexpr int64_t kStride = 61;  // shares no factor with the tiles that the keys come from
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

// What all images have in common.
struct Detector {
  AnyRows pred_offsets;  // (B * P, 4)
  AnyRows priors;        // (P, 4) cxcywh
  Variances<float> variances;
  int64_t n_priors, n_labels;  // labels: classes without background
  float max_overlap;
  int64_t top_k, pre_nms_top_k;

  // Walks the candidates of an image best first; returns the number of boxes that it kept.
  int64_t walk(int64_t image, uint64_t* candidates, uint64_t* end,
               std::vector<KeptBoxes<float>>& kept,  // of each label, scratch
               Box<float>* boxes,                    // (top_k,)
               float* scores, int64_t* labels) const {  // (top_k,)
    for (KeptBoxes<float>& of_label : kept) of_label.clear();
    std::vector<int64_t> walked(n_labels);  // candidates of each label
    int64_t n_kept = 0;
    for (int64_t band = kFirstBand; candidates < end && n_kept < top_k; band *= 2) {
      uint64_t* const band_end = candidates + std::min<int64_t>(band, end - candidates);
      if (band_end < end) select_best(candidates, end, band);
      std::sort(candidates, band_end, std::greater<>());
      for (; candidates < band_end && n_kept < top_k; ++candidates) {
        const int64_t place = DetectionKey::place(*candidates);
        const int64_t label = place / n_priors;
        if (walked[label]++ >= pre_nms_top_k) continue;
        const int64_t prior = place % n_priors;
        const Box<float> box = decode(load_row<BoxOffsets<float>>(pred_offsets, image * n_priors + prior),
                                      load_row<CenterBox<float>>(priors, prior), variances,
                                      std::numeric_limits<float>::infinity());
        if (kept[label].suppress(box, max_overlap)) continue;
        kept[label].push_back(box);
        boxes[n_kept] = box;
        scores[n_kept] = DetectionKey::score(*candidates);
        labels[n_kept] = label + 1;
        ++n_kept;
      }
    }
    return n_kept;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> postprocess_detections_cpu(
    const Tensor& pred_offsets, const Tensor& pred_logits, const Tensor& priors_cxcywh, double min_score,
    double max_overlap, int64_t top_k, std::optional<int64_t> pre_nms_top_k, double center_variance,
    double size_variance) {
  check_detection_arguments(pred_offsets, pred_logits, priors_cxcywh, top_k, pre_nms_top_k);

  const int64_t n_images = pred_logits.size(0);
  const int64_t n_priors = pred_logits.size(1);
  const int64_t n_classes = pred_logits.size(2);
  const Tensor boxes = torch::stable::new_empty(pred_logits, {n_images, top_k, 4}, ScalarType::Float);
  const Tensor scores = torch::stable::new_empty(pred_logits, {n_images, top_k}, ScalarType::Float);
  const Tensor labels = torch::stable::new_empty(pred_logits, {n_images, top_k}, ScalarType::Long);
  const Tensor counts = torch::stable::new_empty(pred_logits, {n_images}, ScalarType::Int);
  if (n_images == 0) return {boxes, scores, labels, counts};

  const Tensor all_logits = torch::stable::contiguous(pred_logits);
  const Tensor all_offsets = torch::stable::contiguous(pred_offsets);
  const Tensor priors = torch::stable::contiguous(priors_cxcywh);
  const Detector detector = {rows_of(all_offsets),
                             rows_of(priors),
                             {static_cast<float>(center_variance), static_cast<float>(size_variance)},
                             n_priors,
                             n_classes - 1,
                             static_cast<float>(max_overlap),
                             top_k,
                             pre_nms_top_k.value_or(std::numeric_limits<int64_t>::max())};
  auto* const boxes_data = static_cast<Box<float>*>(boxes.mutable_data_ptr());
  auto* const scores_data = static_cast<float*>(scores.mutable_data_ptr());
  auto* const labels_data = static_cast<int64_t*>(labels.mutable_data_ptr());
  auto* const counts_data = static_cast<int32_t*>(counts.mutable_data_ptr());

  const int64_t list_size = n_priors * (n_classes - 1);  // of an image
  const int64_t most_lists = std::max<int64_t>(1, kListBytes / (8 * std::max<int64_t>(1, list_size)));
  const double image_nanoseconds = static_cast<double>(n_priors * n_classes) * kLogitNanoseconds;
  const float least = least_difference_to_background(min_score);
  dispatch_floating_dtype(pred_logits.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto* const logits = static_cast<const scalar_t*>(all_logits.const_data_ptr());
    parallel_over_images(n_images, most_lists, image_nanoseconds, [&](const auto& next_image) {
      const std::unique_ptr<uint64_t[]> list(new uint64_t[list_size]);
      const std::unique_ptr<int32_t[]> screened(new int32_t[n_priors]);
      std::vector<KeptBoxes<float>> kept(n_classes - 1);
      for (int64_t image = next_image(); image < n_images; image = next_image()) {
        const scalar_t* const image_logits = logits + image * n_priors * n_classes;
        const int64_t n_screened = screen(image_logits, n_priors, n_classes, least, screened.get());
        // Runs of the screened rows, each with its own part of the list.
        const int64_t runs = std::min(n_screened, tasks_of(n_screened * n_classes * kScreenedNanoseconds));
        std::vector<int64_t> sizes(runs);
        const auto begin_of = [&](int64_t run) { return run * n_screened / runs; };
        const auto part_of = [&](int64_t run) { return list.get() + begin_of(run) * (n_classes - 1); };
        torch::stable::parallel_for(0, runs, 1, [&](int64_t run, int64_t last_run) {
          const std::unique_ptr<float[]> tile(new float[n_classes * kTileRows]);
          for (; run < last_run; ++run) {
            const int64_t begin = begin_of(run);
            sizes[run] = list_candidates(image_logits, n_priors, n_classes, screened.get() + begin,
                                         begin_of(run + 1) - begin, static_cast<float>(min_score), tile.get(),
                                         part_of(run)) -
                         part_of(run);
          }
        });
        uint64_t* list_end = list.get();
        for (int64_t run = 0; run < runs; ++run) list_end = std::copy_n(part_of(run), sizes[run], list_end);
        const int64_t out = image * top_k;
        const int64_t n_kept = detector.walk(image, list.get(), list_end, kept, boxes_data + out,
                                             scores_data + out, labels_data + out);
        std::fill(boxes_data + out + n_kept, boxes_data + out + top_k, Box<float>{0, 0, 0, 0});
        std::fill(scores_data + out + n_kept, scores_data + out + top_k, 0.0f);
        std::fill(labels_data + out + n_kept, labels_data + out + top_k, 0);
        counts_data[image] = static_cast<int32_t>(n_kept);
      }
    });
  });
  return {boxes, scores, labels, counts};
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CPU, m) {
  m.impl("postprocess_detections", TORCH_BOX(&ssd_ext::postprocess_detections_cpu));
}
