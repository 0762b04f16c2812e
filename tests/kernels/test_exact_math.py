"""csrc/core/exact_math.h: how near exp and log are to the true values, and that every build gives the same bits."""

import ctypes
import math
import subprocess

import numpy as np
import pytest
from cuda_on_cpu import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

SOURCE = r"""
#include "core/exact_math.h"
#define EXPORT(name, function)                                                            \
  extern "C" __attribute__((visibility("default"))) void name(const float* __restrict in, \
                                                              float* __restrict out, int64_t n) { \
    for (int64_t i = 0; i < n; ++i) out[i] = ssd_ext::function(in[i]);                    \
  }
EXPORT(all_exp, exact_exp)
EXPORT(all_exp_below_1, exact_exp_below_1)
EXPORT(all_log, exact_log)
"""
# The last with all that this processor can do, fused multiply-adds among it.
BUILDS = {
    "O0": [*build.HOST, "-O0"],
    "runner": [*build.FLAGS, *build.SANITIZERS[None], "-include", "cuda_runtime.h"],
    "vectorised": [*build.HOST, *build.SETUP.CXX, "-march=native"],
}
MAX_ULP = 0.93  # tools/derive_exact_math.py tries every float
# Every 1021st float: all exponents, and with them subnormal numbers, infinities and NaN. And the floats around the
# bounds between two powers of 2 in the exponential, (n + 1/2) ln 2.
BOUNDS = (np.arange(-151, 129) + 0.5) * np.log(2)
NEAR_BOUNDS = BOUNDS.astype(np.float32).view(np.uint32)[:, None] + np.arange(-64, 65)
FLOATS = np.concatenate([np.arange(0, 2**32, 1021), NEAR_BOUNDS.ravel()]).astype(np.uint32).view(np.float32)


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """(build, "exp" or "log") -> function of a float32 array."""
    folder = tmp_path_factory.mktemp("exact_math")
    source = folder / "exact_math.cpp"
    source.write_text(SOURCE)

    def function(call):
        def run(x):
            x, out = np.ascontiguousarray(x, np.float32), np.empty_like(x, np.float32)
            call(*(ctypes.c_void_p(array.ctypes.data) for array in (x, out)), ctypes.c_int64(x.size))
            return out

        return run

    built = {}
    for name, flags in BUILDS.items():
        library = folder / f"{name}.so"
        subprocess.run([build.compiler(), *flags, "-shared", source, "-o", library], check=True)
        for f in ("exp", "exp_below_1", "log"):
            built[name, f] = function(getattr(ctypes.CDLL(str(library)), f"all_{f}"))
    return built


def ulps(actual, truth):
    """The error in units of the last place of the true value as a float32."""
    exponent = np.maximum(np.frexp(truth)[1], -125)  # subnormal numbers are 2^-149 apart
    return np.abs(actual.astype(np.float64) - truth) / np.ldexp(1.0, exponent - 24)


@pytest.mark.parametrize("f", ["exp", "log"])
def test_error(functions, f):
    with np.errstate(all="ignore"):
        truth = getattr(np, f)(FLOATS.astype(np.float64))
        rounded = truth.astype(np.float32)
    actual = functions["vectorised", f](FLOATS)
    finite = np.isfinite(rounded) & (rounded != 0)
    assert finite.sum() > 1_000_000
    assert ulps(actual[finite], truth[finite]).max() < MAX_ULP
    assert np.array_equal(actual[~finite], rounded[~finite], equal_nan=True)


@pytest.mark.parametrize("f", ["exp", "log"])
def test_every_build_gives_the_same_bits(functions, f):
    expected = functions["O0", f](FLOATS)
    for name in BUILDS:
        actual = functions[name, f](FLOATS)
        assert np.array_equal(np.isnan(actual), np.isnan(expected))
        assert np.array_equal(actual.view(np.uint32)[actual == actual], expected.view(np.uint32)[actual == actual])


def test_exp_below_1_is_exp(functions):
    x = FLOATS[~(FLOATS > 0)]
    expected = functions["O0", "exp"](x)
    for name in BUILDS:
        actual = functions[name, "exp_below_1"](x)
        assert np.array_equal(actual, expected, equal_nan=True)
        assert np.array_equal(np.signbit(actual[x <= 0]), np.signbit(expected[x <= 0]))


def test_special_values(functions):
    inf, nan, tiny = math.inf, math.nan, 2.0**-149
    exp = [(0, 1), (-0.0, 1), (inf, inf), (-inf, 0), (89, inf), (3e38, inf), (-104, 0), (-3e38, 0), (-103.2, tiny)]
    log = [(1, 0), (0, -inf), (-0.0, -inf), (inf, inf), (-inf, nan), (-1, nan), (-tiny, nan)]
    for name in BUILDS:
        for f, values in (("exp", exp), ("log", log)):
            x, expected = np.array([*values, (nan, nan)], np.float32).T
            actual = functions[name, f](x)
            assert np.array_equal(actual, expected, equal_nan=True)
            assert not np.signbit(actual[actual == 0]).any()
