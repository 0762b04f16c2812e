"""Texts and annotations as other programs write them."""

import re

import pytest

from ssd.cli.arguments import class_names
from ssd.data import open_dataset
from ssd.data.shapes import write_shapes
from ssd.runtime.text import read_text, read_xml


@pytest.fixture
def shapes(tmp_path):
    return write_shapes(tmp_path / "shapes", 3, 0)


@pytest.fixture
def annotation(shapes):
    return min((shapes / "Annotations").iterdir())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_lists(shapes, tmp_path, encoding):
    listed = shapes / "ImageSets" / "Main" / "train.txt"
    listed.write_text(listed.read_text().replace("\n", "\r\n"), encoding=encoding, newline="")
    assert len(open_dataset(shapes, "train")) == 3
    (tmp_path / "names.txt").write_text("ä b\r\nc\r\n", encoding=encoding, newline="")
    assert class_names(str(tmp_path / "names.txt")) == ("ä b", "c")


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"a\.txt: is not utf-8 text: .* at byte 3"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16", "gb2312", "shift_jis"])
def test_encodings_of_annotations(annotation, shapes, encoding):
    expected = open_dataset(shapes).counts
    folder = {"gb2312": "图", "shift_jis": "図"}.get(encoding, "é")
    text = annotation.read_text().replace("<filename>", f"<folder>{folder}</folder><filename>")
    annotation.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n{text}'.encode(encoding))
    assert read_xml(annotation).findtext("folder") == folder
    annotation.write_bytes(f'<?xml version = "1.0" encoding = "{encoding}" ?>\n{text}'.encode(encoding))
    assert read_xml(annotation).findtext("folder") == folder
    assert open_dataset(shapes).counts == expected


@pytest.mark.parametrize("declared", ["klingon", "gb2312"])
def test_annotations_that_cannot_be_decoded_are_named(annotation, declared):
    annotation.write_bytes(f'<?xml version="1.0" encoding="{declared}"?><annotation>'.encode() + b"\xff</annotation>")
    with pytest.raises(ValueError, match=rf"{annotation.name}: broken XML"):
        read_xml(annotation)


def test_a_namespace_hides_no_object(annotation, shapes):
    expected = open_dataset(shapes).counts
    annotation.write_text(annotation.read_text().replace("<annotation>", '<annotation xmlns="http://a/b">'))
    assert open_dataset(shapes).counts == expected


def test_an_empty_name_is_named(annotation, shapes):
    annotation.write_text(
        annotation.read_text().replace("<name>circle<", "<name> <").replace("<name>square<", "<name> <")
    )
    with pytest.raises(ValueError, match=rf"{annotation.name}: object \d lacks a <name>"):
        open_dataset(shapes)


def test_a_name_with_control_characters_is_named(annotation, shapes):
    annotation.write_text(annotation.read_text().replace("<name>", "<name>a&#9;b"))
    with pytest.raises(ValueError, match=r"shapes: the name of a class has a control character: 'a\\tb"):
        open_dataset(shapes)


def test_what_is_left_out_is_told_without_control_characters(annotation, shapes):
    odd = annotation.with_name("\x1b[31m.xml")
    odd.write_text(re.sub("<xmin>.*?<", "<xmin>nan<", annotation.read_text()))
    picture = next(path for path in (shapes / "JPEGImages").iterdir() if path.stem == annotation.stem)
    picture.rename(picture.with_stem(odd.stem))
    annotation.unlink()
    dropped = open_dataset(shapes).dropped
    assert dropped
    assert all(str(line).startswith(f"{shapes}/Annotations/\\x1b[31m.xml: object ") for line in dropped)


def test_names_with_blanks_in_a_list(annotation, shapes):
    """And lists of a class, with 1 or -1 behind each name."""
    listed = shapes / "ImageSets" / "Main" / "train.txt"
    picture = next((shapes / "JPEGImages").glob(f"{annotation.stem}.*"))
    listed.write_text(listed.read_text().replace(annotation.stem, "my cat"))
    picture.rename(picture.with_stem("my cat"))
    annotation.write_text(annotation.read_text().replace(picture.name, f"my cat{picture.suffix}"))
    annotation.rename(annotation.with_stem("my cat"))
    assert open_dataset(shapes, "train").pictures[0].stem == "my cat"
    listed.write_text("".join(f"{line}  -1\n" for line in listed.read_text().splitlines()[1:]))
    assert len(open_dataset(shapes, "train")) == 2
    listed.write_text("my dog\n")
    with pytest.raises(FileNotFoundError, match=r"train\.txt: lists 'my dog', but no XML"):
        open_dataset(shapes, "train")


def test_files_of_macos_beside_the_real_ones(annotation, shapes):
    annotation.with_name(f"._{annotation.name}").write_bytes(b"\x00\x05\x16\x07")
    assert len(open_dataset(shapes)) == 3
