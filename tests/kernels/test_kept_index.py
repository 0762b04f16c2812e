"""csrc/core/cpu/kept_index.h finds what a test against every kept box finds, from the first box on and after many."""

import ctypes
import subprocess

import adversarial as adv
import numpy as np
import pytest
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


def borders(n, g, dtype):
    """Corners on the borders of cells, and one number beside them; sides of powers of two, and one number beside."""
    edges = np.ldexp(g.integers(-8, 9, (n, 2)).astype(dtype), g.integers(-3, 4, (n, 1)))
    sides = np.ldexp(dtype(1), g.integers(-4, 5, (n, 2))).astype(dtype)
    boxes = np.concatenate([edges, edges + sides], 1)
    return np.nextafter(boxes, boxes + g.integers(-1, 2, boxes.shape).astype(dtype), dtype=dtype)


def sizes(n, g, dtype, powers):
    """Sides whose powers of two differ by up to `powers`, at places that overlap."""
    sides = np.exp2(g.uniform(-powers / 2, powers / 2, (n, 2)) * g.integers(0, 2, (n, 1)))
    centres = g.uniform(-1, 1, (n, 2)) * np.exp2(g.uniform(-powers / 2, powers / 2, (n, 1)))
    return np.concatenate([centres - sides / 2, centres + sides / 2], 1).astype(dtype)


def far(n, g, dtype):
    """Small boxes far away from 0, whose sides are few steps of a float."""
    corner = dtype(2.0 ** g.integers(0, 100))
    steps = g.integers(0, 12, (n, 4)) * np.spacing(corner)
    return (corner + np.concatenate([steps[:, :2], steps[:, :2] + steps[:, 2:]], 1)).astype(dtype)


def clusters(n, g, dtype):
    centres = g.uniform(0, 30, (max(1, n // 10), 2))[g.integers(0, max(1, n // 10), n)]
    corners = centres + g.normal(0, 0.3, (n, 2))
    return np.concatenate([corners, corners + g.uniform(2, 5, (n, 2))], 1).astype(dtype)


def scaled(n, g, dtype):
    """Clusters whose areas are nearly too small or too large for a float."""
    powers = (-16, 17.7) if dtype == np.float32 else (-147, 152)
    return (clusters(n, g, np.float64) * 10.0 ** powers[g.integers(2)]).astype(dtype)


KINDS = {
    "scaled": scaled,
    "borders": borders,
    "sizes": lambda n, g, dtype: sizes(n, g, dtype, 12),
    "huge and tiny": lambda n, g, dtype: sizes(n, g, dtype, 250 if dtype == np.float32 else 1900),
    "far": far,
    "clusters": clusters,
    "hostile": lambda n, g, dtype: adv.hostile_boxes(n, int(g.integers(1 << 30))).numpy().astype(dtype),
    "odd": lambda n, g, dtype: adv.hostile_values((n, 4), int(g.integers(1 << 30))).numpy().astype(dtype),
    "identical": lambda n, g, dtype: np.tile(clusters(1, g, dtype), (n, 1)),
    "nested": lambda n, g, dtype: np.outer(g.permutation(n) + 1, [-1, -1, 1, 1]).astype(dtype),
}
thresholds = st.one_of(
    st.sampled_from([0.0, 0.45, 0.5, 1.0, 1e-7, 1e-30, -1.0, float("nan"), float("inf")]), st.floats(0, 1)
)


@given(
    st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3),
    st.integers(1, 150),
    st.integers(0, 2**31),
    st.sampled_from([np.float32, np.float64]),
    thresholds,
)
@fuzz
def test_drawn_boxes(library, kinds, n, seed, dtype, threshold):
    g = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        boxes = np.concatenate([KINDS[kind](n, g, dtype) for kind in kinds])
    check(library, g.permutation(boxes), threshold)


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
