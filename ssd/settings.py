"""What decides a training run, with the meaning, the choices and the range of every setting."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ssd_ext import LossOptions

VARIANCES = ("center_variance", "size_variance")  # of a run always the defaults, which detection takes too


def positive(value: float) -> None:
    """Raises ValueError unless the value is more than 0."""
    if not value > 0:
        raise ValueError(f"must be > 0, got {value}")


def not_negative(value: float) -> None:
    """Raises ValueError unless the value is at least 0."""
    if not value >= 0:
        raise ValueError(f"must be >= 0, got {value}")


@dataclass(frozen=True)
class Settings:
    """All that decides a run besides the machine; kept in its checkpoints, and the flags of `ssd train`.

    Raises:
        ValueError: a value is out of its range or none of its choices.
    """

    data: Annotated[tuple[str, ...], "folders of pictures with annotations, trained on together"]
    split: Annotated[
        str | None, "list to train on (default: train, or trainval, if val or test exists); alone it is not validated"
    ] = None
    val_split: Annotated[str | None, "list to validate on (default: the partner of the default split)"] = None
    val_data: Annotated[tuple[str, ...] | None, "folders to validate on (default: those of the data)"] = None
    classes: Annotated[tuple[str, ...] | None, "names of the classes (default: those found, sorted)"] = None
    flips: Annotated[bool, "mirror top to bottom too: pictures without an upright"] = False
    augment: Annotated[
        Literal["ssd", "v2"],
        "of the pictures; v2: torchvision's transforms, which take ten times as long (docs/input.md)",
    ] = "ssd"
    weights: Annotated[
        str | None,
        "to start from: imagenet (VGG16) or coco (torchvision's SSD300), downloaded, or a file: VGG16 weights, or a "
        "checkpoint as ssd convert takes it; a detector brings its priors and input, and its class heads where the "
        "number of classes is the same (default: random)",
    ] = None
    width: Annotated[float, "factor on all channels, for small machines", positive] = 1.0
    batch_norm: Annotated[bool, "batch normalisation: needed from scratch"] = False
    sync_batch_norm: Annotated[bool, "statistics of the pictures of all processes; on GPUs, under torchrun"] = False
    epochs: Annotated[int, "passes over the data", positive] = 120
    batch_size: Annotated[int, "pictures per step, of all processes together", positive] = 8
    accumulate: Annotated[
        int,
        "parts of a batch, which run in turn, in less memory; batch normalisation takes its statistics from each",
        positive,
    ] = 1
    lr: Annotated[float, "learning rate of SGD; biases take twice as much, as in the tutorial", positive] = 1e-3
    momentum: Annotated[float, "of SGD", not_negative] = 0.9
    weight_decay: Annotated[float, "of SGD", not_negative] = 5e-4
    schedule: Annotated[
        Literal["step", "onecycle", "cosine"],
        "course of the learning rate; step: x 0.1 at 2/3 and 5/6 of the run, as in the tutorial",
    ] = "step"
    warmup: Annotated[
        int, "steps of linear warm-up, at most a tenth of the run; onecycle has its own", not_negative
    ] = 500
    clip_grad: Annotated[float, "largest norm of the gradient, 0: no limit", not_negative] = 0.0
    loss: Annotated[LossOptions, "see ssd_ext.multibox_loss"] = LossOptions()
    eval_every: Annotated[int, "epochs between validations, 0: about ten in a run", not_negative] = 0
    bf16: Annotated[bool | None, "bfloat16 autocast (default: where the hardware has it)"] = None
    fp16: Annotated[bool, "float16 autocast and a scaled loss instead: for GPUs without bfloat16"] = False
    compile: Annotated[
        bool, "compile the network by torch.compile: a minute or more at first, then faster, with other last bits"
    ] = False
    seed: Annotated[int, "of the initial weights, the order of the pictures and their augmentation"] = 0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Settings, include_extras=True).items():
            kind, _, *checks = get_args(hint)
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")
            for check in checks:
                try:
                    check(value)
                except ValueError as error:
                    raise ValueError(f"{name} {error}") from None
        if self.fp16 and self.bf16:
            raise ValueError("choose one of bf16 and fp16")
        for name in VARIANCES:
            if getattr(self.loss, name) != LossOptions._field_defaults[name]:
                raise ValueError(f"loss.{name} of a run must be {LossOptions._field_defaults[name]}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {**vars(self), "loss": self.loss._asdict()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Settings:
        """What `as_dict` gave, now or in an older version, which had the options of the loss beside the others and no
        augmentation but torchvision's."""
        loss = saved.get("loss", {name: saved[name] for name in LossOptions._fields if name in saved})
        known = {"augment": "v2"} | {f.name: saved[f.name] for f in fields(cls) if f.name in saved}
        return cls(**known | {"loss": LossOptions(**loss)})
