"""Checks of arguments: each raises a ValueError that names the argument and the value it got."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cache
from types import NoneType
from typing import Any, Literal, NamedTuple, Protocol, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.forward_ad import unpack_dual
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def is_floating(tensor: Tensor) -> bool:
    """Whether the dtype is floating and kernels accept it: they accept no 8-bit floats."""
    return tensor.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_boxes(name: str, boxes: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not (is_floating(boxes) or is_integer(boxes)):
        raise ValueError(f"{name} must be (n, 4) floating or integer, got {describe(boxes)}")


def check_predictions(pred_offsets: Tensor, pred_logits: Tensor, priors_cxcywh: Tensor) -> None:
    check_boxes("priors_cxcywh", priors_cxcywh)
    if pred_logits.dim() != 3 or not is_floating(pred_logits) or pred_logits.shape[2] < 1:
        raise ValueError(f"pred_logits must be (B, P, C) floating with C >= 1, got {describe(pred_logits)}")
    expected = (*pred_logits.shape[:2], 4)
    if tuple(pred_offsets.shape) != expected or not is_floating(pred_offsets):
        raise ValueError(f"pred_offsets must be {expected} floating to match pred_logits, got {describe(pred_offsets)}")
    if pred_logits.shape[1] != len(priors_cxcywh):
        raise ValueError(f"pred_logits has {pred_logits.shape[1]} priors, priors_cxcywh has {len(priors_cxcywh)}")


def check_devices(**tensors: Tensor) -> None:
    """Checks that all tensors are on one device (ValueError), and that none has a tangent (RuntimeError).

    Without this check, a tangent would be dropped silently.
    """
    first = next(iter(tensors))
    device = tensors[first].device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, {first} is on {device}")
        if not torch.compiler.is_compiling() and unpack_dual(tensor).tangent is not None:
            raise RuntimeError(f"{name} has a tangent: forward-mode differentiation is not supported")


def values_can_be_read(tensor: Tensor, check: bool = False) -> bool:
    """Whether the values may be read to check them: on the CPU always, on other devices only with `check`.

    Reading from another device copies the values to the host. The values of fake tensors are never read, and while a
    graph is traced, no values are read.
    """
    if tensor.device.type != "cpu" and not check:
        return False
    return not (torch.compiler.is_compiling() or is_fake(tensor) or get_proxy_mode() is not None)


def check_row_splits(
    row_splits: Tensor, n_boxes: int, batch: int | None = None, check: bool = False
) -> list[int] | None:
    """Checks row splits and returns their values, or None if they may not be read."""
    rows = "B + 1" if batch is None else batch + 1
    n = len(row_splits) if row_splits.dim() == 1 else 0
    if n < 1 or row_splits.dtype != torch.int32 or (batch is not None and n != batch + 1):
        raise ValueError(f"row_splits must be ({rows},) int32, got {describe(row_splits)}")
    if not values_can_be_read(row_splits, check):
        return None
    values: list[int] = row_splits.tolist()
    if values[0] != 0 or values[-1] > n_boxes or values != sorted(values):
        raise ValueError(f"row_splits must rise from 0 to at most {n_boxes} (the number of boxes), got {values}")
    return values


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def not_negative(value: float) -> None:
    """Raises ValueError unless the value is at least 0."""
    if not value >= 0:  # NaN is not
        raise ValueError(f"must be >= 0, got {value}")


def from_0_to_1(value: float) -> None:
    """Raises ValueError unless the value is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"must be from 0 to 1, got {value}")


def check_value(name: str, value: Any, *checks: Callable[[Any], object]) -> None:  # a check knows the type
    """Calls checks that raise ValueError, and puts the name before their message."""
    try:
        for check in checks:
            check(value)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def check_not_negative(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None:
            check_value(name, value, not_negative)


def check_log_scale(max_log_scale: float | None) -> None:
    if max_log_scale is not None and max_log_scale != max_log_scale:
        raise ValueError(f"max_log_scale must be a number or None, got {max_log_scale}")


def check_variances(center_variance: float, size_variance: float) -> None:
    if not (center_variance > 0 and size_variance > 0):
        raise ValueError(f"variances must be positive, got {center_variance} (centre) and {size_variance} (size)")


class Options(Protocol):
    """The fields that the named tuples of options have in common."""

    @property
    def center_variance(self) -> float: ...

    @property
    def size_variance(self) -> float: ...


def choices_of(options: type[NamedTuple]) -> dict[str, tuple[str, ...]]:
    """Field name -> allowed values, for every field whose type is a Literal."""
    hints = get_type_hints(options)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


def check_names(options: Iterable[str], known: Collection[str]) -> None:
    """Raises TypeError if a name is not one of the known options, which the message lists."""
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(f"no option {', '.join(unknown)}; there are {', '.join(known)}")


@cache  # reading annotations takes longer than detection in one image
def _rules(options: type[NamedTuple]) -> list[tuple[str, bool, tuple[str, ...], list[Callable[[Any], object]]]]:
    """For every field: name, whether None is allowed, choices if it has them, and the checks in its annotation."""
    choices = choices_of(options)
    rules = []
    for name, hint in get_type_hints(options, include_extras=True).items():
        kind, *notes = get_args(hint)
        rules.append((name, NoneType in get_args(kind), choices.get(name, ()), list(filter(callable, notes))))
    return rules


def check_fields(options: NamedTuple) -> None:
    """Checks what users set: the choices, and each field by the functions in its annotation.

    The ops only check what they cannot compute with, see `check_options`.
    """
    for name, optional, choices, checks in _rules(type(options)):
        value = getattr(options, name)
        if value is None:
            if not optional:
                raise ValueError(f"{name} must not be None")
            continue
        if choices:
            check_choice(name, value, choices)
        check_value(name, value, *checks)


def check_options(options: Options, choices: dict[str, tuple[str, ...]], *not_negative: str) -> None:
    """Checks the choices (see `choices_of`), the variances, and that no field in `not_negative` is negative."""
    for name, allowed in choices.items():
        check_choice(name, getattr(options, name), allowed)
    check_not_negative(**{name: getattr(options, name) for name in not_negative})
    check_variances(options.center_variance, options.size_variance)
