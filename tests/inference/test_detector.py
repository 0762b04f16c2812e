"""`ssd.Detector`: what it opens, what it takes for a picture, what it gives, in threads and in little memory."""

import io
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from detect_command import detect, write_spread
from evaluation_inputs import slow_iou
from PIL import Image
from slow_fusion import slow_fusion

import ssd
from ssd import load_weights
from ssd.cli import main
from ssd.data import ImageReadError, PictureFile, open_dataset, read_image
from ssd.data.augmentation import EvalTransform
from ssd.data.colour import to_input
from ssd.data.reading import Picture
from ssd.data.tiles import views
from ssd.detection import Found
from ssd.drawing import draw_detections
from ssd.evaluation.evaluate import detect_pictures, score
from ssd.inference.detections import Detections
from ssd.inference.detector import SHOWN, Detector
from ssd.inference.prediction import predictor
from ssd.inference.results import JSON_NAME, as_line, coco_results
from ssd.inference.tiles import in_view, merge
from ssd.weights.checkpoint import save_checkpoint
from ssd_ext import DetectionOptions

CLASSES = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_spread(tmp_path_factory.mktemp("weights") / "best.pt")


@pytest.fixture(scope="module")
def detector(weights):
    return ssd.Detector.load(weights, min_score=0.3, top_k=9, device="cpu", bf16=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """PNG, which give the same bits to whoever reads them, each of another size."""
    folder = tmp_path_factory.mktemp("pictures")
    grey = np.random.default_rng(0).integers(0, 256, (210, 350), np.uint8)
    for i in range(6):
        Image.fromarray(grey[:, : 150 + 40 * i]).convert("RGB").save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def assert_same(found, expected):
    for column in ("boxes", "labels", "scores"):
        assert torch.equal(getattr(found, column), getattr(expected, column))


def test_options_are_those_given_over_what_is_worth_looking_at(weights):
    loaded = ssd.Detector.load(weights, device="cpu", top_k=3, clip=True)
    assert loaded.options == SHOWN._replace(top_k=3, clip=True)
    assert loaded.classes == CLASSES
    assert ssd.Detector.load(weights, defaults=DetectionOptions(), device="cpu").options == DetectionOptions()
    with pytest.raises(TypeError, match="no option minimum; there are min_score, "):
        ssd.Detector.load(weights, minimum=0.3)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        ssd.Detector.load("none.pt")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"classes": CLASSES[:-1]}, r"the network has \d classes and the background, got \d names"),
        ({"classes": "abc"}, "classes must be a list of names, got the text 'abc'"),
        ({"options": DetectionOptions(min_score=float("nan"))}, "min_score must be from 0 to 1, got nan"),
        ({"options": DetectionOptions(max_overlap=2)}, "max_overlap must be from 0 to 1, got 2"),
        ({"options": DetectionOptions(score="tanh")}, "score must be one of softmax, sigmoid, got 'tanh'"),
    ],
)
def test_what_does_not_fit_the_network_is_named(detector, given, named):
    with pytest.raises(ValueError, match=named):
        ssd.Detector(detector.model, **{"classes": CLASSES} | given)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        torch.nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.nn.DataParallel(torch.compile(model, backend="eager")),
    ],
    ids=["compiled", "parallel", "averaged", "both"],
)
def test_a_wrapped_network_is_the_same(detector, files, wrap):
    wrapped = ssd.Detector(wrap(detector.model), CLASSES, detector.options, bf16=False)
    assert_same(wrapped(files[0]), detector(files[0]))


