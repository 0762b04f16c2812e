"""Letters that are not in ASCII, in drawings."""

import warnings
from pathlib import Path

import pytest
import torch
from matplotlib import font_manager

from ssd import fonts
from ssd.drawing import draw_detections


def drawn(name):
    picture = torch.full((3, 200, 300), 128, dtype=torch.uint8)
    boxes, labels = torch.tensor([[10.0, 10.0, 280.0, 180.0]]), torch.tensor([1])
    return draw_detections(picture, boxes, labels, classes=[name]).tobytes()


def test_letters_of_other_scripts_are_drawn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawn("ж") != drawn("щ")
        assert drawn("é") != drawn("ü")
    assert fonts.font_file(["a", "b 1"]) is None


def test_regular_fonts_come_first_and_fonts_of_boxes_are_left_out(monkeypatch):
    there = ["/f/LastResort.otf", "/f/A-Bold.ttf", "/f/B.ttc", "/f/ASerif.ttf", "/f/A.ttf"]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: there)
    own, *others = fonts._files.__wrapped__()
    assert Path(own).name == "DejaVuSans.ttf"
    assert others == ["/f/A.ttf", "/f/B.ttc", "/f/A-Bold.ttf", "/f/ASerif.ttf"]


def test_the_font_with_the_most_letters_is_chosen(monkeypatch):
    has = {"latin": "éü", "hangul": "고양이", "both": "고양이éü"}
    has = {path: letters + fonts.NUMBERS for path, letters in has.items()} | {"no numbers": "é"}
    monkeypatch.setattr(fonts, "_files", lambda: tuple(has))
    monkeypatch.setattr(fonts, "_letters", lambda path: frozenset(has[path]))
    fonts._file_with.cache_clear()
    assert [fonts.font_file([text]) for text in ("é", "고양이 1", "고é")] == ["latin", "hangul", "both"]
    with pytest.warns(UserWarning, match="no font of this machine has the letters 漢, which are drawn as boxes"):
        assert fonts.font_file(["고", "漢"]) == "hangul"
    fonts._file_with.cache_clear()


def test_a_font_that_is_gone_or_damaged_has_no_letters(tmp_path):
    (tmp_path / "a.ttf").write_bytes(b"no font")
    assert fonts._letters(str(tmp_path / "a.ttf")) == fonts._letters(str(tmp_path / "none.ttf")) == frozenset()
