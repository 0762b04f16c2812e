"""Fixtures of several files of tests."""

import pytest

from ssd.data.shapes import write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, 4, 3)
    return folder
