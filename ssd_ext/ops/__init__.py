"""One file per op, or per pair of ops that are one kernel: the public function, then what the dispatcher needs.

Boxes are `xyxy` = (xmin, ymin, xmax, ymax) or `cxcywh` = centre and size, in one unit; for SSD fractions of the image.
Every op takes float16, bfloat16, float32 and float64 (boxes: integers too), non-contiguous tensors and empty ones,
never modifies its inputs, and gives the same bits from run to run and on every backend unless it says otherwise.
Half precision and integers are computed in float32.

In plain PyTorch formulas are written as single + - * / max min steps (no addcmul, no lerp, no add with alpha): a kernel
that takes the same steps in the same order has to return the same bits.
"""
