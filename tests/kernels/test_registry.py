"""What every op owes to PyTorch: schema, fake kernel, gradient policy, compilation, export. All ops, in one place."""

from unittest.mock import patch

import adversarial as adv
import pytest
import torch
from compare import as_tuple
from ops import OPS
from own_process import printed_by
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.testing import assert_close

import ssd_ext
from ssd_ext import _op
from ssd_ext._op import SCHEMAS, plain

PUBLIC = [name for name, op in OPS.items() if op.sample]


def call(name, device):
    """The public function and the sample of its arguments."""
    args = OPS[name].sample()
    return getattr(ssd_ext, name), tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in args)


def _raw_calls(name, device):
    """The arguments that the public function hands to torch.ops.ssd_ext.<name>, and what a backward hands on."""
    function, args = call(name, device)
    diff = OPS[name].differentiable
    args = tuple(a.clone().requires_grad_() if i in diff else a for i, a in enumerate(args))
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op.namespace == "ssd_ext":
                seen.append((op, args))
            return op(*args, **(kwargs or {}))

    with Spy():
        output = function(*args)
        if diff:
            sum(x.sum() for x in as_tuple(output) if x.requires_grad).backward()
    return seen


def test_every_op_is_covered():
    assert set(SCHEMAS) == set(OPS)
    assert {op for op in OPS if hasattr(ssd_ext, op)} == set(PUBLIC)


@pytest.mark.parametrize("name", [n for n in PUBLIC if OPS[n].oracle])
def test_equals_the_oracle(name, device):
    """On one sample; test_<op>.py goes further."""
    op, (function, args) = OPS[name], call(name, device)
    flat = [y for x in OPS[name].sample() for y in (x if isinstance(x, tuple) else (x,))]
    expected = as_tuple(op.oracle(*flat))
    close = {"rtol": 1e-5, "atol": 1e-6} if op.has_exp_or_log else {"rtol": 0, "atol": 0}
    for actual in (as_tuple(function(*args)), as_tuple(getattr(plain, name)(*flat))):
        for ours, wanted in zip(actual, expected, strict=False):  # the loss also gives what its backward needs
            assert_close(ours.cpu(), torch.as_tensor(wanted, dtype=ours.dtype), **close)


@pytest.mark.parametrize("name", PUBLIC)
def test_opcheck(name, device):
    calls = _raw_calls(name, device)
    assert calls
    for op, args in calls:
        args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        if op._schema.name == f"ssd_ext::{name}":  # a backward has no gradient of its own
            for i in OPS[name].differentiable:
                args[i].requires_grad_()
        torch.library.opcheck(op, tuple(args))


def test_opcheck_covers_the_backward_of_the_loss():
    assert [op._schema.name for op, _ in _raw_calls("multibox_loss", "cpu")] == [
        "ssd_ext::multibox_loss",
        "ssd_ext::multibox_loss_backward",
    ]


