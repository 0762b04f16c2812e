"""The SSD training loss as a module: a drop-in for the tutorial's class of the same name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssd_ext import LossOptions, match_priors, multibox_loss
from ssd_ext._boxes import cxcywh_to_xyxy

DEFAULTS = LossOptions()


class MultiBoxLoss(nn.Module):
    """conf_loss + alpha * loc_loss over a batch, see `ssd_ext.multibox_loss` for both parts.

    Args:
        priors_cxcy: (P, 4) cxcywh, fractions of the image.
        threshold, neg_pos_ratio: see `ssd_ext.LossOptions`.
        alpha: weight of the localisation loss.
        normalize: "batch" divides by the positives of this process, "global" by those of all processes: the average
            of the gradients over processes, as DistributedDataParallel takes it, is then that of the joined batch.
        parts: return (conf_loss, loc_loss), unweighted, instead of their sum.
        check: check the values of labels on CUDA too, at the price of a copy to the host.
        options: further fields of `ssd_ext.LossOptions`, such as loc_loss, matching and min_negatives.

    Raises:
        TypeError: an option is unknown.
        ValueError: priors_cxcy is not (P, 4), or normalize is unknown.

    Source:
        Liu et al., SSD (2016), section 2.2, equations 1 to 3.
    """

    priors_cxcy: Tensor

    def __init__(
        self,
        priors_cxcy: Tensor,
        threshold: float = DEFAULTS.threshold,
        neg_pos_ratio: float = DEFAULTS.neg_pos_ratio,
        alpha: float = 1.0,
        *,
        normalize: str = "batch",
        parts: bool = False,
        check: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if priors_cxcy.dim() != 2 or priors_cxcy.shape[1] != 4:
            raise ValueError(f"priors_cxcy must be (P, 4), got {tuple(priors_cxcy.shape)}")
        if normalize not in ("batch", "global"):
            raise ValueError(f"normalize must be 'batch' or 'global', got {normalize!r}")
        LossOptions(threshold, neg_pos_ratio, **options)  # an unknown one is an error here and not in the first step
        # The buffer follows the module to its device; not persistent, so the state dict stays empty.
        self.register_buffer("priors_cxcy", priors_cxcy, persistent=False)
        self.threshold = threshold
        self.neg_pos_ratio = neg_pos_ratio
        self.alpha = alpha
        self.options = options
        self.normalize = normalize
        self.parts = parts
        self.check = check

    def forward(
        self,
        predicted_locs: Tensor,
        predicted_scores: Tensor,
        boxes: Sequence[Tensor] | Tensor,
        labels: Sequence[Tensor] | Tensor,
        row_splits: Tensor | None = None,
        divisor: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of one batch.

        Args:
            predicted_locs: (B, P, 4) predicted offsets.
            predicted_scores: (B, P, C) predicted class logits, class 0 = background.
            boxes: B tensors (n_i, 4) of fractional xyxy; or, with `row_splits`, one packed tensor (G, 4).
            labels: B tensors (n_i,) int64 in 1..C-1; or one packed tensor (G,).
            row_splits: (B + 1,) int32, the rows of each image in a packed batch (static buffers for a CUDA graph).
            divisor: see `divisor`; by default of this batch. With that of a larger batch, of which this is a part, the
                losses of the parts add up to the loss of the whole.

        Returns:
            The 0-d loss, or (conf_loss, loc_loss) with `parts`. No positives: exactly 0, with zero gradients.

        Raises:
            ValueError: shapes, dtypes or devices do not fit; a label outside 1..C-1; an option out of its range.
        """
        if row_splits is None:
            boxes, labels, row_splits = pack_targets(boxes, labels, predicted_scores.device)
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
        return (conf_loss, loc_loss) if self.parts else conf_loss + self.alpha * loc_loss

    def divisor(self, boxes: Tensor, row_splits: Tensor) -> Tensor:
        """What the loss of packed targets is divided by, 0-d: their positives, or with "global" the mean of these over
        all processes, and at least 1 positive."""
        priors = cxcywh_to_xyxy(self.priors_cxcy)
        mode = self.options.get("matching", DEFAULTS.matching)
        n_pos = (match_priors(boxes, row_splits, priors, self.threshold, mode) >= 0).sum()
        return _mean_over_processes(n_pos) if self._joined() else n_pos.clamp(min=1)

    def _joined(self) -> bool:
        return self.normalize == "global" and dist.is_available() and dist.is_initialized()


def pack_targets(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The objects of a batch in a row: boxes (G, 4), labels (G,), row_splits (B + 1,) int32.

    Args:
        boxes: B tensors (n_i, 4).
        labels: B tensors (n_i,).
        device: where `row_splits` is put, and empty boxes and labels of an empty batch.

    Raises:
        ValueError: an image has not as many labels as boxes, or the lists differ in length.
    """
    if len(boxes) != len(labels):
        raise ValueError(f"boxes has {len(boxes)} images, labels has {len(labels)}")
    for i, (b, n) in enumerate(zip(boxes, labels, strict=True)):
        if b.dim() != 2 or b.shape[1] != 4 or n.shape != b.shape[:1]:
            raise ValueError(
                f"boxes[{i}] must be (n, 4) and labels[{i}] (n,), got {tuple(b.shape)} and {tuple(n.shape)}"
            )
    sizes = torch.tensor([0, *(len(b) for b in boxes)], dtype=torch.int32)
    row_splits = sizes.cumsum(0, dtype=torch.int32).to(device, non_blocking=True)
    if not len(boxes):
        return torch.zeros(0, 4, device=device), torch.zeros(0, dtype=torch.int64, device=device), row_splits
    return torch.cat(list(boxes)), torch.cat(list(labels)), row_splits


def _mean_over_processes(n_pos: Tensor) -> Tensor:
    total = n_pos.clone()
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()
