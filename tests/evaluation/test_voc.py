"""VOC's average precision against a slow loop, and by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from evaluation_inputs import CAT, CLASSES, DOG, GOOD, GOOD_TARGET, NOTHING, A, B, found, random_images, slow_iou, truth

from ssd.evaluation.voc import average_precision

C, D = [40, 0, 50, 10], [60, 0, 70, 10]  # disjoint squares, also from A and B
NOWHERE = [80, 80, 90, 90]


def cat_ap(detections, target, **options) -> float:
    """AP of the cats in one image."""
    return average_precision([found(*detections)], [truth(*target)], CLASSES, **options).ap["cat"]


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


@pytest.mark.parametrize("method", ["area", "11point"])
def test_perfect(method: str) -> None:
    detections = [found((A, CAT, 0.9), (B, DOG, 0.2)), found((C, CAT, 0.6))]
    targets = [truth((A, CAT), (B, DOG)), truth((C, CAT))]
    result = average_precision(detections, targets, CLASSES, method=method)
    assert result.mAP == 1
    assert result.ap == {"cat": 1, "dog": 1}
    assert result.n_truths == {"cat": 2, "dog": 1}
    assert result.n_detections == {"cat": 2, "dog": 1}


FIT, SIDE, HALF = [0, 0, 10, 9], [1, 0, 11, 10], [0, 0, 10, 4]
BY_HAND = {  # detections, objects, AP as an area, AP of 11 points where it was worked out too
    "half found: precision 1 up to recall 1/2, the points 0 to .5": ([(A, 0.9)], [A, B], 1 / 2, 6 / 11),
    # Recall 1/2, 1/2, 1 and precision 1, 1/2, 2/3: 1/2 * 1 + 1/2 * 2/3; 6 points see 1, 5 points 2/3.
    "true, false, true": ([(A, 0.9), (NOWHERE, 0.8), (B, 0.7)], [A, B], 5 / 6, 28 / 33),
    "low precision is lifted to what follows": ([(NOWHERE, 0.9), (A, 0.8), (B, 0.7)], [A, B], 2 / 3, 2 / 3),
    "an object found twice": ([(A, 0.9), (A, 0.8), (B, 0.7)], [A, B], 5 / 6, 28 / 33),
    "the higher score takes the object, not the better fit": ([(A, 0.6), (FIT, 0.9), (B, 0.7)], [A, B], 1, 1),
    # The later detection overlaps the second object, still free, with 9/11, but lies nearest to the first.
    "only the nearest object counts": ([(A, 0.9), ([0.5, 0, 10.5, 10], 0.8)], [A, [2, 0, 12, 10]], 1 / 2, 6 / 11),
    "the order of objects does not": ([(A, 0.9), ([0.5, 0, 10.5, 10], 0.8)], [[2, 0, 12, 10], A], 1 / 2, 6 / 11),
    "a difficult object draws detections away": ([(A, 0.9)], [SIDE, (A, True)], 0, 0),
    "below the threshold it excuses nothing": ([(HALF, 0.9), (B, 0.8)], [(A, True), B], 1 / 2, 1 / 2),
    "of equal IoUs the first, difficult": ([(A, 0.9)], [(A, True), A], 0, 0),
    "of equal IoUs the first, not difficult": ([(A, 0.9)], [A, (A, True)], 1, 1),
    "NaN scores come last, false": ([(NOWHERE, math.nan), (A, -5.0)], [A], 1, 1),
    "NaN scores come last, true": ([(A, math.nan), (NOWHERE, -5.0)], [A], 1 / 2, 1 / 2),
    "equal scores go by row, true, false": ([(A, 0.5), (NOWHERE, 0.5)], [A], 1, 1),
    "equal scores go by row, false, true": ([(NOWHERE, 0.5), (A, 0.5)], [A], 1 / 2, 1 / 2),
    "many equal scores": ([(A, 0.5), *[(NOWHERE, 0.5)] * 99], [A], 1, 1),  # which an unstable sort would mix
    "IoU 9/20; of whole pixels, corners included, 1/2": ([([0, 0, 9, 10], 0.9)], [[0, 0, 10, 20]], 0, 0),
    **{
        f"a detection {box} has no area": ([(box, 0.9), (A, 0.8)], [A], 1 / 2, 1 / 2)
        for box in ([math.nan] * 4, [10, 10, 0, 0], [0, 0, 0, 10], [0, 0, math.inf, math.inf])
    },
}


@pytest.mark.parametrize("method", [0, 1], ids=["area", "11point"])
@pytest.mark.parametrize("case", BY_HAND.values(), ids=BY_HAND)
def test_by_hand(case: tuple, method: int) -> None:
    detections, objects, *expected = case
    rows = [(box, CAT, score) for box, score in detections]
    truths = [(o[0], CAT, True) if o[-1] is True else (o, CAT) for o in objects]
    assert cat_ap(rows, truths, method=("area", "11point")[method]) == pytest.approx(expected[method])


def test_curves_and_the_mean_over_classes() -> None:
    # cat: true, false, true; dog: 1 of 1
    detections = [found((A, CAT, 0.9), (NOWHERE, CAT, 0.8), (B, CAT, 0.7), (C, DOG, 0.9))]
    result = average_precision(detections, [truth((A, CAT), (B, CAT), (C, DOG))], CLASSES)
    recall, precision = result.curves["cat"]
    assert recall.tolist() == [1 / 2, 1 / 2, 1]
    assert precision.tolist() == [1, 1 / 2, 2 / 3]
    assert result.mAP == pytest.approx((5 / 6 + 1) / 2)


@pytest.mark.parametrize("n_truths", [10, 20, 30])
@pytest.mark.parametrize("tenths", range(1, 11))
def test_recall_of_exactly_some_tenths_reaches_that_point(tenths: int, n_truths: int) -> None:
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(n_truths)]
    detections = [(box, CAT, 0.9) for box in boxes[: tenths * n_truths // 10]]
    # precision 1 at the points 0 .. tenths/10, which are tenths + 1, e.g. 3 of 10 objects: 0, .1, .2 and .3
    ap = cat_ap(detections, [(box, CAT) for box in boxes], method="11point")
    assert ap == pytest.approx((tenths + 1) / 11)


def test_an_object_is_found_in_its_own_image_only() -> None:
    detections = [found((A, CAT, 0.9)), found((A, CAT, 0.8))]
    # false in the image without a cat, then true: precision 0, 1/2
    assert average_precision(detections, [truth(), truth((A, CAT))], CLASSES).ap["cat"] == pytest.approx(1 / 2)
    # Two images with a cat at the same place are two objects.
    assert average_precision(detections, [truth((A, CAT))] * 2, CLASSES).ap["cat"] == 1


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


def test_without_the_difficult_column_no_object_is_difficult() -> None:
    target = {"boxes": torch.tensor([A, B]), "labels": torch.tensor([CAT, CAT])}
    result = average_precision([found((A, CAT, 0.9))], [target], CLASSES)
    assert (result.n_truths["cat"], result.ap["cat"]) == (2, pytest.approx(1 / 2))


@pytest.mark.parametrize("tenths", range(1, 11))
def test_iou_of_exactly_the_threshold_counts(tenths: int) -> None:
    # The detection covers tenths/10 of the object and nothing else.
    assert cat_ap([([0, 0, tenths, 10], CAT, 0.9)], [(A, CAT)], iou_threshold=tenths / 10) == 1
    assert cat_ap([([0, 0, tenths - 0.001, 10], CAT, 0.9)], [(A, CAT)], iou_threshold=tenths / 10) == 0
    # float32 cannot tell the threshold from one just above it.
    assert cat_ap([([0, 0, tenths, 10], CAT, 0.9)], [(A, CAT)], iou_threshold=min(1, tenths / 10 + 1e-9)) == (
        tenths == 10
    )


def test_unit_of_the_boxes_does_not_matter() -> None:
    detections, targets = random_images(5)
    pixels = [(d[0] * 512, *d[1:]) for d in detections]  # a power of two: the same bits but for the exponent
    pixel_targets = [{**t, "boxes": t["boxes"] * 512} for t in targets]
    classes = ("one", "two", "three", "four")
    expected = average_precision(detections, targets, classes).ap
    assert average_precision(pixels, pixel_targets, classes).ap == pytest.approx(expected, abs=0, nan_ok=True)


def test_equal_scores_go_by_image() -> None:
    right, wrong = (A, CAT, 0.5), (NOWHERE, CAT, 0.5)
    images = [found(right), found(wrong)]
    targets = [truth((A, CAT)), truth()]
    assert average_precision(images, targets, CLASSES).ap["cat"] == 1
    assert average_precision(images[::-1], targets[::-1], CLASSES).ap["cat"] == pytest.approx(1 / 2)


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
