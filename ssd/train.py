"""Training: from a folder of pictures to a checkpoint, resumable to the bit."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ssd.atomic import locked
from ssd.checkpoint import build_model, load_checkpoint, save_checkpoint
from ssd.closing import report
from ssd.data.colour import to_input
from ssd.data.loader import Batch, steps_per_epoch, train_loader, worker_count
from ssd.draw import plot_curves
from ssd.evaluate import evaluate
from ssd.loss import MultiBoxLoss
from ssd.precision import autocast, pick_device, place
from ssd.ranks import Ranks, joined
from ssd.recipes import epochs_for
from ssd.settings import Settings
from ssd.splits import open_sets
from ssd.weights import initial_model

LAST, BEST = "last.pt", "best.pt"
LOG_EVERY = 10  # steps between two reads of the loss, each of which waits for the device


def lr_factor(step: int, total: int, schedule: str, warmup: int) -> float:
    """What the learning rate is multiplied by at a step in 0..total-1."""
    if schedule == "onecycle":  # a cosine up over the first 30 %, then a cosine down to nothing
        peak = 0.3 * total
        if step < peak:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2
        return max(1e-5, (1 + math.cos(math.pi * (step - peak) / (total - peak))) / 2)
    warmup = min(warmup, total // 10)
    rise = min(1.0, (step + 1) / (warmup + 1))
    if schedule == "cosine":
        return rise * (1 + math.cos(math.pi * step / total)) / 2
    return rise * (0.1 if step >= total * 2 / 3 else 1) * (0.1 if step >= total * 5 / 6 else 1)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.SGD:
    """SGD with biases at twice the learning rate."""
    biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    others = [p for name, p in model.named_parameters() if not name.endswith(".bias")]
    groups = [{"params": biases, "lr_scale": 2.0}, {"params": others, "lr_scale": 1.0}]
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def train(
    settings: Settings | None,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, list[float]]:
    """Trains a network and leaves `last.pt`, `best.pt`, `curve.png` and `worst.png` in a folder.

    Ctrl-C, or SIGTERM, stops after the step at hand and saves; a resumed run sees the same pictures and takes the same
    steps as one that was never stopped, to the bit on the same machine. TensorBoard scalars are written where it is
    installed.

    Processes that torchrun started share each batch, so that a run of any number of them takes the steps of one: the
    loss is divided by the positives of all. The first writes the files.

    Args:
        settings: of a new run; None with `resume`, which takes those of the checkpoint.
        out: folder of the run.
        resume: continue from `last.pt` in the folder.
        device: such as "cpu" or "cuda:0"; by default a GPU if there is one.
        workers: processes that read pictures; by default one per core, at most 4. Changes nothing but speed.
        quiet: no progress bar and no text.

    Returns:
        history: "step", "loss" (one per step), "eval_step", "mAP" (one per validation) and, where there is a test list,
        "test_mAP" (one).

    Raises:
        ValueError: bad settings or data, or the folder already holds a run.
        FileNotFoundError: data, or the checkpoint to resume from, is missing.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after saving.
    """
    on = pick_device(device)
    if resume and not (Path(out) / LAST).exists():
        raise FileNotFoundError(f"{Path(out) / LAST}: no checkpoint to resume from")
    with joined() as ranks, locked(out) if ranks.first else nullcontext():
        run = _Run(settings, Path(out), resume, on, workers, quiet or not ranks.first, ranks)
        with run.writer or nullcontext(), _stop_after_step() as stopping:
            run.to_the_end(stopping)
    return run.history


class _Run:
    """All that a run holds: what it was asked for, the data, the network and how far it has come."""

    def __init__(
        self,
        settings: Settings | None,
        out: Path,
        resume: bool,
        device: torch.device,
        workers: int | None,
        quiet: bool,
        ranks: Ranks,
    ) -> None:
        self.out, self.last, self.best = out, out / LAST, out / BEST
        state: dict[str, Any] | None = None
        if resume:
            state = load_checkpoint(self.last)
            settings = Settings.from_dict(state["settings"])
        elif self.last.exists():
            raise ValueError(f"{out} already holds a run: resume it, or choose another folder")
        elif self.best.exists():
            raise ValueError(f"{self.best} would be replaced, and no {LAST} is there to resume: choose another folder")
        self.device, self.ranks = device, ranks
        self.workers = worker_count(workers)
        self.quiet = quiet

        self.sets = sets = open_sets(settings)
        self.train_set, self.val_set = sets.train, sets.val
        epochs = settings.epochs or epochs_for(settings.recipe, len(sets.train))
        self.settings = settings = replace(settings, classes=sets.classes, epochs=epochs, **sets.names)
        for note in sets.notes:
            self.say(note)

        torch.manual_seed(settings.seed)
        if state is not None:
            model = build_model(state)
        else:
            shape = {name: getattr(settings, name) for name in ("width", "batch_norm", "head_batch_norm", "priors")}
            model = initial_model(len(sets.classes) + 1, settings.weights, **shape)
        if settings.sync_batch_norm and device.type != "cuda":
            raise ValueError(f"sync_batch_norm: torch has it for GPUs only, and this run is on {device}")
        if settings.sync_batch_norm and ranks.size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = place(model, device)
        if settings.compile:
            self.model.compile()
        self.network = DistributedDataParallel(self.model) if ranks.size > 1 else self.model
        self.criterion = MultiBoxLoss(self.model.priors_cxcy, **settings.loss._asdict(), normalize="global")
        self.optimizer = make_optimizer(self.model, settings)
        self.step = 0
        self.history: dict[str, list[float]] = {"step": [], "loss": [], "eval_step": [], "mAP": []}
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.history = state["step"], state["history"]

        self.steps_per_epoch = steps_per_epoch(len(self.train_set), settings.batch_size)
        self.total = settings.epochs * self.steps_per_epoch
        self.eval_every = settings.eval_every or max(1, settings.epochs // 10)
        self.writer = _tensorboard(out, self.say) if ranks.first else None

    def say(self, text: object) -> None:
        if not self.quiet:
            tqdm.write(str(text))

    def to_the_end(self, stopping: list[int]) -> None:
        """Trains until done, or until `stopping` is no longer empty: then saves and raises KeyboardInterrupt."""
        self.say(self.settings.summary())
        self.say(
            f"{len(self.train_set)} pictures of {', '.join(self.settings.classes)}; "
            f"{len(self.val_set) if self.val_set else 'none'} held out; "
            f"{self.total} steps of {self.settings.batch_size} pictures on {self.device}"
            + f" and {self.ranks.size - 1} more"
            * (self.ranks.size > 1)
        )
        settings, steps = self.settings, range(self.step, self.total)
        loader = train_loader(self.train_set, settings.batch_size, settings.seed, steps, self.workers, self.ranks)
        batches = iter(loader)
        with tqdm(total=self.total, initial=self.step, disable=self.quiet, unit="step", smoothing=0.05) as bar:
            meter = _Meter(self.history, bar, self.writer, self.ranks)
            while self.step < self.total:
                stopped = self.epoch(batches, meter, stopping)
                epoch = self.step // self.steps_per_epoch
                if self.step % self.steps_per_epoch == 0:
                    if self.val_set and (epoch % self.eval_every == 0 or epoch == self.settings.epochs):
                        self.validate(epoch)
                    if self.ranks.first:
                        plot_curves(self.history, self.out / "curve.png")
                self.save(self.last, optimizer=self.optimizer.state_dict(), history=self.history)
                if stopped and self.step < self.total:
                    self.say(
                        f"stopped at step {self.step} of {self.total}; saved {self.last}. "
                        f"To go on: ssd train --out {self.out} --resume"
                    )
                    raise KeyboardInterrupt
        self.say(meter.summary())
        if self.val_set is None:
            self.save(self.best)
        if self.ranks.first:
            self.close()

    def epoch(self, batches: Iterator[Batch], meter: _Meter, stopping: list[int]) -> bool:
        """Trains to the end of the epoch, or to the step after which `stopping` is no longer empty, in any process.

        Returns:
            whether it was stopped.
        """
        settings, stopped = self.settings, False
        self.model.train()
        meter.start()
        for batch in meter.timed(islice(batches, self.steps_per_epoch - self.step % self.steps_per_epoch)):
            factor = lr_factor(self.step, self.total, settings.schedule, settings.warmup)
            loss = train_step(self.network, self.criterion, self.optimizer, batch, settings, factor, self.device)
            self.step += 1
            meter.add(self.step, loss, len(batch.images))
            if self.step % LOG_EVERY == 0:
                meter.flush()
            if stopped := self.ranks.any(stopping):
                break
        meter.flush()
        return stopped

    def validate(self, epoch: int) -> None:
        """Measures the mAP, and keeps the network as best.pt where no earlier one was better."""
        settings = self.settings
        result = evaluate(
            self.model,
            self.val_set,
            settings.classes,
            bf16=settings.bf16,
            workers=self.workers,
            quiet=True,
            ranks=self.ranks,
        )
        self.say(f"epoch {epoch} of {settings.epochs}: {result.summary()}")
        if not self.best.exists() or result.mAP >= max(filter(math.isfinite, self.history["mAP"]), default=0):
            self.save(self.best, mAP=result.mAP)
        self.history["eval_step"].append(self.step)
        self.history["mAP"].append(result.mAP)
        if self.writer:
            self.writer.add_scalar("mAP", result.mAP, self.step)
            for name, ap in result.ap.items():
                self.writer.add_scalar(f"AP/{name}", ap, self.step)

    def close(self) -> None:
        """Measures what was kept, and says what there is to say of it."""
        model = place(build_model(load_checkpoint(self.best)), self.device)
        text, test = report(model, self.sets, self.settings, self.out, workers=self.workers)
        self.say(text)
        if test is not None:
            self.history["test_mAP"] = [test.mAP]

    def save(self, path: Path, **extra: Any) -> None:
        if not self.ranks.first:
            return
        settings = self.settings.as_dict()
        save_checkpoint(path, self.model, self.settings.classes, settings=settings, step=self.step, **extra)


def train_step(
    model: nn.Module,
    criterion: MultiBoxLoss,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: Settings,
    factor: float,
    device: torch.device,
) -> Tensor:
    """One step of the optimiser; returns the 0-d loss without waiting for the device."""
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * group["lr_scale"] * factor
    batch = batch.to(device)
    images = place(to_input(batch.images, batch.colours), device)  # not in autocast: colours would have 8 bits
    with autocast(device, settings.bf16):
        offsets, logits = model(images)
    loss = criterion(offsets, logits, batch.boxes, batch.labels, batch.row_splits)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if settings.clip_grad:
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
    optimizer.step()
    return loss.detach()


class _Meter:
    """Collects losses on the device and reads them some steps at a time; knows how long the run waited for pictures."""

    def __init__(self, history: dict[str, list[float]], bar: tqdm, writer: Any, ranks: Ranks) -> None:
        self.history, self.bar, self.writer, self.ranks = history, bar, writer, ranks
        self.seconds, self.waited, self.pictures = 0.0, 0.0, 0  # of the whole run
        self.start()

    def start(self) -> None:
        """Begins to measure, after something else than training."""
        self.steps: list[int] = []
        self.losses: list[Tensor] = []
        self.new_pictures, self.new_waited, self.since = 0, 0.0, time.perf_counter()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; notes how long each lets wait."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.new_waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, step: int, loss: Tensor, pictures: int) -> None:
        self.steps.append(step)
        self.losses.append(loss)
        self.new_pictures += pictures * self.ranks.size

    def flush(self) -> None:
        if not self.losses:
            return
        losses = self.ranks.mean(torch.stack(self.losses)).tolist()
        wrong = [(step, loss) for step, loss in zip(self.steps, losses, strict=True) if not math.isfinite(loss)]
        if wrong:
            raise FloatingPointError(
                f"the loss became {wrong[0][1]} at step {wrong[0][0]}: try a lower learning rate, a longer warm-up "
                f"or gradient clipping; last.pt, if there, is from before"
            )
        self.history["step"] += self.steps
        self.history["loss"] += losses
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


def _tensorboard(out: Path, say: Any) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("no TensorBoard scalars: tensorboard is not installed")
        return None
    return SummaryWriter(str(out))


@contextmanager
def _stop_after_step() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM, a scheduler's notice; a second Ctrl-C interrupts at once.

    torchrun passes Ctrl-C on as SIGTERM, beside the one that the terminal sends.
    """
    received: list[int] = []

    def handler(signum: int, frame: Any) -> None:
        if signum == signal.SIGINT and signum in received:
            raise KeyboardInterrupt
        received.append(signum)

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handler)
    except ValueError:  # not in the main thread, where Python allows no handler
        yield received
        return
    try:
        yield received
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