def test_a_model_of_another_project_is_named(detector):
    for takes in (
        predictor,
        lambda model: ssd.Detector(model, CLASSES),
        lambda model: save_checkpoint("a.pt", model, []),
    ):
        with pytest.raises(TypeError, match=r"Linear is no network of ssd: it has no priors_cxcy.*ssd\.Detector\.load"):
            takes(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bf16", [None, True, False])
def test_a_network_in_another_dtype_runs_in_it(weights, files, dtype, bf16):
    loaded = ssd.Detector.load(weights, min_score=0.3, top_k=9, device="cpu", bf16=False)
    expected = loaded(files[0])
    found = ssd.Detector(loaded.model.to(dtype), CLASSES, loaded.options, bf16=bf16)(files[0])
    assert len(found) > 0
    if dtype == torch.float64:
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(found.scores.float(), expected.scores, rtol=0, atol=1e-5)


def test_every_kind_of_picture_is_the_same(detector, files):
    path = files[2]
    expected = detector(path)
    assert len(expected) > 0
    pixels = read_image(path)
    array = pixels.permute(1, 2, 0).numpy()  # not contiguous
    read_only = np.array(array)
    read_only.flags.writeable = False
    with Image.open(path) as picture:
        kinds = [str(path), picture, picture.convert("L"), PictureFile(path), pixels, array, read_only, array[:, :, 0]]
        kinds += [array[:, :, ::-1], pixels.flip(0)]  # grey, so that blue may come first
        data = path.read_bytes()
        kinds += [data, io.BytesIO(data), bytearray(data), memoryview(data), array[:, :, :1]]
        for image in kinds:
            assert_same(detector(image), expected)
    with open(path, "rb") as file:
        assert_same(detector(file), expected)
    assert detector(path).picture.path == path
    assert detector(pixels).picture.path is None
    assert (detector(array).picture.width, detector(array).picture.height) == (230, 210)


def test_one_many_and_no_end_of_pictures(detector, files):
    expected = [detector(path) for path in files]
    assert isinstance(expected[0], Detections)
    for images in (files, tuple(files)):
        found = detector(images)
        assert isinstance(found, list)
        assert [each.picture.path for each in found] == files
    assert detector([]) == []
    lazy = detector(iter([*files, "gone.png"]), batch_size=1, workers=1)
    for one in expected:
        assert_same(next(lazy), one)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        next(lazy)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_iterable_is_read_no_more_than_two_batches_ahead(detector, batch_size):
    taken = []
    frames = (taken.append(i) or torch.full((3, 20, 30), i, dtype=torch.uint8) for i in range(20))
    results = detector(frames, batch_size=batch_size, workers=2)
    assert taken == []
    for seen, found in enumerate(results, 1):
        assert int(found.picture.pixels()[0, 0, 0]) == seen - 1
        assert len(taken) - seen <= 2 * batch_size - 1
    assert seen == len(taken) == 20


def test_a_stream_gives_each_result_before_it_reads_the_frame_after_the_next(detector, files):
    """So a camera is never far ahead; and the results are those of single frames."""
    expected = [detector(path) for path in files]
    taken, shown = [], threading.Event()

    def camera():
        for i, path in enumerate(files):
            if i == 3:
                assert shown.wait(30)  # until frame 0 was shown: 1 is with the network, and 2 waits
            taken.append(i)
            yield read_image(path).permute(1, 2, 0).numpy()

    results = detector.stream(camera())
    assert taken == []
    assert_same(next(results), expected[0])
    shown.set()
    for found, one in zip(results, expected[1:], strict=True):
        assert_same(found, one)
        assert found.picture.width == one.picture.width
    assert taken == list(range(6))


def test_a_stream_skips_old_frames_if_only_the_newest_count(detector):
    read_all = threading.Event()

    def camera():
        for i in range(8):
            yield torch.full((3, 20, 30), i, dtype=torch.uint8)
        read_all.set()

    class Slow(Picture):
        def part(self, box, size):
            assert read_all.wait(30)
            return super().part(box, size)

    frames = itertools.chain([Slow(torch.full((3, 20, 30), 9, dtype=torch.uint8))], camera())
    seen = [int(found.picture.pixels()[0, 0, 0]) for found in detector.stream(frames, newest=True)]
    assert seen in ([9, 7], [7])  # the first frame may be dropped before the network asks for it
    with pytest.raises(TypeError, match="got int"):
        list(detector.stream([5]))


def test_threads_share_a_detector(detector, files):
    expected = [detector(path) for path in files]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: [detector(path) for path in files], range(4)):
            for its, ours in zip(found, expected, strict=True):
                assert_same(its, ours)
        several = detector(files, batch_size=2)
        for found in pool.map(lambda _: list(detector(iter(files), batch_size=2)), range(4)):
            for its, ours in zip(found, several, strict=True):
                assert_same(its, ours)


