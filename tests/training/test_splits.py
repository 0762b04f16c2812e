"""Which pictures a run trains on, validates and tests on."""

import json
import shlex
import shutil

import pytest
from PIL import Image

from ssd.cli import main
from ssd.data.shapes import write_shapes
from ssd.training.settings import Settings
from ssd.training.splits import open_sets, whole_of


def test_splits_are_found_and_pictures_without_lists_held_out(shapes, tmp_path):
    sets = open_sets(Settings((shapes,), "train", held_out=0.3))  # beside it there is a test list, and none for val
    assert (len(sets.train), len(sets.val), len(sets.test)) == (5, 2, 3)
    assert sets.names == {"split": "train", "val_split": None, "test_split": "test"}
    assert sets.classes == ("circle", "square", "triangle")
    assert [note.split(" in ")[0] for note in sets.notes] == ["7 pictures", "3 pictures"]
    assert open_sets(Settings((shapes,), held_out=0)).val is None
    bare = tmp_path / "bare"
    write_shapes(bare, 20, 0)
    for file in (bare / "ImageSets" / "Main").iterdir():
        file.unlink()
    train_set, val_set, test_set, *_ = open_sets(Settings((str(bare),)))
    assert (len(train_set), len(val_set), test_set) == (18, 2, None)
    assert not set(train_set.indices) & set(val_set.indices)
    with pytest.raises(FileNotFoundError, match=r"there are: .*test.*train"):
        open_sets(Settings((shapes,), split="trainval"))


def test_which_lists_a_run_takes(tmp_path):
    write_shapes(tmp_path, 6, 2)
    lists = tmp_path / "ImageSets" / "Main"
    text = (lists / "train.txt").read_text().splitlines(keepends=True)

    def names(**settings):
        return tuple(open_sets(Settings((str(tmp_path),), **settings)).names.values())

    (lists / "val.txt").write_text("".join(text[:2]))
    assert names() == ("train", "val", "test")
    assert names(test_split="val", val_split="test") == ("train", "test", "val")
    (lists / "trainval.txt").write_text("".join(text))
    assert names() == ("trainval", None, "test")  # of which a part is held out
    assert names(split="train") == ("train", "val", "test")
    (lists / "test.txt").write_text("no_such_picture\n")
    sets = open_sets(Settings((str(tmp_path),)))
    assert sets.test is None
    assert "test will not be measured" in sets.notes[1]
    assert "no_such_picture" in sets.notes[1]
    with pytest.raises(FileNotFoundError, match="no_such_picture"):
        names(test_split="test")


@pytest.mark.parametrize(
    ("lists", "settings", "expected"),
    [
        ("train2017 val2017", {}, ("train2017", "val2017", None)),
        ("train2017 val2017", {"split": "train2017"}, ("train2017", "val2017", None)),
        ("train2017 val2017", {"split": "val2017"}, ("val2017", None, None)),
        ("default", {}, ("default", None, None)),  # of CVAT
        ("training validation testing", {}, ("training", "validation", "testing")),
        ("train dev test-2", {}, ("train", "dev", "test-2")),
        ("train valid validation", {}, ("train", "valid", None)),
        ("train train2017 val2017", {}, ("train", None, None)),
        ("trainval_a train_a val_a test_a test_b", {}, ("trainval_a", None, "test_a")),
        ("train14 train17 val14 val17", {"split": "train17"}, ("train17", "val17", None)),
        ("train14 train17 val14", {"split": "train17"}, ("train17", None, None)),  # val14 may be a part of it
        ("train14 train17 val14", {}, r"to train on, with --split: there are train14, train17, val14"),
        ("train val_a val_b", {}, r"training split train, with --val-split: there are val_a, val_b"),
        ("train_test test", {}, r"to train on, with --split: there are test, train_test"),  # of VOC's class "train"
        ("trained value", {}, r"to train on, with --split: there are trained, value"),
    ],
)
def test_splits_are_known_by_their_kind(tmp_path, lists, settings, expected):
    write_shapes(tmp_path, 2, 0)
    folder = tmp_path / "ImageSets" / "Main"
    text = (folder / "train.txt").read_text()
    for file in folder.iterdir():
        file.unlink()
    for name in lists.split():
        (folder / f"{name}.txt").write_text(text)
    settings = Settings((str(tmp_path),), **settings)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            open_sets(settings)
    else:
        assert tuple(open_sets(settings).names.values()) == expected


