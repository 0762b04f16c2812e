"""One decorator makes an op of a plain-PyTorch function: schema, fallback, fake kernel, gradient policy.

The plain function is the kernel of every device that has none of its own; the libraries of csrc/ add kernels for CPU
and CUDA. The dispatcher picks: there is no `if device` anywhere. The CPU library defines the schemas of its ops, so
that it is of use without Python; where it is not loaded, they are defined here, and where it is, they are compared.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace
from typing import Any, Literal, Protocol, TypeVar, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel, infer_schema, register_autograd, register_fake

from ssd_ext._load import is_defined

_LIB = Library("ssd_ext", "FRAGMENT")

_Plain = TypeVar("_Plain", bound=Callable[..., Any])  # any arguments and results: those of the op

#: The arguments of an op in the schema's order. Any: tensors, numbers and strings, in an order that each op knows.
Arguments = tuple[Any, ...]


class Context(Protocol):
    """What autograd hands to `save` and to `backward` of an op: the one keeps here what the other reads."""

    saved_tensors: tuple[Tensor, ...]
    rest: Arguments

    def save_for_backward(self, *tensors: Tensor) -> None: ...


#: op name -> schema.
SCHEMAS: dict[str, str] = {}

#: The ops in plain PyTorch, with the arguments of their schemas, whatever kernels there are: `plain.box_iou(a, b)`.
plain = SimpleNamespace()


def op(
    *,
    fake: Callable[..., Tensor | tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor | None, ...] | None] | None = None,
    save: Callable[[Context, Arguments, Any], None] | None = None,  # Any: a tensor or a tuple of them, by the op
) -> Callable[[_Plain], _Plain]:
    """Decorates `<name>_plain(...)`, typed in full: defines the op `torch.ops.ssd_ext.<name>` with that fallback.

    A library that has defined it already must have done so with the same schema: BrokenLibrary otherwise.

    A named tuple among the parameters stands for its fields, one argument of the schema each.

    Gradient policy: an op with a `backward` is differentiable once, in closed form; every other op is registered as not
    differentiable, so that its outputs never claim to require a gradient that they cannot give.

    Args:
        fake: takes what the function takes, returns empty outputs of the right shapes and dtypes.
        backward: takes ctx and the gradients of the outputs; returns a gradient or None for each argument.
        save: takes ctx, inputs and output, and keeps what `backward` reads; by default `save_inputs`.
    """

    def define(function: _Plain) -> _Plain:
        name = function.__name__.removesuffix("_plain")
        flat = _flat(function, function)
        # Kernels read plain integers: a size that is traced as a symbol becomes a number.
        schema = infer_schema(flat, mutates_args=(), op_name=name).replace("SymInt", "int")
        SCHEMAS[name] = schema
        setattr(plain, name, flat)
        qualified = f"ssd_ext::{name}"
        if not is_defined(name, schema):
            _LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        register_fake(qualified, _flat(fake, function), lib=_LIB)
        # Below a fallthrough, autograd would still record the fallback's own operations.
        _LIB.impl(name, flat if backward else torch.no_grad()(flat), "CompositeExplicitAutograd")
        if backward is None:
            _LIB.impl(name, fallthrough_kernel, "Autograd")
        else:
            register_autograd(qualified, backward, setup_context=save or save_inputs, lib=_LIB)
        return function

    return define


def save_inputs(ctx: Context, inputs: Arguments, output: object) -> None:
    """Tensors through save_for_backward, numbers and strings as `ctx.rest`, both in the schema's order."""
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.rest = tuple(x for x in inputs if not isinstance(x, Tensor))


def _flat(function: Callable[..., Any], typed: Callable[..., Any]) -> Callable[..., Any]:
    """The function, taking one by one the fields of every parameter that `typed` declares as a named tuple.

    Arguments that equal their defaults may be missing at the end: the dispatcher leaves them out.
    """
    hints = get_type_hints(typed)
    result = hints.pop("return")
    tuples = [hint if hasattr(hint, "_fields") else None for hint in hints.values()]
    if not any(tuples):
        return function
    types: dict[str, Any] = {}
    for (name, hint), fields in zip(hints.items(), tuples, strict=True):
        types |= get_type_hints(fields) if fields else {name: hint}
    defaults = {name: p.default for name, p in inspect.signature(typed).parameters.items()}

    @functools.wraps(function)
    def flat(*args: Any) -> Any:
        rest = iter(args)
        whole = [
            fields(*islice(rest, len(fields._fields))) if fields else next(rest, defaults[name])
            for name, fields in zip(hints, tuples, strict=True)
        ]
        return function(*whole)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(
            name,
            kind,
            default=defaults.get(name, inspect.Parameter.empty),
            annotation=str if get_origin(hint) is Literal else hint,
        )
        for name, hint in types.items()
    ]
    signature = inspect.Signature(parameters, return_annotation=result)
    flat.__signature__ = signature  # type: ignore[attr-defined]  # what inspect reads; functions do not declare it
    return flat
