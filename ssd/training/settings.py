"""The settings of a training run, with the meaning, the choices and the range of each of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ssd.networks import DEFAULT, LIGHT, NAMES, network_class
from ssd.networks.network import OPTIONS
from ssd.networks.priors import FITTED
from ssd.options import OVERLAP, ReadOptions, an_overlap, share, some_classes
from ssd.training.recipes import ADAMW, BY_NETWORK, RECIPES
from ssd_ext import LossOptions
from ssd_ext._checks import check_fields, check_value, not_negative

Value = TypeVar("Value")
Schedule = Literal["step", "onecycle", "cosine"]

VARIANCES = ("center_variance", "size_variance")  # a run must use the defaults, since detection uses them


def positive(value: float) -> None:
    """Raises ValueError unless the value is greater than 0."""
    if not value > 0:
        raise ValueError(f"must be > 0, got {value}")


def less_than_1(value: float) -> None:
    """Raises ValueError unless the value is less than 1."""
    if not value < 1:
        raise ValueError(f"must be < 1, got {value}")


def a_network(name: str) -> None:
    """Raises ValueError unless a network has this name."""
    try:
        network_class(name)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("network ")) from None  # the name of the setting is put before it


def resolved(value: Value | None) -> Value:
    """Returns a setting that cannot be None any more: the recipe, or the run, has set it."""
    assert value is not None
    return value


def _has(network: str | None, option: str, value: object) -> bool:
    """Whether the network has this one of `OPTIONS`, and this value if these are its priors; None: not known yet."""
    if network is None:
        return False
    kind = network_class(network)
    return option in kind.options() and (option != "priors" or value in (*kind.layouts, FITTED))


# Outside of the class, because Sphinx cannot parse an f-string in an annotation.
NETWORK_HELP = (
    f"the network: {', '.join(NAMES)}, where NAME is a model of the package timm (default: that of the weights, "
    f"otherwise {DEFAULT} on a GPU and with the recipe tutorial, and {LIGHT} on a CPU: docs/networks.md)"
)


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run, except the machine. These are also the flags of `ssd train`.

    The annotation of each field has its type, its meaning and checks of its range. A checkpoint keeps the settings.
    A field that is None gets its value from the recipe if the recipe has one (`ssd.training.recipes`); what depends on
    the network gets it once the network is known. If `network` is None, the weights decide it, or else the run
    chooses it (`ssd.training.choice`). `loss` may be a dict with the options that differ from those of the recipe.

    Raises:
        ValueError: a value is out of range, not one of the choices, or of another type.

    Examples:
        >>> from ssd.training.settings import Settings
        >>> settings = Settings(("my_pictures",), network="ssd300", epochs=20)
        >>> settings.recipe, settings.batch_size, settings.input_size
        ('scratch', 8, 300)
        >>> Settings(("my_pictures",), batch_size=0)
        Traceback (most recent call last):
        ValueError: batch_size must be > 0, got 0
    """

    # One folder may be given as it is.
    data: Annotated[tuple[str, ...], "folders or tar archives of annotated pictures, which are joined"]
    split: Annotated[
        str | None, "split to train on (default: trainval or train, or a split with a similar name, such as train2017)"
    ] = None
    val_split: Annotated[
        str | None,
        "split on which best.pt is chosen (default: the val, valid, validation or dev split that belongs to the "
        "training split, as val2017 belongs to train2017; if there is none, or if the training split is trainval, a "
        "part of the training pictures is held out)",
    ] = None
    val_data: Annotated[tuple[str, ...] | None, "folders or archives with the validation data (default: the data)"] = (
        None
    )
    test_split: Annotated[
        str | None,
        "split that is measured once, at the end (default: test or a split with a similar name, if there is one)",
    ] = None
    held_out: Annotated[
        float,
        "fraction of the pictures that is held out to choose best.pt if there is no validation split; 0: none",
        not_negative,
        less_than_1,
    ] = 0.1
    recipe: Annotated[
        Literal["scratch", "finetune", "tutorial"] | None,
        "set of defaults for other settings (default: finetune with --weights, otherwise scratch)",
    ] = None
    classes: Annotated[
        tuple[str, ...] | None, "names of the classes (default: those in the data, sorted)", some_classes
    ] = None
    tiles: Annotated[
        int | None,
        "train on tiles of the pictures, so many pixels wide and high, and on the whole pictures; for small objects in "
        "large pictures, which ssd detect --tiles finds (docs/large_pictures.md)",
        positive,
    ] = None
    overlap: Annotated[float, "least overlap of neighbouring tiles, as a fraction of their side", an_overlap] = OVERLAP
    flips: Annotated[bool, "also mirror pictures top to bottom, for pictures without a fixed orientation"] = False
    augment: Annotated[
        Literal["ssd", "mild", "v2"] | None,
        "augmentation of the pictures; ssd: as in the paper; mild: with less zoom in and out; v2: transforms of "
        "torchvision, which take 8 to 20 times as long (docs/input.md)",
    ] = None
    mosaic: Annotated[
        float | None,
        "share of the training samples that show four pictures at half their size, such as 0.5 (default: 0.5 for "
        "ssdlite and ssdlite320 with scratch, if the priors fit enough of the objects at half their size; 0 otherwise: "
        "docs/recipes.md)",
        share,
    ] = None
    network: Annotated[
        str | None,
        NETWORK_HELP,
        a_network,
    ] = None
    size: Annotated[
        int | None,
        "side of the network's input in pixels, for networks that have no fixed size (default: that of the weights, or "
        "else depends on the network; for ssdlite, on the sizes of the objects)",
        positive,
    ] = None
    weights: Annotated[
        str | None,
        "weights to start from: imagenet (the network's backbone) or coco (torchvision's ssd300 and ssdlite320), which "
        "are downloaded, or a file, also of the Hugging Face Hub (hf://owner/name or hf://owner/name/file): weights of "
        "the backbone, or a checkpoint that ssd convert can read; a detector keeps its layers, priors and input "
        "normalisation, and its class heads if the number of classes is the same (default: random weights)",
    ] = None
    priors: Annotated[
        Literal["tutorial", "caffe_voc", "caffe_coco", "torchvision", "auto"] | None,
        "layout of the priors, if the network has several; auto: sides and ratios are fitted to the training data, "
        "which is the default of ssdlite and ssdlite320, except from the weights of a detector, which keeps its priors",
    ] = None
    width: Annotated[float | None, "factor on all numbers of channels, for small machines", positive] = None
    batch_norm: Annotated[bool | None, "batch normalisation in base and extra layers"] = None
    head_batch_norm: Annotated[bool | None, "batch normalisation after the prediction layers"] = None
    sync_batch_norm: Annotated[
        bool, "batch normalisation with statistics over the pictures of all processes; only on GPUs, with torchrun"
    ] = False
    # None: see `ssd.training.recipes.epochs_for`
    epochs: Annotated[int | None, "number of passes over the data", positive] = None
    minutes: Annotated[
        float | None,
        "time that the run may take, with its report, instead of epochs: their number follows from the speed of the "
        "first steps (docs/recipes.md)",
        positive,
    ] = None
    batch_size: Annotated[int, "pictures per step, over all processes", positive] = 8
    repeat_factor: Annotated[
        float,
        "repeat pictures of rare classes within an epoch: share of the pictures below which a class is rare, such as "
        "0.01; a class in a smaller share f of the pictures is seen sqrt(repeat_factor / f) times as often; 0: every "
        "picture once",
        not_negative,
        less_than_1,
    ] = 0.0
    accumulate: Annotated[
        int,
        "number of parts of a batch, which run one after the other and need less memory; batch normalisation computes "
        "its statistics for each part",
        positive,
    ] = 1
    optimizer: Annotated[
        Literal["sgd", "adamw"] | None, "optimiser; adamw is the default of ssdlite and ssdlite320 with scratch"
    ] = None
    lr: Annotated[
        float | None,
        "learning rate; with SGD, biases have twice this rate, as in the tutorial; AdamW's default is 0.002, and that "
        "of finetune depends on the network, see docs/recipes.md",
        positive,
    ] = None
    lr_backbone: Annotated[
        float, "factor on the learning rate of the backbone, such as 0.1 to change its weights slowly", positive
    ] = 1.0
    freeze: Annotated[
        int,
        "number of stages of the backbone, from the input on, that keep their weights and their statistics of batch "
        "norm (docs/networks.md)",
        not_negative,
    ] = 0
    momentum: Annotated[float, "momentum of SGD, or beta1 of AdamW", not_negative, less_than_1] = 0.9
    weight_decay: Annotated[float | None, "weight decay; default: SGD 0.0005, AdamW 0.01", not_negative] = None
    schedule: Annotated[
        Schedule | None,
        "schedule of the learning rate; step: x 0.1 at 2/3 and 5/6 of the run, as in the tutorial",
    ] = None
    warmup: Annotated[
        int | None, "steps of linear warm-up, at most a tenth of the run; not used by onecycle", not_negative
    ] = None
    clip_grad: Annotated[float | None, "largest norm of the gradient; 0: no limit", not_negative] = None
    ema: Annotated[
        float,
        "decay of an exponential moving average of the weights, such as 0.999; the average is used for validation and "
        "is the network in best.pt and last.pt; 0: no average",
        not_negative,
        less_than_1,
    ] = 0.0
    # Each option in a dict has the type of its field in LossOptions.
    loss: Annotated[LossOptions | Mapping[str, Any] | None, "options of the loss, see ssd_ext.multibox_loss"] = None
    reading: Annotated[ReadOptions, "how the data is read, see ssd.options.ReadOptions"] = ReadOptions()
    eval_every: Annotated[int, "epochs between validations; 0: about ten validations in a run", not_negative] = 0
    patience: Annotated[
        int,
        "number of validations without a higher mAP after which the run ends; 0: no limit",
        not_negative,
    ] = 0
    bf16: Annotated[bool | None, "bfloat16 autocast (default: if the hardware supports it)"] = None
    fp16: Annotated[bool, "float16 autocast with a scaled loss, for GPUs without bfloat16"] = False
    compile: Annotated[
        bool,
        "compile the network with torch.compile: takes a minute or more at the start, then each batch is faster; "
        "results differ by rounding",
    ] = False
    deterministic: Annotated[
        bool,
        "use deterministic algorithms of torch on a GPU, which may be slower; operations that have none print a "
        "warning; no effect on a CPU",
    ] = False
    seed: Annotated[int, "seed of the initial weights, of the order of the pictures and of their augmentation"] = 0

    def __post_init__(self) -> None:
        for name in ("data", "val_data"):
            folders = getattr(self, name)
            folders = [folders] if isinstance(folders, (str, os.PathLike)) else folders
            if folders is None and name == "val_data":
                continue
            if not isinstance(folders, (list, tuple)) or not all(isinstance(f, (str, os.PathLike)) for f in folders):
                raise TypeError(f"{name} must be paths of folders or archives, got {str(folders)[:100]}")
            self._set(name, tuple(map(os.fspath, folders)))
        if self.recipe is None:
            self._set("recipe", "finetune" if self.weights else "scratch")
        for name, hint in get_type_hints(Settings, include_extras=True).items():
            kind, _, *checks = get_args(hint)
            value, kinds = getattr(self, name), {kind, *get_args(kind)}
            choices = [kind for kind in kinds if get_origin(kind) is Literal]
            if value is None and NoneType in kinds:
                continue
            if choices and value not in get_args(choices[0]):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices[0]))}, got {value!r}")
            if bool in kinds and not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
            if kinds & {int, float} and not isinstance(value, Real):
                raise ValueError(f"{name} must be a number, got {value!r}")
            if int in kinds:
                if value % 1 != 0:  # infinity and NaN too
                    raise ValueError(f"{name} must be a whole number, got {value}")
                self._set(name, int(value))
            check_value(name, value, *checks)
        if self.tiles is None and self.overlap != OVERLAP:
            raise ValueError(f"overlap {self.overlap} is the overlap of tiles; give tiles too, or leave it out")
        if self.fp16 and self.bf16:
            raise ValueError("choose one of bf16 and fp16")
        self._check_network()
        recipe = self._recipe_settings
        for name, value in recipe.items():
            if getattr(self, name) is None and self._takes(name, value):
                self._set(name, value)
        if not isinstance(self.loss, LossOptions):
            self._set("loss", LossOptions(**recipe["loss"] | dict(resolved(self.loss))))
        for name, options in (("loss", self.loss_options), ("reading", self.reading)):
            try:
                check_fields(options)
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from None
        if self.reading.only is not None:  # whose order means nothing
            self._set("reading", self.reading._replace(only=tuple(sorted(set(self.reading.only)))))
        for name in VARIANCES:
            if getattr(self.loss, name) != LossOptions._field_defaults[name]:
                raise ValueError(f"loss.{name} of a run must be {LossOptions._field_defaults[name]}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_network(self) -> None:
        """Raises ValueError if a setting is not one of the network's, unless the network is not known yet."""
        if self.network is None:
            return
        kind = network_class(self.network)
        if self.size is not None:
            kind.check_size(self.size)
        for name in self.options_not_of(self.network):
            if name in kind.options():  # the priors
                names = ", ".join((*kind.layouts, FITTED))
                raise ValueError(f"{name} of the network {self.network} must be {names}, got {getattr(self, name)}")
            takes = ", ".join(kind.options()) or "no such options"
            raise ValueError(f"{name}: the network {self.network} does not have this option; it has {takes}")

    def _takes(self, name: str, value: object) -> bool:
        """Whether a setting gets this value from the recipe; what depends on the network waits until it is known."""
        if name in OPTIONS:
            return _has(self.network, name, value)
        return self.network is not None or name not in BY_NETWORK

    def options_not_of(self, network: str) -> list[str]:
        """The names of the options that are set and that this network does not have, or not with these priors.

        `size` is not among them: `Network.check_size` checks it.
        """
        values = {name: getattr(self, name) for name in OPTIONS if name != "size"}
        return [name for name, value in values.items() if value is not None and not _has(network, name, value)]

    def network_options(self) -> dict[str, Any]:  # each value has the type of its field
        """The arguments of the network, which must be known; it, its weights or the data decide what is not set."""
        options = network_class(resolved(self.network)).options()
        return {name: value for name in options if (value := getattr(self, name)) not in (None, FITTED)}

    @property
    def input_size(self) -> int:
        """The side of the network's input in pixels."""
        return self.size or network_class(self.network or DEFAULT).input_size

    @property
    def _recipe_settings(self) -> dict[str, Any]:
        """The settings of the recipe for the network and the optimiser."""
        recipe = RECIPES[resolved(self.recipe)]
        settings = recipe.settings | recipe.networks.get(str(self.network), {})
        return settings | (ADAMW if (self.optimizer or settings["optimizer"]) == "adamw" else {})

    @property
    def loss_options(self) -> LossOptions:
        """The options of the loss, completed from the recipe."""
        assert isinstance(self.loss, LossOptions)
        return self.loss

    def summary(self) -> str:
        """Describes the run in one line.

        The line has the recipe, the network, and the run's values of all settings for which the recipe has values, of
        the learning rate and of the number of epochs, or of the minutes if that number is not chosen yet.
        """
        decided = self._recipe_settings
        names = dict.fromkeys(["network", "size", *decided, "lr"])
        values = {name: getattr(self, name) for name in names if name != "loss" and getattr(self, name) is not None}
        values |= {name: getattr(self.loss_options, name) for name in decided["loss"]}
        said = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in values.items())
        length = f"minutes {self.minutes:g}" if self.epochs is None and self.minutes else f"epochs {self.epochs}"
        return f"recipe {self.recipe}: {said}, {length}"

    def as_dict(self) -> dict[str, Any]:  # each value has the type of its field
        """Returns the settings as plain values, for a checkpoint."""
        return {**vars(self), "loss": self.loss_options._asdict(), "reading": self.reading._asdict()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Settings:  # each value has the type of its field
        """Reads the result of `as_dict`, of this version or of older ones.

        In older versions, the only network was SSD300, the options of the loss were among the other settings,
        augmentation was always torchvision's, there were no recipes, and nothing was held out if a split was given.
        """
        loss = saved.get("loss", {name: saved[name] for name in LossOptions._fields if name in saved})
        old: dict[str, Any] = {
            "network": "ssd300",
            "augment": "v2",
            "optimizer": "sgd",
            "recipe": "tutorial",
            "held_out": 0.0 if saved.get("split") else cls.held_out,
            "mosaic": 0.0,
        }
        known = old | {f.name: saved[f.name] for f in fields(cls) if f.name in saved}
        reading = ReadOptions(**saved.get("reading", {}))
        return cls(**known | {"loss": LossOptions(**loss), "reading": reading})
