"""The decorator that makes a plain-PyTorch function an op: schema, fallback, fake kernel, gradient policy.

The plain function is the kernel of every device that has no kernel of its own; the libraries of csrc/ add kernels for
CPU and CUDA. The dispatcher picks the kernel: there is no `if device` anywhere. The CPU library defines the schemas of
its ops, so that it can be used without Python. If it is loaded, its schemas are compared with those of the plain
functions. If it is not loaded, the schemas are defined here.
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
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.library import (
    Library,
    fallthrough_kernel,
    infer_schema,
    register_autograd,
    register_fake,
    register_torch_dispatch,
)

from ssd_ext import _onnx
from ssd_ext._load import is_defined

_LIB = Library("ssd_ext", "FRAGMENT")

_Plain = TypeVar("_Plain", bound=Callable[..., Any])  # Any: arguments and results differ between ops

#: The arguments of an op in the schema's order. Any: tensors, numbers and strings, in an order that each op knows.
Arguments = tuple[Any, ...]


class Context(Protocol):
    """What autograd passes to `save` and to `backward` of an op: `save` stores here what `backward` reads."""

    saved_tensors: tuple[Tensor, ...]
    rest: Arguments

    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...


#: op name -> schema.
SCHEMAS: dict[str, str] = {}

#: The ops in plain PyTorch, even where a kernel exists, with the arguments of their schemas: `plain.box_iou(a, b)`.
plain = SimpleNamespace()

#: op name -> the op as a function of autograd; see `call`.
_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {}

#: op name -> function that takes its place while torch.onnx exports a model.
_IN_ONNX: dict[str, Callable[..., Any]] = {}  # Any: see _Plain


def op(
    *,
    fake: Callable[..., Tensor | tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor | None, ...] | None] | None = None,
    save: Callable[[Context, Arguments, Any], None] | None = None,  # Any: one tensor or a tuple of tensors
    onnx: Callable[..., Tensor | tuple[Tensor, ...]] | Literal["plain"] | None = None,
) -> Callable[[_Plain], _Plain]:
    """Decorates `<name>_plain(...)`: defines the op `torch.ops.ssd_ext.<name>` with that function as its fallback.

    All parameters and the result need type annotations: the schema is made from them. A parameter that is a named tuple
    becomes one argument of the schema for each of its fields. If a library has defined the op already, both schemas
    must be equal.

    Gradient policy: an op with a `backward` is differentiable once, in closed form. Every other op is registered as not
    differentiable, so that its outputs never require a gradient.

    Args:
        fake: takes the arguments of the function; returns empty outputs of the right shapes and dtypes.
        backward: takes ctx and the gradients of the outputs; returns a gradient or None for each argument.
        save: takes ctx, inputs and output, and stores in ctx what `backward` reads; by default `save_inputs`.
        onnx: takes the arguments of the function and has its results; consists of operators that torch.onnx exports.
            "plain": the function itself is such a function. None: the op cannot be exported to ONNX.

    Raises:
        BrokenLibrary: a library has defined the op with another schema.
    """

    def define(function: _Plain) -> _Plain:
        name = function.__name__.removesuffix("_plain")
        flat = _flat(function, function)
        # Kernels take plain integers, so tracing an op fixes every symbolic size among its arguments to a number.
        schema = infer_schema(flat, mutates_args=(), op_name=name).replace("SymInt", "int")
        SCHEMAS[name] = schema
        setattr(plain, name, flat)
        qualified = f"ssd_ext::{name}"
        if not is_defined(name, schema):
            _LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        register_fake(qualified, _flat(fake, function), lib=_LIB)
        # no_grad, because a fallthrough alone would let autograd record the operations inside the fallback.
        _LIB.impl(name, flat if backward else torch.no_grad()(flat), "CompositeExplicitAutograd")
        if backward is None:
            _LIB.impl(name, fallthrough_kernel, "Autograd")
        else:
            register_autograd(qualified, backward, setup_context=save or save_inputs, lib=_LIB)
            _FUNCTIONS[name] = _function_of(name, backward, save or save_inputs)
        if onnx:
            _IN_ONNX[name] = flat if onnx == "plain" else _flat(onnx, function)
            register_torch_dispatch(qualified, ProxyTorchDispatchMode, _trace, lib=_LIB)
        return function

    return define


def call(name: str, *args: Any) -> Any:  # Any: see Arguments and _Plain
    """Calls `torch.ops.ssd_ext.<name>`, or what takes its place when TorchScript traces a model for torch.onnx.

    All arguments of the schema must be given. Autograd records the same whether it meets the op or its function. Only
    the op can become part of a graph, but what `register_autograd` puts around an op takes much longer than a function
    of autograd: 40 of 210 us for the loss of one image.
    """
    if torch.jit.is_tracing():
        if _onnx.is_exporting():
            return _IN_ONNX[name](*args)
    elif (
        name in _FUNCTIONS
        and torch.is_grad_enabled()
        and any(isinstance(x, Tensor) and x.requires_grad for x in args)
        and not torch.compiler.is_compiling()
    ):
        return _FUNCTIONS[name].apply(*args)
    return getattr(torch.ops.ssd_ext, name)(*args)


def _function_of(
    name: str, backward: Callable[..., Any], save: Callable[[Context, Arguments, Any], None]
) -> type[torch.autograd.Function]:
    """The op as a function of autograd. Arguments: see `op`."""

    # Without setup_context, for which autograd binds the arguments to the signature: 60 us for the loss.
    def forward(ctx: Context, *args: Any) -> Any:
        output = getattr(torch.ops.ssd_ext, name)(*args)
        save(ctx, args, output)
        return output

    parts = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), parts)


def _trace(
    mode: ProxyTorchDispatchMode,
    op: torch._ops.OpOverload,
    types: tuple[type, ...],
    args: Arguments,
    kwargs: dict[str, Any] | None = None,  # Any: see Arguments
) -> Any:  # Any: see _Plain
    """Traces an op into a graph, or what takes its place when the exporter with dynamo=True translates a graph to ONNX.

    At this point the graph of torch.export exists already, so the op is still an op in files of torch.export.
    """
    if not _onnx.is_exporting():
        return mode.__torch_dispatch__(op, types, args, kwargs or {})
    with mode:
        return _IN_ONNX[op._opname](*args, **(kwargs or {}))


def save_inputs(ctx: Context, inputs: Arguments, output: object) -> None:
    """Saves tensors with save_for_backward, and numbers and strings as `ctx.rest`, both in the schema's order."""
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.rest = tuple(x for x in inputs if not isinstance(x, Tensor))


def _flat(function: Callable[..., Any], typed: Callable[..., Any]) -> Callable[..., Any]:
    """The function with flat arguments: one for each field of every parameter that `typed` declares as a named tuple.

    Arguments at the end may be missing if they equal their defaults: the dispatcher leaves them out.
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
    flat.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it, but function types do not declare it
    return flat
