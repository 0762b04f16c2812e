"""What the tests know of every op, in the file of its name: a slow oracle, a sample, cases, the hash of its bits.

A new op needs a file here: all generic suites go over `OPS`.
What is drawn of it at random stands in kernels/test_fuzz.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NamedTuple


class Op(NamedTuple):
    """One op.

    Attributes:
        name: torch.ops.ssd_ext.<name>.
        cases: arguments of the op, on the CPU: what all kernels are compared on.
        full_size: (objects of each image, priors, boxes) -> arguments without NaN, in sizes that share out work.
        golden: hash of the results for all cases, see golden.py.
        sample: arguments of the public function of this name, tensors first; None where there is none.
        oracle: takes the arguments of the op; None where test_<name>.py compares with an oracle in its own way.
        differentiable: which arguments.
        has_exp_or_log: kernels agree to the bit, but with plain PyTorch to a rounding only.
        only_float32: float64 is converted.
        data_dependent: the size of the result depends on the data.
    """

    name: str
    cases: Callable[[], Iterator[tuple]]
    full_size: Callable[[tuple[int, ...], int, int], tuple]
    golden: str
    sample: Callable[[], tuple] | None
    oracle: Callable[..., Any] | None = None
    differentiable: tuple[int, ...] = ()
    has_exp_or_log: bool = False
    only_float32: bool = False
    data_dependent: bool = False


class Undecided(tuple):
    """Arguments with which a rounding decides what comes first: kernels are compared with each other only."""


_MODULES = [
    import_module(f"{__name__}.{module.name}")
    for module in iter_modules(__path__)
    if not module.name.startswith("test_")
]

#: name -> op, of all files of this folder but those of tests.
OPS: dict[str, Op] = {op.name: op for module in _MODULES for op in module.OPS}
