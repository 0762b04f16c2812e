"""Replaces the loss and the detection of torchvision's detectors by those of `ssd_ext`, in place."""

from operator import index
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from ssd.boxes import xy_to_cxcy
from ssd.loss import pack_targets
from ssd_ext import DetectionOptions, LossOptions, batched_nms, decode_boxes, multibox_loss, postprocess_detections


def accelerate(model: nn.Module) -> nn.Module:
    """Makes a torchvision detector use our loss and detection, in place.

    Everything else stays as it is, including the state dict of the model. In an `SSD` (`ssd300_vgg16`,
    `ssdlite320_mobilenet_v3_large`) the loss and the detection are replaced, in a `RetinaNet` only the detection. The
    model is called as before and returns results of the same form. Thresholds are read from the model at each call.

    Losses agree with torchvision's to a relative 1e-5; detections agree in number, labels and order, except where
    rounding decides: docs/semantics.md, "Where an accelerated model differs". In evaluation mode an accelerated SSD
    works with `torch.export`, `torch.compile(fullgraph=True)`, `torch.jit.trace` and both exporters of `torch.onnx`. A
    RetinaNet works with `torch.jit.trace` and the exporter with dynamo=False, and uses torchvision's detection there.
    `torch.jit.script` works only with the original model.

    Args:
        model: a torchvision `SSD` or `RetinaNet`, not wrapped. A model that is accelerated already is not changed.

    Returns:
        The same object, now an instance of a subclass of its class.

    Raises:
        TypeError: the model is of another class, overrides a method that would be replaced, or has a box coder, matcher
            or anchor generator that is not torchvision's.
        ValueError: the box coder weighs x and y differently, or the matcher of an SSD allows low-quality matches.

    Examples:
        >>> import torch
        >>> from torchvision.models.detection import ssdlite320_mobilenet_v3_large
        >>> from ssd import accelerate
        >>> model = accelerate(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)).eval()
        >>> detections = model([torch.zeros(3, 60, 100)])  # as before, but faster
        >>> sorted(detections[0])
        ['boxes', 'labels', 'scores']
    """
    if isinstance(model, _Accelerated):
        return model
    _check_replaceable(model)
    model.__class__ = _subclass(type(model))
    return model


def _check_replaceable(model: nn.Module) -> None:
    """Raises the errors of `accelerate`."""
    if not isinstance(model, (SSD, RetinaNet)):
        raise TypeError(f"accelerate takes torchvision's SSD or RetinaNet, got {type(model).__name__}")
    kind: type[nn.Module] = SSD if isinstance(model, SSD) else RetinaNet
    for name in (name for name in vars(_MIXINS[kind]) if not name.startswith("_")):
        if name in vars(model) or getattr(type(model), name) is not getattr(kind, name):
            raise TypeError(f"{type(model).__name__} has a {name} of its own, which would be replaced")
    _variances(model)
    if isinstance(model, SSD):
        _threshold(model)
    generator = DefaultBoxGenerator if isinstance(model, SSD) else AnchorGenerator
    given = type(model.anchor_generator)
    if getattr(given, "forward", None) is not generator.forward:
        raise TypeError(f"anchor_generator must be torchvision's {generator.__name__}, got {given.__name__}")


