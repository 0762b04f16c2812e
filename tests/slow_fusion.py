"""Soft-NMS and weighted box fusion in loops over lists, as docs/semantics.md describes them."""

import math

from evaluation_inputs import slow_iou


def slow_soft_nms(boxes, scores, idxs, method, sigma, iou_threshold, min_score):
    """Rows (index, new score)."""
    left = {i: 0.0 if math.isnan(score) else score for i, score in enumerate(scores)}
    kept = []
    while left:
        best = min(left, key=lambda i: (-left[i], i))
        score = left.pop(best)
        if score <= min_score:
            break
        kept.append((best, score))
        for i in left:
            iou = slow_iou(boxes[i], boxes[best])
            if idxs[i] == idxs[best] and method == "gaussian":
                left[i] *= math.exp(-iou * iou / sigma)
            elif idxs[i] == idxs[best] and iou > iou_threshold:
                left[i] *= 1 - iou
    return kept


def slow_fusion(detectors, weights, iou_threshold, min_score=0.0):
    """Rows (box, label, score) from the rows of each detector."""
    every = [
        (box, label, score * weight)
        for rows, weight in zip(detectors, weights, strict=True)
        for box, label, score in rows
        if score > min_score and all(map(math.isfinite, box))
    ]
    objects = []  # lists of rows, with their box in front
    for row in sorted(every, key=lambda row: -row[2]):
        best, best_iou = None, iou_threshold
        for each in objects:
            if each[1][1] == row[1] and slow_iou(each[0], row[0]) > best_iou:
                best, best_iou = each, slow_iou(each[0], row[0])
        if best is None:
            best = [None]
            objects.append(best)
        best.append(row)
        total = sum(score for *_, score in best[1:])
        best[0] = [sum(score * box[side] for box, _, score in best[1:]) / total for side in range(4)]
    fused = []
    for box, *rows in objects:
        mean = sum(score for *_, score in rows) / len(rows)
        fused.append((box, rows[0][1], mean * min(len(rows), len(detectors)) / sum(weights)))
    return sorted(fused, key=lambda row: -row[2])
