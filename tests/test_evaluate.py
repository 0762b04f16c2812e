from __future__ import annotations

import io
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

import ssd_ext
from ssd.boxes import cxcy_to_xy
from ssd.evaluate import average_precision, evaluate
from ssd.priors import make_priors

CLASSES = ("cat", "dog")
CAT, DOG = 1, 2
A, B, C, D = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]  # disjoint squares
NOWHERE = [80, 80, 90, 90]

NOTHING = (torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.empty(0))


def found(*rows):
    """Detections of one image from rows of (box, label, score)."""
    boxes, labels, scores = zip(*rows, strict=True)
    return torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), torch.tensor(scores)


def truth(*rows):
    """Target of one image from rows of (box, label) or (box, label, difficult)."""
    return {
        "boxes": torch.tensor([row[0] for row in rows], dtype=torch.float32),
        "labels": torch.tensor([row[1] for row in rows], dtype=torch.int64),
        "difficult": torch.tensor([len(row) > 2 and row[2] for row in rows], dtype=torch.bool),
    }


def cat_ap(detections, target, **options) -> float:
    """AP of the cats in one image."""
    return average_precision([found(*detections)], [truth(*target)], CLASSES, **options).ap["cat"]


# --- The rules once more, as loops over single objects with exact fractions ------------------------------------------


def slow_iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def slow_class(detections, targets, label, threshold, method):
    """AP, recalls and precisions of one class."""
    objects = []  # of every image: [box, difficult, taken]
    for target in targets:
        rows = zip(target["boxes"].tolist(), target["labels"].tolist(), target["difficult"].tolist(), strict=True)
        objects.append([[box, difficult, False] for box, its_label, difficult in rows if its_label == label])
    n_truths = sum(not difficult for image in objects for _, difficult, _ in image)
    ranked = [
        (score, image, box)
        for image, columns in enumerate(detections)
        for box, its_label, score in zip(*(column.tolist() for column in columns), strict=True)
        if its_label == label
    ]
    ranked.sort(key=lambda row: row[0], reverse=True)

    outcomes = []
    for _, image, box in ranked:
        nearest, overlap = None, 0.0
        for candidate in objects[image]:
            if slow_iou(box, candidate[0]) > overlap:
                nearest, overlap = candidate, slow_iou(box, candidate[0])
        if nearest is None or overlap < threshold:
            outcomes.append(False)
        elif not nearest[1]:
            outcomes.append(not nearest[2])
            nearest[2] = True
    if n_truths == 0:
        return math.nan, [], []

    hits = [sum(outcomes[: i + 1]) for i in range(len(outcomes))]
    recall = [Fraction(n, n_truths) for n in hits]
    precision = [Fraction(n, i + 1) for i, n in enumerate(hits)]
    if method == "area":  # every object found is worth the best precision from there on
        ap = sum(Fraction(max(precision[i:]), n_truths) for i, hit in enumerate(outcomes) if hit)
    else:
        points = [Fraction(i, 10) for i in range(11)]
        best = [max((p for p, r in zip(precision, recall, strict=True) if r >= x), default=0) for x in points]
        ap = Fraction(sum(best), 11)
    return float(ap), [float(r) for r in recall], [float(p) for p in precision]


def random_images(seed: int, n_images: int = 8):
    """Crowded images, some without objects or detections, without equal scores; class 4 has no object."""
    rng = np.random.default_rng(seed)
    scores = iter(rng.permutation(2000) / 2000)
    detections, targets = [], []
    for _ in range(n_images):
        corner = rng.uniform(0, 0.7, (rng.integers(0, 7), 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.3, corner.shape)], 1)
        boxes = np.concatenate([boxes, boxes[::2] + rng.normal(0, 0.04, boxes[::2].shape)])  # close neighbours
        labels = rng.integers(1, 4, len(boxes))
        targets.append(
            {
                "boxes": torch.from_numpy(boxes).float(),
                "labels": torch.from_numpy(labels),
                "difficult": torch.from_numpy(rng.random(len(boxes)) < 0.2),
            }
        )
        rows = rng.integers(0, len(boxes), rng.integers(0, 30)) if len(boxes) else []
        near = boxes[rows] + rng.normal(0, 0.02, (len(rows), 4))
        guesses = np.where(rng.random(len(rows)) < 0.85, labels[rows], rng.integers(0, 5, len(rows)))
        detections.append(
            (
                torch.from_numpy(near).float(),
                torch.from_numpy(guesses).long(),
                torch.tensor([next(scores) for _ in rows], dtype=torch.float32),
            )
        )
    return detections, targets


