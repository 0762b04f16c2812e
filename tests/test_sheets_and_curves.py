"""Drawings beside each other, drawings as files, and curves of a training."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import torch
from evaluation_inputs import random_images
from PIL import Image
from pixels import changed, has_color, noise, places
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

import ssd.drawing
from ssd.drawing import class_color, is_drawing, plot_curves, save_png, side_by_side
from ssd.evaluation.curves import plot_precision
from ssd.evaluation.voc import EvalResult, average_precision

NAN, INF = math.nan, math.inf


def sheet_of(left: Tensor, right: Tensor, captions: tuple[str, str]) -> Tensor:
    return pil_to_tensor(side_by_side(to_pil_image(left), to_pil_image(right), captions))


def test_two_pictures_of_one_height() -> None:
    left, right = noise(120, 160, 1), noise(120, 90, 2)
    sheet = sheet_of(left, right, ("truth", "found"))
    assert sheet.dtype == torch.uint8
    [(top, x)], [(other_top, other_x)] = places(sheet, left), places(sheet, right)
    assert top == other_top
    margin = x
    assert margin > 0
    assert other_x == x + 160 + margin
    assert sheet.shape == (3, top + 120 + margin, 160 + 90 + 3 * margin)
    # The rest is white but for a caption above each picture.
    rest = (sheet != 255).any(0)
    rest[top : top + 120, x : x + 160] = False
    rest[top : top + 120, other_x : other_x + 90] = False
    assert rest[:top, x : x + 160].any()
    assert rest[:top, other_x : other_x + 90].any()
    rest[:top, x : x + 160] = False
    rest[:top, other_x : other_x + 90] = False
    assert not rest.any()


def test_each_caption_stands_above_its_own_picture() -> None:
    left, right = noise(120, 160, 1), noise(120, 90, 2)
    empty = sheet_of(left, right, ("", ""))
    [(top, x)] = places(empty, right)
    assert (empty[:, :top] == 255).all()
    for captions, above in ((("cat", ""), slice(0, x)), (("", "cat"), slice(x, None))):
        mask = changed(empty, sheet_of(left, right, captions))
        assert mask[:top, above].any()
        mask[:top, above] = False
        assert not mask.any()


@pytest.mark.parametrize("swap", [False, True])
def test_lower_picture_is_enlarged(swap: bool) -> None:
    high = noise(160, 60)
    low = torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None].expand(3, 40, 50)
    pair = (high, low) if swap else (low, high)
    sheet = sheet_of(*pair, ("a", "b"))
    assert len(places(sheet, high)) == 1
    # 40 x 50 becomes 160 x 200, and the sheet is that of two pictures of these sizes.
    mask = has_color(sheet, (10, 200, 30))
    assert (int(mask.any(1).sum()), int(mask.any(0).sum()), int(mask.sum())) == (160, 200, 160 * 200)
    large = low[:, :1, :1].expand(3, 160, 200)
    assert torch.equal(sheet, sheet_of(*((high, large) if swap else (large, high)), ("a", "b")))


@pytest.mark.parametrize(("left", "right"), [((1, 1), (300, 300)), ((1, 90), (50, 1)), ((30, 1), (10, 40))])
def test_odd_sizes(left: tuple[int, int], right: tuple[int, int]) -> None:
    sheet = sheet_of(noise(*left), noise(*right), ("caption", "caption"))
    assert sheet.shape[1] > max(left[0], right[0])
    assert sheet.shape[2] > right[1]


def test_too_long_captions_are_cut() -> None:
    left, right = noise(120, 160, 1), noise(120, 160, 2)
    empty = sheet_of(left, right, ("", ""))
    [(_, x)], [(_, other_x)] = places(empty, left), places(empty, right)
    for captions, start in ((("x" * 300, ""), x), (("", "x" * 300), other_x)):
        sheet = sheet_of(left, right, captions)
        assert sheet.shape == empty.shape
        columns = changed(empty, sheet).any(0).nonzero()
        assert columns.min() >= start
        assert columns.max() < start + 160
        assert columns.max() - columns.min() > 120  # not cut more than it must be
    assert torch.equal(sheet_of(left, right, ("x" * 300, "")), sheet_of(left, right, ("x" * 400, "")))


@pytest.mark.parametrize("captions", [(), ("one",), ("one", "two", "three")])
def test_not_two_captions(captions: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="captions must be two texts, got ") as error:
        sheet_of(noise(8, 8), noise(8, 8), captions)
    assert repr(captions) in str(error.value)


HISTORY = {
    "step": list(range(10, 1010, 10)),
    "loss": [5 - i / 25 for i in range(100)],
    "eval_step": [500, 1000],
    "mAP": [0.3, 0.6],
}


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("name", ["picture.png", "no suffix", "two.dots.jpg"])
def test_png_round_trip(kind: type, name: str, tmp_path: Path) -> None:
    image = noise(31, 57)
    save_png(to_pil_image(image), kind(tmp_path / name))
    assert is_drawing(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with Image.open(tmp_path / name) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (57, 31))
        assert np.array_equal(np.array(picture), image.permute(1, 2, 0).numpy())


def test_png_into_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_png(to_pil_image(noise(5, 5)), "picture.png")
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


RESULT = average_precision(*random_images(0), ("one", "two", "three", "none"))
WRITERS = [
    pytest.param(lambda path: save_png(to_pil_image(noise(8, 8)), path), Image.Image, "save", id="save_png"),
    pytest.param(lambda path: plot_curves(HISTORY, path), matplotlib.figure.Figure, "savefig", id="plot_curves"),
    pytest.param(lambda path: plot_precision(RESULT, path), matplotlib.figure.Figure, "savefig", id="plot_precision"),
]


@pytest.mark.parametrize(("write", "owner", "encoder"), WRITERS)
def test_old_file_is_replaced(write: Callable, owner: type, encoder: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    write(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize(("write", "owner", "encoder"), WRITERS)
def test_failure_leaves_the_old_file_and_nothing_else(
    write: Callable, owner: type, encoder: str, old: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    if old:
        path.write_bytes(old)
    begun = []

    def half(self, target, *args, **kwargs) -> None:
        Path(target).write_bytes(b"half a pic")
        begun.append(Path(target))
        assert path.read_bytes() == old if old else not path.exists()  # nobody sees the half
        raise OSError("disk full")

    monkeypatch.setattr(owner, encoder, half)
    with pytest.raises(OSError, match=f"^{re.escape(str(path))}: disk full$"):
        write(path)
    assert begun[0].parent == tmp_path  # on the same file system, or it could not take the old one's place at once
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({"picture.png": old} if old else {})


@pytest.mark.parametrize(("write", "owner", "encoder"), WRITERS)
def test_missing_folder(write: Callable, owner: type, encoder: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not there"):
        write(tmp_path / "not there" / "picture.png")
    assert list(tmp_path.iterdir()) == []


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)  # matplotlib's tab:blue and tab:orange


def plotted(history: dict[str, list[float]], folder: Path) -> Tensor:
    """The plot of a history, drawn without a warning: (3,H,W) uint8."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_curves(history, folder / "curves.png")
    with Image.open(folder / "curves.png") as picture:
        assert picture.format == "PNG"
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("history", "has_loss", "has_map"),
    [
        ({}, False, False),
        ({"step": [], "loss": [], "eval_step": [], "mAP": []}, False, False),
        ({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]}, True, False),
        ({"eval_step": [1, 2, 3], "mAP": [0.1, 0.5, 0.7]}, False, True),
        ({"step": [1], "loss": [2.0], "eval_step": [1], "mAP": [0.5]}, None, True),  # a line of one point is unseen
        ({"step": [1, 2, 3], "loss": [NAN] * 3, "eval_step": [3], "mAP": [NAN]}, False, False),
        ({"step": [1, 2, 3, 4], "loss": [INF, 2.0, 1.0, NAN]}, True, False),
        ({"step": [1, 2, 3], "loss": [0.0, 0.0, 0.0], "eval_step": [3], "mAP": [0.0]}, True, True),
        (HISTORY, True, True),
    ],
    ids=["empty", "empty lists", "loss", "mAP", "one point", "NaN", "inf", "zero", "usual"],
)
def test_curves_are_a_png(
    history: dict[str, list[float]], has_loss: bool | None, has_map: bool, tmp_path: Path
) -> None:
    picture = plotted(history, tmp_path)
    assert min(picture.shape[1:]) > 300
    if has_loss is not None:
        assert bool(has_color(picture, BLUE).any()) == has_loss
    assert bool(has_color(picture, ORANGE).any()) == has_map


