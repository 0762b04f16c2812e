"""The base class of all networks: what they take, what they return, and which settings each of them has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ssd.detection import detect
from ssd.networks.layers import DepthwiseConv2d
from ssd.networks.priors import PriorSpec, make_priors, spec_of

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

Same = TypeVar("Same", bound="Network")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The arguments of networks that are also settings of a run. Each network takes some of them.
OPTIONS = ("size", "width", "batch_norm", "head_batch_norm", "priors")
# Key of the metadata of a state dict, where torch keeps the version of each module, that has the name and the config.
DESCRIPTION = "ssd"


def map_sizes(features: nn.Module, size: int) -> tuple[int, ...]:
    """Computes the numbers of cells per side of feature maps, without computing values.

    Args:
        features: takes images (B, 3, size, size) and returns a list of feature maps (B, C, H, W).
        size: side of the images in pixels.

    Raises:
        ValueError: the layers do not take images of this size, or a map is not square.
    """
    state = {name: value.to("meta") for name, value in (*features.named_parameters(), *features.named_buffers())}
    images = torch.empty(2, 3, size, size, device="meta")  # 2: batch norm of a map with one cell needs two images
    try:
        maps = torch.func.functional_call(features, state, (images,))
    except RuntimeError as error:
        raise ValueError(f"size {size} does not suit this network: {str(error).splitlines()[0]}") from None
    shapes = [tuple(x.shape[2:]) for x in maps]
    if any(height != width for height, width in shapes):
        raise ValueError(f"the feature maps must be square, got {shapes}")
    return tuple(height for height, _ in shapes)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Loads a state dict into a module.

    Args:
        module: the module, which is changed in place.
        state: its state dict.
        what: the network that the state dict must be of, for the error message.

    Raises:
        ValueError: a name is missing or unknown, or a shape differs.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"not the weights of {what}: {' '.join(str(error).split())[:200]}") from None


def unwrapped(model: Any) -> Any:
    """Takes a network out of DistributedDataParallel, DataParallel or AveragedModel.

    One that torch.compile has wrapped is returned as it is, since it has all attributes.

    Raises:
        TypeError: it is a module of another kind.
    """
    while not hasattr(model, "priors_cxcy") and isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    if not hasattr(model, "priors_cxcy"):
        raise TypeError(
            f"{type(model).__name__} is no network of ssd: it has no priors_cxcy; for an SSD of torchvision write "
            "torch.save(model.state_dict(), path), and load this file with ssd.load_weights or ssd.Detector.load"
        )
    return model


class Network(nn.Module):
    """A detector of the SSD family: from images to offsets and class logits of all priors.

    A subclass is one network. Its constructor calls the constructor of this class, builds its layers, and calls
    `set_priors` with the sides of its feature maps. A subclass also defines the attributes of the class and the methods
    that raise `NotImplementedError` here. One whose backbone has weights of a classifier also defines `stages`,
    `is_backbone`, `imagenet` and `load_backbone`.

    Args:
        n_classes: number of classes, background 0 included, at least 2.
        size: side of the images in pixels. None if the network has only one size.
        input_mean, input_std: mean and standard deviation of red, green and blue in 0..1, with which the input was
            normalised when the weights were trained. `forward` always takes images normalised with the mean and
            standard deviation of ImageNet, and converts the images to this normalisation.
        options: the other arguments of the network.

    Attributes:
        name: the network's name in `ssd.networks.NETWORKS`, as in `ssd train --network`.
        input_size: side of the images in pixels. As an attribute of the class, the default.
        sizes: the smallest and the largest `size`; None if the network has only one.
        layouts: names of the layouts of priors that the network has; the first one is the default.
        n_classes: number of classes C, background included.
        config: all arguments as a dict of plain values; the class builds the same network from them, with random
            parameters.
        prior_spec: the layout of the priors.
        priors_cxcy: (P, 4) float32 cxcywh in fractions of the image; not in the state dict.

    Raises:
        ValueError: an argument is out of range.
        TypeError: n_classes is no whole number.

    Examples:
        >>> from ssd import build_network
        >>> network = build_network("ssdlite", n_classes=3, size=224, width=0.1)
        >>> network.input_size, network.prior_spec.maps
        (224, (14, 7, 4, 2, 1, 1))
        >>> again = build_network(network.name, **network.config)
        >>> again.load_state_dict(network.state_dict())
        <All keys matched successfully>
    """

    name: str  # an attribute of the class, except for timm
    sizes: ClassVar[tuple[int, int] | None] = None
    layouts: ClassVar[tuple[str, ...]]
    input_size: int
    config: dict[str, Any]
    prior_spec: PriorSpec
    priors_cxcy: Tensor
    input_scale: Tensor | None  # None if the input is normalised as for ImageNet
    input_shift: Tensor | None

    def __init__(
        self,
        n_classes: int,
        size: int | None = None,
        *,
        input_mean: Sequence[float] = IMAGENET_MEAN,
        input_std: Sequence[float] = IMAGENET_STD,
        **options: Any,  # plain values of several types
    ) -> None:
        super().__init__()
        if not isinstance(n_classes, SupportsIndex):
            raise TypeError(f"n_classes must be a whole number, that of the classes + 1, got {n_classes!r}")
        if n_classes < 2:
            raise ValueError(f"n_classes includes the background and must be at least 2, got {n_classes}")
        width = options.get("width", 1.0)
        if not 0 < width < float("inf"):
            raise ValueError(f"width must be finite and more than 0, got {width}")
        if not (len(input_mean) == len(input_std) == 3 and all(0 < std < float("inf") for std in input_std)):
            raise ValueError(
                f"input_mean and input_std must be 3 numbers each, the latter > 0, got {input_mean} and {input_std}"
            )
        if size is not None:
            self.check_size(size)
            self.input_size = size
            options = {"size": size, **options}
        self.config = {
            "n_classes": n_classes,
            **options,
            "input_mean": tuple(input_mean),
            "input_std": tuple(input_std),
        }
        self.n_classes = n_classes
        for name in ("priors_cxcy", "input_scale", "input_shift"):
            self.register_buffer(name, None, persistent=False)
        self.register_state_dict_post_hook(_add_description)  # type: ignore[no-untyped-call]  # torch has no types
        self.register_load_state_dict_pre_hook(_check_description)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_fill_constants)  # type: ignore[no-untyped-call]

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """The names of the settings in `OPTIONS` that the network takes."""
        return tuple(name for name in OPTIONS if name in inspect.signature(cls).parameters)

    @classmethod
    def check_size(cls, size: int) -> None:
        """Raises ValueError unless the network takes images of this side, in pixels."""
        low, high = cls.sizes or (cls.input_size, cls.input_size)
        if not low <= size <= high:
            takes = f"{low} to {high}" if cls.sizes else f"only {low}"
            raise ValueError(f"size: the network {cls.name} takes {takes} pixels a side, got {size}")

    @classmethod
    def layout(cls, name: str, maps: Sequence[int]) -> PriorSpec:
        """Returns one of `layouts` for feature maps with these numbers of cells per side."""
        raise NotImplementedError(f"{cls.__name__} must define layout, which returns the layout of priors {name!r}")

    def all_layouts(self) -> dict[str, PriorSpec]:
        """Returns all `layouts` for the feature maps of this network, by name."""
        return {name: self.layout(name, self.prior_spec.maps) for name in self.layouts}

    def set_priors(self, priors: str | PriorSpec | Mapping[str, Any], maps: Sequence[int]) -> None:
        """Sets the priors: the attributes `prior_spec` and `priors_cxcy`, and their entry in `config`.

        Args:
            priors: a name in `layouts`, or a `PriorSpec`, or its fields as a dict.
            maps: number of cells per side of each feature map.

        Raises:
            ValueError: the network has no layout of this name, or the layout is for other maps.
            TypeError: the dict has an unknown field, or lacks one.
        """
        if isinstance(priors, str):
            if priors not in self.layouts:
                raise ValueError(f"priors must be a PriorSpec or one of {', '.join(self.layouts)}, got {priors!r}")
            self.prior_spec = self.layout(priors, maps)
        else:
            self.prior_spec = spec_of(priors)
        if tuple(self.prior_spec.maps) != tuple(maps):
            raise ValueError(f"priors must be laid out for the maps {tuple(maps)}, got {self.prior_spec.maps}")
        self.config["priors"] = priors if isinstance(priors, str) else asdict(self.prior_spec)
        self._make_constants()

    def _make_constants(self, device: torch.device | None = None) -> None:
        """Computes the buffers that follow from `config` and are not in the state dict, in float32."""
        self.priors_cxcy = make_priors(self.prior_spec).to(device)
        mean, std = self.config["input_mean"], self.config["input_std"]
        if (*mean, *std) != (*IMAGENET_MEAN, *IMAGENET_STD):
            given = zip(IMAGENET_MEAN, IMAGENET_STD, mean, std, strict=True)
            factors = [
                (our_std / its_std, (our_mean - its_mean) / its_std) for our_mean, our_std, its_mean, its_std in given
            ]
            self.input_scale, self.input_shift = (
                torch.tensor(factors, device=device).T[:, :, None, None].unbind()
            )  # (3, 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts offsets and class logits for all priors.

        Args:
            images: (B, 3, input_size, input_size) floating-point RGB, normalised with the mean and standard deviation
                of ImageNet.

        Returns:
            Offsets (B, P, 4), see `ssd_ext.decode_boxes`, and class logits (B, P, C), class 0 = background, both in
            the dtype in which the convolutions ran.

        Raises:
            ValueError: the images have another shape, are not floating-point, or are float64, unlike the parameters.
            TypeError: the images are no tensor.
            RuntimeError: the constructor of a subclass has not called `set_priors`.
        """
        if not hasattr(self, "prior_spec"):
            raise RuntimeError(f"{type(self).__name__} has no priors: its constructor must call set_priors")
        _check_images(images, self.input_size, next(self.parameters(), images).dtype)
        # Scale and shift cannot be merged into the first convolution, because it pads with zeros after the
        # normalisation.
        if self.input_scale is not None and self.input_shift is not None:
            images = torch.addcmul(self.input_shift, images, self.input_scale)
        return self.predict(images)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts offsets (B, P, 4) and class logits (B, P, C) from images with the normalisation of the weights."""
        raise NotImplementedError(f"{type(self).__name__} must define predict, which returns offsets and class logits")

    def __prepare_scriptable__(self) -> None:
        """Refuses `torch.jit.script`, which calls this and would fail somewhere in a layer."""
        raise TypeError("torch.jit.script does not take networks of ssd: use torch.jit.trace or torch.export")

    def detect_objects(
        self,
        predicted_locs: Tensor,
        predicted_scores: Tensor,
        min_score: float,
        max_overlap: float,
        top_k: int,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Turns predictions into boxes, labels and scores per image, see `ssd.detect`.

        Args:
            predicted_locs: (B, P, 4) offsets.
            predicted_scores: (B, P, C) class logits.
            min_score, max_overlap, top_k: see `ssd.detect`.

        Returns:
            See `ssd.detect`.
        """
        return detect(predicted_locs, predicted_scores, self.priors_cxcy, min_score, max_overlap, top_k)

    def fuse(self: Same) -> Same:
        """Merges batch norms into the convolutions before them, in place, which makes detection faster.

        Afterwards the network can only detect: its state dict has other names, and its outputs differ by rounding.

        Returns:
            The network, in evaluation mode.
        """
        self.eval()
        for module in self.modules():
            children = list(module.named_children())
            for (name, conv), (norm_name, norm) in pairwise(children):
                # No other classes: some convolutions of timm normalise their weights, some norms contain an activation.
                if type(conv) in (nn.Conv2d, DepthwiseConv2d) and type(norm) is nn.BatchNorm2d:
                    setattr(module, name, fuse_conv_bn_eval(conv, norm))
                    setattr(module, norm_name, nn.Identity())
        return self

    def stages(self) -> list[list[nn.Parameter]]:
        """The parameters of the backbone, stage by stage.

        Returns:
            For each stage, in the order in which images pass through them, its parameters. Together they are all
            parameters of the backbone: those for which weights of a classifier exist. A new stage starts where the
            side of the maps is halved, unless the network says otherwise. Empty if there are no such weights.
        """
        return []

    @classmethod
    def coco(cls) -> WeightsEnum | None:
        """Returns torchvision's weights of this detector that were trained on COCO; None if there are none."""
        return None

    @classmethod
    def options_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The arguments that follow from the shapes in the state dict of this network in another project."""
        return {}

    @classmethod
    def is_backbone(cls, state: Mapping[str, Any]) -> bool:
        """Whether these are the names of the classifier's state dict that `load_backbone` takes."""
        return False

    @classmethod
    def backbone_options(cls, state: Mapping[str, Tensor] | None) -> dict[str, Any]:
        """The arguments with which a network fits the weights of a classifier.

        Args:
            state: its state dict; None: the weights of `imagenet`.
        """
        return {}

    def imagenet(self) -> WeightsEnum | dict[str, Tensor]:
        """Returns the weights that were trained on ImageNet and fit this network's backbone.

        Returns:
            A member of an enum of torchvision, for `ssd.weights.downloads.download`; or the state dict.

        Raises:
            ValueError: there are none, for example because of the network's width.
            OSError: the download failed.
        """
        raise ValueError(f"there are no ImageNet weights for the network {self.name}")

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Fills the backbone with the weights of a classifier, in place.

        Args:
            state: the state dict of the classifier.

        Raises:
            ValueError: the state dict does not fit the backbone.
        """
        raise ValueError(f"the network {self.name} takes no weights of a classifier")

    def _apply(self: Same, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Same:
        was_meta = self.priors_cxcy.is_meta
        nn.Module._apply(self, fn, recurse)
        priors = self.priors_cxcy
        if (
            was_meta and not priors.is_meta
        ):  # to_empty() leaves buffers without values, and the state dict has none for these
            self._make_constants(priors.device)
        elif priors.dtype.itemsize < 4:  # half() would shift priors by up to half a pixel
            self.priors_cxcy = make_priors(self.prior_spec).to(priors.device)
        return self


@torch.fx.wrap  # type: ignore[untyped-decorator]  # torch has no types
def _check_images(images: Tensor, size: int, dtype: torch.dtype) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images must be a tensor (B, 3, {size}, {size}), got {type(images).__name__}: join prepared pictures with "
            "torch.stack; ssd.Detector takes lists of pictures of any size"
        )
    if images.ndim != 4 or images.shape[1:] != (3, size, size):
        expected = f"(B, 3, {size}, {size}), for which the priors are laid out"
        raise ValueError(f"images must be {expected}, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(
            f"images must be floating-point, got {images.dtype}: divide pixels by 255, subtract the mean "
            f"{IMAGENET_MEAN}, and divide by the standard deviation {IMAGENET_STD}; Detector does this itself"
        )
    if images.dtype == torch.float64 != dtype:  # autocast converts other dtypes
        raise ValueError(f"images must be {dtype}, as the network's parameters, got {images.dtype}: convert them")


def _add_description(network: Network, _: object, __: str, metadata: dict[str, Any]) -> None:
    """Adds to the metadata of a state dict what it lacks: the priors and the input normalisation follow from these."""
    metadata[DESCRIPTION] = {"network": network.name, "config": dict(network.config)}


def _check_description(network: Network, _: object, __: str, metadata: Mapping[str, Any], *others: Any) -> None:
    """Refuses the state dict of a network that differs in what it lacks: it would fit, but give wrong outputs."""
    described = metadata.get(DESCRIPTION, {"network": None})
    if described["network"] != network.name:
        return
    its, ours = (_constants(network, each) for each in (described["config"], network.config))
    if differ := [name for name in its if its[name] != ours[name]]:
        errors: list[str] = others[-1]  # to which torch appends parameters of another shape
        errors.append(
            f"the state dict is of a network with other {' and '.join(differ)}: build the network with the same "
            "arguments, or load the file with ssd.load_weights"
        )


def _constants(network: Network, config: Mapping[str, Any]) -> dict[str, object]:
    """What follows from a config and is not in the state dict, for the feature maps of this network."""
    priors = config["priors"]
    spec = network.layout(priors, network.prior_spec.maps) if isinstance(priors, str) else spec_of(priors)
    means = {name: tuple(config[name]) for name in ("input_mean", "input_std")}
    return {"size": config.get("size"), "priors": spec, **means}


def _fill_constants(network: Network, _: object) -> None:
    """After load_state_dict with `assign`, a network without memory has parameters, but not yet what they lack."""
    parameter = next(network.parameters())
    if not network.priors_cxcy.is_meta or parameter.is_meta:
        return
    with torch.device("cpu"):  # the caller may still have "meta" as the default
        network._make_constants(parameter.device)
    if network.input_scale is not None and network.input_shift is not None:
        network.input_scale, network.input_shift = (
            x.to(parameter.dtype) for x in (network.input_scale, network.input_shift)
        )
