"""The pictures that a checkpoint's run did not train on."""

import shutil
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from small_datasets import add_split

from ssd.data import open_dataset
from ssd.data.conversion import convert_dataset
from ssd.data.shapes import write_shapes
from ssd.options import ReadOptions
from ssd.training.run import train
from ssd.training.settings import Settings
from ssd.training.unseen import UNKNOWN, open_unseen
from ssd.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path):
    return write_shapes(tmp_path / "data", 10, 3)


def unseen(data, out, **settings):
    """The names of the pictures that are measured after a run, and what is said about them."""
    chosen = Settings((str(data),), network="ssd300", width=0.01, epochs=1, **settings)
    train(chosen, out, workers=0, quiet=True)
    return chosen_by(load_checkpoint(out / "best.pt"), data)


def chosen_by(checkpoint, data):
    dataset, line = open_unseen(
        checkpoint, [str(data)], lambda split, reading: open_dataset(data, split, options=reading)
    )
    assert len(dataset) == len(dataset.files) == len(dataset.truths) == len(dataset.sizes)
    assert dataset[0][1]["boxes"].tolist() == dataset.truths[0]["boxes"].tolist()
    return [path.stem for path in dataset.pictures], line


def test_archives_by_any_of_their_names(data, tmp_path):
    """The folder of archives, the archives and a pattern are the same; one of them overlaps with the run."""
    shards = tmp_path / "shards"
    convert_dataset([data], shards, "webdataset")
    expected = unseen(shards, tmp_path / "run")
    assert expected[0] == [f"test_{i:05}" for i in range(3)]
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pt")
    assert chosen_by(checkpoint, f"{shards}/{{train,test}}-000000.tar") == expected
    names, line = chosen_by(checkpoint, shards / "train-000000.tar")
    assert len(names) == 10
    assert line == "some of these pictures may have been trained on: the data of the run overlaps with these"


def test_data_that_was_moved_or_converted(data, tmp_path):
    """Its pictures are known by their names, also those that were held out."""
    names, line = unseen(data, tmp_path / "run")
    convert_dataset([data], tmp_path / "yolo", "yolo")
    moved = data.rename(tmp_path / "moved")
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pt")
    assert chosen_by(checkpoint, moved) == (names, line)
    assert chosen_by(checkpoint, tmp_path / "yolo") == (names, line)
    (moved / "ImageSets" / "Main" / "test.txt").unlink()
    held_out = unseen(moved, tmp_path / "held_out", held_out=0.2)
    assert len(held_out[0]) == 2
    checkpoint = load_checkpoint(tmp_path / "held_out" / "best.pt")
    assert chosen_by(checkpoint, moved.rename(tmp_path / "again")) == held_out
    other = write_shapes(tmp_path / "other", 10, 3, seed=1)  # with the same names
    (other / "ImageSets" / "Main" / "test.txt").unlink()
    assert chosen_by(checkpoint, other)[1] == f"measured on all 13 pictures; {UNKNOWN}"


def test_the_validation_data_of_a_run(data, tmp_path):
    other = write_shapes(tmp_path / "other", 4, 0, seed=1)
    unseen(data, tmp_path / "run", val_data=(str(other),))
    names, line = chosen_by(load_checkpoint(tmp_path / "run" / "best.pt"), other)
    assert (len(names), line) == (4, "measured on the validation data of the run, which was not trained on")


def test_the_test_split_else_that_of_validation_else_what_was_held_out(data, tmp_path):
    lists = data / "ImageSets" / "Main"
    names, line = unseen(data, tmp_path / "test")
    assert names == [f"test_{i:05}" for i in range(3)]
    assert line == "measured on the split test, which was not used for training"
    (lists / "test.txt").rename(lists / "val.txt")
    names, line = unseen(data, tmp_path / "val")
    assert names == [f"test_{i:05}" for i in range(3)]
    assert line == "measured on the split val, which was not trained on"
    (lists / "val.txt").unlink()
    names, line = unseen(data, tmp_path / "held_out", held_out=0.2)
    assert line == "measured on the 2 pictures that were held out of training"
    assert len(names) == 2
    assert {name.split("_")[0] for name in names} == {"train"}
    assert unseen(data, tmp_path / "tiles", held_out=0.2, tiles=160) == (names, line)
    checkpoint = load_checkpoint(tmp_path / "held_out" / "best.pt")
    add_split(data, "train", *(f"train_{i:05}" for i in range(9)))
    names, line = chosen_by(checkpoint, data)
    assert line == "measured on 9 pictures, most of which were trained on"
    names, line = unseen(data, tmp_path / "all", held_out=0)
    assert line == "measured on 9 pictures, all of which were trained on"
    assert len(names) == 9


def test_corrected_labels_do_not_hide_which_pictures_of_tiles_were_held_out(data, tmp_path):
    """Also if a picture has no object left, and so no tile."""
    (data / "ImageSets" / "Main" / "test.txt").unlink()
    names, line = unseen(data, tmp_path / "run", held_out=0.3, tiles=160)
    assert line == "measured on the 3 pictures that were held out of training"
    for name, keep in zip(names, (0, 0, 1), strict=True):
        path = data / "Annotations" / f"{name}.xml"
        tree = ElementTree.parse(path)
        for node in tree.getroot().findall("object")[keep:]:
            tree.getroot().remove(node)
        tree.write(path)
    assert chosen_by(load_checkpoint(tmp_path / "run" / "best.pt"), data) == (names, line)


def test_of_other_data_and_other_checkpoints_nothing_is_known(data, tmp_path):
    checkpoint = {"settings": replace(Settings((str(data),)), split="train", test_split="test").as_dict()}
    assert chosen_by(checkpoint, data)[0] == [f"test_{i:05}" for i in range(3)]
    shutil.copytree(data, tmp_path / "copy")
    assert (len(chosen_by(checkpoint, tmp_path / "copy")[0]), chosen_by({}, data)[1]) == (13, "")


def test_the_data_is_read_as_in_training(data, tmp_path):
    """Otherwise other pictures would be those that were held out."""
    (data / "ImageSets" / "Main" / "test.txt").unlink()
    (data / "ImageSets" / "Main" / "train.txt").unlink()
    for number in range(4):
        (data / "Annotations" / f"train_{number:05}.xml").unlink()
    for rule, n in (("background", 13), ("ignore", 9)):
        _, line = unseen(data, tmp_path / rule, held_out=0.5, reading=ReadOptions(unlabelled=rule))
        assert line == f"measured on the {round(n / 2)} pictures that were held out of training"


def test_a_part_of_the_data_is_read_as_in_training(data, tmp_path):
    other = write_shapes(tmp_path / "other", 4, 1)
    only = ReadOptions(only=("square",))
    settings = Settings((str(data), str(other)), network="ssd300", width=0.01, epochs=1, reading=only)
    train(settings, tmp_path / "run", workers=0, quiet=True)
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pt")

    def reading(folder, split=None):
        read = []

        def opened(split, reading):
            read.append(reading)
            return open_dataset(folder, split, options=reading)

        open_unseen(checkpoint, [str(folder)], opened, split)
        return read[-1]

    assert reading(other) == reading(other, "test") == only
    assert reading(write_shapes(tmp_path / "new", 4, 1)) == ReadOptions()
