"""Boxes on pictures, pictures beside each other, drawings as files, and curves of a training."""

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
from PIL import Image
from pixels import changed, has_color, noise, places
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

import ssd.drawing
from ssd.drawing import class_color, contact_sheet, draw_detections, is_drawing, plot_curves, save_png, side_by_side

CLASSES = ("cat", "dog", "bird")
CAT, DOG, BIRD = 1, 2, 3
NAN, INF = math.nan, math.inf


def draw(image: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor | None = None, **options) -> Tensor:
    """The drawing as a tensor; boxes are given in fractions of the image."""
    height, width = image.shape[1:]
    pixels = boxes * torch.tensor([width, height, width, height], device=boxes.device)
    return pil_to_tensor(draw_detections(image, pixels, labels, scores, **{"classes": CLASSES, **options}))


def drawn(image: Tensor, *rows, **options) -> Tensor:
    """The picture with boxes from rows of (box, label, score)."""
    boxes, labels, scores = zip(*rows, strict=True)
    return draw(image, torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), torch.tensor(scores), **options)


def tab_of(label: int, score: float, height: int = 240, width: int = 240) -> Tensor:
    """The tab as it looks above a wide box in the middle of a picture, with the row that the box's line covers."""
    image = noise(height, width)
    y0 = height // 2
    mask = changed(image, drawn(image, ([0.1, 0.5, 0.9, 0.9], label, score)))[:y0]
    assert mask.any()
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    top, left, right = int(rows[0]), int(columns[0]), int(columns[-1])
    assert mask[top:, left : right + 1].all()  # a filled rectangle that ends at the box
    assert left == round(0.1 * width)
    return drawn(image, ([0.1, 0.5, 0.9, 0.9], label, score))[:, top : y0 + 1, left : right + 1]


@pytest.mark.parametrize("size", [(300, 300), (37, 211), (1, 1)])
def test_picture_keeps_its_size_and_the_input_its_pixels(size: tuple[int, int]) -> None:
    image = noise(*size)
    before = image.clone()
    boxes, labels, scores = torch.tensor([[0.2, 0.2, 0.8, 0.8]]), torch.tensor([DOG]), torch.tensor([0.5])
    after = draw(image, boxes, labels, scores)
    assert after.shape == image.shape
    assert after.dtype == torch.uint8
    assert torch.equal(image, before)
    assert not torch.equal(after, before)
    assert torch.equal(boxes, torch.tensor([[0.2, 0.2, 0.8, 0.8]]))


def test_device_and_memory_layout_do_not_matter(device: torch.device) -> None:
    image, row = noise(80, 120), ([0.2, 0.4, 0.8, 0.8], DOG, 0.5)
    turned = image.permute(1, 2, 0).contiguous().permute(2, 0, 1).to(device)
    after = draw(turned, *(torch.tensor([column]).to(device) for column in row))
    assert torch.equal(after, drawn(image, row))


@pytest.mark.parametrize(("label", "width"), [(CAT, 1), (DOG, 3), (BIRD, 8)])
def test_edges_have_the_class_color_and_the_inside_is_untouched(label: int, width: int) -> None:
    image = noise(200, 300)
    # columns 75 .. 224, rows 100 .. 179
    after = drawn(image, ([0.25, 0.5, 0.75, 0.9], label, 0.5), width=width)
    frame = torch.zeros(200, 300, dtype=torch.bool)
    frame[100:180, 75:225] = True
    frame[100 + width : 180 - width, 75 + width : 225 - width] = False
    assert has_color(after, class_color(label))[frame].all()
    others = changed(image, after) & ~frame
    assert not others[100:].any()  # beside, below and inside the box
    assert others[:100].any()  # the tab above it


def test_box_over_the_whole_picture() -> None:
    image = noise(200, 300)
    after = drawn(image, ([0.0, 0.0, 1.0, 1.0], CAT, 0.5), width=2)
    line = has_color(after, class_color(CAT))
    assert line[-2:].all()
    assert line[:, -2:].all()
    assert line[100:, :2].all()
    assert not changed(image, after)[100:-2, 2:-2].any()