def test_a_result_knows_its_objects_and_its_picture(detector, files):
    found = detector(files[0])
    objects = list(found)
    assert len(objects) == len(found) == 9
    assert [o.score for o in objects] == sorted((o.score for o in objects), reverse=True) == found.scores.tolist()
    assert [list(o.box) for o in objects] == found.boxes.tolist()
    assert [o.name for o in objects] == [CLASSES[label - 1] for label in found.labels.tolist()]
    counts = {name: sum(o.name == name for o in objects) for name in dict.fromkeys(o.name for o in objects)}
    assert str(found) == ", ".join(f"{n} {name}" for name, n in counts.items())
    assert repr(found) == f"<Detections in {files[0]} (150 x 210): {found}>"
    strict = ssd.Detector(detector.model, CLASSES, DetectionOptions(min_score=1.0))(read_image(files[0]))
    assert repr(strict) == "<Detections in a picture (150 x 210): nothing found>"
    drawn = draw_detections(read_image(files[0]), found.boxes, found.labels, found.scores, classes=CLASSES)
    assert found.draw().tobytes() == drawn.tobytes() != strict.draw().tobytes()


def test_to_coco_gives_the_rows_of_the_file(detector, files, tmp_path):
    every = detector(files[:2])
    with coco_results(tmp_path, CLASSES) as results:
        for found in every:
            results.add(as_line(found))
    rows = json.loads((tmp_path / JSON_NAME).read_text())["annotations"]
    ours = [row for i, found in enumerate(every, 1) for row in found.to_coco(i)]
    assert [{"id": i, **row} for i, row in enumerate(ours, 1)] == rows
    x0, y0, x1, y1 = (one := next(iter(every[0]))).box
    assert rows[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.01)
    assert (rows[0]["category_id"], rows[0]["score"]) == (one.label, pytest.approx(one.score, abs=1e-5))


@pytest.mark.parametrize(
    ("image", "error", "named"),
    [
        (5, TypeError, "got int"),
        (b"photo.jpg", ImageReadError, r"a picture in memory: cannot read the picture \(cannot identify image file"),
        pytest.param(io.StringIO("photo.jpg"), ImageReadError, "an open file must be binary", id="a file of text"),
        ("https://a.b/photo.jpg", ValueError, "https://a.b/photo.jpg: pictures are not downloaded"),
        ({"image": "photo.jpg"}, TypeError, "got dict"),
        ([None], TypeError, "got NoneType"),
        (np.zeros((4, 5, 4), np.uint8), ValueError, r"an array must be \(H, W, 3\) or .* got \(4, 5, 4\) uint8"),
        (np.zeros((4, 5, 3)), ValueError, r"got \(4, 5, 3\) float64"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"got \(0, 5, 3\) uint8"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), ValueError, r"a tensor must be .* got \(2, 3, 4, 5\) torch.uint8"),
        (torch.zeros(3, 4, 5), ValueError, r"got \(3, 4, 5\) torch.float32"),
        ("gone.png", FileNotFoundError, "gone.png"),
        (".", ImageReadError, "not a regular file"),
    ],
    ids=str,
)
def test_what_is_no_picture_is_named(detector, image, error, named):
    with pytest.raises(error, match=named):
        detector(image)


def test_a_picture_of_pillow_that_is_cut_short_is_named(detector, files, tmp_path):
    (tmp_path / "cut.png").write_bytes(files[0].read_bytes()[:-5000])
    with Image.open(tmp_path / "cut.png") as picture, pytest.raises(ImageReadError, match=r"PngImageFile.*truncated"):
        detector(picture)


