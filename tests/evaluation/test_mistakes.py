"""Kinds of errors, thresholds, confusion, calibration and sizes, by hand and against slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from evaluation_inputs import CAT, CLASSES, DOG, NOTHING, A, B, found, random_images, slow_iou, truth

from ssd.evaluation import mistakes
from ssd.evaluation.matching import (
    BACKGROUND,
    DUPLICATE,
    HIT,
    IGNORED,
    KINDS,
    MISSED,
    WRONG_BOTH,
    WRONG_CLASS,
    WRONG_PLACE,
    match,
)
from ssd.evaluation.mistakes import SIZE_LIMITS
from ssd.evaluation.voc import average_precision

HALF = [0, 0, 10, 4]  # IoU 2/5 with A
NEAR = [0, 0, 10, 9]  # IoU 9/10 with A
NOWHERE = [80, 80, 90, 90]
NAMES = ("one", "two", "three", "none")  # of `random_images`; the last has no objects
seeds = pytest.mark.parametrize("seed", range(6))


def varied_images(seed: int, n_images: int = 8):
    """`random_images` with more detections at wrong places, of any class and with different scores."""
    detections, targets = random_images(seed, n_images)
    rng = np.random.default_rng(seed)
    scores = iter((rng.permutation(2000) + 0.5) / 2000)
    for i, ((boxes, labels, confidences), target) in enumerate(zip(detections, targets, strict=True)):
        objects = np.repeat(target["boxes"].numpy(), 3, axis=0)
        guesses = np.where(rng.random(len(objects)) < 0.5, target["labels"].numpy().repeat(3), rng.integers(1, 5))
        moved = torch.from_numpy(objects + rng.normal(0, 0.06, objects.shape)).float()
        its_scores = torch.tensor([next(scores) for _ in objects], dtype=torch.float32)
        more = moved, torch.from_numpy(guesses).long(), its_scores
        detections[i] = tuple(map(torch.cat, zip((boxes, labels, confidences), more, strict=True)))
    return detections, targets


def random_sizes(seed: int):
    """`random_images` with objects of all sizes: those of every other image are a fifth as large."""
    detections, targets = varied_images(seed, 12)
    for i in range(0, 12, 2):
        detections[i] = (detections[i][0] * 0.2, *detections[i][1:])
        targets[i] = {**targets[i], "boxes": targets[i]["boxes"] * 0.2}
    return detections, targets


def slow_rows(detections, targets, threshold=0.5):
    """Each detection with a label as a dict: where it is, its objects, and its outcome; in the order of `match`."""
    rows = []
    for image, ((boxes, labels, scores), target) in enumerate(zip(detections, targets, strict=True)):
        objects = list(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True))
        for row, (box, label, score) in enumerate(zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True)):
            nearest = {True: (0.0, None), False: (0.0, None)}
            for number, (its_box, its_label) in enumerate(objects):
                iou = slow_iou(box, its_box)
                if iou > nearest[its_label == label][0]:
                    nearest[its_label == label] = iou, (image, number)
            if label:
                rows.append(
                    {"image": image, "row": row, "label": label, "score": score, "box": box,
                     "own": nearest[True], "other": nearest[False]}
                )  # fmt: skip
    taken = set()
    for row in sorted(rows, key=lambda row: -row["score"]):
        own_iou, own = row["own"]
        other_iou = row["other"][0]
        if own_iou >= threshold and targets[own[0]]["difficult"][own[1]]:
            row["outcome"] = IGNORED
        elif own_iou >= threshold and own not in taken:
            row["outcome"] = HIT
            taken.add(own)
        elif 0.1 <= own_iou < threshold:
            row["outcome"] = WRONG_PLACE
        elif other_iou >= threshold:
            row["outcome"] = WRONG_CLASS
        elif own_iou >= threshold:
            row["outcome"] = DUPLICATE
        elif other_iou >= 0.1:
            row["outcome"] = WRONG_BOTH
        else:
            row["outcome"] = BACKGROUND
    return rows


def slow_missed(rows, targets, min_score=-1.0):
    covered = {
        row[{HIT: "own", WRONG_PLACE: "own", WRONG_CLASS: "other"}[row["outcome"]]][1]
        for row in rows
        if row["outcome"] in (HIT, WRONG_PLACE, WRONG_CLASS) and row["score"] > min_score
    }
    every = [(i, n) for i, target in enumerate(targets) for n in range(len(target["labels"]))]
    return [place not in covered and not targets[place[0]]["difficult"][place[1]] for place in every]


def as_detections(rows, n_images):
    """The detections of each image from dicts with box, label and score."""
    images = [[row for row in rows if row["image"] == image] for image in range(n_images)]
    return [
        found(*[(row["box"], row["label"], row["score"]) for row in image]) if image else NOTHING for image in images
    ]


BY_HAND = {  # detections, objects, outcomes
    "hit": ([(A, CAT, 0.9)], [(A, CAT)], [HIT]),
    "duplicate": ([(NEAR, CAT, 0.8), (A, CAT, 0.9)], [(A, CAT)], [DUPLICATE, HIT]),
    "wrong class": ([(A, DOG, 0.9)], [(A, CAT)], [WRONG_CLASS]),
    "wrong place": ([(HALF, CAT, 0.9)], [(A, CAT)], [WRONG_PLACE]),
    "both": ([(HALF, DOG, 0.9)], [(A, CAT)], [WRONG_BOTH]),
    "background": ([(NOWHERE, DOG, 0.9)], [(A, CAT)], [BACKGROUND]),
    "background, IoU below 1/10": ([([0, 0, 10, 0.9], CAT, 0.9)], [(A, CAT)], [BACKGROUND]),
    "IoU of 1/10": ([([0, 0, 10, 1], CAT, 0.9)], [(A, CAT)], [WRONG_PLACE]),
    "IoU of 1/10 with another class": ([([0, 0, 10, 1], DOG, 0.9)], [(A, CAT)], [WRONG_BOTH]),
    "IoU of 1/2": ([([0, 0, 10, 5], CAT, 0.9)], [(A, CAT)], [HIT]),
    "difficult": ([(A, CAT, 0.9)], [(A, CAT, True)], [IGNORED]),
    "difficult and of another class": ([(A, DOG, 0.9)], [(A, CAT, True)], [WRONG_CLASS]),
    "wrong place before wrong class": ([(HALF, CAT, 0.9)], [(A, CAT), (HALF, DOG)], [WRONG_PLACE]),
    "wrong class before duplicate": ([(A, CAT, 0.9), (A, CAT, 0.8)], [(A, CAT), (A, DOG)], [HIT, WRONG_CLASS]),
    "nothing found is no detection": ([(A, 0, 0.9), (A, CAT, 0.8)], [(A, CAT)], [HIT]),
    "NaN": ([([math.nan] * 4, CAT, 0.9), (A, CAT, math.nan)], [(A, CAT)], [BACKGROUND, HIT]),
}


@pytest.mark.parametrize("case", BY_HAND.values(), ids=BY_HAND)
def test_outcomes_by_hand(case: tuple) -> None:
    detections, objects, expected = case
    assert match([found(*detections)], [truth(*objects)], 3).outcomes.tolist() == expected


def test_mistakes_of_each_picture_are_counted() -> None:
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0.6, 0.3, 1]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2, 1]), "difficult": torch.tensor([False, False, True])}
    everything = boxes, target["labels"], torch.tensor([0.9, 0.8, 0.7])
    twice = boxes[[0, 0, 1]], torch.tensor([1, 1, 1]), torch.tensor([0.9, 0.8, 0.7])  # and the second of a wrong class
    faint = boxes[:2], target["labels"][:2], torch.tensor([0.9, 0.1])
    matches = match([everything, twice, faint, NOTHING], [target] * 4, 3)
    assert [counts.tolist() for counts in mistakes.count_by_picture(matches, 0.2)] == [[0, 1, 1, 2], [0, 2, 0, 0]]
    assert [counts.tolist() for counts in mistakes.count_by_picture(matches)] == [[0, 1, 0, 2], [0, 2, 0, 0]]


@seeds
@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_outcomes_agree_with_the_slow_loop(seed: int, threshold: float) -> None:
    detections, targets = varied_images(seed)
    rows = slow_rows(detections, targets, threshold)
    matches = match(detections, targets, 5, threshold)
    assert matches.outcomes.tolist() == [row["outcome"] for row in rows]
    assert matches.labels.tolist() == [row["label"] for row in rows]
    assert matches.pictures.tolist() == [row["image"] for row in rows]
    assert matches.boxes.tolist() == [row["box"] for row in rows]
    assert mistakes.missed_objects(matches).tolist() == slow_missed(rows, targets)
    counts = mistakes.count_errors(matches, 0.4)
    assert counts["missed"] == sum(slow_missed(rows, targets, 0.4))
    kept = [row["outcome"] for row in rows if row["score"] > 0.4]
    assert [counts[KINDS[kind]] for kind in range(MISSED)] == [kept.count(kind) for kind in range(MISSED)]
    without_hit, wrong = mistakes.count_by_picture(matches, 0.4)
    for image, target in enumerate(targets):
        its = [row["outcome"] for row in rows if row["score"] > 0.4 and row["image"] == image]
        assert wrong[image] == sum(outcome >= 0 for outcome in its)
        assert without_hit[image] == int((~target["difficult"]).sum()) - its.count(HIT)


def test_the_random_images_have_every_outcome() -> None:
    outcomes = [row["outcome"] for seed in range(6) for row in slow_rows(*varied_images(seed))]
    assert min(map(outcomes.count, (HIT, IGNORED, *range(MISSED)))) > 5
    assert sum(sum(slow_missed(slow_rows(*varied_images(seed)), varied_images(seed)[1])) for seed in range(6)) > 3


def test_boxes_are_in_fractions_of_the_picture() -> None:
    matches = match([found((A, CAT, 0.5))], [truth((B, CAT))], 3, sizes=torch.tensor([[100, 50]]))
    assert matches.boxes.tolist() == [[0, 0, 0.1, 0.2]]
    assert matches.truth_boxes.tolist() == [[0.2, 0, 0.3, 0.2]]


def slow_costs(detections, targets, method):
    """Repairs detections and objects, and measures them as any others."""
    rows = slow_rows(detections, targets)
    counted = [n for n, label in zip(NAMES, range(1, 5), strict=True) if truths_of(targets, label)]

    def mean(rows, targets=targets):
        aps = average_precision(as_detections(rows, len(targets)), targets, NAMES, method=method).ap
        return sum(1.0 if math.isnan(aps[name]) else aps[name] for name in counted) / len(counted)

    def repaired(kind, side):
        new, best = [], {}
        for row in rows:
            place = row["own"][1] if row["outcome"] == HIT else row[side][1] if row["outcome"] == kind else None
            if row["outcome"] == kind:
                target = targets[place[0]]
                if target["difficult"][place[1]]:
                    continue
                row = {**row, "label": int(target["labels"][place[1]]), "box": target["boxes"][place[1]].tolist()}
            new.append((row, place))
            if place is not None and row["score"] > best.get(place, (-1, 0))[0]:
                best[place] = row["score"], len(new) - 1
        return mean([row for n, (row, place) in enumerate(new) if place is None or best[place][1] == n])

    missed = iter(slow_missed(rows, targets))
    kept = [torch.tensor([not next(missed) for _ in target["labels"]], dtype=torch.bool) for target in targets]
    without = [{n: c[k] for n, c in target.items()} for target, k in zip(targets, kept, strict=True)]
    values = [
        repaired(WRONG_CLASS, "other"),
        repaired(WRONG_PLACE, "own"),
        *(mean([r for r in rows if r["outcome"] != kind]) for kind in (WRONG_BOTH, DUPLICATE, BACKGROUND)),
        mean(rows, without),
    ]
    return [value - mean(rows) for value in values]


def truths_of(targets, label):
    return sum(int(((t["labels"] == label) & ~t["difficult"]).sum()) for t in targets)


@seeds
@pytest.mark.parametrize("method", ["area", "11point"])
def test_costs_agree_with_repaired_detections(seed: int, method: str) -> None:
    detections, targets = varied_images(seed)
    costs = mistakes.error_costs(match(detections, targets, 5), method)
    expected = slow_costs(detections, targets, method)
    assert list(costs) == list(KINDS)
    assert list(costs.values()) == pytest.approx(expected, abs=1e-12)  # sums of a few fractions
    assert sum(cost > 0.001 for cost in expected) >= 4  # the data decide something


def test_costs_by_hand() -> None:
    def costs(detections, *objects) -> dict[str, float]:
        return {k: c for k, c in mistakes.error_costs(match([detections], [truth(*objects)], 3)).items() if c}

    # The cat of two cats is found: AP 1/2. Without the missed one it is 1.
    assert costs(found((A, CAT, 0.9)), (A, CAT), (B, CAT)) == {"missed": 0.5}
    # Precision 1/2 at all recalls; without the detection of nothing it is 1.
    assert costs(found((NOWHERE, CAT, 0.9), (A, CAT, 0.8)), (A, CAT)) == {"background": 0.5}
    assert costs(found((A, CAT, 0.9), (A, CAT, 0.8), (B, CAT, 0.7)), (A, CAT), (B, CAT)) == {
        "duplicate": pytest.approx(1 - 5 / 6)
    }
    # The only dog was taken for a cat: AP 1/2 and 0. Repaired, both are 1.
    assert costs(found((A, CAT, 0.9), (B, CAT, 0.8)), (A, DOG), (B, CAT)) == {"wrong class": 0.75}
    assert costs(found((HALF, CAT, 0.9)), (A, CAT)) == {"wrong place": 1.0}
    # The repaired detection has the higher score, so the former hit is removed instead of becoming a duplicate.
    assert costs(found((HALF, CAT, 0.9), (A, CAT, 0.8)), (A, CAT)) == {"wrong place": 0.5}
    # A class whose objects are all missed counts as 1 afterwards.
    assert costs(found((A, CAT, 0.9)), (A, CAT), (B, DOG)) == {"missed": 0.5}
    assert all(map(math.isnan, mistakes.error_costs(match([NOTHING], [truth()], 3)).values()))


def slow_f1(detections, targets, score, name):
    """Precision, recall and F1 of a class with the detections of at least this score."""
    kept = [tuple(column[d[2].double() >= score] for column in d) for d in detections]
    recall, precision = average_precision(kept, targets, NAMES).curves[name]
    if not len(recall) or not recall[-1]:
        return 0.0, 0.0, 0.0
    return precision[-1], recall[-1], 2 * precision[-1] * recall[-1] / (precision[-1] + recall[-1])


@seeds
def test_thresholds_agree_with_trying_every_score(seed: int) -> None:
    detections, targets = varied_images(seed, 5)
    detections = [(d[0], d[1], (d[2] * 50).ceil() / 50) for d in detections]  # equal scores too
    scores = sorted({score for d in detections for score in d[2].tolist()}, reverse=True)
    matches = match(detections, targets, 5)
    bests = mistakes.best_of_classes(matches)
    total = np.zeros(len(scores))
    for name, best in zip(NAMES[:3], bests, strict=False):
        tried = [slow_f1(detections, targets, score, name) for score in scores]
        number = max(range(len(scores)), key=lambda n: tried[n][2])  # the first of equals
        assert best[1:] == pytest.approx(tried[number], abs=1e-12)
        assert tried[number][2] > 0
        # With the threshold, the same remains.
        assert slow_f1(detections, targets, best.min_score + 1e-9, name) == pytest.approx(tried[number], abs=1e-12)
        assert best.min_score < scores[number]
        total += [f1 for _, _, f1 in tried]
    assert all(map(math.isnan, bests[3]))
    min_score, mean_f1 = mistakes.best_of_all(matches)
    number = int(np.argmax(total))
    assert mean_f1 == pytest.approx(total[number] / 3, abs=1e-12)
    assert scores[number + 1] <= min_score < scores[number]


def test_thresholds_by_hand() -> None:
    detections = found((A, CAT, 0.9), (NOWHERE, CAT, 0.64), (B, CAT, 0.61), (NOWHERE, CAT, 0.59), (A, DOG, 0.3))
    matches = match([detections], [truth((A, CAT), (B, CAT), (NOWHERE, DOG))], 3)
    cat, dog = mistakes.best_of_classes(matches)
    # F1 after each detection: 2/3, 1/2, 4/5, 2/3
    assert cat == (0.6, pytest.approx(2 / 3), 1.0, pytest.approx(0.8))
    assert dog[2:] == (0, 0)  # there is a dog, and no hit
    assert math.isnan(dog.min_score)
    assert math.isnan(dog.precision)
    assert mistakes.best_of_all(matches) == (0.6, pytest.approx(0.4))
    assert all(map(math.isnan, mistakes.best_of_all(match([NOTHING], [truth((A, CAT))], 3))))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.40991, 0.41327, 0.41), (-math.inf, 0.6432, 0.6), (0.6, 0.64, 0.6), (0.5, 0.6, 0.5), (0.2, 0.9, 0.8),
     (0.4099, 0.40999, 0.4099), (-math.inf, 0.05, 0.0), (0.1, 0.1 + 1e-12, 0.1),
     (0.25, float(np.float32(0.3)), 0.29), (3.0, math.inf, 3.0)],
)  # fmt: skip
def test_a_threshold_has_few_decimals(low: float, high: float, expected: float) -> None:
    assert mistakes._between(low, high) == expected


def slow_confusion(detections, targets, min_score, threshold=0.5):
    counts = [[0] * 5 for _ in range(5)]
    for (boxes, labels, scores), target in zip(detections, targets, strict=True):
        objects = list(
            zip(target["boxes"].tolist(), target["labels"].tolist(), target["difficult"].tolist(), strict=True)
        )
        free = [not hard for _, _, hard in objects]
        order = sorted(range(len(labels)), key=lambda row: -float(scores[row]))
        for row in order:
            label = int(labels[row])
            if not label or float(scores[row]) <= min_score:
                continue
            ious = [slow_iou(boxes[row].tolist(), box) for box, _, _ in objects]
            best = max((n for n in range(len(objects)) if free[n]), key=lambda n: ious[n], default=None)
            if best is not None and ious[best] >= threshold:
                free[best] = False
                counts[objects[best][1]][label] += 1
            elif not any(iou >= threshold and hard for iou, (_, _, hard) in zip(ious, objects, strict=True)):
                counts[0][label] += 1
        for n, (_, label, _) in enumerate(objects):
            counts[label][0] += free[n]
    return counts


@seeds
@pytest.mark.parametrize("min_score", [0.0, 0.5])
def test_confusion_agrees_with_the_slow_loop(seed: int, min_score: float) -> None:
    detections, targets = varied_images(seed)
    counts = mistakes.confusion(match(detections, targets, 5), min_score)
    assert counts.tolist() == slow_confusion(detections, targets, min_score)
    assert counts[1:].sum() == sum(truths_of(targets, label) for label in range(1, 5))


def test_confusion_by_hand() -> None:
    images = [
        (found((A, DOG, 0.9), (NEAR, CAT, 0.8), (B, CAT, 0.7)), truth((A, CAT), (B, CAT))),  # a dog takes the cat
        (found((A, CAT, 0.9), (NOWHERE, DOG, 0.1)), truth((A, CAT, True), (B, DOG))),  # ignored; below the threshold
    ]
    counts = mistakes.confusion(match(*zip(*images, strict=True), 3), 0.5)
    # A row for each class of objects, background first: nothing, cat, dog
    assert counts.tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_calibration_by_hand() -> None:
    rows = [(A, CAT, 0.95), (NOWHERE, CAT, 0.91), (NOWHERE, CAT, 0.15), (B, CAT, 0.05), (NOWHERE, DOG, math.nan)]
    matches = match([found(*rows)], [truth((A, CAT), (B, CAT, True))], 3)
    result = mistakes.calibration(matches)
    assert result.counts.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 2]  # the difficult object and NaN do not count
    assert result.hit_shares[[1, 9]].tolist() == [0, 0.5]
    assert result.mean_scores[[1, 9]] == pytest.approx([0.15, 0.93])
    assert math.isnan(result.mean_scores[0])
    assert result.error == pytest.approx((0.15 + 2 * 0.43) / 3)
    outside = mistakes.calibration(match([found((A, CAT, 7.0), (A, CAT, -1.0), (B, CAT, 1.0))], [truth()], 3))
    assert outside.counts.tolist() == [1, *[0] * 8, 2]
    assert math.isnan(mistakes.calibration(match([NOTHING], [truth()], 3)).error)


@seeds
def test_calibration_agrees_with_the_slow_loop(seed: int) -> None:
    rows = [row for row in slow_rows(*varied_images(seed)) if row["outcome"] != IGNORED]
    result = mistakes.calibration(match(*varied_images(seed), 5))
    error = 0.0
    for number in range(10):
        its = [row for row in rows if number / 10 <= row["score"] < (number + 1) / 10]
        assert result.counts[number] == len(its)
        if its:
            hits = sum(row["outcome"] == HIT for row in its) / len(its)
            assert result.hit_shares[number] == pytest.approx(hits)
            error += len(its) * abs(hits - sum(row["score"] for row in its) / len(its))
    assert result.error == pytest.approx(error / len(rows))


@seeds
@pytest.mark.parametrize("method", ["area", "11point"])
def test_sizes_agree_with_difficult_objects(seed: int, method: str) -> None:
    detections, targets = random_sizes(seed)
    rows = slow_rows(detections, targets)
    results = mistakes.ap_by_size(match(detections, targets, 5), method)

    def side(box) -> float:
        return math.sqrt(max(0, box[2] - box[0]) * max(0, box[3] - box[1]))

    for result, low, high in zip(results, (0, *SIZE_LIMITS), (*SIZE_LIMITS, math.inf), strict=True):
        outside = [[not low <= side(box) < high for box in t["boxes"].tolist()] for t in targets]
        others = [
            {**t, "difficult": t["difficult"] | torch.tensor(its, dtype=torch.bool)}
            for t, its in zip(targets, outside, strict=True)
        ]
        kept = [row for row in rows if row["own"][0] >= 0.5 or low <= side(row["box"]) < high]
        expected = average_precision(as_detections(kept, len(targets)), others, NAMES, method=method)
        assert result.n_objects == sum(expected.n_truths.values()) > 0
        assert result.mAP == pytest.approx(expected.mAP, abs=1e-12)
        assert (result.low, result.high) == (low, high)


def test_sizes_by_hand() -> None:
    small, large = [0, 0, 5, 5], [30, 30, 60, 60]  # of a picture of 100 x 100
    detections = found((small, CAT, 0.9), (NOWHERE, CAT, 0.8), (large, CAT, 0.7))  # NOWHERE is 10 x 10: medium
    matches = match([detections], [truth((small, CAT), (large, CAT))], 3, sizes=torch.tensor([[100, 100]]))
    results = {result.name: result[3:] for result in mistakes.ap_by_size(matches)}
    assert (results["small"], results["large"]) == ((1, 1), (1, 1))
    assert results["medium"] == (pytest.approx(math.nan, nan_ok=True), 0)
    # The side is a fraction of the picture's side: in a picture of 1000 x 40 the small object has 5/200.
    wide = match([detections], [truth((small, CAT))], 3, sizes=torch.tensor([[1000, 40]]))
    assert [result.n_objects for result in mistakes.ap_by_size(wide)] == [1, 0, 0]


def test_nothing_at_all() -> None:
    for images in (([], []), ([NOTHING], [truth()]), ([NOTHING], [truth((A, CAT, True))])):
        matches = match(*images, 3)
        assert mistakes.count_errors(matches) == dict.fromkeys(KINDS, 0)
        assert mistakes.confusion(matches).sum() == 0
        assert all(math.isnan(result.mAP) for result in mistakes.ap_by_size(matches))
        assert all(map(math.isnan, mistakes.best_of_all(matches)))
        assert [len(counts) for counts in mistakes.count_by_picture(matches, 0.5)] == [len(images[0])] * 2


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="detections has 0 images, targets has 1"):
        match([], [truth()], 3)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.2, got 3"):
        match([found((A, 3, 0.5))], [truth()], len(CLASSES) + 1)