@pytest.mark.parametrize(
    ("a", "b", "dog_first", "top"),
    [
        *[(0.9, 0.6, True, CAT), (0.6, 0.9, False, DOG), (0.5, 0.5, False, CAT), (0.5, 0.5, True, DOG)],
        *[(None, None, False, CAT), (None, None, True, DOG)],
    ],
)
def test_higher_score_is_on_top_else_the_earlier_row(
    a: float | None, b: float | None, dog_first: bool, top: int
) -> None:
    image = noise(300, 300)
    rows = [([0.1, 0.4, 0.9, 0.8], CAT, a), ([0.4, 0.2, 0.6, 0.95], DOG, b)]
    if dog_first:
        rows.reverse()
    boxes, labels, scores = zip(*rows, strict=True)
    scores = None if a is None else torch.tensor(scores)
    after = draw(image, torch.tensor(boxes), torch.tensor(labels), scores, width=3)
    # The lower edge of the cat, rows 237 .. 239, crosses the sides of the dog, columns 120 .. 122 and 177 .. 179.
    for columns in (slice(120, 123), slice(177, 180)):
        assert has_color(after, class_color(top))[237:240, columns].all()


# Small boxes in the corners and at the borders, boxes that reach beyond them, and the whole picture.
AT_THE_BORDER = [
    [*start, *end]
    for low, high in [((0.0, 0.02), (0.98, 1.0)), ((-0.3, 0.1), (0.9, 1.3))]
    for start, end in [((x[0], y[0]), (x[1], y[1])) for x in (low, (0.45, 0.6), high) for y in (low, (0.45, 0.6), high)]
]


def test_tab_is_wholly_inside_the_picture() -> None:
    image, tab = noise(240, 240, seed=1), tab_of(DOG, 0.75)
    for box in [*AT_THE_BORDER, [0.0, 0.0, 1.0, 1.0], [-1.0, -1.0, 2.0, 2.0]]:
        assert len(places(drawn(image, (box, DOG, 0.75)), tab)) == 1, box


def test_tab_sits_above_the_box_where_there_is_room() -> None:
    after = drawn(noise(240, 240, seed=1), ([0.25, 0.5, 0.9, 0.9], DOG, 0.75))
    tab = tab_of(DOG, 0.75)
    assert places(after, tab) == [(120 - (tab.shape[1] - 1), 60)]


def test_tabs_do_not_cover_each_other() -> None:
    box = [0.1, 0.4, 0.9, 0.8]
    rows = [(box, DOG, 0.75), (box, CAT, 0.5), (box, BIRD, 0.25)]
    after = drawn(noise(240, 240), *rows)
    for _, label, score in rows:  # all but the border row, which two neighbours share
        assert places(after, tab_of(label, score)[:, 1:-1])
    # The best one has the place that it would have had alone, in whatever row it is.
    for order in (rows, rows[::-1]):
        place = places(drawn(noise(240, 240), *order), tab_of(DOG, 0.75)[:, :-1])
        assert place == [(96 - (tab_of(DOG, 0.75).shape[1] - 1), 24)]


def test_tab_has_name_and_score() -> None:
    image, box = noise(240, 240), torch.tensor([[0.1, 0.5, 0.9, 0.9]])

    def tab(label: int, score: float | None, classes: tuple[str, ...] = CLASSES) -> bytes:
        scores = None if score is None else torch.tensor([score])
        return draw(image, box, torch.tensor([label]), scores, classes=classes).numpy().tobytes()

    # Label i is classes[i - 1]: the same colour and other names.
    assert tab(DOG, 0.5, ("cat", "dog")) == tab(DOG, 0.5, ("any", "dog"))
    assert tab(DOG, 0.5, ("cat", "dog")) != tab(DOG, 0.5, ("cat", "cow"))
    assert len({tab(DOG, score) for score in (None, 0.5, 0.51, 0.9)}) == 4
    assert tab(DOG, 0.501) == tab(DOG, 0.5)  # two decimals
    assert tab(DOG, None, ("cat", "dog 0.50")) == tab(DOG, 0.5)


