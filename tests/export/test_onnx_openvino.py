"""ONNX and OpenVINO: the detections of ssd_ext from standard operators, at full size and in every option."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from inputs import PRIORS, trained_like, untrained
from torch import nn

from ssd.data.shapes import write_shapes
from ssd.detection import unpad
from ssd.export import FORMATS, export, load
from ssd.export.program import missing_rows
from ssd.inference.detector import Detector
from ssd.networks.ssd300 import SSD300
from ssd.weights.checkpoint import save_checkpoint
from ssd_ext import DetectionOptions, postprocess_detections

for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package, reason=f"no {package}: pip install 'ssd-ext[onnx,openvino]'")

from ssd.export import onnx, openvino  # noqa: E402
from ssd.export.program import Metadata  # noqa: E402

RUNTIMES = {"onnx": onnx, "openvino": openvino}
BOXES = PRIORS.new_tensor([[0.5, 0.5, 1, 1], [0.5, 0.25, 1, 0.5], [0.5, 0.5, 1, 1], [0.25, 0.75, 0.5, 0.5]])
# The offsets of no move: boxes are the priors, to the bit. IoU of the first two: exactly 1/2.


class Detection(nn.Module):
    """The detection alone, of offsets and logits that lie side by side in one input, as exporters of images give."""

    def __init__(self, options, priors, classes):
        super().__init__()
        self.options, self.classes = options, classes
        self.register_buffer("priors", priors)

    def example(self, dtype):
        return torch.zeros(2, len(self.priors), 4 + self.classes)

    def forward(self, both):
        return postprocess_detections(both[..., :4], both[..., 4:], self.priors, self.options)


@pytest.fixture
def found(tmp_path):
    """Detections of a runtime and ours, of offsets, logits and options."""

    def run(format, predictions, options, priors=PRIORS):
        both = torch.cat(predictions, dim=2)
        program = Detection(options, priors, both.shape[2] - 4)
        path = tmp_path / f"detection{FORMATS[format].suffix}"
        RUNTIMES[format].save(program, path, Metadata(format, ("a",), options, 300))
        run, _ = RUNTIMES[format].load(path)
        return run(both), program(both)

    return run


def assert_same(found, expected, options):
    """Equal counts, and equal detections where scores are not tied."""
    assert torch.equal(found[3], expected[3])
    assert [(t.dtype, t.shape) for t in found] == [(t.dtype, t.shape) for t in expected]
    for its, ours in zip(unpad(found), unpad(expected), strict=True):
        assert not missing_rows(ours, its, options)
        assert not missing_rows(its, ours, options)
    beyond = torch.arange(options.top_k) >= expected[3][:, None]
    assert not any(padded[beyond].any() for padded in found[:3])


@pytest.mark.parametrize("format", RUNTIMES)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"min_score": 0.2, "max_overlap": 0.3, "top_k": 7},
        {"score": "sigmoid", "min_score": 0.9, "clip": True},
        {"pre_nms_top_k": 5, "center_variance": 0.2, "size_variance": 0.1},
        {"max_log_scale": -0.1},
    ],
    ids=str,
)
def test_every_option(found, format, change):
    options = DetectionOptions()._replace(**change)
    results = found(format, trained_like(2, 6), options)
    assert results[1][3].min() > 0
    assert_same(*results, options)


@pytest.mark.parametrize("format", RUNTIMES)
def test_a_hundred_pictures(found, format):
    options = DetectionOptions()
    its, ours = found(format, trained_like(100, 21), options)
    assert_same(its, ours, options)
    assert torch.equal(its[1], ours[1])  # no ties here
    torch.testing.assert_close(its[2], ours[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", RUNTIMES)
def test_an_untrained_network_has_no_candidate_cut(found, format):
    """174,640 candidates of a picture."""
    options = DetectionOptions()
    its, ours = found(format, untrained(1, 21), options)
    assert int(ours[3]) == options.top_k
    assert_same(its, ours, options)


@pytest.mark.parametrize("format", RUNTIMES)
@pytest.mark.parametrize(("max_overlap", "kept"), [(0.5, 3), (0.4999999, 2)])
def test_ties_thresholds_and_nothing(found, format, max_overlap, kept):
    """An IoU equal to the threshold stays, a score equal to it does not; ties: lowest class, then lowest prior."""
    logits = torch.full((4, 4, 3), -50.0)
    logits[:2, :3, 1] = 0.0  # sigmoid 0.5 of priors 0, 1 and 2, of which 0 and 2 are one box
    logits[:2, 3, 1:] = torch.tensor([-1.0, 0.0])
    logits[1, :, 1:] = logits[1, :, 1:].flip(1)
    logits[2, 0, 1] = torch.nan
    options = DetectionOptions(min_score=0.25, max_overlap=max_overlap, top_k=6, score="sigmoid")
    predictions = torch.zeros(4, 4, 4), logits
    its, ours = found(format, predictions, options, BOXES)
    assert ours[3].tolist() == [kept + 1, kept + 1, 0, 0]
    assert_same(its, ours, options)
    if format == "onnx":  # OpenVINO's order of equal scores is its own
        for a, b in zip(its, ours, strict=True):
            assert torch.equal(a, b)
    its, _ = found(format, predictions, options._replace(min_score=0.5), BOXES)
    assert its[3].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("format", RUNTIMES)
def test_boxes_without_any_overlap_are_kept(found, format):
    """With max_overlap 0, boxes that only touch stay."""
    quarters = PRIORS.new_tensor(
        [[0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5], [0.25, 0.75, 0.5, 0.5], [0.5, 0.5, 1, 1]]
    )
    logits = torch.full((1, 4, 3), -50.0)
    logits[0, :, 1] = torch.tensor([0.0, -0.1, -0.2, -0.3])
    options = DetectionOptions(min_score=0.25, max_overlap=0.0, top_k=6, score="sigmoid")
    its, ours = found(format, (torch.zeros(1, 4, 4), logits), options, quarters)
    assert ours[3].item() == 3
    assert_same(its, ours, options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A narrow network, and files of it: exported, which compares them with it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("export")
    save_checkpoint(folder / "best.pt", SSD300(4, width=0.05), ("circle", "square", "triangle"))
    shapes = write_shapes(folder / "shapes", 12, 0)
    options = DetectionOptions(min_score=0.3, top_k=50)
    for name in RUNTIMES:
        export(folder / "best.pt", folder / f"float{FORMATS[name].suffix}", name, options)
    export(folder / "best.pt", folder / "int8.xml", "openvino", options, int8=shapes)
    return folder


@pytest.mark.parametrize("file", ["float.onnx", "float.xml"])
def test_threads_share_a_file(exported, file):
    detector = Detector.load(exported / file)
    pictures = sorted((exported / "shapes" / "JPEGImages").iterdir())
    expected = [detector(picture).boxes for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        for found, boxes in zip(pool.map(detector, pictures * 2), expected * 2, strict=True):
            assert torch.equal(found.boxes, boxes)


@pytest.mark.parametrize(
    ("file", "precision"), [("float.onnx", "float32"), ("float.xml", "float32"), ("int8.xml", "int8")]
)
def test_metadata_travels(exported, file, precision):
    metadata = load(exported / file).metadata
    assert metadata.classes == ("circle", "square", "triangle")
    assert metadata.options == DetectionOptions(min_score=0.3, top_k=50)
    assert metadata.precision == precision


def test_int8_is_smaller_and_finds_nearly_the_same(exported):
    small, large = ((exported / f"{name}.bin").stat().st_size for name in ("int8", "float"))
    assert small < large / 2
    pictures = torch.randint(0, 256, (3, 3, 300, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    its, ours = load(exported / "int8.xml")(pictures), load(exported / "float.xml")(pictures)
    best = ours[2][:, :10]
    assert not torch.equal(its[2], ours[2])
    assert (its[2][:, :10] - best).abs().max() < 0.1


def test_only_standard_operators(exported):
    import onnx

    model = onnx.load(exported / "float.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions


def test_errors(exported, tmp_path):
    for suffix in (".onnx", ".xml"):
        (tmp_path / f"broken{suffix}").write_bytes(b"none")
        with pytest.raises(ValueError, match="broken"):
            load(tmp_path / f"broken{suffix}")
    with pytest.raises(ValueError, match="int8 is for openvino, not for onnx"):
        export(exported / "best.pt", tmp_path / "a.onnx", "onnx", int8=tmp_path)
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        export(exported / "best.pt", tmp_path / "a.onnx", "onnx", DetectionOptions(top_k=0))
