"""Training: from a folder of pictures to a checkpoint, resumable to the bit."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ssd.data.loader import Batch, steps_per_epoch, train_loader, worker_count
from ssd.drawing import plot_curves
from ssd.evaluation.evaluate import evaluate
from ssd.loss import MultiBoxLoss
from ssd.runtime.device import compile_network, pick_device, place
from ssd.runtime.files import discard_leftovers, locked
from ssd.runtime.processes import Ranks, joined
from ssd.runtime.signals import stop_signals
from ssd.training.fingerprint import Fingerprint, difference, fingerprint
from ssd.training.optimizer import lr_factor, make_optimizer
from ssd.training.progress import Meter, tensorboard_writer
from ssd.training.recipes import epochs_for, lr_for
from ssd.training.settings import Settings, not_negative
from ssd.training.splits import Sets, open_sets
from ssd.training.step import train_step
from ssd.training.summary import SHEET, report
from ssd.weights.checkpoint import build_model, load_checkpoint, save_checkpoint
from ssd.weights.loading import initial_model
from ssd_ext import LossOptions

LAST, BEST, CURVE = "last.pt", "best.pt", "curve.png"
LOG_EVERY = 10  # steps between two reads of the loss, each of which waits for the device


def train(
    settings: Settings | None,
    out: str | os.PathLike[str],
    *,
    resume: bool | Literal["auto"] = False,
    given: Collection[str] | None = None,
    save_every: float = 10.0,
    device: str | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, list[float]]:
    """Trains a network and leaves `last.pt`, `best.pt`, `curve.png` and `worst.png` in a folder.

    Ctrl-C, or SIGTERM, stops after the step at hand and saves; a resumed run sees the same pictures and takes the same
    steps as one that was never stopped, to the bit on the same machine. A picture that cannot be read, or a process for
    reading them that is killed, stops it in the same way. A run that is killed itself goes on from the last of the
    checkpoints that it writes at the end of an epoch and every `save_every` minutes. TensorBoard scalars are written
    where it is installed.

    Processes that torchrun started share each batch, so that a run of any number of them takes the steps of one: the
    loss is divided by the positives of all. The first writes the files.

    Args:
        settings: of the run. A resumed run has those of its checkpoint: None, or settings that must agree with them.
        out: folder of the run.
        resume: True continues from `last.pt` in the folder; "auto" continues if it is there and else starts a new run,
            so that the same call serves each time.
        given: the settings that must agree with those of a resumed run, as "batch_size" or "loss.matching"; by
            default all. What is None agrees with anything.
        save_every: minutes between two checkpoints within an epoch, at least 0; 0: only at the end of an epoch. They
            are written at a multiple of `LOG_EVERY` steps. Changes nothing else.
        device: such as "cpu" or "cuda:0"; by default a GPU if there is one.
        workers: processes that read pictures; by default one per core, at most 4. Changes nothing but speed.
        quiet: no progress bar and no text.

    Returns:
        history: "step", "loss" (one per step; in a run of more than 100,000 steps means over several, so that no more
        than that many are kept, see `ssd.training.progress.remember`), "eval_step", "mAP" (one per validation) and,
        where there is a test list, "test_mAP" (one).

    Raises:
        ValueError: bad settings or data, data or settings that changed before the run was resumed, or the folder
            already holds a run.
        FileNotFoundError: data, or the checkpoint to resume from, is missing.
        OSError: a picture cannot be read, a file of the run not be written, or a process of it was killed.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after saving.
    """
    on = pick_device(device)
    if resume not in (True, False, "auto"):
        raise ValueError(f'resume must be True, False or "auto", got {resume!r}')
    try:
        not_negative(save_every)
    except ValueError as error:
        raise ValueError(f"save_every {error}") from None
    last = Path(out) / LAST
    if resume is True and not last.exists():
        raise FileNotFoundError(f"{last}: no checkpoint to resume from")
    with joined() as ranks, locked(out) if ranks.first else nullcontext():
        for name in (LAST, BEST, CURVE, SHEET) if ranks.first else ():
            discard_leftovers(Path(out) / name)
        if resume == "auto":
            resume = ranks.from_first(last.exists)  # others may not see the file
        run = _Run(settings, Path(out), resume, given, save_every, on, workers, quiet or not ranks.first, ranks)
        with run.writer or nullcontext(), stop_signals() as stopping:
            run.to_the_end(stopping)
    return run.history


class _Run:
    """All that a run holds: what it was asked for, the data, the network and how far it has come."""

    def __init__(
        self,
        settings: Settings | None,
        out: Path,
        resume: bool,
        given: Collection[str] | None,
        save_every: float,
        device: torch.device,
        workers: int | None,
        quiet: bool,
        ranks: Ranks,
    ) -> None:
        self.out, self.last, self.best = out, out / LAST, out / BEST
        state: dict[str, Any] | None = None
        if resume:
            state = _resumable(self.last)
            asked, settings = settings, Settings.from_dict(state["settings"])
            if asked is not None:
                _check_same(asked, settings, given, out)
        elif self.last.exists():
            raise ValueError(f"{out} already holds a run: resume it, or choose another folder")
        elif self.best.exists():
            raise ValueError(f"{self.best} would be replaced, and no {LAST} is there to resume: choose another folder")
        elif settings is None:
            raise ValueError(f"{self.last} is not there to resume, and a new run needs settings")
        else:  # the run may be resumed from another working directory
            settings = _absolute(settings)
        self.device, self.ranks = device, ranks
        self.workers = worker_count(workers)
        self.quiet = quiet

        sets, self.fingerprints = ranks.from_first(lambda: _open(settings))
        self.sets, self.train_set, self.val_set = sets, sets.train, sets.val
        epochs = settings.epochs or epochs_for(settings.recipe, len(sets.train))
        self.settings = settings = replace(settings, classes=sets.classes, epochs=epochs, **sets.names)
        for note in sets.notes:
            self.say(note)
        for name, before in state.get("fingerprints", {}).items() if state else ():
            if change := difference(before, self.fingerprints[name]):
                raise ValueError(
                    f"the {name} data of {out} has changed: {change}; a new run can start from it, with --weights "
                    f"{self.last}"
                )

        torch.manual_seed(settings.seed)
        if state is not None:
            model = build_model(state, self.last)
        else:
            shape = {name: getattr(settings, name) for name in ("width", "batch_norm", "head_batch_norm", "priors")}
            model = initial_model(len(sets.classes) + 1, settings.weights, **shape)
            rate = settings.lr or lr_for(settings.recipe, model.config["head_batch_norm"])
            self.settings = settings = replace(settings, lr=rate)
        if settings.sync_batch_norm and device.type != "cuda":
            raise ValueError(f"sync_batch_norm: torch has it for GPUs only, and this run is on {device}")
        if settings.sync_batch_norm and ranks.size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self._check_share(model)
        self.model = place(model, device)
        if settings.compile:
            compile_network(self.model)
        self.network = DistributedDataParallel(self.model) if ranks.size > 1 else self.model
        self.criterion = MultiBoxLoss(self.model.priors_cxcy, **settings.loss._asdict(), normalize="global")
        self.optimizer = make_optimizer(self.model, settings)
        self.scaler = GradScaler(device.type, enabled=settings.fp16)
        self.step = 0
        self.history: dict[str, list[float]] = {"step": [], "loss": [], "eval_step": [], "mAP": []}
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.history = state["step"], state["history"]
            if settings.fp16:
                self.scaler.load_state_dict(state["scaler"])

        self.steps_per_epoch = steps_per_epoch(len(self.train_set), settings.batch_size)
        self.total = settings.epochs * self.steps_per_epoch
        self.eval_every = settings.eval_every or max(1, settings.epochs // 10)
        self.writer = tensorboard_writer(out, self.say) if ranks.first else None
        self.save_every, self.saved = 60 * save_every, time.monotonic()  # in seconds

    def _check_share(self, model: nn.Module) -> None:
        """Raises ValueError where a process has too few pictures at once."""
        n, parts = min(self.settings.batch_size, len(self.train_set)), self.settings.accumulate
        share = n // self.ranks.size // parts
        if not share:
            shared = f"shared by {self.ranks.size} processes" + f" in {parts} parts each" * (parts > 1)
            raise ValueError(f"a batch of {n} pictures cannot be {shared}")
        if share == 1 and any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            raise ValueError(
                f"batch normalisation needs 2 pictures at once, but {n} in a batch, {self.ranks.size} processes and "
                f"accumulate {parts} leave 1"
            )

    def say(self, text: object) -> None:
        if not self.quiet:
            tqdm.write(str(text))

    def to_the_end(self, stopping: list[int | Exception]) -> None:
        """Trains until done, or until `stopping` is no longer empty: then saves and raises what is in there, or
        KeyboardInterrupt for a signal."""
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
            meter = Meter(self.history, bar, self.writer, self.ranks, self.scaler)
            while True:
                if self.step and self.step % self.steps_per_epoch == 0:
                    self.end_of_epoch()
                    self.save_last()
                if self.step == self.total:
                    break
                if self.epoch(batches, meter, stopping):
                    if self.step:
                        self.save_last()
                        self.say(
                            f"stopped at step {self.step} of {self.total}; saved {self.last}. "
                            f"To go on: ssd train --out {self.out} --resume"
                        )
                    why = stopping[0] if stopping else None  # None: another process has the reason
                    raise why if isinstance(why, Exception) else KeyboardInterrupt
        self.say(meter.summary())
        if self.val_set is None:
            self.save(self.best)
        self.close()

    def epoch(self, batches: Iterator[Batch], meter: Meter, stopping: list[int | Exception]) -> bool:
        """Trains to the end of the epoch, or until `stopping` is no longer empty in any process.

        Args:
            batches: what it trains on; their error is appended to `stopping`.

        Returns:
            whether it was stopped.
        """
        self.model.train()
        meter.start()
        stopped = False
        for _ in range(self.steps_per_epoch - self.step % self.steps_per_epoch):
            with meter.waiting():
                try:
                    batch = next(batches)
                except (OSError, ValueError) as error:
                    stopping.append(error)
            if stopped := self.ranks.any(stopping):
                break
            factor = lr_factor(self.step, self.total, self.settings.schedule, self.settings.warmup)
            loss = train_step(
                self.network, self.criterion, self.optimizer, batch, self.settings, factor, self.device, self.scaler
            )
            self.step += 1
            meter.add(self.step, loss, len(batch.images))
            if self.step % LOG_EVERY == 0:
                meter.flush()
                if 0 < self.save_every <= time.monotonic() - self.saved:
                    self.save_last()
                    meter.start()
        meter.flush()
        return stopped

    def end_of_epoch(self) -> None:
        """Validates where it is time and not yet done, and draws the curve."""
        epoch, settings = self.step // self.steps_per_epoch, self.settings
        due = epoch % self.eval_every == 0 or epoch == settings.epochs
        if self.val_set and due and self.step not in self.history["eval_step"][-1:]:
            if not self.last.exists():
                self.save_last()  # a run killed after its first best.pt could not be resumed
            try:
                self.validate(epoch)
            except Exception:
                self.save_last()  # a run resumed from here validates first
                raise
        if self.ranks.first:
            plot_curves(self.history, self.out / CURVE)

    def validate(self, epoch: int) -> None:
        """Measures the mAP, and keeps the network as best.pt where no earlier one was better."""
        settings = self.settings
        self.ranks.synchronise(self.model)
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
        if math.isnan(result.mAP) and not self.history["mAP"]:
            self.say(f"no object to find in the pictures held out, hence no mAP: {self.best} will be the last network")
        if not (self.best.exists() and result.mAP < max(filter(math.isfinite, self.history["mAP"]), default=0)):
            self.save(self.best, mAP=result.mAP)
        self.history["eval_step"].append(self.step)
        self.history["mAP"].append(result.mAP)
        if self.writer:
            self.writer.add_scalar("mAP", result.mAP, self.step)
            for name, ap in result.ap.items():
                self.writer.add_scalar(f"AP/{name}", ap, self.step)

    def close(self) -> None:
        """Measures what was kept, and says what there is to say of it."""
        best = self.ranks.from_first(lambda: load_checkpoint(self.best))  # others may not see the file
        model = place(build_model(best, self.best), self.device)
        text, test = report(model, self.sets, self.settings, self.out, workers=self.workers, ranks=self.ranks)
        self.say(text)
        if test is not None:
            self.history["test_mAP"] = [test.mAP]

    def save_last(self) -> None:
        """What a resumed run needs."""
        states = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        self.save(self.last, **states, history=self.history, fingerprints=self.fingerprints)
        self.saved = time.monotonic()

    def save(self, path: Path, **extra: Any) -> None:
        if not self.ranks.first:
            return
        settings = self.settings.as_dict()
        save_checkpoint(path, self.model, self.settings.classes, settings=settings, step=self.step, **extra)


def _resumable(path: Path) -> dict[str, Any]:
    state = load_checkpoint(path)
    lacking = [key for key in ("settings", "step", "optimizer", "history") if key not in state]
    if lacking:
        raise ValueError(
            f"{path}: cannot be resumed, as it has no {', '.join(lacking)}: only {LAST} of a run has all. "
            f"A new run can start from it, with --weights {path}"
        )
    return state


def _open(settings: Settings) -> tuple[Sets, dict[str, Fingerprint]]:
    """The pictures of a run, and what to know them by when it is resumed."""
    sets = open_sets(settings)
    return sets, {"training": fingerprint(sets.train), "validation": fingerprint(sets.val)}


def _check_same(asked: Settings, run: Settings, given: Collection[str] | None, out: Path) -> None:
    """Raises ValueError where settings differ from those of the run that is to be resumed."""
    asked, changes = _absolute(asked), []
    if given is None:
        own = [field.name for field in fields(Settings) if field.name != "loss"]
        given = own + [f"loss.{name}" for name in LossOptions._fields]
    for name in given:
        wanted, has = attrgetter(name)(asked), attrgetter(name)(run)
        if wanted is not None and wanted != has:
            changes.append(f"{name} is {_shown(has)} in the run, and {_shown(wanted)} was asked for")
    if changes:
        raise ValueError(
            f"{out} holds a run with other settings: {'; '.join(changes)}. To go on with it, give the settings of the "
            f"run, or leave them out; for a new run, choose another folder"
        )


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _absolute(settings: Settings) -> Settings:
    """The same with folders that do not depend on the working directory."""
    folders = {name: getattr(settings, name) for name in ("data", "val_data")}
    return replace(settings, **{name: of and tuple(map(os.path.abspath, of)) for name, of in folders.items()})