def test_a_jpeg_that_lacks_its_last_bytes_is_decoded_however_it_is_given(detector, files, tmp_path):
    path = tmp_path / "cut.jpg"
    with Image.open(files[0]) as picture:
        picture.save(path)
    path.write_bytes(path.read_bytes()[:-500])
    expected = detector(path)
    assert expected.picture.cut
    data = path.read_bytes()
    for given in (data, io.BytesIO(data)):
        found = detector(given)
        assert_same(found, expected)
        assert found.picture.cut
        assert found.picture.path is None


def test_a_batch_of_nothing_is_refused(detector, files):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        detector(files, batch_size=0)


def test_boxes_that_are_nan_are_not_found(weights, files):
    broken = ssd.Detector.load(weights, min_score=0.3, top_k=10**5, device="cpu", bf16=False)
    with torch.no_grad():  # the width of the first box of each cell
        for name, parameter in broken.model.pred_convs.named_parameters():
            if name.startswith("loc_") and name.endswith("bias"):
                parameter[2] = torch.nan
    boxes, _, _, counts = broken.predict(EvalTransform(300)(read_image(files[0]))[None])
    wrong = int(boxes.isnan().any(dim=2).sum())
    found = broken(files[0])
    assert 0 < len(found) == int(counts) - wrong < int(counts)
    assert not found.boxes.isnan().any()


def test_top_k_takes_no_more_memory_than_there_are_candidates(weights, files):
    every = DetectionOptions(min_score=0.0, max_overlap=1.0, top_k=10**12)
    greedy = ssd.Detector.load(weights, defaults=every, device="cpu")
    assert len(greedy(files[0])) == 3 * 8732
    offsets, logits = torch.zeros(1, 4, 4), torch.zeros(1, 4, 3)
    assert len(ssd.detect(offsets, logits, torch.rand(4, 4) + 1, 0.1, 1.0, 10**12)[0][0]) == 8


def test_detector_gives_what_the_files_show(shapes, weights):
    detector = Detector(*load_weights(weights, device="cpu"), DetectionOptions(min_score=0.1, top_k=7), bf16=False)
    paths = [str(path) for path in sorted((shapes / "JPEGImages").iterdir())]
    every = list(detector(iter(paths), batch_size=3))
    assert [str(found.picture.path) for found in every] == paths
    for found in every:
        picture, boxes, labels, scores = found.picture, found.boxes, found.labels, found.scores
        assert torch.equal(picture.pixels(), read_image(picture.path))
        assert boxes.shape == (7, 4)
        assert boxes.min() >= 0
        assert (boxes <= 300).all()
        assert boxes.max() > 1
        assert sorted(scores.tolist(), reverse=True) == scores.tolist()
        assert set(labels.tolist()) <= {1, 2, 3}
        offsets, logits = detector.model(to_input(EvalTransform(300)(picture)[None]))
        (expected,), (expected_labels,), _ = detector.model.detect_objects(offsets, logits, 0.1, 0.45, 7)
        torch.testing.assert_close(boxes, expected.clamp(0, 1) * 300, rtol=1e-3, atol=0.05)  # other batches, other sums
        assert torch.equal(labels, expected_labels)


def test_boxes_are_in_the_pixels_of_a_picture_that_is_no_square(weights, tmp_path):
    Image.effect_noise((600, 150), 90).save(tmp_path / "wide.png")
    detector = Detector(*load_weights(weights, device="cpu"), DetectionOptions(min_score=0.1))
    found = detector(tmp_path / "wide.png")
    assert 500 < found.boxes[:, [0, 2]].max() <= 600
    assert 120 < found.boxes[:, [1, 3]].max() <= 150


