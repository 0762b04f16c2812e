"""Kinds of boxes that are hard for an index of boxes by their place."""

import adversarial as adv
import numpy as np
from hypothesis import strategies as st


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


def drawn(kinds, n, seed, dtype):
    """n boxes of each of these kinds, in any order."""
    g = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        boxes = np.concatenate([KINDS[kind](n, g, dtype) for kind in kinds])
    return g.permutation(boxes)