@pytest.mark.parametrize("threshold", [0.5, 0.75])
@pytest.mark.parametrize("method", ["area", "11point"])
@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_the_slow_loop(seed: int, method: str, threshold: float) -> None:
    detections, targets = random_images(seed)
    classes = ("one", "two", "three", "none")
    result = average_precision(detections, targets, classes, threshold, method)
    expected = []
    for label, name in enumerate(classes, start=1):
        ap, recall, precision = slow_class(detections, targets, label, threshold, method)
        assert result.ap[name] == pytest.approx(ap, abs=1e-12, nan_ok=True)
        assert [values.tolist() for values in result.curves[name]] == [recall, precision]
        assert result.n_detections[name] == sum(int((d[1] == label).sum()) for d in detections)
        assert result.n_truths[name] == sum(int(((t["labels"] == label) & ~t["difficult"]).sum()) for t in targets)
        expected.append(ap)
    assert all(0 < ap < 1 for ap in expected[:3])  # the data decide something
    assert math.isnan(expected[3])
    assert result.mAP == pytest.approx(sum(expected[:3]) / 3, abs=1e-12)
    assert (result.method, result.iou_threshold) == (method, threshold)


def test_order_of_images_and_rows_does_not_matter() -> None:
    detections, targets = random_images(3)
    classes = ("one", "two", "three")
    detections = [tuple(column[d[1] < 4] for column in d) for d in detections]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(targets))
    shuffled_detections, shuffled_targets = [], []
    for i in order:
        rows = torch.from_numpy(rng.permutation(len(detections[i][1])))
        shuffled_detections.append(tuple(column[rows] for column in detections[i]))
        rows = torch.from_numpy(rng.permutation(len(targets[i]["labels"])))
        shuffled_targets.append({name: column[rows] for name, column in targets[i].items()})
    expected = average_precision(detections, targets, classes)
    assert average_precision(shuffled_detections, shuffled_targets, classes) == expected


# --- Cases with numbers worked out by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["area", "11point"])
def test_perfect(method: str) -> None:
    detections = [found((A, CAT, 0.9), (B, DOG, 0.2)), found((C, CAT, 0.6))]
    targets = [truth((A, CAT), (B, DOG)), truth((C, CAT))]
    result = average_precision(detections, targets, CLASSES, method=method)
    assert result.mAP == 1
    assert result.ap == {"cat": 1, "dog": 1}
    assert result.n_truths == {"cat": 2, "dog": 1}
    assert result.n_detections == {"cat": 2, "dog": 1}


def test_half_of_the_objects_found() -> None:
    detections, target = [(A, CAT, 0.9)], [(A, CAT), (B, CAT)]
    # precision 1 up to recall 1/2: an area of 1/2, and the points 0, .1 .. .5, 6 of the 11
    assert cat_ap(detections, target) == pytest.approx(1 / 2)
    assert cat_ap(detections, target, method="11point") == pytest.approx(6 / 11)


def test_mean_over_classes() -> None:
    # cat: 1 of 2 found, AP 1/2; dog: 1 of 1, AP 1
    detections = [found((A, CAT, 0.9), (C, DOG, 0.9))]
    targets = [truth((A, CAT), (B, CAT), (C, DOG))]
    assert average_precision(detections, targets, CLASSES).mAP == pytest.approx(3 / 4)


def test_area_and_11_points_differ() -> None:
    detections = [(A, CAT, 0.9), (NOWHERE, CAT, 0.8), (B, CAT, 0.7)]
    target = [(A, CAT), (B, CAT)]
    # true, false, true: recall 1/2, 1/2, 1 and precision 1, 1/2, 2/3.
    # area: 1/2 * 1 + 1/2 * 2/3 = 5/6. Points: 0 .. .5 see 1, .6 .. 1 see 2/3: (6 * 1 + 5 * 2/3) / 11 = 28/33.
    assert cat_ap(detections, target) == pytest.approx(5 / 6)
    assert cat_ap(detections, target, method="11point") == pytest.approx(28 / 33)
    result = average_precision([found(*detections)], [truth(*target)], CLASSES)
    recall, precision = result.curves["cat"]
    assert recall.tolist() == [1 / 2, 1 / 2, 1]
    assert precision.tolist() == [1, 1 / 2, 2 / 3]


