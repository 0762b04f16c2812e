"""SSD on the models of timm: any classifier that gives feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssd.networks.layers import DepthwiseConv2d, ExtraLayers, PredictionConvolutions, xavier_
from ssd.networks.network import Network, map_sizes
from ssd.networks.priors import PriorSpec, coco_layout

STRIDES = (8, 16, 32)  # of the feature maps that are used
EXTRAS = (256, 256, 128)  # channels of the extra feature maps; all further maps have the last number


class Timm(Network):
    """SSD on a model of timm: its feature maps of stride 8, 16 and 32, and extra maps down to one cell.

    Args:
        n_classes: number of classes, background 0 included, at least 2.
        backbone: name of the model in timm, such as "resnet18"; it must have `features_only`.
        size: side of the images in pixels, in the range `sizes`. Some models do not take every size.
        head_batch_norm: adds batch norm after the convolutions that predict, for training from scratch.
        priors: name of one of the `layouts`, or another layout (a `PriorSpec`, or its fields as a dict) for the
            network's maps.
        input_mean, input_std: see `Network`; None: those that timm has for the model.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such model, it cannot give feature maps, or an argument is out of range.

    Source: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.
    """

    name = "timm"
    input_size = 320
    sizes: ClassVar[tuple[int, int] | None] = (128, 1024)
    layouts = ("caffe_coco",)

    def __init__(
        self,
        n_classes: int,
        *,
        backbone: str,
        size: int = 320,
        head_batch_norm: bool = False,
        priors: str | PriorSpec | Mapping[str, Any] = "caffe_coco",
        input_mean: Sequence[float] | None = None,
        input_std: Sequence[float] | None = None,
    ) -> None:
        known = _timm().get_pretrained_cfg(backbone, allow_unregistered=True) if _is_model(backbone) else None
        if known is None:
            raise ValueError(f"network: timm has no model {backbone!r}; timm.list_models() lists its models")
        super().__init__(
            n_classes,
            size,
            backbone=backbone,
            head_batch_norm=head_batch_norm,
            input_mean=input_mean or known.mean,
            input_std=input_std or known.std,
        )
        self.name = f"{type(self).name}:{backbone}"
        self.base = _Base(backbone, size)
        cells = map_sizes(self.base, size)
        self.extras = ExtraLayers(self.base.channels[-1], cells[-1], EXTRAS)
        self.set_priors(priors, (*cells, *self.extras.cells))
        channels = (*self.base.channels, *self.extras.channels)
        sources = {f"map{k}": c for k, c in enumerate(channels, 1)}
        self.pred_convs = PredictionConvolutions(n_classes, sources, self.prior_spec.boxes_per_cell, head_batch_norm)
        xavier_(self.pred_convs)

    @classmethod
    def layout(cls, name: str, maps: Sequence[int]) -> PriorSpec:
        """Returns the layout with the sides that the paper uses for COCO."""
        return coco_layout(maps)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts offsets (B, P, 4) and class logits (B, P, C) from images with the normalisation of the weights."""
        maps = self.base(images)
        return self.pred_convs(*maps, *self.extras(maps[-1]))  # (B, P, 4), (B, P, C)

    def stages(self) -> list[list[nn.Parameter]]:
        """The parts of the model that end at a feature map of timm, of any stride; see `Network.stages`."""
        # timm flattens some models: its feature "stages.0" is then the module "stages_0".
        ends = [f"{feature['module']}.".replace(".", "_") for feature in self.base.model.feature_info.info]
        stages: list[list[nn.Parameter]] = [[] for _ in ends]
        seen = -1  # the last feature map that was reached
        for path, module in self.base.model.named_modules():
            name = f"{path.removeprefix('model.')}.".replace(".", "_")
            within = [index for index, end in enumerate(ends) if name.startswith(end)]
            seen = max([seen, *within])
            stages[seen if within else min(seen + 1, len(ends) - 1)] += module.parameters(recurse=False)
        return [stage for stage in stages if stage]

    @classmethod
    def is_backbone(cls, state: Mapping[str, Any]) -> bool:
        """Whether this may be the state dict of a classifier; `load_backbone` checks the names."""
        return all(isinstance(value, Tensor) for value in state.values())

    def imagenet(self) -> dict[str, Tensor]:
        """Returns the state dict of timm's classifier, which timm downloads from the Hugging Face hub and keeps.

        Raises:
            ValueError: timm has no weights of this model.
            OSError: the download failed.
        """
        name = self.config["backbone"]
        try:
            return dict(_timm().create_model(name, pretrained=True).state_dict())
        except RuntimeError as error:  # also for a model without weights
            raise ValueError(f"{self.name}: {str(error).splitlines()[0]}") from None
        except Exception as error:  # the hub's client has many classes of errors
            raise OSError(
                f"{self.name}: the weights cannot be downloaded ({str(error).splitlines()[0][:200]}); use a file of "
                "them as the weights"
            ) from error

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Fills the backbone with the weights of timm's classifier, in place.

        Args:
            state: its state dict. Layers after the last feature map are not used.

        Raises:
            ValueError: the state dict is another one.
        """
        name, size = self.config["backbone"], self.config["size"]
        with torch.device("meta"):
            classifier = _timm().create_model(name, num_classes=0, **_size(name, size)).state_dict()
        missing = [key for key in classifier if key not in state]
        wrong = [key for key, value in classifier.items() if key in state and state[key].shape != value.shape]
        if missing or wrong:
            raise ValueError(
                f"not the weights of timm's {name}: {len(missing)} of {len(classifier)} parameters are missing "
                f"({', '.join(missing[:3])}), {len(wrong)} have another shape ({', '.join(wrong[:3])})"
            )
        loaded = _create(name, size, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)})
        self.base.model.load_state_dict(loaded.state_dict())


class _Base(nn.Module):
    """A model of timm that returns the feature maps of `STRIDES`.

    Attributes:
        channels: number of channels of each map.
    """

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.model = _create(name, size)
        DepthwiseConv2d.replace(self.model)
        info = self.model.feature_info
        self.channels: list[int] = info.channels()
        self.channels_last = getattr(self.model, "output_fmt", None) == "NHWC"

    def forward(self, images: Tensor) -> list[Tensor]:
        """Computes the maps (B, C, H, W), largest first."""
        maps = self.model(images)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else list(maps)


def _timm() -> Any:  # timm may be missing
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"the network timm:NAME needs timm ({error}): pip install 'ssd-ext[timm]'") from None
    return timm


def _is_model(name: str) -> bool:
    return _timm().is_model(name)


def _size(name: str, size: int) -> dict[str, int]:
    """The argument for the size of the images, if the model has a fixed one."""
    return {"img_size": size} if _timm().get_pretrained_cfg(name).fixed_input_size else {}


def _create(name: str, size: int, **how: Any) -> Any:  # timm's classes of feature extractors have no common type
    """Builds the model with the feature maps of `STRIDES`: of maps with the same stride the last one.

    Raises:
        ValueError: the model does not give such maps.
    """
    try:
        with torch.device("meta"):
            strides = _timm().create_model(name, features_only=True, **_size(name, size)).feature_info.reduction()
        last = {stride: index for index, stride in enumerate(strides)}
        if not (indices := [last[stride] for stride in STRIDES if stride in last]):
            raise ValueError(f"it has maps of stride {', '.join(map(str, strides))}")
        return _timm().create_model(name, features_only=True, out_indices=indices, **_size(name, size), **how)
    except Exception as error:  # each model has its own errors
        raise ValueError(f"network: timm's {name} has no feature maps of stride 8, 16 or 32: {error}") from error