def test_nan_leaves_a_gap(tmp_path: Path) -> None:
    steps, loss = list(range(400)), [1.0] * 400
    whole = has_color(plotted({"step": steps, "loss": loss}, tmp_path), BLUE).any(0)
    loss[150:250] = [NAN] * 100  # a quarter of the line
    parts = has_color(plotted({"step": steps, "loss": loss}, tmp_path), BLUE).any(0)
    columns = whole.nonzero()[:, 0]
    assert whole[columns[0] : columns[-1] + 1].all()
    assert 0.72 < parts.sum() / whole.sum() < 0.78
    assert not parts[(columns[0] + columns[-1]) // 2]


def test_single_high_losses_do_not_press_the_curve_flat(tmp_path: Path) -> None:
    loss = [1000.0] + [1.0] * 199
    line = has_color(plotted({"step": list(range(200)), "loss": loss}, tmp_path), BLUE)
    # The upper half of the picture shows 0 .. 1.2: the line at 1 is near its top.
    assert line.sum(1).argmax() < line.shape[0] / 4


@pytest.mark.parametrize("n", [1, 2, 79, 80, 81, 1000, 1001, 2400])
def test_the_running_mean_is_that_of_a_convolution(n: int) -> None:
    values = np.random.default_rng(n).random(n)
    values[:: max(2, n // 7)] = [[1e30], [NAN], [INF], [-INF]][n % 4]
    window, finite = np.ones(2 * (n // 80) + 1), np.isfinite(values)
    count = np.convolve(finite, window, mode="same")
    total = np.convolve(np.where(finite, values, 0), window, mode="same")
    expected = np.where(finite, total / np.maximum(count, 1), NAN)
    np.testing.assert_allclose(ssd.drawing._running_mean(values), expected, rtol=1e-13)


def test_a_long_curve_is_drawn_by_few_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, save = [], ssd.drawing.save_figure
    monkeypatch.setattr(ssd.drawing, "save_figure", lambda figure, path: drawn.append(figure) or save(figure, path))
    loss = np.random.default_rng(0).random(100_003)
    loss[70_001], loss[:10_000] = 1.1, NAN
    picture = plotted({"step": range(len(loss)), "loss": loss}, tmp_path)
    assert has_color(picture, BLUE).any()
    raw, mean = (line.get_xydata() for line in drawn[0].axes[0].get_lines())
    assert 1000 < len(mean) <= len(raw) <= 5000
    x, y = raw[np.nanargmax(raw[:, 1])]
    assert y == 1.1
    assert abs(x - 70_001) < 100
    np.testing.assert_array_equal(np.isnan(raw[:, 1]), raw[:, 0] + 49 < 10_000)
    np.testing.assert_array_equal(mean[:, 1], ssd.drawing._running_mean(loss)[mean[:, 0].astype(int)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step": [1, 2]}, "'step' has 2 values, 'loss' 100"),
        ({"loss": []}, "'step' has 100 values, 'loss' 0"),
        ({"eval_step": [1]}, "'eval_step' has 1 values, 'mAP' 2"),
        ({"mAP": [0.1] * 3}, "'eval_step' has 2 values, 'mAP' 3"),
    ],
)
def test_unequal_lengths(wrong: dict[str, list[float]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plot_curves({**HISTORY, **wrong}, tmp_path / "curves.png")
    without = {name: values for name, values in HISTORY.items() if name not in ("step", "mAP")}
    with pytest.raises(ValueError, match="'step' has 0 values, 'loss' 100"):
        plot_curves(without, tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def test_precision_of_every_class_in_its_colour(tmp_path: Path) -> None:
    def colours(result: EvalResult) -> list[bool]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plot_precision(result, tmp_path / "p.png")
        with Image.open(tmp_path / "p.png") as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        return [bool(has_color(pixels, class_color(label)).any()) for label in range(1, 5)]

    assert colours(RESULT) == [True, True, True, False]  # the fourth has no ground truth
    nothing = average_precision([], [], [f"class {i}" for i in range(80)])
    assert colours(nothing) == [False] * 4
    detections, targets = random_images(0)
    names = [f"_$^$ {i}" for i in range(80)]
    many = average_precision(detections, [{**t, "labels": t["labels"] * 26 + 1} for t in targets], names)
    assert colours(many) == [False] * 4  # those with ground truth are 27, 53 and 79
