"""Exported files: one program from bytes to detections, that says what the network says, or is not there."""

import os
import random
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from deep_pictures import png

import ssd.export as exporting
import ssd_ext
from ssd import build_network, load_weights
from ssd.data.augmentation import EvalTransform
from ssd.data.reading import PictureFile
from ssd.export import FORMATS, Metadata, export, load
from ssd.inference.detector import Detector
from ssd.inference.prediction import predict_padded
from ssd.weights.checkpoint import build_model, save_checkpoint
from ssd.weights.loading import open_weights
from ssd_ext import DetectionOptions

CLASSES = ("circle", "square", "triangle")
OPTIONS = DetectionOptions(min_score=0.3, top_k=50)
OURS = {name: format for name, format in FORMATS.items() if not format.modules}  # the others: test_onnx_openvino.py
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # cmake and ninja come from pip too
EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"


@pytest.fixture(scope="module")
def files(weights):
    """Exported files by format, compared with the network on drawn shapes."""
    for name, format in OURS.items():
        export(weights, weights.with_suffix(format.suffix), name, OPTIONS)
    return {name: weights.with_suffix(format.suffix) for name, format in OURS.items()}


@pytest.mark.parametrize("format", OURS)
def test_a_file_finds_what_the_network_finds(files, weights, pictures, format):
    exported = load(files[format])
    assert exported.metadata == Metadata(format, CLASSES, OPTIONS, 300)
    model, _ = load_weights(weights, device="cpu")
    for batch in (pictures, pictures[:1]):  # a number of pictures that it was not traced with
        found, expected = exported(batch), predict_padded(model, batch, OPTIONS, bf16=False)
        assert [(t.dtype, t.shape) for t in found] == [(t.dtype, t.shape) for t in expected]
        for ours, its in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, its, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", OURS)
def test_a_detector_from_a_file_is_that_of_the_network(files, weights, shapes, format):
    ours = Detector.load(weights, defaults=OPTIONS, device="cpu", bf16=False)
    its = Detector.load(files[format], top_k=50, device="cpu", bf16=False)
    assert (its.options, its.classes) == (OPTIONS, CLASSES)
    picture = min((shapes / "JPEGImages").iterdir())
    torch.testing.assert_close(its(picture).boxes, ours(picture).boxes, rtol=0, atol=0.01)
    with pytest.raises(ValueError, match="has bf16 False, not True; leave it out, or export a new file"):
        Detector.load(files[format], bf16=True)
    with pytest.raises(ValueError, match=r"has min_score 0\.3, not None"):
        Detector.load(files[format], min_score=None)