@pytest.mark.parametrize("side", [60, 30, 8, 1])
def test_text_too_wide_for_the_picture_is_cut(side: int) -> None:
    image = noise(60, side)
    row = ([0.0, 0.5, 1.0, 1.0], 1, 0.5)
    after = drawn(image, row, classes=("a name that is far too long",))
    assert after.shape == image.shape
    assert torch.equal(after, drawn(image, row, classes=("a name that is far too long for any picture",)))
    if side == 60:  # the margin beside the text is there
        last = after[:, changed(image, after).any(1), -1]
        assert (has_color(last[..., None], class_color(1))[:, 0] | (last < 140).all(0) & (last >= 100).all(0)).all()


INVISIBLE = [
    *[[NAN, NAN, NAN, NAN], [NAN, 0.2, 0.8, 0.8], [0.2, NAN, 0.8, 0.8], [0.2, 0.2, NAN, 0.8]],
    *[[0.2, 0.2, 0.8, NAN], [0.8, 0.2, 0.2, 0.8], [0.2, 0.8, 0.8, 0.2], [0.8, 0.8, 0.2, 0.2]],
    *[[0.5, 0.2, 0.5, 0.8], [0.2, 0.5, 0.8, 0.5], [0.0, 0.0, 0.0, 0.0], [-0.8, 0.2, -0.1, 0.8]],
    *[[1.1, 0.2, 1.5, 0.8], [0.2, -0.8, 0.8, -0.1], [0.2, 1.1, 0.8, 1.5], [1.0, 0.2, 1.5, 0.8]],
    *[[-0.5, 0.2, 0.0, 0.8], [INF, INF, INF, INF], [-INF, -INF, -INF, -INF], [INF, 0.2, -INF, 0.8]],
]


def test_nan_inverted_empty_and_outside_boxes_are_left_out() -> None:
    image, good = noise(100, 100), ([0.2, 0.4, 0.8, 0.8], DOG, 0.5)
    for box in INVISIBLE:
        assert torch.equal(drawn(image, (box, CAT, 0.9)), image), box
        assert torch.equal(drawn(image, (box, CAT, 0.9), good, (box, CAT, 0.1)), drawn(image, good)), box


@pytest.mark.parametrize(("boxes", "scores"), [(torch.empty(0, 4), torch.empty(0)), (torch.empty(0), None)])
def test_no_boxes(boxes: Tensor, scores: Tensor | None) -> None:
    image = noise(50, 70)
    after = draw_detections(image, boxes, torch.empty(0, dtype=torch.int64), scores, classes=CLASSES)
    assert torch.equal(pil_to_tensor(after), image)


def test_label_0_is_not_drawn() -> None:
    image, good = noise(100, 100), ([0.2, 0.4, 0.8, 0.8], DOG, 0.5)
    nothing = ([0.0, 0.0, 1.0, 1.0], 0, 0.9)
    assert torch.equal(drawn(image, nothing), image)
    assert torch.equal(drawn(image, nothing, good), drawn(image, good))


@pytest.mark.parametrize(
    ("box", "visible"),
    [
        ([-0.5, 0.4, 0.5, 0.6], [0.0, 0.4, 0.5, 0.6]),
        ([0.3, 0.4, 7.0, 0.6], [0.3, 0.4, 1.0, 0.6]),
        ([0.3, -0.4, 0.5, 0.6], [0.3, 0.0, 0.5, 0.6]),
        ([0.3, 0.4, 0.5, 1.6], [0.3, 0.4, 0.5, 1.0]),
        ([-INF, -INF, INF, INF], [0.0, 0.0, 1.0, 1.0]),
    ],
)
def test_box_is_cut_at_the_edge(box: list[float], visible: list[float]) -> None:
    image = noise(120, 160)
    assert torch.equal(drawn(image, (box, CAT, 0.5)), drawn(image, (visible, CAT, 0.5)))


