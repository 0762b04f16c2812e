"""Measures the losses and the speed of a run, and shows them in the terminal and in TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler
from tqdm import tqdm

from ssd.runtime.processes import Ranks

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Smallest useful scale of the loss: if gradients still overflow with a scale below this, no scale helps.
MIN_SCALE = torch.finfo(torch.float16).tiny
KEPT = 100_000  # maximum number of losses in a history; with the other columns they take 4.5 MB of a checkpoint
LOSSES = ("loss", "conf_loss", "loc_loss")  # of a step: the whole loss, and its parts for classes and boxes
COLUMNS = (*LOSSES, "lr")  # what a history has of each step
History = dict[str, list[float]]
NOTHING_LEARNT = (
    "the loss is 0 in every step, so nothing is learnt: no object is large enough for a prior, or all objects are cut "
    "away; larger pictures (--size), tiles (--tiles) or other priors (--priors auto) may help"
)


def learns_nothing(history: History) -> bool:
    """Whether all losses of a run are 0."""
    return bool(history["loss"]) and not any(history["loss"])


class Meter:
    """Collects losses on the device and reads them every few steps; measures speed, and the time spent on waiting.

    Args:
        history: lists "step" and those of `COLUMNS`, to which values are appended.
        bar: progress bar that shows loss and speed.
        writer: see `tensorboard_writer`.
        ranks: processes of the run; losses are means over the processes.
        scaler: scaler of the loss in float16. While it lowers its scale, it skips steps, and the loss may be infinite.
    """

    def __init__(
        self, history: History, bar: tqdm, writer: SummaryWriter | None, ranks: Ranks, scaler: GradScaler
    ) -> None:
        self.history, self.bar, self.writer, self.ranks, self.scaler = history, bar, writer, ranks, scaler
        self.seconds, self.waited, self.pictures, self.taken = 0.0, 0.0, 0, 0  # of all steps that were flushed
        self.start()

    def start(self) -> None:
        """Starts the clock; must be called again after work other than training, such as validation."""
        self.steps: list[int] = []
        self.losses: list[Tensor] = []
        self.rates: list[float] = []
        self.new_pictures, self.new_waited, self.since = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the time of the `with` block as time in which the run waits for pictures."""
        asked = time.perf_counter()
        yield
        self.new_waited += time.perf_counter() - asked

    def add(self, step: int, losses: Tensor, rate: float, pictures: int) -> None:
        """Adds a step; does not wait for the device.

        Args:
            step: number of the step, from 1.
            losses: (3,), those of `LOSSES`, on the device.
            rate: the learning rate.
            pictures: number of pictures of this process.
        """
        self.steps.append(step)
        self.losses.append(losses)
        self.rates.append(rate)
        self.new_pictures += pictures * self.ranks.size

    def flush(self) -> list[tuple[int, dict[str, float]]]:
        """Reads the losses from the device, and shows them.

        Returns:
            The number of each step since the last call, and its values of `COLUMNS`.

        Raises:
            FloatingPointError: a loss is not finite. In float16 the condition is instead that gradients overflow even
                with a scale below `MIN_SCALE`.
        """
        if not self.losses:
            return []
        columns = dict(zip(LOSSES, self.ranks.mean(torch.stack(self.losses)).T.tolist(), strict=True))
        losses = columns["loss"]
        wrong = next((pair for pair in zip(losses, self.steps, strict=True) if not math.isfinite(pair[0])), None)
        if self.scaler.is_enabled() and self.scaler.get_scale() >= MIN_SCALE:
            wrong = None
        elif self.scaler.is_enabled() and not wrong:
            wrong = math.inf, self.steps[-1]  # the gradient is infinite, and the scaler skips every step
        if wrong:
            raise FloatingPointError(
                f"the loss became {wrong[0]} at step {wrong[1]}: try a lower learning rate, a longer warm-up "
                f"or gradient clipping; last.pt, if it exists, is from before this step"
            )
        columns["lr"] = self.rates
        values = zip(*columns.values(), strict=True)
        rows = [(step, dict(zip(columns, row, strict=True))) for step, row in zip(self.steps, values, strict=True)]
        remember(self.history, self.steps, columns)
        seconds = time.perf_counter() - self.since
        rate = self.new_pictures / seconds
        self.bar.set_postfix_str(f"loss {sum(losses) / len(losses):.3f}, {rate:.1f} images/s", refresh=False)
        self.bar.update(len(losses))
        if self.writer:
            for step, loss in zip(self.steps, losses, strict=True):
                self.writer.add_scalar("loss", loss, step)
            self.writer.add_scalar("images_per_second", rate, self.steps[-1])
        self.seconds += seconds
        self.taken += len(losses)
        self.waited += self.new_waited
        self.pictures += self.new_pictures
        self.start()
        return rows

    def summary(self, before: int) -> str:
        """Describes the whole run: number of pictures, speed, and share of time in which it waited for pictures.

        Args:
            before: pictures of the steps before the run was resumed.
        """
        if not self.pictures:
            return f"trained on {before} pictures, all before the run was resumed"
        rate, share = self.pictures / max(self.seconds, 1e-9), self.waited / max(self.seconds, 1e-9)
        since = f" ({self.pictures} since the run was resumed)" if before else ""
        return (
            f"trained on {before + self.pictures} pictures{since}, {rate:.1f} per second; waited for pictures "
            f"{share:.0%} of the time"
        )


