"""Ops exported by torch.onnx: ONNX Runtime returns what the op returns, for other numbers of rows too."""

import adversarial as adv
import pytest
import torch
from compare import as_tuple
from torch import nn
from torch.export import Dim

import ssd_ext
from ops.postprocess_detections import inputs
from ssd_ext import DetectionOptions, _onnx

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"no {package}: pip install 'ssd-ext[onnx]'")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402

# With "torch.export", a program of torch.export is translated, such as one that was read from a .pt2 file.
EXPORTERS = pytest.mark.parametrize("exporter", ["TorchScript", "dynamo", "torch.export"])
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Call(nn.Module):
    def __init__(self, function, rest=()):
        super().__init__()
        self.function, self.rest = function, rest

    def forward(self, *tensors):
        return self.function(*tensors, *self.rest)


def to_onnx(module, tensors, exporter, path):
    """Exports the module for any number of rows; returns a function that runs it in ONNX Runtime."""
    names = [f"in{i}" for i in range(len(tensors))]
    if exporter == "TorchScript":
        axes = {name: {0: f"rows{name}"} for name in names}
        torch.onnx.export(module, tensors, path, dynamo=False, input_names=names, dynamic_axes=axes, opset_version=16)
    else:
        program, shapes = module, (({0: Dim.DYNAMIC},) * len(tensors),)
        if exporter == "torch.export":
            program = torch.export.export(module, tensors, dynamic_shapes=shapes)
            tensors, shapes = (), None
        torch.onnx.export(program, tensors, path, dynamo=True, input_names=names, dynamic_shapes=shapes, verbose=False)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*tensors):
        found = session.run(None, {name: x.numpy() for name, x in zip(names, tensors, strict=True)})
        return tuple(map(torch.from_numpy, found))

    return run


def scores(n, seed):
    """Many are equal."""
    return torch.randint(-3, 4, (n,), generator=adv.generator(seed)) / 4


def ids(n, seed):
    return torch.randint(4, (n,), generator=adv.generator(seed)) * 7 - 10


def boxes(n, seed):
    """As on a grid, where IoUs equal thresholds, and all that are none."""
    both = torch.cat([adv.grid_boxes(n, seed, cells=4), adv.hostile_boxes(n, seed)])
    return both[torch.randperm(2 * n, generator=adv.generator(seed))[:n]]