def test_low_precision_is_lifted_to_what_follows() -> None:
    # false, true, true: precision 0, 1/2, 2/3 becomes 2/3 everywhere, so both methods give 2/3
    detections, target = [(NOWHERE, CAT, 0.9), (A, CAT, 0.8), (B, CAT, 0.7)], [(A, CAT), (B, CAT)]
    assert cat_ap(detections, target) == pytest.approx(2 / 3)
    assert cat_ap(detections, target, method="11point") == pytest.approx(2 / 3)


@pytest.mark.parametrize("n_truths", [10, 20, 30])
@pytest.mark.parametrize("tenths", range(1, 11))
def test_recall_of_exactly_some_tenths_reaches_that_point(tenths: int, n_truths: int) -> None:
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(n_truths)]
    detections = [(box, CAT, 0.9) for box in boxes[: tenths * n_truths // 10]]
    # precision 1 at the points 0 .. tenths/10, which are tenths + 1, e.g. 3 of 10 objects: 0, .1, .2 and .3
    ap = cat_ap(detections, [(box, CAT) for box in boxes], method="11point")
    assert ap == pytest.approx((tenths + 1) / 11)


def test_second_detection_of_an_object_is_false() -> None:
    target = [(A, CAT), (B, CAT)]
    # true, false, true: 1/2 * 1 + 1/2 * 2/3
    assert cat_ap([(A, CAT, 0.9), (A, CAT, 0.8), (B, CAT, 0.7)], target) == pytest.approx(5 / 6)
    # The one with the higher score takes the object, although the other fits better: false comes last.
    assert cat_ap([(A, CAT, 0.6), ([0, 0, 10, 9], CAT, 0.9), (B, CAT, 0.7)], target) == 1


def test_an_object_is_found_in_its_own_image_only() -> None:
    detections = [found((A, CAT, 0.9)), found((A, CAT, 0.8))]
    # false in the image without a cat, then true: precision 0, 1/2
    assert average_precision(detections, [truth(), truth((A, CAT))], CLASSES).ap["cat"] == pytest.approx(1 / 2)
    # Two images with a cat at the same place are two objects.
    assert average_precision(detections, [truth((A, CAT))] * 2, CLASSES).ap["cat"] == 1


def test_only_the_object_with_the_highest_iou_is_looked_at() -> None:
    first, second = [0, 0, 10, 10], [2, 0, 12, 10]
    # Both detections lie nearest to `first`. The later one overlaps `second`, still free, with 9/11, and is
    # false all the same: recall 1/2, 1/2 and precision 1, 1/2, an area of 1/2.
    detections = [(first, CAT, 0.9), ([0.5, 0, 10.5, 10], CAT, 0.8)]
    assert cat_ap(detections, [(first, CAT), (second, CAT)]) == pytest.approx(1 / 2)
    assert cat_ap(detections, [(second, CAT), (first, CAT)]) == pytest.approx(1 / 2)


def test_right_place_and_wrong_class() -> None:
    result = average_precision([found((A, DOG, 0.9), (B, CAT, 0.8))], [truth((A, CAT), (B, DOG))], CLASSES)
    assert result.ap == {"cat": 0, "dog": 0}
    # An object of another class does not shadow one of the right class, however well it fits.
    assert cat_ap([(A, CAT, 0.9)], [([0, 0, 10, 10], DOG), ([0, 0, 10, 8], CAT)]) == 1


@pytest.mark.parametrize("method", ["area", "11point"])
def test_difficult_object_neither_counts_nor_hurts(method: str) -> None:
    targets = [truth((A, CAT), (B, CAT, True))]
    missed = average_precision([found((A, CAT, 0.9))], targets, CLASSES, method=method)
    assert missed.ap["cat"] == 1
    assert missed.n_truths["cat"] == 1
    twice = [found((B, CAT, 0.95), (B, CAT, 0.92), (A, CAT, 0.9))]
    result = average_precision(twice, targets, CLASSES, method=method)
    assert result.ap["cat"] == 1
    assert result.n_detections["cat"] == 3
    assert [values.tolist() for values in result.curves["cat"]] == [[1], [1]]


def test_difficult_object_draws_its_detections_away_from_others() -> None:
    # The detection overlaps the difficult object with 1 and the other with 9/11: ignored, nothing found.
    assert cat_ap([(A, CAT, 0.9)], [([1, 0, 11, 10], CAT), (A, CAT, True)]) == 0
    # Below the threshold the difficult object excuses nothing: false, then true.
    far = [0, 0, 10, 4]
    assert cat_ap([(far, CAT, 0.9), (B, CAT, 0.8)], [(A, CAT, True), (B, CAT)]) == pytest.approx(1 / 2)


def test_without_the_difficult_column_no_object_is_difficult() -> None:
    target = {"boxes": torch.tensor([A, B]), "labels": torch.tensor([CAT, CAT])}
    result = average_precision([found((A, CAT, 0.9))], [target], CLASSES)
    assert result.n_truths["cat"] == 2
    assert result.ap["cat"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("tenths", range(1, 11))
def test_iou_of_exactly_the_threshold_counts(tenths: int) -> None:
    # The detection covers tenths/10 of the object and nothing else.
    assert cat_ap([([0, 0, tenths, 10], CAT, 0.9)], [(A, CAT)], iou_threshold=tenths / 10) == 1
    assert cat_ap([([0, 0, tenths - 0.001, 10], CAT, 0.9)], [(A, CAT)], iou_threshold=tenths / 10) == 0


def test_box_is_as_wide_as_its_corners_say() -> None:
    # IoU 9/20 = 0.45; counted in whole pixels, corners included, it would be 110/220 = 0.5
    assert cat_ap([([0, 0, 9, 10], CAT, 0.9)], [([0, 0, 10, 20], CAT)]) == 0


def test_unit_of_the_boxes_does_not_matter() -> None:
    detections, targets = random_images(5)
    pixels = [(d[0] * 512, *d[1:]) for d in detections]  # a power of two: the same bits but for the exponent
    pixel_targets = [{**t, "boxes": t["boxes"] * 512} for t in targets]
    classes = ("one", "two", "three", "four")
    expected = average_precision(detections, targets, classes).ap
    assert average_precision(pixels, pixel_targets, classes).ap == pytest.approx(expected, abs=0, nan_ok=True)


def test_equal_scores_go_by_image_then_by_row() -> None:
    right, wrong = (A, CAT, 0.5), (NOWHERE, CAT, 0.5)
    # true, false: 1; false, true: precision 0, 1/2
    assert cat_ap([right, wrong], [(A, CAT)]) == 1
    assert cat_ap([wrong, right], [(A, CAT)]) == pytest.approx(1 / 2)
    images = [found(right), found(wrong)]
    targets = [truth((A, CAT)), truth()]
    assert average_precision(images, targets, CLASSES).ap["cat"] == 1
    assert average_precision(images[::-1], targets[::-1], CLASSES).ap["cat"] == pytest.approx(1 / 2)
    # Many equal scores: an unstable sort would mix them.
    assert cat_ap([right] + 99 * [wrong], [(A, CAT)]) == 1


def test_nan_scores_come_last() -> None:
    assert cat_ap([(NOWHERE, CAT, math.nan), (A, CAT, -5.0)], [(A, CAT)]) == 1
    assert cat_ap([(A, CAT, math.nan), (NOWHERE, CAT, -5.0)], [(A, CAT)]) == pytest.approx(1 / 2)


def test_equal_ious_go_to_the_first_object() -> None:
    # The first of two objects at one place takes the detection: ignored if difficult, else true.
    assert cat_ap([(A, CAT, 0.9)], [(A, CAT, True), (A, CAT)]) == 0
    assert cat_ap([(A, CAT, 0.9)], [(A, CAT), (A, CAT, True)]) == 1


@pytest.mark.parametrize("box", [[math.nan] * 4, [10, 10, 0, 0], [0, 0, 0, 10], [0, 0, math.inf, math.inf]])
def test_detection_without_an_area_is_false(box: list[float]) -> None:
    assert cat_ap([(box, CAT, 0.9), (A, CAT, 0.8)], [(A, CAT)]) == pytest.approx(1 / 2)


# --- Nothing there ---------------------------------------------------------------------------------------------------


def test_nothing_found_placeholder_is_left_out() -> None:
    whole = [0, 0, 1, 1]
    targets = [truth((whole, CAT))]
    result = average_precision([found((whole, 0, 0.0))], targets, CLASSES)
    assert result.ap["cat"] == 0
    assert result.n_detections == {"cat": 0, "dog": 0}
    # Nor does it take the object or count as false beside detections.
    result = average_precision([found((whole, 0, 0.9), (whole, CAT, 0.5))], targets, CLASSES)
    assert result.ap["cat"] == 1
    assert result.n_detections == {"cat": 1, "dog": 0}


@pytest.mark.parametrize("nothing", [NOTHING, (torch.empty(0), torch.empty(0), torch.empty(0)), ([], [], [])])
@pytest.mark.parametrize("method", ["area", "11point"])
def test_no_detections(nothing, method: str) -> None:
    result = average_precision([nothing, nothing], [truth((A, CAT)), truth()], CLASSES, method=method)
    assert result.ap["cat"] == 0
    assert math.isnan(result.ap["dog"])
    assert result.mAP == 0
    assert [len(values) for values in result.curves["cat"]] == [0, 0]


def test_class_without_objects_is_nan_and_not_in_the_mean() -> None:
    detections = [found((A, CAT, 0.9), (B, DOG, 0.9))]
    result = average_precision(detections, [truth((A, CAT))], CLASSES)
    assert result.ap["cat"] == 1
    assert math.isnan(result.ap["dog"])
    assert result.mAP == 1
    assert result.n_detections["dog"] == 1
    assert [len(values) for values in result.curves["dog"]] == [0, 0]
    # A class with difficult objects only is such a class.
    result = average_precision(detections, [truth((A, CAT), (B, DOG, True))], CLASSES)
    assert math.isnan(result.ap["dog"])
    assert result.mAP == 1
    assert result.n_truths["dog"] == 0


@pytest.mark.parametrize(
    ("detections", "targets"),
    [([], []), ([NOTHING], [truth()]), ([found((A, CAT, 0.9))], [truth()]), ([NOTHING], [truth((A, CAT, True))])],
    ids=["no images", "empty image", "only detections", "only a difficult object"],
)
def test_without_objects_all_is_nan(detections, targets) -> None:
    result = average_precision(detections, targets, CLASSES)
    assert math.isnan(result.mAP)
    assert list(result.ap) == list(CLASSES)
    assert all(map(math.isnan, result.ap.values()))
    assert str(result)
    assert result.summary()


# --- Bad input -------------------------------------------------------------------------------------------------------

GOOD = (torch.tensor([A, B]), torch.tensor([CAT, DOG]), torch.tensor([0.5, 0.6]))
GOOD_TARGET = {"boxes": GOOD[0], "labels": GOOD[1], "difficult": torch.tensor([False, True])}


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(2, 5), r"detections\[1\]: boxes must have shape \(k, 4\), got \(2, 5\)"),
        (0, torch.zeros(4), r"detections\[1\]: boxes .* got \(4,\)"),
        (0, torch.zeros(3, 4), r"detections\[1\]: labels must have shape \(3,\).* got \(2,\)"),
        (1, torch.tensor([CAT]), r"detections\[1\]: labels must have shape \(2,\).* got \(1,\)"),
        (1, torch.tensor([[CAT, DOG]]), r"detections\[1\]: labels .* got \(1, 2\)"),
        (1, torch.tensor([CAT, 3]), r"detections\[1\]: labels must be in 0\.\.2, got 3"),
        (1, torch.tensor([-1, CAT]), r"detections\[1\]: labels must be in 0\.\.2, got -1"),
        (2, torch.zeros(3), r"detections\[1\]: scores must have shape \(2,\).* got \(3,\)"),
        (2, torch.zeros(2, 1), r"detections\[1\]: scores .* got \(2, 1\)"),
    ],
)
def test_bad_detections(position: int, value: torch.Tensor, message: str) -> None:
    wrong = (*GOOD[:position], value, *GOOD[position + 1 :])
    with pytest.raises(ValueError, match=message):
        average_precision([GOOD, wrong], [GOOD_TARGET] * 2, CLASSES)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("boxes", torch.zeros(2, 3), r"targets\[1\]: boxes must have shape \(k, 4\), got \(2, 3\)"),
        ("boxes", torch.zeros(1, 4), r"targets\[1\]: labels must have shape \(1,\).* got \(2,\)"),
        ("labels", torch.tensor([CAT, CAT, CAT]), r"targets\[1\]: labels must have shape \(2,\).* got \(3,\)"),
        ("labels", torch.tensor([CAT, 0]), r"targets\[1\]: labels must be in 1\.\.2, got 0"),
        ("labels", torch.tensor([3, CAT]), r"targets\[1\]: labels must be in 1\.\.2, got 3"),
        ("difficult", torch.zeros(1), r"targets\[1\]: difficult must have shape \(2,\).* got \(1,\)"),
    ],
)
def test_bad_target(name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_precision([GOOD] * 2, [GOOD_TARGET, {**GOOD_TARGET, name: value}], CLASSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detections": []}, "detections has 0 images, targets has 1"),
        ({"targets": [GOOD_TARGET] * 3}, "detections has 1 images, targets has 3"),
        ({"classes": ("cat", "cat")}, r"classes has a name twice: \('cat', 'cat'\)"),
        ({"iou_threshold": 0}, r"iou_threshold must be in \(0, 1\], got 0"),
        ({"iou_threshold": -0.5}, "iou_threshold .* got -0.5"),
        ({"iou_threshold": 1.01}, "iou_threshold .* got 1.01"),
        ({"iou_threshold": math.nan}, "iou_threshold .* got nan"),
        ({"method": "voc"}, "method must be one of .*area.*11point.* got 'voc'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    arguments = {"detections": [GOOD], "targets": [GOOD_TARGET], "classes": CLASSES}
    average_precision(**arguments)
    with pytest.raises(ValueError, match=message):
        average_precision(**{**arguments, **options})


# --- The result as text ----------------------------------------------------------------------------------------------


def test_result_as_text() -> None:
    classes = ("cat", "a dog with a long name", "bird")
    detections = [found((A, CAT, 0.9), (NOWHERE, CAT, 0.8), (B, CAT, 0.7), (C, DOG, 0.5), (D, 3, 0.5))]
    targets = [truth((A, CAT), (B, CAT), (D, DOG))]
    result = average_precision(detections, targets, classes, 0.75, "area")
    # cat 5/6, dog 0, bird without objects: the mean is 5/12
    lines = str(result).splitlines()
    rows = {line[: len(classes[1])].strip(): line[len(classes[1]) :].split() for line in lines}
    assert rows["cat"] == ["2", "3", "0.8333"]
    assert rows["a dog with a long name"] == ["1", "1", "0.0000"]
    assert rows["bird"] == ["0", "1", "-"]
    assert lines[-1].startswith("mAP@0.75 (area)")
    assert lines[-1].split()[-3:] == ["3", "5", "0.4167"]
    assert len({len(line) for line in lines}) == 1  # a table
    assert [line.split()[0] for line in lines[1:4]] == ["cat", "a", "bird"]

    assert result.summary() == "mAP@0.75 0.4167 (cat 0.8333, a dog with a long name 0.0000, bird -)"


# --- evaluate --------------------------------------------------------------------------------------------------------


class Replay(torch.nn.Module):
    """A network that gives, for a picture filled with the number i, the i-th of the given predictions."""

    def __init__(self, priors_cxcy: torch.Tensor, locs: torch.Tensor, scores: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("priors_cxcy", priors_cxcy)
        self.register_buffer("locs", locs)
        self.register_buffer("scores", scores)
        self.batch_sizes = []

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batch_sizes.append(len(images))
        pictures = images[:, 0, 0, 0].long()
        return self.locs[pictures], self.scores[pictures]


def picture(i: int) -> torch.Tensor:
    return torch.full((3, 4, 4), float(i))


def test_evaluate_of_a_network_that_knows_the_truth(device: torch.device) -> None:
    targets = [
        truth(([0.1, 0.1, 0.4, 0.5], CAT), ([0.5, 0.5, 0.95, 0.9], DOG)),
        truth(),
        truth(([0.0, 0.0, 1.0, 1.0], DOG), ([0.05, 0.7, 0.12, 0.8], DOG)),
        truth(([0.3, 0.2, 0.6, 0.9], CAT), ([0.3, 0.2, 0.6, 0.9], DOG, True)),
        truth(([0.8, 0.8, 0.9, 0.9], CAT)),
    ]
    priors = make_priors()
    locs, scores = [], []
    for target in targets:
        boxes, labels = target["boxes"].reshape(-1, 4), target["labels"]
        ends = torch.tensor([0, len(boxes)], dtype=torch.int32)
        match = ssd_ext.match_priors(boxes, ends, cxcy_to_xy(priors))[0].long()
        aims = torch.cat([boxes, torch.tensor([[0.0, 0.0, 1.0, 1.0]])])[match]  # -1: any box, for background
        locs.append(ssd_ext.encode_boxes(aims, priors))
        wanted = torch.cat([labels, torch.tensor([0])])[match]
        scores.append(12.0 * torch.nn.functional.one_hot(wanted, 3))
    model = Replay(priors, torch.stack(locs), torch.stack(scores)).to(device).train()

    samples = [(picture(i), target) for i, target in enumerate(targets)]
    result = evaluate(model, samples, CLASSES, iou_threshold=0.95, batch_size=2, quiet=True)
    assert result.mAP == 1
    assert result.ap == {"cat": 1, "dog": 1}
    assert result.n_truths == {"cat": 3, "dog": 3}
    assert model.batch_sizes == [2, 2, 1]
    assert not model.training

    # With the truths of other pictures nothing is right.
    samples = [(picture(i), target) for i, target in enumerate(targets[1:] + targets[:1])]
    assert evaluate(model, samples, CLASSES, iou_threshold=0.95, quiet=True).mAP == 0


def three_boxes() -> tuple[Replay, list]:
    """One picture; cats at the left quarter (score 1/2) and, IoU 3/5, right of it (2/5), and far off (3/10)."""
    priors = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.375, 0.25, 0.5, 0.5], [0.875, 0.875, 0.25, 0.25]])  # (3,4)
    cat = torch.tensor([0.5, 0.4, 0.3])
    logits = torch.stack([1 - cat - 1e-6, cat, torch.full((3,), 1e-6)], 1).log()  # (3,3): softmax gives them back
    boxes = cxcy_to_xy(priors)  # what offsets of zero decode to
    target = {"boxes": boxes, "labels": torch.tensor([CAT, CAT, CAT])}
    return Replay(priors, torch.zeros(1, 3, 4), logits[None]), [(picture(0), target)]


@pytest.mark.parametrize(
    ("options", "n_detections"),
    [
        ({}, 2),  # the second overlaps the first with 3/5, more than 0.45
        ({"max_overlap": 0.65}, 3),
        ({"min_score": 0.35}, 1),
        ({"max_overlap": 0.65, "min_score": 0.35}, 2),
        ({"max_overlap": 0.65, "top_k": 1}, 1),
    ],
)
def test_evaluate_hands_its_options_on(options: dict[str, float], n_detections: int) -> None:
    result = evaluate(*three_boxes(), CLASSES, **options, quiet=True)
    assert result.n_detections == {"cat": n_detections, "dog": 0}
    # All of them are right: n of 3 objects are found.
    assert result.ap["cat"] == pytest.approx(n_detections / 3)


def test_evaluate_hands_the_metric_on() -> None:
    result = evaluate(*three_boxes(), CLASSES, iou_threshold=0.7, method="11point", quiet=True)
    assert (result.iou_threshold, result.method) == (0.7, "11point")
    # 2 of 3 objects are found, precision 1: the points 0, .1 .. .6
    assert result.ap["cat"] == pytest.approx(7 / 11)
    with pytest.raises(ValueError, match="got 'voc'"):
        evaluate(*three_boxes(), CLASSES, method="voc", quiet=True)


def test_evaluate_of_an_empty_dataset() -> None:
    model, _ = three_boxes()
    assert math.isnan(evaluate(model, [], CLASSES, quiet=True).mAP)


def test_progress_bar_unless_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    evaluate(*three_boxes(), CLASSES, quiet=True)
    assert terminal.getvalue() == ""
    evaluate(*three_boxes(), CLASSES)
    assert "1/1" in terminal.getvalue()


def test_iou_just_below_the_threshold_is_not_rounded_up_to_it() -> None:
    # The IoU is exactly 1/2, which float32 cannot tell from 1/2 + 1e-9.
    detections, targets = [found(([0, 0, 5, 10], CAT, 0.9))], [truth((A, CAT))]
    assert average_precision(detections, targets, CLASSES, iou_threshold=0.5).ap["cat"] == 1
    assert average_precision(detections, targets, CLASSES, iou_threshold=0.5 + 1e-9).ap["cat"] == 0
