"""The grid of tiles."""

import numpy as np
import pytest

from ssd.data.tiles import views


@pytest.mark.parametrize("sides", [(1000, 700), (224, 224), (3, 900), (225, 224), (41, 1)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("size", [20, 64, 224, 999, 1000, 5000])
def test_tiles_cover_the_picture_and_overlap_enough(size, overlap, sides):
    *parts, whole = views(*sides, size, overlap)
    assert whole == (0, 0, *sides)
    assert (parts == []) == (size >= max(sides))
    for axis, length in enumerate(sides):
        starts = sorted({part[axis] for part in parts} or {0})
        ends = sorted({part[axis + 2] for part in parts} or {length})
        assert starts[0] == 0
        assert ends[-1] == length
        assert {end - start for start, end in zip(starts, ends, strict=True)} == (
            {min(size, length)} if parts else {length}
        )
        step = max(1, int(size * (1 - overlap)))
        gaps = np.diff(starts)
        assert (gaps <= step).all()
        # One tile fewer would be too few.
        assert len(starts) < 2 or (len(starts) - 2) * step + size < length
    assert len(parts) == len(set(parts))
    assert parts == sorted(parts, key=lambda part: (part[1], part[0]))