@pytest.mark.parametrize("name", PUBLIC)
def test_compiles_into_one_graph(name, device):
    function, args = call(name, device)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=OPS[name].data_dependent):
        torch._dynamo.reset()
        compiled = torch.compile(lambda *a: function(*a), fullgraph=True, backend="aot_eager")
        for ours, expected in zip(as_tuple(compiled(*args)), as_tuple(function(*args)), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", [n for n in PUBLIC if OPS[n].differentiable])
def test_compiled_gradients(name, device):
    function, args = call(name, device)
    diff = OPS[name].differentiable

    def gradients(f):
        leaves = tuple(a.clone().requires_grad_() if i in diff else a for i, a in enumerate(args))
        sum(x.sum() for x in as_tuple(f(*leaves)) if x.is_floating_point()).backward()
        return [leaves[i].grad for i in diff]

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(gradients(compiled), gradients(function), strict=True):
        assert expected.abs().sum() > 0
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", [n for n in PUBLIC if OPS[n].differentiable])
def test_gradients_do_not_depend_on_the_way_to_the_op(name, device):
    """In eager mode, a function of autograd calls the op. A graph has the op itself."""
    function, args = call(name, device)
    diff = OPS[name].differentiable

    def total(*leaves):
        given = list(args)
        for i, leaf in zip(diff, leaves, strict=True):
            given[i] = leaf
        return sum(x.sum() for x in as_tuple(function(*given)) if x.is_floating_point())

    leaves = [args[i].clone().requires_grad_() for i in diff]
    output = total(*leaves)
    assert _grad_functions(output) >= {f"{name}Backward"}
    eager = torch.autograd.grad(output, leaves)
    with patch.dict(_op._FUNCTIONS, clear=True):
        output = total(*leaves)
        assert not _grad_functions(output) & {f"{name}Backward"}
        by_op = torch.autograd.grad(output, leaves)
    for ours, expected in zip(by_op, eager, strict=True):
        assert expected.abs().sum() > 0
        assert torch.equal(ours, expected)


def _grad_functions(output):
    """The names of all nodes of the graph that autograd recorded for this tensor."""
    names, rest = set(), [output.grad_fn]
    while rest:
        node = rest.pop()
        names.add(node.name())
        rest += [parent for parent, _ in node.next_functions if parent is not None]
    return names


@pytest.mark.parametrize("name", PUBLIC)
def test_exports(name, device):
    function, args = call(name, device)
    tensors = tuple(a for a in args if isinstance(a, torch.Tensor))
    numbers = args[len(tensors) :]

    class Call(nn.Module):
        def forward(self, *tensors):
            return function(*tensors, *numbers)

    program = torch.export.export(Call(), tensors)
    assert f"ssd_ext.{name}.default" in str(program.graph)
    for ours, expected in zip(as_tuple(program.module()(*tensors)), as_tuple(function(*args)), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", PUBLIC)
def test_gradient_policy(name, device):
    function, args = call(name, device)
    diff = OPS[name].differentiable
    args = tuple(
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
    )
    outputs = [x for x in as_tuple(function(*args)) if x.is_floating_point()]
    assert all(x.requires_grad == bool(diff) for x in outputs)
    if diff:
        grads = torch.autograd.grad(sum(x.sum() for x in outputs), [args[i] for i in diff])
        assert all(g.shape == args[i].shape and g.dtype == args[i].dtype for g, i in zip(grads, diff, strict=True))


def test_double_backward_of_the_loss_is_refused(device):
    function, args = call("multibox_loss", device)
    args = (args[0].clone().requires_grad_(), args[1].clone().requires_grad_(), *args[2:])
    conf, loc, _ = function(*args)
    (grad,) = torch.autograd.grad(conf + loc, args[1], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("name", PUBLIC)
def test_same_bits_every_time_and_inputs_untouched(name, device):
    function, args = call(name, device)
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    first, second = (as_tuple(function(*args)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for now, then in zip(args, before, strict=True):
        assert torch.equal(now, then) if isinstance(now, torch.Tensor) else now == then


@pytest.mark.parametrize("name", PUBLIC)
def test_non_contiguous_inputs(name, device):
    function, args = call(name, device)
    sliced = (adv.sliced(x) if isinstance(x, torch.Tensor) else x for x in args)
    for ours, wanted in zip(as_tuple(function(*sliced)), as_tuple(function(*args)), strict=True):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("name", PUBLIC)
def test_fake_tensors_have_the_real_shapes_and_dtypes(name):
    """On the meta device nothing is computed: the fake kernel alone answers."""
    if OPS[name].data_dependent:
        return  # their size depends on the data; test_compiles_into_one_graph covers them
    function, args = call(name, "cpu")
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in args]
    for fake, real in zip(as_tuple(function(*meta)), as_tuple(function(*args)), strict=True):
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("name", PUBLIC)
def test_dtypes_that_no_kernel_computes_with_are_named(name, device):
    """8-bit floats, and complex numbers, whose imaginary part would be lost."""
    function, args = call(name, device)
    for dtype in (torch.complex64, torch.float8_e4m3fn):
        for i, x in enumerate(args):
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                with pytest.raises(ValueError, match=str(dtype).removeprefix("torch.")):
                    function(*args[:i], x.to(dtype), *args[i + 1 :])


@pytest.mark.parametrize("name", PUBLIC)
def test_a_tangent_is_refused_and_not_lost(name, device):
    function, args = call(name, device)
    for i, x in enumerate(args):
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            with forward_ad.dual_level(), pytest.raises(RuntimeError, match="has a tangent"):
                function(*args[:i], forward_ad.make_dual(x, torch.ones_like(x)), *args[i + 1 :])


@pytest.mark.parametrize("name", PUBLIC)
def test_the_default_dtype_changes_nothing(name):
    function, args = call(name, "cpu")
    flat = [y for x in args for y in (x if isinstance(x, tuple) else (x,))]
    expected = as_tuple(function(*args)), as_tuple(getattr(plain, name)(*flat))
    torch.set_default_dtype(torch.float64)
    try:
        results = as_tuple(function(*args)), as_tuple(getattr(plain, name)(*flat))
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, wanted in zip(sum(results, ()), sum(expected, ()), strict=True):
        assert ours.dtype == wanted.dtype
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("name", PUBLIC)
def test_fake_tensors_and_make_fx_outside_of_a_compiler(name):
    function, args = call(name, "cpu")
    expected = as_tuple(function(*args))
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in args]
        results = as_tuple(function(*fakes))
    assert [x.dtype for x in results] == [x.dtype for x in expected]
    if not OPS[name].data_dependent:
        assert [x.shape for x in results] == [x.shape for x in expected]
    tensors = [x for x in args if isinstance(x, torch.Tensor)]
    for how in ("real", "fake"):
        graph = make_fx(lambda *some: function(*some, *args[len(tensors) :]), tracing_mode=how)(*tensors)
        for ours, wanted in zip(as_tuple(graph(*tensors)), expected, strict=True):
            assert torch.equal(ours, wanted)


def test_backend_python_uses_no_kernel_and_gives_the_same_bits():
    code = """
import torch, ssd_ext
g = torch.Generator().manual_seed(3)
a, b = torch.rand(50, 4, generator=g), torch.rand(70, 4, generator=g)
assert not any(ssd_ext.info().kernels.values()), ssd_ext.info()
print(ssd_ext.box_iou(a, b).view(torch.int32).sum().item())
"""
    printed = printed_by(code, SSD_EXT_BACKEND="python")
    g = torch.Generator().manual_seed(3)
    a, b = torch.rand(50, 4, generator=g), torch.rand(70, 4, generator=g)
    assert int(printed) == ssd_ext.box_iou(a, b).view(torch.int32).sum().item()


def test_unknown_backend_is_named():
    with pytest.raises(AssertionError, match="SSD_EXT_BACKEND='fortran': expected one of auto, python, cpp"):
        printed_by("import ssd_ext", SSD_EXT_BACKEND="fortran")