@pytest.mark.skipif(not shutil.which("cmake", path=TOOLS), reason="no cmake")
def test_the_cpp_example_gives_the_bits_of_python(files, pictures, tmp_path):
    """In a process without Python: the library of the ops and the package are all it loads."""
    for command in (
        ["cmake", "-G", "Ninja", "-S", EXAMPLE, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", tmp_path],
    ):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": TOOLS})
        assert done.returncode == 0, done.stdout + done.stderr
    pictures[1].numpy().tofile(tmp_path / "picture.rgb")
    library = next(Path(ssd_ext.__file__).parent.glob("_cpu*.so"))
    command = [tmp_path / "detect", library, files["aoti"]]
    done = subprocess.run([*command, tmp_path / "picture.rgb"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = torch.tensor([list(map(float, line.split())) for line in done.stdout.splitlines()])
    (boxes,), (labels,), (scores,), (count,) = load(files["aoti"])(pictures[1:2])
    assert len(rows) == count > 0
    assert torch.equal(rows[:, :4], boxes[:count])
    assert torch.equal(rows[:, 4].long(), labels[:count])
    assert torch.equal(rows[:, 5], scores[:count])
    done = subprocess.run([*command, tmp_path / "none.rgb"], capture_output=True, text=True)
    assert (done.returncode, "none.rgb" in done.stderr) == (1, True)


def lost(boxes, labels, scores, counts):
    counts[-1] -= 1
    return boxes, labels, scores, counts


@pytest.mark.parametrize(
    "change",
    [
        lambda boxes, labels, scores, counts: (boxes + 2e-4, labels, scores, counts),
        lambda boxes, labels, scores, counts: (boxes, labels % 3 + 1, scores, counts),
        lambda boxes, labels, scores, counts: (boxes, labels, scores - 2e-5, counts),
        lambda *found: [t.flip(0) for t in found],
        lost,
    ],
    ids=["boxes", "labels", "scores", "pictures", "counts"],
)
def test_a_file_that_differs_is_not_left(weights, tmp_path, monkeypatch, change):
    original = FORMATS["pt2"]

    def load_changed(path):
        program, metadata = original.load(path)
        return lambda images: change(*program(images)), metadata

    monkeypatch.setitem(FORMATS, "pt2", original._replace(load=load_changed))
    with pytest.raises(ValueError, match="differs from the network: in picture"):
        export(weights, tmp_path / "x.pt2", options=OPTIONS)
    assert list(tmp_path.iterdir()) == []
    export(weights, tmp_path / "x.pt2", options=OPTIONS, check=())  # on demand unseen
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt2"]


def test_few_pictures_are_from_all_over_a_folder(tmp_path):
    for name in (*range(10), ".0"):
        (tmp_path / f"{name}.jpg").touch()
    assert [path.stem for path in exporting._few(tmp_path, 4)] == ["0", "3", "6", "9"]
    assert len(exporting._few(tmp_path, 10)) == 10


def test_what_is_compared(weights, shapes, tmp_path):
    metadata = Metadata("pt2", CLASSES, OPTIONS, 300)
    few = exporting._pictures([], metadata, tmp_path / "a")
    assert few.shape == (exporting.N_CHECKED, 3, 300, 300)
    (picture, *_) = sorted((shapes / "JPEGImages").iterdir())
    assert torch.equal(
        exporting._pictures([picture], metadata, tmp_path / "b"),
        EvalTransform(300)(PictureFile(picture)).repeat(2, 1, 1, 1),
    )
    trained = tmp_path / "trained.pt"
    for data, n in ((shapes, 3), (tmp_path / "gone", exporting.N_CHECKED)):
        save_checkpoint(trained, load_weights(weights)[0], CLASSES, settings={"data": [str(data)]})
        places = exporting._trained_on(open_weights(trained))
        assert len(exporting._pictures(places, metadata, tmp_path / f"c{n}")) == n


WHOLE = [name for name, format in FORMATS.items() if name != "aoti" and all(map(find_spec, format.modules))]


def test_a_network_in_place_of_its_file_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"must be the path of a checkpoint, got SSDLite: .*save_checkpoint"):
        export(build_network("ssdlite", 3, size=224, width=0.1), tmp_path / "x.pt2")


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files_are_named(weights, tmp_path, name):
    path = tmp_path / f"x{FORMATS[name].suffix}"
    export(weights, path, name, OPTIONS, check=())
    whole, moments = path.read_bytes(), random.Random(0)
    for _ in range(8):
        data = bytearray(whole[: moments.randrange(len(whole))])
        for _ in range(moments.choice((0, 3, 100))):
            data[moments.randrange(len(data))] = moments.randrange(256)
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: [^\n]+$"):
            load(path)


@pytest.mark.parametrize("name", WHOLE)
def test_a_full_disk_is_named_and_nothing_left(weights, tmp_path, name):
    resource = pytest.importorskip("resource")
    path, limits = tmp_path / f"x{FORMATS[name].suffix}", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"{re.escape(str(path))}"):
            export(weights, path, name, OPTIONS, check=())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_file_keeps_the_levels_of_the_training_pictures(weights, tmp_path, monkeypatch):
    checkpoint, used = open_weights(weights), []
    save_checkpoint(tmp_path / "w.pt", build_model(checkpoint, weights), CLASSES, levels=(0, 4095))
    array = np.random.default_rng(0).integers(0, 4096, (40, 60, 1)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(array))
    compare = exporting._compare
    monkeypatch.setattr(exporting, "_compare", lambda *args: used.append(args[2]) or compare(*args))
    export(tmp_path / "w.pt", tmp_path / "w.pt2", check=[tmp_path / "a.png"])
    assert used[0].max() > 200
    assert load(tmp_path / "w.pt2").metadata.levels == (0, 4095)
    assert Detector.load(tmp_path / "w.pt2")(tmp_path / "a.png").picture.pixels().max() == 255
