"""A budget in time: the number of epochs of a run follows from the speed of its first steps."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ssd.data.findings import counted
from ssd.training.recipes import eval_every_for

SKIPPED = 10  # first steps of a process, which are slower, or faster because the workers have read ahead
MEASURED = 20  # least number of steps that are measured
LONGEST, SHARE = 10.0, 0.02  # they take at least this number of seconds, or this share of the budget if it is less
clock = time.monotonic  # seconds; tests replace it


class Work(NamedTuple):
    """What a run does, as far as it takes time."""

    steps: int  # of an epoch
    batch: int  # pictures of a step
    validated: int  # pictures of a validation
    reported: int  # pictures of the report at the end
    eval_every: int  # the setting


class Budget:
    """The time that a run may take. It starts now.

    Args:
        minutes: the time, more than 0.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes, self.started = minutes, clock()
        self.before: tuple[int, float] | None = None  # steps and seconds before the measurement
        self.step_seconds = 0.0
        self.checkpoint_seconds = 0.0

    def measure(self, steps: int, seconds: float) -> bool:
        """Measures the time of a step.

        Args:
            steps: number of steps that this process has taken.
            seconds: time of these steps, including the wait for pictures, without validations and checkpoints.

        Returns:
            Whether the measurement is long enough.
        """
        if self.before is None:
            if steps >= SKIPPED:
                self.before = steps, seconds
            return False
        taken, time_taken = steps - self.before[0], seconds - self.before[1]
        self.step_seconds = time_taken / taken
        return taken >= MEASURED and time_taken >= min(LONGEST, SHARE * 60 * self.minutes)

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Measures the time of the `with` block as that of what a run writes after each epoch."""
        begun = clock()
        yield
        self.checkpoint_seconds = clock() - begun

    def choose(self, work: Work, step: int) -> tuple[int, str]:
        """Chooses the largest number of epochs that fits into the rest of the time.

        A picture of a validation or of the report counts as much as one of training: it needs no backward pass, but
        detections and the metric. A checkpoint is counted for each epoch and for each validation.

        Args:
            work: what the run does.
            step: number of steps of the run so far, at least 1.

        Returns:
            The number of epochs, at least 1, and a line that says it.
        """
        passed = clock() - self.started
        left = 60 * self.minutes - passed

        def needed(epochs: int) -> float:
            validations = math.ceil(epochs / (work.eval_every or eval_every_for(epochs))) if work.validated else 0
            pictures = validations * work.validated + work.reported
            checkpoints = epochs - step // work.steps + validations
            steps = epochs * work.steps - step
            return (steps + pictures / work.batch) * self.step_seconds + checkpoints * self.checkpoint_seconds

        least = math.ceil(step / work.steps)
        most = least + int(max(0.0, left) / max(work.steps * self.step_seconds, 1e-9))
        epochs = next((n for n in range(most, least, -1) if needed(n) <= left), least)
        longer = "" if needed(epochs) <= left else ", although this takes longer"
        return epochs, (
            f"minutes {self.minutes:g}: {counted(epochs, 'epoch', 'epochs')}{longer}; a step takes "
            f"{self.step_seconds:.3g} s, and the whole run about {(passed + needed(epochs)) / 60:.3g} minutes"
        )
