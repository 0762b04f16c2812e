"""csrc/core/cpu/kept_index.h finds what a test against every kept box finds, from the first box on and after many."""

import ctypes
import subprocess

import numpy as np
import pytest
from box_kinds import KINDS, drawn, thresholds
from cuda_on_cpu import build
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

SOURCE = r"""
#include "core/cpu/kept_index.h"
#include <memory>
using namespace ssd_ext;

// kept: which boxes are kept, by the index and by a test of every pair.
template <typename T, int64_t kLinear>
void both(const T* rows, int64_t n, T threshold, bool* by_index, bool* by_pairs) {
  KeptIndex<T, kLinear> index;
  for (int64_t i = 0; i < n; ++i) index.push_back(load_box<T>(rows, i));
  index.clear();  // of which nothing may be left
  for (int64_t i = 0; i < n; ++i) {
    const Box<T> box = load_box<T>(rows, i);
    by_index[i] = !index.suppress(box, threshold);
    if (by_index[i]) index.push_back(box);
  }
  for (int64_t i = 0; i < n; ++i) {
    by_pairs[i] = true;
    for (int64_t k = 0; k < i && by_pairs[i]; ++k) {
      by_pairs[i] = !by_pairs[k] || !suppresses(load_box<T>(rows, k), load_box<T>(rows, i), threshold);
    }
  }
}
#define EXPORT(name, T, linear)                                                                          \
  extern "C" __attribute__((visibility("default"))) void name(const T* rows, int64_t n, T threshold,    \
                                                              bool* by_index, bool* by_pairs) {          \
    both<T, linear>(rows, n, threshold, by_index, by_pairs);                                             \
  }
EXPORT(from_the_first_float32, float, 0)
EXPORT(from_the_first_float64, double, 0)
EXPORT(as_it_is_float32, float, 1024)
EXPORT(as_it_is_float64, double, 1024)
"""
BUILDS = {
    "fast": [*build.HOST, *build.SETUP.CXX],
    "checked": [*build.HOST, "-O1", "-D_GLIBCXX_ASSERTIONS", "-fsanitize=undefined", "-fno-sanitize-recover=all"],
}


@pytest.fixture(scope="module", params=BUILDS)
def library(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept_index")
    (folder / "both.cpp").write_text(SOURCE)
    path = folder / f"{request.param}.so"
    sources = [folder / "both.cpp", build.CSRC / "core" / "cpu" / "kept_boxes.cpp"]
    subprocess.run([build.compiler(), *BUILDS[request.param], "-shared", *sources, "-o", path], check=True)
    return ctypes.CDLL(str(path))


def check(library, boxes, threshold, name="from_the_first"):
    """Compares which of the boxes (n, 4), best first, are kept; returns how many."""
    rows = np.ascontiguousarray(boxes)
    by_index, by_pairs = np.zeros((2, len(rows)), bool)
    function = getattr(library, f"{name}_{rows.dtype}")
    number = ctypes.c_float if rows.dtype == np.float32 else ctypes.c_double
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (rows, by_index, by_pairs)]
    function(pointers[0], ctypes.c_int64(len(rows)), number(threshold), *pointers[1:])
    assert np.array_equal(by_index, by_pairs), np.flatnonzero(by_index != by_pairs)
    return by_pairs.sum()


@given(
    st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3),
    st.integers(1, 150),
    st.integers(0, 2**31),
    st.sampled_from([np.float32, np.float64]),
    thresholds,
)
@fuzz
def test_drawn_boxes(library, kinds, n, seed, dtype, threshold):
    check(library, drawn(kinds, n, seed, dtype), threshold)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_many_boxes(library, dtype, threshold):
    """So many that the table of the grids grows several times."""
    g = np.random.default_rng(1)
    n = 3000
    corners = g.uniform(0, 400, (n, 2))
    boxes = np.concatenate([corners, corners + np.exp2(g.uniform(0, 6, (n, 2)))], 1).astype(dtype)
    boxes[g.integers(0, n, 30)] = np.nan
    n_kept = [check(library, boxes, threshold, name) for name in ("from_the_first", "as_it_is")]
    assert n_kept[0] == n_kept[1] > (600 if threshold == 0 else 1500)
