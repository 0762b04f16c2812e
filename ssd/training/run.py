"""Training: from folders of pictures to a checkpoint. A stopped run can be resumed."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ssd.data.loader import Batch, steps_per_epoch, train_loader, worker_count
from ssd.drawing import plot_curves
from ssd.evaluation.evaluate import evaluate
from ssd.evaluation.report import check_report
from ssd.inference.prediction import fused_network
from ssd.loss import MultiBoxLoss
from ssd.networks import Network
from ssd.runtime.device import compile_network, pick_device, place, same_bits
from ssd.runtime.files import discard_leftovers, locked
from ssd.runtime.memory import keep_freed_memory
from ssd.runtime.processes import Ranks, joined
from ssd.runtime.signals import stop_signals
from ssd.runtime.text import printable
from ssd.training.average import Average
from ssd.training.budget import Budget, Work
from ssd.training.freezing import freeze, training_mode
from ssd.training.opening import FILES, Opened, open_run
from ssd.training.optimizer import lr_factor, make_optimizer
from ssd.training.progress import (
    COLUMNS,
    NOTHING_LEARNT,
    History,
    Meter,
    completed,
    learns_nothing,
    tensorboard_writer,
    validations_without_rise,
)
from ssd.training.recipes import eval_every_for
from ssd.training.records import (
    AP,
    CURVE,
    CURVE_NUMBERS,
    METRICS,
    Step,
    Validation,
    add_validation,
    epoch_of,
    write_curve,
    write_metrics,
)
from ssd.training.resuming import BEST, LAST, TRAINED
from ssd.training.settings import Schedule, Settings, resolved
from ssd.training.splits import samples_of, whole_of
from ssd.training.step import train_step
from ssd.training.summary import REPORT, Closing, report
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
from ssd_ext._checks import check_value, not_negative

ENDLESS = 10**9  # steps of a run while their number is not known: its schedule does not leave the first values
LOG_EVERY = 10  # steps between two reads of the loss; each read waits for the device


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
    on_step: Callable[[Step], object] | None = None,
    on_eval: Callable[[Validation], object] | None = None,
) -> History:
    """Trains a network, and writes its weights, curves, numbers and report to a folder.

    The files are `last.pt`, `best.pt`, `curve.png`, `curve.csv`, `metrics.json`, `worst.png`, `report.html` and
    `report.json`.

    Ctrl-C or SIGTERM stops the run after the current step and saves it. A resumed run sees the same pictures and takes
    the same steps as a run that was never stopped. On the same CPU the results are bitwise equal; on a GPU,
    `Settings.deterministic` is needed for that. If a picture cannot be read, or a process that reads pictures is
    killed, the run is also saved and stopped. If the run itself is killed, it can be resumed from its last checkpoint:
    it writes one at the end of each epoch and every `save_every` minutes. If TensorBoard is installed, scalars are
    written for it.

    Processes that torchrun started share each batch. The loss is divided by the positives of all processes, so a run
    with any number of processes takes the same steps as a run with one. The first process writes the files.

    Args:
        settings: settings of the run. Without a network, the run chooses one for the device (`ssd.training.choice`). A
            resumed run has the settings of its checkpoint; pass None, or settings that must agree with them.
        out: folder of the run.
        resume: True continues from `last.pt` in the folder. "auto" continues if `last.pt` exists, and otherwise starts
            a new run, so the same call can be repeated.
        given: names of the settings that must agree with those of a resumed run, such as "batch_size" or
            "loss.matching"; None: all. A setting that is None agrees with every value.
        save_every: minutes between two checkpoints within an epoch, at least 0; 0: only at the end of an epoch. They
            are written after a multiple of `LOG_EVERY` steps. Does not change the results.
        device: such as "cpu" or "cuda:0"; by default a GPU if there is one.
        workers: number of processes that read pictures; by default one per core, at most 4, or 16 with a GPU. Does not
            change the results.
        quiet: whether to hide the progress bar and all text.
        on_step: called in the first process with each step, in order, every `LOG_EVERY` steps and at the end of an
            epoch. A resumed run begins with the step after its checkpoint.
        on_eval: called in the first process after each validation. If this or `on_step` raises an exception, the run
            is saved and stopped, and the exception is raised; the run can be resumed.

    Returns:
        The history of the run: "step", "loss", its parts "conf_loss" and "loc_loss", and "lr" with one number per step;
        "eval_step", "mAP" and for each class with objects held out "AP/" and its name with one number per validation;
        and "test_mAP" with one number, if there is a test split. After more than 100,000 steps, losses and rates are
        means over several steps, see `ssd.training.progress.remember`.

    Raises:
        ValueError: the settings or the data are not valid, the data or the settings of a resumed run have changed, or
            the folder already has a run.
        FileNotFoundError: the data, or the checkpoint to resume from, is missing.
        OSError: a picture cannot be read, a file cannot be written, or a process of the run was killed.
        FloatingPointError: the loss is not finite.
        MemoryError: a step needs more memory than the GPU has.
        KeyboardInterrupt: Ctrl-C or SIGTERM; raised after the run was saved.

    Examples:
        >>> from ssd.data.shapes import write_shapes
        >>> from ssd.training.run import train
        >>> from ssd.training.settings import Settings
        >>> folder = write_shapes("shapes", n_train=8, n_test=2, size=(96, 64))
        >>> small = {"network": "ssdlite", "size": 224, "width": 0.1, "priors": "torchvision"}
        >>> settings = Settings((str(folder),), **small, held_out=0.0, epochs=2)
        >>> history = train(settings, "run", device="cpu", workers=0, quiet=True)
        >>> history["step"], len(history["loss"])  # "run" now has last.pt, best.pt, the curves and the report
        ([1, 2], 2)
    """
    on = pick_device(device)
    if on.type == "mps":
        raise ValueError(
            "device 'mps' cannot be used to train: the loss sums in float64, which it lacks; use the device cpu"
        )
    n_workers = worker_count(workers, on)
    if resume not in (True, False, "auto"):
        raise ValueError(f'resume must be True, False or "auto", got {resume!r}')
    check_value("save_every", save_every, not_negative)
    last = Path(out) / LAST
    with joined() as ranks, locked(out) if ranks.first else nullcontext():
        for name in (LAST, *FILES) if ranks.first else ():
            discard_leftovers(Path(out) / name)
        ranks.from_first(lambda: check_report(Path(out) / REPORT))
        # Only the first process needs to see the folder.
        resumes = ranks.from_first(last.exists) if resume == "auto" else bool(resume)
        quiet = quiet or not ranks.first
        say = partial(_say, quiet)
        opened = open_run(settings, Path(out), resume=resumes, given=given, device=on, ranks=ranks, say=say)
        run = _Run(opened, Path(out), save_every, on, n_workers, quiet, ranks)
        if ranks.first:
            run.on_step, run.on_eval = on_step, on_eval
        with run.writer or nullcontext(), same_bits(run.settings.deterministic), stop_signals() as stopping:
            run.to_the_end(stopping)
    return run.history


def _say(quiet: bool, text: object) -> None:
    """Prints a text, which may have names from files, above the progress bar, unless the run is quiet."""
    if not quiet:
        tqdm.write("\n".join(map(printable, str(text).split("\n"))))


class _Run:
    """A run: its settings, data, network and progress."""

    def __init__(
        self,
        opened: Opened,
        out: Path,
        save_every: float,
        device: torch.device,
        workers: int,
        quiet: bool,
        ranks: Ranks,
    ) -> None:
        settings, state = opened.settings, opened.state
        self.settings, self.sets, self.fingerprints = settings, opened.sets, opened.fingerprints
        self.train_set, self.val_set = opened.sets.train, opened.sets.val
        self.repeats, self.per_epoch, self.budget = opened.repeats, opened.per_epoch, opened.budget
        self.out, self.last, self.best = out, out / LAST, out / BEST
        self.device, self.workers, self.quiet, self.ranks = device, workers, quiet, ranks
        self.on_step: Callable[[Step], object] | None = None
        self.on_eval: Callable[[Validation], object] | None = None

        freeze(opened.model, settings.freeze)
        self.average = Average(place(opened.model, device), settings.ema) if settings.ema else None
        if state is not None and self.average:  # until here, the model has the average weights
            opened.model.load_state_dict(state[TRAINED])
        self.model = place(opened.model, device)
        if settings.compile:
            compile_network(self.model)
        self.network = DistributedDataParallel(self.model) if ranks.size > 1 else self.model
        self.criterion = MultiBoxLoss(
            self.model.priors_cxcy, **settings.loss_options._asdict(), normalize="global", parts=True
        )
        self.optimizer = make_optimizer(self.model, settings)
        self.scaler = GradScaler(device.type, enabled=settings.fp16)
        self.step = 0
        self.history: History = {name: [] for name in ("step", *COLUMNS, "eval_step", "mAP")}
        self.seconds = 0.0  # that all steps took, also before the run was resumed
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.history = state["step"], completed(state["history"])
            self.seconds = state.get("seconds", 0.0)
            if settings.fp16:
                self.scaler.load_state_dict(state["scaler"])

        self.steps_per_epoch = steps_per_epoch(self.per_epoch, settings.batch_size)
        self.schedule: Schedule = resolved(settings.schedule)
        self.warmup = resolved(settings.warmup)
        self.writer = tensorboard_writer(out, self.step) if ranks.first else None
        self.save_every, self.saved = 60 * save_every, time.monotonic()  # in seconds

    def _too_large(self, pictures: int) -> str:
        """Says that a step with so many pictures in this process needs too much memory, and what helps."""
        size, parts = self.model.input_size, 2 * self.settings.accumulate
        helps = [f"--accumulate {parts}, which runs the batch in smaller parts"] if pictures // parts > 1 else []
        helps.append("a smaller --batch-size")
        if self.model.sizes is not None:
            helps.append("a smaller --size")
        helps.append("another --network")
        return (
            f"{self.device} has too little free memory for a step with {pictures} pictures of {size} x {size} pixels; "
            f"use {', or '.join(helps)}"
        )

    @property
    def epochs(self) -> int | None:
        """Number of epochs; None while the budget has not chosen it yet."""
        return self.settings.epochs

    @property
    def total(self) -> int | None:
        """Number of steps; None while the number of epochs is not known."""
        return self.epochs and self.epochs * self.steps_per_epoch

    @property
    def output(self) -> Network:
        """The network that is validated and kept for detection: the average, if there is one."""
        return self.average.model if self.average else self.model

    def say(self, text: object) -> None:
        """Prints a text above the progress bar."""
        _say(self.quiet, text)

    def to_the_end(self, stopping: list[int | Exception]) -> None:
        """Trains to the end of the run, or until `stopping` is no longer empty.

        Args:
            stopping: gets a signal number or an error when the run must stop.

        Raises:
            Exception: an error in `stopping`, after the run was saved.
            KeyboardInterrupt: a signal in `stopping`, or another process was stopped; after the run was saved.
        """
        self.say(self.settings.summary())
        batch = min(self.settings.batch_size, self.per_epoch)
        self.say(
            f"{len(self.train_set)} pictures of {', '.join(self.sets.classes)}; "
            f"{len(self.val_set) if self.val_set else 'none'} held out; "
            f"{self.total or 'an unknown number of'} steps of {batch} pictures on {self.device}"
            + (f" (other processes: {self.ranks.size - 1})" if self.ranks.size > 1 else "")
        )
        if batch < self.settings.batch_size:
            self.say(f"batch size {self.settings.batch_size}: a batch has all {batch} pictures of an epoch")
        if self.device.type == "cpu":
            keep_freed_memory()
        settings, steps = self.settings, range(self.step, self.total or ENDLESS)
        loader = train_loader(
            samples_of(self.train_set, settings),
            settings.batch_size,
            settings.seed,
            steps,
            self.workers,
            self.ranks,
            self.repeats,
            self.device,
        )
        progress = tqdm(total=self.total, initial=self.step, disable=self.quiet, unit="step", smoothing=0.05)
        with closing(iter(loader)) as batches, progress as bar:  # closing ends the workers, which may have read ahead
            meter = Meter(self.history, bar, self.writer, self.ranks, self.scaler)
            while True:
                if self.step and self.step % self.steps_per_epoch == 0:
                    self.validate_if_due(stopping)
                    self.save_last()
                    self.record()  # after the checkpoint: a new run refuses a folder that has only curves
                failed = self.ranks.any([error for error in stopping if isinstance(error, Exception)])
                if not failed and (self.step == self.total or self.out_of_patience()):
                    break
                if failed or self.epoch(batches, meter, stopping):
                    if self.step:
                        self.save_last()
                        self.record()
                        self.say(
                            f"stopped at step {self.step} of {self.total or 'an unknown number'}; saved {self.last}. "
                            f"To continue: {shlex.join(['ssd', 'train', '--out', str(self.out), '--resume'])}"
                        )
                    raise next((error for error in stopping if isinstance(error, Exception)), KeyboardInterrupt)
        self.say(meter.summary(steps.start * batch))
        used = [whole_of(pictures)[0] for pictures in (self.train_set, self.val_set) if pictures is not None]
        if cut := list(dict.fromkeys(path for dataset in used for path in dataset.cut)):
            self.say(f"pictures that lack their last bytes, and were used: {len(cut)}, such as {cut[0]}")
        if self.val_set is None:
            self.save(self.best)
        self.close()

    def epoch(self, batches: Iterator[Batch], meter: Meter, stopping: list[int | Exception]) -> bool:
        """Trains to the end of the epoch, or until `stopping` is no longer empty in one of the processes.

        Args:
            batches: the batches of this run; an error while reading them is appended to `stopping`.
            meter: measures the steps.
            stopping: see `to_the_end`.

        Returns:
            Whether the run was stopped.
        """
        training_mode(self.model)
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
            factor = lr_factor(self.step, self.total or ENDLESS, self.schedule, self.warmup)
            try:
                losses = train_step(
                    self.network, self.criterion, self.optimizer, batch, self.settings, factor, self.device, self.scaler
                )
            except torch.OutOfMemoryError as error:
                raise MemoryError(self._too_large(len(batch.images))) from error
            self.step += 1
            if self.average:
                self.average.update(self.step)
            meter.add(self.step, losses, resolved(self.settings.lr) * factor, len(batch.images))
            if self.step % LOG_EVERY == 0:
                self.flush(meter, stopping)
                if self.budget:
                    self.measure(self.budget, meter)
                if 0 < self.save_every <= time.monotonic() - self.saved:
                    self.save_last()
                    meter.start()
        self.flush(meter, stopping)
        if self.step == self.steps_per_epoch and learns_nothing(self.history):
            self.say(NOTHING_LEARNT)
        return stopped

    def flush(self, meter: Meter, stopping: list[int | Exception]) -> None:
        """Reads the losses from the device, and calls the hook with each step. Its error is appended to `stopping`."""
        before = meter.seconds
        rows = meter.flush()
        self.seconds += meter.seconds - before
        if self.on_step is None:
            return
        try:
            for step, losses in rows:
                self.on_step(Step(step, epoch_of(step, self.steps_per_epoch), **losses))
        except Exception as error:
            stopping.append(error)
        meter.start()  # the time of the hook is not that of training

    def measure(self, budget: Budget, meter: Meter) -> None:
        """Chooses the number of epochs, in the first process, once the speed of the run is known."""
        if not self.ranks.from_first(lambda: budget.measure(meter.taken, meter.seconds)):
            return
        with budget.checkpoint():
            self.save_last()
            self.record()
        held_out, test = (len(part) if part else 0 for part in (self.val_set, self.sets.test))
        work = Work(
            steps=self.steps_per_epoch,
            batch=self.settings.batch_size,
            validated=held_out,
            reported=2 * held_out + test,  # the report also measures as many training pictures
            eval_every=self.settings.eval_every,
        )
        epochs, line = self.ranks.from_first(lambda: budget.choose(work, self.step))
        self.settings, self.budget = replace(self.settings, epochs=epochs), None
        self.say(line)
        meter.bar.total = self.total
        self.save_last()
        meter.start()

    def validate_if_due(self, stopping: list[int | Exception]) -> None:
        """Validates the network at the end of an epoch, if this is due and not done yet."""
        epoch = self.step // self.steps_per_epoch
        if self.epochs is None:  # too early to know which validations are due
            due = False
        else:
            every = self.settings.eval_every or eval_every_for(self.epochs)
            due = epoch % every == 0 or epoch == self.epochs
        if self.val_set and due and self.step not in self.history["eval_step"][-1:]:
            if not self.last.exists():
                self.save_last()  # without it, a run killed after its first best.pt cannot be resumed
            try:
                self.validate(epoch, stopping)
            except Exception:
                self.save_last()  # a run that is resumed from here validates first
                raise

    def out_of_patience(self) -> bool:
        """Whether the run ends early because the mAP does not rise any more; says so."""
        patience, stale = self.settings.patience, validations_without_rise(self.history["mAP"])
        if not 0 < patience <= stale:
            return False
        self.say(
            f"stopped after epoch {self.step // self.steps_per_epoch} of {self.epochs}: the mAP has not risen in "
            f"{stale} validations (patience)"
        )
        return True

    def record(self, closing: Closing | None = None) -> None:
        """Draws the curve, and writes curve.csv and metrics.json, in the first process.

        Args:
            closing: the report at the end of the run; None before the end.
        """
        if not self.ranks.first:
            return
        plot_curves(self.history, self.out / CURVE)
        write_curve(self.history, self.steps_per_epoch, self.out / CURVE_NUMBERS)
        parts = {"train": self.train_set, "val": self.val_set, "test": self.sets.test}
        write_metrics(
            self.out / METRICS,
            self.history,
            self.settings,
            steps_per_epoch=self.steps_per_epoch,
            epoch_length=self.per_epoch,
            step=self.step,
            seconds=self.seconds,
            pictures={name: len(part) if part is not None else 0 for name, part in parts.items()},
            test=closing and closing.test,
            mAP_interval=closing and closing.mAP_interval,
            finished=closing is not None,
        )

    def validate(self, epoch: int, stopping: list[int | Exception]) -> None:
        """Measures the mAP, saves the network as best.pt unless an earlier one was better, and calls the hook."""
        self.ranks.synchronise(self.output)
        result = evaluate(
            self.output,
            resolved(self.val_set),
            self.sets.classes,
            bf16=self.settings.bf16,
            workers=self.workers,
            quiet=True,
            ranks=self.ranks,
        )
        self.say(f"epoch {epoch} of {self.epochs}: {result.summary()}")
        if math.isnan(result.mAP) and not self.history["mAP"]:
            self.say(f"the pictures held out have no objects, so there is no mAP: {self.best} will be the last network")
        better = not (self.best.exists() and result.mAP < max(filter(math.isfinite, self.history["mAP"]), default=0))
        if better:
            self.save(self.best, mAP=result.mAP)
        add_validation(self.history, self.step, result)
        if self.writer:
            self.writer.add_scalar("mAP", result.mAP, self.step)
            for name, ap in result.ap.items():
                self.writer.add_scalar(AP + name, ap, self.step)
        try:
            if self.on_eval:
                self.on_eval(Validation(self.step, epoch, result.mAP, dict(result.ap), better))
        except Exception as error:
            stopping.append(error)

    def close(self) -> None:
        """Measures the network in best.pt, and prints the report."""
        best = self.ranks.from_first(lambda: load_checkpoint(self.best))
        model = fused_network(best, self.best, self.device)  # so the command of the report gives the same numbers
        closing = report(
            model, self.sets, self.settings, self.best, workers=self.workers, ranks=self.ranks, history=self.history
        )
        self.say(closing.text)
        if closing.test is not None:
            self.history["test_mAP"] = [closing.test.mAP]
        self.record(closing)

    def save_last(self) -> None:
        """Saves last.pt, with everything that a resumed run needs."""
        states = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        if self.average:
            states[TRAINED] = self.model.state_dict()
        self.save(self.last, **states, history=self.history, seconds=self.seconds)
        self.saved = time.monotonic()

    def save(self, path: Path, **extra: Any) -> None:  # values of many types, see `save_checkpoint`
        """Saves the network for detection, and what the run is about, to a checkpoint; in the first process only."""
        if not self.ranks.first:
            return
        extra |= {"settings": self.settings.as_dict(), "step": self.step, "fingerprints": self.fingerprints}
        extra["levels"] = whole_of(self.train_set)[0].levels
        save_checkpoint(path, self.output, self.sets.classes, **extra)
