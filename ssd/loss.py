"""The SSD training loss as a module: a drop-in replacement for the tutorial's class of the same name."""

import math
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssd_ext import LossOptions, match_priors, multibox_loss
from ssd_ext._boxes import cxcywh_to_xyxy
from ssd_ext._checks import check_fields, check_names, check_value, describe, not_negative, values_can_be_read

DEFAULTS = LossOptions()
FRACTIONS = 2.0  # no coordinate in fractions of the image is as large as this, even of boxes that reach beyond it


class MultiBoxLoss(nn.Module):
    """The SSD loss of a batch: conf_loss + alpha * loc_loss, the two results of `ssd_ext.multibox_loss`.

    Args:
        priors_cxcy: (P, 4) cxcywh, fractions of the image.
        threshold, neg_pos_ratio: see `ssd_ext.LossOptions`.
        alpha: weight of the localisation loss.
        normalize: "batch" divides by the number of positive priors of this process; "global" divides by the mean of
            this number over all processes. With "global", gradients averaged by DistributedDataParallel equal the
            gradients of one process with the whole batch.
        parts: return the pair (conf_loss, loc_loss), unweighted, instead of the sum.
        check: check the values of labels on CUDA too; this copies data to the host.
        options: other fields of `ssd_ext.LossOptions`, such as loc_loss, matching and min_negatives. If center_variance
            or size_variance is not the default, give it to `ssd.detect` too, and as a field of
            `ssd_ext.DetectionOptions` to `ssd.Detector` and `ssd.evaluation.evaluate.evaluate`. Checkpoints do not
            have it.

    Raises:
        TypeError: priors_cxcy is no tensor, or an option is unknown.
        ValueError: priors_cxcy is not (P, 4), normalize is unknown, or alpha or an option is out of range.

    Source:
        Liu et al., SSD (2016), section 2.2, equations 1 to 3.

    Examples:
        >>> import torch
        >>> from ssd import MultiBoxLoss
        >>> criterion = MultiBoxLoss(torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]))
        >>> locs, scores = torch.zeros(1, 2, 4), torch.zeros(1, 2, 2, requires_grad=True)
        >>> loss = criterion(locs, scores, [torch.tensor([[0.0, 0.0, 0.5, 0.5]])], [torch.tensor([1])])
        >>> round(loss.item(), 4)  # log 2 for the prior on the object, and log 2 for the other one
        1.3863
        >>> loss.backward()
        >>> scores.grad[0].tolist()
        [[0.5, -0.5], [-0.5, 0.5]]
    """

    priors_cxcy: Tensor
    _values: Tensor | None = None  # of priors_cxcy, while the module is on the meta device

    def __init__(
        self,
        priors_cxcy: Tensor,
        threshold: float = DEFAULTS.threshold,
        neg_pos_ratio: float = DEFAULTS.neg_pos_ratio,
        alpha: float = 1.0,
        *,
        normalize: Literal["batch", "global"] = "batch",
        parts: bool = False,
        check: bool = False,
        **options: Any,  # each value has the type of its field in LossOptions
    ) -> None:
        super().__init__()
        if not isinstance(priors_cxcy, Tensor):
            raise TypeError(f"priors_cxcy must be a tensor (P, 4), got {type(priors_cxcy).__name__}")
        if priors_cxcy.dim() != 2 or priors_cxcy.shape[1] != 4:
            raise ValueError(f"priors_cxcy must be (P, 4), got {tuple(priors_cxcy.shape)}")
        if normalize not in ("batch", "global"):
            raise ValueError(f"normalize must be 'batch' or 'global', got {normalize!r}")
        check_names(options, self._defaults())
        check_fields(LossOptions(threshold, neg_pos_ratio, **options))  # before the first step
        check_value("alpha", alpha, not_negative)
        # A buffer moves to a device with its module. It is not persistent, so the state dict stays empty.
        self.register_buffer("priors_cxcy", priors_cxcy, persistent=False)
        self.threshold = threshold
        self.neg_pos_ratio = neg_pos_ratio
        self.alpha = alpha
        self.options = options
        self.normalize = normalize
        self.parts = parts
        self.check = check

    def extra_repr(self) -> str:
        chosen = vars(self) | self.options
        changed = [
            f"{name}={chosen[name]!r}" for name, usual in self._defaults().items() if chosen.get(name, usual) != usual
        ]
        return ", ".join([f"{len(self.priors_cxcy)} priors", *changed])

    def __prepare_scriptable__(self) -> None:
        """Refuses `torch.jit.script`, which calls this and would fail somewhere in `forward`."""
        raise TypeError("torch.jit.script does not take MultiBoxLoss: use torch.compile")

    @staticmethod
    def _defaults() -> dict[str, Any]:
        own = {name: each.default for name, each in signature(MultiBoxLoss).parameters.items()}
        return DEFAULTS._asdict() | {name: value for name, value in own.items() if value is not Parameter.empty}

    def forward(
        self,
        predicted_locs: Tensor,
        predicted_scores: Tensor,
        boxes: Sequence[Tensor] | Tensor,
        labels: Sequence[Tensor] | Tensor,
        row_splits: Tensor | None = None,
        divisor: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Computes the loss of one batch.

        Args:
            predicted_locs: (B, P, 4) predicted offsets.
            predicted_scores: (B, P, C) predicted class logits, class 0 = background.
            boxes: B tensors (n_i, 4) xyxy in fractions of the image; with `row_splits` one packed tensor (G, 4).
            labels: B tensors (n_i,) int64 in 1..C-1; with `row_splits` one packed tensor (G,).
            row_splits: (B + 1,) int32, the rows of each image in a packed batch. A CUDA graph needs packed targets,
                since its buffers are static.
            divisor: the number that the losses are divided by, 0-d, from the method `divisor`; by default that of this
                batch. If this batch is a part of a larger one, pass the divisor of the larger one: then the losses of
                the parts add up to its loss.

        Returns:
            The 0-d loss, or (conf_loss, loc_loss) with `parts`. Without positives it is exactly 0, with zero gradients;
            with `min_negatives` the negatives count even then.

        Raises:
            ValueError: shapes, dtypes or devices do not fit; a label is outside 1..C-1; boxes are in pixels, unlike the
                priors; or a box has x1 < x0 or y1 < y0 or a NaN, as boxes in another format than xyxy do (values are
                checked on CPU tensors, and on others with `check`).
            TypeError: the boxes or labels of an image are no tensor.
        """
        if row_splits is None:
            n_images = len(boxes)
            boxes, labels, row_splits = pack_targets(boxes, labels, predicted_scores.device)
            if n_images != len(predicted_scores):
                raise ValueError(f"predicted_scores has {len(predicted_scores)} images, boxes has {n_images}")
        if not (isinstance(boxes, Tensor) and isinstance(labels, Tensor)):
            raise ValueError("with row_splits, boxes and labels must be packed tensors")
        _check_format("boxes", boxes)
        if len(boxes) and values_can_be_read(boxes, self.check):
            check_in_fractions(boxes, self.priors_cxcy)
            _check_corners(boxes)
        options = LossOptions(self.threshold, self.neg_pos_ratio, **self.options)
        targets = boxes, labels, row_splits
        conf_loss, loc_loss, n_pos = multibox_loss(
            predicted_locs, predicted_scores, *targets, self.priors_cxcy, options, check=self.check
        )
        if divisor is None and self._joined():
            divisor = _mean_over_processes(n_pos)
        if divisor is not None:
            scale = n_pos.clamp(min=1).to(conf_loss.dtype) / divisor.to(conf_loss.dtype)
            conf_loss, loc_loss = conf_loss * scale, loc_loss * scale
        return (conf_loss, loc_loss) if self.parts else conf_loss.add(loc_loss, alpha=self.alpha)

    def divisor(self, boxes: Sequence[Tensor] | Tensor, row_splits: Tensor | None = None) -> Tensor:
        """Returns the number that `forward` divides by: the positive priors of a batch, at least 1.

        With normalize "global" it is the positives of all processes, at least 1, divided by the number of processes;
        then every process must call this method.

        Args:
            boxes, row_splits: see `forward`.

        Returns:
            0-d; int64, or float32 with "global" in several processes.
        """
        if row_splits is None:
            labels = [torch.ones(len(each), dtype=torch.int64, device=each.device) for each in boxes]
            boxes, _, row_splits = pack_targets(boxes, labels, self.priors_cxcy.device)
        assert isinstance(boxes, Tensor)
        priors = cxcywh_to_xyxy(self.priors_cxcy)
        mode = self.options.get("matching", DEFAULTS.matching)
        n_pos = (match_priors(boxes, row_splits, priors, self.threshold, mode) >= 0).sum()
        return _mean_over_processes(n_pos) if self._joined() else n_pos.clamp(min=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MultiBoxLoss":
        before = self.priors_cxcy
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types
        after = self.priors_cxcy
        if after.is_meta:
            self._values = self._values if before.is_meta else before
        elif before.is_meta:  # to_empty() leaves buffers without values, and the state dict has none for this one
            if self._values is None:
                raise RuntimeError("the priors of MultiBoxLoss have no values: make it from a network that has them")
            self.priors_cxcy, self._values = self._values.to(after.device), None
        elif after.dtype.itemsize < 4:  # half() would shift priors by up to half a pixel
            self.priors_cxcy = before.to(after.device)
        return self

    def _joined(self) -> bool:
        return self.normalize == "global" and dist.is_available() and dist.is_initialized()


def pack_targets(
    boxes: Sequence[Tensor] | Tensor, labels: Sequence[Tensor] | Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenates the objects of all images of a batch.

    Args:
        boxes: B tensors (n_i, 4), or one tensor (B, n, 4).
        labels: B tensors (n_i,), or one tensor (B, n).
        device: device of `row_splits`; if B is 0, of all results.

    Returns:
        boxes (G, 4), labels (G,) and row_splits (B + 1,) int32: image i has the rows row_splits[i]:row_splits[i + 1].

    Raises:
        ValueError: an image has different numbers of boxes and labels, labels are not int64, or the lists have
            different lengths.
        TypeError: the boxes or labels of an image are no tensor.
    """
    if len(boxes) != len(labels):
        raise ValueError(f"boxes has {len(boxes)} images, labels has {len(labels)}")
    for i, (b, n) in enumerate(zip(boxes, labels, strict=True)):
        if not (isinstance(b, Tensor) and isinstance(n, Tensor)):
            kinds = f"{type(b).__name__} and {type(n).__name__}"
            raise TypeError(f"boxes[{i}] must be a tensor (n, 4) and labels[{i}] a tensor (n,), got {kinds}")
        if b.dim() != 2 or b.shape[1] != 4 or n.shape != b.shape[:1]:
            raise ValueError(
                f"boxes[{i}] must be (n, 4) and labels[{i}] (n,), got {tuple(b.shape)} and {tuple(n.shape)}"
            )
        if n.dtype != torch.int64:
            raise ValueError(f"labels[{i}] must be int64, got {describe(n)}")
        _check_format(f"boxes[{i}]", b)
    ends = accumulate(map(len, boxes), initial=0)
    row_splits = torch.tensor(list(ends), dtype=torch.int32).to(device, non_blocking=True)
    if not len(boxes):
        return torch.zeros(0, 4, device=device), torch.zeros(0, dtype=torch.int64, device=device), row_splits
    return torch.cat(list(boxes)), torch.cat(list(labels)), row_splits


def check_in_fractions(boxes: Tensor, priors_cxcy: Tensor | None = None) -> None:
    """Raises ValueError if boxes, at least one, are in pixels, unlike the priors; None: these are in fractions."""
    largest = boxes.max().item()
    if FRACTIONS < largest < math.inf and (priors_cxcy is None or priors_cxcy.max() <= FRACTIONS):
        raise ValueError(
            f"boxes must be in fractions of the image, as the priors are, got {largest:g}: divide x by its width and y "
            "by its height"
        )


def _check_format(name: str, boxes: Tensor) -> None:
    """Raises ValueError if these are `BoundingBoxes` of torchvision in another format than xyxy."""
    if type(boxes) is not Tensor and str(kind := getattr(getattr(boxes, "format", None), "value", "XYXY")) != "XYXY":
        raise ValueError(
            f"{name} must be xyxy, got the format {kind}: convert with convert_bounding_box_format of "
            "torchvision.transforms.v2.functional"
        )


def _check_corners(boxes: Tensor) -> None:
    """Raises ValueError if a box, of at least one, is inverted or NaN."""
    for number, box in enumerate(boxes.tolist()):  # for the few boxes of a batch, faster than operations on tensors
        x0, y0, x1, y1 = box
        if not (x0 <= x1 and y0 <= y1):
            raise ValueError(
                f"boxes must be xyxy with x0 <= x1 and y0 <= y1, got [{', '.join(f'{side:g}' for side in box)}] for "
                f"object {number} of the batch, counted from 0: convert boxes in another format, such as xywh"
            )


def _mean_over_processes(n_pos: Tensor) -> Tensor:
    total = n_pos.clone()
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()
