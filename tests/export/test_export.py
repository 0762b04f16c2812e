"""Exported files: one program from bytes to detections, that says what the network says, or is not there."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import ssd.export as exporting
import ssd_ext
from ssd import load_weights
from ssd.cli import main
from ssd.data.augmentation import EvalTransform
from ssd.data.reading import PictureFile
from ssd.data.shapes import write_shapes
from ssd.export import FORMATS, DetectionProgram, Metadata, export, load
from ssd.export.program import missing_rows
from ssd.inference.detector import Detector, predict_padded
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import save_checkpoint
from ssd_ext import DetectionOptions

CLASSES = ("circle", "square", "triangle")
OPTIONS = DetectionOptions(min_score=0.3, top_k=50)
OURS = {name: format for name, format in FORMATS.items() if not format.modules}  # the others: test_onnx_openvino.py
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # cmake and ninja come from pip too
EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that never trained, with scores that spread from 0 to 1."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(path, SSD300(4, width=0.05), CLASSES)
    return path


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 3, 0)


@pytest.fixture(scope="module")
def pictures(shapes):
    return torch.stack([EvalTransform()(PictureFile(path)) for path in sorted((shapes / "JPEGImages").iterdir())])


@pytest.fixture(scope="module")
def files(weights):
    """Exported files by format, compared with the network on drawn shapes."""
    for name, format in OURS.items():
        export(weights, weights.with_suffix(format.suffix), name, OPTIONS)
    return {name: weights.with_suffix(format.suffix) for name, format in OURS.items()}


def test_the_program_has_the_bits_of_the_detector(weights, pictures):
    model, _ = load_weights(weights, device="cpu")
    expected = predict_padded(model, pictures, OPTIONS, bf16=False)
    assert expected[3].min() > 0
    with torch.no_grad():
        for images in (pictures, pictures.float() / 255):
            for ours, its in zip(DetectionProgram(model, OPTIONS)(images), expected, strict=True):
                assert torch.equal(ours, its)


@pytest.mark.parametrize("format", OURS)
def test_a_file_finds_what_the_network_finds(files, weights, pictures, format):
    exported = load(files[format])
    assert exported.metadata == Metadata(format, CLASSES, OPTIONS)
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
    with pytest.raises(ValueError, match="has bf16 False, not True; leave it out, or export it anew"):
        Detector.load(files[format], bf16=True)
    with pytest.raises(ValueError, match=r"has min_score 0\.3, not None"):
        Detector.load(files[format], min_score=None)


def test_a_file_that_takes_floats(weights, pictures, tmp_path):
    metadata = export(weights, tmp_path / "f.pt2", options=OPTIONS, input_dtype="float32")
    assert metadata.input_dtype == "float32"
    exported = load(tmp_path / "f.pt2")
    model, _ = load_weights(weights, device="cpu")
    for ours, its in zip(exported(pictures), predict_padded(model, pictures, OPTIONS, bf16=False), strict=True):
        assert torch.equal(ours, its)
    with torch.no_grad():
        assert torch.equal(exported.program(pictures.float() / 255)[0], exported(pictures)[0])


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


def test_metadata_survives_json():
    metadata = Metadata("pt2", ("a", "b"), DetectionOptions(top_k=7, score="sigmoid"), "float32")
    assert Metadata.from_json(metadata.to_json()) == metadata
    for text in ("", "[]", "{}", '{"options": {"colour": 1}, "classes": []}'):
        with pytest.raises(ValueError, match="not the metadata"):
            Metadata.from_json(text)


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


def test_ties_may_come_in_any_order():
    boxes, labels = torch.arange(12.0).reshape(3, 4), torch.tensor([1, 2, 2])
    scores = torch.tensor([0.9, 0.5, 0.5])
    swapped = boxes[[0, 2, 1]], labels, scores
    assert missing_rows((boxes, labels, scores), swapped, OPTIONS) == []
    other = boxes + torch.tensor([0, 0, 1])[:, None], labels, scores
    assert missing_rows((boxes, labels, scores), other, OPTIONS) == [2]
    three = OPTIONS._replace(top_k=3)  # either of them may be the third
    assert missing_rows((boxes, labels, scores), other, three) == []
    overlapping = boxes + torch.tensor([0, 0, 0.1])[:, None], labels, scores  # NMS keeps one of the two
    assert missing_rows((boxes, labels, scores), overlapping, OPTIONS) == []
    assert missing_rows((boxes, labels, scores), overlapping, OPTIONS._replace(max_overlap=0.9)) == [2]
    assert missing_rows((boxes, labels, scores), [t[:0] for t in other], OPTIONS) == [0, 1, 2]


def test_few_pictures_are_from_all_over_a_folder(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.jpg").touch()
    assert [path.stem for path in exporting._few(tmp_path, 4)] == ["0", "3", "6", "9"]
    assert len(exporting._few(tmp_path, 10)) == 10


def test_what_is_compared(weights, shapes, tmp_path):
    few = exporting._pictures(weights, None, tmp_path / "a")
    assert few.shape == (exporting.N_CHECKED, 3, 300, 300)
    (picture, *_) = sorted((shapes / "JPEGImages").iterdir())
    assert torch.equal(
        exporting._pictures(weights, [picture], tmp_path / "b"),
        EvalTransform()(PictureFile(picture)).repeat(2, 1, 1, 1),
    )
    trained = tmp_path / "trained.pt"
    for data, n in ((shapes, 3), (tmp_path / "gone", exporting.N_CHECKED)):
        save_checkpoint(trained, load_weights(weights)[0], CLASSES, settings={"data": [str(data)]})
        assert len(exporting._pictures(trained, None, tmp_path / f"c{n}")) == n


def test_detect_and_eval_take_a_file(weights, shapes, tmp_path, capsys):
    file = tmp_path / "best.pt2"
    options = ["--min-score", "0.3", "--top-k", "20"]
    assert main(["export", str(weights), "--out", str(file), *options, "--check", str(shapes)]) == 0
    assert "3 classes: circle, square, triangle" in capsys.readouterr().out
    for out, name, more in (("a", weights, [*options, "--no-bf16"]), ("b", file, [])):
        common = ["--out", str(tmp_path / out), "--device", "cpu", "--no-drawings"]
        assert main(["detect", str(shapes), "--weights", str(name), *common, *more]) == 0
    a, b = (json.loads((tmp_path / out / "detections.json").read_text()) for out in "ab")
    weights = [content["info"].pop("weights").partition(" ")[0] for content in (a, b)]
    assert weights[1] == f"{weights[0]}2"  # best.pt and best.pt2
    assert a == b
    assert len(a["annotations"]) > 3
    assert main(["eval", str(shapes), "--weights", str(file), *options]) == 0
    assert "mAP@0.5" in capsys.readouterr().out

    def error(*arguments):
        assert main(["detect", str(shapes), "--weights", str(file), "--out", str(tmp_path / "c"), *arguments]) == 2
        return capsys.readouterr().err

    assert "has top_k 20, not 21; leave it out" in error("--top-k", "21")
    assert "has min_score 0.3, not 0.2; leave it out" in error("--min-score", "0.2")
    assert "has clip False, not True; leave it out" in error("--clip")
    assert "has compile False, not True; leave it out" in error("--compile")
    assert "has device cpu, not meta; leave it out" in error("--device", "meta")


def test_mistakes_are_named(weights, shapes, tmp_path, monkeypatch, capsys):
    def error(*arguments, source=weights):
        assert main(["export", str(source), *map(str, arguments)]) == 2
        return capsys.readouterr().err

    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "there.pt2").write_text("not an archive")
    assert "nowhere: no such folder, yet x.pt2" in error("--out", tmp_path / "nowhere" / "x.pt2")
    assert "text.pt" in error("--out", tmp_path / "text.pt" / "x.pt2")
    assert "there.pt2: exists" in error("--out", tmp_path / "there.pt2")
    assert "ends in .pt2" in error("--out", tmp_path / "x.pth")
    assert "none.pt: no such checkpoint" in error("--out", tmp_path / "x.pt2", source=tmp_path / "none.pt")
    assert "cannot be read as a checkpoint" in error("--out", tmp_path / "x.pt2", source=tmp_path / "text.pt")
    assert "none.jpg" in error("--out", tmp_path / "x.pt2", "--check", tmp_path / "none.jpg")
    assert "no pictures" in error("--out", tmp_path / "x.pt2", "--check", tmp_path)
    with pytest.raises(SystemExit):
        main(["export", str(weights), "--format", "caffe"])
    assert "invalid choice: 'caffe'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="format must be one of pt2, aoti"):
        export(weights, tmp_path / "x.pt2", "caffe")
    with pytest.raises(ValueError, match="input_dtype must be one of"):
        export(weights, tmp_path / "x.pt2", input_dtype="int8")

    def no_compiler(*arguments, **settings):
        raise RuntimeError("InvalidCxxCompiler: none\n\nmore")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", no_compiler)
    message = error("--format", "aoti", "--out", tmp_path / "x.pt2")
    assert message.endswith("aoti needs a C++ compiler that works: InvalidCxxCompiler: none\n")
    monkeypatch.setitem(FORMATS, "pt2", FORMATS["pt2"]._replace(modules=("torch", "no_such_package")))
    assert "pt2 needs no_such_package: pip install 'ssd-ext[pt2]'" in error("--out", tmp_path / "x.pt2")
    assert {path.name for path in tmp_path.iterdir()} == {"text.pt", "there.pt2"}


def test_files_that_are_none_are_named(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt2: no such file"):
        load(tmp_path / "none.pt2")
    with pytest.raises(ValueError, match=r"best\.pt: not an exported file"):
        load(weights)
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(ValueError, match=r"text\.pt2: not an archive"):
        load(tmp_path / "text.pt2")
    shutil.copy(weights, tmp_path / "checkpoint.pt2")
    with pytest.raises(ValueError, match=r"checkpoint\.pt2: cannot be loaded"):
        load(tmp_path / "checkpoint.pt2")
    graph = torch.export.export(torch.nn.ReLU(), (torch.ones(1),))
    torch.export.save(graph, tmp_path / "other.pt2")
    with pytest.raises(ValueError, match=r"other\.pt2: cannot be loaded: not the metadata"):
        load(tmp_path / "other.pt2")


WHOLE = [name for name, format in FORMATS.items() if name != "aoti" and all(map(find_spec, format.modules))]


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
