"""Tiles: the rules of merging against an implementation in loops, and detection in large pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import ssd
from ssd.cli import main
from ssd.data import ImageReadError, large_tiff, open_dataset
from ssd.data.tiles import views
from ssd.detection import Found
from ssd.evaluation.evaluate import detect_pictures, score
from ssd.inference import tiles
from ssd.inference.tiles import InView, in_view, merge

WIDTH, HEIGHT = 1000, 700


def test_sides_at_inner_edges_are_cut():
    view = (200, 0, 300, 100)
    boxes = torch.tensor([[0.01, 0.01, 0.5, 0.5], [0.03, 0.2, 0.97, 0.97], [0.5, 0.5, 0.985, 1.3]])
    found = in_view(Found(boxes, torch.tensor([1, 2, 1]), torch.tensor([0.9, 0.8, 0.7])), view, 300, 200)
    torch.testing.assert_close(
        found.boxes, torch.tensor([[201.0, 1, 250, 50], [203, 20, 297, 97], [250, 50, 298.5, 100]])
    )
    assert found.cut.tolist() == [[True, False, False, False], [False] * 4, [False, False, False, True]]
    assert not in_view(Found(boxes, torch.ones(3), torch.ones(3)), (0, 0, 300, 200), 300, 200).cut.any()


# ------------------------------------------------------------------------------------- the rules, in loops


def overlaps(a, b):
    """IoU, and the part of a that lies in b."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = width * height if min(width, height) > 0 else 0
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return common / (area_a + area_b - common), common / area_a


def slow_nms(rows, max_overlap):
    kept = []
    for row in sorted(rows, key=lambda row: -row["score"]):
        if all(k["label"] != row["label"] or overlaps(k["box"], row["box"])[0] <= max_overlap for k in kept):
            kept.append(row)
    return kept


def are_parts(a, b, axis):
    """Rule 5 for a pair in order, without the rule of comparable scores."""
    near, far, low, high = axis, axis + 2, 1 - axis, 3 - axis
    if not (a["cut"][far] and b["cut"][near] and a["label"] == b["label"]):
        return False
    a, b = a["box"], b["box"]
    common, union = min(a[high], b[high]) - max(a[low], b[low]), max(a[high], b[high]) - min(a[low], b[low])
    return a[near] < b[near] < a[far] < b[far] and common / union > 0.5


def slow_merge(rows, max_overlap):
    whole = slow_nms([row for row in rows if not any(row["cut"])], max_overlap)
    cut = []
    for sides in {tuple(row["cut"]) for row in rows if any(row["cut"])}:
        cut += slow_nms([row for row in rows if tuple(row["cut"]) == sides], max_overlap)
    cut.sort(key=lambda row: -row["score"])
    pairs = []
    for i, a in enumerate(cut):
        for j, b in enumerate(cut):
            comparable = min(a["score"], b["score"]) >= max(a["score"], b["score"]) / 2
            pairs += [(min(i, j), max(i, j), axis, i, j) for axis in (0, 1) if comparable and are_parts(a, b, axis)]
    objects = [{i} for i in range(len(cut))]
    joined = set()
    for _, _, axis, i, j in sorted(pairs):
        if (i, axis + 2) in joined or (j, axis) in joined:
            continue
        joined |= {(i, axis + 2), (j, axis)}
        first, second = (next(each for each in objects if n in each) for n in (i, j))
        if first is not second:
            objects.remove(second)
            first |= second
    for members in objects:
        if len(members) > 1:
            boxes = np.array([cut[n]["box"] for n in members])
            whole.append({**cut[min(members)], "box": (*boxes[:, :2].min(0), *boxes[:, 2:].max(0))})
    whole = slow_nms(whole, max_overlap)
    for row in [cut[min(members)] for members in objects if len(members) == 1]:
        mates = [w for w in whole if w["label"] == row["label"] and w["score"] >= row["score"] / 2]
        row["inside"] = any(overlaps(row["box"], w["box"])[1] > 0.5 for w in mates)
    alone = [cut[min(members)] for members in objects if len(members) == 1]
    return slow_nms([*whole, *(row for row in alone if not row["inside"])], max_overlap)


def drawn(seed):
    """Detections near to the edges of tiles, whose scores are all different, in parts of a picture."""
    rng = np.random.default_rng(seed)
    parts = []
    objects = []
    for _ in range(15):
        side = np.exp(rng.uniform(np.log(30), np.log(500), 2))
        corner = rng.uniform(0, [WIDTH, HEIGHT])
        objects.append((*corner, *np.minimum(corner + side, [WIDTH, HEIGHT])))
    for view in views(WIDTH, HEIGHT, 250):
        x0, y0, x1, y1 = view
        seen = [np.clip(box, [x0, y0] * 2, [x1, y1] * 2) for box in objects]
        sides = np.array([x1 - x0, y1 - y0] * 2)
        boxes = np.array([(box - [x0, y0] * 2) / sides for box in seen]).repeat(2, 0)
        boxes[:, :2] += rng.normal(0, 0.01, (len(boxes), 2))
        boxes[:, 2:] += rng.normal(0, 0.01, (len(boxes), 2))
        boxes = boxes.clip(0, 1)
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(1) > 0.02]
        boxes = torch.from_numpy(boxes).float()
        scores = torch.from_numpy(rng.permutation(10**6)[: len(boxes)] / 1e6).float()
        parts.append(
            in_view(Found(boxes, torch.from_numpy(rng.integers(1, 3, len(boxes))), scores), view, WIDTH, HEIGHT)
        )
    return parts


