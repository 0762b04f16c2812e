"""What decides a training run, with the meaning, the choices and the range of every setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ssd.training.recipes import RECIPES
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


def less_than_1(value: float) -> None:
    """Raises ValueError unless the value is below 1."""
    if not value < 1:
        raise ValueError(f"must be < 1, got {value}")


@dataclass(frozen=True)
class Settings:
    """All that decides a run besides the machine; kept in its checkpoints, and the flags of `ssd train`.

    What is None takes its value from the recipe, if it is there (`ssd.training.recipes`); `loss` may be a dict of the
    options that differ from the recipe's.

    Raises:
        ValueError: a value is out of its range or none of its choices.
    """

    data: Annotated[tuple[str, ...], "folders of pictures with annotations, trained on together"]
    split: Annotated[
        str | None, "split to train on (default: trainval or train, or the one named like them, such as train2017)"
    ] = None
    val_split: Annotated[
        str | None,
        "split to choose best.pt on (default: the val, valid, validation or dev that goes with the training split, as "
        "val2017 with train2017; without one, and with trainval, a part is held out)",
    ] = None
    val_data: Annotated[tuple[str, ...] | None, "folders to validate on (default: those of the data)"] = None
    test_split: Annotated[
        str | None, "split to measure once, at the end (default: test, or the one named like it, if there is one)"
    ] = None
    held_out: Annotated[
        float, "share of the pictures to choose best.pt on where no list is for it; 0: none", not_negative, less_than_1
    ] = 0.1
    recipe: Annotated[
        Literal["scratch", "finetune", "tutorial"] | None,
        "what other settings are by default (default: finetune with --weights, else scratch)",
    ] = None
    classes: Annotated[tuple[str, ...] | None, "names of the classes (default: those found, sorted)"] = None
    flips: Annotated[bool, "mirror top to bottom too: pictures without an upright"] = False
    augment: Annotated[
        Literal["ssd", "mild", "v2"] | None,
        "of the pictures; ssd: that of the paper; mild: with less zoom in and out; v2: torchvision's transforms, which "
        "take ten times as long (docs/input.md)",
    ] = None
    weights: Annotated[
        str | None,
        "to start from: imagenet (VGG16) or coco (torchvision's SSD300), downloaded, or a file: VGG16 weights, or a "
        "checkpoint as ssd convert takes it; a detector brings its layers, priors and input, and its class heads where "
        "the number of classes is the same (default: random)",
    ] = None
    priors: Annotated[Literal["tutorial", "caffe_voc", "caffe_coco", "torchvision"] | None, "layout of the priors"] = (
        None
    )
    width: Annotated[float | None, "factor on all channels, for small machines (default: 1)", positive] = None
    batch_norm: Annotated[bool | None, "batch normalisation in base and extra layers"] = None
    head_batch_norm: Annotated[bool | None, "batch normalisation after the layers that predict"] = None
    sync_batch_norm: Annotated[bool, "statistics of the pictures of all processes; on GPUs, under torchrun"] = False
    epochs: Annotated[int | None, "passes over the data (default: by the number of pictures)", positive] = None
    batch_size: Annotated[int, "pictures per step, of all processes together", positive] = 8
    accumulate: Annotated[
        int,
        "parts of a batch, which run in turn, in less memory; batch normalisation takes its statistics from each",
        positive,
    ] = 1
    lr: Annotated[
        float | None,
        "learning rate of SGD; twice that for biases, as in the tutorial; in finetune by the network, docs/recipes.md",
        positive,
    ] = None
    momentum: Annotated[float, "of SGD", not_negative] = 0.9
    weight_decay: Annotated[float, "of SGD", not_negative] = 5e-4
    schedule: Annotated[
        Literal["step", "onecycle", "cosine"] | None,
        "course of the learning rate; step: x 0.1 at 2/3 and 5/6 of the run, as in the tutorial",
    ] = None
    warmup: Annotated[
        int | None, "steps of linear warm-up, at most a tenth of the run; onecycle has its own", not_negative
    ] = None
    clip_grad: Annotated[float | None, "largest norm of the gradient, 0: no limit", not_negative] = None
    loss: Annotated[LossOptions | Mapping[str, Any] | None, "see ssd_ext.multibox_loss"] = None
    eval_every: Annotated[int, "epochs between validations, 0: about ten in a run", not_negative] = 0
    bf16: Annotated[bool | None, "bfloat16 autocast (default: where the hardware has it)"] = None
    fp16: Annotated[bool, "float16 autocast and a scaled loss instead: for GPUs without bfloat16"] = False
    compile: Annotated[
        bool, "compile the network by torch.compile: a minute or more at first, then faster, with other last bits"
    ] = False
    seed: Annotated[int, "of the initial weights, the order of the pictures and their augmentation"] = 0

    def __post_init__(self) -> None:
        if self.recipe is None:
            self._set("recipe", "finetune" if self.weights else "scratch")
        for name, hint in get_type_hints(Settings, include_extras=True).items():
            kind, _, *checks = get_args(hint)
            value, kinds = getattr(self, name), get_args(kind)
            choices = [kind for kind in (kind, *kinds) if get_origin(kind) is Literal]
            if value is None and NoneType in kinds:
                continue
            if choices and value not in get_args(choices[0]):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices[0]))}, got {value!r}")
            for check in checks:
                try:
                    check(value)
                except ValueError as error:
                    raise ValueError(f"{name} {error}") from None
        if self.fp16 and self.bf16:
            raise ValueError("choose one of bf16 and fp16")
        recipe = RECIPES[self.recipe].settings
        for name, value in recipe.items():
            if getattr(self, name) is None:
                self._set(name, value)
        if not isinstance(self.loss, LossOptions):
            self._set("loss", LossOptions(**recipe["loss"] | dict(self.loss)))
        for name in VARIANCES:
            if getattr(self.loss, name) != LossOptions._field_defaults[name]:
                raise ValueError(f"loss.{name} of a run must be {LossOptions._field_defaults[name]}")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def summary(self) -> str:
        """The recipe, and the values that it or the run gives to what it decides."""
        decided = RECIPES[self.recipe].settings
        values = {name: getattr(self, name) for name in dict.fromkeys([*decided, "lr"]) if name != "loss"}
        values |= {name: getattr(self.loss, name) for name in decided["loss"]}
        said = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in values.items())
        return f"recipe {self.recipe}: {said}, epochs {self.epochs}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {**vars(self), "loss": self.loss._asdict()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Settings:
        """What `as_dict` gave, now or in an older version, which had the options of the loss beside the others, no
        augmentation but torchvision's, no recipes, and held nothing out of a split that was named."""
        loss = saved.get("loss", {name: saved[name] for name in LossOptions._fields if name in saved})
        old = {"augment": "v2", "recipe": "tutorial", "held_out": 0.0 if saved.get("split") else cls.held_out}
        known = old | {f.name: saved[f.name] for f in fields(cls) if f.name in saved}
        return cls(**known | {"loss": LossOptions(**loss)})