def test_classes_without_objects_are_left_out(tmp_path):
    """Such as the category 0 that Roboflow writes. One that only validation has stays, so that this can be measured."""
    for split, name, category in (("train", "a", 2), ("train", "b", 2), ("valid", "c", 7)):
        (tmp_path / split).mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / split / f"{name}.jpg")
        file = tmp_path / split / "_annotations.coco.json"
        content = json.loads(file.read_text()) if file.exists() else {"images": [], "annotations": []}
        number = len(content["images"])
        content["images"].append({"id": number, "file_name": f"{name}.jpg"})
        content["annotations"].append({"id": number, "image_id": number, "category_id": category, "bbox": [1, 2, 9, 9]})
        content["categories"] = [{"id": i, "name": n} for i, n in ((0, "animals"), (2, "dog"), (7, "cat"), (9, "cow"))]
        file.write_text(json.dumps(content))
    sets = open_sets(Settings((str(tmp_path),)))
    assert sets.classes == sets.train.classes == sets.val.classes == ("dog", "cat")
    assert [sets.train.truths[i]["labels"].tolist() for i in range(2)] == [[1], [1]]
    assert sets.val.truths[0]["labels"].tolist() == [2]
    assert [
        note for note in sets.notes if note.startswith("classes left out, since they have no objects: animals, cow")
    ]
    sets = open_sets(Settings((str(tmp_path),), classes=("animals", "dog", "cat")))
    assert sets.classes == ("animals", "dog", "cat")
    assert sets.train.truths[0]["labels"].tolist() == [2]


def test_a_run_on_tiles(shapes, tmp_path, capsys):
    plain, tiled = (open_sets(Settings((shapes,), "train", held_out=0.3, tiles=tiles)) for tiles in (None, 160))
    assert plain.train.indices == [i for i in range(7) if i not in plain.val.indices]
    whole, _ = whole_of(plain.train)
    for pictures, indices in ((tiled.train, plain.train.indices), (tiled.val, plain.val.indices)):
        assert set(pictures.pictures) == {whole.pictures[i] for i in indices}
        assert len(pictures) > 2 * len(indices)
    assert [note for note in tiled.notes if "160" in note] == [
        *(part.notes[0] for part in (tiled.train, tiled.val, tiled.test))
    ]
    assert (tiled.train.transform.size, tiled.train.transform.flips) == (300, False)

    command = [
        "train",
        str(shapes),
        "--split",
        "train",
        "--out",
        str(tmp_path),
        "--network",
        "ssd300",
        "--width",
        "0.01",
    ]
    options = [
        "--tiles",
        "160",
        "--overlap",
        "0.3",
        "--epochs",
        "1",
        "--batch-norm",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    assert main([*command, *options]) == 0
    assert "tiles of 160 pixels" in capsys.readouterr().out
    assert main([*command, *options, "--resume", "auto"]) == 0  # finished: it has the same data
    evaluated = ["eval", str(shapes), "--weights", str(tmp_path / "best.pt"), "--split", "train", "--device", "cpu"]
    assert main([*evaluated, "--tiles", "160"]) == 0
    capsys.readouterr()
    assert main(["eval", str(shapes), "--weights", str(tmp_path / "best.pt"), "--device", "cpu"]) == 0
    assert "add --tiles 160" in capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert "--tiles 160 --overlap 0.3" in report["command"]
    assert main([*shlex.split(report["command"])[1:], "--device", "cpu", "--workers", "0"]) == 0


def test_an_overlap_needs_tiles():
    with pytest.raises(ValueError, match=r"overlap 0\.5 is the overlap of tiles; give tiles too"):
        Settings(("a",), overlap=0.5)
    with pytest.raises(ValueError, match=r"overlap must be from 0 to 0\.9, got 0\.95"):
        Settings(("a",), tiles=100, overlap=0.95)


@pytest.mark.parametrize("used", [{}, {"val_split": "test"}])
def test_the_test_split_is_not_trained_or_validated_on(shapes, used):
    test_split = used.get("val_split", "train")
    with pytest.raises(ValueError, match=f"test_split: {test_split} is already used to train or validate"):
        open_sets(Settings((shapes,), split="train", test_split=test_split, **used))


def test_copies_are_found_though_the_splits_have_one_name(shapes, tmp_path):
    copied = shutil.copytree(shapes, tmp_path / "copied")
    sets = open_sets(Settings((shapes,), split="train", val_data=(str(copied),), val_split="train"))
    (line,) = [note for note in sets.notes if "pictures that are in" in note]
    assert line.startswith("warning: pictures that are in train and in train (validation): 7, such as ")