@pytest.mark.parametrize("chunk", [1 << 20, 7])
@pytest.mark.parametrize("seed", range(8))
def test_merge_follows_the_rules(seed, chunk, monkeypatch):
    monkeypatch.setattr(tiles, "CHUNK", chunk)
    parts = drawn(seed)
    rows = [
        {"box": box, "label": label, "score": score, "cut": cut}
        for part in parts
        for box, label, score, cut in zip(*(column.tolist() for column in part), strict=True)
    ]
    expected = slow_merge(rows, 0.45)
    found = merge(parts, 0.45)
    assert len(expected) > 10
    assert found.scores.tolist() == [row["score"] for row in expected]
    assert found.labels.tolist() == [row["label"] for row in expected]
    np.testing.assert_allclose(found.boxes, [row["box"] for row in expected], rtol=1e-6)
    assert len(expected) < len(rows)


def part_of(*rows):
    """Rows (x0, y0, x1, y1, score, cut sides as a text such as "lr") of one class."""
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4)
    cut = torch.tensor([[side in row[5] for side in "ltrb"] for row in rows], dtype=torch.bool).reshape(-1, 4)
    return InView(boxes, torch.ones(len(rows), dtype=torch.int64), torch.tensor([row[4] for row in rows]), cut)


def test_an_object_in_four_tiles_is_one():
    four = [(50, 50, 250, 250, 0.9, "rb"), (200, 52, 400, 250, 0.8, "lb"), (51, 200, 250, 390, 0.7, "rt")]
    four.append((200, 200, 401, 392, 0.6, "lt"))
    found = merge([part_of(row) for row in four], 0.45)
    assert found.boxes.tolist() == [[50, 50, 401, 392]]
    assert found.scores.tolist() == pytest.approx([0.9])


def test_a_whole_object_takes_the_place_of_its_parts():
    whole, piece = (100, 100, 180, 180, 0.5, ""), (100, 100, 150, 180, 0.9, "r")
    assert merge([part_of(piece), part_of(whole)], 0.45).boxes.tolist() == [list(whole[:4])]
    weak = (*whole[:4], 0.4, "")  # less than half of the score: something else
    assert len(merge([part_of(piece), part_of(weak)], 0.7)) == 3
    assert merge([part_of(piece), part_of(weak)], 0.7).scores.tolist() == pytest.approx([0.9, 0.4])


def test_nothing_found_in_any_tile():
    found = merge([part_of(), part_of()], 0.45)
    assert [tuple(column.shape) for column in found] == [(0, 4), (0,), (0,)]


# ------------------------------------------------------------------------------------- the detector


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    noise = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    for name, size in (("a.png", (900, 700)), ("b.png", (200, 150)), ("c.png", (650, 301))):
        Image.fromarray(noise).resize(size).save(folder / name)
    return folder


def test_a_detector_merges_what_it_finds_in_each_tile(weights, large):
    plain = ssd.Detector.load(weights, min_score=0.2, device="cpu", bf16=False)
    tiled = ssd.Detector.load(weights, min_score=0.2, device="cpu", bf16=False, tiles=320, overlap=0.3)
    paths = sorted(large.iterdir())
    every = tiled(paths, batch_size=3)
    assert [found.picture.path for found in every] == paths
    pictures = [Image.open(path) for path in paths]
    plans = [views(*picture.size, 320, 0.3) for picture in pictures]
    assert [len(plan) for plan in plans] == [4 * 3 + 1, 1, 3 + 1]
    crops = [np.array(picture.crop(view)) for picture, plan in zip(pictures, plans, strict=True) for view in plan]
    seen = iter(plain(crops, batch_size=3))  # the same batches, and so the same bits
    for picture, plan, found in zip(pictures, plans, every, strict=True):
        parts = []
        for view in plan:
            its, sides = next(seen), torch.tensor([view[2] - view[0], view[3] - view[1]] * 2)
            parts.append(in_view(Found(its.boxes / sides, its.labels, its.scores), view, *picture.size))
        expected = merge(parts, 0.45) if len(parts) > 1 else its
        assert len(found) == len(expected.labels) > 10
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-3)  # divided, then multiplied
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.scores, expected.scores)
    lazy = tiled(iter(paths), batch_size=4)
    assert torch.equal(next(lazy).labels, every[0].labels)
    one = tiled(str(paths[0]))
    torch.testing.assert_close(one.boxes, every[0].boxes, rtol=1e-4, atol=0.05)
    assert ssd.Detector.load(weights, device="cpu", tiles=0).tiles == 300


