"""Plots precision over recall."""

from __future__ import annotations

import math
import os

from ssd.drawing import class_color, save_figure
from ssd.evaluation.voc import EvalResult
from ssd.fonts import font_file

LEGEND_ROWS = 25  # number of lines that fit beside the curves


def plot_precision(result: EvalResult, path: str | os.PathLike[str]) -> None:
    """Plots precision over recall for every class that has ground truth, into a PNG file.

    Args:
        result: the result with the curves. The colours are those of `class_color`; the legend shows the average
            precision of each class.
        path: file to write, in an existing folder.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.font_manager import FontProperties

    columns = math.ceil(len(result.ap) / LEGEND_ROWS)
    figure = Figure(figsize=(6 + 2 * columns, 6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for label, (name, ap) in enumerate(result.ap.items(), start=1):
        if not math.isnan(ap):
            color = tuple(channel / 255 for channel in class_color(label))
            text = name.replace("$", r"\$")  # matplotlib takes text between two $ for a formula
            axes.plot(*result.curves[name], color=color, linewidth=1.5, label=f"{ap:.3f} {text}")
    axes.set(xlabel="recall", ylabel=f"precision at IoU {result.iou_threshold:g}", xlim=(0, 1.02), ylim=(0, 1.02))
    title = f"{result.title} {result.mAP:.3f}"
    font = FontProperties(fname=font_file(result.ap), size=9)
    figure.legend(handles=axes.get_lines(), loc="outside right upper", ncols=columns, title=title, prop=font)
    save_figure(figure, path)