def test_detector_leaves_out_what_cannot_be_read(shapes, weights, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    paths = [tmp_path / "text.png", *sorted((shapes / "JPEGImages").iterdir()), tmp_path / "gone.png"]
    detector, errors = Detector(*load_weights(weights, device="cpu")), []
    every = detector(iter(paths), batch_size=2, on_error=errors.append)
    assert [found.picture.path for found in every] == paths[1:-1]
    assert [type(error) for error in errors] == [ImageReadError, FileNotFoundError]
    with pytest.raises(ImageReadError, match=r"text\.png"):
        detector(paths)


# ------------------------------------------------------------------------------------- class-agnostic NMS


def slow_nms(rows, max_overlap):
    """NMS in loops over rows (score, label, box), whatever their labels."""
    kept = []
    for row in sorted(rows, key=lambda row: -row[0]):
        if all(slow_iou(other[2], row[2]) <= max_overlap for other in kept):
            kept.append(row)
    return kept


def rows(found):
    return [(each.score, each.label, each.box) for each in found]


class Scattered:
    """A program that finds 30 objects in a picture: the same ones whenever it sees the same pixels."""

    input_size = 64

    def __call__(self, images):
        columns = []
        for image in images:
            rng = np.random.default_rng(list(image.numpy().tobytes()[:2000]))
            corners = rng.uniform(-0.1, 0.7, (30, 2))
            boxes = np.concatenate([corners, corners + rng.uniform(0.2, 0.5, (30, 2))], 1)
            scores = -np.sort(-rng.permutation(1000)[:30] / 1000)
            columns.append((torch.tensor(boxes).float(), torch.tensor(rng.integers(1, 4, 30)), torch.tensor(scores)))
        boxes, labels, scores = map(torch.stack, zip(*columns, strict=True))
        return boxes, labels, scores.float(), torch.full((len(images),), 30)


@pytest.mark.parametrize(
    "options",
    [{}, {"only": ["circle", "square"]}, {"thresholds": {"triangle": 0.8, "square": 0.5}}, {"tiles": 120}],
    ids=str,
)
def test_detections_of_all_classes_suppress_each_other(files, options):
    """After everything else: a detection that `only` or a threshold removes suppresses nothing."""
    pictures = [np.array(Image.open(path)) for path in files]
    for max_overlap in (0.1, 0.45):
        arguments = Scattered(), CLASSES, DetectionOptions(min_score=0.05, max_overlap=max_overlap)
        within_classes = Detector(*arguments, **options)(pictures, batch_size=4)
        found = Detector(*arguments, class_agnostic=True, **options)(pictures, batch_size=4)
        for ours, theirs in zip(found, within_classes, strict=True):
            assert rows(ours) == slow_nms(rows(theirs), max_overlap)
        assert 0 < sum(map(len, found)) < sum(map(len, within_classes))


def test_class_agnostic_nms_on_the_command_line(weights, shapes, tmp_path, capsys):
    pictures = shapes / "JPEGImages"
    given = ["--class-agnostic", "--no-drawings", "--min-score", "0.3"]
    assert detect(pictures, *given, weights=weights, out=tmp_path) == 0
    written = json.loads((tmp_path / JSON_NAME).read_text())["annotations"]
    detector = ssd.Detector.load(weights, device="cpu", min_score=0.3, class_agnostic=True)
    found = detector(sorted(pictures.iterdir()))
    assert [row["category_id"] for row in written] == [each.label for its in found for each in its]
    assert detect(pictures, *given, "--resume", weights=weights, out=tmp_path) == 0
    assert detect(pictures, *given[1:], "--resume", weights=weights, out=tmp_path) == 2
    assert "was made with class_agnostic True, and this run has None" in capsys.readouterr().err

    data = open_dataset(shapes, "train", CLASSES)
    detector = ssd.Detector.load(weights, device="cpu", min_score=0.01, class_agnostic=True)
    expected = score(detect_pictures(detector, data, batch_size=3, quiet=True), data.truths, CLASSES)
    evaluated = ["eval", str(shapes), "--split", "train", "--class-agnostic"]
    assert main([*evaluated, "--weights", str(weights), "--device", "cpu", "--batch-size", "3"]) == 0
    assert str(expected) in capsys.readouterr().out
    assert main([*evaluated, "--detections", str(tmp_path / JSON_NAME)]) == 2
    assert "leave out --class-agnostic" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- flips


def mirrored_back(found, width):
    return [
        ((width - each.box[2], each.box[1], width - each.box[0], each.box[3]), each.label, each.score) for each in found
    ]


@pytest.mark.parametrize(
    "options", [{}, {"only": ["square"]}, {"thresholds": {"square": 0.45, "circle": 0.35}}], ids=str
)
def test_detections_in_mirrored_pictures_are_joined(options):
    noise = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), np.uint8)
    chosen = DetectionOptions(min_score=0.3, top_k=20)
    found = Detector(Scattered(), CLASSES, chosen, flip=True, **options)(list(noise), batch_size=2)
    plain = Detector(Scattered(), CLASSES, DetectionOptions(min_score=0))
    least = {name: options.get("thresholds", {}).get(name, 0.3) for name in options.get("only", CLASSES)}
    n_joined = 0
    for picture, ours in zip(noise, found, strict=True):
        seen = [(each.box, each.label, each.score) for each in plain(picture)]
        seen = [seen, mirrored_back(plain(picture[:, ::-1].copy()), 64)]
        every = slow_fusion(seen, [1, 1], 0.55)
        n_joined += 60 - len(every)
        expected = [row for row in every[:20] if row[2] > least.get(CLASSES[row[1] - 1], 2)]
        assert [(each.label, each.score) for each in ours] == [(row[1], pytest.approx(row[2])) for row in expected]
        np.testing.assert_allclose(
            np.array([each.box for each in ours]), np.array([row[0] for row in expected]), atol=1e-4
        )
    assert n_joined > 10
    assert sum(map(len, found)) > 5