@pytest.mark.parametrize(
    ("box", "row", "column"),
    [
        ([0.5, 0.5, 0.5001, 0.5001], 100, 100),
        ([0.9999, 0.9999, 1.0, 1.0], 199, 199),
        ([0.0, 0.9, 0.0001, 0.9001], 180, 0),
    ],
)
def test_box_smaller_than_a_pixel_is_seen(box: list[float], row: int, column: int) -> None:
    after = drawn(noise(200, 200), (box, CAT, 0.5), classes=("",), width=1)
    assert has_color(after, class_color(CAT))[row, column]


@pytest.mark.parametrize(("height", "width", "line"), [(60, 60, 2), (460, 460, 3), (600, 2400, 8), (3000, 3000, 20)])
def test_lines_and_text_grow_with_the_picture(height: int, width: int, line: int) -> None:
    # 1/150 of the side of the square of the same area, at least 2
    image = torch.full((3, height, width), 120, dtype=torch.uint8)
    after = drawn(image, ([0.05, 0.5, 0.95, 0.9], CAT, 0.5), classes=("a", "b", "c"))
    x0 = round(0.05 * width)
    row = has_color(after, class_color(CAT))[round(0.7 * height)]
    assert row.nonzero()[:, 0].tolist()[: line + 1] == [*range(x0, x0 + line), round(0.95 * width) - line]
    tab_height = int(changed(image, after)[: height // 2].any(1).sum())
    # between 1/30 and 1/18 of that side, but never too low to read
    size = (height * width) ** 0.5
    assert max(size / 30, 12) < tab_height < max(size / 18, 20)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 8, 8), r"image must be \(3, H, W\) uint8, got \(3, 8, 8\) torch.float32"),
        (torch.zeros(8, 8).byte(), r"image .* got \(8, 8\)"),
        (torch.zeros(1, 8, 8).byte(), r"image .* got \(1, 8, 8\)"),
        (torch.zeros(8, 8, 3).byte(), r"image .* got \(8, 8, 3\)"),
        (torch.zeros(1, 3, 8, 8).byte(), r"image .* got \(1, 3, 8, 8\)"),
        (torch.zeros(3, 0, 8).byte(), r"image .* got \(3, 0, 8\)"),
    ],
)
def test_bad_image(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_detections(image, torch.zeros(1, 4), torch.tensor([CAT]), classes=CLASSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": torch.zeros(2, 5)}, r"boxes must have shape \(k, 4\), got \(2, 5\)"),
        ({"boxes": torch.zeros(4)}, r"boxes .* got \(4,\)"),
        ({"boxes": torch.zeros(3, 4)}, r"labels must have shape \(3,\).* got \(2,\)"),
        ({"labels": torch.tensor([[CAT, DOG]])}, r"labels .* got \(1, 2\)"),
        ({"scores": torch.zeros(1)}, r"scores must have shape \(2,\).* got \(1,\)"),
        ({"labels": torch.tensor([CAT, 4])}, r"labels must be in 0\.\.3, got 4"),
        ({"labels": torch.tensor([-1, CAT])}, r"labels must be in 0\.\.3, got -1"),
        ({"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_bad_detections(options: dict[str, object], message: str) -> None:
    arguments = {
        "boxes": torch.tensor([[0.2, 0.2, 0.8, 0.8]] * 2),
        "labels": torch.tensor([CAT, DOG]),
        "scores": torch.tensor([0.5, 0.6]),
        "classes": CLASSES,
    }
    draw_detections(noise(50, 50), **arguments)
    with pytest.raises(ValueError, match=message):
        draw_detections(noise(50, 50), **{**arguments, **options})


def test_where_tabs_must_overlap_the_better_score_is_read() -> None:
    # Twenty boxes in one place: only some of the tabs find room, and the worst one is placed over the best.
    box = [0.1, 0.5, 0.9, 0.9]
    rows = [(box, CAT if i == 0 else DOG, 0.99 - 0.02 * i) for i in range(20)]
    assert len(places(drawn(noise(240, 240), *rows), tab_of(CAT, 0.99)[:, :-1])) == 1


def test_a_line_wider_than_the_box_stays_in_it() -> None:
    image = noise(300, 300)
    after = drawn(image, ([0.5, 0.5, 0.52, 0.9], CAT, 0.5), width=40)  # columns 150..155
    below_the_tab = changed(image, after)[160:]
    assert below_the_tab.any(0).nonzero()[:, 0].tolist() == [*range(150, 156)]


def test_text_can_be_read_on_its_colour() -> None:
    def luminance(color: tuple[int, int, int]) -> float:  # WCAG 2
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for label in range(1, 81):
        after = drawn(noise(240, 240), ([0.1, 0.5, 0.9, 0.9], label, 0.5), classes=("name",) * 80)
        white = has_color(after, (255, 255, 255)).any()
        assert white != has_color(after, (0, 0, 0)).any(), label
        low, high = sorted((luminance(class_color(label)), 1.0 if white else 0.0))
        assert (high + 0.05) / (low + 0.05) > 3, label  # WCAG's least contrast for large text


def test_eighty_classes_have_eighty_colours() -> None:
    colors = [class_color(label) for label in range(1, 81)]
    assert all(type(part) is int and 0 <= part <= 255 for color in colors for part in color)
    assert len(set(colors)) == 80
    assert torch.pdist(torch.tensor(colors[:20], dtype=torch.float32)).min() > 60  # of 441, black to white


def test_a_contact_sheet_keeps_every_picture():
    colours = ["red", "lime", "blue"]
    sheet = contact_sheet([Image.new("RGB", (40 * (i + 1), 40), c) for i, c in enumerate(colours)], width=60)
    assert sheet.size == (120, 60 + 20)
    assert [sheet.getpixel(at) for at in ((30, 30), (90, 15), (30, 70), (90, 50))] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255),
    ]  # fmt: skip


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


@pytest.mark.parametrize("captions", [("one",), ("one", "two", "three")])
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


@pytest.mark.parametrize(("kind", "name"), [(str, "picture.png"), (Path, "no suffix"), (str, "two.dots.jpg")])
def test_png_round_trip(kind: type, name: str, tmp_path: Path) -> None:
    image = noise(31, 57)
    (tmp_path / name).write_bytes(b"old")
    save_png(to_pil_image(image), kind(tmp_path / name))
    assert is_drawing(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with Image.open(tmp_path / name) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (57, 31))
        assert np.array_equal(np.array(picture), image.permute(1, 2, 0).numpy())


WRITERS = [
    pytest.param(lambda path: save_png(to_pil_image(noise(8, 8)), path), Image.Image, "save", id="save_png"),
    pytest.param(lambda path: plot_curves(HISTORY, path), matplotlib.figure.Figure, "savefig", id="plot_curves"),
]


@pytest.mark.parametrize(("write", "owner", "encoder"), WRITERS)
def test_failure_leaves_the_old_file_and_nothing_else(
    write: Callable, owner: type, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def half(self, target, *args, **kwargs) -> None:
        Path(target).write_bytes(b"half a pic")
        raise OSError("disk full")

    monkeypatch.setattr(owner, encoder, half)
    with pytest.raises(OSError, match=f"^{re.escape(str(path))}: disk full$"):
        write(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"picture.png": b"old"}


def test_missing_folder(tmp_path: Path) -> None:
    for write in (lambda path: save_png(to_pil_image(noise(8, 8)), path), lambda path: plot_curves(HISTORY, path)):
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


def test_the_running_mean_is_that_of_a_convolution() -> None:
    for n in (1, 2, 79, 80, 81, 1000, 1001, 2400):
        values = np.random.default_rng(n).random(n)
        values[:: max(2, n // 7)] = [[1e30], [NAN], [INF], [-INF]][n % 4]
        window, finite = np.ones(2 * (n // 80) + 1), np.isfinite(values)
        count = np.convolve(finite, window, mode="same")
        total = np.convolve(np.where(finite, values, 0), window, mode="same")
        expected = np.where(finite, total / np.maximum(count, 1), NAN)
        np.testing.assert_allclose(ssd.drawing.running_mean(values), expected, rtol=1e-13, err_msg=str(n))


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
    np.testing.assert_array_equal(mean[:, 1], ssd.drawing.running_mean(loss)[mean[:, 0].astype(int)])


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