CALLS = {
    # name: function, (number of rows, seed) -> tensors, other arguments, whether it has exp or log
    "nms": (ssd_ext.nms, lambda n, i: (boxes(n, i), scores(n, i)), (0.5,), False),
    "nms in half precision": (
        ssd_ext.nms,
        lambda n, i: (adv.grid_boxes(n, i).half(), scores(n, i).half()),
        (0.3,),
        False,
    ),
    "nms with scores in float64": (
        ssd_ext.nms,
        lambda n, i: (boxes(n, i), 1 + scores(n, i).double() * 1e-12),
        (0.0,),
        False,
    ),
    "batched_nms": (
        ssd_ext.batched_nms,
        lambda n, i: (adv.random_boxes(n, i) + 1e3, scores(n, i), ids(n, i) * 2**40),
        (0.3,),
        False,
    ),
    "batched_nms with int32 groups": (
        ssd_ext.batched_nms,
        lambda n, i: (boxes(n, i), scores(n, i), ids(n, i).int()),
        (0.25,),
        False,
    ),
    "batched_nms with floating groups": (
        ssd_ext.batched_nms,
        lambda n, i: (boxes(n, i), scores(n, i), ids(n, i) / 4),
        (0.5,),
        False,
    ),
    "box_iou": (ssd_ext.box_iou, lambda n, i: (boxes(n, i), adv.hostile_boxes(n // 2, i)), (), False),
    "box_iou of centres and sizes": (
        ssd_ext.box_iou,
        lambda n, i: (adv.random_boxes(n, i), adv.random_boxes(n // 2, i + 1)),
        ("cxcywh",),
        False,
    ),
    "encode_boxes": (
        ssd_ext.encode_boxes,
        lambda n, i: (adv.random_boxes(n, i), adv.to_cxcywh(adv.random_boxes(n, i + 1))),
        (),
        True,
    ),
    "decode_boxes": (
        ssd_ext.decode_boxes,
        lambda n, i: (torch.randn(n, 4, generator=adv.generator(i)), adv.to_cxcywh(adv.random_boxes(n, i))),
        (0.1, 0.2, 0.3),
        True,
    ),
}


@EXPORTERS
@pytest.mark.parametrize("name", CALLS)
def test_equals_the_op(name, exporter, tmp_path):
    function, make, rest, rounded = CALLS[name]
    run = to_onnx(Call(function, rest), make(40, 0), exporter, tmp_path / "op.onnx")
    for seed, n in enumerate((40, 0, 1, 7, 100, 300)):
        tensors = make(n, seed)
        (found,), expected = run(*tensors), function(*tensors, *rest)
        if rounded:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(found, expected)


@EXPORTERS
@pytest.mark.parametrize(
    "options",
    [
        DetectionOptions(0.1, top_k=9),
        DetectionOptions(0.2, top_k=500),
        DetectionOptions(0.1, 0.3, 20, pre_nms_top_k=3, score="sigmoid", clip=True, max_log_scale=0.2),
    ],
    ids=str,
)
def test_detections(options, exporter, tmp_path):
    """`tests/export/test_onnx_openvino.py` looks closer at those of the exporter with dynamo=True."""
    priors = inputs(1, 60, 4, 0, "separated")[2]
    module = Call(lambda offsets, logits: ssd_ext.postprocess_detections(offsets, logits, priors, options))
    run = to_onnx(module, inputs(2, 60, 4, 1, "separated")[:2], exporter, tmp_path / "op.onnx")
    for seed, n_images in enumerate((2, 1, 5)):
        tensors = inputs(n_images, 60, 4, seed, "separated")[:2]
        found, expected = run(*tensors), as_tuple(module(*tensors))
        assert expected[3].min() > 2
        assert [x.dtype for x in found] == [x.dtype for x in expected]
        assert torch.equal(found[1], expected[1])
        assert torch.equal(found[3], expected[3])
        for x, y in ((found[0], expected[0]), (found[2], expected[2])):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@EXPORTERS
def test_a_negative_threshold_is_refused(exporter, tmp_path):
    tensors = adv.random_boxes(3), torch.rand(3)
    with pytest.raises(Exception, match=r"IoU threshold must be at least 0 for ONNX, got -0\.5"):
        to_onnx(Call(ssd_ext.nms, (-0.5,)), tensors, exporter, tmp_path / "op.onnx")


def test_torch_export_keeps_the_op_before_and_after_an_export_to_onnx(tmp_path):
    tensors = adv.random_boxes(9), torch.rand(9)
    for _ in range(2):
        program = torch.export.export(Call(ssd_ext.nms, (0.5,)), tensors)
        assert "ssd_ext.nms.default" in str(program.run_decompositions().graph)
        to_onnx(Call(ssd_ext.nms, (0.5,)), tensors, "dynamo", tmp_path / "op.onnx")
    assert not _onnx.is_exporting()


@pytest.mark.parametrize("most", [0, 2, 2**63 - 1])
def test_the_operator_does_what_onnx_runtime_does(most, tmp_path):
    """It runs while TorchScript traces a model."""

    def call(boxes, scores):
        return _onnx.non_max_suppression(boxes, scores, 0.3, 0.25, most)

    tensors = torch.stack([adv.grid_boxes(30, i, cells=4) for i in range(3)]), scores(180, 0).view(3, 2, 30)
    (found,) = to_onnx(Call(call), tensors, "TorchScript", tmp_path / "op.onnx")(*tensors)
    expected = call(*tensors)
    assert len(expected) == (most if most < 3 else 0) * 6 or len(expected) > 12
    assert torch.equal(found, expected)


def test_torch_jit_trace_keeps_the_ops():
    for name in ("nms", "batched_nms with floating groups", "box_iou", "decode_boxes"):
        function, make, rest, _ = CALLS[name]
        traced = torch.jit.trace(Call(function, rest), make(40, 0))
        assert f"ssd_ext::{function.__name__}" in str(traced.inlined_graph)
        for seed, n in enumerate((40, 7)):
            assert torch.equal(traced(*make(n, seed)), function(*make(n, seed), *rest))
