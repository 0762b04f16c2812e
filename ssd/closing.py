"""What a finished run tells: how good it is, what is weakest, whether more epochs would help, its worst pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ssd.data import BoxDataset
from ssd.draw import contact_sheet, draw_detections, save_png, side_by_side
from ssd.evaluate import EvalResult
from ssd_ext import box_iou

WORST = 6  # pictures on the sheet
LEARNT, GAP = 0.97, 0.05  # mAP on the training pictures that leaves nothing to learn; its lead that tells of memorising


class Mistakes(NamedTuple):
    """What is wrong in one picture."""

    index: int  # of the picture
    missed: int  # objects that no detection found
    wrong: int  # detections that found no object
