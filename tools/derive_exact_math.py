"""Derives the constants of csrc/core/exact_math.h, and tests exp and log on every float.

`python tools/derive_exact_math.py` needs g++ and mpmath, which comes with torch, and takes ten minutes. It prints the
polynomials, and fails if the header has other numbers. Then it compiles the header and calls exp and log on all 2^32
floats. It fails if an error exceeds MAX_ULP, if a special value is wrong, or if a vectorised build that may use fused
multiply-add gives other bits than a plain build.
"""

from __future__ import annotations

import argparse
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import mpmath as mp
import numpy as np
import torch

SETUP = runpy.run_path(str(Path(__file__).resolve().parent.parent / "setup.py"))
MAX_ULP = 0.93  # what exact_math.h states


def minimax(function, weight, degree: int, low, high) -> tuple[list, object]:
    """The polynomial p with the least max |weight * (p - function)|: its coefficients, lowest first, and that maximum.

    The Remez algorithm solves for an error that alternates between +E and -E on degree + 2 points, and moves the points
    to the largest errors. It repeats both until no error is larger than E.
    """
    count = degree + 2
    points = [(low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * i / (count - 1)) for i in range(count)]
    grid = [low + (high - low) * i / 2000 for i in range(2001)]
    while True:
        matrix = mp.matrix(count, count)
        for row, x in enumerate(points):
            for power in range(degree + 1):
                matrix[row, power] = x**power
            matrix[row, degree + 1] = (-1) ** row / weight(x)
        solution = list(mp.lu_solve(matrix, mp.matrix([function(x) for x in points])))
        coefficients, level = solution[:-1], abs(solution[-1])
        errors = [weight(x) * (mp.polyval(coefficients[::-1], x) - function(x)) for x in grid]
        largest = max(map(abs, errors))
        if largest < level * mp.mpf("1.001"):
            return coefficients, largest
        peaks: list[int] = []  # the largest error between two changes of sign of the error
        for i, error in enumerate(errors):
            if peaks and (error > 0) == (errors[peaks[-1]] > 0):
                if abs(error) > abs(errors[peaks[-1]]):
                    peaks[-1] = i
            else:
                peaks.append(i)
        while len(peaks) > count:
            peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
        points = [grid[i] for i in peaks]


def exp_polynomial():
    """q in e^r = 1 + r + r^2 q(r), with the error relative to e^r."""
    bound = mp.log(2) / 2 * mp.mpf("1.0001")  # x * log2(e) has an error before it is rounded to an integer
    return minimax(
        lambda r: sum(r**k / mp.factorial(k + 2) for k in range(25)),
        lambda r: max(r * r, mp.mpf("1e-6")) / mp.exp(r),  # not 0 at 0, where Remez divides by it
        4,
        -bound,
        bound,
    )


def log_polynomial():
    """q in log(1 + f) = f - f^2 / 2 + f^3 q(f), with the error relative to log(1 + f)."""

    def q(f):
        if abs(f) < mp.mpf("0.02"):
            return sum((-f) ** k / (k + 3) for k in range(25))
        return (mp.log(1 + f) - f + f * f / 2) / f**3

    def weight(f):
        return f**3 / mp.log(1 + f) if abs(f) > mp.mpf("1e-3") else mp.mpf("1e-6")

    return minimax(q, weight, 7, mp.sqrt(mp.mpf(1) / 2) - 1, mp.sqrt(2) - 1)


def ln2_parts():
    """ln 2 as the sum of a number of 16 bits and the rest."""
    high = mp.floor(mp.log(2) * 2**16) / 2**16
    return high, mp.log(2) - high


def numbers_in(header: str, function: str) -> list[np.float32]:
    """The coefficients of the polynomial of a function in the header, lowest first."""
    body = header[header.index(f" {function}(float x") :]
    found = re.findall(r"^  (?:float )?q = (?:q \* \w+ ([+-]) )?(-?[\d.e-]+)f;$", body, re.MULTILINE)
    degree = next(i for i in range(1, len(found) + 1) if i == len(found) or not found[i][0])
    return [np.float32(f"{sign.strip('+')}{number}") for sign, number in found[:degree]][::-1]


