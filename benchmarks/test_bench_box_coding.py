"""Encoding and decoding of a batch; torchvision's `BoxCoder` works on one image at a time.

.venv/bin/python -m pytest benchmarks -k decode_boxes-32
"""

import peers
import torch
import tutorial
from harness import Case, close, each, ours
from inputs import PRIORS, PRIORS_XYXY, VARIANCES, Inputs, P, generator, random_boxes


def coding(op: str, images: int) -> Case:
    encode = op == "encode_boxes"
    options = VARIANCES if encode else (*VARIANCES, None)
    single = peers.CODER.encode_single if encode else peers.CODER.decode_single
    loop = tutorial.encode if encode else tutorial.decode

    def inputs():
        values = random_boxes(images * P, 3) if encode else torch.randn(images * P, 4, generator=generator(4))
        return Inputs(values.view(images, P, 4), priors_cxcywh=PRIORS, priors_xyxy=PRIORS_XYXY)

    def by(code):
        return lambda x: code(x.boxes, x.priors_cxcywh, *options)

    contenders = {
        **ours(op, by),
        "torchvision": lambda x: torch.stack([single(v, x.priors_xyxy) for v in x.boxes]),
        "tutorial": lambda x: torch.stack([loop(v, x.priors_cxcywh) for v in x.boxes]),
    }
    # The tolerance: torchvision computes centres and sizes from the corners of the priors.
    return Case("ops", op, {"images": images}, inputs, contenders, close(1e-3), graphs=("ssd_ext", "plain_pytorch"))


BOTH = ("encode_boxes", "decode_boxes")
CHARTS = [coding(op, images) for op in BOTH for images in (1, 2, 4, 8, 16)]
test_op = each([coding(op, 32) for op in BOTH], charts=CHARTS)