def test_a_network_looks_for_half_of_the_score(weights):
    """The score of an object is the mean of its scores in both pictures."""
    detector = ssd.Detector.load(weights, device="cpu", min_score=0.5, flip=True, thresholds={"circle": 0.3})
    assert detector.predict.keywords["options"].min_score == 0.15
    assert detector.options.min_score == 0.5


def test_tiles_are_flipped_one_by_one(files):
    """And merged afterwards."""
    arguments = Scattered(), CLASSES, DetectionOptions(min_score=0.3)
    every = Detector(*arguments, flip=True, tiles=120)(files, batch_size=3)
    for path, found in zip(files, every, strict=True):
        with Image.open(path) as picture:
            plan = views(*picture.size, 120)
            crops = [np.array(picture.crop(view)) for view in plan]
            size = picture.size
        parts = []
        for view, its in zip(plan, Detector(*arguments, flip=True)(crops), strict=True):
            sides = torch.tensor([view[2] - view[0], view[3] - view[1]] * 2)
            parts.append(in_view(Found(its.boxes / sides, its.labels, its.scores), view, *size))
        assert len(parts) > 4
        expected = merge(parts, 0.45)
        assert torch.equal(found.scores, expected.scores)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-3)  # divided, then multiplied


def test_flips_on_the_command_line(weights, shapes, tmp_path, capsys):
    pictures = shapes / "JPEGImages"
    given = ["--flip", "--no-drawings", "--min-score", "0.3"]
    assert detect(pictures, *given, weights=weights, out=tmp_path) == 0
    written = json.loads((tmp_path / JSON_NAME).read_text())
    found = ssd.Detector.load(weights, device="cpu", min_score=0.3, flip=True)(sorted(pictures.iterdir()))
    assert [row["category_id"] for row in written["annotations"]] == [each.label for its in found for each in its]
    assert written["info"]["min_score"] == 0.3
    assert detect(pictures, *given[1:], "--resume", weights=weights, out=tmp_path) == 2
    assert "was made with flip True, and this run has None" in capsys.readouterr().err