def remember(history: History, steps: Sequence[int], columns: Mapping[str, Sequence[float]]) -> None:
    """Appends losses to a history. The result does not depend on how many losses are appended in one call.

    When a history has `KEPT` losses, it is reduced to half of this number or less: its losses are replaced by means
    over 2 steps, or 4, 8 and so on. So each loss in the history is the mean of all losses since the previous entry, up
    to and including its own step. Learning rates are treated in the same way.

    Args:
        history: the list "step" and one for each of the columns; they are changed.
        steps: the steps.
        columns: for names of `COLUMNS`, one value for each step. A mean is taken over its finite values, if there are
            any.
    """
    for step, *values in zip(steps, *columns.values(), strict=True):
        if len(history["step"]) >= KEPT:
            _thin(history)
        history["step"].append(step)
        for name, value in zip(columns, values, strict=True):
            history[name].append(value)


def completed(history: History) -> History:
    """The history of a run of this or an older version, with all `COLUMNS`; values that it does not have are NaN."""
    unknown = {name: [math.nan] * len(history["step"]) for name in COLUMNS if name not in history}
    return history | unknown


def validations_without_rise(maps: Sequence[float]) -> int:
    """Counts the validations since the one with the highest mAP, the first one of several with the same mAP.

    Args:
        maps: the mAP of each validation of a run, in 0..1 or NaN, which is less than every number.
    """
    values = [-1.0 if math.isnan(value) else value for value in maps]
    return len(values) - 1 - values.index(max(values)) if values else 0


def _thin(history: History) -> None:
    steps = np.array(history["step"])
    width = 2
    while steps[-1] > width * KEPT // 2:
        width *= 2
    starts = np.flatnonzero(np.diff((steps - 1) // width, prepend=-1))
    for name in COLUMNS:
        if name in history:
            values = np.array(history[name])
            finite = np.isfinite(values)
            weights = np.where(finite, np.diff(steps, prepend=0), 0)
            totals, counts = (np.add.reduceat(x, starts) for x in (weights * np.where(finite, values, 0), weights))
            history[name][:] = np.where(counts, totals / np.maximum(counts, 1), values[starts]).tolist()
    history["step"][:] = steps[np.append(starts[1:], len(steps)) - 1].tolist()


def tensorboard_writer(folder: Path, step: int) -> SummaryWriter | None:
    """Creates a TensorBoard writer to a folder; without TensorBoard it returns None.

    Args:
        folder: folder of the run.
        step: number of steps of the run so far. What the folder has of later steps is hidden: a run that was killed
            takes them again when it is resumed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