def test_pictures_that_cannot_be_read_are_left_out(weights, large, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    cut = (large / "a.png").read_bytes()[:-5000]
    (tmp_path / "cut.png").write_bytes(cut)
    paths = [tmp_path / "text.png", large / "a.png", tmp_path / "cut.png", tmp_path / "gone.png", large / "c.png"]
    tiled, errors = ssd.Detector.load(weights, device="cpu", tiles=320), []
    found = list(tiled(iter(paths), batch_size=2, on_error=errors.append))
    assert [each.picture.path for each in found] == [large / "a.png", large / "c.png"]
    assert [type(error) for error in errors] == [ImageReadError, ImageReadError, FileNotFoundError]
    with pytest.raises(ImageReadError, match=r"text\.png"):
        tiled(paths)
    with pytest.raises(ImageReadError, match=r"text\.png"):
        tiled(paths[0])


def test_a_large_tiff_is_read_in_parts(weights, large, tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile", reason="the extra `large` is not installed")
    pixels = np.array(Image.open(large / "a.png"))
    good, bad = tmp_path / "a.tif", tmp_path / "bad.tif"
    for path in (good, bad):
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), compression="zlib")
    content = bytearray(bad.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    bad.write_bytes(content)
    tiled, errors = ssd.Detector.load(weights, device="cpu", bf16=False, tiles=320), []
    expected = tiled(pixels, batch_size=4)
    monkeypatch.setattr(large_tiff, "LARGE", 20_000)
    found = list(tiled(iter([good, bad, large / "b.png", good]), batch_size=4, on_error=errors.append))
    assert [each.picture.path for each in found] == [good, large / "b.png", good]
    assert [str(error).split(":")[0] for error in errors] == [str(bad)]  # once, although several tiles are damaged
    torch.testing.assert_close(found[0].boxes, expected.boxes, rtol=1e-4, atol=0.05)  # other batches, other sums
    monkeypatch.setattr("ssd.inference.detections.LARGE", 20_000)
    monkeypatch.setattr("ssd.inference.detections.LONGEST_SIDE", 300)
    assert found[0].draw().size == (300, 233)
    whole = Image.fromarray(pixels)
    for crop, (x0, y0, x1, y1) in zip(found[0].crops(), found[0].boxes.round().int().tolist(), strict=True):
        assert crop.size == (max(1, x1 - x0), max(1, y1 - y0))
        if min(crop.size) > 1:
            assert crop.tobytes() == whole.crop((x0, y0, x1, y1)).tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tiles": -1}, "tiles must be a side in pixels, or 0 for the input size of the network, got -1"),
        ({"tiles": 9, "overlap": 0.95}, "overlap must be from 0 to 0.9, got 0.95"),
        ({"tiles": 9, "overlap": -0.1}, "overlap must be from 0 to 0.9, got -0.1"),
    ],
)
def test_impossible_tiles_are_refused(weights, options, message):
    with pytest.raises(ValueError, match=message):
        ssd.Detector.load(weights, device="cpu", **options)


# ------------------------------------------------------------------------------------- the commands


def test_the_commands_take_tiles(shapes, weights, tmp_path, capsys):
    detect = ["detect", str(shapes / "JPEGImages"), "--weights", str(weights), "--out", str(tmp_path / "found")]
    assert main([*detect, "--no-drawings", "--tiles", "160"]) == 0
    content = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert (content["info"]["tiles"], content["info"]["overlap"]) == (160, 0.2)
    data = open_dataset(shapes, "train", ("circle", "square", "triangle"))
    detector = ssd.Detector.load(weights, device="cpu", min_score=0.01, tiles=160, overlap=0.25)
    found = detect_pictures(detector, data, batch_size=3, quiet=True)
    expected = score(found, data.truths, data.classes)
    capsys.readouterr()
    evaluated = [
        "eval",
        str(shapes),
        "--weights",
        str(weights),
        "--split",
        "train",
        "--device",
        "cpu",
        "--batch-size",
        "3",
    ]
    assert main([*evaluated, "--tiles", "160", "--overlap", "0.25", "--report", str(tmp_path / "r.html")]) == 0
    assert str(expected) in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["mAP"] == pytest.approx(expected.mAP)
    assert main([*evaluated, "--overlap", "0.25"]) == 2
    assert "--overlap is the overlap of tiles: add --tiles" in capsys.readouterr().err
    other = ["eval", str(shapes), "--detections", str(tmp_path / "found" / "detections.json"), "--tiles"]
    assert main(other) == 2
    assert "leave out --tiles" in capsys.readouterr().err


def test_a_run_resumes_only_with_the_same_tiles(shapes, weights, tmp_path, capsys):
    command = ["detect", str(shapes / "JPEGImages"), "--weights", str(weights), "--out", str(tmp_path), "--no-drawings"]
    assert main([*command, "--tiles", "160"]) == 0
    assert main([*command, "--resume", "--tiles", "160"]) == 0
    assert main([*command, "--resume"]) == 2
    assert "was made with tiles 160, and this run has None" in capsys.readouterr().err
