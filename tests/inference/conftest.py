"""Fixtures of several files of tests."""

import pytest
from detect_command import write_photos, write_untrained

from ssd.data.shapes import write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 4, 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_untrained(tmp_path_factory.mktemp("weights") / "w.pt")


@pytest.fixture
def photos(shapes, tmp_path, monkeypatch):
    """A folder of pictures that belong to somebody, and the working folder."""
    folder = write_photos(tmp_path, shapes)
    monkeypatch.chdir(folder)
    return folder
