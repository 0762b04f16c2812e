"""How a run is doing: its losses, how fast it is, how long it waits for pictures; on the screen and in TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler
from tqdm import tqdm

from ssd.runtime.processes import Ranks

MIN_SCALE = torch.finfo(torch.float16).tiny  # of the loss in float16; what overflows even so will not do otherwise
KEPT = 100_000  # losses in a history, at most: 1.4 MB of a checkpoint


class Meter:
    """Collects losses on the device and reads them some steps at a time; knows how long the run waited for pictures.

    Args:
        history: the lists "step" and "loss", which grow.
        bar, writer: where it is shown; `writer` as of `tensorboard_writer`.
        ranks: the processes of the run, of whose losses the mean is taken.
        scaler: of the run. While it lowers its scale, which takes steps that change nothing, a loss may be infinite.
    """

    def __init__(
        self, history: dict[str, list[float]], bar: tqdm, writer: Any, ranks: Ranks, scaler: GradScaler
    ) -> None:
        self.history, self.bar, self.writer, self.ranks, self.scaler = history, bar, writer, ranks, scaler
        self.seconds, self.waited, self.pictures = 0.0, 0.0, 0  # of the whole run
        self.start()

    def start(self) -> None:
        """Begins to measure, after something else than training."""
        self.steps: list[int] = []
        self.losses: list[Tensor] = []
        self.new_pictures, self.new_waited, self.since = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the time in which the run waits for pictures."""
        asked = time.perf_counter()
        yield
        self.new_waited += time.perf_counter() - asked

    def add(self, step: int, loss: Tensor, pictures: int) -> None:
        self.steps.append(step)
        self.losses.append(loss)
        self.new_pictures += pictures * self.ranks.size

    def flush(self) -> None:
        """Reads the losses.

        Raises:
            FloatingPointError: one is not finite; in float16, the gradients overflow even below `MIN_SCALE`.
        """
        if not self.losses:
            return
        losses = self.ranks.mean(torch.stack(self.losses)).tolist()
        wrong = next((pair for pair in zip(losses, self.steps, strict=True) if not math.isfinite(pair[0])), None)
        if self.scaler.is_enabled() and self.scaler.get_scale() >= MIN_SCALE:
            wrong = None
        elif self.scaler.is_enabled() and not wrong:
            wrong = math.inf, self.steps[-1]  # of the gradient that is, and no step is taken any more
        if wrong:
            raise FloatingPointError(
                f"the loss became {wrong[0]} at step {wrong[1]}: try a lower learning rate, a longer warm-up "
                f"or gradient clipping; last.pt, if there, is from before"
            )
        remember(self.history, self.steps, losses)
        seconds = time.perf_counter() - self.since
        rate = self.new_pictures / seconds
        self.bar.set_postfix_str(f"loss {sum(losses) / len(losses):.3f}, {rate:.1f} images/s", refresh=False)
        self.bar.update(len(losses))
        if self.writer:
            for step, loss in zip(self.steps, losses, strict=True):
                self.writer.add_scalar("loss", loss, step)
            self.writer.add_scalar("images_per_second", rate, self.steps[-1])
        self.seconds += seconds
        self.waited += self.new_waited
        self.pictures += self.new_pictures
        self.start()

    def summary(self) -> str:
        rate, share = self.pictures / max(self.seconds, 1e-9), self.waited / max(self.seconds, 1e-9)
        return f"trained on {self.pictures} pictures, {rate:.1f} a second, {share:.0%} of the time waiting for them"


def remember(history: dict[str, list[float]], steps: Sequence[int], losses: Sequence[float]) -> None:
    """Adds losses to a history, which then depends on all losses alone and not on how many are added at once.

    A full history, of `KEPT` losses, is thinned first, to half of that or less: means over 2 steps, or 4, 8 and so on,
    take the place of what is there. So the loss beside a step is always the mean since the step before it.

    Args:
        history: the lists "step" and "loss", which change.
        steps, losses: one loss for each step. Of a mean only finite ones are a part, if there are any.
    """
    for step, loss in zip(steps, losses, strict=True):
        if len(history["loss"]) >= KEPT:
            _thin(history)
        history["step"].append(step)
        history["loss"].append(loss)


def _thin(history: dict[str, list[float]]) -> None:
    steps, losses = np.array(history["step"]), np.array(history["loss"])
    width = 2
    while steps[-1] > width * KEPT // 2:
        width *= 2
    starts = np.flatnonzero(np.diff((steps - 1) // width, prepend=-1))
    finite = np.isfinite(losses)
    weights = np.where(finite, np.diff(steps, prepend=0), 0)
    totals, counts = (np.add.reduceat(x, starts) for x in (weights * np.where(finite, losses, 0), weights))
    history["step"][:] = steps[np.append(starts[1:], len(steps)) - 1].tolist()
    history["loss"][:] = np.where(counts, totals / np.maximum(counts, 1), losses[starts]).tolist()


def tensorboard_writer(folder: Path, say: Callable[[str], None]) -> Any:
    """TensorBoard's writer to a folder, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("no TensorBoard scalars: tensorboard is not installed")
        return None
    return SummaryWriter(str(folder))