class _Accelerated:
    """Marks an accelerated model. Its class is in no module, so pickle and deepcopy create the class again."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        reduced = tuple(super().__reduce_ex__(max(index(protocol), 2)))  # function, arguments, then the state
        return _new, (type(self).__bases__[1],), *reduced[2:]


class _SSD(_Accelerated, SSD):
    # The return type is torchvision's: the pair that TorchScript returns. In Python, the method returns either the
    # losses or the detections.
    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        if not self.training:
            return super().forward(images, targets)
        if targets is None:
            raise AssertionError("targets should not be none when in training mode")
        for target in targets:
            boxes = target["boxes"]
            torch._assert(isinstance(boxes, Tensor), f"Expected target boxes to be of type Tensor, got {type(boxes)}.")
            torch._assert(
                boxes.dim() == 2 and boxes.shape[1] == 4,
                f"Expected target boxes to be a tensor of shape [N, 4], got {boxes.shape}.",
            )
        batch, targets = self.transform(images, targets)
        _check_sides([target["boxes"] for target in targets])
        features = self.backbone(batch.tensors)
        features = [features] if isinstance(features, Tensor) else list(features.values())
        predictions = self.head(features)
        # All images have the same anchors, so they are made for the first image only.
        anchors = self.anchor_generator(ImageList(batch.tensors, batch.image_sizes[:1]), features)
        return self.eager_outputs(self.compute_loss(targets, predictions, anchors), [])

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Computes both losses with anchors[0] for every image.

        If `matched_idxs` is given, torchvision's own method computes them.
        """
        if matched_idxs is not None:
            return super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        logits = head_outputs["cls_logits"]
        labels = [t["labels"].long() if t["labels"].dtype == torch.int32 else t["labels"] for t in targets]
        packed = pack_targets([t["boxes"] for t in targets], labels, logits.device)
        center_variance, size_variance = _variances(self)
        options = LossOptions(
            _threshold(self),
            self.neg_to_pos_ratio,
            "smooth_l1",
            center_variance=center_variance,
            size_variance=size_variance,
        )
        inputs = head_outputs["bbox_regression"], logits, *packed, xy_to_cxcy(anchors[0])
        conf, loc, _ = multibox_loss(*inputs, options, priors_xyxy=anchors[0], check=True)
        return {"bbox_regression": loc, "classification": conf}

    def postprocess_detections(
        self, head_outputs: dict[str, Tensor], image_anchors: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        offsets, logits = head_outputs["bbox_regression"], head_outputs["cls_logits"]
        height, width = image_shapes[0]
        if any(shape != (height, width) for shape in image_shapes):
            raise ValueError(f"SSD resizes all images to one size, got {image_shapes}")
        center_variance, size_variance = _variances(self)
        options = DetectionOptions(
            self.score_thresh,
            self.nms_thresh,
            self.detections_per_img,
            self.topk_candidates,
            center_variance,
            size_variance,
            clip=True,
            max_log_scale=self.box_coder.bbox_xform_clip,
        )
        # The priors and boxes are in fractions of the image, because `clip` cuts boxes at 0 and 1. All images have the
        # same anchors.
        size = torch.tensor([width, height, width, height], dtype=torch.float32, device=logits.device)
        priors = xy_to_cxcy(image_anchors[0] / size)
        boxes, labels, scores, counts = postprocess_detections(offsets, logits, priors, options)
        # While TorchScript traces, the counts stay tensors: it would write numbers into the graph as constants.
        numbers = counts.long().unbind() if torch.jit.is_tracing() else counts.tolist()
        rows = zip(boxes, scores, labels, numbers, strict=True)
        # The boxes are cut to n rows before they are multiplied, because the compiler of torch 2.11 cannot slice a
        # product by a number of rows that depends on the data.
        return [{"boxes": b[:n] * size, "scores": s[:n], "labels": k[:n]} for b, s, k, n in rows]


class _RetinaNet(_Accelerated, RetinaNet):
    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        if torch.jit.is_tracing():  # TorchScript would write the numbers that are read below into the graph
            return super().postprocess_detections(head_outputs, anchors, image_shapes)
        n_images, n_classes = len(image_shapes), head_outputs["cls_logits"][0].shape[-1]
        decoding = *_variances(self), self.box_coder.bbox_xform_clip
        levels = []
        for logits, offsets, level in zip(
            head_outputs["cls_logits"], head_outputs["bbox_regression"], anchors[0], strict=True
        ):
            scores = logits.float().sigmoid().flatten(1)
            image, index, score = _best_of_rows(scores, self.score_thresh, self.topk_candidates)
            anchor, label = index // n_classes, index % n_classes
            boxes = decode_boxes(offsets[image, anchor], xy_to_cxcy(level[anchor].float()), *decoding)
            levels.append((image, label, score, boxes))
        image, label, score, boxes = (torch.cat(parts) for parts in zip(*levels, strict=True))
        sizes = boxes.new_tensor([(width, height, width, height) for height, width in image_shapes])
        boxes = boxes.clamp(min=0).minimum(sizes[image])
        keep = batched_nms(boxes, score, image * n_classes + label, self.nms_thresh)
        keep = keep[image[keep].argsort(stable=True)]  # by image, and in each image by descending score
        counts = image[keep].bincount(minlength=n_images).tolist()
        kept = [rows[: self.detections_per_img] for rows in keep.split(counts)]
        return [{"boxes": boxes[rows], "scores": score[rows], "labels": label[rows]} for rows in kept]


_MIXINS: dict[type[nn.Module], type[nn.Module]] = {SSD: _SSD, RetinaNet: _RetinaNet}
_SUBCLASSES: dict[type[nn.Module], type[nn.Module]] = {}  # one for each class that was accelerated


def _subclass(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _SUBCLASSES:
        mixin = _SSD if issubclass(base, SSD) else _RetinaNet
        _SUBCLASSES[base] = type(f"Accelerated{base.__name__}", (mixin, base), {})
    return _SUBCLASSES[base]


def _new(base: type[nn.Module]) -> nn.Module:
    accelerated = _subclass(base)
    return accelerated.__new__(accelerated)


def _variances(model: SSD | RetinaNet) -> tuple[float, float]:
    """The variances of the centres and of the sizes, from the box coder."""
    coder = model.box_coder
    if type(coder) is not BoxCoder:
        raise TypeError(f"box_coder must be torchvision's BoxCoder, got {type(coder).__name__}")
    x, y, width, height = coder.weights
    if x != y or width != height:
        raise ValueError(f"box_coder must weigh x and y, width and height alike, got weights {coder.weights}")
    return 1 / x, 1 / width


def _threshold(model: SSD) -> float:
    """The least IoU of a positive anchor, from the matcher."""
    matcher = model.proposal_matcher
    if type(matcher) is not SSDMatcher:
        raise TypeError(f"proposal_matcher must be torchvision's SSDMatcher, got {type(matcher).__name__}")
    if matcher.allow_low_quality_matches:
        raise ValueError("proposal_matcher must not allow low-quality matches")
    return matcher.high_threshold


def _check_sides(boxes: list[Tensor]) -> None:
    """Raises torchvision's error for a box without width or height; waits for the device once per batch."""
    packed = torch.cat(boxes)
    degenerate = (packed[:, 2:] <= packed[:, :2]).any(dim=1)
    if degenerate.any():
        row = int(degenerate.nonzero()[0])
        image = next(i for i in range(len(boxes)) if sum(map(len, boxes[: i + 1])) > row)
        torch._assert(
            False,
            "All bounding boxes should have positive height and width."
            f" Found invalid box {packed[row].tolist()} for target at index {image}.",
        )


def _best_of_rows(scores: Tensor, min_score: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Finds in each row the scores > min_score; if there are more than `most`, only the `most` largest.

    Returns row, column and value of each; rows in order, and in a row by descending score.
    """
    row, column = (scores > min_score).nonzero(as_tuple=True)
    passing = scores[row, column]
    counts = row.bincount(minlength=len(scores))
    first = counts.cumsum(0) - counts
    # Few scores pass. Packed into shorter rows they are sorted much faster than among all scores.
    padded = scores.new_full((len(scores), max(1, int(counts.max()))), -1)
    padded[row, torch.arange(len(row), device=row.device) - first[row]] = passing
    best = padded.topk(min(most, padded.shape[1]))
    chosen = (first[:, None] + best.indices)[best.values >= 0]
    return row[chosen], column[chosen], passing[chosen]
