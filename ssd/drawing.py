"""Draws detections into pictures, and training curves."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ssd.boxes import read_boxes, read_column
from ssd.fonts import font_file
from ssd.runtime.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = [
    "class_color",
    "contact_sheet",
    "draw_detections",
    "is_drawing",
    "plot_curves",
    "save_figure",
    "save_png",
    "side_by_side",
]

Box = tuple[int, int, int, int]

# Twenty bright and saturated colours with the largest distances in Oklab; the most different ones come first.
PALETTE = bytes.fromhex(
    "ff1500 00d900 0060e6 ff00ff 66f2ff ffcc33 b26b95 00800b 0e778c a512b2"
    "ff0095 a65300 9f80ff 7919ff ff99ee ff9580 19b2ff 00bf8f aaff99 a69800"
)
MARK = "ssd detect"  # value of the text field "Software" in our PNG files; only files with this value are replaced
PLOTTED = 4000  # maximum number of points of a line: several for each pixel of the plot's width
SHADES = (1.0, 0.8, 0.62, 0.48)  # brightness of classes 1-20, 21-40, 41-60 and 61-80


def class_color(label: int) -> tuple[int, int, int]:
    """Returns the colour of a class. It is the same in every picture; 80 consecutive labels have different colours.

    Args:
        label: class label, at least 1.

    Returns:
        (red, green, blue), each in 0..255.
    """
    shade, color = divmod((label - 1) % 80, 20)
    red, green, blue = (round(SHADES[shade] * channel) for channel in PALETTE[3 * color : 3 * color + 3])
    return red, green, blue


def draw_detections(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None = None,
    *,
    classes: Sequence[str],
    width: int | None = None,
) -> Image.Image:
    """Draws boxes into a picture, each with the name of its class and, if given, its score.

    The width of lines and the size of text depend on the size of the picture. A box is cut at the picture's edge. Boxes
    that are outside, empty, inverted or NaN are left out, and so is label 0 (the "nothing found" row of `ssd.detect`).

    Args:
        image: (3, H, W) uint8 RGB.
        boxes: (k, 4) xyxy in pixels, k >= 0.
        labels: (k,) integer in 0..C-1.
        scores: (k,) in 0..1; boxes with higher scores are drawn on top. Without scores, earlier rows are on top.
        classes: the C-1 class names without background; label i is `classes[i - 1]`.
        width: line width in pixels, at least 1; by default 1/150 of the square root of the picture's area, at least 2.

    Returns:
        The drawing, of the same size as the image.

    Raises:
        ValueError: a shape, dtype, label or width is not allowed.

    Examples:
        >>> import torch
        >>> from ssd.drawing import draw_detections
        >>> image = torch.zeros(3, 60, 80, dtype=torch.uint8)
        >>> boxes, labels = torch.tensor([[10, 20, 50, 50]]), torch.tensor([1])
        >>> draw_detections(image, boxes, labels, torch.tensor([0.9]), classes=["cat"]).size
        (80, 60)
    """
    picture = _to_pil(image)
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    boxes, numbers = read_boxes(boxes, labels, range(len(classes) + 1))
    # Without scores all ranks are equal, and the sort below keeps the order of the rows.
    ranks = np.zeros(len(boxes)) if scores is None else read_column(scores, "scores", len(boxes)).double().numpy()
    size = _size(picture)
    width = width or max(2, round(size / 150))
    font = _font(max(11, round(size / 28)), classes)

    shown = []  # best first
    for i in np.argsort(-ranks, kind="stable"):
        corners, label = _to_pixels(boxes[i].numpy(), picture.size), int(numbers[i])
        if corners and label > 0:
            text = classes[label - 1] + ("" if scores is None else f" {ranks[i]:.2f}")
            shown.append((corners, _fit(text, font, picture.width - 2 * _pad(font)), class_color(label)))

    draw = ImageDraw.Draw(picture)
    for corners, _, color in reversed(shown):
        x0, y0, x1, y1 = corners
        # Pillow draws outside of the box too if the line is wider than the box.
        draw.rectangle(corners, outline=color, width=min(width, (min(x1 - x0, y1 - y0) + 2) // 2))
    tabs: list[Box] = []
    for corners, text, _ in shown:  # the best detection gets its place first ...
        tabs.append(_place_tab(corners, text, font, picture.size, tabs))
    for tab, (_, text, color) in reversed(list(zip(tabs, shown, strict=True))):  # ... and is drawn over the others
        _draw_tab(draw, tab, text, font, color)
    return picture


def side_by_side(left: Image.Image, right: Image.Image, captions: tuple[str, str]) -> Image.Image:
    """Puts two pictures beside each other on white, each with a caption above it.

    The picture with the smaller height is enlarged to the height of the other one.

    Args:
        left, right: RGB pictures.
        captions: texts above the left and the right picture; a text that is wider than its picture is cut.

    Returns:
        A new RGB picture.

    Raises:
        ValueError: not exactly two captions.
    """
    if len(captions) != 2:
        raise ValueError(f"captions must be two texts, got {captions!r}")
    height = max(left.height, right.height)
    pictures = [
        p if p.height == height else p.resize((max(1, round(p.width * height / p.height)), height))
        for p in (left, right)
    ]
    size = min(map(_size, pictures))
    font = _font(max(12, round(size / 22)), captions)
    margin = max(4, round(size / 40))
    ascent, descent = font.getmetrics()
    top = 2 * margin + ascent + descent

    sheet = Image.new("RGB", (3 * margin + sum(p.width for p in pictures), top + height + margin), "white")
    draw = ImageDraw.Draw(sheet)
    x = margin
    for picture, caption in zip(pictures, captions, strict=True):
        sheet.paste(picture, (x, top))
        caption = _fit(caption, font, picture.width)
        overhang = min(0, font.getbbox(caption)[0])  # some letters extend to the left of the start of the text
        draw.text((x - overhang, margin), caption, fill=(40, 40, 40), font=font)
        x += picture.width + margin
    return sheet


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 2, width: int = 800) -> Image.Image:
    """Puts pictures in rows on white, all resized to one width.

    Args:
        pictures: RGB pictures, at least one.
        columns: number of pictures in a row, at least 1.
        width: width of each picture in pixels.

    Returns:
        A new RGB picture.
    """
    pictures = [p.resize((width, max(1, round(p.height * width / p.width)))) for p in pictures]
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(p.height for p in row) for row in rows]
    sheet = Image.new("RGB", (width * len(rows[0]), sum(heights)), "white")
    for row, top in zip(rows, itertools.accumulate(heights, initial=0), strict=False):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * width, top))
    return sheet


def save_png(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a drawing to a PNG file, with a mark that `is_drawing` reads.

    The file appears, or replaces an older one, only when it is complete.

    Args:
        picture: the drawing.
        path: file to write, in an existing folder.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    mark = PngInfo()
    mark.add_text("Software", MARK)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=mark, compress_level=1)  # 4 times as fast as the default, 6


def is_drawing(path: str | os.PathLike[str]) -> bool:
    """Tells from the header of a file whether `save_png` wrote it; False if there is no such file."""
    try:
        if not os.path.isfile(path):  # opening a pipe could wait forever
            return False
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get("Software") == MARK
    except Exception:  # for damaged files Pillow raises OSError, SyntaxError, struct.error, ...
        return False


def plot_curves(history: Mapping[str, Sequence[float]], path: str | os.PathLike[str]) -> None:
    """Plots loss and mAP over the training steps into a PNG file.

    Args:
        history: two pairs of lists of numbers: "step" and "loss", of the same length, and "eval_step" and "mAP" (in
            0..1), of the same length. A pair may be absent or empty. NaN leaves a gap in the curve.
        path: file to write, in an existing folder.

    Raises:
        ValueError: the two lists of a pair have different lengths.
        FileNotFoundError: the folder does not exist.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    loss_axes, map_axes = figure.subplots(2, 1, sharex=True)

    step, loss = _pair(history, "step", "loss")
    loss_axes.plot(*_envelope(step, loss), color="tab:blue", alpha=0.25, linewidth=1)
    # If there are few points, each is marked by a dot, because a single point between two gaps has no line.
    every = slice(None, None, math.ceil(len(loss) / PLOTTED) or 1)
    mean = running_mean(loss)[every]
    loss_axes.plot(step[every], mean, color="tab:blue", linewidth=2, marker="o" if len(loss) < 50 else "")
    loss_axes.set_ylabel("loss")
    if np.isfinite(loss).any():
        # The axis ends near the 99th percentile: single high values, such as the first ones, would flatten the curve.
        loss_axes.set_ylim(0, 1.2 * np.percentile(loss[np.isfinite(loss)], 99) or 1)

    eval_step, mean_ap = _pair(history, "eval_step", "mAP")
    map_axes.plot(eval_step, mean_ap, color="tab:orange", linewidth=2, marker="o", markersize=4)
    if np.isfinite(mean_ap).any():
        best = int(np.nanargmax(mean_ap))
        map_axes.set_title(f"best mAP {mean_ap[best]:.3f} at step {eval_step[best]:g}", loc="right", fontsize=10)
    map_axes.set(ylabel="mAP", xlabel="step", ylim=(0, 1.02))
    map_axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    save_figure(figure, path)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Adds a grid to all axes of a matplotlib figure, and writes it to a PNG file, complete or not at all.

    Args:
        figure: the figure; its axes are changed.
        path: file to write, in an existing folder.
    """
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _to_pil(image: Tensor) -> Image.Image:
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or image.numel() == 0:
        raise ValueError(f"image must be (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}")
    return Image.fromarray(image.cpu().permute(1, 2, 0).contiguous().numpy())  # (H,W,3)


def _font(size: int, texts: Sequence[str]) -> ImageFont.FreeTypeFont:
    path = font_file(texts)
    font = ImageFont.truetype(path, size) if path else ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow without FreeType has only a bitmap font of one size
    return font


def _size(picture: Image.Image) -> float:
    """Square root of the area of the picture, in pixels; line widths and text sizes are proportional to it."""
    return (picture.width * picture.height) ** 0.5


def _to_pixels(box: np.ndarray, size: tuple[int, int]) -> Box | None:
    """First column, first row, last column and last row of the visible part of a box; None if nothing is visible."""
    columns, rows = size
    x0, y0, x1, y1 = np.clip(box, 0, [columns, rows, columns, rows])
    if not (x0 < x1 and y0 < y1):  # NaN fails as well
        return None
    x0, y0 = min(round(x0), columns - 1), min(round(y0), rows - 1)
    return x0, y0, max(x0, round(x1) - 1), max(y0, round(y1) - 1)


def _place_tab(
    corners: Box, text: str, font: ImageFont.FreeTypeFont, size: tuple[int, int], taken: Sequence[Box]
) -> Box:
    """Places the tab of a text at a corner of the box.

    A tab is the coloured background of a text. It is inside the picture and, if possible, does not overlap the tabs in
    `taken`.
    """
    ascent, descent = font.getmetrics()
    pad = _pad(font)
    w, h = round(font.getlength(text)) + 2 * pad, ascent + descent + pad
    x0, y0, x1, y1 = corners
    places = [(x0, y0 - h), (x0, y0), (x1 - w, y0 - h), (x0, y1), (x1 - w, y1), (x0, y1 - h)]
    tabs = [(x, y, x + w, y + h) for x, y in (_inside(place, (w, h), size) for place in places)]
    return next((tab for tab in tabs if not any(_overlap(tab, other) for other in taken)), tabs[0])


def _draw_tab(
    draw: ImageDraw.ImageDraw, tab: Box, text: str, font: ImageFont.FreeTypeFont, color: tuple[int, int, int]
) -> None:
    draw.rectangle(tab, fill=color)
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 100  # luma of ITU-R BT.601
    pad = _pad(font)
    draw.text((tab[0] + pad, tab[1] + pad // 2), text, fill="black" if bright else "white", font=font)


def _pad(font: ImageFont.FreeTypeFont) -> int:
    return max(2, font.getmetrics()[0] // 5)


def _inside(place: tuple[int, int], extent: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Moves the place so that a tab of this extent stays inside a picture of this size."""
    x, y = (max(0, min(p, s - 1 - e)) for p, e, s in zip(place, extent, size, strict=True))
    return x, y


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Shortens a text that is wider than `width` pixels to its beginning and three dots."""

    def fits(text: str) -> bool:
        left, _, right, _ = font.getbbox(text)
        return right - min(0, left) <= width

    if fits(text):
        return text
    while text and not fits(text + "..."):
        text = text[:-1]
    return text + "..."


def _pair(history: Mapping[str, Sequence[float]], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    xs, ys = (np.asarray(history.get(name, ()), dtype=float) for name in (x, y))
    if xs.shape != ys.shape:
        raise ValueError(f"history: {x!r} has {len(xs)} values, {y!r} {len(ys)}")
    return xs, ys


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean, at each point, of the finite values in a window of about 1/40 of the curve; NaN where the value is not
    finite."""
    if len(values) == 0:
        return values
    size = 2 * (len(values) // 80) + 1
    finite = np.isfinite(values)
    count = _window_sums(finite.astype(float), size)
    total = _window_sums(np.where(finite, values, 0.0), size)
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def _window_sums(values: np.ndarray, size: int) -> np.ndarray:
    """Sums the values in a window of odd size around each value, in a time that does not depend on the size.

    The values are divided into blocks of this size. A window is the end of one block and the beginning of the next
    one, and the sums of both come from cumulative sums inside the blocks. Differences of cumulative sums over all
    values would lose small values that follow a large one.
    """
    n = len(values)
    padded = np.zeros((n // size + 2) * size)
    padded[size // 2 :][:n] = values
    blocks = padded.reshape(-1, size)
    ends = blocks[:, ::-1].cumsum(axis=1)[:, ::-1].ravel()[:n]
    beginnings = blocks.cumsum(axis=1).ravel()[size - 1 :][:n]
    return np.where(np.arange(n) % size, ends + beginnings, ends)


def _envelope(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduces a line to at most `PLOTTED` points without changing how the plot looks.

    The points are the lowest and the highest finite value of each group of neighbours.
    """
    if len(ys) <= PLOTTED:
        return xs, ys
    size = math.ceil(2 * len(ys) / PLOTTED)
    places = np.arange(0, len(ys), size)
    ys = np.where(np.isfinite(ys), ys, np.nan)
    lowest, highest = (extreme.reduceat(ys, places) for extreme in (np.fmin, np.fmax))
    return np.repeat(xs[places], 2), np.stack([lowest, highest], axis=1).ravel()
