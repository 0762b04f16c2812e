"""The format ONNX: the network and the detection as standard operators, for ONNX Runtime and others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssd.export.program import DetectionProgram, Metadata
from ssd_ext._boxes import rounded_down

if TYPE_CHECKING:
    from onnxscript.ir import Value  # a tensor of the graph
else:
    Value = Any  # torch evaluates the annotations of `detection`, and onnxscript is slow to import

METADATA = "ssd"  # key of the metadata in the file
OUTPUTS = ["boxes", "labels", "scores", "counts"]
OPSET = 18


def save(program: DetectionProgram, path: Path, metadata: Metadata) -> None:
    """Writes an ONNX model for any number of pictures."""
    trace(program, metadata).save(path)


def trace(program: DetectionProgram, metadata: Metadata) -> torch.onnx.ONNXProgram:
    """Converts the program to ONNX, with its metadata.

    Raises:
        ValueError: top_k is 0.
    """
    if program.options.top_k < 1:
        raise ValueError(f"top_k must be at least 1 for ONNX, got {program.options.top_k}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporter, which a user cannot act on
        traced = torch.onnx.export(
            program,
            (program.example(metadata.input_dtype),),
            input_names=["images"],
            output_names=OUTPUTS,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            custom_translation_table={torch.ops.ssd_ext.postprocess_detections.default: detection},
            verbose=False,
        )
    traced.model.metadata_props[METADATA] = metadata.to_json()
    return traced


def load(path: Path) -> tuple[Callable[[Tensor], list[Tensor]], Metadata]:
    """Loads a file into ONNX Runtime on the CPU, with as many threads as torch has.

    Returns:
        A function that takes images and returns boxes, labels, scores and counts; and the metadata.

    Raises:
        ValueError: the file was not written by this package.
    """
    import onnxruntime

    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, how, providers=["CPUExecutionProvider"])
        metadata = Metadata.from_json(session.get_modelmeta().custom_metadata_map.get(METADATA, ""))
    except Exception as error:  # onnxruntime has its own classes of errors
        raise ValueError(f"{path}: cannot be loaded: {str(error).splitlines()[0][:200]}") from error

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x) for x in session.run(OUTPUTS, {"images": images.numpy(force=True)})]

    return run, metadata


def detection(
    pred_offsets: Value,
    pred_logits: Value,
    priors_cxcywh: Value,
    min_score: float,
    max_overlap: float,
    top_k: int,
    pre_nms_top_k: int | None,
    center_variance: float,
    size_variance: float,
    score: str,
    clip: bool,
    max_log_scale: float | None = None,
) -> tuple[Value, Value, Value, Value]:
    """Builds `ssd_ext.postprocess_detections` from ONNX operators.

    The result is as exact as that of the op, and there are no additional limits. NonMaxSuppression keeps scores > its
    threshold, drops IoUs > its threshold, and takes the lowest index first if scores are equal. It stops after top_k
    detections of a class. This loses nothing, since an image has at most top_k detections, and it keeps the operator
    fast with thousands of candidates.

    Args:
        pred_offsets, pred_logits, priors_cxcywh: tensors of the graph, see `ssd_ext.postprocess_detections`.
        min_score, max_overlap, top_k, pre_nms_top_k, center_variance, size_variance, score, clip, max_log_scale: see
            `ssd_ext.DetectionOptions`.

    Returns:
        Boxes, labels, scores and counts, as tensors of the graph.
    """
    from onnxscript import opset18 as op

    def number(x: float) -> Value:
        return op.Constant(value_float=x)

    def ints(*x: int) -> Value:
        return op.Constant(value_ints=list(x))

    def part(value: Value, first: int, end: int, axis: int) -> Value:
        return op.Slice(value, ints(first), ints(end), ints(axis))

    n_priors, n_classes = pred_logits.shape[1:]
    scores = op.Sigmoid(pred_logits) if score == "sigmoid" else op.Softmax(pred_logits, axis=-1)
    scores = part(op.Transpose(scores, perm=[0, 2, 1]), 1, n_classes, axis=1)  # (B, C - 1, P)
    if pre_nms_top_k is not None:
        scores = op.Where(op.Greater(scores, number(min_score)), scores, number(-1.0))  # no NaN
        best, prior = op.TopK(scores, ints(min(pre_nms_top_k, n_priors)))
        scores = op.ScatterElements(op.Expand(number(-1.0), op.Shape(scores)), prior, best, axis=2)

    shift, log_scale = (part(pred_offsets, i, i + 2, axis=2) for i in (0, 2))
    prior_centre, prior_size = (part(priors_cxcywh, i, i + 2, axis=1) for i in (0, 2))
    log_scale = op.Mul(log_scale, number(size_variance))
    if max_log_scale is not None:
        log_scale = op.Min(log_scale, number(max_log_scale))
    centre = op.Add(op.Mul(shift, op.Mul(prior_size, number(center_variance))), prior_centre)
    half = op.Mul(op.Mul(op.Exp(log_scale), prior_size), number(0.5))
    boxes = op.Concat(op.Sub(centre, half), op.Add(centre, half), axis=2)  # (B, P, 4)
    if clip:
        boxes = op.Clip(boxes, number(0.0), number(1.0))

    overlap = number(rounded_down(max_overlap, torch.float32))
    kept = op.NonMaxSuppression(boxes, scores, ints(top_k), overlap, number(min_score))  # (n, 3) image, class, prior
    left = op.ScatterND(op.Expand(number(-1.0), op.Shape(scores)), kept, op.GatherND(scores, kept))
    scores, at = op.TopK(op.Flatten(left, axis=1), ints(top_k))  # ties: the lowest class, then the lowest prior
    found = op.GreaterOrEqual(scores, number(0.0))
    boxes = op.GatherND(boxes, op.Unsqueeze(op.Mod(at, ints(n_priors)), ints(2)), batch_dims=1)
    boxes = op.Where(op.Unsqueeze(found, ints(2)), boxes, number(0.0))
    labels = op.Where(found, op.Add(op.Div(at, ints(n_priors)), ints(1)), ints(0))
    counts = op.ReduceSum(op.Cast(found, to=6), ints(1), keepdims=0)  # 6: int32
    return boxes, labels, op.Where(found, scores, number(0.0)), counts
