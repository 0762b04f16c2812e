// Greedy non-maximum suppression on the CPU: boxes (N, 4) xyxy, scores (N,), idxs (N,) -> (K,) int64.
//
// A radix sort ranks the boxes by score, and a second, stable one groups the ranks by idxs. Within its group a box is
// kept if no box kept so far suppresses it. Of many kept boxes, only those near to the box are tested
// (core/cpu/kept_index.h); they lie in blocks with one array per coordinate, and the test against a block is one loop
// that the compiler vectorises. A thread owns whole groups; a group with most of the boxes is shared by all threads.
// Memory is linear in N.
#include "nms/nms.h"

#include "core/box_math.h"
#include "core/cpu/kept_index.h"
#include "core/cpu/parallel.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

namespace ssd_ext {
namespace {

// ---------------------------------------------------------------------------------------------------- sorting

template <typename Key>
struct Entry {
  Key key;
  uint32_t value;
};

// Stable, ascending by key: one pass per byte, but none for a byte that is equal in all keys.
template <typename Key>
void radix_sort(std::vector<Entry<Key>>& entries) {
  constexpr int kBytes = sizeof(Key);
  const auto digit = [](Key key, int byte) { return static_cast<uint8_t>(key >> (8 * byte)); };
  uint32_t starts[kBytes][256] = {};
  for (const Entry<Key>& entry : entries) {
    for (int byte = 0; byte < kBytes; ++byte) ++starts[byte][digit(entry.key, byte)];
  }
  std::vector<Entry<Key>> sorted(entries.size());
  for (int byte = 0; byte < kBytes; ++byte) {
    uint32_t* const start = starts[byte];
    if (entries.empty() || start[digit(entries[0].key, byte)] == entries.size()) continue;
    uint32_t sum = 0;
    for (int i = 0; i < 256; ++i) sum += std::exchange(start[i], sum);
    for (const Entry<Key>& entry : entries) sorted[start[digit(entry.key, byte)]++] = entry;
    entries.swap(sorted);
  }
}

// The boxes by descending score, ties by index.
template <typename scalar_t>
std::vector<uint32_t> rank_by_score(const scalar_t* scores, int64_t n) {
  using T = compute_t<scalar_t>;
  std::vector<Entry<bits_t<T>>> entries(n);
  for (int64_t i = 0; i < n; ++i) {
    entries[i] = {descending_bits(static_cast<T>(scores[i])), static_cast<uint32_t>(i)};
  }
  radix_sort(entries);
  std::vector<uint32_t> ranked(n);
  for (int64_t rank = 0; rank < n; ++rank) ranked[rank] = entries[rank].value;
  return ranked;
}

// The ranks of all boxes, group after group, and where each group begins. The last entry of `begins` is the end of the
// last group.
struct Groups {
  std::vector<uint32_t> ranks;
  std::vector<int64_t> begins;
};

Groups one_group(int64_t n) {
  Groups groups = {std::vector<uint32_t>(n), {0, n}};
  for (int64_t rank = 0; rank < n; ++rank) groups.ranks[rank] = static_cast<uint32_t>(rank);
  return groups;
}

template <typename id_t>
Groups group_by_id(const id_t* ids, const std::vector<uint32_t>& ranked) {
  const auto n = static_cast<int64_t>(ranked.size());
  // Ids relative to the lowest one, so that ids in a narrow range differ in few bytes only.
  const auto least = static_cast<uint64_t>(*std::min_element(ids, ids + n));
  std::vector<Entry<uint64_t>> entries(n);
  for (int64_t rank = 0; rank < n; ++rank) {
    entries[rank] = {static_cast<uint64_t>(ids[ranked[rank]]) - least, static_cast<uint32_t>(rank)};
  }
  radix_sort(entries);
  Groups groups = {std::vector<uint32_t>(n), {}};
  for (int64_t i = 0; i < n; ++i) {
    groups.ranks[i] = entries[i].value;
    if (i == 0 || entries[i].key != entries[i - 1].key) groups.begins.push_back(i);
  }
  groups.begins.push_back(n);
  return groups;
}

// ------------------------------------------------------------------------------------------------ suppression

constexpr int64_t kFirstChunk = 2048;
constexpr int64_t kLargestChunk = 16384;  // boxes that are tested against each other stay in the L2 cache
constexpr int64_t kSharedIfKept = 4;      // one in so many boxes
constexpr double kBoxNanoseconds = 60;    // for a box in a group of a few hundred boxes
constexpr double kFoundNanoseconds = 150;  // for a box in a group of many boxes

// Sets is_kept[rank] for the kept boxes among the `count` ranks of one group.
template <typename scalar_t, typename T>
void suppress_group(const scalar_t* boxes,                // (N, 4) xyxy
                    const uint32_t* ranked,               // (N,) boxes by rank
                    const uint32_t* ranks, int64_t count,  // of this group, rising
                    T threshold, KeptIndex<T>& kept, bool* is_kept) {
  kept.clear();
  for (int64_t i = 0; i < count; ++i) {
    const Box<T> box = load_box<T>(boxes, ranked[ranks[i]]);
    if (kept.suppress(box, threshold)) continue;
    kept.push_back(box);
    is_kept[ranks[i]] = true;
  }
}

// The same on several threads. The boxes are processed in chunks: all threads test a chunk against the boxes kept
// before it, then one thread tests the boxes of the chunk that are left against each other. This pays if few are left.
// So if many boxes of a chunk were kept, one thread tests the next chunk. A chunk is as large as all chunks before it,
// up to a limit: so threads are woken only a few times for a small group.
template <typename scalar_t, typename T>
void share_group(const scalar_t* boxes, const uint32_t* ranked, const uint32_t* ranks, int64_t count, T threshold,
                 bool* is_kept) {
  KeptIndex<T> kept, of_chunk;
  const std::unique_ptr<bool[]> suppressed(new bool[count]());
  bool shared = false;
  for (int64_t begin = 0, end = 0; begin < count; begin = end) {
    end = std::min(count, begin + std::clamp(begin, kFirstChunk, kLargestChunk));
    const auto box = [&](int64_t i) { return load_box<T>(boxes, ranked[ranks[i]]); };
    if (shared) {
      parallel_for(end - begin, kFoundNanoseconds, [&](int64_t from, int64_t to) {
        for (int64_t i = begin + from; i < begin + to; ++i) suppressed[i] = kept.suppress(box(i), threshold);
      });
      of_chunk.clear();
    }
    const int64_t kept_before = kept.size();
    for (int64_t i = begin; i < end; ++i) {
      if (suppressed[i] || (shared ? of_chunk : kept).suppress(box(i), threshold)) continue;
      if (shared) of_chunk.push_back(box(i));
      kept.push_back(box(i));
      is_kept[ranks[i]] = true;
    }
    shared = kept.size() - kept_before < (end - begin) / kSharedIfKept;
  }
}

template <typename scalar_t, typename T>
void suppress_groups(const scalar_t* boxes, const std::vector<uint32_t>& ranked, const Groups& groups,
                     T threshold, bool* is_kept) {
  const auto n = static_cast<int64_t>(ranked.size());
  const auto n_groups = static_cast<int64_t>(groups.begins.size()) - 1;
  const auto size_of = [&](int64_t group) { return groups.begins[group + 1] - groups.begins[group]; };
  // A parallel loop inside another one runs on a single thread. So a group with most of the boxes is processed before
  // the loop over the groups.
  const auto is_shared = [&](int64_t group) {
    return size_of(group) > n / 2 && torch::stable::get_num_threads() > 1 &&
           tasks_of(static_cast<double>(size_of(group)) * kFoundNanoseconds) > 1;
  };
  for (int64_t group = 0; group < n_groups; ++group) {
    if (!is_shared(group)) continue;
    share_group(boxes, ranked.data(), groups.ranks.data() + groups.begins[group], size_of(group), threshold, is_kept);
  }
  parallel_for(n_groups, static_cast<double>(n) / n_groups * kBoxNanoseconds, [&](int64_t begin, int64_t end) {
    KeptIndex<T> kept;
    for (int64_t group = begin; group < end; ++group) {
      if (is_shared(group)) continue;
      suppress_group(boxes, ranked.data(), groups.ranks.data() + groups.begins[group], size_of(group), threshold, kept,
                     is_kept);
    }
  });
}

// ------------------------------------------------------------------------------------------------------- ops

// idxs: null if all boxes are in one group.
Tensor nms_of_groups(const Tensor& boxes, const Tensor& scores, const Tensor* idxs, double iou_threshold) {
  const int64_t n = boxes.size(0);
  if (n == 0) return torch::stable::new_empty(scores, {0}, ScalarType::Long);

  const Tensor all_boxes = as_contiguous(boxes);
  const Tensor all_scores = as_contiguous(scores);
  std::vector<uint32_t> ranked;
  dispatch_floating_dtype(scores.scalar_type(), [&](auto zero) {
    ranked = rank_by_score(all_scores.const_data_ptr<decltype(zero)>(), n);
  });
  Groups groups;
  if (idxs == nullptr) {
    groups = one_group(n);
  } else {
    const Tensor ids = as_contiguous(*idxs);
    dispatch_id_dtype(ids.scalar_type(), [&](auto zero) {
      groups = group_by_id(ids.const_data_ptr<decltype(zero)>(), ranked);
    });
  }
  const std::unique_ptr<bool[]> is_kept(new bool[n]());  // by rank
  dispatch_floating_dtype(boxes.scalar_type(), [&](auto zero) {
    using scalar_t = decltype(zero);
    suppress_groups(all_boxes.const_data_ptr<scalar_t>(), ranked, groups,
                    rounded_down<compute_t<scalar_t>>(iou_threshold), is_kept.get());
  });

  const int64_t n_kept = std::count(is_kept.get(), is_kept.get() + n, true);
  const Tensor out = torch::stable::new_empty(scores, {n_kept}, ScalarType::Long);
  auto* next = out.mutable_data_ptr<int64_t>();
  for (int64_t rank = 0; rank < n; ++rank) {
    if (is_kept[rank]) *next++ = ranked[rank];
  }
  return out;
}

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_scored_boxes(boxes, scores);
  return nms_of_groups(boxes, scores, nullptr, iou_threshold);
}

Tensor batched_nms_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs, double iou_threshold) {
  check_scored_boxes(boxes, scores);
  check_idxs(idxs, scores);
  return nms_of_groups(boxes, scores, &idxs, iou_threshold);
}

}  // namespace
}  // namespace ssd_ext

STABLE_TORCH_LIBRARY_FRAGMENT(ssd_ext, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ssd_ext, CPU, m) {
  m.impl("nms", TORCH_BOX(&ssd_ext::nms_cpu));
  m.impl("batched_nms", TORCH_BOX(&ssd_ext::batched_nms_cpu));
}
