"""A run notices when its data has changed."""

import os
import re
import signal
from functools import partial

import pytest
from short_training import error_of, run

from ssd.data.shapes import write_shapes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def shapes(tmp_path):
    return write_shapes(tmp_path / "shapes", 7, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("more", "training data .* has changed: 9 pictures instead of 7"),
        ("fewer", "training data .* has changed: 4 pictures instead of 7"),
        ("other", "training data .* has changed: other pictures"),
        ("validation", "validation data .* has changed: 2 pictures instead of 3"),
        ("box", "training data .* has changed: other boxes or classes"),
    ],
)
def test_a_run_is_not_resumed_on_other_data(settings, shapes, tmp_path, at_step, capsys, change, says):
    at_step(1, partial(os.kill, os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "run")
    lists = shapes / "ImageSets" / "Main"
    names = (lists / "train.txt").read_text().split()
    others = (lists / "test.txt").read_text().split()
    if change == "more":
        (lists / "train.txt").write_text("\n".join(names + others[:2]))
    elif change == "fewer":
        (lists / "train.txt").write_text("\n".join(names[:4]))
    elif change == "other":
        for folder in ("JPEGImages", "Annotations"):
            (file,) = (shapes / folder).glob(f"{names[0]}.*")
            file.rename(file.with_stem("renamed"))
        (lists / "train.txt").write_text("\n".join(["renamed", *names[1:]]))
    elif change == "validation":
        (lists / "test.txt").write_text("\n".join(others[:2]))
    else:
        file = next(
            f for f in sorted((shapes / "Annotations").iterdir()) if f.stem in names and "xmax" in f.read_text()
        )
        start, end = file.read_text().split("<xmax>", 1)
        number, rest = end.split("<", 1)
        file.write_text(f"{start}<xmax>{float(number) - 1}<{rest}")
    line = error_of(capsys, "train", "--resume", "--out", tmp_path / "run", "--device", "cpu")
    assert re.search(says, line)