def check_header() -> None:
    header = (SETUP["CSRC"] / "core" / "exact_math.h").read_text()
    for function, (coefficients, error) in {"exp_parts": exp_polynomial(), "exact_log": log_polynomial()}.items():
        print(f"{function}: the exact polynomial has a relative error of {mp.nstr(error * 2**24, 3)} * 2^-24")
        wanted = [np.float32(mp.nstr(c, 20)) for c in coefficients]
        print("   ", ", ".join(f"{c:.9g}" for c in wanted))
        if (found := numbers_in(header, function)) != wanted:
            sys.exit(f"exact_math.h has {', '.join(f'{c:.9g}' for c in found)}")
    constants = dict(zip(("kLn2High", "kLn2Low"), ln2_parts(), strict=True), kLog2E=1 / mp.log(2))
    for name, value in constants.items():
        wanted = np.float32(mp.nstr(value, 20))
        found = np.float32(re.search(rf"{name} = (.+)f;", header)[1])
        print(f"{name} = {wanted:.9g}")
        if found != wanted:
            sys.exit(f"exact_math.h has {name} = {found:.9g}")


# Prints the worst error in ulp of each function, and a checksum of its bits for all floats.
PROGRAM = r"""
#include "core/exact_math.h"
#include <cstdio>
#include <limits>

using namespace ssd_ext;

// In units of the last place of the true value as a float; infinite if a special value is wrong.
double error(float actual, double truth) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  if (std::isnan(truth)) return std::isnan(actual) ? 0 : kInf;
  if (truth == 0 || std::isinf(truth)) return actual == truth ? 0 : kInf;
  int exponent;
  std::frexp(truth, &exponent);
  const double ulp = std::ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
  const double largest = std::ldexp(1.0, 128);
  if (truth >= largest) return std::isinf(actual) ? 0 : kInf;
  return std::fabs((std::isinf(actual) ? largest : double(actual)) - truth) / ulp;
}

template <typename Function, typename Truth>
void try_all(const char* name, const Function& function, const Truth& truth, bool errors) {
  constexpr uint32_t kChunk = 4096;
  double worst = 0;
  float at = 0;
  uint64_t checksum = 0;
  for (uint32_t chunk = 0; chunk < (1u << 20); ++chunk) {
    float out[kChunk];
    for (uint32_t i = 0; i < kChunk; ++i) out[i] = function(float_of(chunk * kChunk + i));
    for (uint32_t i = 0; i < kChunk; ++i) {
      const uint32_t input = chunk * kChunk + i;
      const uint32_t bits = out[i] != out[i] ? 0x7FC00000u : bits_of(out[i]);
      checksum += bits * (2 * uint64_t(input) + 1);
      if (!errors) continue;
      const double e = error(out[i], truth(double(float_of(input))));
      if (e > worst) {
        worst = e;
        at = float_of(input);
      }
    }
  }
  std::printf("%s %.4f %a %016llx\n", name, worst, double(at), static_cast<unsigned long long>(checksum));
}

int main(int argc, char**) {
  const bool errors = argc > 1;
  const auto exp_below_1 = [](float x) { return x > 0 ? exact_exp(x) : exact_exp_below_1(x); };
  try_all("exact_exp", [](float x) { return exact_exp(x); }, [](double x) { return std::exp(x); }, errors);
  try_all("exact_exp_below_1", exp_below_1, [](double x) { return std::exp(x); }, errors);
  try_all("exact_log", [](float x) { return exact_log(x); }, [](double x) { return std::log(x); }, errors);
}
"""


def run(flags: list[str], *arguments: str) -> list[list[str]]:
    include = f"-isystem{Path(torch.__file__).parent / 'include'}"
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "all_floats.cpp", Path(folder) / "all_floats"
        source.write_text(PROGRAM)
        subprocess.run(["g++", *flags, include, source, "-o", program], check=True)
        printed = subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout
    return [line.split() for line in printed.splitlines()]


def check_all_floats() -> None:
    plain = run([*SETUP["COMMON"], *SETUP["HOST"], "-O1"], "errors")
    for name, worst, at, checksum in plain:
        print(f"{name}: at most {worst} ulp (at {float.fromhex(at):.9g}), checksum of all floats {checksum}")
        if float(worst) > MAX_ULP:
            sys.exit(f"{name}: the error is more than {MAX_ULP} ulp")
    if plain[0][3] != plain[1][3]:
        sys.exit("exact_exp_below_1 gives other bits than exact_exp")
    vectorised = run([*SETUP["CXX"], "-march=native"])
    if [row[3] for row in vectorised] != [row[3] for row in plain]:
        sys.exit("the vectorised build gives different bits")
    print("the vectorised build gives the same bits")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    mp.mp.dps = 40
    check_header()
    check_all_floats()
