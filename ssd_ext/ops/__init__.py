"""One file per op, or per pair of ops that share a kernel: the public function, then what the dispatcher needs.

Boxes are `xyxy` = (xmin, ymin, xmax, ymax) or `cxcywh` = (centre x, centre y, width, height). All boxes of a call are
in one unit; SSD uses fractions of the image. Every op takes float16, bfloat16, float32 and float64 (for boxes also
integers). Tensors may be non-contiguous or empty. An op never modifies its inputs, and gives the same bits on every run
and on every backend unless its docstring says otherwise. Half precision and integers are computed in float32.

In plain PyTorch, formulas are written as single + - * / max min steps (no addcmul, no lerp, no add with alpha), so that
a kernel with the same steps in the same order returns the same bits.
"""
